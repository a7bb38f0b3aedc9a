"""Newton's method for smooth convex functions whose Hessian is only ever multiplied with: no matrix of it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.errors import DataError

MAX_STEPS = 100
MAX_PRODUCTS = 100  # with the Hessian, a step
SOLVED_SHARE = 0.05  # of the residual, in the norm of the preconditioner, at which a step's system counts as solved
LEAST_CURVATURE = 1e-9  # of a direction
ROUNDING = 1e-6  # of the value, which float32 cannot tell apart; a step that promises less descent is none


@dataclass(frozen=True)
class Local:
    """A convex function at one point."""

    value: float  # of it
    gradient: Tensor  # of the shape of the point
    product: Callable[[Tensor], Tensor]  # v -> Hessian v, of that shape
    diagonal: Tensor  # about the Hessian's, >= 0, of that shape or broadcast to it

    def __add__(self, other: Local) -> Local:
        """Of the sum of two functions."""
        return Local(
            self.value + other.value,
            self.gradient + other.gradient,
            lambda v: self.product(v) + other.product(v),
            self.diagonal + other.diagonal,
        )


def minimise(at: Callable[[Tensor], Local], start: Tensor, *, least_gradient: float) -> Tensor:
    """Where a smooth convex function is least, by steps that conjugate gradients find.

    Args:
      at: point -> the function there.
      start: where to begin.
      least_gradient: largest entry of the gradient at which it ends, > 0; it also ends after `MAX_STEPS`, and where
        float32 sees no further descent.

    Raises: DataError where the function is not finite at its start.

    Source: Nocedal and Wright 2006, Algorithm 7.1, with a preconditioner.

    Example: x^2 + 10 (y - 1)^2 in one step.
      >>> scale, middle = torch.tensor([2.0, 20.0]), torch.tensor([0.0, 1.0])
      >>> def at(x):
      ...     off = x - middle
      ...     return Local(float((scale * off**2).sum() / 2), scale * off, lambda v: scale * v, scale)
      >>> minimise(at, torch.tensor([3.0, 3.0]), least_gradient=1e-6).tolist()
      [0.0, 1.0]
    """
    point, here = start, at(start)
    if not math.isfinite(here.value):
        raise DataError("the loss is not finite", fix="leave out rows whose features are NaN or infinite")
    for _ in range(MAX_STEPS):
        if float(here.gradient.abs().max()) <= least_gradient:
            break
        step = _newton_step(here)
        slope, share = _dot(here.gradient, step), 1.0
        there = at(point + step)
        rounding = ROUNDING * max(1.0, abs(here.value))
        while not there.value <= here.value + 1e-4 * share * slope + rounding:
            share /= 2
            if not -share * slope >= rounding:
                return point
            there = at(point + share * step)
        point, here = point + share * step, there
    return point


def _newton_step(here: Local) -> Tensor:
    """About -Hessian^-1 gradient, by preconditioned conjugate gradients."""
    step, residual = torch.zeros_like(here.gradient), -here.gradient
    inverse = 1 / here.diagonal.clamp(min=LEAST_CURVATURE)
    scaled = inverse * residual
    direction, size = scaled.clone(), _dot(residual, scaled)
    enough = SOLVED_SHARE * size
    for _ in range(MAX_PRODUCTS):
        image = here.product(direction)
        curvature = _dot(direction, image)
        if not curvature > 0:  # nothing but rounding is left
            break
        length = size / curvature
        step.add_(direction, alpha=length)
        residual.sub_(image, alpha=length)
        scaled = inverse * residual
        last, size = size, _dot(residual, scaled)
        if size <= enough:
            break
        direction = torch.add(scaled, direction, alpha=size / last)
    return step


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
