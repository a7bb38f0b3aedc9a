"""A saved classifier answers as the trained one did, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from labelwright.data.images import Decoding
from labelwright.data.prepare import open_source
from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.encoders.heads import MlpHead
from labelwright.encoders.saved import saved_backbone
from labelwright.errors import DataError
from labelwright.pipeline.saved_model import answers_for, load_model, save_model
from labelwright.run_folder import Run

CPU = torch.device("cpu")
VIEW = ViewSettings(flip=False, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop="pad")


def saved(folder: Path, head: Literal["linear", "cosine", "mlp"] = "linear") -> backbones.Classifier:
    net = backbones.build("resnet32", 3, head=head, image_size_px=8, seed=1)
    if isinstance(net.head, MlpHead):  # as after training: at first its residual layer does nothing
        nn.init.normal_(net.head.from_hidden.weight, generator=torch.Generator().manual_seed(3))
    net.train()
    net(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # running statistics move
    save_model(folder, net, class_names=("a", "b", "c"), size_px=8, view=VIEW, info={"method": "ce"}, card="# card\n")
    return net.eval()


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp"])
def test_load_model__answers_the_same(head: Literal["linear", "cosine", "mlp"], tmp_path: Path) -> None:
    net = saved(tmp_path / "model", head)
    there = load_model(tmp_path / "model", device=CPU)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = net.to(memory_format=torch.channels_last)(x).softmax(1)
        assert torch.equal(there.probs(x), expected)
        assert torch.equal(there.net(x), net(x))
    assert (there.class_names, there.size_px, there.view, there.info["method"]) == (("a", "b", "c"), 8, VIEW, "ce")
    assert not there.net.training
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# card\n"


def test_load_model__networks_that_are_summed_on_one_backbone(tmp_path: Path) -> None:
    backbone = backbones.build("resnet32", 3, image_size_px=8, seed=1).backbone
    heads = [
        backbones.Classifier(
            backbones.Stored(), name="stored", n_features=64, n_outputs=3, head="mlp", image_size_px=0, freeze=()
        )
        for _ in range(2)
    ]
    net = backbones.Ensemble(heads).with_backbone(backbone, name="resnet32", image_size_px=8)
    save_model(tmp_path, net, class_names=("a", "b", "c"), size_px=8, view=VIEW, info={}, card="")
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = net.eval().to(memory_format=torch.channels_last)(x)  # type: ignore[call-overload]
        assert torch.equal(load_model(tmp_path, device=CPU).net(x), expected)
    found = saved_backbone(str(tmp_path))
    assert found is not None
    loaded = backbones.load_saved(found).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(x), backbone(x), atol=1e-6)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def reformat(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "format": 99}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", Path.unlink, "no model in"),
        ("model.safetensors", Path.unlink, "no model in"),
        ("config.json", cut, "no model in"),
        ("model.safetensors", cut, "no model in"),
        ("config.json", reformat, "has format 99"),
    ],
)
def test_load_model__refuses_what_is_not_whole(name: str, change: object, said: str, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    assert callable(change)
    change(tmp_path / "model" / name)
    with pytest.raises(DataError, match=said):
        load_model(tmp_path / "model", device=CPU)


def test_load_model__a_run_that_has_not_finished_goes_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        load_model(tmp_path / "run", device=CPU)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(DataError, match="has not finished") as raised:
        load_model(tmp_path / "run", device=CPU)
    assert "--resume" in raised.value.fix
    with pytest.raises(DataError, match=r"no summary\.json in") as raised:
        Run(tmp_path / "run").summary  # noqa: B018
    assert "--resume" in raised.value.fix


def asked(folder: Path, data: Path) -> list[int]:
    there = load_model(folder, device=CPU)
    found = answers_for(there, data, on_bad="stop", device="cpu", precision="fp32", classes=None)[1]
    return found.predicted.tolist()


def test_answers_for__embeddings_of_another_width_and_the_other_kind_of_data(tmp_path: Path) -> None:
    net = backbones.Classifier(
        backbones.Stored(), name="stored", n_features=4, n_outputs=3, head="linear", image_size_px=0, freeze=()
    )
    save_model(tmp_path / "model", net, class_names=("a", "b", "c"), size_px=0, view=VIEW, info={}, card="")
    for width in (3, 4):
        np.save(tmp_path / f"{width}.npy", np.eye(5, width, dtype=np.float32))
    assert len(asked(tmp_path / "model", tmp_path / "4.npy")) == 5
    with pytest.raises(DataError, match=r"3.npy holds embeddings of 3 features; the model was trained on 4"):
        asked(tmp_path / "model", tmp_path / "3.npy")
    saved(tmp_path / "pixels")
    with pytest.raises(DataError, match=r"4.npy holds embeddings, and the model was trained on images"):
        asked(tmp_path / "pixels", tmp_path / "4.npy")


def test_answers_for__images_of_12_bits_are_scaled_as_those_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    dark = (np.arange(64).reshape(8, 8) * 4).astype(np.uint16)  # the darkest part of what a run has seen
    Image.fromarray(dark).save(tmp_path / "new" / "0.png")
    saved(tmp_path / "own")
    seen = Decoding(black=0.0, white=4095.0)
    net = load_model(tmp_path / "own", device=CPU).net
    info = {"decoding": seen.as_dict()}
    save_model(tmp_path / "run", net, class_names=("a", "b", "c"), size_px=8, view=VIEW, info=info, card="")  # type: ignore[arg-type]
    pixels = []
    for name in ("own", "run"):
        there = load_model(tmp_path / name, device=CPU)
        decoding = Decoding(**there.info.get("decoding", {}))
        source = open_source(tmp_path / "new", classes=None, size_px=8, decoding=decoding)
        assert source.pixels is not None
        pixels.append(int(source.pixels.read(torch.tensor([0])).max()))
        assert len(asked(tmp_path / name, tmp_path / "new")) == 1
    assert pixels == [252, 16]
