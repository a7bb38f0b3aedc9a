"""Time and peak memory of what Co-Reg remembers of every image, over one epoch of both networks.

    python benchmarks/bookkeeping.py [--images 1000000] [--classes 1000] [--keep 32]

Candidate sets (1 to 5 classes, 3 on average) are drawn, then each network's predictions, which are random logits,
batch by batch: images x classes are never there at once. Per network: the aligned division of all images, as after an
epoch (labels/codivide.py); then batches are read back as in training. Memory is counted from the start, libraries
loaded, to the highest point; above --limit-mb the script fails.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import sklearn.mixture  # noqa: F401  (loaded before memory is counted)
import torch
from torch import Tensor

from labelwright.labels.codivide import CoDivision, aligned_division, read_beliefs
from labelwright.labels.purify import init_history
from labelwright.types import Candidates, Passes, Task

BATCH = 512
HISTORY_EPOCHS = 5
READ_BATCHES = 100
SIZE_MAX = 5  # sets of 1 to 5 classes
OWN_SET = 6.0  # added to the logit of a class of the set in half of the images: these are to be found reliable

PREDICTIONS = "make predictions (not bookkeeping)"
SECONDS: defaultdict[str, float] = defaultdict(float)


@contextmanager
def timed(phase: str) -> Iterator[None]:
    """Add the seconds spent inside to a phase."""
    start = time.perf_counter()
    yield
    SECONDS[phase] += time.perf_counter() - start


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def drawn_sets(n_images: int, n_classes: int) -> Candidates:
    """Sets of 1 to 5 different classes, ascending by random steps."""
    sizes = torch.randint(1, SIZE_MAX + 1, (n_images,), dtype=torch.int32)
    steps = torch.randint(1, n_classes // SIZE_MAX + 1, (n_images, SIZE_MAX), dtype=torch.int32)
    classes = steps.cumsum(1, dtype=torch.int32) - 1
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return Candidates(offsets, classes[torch.arange(SIZE_MAX) < sizes[:, None]])


def passes_of(sets: Candidates, n_classes: int) -> Passes:
    """Logits [B, C] of a network that agrees with the sets of the even rows, batch by batch."""

    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        for some in rows.split(BATCH):
            with timed(PREDICTIONS):
                mask = sets.mask(some, n_classes)
                logits = torch.randn(mask.shape) + OWN_SET * (mask & (some % 2 == 0)[:, None])
            yield some, logits

    return passes


def main() -> int:
    """One epoch; 1 if it took more memory than allowed, 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--keep", type=int, default=32, help="probabilities kept of each image")
    parser.add_argument("--limit-mb", type=float, default=2000, help="memory above the start that fails the script")
    args = parser.parse_args()
    n, n_classes = args.images, args.classes
    if n_classes < 2 * SIZE_MAX:
        parser.error(f"--classes must be {2 * SIZE_MAX} or more, or the sets are all alike")

    torch.manual_seed(0)
    before_mb = psutil.Process().memory_info().rss / 2**20
    with timed("draw candidate sets (not bookkeeping)"):
        sets = drawn_sets(n, n_classes)
    task = Task(torch.full((n,), -1), tuple(map(str, range(n_classes))), sets)
    divisions: list[CoDivision] = []
    for seed in range(2):
        with timed("divide, with predictions"):
            divisions.append(
                aligned_division(
                    "main",
                    task,
                    passes_of(sets, n_classes),
                    init_history(n, HISTORY_EPOCHS),
                    prior=torch.full((n_classes,), 1 / n_classes),
                    n_rounds=0,
                    keep=args.keep,
                    seed=seed,
                )
            )
    with timed(f"read {READ_BATCHES} batches of both networks"):
        for rows in torch.randint(n, (READ_BATCHES, BATCH)):
            sets.mask(rows, n_classes)
            for division in divisions:
                read_beliefs(division.beliefs, rows, n_classes)
    used_mb = peak_mb() - before_mb

    for phase, seconds in SECONDS.items():
        print(f"{phase:40} {seconds:8.2f} s")
    own = sum(s if "not bookkeeping" not in phase else 0.0 for phase, s in SECONDS.items()) - SECONDS[PREDICTIONS]
    held = [t for division in divisions for t in (*division.beliefs.values(), *division.history.values())]
    held_mb = sum(t.nbytes for t in (*held, sets.offsets, sets.classes)) / 2**20
    shares = ", ".join(f"{division.reliable_frac:.3f}" for division in divisions)
    print(f"{'bookkeeping in all':40} {own:8.2f} s")
    print(f"reliable (0.5 agree with their set): {shares}; {sets.classes.numel() / n:.2f} candidates per image")
    print(
        f"{n:,} images, {n_classes:,} classes: {used_mb:,.0f} MB above the start at the highest ({held_mb:,.0f} MB kept"
        f" between epochs; dense tables of both networks would be {2 * n * n_classes * 4 / 2**20:,.0f} MB)"
    )
    if used_mb > args.limit_mb:
        print(f"more than the {args.limit_mb:,.0f} MB allowed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
