"""Prompts: where they go in the towers (against layers run one by one), what they train, what is saved of them."""

import copy
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from labelwright.encoders import towers
from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.pretrained import from_transformers_config, parse_transformers_config
from labelwright.encoders.prompts import PromptedTowers, PromptedVision, rebuild_prompted_vision
from labelwright.errors import ConfigError
from two_towers import LENGTH, WIDTH, WORDS, pixels, two_tower

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
FAMILIES = ["clip", "siglip"]
NAMES = ["cat", "big dog with red spots", "red cat"]


def prompted(family, kind, **settings):
    return PromptedTowers(two_tower(family), NAMES, kind=kind, **{"seed": 0, **settings})


def disturb(net):
    """Prompts as far from their start as training could bring them."""
    for i, parameter in enumerate(net.parameters()):
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))


# ---- oracles: the towers run layer by layer, one text or image at a time ----


def text_by_hand(tower, words, prompts, start):
    """Feature of one text, a list of token ids, with prompts [depth, n, D] over its places start to start + n."""
    text = tower.model.text_model
    is_siglip = tower.config.model_type == "siglip"
    n = prompts.shape[1]
    ids = torch.tensor(words + [0] * (LENGTH - len(words) if is_siglip else 0))
    hidden = text.embeddings.token_embedding.weight[ids].clone()
    hidden[start : start + n] = prompts[0].double()
    hidden = (hidden + text.embeddings.position_embedding.weight[: len(ids)])[None]
    mask = None if is_siglip else torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    for i, layer in enumerate(text.encoder.layers):
        if 0 < i < len(prompts):
            hidden = hidden.clone()
            hidden[0, start : start + n] = prompts[i].double()
        hidden = layer(hidden, mask)
    hidden = text.final_layer_norm(hidden)[0]
    pooled = text.head(hidden[-1]) if is_siglip else tower.model.text_projection(hidden[words.index(3)])
    return F.normalize(pooled, dim=0)


def image_by_hand(tower, x, prompts):
    """Feature of one image [3, H, W] with prompts [depth, n, D] behind its patches."""
    vision = tower.model.vision_model
    hidden = vision.embeddings(x[None])
    n_own = hidden.shape[1]
    hidden = torch.cat([hidden, prompts[0].double()[None]], dim=1)
    if tower.config.model_type == "clip":
        hidden = vision.pre_layrnorm(hidden)
    for i, layer in enumerate(vision.encoder.layers):
        if 0 < i < len(prompts):
            hidden = torch.cat([hidden[:, :n_own], prompts[i].double()[None]], dim=1)
        hidden = layer(hidden, None)
    if tower.config.model_type == "clip":
        pooled = tower.model.visual_projection(vision.post_layernorm(hidden[:, 0]))
    else:
        pooled = vision.head(vision.post_layernorm(hidden[:, :n_own]))
    return F.normalize(pooled[0], dim=0)


def ids_of(tower, text):
    return tower.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "n_context", "depth"), [("coop", 4, 1), ("coop", 2, 1), ("maple", 2, 2)])
def test_text_feats__by_hand(family, kind, n_context, depth):
    net = prompted(family, kind, n_context=n_context, depth=depth)
    disturb(net)
    start = 1 if family == "clip" else 0
    by_hand = torch.stack(
        [text_by_hand(net.tower, ids_of(net.tower, f"a photo of a {name}"), net.text_prompts, start) for name in NAMES]
    )
    torch.testing.assert_close(net.text_feats(), by_hand.float(), atol=1e-5, rtol=0)
    plain = net.tower.text_feats([f"a photo of a {name}" for name in NAMES])
    assert (net.text_feats() - plain).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["vpt", "maple"])
def test_features__by_hand(family, kind):
    net = prompted(family, kind, n_context=2, depth=2)
    disturb(net)
    prompts = net.visual_prompts
    if kind == "maple":
        pairs = zip(net.couplings, net.text_prompts, strict=True)
        prompts = torch.stack([couple.weight @ t + couple.bias for couple, tokens in pairs for t in tokens])
        prompts = prompts.reshape(2, 2, WIDTH)  # [depth*n, D] -> [depth, n, D]
    x = pixels()
    by_hand = torch.stack([image_by_hand(net.tower, one, prompts) for one in x])
    torch.testing.assert_close(net.features(x), by_hand.float(), atol=1e-5, rtol=0)
    assert (net.features(x) - net.tower.image_feats(x)).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_context", [2, 4])
