"""compare: settings, scores and labels of two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labelwright as lw
from labelwright import cli
from labelwright.errors import DataError
from made_runs import made_up_run


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    first, second = made_up_run(tmp_path / "a", "balanced"), made_up_run(tmp_path / "b", "balanced")
    rows = pq.read_table(second / "labels.parquet").to_pydict()
    rows["label"][0], rows["trust"][0] = "deer", 0.9
    pq.write_table(pa.table(rows), second / "labels.parquet")
    (second / "config.yaml").write_text("data: photos\nmethod: cvs\nseed: 1\nresolved: {settings: {lr: 0.2}}\n")
    summary = json.loads((second / "summary.json").read_text())
    summary["test"]["accuracy"] = 0.25
    (second / "summary.json").write_text(json.dumps(summary))
    return first, second


def test_compare__what_differs(two: tuple[Path, Path]) -> None:
    found = lw.compare(*two)
    assert found.settings["method"] == ("ce", "cvs")
    assert found.settings["lr"] == (None, 0.2)
    assert "situation" not in found.settings
    assert found.scores["accuracy"][1] == 0.25
    assert found.scores["balanced_accuracy"][0] == found.scores["balanced_accuracy"][1]
    assert (found.n_common, found.n_changed) == (60, 1)
    assert found.changed[0][:3] == ("img/0", "airplane", "deer")
    assert found.pairs == (("airplane", "deer", 1),)
    assert found.notes == ()


def test_compare__by_command_line(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", *map(str, two)]) == 0
    told = capsys.readouterr().out
    assert "labels that differ: 1 of 60 images that both labelled" in told
    assert "airplane -> deer: 1 image" in told
    assert "accuracy, mean over the classes" in told
    assert cli.run(["compare", *map(str, two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == [["airplane", "deer", 1]]


def test_compare__runs_on_other_images_have_none_in_common(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(two[1] / "labels.parquet")
    other = pa.array([f"other/{i}" for i in range(len(rows))])
    pq.write_table(rows.set_column(rows.schema.get_field_index("id"), "id", other), two[1] / "labels.parquet")
    assert cli.run(["compare", *map(str, two)]) == 0
    shown = capsys.readouterr().out
    assert "labels are not compared: no image is in both" in shown
    assert "that both labelled" not in shown


def test_compare__the_same_run_differs_in_nothing(two: tuple[Path, Path]) -> None:
    found = lw.compare(two[0], two[0])
    assert (found.settings, found.n_changed) == ({}, 0)


def test_compare__an_unfinished_run(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"no summary\.json"):
        lw.compare(two[0], tmp_path)
