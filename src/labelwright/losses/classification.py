"""Cross-entropies and their kin for images with one true class: plain, of adjusted logits, of soft targets, focal.

Every function is ``loss(logits, labels, *, knobs, weights=None, where=None, reduce="mean")``. In common:

- logits: [B, C] float, any range; half precision is computed in float32.
- labels: [B] int, 0 to C-1; rows with -1 (unknown) are left out.
- weights: [B] float >= 0 or None for 1. where: [B] bool, False = left out, whatever the row holds.
- reduce: "mean" = sum(w * loss) / sum(w) over kept rows (0 if none is kept), "sum", or "none": [B], not a scalar.
- class_weight: [C] float >= 0 multiplies the weight of rows of that class, or None.
- Raises DataError where shapes do not fit, or a label is beyond C-1 (on the CPU; on a GPU that is CUDA's device-side
  assert, as a check would wait for every step), ConfigError where a knob is out of range.

Values are in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment, adjusted_logits
from labelwright.errors import ConfigError, DataError
from labelwright.losses._reduce import (
    Reduce,
    at_least_float32,
    blank_rows,
    check_rows,
    check_targets,
    check_temperature,
    kept_rows,
    log_softmax,
    reduce_loss,
)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Cross-entropy against hard labels, -log softmax(logits)_y.

    Args:
      logits: [B, C] float.
      labels: [B] int, -1 = left out.
      class_weight, weights, where, reduce: see the module.

    Example: softmax([log 3, 0]) = [3/4, 1/4]; row 1 is unknown, so the mean is log(4/3).
      >>> logits = torch.tensor([[3.0, 1.0], [5.0, 1.0]]).log()
      >>> round(cross_entropy(logits, torch.tensor([0, -1])).item(), 4)
      0.2877
    """
    return adjusted_cross_entropy(
        logits, labels, Adjustment(), class_weight=class_weight, weights=weights, where=where, reduce=reduce
    )


