"""CAP from stored features against the same recipe with the frozen encoder in the loop: seconds per step, accuracy.

    python benchmarks/stored_against_loop.py MODEL DATA [--dataset cifar10] [--images 2000] [--epochs 2]
        [--label-view clean] [--seed 0]

MODEL is a vision-language model by folder or id, DATA the folder of `labelwright bench`. Both train the same adapters
(tune=adapters) on the same images of the target pool, names only, for the same number of steps, one after the other in
this process. Seconds per step count reading (and, in the loop, augmenting and encoding) a batch and the step itself;
`train s` adds alignment and the passes over all images between epochs; `embed s` is what storing the features costs,
once, and close to nothing if they are in the cache already. The accuracy is that of the last step, not of the state
that CAP would keep; it should hardly differ with --label-view clean, the default, where both train what predicts on the
same un-augmented views. With weak the loop draws every view anew, and the store has two of every image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from labelwright import api
from labelwright.benchmarking.grid import Given
from labelwright.benchmarking.pools import as_given
from labelwright.benchmarking.runner import table_data
from labelwright.benchmarking.tables import TABLES
from labelwright.data.cards import dataset_card
from labelwright.data.table import LabelTable
from labelwright.methods.cap import Config


def measure(
    pool: LabelTable, test: LabelTable, options: argparse.Namespace, views: Literal["embeddings", "pixels"]
) -> dict[str, Any]:
    """summary.json of a run, with the seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        run = api.fit(
            pool,
            out=Path(folder, "run"),
            test=test,
            method="cap",
            model=options.model,
            views=views,
            templates="{}",
            flip="on" if dataset_card(options.dataset).flip else "off",
            epochs=options.epochs,
            seed=options.seed,
            device=options.device,
            evaluations=0,
            set={"tune": "adapters", "patience_epochs": 0, "label_view": options.label_view},
        )
        summary = dict(run.summary)
    images_per_step = 2 * Config().batch_size  # of the main set, and unlabelled ones
    return {**summary, "step_s": images_per_step / summary["images_per_second"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a vision-language model")
    parser.add_argument("data", help="folder with the data sets' Parquet files")
    parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "gtsrb"])
    parser.add_argument("--images", type=int, default=2000, help="of the pool, evenly spread; 0 = all")
    parser.add_argument("--epochs", type=int, default=2, help="of 50 steps")
    parser.add_argument("--label-view", default="clean", choices=["clean", "weak"], help="of labelled images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pool, test = table_data(TABLES[f"cap-{options.dataset}"], options.data)
    if options.images:
        pool = pool.subset(np.linspace(0, len(pool) - 1, min(options.images, len(pool)), dtype=np.int64))
    pool = as_given(pool, Given(), seed=options.seed)
    found = {
        name: measure(pool, test, options, views)  # type: ignore[arg-type]
        for name, views in (("stored features", "embeddings"), ("encoder in the loop", "pixels"))
    }
    steps = options.epochs * Config().steps_per_epoch
    print(
        f"{options.model}, {len(pool):,} images of {options.dataset}, {steps} steps of CAP, seed {options.seed}, ",
        end="",
    )
    print(f"{options.device}, {torch.get_num_threads()} threads")
    print("| | ms per step | train s | embed s | test accuracy | zero-shot |")
    print("|---|---|---|---|---|---|")
    for name, summary in found.items():
        seconds = summary["seconds"]
        print(
            f"| {name} | {1e3 * summary['step_s']:.2f} | {seconds['train']:.1f} | {seconds.get('embed', 0):.1f} "
            f"| {summary['test']['accuracy']:.4f} | {summary['zero_shot']['accuracy']:.4f} |"
        )
    stored, loop = found.values()
    print(f"\na step of the loop takes {loop['step_s'] / stored['step_s']:.1f} times as long")


if __name__ == "__main__":
    main()
