"""The vision-language classifier: its formula, its buffers, and the same answers once exported."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.backbones import Classifier, Stored, classifier_config, from_config
from labelwright.encoders.lora import LoraTowers
from labelwright.encoders.prompts import PromptedTowers
from labelwright.encoders.residual import ResidualAdapter
from labelwright.encoders.towers import EmbeddedTowers, FrozenTowers
from two_towers import pixels, two_tower

TEXTS = ["a photo of a cat", "a photo of an owl", "a big dog"]
NAMES = ["cat", "owl", "dog"]
X = pixels(6).float()


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def net_on(towers, n_features, *, adapters=True):
    """With everything that alignment and adapters may add, none of it small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pair = [ResidualAdapter(n_features, weight=0.5) for _ in range(2)] if adapters else [None, None]
    net = AlignedNet(towers, visual=pair[0], textual=pair[1])
    net.offset.copy_(0.3 * unit(*net.offset.shape, seed=6))
    net.linear_weight.copy_(unit(*net.offset.shape, seed=7))
    net.linear_bias.copy_(torch.arange(len(net.offset)) * 0.5)
    return net


def embedded(**knobs):
    return net_on(EmbeddedTowers(unit(3, 8, seed=1), logit_scale=10.0), 8, **knobs)


def tuned(tune):
    tower = two_tower("clip").float()
    if tune == "none":
        return FrozenTowers(tower, tower.text_feats(TEXTS))
    if tune == "lora":
        towers = LoraTowers(tower, TEXTS, seed=0)
    else:
        towers = PromptedTowers(tower, NAMES, kind=tune, seed=0)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return towers


def test_forward__is_scaled_cosines_when_nothing_is_added():
    towers = EmbeddedTowers(unit(3, 8, seed=1), logit_scale=10.0)
    x = 4 * unit(5, 8, seed=2)
    torch.testing.assert_close(AlignedNet(towers)(x), 10 * F.normalize(x, dim=1) @ towers.text_feats().T)


@torch.no_grad()
def test_forward__by_its_formula():
    net, x = embedded(), 4 * unit(5, 8, seed=2)
    towers = net.towers
    t = net.textual(F.normalize(towers.text_feats() + net.offset, dim=1))
    a = net.visual(F.normalize(x, dim=1))
    want = [
        [10 * float(a[i] @ t[c]) + float(a[i] @ net.linear_weight[c]) + float(net.linear_bias[c]) for c in range(3)]
        for i in range(5)
    ]
    torch.testing.assert_close(net(x), torch.tensor(want), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.logits(net.adapted(net.features(x)), net.class_feats()), net(x))


def test_buffers__zero_at_first_moved_by_alignment_and_saved():
    fresh = AlignedNet(EmbeddedTowers(unit(3, 8, seed=1), logit_scale=10.0))
    assert all(float(b.abs().max()) == 0 for b in (fresh.offset, fresh.linear_weight, fresh.linear_bias))
    target = unit(3, 8, seed=9)
    fresh.offset.copy_(target - fresh.towers.text_feats())
    torch.testing.assert_close(fresh.class_feats(), target)
    net, again, x = embedded(), embedded(), unit(5, 8, seed=2)
    again.offset.zero_()
    assert not torch.allclose(again(x), net(x))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


def test_class_feats__unit_with_and_without_adapter():
    for adapters in (True, False):
        torch.testing.assert_close(embedded(adapters=adapters).class_feats().norm(dim=1), torch.ones(3))


def test_logits__float32_under_autocast():
    net, x = embedded(), unit(5, 8, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = net(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, net(x))


def test_gradients__reach_both_adapters_and_not_the_buffers():
    net = embedded()
    F.cross_entropy(net(unit(5, 8, seed=2)), torch.tensor([0, 1, 2, 0, 1])).backward()
    names = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert names == {f"{a}.{m}.{w}" for a in ("visual", "textual") for m in ("down", "up") for w in ("weight", "bias")}


@pytest.mark.parametrize("adapters", [True, False])
def test_exported__stored_features(adapters):
    net, x = embedded(adapters=adapters), unit(5, 8, seed=2)
    out = net.exported()
    assert isinstance(out, Classifier)
    assert isinstance(out.backbone, Stored)
    assert (out.name, out.n_features, out.n_outputs, out.image_size_px) == ("stored", 8, 3, 0)
    torch.testing.assert_close(out(x), net(x))
    assert not out(x).allclose(out(x).roll(1, 0))


def test_exported__takes_unit_features_as_a_store_gives_them():
    net, x = embedded(), unit(5, 8, seed=2)
    torch.testing.assert_close(net(3 * x), net(x))
    torch.testing.assert_close(net.exported()(F.normalize(3 * x, dim=1)), net(3 * x))


def test_exported__is_a_copy():
    net, x = embedded(), unit(5, 8, seed=2)
    out = net.exported()
    kept = out(x).clone()
    with torch.no_grad():
        net.linear_bias.add_(9)
        net.visual.up.weight.mul_(-3)
    assert torch.equal(out(x), kept)
    assert not torch.allclose(net(x), kept)


@pytest.mark.parametrize("tune", ["none", "coop", "vpt", "maple", "lora"])
def test_exported__from_pixels_answers_the_same_and_is_rebuilt(tune):
    towers = tuned(tune)
    net = net_on(towers, 10).eval()
    with torch.no_grad():
        want = net(X)
        out = net.exported().eval()
        torch.testing.assert_close(out(X), want, rtol=1e-4, atol=1e-4)
        assert (out.name, out.image_size_px, out.n_features) == ("clip", 16, 10)
        config = json.loads(json.dumps(classifier_config(out)))
        again = from_config(config).eval()
        assert not torch.allclose(again(X), want, atol=1e-2)
        again.load_state_dict(copy.deepcopy(out.state_dict()))
        torch.testing.assert_close(again(X), want, rtol=1e-4, atol=1e-4)
    assert bool(config["visual_prompts"]) is (tune in ("vpt", "maple"))
    assert want.softmax(1).std(0).max() > 0.01, "answers depend on the image"
    assert not any("text" in name for name in out.state_dict()), "no text tower is saved"
