"""Columns that were measured in units of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.train.convex import Problem
from labelwright.train.cross_validation import cross_validate, folds_of
from labelwright.train.scaling import scaled

FEW_COLUMNS = 0.1  # of the features: if no more carry the variance, the others have no say on one scale
LEAST_COLUMNS = 1.1  # that carry it, of few features
SCALED_ROWS = 5000  # labelled, and unlabelled ones, by which columns are judged
WEIGHED_ROWS = 1000  # labelled rows on which one scale is held against one of each column
FEWER_ROWS, FEWER_CLASSES = 300, 50  # the same where many columns carry the variance, and a clear word is asked for
EVEN_SCALES = 3.0  # the largest deviation of a column, times the least: below it nothing is weighed
CHANCE = 3.0  # times 1 / N: squared correlations of columns that are not correlated


def column_scales(feats: Tensor, labels: Tensor) -> Tensor | None:
    """What to divide columns by that were measured in units of their own; None where all are of one scale.

    Where a tenth of the columns carries the variance, the others have no say in distances, nor under a penalty; each is
    divided by its deviation then. Principal components are an exception: they are not correlated, and those that spread
    little say little. Labels decide against either if those left out are likelier by two standard errors; and for it
    by three where more columns carry the variance, as where features of two scales stand side by side. Deviations
    within a factor of three are one scale.

    Args:
      feats: [N, D] float.
      labels: [N] int64, -1 = unknown.

    Returns: [D] float32 > 0, 1 for a column that is constant; or None.

    Example: grams beside kilometres, and the same columns on one scale.
      >>> z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
      >>> z[:, 2] += z[:, 0]
      >>> scales = column_scales(z * torch.tensor([1000.0, 1.0, 1.0]), torch.full((100,), -1))
      >>> scales is not None and bool(scales[0] > 900), column_scales(z, torch.full((100,), -1))
      (True, None)
    """
    deviation = feats.double().std(0, correction=0)
    spreads = deviation > 1e-6 * deviation.max()
    variance = deviation[spreads].square()
    n_columns = len(variance)
    n_carrying = float(variance.sum().square() / variance.square().sum()) if n_columns else 0.0
    if n_columns < 2 or float(variance.max()) < EVEN_SCALES**2 * float(variance.min()):
        return None
    is_carried_by_few = n_carrying <= max(LEAST_COLUMNS, FEW_COLUMNS * n_columns)
    scales, mean = torch.where(spreads, deviation, 1.0).float(), feats.mean(0, dtype=torch.float64)
    known = (labels >= 0).nonzero().flatten()
    is_correlated = False  # which says something of few columns alone
    if is_carried_by_few:
        z = ((feats.double() - mean) / scales)[:, spreads]
        alike = (z.T @ z / len(z)).square().fill_diagonal_(0).sum() / (n_columns * (n_columns - 1))
        is_correlated = bool(alike > CHANCE / len(z))
    else:  # several of each class
        known, classes = known[labels[known].argsort(stable=True)], torch.unique(labels[known])
        known = known[torch.isin(labels[known], classes[:: len(classes) // FEWER_CLASSES + 1])]
        known = known[:: len(known) // FEWER_ROWS + 1]
    y = torch.unique(labels[known], return_inverse=True)[1]
    rows, fold = folds_of(y, None, seed=0, limit=WEIGHED_ROWS)
    if not len(rows) or int(fold.max()) < 1:
        return scales if is_correlated else None
    given = feats[known].double() - mean
    each = [_left_out_losses(some, y, rows, fold) for some in (given.float(), (given / scales)[:, spreads].float())]
    gain = each[0] - each[1]
    clear = float(gain.mean()) / max(1e-9, float(gain.std()) / len(gain) ** 0.5)
    return scales if clear > (2 if is_carried_by_few else 3) or (is_correlated and clear > -2) else None


def _left_out_losses(feats: Tensor, labels: Tensor, rows: Tensor, fold: Tensor) -> Tensor:
    """[n] -log p of the rows, each by a head that did not see it."""
    n_classes = int(labels.max()) + 1
    found = cross_validate(scaled(feats).z, labels, lambda counts: Problem(), n_classes=n_classes, rows=rows, fold=fold)
    return torch.nn.functional.cross_entropy(found.logits, labels[found.rows], reduction="none")
