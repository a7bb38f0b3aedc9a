"""Finished cells of a benchmark table as Markdown: mean and deviation over the seeds, hardware, commit."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from labelwright.benchmarking.grid import BenchTable, Cell
from labelwright.data.cards import dataset_card
from labelwright.methods.registry import method_named, resolve_config

Run = Mapping[str, Any]
"""What is read of a finished cell: its summary, under "begin" what its method logged before the first epoch, and under
"logged" the last value of each key that it logged per epoch."""

INTERVAL_SEEDS = 5  # from which an interval of the mean is printed


def format_table(grid: BenchTable, root: Path, cells: Sequence[str], seeds: Sequence[int], *, full: bool) -> str:
    """Markdown of the cells that are finished, scores in percent.

    Args:
      grid: the table.
      root: folder of its cells.
      cells, seeds: which to print; those that are not finished are left out.
      full: whether they ran on the published schedule.
    """
    rows, machines = [], set()
    hides_labels = grid.is_pool or grid.network is not None
    columns = _POOL_COLUMNS if hides_labels else _COLUMNS
    for name in cells:
        cell = grid.cells[name]
        folders = [folder for seed in seeds if summary_of(folder := folder_of(root, grid, name, seed))]
        if not folders:
            continue
        runs = [_read(folder, grid, cell) for folder in folders]
        published = "" if cell.published is None else f"{cell.published:.2f}"
        shown = {title: make(runs) for title, make in columns.items()}
        rows.append({"": cell.title, **shown, "published": published} | _cost(runs))
        machines |= {_machine(folder) for folder in folders}
    kept = [*(["", *columns, "published", "train s", "seeds"])]
    if hides_labels:  # of the many things there can be, those that some cell has
        kept = [title for title in kept if title == "" or any(row[title] for row in rows)]
    lines = [f"### {grid.title}", "", f"| {' | '.join(kept)} |".replace("|  |", "| |", 1), "|" + "---|" * len(kept)]
    lines += [f"| {' | '.join(row[title] for title in kept)} |" for row in rows]
    lines += ["", f"Schedule: {_schedule(grid, full=full)}.", *(f"Ran on {m}." for m in sorted(machines))]
    if any(grid.cells[name].published for name in cells):
        lines.append(f"Published: {grid.source}.")
    return "\n".join(lines)


def folder_of(root: Path, grid: BenchTable, name: str, seed: int) -> Path:
    """Run folder of a cell with a seed."""
    return root / grid.cells[name].key / f"seed-{seed}"


def summary_of(folder: Path) -> dict[str, Any] | None:
    """summary.json of a finished cell, None before that."""
    path = folder / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _read(folder: Path, grid: BenchTable, cell: Cell) -> Run:
    found = summary_of(folder)
    assert found is not None
    if cell.given is None:
        return found
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    begun = [record for record in records if record.get("kind") == "begin"]
    logged = {key: value for record in records if record.get("kind") == "epoch" for key, value in record.items()}
    names = json.loads((folder / "data.json").read_text(encoding="utf-8"))["class_names"]
    made_up = set(names) - set(dataset_card(grid.dataset).class_names)
    is_made_up = [name in made_up for name in names]
    extra = {"begin": begun[0] if begun else {}, "logged": logged, "made_up": made_up, "is_made_up": is_made_up}
    return {**found, **extra} if cell.shows == "trained" else {**_annotator_alone(found), **extra, "logged": {}}


def _annotator_alone(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run as if nothing had been learned from the guesses."""
    before = summary["pseudolabels"]["zero_shot"]
    return {
        **summary,
        "test": summary["zero_shot"],
        "pseudolabels": {**before, "zero_shot": before},
        "seconds": {"train": summary["seconds"]["annotate"]},
    }


def _scores(key: str) -> Callable[[Sequence[Run]], str]:
    return lambda runs: _spread([run["test"].get(key) for run in runs])


def _zero_shot(runs: Sequence[Run]) -> str:
    return _spread([(run.get("zero_shot") or {}).get("accuracy") for run in runs])


def _before_after(key: str, *, scale: float = 100) -> Callable[[Sequence[Run]], str]:
    def show(runs: Sequence[Run]) -> str:
        there = [run["pseudolabels"] for run in runs if run.get("pseudolabels")]
        before = _spread([labels.get("zero_shot", {}).get(key) for labels in there], scale=scale)
        after = _spread([labels.get(key) for labels in there], scale=scale)
        return f"{before} → {after}" if before else after

    return show


