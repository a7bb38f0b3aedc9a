"""Cells of the committed tables whose answer is behind its best reference, by how much, and by more than seeds differ.

    python benchmarks/behind.py [docs/results]

Answers are what a run of labelwright gives without a word about the method, or the method that the tables recommend;
references what one would try first, on the same features, texts and labels. A line for every table, situation and
metric in which the mean answer is lower than the best mean of the references; `more` marks those that lag by more than
the larger of the two deviations over seeds or draws. Without deviations, half a point counts as no lag.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from labelwright.benchmarking.results import read_rows

SMALL = 0.5  # points, where a table has one number only
CROWDS = ("majority", "dawid-skene", "regression-majority", "regression-dawid-skene")
SHOTS = ("zero-shot", "logistic_regression")

Found = dict[str, tuple[float, float | None]]  # cell -> mean, deviation


def cells_of(file: Path) -> dict[tuple[str, str], Found]:
    """(table, metric) -> cell -> mean and deviation."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    spread: dict[tuple[str, str, str], float] = {}
    for row in read_rows(file):
        key = (row["table"], row["metric"], row["cell"])
        values[key].append(float(row["value"]))
        if row["sd"]:
            spread[key] = float(row["sd"])
    found: dict[tuple[str, str], Found] = defaultdict(dict)
    for key, numbers in values.items():
        sd = spread.get(key, statistics.stdev(numbers) if len(numbers) > 1 else None)
        found[key[:2]][key[2]] = (statistics.mean(numbers), sd)
    return found


def pairs(file: Path) -> Iterator[tuple[str, str, str, tuple[float, float | None], Found]]:
    """(table, situation, metric, the answer, references) of a file."""
    found = cells_of(file)
    for (table, metric), cells in found.items():

        def among(names: Sequence[str], cells: Found = cells) -> Found:
            return {name: cells[name] for name in names if name in cells}

        for cell, answer in cells.items():
            if file.stem == "choices" and cell.endswith("-answer"):
                situation = cell.removesuffix("-answer")
                yield table, situation, metric, answer, among([f"{situation}-trained", f"{situation}-reference"])
            elif file.stem == "crowds" and cell == "crowd":
                yield table, cell, metric, answer, among(CROWDS)
            elif file.stem == "open_world" and cell.startswith(("novel_beliefs", "lps")) and metric == "pool_all":
                yield table, cell, metric, answer, among([f"ss_kmeans-{cell.rpartition('-')[2]}"])
            elif file.stem == "text_pools" and cell in ("cap", "beliefs") and metric != "worst_loss":
                yield table, cell, metric, answer, among(["zero_shot"])
            elif file.stem == "names" and metric == "pseudolabels":
                yield table, cell, metric, answer, {"zero_shot": found[table, "zero_shot"][cell]}
            elif file.stem == "names" and cell.endswith("_a_class_CAP"):
                yield table, cell, metric, answer, among([f"{cell.removesuffix('CAP')}{name}" for name in SHOTS])
            elif file.stem == "cap" and cell.startswith("cap") and metric == "pseudolabels":
                yield table, cell, metric, answer, {"zero_shot": found[table, "pseudolabels_before"][cell]}


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    n, n_more, lines = 0, 0, []
    for name in ("choices", "crowds", "open_world", "text_pools", "names", "cap"):
        for table, situation, metric, (mean, sd), references in pairs(options.results / f"{name}.csv"):
            if not references:
                continue
            n += 1
            best = max(references, key=lambda key: references[key][0])
            other, other_sd = references[best]
            spreads = [each for each in (sd, other_sd) if each is not None]
            is_more = other - mean > (max(spreads) if spreads else SMALL)
            n_more += is_more
            if other > mean:
                shown = f"{mean:.1f} ± {sd:.1f}" if sd is not None else f"{mean:.1f}"
                than = f"{other:.1f} ± {other_sd:.1f}" if other_sd is not None else f"{other:.1f}"
                lines.append(
                    f"| {table} | {situation} | {metric} | {shown} | {best} | {than} | {'more' if is_more else ''} |"
                )
    print(f"{n} cells, {len(lines)} behind, {n_more} by more than the spread\n")
    print("| table | cell | metric | answer | reference | its score | |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
