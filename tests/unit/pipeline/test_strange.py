"""Images of no class from `fit` to `label --novel`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.label_rows import LABEL_COLUMNS
from labelwright.pipeline.saved_model import STRANGERS_FILE
from labelwright.run_folder import Run

NAMES = np.array(["ant", "bee", "new 1"])


def drawn(n: int, seed: int, *, axes: tuple[int, ...] = (0, 1, 2)) -> tuple[Any, Any]:
    """Embeddings [n, 12] about some axes, and which axis."""
    draw = np.random.default_rng(seed)
    at = np.array(axes)[np.arange(n) % len(axes)]
    return (np.eye(12)[at] + 0.1 * draw.normal(size=(n, 12))).astype(np.float32), at


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """300 embeddings of three classes with labels, 40 without, of which 10 are strangers."""
    folder = tmp_path_factory.mktemp("strange")
    feats, at = drawn(330, 0)
    others, _ = drawn(10, 1, axes=(7, 8))
    labels = np.concatenate([np.where(np.arange(330) < 300, NAMES[at], ""), np.full(10, "")])
    np.savez(folder / "train.npz", embeddings=np.concatenate([feats, others]), labels=labels, class_names=NAMES)
    return lw.fit(folder / "train.npz", out=folder / "run", method="class_balanced", test_frac=0, device="cpu")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 embeddings of the classes, then 40 and 30 of two others."""
    path = tmp_path_factory.mktemp("new") / "new.npz"
    parts = [drawn(200, 2)[0], drawn(40, 3, axes=(7,))[0], drawn(30, 4, axes=(9,))[0]]
    np.savez(path, embeddings=np.concatenate(parts))
    return path


def test_fit__unlabelled_strangers_are_told_and_given_labels_stay(run: Run) -> None:
    rows, facts = run.labels, run.summary["strangers"]
    assert rows is not None
    assert tuple(rows.schema.names) == LABEL_COLUMNS
    decision, source = np.array(rows["decision"].to_pylist()), np.array(rows["source"].to_pylist())
    assert set(decision[330:]) == {"unknown"}
    assert (decision[300:330] == "unknown").sum() <= 2
    assert set(decision[source == "given"]) <= {"accept", "review"}  # as far as trust goes
    strangeness = rows["strangeness"].to_numpy()
    assert strangeness[330:].min() > facts["threshold"] > 0.97
    assert strangeness.min() >= 0
    assert rows["trust"].to_numpy()[330:].max() < 0.5
    assert facts["n"] == (decision == "unknown").sum()
    assert facts["share"] == round(facts["n"] / 40, 4)
    assert set(facts["rows"][:10]) == set(rows["id"].to_pylist()[330:])
    assert facts["says"].startswith(f"{facts['n']} of 40 images")


def test_label__strangers_are_unknown_and_others_as_before(run: Run, new: Path) -> None:
    rows = lw.label(run.path, new)
    unknown = np.array(rows["decision"].to_pylist()) == "unknown"
    assert unknown[200:].all()
    assert unknown[:200].mean() <= 0.03
    trust = rows["trust"].to_numpy()
    assert trust[unknown].max() < trust[:200][~unknown[:200]].min()
    facts = json.loads(rows.schema.metadata[b"strangers"])
    assert facts["n"] == unknown.sum()
    assert lw.evaluate(run.path, run.config["data"])["accuracy"] > 0.99  # of the classifier: nothing is refused


def test_label__novel_puts_them_into_classes_of_their_own(run: Run, new: Path, tmp_path: Path) -> None:
    plain, rows = lw.label(run.path, new), lw.label(run.path, new, novel=True)
    label = np.array(rows["label"].to_pylist())
    assert set(label[:200]) == set(NAMES)
    assert set(label[200:240]) == {"new 2"}  # "new 1" is a class; the largest comes first
    assert set(label[240:]) == {"new 3"}
    assert rows["runner_up"].to_pylist()[200:] == plain["label"].to_pylist()[200:]
    assert set(rows["source"].to_pylist()[200:]) == {"cluster"}
    assert rows["trust"].equals(plain["trust"])
    few = tmp_path / "few.npz"
    np.savez(few, embeddings=np.concatenate([drawn(50, 5)[0], drawn(10, 6, axes=(7,))[0]]))
    assert lw.label(run.path, few, novel=True)["label"].equals(lw.label(run.path, few)["label"])


def test_label__on_the_terminal(run: Run, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["label", str(run.path), str(new), "--novel", "--out"]
    assert cli.run([*words, str(tmp_path / "a.csv")]) == 0
    told = capsys.readouterr().out
    assert "look like no class: their decision is unknown" in told
    assert "put together in: new 2 (40 images), new 3 (30 images)" in told
    assert cli.run([*words, str(tmp_path / "b.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new"] == {"new 2": 40, "new 3": 30}
    assert found["strangers"]["n"] >= 70
    assert found["n_images"] == 270


def test_label__models_without_references_say_so(run: Run, new: Path, tmp_path: Path) -> None:
    """Those saved before there were any, and a file that is broken."""
    path = run.path / "model" / STRANGERS_FILE
    content, sums = path.read_bytes(), (run.path / "checksums.json").read_bytes()
    assert len(content) < 100_000
    try:
        (run.path / "checksums.json").unlink()
        path.write_bytes(content[:50])
        with pytest.raises(DataError, match="no model in"):
            lw.label(run.path, new)
        path.unlink()
        rows = lw.label(run.path, new)
        with pytest.raises(ConfigError, match="does not detect images of no class"):
            lw.label(run.path, new, novel=True, out=tmp_path / "out.csv")
        assert not (tmp_path / "out.csv").exists()
    finally:
        path.write_bytes(content)
        (run.path / "checksums.json").write_bytes(sums)
    assert rows["strangeness"].null_count == 270
    assert set(rows["decision"].to_pylist()) == {"review"}
    assert json.loads(rows.schema.metadata[b"strangers"])["says"].startswith("Images of no class are not detected")
