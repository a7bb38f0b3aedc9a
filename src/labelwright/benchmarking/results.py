"""Finished cells of a benchmark table as rows of a CSV file, in the layout of docs/results."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labelwright.benchmarking.finished import finished_runs, metrics_of
from labelwright.benchmarking.grid import BenchTable
from labelwright.errors import DataError
from labelwright.run_folder import write_text_atomically

COLUMNS = (
    "table",  # as `labelwright bench --table` takes it, with " --full" on the published schedule; or a script
    "model",  # folder or id of the model that the cells start from, "" = random weights
    "cell",  # as --cells takes it
    "title",  # of the cell, for people
    "metric",  # percent unless its name says otherwise
    "value",  # of one seed; or the mean over n_seeds
    "sd",  # standard deviation over the seeds, where value is a mean
    "n_seeds",  # where value is a mean
    "seed",  # where value is that of one seed
    "seconds",  # of training
    "commit",
    "hardware",
    "note",
)
"""The columns of every file of results."""

Row = Mapping[str, str]
"""A value, as text, for some of COLUMNS."""


def result_rows(
    table: str,
    grid: BenchTable,
    root: Path,
    cells: Sequence[str],
    seeds: Sequence[int],
    *,
    full: bool,
    model: str | None,
) -> Iterator[Row]:
    """A row for every cell under ``root`` that is finished, seed and metric.

    Example: where nothing is finished there is no row.
      >>> from labelwright.benchmarking.tables import TABLES
      >>> list(result_rows("gtsrb", TABLES["gtsrb"], Path("nowhere"), ["cvs"], [0], full=False, model=None))
      []
    """
    for name in cells:
        for seed, run in finished_runs(root, grid, name, seeds).items():
            hardware, commit = run["machine"]
            for key, metric in metrics_of(grid).items():
                for value in metric.values([run]):
                    yield {
                        "table": f"{table} --full" if full else table,
                        "model": Path(model).name if model else "",
                        "cell": name,
                        "title": grid.cells[name].title,
                        "metric": key,
                        "value": f"{value:.{metric.digits + 1 if metric.digits else 0}f}",
                        "seed": str(seed),
                        "seconds": f"{run['seconds']['train']:.0f}",
                        "commit": commit,
                        "hardware": hardware,
                    }


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of results.

    Raises: DataError if its columns are others, or a number stands there twice: in two rows of a cell, metric and seed,
      or as a mean beside single seeds.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows: list[Row] = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise DataError(f"{path} is not a file of results", fix=f"its columns must be {', '.join(COLUMNS)}")
    seeds: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        seeds.setdefault(_number_of(row), []).append(row["seed"])
    for number, found in seeds.items():
        if len(set(found)) < len(found) or ("" in found and len(found) > 1):
            what = ", ".join(part for part in number if part)
            raise DataError(f"{path} has more than one row of {what}", fix="keep the newer")
    return rows


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file of results, in place of what is there of the same seed and of means.

    Columns that a row lacks are empty.

    Raises: DataError if the file is not one of results.

    Example:
      >>> import tempfile; path = Path(tempfile.mkdtemp()) / "cvs.csv"
      >>> row = {"table": "gtsrb", "model": "", "cell": "cvs", "metric": "few", "seed": "0", "value": "57.51"}
      >>> add_rows(path, [row]); add_rows(path, [row | {"value": "58.02"}, row | {"seed": "1"}])
      >>> [(row["seed"], row["value"]) for row in read_rows(path)]
      [('0', '58.02'), ('1', '57.51')]
    """
    new = {(*_number_of(row), seed) for row in rows for seed in (row.get("seed", ""), "")}
    kept = [row for row in (read_rows(path) if path.exists() else []) if (*_number_of(row), row["seed"]) not in new]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *rows])
    write_text_atomically(path, text.getvalue())


def _number_of(row: Row) -> tuple[str, ...]:
    """What a row is a measurement of."""
    return tuple(row.get(column, "") for column in ("table", "model", "cell", "metric"))
