"""Are there unlabelled images that are of none of the labelled classes? Asked before anything is learned.

Two looks, as each sees what the other does not:

1. an image is far from every class: its cosine to the nearest mean of a class is under the bar that 5% of the labelled
   images miss (`far_from_labelled`), and more images are than so few labels leave there by chance; shows odd images
   where labels are few.
2. few of an image's nearest neighbours are labelled. The score is the ratio of labelled to unlabelled ones among its
   nearest 30, with labelled images weighed so that each class is as frequent as among the unlabelled ones; as images of
   unnamed classes count there as of a named one, the weights are taken again from the upper half of the scores of each
   class. If labelled images were drawn at random, class by class, the upper part of the scores holds at least the share
   of unlabelled images that are like them, so that the least ratio of the two bounds the rest from below
   (`unlike_labelled`). Of a single image the score, brought to the mean of the estimate, is the chance that it is of a
   class with labels (`Likeness`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import each_class_alike, evenly_spread

EXPECTED_FAR = 0.05
"""Share of labelled images under the bar of `far_from_labelled`."""

FAR = 0.125
"""Share of unlabelled images under it from which classes nobody named are likely. Three seeds of 4,000 images each of
CIFAR-10 and GTSRB, which chose it: at most 0.10 where there are none, 0.23 to 0.47 where half of the classes are."""

ROWS = 4_000  # labelled and unlabelled images, each, by which they are compared; of labelled ones at least two a class
NEIGHBOURS = 30
ROUNDS = 3  # of scores and weights
LEAST_SPEAKING = 8  # labelled images nearest to a class's mean, from which they say what is like it (by a trial)
LEAST_ABOVE = 0.1  # of the labelled images above a score from which a ratio is an estimate
LEAST = 0.05  # share below which a bound shows nothing: classes of few images are not weighed exactly
RISK = 0.05  # of a bound that is too high
FAR_RISK = 0.005  # of so many far ones by chance, above which they are no sign: no bound says how many there are
MOST_DRAWN = 1_000  # unlabelled images whose number matters to what is probable by chance
ALIKE = 1e-5  # cosines that differ by less are the same
LEAST_CHANCE = 0.01  # that an image is of a labelled class
ELSEWHERE = 0.95
"""Share of unlike images from which they are rather of another place than of no class. Images of CIFAR-10, GTSRB,
clothes, digits, letters and emoji that were all moved one way get 1.00, where half are of no class at most 0.57."""


@dataclass(frozen=True)
class Likeness:
    """How probable it is that an image is of a class that labels name, by the images that are nearest to it.

    Attributes:
      centre: [D] float32, mean of the features, which have no absolute value above 1 after division by ``largest``.
      largest: > 0.
      references: [R, D] float32, unit norm.
      labelled: [R] float32 weights of the labelled references, sum their number n; 0 of others.
      unlabelled: [R] float32, as much for each of the others, sum n too; 0 of labelled ones.
      units: [R] int64 of each reference; images of one unit are no neighbours.
      scale: >= 0, of the ratio of the two weights among the neighbours.
    """

    centre: Tensor
    largest: float
    references: Tensor
    labelled: Tensor
    unlabelled: Tensor
    units: Tensor
    scale: float

    def chance(self, feats: Tensor, units: Tensor) -> Tensor:
        """The chance [B] float32, `LEAST_CHANCE` to 1, that images are of a class with labels.

        Args:
          feats: [B, D] float.   units: [B] int64, see `units`.
        """
        z = F.normalize(feats.float().to(self.centre.device) / self.largest - self.centre, dim=1)
        near = _neighbours(z, units.to(z.device), self.references, self.units)
        return (self.scale * _ratio(near, self.labelled, self.unlabelled)).clamp(LEAST_CHANCE, 1).cpu()


@dataclass(frozen=True)
class Unlike:
    """What is known of unlabelled images that are of no labelled class.

    Attributes:
      share: about so many of the unlabelled images, 0 to 1; 0 where nothing shows that there are any.
      least: with 95% confidence there are at least so many; 0 where that is not known.
      likeness: which they are; None where ``share`` is 0.
    """

    share: float = 0.0
    least: float = 0.0
    likeness: Likeness | None = field(default=None, compare=False, repr=False)

    @property
    def is_elsewhere(self) -> bool:
        """Whether nearly no image is like a labelled one: of another place, and may be of the same classes."""
        return self.share >= ELSEWHERE


def unlike_labelled(feats: Tensor, labels: Tensor, *, groups: Tensor | None = None) -> Unlike:
    """Whether unlabelled images are of classes that no label names, and how many.

    Args:
      feats: [N, D] float, any norm.
      labels: [N] int64, -1 = unknown.
      groups: [N] int64; images of one are no neighbours and count as one; or None.

    Returns: nothing shown where too little is labelled to tell (fewer than two images in every class), or nothing is
      unlabelled.

    Source: of the bound, mixture proportions by the best bin: Garg et al. 2021 (arXiv 2111.00980), uniformly over all
      bins by the Dvoretzky-Kiefer-Wolfowitz inequality (Massart 1990).

    Example: half of the unlabelled images are elsewhere.
      >>> g = torch.Generator().manual_seed(0)
      >>> z = torch.randn(3000, 8, generator=g)
      >>> z[2000:, 0] += 6
      >>> found = unlike_labelled(z, torch.tensor([0] * 1000 + [-1] * 2000))
      >>> found
      Unlike(share=0.55, least=0.45)
      >>> is_named = found.likeness.chance(z, torch.arange(3000))
      >>> round(is_named[1000:2000].mean().item(), 2), round(is_named[2000:].mean().item(), 2)
      (0.87, 0.03)
    """
    can = feats.isfinite().all(1).to(labels.device)
    if not bool(can.all()):  # problems of the data, which their reader names
        feats, labels, groups = feats[can], labels[can], None if groups is None else groups[can]
    known = labels >= 0
    if bool(known.all()) or not bool((torch.bincount(labels[known]) > 1).any()):
        return Unlike()
    units = torch.arange(len(labels)) if groups is None else groups
    rows = each_class_alike(labels, known.nonzero().flatten(), max(ROWS, 2 * int(labels.max() + 1)), seed=0)
    others = evenly_spread((~known).nonzero().flatten(), ROWS)
    at, n = torch.cat([rows, others]), len(rows)
    z, units = feats[at].float(), units[at.to(units.device)].to(feats.device)
    largest = float(z.abs().max().clamp(min=1e-30))
    centre = (z / largest).mean(0)
    z = F.normalize(z / largest - centre, dim=1)
    mixed = torch.randperm(len(z), generator=torch.Generator().manual_seed(0)).to(z.device)  # of equals none is first
    near = mixed[_neighbours(z, units, z[mixed], units[mixed])]
    nearest, nearest_rest, n_classes = _nearest_classes(z[:n], labels[rows], units[:n], z[n:])
    unlabelled = torch.cat([z.new_zeros(n), z.new_full((len(others),), n / len(others))])
    kept, kept_rest = torch.ones_like(nearest, dtype=torch.bool), torch.ones_like(nearest_rest, dtype=torch.bool)
    for _ in range(ROUNDS):
        weights = _as_often(nearest, nearest_rest, n_classes, kept, kept_rest)
        labelled = torch.cat([n * weights, weights.new_zeros(len(others))])
        ratios = _ratio(near, labelled, unlabelled)
        own, rest = ratios[:n], ratios[n:]
        bars = _medians(own, nearest, n_classes)
        kept, kept_rest = own >= bars[nearest], rest >= bars[nearest_rest]
    speaks = torch.bincount(nearest, minlength=n_classes) >= LEAST_SPEAKING
    rest = torch.where(speaks[nearest_rest], rest, rest.max())  # of a class that no labelled image stands for: unknown
    order = own.argsort(descending=True)
    above = weights[order].cumsum(0)
    above_rest = 1 - torch.searchsorted(rest.sort().values, own[order]) / len(rest)
    slack, slack_rest = (
        math.sqrt(math.log(2 / RISK) / 2 / _effective(mass, some))
        for mass, some in ((weights, units[:n]), (unlabelled[n:] / n, units[n:]))
    )
    most = (above_rest + slack_rest) / (above - slack).clamp(min=1e-9)
    least = 1 - float(most.min())
    share = max(least, 1 - float((above_rest / above)[above >= LEAST_ABOVE].min()))
    if least <= LEAST:
        (share, by_chance), least = far_from_labelled(feats, labels, groups=groups), 0.0
        if share < FAR or by_chance > FAR_RISK:
            return Unlike()
    z, labelled, unlabelled, units = (each[mixed] for each in (z, labelled, unlabelled, units))
    likeness = Likeness(centre, largest, z, labelled, unlabelled, units, _scale_to_mean(rest, 1 - share))
    return Unlike(round(share, 2), round(least, 2), likeness)


def _neighbours(z: Tensor, units: Tensor, references: Tensor, units_of: Tensor) -> Tensor:
    """Of each row of z [B, D] the nearest K references [R, D] (unit norm) of other units (int64): [B, K]."""
    k = min(NEIGHBOURS, len(references) - 1)
    parts = zip(torch.split(z, 1_024), torch.split(units, 1_024), strict=True)
    found = [(some @ references.T).masked_fill_(its[:, None] == units_of, -2).topk(k).indices for some, its in parts]
    return torch.cat(found)


def _ratio(near: Tensor, labelled: Tensor, unlabelled: Tensor) -> Tensor:
    """Of neighbours [N, K] the weight of labelled to that of unlabelled ones, and one more of each: few tell little."""
    return (1 + labelled[near].sum(1)) / (1 + unlabelled[near].sum(1))


def _scale_to_mean(ratios: Tensor, mean: float) -> float:
    """By how much ratios [M] > 0 are to be multiplied so that, cut off at 1, they have this mean, 0 to 1."""
    largest = ratios.double().sort(descending=True).values
    rest = largest.flip(0).cumsum(0).flip(0)  # their sum without the k largest, which are cut off
    scales = (mean * len(ratios) - torch.arange(len(ratios), device=ratios.device)) / rest
    return float(scales[scales * largest <= 1][0])


def _medians(scores: Tensor, nearest: Tensor, n_classes: int) -> Tensor:
    """Of each class [C] the (upper) median of its scores; 0 of a class without any."""
    order = scores.argsort()
    order = order[nearest[order].argsort(stable=True)]
    counts = torch.bincount(nearest, minlength=n_classes)
    places = (counts.cumsum(0) - counts + counts // 2).clamp(max=len(order) - 1)
    return scores[order][places] * (counts > 0)


def _effective(weights: Tensor, units: Tensor) -> float:
    """How many images of equal weight tell as much: groups count as one."""
    _, units = torch.unique(units, return_inverse=True)
    sums = torch.zeros(int(units.max()) + 1).index_add_(0, units.cpu(), weights.cpu().float())
    return float(1 / sums.square().sum())


def _nearest_classes(own: Tensor, labels: Tensor, units: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, int]:
    """The class whose mean is nearest, of labelled images (each unit left out of its mean) and of the others, and C."""
    _, labels, sizes = torch.unique(labels.to(own.device), return_inverse=True, return_counts=True)
    sums = own.new_zeros(len(sizes), own.shape[1]).index_add_(0, labels, own)
    means = sums / sizes[:, None]
    away = means.square().sum(1) / 2
    without, n_others = _without_own(own, labels, units, sums)
    without = without / n_others.clamp(min=1)[:, None]
    left_out = (own * without).sum(1) - without.square().sum(1) / 2
    nearest = (own @ means.T - away).scatter(1, labels[:, None], left_out[:, None]).argmax(1)
    nearest_rest = torch.cat([(some @ means.T - away).argmax(1) for some in torch.split(rest, 4_096)])
    return nearest, nearest_rest, len(sizes)


def _without_own(z: Tensor, classes: Tensor, units: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of z [n, D] the sum [n, D] over its class without the rows of its unit, and how many [n] these are.

    Args: classes [n] int64.   units [n] int.   sums [C, D] of the rows of each class.
    """
    _, units = torch.unique(units, return_inverse=True)
    _, pairs, sizes = torch.unique(classes * (units.max() + 1) + units, return_inverse=True, return_counts=True)
    own = z.new_zeros(len(sizes), z.shape[1]).index_add_(0, pairs, z)
    return sums[classes] - own[pairs], torch.bincount(classes)[classes] - sizes[pairs]


