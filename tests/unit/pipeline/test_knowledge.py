"""A text model that does not know the classes: said, and trust is the chance of a guess, unless others named them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_folders
import labelwright as lw
from labelwright.data.read import load
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
        {"method": "coreg", "rule": "mean", "model": "resnet32", "size": 16, "epochs": 1},
    ],
)
def test_fit__a_model_with_random_weights(clip: str, photos: str, tmp_path: Path, how: dict[str, Any]) -> None:
    asked = {"annotator": clip} if "model" in how else {"model": clip}
    run = lw.fit(photos, classes=NAMES, out=tmp_path / "run", device="cpu", precision="fp32", **{**asked, **how})
    trust, labels = run.summary["trust"], run.labels
    assert trust["lowered"] > 0.1
    assert trust["interval"][0] < 0.1
    assert np.mean(labels["trust"].to_numpy()) < np.mean(labels["softmax"].to_numpy()) - 0.1
    assert run.summary["warnings"].count(UNKNOWN) == 1
    verdict = verdict_of(run)
    assert verdict["level"] == "poor"
    assert "does not seem to know these classes" in verdict["sentence"]


def test_annotate__says_so(clip: str, photos: str, tmp_path: Path) -> None:
    done = lw.annotate(photos, classes=NAMES, model=clip, out=tmp_path / "c.parquet", device="cpu", precision="fp32")
    assert done.counts["knowledge"] < KNOWN_FROM
    assert UNKNOWN in done.counts["notices"]


@pytest.mark.parametrize("how", [{"method": "coreg_frozen"}, {"method": "top1", "model": "resnet32", "size": 16}])
def test_fit__candidates_that_it_named_in_a_table(clip: str, photos: str, tmp_path: Path, how: dict[str, Any]) -> None:
    """The table says that the model which wrote it may not know the classes."""
    settings = {"device": "cpu", "precision": "fp32"}
    made = lw.annotate(photos, classes=NAMES, model=clip, out=tmp_path / "c.parquet", top_k=2, **settings)
    assert load(made.path).candidates.knowledge == made.counts["knowledge"] < KNOWN_FROM
    run = lw.fit(made.path, out=tmp_path / "run", epochs=1, **settings, **{"model": clip, **how})
    assert run.summary["trust"]["lowered"] > 0.1
    assert UNKNOWN in run.summary["warnings"]


@pytest.mark.parametrize("how", [{"method": "coreg_frozen"}, {"method": "crowd"}])
def test_fit__candidates_of_people_owe_it_nothing(clip: str, photos: str, tmp_path: Path, how: dict[str, Any]) -> None:
    rows = ["path,ann,bob"]
    rows += [f"{photos}/{i}.png,{NAMES[i % 6]},{NAMES[i % 6 if i % 10 else 0]}" for i in range(120)]
    (tmp_path / "answers.csv").write_text("\n".join(rows))
    settings = {"annotator_columns": "ann,bob", "model": clip, "device": "cpu"}
    run = lw.fit(tmp_path / "answers.csv", out=tmp_path / "run", **settings, **how)
    assert run.summary["trust"]["source"] == "candidates"
    assert run.summary["trust"]["lowered"] == 0
    assert run.summary["trust"]["estimated"] > 0.8
    assert UNKNOWN not in run.summary["warnings"]


def test_fit__one_label_says_little_of_it(clip: str, photos: str, tmp_path: Path) -> None:
    rows = [f"{photos}/{i}.png,{'' if i else NAMES[0]}" for i in range(120)]
    (tmp_path / "few.csv").write_text("\n".join(["path,label", *rows]))
    settings = {"method": "top1", "annotator": clip, "model": "resnet32", "size": 16, "epochs": 1, "device": "cpu"}
    run = lw.fit(tmp_path / "few.csv", classes=NAMES, out=tmp_path / "run", **settings)
    assert run.summary["trust"]["lowered"] > 0.1


def test_fit__a_start_that_has_learned_is_not_how_sure_the_texts_were(clip: str, photos: str, tmp_path: Path) -> None:
    claimed = {}
    for name in ("zero_shot", "coreg_frozen"):
        settings = {"model": clip, "method": name, "templates": "photo27", "device": "cpu"}
        run = lw.fit(photos, classes=NAMES, out=tmp_path / name, **settings)
        claimed[name] = run.summary["trust"]["estimated"] + run.summary["trust"]["lowered"]
    assert claimed["coreg_frozen"] == pytest.approx(claimed["zero_shot"], abs=0.03)


def test_fit__a_network_that_repeats_few_guesses_is_not_trusted_as_they_are(photos: str, tmp_path: Path) -> None:
    sets = [[NAMES[i % 6], NAMES[(i + 1) % 6]] for i in range(120)]
    first = np.random.default_rng(0).uniform(0.75, 0.93, 120)
    paths = [f"{photos}/{i}.png" for i in range(120)]
    data = {"image": paths, "candidates": sets, "weights": np.stack([first, 1 - first], 1).tolist()}
    settings = {"method": "top1", "model": "resnet32", "size": 16, "epochs": 1, "device": "cpu"}
    run = lw.fit(data, out=tmp_path / "run", **settings)
    repeated = np.mean([label == some[0] for label, some in zip(run.labels["label"].to_pylist(), sets, strict=True)])
    assert repeated < 0.5
    assert run.summary["trust"]["estimated"] <= repeated + 1 - first.mean() + 0.02
