"""One type for every logit adjustment of a training loss, and what it does to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.errors import DataError


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What is done to the logits f of a row with label y in a training loss; at test time nothing is.

    In this order: f * multiplier + offset, then target_margin[y] to logit y and pair_margin[y] to all logits. None does
    nothing; `Adjustment()` is plain cross-entropy. Adjustments add, in any order: ``a + b`` multiplies the multipliers
    and sums the rest, so that a multiplier scales the logits and never another's offset or margin.

    Raises: DataError: a field is a list or an array.

    Source: multiplier and offset are those of Kini et al. 2021 (arXiv 2103.01550), Eq. (2).

    Example:
      >>> two, three = (Adjustment(multiplier=torch.tensor([m, 1.0])) for m in (2.0, 3.0))
      >>> found = two + three + Adjustment(offset=torch.tensor([0.5, 0.0]))
      >>> found.multiplier.tolist(), found.offset.tolist(), found.target_margin
      ([6.0, 1.0], [0.5, 0.0], None)
    """

    multiplier: Tensor | None = None  # [C] float > 0, multiplies logit k. (beta)
    offset: Tensor | None = None  # [C] float, added to logit k. (Delta)
    target_margin: Tensor | None = None  # [C] float, margin[y] is added to the logit of the label
    pair_margin: Tensor | None = None  # [C, C] float, row y is added to the logits of a row with label y

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, Tensor):
                raise DataError(f"{name} is a {type(value).__name__}, no tensor", fix=f"pass torch.as_tensor({name})")

    def __add__(self, other: Adjustment) -> Adjustment:
        return Adjustment(
            multiplier=_both(self.multiplier, other.multiplier, torch.mul),
            offset=_both(self.offset, other.offset, torch.add),
            target_margin=_both(self.target_margin, other.target_margin, torch.add),
            pair_margin=_both(self.pair_margin, other.pair_margin, torch.add),
        )


def adjusted_logits(logits: Tensor, labels: Tensor, adjustment: Adjustment) -> Tensor:
    """The logits that a training loss sees; `losses.classification.adjusted_cross_entropy` is the usual one.

    Args:
      logits: [B, C] float.
      labels: [B] int, 0 to C-1.
      adjustment: see `Adjustment`.

    Returns: [B, C] float.

    Raises:
      DataError: a tensor of the adjustment is not one number per class, or per pair of classes, or on another device.

    Example: 2 * [1, 2] + [0.5, 0], then 1 off the label's, then [0, 3] for rows with label 1.
      >>> vectors = [torch.tensor(v) for v in ([2.0, 2.0], [0.5, 0.0], [0.0, -1.0])]
      >>> all_four = Adjustment(*vectors, pair_margin=torch.tensor([[9.0, 9.0], [0.0, 3.0]]))
      >>> adjusted_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), all_four).tolist()
      [[2.5, 6.0]]
    """
    n_classes, labels = logits.shape[1], labels.long()  # as an index, uint8 would be a mask
    for name, wanted in (("multiplier", 1), ("offset", 1), ("target_margin", 1), ("pair_margin", 2)):
        tensor = getattr(adjustment, name)
        if tensor is not None and list(tensor.shape) != [n_classes] * wanted:
            per = "one entry per class" if wanted == 1 else "one row and one column per class"
            raise DataError(
                f"{name} has shape {list(tensor.shape)} for {n_classes} classes", fix=f"pass {name} with {per}"
            )
        if tensor is not None and tensor.device != logits.device:
            raise DataError(
                f"{name} of the adjustment is on {tensor.device}, the logits on {logits.device}",
                fix="make it from counts that are there: counts.to(logits.device)",
            )
    if adjustment.multiplier is not None:
        logits = logits * adjustment.multiplier
    if adjustment.offset is not None:
        logits = logits + adjustment.offset
    if adjustment.target_margin is not None:
        margin = adjustment.target_margin.to(logits.dtype)[labels]
        logits = logits.scatter_add(1, labels[:, None], margin[:, None])
    if adjustment.pair_margin is not None:
        logits = logits + adjustment.pair_margin[labels]
    return logits


def _both(a: Tensor | None, b: Tensor | None, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    return a if b is None else b if a is None else combine(a, b)
