"""Few labels and many unlabelled images: the method `beliefs` against logistic regression on the labels alone.

    python benchmarks/beliefs.py NAME=TRAIN.npz,TEST.npz [MORE …] [--per-class 5] [--seeds 3] [--model M] [--csv F]

Files hold `embeddings` [N, D] and `labels` [N] (names or class indices), as labelwright reads them. The seed draws
which images of TRAIN keep their label; the others are unlabelled. Printed is the balanced accuracy on TEST in percent,
and the seconds of one fit: for `beliefs` those of the whole run, references and labels included.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import labelwright as lw
from labelwright.benchmarking.results import add_rows

PLAIN = {
    "regression_standardised": (
        "Logistic regression, standardised features",
        lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    ),
    "regression": (
        "Logistic regression, unit norm, C = 10",
        lambda: make_pipeline(Normalizer(), LogisticRegression(C=10.0, max_iter=2000)),
    ),
}
BELIEFS: dict[str, tuple[str, dict[str, object]]] = {
    "beliefs-strength-0": ("Beliefs, strength=0 (its regression alone)", {"strength": 0.0}),
    "beliefs-128": ("Beliefs, n_dims=128", {"n_dims": 128}),
    "beliefs-128-half": ("Beliefs, n_dims=128, shrinkage=0.5", {"n_dims": 128, "shrinkage": 0.5}),
    "beliefs": ("Beliefs", {}),
    "beliefs-even": ("Beliefs, prior=even", {"prior": "even"}),
}


def with_few(labels: np.ndarray[Any, Any], per_class: int, seed: int) -> np.ndarray[Any, Any]:
    """[N] bool: the images that keep their label."""
    draw, kept = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for value in np.unique(labels):
        kept[draw.permutation(np.flatnonzero(labels == value))[:per_class]] = True
    return kept


def of_seed(
    train: dict[str, Any], test: dict[str, Any], per_class: int, seed: int
) -> dict[str, tuple[str, float, float, str]]:
    """Cell -> title, balanced accuracy in percent, seconds and precision."""
    feats, labels, found = train["embeddings"].astype(np.float32), train["labels"], {}
    kept = with_few(labels, per_class, seed)
    for cell, (title, make) in PLAIN.items():
        began = time.perf_counter()
        predicted = make().fit(feats[kept], labels[kept]).predict(test["embeddings"].astype(np.float32))
        score = 100 * float(balanced_accuracy_score(test["labels"], predicted))
        found[cell] = (title, score, time.perf_counter() - began, "fp32")
    few = {**train, "labels": np.where(kept, labels, -1 if labels.dtype.kind in "iu" else "")}
    for cell, (title, settings) in BELIEFS.items():
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            run = lw.fit(few, out=out, test=test, method="beliefs", seed=seed, set=settings, evaluations=0)
            of_it, there = run.summary["reference"]["beliefs"]["test"], run.environment
        score, used = 100 * of_it["balanced_accuracy"], there["precision_used"]
        found[cell] = (title, score, time.perf_counter() - began, used)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", help="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--per-class", type=int, nargs="+", default=[5], help="labels kept of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="", help="what the features are of, for the file of results")
    parser.add_argument("--csv", type=Path, help="file of results to add rows to")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for each in options.pools:
        name, _, paths = each.partition("=")
        train, test = ({**np.load(path)} for path in paths.split(","))
        for per_class in options.per_class:
            by_seed = [of_seed(train, test, per_class, seed) for seed in range(options.seeds)]
            print(f"\n{name}, {per_class} labels a class\n\n| | balanced accuracy | by seed | s |\n|---|---|---|---|")
            for cell, (title, *_) in by_seed[0].items():
                scores = [found[cell][1] for found in by_seed]
                spread = f"{np.mean(scores):.1f}" + (f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else "")
                seconds = np.mean([found[cell][2] for found in by_seed])
                print(f"| {title} | {spread} | {' '.join(f'{s:.2f}' for s in scores)} | {seconds:.1f} |", flush=True)
            if options.csv is not None:
                rows = [
                    {
                        "table": f"beliefs.py {name}-{per_class}",
                        "model": options.model,
                        "cell": cell,
                        "title": title,
                        "metric": "balanced_accuracy",
                        "value": f"{score:.2f}",
                        "seed": str(seed),
                        "seconds": f"{seconds:.2f}",
                        "commit": commit,
                        "hardware": f"cpu (AMD EPYC, 1 thread), {precision}",
                    }
                    for seed, found in enumerate(by_seed)
                    for cell, (title, score, seconds, precision) in found.items()
                ]
                add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
