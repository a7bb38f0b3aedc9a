"""The five steps of CONTRIBUTING.md, followed: its example is a method that fits, labels and reports."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import labelwright as lw
from labelwright.errors import ConfigError
from labelwright.methods.families.labels import of_labels
from labelwright.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
(LINE,) = re.findall(r"^```\n(\"nearest_centre\": .*)\n```", TEXT, re.MULTILINE)
NAMES = ["ant", "bee", "cow"]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Steps 1 and 2: the module of the page, registered by the line of the page."""
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "nearest_centre.py").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nearest_centre", raising=False)
    module = importlib.import_module("nearest_centre")
    entry = eval(f"{{{LINE}}}", {"of_labels": of_labels, "nearest_centre": module})
    for name, method in entry.items():
        monkeypatch.setitem(METHODS, name, method)  # type: ignore[arg-type]
    return module


def write_features(path: Path, *, n: int, n_labelled: int, seed: int) -> np.ndarray:
    """Features around three far-apart centres; returns the classes."""
    draws = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    feats = 4 * np.eye(3, 8)[classes] + draws.normal(size=(n, 8)) * 0.5
    labels = np.where(np.arange(n) < n_labelled, classes, -1)
    np.savez(path, embeddings=feats.astype(np.float32), labels=labels, class_names=np.array(NAMES))
    return classes


def test_the_example_fits_labels_and_reports(registered: ModuleType, tmp_path: Path) -> None:
    write_features(tmp_path / "train.npz", n=120, n_labelled=60, seed=0)
    write_features(tmp_path / "test.npz", n=60, n_labelled=60, seed=1)
    classes = write_features(tmp_path / "new.npz", n=30, n_labelled=0, seed=2)
    run = lw.fit(
        tmp_path / "train.npz",
        test=tmp_path / "test.npz",
        method="nearest_centre",
        out=tmp_path / "run",
        device="cpu",
        set={"temperature": 2.0},
    )
    assert run.summary["test"]["accuracy"] >= 0.98
    found = lw.label(tmp_path / "run", tmp_path / "new.npz", out=tmp_path / "labels.parquet")
    assert found["label"].to_pylist() == [NAMES[c] for c in classes]
    page = Path(lw.report(tmp_path / "run"))
    assert "nearest_centre" in page.read_text(encoding="utf-8")


def test_the_example_is_the_nearest_centre(registered: ModuleType, tmp_path: Path) -> None:
    """Probabilities against distances in float64."""
    classes = write_features(tmp_path / "train.npz", n=30, n_labelled=30, seed=0)
    write_features(tmp_path / "test.npz", n=9, n_labelled=9, seed=1)
    run = lw.fit(
        tmp_path / "train.npz", test=tmp_path / "test.npz", method="nearest_centre", out=tmp_path / "run", device="cpu"
    )
    feats = np.load(tmp_path / "train.npz")["embeddings"].astype(np.float64)
    means = np.stack([feats[classes == c].mean(0) for c in range(3)])
    logits = -((feats[:, None] - means) ** 2).sum(2)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    given = probs[np.arange(30), classes]
    np.testing.assert_allclose(run.labels["softmax"].to_numpy(), given, atol=1e-4)


def test_settings_of_the_example(registered: ModuleType, tmp_path: Path) -> None:
    shown = {each.name: (each.value, each.text) for each in lw.settings("nearest_centre")}
    assert shown == {"epochs": (1, "nothing is trained"), "temperature": (1.0, "divides the squared distances")}
    write_features(tmp_path / "train.npz", n=30, n_labelled=30, seed=0)
    with pytest.raises(ConfigError, match="temperature=0"):
        lw.fit(tmp_path / "train.npz", method="nearest_centre", out=tmp_path / "run", set={"temperature": 0})


def test_the_example_is_short_and_its_paths_exist() -> None:
    assert len(RECIPE.splitlines()) <= 60
    assert ast.get_docstring(ast.parse(RECIPE))
    for path in re.findall(r"`((?:src|tests|docs|benchmarks|methods)/[\w/.]+)`", TEXT):
        if "nearest_centre" not in path and "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "src" / "labelwright" / path).exists(), path
