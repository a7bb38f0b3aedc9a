"""What 200 answers teach, by the order in which images are asked about: the tool's own, known ones and chance.

    python benchmarks/review_order.py NAME=TRAIN.npz,TEST.npz [...] [--seeds 3] [--csv docs/results/review_order.csv]

Both files hold `embeddings` and `labels`. The seed draws two labelled images of each class of TRAIN; a classifier (the
method `beliefs`, by its parts) is fitted to these and the unlabelled others, a person answers 200 images in an order
that knows features and probabilities alone, and the classifier is fitted anew. Printed are the gains in points: of the
accuracy on TEST (`gain`) and its mean over the classes (`balanced gain`), and of the labels of the images of TRAIN, the
answered ones right (`gain of the labels`). `once` asks 200 in one go; `rounds` asks 50, fits, asks the next.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.benchmarking.results import COLUMNS
from labelwright.labels.gaussians import gaussian_beliefs, principal
from labelwright.methods.beliefs import N_ITER, SHRINKAGE, STRENGTH, Config, regression
from labelwright.reviewing import order

N_ANSWERS, N_ROUNDS, PER_CLASS = 200, 4, 2
TITLES = {
    "chance": "Chance",
    "margin": "Smallest margin",
    "badge": "BADGE",
    "typiclust": "TypiClust",
    "tool": "The tool's order",
}
Order = Callable[["Fitted", Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Fitted:
    """Features z [N, D] as the classifier sees them, its probabilities [N, C], and the classifier on other features."""

    z: Tensor
    probs: Tensor
    answer: Callable[[Tensor], Tensor]


def fitted(feats: Tensor, labels: Tensor, n_classes: int) -> Fitted:
    """The method `beliefs` on features [N, D] and labels [N], -1 = unknown."""
    mean, directions = principal(feats, min(Config().n_dims, feats.shape[1]))

    def project(x: Tensor) -> Tensor:
        return F.normalize((x - mean) @ directions.T, dim=1)

    z, known = project(feats), labels >= 0
    weight, bias, _ = regression(z[known], labels[known], n_classes)
    found = gaussian_beliefs(
        z,
        lambda rows: F.linear(z[rows], weight, bias),
        labels,
        strength=STRENGTH,
        shrinkage=SHRINKAGE,
        n_iter=N_ITER,
        label_weight=Config().label_weight,
    )
    more_weight, more_bias = found.linear
    probs = F.linear(z, weight + more_weight, bias + more_bias).softmax(1)
    return Fitted(z, probs, lambda x: F.linear(project(x), weight + more_weight, bias + more_bias).argmax(1))


def tool(now: Fitted, is_known: Tensor, n: int, seed: int) -> Tensor:
    """As `labelwright review` does it, from labels and their trust."""
    doubt, labels = 1 - now.probs.amax(1), now.probs.argmax(1)
    return order.suggested(now.z, torch.where(is_known, 0.0, doubt), labels, seed=seed)[:n]


ORDERS: dict[str, Order] = {
    "chance": lambda now, is_known, n, seed: order.by_chance(is_known, n=n, seed=seed),
    "margin": lambda now, is_known, n, seed: order.by_margin(now.probs, is_known, n=n),
    "badge": lambda now, is_known, n, seed: order.badge(now.z, now.probs, is_known, n=n, seed=seed),
    "typiclust": lambda now, is_known, n, seed: order.typiclust(now.z, is_known, n=n, seed=seed),
    "tool": tool,
}


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Features and classes."""
    with np.load(path) as file:
        numbers = np.unique(file["labels"], return_inverse=True)[1]
        return torch.from_numpy(file["embeddings"].astype(np.float32)), torch.from_numpy(numbers)


def rows_of(name: str, train: Path, test: Path, seeds: int) -> Iterator[dict[str, str]]:
    """Rows of results for one pair of files."""
    (feats, truth), (test_feats, test_truth) = read(train), read(test)
    n_classes = int(truth.max()) + 1

    def scores(now: Fitted, labels: Tensor) -> dict[str, float]:
        right = (now.answer(test_feats) == test_truth).double()
        each = torch.stack([right[test_truth == c].mean() for c in test_truth.unique()])
        own = torch.where(labels >= 0, labels, now.probs.argmax(1)) == truth
        found = {"gain": right.mean(), "balanced gain": each.mean(), "gain of the labels": own.double().mean()}
        return {key: 100 * float(value) for key, value in found.items()}

    for seed in range(seeds):
        draw, start = np.random.default_rng(seed), torch.full((len(truth),), -1)
        for c in range(n_classes):
            some = torch.from_numpy(draw.permutation(np.flatnonzero(truth.numpy() == c))[:PER_CLASS])
            start[some] = truth[some]
        first = fitted(feats, start, n_classes)
        before = scores(first, start)
        for key, asks in ORDERS.items():
            for n_rounds in (1, N_ROUNDS) if key != "chance" else (1,):
                began, labels, now = time.monotonic(), start.clone(), first
                for i in range(n_rounds):
                    some = asks(now, labels >= 0, N_ANSWERS // n_rounds, 100 * seed + i)
                    labels[some] = truth[some]
                    now = fitted(feats, labels, n_classes)
                after = scores(now, labels)
                way = "once" if n_rounds == 1 else "rounds"
                for metric, value in after.items():
                    yield {
                        "table": f"review_order.py {name}",
                        "cell": f"{key}_{way}",
                        "title": f"{TITLES[key]}, {way}",
                        "metric": metric.replace(" ", "_"),
                        "value": f"{value - before[metric]:.2f}",
                        "seed": str(seed),
                        "seconds": f"{time.monotonic() - began:.1f}",
                    }


def main() -> None:
    """Measure, print, and add to a file of results in place of earlier rows of the same tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows: list[dict[str, str]] = []
    for text in options.sets:
        name, _, files = text.partition("=")
        train, test = map(Path, files.split(","))
        gains = defaultdict(list)
        for row in rows_of(name, train, test, options.seeds):
            rows.append({**row, "commit": commit, "hardware": "cpu (1 thread), other work on the machine"})
            gains[row["title"], row["metric"]].append(float(row["value"]))
        for (title, metric), values in gains.items():
            by_chance = np.mean(gains["Chance, once", metric])
            print(
                f"{name} | {title} | {metric} | {np.mean(values):.2f} | x {np.mean(values) / by_chance:.2f}", flush=True
            )
    if options.csv is not None:
        tables, kept = {row["table"] for row in rows}, list[dict[str, str]]()
        if options.csv.exists():
            with options.csv.open(encoding="utf-8", newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["table"] not in tables]
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
