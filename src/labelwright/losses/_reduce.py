"""How every loss leaves rows out and turns values per row into one: `blank_rows`, the maths, `reduce_loss`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from labelwright.errors import ConfigError, DataError

Reduce = Literal["mean", "sum", "none"]


def kept_rows(labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Rows that a loss on hard labels counts: a known label, and not excluded by the caller.

    Args:
      labels: [B] int, -1 = unknown.
      where: [B] bool, False = left out; None = every row.

    Returns: [B] bool.

    Example:
      >>> kept_rows(torch.tensor([2, -1, 0]), torch.tensor([True, True, False])).tolist()
      [True, False, False]
    """
    known = labels >= 0
    return known if where is None else known & where


def blank_rows(where: Tensor | None, values: Tensor) -> Tensor:
    """Zero the rows that are left out, before any maths: an inf there would turn the gradients of kept rows into NaN.

    Args:
      where: [B] bool, or None for every row.
      values: [B, ...] any dtype; excluded rows may hold anything.

    Returns: [B, ...]; no gradient flows to excluded rows.

    Example:
      >>> blank_rows(torch.tensor([True, False]), torch.tensor([[1.0], [float("inf")]])).tolist()
      [[1.0], [0.0]]
    """
    if where is None:
        return values
    return values.masked_fill(~where.reshape(-1, *[1] * (values.dim() - 1)), 0)


def reduce_loss(
    loss: Tensor, *, where: Tensor | None = None, weights: Tensor | None = None, reduce: Reduce = "mean"
) -> Tensor:
    """Values per row to one value: sum(w * loss) / sum(w) over kept rows; 0 with zero gradients if none is kept.

    Args:
      loss: [B] float, finite in every row (excluded rows were blanked).
      where: [B] bool, False = left out; None = every row.
      weights: [B] float >= 0, or None for 1; excluded rows may hold anything.
      reduce: "mean" (weighted), "sum" of w * loss, or "none": w * loss per row, 0 in excluded rows.

    Returns: scalar, or [B] if reduce="none".

    Raises:
      ConfigError: ``reduce`` is none of the three.

    Source: the weighted mean is that of ``torch.nn.functional.cross_entropy(weight=)``.

    Example: rows 0 and 1 are kept, (1 * 2 + 3 * 4) / (1 + 3) = 3.5.
      >>> where = torch.tensor([True, True, False])
      >>> reduce_loss(torch.tensor([2.0, 4.0, 9.0]), where=where, weights=torch.tensor([1.0, 3.0, 5.0])).item()
      3.5
    """
    if reduce not in ("mean", "sum", "none"):
        raise ConfigError(f"reduce={reduce!r} is unknown", fix='use "mean", "sum" or "none"')
    kept = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)
    kept = blank_rows(where, kept)
    weighted = kept * loss
    if reduce == "none":
        return weighted
    if reduce == "sum":
        return weighted.sum()
    total = kept.sum()
    return weighted.sum() / torch.where(total > 0, total, torch.ones_like(total))


def check_rows(rows: Tensor, what: Literal["logits", "features"] = "logits", /, **per_row: Any) -> None:
    """Refuse what is no tensor with one entry per row on the same device, and labels that are fractions; names it.

    Args:
      rows: [B, C] logits or [B, D] features.
      **per_row: name -> tensor that must be [B], or None.

    Raises:
      DataError: ``rows`` has not two dimensions, or a tensor is not [B], not there, or no tensor.

    Example:
      >>> check_rows(torch.zeros(2, 3), labels=torch.tensor([0, 1]), weights=None)
    """
    if rows.dim() != 2:
        wanted = "[B, C]" if what == "logits" else "[B, D]"
        raise DataError(f"{what} have shape {list(rows.shape)}, not {wanted}", fix="pass one row per image")
    for name, tensor in per_row.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise DataError(f"{name} is a {type(tensor).__name__}, no tensor", fix=f"pass torch.as_tensor({name})")
        if tensor.shape != rows.shape[:1]:
            raise DataError(
                f"{name} has shape {list(tensor.shape)} for {what} {list(rows.shape)}",
                fix=f"pass {name} with one entry per row",
            )
        if tensor.device != rows.device:
            raise DataError(
                f"{name} is on {tensor.device}, {what} on {rows.device}", fix=f"pass {name}.to({what}.device)"
            )
        if name == "labels" and tensor.is_floating_point():
            raise DataError(f"labels are {tensor.dtype}, not whole numbers", fix="pass labels.long()")


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Refuse soft targets of another shape than the logits [B, C]."""
    if targets.shape != logits.shape:
        raise DataError(
            f"targets have shape {list(targets.shape)}, logits {list(logits.shape)}",
            fix="pass targets [B, C], one probability per class; for integer labels use cross_entropy",
        )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0."""
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} is not positive", fix="it divides the logits: use a value > 0")


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; other floats as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities [B, C], in float32 at least."""
    return torch.log_softmax(at_least_float32(logits), dim=1)
