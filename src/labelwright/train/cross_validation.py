"""The penalty of a head by the loss of rows that were left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelwright.train.convex import Linear, Problem, solve

PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""What is tried; from the strongest on, each starts where the last one ended."""

MAX_FOLDS = 5
MAX_TRIED_ROWS = 5000  # images that take part in the cross-validation; of a rare class at least `LEAST_TRIED`
LEAST_TRIED = 20
TRIED_GRADIENT = 1e-4  # `train.convex.LEAST_GRADIENT` of heads that serve only to be compared


@dataclass(frozen=True)
class CrossValidated:
    """What cross-validation found."""

    penalty: float  # the one under which rows left out are most likely, all classes counted alike
    loss: float  # that mean -log p, in nats: the mean over the classes of the mean over their rows
    rows: Tensor  # [n] int64, the rows that took part
    fold: Tensor  # [n] int64, the fold of each
    logits: Tensor  # [n, C] float32 of these rows, each by a head that did not see it, at that penalty
    heads: tuple[Linear, ...]  # by fold, the heads that did not see it

    @property
    def head(self) -> Linear:
        """Mean of the heads, a start for the one on all rows."""
        weight, bias = (
            torch.stack(parts).mean(0) for parts in zip(*((h.weight, h.bias) for h in self.heads), strict=True)
        )
        return Linear(weight, bias)


def folds_of(labels: Tensor, groups: Tensor | None, *, seed: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows that take part in a cross-validation and the fold of each.

    Args:
      labels: [N] int64, 0 to C-1.
      groups: [N] int, rows of one group fall into one fold; or None.
      limit: how many rows take part, about; None = `MAX_TRIED_ROWS`.

    Returns: rows [n] int64, ascending, and their folds [n] int64: all rows, or of more than the limit a share of each
      class; empty where fewer than two classes have two rows, or two groups.

    Example:
      >>> rows, fold = folds_of(torch.tensor([0, 0, 0, 1, 1, 1]), None, seed=0)
      >>> rows.tolist(), torch.bincount(fold).tolist()
      ([0, 1, 2, 3, 4, 5], [2, 2, 2])
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    y, of_row = labels.cpu().numpy(), None if groups is None else groups.cpu().numpy()
    counts = np.bincount(y)
    apart = counts if of_row is None else np.bincount(np.unique(np.stack([y, of_row]), axis=1)[0])
    if (apart >= 2).sum() < 2:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    draw = np.random.default_rng(seed)
    share = min(1.0, (limit or MAX_TRIED_ROWS) / len(y))
    kept = [
        draw.permutation(np.flatnonzero(y == c))[: max(LEAST_TRIED, round(share * n))] for c, n in enumerate(counts)
    ]
    rows = np.sort(np.concatenate(kept)) if share < 1 else np.arange(len(y))
    # Folds of a large set are alike: three say as much as five.
    n_folds = int(min(MAX_FOLDS if len(rows) < MAX_TRIED_ROWS // 2 else 3, counts[counts >= 2].max()))
    fold = np.zeros(len(rows), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is missing from some
        if of_row is None:
            splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, y[rows])
        else:
            of = of_row[rows]
            n_folds = min(n_folds, len(np.unique(of)))
            if n_folds < 2:
                return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
            splits = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, y[rows], of)
        for k, (_, left_out) in enumerate(splits):
            fold[left_out] = k
    return torch.from_numpy(rows), torch.from_numpy(fold)


def cross_validate(
    z: Tensor,
    labels: Tensor,
    problem_of: Callable[[Tensor], Problem],
    *,
    n_classes: int,
    rows: Tensor,
    fold: Tensor,
    penalties: Sequence[float] = PENALTIES,
    start: Sequence[Linear] = (),
) -> CrossValidated:
    """Choose a penalty by the loss of rows that were left out.

    A row whose class no other fold has is not scored: nothing could have been learned of it. From the strongest penalty
    on, the search ends once two weaker ones in a row were no better.

    Args:
      z: [N, D] float32, as for `solve`.   labels: [N] int64.
      problem_of: counts [C] of the rows that are fitted -> the problem.
      rows, fold: of `folds_of`, at least two folds.
      penalties: to be tried, strongest first.
      start: by fold, heads to begin at, as of another problem on these folds; the end does not depend on them.

    Example: two classes far apart ask for a weak penalty.
      >>> labels = torch.arange(40) % 2
      >>> z = torch.where(labels[:, None] == 1, 1.0, -1.0) + 0.01 * torch.arange(40)[:, None] / 40
      >>> rows, fold = folds_of(labels, None, seed=0)
      >>> cross_validate(z, labels, lambda counts: Problem(), n_classes=2, rows=rows, fold=fold).penalty
      0.03
    """
    rows, fold = rows.to(z.device), fold.to(z.device)
    z, labels = z[rows], labels[rows]
    parts = [(fold != k, fold == k) for k in range(int(fold.max()) + 1)]
    counts = [torch.bincount(labels[fitted], minlength=n_classes) for fitted, _ in parts]
    scored = has_others(labels, fold)
    heads: list[Linear | None] = [*start] or [None] * len(parts)  # at the last penalty, where the next one starts
    best: CrossValidated | None = None
    n_worse = 0
    for penalty in penalties:
        logits = z.new_zeros(len(rows), n_classes)
        for k, (fitted, left_out) in enumerate(parts):
            share = float(fitted.sum()) / len(rows)
            head = solve(
                z[fitted],
                labels[fitted],
                problem_of(counts[k]),
                n_classes=n_classes,
                penalty=share * penalty,
                start=heads[k],
                least_gradient=TRIED_GRADIENT,
            )
            heads[k], logits[left_out] = head, head(z[left_out])
        loss = balanced_loss(logits[scored], labels[scored])
        n_worse = 0 if best is None or loss < best.loss else n_worse + 1
        if n_worse == 0:
            best = CrossValidated(penalty, loss, rows, fold, logits, tuple(head for head in heads if head))
        if n_worse == 2:
            break
    assert best is not None, "there are penalties"
    return best


def has_others(labels: Tensor, fold: Tensor) -> Tensor:
    """[n] bool: another fold has the class of the row, so that something is learned of it where the row is left out.

    Args:
      labels, fold: [n] int64.

    Example:
      >>> has_others(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 0, 1])).tolist()
      [True, True, False, False, False]
    """
    if not len(labels):
        return torch.zeros(0, dtype=torch.bool, device=labels.device)
    counts = labels.new_zeros(int(labels.max()) + 1, int(fold.max()) + 1)
    counts.index_put_((labels, fold), torch.ones_like(labels), accumulate=True)
    return counts.sum(1)[labels] > counts[labels, fold]


def balanced_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the mean -log softmax of their rows, in nats.

    Args:
      logits: [N, C] float.   labels: [N] int64.

    Example: log 2 for each of two classes, however many rows they have.
      >>> round(balanced_loss(torch.zeros(3, 2), torch.tensor([0, 0, 1])), 4)
      0.6931
    """
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    counts = torch.bincount(labels)
    sums = torch.zeros(len(counts), device=each.device).index_add_(0, labels, each)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
