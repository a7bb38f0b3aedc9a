"""Finished cells as rows of a CSV file, against rows worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelwright.benchmarking.grid import BenchTable, Cell, Given
from labelwright.benchmarking.results import COLUMNS, add_rows, read_rows, result_rows
from labelwright.benchmarking.tables import TABLES
from labelwright.errors import DataError

MACHINE = {"n_threads": 2, "device": "cpu", "processor": "made-up", "precision_used": "float32", "commit": "abc"}


def finished(folder: Path, summary: dict[str, Any], **more: Any) -> None:
    """The run folder of a finished cell."""
    folder.mkdir(parents=True)
    for name, content in {"summary": summary, "environment": MACHINE, **more}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "epoch", "epoch": 0}))


def row(**columns: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {"table": "gtsrb", "cell": "cvs", "metric": "few", "value": "57.5"} | columns


def test_result_rows__of_a_full_run_by_seed_and_metric(tmp_path: Path) -> None:
    scores = {"balanced_accuracy": 0.65432, "many": 0.5, "few": None, "ece": float("nan")}
    finished(tmp_path / "ce" / "seed-1", {"test": scores, "seconds": {"train": 10.4}})
    grid = TABLES["cifar10-lt-100"]
    rows = list(result_rows("cifar10-lt-100", grid, tmp_path, ["ce", "cvs"], [0, 1], full=True, model=None))
    same = {"table": "cifar10-lt-100 --full", "model": "", "cell": "ce", "title": "Cross-entropy", "seed": "1"}
    cost = {"seconds": "10", "commit": "abc", "hardware": "cpu (made-up, 2 threads), float32"}
    assert rows == [
        {**same, **cost, "metric": "balanced_accuracy", "value": "65.43"},
        {**same, **cost, "metric": "many", "value": "50.00"},
    ]


def test_result_rows__of_a_pool_before_and_after(tmp_path: Path) -> None:
    grid = BenchTable("made-up", "cifar10", {"lps": Cell("LPS", "lps", given=Given())}, is_pool=True)
    summary = {
        "test": {"accuracy": 0.5},
        "zero_shot": {"accuracy": 0.25},
        "pseudolabels": {"accuracy": 0.75, "gini": 0.123456, "zero_shot": {"accuracy": 0.4}},
        "n_seen": 5,
        "n_novel": 6,
        "novel": {"evidence": [1]},
        "seconds": {"train": 1},
    }
    finished(tmp_path / "lps" / "seed-0", summary, data={"class_names": ["airplane"]})
    rows = list(result_rows("made-up", grid, tmp_path, ["lps"], [0], full=False, model="models/tiny-clip"))
    assert {each["metric"]: each["value"] for each in rows} == {
        "accuracy": "50.00",
        "n_classes": "11",
        "zero_shot": "25.00",
        "pseudolabels_before": "40.00",
        "pseudolabels": "75.00",
        "gini": "0.1235",
    }
    assert {each["model"] for each in rows} == {"tiny-clip"}


def test_add_rows__single_seeds_take_the_place_of_means_and_of_themselves(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    other = row(metric="many", sd="1.0", n_seeds="3", note='with a comma, and a "quote"')
    add_rows(path, [row(sd="1.0", n_seeds="3"), other])
    assert read_rows(path) == [row(sd="1.0", n_seeds="3"), other]
    new = [row(seed="0", value="58.00"), row(seed="1", value="59.00")]
    add_rows(path, new)
    add_rows(path, new)
    assert read_rows(path) == [other, *new]


@pytest.mark.parametrize(
    "rows", [[row(seed="0"), row(seed="0", value="1.0")], [row(n_seeds="3"), row(seed="0")]], ids=["twice", "mean"]
)
def test_read_rows__a_number_stands_there_once(rows: list[dict[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(",".join(each) for each in [COLUMNS, *(each.values() for each in rows)]))
    with pytest.raises(DataError, match=r"has more than one row of gtsrb, cvs, few\n  fix: keep the newer"):
        read_rows(path)


def test_read_rows__names_the_columns_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\n")
    with pytest.raises(DataError, match=r"is not a file of results\n  fix: its columns must be table, model"):
        read_rows(path)
