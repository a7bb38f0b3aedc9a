"""Finished cells of a benchmark table as Markdown: mean and deviation over the seeds, hardware, commit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scipy import stats

from labelwright.benchmarking.finished import METRICS, POOL_METRICS, Finished, finished_runs, metrics_of
from labelwright.benchmarking.grid import BenchTable
from labelwright.methods.registry import method_named, resolve_config

INTERVAL_SEEDS = 5  # from which an interval of the mean is printed


def format_table(grid: BenchTable, root: Path, cells: Sequence[str], seeds: Sequence[int], *, full: bool) -> str:
    """Markdown of those cells under ``root`` that are finished, scores in percent."""
    rows, machines = [], set()
    hides_labels = metrics_of(grid) is POOL_METRICS
    columns = _POOL_COLUMNS if hides_labels else _COLUMNS
    for name in cells:
        cell = grid.cells[name]
        runs = list(finished_runs(root, grid, name, seeds).values())
        if not runs:
            continue
        published = "" if cell.published is None else f"{cell.published:.2f}"
        shown = {title: make(runs) for title, make in columns.items()}
        seconds = f"{statistics.mean(run['seconds']['train'] for run in runs):.0f}"
        rows.append({"": cell.title, **shown, "published": published, "train s": seconds, "seeds": str(len(runs))})
        machines |= {"{}, commit {}".format(*run["machine"]) for run in runs}
    kept = ["", *columns, "published", "train s", "seeds"]
    if hides_labels:  # of the many things there can be, those that some cell has
        kept = [title for title in kept if title == "" or any(row[title] for row in rows)]
    lines = [f"### {grid.title}", "", f"| {' | '.join(kept)} |".replace("|  |", "| |", 1), "|" + "---|" * len(kept)]
    lines += [f"| {' | '.join(row[title] for title in kept)} |" for row in rows]
    lines += ["", f"Schedule: {_schedule(grid, full=full)}.", *(f"Ran on {m}." for m in sorted(machines))]
    if any(grid.cells[name].published for name in cells):
        lines.append(f"Published: {grid.source}.")
    return "\n".join(lines)


def _mean(name: str) -> Callable[[Sequence[Finished]], str]:
    return {**METRICS, **POOL_METRICS}[name].spread


def _before_after(name: str) -> Callable[[Sequence[Finished]], str]:
    def show(runs: Sequence[Finished]) -> str:
        before, after = _mean(f"{name}_before")(runs), _mean(name)(runs)
        return f"{before} → {after}" if before else after

    return show


def _interval(runs: Sequence[Finished]) -> str:
    """95% confidence interval of the mean accuracy over the seeds, by Student's t."""
    values = [100 * run["test"]["accuracy"] for run in runs]
    if len(values) < INTERVAL_SEEDS:
        return ""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean - half:.2f} to {mean + half:.2f}"


def _n_classes(runs: Sequence[Finished]) -> str:
    """Named and discovered classes, where their number was estimated."""
    return ", ".join(f"{n:g}" for n in POOL_METRICS["n_classes"].values(runs))


def _gave_up(runs: Sequence[Finished]) -> str:
    """In how many runs the annotator's own classifier took the place of what was learned."""
    n = sum(POOL_METRICS["gave_up"].values(runs))
    return f"{n:g} of {len(runs)}" if n else ""


def _replaced_found(runs: Sequence[Finished]) -> str:
    """How many of the made-up names were detected, and how many of the others."""
    found, others = (POOL_METRICS[name].values(runs) for name in ("made_up_found", "others_found"))
    if not found:
        return ""
    return f"{statistics.mean(found):.1f} of {len(runs[0]['made_up'])}, and {statistics.mean(others):.1f} others"


_COLUMNS: Mapping[str, Callable[[Sequence[Finished]], str]] = {
    "balanced acc.": _mean("balanced_accuracy"),
    "many": _mean("many"),
    "medium": _mean("medium"),
    "few": _mean("few"),
    "ECE": _mean("ece"),
    "ECE few": _mean("ece_few"),
}
_POOL_COLUMNS: Mapping[str, Callable[[Sequence[Finished]], str]] = {
    "accuracy": _mean("accuracy"),
    "95% interval": _interval,
    "balanced acc.": _mean("balanced_accuracy"),
    "seen": _mean("seen"),
    "novel": _mean("novel"),
    "pool: seen": _mean("pool_seen"),
    "pool: novel": _mean("pool_novel"),
    "pool: all": _mean("pool_all"),
    "classes": _n_classes,
    "unseen": _mean("unseen"),
    "harmonic": _mean("harmonic"),
    "zero-shot": _mean("zero_shot"),
    "pseudolabels right": _before_after("pseudolabels"),
    "Gini": _before_after("gini"),
    "truth inside": _mean("truth_inside"),
    "set size": _mean("set_size"),
    "guesses trusted": _mean("guesses_trusted"),
    "gave up for the annotator": _gave_up,
    "made-up names found": _replaced_found,
    "recall of the true names": _before_after("true_names"),
}


def _schedule(grid: BenchTable, *, full: bool) -> str:
    if grid.schedule:
        return grid.schedule
    if grid.is_pool:
        return (
            "the methods' own defaults, on stored features of the un-augmented image and of 2 weak and 2 strong views; "
            "pseudolabels and Gini are of the unlabelled images, by the class names alone → by the trained classifier"
        )
    if full:
        return "published, 200 epochs"
    cfg = resolve_config(method_named("ce"), {"epochs": grid.epochs, "batch_size": grid.batch_size})
    cut = []
    if grid.n_max is not None:
        cut.append(f"at most {grid.n_max:,} images per class")
    if grid.track_frac is not None:
        cut.append(f"{grid.track_frac:.0%} of the tracks")
    images = f", {', '.join(cut)}" if cut else ""
    return (
        f"REDUCED to {grid.epochs} epochs{images}; batch {cfg.batch_size}, lr {cfg.lr}, {cfg.schedule}, weight decay "
        f"{cfg.weight_decay}, ResNet-32"
    )