def far_from_labelled(feats: Tensor, labels: Tensor, *, groups: Tensor | None = None) -> tuple[float, float]:
    """Share of the unlabelled images that look unlike every labelled class: 0.05 is expected where all are of these.

    And how probable it is that there are so many though all are of these: the fewer labels, the less sure is the bar.

    An image is unlike a class by its cosine to the mean of the class's labelled images; the bar is the one that 5% of
    the labelled images miss, each left out of its own mean with its group, and weighed as its class is frequent among
    the others.

    Args:
      feats: [N, D] float, any norm.
      labels: [N] int64, -1 = unknown.
      groups: [N] int64; images of one count as one; or None.

    Returns: both 0 to 1; 0 and 1 where too little is labelled to tell (fewer than two images, of two groups, in every
      class), or nothing is unlabelled.

    Source: of the chance, Gumbel & von Schelling 1950 (Ann. Math. Statist. 21), the number of exceedances.

    Example: two of four unlabelled images point elsewhere.
      >>> labelled = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, 0.1, 0.1]])
      >>> others = torch.tensor([[1.0, 0.05, 0.05], [1.0, 0.0, 0.05], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> far_from_labelled(torch.cat([labelled, others]), torch.tensor([0] * 4 + [-1] * 4))
      (0.5, 0.2143)
    """
    z, labels = F.normalize(feats.float(), dim=1), labels.to(feats.device)
    known, units = labels >= 0, torch.arange(len(labels), device=z.device) if groups is None else groups.to(z.device)
    classes, own = torch.unique(labels[known], return_inverse=True)
    if not len(classes) or bool(known.all()):
        return 0.0, 1.0
    sums = torch.zeros(len(classes), z.shape[1], device=z.device).index_add_(0, own, z[known])
    means = F.normalize(sums, dim=1)
    without, n_others = _without_own(z[known], own, units[known], sums)
    several = n_others > 0  # left out of a mean of its own, a single image has none
    if not bool(several.any()):
        return 0.0, 1.0
    rows, its = z[known][several], own[several]
    left_out = (rows * F.normalize(without[several], dim=1)).sum(1)
    parts = (torch.split(each, 4_096) for each in (rows, its[:, None], left_out[:, None]))
    found = [(some @ means.T).scatter(1, *of_own).max(1) for some, *of_own in zip(*parts, strict=True)]
    near, nearest = (torch.cat(each) for each in zip(*found, strict=True))
    found = [(some @ means.T).max(1) for some in torch.split(z[~known], 4_096)]
    near_rest, nearest_rest = (torch.cat(each) for each in zip(*found, strict=True))
    order, weights = near.argsort(), _as_often(nearest, nearest_rest, len(classes))
    below = weights[order].cumsum(0)
    at = (below < EXPECTED_FAR).sum().clamp(max=len(order) - 1)
    share = float((near_rest < near[order][at] - ALIKE).float().mean())
    n = _effective(weights, units[known][several])
    m = _effective(torch.full_like(near_rest, 1 / len(near_rest)), units[~known])
    return round(share, 4), round(_chance_of(share, m, n, max(1.0, n * float(below[at]))), 4)


