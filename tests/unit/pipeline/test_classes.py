"""pipeline/classes.py: discovered classes renamed, merged and dropped in model, labels, summary and report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import labelwright as lw
from labelwright import cli
from labelwright.encoders.descriptor import NAME
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.classes import BEFORE
from labelwright.pipeline.saved_model import load_model
from labelwright.reporting.checks import to_check
from labelwright.reporting.gallery import read_gallery
from pictures import write_folders

NAMES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of four blobs, half of the first two labelled, the truth of all known; and test images."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for part, n in (("train", 160), ("test", 40)):
        truth = np.arange(n) % 4
        feats = 3 * np.eye(4, 8)[truth] + 0.4 * draw.normal(size=(n, 8))
        hidden = (truth >= 2) | (np.arange(n) % 8 < 4)
        words = np.array(NAMES)[truth]
        labels = np.where(hidden, "", words) if part == "train" else words
        more = {"truth": words} if part == "train" else {}
        np.savez(folder / f"{part}.npz", embeddings=feats.astype(np.float32), labels=labels, **more)
    return folder


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found") / "run"
    test = str(data / "test.npz")
    lw.fit(str(data / "train.npz"), out=out, novel=3, test=test, method="ss_kmeans", device="cpu", classes=NAMES[:2])
    return out


@pytest.fixture
def run(found: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(found, tmp_path / "run"))


def labels_of(run: Path, key: str = "label") -> list[str]:
    rows = lw.Run(run).labels
    assert rows is not None
    words: list[str] = rows[key].to_pylist()
    return words


def card_of(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def test_rename__everywhere_and_without_the_images(run: Path, data: Path) -> None:
    before, kept = labels_of(run), labels_of(run, "source")
    assert cli.run(["classes", str(run), "rename", "novel-1", "okapi"]) == 0
    assert labels_of(run) == ["okapi" if name == "novel-1" else name for name in before]
    assert "novel-1" not in labels_of(run, "runner_up")
    assert labels_of(run, "source") == kept
    assert [c["name"] for c in lw.Run(run).summary["novel"]["clusters"]] == ["okapi", "novel-2", "novel-3"]
    assert lw.Run(run).summary["class_names"][-3:] == ["okapi", "novel-2", "novel-3"]
    assert "okapi" in set(lw.label(run, data / "test.npz", device="cpu")["label"].to_pylist())
    assert "okapi" in (run / "report.html").read_text(encoding="utf-8")
    assert "Discovered, confirmed by no label: okapi, novel-2, novel-3\n" in card_of(run)


@pytest.mark.parametrize("target", ["novel-1", "bee"])
def test_merge__probabilities_add_up(run: Path, data: Path, target: str) -> None:
    with np.load(data / "train.npz") as file:
        feats = torch.from_numpy(file["embeddings"])
    before, old = load_model(run / "model", device=torch.device("cpu")), lw.label(run, data / "train.npz", device="cpu")
    lw.classes(run, "merge", (target, "novel-2"), device="cpu")
    after, new = load_model(run / "model", device=torch.device("cpu")), lw.label(run, data / "train.npz", device="cpu")
    with torch.no_grad():
        was, is_now = (dict(zip(each.class_names, each.probs(feats).T, strict=True)) for each in (before, after))
    assert torch.allclose(is_now[target], was[target] + was["novel-2"], atol=1e-6)
    for one, other in zip(old["label"].to_pylist(), new["label"].to_pylist(), strict=True):
        assert other != "novel-2"
        assert other == target or one not in (target, "novel-2")
    assert labels_of(run).count("novel-2") == 0
    summary = lw.Run(run).summary
    assert summary["n_novel"] == 2
    assert summary["class_names"] == list(lw.load_model(run).class_names)
    assert summary["novel"]["edits"] == [f"merged into {target}: novel-2"]
    n_images = {c["name"]: c["n_images"] for c in summary["novel"]["clusters"]}
    predicted = [w for w, s in zip(labels_of(run), labels_of(run, "source"), strict=True) if s == "predicted"]
    assert n_images == {name: predicted.count(name) for name in n_images}
    assert f"merged into {target}" in (run / "report.html").read_text(encoding="utf-8")
    assert "Discovered, confirmed by no label: novel-1, novel-3\n" in card_of(run)
    assert f"| accuracy | {summary['test']['accuracy']:.4f} |" in card_of(run)


def test_drop__images_go_to_the_next_class_and_given_labels_stay(run: Path, data: Path) -> None:
    rows = lw.Run(run).labels
    assert rows is not None
    before = rows.to_pylist()
    lw.classes(run, "drop", ("novel-3",), device="cpu")
    for old, new, source in zip(before, labels_of(run), labels_of(run, "source"), strict=True):
        assert new == (old["runner_up"] if old["label"] == "novel-3" else old["label"])
        assert source == old["source"]
    assert labels_of(run, "decision") == [row["decision"] for row in before]
    assert "accept" in labels_of(run, "decision")
    items = read_gallery(run)["items"].values()
    assert {name for item in items for name, _ in item["top"]} == {"ant", "bee", "novel-1", "novel-2"}
    assert all(sum(p for _, p in item["top"]) == pytest.approx(1, abs=1e-3) for item in items)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("novel-3") == text.count("Afterwards dropped: novel-3") == 1
    scores = lw.evaluate(run, data / "test.npz", device="cpu")
    assert lw.Run(run).summary["test"]["all"] == pytest.approx(scores["all"])
    trust = np.array(lw.Run(run).labels.column("trust").to_pylist())
    is_predicted = np.array(lw.Run(run).labels.column("source").to_pylist()) == "predicted"
    stated = lw.Run(run).summary["trust"]
    is_of_a_class = np.array(labels_of(run, "decision")) != "unknown"  # of the others the row's trust is lower
    assert trust[is_predicted].mean() <= stated["estimated"] <= trust[is_predicted & is_of_a_class].mean() + 1e-3
    assert stated["interval"][0] <= stated["estimated"] <= stated["interval"][1]


def test_merge__images_to_check_have_pictures_and_given_labels_the_trust_they_had(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", dict.fromkeys(NAMES, 10), size_px=16)
    images = sorted(photos.rglob("*.png"))
    rows = [
        f"{path},{path.parent.name if path.parent.name in NAMES[:2] and i % 2 else ''}" for i, path in enumerate(images)
    ]
    (tmp_path / "open.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    run = lw.fit(tmp_path / "open.csv", out=tmp_path / "run", novel=2, model=NAME, device="cpu", test_frac=0.0)
    before = run.labels
    assert before is not None
    after = lw.classes(run.path, "merge", ("novel-1", "novel-2"), device="cpu")
    assert after.labels is not None
    assert len(read_gallery(run.path)["large"]) == sum(map(len, to_check(after.labels, after.summary).values())) > 0
    shown = read_gallery(run.path)
    assert set(shown["samples"]) == {"ant", "bee", "novel-1"}
    assert {name for item in shown["items"].values() for name, _ in item["top"]} == {"ant", "bee", "novel-1"}
    assert shown["trust"] is not None
    given = [word == "given" for word in before["source"].to_pylist()]
    for key in ("trust", "probability"):
        assert after.labels.filter(given)[key].equals(before.filter(given)[key])


def test_merge__a_table_whose_columns_the_run_was_told(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", dict.fromkeys(NAMES, 10), size_px=16)
    images = sorted(photos.rglob("*.png"))
    for name, of in (("train", range(5)), ("test", range(5, 10))):
        rows = [
            f"{path},{path.parent.name if name == 'test' or path.parent.name in NAMES[:2] else ''}"
            for path in images
            if int(path.stem) in of
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["photo,species", *rows]), encoding="utf-8")
    how = {"image_column": "photo", "label_column": "species", "test": str(tmp_path / "test.csv")}
    run = lw.fit(tmp_path / "train.csv", out=tmp_path / "run", novel=2, model=NAME, device="cpu", **how)
    after = lw.classes(run.path, "merge", ("novel-1", "novel-2"), device="cpu")
    assert set(after.summary["class_names"]) == {"ant", "bee", "novel-1"}
    assert after.summary["test"]["n_scored"] == 20
    assert lw.classes(run.path, "drop", ("novel-1",), device="cpu").summary["n_novel"] == 0


def test_merge__the_score_of_held_out_images_stays_and_is_called_one_from_before(data: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"novel": 3, "method": "ss_kmeans", "classes": NAMES[:2], "test_frac": 0.5}
    run = lw.fit(str(data / "train.npz"), out=tmp_path / "run", device="cpu", **more)
    before = run.summary["test"]
    assert before["n_scored"] == 20
    for action, names, n in (("merge", ["novel-1", "novel-2"], 4), ("drop", ["novel-3"], 3)):
        lw.classes(run.path, action, names, device="cpu")
        after = lw.Run(run.path).summary
        assert after["test"] == before | {"matched": before["matched"][:n]}
        assert after["warnings"].count(BEFORE) == 1
        assert BEFORE in (run.path / "report.html").read_text(encoding="utf-8")


def test_merge__stopped_before_the_model_was_changed_and_repeated(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("labelwright.pipeline.classes.change_classes", stop)
        with pytest.raises(KeyboardInterrupt):
            lw.classes(run, "merge", ("novel-1", "novel-2"), device="cpu")
    after = lw.classes(run, "merge", ("novel-1", "novel-2"), device="cpu")
    assert after.summary["novel"]["edits"] == ["merged into novel-1: novel-2"]
    lw.classes(run, "rename", ("novel-3", "novel-2"), device="cpu")
    assert len(lw.classes(run, "merge", ("novel-1", "novel-2"), device="cpu").summary["novel"]["edits"]) == 2


def test_merge_then_drop_then_rename__edits_add_up(run: Path, data: Path) -> None:
    lw.classes(run, "merge", ("novel-1", "novel-2"), device="cpu")
    lw.classes(run, "drop", ("novel-3",), device="cpu")
    lw.classes(run, "rename", ("novel-1", "okapi"), device="cpu")
    assert set(labels_of(run)) == {"ant", "bee", "okapi"}
    assert set(lw.label(run, data / "test.npz", device="cpu")["label"].to_pylist()) <= {"ant", "bee", "okapi"}
    assert len(lw.Run(run).summary["novel"]["edits"]) == 2


def test_merge__images_that_moved(run: Path, data: Path, tmp_path: Path) -> None:
    moved = shutil.copy(data / "train.npz", tmp_path / "moved.npz")
    config = (run / "config.yaml").read_text(encoding="utf-8").replace("train.npz", "gone.npz")
    (run / "config.yaml").write_text(config, encoding="utf-8")
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"cannot be read from .*gone.npz[\s\S]*give them with --data"):
        lw.classes(run, "merge", ("novel-1", "novel-2"), device="cpu")
    with pytest.raises(DataError, match=r"120 images of the run are not in .*test.npz"):
        lw.classes(run, "merge", ("novel-1", "novel-2"), data=str(data / "test.npz"), device="cpu")
    assert files == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    lw.classes(run, "merge", ("novel-1", "novel-2"), data=str(moved), device="cpu")
    assert lw.Run(run).summary["n_novel"] == 2


@pytest.mark.parametrize(
    ("action", "names", "text"),
    [
        ("rename", ("novel-1",), "rename takes other names than novel-1\n.*rename OLD NEW"),
        ("rename", ("novel-9", "x"), "the model has no class 'novel-9'\n.*novel-3"),
        ("rename", ("novel-1", "bee"), "two classes would be named 'bee'"),
        ("merge", ("novel-1", "bee"), "'bee' is a class that your labels name"),
        ("merge", ("novel-1", "novel-1"), "merge takes other names"),
        ("drop", ("ant",), "'ant' is a class that your labels name"),
        ("drop", (), "drop takes other names than none"),
        ("split", ("novel-1",), "not 'split'"),
    ],
)
def test_refusals(found: Path, action: str, names: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        lw.classes(found, action, names, device="cpu")  # type: ignore[arg-type]
