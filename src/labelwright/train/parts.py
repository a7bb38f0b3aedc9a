"""Features of a batch too large for the memory: in parts, whose activations are computed again for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labelwright.train.optim import running_stats_frozen


def set_parts(net: nn.Module, n_parts: int) -> None:
    """Let every classifier in ``net`` see its images in ``n_parts`` parts; 1 = all at once.

    Example:
      >>> from labelwright.encoders.backbones import build
      >>> net = build("resnet32", 10, seed=0)
      >>> set_parts(net, 4)
      >>> net.n_parts
      4
    """
    for module in net.modules():
        if hasattr(module, "n_parts"):
            setattr(module, "n_parts", n_parts)  # noqa: B010  (for the type checker a module's attributes are tensors)


def in_parts(net: nn.Module, features: Callable[[Tensor], Tensor], x: Tensor, *, n_parts: int) -> Tensor:
    """What ``features`` gives of a batch, as memory of one part: the rest is computed anew when its gradient is.

    Values and gradients are those of the whole batch but for rounding, whatever loss is made of the features; only what
    normalises over a batch sees the parts. Without a gradient, and for stored features, the batch stays whole.

    Args:
      net: the module that ``features`` belongs to; the second pass leaves its running statistics alone.
      features: maps views to [B, D], row by row.
      x: [B, ...] views.
      n_parts: >= 1, as even as B allows.

    Returns: [B, D].

    Source: Chen et al. 2016 (arXiv 1604.06174); Gao et al. 2021 (arXiv 2101.06983) for losses that contrast rows.

    Example:
      >>> layer, x = torch.nn.Linear(2, 2), torch.ones(4, 2, 1, 1)
      >>> bool((in_parts(layer, lambda x: layer(x.flatten(1)), x, n_parts=2) == layer(x.flatten(1))).all())
      True
    """
    if n_parts == 1 or x.ndim < 4 or not torch.is_grad_enabled():
        return features(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_stats_frozen([net])

    parts = x.chunk(n_parts)
    return torch.cat([checkpoint(features, part, use_reentrant=False, context_fn=contexts) for part in parts])
