"""Self-training on soft targets: a bounded loss, and a ramp that brings it in."""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.losses._reduce import Reduce, at_least_float32, blank_rows, check_rows, check_targets, reduce_loss


def squared_error_of_probs(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Squared error of the probabilities, averaged over classes: (1/C) sum_k (softmax(logits)_k - t_k)^2.

    Bounded by 2/C, unlike a cross-entropy: for targets that may be wrong.

    Args:
      logits: [B, C] float, any range; half precision is computed in float32.
      targets: [B, C] float >= 0, rows sum to 1; excluded rows may hold anything.
      weights, where, reduce: see losses/_reduce.py.

    Returns: scalar, or [B] if reduce="none".

    Raises:
      DataError: shapes differ.

    Source: Berthelot et al. 2019 (MixMatch, arXiv 1905.02249), Eq. (4).

    Example: (0.5^2 + 0.5^2) / 2.
      >>> squared_error_of_probs(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()
      0.25
    """
    check_rows(logits, weights=weights, where=where)
    check_targets(logits, targets)
    probs = torch.softmax(at_least_float32(blank_rows(where, logits)), dim=1)
    loss = (probs - blank_rows(where, targets)).square().mean(dim=1)  # [B, C] -> [B]
    return reduce_loss(loss, where=where, weights=weights, reduce=reduce)


def linear_ramp(epochs_since_start: float, *, length_epochs: float) -> float:
    """Factor of a loss that comes in slowly: 0 at its start, 1 from ``length_epochs`` on, straight in between.

    Args:
      epochs_since_start: epochs, with their fraction; below 0 = not yet started.
      length_epochs: >= 0, epochs; 0 = at once.

    Returns: 0 to 1.

    Raises:
      ConfigError: length_epochs < 0.

    Source: Li et al. 2020 (DivideMix, arXiv 2002.07394), the authors' code, 16 epochs.

    Example:
      >>> [linear_ramp(epochs, length_epochs=16) for epochs in (-1, 0, 4, 20)]
      [0.0, 0.0, 0.25, 1.0]
    """
    if not length_epochs >= 0:
        raise ConfigError(f"length_epochs={length_epochs} is negative", fix="use 0 or more; 16 in Co-Reg")
    if length_epochs == 0:
        return float(epochs_since_start >= 0)
    return float(min(max(epochs_since_start / length_epochs, 0.0), 1.0))
