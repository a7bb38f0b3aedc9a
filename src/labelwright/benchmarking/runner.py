"""Run the cells of a table, each into its own run folder, and print what is there beside the published numbers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelwright import api
from labelwright.arguments import check_arguments
from labelwright.benchmarking.finished import folder_of, is_finished
from labelwright.benchmarking.grid import FULL, BenchTable, Given, Guessing
from labelwright.benchmarking.pools import as_given, converted, descriptions_of, probs_of, target_pool
from labelwright.benchmarking.printing import format_table
from labelwright.benchmarking.results import add_rows, read_rows, result_rows
from labelwright.benchmarking.tables import GROUPS, TABLES
from labelwright.data import splits
from labelwright.data.cards import dataset_card
from labelwright.data.prepare import native_size
from labelwright.data.registry import open_dataset
from labelwright.data.table import LabelTable
from labelwright.encoders.resnets import own_network
from labelwright.encoders.saved import network_of
from labelwright.errors import ConfigError, LabelwrightError
from labelwright.train.processes import accelerator_for

SUBSET_SEED = 0  # the images of a table are the same for every cell and seed

Place = tuple[str, int]  # a cell and a seed


class CellError(LabelwrightError):
    """Cells that ran in processes of their own failed; the exit code is that of the first."""

    def __init__(self, failed: Sequence[tuple[Place, subprocess.CalledProcessError]]) -> None:
        words = [f"{name}, seed {seed} (exit code {error.returncode})" for (name, seed), error in failed]
        first = failed[0][1]
        super().__init__(
            f"a cell failed: {'; '.join(words)}",
            fix=f"run it alone to see why: labelwright {shlex.join(first.cmd[3:])}",
        )
        self.exit_code = first.returncode if first.returncode > 0 else 128 - first.returncode  # of a signal, as a shell


def listing() -> str:
    """The tables by what they are about.

    Example:
      >>> print(listing().splitlines()[0])
      Long-tailed labels: cvs
    """
    lines = list[str]()
    for title, tables in GROUPS.items():
        lines += [title, *(f"  {name:<27} {table.title}" for name, table in tables.items()), ""]
    return "\n".join([*lines, "labelwright bench --table NAME runs one; with --cells ? it names the cells and ends"])


@check_arguments
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
    model: str | None = None,
    descriptions: str | Path | None = None,
    csv: str | Path | None = None,
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
      model: of tables on a target pool the model, by id or path: vision-language, or any vision model for LPS; of
        `coreg-pixels` a run of `pretrain` that the network starts from, or None: from random weights.
      descriptions: JSON, {dataset: {class: texts}}, for cells with descriptions; None = descriptions.json beside the
        model's folder. Cells finished with other ones are not run again: give another ``out``.
      csv: file of results (see benchmarking.results) that each cell is added to when it has finished, a row for each
        seed and metric; None = none.

    Returns: Markdown: mean and standard deviation over the seeds, published numbers, seconds, hardware, commit.

    Raises: ConfigError for a table or cell that does not exist, or a model where none belongs or none is named;
      DataError for a ``csv`` that is not a file of results; OfflineError if the data cannot be reached; CellError
      naming the cells that failed side by side.
    """
    if table is None:
        return listing()
    grid = _table_named(table)
    if full and grid.at_full is not None:
        grid = grid.at_full
    _check_fits(table, grid, model=model, full=full)
    if csv is not None and Path(csv).exists():
        read_rows(Path(csv))  # a file that cannot be added to is found before the cells run
    wanted = list(cells) or list(grid.cells)
    for name in wanted:
        if name not in grid.cells:
            raise ConfigError(f"table {table} has no cell {name!r}", fix=f"its cells: {', '.join(grid.cells)}")
    places = [(name, seed) for seed in (seeds or grid.seeds) for name in wanted]
    root = Path(out) / grid.place(full=full, model=model)
    runs = {folder_of(root, grid, name, seed): (name, seed) for name, seed in places}  # cells may show the same run
    missing = [place for folder, place in runs.items() if not is_finished(folder)]
    every = list(seeds or grid.seeds)

    def keep(cells: Sequence[str], seeds: Sequence[int]) -> None:
        if csv is not None:
            add_rows(Path(csv), list(result_rows(table, grid, root, cells, seeds, full=full, model=model)))

    if jobs > 1 and len(missing) > 1:
        words = {"--data": data, "--out": out, "--device": device, "--model": model, "--descriptions": descriptions}
        finished = _run_side_by_side(table, missing, options=words, full=full, jobs=jobs, device=device)
    else:
        finished = _run_cells(
            grid, missing, root=root, data=data, full=full, device=device, model=model, descriptions=descriptions
        )
    for name, seed in finished:  # what has finished is kept whatever becomes of the rest
        keep([cell for cell in wanted if grid.cells[cell].key == grid.cells[name].key], [seed])
    keep(wanted, every)
    return format_table(grid, root, wanted, every, full=full)


