"""Nearest class mean on frozen features: the mean of each class's labelled images, and nothing to fit.

Logits are -k |z - m_c|^2 / v, z the features centred and of unit scale, v the mean squared distance of labelled images
to the mean of their class. k is the sharpness under which labelled images are most likely, each left out of the mean of
its class.
Source: Mensink et al. 2013 (IEEE TPAMI 35:11), with the plain Euclidean distance.
Command: labelwright fit feats.npz --method nearest_mean --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import CentredHead, put_in
from labelwright.labels.chunks import evenly_spread
from labelwright.methods.recipe import Begun, Recipe, check_is_pretrained, feats_of
from labelwright.train.convex import MAX_TRIED_ROWS, balanced_loss, centre_and_scale
from labelwright.train.settings import TrainSettings
from labelwright.types import BuildNet, Passes, State, Task

NOWHERE = -1e4  # bias of a class without a labelled image
SHARPNESS = tuple(2.0**i for i in range(-1, 10))  # what is tried


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of nearest_mean."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # nothing is trained


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
    put_in(state.nets["main"], *nearest_mean((feats - mean) / scale, task.labels[known], task.n_classes))
    return state, {}


def nearest_mean(z: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """The linear classifier that the class means are.

    Args:
      z: [N, D] float32.
      labels: [N] int64, 0 to C-1.

    Returns: weight [C, D] and bias [C].

    Example: the border between 0 and 4 lies at 2.
      >>> weight, bias = nearest_mean(torch.tensor([[-1.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1]), 2)
      >>> (torch.tensor([[2.0]]) @ weight.T + bias).diff().tolist()
      [[0.0]]
    """
    counts = torch.bincount(labels, minlength=n_classes)
    sums = torch.zeros(n_classes, z.shape[1], device=z.device).index_add_(0, labels, z)
    means = sums / counts.clamp(min=1)[:, None]
    spread = (z.square().sum() - (counts[:, None] * means.square()).sum()) / len(z)
    spread = torch.where(spread > 1e-6, spread, 1.0)
    bias = torch.where(counts > 0, -means.square().sum(1) / spread, NOWHERE)
    rows = evenly_spread((counts[labels] > 1).nonzero().flatten(), MAX_TRIED_ROWS)
    sharpness = 1.0
    if len(rows):
        some, own = z[rows], labels[rows][:, None]
        scores = some @ (2 * means / spread).T + bias - some.square().sum(1, keepdim=True) / spread
        farther = (counts[own] / (counts[own] - 1)).square()  # an image is part of the mean that it is compared with
        scores = scores.scatter(1, own, scores.gather(1, own) * farther)
        sharpness = min(SHARPNESS, key=lambda k: balanced_loss(k * scores, own[:, 0]))
    return 2 * sharpness * means / spread, sharpness * bias


RECIPE = Recipe(Config=Config, setup=setup, begin=begin)
