"""Seconds for one epoch of slope updates: the memory of adjust.slopes against a Python loop over samples.

Run from the repository: python benchmarks/slopes.py [--images 230000] [--classes 1000] [--batch 128] [--repeats 3]

Both sides take the same batches in the same order and must agree on every slope before a second is printed. Twice:

- from logits [B, C]: finding the predicted class and its confidence is counted on both sides (a row at a time in the
  loop), then adding every batch to the memory and fitting all slopes once;
- from predictions: class and confidence are at hand, as in a training step that has its log-probs, and not counted.

Making up the inputs is never counted.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from labelwright.adjust.slopes import init_memory, push, rows_of, score_rows, slopes_from_rows

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # labels, predicted, confidence, logit: [B] each


class Loop:
    """The slopes, one sample after another: a queue per true class, then every kept row into its bin. The oracle."""

    def __init__(self, counts: Sequence[int], *, samples_per_class: int) -> None:
        self.queues: list[deque[tuple[int, float]]] = [deque(maxlen=min(samples_per_class, n)) for n in counts]

    def push_rows(self, labels: Tensor, predicted: Tensor, confidence: Tensor) -> None:
        for i in range(len(labels)):
            self.queues[int(labels[i])].append((int(predicted[i]), float(confidence[i])))

    def push(self, logits: Tensor, labels: Tensor) -> None:
        for i in range(len(labels)):
            probs = torch.softmax(logits[i], dim=0)
            predicted = int(probs.argmax())
            self.queues[int(labels[i])].append((predicted, float(probs[predicted])))

    def slopes(self, *, n_bins: int, clamp: tuple[float, float]) -> Tensor:
        edges = torch.linspace(0, 1, n_bins + 1).tolist()
        bins = [[[0, 0.0, 0.0] for _ in range(n_bins)] for _ in self.queues]  # count, sum of confidence, right
        for label, queue in enumerate(self.queues):
            for predicted, value in queue:
                index = next((b for b in range(n_bins) if value <= edges[b + 1]), n_bins - 1)
                cell = bins[predicted][index]
                cell[0] += 1
                cell[1] += value
                cell[2] += predicted == label
        kappa = []
        for cells in bins:
            filled = [(n, total / n, right / n) for n, total, right in cells if n]
            if sum(n for n, _, _ in filled) < 10 or len(filled) < 2:
                kappa.append(1.0)
                continue
            slope = sum(n * x * y for n, x, y in filled) / sum(n * x * x for n, x, _ in filled)
            kappa.append(min(max(1 / (slope + 1e-6), clamp[0]), clamp[1]))
        return torch.tensor(kappa)


class Stopwatch:
    """Adds up the seconds inside its `with` blocks."""

    seconds = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.start


def make_batches(*, n_images: int, n_classes: int, batch_size: int, seed: int) -> tuple[list[int], list[Batch]]:
    """Long-tailed counts (ratio 100) and an epoch of made-up predictions, right more often the surer they are."""
    draw = torch.Generator().manual_seed(seed)
    share = 100 ** -(torch.arange(n_classes) / (n_classes - 1))
    labels = torch.repeat_interleave(torch.arange(n_classes), (share / share.sum() * n_images).round().long())
    counts = torch.bincount(labels, minlength=n_classes).tolist()
    labels = labels[torch.randperm(len(labels), generator=draw)]
    confidence = 1 / n_classes + (1 - 1 / n_classes) * torch.rand(len(labels), generator=draw)
    is_right = torch.rand(len(labels), generator=draw) < 0.8 * confidence
    predicted = torch.where(is_right, labels, torch.randint(n_classes, labels.shape, generator=draw))
    columns = (labels, predicted, confidence, 10 * confidence)
    return counts, list(zip(*(column.split(batch_size) for column in columns), strict=True))


def logits_of(batches: Sequence[Batch], n_classes: int) -> Iterator[Tensor]:
    """Logits [B, C] whose softmax gives each row's class its confidence, made batch by batch: all would be 0.9 GB."""
    noise = torch.randn(max(len(batch[0]) for batch in batches), n_classes, generator=torch.Generator().manual_seed(1))
    for _, predicted, confidence, _ in batches:
        logits = noise[: len(predicted)].scatter(1, predicted[:, None], -torch.inf)
        odds = confidence / (1 - confidence)
        yield logits.scatter(1, predicted[:, None], (odds.log() + logits.logsumexp(1))[:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=230_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    counts, batches = make_batches(n_images=args.images, n_classes=args.classes, batch_size=args.batch, seed=0)
    print(f"{sum(counts)} images, {args.classes} classes, {len(batches)} batches of {args.batch}, CPU, 1 thread")
    for source in ("logits", "predictions"):
        fast, slow = [], []
        for _ in range(args.repeats):
            memory, loop = (
                init_memory(torch.tensor(counts), samples_per_class=1000),
                Loop(counts, samples_per_class=1000),
            )
            fast_s, slow_s = Stopwatch(), Stopwatch()
            for batch, logits in zip(batches, logits_of(batches, args.classes), strict=True):
                labels, predicted, confidence, logit = batch
                if source == "logits":
                    with fast_s:
                        memory = push(memory, labels, *score_rows(logits))
                    with slow_s:
                        loop.push(logits, labels)
                else:
                    with fast_s:
                        memory = push(memory, labels, predicted, confidence, logit)
                    with slow_s:
                        loop.push_rows(labels, predicted, confidence)
            with fast_s:
                rows = rows_of(memory)
                columns = (rows[name] for name in ("predicted", "confidence", "correct"))
                kappa = slopes_from_rows(*columns, n_classes=args.classes, n_bins=20, clamp=(0.05, 5.0))
            with slow_s:
                expected = loop.slopes(n_bins=20, clamp=(0.05, 5.0))
            # A confidence that rounds to the other side of a bin edge moves one row of hundreds: from logits only.
            torch.testing.assert_close(kappa, expected, rtol=1e-5 if source == "predictions" else 1e-3, atol=0)
            fast.append(fast_s.seconds)
            slow.append(slow_s.seconds)
        ratios = f"{min(slow) / max(fast):.0f}x to {max(slow) / min(fast):.0f}x"
        print(f"from {source}: package {_span(fast)}, loop {_span(slow)}, ratio {ratios}")


def _span(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.3f} to {max(seconds):.3f} s"


if __name__ == "__main__":
    main()
