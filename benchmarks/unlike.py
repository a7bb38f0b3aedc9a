"""Unlabelled images of classes that no label names: are they noticed before anything is learned, and is there no alarm?

    python benchmarks/unlike.py NAME=TRAIN.npz [MORE …] [--seeds 3] [--csv FILE]

Files hold `embeddings` [N, D] and `labels` [N], as labelwright reads them. Of 4,000 images at most, even or 20 to 1
from class to class, all classes or 70% of them have labels: 5 or 20 a class, or 30% of their images. Where a file holds
`groups` [N] as well, half of these have labels, whole, and the groups are given or not. Printed in percent of the
unlabelled images: those of classes without labels, the estimate and the bound of `labels.unlike`, 0 where nothing was
noticed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from choices import read
from labelwright.benchmarking.results import Row, add_rows
from labelwright.labels.unlike import unlike_labelled
from labelwright.train.environment import source_commit

N, RATIO, HIDDEN = 4_000, 20, 0.3
LABELS: tuple[int | float, ...] = (5, 20, 0.3)


def pool(labels: np.ndarray, *, tailed: bool, hidden: float, labelled: float, seed: int) -> tuple[np.ndarray, ...]:
    """Rows [n], their labels with -1 where unknown, and whether each is of a class without labels."""
    draw = np.random.default_rng(seed)
    n_classes = int(labels.max()) + 1
    rows = draw.permutation(len(labels))
    if tailed:
        most = np.bincount(labels).max()
        sizes = draw.permutation((most * RATIO ** (-np.arange(n_classes) / (n_classes - 1))).astype(int))
        rows = draw.permutation(np.concatenate([rows[labels[rows] == c][: sizes[c]] for c in range(n_classes)]))
    rows = rows[:N]
    own = labels[rows]
    is_hidden = np.isin(own, draw.permutation(n_classes)[: round(hidden * n_classes)])
    rank = np.array([(own[:i] == own[i]).sum() for i in range(len(own))])
    known = (rank < labelled if labelled >= 1 else draw.random(len(own)) < labelled) & ~is_hidden
    _, given = np.unique(own[known], return_inverse=True)
    found = np.full(len(own), -1)
    found[known] = given
    return rows, found, is_hidden


def cells(feats: np.ndarray, labels: np.ndarray, seeds: int) -> Iterator[tuple[str, str, int, dict[str, float]]]:
    """(cell, title, seed, percent by metric)."""
    for labelled in LABELS:
        some = f"{labelled} labels a class" if labelled >= 1 else f"{labelled:.0%} of the labels"
        for tailed in (False, True):
            for hidden in (0.0, HIDDEN):
                cell = f"{labelled:g}-{'tail' if tailed else 'even'}-{'open' if hidden else 'closed'}"
                title = f"{some}, {f'{RATIO} to 1' if tailed else 'even'}, {hidden:.0%} of the classes without"
                for seed in range(seeds):
                    rows, given, away = pool(labels, tailed=tailed, hidden=hidden, labelled=labelled, seed=seed)
                    found = unlike_labelled(torch.from_numpy(feats[rows]).float(), torch.from_numpy(given))
                    truth = float(away.sum() / (given < 0).sum())
                    shares = {"truth": truth, "estimate": found.share, "least": found.least}
                    yield cell, title, seed, {name: 100 * share for name, share in shares.items()}


def tracks(
    feats: np.ndarray, labels: np.ndarray, groups: np.ndarray, seeds: int
) -> Iterator[tuple[str, str, int, dict[str, float]]]:
    """The same of labels that whole groups have."""
    _, units = np.unique(groups, return_inverse=True)
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        rows, of = draw.permutation(len(labels))[:N], draw.permutation(units.max() + 1)
        known = of[units[rows]] < len(of) // 2
        classes, own = np.unique(labels[rows][known], return_inverse=True)
        given = np.full(len(rows), -1)
        given[known] = own
        truth = float((~np.isin(labels[rows][~known], classes)).mean())
        for cell, some in (("groups-given", torch.from_numpy(units[rows])), ("groups-not-given", None)):
            found = unlike_labelled(torch.from_numpy(feats[rows]).float(), torch.from_numpy(given), groups=some)
            shares = {"truth": truth, "estimate": found.share, "least": found.least}
            title = f"half of the groups labelled, {cell.replace('-', ' ')}"
            yield cell, title, seed, {name: 100 * share for name, share in shares.items()}


def main() -> None:
    """Print a line per pool, and add rows to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for each in args.sets:
        name, path = each.split("=")
        file = read(Path(path))
        labels = np.unique(file["labels"], return_inverse=True)[1]
        feats = np.asarray(file["embeddings"])
        model = "tiny-clip" if feats.shape[1] == 128 else "EfficientNet-Lite0"
        found = [cells(feats, labels, args.seeds)]
        if "groups" in file:
            found.append(tracks(feats, labels, np.asarray(file["groups"]), args.seeds))
        for cell, title, seed, shares in (each for some in found for each in some):
            print(name, title, seed, {key: round(value, 1) for key, value in shares.items()}, flush=True)
            row = {"table": f"unlike.py {name}", "model": model, "cell": cell, "title": title, "seed": str(seed)}
            row |= {"commit": source_commit() or "", "hardware": "cpu (1 thread), other work on the machine"}
            rows += [row | {"metric": metric, "value": f"{value:.1f}"} for metric, value in shares.items()]
    if args.csv:
        add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
