"""Long tails on stored features: what `auto` and the losses give against logistic regression on the same features.

    python benchmarks/long_tailed_features.py TRAIN.npz TEST.npz [--largest 300] [--ratio 60] [--seeds 3]

Both files hold `embeddings` [N, D] and `labels` [N], as labelwright reads them. The seed draws the order of the classes
and which images stay: the largest class keeps --largest images (or all of the smallest class's, if that is fewer), the
smallest one --ratio times fewer, at least 2, in geometric steps. Each is run on the embeddings as they are and on
embeddings of unit norm. The references are class-balanced logistic regression of scikit-learn on standardised features,
on unit norm with C = 10, and on standardised features with C by five-fold cross-validation of balanced accuracy.
Printed is the balanced accuracy on TEST in percent and the seconds of one fit; of labelwright those of the whole run:
of `auto` its answer, of a named method what it trained, also where the answer is another's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import labelwright as lw

METHODS = ("auto", "ce", "class_balanced", "la", "vs", "ldam_drw", "cvs")
BALANCED: dict[str, Any] = {"class_weight": "balanced", "max_iter": 2000}
PLAIN = {
    "regression, standardised": lambda: make_pipeline(StandardScaler(), LogisticRegression(**BALANCED)),
    "regression, unit norm, C = 10": lambda: make_pipeline(Normalizer(), LogisticRegression(C=10.0, **BALANCED)),
    "regression, standardised, cross-validated": lambda: make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=[1e-4, 1e-3, 1e-2, 1e-1, 1], scoring="balanced_accuracy", **BALANCED)
    ),
}


def long_tail(labels: np.ndarray[Any, Any], largest: int, ratio: float, seed: int) -> np.ndarray[Any, Any]:
    """Rows that stay, ascending."""
    draw = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    most = min(largest, int(counts.min()))
    sizes = np.maximum(2, np.round(most * ratio ** (-np.arange(len(classes)) / (len(classes) - 1)))).astype(int)
    order = draw.permutation(classes)
    kept = [draw.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(order, sizes, strict=True)]
    return np.sort(np.concatenate(kept))


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")  # scikit-learn's, of folds without a rare class
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("test", type=Path, help="the same, to score on")
    parser.add_argument("--largest", type=int, default=300, help="images of the largest class")
    parser.add_argument("--ratio", type=float, default=60.0, help="largest over smallest class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    files = []
    for path in (options.train, options.test):
        with np.load(path) as file:
            files.append({key: file[key] for key in ("embeddings", "labels")})
    train, test = files
    scores: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)

    def add(name: str, predicted_of: Any) -> None:
        began = time.perf_counter()
        scores[name].append(predicted_of())
        seconds[name].append(time.perf_counter() - began)

    for seed in range(options.seeds):
        rows = long_tail(train["labels"], options.largest, options.ratio, seed)
        for kind in ("as they are", "unit norm"):
            x, y = train["embeddings"][rows].astype(np.float32), train["labels"][rows]
            x_test = test["embeddings"].astype(np.float32)
            if kind == "unit norm":
                x, x_test = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, x_test))
            for name, make in PLAIN.items():
                add(
                    f"{name} | {kind}",
                    lambda make=make, x=x, y=y, t=x_test: balanced_accuracy_score(
                        test["labels"], make().fit(x, y).predict(t)
                    ),
                )
            with tempfile.TemporaryDirectory() as folder:
                few, held = Path(folder) / "train.npz", Path(folder) / "test.npz"
                np.savez(few, embeddings=x, labels=y)
                np.savez(held, embeddings=x_test, labels=test["labels"])
                for name in options.methods:
                    out = Path(folder) / name

                    def fitted(name: str = name, few: Path = few, held: Path = held, out: Path = out) -> float:
                        run = lw.fit(few, out=out, test=held, method=name, seed=0)
                        of_answer, of_each = run.summary["test"], run.summary["reference"]
                        own = of_answer if name == "auto" else of_each[name]["test"]
                        return float(own["balanced_accuracy"])

                    add(f"labelwright {name} | {kind}", fitted)
    print("| | embeddings | balanced accuracy | by seed | s |\n|---|---|---|---|---|")
    for name, found in scores.items():
        each = " ".join(f"{100 * score:.2f}" for score in found)
        spread = f"{100 * np.mean(found):.1f} ± {100 * np.std(found, ddof=1):.1f}"
        print(f"| {name} | {spread} | {each} | {np.mean(seconds[name]):.2f} |")


if __name__ == "__main__":
    main()
