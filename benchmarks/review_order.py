"""What 200 answers teach, by the order in which images are asked about: the tool's own, known ones and chance.

    python benchmarks/review_order.py NAME=TRAIN.npz,TEST.npz [...] [--seeds 3] [--csv docs/results/review_order.csv]

Both files hold `embeddings` and `labels`. The seed draws two labelled images of each class of TRAIN; a classifier (the
method `beliefs`, by its parts) is fitted to these and the unlabelled others, a person answers 200 images in an order
that knows features and probabilities alone, and the classifier is fitted anew. Scored are its accuracy on TEST, the
mean of that over the classes, and the labels of the images of TRAIN, answered ones among them (`right labels`). Printed
are the values by seed, the gain over the start, and how many times the gain of chance that is; chance is the mean of
three draws.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.benchmarking.results import add_rows
from labelwright.labels.audit import nearest
from labelwright.labels.gaussians import gaussian_beliefs, principal
from labelwright.labels.kmeans import semi_supervised_kmeans
from labelwright.methods.beliefs import N_ITER, SHRINKAGE, STRENGTH, Config, regression
from labelwright.reviewing import order

TYPICAL_OF, LEAST_CLUSTER = 20, 5  # neighbours that make a row typical; rows of a cluster that is asked about
N_ANSWERS, N_DRAWS, N_ROUNDS, PER_CLASS = 200, 3, 4, 2
TITLES = {
    "start": "Before",
    "chance": "Chance",
    "margin": "Smallest margin",
    "badge": "BADGE",
    "typiclust": "TypiClust",
    "tool": "The tool's order",
    "rounds": "The tool's order, four rounds of 50",
    "all": "Every label",
}
Scores = dict[str, float]
Order = Callable[["Fitted", Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Fitted:
    """Features z [N, D] as the classifier sees them, its probabilities [N, C], and its weight and bias."""

    z: Tensor
    probs: Tensor
    weight: Tensor
    bias: Tensor


def fitted(z: Tensor, labels: Tensor, n_classes: int) -> Fitted:
    """The method `beliefs` on projected features [N, D] and labels [N], -1 = unknown."""
    known = labels >= 0
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
    weight, bias = weight + found.linear[0], bias + found.linear[1]
    return Fitted(z, F.linear(z, weight, bias).softmax(1), weight, bias)


def tool(now: Fitted, is_known: Tensor, n: int, seed: int) -> Tensor:
    """As `labelwright review` does it, from labels and their trust."""
    doubt, labels = 1 - now.probs.amax(1), now.probs.argmax(1)
    return order.suggested(now.z, torch.where(is_known, 0.0, doubt), labels, batches=(n,), seed=seed)[:n]


def by_chance(is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """Rows drawn evenly from those that are not known.

    Example:
      >>> by_chance(torch.tensor([True, False]), n=5, seed=0).tolist()
      [1]
    """
    rows = (~is_known).nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def by_margin(probs: Tensor, is_known: Tensor, *, n: int) -> Tensor:
    """Smallest difference of the two largest probabilities [N, C] first.

    Source: Scheffer et al. 2001 (IDA), active hidden Markov models.

    Example:
      >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
      >>> by_margin(probs, torch.tensor([False, False, True]), n=2).tolist()
      [1, 0]
    """
    best = probs.topk(2, dim=1).values
    margin = torch.where(is_known, torch.inf, best[:, 0] - best[:, 1])
    return margin.argsort(stable=True)[: min(n, int((~is_known).sum()))]


def badge(z: Tensor, probs: Tensor, is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """k-means++ on the gradients of the loss of the predicted class: the head's, (p - onehot) outer z.

    Source: Ash et al. 2020 (arXiv 1906.03671), Algorithm 1. Their inner products are products of two small ones.

    Example: of two equal rows one is taken.
      >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> sorted(badge(z, torch.full((3, 2), 0.5), torch.zeros(3) > 0, n=2, seed=0).tolist()) in ([0, 2], [1, 2])
      True
    """
    rows = (~is_known).nonzero().flatten()
    gap, z = probs[rows].clone(), z[rows]
    gap[torch.arange(len(rows)), gap.argmax(1)] -= 1
    norm = gap.square().sum(1) * z.square().sum(1)
    draw, far, found = torch.Generator().manual_seed(seed), norm.new_full((len(rows),), torch.inf), list[int]()
    at = int(norm.argmax())
    for _ in range(min(n, len(rows))):
        found.append(at)
        far = torch.minimum(far, (norm + norm[at] - 2 * (gap @ gap[at]) * (z @ z[at])).clamp(min=0))
        far[found] = 0
        if not bool((far > 0).any()):
            break
        at = int(torch.multinomial(far, 1, generator=draw))
    return rows[torch.tensor(found, dtype=torch.int64)]


def typiclust(z: Tensor, is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """The most typical row of the largest cluster in which the fewest rows are known, again and again.

    Source: Hacohen et al. 2022 (arXiv 2202.02794), TPC_RP: as many clusters as there are known rows and answers, those
      with fewer than 5 rows left out; typical is the inverse mean distance to the 20 nearest. Differs: nearest of all
      rows, not of the cluster.

    Example:
      >>> z = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
      >>> len(typiclust(z, torch.arange(40) < 2, n=4, seed=0))
      4
    """
    n_clusters = min(n + int(is_known.sum()), max(1, len(z) // LEAST_CLUSTER))
    unknown = torch.full((len(z),), -1)
    own = semi_supervised_kmeans(z, unknown, n_classes=n_clusters, n_seen=0, n_init=1, seed=seed)
    sims = nearest(z, k=TYPICAL_OF).sims
    typical = 1 / ((2 - 2 * sims).clamp(min=0).sqrt().mean(1) + 1e-6)
    typical = torch.where(is_known, -1.0, typical)
    n_known = torch.bincount(own.assigned[is_known], minlength=n_clusters)
    is_asked = own.sizes >= LEAST_CLUSTER
    found: list[int] = []
    while len(found) < n and bool(is_asked.any()):
        key = torch.where(is_asked, n_known * len(z) - own.sizes, torch.iinfo(torch.int64).max)
        cluster = int(key.argmin())
        at = int(torch.where(own.assigned == cluster, typical, -1.0).argmax())
        if typical[at] < 0:
            is_asked[cluster] = False
            continue
        found.append(at)
        typical[at] = -1.0
        n_known[cluster] += 1
    return torch.tensor(found, dtype=torch.int64)


ORDERS: dict[str, Order] = {
    "chance": lambda now, is_known, n, seed: by_chance(is_known, n=n, seed=seed),
    "margin": lambda now, is_known, n, seed: by_margin(now.probs, is_known, n=n),
    "badge": lambda now, is_known, n, seed: badge(now.z, now.probs, is_known, n=n, seed=seed),
    "typiclust": lambda now, is_known, n, seed: typiclust(now.z, is_known, n=n, seed=seed),
    "tool": tool,
}


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Features and classes."""
    with np.load(path) as file:
        numbers = np.unique(file["labels"], return_inverse=True)[1]
        return torch.from_numpy(file["embeddings"].astype(np.float32)), torch.from_numpy(numbers)


