"""Images of no class: how unlike the images that a model learned from an image is, by the nearest few of them.

    d           = 1 - mean cosine to the 5 nearest references: in features, and in 8 x 8 pixels where there are pixels
    score       = the larger d / bar; the bars are such that about 1% of the training images are above 1
    strangeness = share of the training images with a lower score, each of them compared with the others alone

References are images of each class alike, without those that are the most unlike the rest, which would draw strangers
to them. Some 1,000 tell strangers better than 10,000 do: where images come in series (frames of one track), more leave
neighbours that flatter. Pixels see what features that know nothing else do not: photographs lie among the digits of a
network that has seen only digits, and far from them in pixels. benchmarks/strangers.py compares other scores.

Source: Sun et al. 2022 (arXiv 2204.06507), distance to the k-th nearest unit feature. Differs: the mean of k cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor

from labelwright.labels.chunks import each_class_alike, evenly_spread, largest, rank_in_class

K = 5  # nearest references; twice as many where references are judged, so that a handful of odd ones is no reason
REFERENCES, PER_CLASS, MOST_REFERENCES = 1_000, 20, 10_000  # at least in all; of each class; at most in all
LEAST_ROWS = 20  # training images below which nothing is known of what is usual
LEAST_LABELLED = 200  # labelled images, and K of each class, from which unlabelled ones are no references
LEVELS = (0.99, 0.999)  # share of the training images under the bar: in features, in pixels
ROUNDS = 5  # in each of which the hundredth of the references that is most unlike the others is taken out
OF_CLASS = 0.8  # share of the labelled images of each class under the bar
SLACK = 1.5  # of the distance from the median to a bar, if it is foretold by the 90% of images below it
NORMAL_Q90 = 1.2816  # quantile of a standard normal
TABLE = 1_000  # quantiles of the scores of training images that are kept
SIDE_PX = 8
SAME = 1 - 1e-3  # cosine from which on two images may be one and the same, seen in half precision
CHUNK, AT_ONCE = 65_536, 64  # images whose strangeness is looked up, and that are compared with references, at a time

Looks = Callable[[Tensor], tuple[Tensor, ...]]
"""Rows [B] int64 -> what is compared of them: features [B, D] and, where there are pixels, `small_pixels` [B, 192]."""


@dataclass(frozen=True)
class Strangers:
    """What tells images of no class.

    Attributes:
      references: per look [R, D] float16 unit norm; the first one is of features.
      classes: [R] int64 class of each reference, as given or predicted.
      bars: [L] float32, distance from which on an image is a stranger by a look.
      scores: [Q] float32, ascending: those of training images.
    """

    references: tuple[Tensor, ...]
    classes: Tensor
    bars: Tensor
    scores: Tensor

    def score(self, looks: tuple[Tensor, ...]) -> Tensor:
        """Score [B] float32 >= 0 of images; above 1 = of no class.

        Args:
          looks: per look [B, D] float, any norm.

        Example:
          >>> found = Strangers((torch.eye(2).half(),), torch.tensor([0, 1]), torch.tensor([0.8]), torch.tensor([1.0]))
          >>> [round(value, 3) for value in found.score((torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),)).tolist()]
          [0.366, 2.134]
        """
        seen = zip(looks, self.references, self.bars.tolist(), strict=False)
        return torch.stack([distances(look, each) / bar for look, each, bar in seen]).amax(0)

    def strangeness(self, scores: Tensor) -> Tensor:
        """Share [B] float32 of the training images with a lower score; beyond the largest, the nearer to 1 the larger.

        Example:
          >>> found = Strangers((), torch.tensor([]), torch.tensor([]), torch.tensor([0.25, 0.5, 1.0]))
          >>> found.strangeness(torch.tensor([0.0, 0.375, 1.0, 2.0])).tolist()
          [0.0, 0.375, 0.75, 0.875]
        """
        found, known = torch.empty(len(scores)), self.scores.double()
        for some in torch.split(torch.arange(len(scores)), CHUNK):
            s = scores[some].double()
            found[some] = self._between(s, known, torch.searchsorted(known, s, right=True))
        return found

    def placed(self, scores: Tensor) -> Tensor:
        """`strangeness` of a batch, [B] float32, in operations that can be exported."""
        s, known = scores.double(), self.scores.double().to(scores.device)
        return self._between(s, known, (s[:, None] >= known).sum(1))

    def _between(self, s: Tensor, known: Tensor, n_below: Tensor) -> Tensor:
        """Of scores [B], of which so many known ones [B] are not above."""
        n, largest = len(known), known[-1]
        at = n_below.clamp(max=n - 1)
        below, above = torch.cat([known.new_zeros(1), known])[at], known[at]
        within = (at + ((s - below) / (above - below).clamp(min=1e-12)).clamp(0, 1)) / (n + 1)
        return torch.where(s > largest, 1 - largest / s.clamp(min=1e-12) / (n + 1), within).float()

    @property
    def threshold(self) -> float:
        """The strangeness above which an image is of no class: 0.99, or less if the training images hold strangers."""
        return float(self.strangeness(torch.ones(1)))

    def tensors(self) -> dict[str, Tensor]:
        """For a file; `from_tensors` reads them."""
        looks = {f"references.{i}": references for i, references in enumerate(self.references)}
        return {**looks, "classes": self.classes, "bars": self.bars, "scores": self.scores}


def from_tensors(tensors: Mapping[str, Tensor]) -> Strangers:
    """The inverse of `Strangers.tensors`.

    Raises: KeyError if one is missing.
    """
    looks = tuple(tensors[f"references.{i}"] for i in range(len(tensors["bars"])))
    return Strangers(looks, tensors["classes"], tensors["bars"], tensors["scores"])


def small_pixels(x: Tensor) -> Tensor:
    """Clean views [B, 3, H, W] as [B, 192]: their means over 8 x 8 fields.

    Example:
      >>> small_pixels(torch.ones(2, 3, 16, 16)).shape
      torch.Size([2, 192])
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return small_pixels(x)
    rows, columns = (_fields(n).to(x.device) for n in x.shape[-2:])
    return (rows @ x.float() @ columns.T).flatten(1)


