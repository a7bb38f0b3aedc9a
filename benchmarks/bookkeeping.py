"""Time and peak memory of what Co-Reg remembers of every image, over one epoch of both networks.

    python benchmarks/bookkeeping.py [--images 1000000] [--classes 1000] [--keep 32]

Candidate sets (1 to 5 classes, 3 on average) are drawn, then each network's predictions, which are random logits,
batch by batch: images x classes are never there at once. Per network: the sets of a batch as a mask, its predictions
aligned and written into the table of beliefs, the division losses and their history over five epochs, the division;
then batches are read back as in training. Memory is counted from the start, libraries loaded, to the highest point;
above --limit-mb the script fails.
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

from labelwright.labels.codivide import init_beliefs, read_beliefs, top_of, write_beliefs
from labelwright.labels.purify import (
    align,
    divide,
    division_losses,
    init_history,
    init_loss_history,
    mean_loss_history,
    mean_of,
    min_max,
    push_history,
    push_loss_history,
)
from labelwright.types import Candidates

BATCH = 512
HISTORY_EPOCHS = 5
ALIGNED_BY = 50  # batches whose mean prediction the network is aligned by
READ_BATCHES = 100
SIZE_MAX = 5  # sets of 1 to 5 classes
OWN_SET = 6.0  # added to the logit of a class of the set in half of the images: these are to be found reliable

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


def predictions(mask: Tensor, rows: Tensor) -> Tensor:
    """Probabilities [B, C] of a network that agrees with the sets of the even rows."""
    agrees = mask & (rows % 2 == 0)[:, None]
    return (torch.randn(mask.shape) + OWN_SET * agrees).softmax(1)


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
    tables, divisions = [], []
    for net in range(2):
        history, seen = init_loss_history(n, HISTORY_EPOCHS), init_history(n_classes, ALIGNED_BY)
        beliefs, losses = init_beliefs(n, n_classes, keep=args.keep), torch.empty(n)
        for rows in torch.arange(n).split(BATCH):
            with timed("sets of a batch as a mask"):
                mask = sets.mask(rows, n_classes)
            with timed("make predictions (not bookkeeping)"):
                probs = predictions(mask, rows)
            with timed("align predictions"):
                seen = push_history(seen, probs)
                probs = align(probs, running=mean_of(seen))
            with timed("write beliefs"):
                write_beliefs(beliefs, rows, probs)
            with timed("division losses"):
                losses[rows] = division_losses(probs, mask)
        with timed("loss history"):
            history = push_loss_history(history, min_max(losses))
            smoothed = mean_loss_history(history)
        with timed("divide"):
            divisions.append(divide(smoothed, threshold=0.5, seed=net))
        with timed("most probable class of each image"):
            top_of(beliefs)
        tables.append((beliefs, history))
    with timed(f"read {READ_BATCHES} batches of both networks"):
        for rows in torch.randint(n, (READ_BATCHES, BATCH)):
            sets.mask(rows, n_classes)
            for beliefs, _ in tables:
                read_beliefs(beliefs, rows, n_classes)
    used_mb = peak_mb() - before_mb

    for phase, seconds in SECONDS.items():
        print(f"{phase:40} {seconds:8.2f} s")
    own = sum(seconds for phase, seconds in SECONDS.items() if "not bookkeeping" not in phase)
    held = [t for beliefs, history in tables for t in (*beliefs.values(), *history.values()) if isinstance(t, Tensor)]
    held_mb = sum(t.nbytes for t in (*held, sets.offsets, sets.classes)) / 2**20
    shares = ", ".join(f"{division.is_reliable.float().mean():.3f}" for division in divisions)
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
