"""Features as the solver of a head takes them: centred, of one scale, along the directions in which they spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.train.convex import Linear

MAX_AXES = 2048


def centre_and_scale(feats: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and one scale, the root mean square of all centred numbers: what makes a penalty mean the same anywhere.

    Args:
      feats: [N, D] float.

    Returns: mean [D] and scale [], float32; the scale is 1 where all rows are the same.

    Example:
      >>> mean, scale = centre_and_scale(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
      >>> mean.tolist(), round(scale.item(), 4)
      ([2.0, 5.0], 0.7071)
    """
    mean = feats.mean(0, dtype=torch.float64)
    total = sum(((some.double() - mean).square().sum() for some in torch.split(feats, 8192)), mean.new_zeros(()))
    scale = (total / max(1, feats.numel())).sqrt()
    return mean.float(), torch.where(scale > 0, scale, 1.0).float()


@dataclass(frozen=True)
class Scaled:
    """Features as `solve` takes them: centred, of unit scale, and along the directions in which they spread."""

    z: Tensor  # [N, R] float32, R the smaller of N and D, or D
    mean: Tensor  # this and the next: of `centre_and_scale`
    scale: Tensor
    axes: Tensor | None  # [D, R] orthonormal, so that z = (feats - mean) / scale @ axes; None: z has no such factor

    def plain(self, head: Linear) -> Linear:
        """The head on (feats - mean) / scale that a head on z is: weight [C, R] -> [C, D]."""
        return head if self.axes is None else Linear(head.weight @ self.axes.T, head.bias)


def scaled(feats: Tensor) -> Scaled:
    """What heads are fitted on: features of any shift and scale.

    Args:
      feats: [N, D] float.

    Example: rows on a line need one number each, but for rounding.
      >>> found = scaled(torch.tensor([[1.0, 5.0], [3.0, 7.0], [2.0, 6.0]]))
      >>> found.z.square().sum(0).round(decimals=4).tolist()
      [0.0, 6.0]
    """
    mean, scale = centre_and_scale(feats)

    def plain(some: slice) -> Tensor:
        return (feats[some].float() - mean) / scale

    n, n_features = feats.shape
    if n < n_features:
        z = plain(slice(None))
        axes = principal_axes(z)
        return Scaled(z if axes is None else z @ axes, mean, scale, axes)
    blocks = [slice(k, k + 8192) for k in range(0, n, 8192)]  # of many rows nothing is there twice
    axes = None
    if n_features <= MAX_AXES:
        axes = _eigenvectors(sum((plain(some).T @ plain(some) for some in blocks), mean.new_zeros(())))
    z = torch.empty(n, n_features, device=feats.device)
    for some in blocks:
        z[some] = plain(some) if axes is None else plain(some) @ axes
    return Scaled(z, mean, scale, axes)


def _eigenvectors(moment: Tensor) -> Tensor:
    return Tensor(torch.linalg.eigh(moment).eigenvectors)


def principal_axes(z: Tensor, *, complete: bool = False) -> Tensor | None:
    """Directions [D, R] in which rows [N, D] spread independently of one another: `solve` is quickest on z @ axes.

    R is the smaller of N and D, or D if ``complete``: z @ axes keeps all that z says of the rows. None where finding
    the axes would take longer than they save.

    Example: rows on a diagonal.
      >>> axes = principal_axes(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0]]))
      >>> [round(value, 4) for value in axes.abs()[:, -1].tolist()] if axes is not None else None
      [0.7071, 0.7071]
    """
    n, n_features = z.shape
    is_square = complete or n >= n_features
    if (n_features if is_square else n) > MAX_AXES:
        return None
    if is_square:
        return _eigenvectors(z.T @ z)
    basis, rest = torch.linalg.qr(z.T)  # [D, N], [N, N]
    return Tensor(basis @ _eigenvectors(rest @ rest.T))
