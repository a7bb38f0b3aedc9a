"""A text model that does not know the classes: said, and trust is the chance of a guess."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_folders
import labelwright as lw
from labelwright.labels.concepts import KNOWN_FROM, UNKNOWN
from labelwright.reporting.verdict import verdict_of

NAMES = ["cat", "dog", "owl", "spots", "red", "big"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A two-tower model with random weights."""
    return str(clip_folders.save_two_tower(tmp_path_factory.mktemp("models") / "c", "clip", size_px=16, patch_px=8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 images of noise on six colours."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(2)
    colours = draws.integers(40, 200, (6, 3))
    for i in range(120):
        pixels = colours[i % 6] + draws.integers(-30, 30, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(
    "how",
    [
        {"method": "zero_shot"},
        {"method": "transclip"},
        {"method": "cap", "epochs": 1},
        {"method": "coreg_frozen", "top_k": 2, "epochs": 1},
        {"method": "top1", "model": "resnet32", "size": 16, "epochs": 1},
    ],
)
def test_fit__a_model_with_random_weights(clip: str, photos: str, tmp_path: Path, how: dict[str, Any]) -> None:
    asked = {"annotator": clip} if "model" in how else {"model": clip}
    run = lw.fit(photos, classes=NAMES, out=tmp_path / "run", device="cpu", precision="fp32", **{**asked, **how})
    trust, labels = run.summary["trust"], run.labels
    assert trust["lowered"] > 0.1
    assert trust["interval"][0] == 0
    assert np.mean(labels["trust"].to_numpy()) < np.mean(labels["softmax"].to_numpy()) - 0.1
    assert run.summary["warnings"].count(UNKNOWN) == 1
    verdict = verdict_of(run)
    assert verdict["level"] == "poor"
    assert "does not seem to know these classes" in verdict["sentence"]


def test_annotate__says_so(clip: str, photos: str, tmp_path: Path) -> None:
    done = lw.annotate(photos, classes=NAMES, model=clip, out=tmp_path / "c.parquet", device="cpu", precision="fp32")
    assert done.counts["knowledge"] < KNOWN_FROM
    assert UNKNOWN in done.counts["notices"]
