"""Class prototypes: one direction per class that follows the features, and the loss that aligns images with them.

Raises DataError where shapes do not fit, ConfigError where a knob is out of range.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.losses._reduce import (
    Reduce,
    at_least_float32,
    blank_rows,
    check_rows,
    check_targets,
    check_temperature,
    kept_rows,
    reduce_loss,
)


def update_prototypes(
    prototypes: Tensor, feats: Tensor, labels: Tensor, *, decay: float = 0.999, where: Tensor | None = None
) -> Tensor:
    """Move prototypes towards features, as if one row after another did mu_y <- decay mu_y + (1 - decay) z.

    In closed form: a row counts (1 - decay) decay^(rows of its class that follow). Unit norm once, at the end.

    Args:
      prototypes: [C, D] float, unit norm, or zero for a class not seen yet.
      feats: [B, D] float, unit norm; no gradient is kept.
      labels: [B] int class of each row; -1 = left out, and so is a label beyond C-1.
      decay: 0 to 1, share of the old value that one row keeps.
      where: [B] bool, False = left out, whatever the row holds.

    Returns: [C, D], the dtype of ``prototypes``, unit norm; a zero prototype without rows stays zero.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.4.

    Example: the first class was not seen before; (0.75, 0.25) / |(0.75, 0.25)| = (0.949, 0.316) is the second's.
      >>> prototypes, feats = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
      >>> moved = update_prototypes(prototypes, feats, torch.tensor([0, 1]), decay=0.75)
      >>> [[round(v, 3) for v in row] for row in moved.tolist()]
      [[0.0, 1.0], [0.949, 0.316]]
    """
    _check(feats, prototypes, labels=labels, where=where)
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay={decay} is not a share", fix="use a value from 0 to 1, 0.999 in Co-Reg")
    is_class = labels[:, None] == torch.arange(len(prototypes), device=labels.device)  # [B, C]
    is_class = is_class & kept_rows(labels, where)[:, None]
    kept = is_class.any(dim=1)
    with torch.autocast(feats.device.type, enabled=False):
        feats = blank_rows(kept, feats.detach()).to(prototypes.dtype)
        n_rest = is_class.flip(0).cumsum(dim=0).flip(0)  # rows of the class from here on
        n_later = (n_rest * is_class).sum(dim=1) - kept.long()  # [B]
        # Powers in float64: a decay rounded to float32 is off by 1e-4 after a few thousand rows.
        row_share = (1 - decay) * torch.pow(decay, n_later.double())
        old_share = torch.pow(decay, is_class.sum(dim=0).double())
        moved = is_class.T.to(feats.dtype) @ (row_share[:, None].to(feats.dtype) * feats)  # [C, B] @ [B, D]
        return _unit(old_share[:, None].to(feats.dtype) * prototypes.detach() + moved)


def prototype_logits(feats: Tensor, prototypes: Tensor, *, temperature: float = 0.3) -> Tensor:
    """How close images are to each class, cosine / temperature.

    Args:
      feats: [B, D] float, unit norm; half precision is computed in float32, under autocast too.
      prototypes: [C, D] float, unit norm; a zero one gives logits of 0.
      temperature: > 0, divides the cosines.

    Returns: [B, C] float.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.4.

    Example:
      >>> prototype_logits(torch.tensor([[0.75, -0.5]]), torch.eye(2), temperature=0.5).tolist()
      [[1.5, -1.0]]
    """
    _check(feats, prototypes)
    check_temperature(temperature)
    with torch.autocast(feats.device.type, enabled=False):
        feats = at_least_float32(feats)
        return feats @ prototypes.to(feats.dtype).T / temperature


def prototype_loss(
    feats: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    is_reliable: Tensor,
    permutation: Tensor | None = None,
    lam: float = 1.0,
    temperature: float = 0.3,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Align softmax(prototype logits) with targets: KL(target || softmax) where reliable, else the squared error.

    The mean over reliable rows plus the mean over the others; the squared error is a mean over classes, too. Of a
    mixed batch, pass the targets before mixing: a row's loss is lam * loss(its own) + (1 - lam) * loss(its partner's).

    Args:
      feats: [B, D] float, unit norm.
      prototypes: [C, D] float, unit norm.
      targets: [B, C] float >= 0, rows sum to 1; excluded rows may hold anything. No gradient flows to them.
      is_reliable: [B] bool; of a mixed batch, that of the row's own image.
      permutation: [B] int64 partner of each row (losses.mixup.Mixed), or None for a batch that is not mixed.
      lam: 0 to 1, share of a row's own target; without ``permutation`` it must be 1.
      temperature: > 0, divides the cosines.
      weights, where, reduce: see losses/_reduce.py. A row whose partner is excluded must be excluded as well; "sum" and
        "none" do not tell the two kinds apart.

    Returns: scalar, or [B] if reduce="none".

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.4.

    Example: a zero prototype table gives [1/2, 1/2]: log 2 for the trusted row, (1/4 + 1/4) / 2 for the other.
      >>> feats, prototypes, is_reliable = torch.eye(2), torch.zeros(2, 2), torch.tensor([True, False])
      >>> round(prototype_loss(feats, prototypes, torch.eye(2), is_reliable=is_reliable).item(), 4)
      0.9431
    """
    _check(feats, prototypes, is_reliable=is_reliable, permutation=permutation, weights=weights, where=where)
    if not 0 <= lam <= 1:
        raise ConfigError(f"lam={lam} is not a share", fix="use a value from 0 to 1")
    if permutation is None and lam < 1:
        raise ConfigError(f"lam={lam} without a permutation", fix="pass the permutation that mixed the batch")
    logits = prototype_logits(blank_rows(where, feats), prototypes, temperature=temperature)
    check_targets(logits, targets)
    log_probs = logits.log_softmax(dim=1)
    targets = blank_rows(where, targets.detach()).to(log_probs.dtype)
    divergence, error = _row_losses(log_probs, targets)
    if permutation is not None and lam < 1:
        of_partner = _row_losses(log_probs, targets[permutation])
        divergence = lam * divergence + (1 - lam) * of_partner[0]
        error = lam * error + (1 - lam) * of_partner[1]
    is_kept = torch.ones_like(is_reliable) if where is None else where
    return reduce_loss(divergence, where=is_kept & is_reliable, weights=weights, reduce=reduce) + reduce_loss(
        error, where=is_kept & ~is_reliable, weights=weights, reduce=reduce
    )


