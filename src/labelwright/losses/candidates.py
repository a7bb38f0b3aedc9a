"""Losses of images of which only a set of candidate classes is known, and that set may be wrong.

Every loss is ``loss(logits, candidates, *, knobs, weights=None, where=None, reduce="mean")``. In common:

- logits: [B, C] float; half precision is computed in float32.
- candidates: [B, C] bool, True = may be the class. A set of no class or of all classes is not informative: its
  row is left out, as if ``where`` were False; see `informative_rows`.
- weights: [B] float >= 0 or None for 1. where: [B] bool, False = left out, whatever the row holds.
- reduce: "mean" = sum(w * loss) / sum(w) over kept rows (0 if none is kept), "sum", or "none": [B], not a scalar.
- Raises DataError where shapes do not fit, ConfigError where a knob is out of range.

Values are in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.losses._reduce import Reduce, at_least_float32, blank_rows, check_rows, log_softmax, reduce_loss


def informative_rows(candidates: Tensor, where: Tensor | None = None) -> Tensor:
    """Rows that a loss on candidate sets counts: neither no class nor every class, and not excluded by the caller.

    Args:
      candidates: [B, C] bool.
      where: [B] bool, False = left out; None = every row.

    Returns: [B] bool.

    Example:
      >>> informative_rows(torch.tensor([[True, False], [True, True], [False, False]])).tolist()
      [True, False, False]
    """
    informative = candidates.any(dim=1) & ~candidates.all(dim=1)
    return informative if where is None else informative & where


def partial_cross_entropy(
    logits: Tensor,
    candidates: Tensor,
    *,
    eps: float = 1e-5,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Cross-entropy against a set, -log(eps + sum_{j in S} p_j): the network decides which of its classes it is.

    Args:
      logits: [B, C] float, finite.
      candidates: [B, C] bool, see the module.
      eps: >= 0; bounds the loss by -log eps, and with it the pull of a set that is wrong. 0 = none.
      weights, where, reduce: see the module.

    Returns: as low as -log(1 + eps).

    Source: Wang et al. 2025 (arXiv 2506.03229), warm-up.

    Example: p = [1/2, 1/4, 1/4] and the set of the last two: log 2; row 1 holds every class and is left out.
      >>> logits = torch.tensor([[2.0, 1, 1], [9, 1, 1]]).log()
      >>> candidates = torch.tensor([[False, True, True], [True, True, True]])
      >>> round(partial_cross_entropy(logits, candidates, eps=0).item(), 4)
      0.6931
    """
    _check(logits, candidates, weights=weights, where=where)
    _check_eps(eps)
    kept = informative_rows(candidates, where)
    log_probs = log_softmax(blank_rows(kept, logits))
    inside = candidates | ~kept[:, None]  # an empty set would have the logarithm of 0
    log_mass = log_probs.masked_fill(~inside, -torch.inf).logsumexp(dim=1)  # [B, C] -> [B]
    loss = -torch.logaddexp(log_mass, torch.full_like(log_mass, math.log(eps) if eps > 0 else -math.inf))
    return reduce_loss(loss, where=kept, weights=weights, reduce=reduce)