def _chance_of(share: float, m: float, n: float, rank: float) -> float:
    """How probable it is that such a share, 0 to 1, of m images or more are under the rank-th lowest of n like them."""
    from scipy.special import betaln

    m = max(1, min(round(m), MOST_DRAWN))
    k = np.arange(math.floor(share * m + 1e-6), m + 1)
    below, above = rank, max(n - rank, 0.0) + 1
    logs = betaln(k + below, m - k + above) - betaln(below, above) - betaln(k + 1, m - k + 1) - math.log(m + 1)
    return min(1.0, float(np.exp(logs).sum()))


def _as_often(
    nearest: Tensor, nearest_rest: Tensor, n_classes: int, kept: Tensor | None = None, kept_rest: Tensor | None = None
) -> Tensor:
    """Weights [n], sum 1, of labelled images, so that their classes are as frequent as among the others.

    Counted are the images ``kept`` of each; the weights are for all.
    """
    counts, wanted = (
        torch.bincount(each if some is None else each[some], minlength=n_classes).float()
        for each, some in ((nearest, kept), (nearest_rest, kept_rest))
    )
    weights = (wanted / counts.clamp(min=1))[nearest]
    return weights / weights.sum() if float(weights.sum()) > 0 else torch.full_like(weights, 1 / len(weights))
