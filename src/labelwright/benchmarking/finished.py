"""What a finished cell of a benchmark table scored: its run folder read, and every metric of it as a number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwright.benchmarking.grid import BenchTable, Cell
from labelwright.data.cards import dataset_card
from labelwright.run_folder import Run

Finished = Mapping[str, Any]
"""What is read of a finished cell: its summary; under "machine" (hardware, commit); under "begin" what its method
logged before the first epoch, and under "logged" the last value of each key that it logged per epoch."""


def folder_of(root: Path, grid: BenchTable, name: str, seed: int) -> Path:
    """Run folder of a cell with a seed."""
    return root / grid.cells[name].key / f"seed-{seed}"


def is_finished(folder: Path) -> bool:
    """The run of a cell has written its scores."""
    return (folder / "summary.json").exists()


def finished_runs(root: Path, grid: BenchTable, name: str, seeds: Sequence[int]) -> dict[int, Finished]:
    """Seed -> everything that is shown of a cell, of those seeds whose run has finished."""
    folders = {seed: folder_of(root, grid, name, seed) for seed in seeds}
    return {seed: _read(Run(path), grid, grid.cells[name]) for seed, path in folders.items() if is_finished(path)}


def _read(run: Run, grid: BenchTable, cell: Cell) -> Finished:
    there = run.environment
    threads = f"{there['n_threads']} thread{'s' if there['n_threads'] > 1 else ''}"
    hardware = f"{there['device']} ({there['processor']}, {threads}), {there['precision_used']}"
    found = {**run.summary, "machine": (hardware, str(there["commit"]))}
    if cell.given is None:
        return found
    official = dataset_card(grid.dataset).class_names or run.class_names  # the set's own, where the card has none
    made_up = set(run.class_names) - set(official)
    found |= {"begin": run.begun, "made_up": made_up, "is_made_up": [name in made_up for name in run.class_names]}
    if cell.shows == "trained":
        return {**found, "logged": {key: value for record in run.epochs for key, value in record.items()}}
    before = run.summary["pseudolabels"]["zero_shot"]  # as if nothing had been learned from the guesses
    return {
        **found,
        "test": run.zero_shot,
        "pseudolabels": {**before, "zero_shot": before},
        "seconds": {"train": run.summary["seconds"]["annotate"]},
        "logged": {},
    }


@dataclass(frozen=True)
class Metric:
    """One number of a finished cell."""

    of: Callable[[Finished], float | None]  # None where a run has no such number
    scale: float = 100  # times this, 100 for percent
    digits: int = 1  # after the point, where a mean is printed

    def values(self, runs: Sequence[Finished]) -> list[float]:
        """The finite ones among the numbers of some runs, scaled."""
        found = [self.of(run) for run in runs]
        return [self.scale * value for value in found if value is not None and math.isfinite(value)]

    def spread(self, runs: Sequence[Finished]) -> str:
        """Mean and standard deviation over some runs, "" where none has the number.

        Example:
          >>> Metric(lambda run: run["test"]["accuracy"]).spread([{"test": {"accuracy": a}} for a in (0.5, 0.75)])
          '62.5 ± 17.7'
        """
        there = self.values(runs)
        if not there:
            return ""
        deviation = f" ± {statistics.stdev(there):.{self.digits}f}" if len(there) > 1 else ""
        return f"{statistics.mean(there):.{self.digits}f}{deviation}"


def _at(*keys: str) -> Callable[[Finished], float | None]:
    """What stands in a run under nested keys, None where one is missing."""

    def find(run: Finished) -> float | None:
        found: Any = run
        for key in keys:
            found = (found or {}).get(key)
        return None if found is None else float(found)

    return find


def _of_open_pool(key: str) -> Callable[[Finished], float | None]:
    """A score of the unlabelled images of an open world."""
    found = _at("pseudolabels", key)
    return lambda run: found(run) if "n_novel" in run else None


def _n_classes(run: Finished) -> float | None:
    """Named and discovered classes, where their number was estimated."""
    is_estimate = (run.get("novel") or {}).get("evidence")
    return float(run["n_seen"] + run["n_novel"]) if is_estimate else None


def _gave_up(run: Finished) -> float | None:
    """1 where the annotator's own classifier took the place of what was learned, else 0."""
    deployed = run["logged"].get("deployed")
    return None if deployed is None else float(deployed == "annotator")


def _detected(run: Finished, *, made_up: bool) -> float | None:
    """How many names were detected as mismatched, of the made-up ones or of the others."""
    if "mismatched" not in run["begin"] or not run["made_up"]:
        return None
    found = set(run["begin"]["mismatched"])
    return len(found & run["made_up"] if made_up else found - run["made_up"])


def _true_names(key: str) -> Callable[[Finished], float | None]:
    """Mean recall of the classes that kept their names where others did not."""

    def find(run: Finished) -> float | None:
        if not any(run["is_made_up"]) or not run.get("zero_shot"):
            return None
        recalls = zip(run[key]["per_class"], run["is_made_up"], strict=True)
        return float(statistics.mean(recall for recall, made_up in recalls if recall is not None and not made_up))

    return find


METRICS: Mapping[str, Metric] = {
    key: Metric(_at("test", key)) for key in ("balanced_accuracy", "many", "medium", "few", "ece", "ece_few")
}
"""Metrics of a cell that is given every label, by their names in the CSV files."""

POOL_METRICS: Mapping[str, Metric] = {
    **{key: Metric(_at("test", key)) for key in ("accuracy", "balanced_accuracy", "seen", "novel")},
    **{f"pool_{key}": Metric(_of_open_pool(key)) for key in ("seen", "novel", "all")},
    "n_classes": Metric(_n_classes, scale=1, digits=0),
    **{key: Metric(_at("test", key)) for key in ("unseen", "harmonic")},
    "zero_shot": Metric(_at("zero_shot", "accuracy")),
    "pseudolabels_before": Metric(_at("pseudolabels", "zero_shot", "accuracy")),
    "pseudolabels": Metric(_at("pseudolabels", "accuracy")),
    "gini_before": Metric(_at("pseudolabels", "zero_shot", "gini"), scale=1, digits=3),
    "gini": Metric(_at("pseudolabels", "gini"), scale=1, digits=3),
    "truth_inside": Metric(_at("candidates", "truth_inside")),
    "set_size": Metric(_at("candidates", "mean_set_size"), scale=1, digits=3),
    "guesses_trusted": Metric(_at("logged", "reliable_frac")),
    "gave_up": Metric(_gave_up, scale=1, digits=0),
    "made_up_found": Metric(lambda run: _detected(run, made_up=True), scale=1),
    "others_found": Metric(lambda run: _detected(run, made_up=False), scale=1),
    "true_names_before": Metric(_true_names("zero_shot")),
    "true_names": Metric(_true_names("test")),
}
"""The same of a cell that is given less than every label."""


def metrics_of(grid: BenchTable) -> Mapping[str, Metric]:
    """The metrics of a table's cells."""
    return METRICS if all(cell.given is None for cell in grid.cells.values()) else POOL_METRICS
