"""Nearest class mean on frozen features: the mean of each class's labelled images, and nothing to fit.

Logits are -k |z - m_c|^2 / v, z the features centred and of unit scale, v the mean squared distance of labelled images
to the mean of their class. k is the sharpness under which labelled images are most likely, each left out of the mean of
its class; fits that leave labels out keep it, of classes with one image left nothing says it.
Source: Mensink et al. 2013 (IEEE TPAMI 35:11), with the plain Euclidean distance.
Command: labelwright fit feats.npz --method nearest_mean --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import CentredHead, put_in
from labelwright.labels.chunks import evenly_spread
from labelwright.methods.recipe import CHOSEN, Begun, Recipe, check_is_pretrained, feats_of
from labelwright.train.cross_validation import MAX_TRIED_ROWS, balanced_loss
from labelwright.train.scaling import centre_and_scale
from labelwright.train.settings import Positive, TrainSettings
from labelwright.types import BuildNet, Passes, State, Task

NOWHERE = -1e4  # bias of a class without a labelled image
SHARPNESS = tuple(2.0**i for i in range(-1, 10))  # what is tried, times 1 / v


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of nearest_mean."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # nothing is trained
    sharpness: Positive | None = None  # k / v; None = the likeliest


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """A linear head on centred features, still to be found."""
    check_is_pretrained(build_net)
    return State(nets={"main": build_net(task.n_classes, head="centred")})


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """All of it."""
    head: CentredHead = cast(Any, state.nets["main"]).head
    known = (task.labels >= 0).nonzero().flatten()
    feats = feats_of(passes, known)
    mean, scale = centre_and_scale(feats)
    head.mean.copy_(mean)
    head.scale.copy_(scale)
    z, labels = (feats - mean) / scale, task.labels[known]
    weight, bias, sharpness = nearest_mean(z, labels, task.n_classes, sharpness=cfg.sharpness)
    put_in(state.nets["main"], weight, bias)
    return replace(state, memory={CHOSEN: {"sharpness": sharpness}}), {"sharpness": sharpness}


def nearest_mean(
    z: Tensor, labels: Tensor, n_classes: int, *, sharpness: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """The linear classifier that the class means are.

    Args:
      z: [N, D] float32.
      labels: [N] int64, 0 to C-1.
      sharpness: k / v; None = the likeliest. Where no class has two images v is the mean squared norm, and k 1.

    Returns: weight [C, D], bias [C], and k / v.

    Example: the border between 0 and 4 lies at 2.
      >>> weight, bias, _ = nearest_mean(torch.tensor([[-1.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1]), 2)
      >>> (torch.tensor([[2.0]]) @ weight.T + bias).diff().tolist()
      [[0.0]]
    """
    counts = torch.bincount(labels, minlength=n_classes)
    sums = torch.zeros(n_classes, z.shape[1], device=z.device).index_add_(0, labels, z)
    means = sums / counts.clamp(min=1)[:, None]
    if sharpness is None:
        sharpness = _likeliest(z, labels, means, counts)
    return (
        2 * sharpness * means,
        torch.where(counts > 0, -sharpness * means.square().sum(1), NOWHERE),
        sharpness,
    )


def _likeliest(z: Tensor, labels: Tensor, means: Tensor, counts: Tensor) -> float:
    """k / v under which labelled images are most likely, each left out of the mean [C, D] of its class."""
    several = (counts[labels] > 1).nonzero().flatten()
    squares = torch.linalg.vector_norm(z, dim=1).square()
    of_means = counts * means.square().sum(1)
    spread = float(squares[several].sum() - of_means[counts > 1].sum()) / max(1, len(several))
    if spread <= 1e-6:
        return 1 / max(float(squares.mean()), 1e-6)
    rows = evenly_spread(several, MAX_TRIED_ROWS)
    some, own = z[rows], labels[rows][:, None]
    gaps = some.square().sum(1, keepdim=True) - 2 * some @ means.T + means.square().sum(1)
    farther = (counts[own] / (counts[own] - 1)).square()  # an image is part of the mean that it is compared with
    scores = -gaps.scatter(1, own, gaps.gather(1, own) * farther).masked_fill(counts == 0, torch.inf) / spread
    return min(SHARPNESS, key=lambda k: balanced_loss(k * scores, own[:, 0])) / spread


RECIPE = Recipe(Config=Config, setup=setup, begin=begin)