def _row_losses(log_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence in nats and mean squared error of probabilities, each [B]."""
    divergence = (torch.xlogy(targets, targets) - targets * log_probs).sum(dim=1)
    return divergence, (log_probs.exp() - targets).square().mean(dim=1)


def prototype_collapse(prototypes: Tensor) -> Tensor:
    """Mean cosine over pairs of different prototypes: 1 = all classes point the same way, a sign of failure.

    Args:
      prototypes: [C, D] float; zero ones (classes not seen yet) are left out.

    Returns: scalar, -1 to 1; 0 if fewer than two are left. Takes C D operations, not C^2 D.

    Example: cosines 0, 1 and 0.
      >>> round(prototype_collapse(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])).item(), 4)
      0.3333
    """
    z = _unit(prototypes.detach().double())
    squares = z.square().sum(dim=1)
    n_seen = (squares > 0).sum()
    both_ways = z.sum(dim=0).square().sum() - squares.sum()  # |sum z|^2 = sum |z|^2 + every pair twice
    return (both_ways / (n_seen * (n_seen - 1)).clamp(min=1)).to(prototypes.dtype)


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; a zero row stays zero."""
    return F.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def _check(feats: Tensor, prototypes: Tensor, **per_row: Tensor | None) -> None:
    if feats.dim() != 2 or prototypes.dim() != 2 or feats.shape[1] != prototypes.shape[1]:
        raise DataError(
            f"features {list(feats.shape)} and prototypes {list(prototypes.shape)} are not [B, D] and [C, D]",
            fix="take both from the same projector",
        )
    check_rows(feats, "features", **per_row)
