"""Tiny random checkpoints of transformers, written to a temporary folder and loaded back by path."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from labelwright.encoders.backbones import (
    Classifier,
    Ensemble,
    MlpHead,
    Stored,
    TextHead,
    UnitBackbone,
    build,
    classifier_config,
    from_config,
)
from labelwright.encoders.nets import EncoderNets, OwnNets
from labelwright.encoders.pretrained import ImageStats, image_stats
from labelwright.errors import ConfigError
from labelwright.train.optim import param_groups

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(kind):
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**VIT))
    if kind == "vit for classification":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**VIT))
    if kind == "convnext":
        return transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=2)
        )
    if kind == "resnet":
        return transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
        )
    if kind == "clip":
        return transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=12))
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VIT))
    raise AssertionError(kind)


@pytest.fixture
def save(tmp_path):
    def write(kind):
        torch.manual_seed(0)
        model = tiny(kind).eval()
        model.save_pretrained(tmp_path / "model")
        return model, str(tmp_path / "model")

    return write


def direct_feats(kind, model, x):
    """What transformers itself gives."""
    if kind in ("clip", "siglip"):
        out = model.get_image_features(pixel_values=x)
        return out if torch.is_tensor(out) else out.pooler_output
    if kind == "vit":
        return model(x).last_hidden_state[:, 0]
    if kind == "vit for classification":
        return model.vit(x).last_hidden_state[:, 0]
    return model(x).pooler_output.flatten(1)


KINDS = ["vit", "vit for classification", "dinov2", "convnext", "resnet", "clip", "siglip"]


@pytest.mark.parametrize("kind", KINDS)
def test_build__loads_by_path_and_rebuilds_without_it(kind, save, tmp_path):
    model, path = save(kind)
    before = torch.random.get_rng_state()
    net = build(path, 5, image_size_px=32, seed=0).eval()
    assert torch.equal(torch.random.get_rng_state(), before)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net.features(x), direct_feats(kind, model, x), atol=1e-6)
        assert net.features(x).shape == (2, net.n_features)
    assert net.n_features == (12 if kind == "clip" else 16)
    assert not any("text" in name for name, _ in net.named_parameters())

    config = json.loads(json.dumps(classifier_config(net)))
    Path(path).rename(tmp_path / "gone")  # rebuilding may not need the original
    again = from_config(config).eval()
    with torch.no_grad():
        assert not torch.allclose(again(x), net(x), atol=1e-3)
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("kind", KINDS)
def test_build__every_parameter_left_trainable_gets_a_gradient(kind, save):
    _, path = save(kind)
    net = build(path, 5, seed=0)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_build__other_image_size_and_random_weights(save):
    model, path = save("clip")
    assert build(path, 2, image_size_px=48, seed=0)(torch.randn(1, 3, 48, 48)).shape == (1, 2)
    first, same, other = (build(path, 2, pretrained=False, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    name = "backbone.model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], model.vision_model.state_dict()[name.removeprefix("backbone.model.")])


def test_build__half_precision_checkpoint_becomes_float32(tmp_path):
    tiny("resnet").half().save_pretrained(tmp_path)
    net = build(str(tmp_path), 2, seed=0)
    assert {t.dtype for t in net.state_dict().values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "key"), [("vit", "layer.1.intermediate"), ("clip", "vision_model.encoder.layers.1.mlp.fc1")]
)
def test_build__checkpoint_without_its_weights(kind, key, save):
    _, path = save(kind)
    file = Path(path) / "model.safetensors"
    weights = load_file(file)
    kept = {k: v for k, v in weights.items() if key not in k}
    assert len(weights) - len(kept) == 2
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 2 weights"):
        build(path, 2, seed=0)


def test_features__tiny_clip_image_tower():
    path = SHARED / "models" / "tiny-clip"
    if not path.is_dir():
        pytest.skip(f"shared model not here: {path}")
    net = build(str(path), 10, seed=0).eval()
    full = transformers.CLIPModel.from_pretrained(path, dtype=torch.float32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net.features(x), direct_feats("clip", full, x), atol=1e-5)
    assert net.n_features == 128
    stats = image_stats(str(path))
    assert stats == ImageStats(32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def test_freeze__gradient_flows_only_where_it_should(save):
    _, path = save("dinov2")
    net = build(path, 5, freeze=("*.embeddings.*", "*.layer.[0-1].*"), seed=0)
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    has_grad = {name for name, p in net.named_parameters() if p.grad is not None}
    wanted = {n for n, _ in net.named_parameters() if ".layer.2." in n or "layernorm" in n or n.startswith("head.")}
    assert has_grad == wanted


def test_freeze__batch_norm_keeps_its_statistics():
    net = build("resnet32", 3, freeze=("backbone.stages.0.*", "backbone.stages.1.0.norm1.weight"), seed=0)
    before = {name: b.clone() for name, b in net.named_buffers()}
    net.train()(torch.randn(4, 3, 8, 8))
    same = {name.rsplit(".", 1)[0] for name, b in net.named_buffers() if torch.equal(b, before[name])}
    assert same == {f"backbone.stages.0.{i}.norm{j}" for i in range(5) for j in (1, 2)}
    # the half-frozen norm and all others are still in training mode
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(m.training for m in norms) == len(norms) - 10
    assert not any(m.training for m in net.eval().modules())


def test_freeze__pattern_without_match():
    with pytest.raises(ConfigError, match=r"'backbone' matches no parameter") as caught:
        build("resnet32", 3, freeze=("backbone",), seed=0)
    for name in ("backbone.stem", "backbone.norm", "backbone.stages", "head.weight"):
        assert name in caught.value.fix


def test_head__cosine():
    net = build("resnet32", 4, head="cosine", seed=0).eval()
    feats = torch.randn(6, 64)
    logits = net.head_logits(feats)
    slow = [[torch.nn.functional.cosine_similarity(f, w, dim=0).item() for w in net.head.weight] for f in feats]
    assert torch.allclose(logits, torch.tensor(slow), atol=1e-6)
    assert torch.allclose(net.head_logits(7 * feats), logits, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.head_logits(feats), logits)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp_head(n_features=6, n_outputs=3, hidden=5):
    """A head as after training: at the start its residual layer does nothing."""
    head = MlpHead(n_features, n_outputs, hidden=hidden)
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    return head


def stored(head, n_features=6):
    return Classifier(
        Stored(), name="stored", n_features=n_features, n_outputs=3, head=head, image_size_px=0, freeze=()
    )


def slow_mlp(head, feats):
    """Trunk and logits of each row, one number after another, in float64."""
    w1, b1, w2, b2, w, b = (p.double().tolist() for p in head.parameters())
    trunks, logits = [], []
    for f in feats.double().tolist():
        hidden = [max(0.0, sum(a * x for a, x in zip(row, f, strict=True)) + c) for row, c in zip(w1, b1, strict=True)]
        moves = [sum(a * x for a, x in zip(row, hidden, strict=True)) + c for row, c in zip(w2, b2, strict=True)]
        trunks.append([x + move for x, move in zip(f, moves, strict=True)])
        logits.append(
            [sum(a * x for a, x in zip(row, trunks[-1], strict=True)) + c for row, c in zip(w, b, strict=True)]
        )
    return torch.tensor(trunks), torch.tensor(logits)


def test_head__mlp_starts_as_a_linear_head():
    net, feats = stored("mlp"), draw(4, 6)
    assert net.head.to_hidden.out_features == 256
    assert torch.equal(net.penultimate(feats), feats)
    assert torch.equal(net(feats), net.head.linear(feats))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.penultimate(feats), feats)


@torch.no_grad()
def test_head__mlp_by_its_formula():
    head, feats = mlp_head(), draw(4, 6, seed=9)
    trunk, logits = slow_mlp(head, feats)
    assert (trunk - feats).abs().min() > 1e-3
    torch.testing.assert_close(head.trunk(feats), trunk.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head(feats), logits.float(), rtol=1e-5, atol=1e-5)


def test_head__mlp_gradient_reaches_the_trunk():
    net, feats, labels = stored("mlp"), draw(8, 6), torch.arange(8) % 3
    rates = torch.optim.SGD(param_groups(net, lr=0.5, weight_decay=0.0))
    for step in range(2):
        rates.zero_grad()
        torch.nn.functional.cross_entropy(net(feats), labels).backward()
        has = {name for name, p in net.named_parameters() if p.grad.abs().max() > 0}
        # nothing comes back through weights of 0: the first layer learns from the second step on
        behind = {"head.to_hidden.weight", "head.to_hidden.bias"}
        assert {name for name, _ in net.named_parameters()} - has == (behind if step == 0 else set())
        rates.step()
    assert (net.penultimate(feats) - feats).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["linear", "cosine", "mlp", "text"])
@torch.no_grad()
def test_penultimate__and_on_from_there(kind):
    head = {"mlp": mlp_head(), "text": TextHead(draw(3, 6), draw(3))}.get(kind, kind)
    net, x = stored(head), draw(4, 6, seed=9)
    h = net.penultimate(x)
    assert h.shape == (4, net.n_features)
    assert torch.equal(h, x) == (kind != "mlp")
    for logits in (net.from_penultimate(h), net.head_logits(net.features(x))):
        assert torch.equal(logits, net(x))


@torch.no_grad()
def test_config__mlp_head():
    net, x = stored(mlp_head(hidden=7)), draw(4, 6, seed=9)
    config = json.loads(json.dumps(classifier_config(net)))
    assert (config["head"], config["mlp_hidden"]) == ("mlp", 7)
    again = from_config(config)
    assert not torch.allclose(again(x), net(x), atol=1e-2)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    assert classifier_config(again) == config
    moved = net.with_backbone(nn.Identity(), name="other", image_size_px=8)
    assert moved.head is net.head
    assert (moved.head_kind, moved.name) == ("mlp", "other")
    assert torch.equal(moved(x), net(x))


def test_param_groups__mlp_head_learns_at_the_full_rate():
    groups = param_groups(build("resnet32", 5, head="mlp", seed=0), lr=0.1, weight_decay=0.05, layer_decay=0.5)
    assert (groups[-1]["name"], groups[-1]["lr"]) == ("head", 0.1)
    assert sorted(tuple(p.shape) for p in groups[-1]["params"]) == [(5,), (5, 64), (64,), (64, 256), (256,), (256, 64)]


@pytest.mark.parametrize("freeze", [(), ("backbone.stem.*",), ("backbone.*",), ("backbone.*", "head.bias")])
def test_is_frozen__of_networks_that_see_pixels(freeze):
    build_net = OwnNets("resnet32", 8, False, freeze, seed=0)
    net = build_net(3)
    assert build_net.is_frozen == (not any(p.requires_grad for p in net.backbone.parameters()))
    assert build_net.is_frozen == ("backbone.*" in freeze)
    assert isinstance(OwnNets("resnet32", 8, False, (), seed=0)(3, head="mlp").head, MlpHead)


def test_is_frozen__of_heads_on_stored_features():
    build_net = EncoderNets(6, None, None, True, ("cat", "dog", "owl"), "a photo of a {}", seed=3)
    net = build_net(3, head="mlp")
    assert build_net.is_frozen
    assert {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"head"}
    assert torch.equal(net.penultimate(draw(4, 6)), draw(4, 6))


@pytest.mark.parametrize(
    ("kind", "n_blocks", "first_after"),
    [
        ("vit", 3, "layernorm"),
        ("clip", 3, "post_layernorm"),
        ("dinov2", 3, "layernorm"),
        ("convnext", 3, "layernorm"),
        ("resnet", 3, None),
    ],
)
def test_param_groups__layer_decay(kind, n_blocks, first_after, save):
    _, path = save(kind)
    net = build(path, 5, seed=0)
    groups = param_groups(net, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    assert [g["name"] for g in groups] == ["stem", *(f"block{i + 1}" for i in range(n_blocks)), "head"]
    assert [g["lr"] for g in groups] == pytest.approx([0.1 * 0.5 ** (n_blocks + 1 - i) for i in range(n_blocks + 2)])
    names = {id(p): n for n, p in net.named_parameters()}
    of_group = [{names[id(p)] for p in g["params"]} for g in groups]
    assert {"head.weight", "head.bias"} <= of_group[-1]
    assert all("embed" in n or "pre_l" in n for n in of_group[0])
    if first_after:
        assert f"backbone.model.{first_after}.weight" in of_group[-1]
    assert sum(map(len, of_group)) == sum(p.requires_grad for p in net.parameters())


def test_param_groups__frozen_left_out():
    net = build("resnet32", 5, freeze=("backbone.stem.*",), seed=0)
    groups = param_groups(net, lr=0.1, weight_decay=0.05)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.1, 0.05)}
    assert sum(len(g["params"]) for g in groups) == 30 + 1 + 2 * 31 + 1  # convolutions, the head's two, norms
    torch.optim.SGD(groups)  # accepted as they are


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("resnet-32", "unknown model: 'resnet-32'", "did you mean resnet32"),
        ("nonsense", "unknown model: 'nonsense'", "resnet32 or resnet18 or preact_resnet18"),
        ("CLIP-ViT-B-32", "unknown model: 'CLIP-ViT-B-32'", "did you mean openai/clip-vit-base-patch32"),
        ("./not/here", "no such model folder", "check the path"),
    ],
)
def test_build__unknown_name(name, message, fix):
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, 2, seed=0)
    assert fix in caught.value.fix


def test_build__not_a_vision_model(tmp_path):
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a bert model, which takes no images"):
        build(str(tmp_path), 2, seed=0)


def test_build__folder_without_model(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build(str(tmp_path), 2, seed=0)


def test_build__bad_values():
    with pytest.raises(ConfigError, match="unknown head: 'cos'"):
        build("resnet32", 2, head="cos", seed=0)
    with pytest.raises(ConfigError, match="n_outputs is 0"):
        build("resnet32", 0, seed=0)


def test_from_config__bad_values():
    config = classifier_config(build("resnet32", 2, seed=0))
    with pytest.raises(ConfigError, match="lacks head"):
        from_config({k: v for k, v in config.items() if k != "head"})
    with pytest.raises(ConfigError, match="does not know the model type 'futuristic'"):
        from_config(config | {"transformers": {"model_type": "futuristic"}})


def test_ensemble__sums_and_is_rebuilt_from_its_config():
    net = Ensemble([build("resnet32", 3, seed=seed) for seed in (0, 1)]).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), net.members[0](x) + net.members[1](x))
    config = json.loads(json.dumps(classifier_config(net)))
    assert config["n_summed"] == 2
    again = from_config(config).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    assert net.backbone is net.members[0].backbone


def test_ensemble__on_another_backbone():
    heads = [
        Classifier(Stored(), name="stored", n_features=64, n_outputs=3, head="linear", image_size_px=0, freeze=())
        for _ in range(2)
    ]
    backbone = UnitBackbone(build("resnet32", 3, seed=0).backbone)
    moved = Ensemble(heads).with_backbone(backbone, name="resnet32", image_size_px=32).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(moved(x), sum(head(backbone(x)) for head in heads))
    assert classifier_config(moved)["unit_feats"] is True