def _interval(runs: Sequence[Run]) -> str:
    """95% confidence interval of the mean accuracy over the seeds, by Student's t."""
    values = [100 * run["test"]["accuracy"] for run in runs]
    if len(values) < INTERVAL_SEEDS:
        return ""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean - half:.2f} to {mean + half:.2f}"


def _of_pool(key: str) -> Callable[[Sequence[Run]], str]:
    """A score of the unlabelled images of an open world."""
    return lambda runs: _spread([(run.get("pseudolabels") or {}).get(key) for run in runs if "n_novel" in run])


def _n_classes(runs: Sequence[Run]) -> str:
    """Named and discovered classes, where their number was estimated."""
    found = [run["n_seen"] + run["n_novel"] for run in runs if (run.get("novel") or {}).get("evidence")]
    return ", ".join(str(n) for n in found)


def _of_candidates(key: str, *, scale: float) -> Callable[[Sequence[Run]], str]:
    return lambda runs: _spread([(run.get("candidates") or {}).get(key) for run in runs], scale=scale)


def _trusted(runs: Sequence[Run]) -> str:
    return _spread([run["logged"].get("reliable_frac") for run in runs])


def _gave_up(runs: Sequence[Run]) -> str:
    """In how many runs the annotator's own classifier took the place of what was learned."""
    n = sum(run["logged"].get("deployed") == "annotator" for run in runs)
    return f"{n} of {len(runs)}" if n else ""


def _replaced_found(runs: Sequence[Run]) -> str:
    """How many of the made-up names were detected, and how many of the others."""
    there = [(set(run["begin"]["mismatched"]), run["made_up"]) for run in runs if "mismatched" in run["begin"]]
    if not any(made_up for _, made_up in there):
        return ""
    found = statistics.mean(len(detected & made_up) for detected, made_up in there)
    others = statistics.mean(len(detected - made_up) for detected, made_up in there)
    return f"{found:.1f} of {len(there[0][1])}, and {others:.1f} others"


def _own_names(runs: Sequence[Run]) -> str:
    """Mean recall of the classes that kept their names where others did not, before and after."""
    there = [run for run in runs if any(run["is_made_up"]) and run.get("zero_shot")]
    before, after = (
        _spread(
            [
                statistics.mean(
                    recall
                    for recall, is_made_up in zip(run[key]["per_class"], run["is_made_up"], strict=True)
                    if recall is not None and not is_made_up
                )
                for run in there
            ]
        )
        for key in ("zero_shot", "test")
    )
    return f"{before} → {after}" if there else ""


_COLUMNS: Mapping[str, Callable[[Sequence[Run]], str]] = {
    "balanced acc.": _scores("balanced_accuracy"),
    "many": _scores("many"),
    "medium": _scores("medium"),
    "few": _scores("few"),
    "ECE": _scores("ece"),
    "ECE few": _scores("ece_few"),
}
_POOL_COLUMNS: Mapping[str, Callable[[Sequence[Run]], str]] = {
    "accuracy": _scores("accuracy"),
    "95% interval": _interval,
    "balanced acc.": _scores("balanced_accuracy"),
    "seen": _scores("seen"),
    "novel": _scores("novel"),
    "pool: seen": _of_pool("seen"),
    "pool: novel": _of_pool("novel"),
    "pool: all": _of_pool("all"),
    "classes": _n_classes,
    "unseen": _scores("unseen"),
    "harmonic": _scores("harmonic"),
    "zero-shot": _zero_shot,
    "pseudolabels right": _before_after("accuracy"),
    "Gini": _before_after("gini", scale=1),
    "truth inside": _of_candidates("truth_inside", scale=100),
    "set size": _of_candidates("mean_set_size", scale=1),
    "guesses trusted": _trusted,
    "gave up for the annotator": _gave_up,
    "made-up names found": _replaced_found,
    "recall of the true names": _own_names,
}


def _cost(runs: Sequence[Run]) -> dict[str, str]:
    return {"train s": f"{statistics.mean(run['seconds']['train'] for run in runs):.0f}", "seeds": str(len(runs))}


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


def _spread(values: Sequence[float | None], *, scale: float = 100) -> str:
    there = [scale * value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return ""
    digits = 1 if scale == 100 else 3
    deviation = f" ± {statistics.stdev(there):.{digits}f}" if len(there) > 1 else ""
    return f"{statistics.mean(there):.{digits}f}{deviation}"


def _machine(folder: Path) -> str:
    there = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    threads = f"{there['n_threads']} thread{'s' if there['n_threads'] > 1 else ''}"
    return f"{there['device']} ({there['processor']}, {threads}), {there['precision_used']}, commit {there['commit']}"
