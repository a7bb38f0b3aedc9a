"""The benchmark runner on a made-up CIFAR-10: cells run once, are shared, and are printed as they are."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from evenkeel.benchmarking import runner
from evenkeel.benchmarking.tables import TABLES
from evenkeel.data.registry import open_dataset
from evenkeel.errors import ConfigError
from evenkeel.methods.registry import METHODS, resolve_config

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cifar10-train.parquet with 100 images a class, cifar10-test.parquet with 2."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for split, per_class in (("train", 100), ("test", 2)):
        labels = np.repeat(np.arange(10), per_class).tolist()
        images = [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in labels]
        data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        data.to_parquet(str(root / f"cifar10-{split}.parquet"))
    return root


def test_bench__without_a_table_lists_them() -> None:
    listed = runner.bench()
    assert all(name in listed for name in TABLES)


@pytest.mark.parametrize(
    ("table", "cells", "message"),
    [("cifar", (), "no table is called 'cifar'"), ("gtsrb", ("cap",), "table gtsrb has no cell 'cap'")],
)
def test_bench__names_what_does_not_exist(table: str, cells: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        runner.bench(table, cells=cells, out=tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


def test_every_cell__is_a_method_with_settings_that_exist() -> None:
    for table in TABLES.values():
        for cell in table.cells.values():
            resolve_config(METHODS[cell.method], {**cell.settings, **cell.reduced})


def test_table_data__is_cut_as_the_paper_cuts_it(folder: Path) -> None:
    train, test = runner.table_data(TABLES["cifar10-lt-100"], folder)
    assert train.counts().tolist() == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    assert test.counts().tolist() == [2] * 10
    assert len(open_dataset("cifar10", root=folder, split="train")) == 1000


def test_bench__runs_a_cell_once_and_prints_what_it_scored(folder: Path, tmp_path: Path) -> None:
    arguments = {"cells": ("ce",), "data": folder, "out": tmp_path / "bench", "seeds": (3,), "device": "cpu"}
    first = runner.bench("cifar10-lt-100", **arguments)  # type: ignore[arg-type]
    (path,) = (tmp_path / "bench").rglob("summary.json")
    summary, written = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert path.parent.parts[-2:] == ("ce", "seed-3")
    assert f"| Cross-entropy | {100 * summary['test']['balanced_accuracy']:.1f} |" in first
    assert "71.25" in first
    assert "REDUCED to 6 epochs" in first
    # the ablation is on the same images and schedule: it reads the cell that is there
    again = runner.bench("ablation", **arguments)  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns == written
    assert f"{100 * summary['test']['balanced_accuracy']:.1f}" in again


def test_format_table__mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    grid = TABLES["cifar10-lt-100"]
    for seed, balanced in ((0, 0.30), (1, 0.34)):
        cell = tmp_path / "ce" / f"seed-{seed}"
        cell.mkdir(parents=True)
        scores = {"balanced_accuracy": balanced, "many": 0.5, "medium": 0.25, "few": None, "ece": 0.1}
        (cell / "summary.json").write_text(json.dumps({"test": scores, "seconds": {"train": 10.0}}))
        machine = {
            "n_threads": 1,
            "device": "cpu",
            "processor": "made-up",
            "precision_used": "float32",
            "commit": "abc",
        }
        (cell / "environment.json").write_text(json.dumps(machine))
    text = runner.format_table("cifar10-lt-100", tmp_path, list(grid.cells), [0, 1, 2], full=False)
    # sd of 30 and 34 with n - 1: sqrt(2^2 + 2^2) = 2.83
    assert "| Cross-entropy | 32.0 ± 2.8 | 50.0 ± 0.0 | 25.0 ± 0.0 |  | 10.0 ± 0.0 |  | 71.25 | 10 | 2 |" in text
    assert "CVS" not in text.split("Schedule")[0]
