"""Run the cells of a table, each into its own run folder, and print what is there beside the published numbers."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evenkeel import api
from evenkeel.benchmarking.tables import FULL, TABLES, BenchTable
from evenkeel.data import splits
from evenkeel.data.cards import dataset_card
from evenkeel.data.registry import open_dataset
from evenkeel.data.table import LabelTable
from evenkeel.errors import ConfigError
from evenkeel.methods.registry import method_named, resolve_config
from evenkeel.train.processes import accelerator_for

SUBSET_SEED = 0  # the images of a table are the same for every cell and seed


def bench(
    table: str | None = None,
    *,
    cells: Sequence[str] = (),
    data: str | Path | None = None,
    out: str | Path = "bench",
    seeds: Sequence[int] = (),
    full: bool = False,
    jobs: int = 1,
    device: str = "auto",
) -> str:
    """Run the cells of a benchmark table that are not finished yet, and return the table as Markdown.

    Args:
      table: a name of benchmarking.tables.TABLES; None lists them.
      cells: which of its cells; all if empty.
      data: folder with the data set's Parquet files; None = the hub, by name.
      out: folder of the finished cells, one run folder each; finished ones are read, not run again.
      seeds: which seeds; the table's own if empty.
      full: the published schedule and all images instead of the reduced ones.
      jobs: cells run side by side, each in a process with its share of the cores.
      device: auto, cpu or cuda.

    Returns: Markdown: mean and standard deviation over the seeds, published numbers, seconds, hardware, commit.

    Raises: ConfigError for a table or cell that does not exist; OfflineError if the data cannot be reached.
    """
    if table is None:
        return "\n".join(f"{name:16} {t.title}; cells: {', '.join(t.cells)}" for name, t in TABLES.items())
    grid = _table_named(table)
    wanted = list(cells) or list(grid.cells)
    for name in wanted:
        if name not in grid.cells:
            raise ConfigError(f"table {table} has no cell {name!r}", fix=f"its cells: {', '.join(grid.cells)}")
    places = [(name, seed) for seed in (seeds or grid.seeds) for name in wanted]
    root = Path(out) / grid.place(full=full)
    missing = [(name, seed) for name, seed in places if not _summary(_folder(root, grid, name, seed))]
    if jobs > 1 and len(missing) > 1:
        _run_side_by_side(table, missing, data=data, out=out, full=full, jobs=jobs, device=device)
    elif missing:
        train, test = table_data(grid, data, full=full)
        for name, seed in missing:
            run_cell(grid, name, seed, train, test, folder=_folder(root, grid, name, seed), full=full, device=device)
    return format_table(table, root, wanted, list(seeds or grid.seeds), full=full)


def table_data(grid: BenchTable, data: str | Path | None, *, full: bool = False) -> tuple[LabelTable, LabelTable]:
    """Training and test images of a table, cut as it says."""
    train = open_dataset(grid.dataset, root=data, split="train")
    test = open_dataset(grid.dataset, root=data, split="test")
    n_classes = len(train.class_names)
    if grid.ratio is not None:
        n_max = None if full else grid.n_max
        rows = splits.long_tail(
            train.labels, n_classes=n_classes, ratio=grid.ratio, profile="exponential", seed=SUBSET_SEED, n_max=n_max
        )
        train = train.subset(rows)
    if grid.track_frac is not None and not full:
        _, rows = splits.holdout(train.labels, frac=grid.track_frac, seed=SUBSET_SEED, groups=train.groups)
        train = train.subset(rows)
    return train, test


def run_cell(
    grid: BenchTable,
    name: str,
    seed: int,
    train: LabelTable,
    test: LabelTable,
    *,
    folder: Path,
    full: bool,
    device: str,
) -> api.Run:
    """Train and score one cell with one seed; continues a run that was cut off."""
    cell = grid.cells[name]
    reduced = {"epochs": grid.epochs, "batch_size": grid.batch_size, **cell.reduced}
    schedule: dict[str, object] = dict(FULL) if full else reduced
    return api.fit(
        train,
        out=folder,
        test=test,
        method=cell.method,
        seed=seed,
        device=device,
        flip="on" if dataset_card(grid.dataset).flip else "off",
        evaluations=0,
        resume=folder.exists(),
        settings={**schedule, **cell.settings},
    )


def format_table(table: str, root: Path, cells: Sequence[str], seeds: Sequence[int], *, full: bool) -> str:
    """Markdown of the cells that are finished, scores in percent."""
    grid = TABLES[table]
    lines = [
        f"### {grid.title}",
        "",
        "| | balanced acc. | many | medium | few | ECE | ECE few | published | train s | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    machines = set()
    for name in cells:
        cell = grid.cells[name]
        folders = [folder for seed in seeds if _summary(folder := _folder(root, grid, name, seed))]
        found = [summary for folder in folders if (summary := _summary(folder))]
        if not found:
            continue
        scores = [summary["test"] for summary in found]
        columns = [
            _spread([s.get(key) for s in scores])
            for key in ("balanced_accuracy", "many", "medium", "few", "ece", "ece_few")
        ]
        published = "" if cell.published is None else f"{cell.published:.2f}"
        seconds = statistics.mean(s["seconds"]["train"] for s in found)
        lines.append(f"| {cell.title} | {' | '.join(columns)} | {published} | {seconds:.0f} | {len(found)} |")
        machines |= {_machine(folder) for folder in folders}
    lines += ["", f"Schedule: {_schedule(grid, full=full)}.", *(f"Ran on {m}." for m in sorted(machines))]
    if any(grid.cells[name].published for name in cells):
        lines.append(f"Published: {grid.source}.")
    return "\n".join(lines)


def _schedule(grid: BenchTable, *, full: bool) -> str:
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


def _spread(values: list[float | None]) -> str:
    there = [100 * value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return ""
    return f"{statistics.mean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def _machine(folder: Path) -> str:
    there = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    threads = f"{there['n_threads']} thread{'s' if there['n_threads'] > 1 else ''}"
    return f"{there['device']} ({there['processor']}, {threads}), {there['precision_used']}, commit {there['commit']}"


def _folder(root: Path, grid: BenchTable, name: str, seed: int) -> Path:
    return root / grid.cells[name].key / f"seed-{seed}"


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _table_named(name: str) -> BenchTable:
    if name not in TABLES:
        raise ConfigError(f"no table is called {name!r}", fix=f"the tables: {', '.join(TABLES)}")
    return TABLES[name]


def _run_side_by_side(
    table: str,
    places: Sequence[tuple[str, int]],
    *,
    data: str | Path | None,
    out: str | Path,
    full: bool,
    jobs: int,
    device: str,
) -> None:
    """Each missing cell in a process of its own; the first that fails stops the rest."""
    accelerator_for(device)  # a device that does not exist should be said once, not by every process
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def run(place: tuple[str, int]) -> None:
        name, seed = place
        words = [
            "bench",
            "--table",
            table,
            "--cells",
            name,
            "--seeds",
            str(seed),
            "--out",
            str(out),
            "--device",
            device,
        ]
        words += ["--data", str(data)] if data is not None else []
        words += ["--full"] if full else []
        subprocess.run(
            [sys.executable, "-m", "evenkeel.cli", *words],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(run, place) for place in places]:
            try:
                done.result()
            except subprocess.CalledProcessError as error:
                pool.shutdown(cancel_futures=True)
                raise ConfigError(f"a cell failed: {' '.join(error.cmd[2:])}", fix="run it alone to see why") from None
