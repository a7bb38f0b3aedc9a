"""How many novel classes there are: the estimate of `labelwright.labels.n_novel` against the truth, on embeddings.

    python benchmarks/n_novel.py POOL.npz [MORE.npz …] [--seen 5 21] [--labelled-frac 0.5 0.1] [--seeds 3]

POOL.npz holds embeddings and a label for each: as labelwright reads them (`embeddings` [N, D], `labels` [N] class
indices), or `feats` [N, D] or [V, N, D], of which the first view is taken. The first --seen classes are seen (one
number for all files or one per file; half of the classes by default), the share --labelled-frac of their images is
labelled, and the truth is used for nothing else. The seed draws which images are labelled and begins the search.
Accuracy is that of semi-supervised k-means on the unlabelled images, by the best matching of clusters with classes,
with the estimated and with the true number.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from labelwright.data.splits import seen_novel
from labelwright.labels.kmeans import semi_supervised_kmeans
from labelwright.labels.n_novel import estimate_n_novel


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Features [N, D] and labels [N] of a file."""
    with np.load(path) as file:
        feats = file["feats" if "feats" in file else "embeddings"]
        labels = np.unique(file["labels"], return_inverse=True)[1]
    return torch.from_numpy(feats[0] if feats.ndim == 3 else feats).float(), torch.from_numpy(labels)


def accuracy(clusters: Tensor, truth: Tensor) -> float:
    """Share of images whose cluster is matched with their class."""
    n_classes = int(truth.max()) + 1
    table = torch.bincount(clusters * n_classes + truth, minlength=(int(clusters.max()) + 1) * n_classes)
    counts = table.view(-1, n_classes).numpy()
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("--seen", nargs="+", type=int, help="seen classes, the first ones")
    parser.add_argument(
        "--labelled-frac", nargs="+", type=float, default=[0.5, 0.1], help="of the seen classes' images"
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.seen and len(options.seen) not in (1, len(options.pools)):
        parser.error("--seen takes one number, or one per file")
    head = ["pool", "labelled", "seed", "classes", "estimated", "off", "novel", "estimated", "off", "plausible", "s"]
    head += ["acc", "acc, true"]
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head))
    for at, path in enumerate(options.pools):
        feats, truth = read(path)
        n_classes = int(truth.max()) + 1
        n_seen = options.seen[at % len(options.seen)] if options.seen else n_classes // 2
        n_novel = n_classes - n_seen
        for frac in options.labelled_frac:
            off = []
            for seed in range(options.seeds):
                labelled, free = (
                    torch.from_numpy(rows)
                    for rows in seen_novel(truth.numpy(), seen=n_seen, labelled_frac=frac, seed=seed)
                )
                labels = torch.full_like(truth, -1)
                labels[labelled] = truth[labelled]
                began = time.perf_counter()
                found = estimate_n_novel(feats, labels, n_seen=n_seen, seed=seed)
                seconds = time.perf_counter() - began
                total = n_seen + found["n_novel"]
                accuracies = []
                for n in (total, n_classes):
                    clusters = semi_supervised_kmeans(feats, labels, n_classes=n, n_seen=n_seen, seed=seed).assigned
                    accuracies.append(f"{accuracy(clusters[free], truth[free]):.3f}")
                off.append(abs(total / n_classes - 1))
                cells = [path.stem, f"{frac:.0%}", seed, n_classes, total, f"{total / n_classes - 1:+.0%}", n_novel]
                cells += [found["n_novel"], f"{found['n_novel'] / n_novel - 1:+.0%}" if n_novel else found["n_novel"]]
                cells += ["{}-{}".format(*found["plausible"]), f"{seconds:.0f}", *accuracies]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
            print(f"| {path.stem} | {frac:.0%} | mean | | | {statistics.mean(off):.0%} | | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
