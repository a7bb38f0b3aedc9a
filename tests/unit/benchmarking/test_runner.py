"""The benchmark runner on a made-up CIFAR-10: cells run once, are shared, and are printed as they are."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from evenkeel.benchmarking import runner
from evenkeel.benchmarking.grid import BenchTable, Cell, Given
from evenkeel.benchmarking.tables import TABLES
from evenkeel.data.registry import open_dataset
from evenkeel.errors import ConfigError

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


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("cap-gtsrb", {}, "adapts a vision-language model, and none is named\n  fix: name one with --model"),
        ("cap-gtsrb", {"model": "evenkeel/digits-clip", "full": True}, "has one schedule\n  fix: leave --full out"),
        ("gtsrb", {"model": "evenkeel/digits-clip"}, "trains its own network\n  fix: leave --model out"),
    ],
)
def test_bench__a_model_where_it_belongs(table: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        runner.bench(table, out=tmp_path / "bench", **options)
    assert not (tmp_path / "bench").exists()


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


MODEL = "evenkeel/digits-clip"


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every class 6 images, numbered from 2497 on, so that 3 belong to the target pool; 2 test images."""
    root = tmp_path_factory.mktemp("pool")
    random = np.random.default_rng(1)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for split, numbers in (("train", range(2497, 2503)), ("test", range(2))):
        cells, labels = [], []
        for label, name in enumerate(NAMES):
            for number in numbers:
                encoded = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(encoded, "PNG")
                cells.append({"bytes": encoded.getvalue(), "path": f"{name}/{number:04}.png"})
                labels.append(label)
        data = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
        data.to_parquet(str(root / f"cifar10-{split}.parquet"))
    return root


def test_bench__some_classes_are_labelled_the_others_unlabelled(pool_folder: Path, tmp_path: Path) -> None:
    cells = ("zero_shot", "zero_shot_some")
    text = runner.bench(
        "cap-cifar10", cells=cells, data=pool_folder, out=tmp_path, seeds=(5,), model=MODEL, device="cpu"
    )
    root = tmp_path / "cifar10-pool-digits-clip"
    names_only, some = (root / key / "seed-5" for key in ("zero_shot", "zero_shot,labels=some_classes"))
    told = json.loads((names_only / "data.json").read_text())
    assert (told["n_images"], told["n_labelled"]) == (30, 0)  # numbers 2500, 2501, 2502 of 10 classes
    counts = np.array(json.loads((some / "data.json").read_text())["train_counts"])
    assert sorted(counts) == [0] * 4 + [3] * 6
    summary = json.loads((some / "summary.json").read_text())
    recalls = np.array(summary["test"]["per_class"])
    seen, unseen = recalls[counts > 0].mean(), recalls[counts == 0].mean()
    harmonic = 2 * seen * unseen / max(seen + unseen, 1e-12)
    row = next(line for line in text.splitlines() if "62%" in line)
    assert row.split(" | ")[3:6] == [f"{100 * seen:.1f}", f"{100 * unseen:.1f}", f"{100 * harmonic:.1f}"]
    assert row.split(" | ")[1] == f"{100 * recalls.mean():.1f}"  # every class has as many test images


def test_bench__made_up_names_and_their_descriptions(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(labels="few", n_nonsense=6, use_descriptions=True)
    cell = Cell("CAP", "cap", {"epochs": 1, "steps_per_epoch": 2}, given=given)
    monkeypatch.setitem(TABLES, "small", BenchTable("small", "cifar10", {"cap": cell}, is_pool=True))
    file = tmp_path / "looks.json"
    file.write_text(json.dumps({"cifar10": {name: f"looks like {name}" for name in NAMES}}))
    options: dict[str, Any] = {"data": pool_folder, "out": tmp_path, "seeds": (0,), "model": MODEL, "device": "cpu"}
    text = runner.bench("small", descriptions=file, **options)
    (folder,) = (path.parent for path in tmp_path.rglob("summary.json"))
    assert folder.parent.name == "cap,labels=few,descriptions,nonsense=6,epochs=1,steps_per_epoch=2"
    described = json.loads((folder / "data.json").read_text())
    names, config = described["class_names"], yaml.safe_load((folder / "config.yaml").read_text())
    assert config["descriptions"] == {now: [f"looks like {was}"] for now, was in zip(names, NAMES, strict=True)}
    assert sum(now == was for now, was in zip(names, NAMES, strict=True)) == 4
    assert described["n_labelled"] == 20
    (begun,) = [
        record
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["kind"] == "begin"
    ]
    n_found = len(set(begun["mismatched"]) - set(NAMES))
    n_others = len(set(begun["mismatched"]) & set(NAMES))
    assert f"{n_found:.1f} of 6, and {n_others:.1f} others" in text
    pseudolabels = json.loads((folder / "summary.json").read_text())["pseudolabels"]
    right = [100 * each["accuracy"] for each in (pseudolabels["zero_shot"], pseudolabels)]
    assert f"| {right[0]:.1f} → {right[1]:.1f} |" in text
    with pytest.raises(ConfigError, match="no descriptions: there is no"):
        runner.bench("small", descriptions=tmp_path / "none.json", **{**options, "seeds": (1,)})


def test_bench__side_by_side_every_cell_gets_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: commands.append(words))
    runner.bench(
        "cap-cifar10",
        cells=("cap", "fpl"),
        seeds=(0, 1),
        out=tmp_path,
        jobs=2,
        model=MODEL,
        descriptions="looks.json",
        device="cpu",
    )
    assert sorted((words[words.index("--cells") + 1], words[words.index("--seeds") + 1]) for words in commands) == [
        ("cap", "0"),
        ("cap", "1"),
        ("fpl", "0"),
        ("fpl", "1"),
    ]
    for words in commands:
        assert words[words.index("--model") + 1] == MODEL
        assert words[words.index("--descriptions") + 1] == "looks.json"
        assert "--data" not in words
        assert "--full" not in words
