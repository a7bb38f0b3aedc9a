"""A classifier with projections beside its last layer."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import tiny
from labelwright.encoders.backbones import Classifier, build
from labelwright.encoders.heads import MlpHead
from labelwright.encoders.projection import ProjectedNet
from labelwright.errors import ConfigError
from labelwright.train.optim import param_groups
from labelwright.types import Network

D = tiny.N_FEATURES


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projected(*, head: str = "mlp", seed: int = 0, n_dims: int = 5) -> ProjectedNet:
    """On stored features, with every weight away from where it starts."""
    torch.manual_seed(seed)
    classifier = tiny.BuildHead()(3, head=cast(Any, head))
    if isinstance(classifier.head, MlpHead):
        nn.init.normal_(classifier.head.from_hidden.weight)
    return ProjectedNet(cast(Network, classifier), n_dims=n_dims)


def slow_projection(net: ProjectedNet, h: Tensor) -> Tensor:
    """Row after row, one number after another, in float64."""
    w1, b1, w2, b2 = (p.double().tolist() for p in net.projector.parameters())
    rows = []
    for x in h.double().tolist():
        hidden = [max(0.0, sum(a * v for a, v in zip(w, x, strict=True)) + b) for w, b in zip(w1, b1, strict=True)]
        out = [sum(a * v for a, v in zip(w, hidden, strict=True)) + b for w, b in zip(w2, b2, strict=True)]
        norm = sum(v * v for v in out) ** 0.5
        rows.append([v / norm for v in out])
    return torch.tensor(rows)


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp"])
@torch.no_grad()
def test_both__logits_of_the_classifier_and_projections_of_what_its_last_layer_sees(head: str) -> None:
    net, x = projected(head=head), draw(4, D)
    logits, z = net.both(x)
    classifier = cast(Classifier, net.classifier)
    seen = classifier.head.trunk(x) if isinstance(classifier.head, MlpHead) else x
    assert torch.equal(logits, classifier(x))
    torch.testing.assert_close(z, slow_projection(net, seen), rtol=1e-5, atol=1e-5)
    if head == "mlp":
        assert not torch.allclose(z, slow_projection(net, x), atol=1e-2), "not of the raw features"


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp"])
@torch.no_grad()
def test_answers_as_the_classifier(head: str) -> None:
    net, x = projected(head=head), draw(4, D)
    classifier = cast(Classifier, net.classifier)
    assert net.n_features == classifier.n_features == D
    for name in ("__call__", "features", "penultimate", "head_logits", "from_penultimate"):
        assert torch.equal(getattr(net, name)(x), getattr(classifier, name)(x)), name
    exported = net.exported()
    assert exported is classifier
    assert not any("projector" in name for name in exported.state_dict())


def test_defaults_and_where_the_weights_come_from() -> None:
    first, same, other = (projected(seed=seed, n_dims=128).projector.state_dict() for seed in (1, 1, 2))
    assert [tuple(v.shape) for v in first.values()] == [(D, D), (D,), (128, D), (128,)]
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)
    assert ProjectedNet(cast(Network, tiny.BuildHead()(3))).both(draw(2, D))[1].shape == (2, 128)


def test_both__unit_norm_float32_under_autocast() -> None:
    net = projected()
    with torch.autocast("cpu", torch.bfloat16):
        logits, z = net.both(draw(64, D))
    assert logits.dtype == torch.bfloat16, "autocast was on"
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(64), rtol=0, atol=1e-6)


def test_both__gradients_reach_every_weight_they_should() -> None:
    net, x = projected(), draw(8, D)
    net.both(x)[1][:, 0].sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    assert without == {"classifier.head.linear.weight", "classifier.head.linear.bias"}
    assert all(p.grad.abs().max() > 0 for p in net.parameters() if p.grad is not None)
    net.zero_grad()
    net(x).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == {
        name for name, _ in net.named_parameters() if name.startswith("projector")
    }


@torch.no_grad()
def test_deepcopy__a_momentum_copy_stands_alone() -> None:
    net, x = projected(), draw(4, D)
    twin = copy.deepcopy(net)
    before = [out.clone() for out in twin.both(x)]
    assert all(torch.equal(a, b) for a, b in zip(before, net.both(x), strict=True))
    for p in net.parameters():
        p.add_(draw(*p.shape, seed=7))
    assert all(torch.equal(a, b) for a, b in zip(before, twin.both(x), strict=True))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, net.both(x), strict=True))
    twin.load_state_dict(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(twin.both(x), net.both(x), strict=True))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_around_the_tiny_network(head: str) -> None:
    torch.manual_seed(0)
    net = ProjectedNet(cast(Network, tiny.BuildTiny()(3, head=cast(Any, head))), n_dims=4).eval()
    x = draw(2, 3, 8, 8)
    logits, z = net.both(x)
    assert z.shape == (2, 4)
    assert torch.equal(logits, net(x))


def test_around_a_network_of_pixels__rates_and_frozen_norms() -> None:
    torch.manual_seed(0)
    net = ProjectedNet(build("resnet32", 5, freeze=("backbone.stages.0.*",), image_size_px=8, seed=0)).train()
    plain = param_groups(cast(nn.Module, net.classifier), lr=0.1, weight_decay=0.0, layer_decay=0.5)
    groups = param_groups(net, lr=0.1, weight_decay=0.0, layer_decay=0.5)
    assert [(g["name"], g["lr"]) for g in groups] == [(g["name"], g["lr"]) for g in plain]
    at_full_rate = {id(p) for p in groups[-1]["params"]}
    assert {id(p) for p in net.projector.parameters()} <= at_full_rate
    frozen = [m.training for name, m in net.named_modules() if "stages.0." in name and isinstance(m, nn.BatchNorm2d)]
    assert frozen == [False] * 10
    assert net.exported().training


def test_builders_say_whether_anything_learns_before_the_head() -> None:
    for build_net, is_frozen in ((tiny.BuildHead(), True), (tiny.BuildTiny(), False)):
        net = build_net(3)
        assert build_net.is_frozen is is_frozen
        assert any(p.requires_grad for p in cast(Any, net).backbone.parameters()) is not is_frozen


def test_build_head__towers_of_the_class_names_it_was_given() -> None:
    concepts = tiny.concepts_of(3)
    assert torch.equal(tiny.BuildHead(concepts).towers().text_feats(), concepts.feats)
    with pytest.raises(ConfigError, match="no text features"):
        tiny.BuildHead().towers()


def test_projected_net__no_dimension() -> None:
    with pytest.raises(ConfigError, match="n_dims is 0"):
        ProjectedNet(cast(Network, tiny.BuildHead()(3)), n_dims=0)