def test_coop__untrained_is_the_plain_prompt(family, n_context):
    net = prompted(family, "coop", n_context=n_context)
    plain = net.tower.text_feats([f"a photo of a {name}" for name in NAMES])
    torch.testing.assert_close(net.text_feats(), plain, atol=1e-6, rtol=0)
    x = pixels()
    assert torch.equal(net.features(x), net.tower.image_feats(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_vpt__depth_0_is_the_plain_tower(family):
    net = prompted(family, "vpt", depth=0)
    x = pixels()
    assert torch.equal(net.features(x), net.tower.image_feats(x))
    assert list(net.parameters()) == []
    assert net.export() is net.tower.vision


def test_depth__cut_to_the_layers():
    assert prompted("clip", "maple", depth=50).text_prompts.shape[0] == 3
    assert prompted("clip", "vpt", depth=50).visual_prompts.shape[0] == 3
    assert prompted("clip", "coop", depth=50).text_prompts.shape[0] == 1


@pytest.mark.parametrize(
    ("name", "n_context", "expected"),
    [
        ("owl", 2, "a photo of an owl"),  # two words are learned: the article follows the name
        ("owl", 4, "a photo of a owl"),  # the article is learned, one for all classes
        ("two dogs", 2, "a photo of two dogs"),
        ("two dogs", 4, "a photo of a two dogs"),  # nothing of the name gives way to a learned word
    ],
)
def test_class_texts__article_fits_the_name_where_it_is_not_learned(name, n_context, expected):
    tower = two_tower("clip")
    net = PromptedTowers(tower, ["cat", name], kind="coop", n_context=n_context, seed=0)
    plain = tower.text_feats(["a photo of a cat", expected])
    torch.testing.assert_close(net.text_feats(), plain, atol=1e-6, rtol=0)


def test_class_texts__missing_or_empty():
    for texts, complaint in (([], "no class texts"), (["cat", " "], "class 1 has an empty text")):
        with pytest.raises(ConfigError, match=complaint):
            PromptedTowers(two_tower("clip"), texts, kind="coop", seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_texts__long_ones_are_cut_before_the_end(family):
    tower = two_tower(family)
    net = PromptedTowers(tower, ["big " * 30 + "cat"], kind="coop", n_context=4, seed=0)
    disturb(net)
    start = 1 if family == "clip" else 0
    n_big = LENGTH - start - 1 - 4
    ids = [2] * start + [1] * 4 + [WORDS.index("big")] * n_big + [3]
    by_hand = text_by_hand(tower, ids, net.text_prompts, start)
    torch.testing.assert_close(net.text_feats()[0], by_hand.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["coop", "vpt", "maple"])
def test_gradients__reach_every_prompt_and_nothing_else(family, kind):
    net = prompted(family, kind, depth=2)

    def loss():
        return F.cross_entropy(10 * net.features(pixels()) @ net.text_feats().T, torch.tensor([0, 1, 2, 0]))

    loss().backward()
    for name, parameter in net.named_parameters():
        by_token = parameter.grad.abs().sum(-1)  # of a prompt; of a coupling, by output
        assert by_token.min() > 0, name
    assert all(not p.requires_grad and p.grad is None for p in net.tower.parameters())
    prompt = next(net.parameters())  # the gradient is that of the loss: a small step changes it as much as it says
    direction, step = prompt.grad / prompt.grad.norm(), 1e-4
    with torch.no_grad():
        prompt += step * direction
        up = loss()
        prompt -= 2 * step * direction
        down = loss()
    assert ((up - down) / (2 * step)).item() == pytest.approx(prompt.grad.norm().item(), rel=0.02)


@pytest.mark.parametrize("kind", ["coop", "maple"])
def test_text_feats__in_chunks(kind, monkeypatch):
    net = prompted("clip", kind)
    weights = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))

    def feats_and_grad():
        net.zero_grad()
        feats = net.text_feats()
        (feats * weights).sum().backward()
        return feats.detach(), net.text_prompts.grad.clone()

    whole = feats_and_grad()
    monkeypatch.setattr(towers, "TEXT_CHUNK", 2)
    chunked = feats_and_grad()
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked[1], whole[1], atol=1e-6, rtol=1e-5)


def test_tower__is_left_as_it_was():
    tower = two_tower("clip")
    x, texts = pixels(), ["a photo of a cat"]
    before = tower.image_feats(x), tower.text_feats(texts)
    net = PromptedTowers(tower, NAMES, kind="maple", seed=0)
    disturb(net)
    net.features(x), net.text_feats()
    with pytest.raises(RuntimeError):  # an error inside the tower leaves no hook behind either
        net.features(x[:, :1])
    assert torch.equal(tower.image_feats(x), before[0])
    assert torch.equal(tower.text_feats(texts), before[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tower.modules())


def test_state__prompts_alone():
    net = prompted("clip", "maple", depth=2)
    disturb(net)
    names = {"text_prompts", *(f"couplings.{i}.{part}" for i in (0, 1) for part in ("weight", "bias"))}
    assert set(net.state_dict()) == names == {name for name, _ in net.named_parameters()}
    again = prompted("clip", "maple", depth=2, seed=1)
    assert not torch.equal(again.text_feats(), net.text_feats())
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.text_feats(), net.text_feats())
    assert torch.equal(again.features(pixels()), net.features(pixels()))


