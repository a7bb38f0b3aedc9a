"""Labels judged and outliers found row by row, by what was learned from a sample: for more rows than memory holds.

 1  a sample of labelled rows, and a smaller one of all rows; the fold of a row is a hash of its id, or of its group
 2  heads on the sample, each without one fold; the noise of the labels by rows that their head did not see
 3  a row is judged by the head that did not see its fold and by the noise, as in labels/audit.py without its neighbours
 4  its distance is that to the nearest rows of the smaller sample

Time grows as N, memory not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.audit import FAR_OUT, N_ROUNDS, PENALTY, WEIGHED_ROWS, alike_of, believed
from labelwright.labels.chunks import chunks_of, evenly_spread, largest, slices_of
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.cross_validation import TRIED_GRADIENT
from labelwright.train.scaling import scaled

N_FOLDS = 3
N_NEAREST = 3  # rows of the smaller sample that a row is compared with


@dataclass(frozen=True)
class Judge:
    """What a sample says of any row."""

    mean: Tensor  # [D] float32, and
    scale: Tensor  # [], of the features
    weight: Tensor  # [K, C, D] and
    bias: Tensor  # [K, C] float32: heads, each of which did not see its fold; K = 0: there was nothing to learn from
    strength: Tensor  # of their log-probabilities
    noise: Tensor  # [C, C] float32, p(given | true), rows sum to 1
    is_seen: Tensor  # [K, C] bool, classes of which a head has seen a row
    reference: Tensor  # [R, D] float32, unit norm: the smaller sample
    median: Tensor  # of the distances of its rows to one another, and
    bar: Tensor  # the distance above which a row is an outlier, over that median

    def arrays(self) -> dict[str, Any]:
        """For a file; `of_arrays` is the same again."""
        return {name: value.numpy() for name, value in vars(self).items()}

    def logits(self, feats: Tensor, fold: Tensor) -> Tensor:
        """[B, C] of rows with features [B, D], by the head that did not see their fold [B]."""
        z = (feats.float() - self.mean) / self.scale
        found = torch.empty(len(z), self.weight.shape[1])
        for k in range(len(self.weight)):
            own = (fold == k).nonzero().flatten()
            found[own] = F.linear(z[own], self.weight[k], self.bias[k])
        return found

    def scores(self, feats: Tensor, labels: Tensor, fold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chance that each given label is right, the most probable other class and its chance, as in `Judged`.

        Args:
          feats: [B, D] float.   labels: [B] int64, -1 = none.   fold: [B] int64, 0 to K-1.

        Returns: [B] float32, NaN where there is no score; [B] int64, -1 there; [B] float32, NaN there.
        """
        score, other_chance = torch.full((len(labels),), torch.nan), torch.full((len(labels),), torch.nan)
        suggested = torch.full((len(labels),), -1)
        known = (labels >= 0) & (len(self.weight) > 0)
        if not known.any():
            return score, suggested, other_chance
        if len(self.weight):
            known &= self.is_seen[fold, labels.clamp(min=0)]
        of_given, n_numbers = self.noise.T.contiguous(), max(self.weight.shape[1:])  # rows of one label lie together
        for at in chunks_of(known.nonzero().flatten(), n_numbers):
            y = labels[at][:, None]
            q = (self.strength * self.logits(feats[at], fold[at])).softmax(1).mul_(of_given[y[:, 0]])
            q /= q.sum(1, keepdim=True)
            score[at] = q.gather(1, y)[:, 0]
            other_chance[at], suggested[at] = q.scatter_(1, y, -1.0).max(1)
        return score, suggested, other_chance

    def distances(self, feats: Tensor) -> Tensor:
        """[B] float32 distance of rows [B, D] to the nearest of the smaller sample but themselves, over the median."""
        z = F.normalize((feats.float() - self.mean) / self.scale, dim=1)
        return _distances(z, self.reference) / self.median


def of_arrays(arrays: Mapping[str, Any]) -> Judge:
    """A `Judge` out of its `arrays`."""
    return Judge(**{name: torch.from_numpy(np.asarray(arrays[name])) for name in Judge.__dataclass_fields__})


