"""One guess an image, by a person who slips or by a model that repeats its mistakes: what labels and trust are worth.

    python benchmarks/guesses.py NAME=TRAIN.npz,TEST.npz [MORE …] [--images 1500] [--seeds 3] [--csv FILE]

The files are those of choices.py. Every image of TRAIN, at most --images, has one candidate and no label:

    slips-0.7  right with this probability, else any other class
    pairs      of half of the classes every other image is taken for the next class, and 3% are any class
    model-5    logistic regression on the features, from five images a class of TEST
    model-all  the same from all of TEST
    weak       the same on six random projections of the features: a model that sees little

In percent: how often guesses are right; labels of the run; those of cross-validated logistic regression on the guesses,
classes weighted evenly; the share that is right by the run's own estimate (`estimated`), whether its interval holds it,
and the calibration error of trust.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression

import labelwright as lw
from choices import read, results_of
from crowds import Numbers, regression
from labelwright.benchmarking.results import add_rows
from labelwright.metrics.classification import calibration_error

KINDS = ("slips-0.7", "pairs", "model-5", "model-all", "weak")
SLIP, N_SEEN = 0.03, 6


def guesses_of(kind: str, x: Numbers, truth: Numbers, other: dict[str, Any], names: Numbers, seed: int) -> Numbers:
    """[N] classes that are guessed for features x [N, D]."""
    draw, n = np.random.default_rng(seed + 100), len(names)
    kind, _, amount = kind.partition("-")
    if kind == "slips":
        return np.where(draw.random(len(x)) < float(amount), truth, (truth + draw.integers(1, n, len(x))) % n)
    if kind == "pairs":
        confused = np.isin(truth, draw.permutation(n)[: n // 2]) & (draw.random(len(x)) < 0.5)
        said = np.where(confused, (truth + 1) % n, truth)
        return np.where(draw.random(len(x)) < SLIP, draw.integers(0, n, len(x)), said)
    seen = other["embeddings"].astype(np.float32)
    if kind == "weak":
        looks = draw.standard_normal((x.shape[1], N_SEEN))
        x, seen = x @ looks, seen @ looks
    rows, labels = draw.permutation(len(seen)), other["labels"]
    if amount == "5":
        rows = np.concatenate([rows[labels[rows] == name][:5] for name in names])
    scale = np.linalg.norm(seen, axis=1).mean() / 5
    model = LogisticRegression(max_iter=500).fit(seen[rows] / scale, labels[rows])
    return np.searchsorted(names, model.predict(x / scale))


def measured(
    x: Numbers, truth: Numbers, guessed: Numbers, names: Numbers, seed: int
) -> tuple[lw.Run, dict[str, tuple[str, str, float]]]:
    """The run, and cell -> (title, metric, value in percent)."""
    with tempfile.TemporaryDirectory() as folder:
        named = [[names[c]] for c in guessed]
        columns = {"id": [str(i) for i in range(len(x))], "embedding": list(x), "candidates": named}
        pq.write_table(pa.table(columns), f"{folder}/t.parquet")
        settings: dict[str, Any] = {"test_frac": 0, "evaluations": 0, "device": "cpu", "seed": seed}
        run = lw.fit(f"{folder}/t.parquet", classes=[str(name) for name in names], out=f"{folder}/run", **settings)
        trust, labels, _ = run.summary["trust"], run.labels, run.environment  # read while they are there
    assert labels is not None
    right = torch.from_numpy(np.array(labels["label"].to_pylist()) == names[truth])
    share, (low, high) = 100 * float(right.double().mean()), trust["interval"]
    obvious = regression(x, guessed).predict(x)
    return run, {
        "guesses": ("the guesses", "accuracy", 100 * float((guessed == truth).mean())),
        "regression": ("regression on the guesses", "accuracy", 100 * float((obvious == truth).mean())),
        "labels": ("labels of fit", "accuracy", share),
        "estimated": ("estimated", "accuracy", 100 * trust["estimated"]),
        "interval": ("interval", "interval_holds", 100.0 * (100 * low <= share <= 100 * high)),
        "trust": ("trust", "ece", 100 * calibration_error(torch.tensor(labels["trust"].to_pylist()), right)),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--images", type=int, default=1500, help="of TRAIN, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    for pool, _, paths in (each.partition("=") for each in options.pools):
        train, test = (read(Path(path)) for path in paths.split(","))
        names = np.unique(train["labels"])
        for kind in options.kinds:
            for seed in range(options.seeds):
                rows = np.random.default_rng(seed).permutation(len(train["labels"]))[: options.images]
                x, truth = train["embeddings"][rows].astype(np.float32), np.searchsorted(names, train["labels"][rows])
                run, found = measured(x, truth, guesses_of(kind, x, truth, test, names, seed), names, seed)
                shown = " | ".join(f"{title} {value:.1f}" for title, _, value in found.values())
                print(pool, kind, seed, shown, sep=" | ", flush=True)
                if options.csv:
                    row = {"pool": pool, "situation": kind, "seed": seed, "environment": run.environment}
                    row["seconds"] = sum(run.summary["seconds"].values())
                    add_rows(options.csv, results_of("guesses.py", row, options.model, found))


if __name__ == "__main__":
    main()