def rows_of(name: str, train: Path, test: Path, seeds: int, cells: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of results for one pair of files."""
    (feats, truth), (test_feats, test_truth) = read(train), read(test)
    n_classes = int(truth.max()) + 1
    mean, directions = principal(feats, min(Config().n_dims, feats.shape[1]))
    z, test_z = (F.normalize((x - mean) @ directions.T, dim=1) for x in (feats, test_feats))

    def scores(now: Fitted, labels: Tensor) -> Scores:
        right = (F.linear(test_z, now.weight, now.bias).argmax(1) == test_truth).double()
        each = torch.stack([right[test_truth == c].mean() for c in test_truth.unique()])
        own = torch.where(labels >= 0, labels, now.probs.argmax(1)) == truth
        found = {"accuracy": right.mean(), "balanced_accuracy": each.mean(), "right_labels": own.double().mean()}
        return {key: 100 * float(value) for key, value in found.items()}

    ceiling: Scores = {}
    for seed in range(seeds):
        draw, start = np.random.default_rng(seed), torch.full((len(truth),), -1)
        for c in range(n_classes):
            some = torch.from_numpy(draw.permutation(np.flatnonzero(truth.numpy() == c))[:PER_CLASS])
            start[some] = truth[some]
        first = fitted(z, start, n_classes)

        found: dict[str, Scores] = {"start": scores(first, start)}
        for key, asks in ((key, asks) for key, asks in ORDERS.items() if key in cells):
            draws = []
            for k in range(N_DRAWS if key == "chance" else 1):
                labels, some = start.clone(), asks(first, start >= 0, N_ANSWERS, 10 * seed + k)
                labels[some] = truth[some]
                draws.append(scores(fitted(z, labels, n_classes), labels))
            found[key] = {metric: float(np.mean([each[metric] for each in draws])) for metric in draws[0]}
        if "rounds" in cells:
            labels, now = start.clone(), first
            for k in range(N_ROUNDS):
                some = tool(now, labels >= 0, N_ANSWERS // N_ROUNDS, 10 * seed + k)
                labels[some] = truth[some]
                now = fitted(z, labels, n_classes)
            found["rounds"] = scores(now, labels)
        if "all" in cells:
            ceiling = ceiling or scores(fitted(z, truth, n_classes), truth)
            found["all"] = ceiling
        for key, values in found.items():
            for metric, value in values.items():
                row = {"cell": key, "title": TITLES[key], "metric": metric, "value": f"{value:.2f}", "seed": str(seed)}
                chose = "its weights were chosen on this set" if (key, name) == ("tool", "gtsrb") else ""
                yield {"table": f"review_order.py {name}", **row, "note": chose}


def main() -> None:
    """Measure, print, and add to a file of results in place of earlier rows of the same tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=TRAIN.npz,TEST.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--cells", nargs="+", choices=list(TITLES), default=list(TITLES), help="what to run, beside start"
    )
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows: list[dict[str, str]] = []
    for text in options.sets:
        name, _, files = text.partition("=")
        train, test = map(Path, files.split(","))
        levels = defaultdict(list)
        for row in rows_of(name, train, test, options.seeds, options.cells):
            rows.append({**row, "commit": commit, "hardware": "cpu (1 thread), other work on the machine"})
            levels[row["cell"], row["metric"]].append(float(row["value"]))
        for (cell, metric), values in levels.items():
            before, chance = (float(np.mean(levels.get((other, metric), 0.0))) for other in ("start", "chance"))
            gain, by_seed = float(np.mean(values)) - before, " ".join(f"{value:.2f}" for value in values)
            times = "" if "chance" not in options.cells or chance == before else f"x {gain / (chance - before):.2f}"
            print(f"{name} | {cell} | {metric} | {by_seed} | {gain:+.2f} | {times}", flush=True)
    if options.csv is not None:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
