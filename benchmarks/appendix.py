"""The appendix of results, docs/results/README.md, from the CSV files and index.yaml beside it.

    python benchmarks/appendix.py

Every CSV file becomes a section, and every table in it a Markdown table: a row per cell, a column per metric, mean and
standard deviation over the seeds. Titles, commands and what to read in a table stand in index.yaml.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from labelwright.benchmarking.results import Row, read_rows

RESULTS = Path(__file__).parents[1] / "docs" / "results"
UNKNOWN = {"hardware": "not recorded", "commit": "not recorded", "note": ""}
"""Columns that stand below a table, and what stands for an empty one."""


def appendix(folder: Path) -> str:
    """The whole page. ValueError if a file or table is not in the index, or the other way round."""
    index = yaml.safe_load((folder / "index.yaml").read_text(encoding="utf-8"))
    listed, there = [part["file"] for part in index["files"]], [path.name for path in folder.glob("*.csv")]
    if sorted(listed) != sorted(there):
        raise ValueError(f"index.yaml lists {sorted(listed)}, and the folder holds {sorted(there)}")
    lines = [
        "# Results",
        "",
        "<!-- written by `python benchmarks/appendix.py` from the CSV files and index.yaml: do not edit -->",
        "",
        index["intro"].strip(),
        "",
        *[f"- [{part['title']}](#{_anchor(part['title'])}): `{part['file']}`" for part in index["files"]],
        "",
        "| metric | what it is |",
        "|---|---|",
        *[f"| {name} | {text} |" for name, text in index["metrics"].items()],
    ]
    for part in index["files"]:
        lines += ["", f"## {part['title']}", "", f"From [{part['file']}]({part['file']})."]
        lines += ["", part["text"].strip()] if "text" in part else []
        rows = read_rows(folder / part["file"])
        grouped = _grouped(rows, "table", "model")
        names = [_name_of(table, grouped) for table in part["tables"]]
        if sorted(names) != sorted(grouped):
            raise ValueError(f"{part['file']} holds {sorted(grouped)}, and index.yaml lists {sorted(names)}")
        for name, table in zip(names, part["tables"], strict=True):
            lines += _table(table, grouped[name])
    return "\n".join(lines) + "\n"


def figures(folder: Path) -> set[str]:
    """Every figure of the appendix as it is printed there."""
    return {
        figure(same)
        for path in folder.glob("*.csv")
        for same in _grouped(read_rows(path), "table", "model", "cell", "metric").values()
    }


def figure(rows: Sequence[Row]) -> str:
    """The rows of one metric of a cell as a table shows them: a mean as it stands, seeds as mean and deviation."""
    values = [row["value"] for row in rows]
    if len(rows) == 1:
        return f"{values[0]} ± {rows[0]['sd']}" if rows[0]["sd"] else values[0]
    if "." not in values[0]:
        return ", ".join(values)  # counts
    digits = max(1, len(values[0].partition(".")[2]) - 1)
    numbers = [float(value) for value in values]
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def _table(table: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """A table under its heading."""
    metrics = list(_grouped(rows, "metric"))
    cells = _grouped(rows, "cell")
    columns = ["", *(name.replace("_", " ") for (name,) in metrics), "train s", "seeds"]
    made = []
    for same in cells.values():
        numbers = _grouped(same, "metric")
        shown = [figure(numbers[name]) if name in numbers else "" for name in metrics]
        made.append([same[0]["title"].replace("|", "\\|"), *shown, _seconds(same), _n_seeds(numbers.values())])
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in made)]
    lines = ["", f"### {table['title']}", "", "```", table["command"].strip(), "```", ""]
    lines += [table["setup"].strip(), ""] if "setup" in table else []
    lines += ["| " + " | ".join(columns[i] for i in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(row[i] for i in kept) + " |" for row in made]
    facts = [line for column in UNKNOWN for line in _facts(column, cells.values())]
    lines += ["", *facts] if facts else []
    return [*lines, "", table["text"].strip()] if "text" in table else lines


def _seconds(rows: Sequence[Row]) -> str:
    """Mean seconds of training over the seeds of a cell."""
    found = {row["seed"]: row["seconds"] for row in rows if row["seconds"]}
    if len(found) < 2:
        return "".join(found.values())
    return f"{statistics.mean(float(seconds) for seconds in found.values()):.0f}"


def _n_seeds(numbers: Iterable[Sequence[Row]]) -> str:
    """Over how many seeds the metrics of a cell are."""
    found = {rows[0]["n_seeds"] or (str(len(rows)) if rows[0]["seed"] else "") for rows in numbers}
    return ", ".join(sorted(found - {""}, key=int))


def _facts(column: str, cells: Iterable[Sequence[Row]]) -> list[str]:
    """What a column holds, one line for the cells that share it."""
    titles: dict[str, list[str]] = {}
    for rows in cells:
        text = "; ".join(dict.fromkeys(row[column] for row in rows if row[column]))
        titles.setdefault(text or UNKNOWN[column], []).append(rows[0]["title"])
    most = max(titles, key=lambda text: len(titles[text]))
    lines = []
    for text, those in titles.items():
        where = "all others" if text == most and column != "note" else "; ".join(those)
        lines += [f"- {column}: {text}" + (f" ({where})" if len(titles) > 1 else "")] if text else []
    return lines


def _grouped(rows: Sequence[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by what stands in some columns, in the order in which they come."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def _name_of(table: Mapping[str, Any], grouped: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """(table, model) that an entry of the index is about; the model may be left out where there is one."""
    models = [model for name, model in grouped if name == table["table"]]
    return table["table"], table.get("model", models[0] if len(models) == 1 else "")


def _anchor(title: str) -> str:
    """What a heading is linked by."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in "_- ")
    return kept.replace(" ", "-")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the CSV files and index.yaml")
    folder = parser.parse_args().folder
    (folder / "README.md").write_text(appendix(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
