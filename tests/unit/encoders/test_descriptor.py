"""Colours and edges as features: what they see, and runs on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelwright as lw
from labelwright.encoders.descriptor import Descriptor
from labelwright.errors import ConfigError


def pictures(folder: Path, seed: int) -> Path:
    """Stripes of two directions and two colours, in noise: four classes of 15."""
    draw = np.random.default_rng(seed)
    for i, name in enumerate(("red-down", "red-across", "blue-down", "blue-across")):
        (folder / name).mkdir(parents=True)
        for k in range(15):
            waves = np.sin(np.arange(48) / 2 + draw.uniform(0, 6))
            grid = np.broadcast_to(waves if i % 2 == 0 else waves[:, None], (48, 48))
            image = 128 + 40 * grid[:, :, None] + draw.normal(0, 15, (48, 48, 3))
            image[:, :, 0 if i < 2 else 2] += 30
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def test_descriptor__edges_owe_nothing_to_contrast_and_have_no_sign() -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net, n = Descriptor(), 8 * (16 + 64)
    edges, of_strong, of_negative = (net(each)[:, :n] for each in (4 * x, 16 * x, -4 * x))
    assert torch.allclose(edges, of_negative, atol=1e-6)
    assert torch.allclose(edges, of_strong, atol=2e-3)


def test_fit__on_colours_and_edges_alone(tmp_path: Path) -> None:
    run = lw.fit(pictures(tmp_path / "photos", 0), out=tmp_path / "run", model="descriptor", device="cpu")
    new = pictures(tmp_path / "new", 1)
    assert run.config["resolved"]["views"] == "embeddings"
    assert run.summary["test"]["accuracy"] == 1.0
    assert lw.evaluate(run.path, new, device="cpu")["accuracy"] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_label__the_saved_model_answers_as_the_stored_features_do(precision: str, tmp_path: Path) -> None:
    photos = pictures(tmp_path / "photos", 0)
    how = {"device": "cpu", "precision": precision}
    run = lw.fit(photos, out=tmp_path / "run", model="descriptor", refit=False, test_frac=0, **how)  # type: ignore[arg-type]
    rows = lw.label(run.path, photos, out=tmp_path / "again.parquet", **how)  # type: ignore[arg-type]
    assert rows["label"].to_pylist() == run.labels["label"].to_pylist()


def test_export__colours_and_edges_go_into_the_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = lw.fit(pictures(tmp_path / "photos", 0), out=tmp_path / "run", model="descriptor", device="cpu")
    found = lw.export(run.path, format="onnx", out=tmp_path / "model.onnx")  # which checks it against torch
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
    assert found is not None


def test_pretrain__colours_and_edges_have_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="descriptor has no weights to train"):
        lw.pretrain(pictures(tmp_path / "photos", 0), out=tmp_path / "run", model="descriptor")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 8, 8), (1, 3, 1, 1), (2, 3, 65, 50)])
@pytest.mark.parametrize("value", [None, 0.0, -2.0, 2.0])
def test_descriptor__is_finite_whatever_the_image(shape: tuple[int, ...], value: float | None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if value is None else torch.full(shape, value)
    feats = Descriptor()(x)
    assert feats.shape == (shape[0], Descriptor.n_features)
    assert feats.isfinite().all()
    assert torch.allclose(feats, torch.cat([Descriptor()(each[None]) for each in x]), atol=1e-6)