def test_copy__shares_the_model_but_not_the_prompts():
    net = prompted("clip", "vpt")
    twin = copy.deepcopy(net)
    assert twin.tower is net.tower
    disturb(twin)
    assert not torch.equal(twin.features(pixels()), net.features(pixels()))


def test_seed__says_all():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    nets = [prompted("clip", "maple", seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(1), expected)
    states = [torch.cat([value.flatten() for value in net.state_dict().values()]) for net in nets]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_autocast__is_close_and_gives_float32(family):
    net = prompted(family, "maple").float()
    x = pixels().float()
    with torch.autocast("cpu", torch.bfloat16):
        feats, texts = net.features(x), net.text_feats()
    assert feats.dtype == texts.dtype == torch.float32
    for low, full in ((feats, net.features(x)), (texts, net.text_feats())):
        cosines = (low * full).sum(1)
        assert cosines.min() > 0.98
        assert not torch.equal(low, full)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["vpt", "maple"])
def test_export__rebuilt_from_json_and_tensors(family, kind):
    net = prompted(family, kind, depth=2).float()
    disturb(net)
    x = pixels().float()
    exported = net.export()
    assert isinstance(exported, PromptedVision)
    expected = net.features(x)
    assert torch.equal(F.normalize(exported(x), dim=1), expected)
    config = json.loads(json.dumps(exported.prompt_config))
    model_config = parse_transformers_config(json.loads(exported.config.to_json_string(use_diff=False)))
    again = rebuild_prompted_vision(from_transformers_config(model_config), config).eval()
    again.load_state_dict(exported.state_dict())
    torch.testing.assert_close(F.normalize(again(x), dim=1), expected, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="lacks n_tokens"):
        rebuild_prompted_vision(exported.vision, {"depth": 1})


def test_export__can_be_traced():
    net = prompted("clip", "vpt", depth=2).float()
    x = pixels().float()
    program = torch.export.export(net.export(), (x,), strict=False).module()
    torch.testing.assert_close(program(x), net.export()(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "cocoop"}, "unknown kind of prompts: 'cocoop'"),
        ({"n_context": 0}, "n_context is 0"),
        ({"n_context": 5}, "n_context is 5"),
        ({"kind": "maple", "depth": 0}, "depth is 0"),
        ({"kind": "vpt", "depth": -1}, "depth is -1"),
    ],
)
def test_settings__refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        prompted("clip", **{"kind": "coop", **settings})


def test_other_families__text_side_refused_image_side_works():
    tower = two_tower("chinese_clip")
    for kind in ("coop", "maple"):
        with pytest.raises(ConfigError, match="the text side of chinese_clip") as caught:
            PromptedTowers(tower, NAMES, kind=kind, seed=0)
        assert "CLIP or SigLIP" in caught.value.fix
    net = PromptedTowers(tower, NAMES, kind="vpt", seed=0)
    assert (net.features(pixels()) - tower.image_feats(pixels())).abs().max() > 1e-3


@pytest.mark.skipif(not (SHARED / "models/tiny-clip").is_dir(), reason="the shared models are not on this machine")
def test_real_model__starts_at_zero_shot_and_learns():
    tower = load_two_tower(str(SHARED / "models/tiny-clip"), device=torch.device("cpu"), precision="fp32")
    names = ["airplane", "automobile", "bird", "cat"]
    coop = PromptedTowers(tower, names, kind="coop", n_context=2, seed=0)
    plain = tower.text_feats([f"a photo of {name}" for name in ("an airplane", "an automobile", "a bird", "a cat")])
    torch.testing.assert_close(coop.text_feats(), plain, atol=1e-4, rtol=0)

    rows = pq.read_table(SHARED / "data/cifar10-test.parquet").slice(0, 400)
    rows = [row for row in rows.to_pylist() if row["label"] < len(names)][:32]
    labels = torch.tensor([row["label"] for row in rows])
    images = [np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255.0
    x = (x - torch.tensor(tower.stats.mean)[:, None, None]) / torch.tensor(tower.stats.std)[:, None, None]
    net = PromptedTowers(tower, names, kind="maple", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net.logit_scale * net.features(x) @ net.text_feats().T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1.3, "real images are mostly recognised before any training"
    assert losses[-1] < 0.5 * losses[0]