def _fields(n: int) -> Tensor:
    """[8, n]: what averages n pixels in 8 fields, which overlap where n is no multiple of 8."""
    i, at = torch.arange(SIDE_PX)[:, None], torch.arange(n)
    inside = (at >= i * n // SIDE_PX) & (at < -(-(i + 1) * n // SIDE_PX))
    return inside / inside.sum(1, keepdim=True)


def distances(z: Tensor, references: Tensor, *, exclude: tuple[Tensor, Tensor] | None = None, k: int = K) -> Tensor:
    """1 - mean cosine [B] float32, 0 to 2, to the k nearest references, on the CPU; 0 where there is none.

    Args:
      z: [B, D] float, any norm.   references: [R, D] unit norm.   k: >= 1.
      exclude: images [P] and references [P] int64, pairs that are left out; None: a reference that is the image itself
        (cosine above `SAME`), but for other copies of it.

    Example:
      >>> references = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
      >>> distances(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), references, k=1).tolist()
      [1.0, 1.0]
    """
    if torch.is_autocast_enabled(z.device.type):  # half precision would blur small distances
        with torch.autocast(z.device.type, enabled=False):
            return distances(z, references, exclude=exclude, k=k)
    sims = F.normalize(z.float(), dim=1) @ references.to(z.device).float().T
    if exclude is not None:
        sims[tuple(rows.to(z.device) for rows in exclude)] = -torch.inf
        near = largest(sims, k)
    else:
        near = largest(sims, k + 1)
        near = F.pad(near, (0, k + 1 - near.shape[1]), value=-torch.inf)
        near = torch.where(near[:, :1] > SAME, near[:, 1:], near[:, :-1])
    is_there = near.isfinite()
    n = is_there.sum(1)
    mean = torch.where(is_there, near, 0.0).sum(1) / n.clamp(min=1)
    far = torch.where(n > 0, (1 - mean).clamp(min=0), 0.0)
    return far.masked_fill(near.isnan().any(1), torch.inf).cpu()


def fit_strangers(
    looks: Looks,
    labels: Tensor,
    predicted: Tensor,
    *,
    n_classes: int,
    groups: Tensor | None = None,
    held_out: tuple[Looks, int] | None = None,
    seed: int = 0,
) -> tuple[Strangers, Tensor] | None:
    """References and bars from training images, and the score of each of them against the others.

    Where every class has `K` labelled images and all have `LEAST_LABELLED` or more, these alone are references, so that
    strangers among the unlabelled images stay strange; else all images are. Those most unlike the others are taken out,
    in `ROUNDS`, but for `K` of each class. The bars are quantiles (`LEVELS`), but not
    farther from the median than the 90% of images that are least strange foretell of a log-normal, and half as far
    again: a tenth of strangers that are unlike one another does not raise them. Labelled images do, so that of no class
    more than a fifth is refused (`OF_CLASS`), however rare it is.

    Args:
      looks: of training images; called chunk by chunk, so that nothing [N, D] is held.
      labels: [N] int64, -1 = unknown.
      predicted: [N] int64, 0 to C - 1.
      n_classes: C.
      groups: [N] int64, images of one group are not compared with each other; or None.
      held_out: looks of other images of the same kind, and how many: bars are theirs. For networks that have learned
        their training images by heart.
      seed: of the choice of references.

    Returns: what tells strangers, and the scores [N] float32 of the training images; None for fewer than `LEAST_ROWS`.

    Example: one of 30 points elsewhere.
      >>> z = torch.cat([torch.tensor([[1.0, 0.01 * i] for i in range(29)]), torch.tensor([[0.0, 1.0]])])
      >>> none = torch.full((30,), -1)
      >>> found, scores = fit_strangers(lambda rows: (z[rows],), none, torch.zeros(30).long(), n_classes=1)
      >>> (scores > 1).nonzero().flatten().tolist()
      [29]
    """
    n, known = len(labels), labels >= 0
    if n < LEAST_ROWS:
        return None
    counts = torch.bincount(labels[known], minlength=n_classes)
    is_labelled = int(counts.min()) >= K and int(known.sum()) >= LEAST_LABELLED
    is_of_class = known if is_labelled else torch.ones_like(known)
    classes = torch.where(known, labels, predicted)
    n_wanted = min(MOST_REFERENCES, max(REFERENCES, PER_CLASS * n_classes))
    rows = each_class_alike(classes, is_of_class.nonzero().flatten(), n_wanted, seed=seed)
    references = tuple(F.normalize(look.float(), dim=1).half().cpu() for look in looks(rows))

    def away(looks: Looks, n_rows: int, training: Tensor | None, *, k: int = K) -> Tensor:
        """[L, n] distances of images by each look; training [n] int64: their rows, None of others."""
        found = torch.empty(len(references), n_rows)
        for some in torch.split(torch.arange(n_rows), AT_ONCE):
            exclude = None if training is None else _same(training[some], rows, groups)
            for out, look, each in zip(found, looks(some), references, strict=True):
                out[some] = distances(look, each, exclude=exclude, k=k)
        return found

    def of_references(some: Tensor) -> tuple[Tensor, ...]:
        return tuple(look[some] for look in references)

    for _ in range(ROUNDS):
        d = away(of_references, len(rows), rows, k=2 * K)
        scores = (d / torch.tensor([[_bar(each, level)] for each, level in zip(d, LEVELS, strict=False)])).amax(0)
        stays = (scores <= 1) | (rank_in_class(classes[rows], scores) < K)
        rows, references = rows[stays], tuple(look[stays] for look in references)
    own = away(looks, n, torch.arange(n))
    usual = own[:, is_of_class] if held_out is None else away(*held_out, None)
    bars = torch.tensor([_bar(each, level) for each, level in zip(usual, LEVELS, strict=False)])
    if held_out is None:
        bars = torch.maximum(bars, torch.stack([_class_bar(each[known], labels[known], counts) for each in own]))
    scores = (usual / bars[:, None]).amax(0).sort().values
    return Strangers(references, classes[rows], bars, evenly_spread(scores, TABLE)), (own / bars[:, None]).amax(0)


def _same(rows: Tensor, others: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pairs [P] and [P], places among the rows and the others, that are the same image, or of one group."""
    keys, among = (rows, others) if groups is None else (groups[rows], groups[others])
    order = among.argsort(stable=True)
    first, end = (torch.searchsorted(among[order], keys, right=right) for right in (False, True))
    n = end - first
    at = torch.arange(int(n.sum())) + (first - n.cumsum(0) + n).repeat_interleave(n)
    return torch.arange(len(rows)).repeat_interleave(n), order[at]


def _class_bar(d: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """What at least `OF_CLASS` of the labelled images of every class with `K` of them are within, of distances [n]."""
    at = rank_in_class(labels, d) == (OF_CLASS * (counts[labels] - 1)).ceil().long()
    return torch.where(at & (counts[labels] >= K), d, 0.0).amax() if len(d) else torch.zeros(())


def _bar(d: Tensor, level: float) -> float:
    """The quantile of distances [N], or what the 90% below it foretell if that is less; above 0."""
    logs = d.double().clamp(min=1e-6).log()
    at = np.quantile(logs.numpy(), (0.5, 0.9, level))
    z = float(ndtri(level))
    return float(np.exp(min(at[2], at[0] + SLACK * (at[1] - at[0]) * z / NORMAL_Q90)))
