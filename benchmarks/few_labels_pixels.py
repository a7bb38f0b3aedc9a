"""A few labels a class and no pretrained model: FixMatch and SoftMatch against training on the labels alone.

    python benchmarks/few_labels_pixels.py NAME=TRAIN,TEST [--images 10000] [--test 2000] [--per-class 40] [--epochs 8]
        [--methods descriptor ce fixmatch softmatch] [--seeds 1] [--csv docs/results/few_labels_pixels.csv]

TRAIN and TEST are tables or folders of images with labels. The seed draws the images and those of them that keep their
label. Cross-entropy on the labelled images gets as many images through the network, forward and back, as the others in
their --epochs: more epochs of fewer images. The others get their own defaults. Network: ResNet-32 from random weights.
Printed is the accuracy of the networks on the test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import labelwright as lw
from labelwright.benchmarking.results import add_rows
from labelwright.data import splits
from labelwright.data.table import LabelTable
from labelwright.methods.baselines import fixmatch
from labelwright.methods.method import Budget
from labelwright.methods.semi_supervised import passes_per_epoch

TITLES = {
    "descriptor": "No network: colours and edges, as `fit --model descriptor`",
    "ce": "Cross-entropy on the labelled images",
    "fixmatch": "FixMatch",
    "softmatch": "SoftMatch",
}


def with_few(table: LabelTable, n_pool: int, per_class: int, seed: int) -> LabelTable:
    """Some images of the table, few of them with their label; the truth of the others is kept for scores alone."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(table))[:n_pool])
    pool = table.subset(rows)
    kept, _ = splits.few_shot(pool.labels, per_class=per_class, n_classes=len(pool.class_names), seed=seed)
    labels = np.where(np.isin(np.arange(len(pool)), kept), pool.labels, -1).astype(np.int32)
    return dataclasses.replace(pool, labels=labels, truth=pool.labels.copy(), truth_names=pool.class_names)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", help="NAME=TRAIN,TEST")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=2_000, dest="n_test", help="test images")
    parser.add_argument("--per-class", type=int, default=40, help="labels a class")
    parser.add_argument("--epochs", type=int, default=8, help="passes over all images")
    parser.add_argument("--methods", nargs="+", default=list(TITLES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    options = parser.parse_args()
    name_of_pool, _, paths = options.pool.partition("=")
    train, test = map(lw.load, paths.split(","))
    test = test.subset(np.sort(np.random.default_rng(0).permutation(len(test))[: options.n_test]))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for seed in range(options.seeds):
        pool = with_few(train, options.images, options.per_class, seed)
        n_labelled = int((pool.labels >= 0).sum())
        budget = Budget(n_images=len(pool), n_labelled=n_labelled, is_stored=False, is_cpu=True)
        n_passes = options.epochs * passes_per_epoch(fixmatch.Config(), budget)
        for name in options.methods:
            epochs = options.epochs if name != "ce" else round(n_passes / n_labelled)
            network = {"method": name, "model": "resnet32", "epochs": epochs, "answer": "trained", "evaluations": 0}
            settings = network if name != "descriptor" else {"model": "descriptor"}
            with tempfile.TemporaryDirectory() as out:
                run = lw.fit(pool, out=out, test=test, seed=seed, **settings)
                accuracy, seconds = run.summary["test"]["accuracy"], run.summary["seconds"]["train"]
            print(f"seed {seed}  {TITLES[name]:40} {100 * accuracy:.2f}  {seconds:.0f} s", flush=True)
            if options.csv is not None:
                is_trained = name != "descriptor"
                row = {
                    "table": f"few_labels_pixels.py {name_of_pool}-{options.per_class}",
                    "model": "",
                    "cell": f"{name}-{options.epochs}" if is_trained else name,
                    "title": f"{TITLES[name]}, {options.epochs} epochs" if is_trained else TITLES[name],
                    "metric": "accuracy",
                    "value": f"{100 * accuracy:.2f}",
                    "sd": "",
                    "n_seeds": "",
                    "seed": str(seed),
                    "seconds": f"{seconds:.0f}",
                    "commit": commit,
                    "hardware": "cpu (AMD EPYC, 1 thread), bfloat16",
                    "note": "",
                }
                add_rows(options.csv, [row])


if __name__ == "__main__":
    main()
