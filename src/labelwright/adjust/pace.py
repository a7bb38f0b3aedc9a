"""Margins that let slow classes catch up: the adaptive synchronising margin of LPS."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment
from labelwright.errors import ConfigError, DataError

Direction = Literal["prior_to_estimate", "estimate_to_prior"]
SMALLEST_SHARE = 1e-6  # of a class: a class that is never predicted would make the divergence infinite


def class_distribution(probs: Tensor, *, where: Tensor) -> Tensor:
    """What share of the predictions each class has among the rows that are trusted.

    Args:
      probs: [B, C] float, rows sum to 1.
      where: [B] bool, True = trusted.

    Returns: [C] float32, sums to 1; even if no row is trusted. (pi-hat)

    Raises: DataError: shapes do not fit.

    Source: arXiv 2309.11930, Sec. 3.2.

    Example:
      >>> probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
      >>> class_distribution(probs, where=torch.tensor([True, False, True])).tolist()
      [0.375, 0.625]
    """
    if probs.dim() != 2 or where.shape != probs.shape[:1]:
        raise DataError(f"probabilities {list(probs.shape)}, where {list(where.shape)}", fix="pass [B, C] and [B]")
    return normalised(probs.float().masked_fill(~where[:, None], 0).sum(0))


def normalised(total: Tensor) -> Tensor:
    """Sums [C] >= 0 as shares, even if all are 0.

    Example:
      >>> normalised(torch.tensor([3.0, 1.0])).tolist(), normalised(torch.zeros(2)).tolist()
      ([0.75, 0.25], [0.5, 0.5])
    """
    whole = total.sum()
    return torch.where(whole > 0, total / whole.clamp(min=1e-30), 1 / total.numel())


def divergence(estimate: Tensor, prior: Tensor, *, direction: Direction = "prior_to_estimate") -> Tensor:
    """How far the predicted class distribution is from the class prior: a KL divergence, in nats.

    Args:
      estimate: [C] float >= 0, sums to 1. (pi-hat)
      prior: [C] float >= 0, sums to 1. (pi)
      direction: "prior_to_estimate", KL(pi || pi-hat), as in the authors' run, large when a class is predicted too
        rarely; "estimate_to_prior", KL(pi-hat || pi), as the paper prints it.

    Returns: scalar >= 0. Shares below 1e-6 count as 1e-6 where they are divided by.

    Raises: ConfigError: unknown direction. DataError: shapes differ.

    Source: arXiv 2309.11930, Eq. (3).

    Example: 1/2 log(1/2 / 3/4) + 1/2 log(1/2 / 1/4) = 1/2 log(4/3).
      >>> estimate, prior = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
      >>> round(divergence(estimate, prior).item(), 4)
      0.1438
      >>> round(divergence(estimate, prior, direction="estimate_to_prior").item(), 4)
      0.1308
    """
    if direction not in get_args(Direction):
        raise ConfigError(f"direction={direction!r} is unknown", fix=f"use one of {', '.join(get_args(Direction))}")
    if estimate.shape != prior.shape or estimate.dim() != 1:
        raise DataError(f"estimate {list(estimate.shape)}, prior {list(prior.shape)}", fix="pass one share per class")
    p, q = (prior, estimate) if direction == "prior_to_estimate" else (estimate, prior)
    ratio = p.clamp(min=SMALLEST_SHARE).log() - q.clamp(min=SMALLEST_SHARE).log()
    return torch.where(p > 0, p * ratio, 0.0).sum().clamp(min=0)


def pace_margin(
    estimate: Tensor, prior: Tensor, *, scale: float, direction: Direction = "prior_to_estimate"
) -> Adjustment:
    """Margins on the target's logit: a class that is ahead of the others gains less.

    Args:
      estimate, prior, direction: as for `divergence`.
      scale: >= 0, 10 in the paper; 0 = no margins. (C)

    Returns: a target margin [C] >= 0, D * scale * estimate / max estimate; all near 0 once the estimate is the prior.

    Raises: as for `divergence`; ConfigError: scale < 0.

    Source: arXiv 2309.11930, Eq. (3).

    Example: see `divergence`: 0.1438 * 10 * (1, 1/3).
      >>> margin = pace_margin(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]), scale=10.0).target_margin
      >>> [round(v, 3) for v in margin.tolist()]
      [1.438, 0.479]
    """
    if not scale >= 0:
        raise ConfigError(f"scale={scale} is negative", fix="use a scale >= 0; 0 switches the margins off")
    apart = divergence(estimate, prior, direction=direction)
    return Adjustment(target_margin=apart * scale * estimate / estimate.max())
