"""Are there unlabelled images that are of none of the labelled classes? Asked before anything is learned.

Two looks, as each sees what the other does not:

1. an image is far from every class: its cosine to the nearest mean of a class is under the bar that 5% of the labelled
   images miss (`far_from_labelled`); shows odd images where labels are few.
2. one linear score separates labelled from unlabelled images, in folds, after the labelled ones were weighed
   to be of the classes that the unlabelled ones seem to be of. If labelled images were drawn at random, class by class,
   the most labelled-like part of the scores holds at least the share of unlabelled images that are like them, so that
   the least ratio of the two bounds the rest from below (`unlike_labelled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread

EXPECTED_FAR = 0.05
"""Share of labelled images under the bar of `far_from_labelled`."""

FAR = 0.125
"""Share of unlabelled images under it from which classes nobody named are likely. Three seeds of 4,000 images each of
CIFAR-10 and GTSRB, which chose it: at most 0.10 where there are none, 0.23 to 0.47 where half of the classes are."""

ROWS = 20_000  # labelled and unlabelled images, each, by which they are compared
LEAST_ABOVE = 0.1  # of the labelled images above a score from which a ratio is an estimate
LEAST = 0.05  # share below which a bound shows nothing: classes of few images are not weighed exactly
RIDGE = 0.1  # of the mean variance, on the covariance
FOLDS = 10
RISK = 0.05  # of a bound that is too high


@dataclass(frozen=True)
class Unlike:
    """What is known of unlabelled images that are of no labelled class.

    Attributes:
      share: up to so many of the unlabelled images, 0 to 1, by an estimate that is rather too large; 0 where nothing
        shows that there are any.
      least: with 95% confidence there are at least so many; 0 where that is not known.
    """

    share: float = 0.0
    least: float = 0.0


def unlike_labelled(feats: Tensor, labels: Tensor, *, groups: Tensor | None = None) -> Unlike:
    """Whether unlabelled images are of classes that no label names, and how many.

    Args:
      feats: [N, D] float, any norm.
      labels: [N] int64, -1 = unknown.
      groups: [N] int64; images of one are in one fold and count as one; or None.

    Returns: nothing shown where too little is labelled to tell (fewer than two images in every class), or nothing is
      unlabelled.

    Source: of the bound, mixture proportions by the best bin: Garg et al. 2021 (arXiv 2111.00980), uniformly over all
      bins by the Dvoretzky-Kiefer-Wolfowitz inequality (Massart 1990).

    Example: half of the unlabelled images are elsewhere.
      >>> g = torch.Generator().manual_seed(0)
      >>> z = torch.randn(3000, 8, generator=g)
      >>> z[2000:, 0] += 6
      >>> unlike_labelled(z, torch.tensor([0] * 1000 + [-1] * 2000))
      Unlike(share=0.52, least=0.45)
    """
    can = feats.isfinite().all(1).to(labels.device)
    if not bool(can.all()):  # problems of the data, which their reader names
        feats, labels, groups = feats[can], labels[can], None if groups is None else groups[can]
    known = labels >= 0
    if bool(known.all()) or not bool((torch.bincount(labels[known]) > 1).any()):
        return Unlike()
    far = far_from_labelled(feats, labels)
    share, least = _separated(feats, labels, groups)
    if least > LEAST:
        return Unlike(round(share, 2), round(least, 2))
    return Unlike(far if far >= FAR else 0.0)


def _separated(feats: Tensor, labels: Tensor, groups: Tensor | None) -> tuple[float, float]:
    """The second look: estimated and least share."""
    rows, others = (evenly_spread(some.nonzero().flatten(), ROWS) for some in (labels >= 0, labels < 0))
    at = torch.cat([rows, others])
    z = feats[at].float()
    z = z / z.abs().max().clamp(min=1e-30)
    z = z - z.mean(0)
    covariance = z.T @ z / len(z)
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-12)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.T, upper=False).T
    own, rest = z[: len(rows)], z[len(rows) :]
    weights = _as_the_others(own, labels[rows], rest)
    units = torch.arange(len(at)) if groups is None else torch.unique(groups[at], return_inverse=True)[1]
    fold = torch.randperm(int(units.max()) + 1, generator=torch.Generator().manual_seed(0))[units] % FOLDS
    fold_own, fold_rest = fold[: len(rows)].to(z.device), fold[len(rows) :].to(z.device)
    scores, scores_rest = own.new_zeros(len(own)), own.new_zeros(len(rest))
    for k in range(FOLDS):
        seen, seen_rest = (fold_own != k) * weights, fold_rest != k
        if not bool(seen.any()) or not bool(seen_rest.any()):
            return 0.0, 0.0
        direction = seen @ own / seen.sum() - rest[seen_rest].mean(0)
        scores[fold_own == k] = own[fold_own == k] @ direction
        scores_rest[fold_rest == k] = rest[fold_rest == k] @ direction
    order = scores.argsort(descending=True)
    above = weights[order].cumsum(0)
    above_rest = 1 - torch.searchsorted(scores_rest.sort().values, scores[order]) / len(rest)
    slack, slack_rest = (
        math.sqrt(math.log(2 / RISK) / 2 / _effective(mass, some))
        for mass, some in (
            (weights, units[: len(rows)]),
            (torch.full_like(scores_rest, 1 / len(rest)), units[len(rows) :]),
        )
    )
    most = (above_rest + slack_rest) / (above - slack).clamp(min=1e-9)
    ratio = (above_rest / above)[above >= LEAST_ABOVE]
    return max(0.0, 1 - float(ratio.min())), 1 - float(most.min())


def _effective(weights: Tensor, units: Tensor) -> float:
    """How many images of equal weight tell as much: groups count as one."""
    sums = torch.zeros(int(units.max()) + 1).index_add_(0, units, weights.cpu().float())
    return float(1 / sums.square().sum())


def _as_the_others(own: Tensor, labels: Tensor, rest: Tensor) -> Tensor:
    """Weights [n], sum 1, of labelled images: by the class whose mean is nearest (each image left out of its own mean),
    so that these classes are as frequent as among the others."""
    _, labels, sizes = torch.unique(labels.to(own.device), return_inverse=True, return_counts=True)
    sums = own.new_zeros(len(sizes), own.shape[1]).index_add_(0, labels, own)
    means = sums / sizes[:, None]
    away = means.square().sum(1) / 2
    without = (sums[labels] - own) / (sizes[labels] - 1).clamp(min=1)[:, None]
    left_out = (own * without).sum(1) - without.square().sum(1) / 2
    nearest = (own @ means.T - away).scatter(1, labels[:, None], left_out[:, None]).argmax(1)
    nearest_rest = torch.cat([(some @ means.T - away).argmax(1) for some in torch.split(rest, 4_096)])
    return _as_often(nearest, nearest_rest, len(sizes))


def far_from_labelled(feats: Tensor, labels: Tensor) -> float:
    """Share of the unlabelled images that look unlike every labelled class: 0.05 is expected where all are of these.

    An image is unlike a class by its cosine to the mean of the class's labelled images; the bar is the one that 5% of
    the labelled images miss, each left out of its own mean, and weighed as its class is frequent among the others.

    Args:
      feats: [N, D] float, any norm.
      labels: [N] int64, -1 = unknown.

    Returns: 0 to 1; 0 where too little is labelled to tell (fewer than two images in every class), or nothing is
      unlabelled.

    Example: two of four unlabelled images point elsewhere.
      >>> labelled = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, 0.1, 0.1]])
      >>> others = torch.tensor([[1.0, 0.05, 0.05], [1.0, 0.0, 0.05], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> far_from_labelled(torch.cat([labelled, others]), torch.tensor([0] * 4 + [-1] * 4))
      0.5
    """
    z, known = F.normalize(feats.float(), dim=1), labels >= 0
    classes, own, sizes = torch.unique(labels[known], return_inverse=True, return_counts=True)
    if not bool((sizes > 1).any()) or bool(known.all()):
        return 0.0
    sums = torch.zeros(len(classes), z.shape[1], device=z.device).index_add_(0, own, z[known])
    means = F.normalize(sums, dim=1)
    several = sizes[own] > 1  # left out of a mean of its own, a single image has none
    rows, its = z[known][several], own[several]
    left_out = (rows * F.normalize(sums[its] - rows, dim=1)).sum(1)
    near, nearest = (rows @ means.T).scatter(1, its[:, None], left_out[:, None]).max(1)
    found = [(some @ means.T).max(1) for some in torch.split(z[~known], 16_384)]
    near_rest, nearest_rest = (torch.cat(each) for each in zip(*found, strict=True))
    order = near.argsort()
    below = _as_often(nearest, nearest_rest, len(classes))[order].cumsum(0)
    bar = near[order][(below < EXPECTED_FAR).sum().clamp(max=len(order) - 1)]
    return round(float((near_rest < bar).float().mean()), 4)


def _as_often(nearest: Tensor, nearest_rest: Tensor, n_classes: int) -> Tensor:
    """Weights [n], sum 1, of labelled images, so that their classes are as frequent as among the others."""
    counts, wanted = (torch.bincount(each, minlength=n_classes).float() for each in (nearest, nearest_rest))
    weights = (wanted / counts.clamp(min=1))[nearest]
    return weights / weights.sum() if float(weights.sum()) > 0 else torch.full_like(weights, 1 / len(weights))
