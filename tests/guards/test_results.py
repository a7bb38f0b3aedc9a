"""Published figures are data: the appendix is what the CSV files make, and the docs show no other figures."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from labelwright.benchmarking.finished import METRICS, POOL_METRICS
from labelwright.benchmarking.results import COLUMNS, read_rows
from labelwright.benchmarking.tables import TABLES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FILES = sorted(RESULTS.glob("*.csv"))
FIGURE = re.compile(r"\d+\.\d+(?: ± \d+\.\d+)?")
MEAN = re.compile(r"\d+\.\d+ ± \d+\.\d+")

_spec = importlib.util.spec_from_file_location("appendix", ROOT / "benchmarks" / "appendix.py")
assert _spec is not None
assert _spec.loader is not None
generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generator)


def write(folder: Path, rows: list[dict[str, str]], tables: list[dict[str, str]]) -> None:
    """A folder with one file of results and an index."""
    with (folder / "made.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    index = {"intro": "Hello.", "metrics": {}, "files": [{"file": "made.csv", "title": "Made up", "tables": tables}]}
    (folder / "index.yaml").write_text(yaml.safe_dump(index), encoding="utf-8")


def cell(name: str, metric: str, value: str, **more: str) -> dict[str, str]:
    return {"table": "t", "cell": name, "title": name.upper(), "metric": metric, "value": value, **more}


def test_appendix__means_and_single_seeds_side_by_side(tmp_path: Path) -> None:
    rows = [
        cell("a", "accuracy", "70.2", sd="0.1", n_seeds="3", seconds="12", commit="abc", hardware="cpu"),
        cell("a", "gini_before", "0.054", sd="0.003", n_seeds="3", seconds="12", commit="abc", hardware="cpu"),
        cell("b", "accuracy", "60.50", seed="0", seconds="9", commit="def", hardware="cpu", note="chosen here"),
        cell("b", "accuracy", "61.50", seed="1", seconds="12", commit="def", hardware="cpu", note="chosen here"),
    ]
    write(tmp_path, rows, [{"table": "t", "title": "Two cells", "command": "labelwright bench", "text": "B is worse."}])
    page = generator.appendix(tmp_path)
    # sd of 60.5 and 61.5 with n - 1: sqrt(0.5) = 0.71; mean of 9 and 12 s = 10.5, to even
    table = [
        "|  | accuracy | gini before | train s | seeds |",
        "|---|---|---|---|---|",
        "| A | 70.2 ± 0.1 | 0.054 ± 0.003 | 12 | 3 |",
        "| B | 61.0 ± 0.7 |  | 10 | 2 |",
        "",
        "- hardware: cpu",
        "- commit: abc (all others)",
        "- commit: def (B)",
        "- note: chosen here (B)",
        "",
        "B is worse.",
    ]
    assert page.endswith("\n".join(["### Two cells", "", "```", "labelwright bench", "```", "", *table, ""]))
    assert generator.figures(tmp_path) == {"70.2 ± 0.1", "0.054 ± 0.003", "61.0 ± 0.7"}


def test_appendix__every_file_and_table_is_in_the_index(tmp_path: Path) -> None:
    write(tmp_path, [cell("a", "accuracy", "70.2")], [])
    with pytest.raises(ValueError, match=r"holds .* and index\.yaml lists"):
        generator.appendix(tmp_path)
    (tmp_path / "other.csv").write_text(",".join(COLUMNS), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the folder holds \['made.csv', 'other.csv'\]"):
        generator.appendix(tmp_path)


def test_the_committed_appendix_is_what_the_files_make() -> None:
    assert len(FILES) > 15
    made = generator.appendix(RESULTS)
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == made, "run python benchmarks/appendix.py"
    assert made.count("\n### ") > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rows_are_complete(path: Path) -> None:
    rows = read_rows(path)
    assert rows
    for row in rows:
        assert re.fullmatch(r"\d+(\.\d+)?", row["value"]), row
        assert all(row[column] for column in ("table", "cell", "title", "metric")), row
        assert row["n_seeds"] or not row["sd"], row
        assert not (row["n_seeds"] and row["seed"]), row
        table = row["table"].removesuffix(" --full")
        assert table in TABLES or (ROOT / "benchmarks" / table.split()[0]).exists(), row


def test_every_metric_is_explained() -> None:
    index = yaml.safe_load((RESULTS / "index.yaml").read_text(encoding="utf-8"))
    explained = {name for names in index["metrics"] for name in names.split(", ")}
    assert {name.replace("_", " ") for name in (*METRICS, *POOL_METRICS)} <= explained


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md", "docs/open-questions.md"])
def test_figures_in_tables_are_in_the_files(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    cells = [part.strip(" *") for line in lines if line.startswith("|") for part in line.split("|")]
    shown = [figure for part in cells for figure in ([part] if FIGURE.fullmatch(part) else MEAN.findall(part))]
    assert len(shown) >= 10
    known = generator.figures(RESULTS)
    known |= {figure.partition(" ±")[0] for figure in known}
    assert [part for part in shown if part not in known] == []
