"""Colours and edges (`--model descriptor`) against networks from random weights, where no pretrained one is at hand.

    python benchmarks/descriptor.py NAME=TRAIN.parquet,TEST.parquet [MORE …] [--images 500 2000] [--minutes 2]
                                    [--seen N] [--seeds 1] [--csv FILE]

Files hold the columns image and label. Of the images IMAGES are drawn, all with labels. `fit` with `--model descriptor`
and with the network that it takes by itself (random weights, MINUTES of training on this machine, or with `--seen` as
many epochs as show it N images, whatever else the machine does); printed are the balanced accuracy on the test images,
in percent, and the seconds that the run took.
"""

from __future__ import annotations

import argparse
import io
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import labelwright as lw
from labelwright.benchmarking.results import Row, add_rows
from labelwright.train.environment import source_commit

MODELS = {"descriptor": "descriptor", "network": "auto"}


def main() -> None:
    """Print a line per run, and add rows to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seen", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    for each in args.sets:
        name, paths = each.split("=")
        train, test = map(pq.read_table, paths.split(","))
        for n in args.images:
            for seed in range(args.seeds):
                some = train.take(np.random.default_rng(seed).permutation(len(train))[:n])
                for cell, model in MODELS.items():
                    budget = {"epochs": args.seen // n} if args.seen else {"minutes": args.minutes}
                    score, seconds = run(some, test, model, budget, seed)
                    print(name, len(some), cell, seed, f"{score:.1f}", f"{seconds:.0f} s", flush=True)
                    row: Row = {"table": f"descriptor.py {name}", "cell": f"{len(some)}-{cell}", "seed": str(seed)}
                    row |= {"title": f"{len(some):,} images: {cell}", "model": "", "commit": source_commit() or ""}
                    row |= {"hardware": f"cpu ({torch.get_num_threads()} thread(s)), other work on the machine"}
                    row |= {"seconds": f"{seconds:.0f}"}
                    if args.seen and cell == "network":
                        row |= {"note": f"{budget['epochs']} epochs"}
                    row |= {"metric": "balanced_accuracy", "value": f"{score:.1f}"}
                    if args.csv:
                        add_rows(args.csv, [row])


def run(train: object, test: object, model: str, budget: dict[str, Any], seed: int) -> tuple[float, float]:
    """Balanced accuracy in percent, and the seconds of a run."""
    began = time.monotonic()
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for part, rows in (("train", train), ("test", test)):
            pq.write_table(rows, f"{folder}/{part}.parquet")
        how = {} if model == "descriptor" else budget | {"answer": "trained"}
        files = {"data": f"{folder}/train.parquet", "test": f"{folder}/test.parquet", "out": f"{folder}/run"}
        done = lw.fit(**files, model=model, seed=seed, **how)
        return 100 * done.summary["test"]["balanced_accuracy"], time.monotonic() - began


if __name__ == "__main__":
    main()