def adjusted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    adjustment: Adjustment,
    *,
    class_weight: Tensor | None = None,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Cross-entropy of adjusted logits, -a_y log softmax(g)_y with g of `adjust.adjustment.adjusted_logits`.

    Logit adjustment, vector scaling, LDAM, both phases of CVS and the margins of CAP and LPS are values of
    ``adjustment``; adjust.fixed, adjust.confusion and adjust.pace make them.

    Args:
      logits: [B, C] float.
      labels: [B] int, -1 = left out.
      adjustment: see `adjust.adjustment.Adjustment`.
      class_weight: see the module. (alpha)
      weights, where, reduce: see the module; the mean is divided by the sum of ``weights * class_weight[labels]``.

    Source: Kini et al. 2021 (arXiv 2103.01550), Eq. (2); arXiv 2310.04752, Sec. 3. Differs: with margins.

    Example: 2 * [0, log 2] + [log 4, 0] = [log 4, log 4]: the loss is log 2.
      >>> logits, two = torch.tensor([[1.0, 2.0]]).log(), torch.tensor([2.0, 2.0])
      >>> even = Adjustment(multiplier=two, offset=torch.tensor([4.0, 1.0]).log())
      >>> round(adjusted_cross_entropy(logits, torch.tensor([1]), even).item(), 4)
      0.6931
    """
    check_rows(logits, labels=labels, weights=weights, where=where)
    kept = kept_rows(labels, where)
    labels = blank_rows(kept, labels).long()
    loss = _row_losses(logits, labels, kept, adjustment)
    return reduce_loss(loss, where=kept, weights=_row_weights(weights, class_weight, labels, logits), reduce=reduce)


def soft_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Cross-entropy against soft targets, -sum_k t_k log softmax(logits / temperature)_k.

    Args:
      logits: [B, C] float; -inf marks a class ruled out, whose target must be 0.
      targets: [B, C] float >= 0, rows sum to 1; excluded rows may hold anything.
      temperature: > 0, divides the logits.
      weights, where, reduce: see the module.

    Example: equal logits give log 2 whatever the target.
      >>> round(soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.3, 0.7]])).item(), 4)
      0.6931
    """
    check_rows(logits, weights=weights, where=where)
    check_targets(logits, targets)
    check_temperature(temperature)
    log_probs = log_softmax(at_least_float32(blank_rows(where, logits)) / temperature)
    targets = blank_rows(where, targets)
    loss = -(targets * log_probs.masked_fill(targets == 0, 0)).sum(dim=1)  # [B, C] -> [B]
    return reduce_loss(loss, where=where, weights=weights, reduce=reduce)


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    power: float,
    class_weight: Tensor | None = None,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Focal loss, -(1 - p_y)^power log p_y: rows that are already right count less.

    Args:
      logits: [B, C] float.
      labels: [B] int, -1 = left out.
      power: >= 0; 0 = cross-entropy. (gamma in the paper, 2 there.)
      class_weight, weights, where, reduce: see the module.

    Source: Lin et al. 2017 (arXiv 1708.02002), Eq. (4).

    Example: p_y = 3/4, so (1/4)^2 * log(4/3) = 0.018.
      >>> round(focal(torch.tensor([[3.0, 1.0]]).log(), torch.tensor([0]), power=2.0).item(), 4)
      0.018
    """
    check_rows(logits, labels=labels, weights=weights, where=where)
    if not power >= 0:
        raise ConfigError(f"power={power} is negative", fix="focal takes a power >= 0; 0 is plain cross-entropy")
    kept = kept_rows(labels, where)
    labels = blank_rows(kept, labels).long()
    log_prob = -_row_losses(logits, labels, kept, Adjustment())
    wrong = -torch.expm1(log_prob)  # 1 - p_y, exact near p_y = 1
    # Below 1 the power has an infinite slope at 0, which would turn the gradient of a perfect row into NaN.
    loss = -(wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** power) * log_prob
    return reduce_loss(loss, where=kept, weights=_row_weights(weights, class_weight, labels, logits), reduce=reduce)


def influence_balanced(
    logits: Tensor,
    labels: Tensor,
    *,
    feats: Tensor,
    scale: float = 1.0,
    class_weight: Tensor | None = None,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Influence-balanced loss: cross-entropy * scale / (|softmax(f) - onehot(y)|_1 * |h|_1 + 0.001).

    Used from a later epoch on, after plain cross-entropy. Gradients flow through the divisor, as in the authors'
    code. Differs: ``class_weight`` is in the divisor of the mean, as everywhere in this module.

    Args:
      logits: [B, C] float.
      labels: [B] int, -1 = left out.
      feats: [B, D] float, what the last layer saw; excluded rows may hold anything.
      scale: > 0, multiplies the loss (alpha; the authors run 1000).
      class_weight: see the module (the authors: inverse counts).
      weights, where, reduce: see the module.

    Source: Park et al. 2021 (arXiv 2110.02444), Sec. 3.3, and the authors' code.

    Example: p = [1/2, 1/2] is 1 away from onehot in L1, features sum to 2: log 2 / (1 * 2 + 0.001) = 0.3464.
      >>> feats = torch.tensor([[1.5, -0.5]])
      >>> round(influence_balanced(torch.zeros(1, 2), torch.tensor([0]), feats=feats).item(), 4)
      0.3464
    """
    check_rows(logits, labels=labels, weights=weights, where=where)
    check_rows(feats, "features", labels=labels)
    if not scale > 0:
        raise ConfigError(f"scale={scale} is not positive", fix="it multiplies the loss: use a value > 0")
    kept = kept_rows(labels, where)
    labels = blank_rows(kept, labels).long()
    log_prob = -_row_losses(logits, labels, kept, Adjustment())
    gap = -2 * torch.expm1(log_prob)  # the wrong classes hold 1 - p_y in all, and the true one lacks as much
    size = blank_rows(kept, at_least_float32(feats)).abs().sum(dim=1)  # [B, D] -> [B]
    loss = -log_prob * scale / (gap * size + 1e-3)
    return reduce_loss(loss, where=kept, weights=_row_weights(weights, class_weight, labels, logits), reduce=reduce)


def _row_losses(logits: Tensor, labels: Tensor, kept: Tensor, adjustment: Adjustment) -> Tensor:
    """[B, C] -> [B]; labels of excluded rows are blanked."""
    try:
        adjusted = adjusted_logits(blank_rows(kept, at_least_float32(logits)), labels, adjustment)
        return F.cross_entropy(adjusted, labels, reduction="none")
    except IndexError as error:
        n_classes = logits.shape[1]
        raise DataError(
            f"labels hold {int(labels.max())}, and the logits have {n_classes} classes: 0 to {n_classes - 1}",
            fix="count classes from 0, or give the network as many outputs as there are classes",
        ) from error


def _row_weights(weights: Tensor | None, class_weight: Tensor | None, labels: Tensor, logits: Tensor) -> Tensor | None:
    if class_weight is None:
        return weights
    class_weight = torch.as_tensor(class_weight)  # a list or an array will do
    if tuple(class_weight.shape) != (logits.shape[1],):
        raise DataError(
            f"class_weight has shape {list(class_weight.shape)} for {logits.shape[1]} classes",
            fix="pass class_weight with one entry per class",
        )
    of_class = class_weight[labels]  # [C] -> [B]
    return of_class if weights is None else weights * of_class
