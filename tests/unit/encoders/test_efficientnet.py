"""EfficientNet-Lite0: its size, and weights under the names of the file that the package index has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from labelwright.encoders import backbones, efficientnet
from labelwright.encoders.embed import is_two_tower, load_encoder
from labelwright.encoders.pretrained import image_stats
from labelwright.errors import ConfigError


def as_in_the_file(name: str) -> str:
    """A name here as the published weights have it, by hand."""
    name = re.sub(r"^stem\.conv", "_conv_stem", name)
    name = re.sub(r"^stem\.norm", "_bn0", name)
    name = re.sub(r"^last\.conv", "_conv_head", name)
    name = re.sub(r"^last\.norm", "_bn1", name)
    for ours, conv, norm in (("widen", "expand", 0), ("each", "depthwise", 1), ("narrow", "project", 2)):
        name = re.sub(rf"^blocks\.(\d+)\.{ours}\.conv", rf"_blocks.\1._{conv}_conv", name)
        name = re.sub(rf"^blocks\.(\d+)\.{ours}\.norm", rf"_blocks.\1._bn{norm}", name)
    return name


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> efficientnet.EfficientNetLite:
    """Weights in a file, as the package has them, with its last layer."""
    torch.manual_seed(0)
    net = efficientnet.EfficientNetLite().eval()
    saved = {as_in_the_file(name): value for name, value in net.state_dict().items()}
    torch.save({**saved, "_fc.weight": torch.zeros(1000, 1280)}, tmp_path / "lite0.pth")
    monkeypatch.setattr(efficientnet, "weights_file", lambda: tmp_path / "lite0.pth")
    return net


def test_network__as_large_as_published() -> None:
    net = efficientnet.EfficientNetLite()
    n_weights = sum(parameter.numel() for parameter in net.parameters()) + 1280 * 1000 + 1000
    assert n_weights == 4_652_008  # with its last layer: 4.7 million (table of EfficientNet-Lite)
    with torch.no_grad():
        assert net.eval().stem(torch.zeros(1, 3, 224, 224)).shape == (1, 32, 112, 112)
        assert net.stem(torch.zeros(1, 3, 33, 47)).shape == (1, 32, 17, 24)  # rounded up, as TensorFlow does


def test_load_pretrained__every_weight_in_its_place(installed: efficientnet.EfficientNetLite) -> None:
    found = efficientnet.load_pretrained()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in installed.state_dict().items())
    encoder = load_encoder(efficientnet.NAME, device=torch.device("cpu"), precision="fp32")
    assert (encoder.n_features, encoder.tower, is_two_tower(efficientnet.NAME)) == (1280, None, False)
    assert image_stats(efficientnet.NAME).size_px == 224
    net = backbones.build(efficientnet.NAME, 3, image_size_px=32, seed=0)
    again = backbones.from_config(backbones.classifier_config(net))
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_load_pretrained__says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "weights_file", lambda: None)
    with pytest.raises(ConfigError, match="are not installed") as caught:
        backbones.build(efficientnet.NAME, 3, seed=0)
    assert "labelwright[imagenet]" in caught.value.fix
    torch.save({"_fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setattr(efficientnet, "weights_file", lambda: tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="does not hold the weights of efficientnet_lite0"):
        efficientnet.load_pretrained()
    assert backbones.build(efficientnet.NAME, 3, pretrained=False, image_size_px=32, seed=0).n_features == 1280


@pytest.mark.usefixtures("installed")
def test_build__a_pretrained_network_keeps_the_statistics_of_its_norms() -> None:
    for pretrained in (True, False):
        net = backbones.build(efficientnet.NAME, 3, pretrained=pretrained, image_size_px=32, seed=0).train()
        before = net.backbone.get_buffer("stem.norm.running_mean").clone()
        net(torch.randn(4, 3, 32, 32))
        assert torch.equal(net.backbone.get_buffer("stem.norm.running_mean"), before) == pretrained
        assert all(parameter.requires_grad for parameter in net.parameters())
