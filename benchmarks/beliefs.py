"""Few labels and many unlabelled images: the method `beliefs` against logistic regression on the labels alone.

    python benchmarks/beliefs.py TRAIN.npz TEST.npz [--per-class 5] [--seeds 3]

Both files hold `embeddings` [N, D] and `labels` [N] (names or class indices), as labelwright reads them. The seed draws
which images of TRAIN keep their label; the others are unlabelled. Printed is the balanced accuracy on TEST in percent,
and the seconds of one fit: for `beliefs` those of the whole run, from the file to the report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import labelwright as lw

PLAIN = {
    "logistic regression, standardised features": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=2000)
    ),
    "logistic regression, unit norm, C = 10": lambda: make_pipeline(
        Normalizer(), LogisticRegression(C=10.0, max_iter=2000)
    ),
}
BELIEFS: dict[str, dict[str, object]] = {
    "beliefs, strength=0 (its regression alone)": {"strength": 0.0},
    "beliefs": {},
    "beliefs, prior=even": {"prior": "even"},
}


def with_few(labels: np.ndarray[Any, Any], per_class: int, seed: int) -> np.ndarray[Any, Any]:
    """[N] bool: the images that keep their label."""
    draw, kept = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for value in np.unique(labels):
        kept[draw.permutation(np.flatnonzero(labels == value))[:per_class]] = True
    return kept


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("test", type=Path, help="the same, to score on")
    parser.add_argument("--per-class", type=int, default=5, help="labels kept of each class")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with np.load(options.train) as file:
        train = dict(file)
    with np.load(options.test) as file:
        test = dict(file)
    feats, labels = train["embeddings"].astype(np.float32), train["labels"]
    scores: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for seed in range(options.seeds):
        kept = with_few(labels, options.per_class, seed)
        for name, make in PLAIN.items():
            began = time.perf_counter()
            predicted = make().fit(feats[kept], labels[kept]).predict(test["embeddings"].astype(np.float32))
            seconds[name].append(time.perf_counter() - began)
            scores[name].append(float(balanced_accuracy_score(test["labels"], predicted)))
        unknown = -1 if labels.dtype.kind in "iu" else ""
        with tempfile.TemporaryDirectory() as folder:
            few = Path(folder) / "few.npz"
            np.savez(few, **{**train, "labels": np.where(kept, labels, unknown)})
            for name, settings in BELIEFS.items():
                began = time.perf_counter()
                run = lw.fit(few, out=Path(folder) / name, test=options.test, method="beliefs", seed=seed, set=settings)
                seconds[name].append(time.perf_counter() - began)
                scores[name].append(run.summary["test"]["balanced_accuracy"])
    print("| | balanced accuracy | by seed | s |\n|---|---|---|---|")
    for name, found in scores.items():
        each = " ".join(f"{100 * score:.2f}" for score in found)
        spread = f"{100 * np.mean(found):.1f} ± {100 * np.std(found, ddof=1):.1f}"
        print(f"| {name} | {spread} | {each} | {np.mean(seconds[name]):.2f} |")


if __name__ == "__main__":
    main()
