"""How many novel classes there are: the estimate of `labelwright.labels.n_novel` against the truth, on embeddings.

    python benchmarks/n_novel.py POOL.npz [MORE.npz …] [--seen 4] [--hidden 0 1 3] [--labelled-frac 0.1 0.5]

POOL.npz holds embeddings and a label for each: as labelwright reads them (`embeddings` [N, D], `labels` [N] class
indices or names), or `feats` [N, D] or [V, N, D], of which the first view is taken. The seed draws --seen classes, of
whose images the share --labelled-frac is labelled, and --hidden others; the truth is used for nothing else. Hidden
classes are even; `most`: the largest makes up 70% of the unlabelled images, and images are thinned for it; `tail`:
they fall off geometrically, 20 to 1. Right is an estimate from half to twice the truth, and none where there is none.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labelwright.labels.n_novel import estimate_n_novel


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Features [N, D] and labels [N] of a file."""
    with np.load(path) as file:
        feats = file["feats" if "feats" in file else "embeddings"]
        labels = np.unique(file["labels"], return_inverse=True)[1]
    return torch.from_numpy(feats[0] if feats.ndim == 3 else feats).float(), torch.from_numpy(labels)


def case(
    truth: Tensor, *, n_seen: int, n_hidden: int, shape: str, frac: float, cap: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows [n] of a pool and their labels [n], -1 = unlabelled.

    Args: truth [N]; shape: even, most or tail; frac, of the images of seen classes, labelled; cap, images per class.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    counts = torch.bincount(truth)
    classes = torch.randperm(len(counts), generator=draw)[: n_seen + n_hidden].tolist()

    def some(c: int, n: int) -> Tensor:
        rows = (truth == c).nonzero().flatten()
        return rows[torch.randperm(len(rows), generator=draw)[:n]]

    rows, labels = [], []
    for i, c in enumerate(classes[:n_seen]):
        rows.append(some(c, min(cap, int(counts[c]))))
        labels.append(torch.full((len(rows[-1]),), -1))
        labels[-1][: max(2, round(frac * len(rows[-1])))] = i
    hidden = classes[n_seen:]
    sizes = [min(cap, int(counts[c])) for c in hidden]
    if shape == "most":
        most = max(hidden, key=lambda c: int(counts[c]))
        hidden = [most, *(c for c in hidden if c != most)]
        n_most = min(int(counts[most]), 3 * cap)
        rest = int(n_most * 0.3 / 0.7)
        sizes = [n_most, *[max(8, rest // 2 // max(n_hidden - 1, 1))] * (n_hidden - 1)]
        n_kept = max(5, round(max(0, rest - sum(sizes[1:])) / n_seen))  # of the unlabelled ones of each seen class
        for i in range(n_seen):
            kept = torch.ones(len(labels[i]), dtype=torch.bool)
            kept[(labels[i] < 0).nonzero().flatten()[n_kept:]] = False
            rows[i], labels[i] = rows[i][kept], labels[i][kept]
    elif shape == "tail":
        sizes = [max(8, int(n * (1 / 20) ** (j / max(1, n_hidden - 1)))) for j, n in enumerate(sizes)]
    for c, n in zip(hidden, sizes, strict=True):
        rows.append(some(c, n))
        labels.append(torch.full((len(rows[-1]),), -1))
    order = torch.randperm(sum(map(len, rows)), generator=draw)
    return torch.cat(rows)[order], torch.cat(labels)[order]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", type=Path, help=".npz of embeddings with labels")
    parser.add_argument("--seen", type=int, help="seen classes; half of the classes by default")
    parser.add_argument("--hidden", nargs="+", type=int, default=[0, 1, 3], help="hidden classes")
    parser.add_argument("--shapes", nargs="+", default=["even", "most"], choices=["even", "most", "tail"])
    parser.add_argument("--labelled-frac", nargs="+", type=float, default=[0.1, 0.5])
    parser.add_argument("--cap", type=int, default=10**6, help="images per class, at most")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    head = ["pool", "seen", "hidden", "shape", "labelled", "seed", "images", "estimate", "plausible", "s"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    right, off = [], []
    for path in options.pools:
        feats, truth = read(path)
        n_seen = options.seen or (int(truth.max()) + 2) // 2
        cases = itertools.product(options.hidden, options.shapes, options.labelled_frac, range(options.seeds))
        for n_hidden, shape, frac, seed in cases:
            if shape != "even" and n_hidden < (2 if shape == "tail" else 1):
                continue
            rows, labels = case(
                truth, n_seen=n_seen, n_hidden=n_hidden, shape=shape, frac=frac, cap=options.cap, seed=seed
            )
            began = time.perf_counter()
            found = estimate_n_novel(feats[rows], labels, n_seen=n_seen, seed=seed)
            n, plausible = found["n_novel"], "{}-{}".format(*found["plausible"])
            right.append(n_hidden / 2 <= n <= 2 * n_hidden)
            off.append(abs(math.log((n + 1) / (n_hidden + 1))))
            cells = [path.stem, n_seen, n_hidden, shape, f"{frac:.0%}", seed, len(rows), n, plausible]
            print(f"| {' | '.join(map(str, cells))} | {time.perf_counter() - began:.1f} |", flush=True)
    print(f"{sum(right)} of {len(right)} within a factor of two; mean log error {statistics.mean(off):.2f}")


if __name__ == "__main__":
    main()