def complementary_loss(
    logits: Tensor,
    candidates: Tensor,
    *,
    eps: float = 1e-7,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """What is not a candidate must be improbable, -sum_{j not in S} log(1 - p_j + eps).

    Args:
      logits: [B, C] float, finite.
      candidates: [B, C] bool, see the module.
      eps: > 0; bounds the loss where a class outside the set is certain.
      weights, where, reduce: see the module.

    Source: Wu et al. 2022 (Revisiting Consistency Regularization for Deep Partial Label Learning), the supervised term
    of CRDPLL and its 1e-7. Differs: rows whose set is all classes are left out of the mean, not counted as 0.

    Example: p = [1/2, 1/4, 1/4] and the set of the first: -2 log(3/4).
      >>> logits, candidates = torch.tensor([[2.0, 1, 1]]).log(), torch.tensor([[True, False, False]])
      >>> round(complementary_loss(logits, candidates).item(), 4)
      0.5754
    """
    _check(logits, candidates, weights=weights, where=where)
    _check_eps(eps)
    if eps == 0:
        raise ConfigError("eps=0 leaves the loss unbounded", fix="use a small value > 0, 1e-7 in CRDPLL")
    kept = informative_rows(candidates, where)
    rest = -torch.expm1(log_softmax(blank_rows(kept, logits)))  # 1 - p_j, exact near p_j = 1
    loss = -(rest + eps).log().masked_fill(candidates, 0).sum(dim=1)  # [B, C] -> [B]
    return reduce_loss(loss, where=kept, weights=weights, reduce=reduce)


def negative_entropy(
    logits: Tensor, *, weights: Tensor | None = None, where: Tensor | None = None, reduce: Reduce = "mean"
) -> Tensor:
    """Sum_j p_j log p_j: descending it keeps a network from being too sure too early. Needs no candidates.

    Args:
      logits: [B, C] float; -inf marks a class ruled out.
      weights: [B] float >= 0, see the module.
      where: [B] bool, see the module; every row counts that it does not leave out.
      reduce: see the module.

    Returns: from -log C (uniform) to 0 (certain).

    Source: Wang et al. 2025 (arXiv 2506.03229), warm-up.

    Example:
      >>> round(negative_entropy(torch.zeros(1, 2)).item(), 4)
      -0.6931
    """
    check_rows(logits, weights=weights, where=where)
    log_probs = log_softmax(blank_rows(where, logits))
    probs = log_probs.exp()
    loss = (probs * log_probs.masked_fill(probs == 0, 0)).sum(dim=1)  # [B, C] -> [B]
    return reduce_loss(loss, where=where, weights=weights, reduce=reduce)


def negative_entropy_of_mean(logits: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Sum_j m_j log m_j, m the mean prediction of the batch: descending it spreads the predictions over all classes.

    Args:
      logits: [B, C] float; -inf marks a class ruled out.
      where: [B] bool, see the module.

    Returns: scalar, from -log C (every class predicted as often) to 0 (one class only); 0 if no row is kept.

    Source: arXiv 2309.11930, Eq. (9).

    Example: two certain and opposite predictions.
      >>> round(negative_entropy_of_mean(torch.tensor([[9.0, -9.0], [-9.0, 9.0]])).item(), 4)
      -0.6931
    """
    check_rows(logits, where=where)
    kept = torch.ones_like(logits[:, 0], dtype=torch.bool) if where is None else where
    probs = blank_rows(where, log_softmax(blank_rows(where, logits)).exp())
    mean = probs.sum(dim=0) / kept.sum().clamp(min=1)
    return (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def candidate_targets(probs: Tensor, candidates: Tensor) -> Tensor:
    """Probabilities inside the candidate set, renormalised: soft targets for `classification.soft_cross_entropy`.

    Args:
      probs: [B, C] float >= 0, rows sum to 1; half precision is computed in float32.
      candidates: [B, C] bool; a row without candidates keeps its probabilities.

    Returns: [B, C] float, rows sum to 1; uniform over the set where it holds no probability at all.

    Source: Lv et al. 2020 (PRODEN, arXiv 2002.08053).

    Example:
      >>> probs, candidates = torch.tensor([[0.5, 0.125, 0.375]]), torch.tensor([[False, True, True]])
      >>> candidate_targets(probs, candidates).tolist()
      [[0.0, 0.25, 0.75]]
    """
    _check(probs, candidates)
    inside = candidates | ~candidates.any(dim=1, keepdim=True)
    probs = at_least_float32(probs).masked_fill(~inside, 0)
    top = probs.amax(dim=1, keepdim=True)
    # Over the largest first: the sum of a few denormal numbers is too coarse to divide by.
    probs = torch.where(top > 0, probs / top.clamp_min(torch.finfo(probs.dtype).tiny), inside.to(probs.dtype))
    return probs / probs.sum(dim=1, keepdim=True)


def _check_eps(eps: float) -> None:
    if not eps >= 0:
        raise ConfigError(f"eps={eps} is negative", fix="it is added to a probability: use a small value >= 0")


def _check(logits: Tensor, candidates: Tensor, **per_row: Tensor | None) -> None:
    check_rows(logits, **per_row)
    if candidates.shape != logits.shape or candidates.dtype != torch.bool:
        raise DataError(
            f"candidates are {str(candidates.dtype).removeprefix('torch.')} {list(candidates.shape)}, "
            f"logits {list(logits.shape)}",
            fix="pass candidates [B, C] bool, True where a class may be the one",
        )
