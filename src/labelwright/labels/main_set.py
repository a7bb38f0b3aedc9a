"""The main set of CAP: a few sure images per class at first, more as training goes on, as many as the class has."""

from __future__ import annotations

import torch
from torch import Tensor


def main_set_size(
    epoch: int,
    *,
    n_epochs: int,
    unlabelled_per_class: Tensor,
    start: int = 16,
    max_ratio: float = 0.8,
    max_size: int = 1000,
    growth_frac: float = 0.7,
) -> Tensor:
    """Images per class in an epoch: from ``start`` to max_ratio of the class, linearly over growth_frac of the epochs.

    Args:
      epoch: 0-based.   n_epochs: of the run.
      unlabelled_per_class: [C] float, images that each class is thought to have; N / C for all in the paper.
      start: images per class at first; less for a class that is thought to have fewer.
      max_ratio: share of a class at the end, 0 to 1.
      max_size: images per class at most.
      growth_frac: share of the epochs after which the set grows no more.

    Returns: [C] int64.

    Source: arXiv 2505.02056, Section 3.2. Differs: a size for each class, after its estimated number of images.

    Example:
      >>> of = torch.tensor([400.0, 10.0])
      >>> [main_set_size(e, n_epochs=50, unlabelled_per_class=of).tolist() for e in (0, 5, 45)]
      [[16, 8], [59, 8], [320, 8]]
    """
    target = (max_ratio * unlabelled_per_class).clamp(max=float(max_size)).double()
    first = torch.minimum(target, torch.tensor(float(start), dtype=torch.float64, device=target.device))
    grown = min(1.0, epoch / (growth_frac * n_epochs))
    return (first + (target - first) * grown + 1e-9).floor().long()


def surest_rows(predicted: Tensor, confidence: Tensor, sizes: Tensor, *, where: Tensor) -> tuple[Tensor, Tensor]:
    """The most confident rows of each predicted class, up to a number per class.

    Args:
      predicted: [N] int64 classes.   confidence: [N] float.
      sizes: [C] int64, rows wanted per class.
      where: [N] bool, rows that may be taken.

    Returns: rows [n] int64 and their classes [n] int64, by class, surest first.

    Example:
      >>> take = torch.tensor([True, True, True, False])
      >>> rows, classes = surest_rows(torch.tensor([0, 0, 1, 1]), torch.tensor([0.6, 0.9, 0.5, 0.9]),
      ...                             torch.tensor([1, 2]), where=take)
      >>> rows.tolist(), classes.tolist()
      ([1, 2], [0, 1])
    """
    rows = where.nonzero().flatten()
    rows = rows[confidence[rows].argsort(descending=True, stable=True)]
    rows = rows[predicted[rows].argsort(stable=True)]
    classes = predicted[rows]
    counts = torch.bincount(classes, minlength=len(sizes))
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(rows), device=rows.device) - first[classes]
    kept = rank < sizes.to(rows.device)[classes]
    return rows[kept], classes[kept]
