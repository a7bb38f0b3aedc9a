"""How far trust is from the chance that a label is right, beside the softmax and other scores of one classifier.

    python benchmarks/trust.py NAME=TRAIN.npz,TEST.npz [MORE …] [--situations few-5 few-20 long all] [--csv FILE]

Files and situations are those of choices.py. Of each run the images of TEST are labelled with `labelwright label`.
Printed: accuracy, what the run expected of its predicted labels, the expected calibration error of trust and of the
softmax, how many labels have a trust of 0.95 or more and how many of these are right, and how well trust ranks right
above wrong (AUROC).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import labelwright as lw
from choices import arranged, read, results_of
from labelwright.benchmarking.results import add_rows
from labelwright.metrics.classification import calibration_error

COLUMNS = (
    *("pool", "situation", "seed", "source", "n_left_out", "accuracy", "ece_trust", "ece_softmax"),
    *("n_sure", "sure_right", "auroc"),
)


def row_of(pool: str, situation: str, seed: int, train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """One run, scored."""
    file, settings = arranged(train, situation, seed)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/train.npz", **file)
        np.savez(f"{folder}/test.npz", **{key: value for key, value in test.items() if key != "groups"})
        run = lw.fit(f"{folder}/train.npz", out=f"{folder}/run", seed=seed, test_frac=0, **settings)
        found = lw.label(run.path, f"{folder}/test.npz")
        summary, environment = run.summary, run.environment  # read while they are there
    basis = summary["trust"]
    trust, softmax = (torch.tensor(np.asarray(found[key])) for key in ("trust", "softmax"))
    right = torch.from_numpy(np.array(found["label"].to_pylist()) == test["labels"])
    sure = trust >= 0.95
    return {
        "pool": pool,
        "situation": situation,
        "seed": seed,
        "source": basis["source"],
        "n_left_out": basis["n"],
        "accuracy": round(100 * float(right.float().mean()), 2),
        "ece_trust": round(calibration_error(trust, right), 4),
        "ece_softmax": round(calibration_error(softmax, right), 4),
        "n_sure": int(sure.sum()),
        "sure_right": round(100 * float(right[sure].float().mean()), 2) if sure.any() else "",
        "auroc": round(float(roc_auc_score(right, trust)), 4),
        "seconds": round(sum(summary["seconds"].values()), 1),
        "environment": environment,
    }


def shown_of(row: dict[str, Any]) -> dict[str, tuple[str, str, float]]:
    """What docs/results keeps of a run: cell -> (title, metric, value in percent)."""
    shown = {
        "trust": ("calibration error of trust", "ece_trust", 100 * row["ece_trust"]),
        "softmax": ("calibration error of the softmax", "ece_softmax", 100 * row["ece_softmax"]),
        "accuracy": ("accuracy", "accuracy", row["accuracy"]),
        "auroc": ("right ranked above wrong", "auroc", 100 * row["auroc"]),
    }
    if row["n_sure"] >= 50:
        shown["sure"] = ("right of those with trust of 0.95 or more", "sure_right", row["sure_right"])
    return shown


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--situations", nargs="+", default=["few-5", "few-20", "long", "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for each in options.pools:
        pool, _, paths = each.partition("=")
        train, test = (read(Path(path)) for path in paths.split(","))
        for situation in options.situations:
            for seed in range(options.seeds):
                found = row_of(pool, situation, seed, train, test)
                print(f"| {' | '.join(str(found[column]) for column in COLUMNS)} |", flush=True)
                if options.csv:
                    add_rows(options.csv, results_of("trust.py", found, options.model, shown_of(found)))


if __name__ == "__main__":
    main()