def table_data(grid: BenchTable, data: str | Path | None, *, full: bool = False) -> tuple[LabelTable, LabelTable]:
    """Training and test images of a table, cut as it says."""
    train = open_dataset(grid.dataset, root=data, split="train")
    test = open_dataset(grid.dataset, root=data, split="test")
    if grid.is_pool:
        return target_pool(train, grid.dataset), test
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
    device: str,
    full: bool = False,
    model: str | None = None,
    descriptions: str | Path | None = None,
    probs: NDArray[np.float32] | None = None,
) -> api.Run:
    """Train and score one cell with one seed; continues a run that was cut off.

    Args:
      train, test: images as the cell is to see them, with all labels and the official class names.
      device, full, model, descriptions: see `bench`.
      probs: [N, C], what the model thinks of the training images, for candidates by its doubt.
    """
    cell = grid.cells[name]
    given = cell.given or Given(labels="all")
    seen = as_given(train, given, seed=seed, probs=probs)
    how: dict[str, Any]
    if grid.is_pool:
        assert model is not None, "tables of a pool need a model"
        guessing = given.guessing or Guessing()
        is_open = given.labels == "open_world"
        n_others = len(train.class_names) - given.n_seen
        texts = None
        if given.use_descriptions:
            texts = descriptions_of(descriptions, model, grid.dataset, train.class_names, seen.class_names)
        how = {
            "novel": None if not is_open else n_others if given.novel == "known" else given.novel,
            "test": as_given(test, Given(labels="all", n_nonsense=given.n_nonsense), seed=seed),
            "model": model,
            "views": given.views,
            "templates": given.templates,
            "descriptions": texts,
            "rule": guessing.rule,
            "top_k": guessing.top_k,
            "evaluations": 10 if is_open else 0,  # curves of the pace
            "set": cell.settings,
        }
    else:
        reduced = {"epochs": grid.epochs, "batch_size": grid.batch_size, **cell.reduced}
        schedule = {} if grid.network is not None else FULL if full else reduced
        how = {
            "test": test,
            "model": model or grid.network or own_network(grid.size_px or native_size(train)),
            "size": grid.size_px,
            "evaluations": 0 if grid.network is None else 8,  # curves of networks that learn from pixels
            "set": {**schedule, **cell.settings},
        }
    flip = "on" if dataset_card(grid.dataset).flip else "off"
    how |= {"method": cell.method, "answer": "trained"}  # a table compares methods, not choices among them
    return api.fit(seen, out=folder, seed=seed, device=device, flip=flip, resume=folder.exists(), **how)


def _run_cells(
    grid: BenchTable,
    missing: Sequence[Place],
    *,
    root: Path,
    data: str | Path | None,
    full: bool,
    device: str,
    model: str | None,
    descriptions: str | Path | None,
) -> Iterator[Place]:
    """Cells one after another; images are transformed, and a model is asked about them, once for all of them."""
    if not missing:
        return
    plain = table_data(grid, data, full=full)
    doubt: dict[tuple[str, str], NDArray[np.float32]] = {}
    seen: dict[str, tuple[LabelTable, LabelTable]] = {}
    for name, seed in missing:
        given = grid.cells[name].given or Given(labels="all")
        if given.images not in seen:
            seen[given.images] = (converted(plain[0], given.images), converted(plain[1], given.images))
        asked = (given.images, given.templates)
        if given.guessing is not None and given.guessing.by == "doubt" and asked not in doubt:
            assert model is not None, "tables of a pool need a model"
            doubt[asked] = probs_of(seen[given.images][0], model, templates=given.templates, device=device)
        run_cell(
            grid,
            name,
            seed,
            *seen[given.images],
            folder=folder_of(root, grid, name, seed),
            device=device,
            full=full,
            model=model,
            descriptions=descriptions,
            probs=doubt.get(asked),
        )
        yield name, seed


def _table_named(name: str) -> BenchTable:
    if not isinstance(name, str) or name not in TABLES:
        raise ConfigError(f"no table is called {name!r}", fix=f"the tables: {', '.join(TABLES)}")
    return TABLES[name]


def _check_fits(table: str, grid: BenchTable, *, model: str | None, full: bool) -> None:
    if grid.is_pool and model is None:
        raise ConfigError(
            f"table {table} adapts a vision-language model, and none is named",
            fix="name one with --model, by id or path",
        )
    if grid.is_pool and full:
        raise ConfigError(f"table {table} has one schedule", fix="leave --full out")
    if not grid.is_pool and grid.network is None and model is not None:
        raise ConfigError(f"table {table} trains its own network", fix="leave --model out")
    if grid.network is not None and model is not None and (found := network_of(model)) != grid.network:
        raise ConfigError(
            f"table {table} trains a {grid.network}, and {model} is a {found}",
            fix=f"name a run of `labelwright pretrain DATA --model {grid.network}`, or leave --model out",
        )


def _run_side_by_side(
    table: str,
    places: Sequence[Place],
    *,
    options: Mapping[str, object],
    full: bool,
    jobs: int,
    device: str,
) -> Iterator[Place]:
    """Each missing cell in a process of its own, given as soon as it has finished; after a failure none is begun."""
    accelerator_for(device)  # a device that does not exist should be reported once, not by every process
    threads = max(1, (os.cpu_count() or 1) // jobs)
    same = [word for flag, value in options.items() if value is not None for word in (flag, str(value))]
    same += ["--full"] if full else []

    is_over = threading.Event()
    begun: list[subprocess.Popen[bytes]] = []

    def run(place: Place) -> None:
        name, seed = place
        words = ["bench", "--table", table, "--cells", name, "--seeds", str(seed), *same]
        process = subprocess.Popen(
            [sys.executable, "-m", "labelwright.cli", *words],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
        )
        begun.append(process)
        if is_over.is_set():  # meanwhile
            process.terminate()
        if code := process.wait():
            raise subprocess.CalledProcessError(code, process.args)

    failed: list[tuple[Place, subprocess.CalledProcessError]] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            running = {pool.submit(run, place): place for place in places}
            for done in as_completed(running):
                if done.cancelled():
                    continue
                try:
                    done.result()
                except subprocess.CalledProcessError as error:
                    failed.append((running[done], error))
                    for other in running:
                        other.cancel()
                else:
                    yield running[done]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            is_over.set()
            for process in begun:  # those that are left when this one is interrupted
                process.terminate()
    if failed:
        raise CellError(failed)
