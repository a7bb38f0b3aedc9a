"""Heads made of class features, backbones of stored features, one head on another backbone, and what is saved."""

import json

import pytest
import torch
import torch.nn.functional as F

from labelwright.data.views import ViewSettings
from labelwright.encoders.backbones import (
    Classifier,
    CosineHead,
    ProjectedHead,
    Stored,
    TextHead,
    UnitBackbone,
    build,
    classifier_config,
    from_config,
)
from labelwright.encoders.prompts import PromptedTowers
from labelwright.encoders.residual import ResidualAdapter
from labelwright.errors import ConfigError
from labelwright.pipeline.saved_model import load_model, save_model
from two_towers import pixels, two_tower

X = pixels(5).float()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_head(n_outputs=3, n_features=8, *, adapter=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        visual = ResidualAdapter(n_features, n_hidden=5, weight=0.4) if adapter else None
    return TextHead(draw(n_outputs, n_features, seed=2), draw(n_outputs, seed=3), visual=visual)


def stored(head, n_features=8, n_outputs=3):
    return Classifier(
        Stored(), name="stored", n_features=n_features, n_outputs=n_outputs, head=head, image_size_px=0, freeze=()
    )


def rebuilt(net):
    """As save_model and load_model do it."""
    again = from_config(json.loads(json.dumps(classifier_config(net))))
    again.load_state_dict(net.state_dict())
    return again.eval()


@torch.no_grad()
def test_text_head__by_its_formula():
    head, z = text_head(adapter=False), F.normalize(draw(4, 8), dim=1)
    want = [[float(z[i] @ head.weight[c]) + float(head.bias[c]) for c in range(3)] for i in range(4)]
    torch.testing.assert_close(head(z), torch.tensor(want), rtol=1e-5, atol=1e-5)
    adapted = text_head()
    torch.testing.assert_close(adapted(z), adapted.visual(z) @ adapted.weight.T + adapted.bias)
    assert not torch.allclose(adapted(z), head(z), atol=1e-2)


def test_text_head__keeps_a_float32_copy():
    weight, bias = draw(3, 8).double(), draw(3).double()
    head = TextHead(weight, bias)
    weight.zero_()
    assert head.weight.dtype == head.bias.dtype == torch.float32
    assert head.weight.abs().sum() > 0
    assert {name for name, _ in head.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize("adapter", [True, False])
def test_text_head__float32_under_autocast(adapter):
    head, z = text_head(adapter=adapter), F.normalize(draw(4, 8), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, head(z))


def test_stored__hands_on_what_comes_in():
    x = draw(3, 8)
    assert Stored()(x) is x
    assert list(Stored().parameters()) == []


def test_unit_backbone__normalises_whatever_the_model_gives():
    vision = two_tower("clip").float().vision
    raw, z = vision(X), UnitBackbone(vision)(X)
    assert (raw.norm(dim=1) - 1).abs().max() > 0.1
    torch.testing.assert_close(z, raw / raw.norm(dim=1, keepdim=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = UnitBackbone(vision)(X)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside.norm(dim=1), torch.ones(5))


def projected_head(n_features=8, *, n_dims=4):
    head = ProjectedHead(n_features, 3, n_dims=n_dims)
    with torch.no_grad():
        head.mean.copy_(draw(n_features, seed=4))
        head.projection.copy_(draw(n_dims, n_features, seed=5))
    return head


@torch.no_grad()
def test_projected_head__by_its_formula():
    head, x = projected_head(), draw(6, 8)
    for row, got in zip(x, head(x), strict=True):
        p = [float(direction @ (row - head.mean)) for direction in head.projection]
        norm = sum(v * v for v in p) ** 0.5
        u = torch.tensor([v / norm for v in p])
        torch.testing.assert_close(got, head.linear.weight @ u + head.linear.bias, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(x.bfloat16())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, head(x.bfloat16()))
    assert ProjectedHead(8, 3, n_dims=128).projection.shape == (8, 8)


@torch.no_grad()
def test_config__projected_head():
    net, x = stored(projected_head()), draw(6, 8)
    config = classifier_config(net)
    assert (config["head"], config["n_dims"]) == ("projected", 4)
    assert torch.equal(rebuilt(net)(x), net(x))
    assert torch.equal(net.from_penultimate(net.penultimate(x)), net(x))
    assert stored("projected").head.projection.shape == (8, 8)


@pytest.mark.parametrize("adapter", [True, False])
def test_config__stored_with_text_head(adapter):
    net = stored(text_head(adapter=adapter))
    config = classifier_config(net)
    assert (config["name"], config["head"], config["transformers"]) == ("stored", "text", None)
    assert config["adapter"] == ({"n_hidden": 5, "weight": 0.4} if adapter else None)
    z = F.normalize(draw(4, 8), dim=1)
    assert torch.equal(rebuilt(net)(z), net(z))


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_config__stored_with_other_heads(head):
    net = stored(head)
    z = draw(4, 8)
    again = rebuilt(net)
    assert again.head_kind == head
    assert torch.equal(again(z), net(z))


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_config__unit_backbone_of_each_family(family):
    vision = two_tower(family).float().vision
    n_features = vision(X).shape[1]
    net = Classifier(
        UnitBackbone(vision),
        name=family,
        n_features=n_features,
        n_outputs=3,
        head=text_head(n_features=n_features),
        image_size_px=16,
        freeze=(),
    ).eval()
    assert classifier_config(net)["unit_feats"] is True
    with torch.no_grad():
        again = rebuilt(net)
        torch.testing.assert_close(again(X), net(X))
        torch.testing.assert_close(again.features(X).norm(dim=1), torch.ones(5))


def test_config__prompted_backbone():
    towers = PromptedTowers(two_tower("clip").float(), ["cat", "owl", "dog"], kind="vpt", seed=0)
    vision = towers.export()
    with torch.no_grad():
        vision.prompts.copy_(draw(*vision.prompts.shape))
    net = Classifier(
        UnitBackbone(vision),
        name="clip",
        n_features=10,
        n_outputs=3,
        head=text_head(n_features=10),
        image_size_px=16,
        freeze=(),
    ).eval()
    config = classifier_config(net)
    assert set(config["visual_prompts"]) == {"depth", "n_tokens"}
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(net)(X), net(X))
        plain = from_config({**config, "visual_prompts": None})
    with pytest.raises(RuntimeError, match="prompts"):
        plain.load_state_dict(net.state_dict())


def test_config__written_before_there_were_text_heads():
    net = build("resnet32", 4, seed=0).eval()
    old = {k: v for k, v in classifier_config(net).items() if k not in ("unit_feats", "visual_prompts", "adapter")}
    again = from_config(old).eval()
    again.load_state_dict(net.state_dict())
    x = draw(2, 3, 32, 32)
    assert torch.equal(again(x), net(x))
    with pytest.raises(ConfigError, match="unknown head: 'poem'"):
        from_config({**old, "head": "poem"})


@pytest.mark.parametrize("kind", ["linear", "cosine", "text"])
def test_with_backbone__the_same_answers_from_pixels(kind):
    vision = two_tower("clip").float().vision
    backbone = UnitBackbone(vision)
    net = stored(text_head(n_features=10) if kind == "text" else kind, n_features=10).eval()
    made = net.with_backbone(backbone, name="clip", image_size_px=16).eval()
    assert (made.name, made.image_size_px, made.head_kind, made.n_features) == ("clip", 16, kind, 10)
    assert isinstance(made.head, {"linear": torch.nn.Linear, "cosine": CosineHead, "text": TextHead}[kind])
    assert made.head is net.head
    assert isinstance(net.backbone, Stored), "the first one stays as it is"
    with torch.no_grad():
        torch.testing.assert_close(made(X), net(backbone(X)))
        torch.testing.assert_close(rebuilt(made)(X), made(X))


@pytest.mark.parametrize("is_stored", [True, False])
def test_save_model__and_load_it_elsewhere(is_stored, tmp_path):
    net = stored(text_head(n_features=10), n_features=10)
    x = F.normalize(draw(4, 10), dim=1)
    if not is_stored:
        net, x = net.with_backbone(UnitBackbone(two_tower("clip").float().vision), name="clip", image_size_px=16), X
    net.eval()
    save_model(
        tmp_path / "model",
        net,
        class_names=("cat", "owl", "dog"),
        size_px=16,
        view=ViewSettings(),
        info={},
        card="",
    )
    again = load_model(tmp_path / "model", device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(again.probs(x), net(x).softmax(1))
