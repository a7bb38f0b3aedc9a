"""Mixup: train on weighted averages of pairs of images."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelwright.errors import ConfigError, DataError


class Mixed(NamedTuple):
    """A mixed batch."""

    x: Tensor  # [B, ...] float, lam * x + (1 - lam) * x[permutation]
    targets: Tensor  # [B, C] mixed the same way; integer labels [B] come back as they were
    lam: float  # share of a row's own image, 0 to 1, one for the batch
    permutation: Tensor  # [B] int64, the partner of each row


def mixup(
    x: Tensor, targets: Tensor, *, alpha: float, generator: torch.Generator, at_least_half: bool = False
) -> Mixed:
    """Mix each row with another of the batch; one Beta(alpha, alpha) share for the whole batch.

    With integer labels, the loss is ``lam * loss(labels) + (1 - lam) * loss(labels[permutation])``: class numbers
    cannot be averaged. A row whose partner is excluded has a partner of no meaning: exclude it, too.

    Args:
      x: [B, ...] float views.
      targets: [B, C], rows sum to 1, whole numbers and bool taken as float32; or [B] int labels.
      alpha: >= 0, finite; 0 leaves the batch as it is (lam = 1).
      generator: CPU generator; the same state gives the same batch.
      at_least_half: take max(lam, 1 - lam), so that a row stays closer to its own label than to its partner's.

    Raises:
      ConfigError: alpha < 0 or not finite.
      DataError: ``targets`` has not one row per row of ``x``.

    Source: Zhang et al. 2018 (arXiv 1710.09412); at_least_half: Berthelot et al. 2019 (arXiv 1905.02249), Eq. (9).

    Example:
      >>> x, onehot = torch.tensor([[0.0], [10.0]]), torch.eye(2)
      >>> mixed = mixup(x, onehot, alpha=0.0, generator=torch.Generator())
      >>> mixed.x.flatten().tolist(), mixed.lam
      ([0.0, 10.0], 1.0)
    """
    if not 0 <= alpha < math.inf:
        raise ConfigError(f"alpha={alpha} is negative or not finite", fix="mixup takes alpha >= 0; 0 switches it off")
    if len(targets) != len(x):
        raise DataError(
            f"{len(targets)} targets for {len(x)} images", fix="pass targets with one row per row of the batch"
        )
    permutation = torch.randperm(len(x), generator=generator)
    # torch's Beta takes no generator: numpy's draws instead, seeded from the one given.
    seed = int(torch.randint(2**62, (), generator=generator).numpy())  # on the CPU, whatever x is on
    lam = float(np.random.default_rng(seed).beta(alpha, alpha)) if alpha > 0 else 1.0
    if at_least_half:
        lam = max(lam, 1 - lam)
    permutation = permutation.to(x.device)
    if targets.dim() > 1 and not targets.is_floating_point():
        targets = targets.float()
    mixed_x = lam * x + (1 - lam) * x[permutation] if lam < 1 else x
    if targets.is_floating_point() and lam < 1:
        targets = lam * targets + (1 - lam) * targets[permutation.to(targets.device)]
    return Mixed(mixed_x, targets, lam, permutation)
