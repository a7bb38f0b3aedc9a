"""Unlabelled images of classes that no label names: are they noticed before anything is learned, and is there no alarm?

    python benchmarks/unlike.py NAME=TRAIN.npz [MORE …] [--rows 4000] [--fit] [--seeds 3] [--csv FILE]

Files hold `embeddings` [N, D] and `labels` [N], as labelwright reads them. Of ROWS images at most, even or 20 to 1
from class to class, all classes or 70% of them have labels: 5 or 20 a class, or 30% of their images. Where a file holds
`groups` [N] as well, half of these have labels, whole, and the groups are given or not. Printed in percent of the
unlabelled images: those of classes without labels, the estimate and the bound of `labels.unlike`, 0 where nothing was
noticed. With --fit, `fit` labels each pool without --novel, and printed are the share of its labels that is right, the
mean and the calibration error of their trust, how many have a trust of 0.95 or more and how many of these are right,
and the estimate of the run, of the images that it did not hold out.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import labelwright as lw
from choices import read
from labelwright.benchmarking.results import Row, add_rows
from labelwright.labels.unlike import unlike_labelled
from labelwright.metrics.classification import calibration_error
from labelwright.train.environment import source_commit

RATIO, HIDDEN = 20, 0.3
LABELS: tuple[int | float, ...] = (5, 20, 0.3)


def pool(
    labels: np.ndarray, *, n: int, tailed: bool, hidden: float, labelled: float, seed: int
) -> tuple[np.ndarray, ...]:
    """Rows [n] at most, their labels with -1 where unknown, and whether each is of a class without labels."""
    draw = np.random.default_rng(seed)
    n_classes = int(labels.max()) + 1
    rows = draw.permutation(len(labels))
    if tailed:
        most = np.bincount(labels).max()
        sizes = draw.permutation((most * RATIO ** (-np.arange(n_classes) / (n_classes - 1))).astype(int))
        rows = draw.permutation(np.concatenate([rows[labels[rows] == c][: sizes[c]] for c in range(n_classes)]))
    rows = rows[:n]
    own = labels[rows]
    is_hidden = np.isin(own, draw.permutation(n_classes)[: round(hidden * n_classes)])
    rank = np.array([(own[:i] == own[i]).sum() for i in range(len(own))])
    known = (rank < labelled if labelled >= 1 else draw.random(len(own)) < labelled) & ~is_hidden
    _, given = np.unique(own[known], return_inverse=True)
    found = np.full(len(own), -1)
    found[known] = given
    return rows, found, is_hidden


def noticed(feats: np.ndarray, given: np.ndarray, away: np.ndarray) -> dict[str, float]:
    """What is said before anything is learned, in shares."""
    found = unlike_labelled(torch.from_numpy(feats).float(), torch.from_numpy(given))
    return {"truth": float(away.sum() / (given < 0).sum()), "estimate": found.share, "least": found.least}


def fitted(feats: np.ndarray, given: np.ndarray, away: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """What the labels of a run are worth, in shares."""
    of_class = np.array([truth[given == c][0] for c in range(given.max() + 1)])
    names = np.array([f"c{c}" for c in of_class])
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        np.savez(f"{folder}/pool.npz", embeddings=feats, labels=given, class_names=names)
        run = lw.fit(f"{folder}/pool.npz", out=f"{folder}/run")
        rows, says = run.labels.to_pandas()[given < 0], run.summary["trust"]
    right = rows["label"].to_numpy() == np.array([f"c{c}" for c in truth])[given < 0]
    trust = rows["trust"].to_numpy().astype(float)
    ece = calibration_error(torch.from_numpy(trust), torch.from_numpy(right))
    found = {"right": right.mean(), "trust": trust.mean(), "ece": ece, "at_095": (trust >= 0.95).mean()}
    found |= {"right_at_095": right[trust >= 0.95].mean()} if (trust >= 0.95).any() else {}
    found |= {"hidden": float(away[given < 0].mean()), "estimate": says.get("unlike", 0.0)}
    return found | {"low": says["interval"][0], "high": says["interval"][1]}


def cells(
    feats: np.ndarray, labels: np.ndarray, n: int, seeds: int, *, fits: bool
) -> Iterator[tuple[str, str, int, dict[str, float]]]:
    """(cell, title, seed, percent by metric)."""
    for labelled in LABELS:
        some = f"{labelled} labels a class" if labelled >= 1 else f"{labelled:.0%} of the labels"
        for tailed in (False, True):
            for hidden in (0.0, HIDDEN):
                cell = f"{labelled:g}-{'tail' if tailed else 'even'}-{'open' if hidden else 'closed'}"
                title = f"{some}, {f'{RATIO} to 1' if tailed else 'even'}, {hidden:.0%} of the classes without"
                for seed in range(seeds):
                    rows, given, away = pool(labels, n=n, tailed=tailed, hidden=hidden, labelled=labelled, seed=seed)
                    shares = (
                        fitted(feats[rows], given, away, labels[rows]) if fits else noticed(feats[rows], given, away)
                    )
                    yield cell, title, seed, {name: 100 * share for name, share in shares.items()}


def tracks(
    feats: np.ndarray, labels: np.ndarray, groups: np.ndarray, n: int, seeds: int
) -> Iterator[tuple[str, str, int, dict[str, float]]]:
    """The same of labels that whole groups have."""
    _, units = np.unique(groups, return_inverse=True)
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        rows, of = draw.permutation(len(labels))[:n], draw.permutation(units.max() + 1)
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
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--fit", action="store_true")
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
        found = [cells(feats, labels, args.rows, args.seeds, fits=args.fit)]
        if "groups" in file and not args.fit:
            found.append(tracks(feats, labels, np.asarray(file["groups"]), args.rows, args.seeds))
        for cell, title, seed, shares in (each for some in found for each in some):
            print(name, title, seed, {key: round(value, 1) for key, value in shares.items()}, flush=True)
            table = f"unlike.py {name}{' fit' if args.fit else ''}{f' {args.rows}' if args.rows != 4_000 else ''}"
            row = {"table": table, "model": model, "cell": cell, "title": title, "seed": str(seed)}
            row |= {"commit": source_commit() or "", "hardware": "cpu (1 thread), other work on the machine"}
            rows += [row | {"metric": metric, "value": f"{value:.1f}"} for metric, value in shares.items()]
    if args.csv:
        add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
