"""Finished cells as Markdown, against tables worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labelwright.benchmarking.grid import BenchTable, Cell, Given, Guessing
from labelwright.benchmarking.printing import format_table
from labelwright.benchmarking.tables import TABLES

MACHINE = {"n_threads": 1, "device": "cpu", "processor": "made-up", "precision_used": "float32", "commit": "abc"}


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def test_format_table__mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    grid = TABLES["cifar10-lt-100"]
    for seed, balanced in ((0, 0.30), (1, 0.34)):
        scores = {"balanced_accuracy": balanced, "many": 0.5, "medium": 0.25, "few": None, "ece": 0.1}
        files = {"summary.json": {"test": scores, "seconds": {"train": 10.0}}, "environment.json": MACHINE}
        write(tmp_path / "ce" / f"seed-{seed}", files)
    text = format_table(grid, tmp_path, list(grid.cells), [0, 1, 2], full=False)
    # sd of 30 and 34 with n - 1: sqrt(2^2 + 2^2) = 2.83
    assert "| Cross-entropy | 32.0 ± 2.8 | 50.0 ± 0.0 | 25.0 ± 0.0 |  | 10.0 ± 0.0 |  | 71.25 | 10 | 2 |" in text
    assert "CVS" not in text.split("Schedule")[0]
    header, rule = text.splitlines()[2:4]
    assert header == ("| | balanced acc. | many | medium | few | ECE | ECE few | published | train s | seeds |")
    assert rule == "|---|---|---|---|---|---|---|---|---|---|"


def pool_cell(folder: Path, *, accuracy: float, after: float, mismatched: list[str]) -> None:
    names = ["airplane", "automobile", "gibuk", "zulan"]
    write(
        folder,
        {
            "summary.json": {
                "test": {"accuracy": accuracy, "balanced_accuracy": 0.5, "per_class": [0.75, 0.25, 1.0, 1.0]},
                "zero_shot": {"accuracy": 0.4, "per_class": [0.5, None, 0.0, 0.0]},
                "pseudolabels": {
                    "accuracy": after,
                    "gini": 0.1,
                    "zero_shot": {"accuracy": 0.45, "gini": 0.3125},
                },
                "seconds": {"train": 8.4},
            },
            "environment.json": MACHINE,
            "data.json": {"class_names": names},
            "metrics.jsonl": {"kind": "begin", "mismatched": mismatched},
        },
    )


def test_format_table__of_a_pool_before_and_after(tmp_path: Path) -> None:
    given = Given(n_nonsense=2)
    grid = BenchTable("made-up", "cifar10", {"cap": Cell("CAP", "cap", given=given)}, is_pool=True)
    for seed, (after, found) in enumerate([(0.6, []), (0.7, ["gibuk", "airplane"])]):
        pool_cell(tmp_path / "cap,nonsense=2" / f"seed-{seed}", accuracy=after, after=after, mismatched=found)
    lines = format_table(grid, tmp_path, ["cap"], [0, 1], full=False).splitlines()
    assert lines[2] == (
        "| | accuracy | balanced acc. | zero-shot | pseudolabels right | Gini | made-up names found "
        "| recall of the true names | train s | seeds |"
    )
    # sd of 60 and 70: 5 sqrt(2) = 7.07; found none and 1 of 2, and none and 1 other; true names: (75 + 25) / 2 after
    assert lines[4] == (
        "| CAP | 65.0 ± 7.1 | 50.0 ± 0.0 | 40.0 ± 0.0 | 45.0 ± 0.0 → 65.0 ± 7.1 | 0.312 ± 0.000 → 0.100 ± 0.000 "
        "| 0.5 of 2, and 0.5 others | 50.0 ± 0.0 → 50.0 ± 0.0 | 8 | 2 |"
    )
    assert "Ran on cpu (made-up, 1 thread), float32, commit abc." in lines


def test_format_table__of_a_pool_shows_no_column_that_no_cell_has(tmp_path: Path) -> None:
    grid = BenchTable("made-up", "cifar10", {"all": Cell("Probe", "ce", given=Given(labels="all"))}, is_pool=True)
    summary = {"test": {"accuracy": 0.5, "balanced_accuracy": 0.25}, "pseudolabels": None, "seconds": {"train": 1}}
    files = {"summary.json": summary, "environment.json": MACHINE, "data.json": {"class_names": ["airplane"]}}
    write(tmp_path / "ce,labels=all" / "seed-0", {**files, "metrics.jsonl": {"kind": "epoch", "epoch": 0}})
    lines = format_table(grid, tmp_path, ["all"], [0], full=False).splitlines()
    assert lines[2] == "| | accuracy | balanced acc. | train s | seeds |"
    assert lines[4] == "| Probe | 50.0 | 25.0 | 1 | 1 |"


def test_format_table__with_nothing_finished_has_no_row(tmp_path: Path) -> None:
    for name in ("cap-gtsrb", "gtsrb"):
        text = format_table(TABLES[name], tmp_path, list(TABLES[name].cells), [0], full=False)
        assert text.splitlines()[4] == ""
        assert "Ran on" not in text


def candidate_cell(folder: Path, *, accuracy: float, trusted: list[float], deployed: str = "sum") -> None:
    write(
        folder,
        {
            "summary.json": {
                "test": {"accuracy": accuracy, "balanced_accuracy": 0.5},
                "zero_shot": {"accuracy": 0.4, "balanced_accuracy": 0.3},
                "candidates": {"mean_set_size": 2.5, "truth_inside": 0.64},
                "pseudolabels": {"accuracy": 0.7, "gini": 0.1, "zero_shot": {"accuracy": 0.45, "gini": 0.3125}},
                "seconds": {"train": 8.4, "annotate": 3.0},
            },
            "environment.json": MACHINE,
            "data.json": {"class_names": ["airplane"]},
        },
    )
    epochs = [{"kind": "epoch", "epoch": i, "reliable_frac": value} for i, value in enumerate(trusted)]
    records = [
        {"kind": "begin", "reliable_frac": 0.01},
        *epochs,
        {"kind": "epoch", "epoch": len(trusted), "deployed": deployed},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))


GUESSED = Given(guessing=Guessing())


def test_format_table__of_candidates_and_their_annotator(tmp_path: Path) -> None:
    cells = {
        "zero_shot": Cell("Annotator", "coreg", given=GUESSED, shows="annotator"),
        "coreg": Cell("Co-Reg", "coreg", given=GUESSED),
    }
    grid = BenchTable("made-up", "cifar10", cells, is_pool=True, schedule="as long as it takes")
    for seed, deployed in enumerate(("sum", "annotator")):
        candidate_cell(
            tmp_path / "coreg,top_k=5" / f"seed-{seed}", accuracy=0.6, trusted=[0.9, 0.75], deployed=deployed
        )
    lines = format_table(grid, tmp_path, list(cells), [0, 1], full=False).splitlines()
    assert lines[2] == (
        "| | accuracy | balanced acc. | zero-shot | pseudolabels right | Gini | truth inside | set size "
        "| guesses trusted | gave up for the annotator | train s | seeds |"
    )
    before, set_columns = "40.0 ± 0.0", "64.0 ± 0.0 | 2.500 ± 0.000"
    assert lines[4] == (
        f"| Annotator | 40.0 ± 0.0 | 30.0 ± 0.0 | {before} | 45.0 ± 0.0 → 45.0 ± 0.0 "
        f"| 0.312 ± 0.000 → 0.312 ± 0.000 | {set_columns} |  |  | 3 | 2 |"
    )
    assert lines[5] == (
        f"| Co-Reg | 60.0 ± 0.0 | 50.0 ± 0.0 | {before} | 45.0 ± 0.0 → 70.0 ± 0.0 "
        f"| 0.312 ± 0.000 → 0.100 ± 0.000 | {set_columns} | 75.0 ± 0.0 | 1 of 2 | 8 | 2 |"
    )
    assert "Schedule: as long as it takes." in lines


def test_format_table__five_seeds_have_an_interval(tmp_path: Path) -> None:
    grid = BenchTable("made-up", "cifar10", {"coreg": Cell("Co-Reg", "coreg", given=GUESSED)}, is_pool=True)
    for seed, accuracy in enumerate((0.66, 0.67, 0.68, 0.69, 0.70)):
        candidate_cell(tmp_path / "coreg,top_k=5" / f"seed-{seed}", accuracy=accuracy, trusted=[0.5])
    # sd = sqrt(2.5), so 2.776 * sqrt(2.5 / 5) = 1.963, 2.776 being the 97.5% point of t with 4 degrees of freedom
    text = format_table(grid, tmp_path, ["coreg"], [0, 1, 2, 3, 4], full=False)
    assert "| Co-Reg | 68.0 ± 1.6 | 66.04 to 69.96 |" in text
    assert "95% interval" not in format_table(grid, tmp_path, ["coreg"], [0, 1, 2, 3], full=False)


def test_format_table__of_pixels_has_no_model_before_it(tmp_path: Path) -> None:
    grid = TABLES["coreg-pixels"]
    folder = tmp_path / grid.cells["top1"].key / "seed-0"
    candidate_cell(folder, accuracy=0.5, trusted=[])
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"zero_shot": None, "pseudolabels": {"accuracy": 0.625, "gini": 0.25}}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = format_table(grid, tmp_path, ["top1"], [0], full=False).splitlines()
    assert lines[2] == (
        "| | accuracy | balanced acc. | pseudolabels right | Gini | truth inside | set size | train s | seeds |"
    )
    assert lines[4] == f"| {grid.cells['top1'].title} | 50.0 | 50.0 | 62.5 | 0.250 | 64.0 | 2.500 | 8 | 1 |"
    assert "REDUCED to 1,000 images per class" in lines[6]
