"""The benchmark runner on a made-up CIFAR-10: cells run once, are shared, and are printed as they are."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from labelwright import api, cli
from labelwright.benchmarking import runner
from labelwright.benchmarking.finished import finished_runs
from labelwright.benchmarking.grid import BenchTable, Cell, Given
from labelwright.benchmarking.results import read_rows
from labelwright.benchmarking.tables import TABLES
from labelwright.data.registry import open_dataset
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError, DataError, OfflineError
from labelwright.run_folder import Run

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
        ("cap-gtsrb", {"model": "labelwright/digits-clip", "full": True}, "has one schedule\n  fix: leave --full out"),
        ("gtsrb", {"model": "labelwright/digits-clip"}, "trains its own network\n  fix: leave --model out"),
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
    file = tmp_path / "results.csv"
    again = runner.bench("ablation", csv=file, **arguments)  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns == written
    assert f"{100 * summary['test']['balanced_accuracy']:.1f}" in again
    (row,) = (row for row in read_rows(file) if row["metric"] == "balanced_accuracy")
    assert (row["table"], row["cell"], row["seed"]) == ("ablation", "ce", "3")
    assert row["value"] == f"{100 * summary['test']['balanced_accuracy']:.2f}"
    assert row["commit"] == json.loads((path.parent / "environment.json").read_text())["commit"]


def test_bench__another_file_than_one_of_results_is_found_before_the_cells_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="is not a file of results"):
        runner.bench("gtsrb", data=folder, out=tmp_path / "bench", csv=tmp_path / "labels.csv")
    words = ["bench", "--table", "gtsrb", "--out", str(tmp_path / "bench"), "--csv", str(tmp_path / "labels.csv")]
    assert cli.run(words) == 2
    assert not (tmp_path / "bench").exists()


MODEL = "labelwright/digits-clip"


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


def test_bench__a_set_of_the_hub_from_a_local_copy_with_its_own_class_names(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for split, n_images in (("train", 3), ("test", 2)):
        for name in ("001.Zero_Bird", "002.One_Bird", "003.Two_Bird"):
            (tmp_path / "cub" / split / name).mkdir(parents=True)
            for number in range(n_images):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "cub" / split / name / f"{number}.png")
    options = {"cells": ("zero_shot",), "out": tmp_path / "bench", "seeds": (0,), "model": MODEL, "device": "cpu"}
    text = runner.bench("text-cub200", data=tmp_path / "cub", csv=tmp_path / "rows.csv", **options)
    root, grid = tmp_path / "bench" / "cub200-pool-digits-clip", TABLES["text-cub200"]
    run = root / grid.cells["zero_shot"].key / "seed-0"
    assert tuple(Run(run).class_names) == ("Zero Bird", "One Bird", "Two Bird")
    assert "a photo of a {}, a type of bird" in (run / "config.yaml").read_text()
    assert "| Class names: zero-shot | " in text
    rows = read_rows(tmp_path / "rows.csv")
    assert {row["cell"] for row in rows} == {"zero_shot"}
    assert finished_runs(root, grid, "zero_shot", [0])[0]["made_up"] == set(), "its names are its own"
    with pytest.raises(OfflineError, match=r"CUB.*is not on this machine.*\n.*hf download --repo-type dataset"):
        runner.bench("text-cub200", data=tmp_path / "elsewhere", **{**options, "seeds": (1,)})


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


def with_settings(name: str, **settings: object) -> BenchTable:
    """A table whose cells are cut down for a test."""
    table = TABLES[name]
    cells = {
        key: dataclasses.replace(cell, settings={**cell.settings, **settings}) for key, cell in table.cells.items()
    }
    return dataclasses.replace(table, cells=cells)


def test_bench__candidates_of_the_model_its_own_answer_and_what_was_learned(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", with_settings("coreg-cifar10", epochs=1))
    options: dict[str, Any] = {"data": pool_folder, "out": tmp_path, "seeds": (0,), "model": MODEL, "device": "cpu"}
    text = runner.bench("small", cells=("zero_shot", "kd", "kd-union"), **options)
    root = tmp_path / "cifar10-pool-digits-clip"
    assert len(list(root.rglob("summary.json"))) == 2  # the row of the annotator is read from the run of kd
    kd, union = (root / f"kd,templates=photo27,{rule},epochs=1,lr=0.05" / "seed-0" for rule in ("top_k=5", "union"))
    config = yaml.safe_load((kd / "config.yaml").read_text())
    assert (
        config["resolved"]["annotator"]["rule"],
        config["resolved"]["annotator"]["top_k"],
        config["resolved"]["templates"],
    ) == ("top_k", 5, "photo27")
    assert (config["resolved"]["views"], config["resolved"]["settings"]["lr"]) == ("embeddings", 0.05)
    assert yaml.safe_load((union / "config.yaml").read_text())["resolved"]["annotator"]["rule"] == "union"
    summary = json.loads((kd / "summary.json").read_text())
    assert summary["candidates"]["mean_set_size"] == 5
    header, _, *lines = (line.strip("| ").split(" | ") for line in text.splitlines()[2:7])
    rows = {line[0]: dict(zip(["title", *header], line, strict=True)) for line in lines}
    alone, learned, of_union = rows.values()
    assert alone["accuracy"] == learned["zero-shot"] == f"{100 * summary['zero_shot']['accuracy']:.1f}"
    assert learned["accuracy"] == f"{100 * summary['test']['accuracy']:.1f}"
    before = summary["pseudolabels"]["zero_shot"]["accuracy"]
    assert alone["pseudolabels right"] == f"{100 * before:.1f} → {100 * before:.1f}"
    assert learned["set size"] == "5.000"
    size = json.loads((union / "summary.json").read_text())["candidates"]["mean_set_size"]
    assert of_union["set size"] == f"{size:.3f}"


def test_bench__made_up_candidates_are_given_as_data(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", with_settings("coreg-guesses", epochs=1))
    options: dict[str, Any] = {"data": pool_folder, "out": tmp_path, "seeds": (0,), "model": MODEL, "device": "cpu"}
    runner.bench("small", cells=("top1-chance-0.1-0", "top1-doubt-0.3-0.4"), **options)
    for path in tmp_path.rglob("summary.json"):
        told = json.loads((path.parent / "data.json").read_text())
        assert told["n_labelled"] == 0
        assert told["candidates_fingerprint"]
        assert yaml.safe_load((path.parent / "config.yaml").read_text())["resolved"]["annotator"] is None
        summary = json.loads(path.read_text())
        assert summary["annotator"] is None
        inside = summary["candidates"]["truth_inside"]
        assert inside == 1 if "chance" in str(path) else 0.3 < inside < 0.9  # eta 0, and eta 0.4 of 30 images
    assert len(list(tmp_path.rglob("summary.json"))) == 2


def test_bench__a_share_of_the_pool_and_some_verified_labels(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", with_settings("coreg-share-cifar10", epochs=1))
    monkeypatch.setitem(TABLES, "few", with_settings("coreg-few-cifar10", epochs=1))
    options: dict[str, Any] = {"data": pool_folder, "out": tmp_path, "seeds": (0,), "model": MODEL, "device": "cpu"}
    runner.bench("small", cells=("kd-0.4",), **options)
    runner.bench("few", cells=("kd-1",), **options)
    told = {
        "share" if "share=0.4" in str(path) else "few": json.loads(path.read_text())
        for path in tmp_path.rglob("data.json")
    }
    assert {key: (each["n_images"], each["n_labelled"]) for key, each in told.items()} == {
        "share": (12, 0),
        "few": (30, 10),
    }


@pytest.mark.parametrize(("table", "size_px"), [("coreg-pixels", 32), ("coreg-pixels-16px-40", 16)])
def test_bench__pixels_learn_from_made_up_candidates_without_a_model(
    table: str, size_px: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(with_settings(table, epochs=1), n_max=10, at_full=None)
    monkeypatch.setitem(TABLES, "small", small)
    text = runner.bench("small", cells=("top1",), data=folder, out=tmp_path, seeds=(1,), device="cpu")
    (path,) = tmp_path.rglob("summary.json")
    config = yaml.safe_load((path.parent / "config.yaml").read_text())
    assert (config["resolved"]["model"], config["resolved"]["views"], config["resolved"]["annotator"]) == (
        "resnet32",
        "pixels",
        None,
    )
    assert {key: config["resolved"]["settings"][key] for key in small.cells["top1"].settings} == dict(
        small.cells["top1"].settings
    )
    told, summary = (json.loads((path.parent / name).read_text()) for name in ("data.json", "summary.json"))
    assert (told["n_images"], told["n_labelled"]) == (100, 0)
    assert told["size_px"] == size_px
    assert 0.6 < summary["candidates"]["truth_inside"] < 0.95  # eta 0.2 of 100 images
    assert f"| {100 * summary['test']['accuracy']:.1f} |" in text


def test_bench__pixels_may_start_from_a_run_of_pretrain_of_their_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(with_settings("coreg-pixels", epochs=1), n_max=2, at_full=None)
    monkeypatch.setitem(TABLES, "small", small)
    source = folder / "cifar10-test.parquet"
    for network in ("resnet32", "resnet18"):
        api.pretrain(source, out=tmp_path / network, model=network, epochs=1, device="cpu", set={"batch_size": 10})
    options: dict[str, Any] = {"cells": ("top1",), "data": folder, "out": tmp_path / "bench", "device": "cpu"}
    runner.bench("small", seeds=(1,), model=str(tmp_path / "resnet32"), **options)
    (path,) = (tmp_path / "bench").rglob("summary.json")
    assert path.relative_to(tmp_path / "bench").parts[0] == "cifar10-ratio1-max2-resnet32-from-resnet32"
    assert yaml.safe_load((path.parent / "config.yaml").read_text())["model"] == str(tmp_path / "resnet32")
    for model, found in ((str(tmp_path / "resnet18"), "resnet18"), (MODEL, MODEL)):
        with pytest.raises(
            ConfigError, match=f"small trains a resnet32, and {model} is a {found}\n  fix: name a run of"
        ):
            runner.bench("small", seeds=(2,), model=model, **options)
    assert len(list((tmp_path / "bench").rglob("summary.json"))) == 1


def test_bench__an_image_tower_is_tuned_from_pixels_beside_its_stored_features(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = with_settings("lps-tuned-cifar10", epochs=1)
    whole = {
        key: dataclasses.replace(cell, given=dataclasses.replace(cell.given, share=1.0))
        for key, cell in table.cells.items()
        if cell.given is not None
    }
    monkeypatch.setitem(TABLES, "small", dataclasses.replace(table, cells=whole))
    options: dict[str, Any] = {"data": pool_folder, "out": tmp_path, "seeds": (0,), "model": MODEL, "device": "cpu"}
    text = runner.bench("small", cells=("frozen", "last_stage-0.01", "all-0.001"), **options)
    assert [line.split(" | ")[0] for line in text.splitlines()[4:7]] == [
        "| frozen: LPS",
        "| last block tuned, lr 0.01: LPS",
        "| all blocks tuned, lr 0.001: LPS",
    ]
    found = [
        yaml.safe_load(path.read_text())
        for path in (tmp_path / "cifar10-pool-digits-clip").glob("*/seed-0/config.yaml")
    ]
    assert {(config["resolved"]["views"], config["resolved"]["settings"]["train_layers"]) for config in found} == {
        ("embeddings", "last_stage"),
        ("pixels", "last_stage"),
        ("pixels", "all"),
    }


def test_bench__full_runs_the_table_of_the_published_schedule(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[BenchTable, str, int]] = []

    def note(grid: BenchTable, name: str, seed: int, train: LabelTable, *_: object, **__: object) -> None:
        asked.append((grid, name, len(train)))

    monkeypatch.setattr(runner, "run_cell", note)
    options: dict[str, Any] = {"cells": ("coreg",), "data": folder, "out": tmp_path, "seeds": (0,), "device": "cpu"}
    text = runner.bench("coreg-pixels", full=True, **options)
    assert asked == [(TABLES["coreg-pixels"].at_full, "coreg", 1000)]  # all images
    assert "800 epochs" in text


def test_run_cell__of_a_network_has_the_settings_of_its_cell_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(api, "fit", lambda data, **words: asked.append({"data": data, **words}))
    reduced = TABLES["coreg-pixels"]
    assert reduced.at_full is not None
    for grid, full in ((reduced, False), (reduced.at_full, True)):
        train, test = runner.table_data(dataclasses.replace(grid, n_max=None), folder, full=full)
        runner.run_cell(grid, "coreg", 0, train, test, folder=tmp_path / "new", full=full, device="cpu")
    assert [each["set"] for each in asked] == [
        dict(reduced.cells["coreg"].settings),
        dict(reduced.at_full.cells["coreg"].settings),
    ]
    assert [each["model"] for each in asked] == ["resnet32", "preact_resnet18"]
    for each in asked:
        assert not each["data"].counts().any()
        assert each["data"].candidates is not None
        assert each["test"].counts().tolist() == [2] * 10


def children(monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], Any]) -> None:
    """Processes of bench that call `run` with their words instead."""

    class Child:
        def __init__(self, args: list[str], **_: Any) -> None:
            self.args = args

        def wait(self) -> int:
            try:
                run(self.args)
            except subprocess.CalledProcessError as error:
                return error.returncode
            return 0

        def terminate(self) -> None:
            pass

    monkeypatch.setattr(subprocess, "Popen", Child)


def test_bench__side_by_side_a_run_that_two_cells_show_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    children(monkeypatch, commands.append)
    options: dict[str, Any] = {"seeds": (0,), "out": tmp_path, "jobs": 2, "model": MODEL, "device": "cpu"}
    runner.bench("coreg-gtsrb", cells=("zero_shot", "kd", "coreg"), **options)
    assert sorted(words[words.index("--cells") + 1] for words in commands) == ["coreg", "kd"]


def test_bench__side_by_side_every_cell_gets_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    children(monkeypatch, commands.append)
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


def test_bench__side_by_side_what_finished_is_kept_and_a_failure_gives_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cell in order fails after the second has finished and was written."""
    file, begun, second_kept = tmp_path / "results.csv", [], threading.Event()

    def add_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
        assert path == file
        assert [row["cell"] for row in rows] == ["fpl"]
        second_kept.set()

    def run(words: list[str]) -> None:
        cell = words[words.index("--cells") + 1]
        begun.append(cell)
        if cell == "cap":
            assert second_kept.wait(30), "a finished cell waits for an earlier one"
            raise subprocess.CalledProcessError(-9, words)

    def result_rows(table: str, grid: BenchTable, root: Path, cells: Sequence[str], *_: Any, **__: Any) -> Any:
        return [{"cell": name} for name in cells]

    children(monkeypatch, run)
    monkeypatch.setattr(runner, "add_rows", add_rows)
    monkeypatch.setattr(runner, "result_rows", result_rows)
    words = ["bench", "--table", "cap-cifar10", "--cells", "cap", "fpl", "--seeds", "0", "--jobs", "2"]
    words += ["--model", MODEL, "--device", "cpu", "--out", str(tmp_path / "b"), "--csv", str(file)]
    assert cli.run(words) == 137
    error = capsys.readouterr().err
    assert "a cell failed: cap, seed 0 (exit code -9)" in error
    assert "labelwright bench --table cap-cifar10 --cells cap --seeds 0" in error
    assert sorted(begun) == ["cap", "fpl"]


def test_bench__side_by_side_nothing_is_begun_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def run(words: list[str]) -> None:
        begun.append(words[words.index("--seeds") + 1])
        time.sleep(0.05)
        raise subprocess.CalledProcessError(2, words)

    children(monkeypatch, run)
    with pytest.raises(runner.CellError, match=r"exit code 2") as caught:
        runner.bench("cap-cifar10", cells=("cap",), seeds=range(40), out=tmp_path, jobs=2, model=MODEL, device="cpu")
    assert caught.value.exit_code == 2
    assert len(begun) < 40
