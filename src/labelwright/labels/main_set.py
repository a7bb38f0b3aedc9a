"""The main set of pseudolabels: how many images each class puts in, and which."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.alignment import Aligned
from labelwright.labels.concepts import CHUNK
from labelwright.labels.transduce import top_confident

MAX_RATIO, MAX_SIZE = 0.8, 1000.0  # at the end: share of a class, and images per class at most
GROWTH_FRAC = 0.7  # share of the epochs after which the set grows no more


def main_set_size(epoch: int, *, n_epochs: int, unlabelled_per_class: Tensor, start: int = 16) -> Tensor:
    """Images per class in an epoch: from ``start`` to `MAX_RATIO` of the class, linearly over `GROWTH_FRAC` of them.

    Args:
      epoch: 0-based.   n_epochs: of the run.
      unlabelled_per_class: [C] float, images that each class is thought to have; N / C for all in the paper.
      start: images per class at first; less for a class that is thought to have fewer.

    Returns: [C] int64.

    Source: arXiv 2505.02056, Section 3.2. Differs: a size for each class, after its estimated number of images.

    Example:
      >>> of = torch.tensor([400.0, 10.0])
      >>> [main_set_size(e, n_epochs=50, unlabelled_per_class=of).tolist() for e in (0, 5, 45)]
      [[16, 8], [59, 8], [320, 8]]
    """
    target = (MAX_RATIO * unlabelled_per_class).clamp(max=MAX_SIZE).double()
    first = torch.minimum(target, torch.tensor(float(start), dtype=torch.float64, device=target.device))
    grown = min(1.0, epoch / (GROWTH_FRAC * n_epochs))
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


def competing_rows(
    feats: Tensor, aligned: Aligned, *, k: int, logit_scale: float, where: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """As many images of every class, the most probable; one that is not among the k of its best class competes for its
    next.

    A class with a description from labels.alignment's ``clustering`` takes its k images by similarity to this first.

    Args:
      feats: [N, D] float, unit norm.
      aligned: class features, linear term and descriptions.
      k: images per class, at least 1.
      where: [N] bool, rows that may be taken.   allowed: [C] bool, classes that they may have.

    Returns: rows [n] int64 and their classes [n] int64, by class, surest first; none where no row may be taken.

    Source: arXiv 2505.02056, Section 3.2.

    Example: the third image is most probably of the first class, which has a better one.
      >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.5]]), dim=1)
      >>> none, nobody = torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)
      >>> found = Aligned(torch.eye(2), none, none[0], none[0] + 0.5, nobody, nobody, torch.ones(3), {})
      >>> every = torch.ones(3, dtype=torch.bool)
      >>> rows, classes = competing_rows(z, found, k=1, logit_scale=10.0, where=every, allowed=every[:2])
      >>> rows.tolist(), classes.tolist()
      ([0, 2], [0, 1])
    """
    rows = where.nonzero().flatten()
    weight = logit_scale * aligned.class_feats + aligned.weight

    def scores() -> Iterator[Tensor]:
        for some in torch.split(rows, CHUNK):
            z = feats[some].float()
            found = (z @ weight.T + aligned.bias).masked_fill(~allowed, -torch.inf).log_softmax(1)
            for c, text in aligned.described.items():
                found[:, c] = 1 + z @ text  # above every log probability: these classes choose first
            yield found

    if not len(rows):
        return rows, rows
    places, classes = top_confident(scores(), k=k)
    return rows[places], classes


def grown(
    first: tuple[Tensor, Tensor], predicted: Tensor, confidence: Tensor, sizes: Tensor, *, where: Tensor
) -> tuple[Tensor, Tensor]:
    """The first main set, and the surest rows of each predicted class beside it.

    Args:
      first: its rows [n] int64 and their classes [n] int64.
      predicted: [N] int64 classes.   confidence: [N] float.
      sizes: [C] int64, rows wanted per class, those of the first set among them.
      where: [N] bool, rows that may be taken.

    Returns: rows [m] int64 and their classes [m] int64, the first ones before the others.

    Source: arXiv 2505.02056, Section 3.2.

    Example:
      >>> first = torch.tensor([2]), torch.tensor([0])
      >>> rows, classes = grown(first, torch.tensor([0, 0, 1, 1]), torch.tensor([0.6, 0.9, 0.5, 0.8]),
      ...                       torch.tensor([2, 1]), where=torch.ones(4, dtype=torch.bool))
      >>> rows.tolist(), classes.tolist()
      ([2, 1, 3], [0, 0, 1])
    """
    rows, classes = first
    free = where.clone()
    free[rows] = False
    wanted = (sizes - torch.bincount(classes, minlength=len(sizes))).clamp(min=0)
    more = surest_rows(predicted, confidence, wanted, where=free)
    return torch.cat([rows, more[0]]), torch.cat([classes, more[1]])


def prototypes(feats: Tensor, classes: Tensor, n_classes: int) -> Tensor:
    """Unit mean of the features of each class.

    Args:
      feats: [n, D] float.
      classes: [n] int64, of each row.

    Returns: [C, D] float; zero for a class without a row.

    Example:
      >>> prototypes(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 1]), 2).tolist()
      [[0.0, 0.0], [1.0, 0.0]]
    """
    sums = feats.new_zeros(n_classes, feats.shape[1]).index_add_(0, classes, feats)
    return F.normalize(sums, dim=1)