def learn(feats: Tensor, labels: Tensor, fold: Tensor, reference: Tensor, *, n_classes: int) -> tuple[Judge, Tensor]:
    """Learn to judge.

    Args:
      feats: [n, D] float of the sample of labelled rows.   labels: [n] int64, 0 to C-1.
      fold: [n] int64, 0 to `N_FOLDS` - 1.
      reference: [R, D] float, of the smaller sample of all rows.

    Returns: the judge, and [C, C] float32, see `alike_of`.

    Example: two kinds, and one row of the first with the label of the second.
      >>> z = torch.eye(2)[torch.arange(60) % 2] + torch.linspace(0, 0.1, 60)[:, None]
      >>> labels = torch.arange(60) % 2
      >>> labels[0] = 1
      >>> judge, _ = learn(z, labels, torch.arange(60) // 2 % 3, z, n_classes=2)
      >>> score, suggested, _ = judge.scores(z, labels, torch.arange(60) // 2 % 3)
      >>> int(score.argmin()), int(suggested[0])
      (0, 0)
    """
    found = scaled(feats if len(feats) else reference)
    mean, scale = found.mean, found.scale
    z = F.normalize((reference.float() - mean) / scale, dim=1)
    apart = _distances(z, z)
    median = apart.median().clamp(min=1e-9) if len(apart) else torch.ones(())
    quarter, three = torch.quantile(apart / median, torch.tensor([0.25, 0.75])) if len(apart) else torch.zeros(2)
    bar = three + FAR_OUT * (three - quarter).clamp(min=1e-9)
    D, heads, seen = feats.shape[1], list[Linear](), list[Tensor]()
    counts = torch.bincount(labels, minlength=n_classes)
    if int((counts >= 2).sum()) >= 2 and int(torch.bincount(fold, minlength=N_FOLDS).min()) > 0:
        for k in range(N_FOLDS):
            rows = (fold != k).nonzero().flatten()
            share = len(rows) / len(feats)
            start = heads[-1] if heads else None
            head = solve(
                found.z[rows],
                labels[rows],
                Problem(),
                n_classes=n_classes,
                penalty=share * PENALTY,
                start=start,
                least_gradient=TRIED_GRADIENT,
            )
            heads.append(head)
            seen.append(torch.bincount(labels[rows], minlength=n_classes) > 0)
    judge = Judge(
        mean=mean,
        scale=scale,
        weight=torch.stack([found.plain(head).weight for head in heads]) if heads else torch.zeros(0, n_classes, D),
        bias=torch.stack([head.bias for head in heads]) if heads else torch.zeros(0, n_classes),
        strength=torch.ones(()),
        noise=torch.eye(n_classes),
        is_seen=torch.stack(seen) if seen else torch.zeros(0, n_classes, dtype=torch.bool),
        reference=z,
        median=median,
        bar=bar,
    )
    if not heads:
        return judge, torch.eye(n_classes)
    some = evenly_spread(judge.is_seen[fold, labels].nonzero().flatten(), WEIGHED_ROWS)
    log_probs = judge.logits(feats[some], fold[some]).log_softmax(1)
    weights, noise = believed(log_probs[None], labels[some], n_rounds=N_ROUNDS)
    probs = (weights[0] * log_probs).softmax(1)
    return Judge(**{**vars(judge), "strength": weights[0], "noise": noise}), alike_of(probs, labels[some])


def _distances(z: Tensor, reference: Tensor) -> Tensor:
    """[B] mean distance of unit rows [B, D] to the nearest of the reference but one that is the row itself."""
    found = z.new_zeros(len(z))
    for some in slices_of(len(z), len(reference), z.device):
        sims = z[some] @ reference.T
        sims.masked_fill_(sims > 1 - 1e-6, -1.0)  # itself, or its copy
        near = largest(sims, N_NEAREST) if sims.shape[1] else sims.new_zeros(len(sims), 1)
        found[some] = (2 - 2 * near).clamp(min=0).sqrt().mean(1)
    return found
