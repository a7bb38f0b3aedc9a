"""Low-rank updates: against the formula, what they train, what is saved, and that they merge into plain weights."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from labelwright.encoders.clip import TwoTower, load_two_tower
from labelwright.encoders.lora import LoraTowers
from labelwright.errors import ConfigError
from two_towers import pixels, two_tower

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
FAMILIES = ["clip", "siglip"]
TEXTS = ["a photo of a cat", "a photo of a big dog", "a photo of an owl"]


def tuned(family, **settings):
    return LoraTowers(two_tower(family), TEXTS, **{"rank": 2, "seed": 0, **settings})


def disturb(net):
    """Updates as far from their start as training could bring them."""
    for i, parameter in enumerate(net.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained__is_the_plain_model(family):
    net, tower = tuned(family), two_tower(family)
    x = pixels()
    torch.testing.assert_close(net.features(x), tower.image_feats(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(net.text_feats(), tower.text_feats(TEXTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained__is_the_model_with_updated_weights(family):
    """W + B A, written into a plain model by hand."""
    net, tower = tuned(family), two_tower(family)
    disturb(net)
    x = pixels()
    plain = tower.image_feats(x), tower.text_feats(TEXTS)
    with torch.no_grad():
        for name in sorted({key.rpartition("/")[0] for key in net.updates}):
            update = net.updates[f"{name}/lora_B"] @ net.updates[f"{name}/lora_A"]
            tower.model.get_submodule(name.replace("/", ".")).weight += update
    by_hand = tower.image_feats(x), tower.text_feats(TEXTS)
    for now, expected, before in zip((net.features(x), net.text_feats()), by_hand, plain, strict=True):
        torch.testing.assert_close(now, expected, atol=1e-5, rtol=0)
        assert (expected - before).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_merged__is_a_plain_model_of_the_same_features(family):
    net = tuned(family).float()
    disturb(net)
    x = pixels().float()
    merged = net.merged()
    assert type(merged) is TwoTower
    torch.testing.assert_close(merged.image_feats(x), net.features(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(merged.text_feats(TEXTS), net.text_feats(), atol=1e-5, rtol=0)
    assert set(merged.model.state_dict()) == set(two_tower(family).model.state_dict())
    assert merged.identity != net.tower.identity  # other weights: no embedding store may take it for the old model
    assert not any(p.requires_grad for p in merged.parameters())
    disturb(net)  # apart from each other from here on
    assert (merged.image_feats(x) - net.features(x)).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients__reach_the_updates_and_nothing_else(family):
    net = tuned(family)
    disturb(net)  # while B is zero A has no gradient
    F.cross_entropy(net.features(pixels()) @ net.text_feats().T, torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
    own = {id(parameter) for parameter in net.parameters()}
    others = [parameter for parameter in net.tower.parameters() if id(parameter) not in own]
    assert len(others) > 50
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in others)
    assert {id(parameter) for parameter in net.tower.parameters() if parameter.requires_grad} == own


def test_state__updates_alone_and_copies_apart():
    net = tuned("clip")
    disturb(net)
    state = net.state_dict()
    assert len(state) == 2 * 2 * 3 * 2  # A and B, of q and v, in 3 layers of 2 towers
    assert "updates.text_model/encoder/layers/0/self_attn/q_proj/lora_A" in state
    again = tuned("clip", seed=1)
    again.load_state_dict(state)
    x = pixels()
    assert torch.equal(again.features(x), net.features(x))
    assert torch.equal(again.text_feats(), net.text_feats())
    twin = copy.deepcopy(net)
    disturb(twin)
    assert torch.equal(again.features(x), net.features(x))
    assert not torch.equal(twin.features(x), net.features(x))


def test_tower__is_left_as_it_was():
    tower = two_tower("clip")
    before = tower.image_feats(pixels())
    disturb(LoraTowers(tower, TEXTS, seed=0))
    assert torch.equal(tower.image_feats(pixels()), before)
    assert not any("lora" in name for name, _ in tower.named_parameters())


def test_seed__says_all():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    states = [torch.cat([v.flatten() for v in tuned("clip", seed=seed).state_dict().values()]) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_bf16_autocast__is_close_and_gives_float32():
    net = tuned("clip").float()
    x = pixels().float()
    with torch.autocast("cpu", torch.bfloat16):
        feats = net.features(x)
    assert feats.dtype == torch.float32
    assert 0.98 < (feats * net.features(x)).sum(1).min() < 1 - 1e-7


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"targets": ("q_proj", "query")}, "no linear layer 'query'"),
    ],
)
def test_settings__refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        tuned("clip", **settings)
    if settings.get("targets"):
        assert caught.value.fix == "it has fc1, fc2, k_proj, out_proj, q_proj, v_proj"


def test_other_families__by_their_own_names():
    """ChineseCLIP's text tower is a BERT: another structure, a mask that counts, and query for q_proj."""
    tower = two_tower("chinese_clip")
    texts = ["cat", "a photo of a big red dog"]  # of different lengths: the shorter one is padded
    net = LoraTowers(tower, texts, targets=("query", "q_proj"), seed=0)
    torch.testing.assert_close(net.text_feats(), tower.text_feats(texts), atol=1e-6, rtol=0)
    assert len(net.updates) == 2 * (3 + 3)


@pytest.mark.skipif(not (SHARED / "models/tiny-clip").is_dir(), reason="the shared models are not on this machine")
def test_real_model__merges():
    tower = load_two_tower(str(SHARED / "models/tiny-clip"), device=torch.device("cpu"), precision="fp32")
    net = LoraTowers(tower, ["cat", "dog"], seed=0)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    merged = net.merged()
    torch.testing.assert_close(merged.image_feats(x), net.features(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(merged.text_feats(["cat", "dog"]), net.text_feats(), atol=1e-5, rtol=0)
    assert (tower.image_feats(x) - net.features(x)).abs().max() > 1e-3
