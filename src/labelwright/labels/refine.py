"""Soft targets out of what networks predict: sharpened, freed of a lean towards some classes, and agreed between two.

Probabilities in half precision are computed in float32. Targets carry the gradient of what they are made of: make them
under ``torch.no_grad``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labelwright.errors import ConfigError, DataError

RUNNING_MIN = 1e-6  # mean probability that a class is taken to have had at least


def sharpen(probs: Tensor, *, temperature: float) -> Tensor:
    """Make the probable classes more probable: p^(1 / temperature), renormalised.

    Args:
      probs: [B, C] float >= 0, rows sum to 1.
      temperature: > 0; 1 changes nothing, towards 0 all goes to the most probable class.

    Returns: [B, C] float, rows sum to 1.

    Raises:
      ConfigError: temperature <= 0.

    Source: Berthelot et al. 2019 (MixMatch, arXiv 1905.02249), Eq. (7).

    Example: 0.75^2 : 0.25^2 = 9 : 1.
      >>> [round(v, 4) for v in sharpen(torch.tensor([[0.75, 0.25]]), temperature=0.5)[0].tolist()]
      [0.9, 0.1]
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} is not positive", fix="use a value > 0, 0.5 in Co-Reg")
    probs = _at_least_float32(probs)
    powers = (probs / probs.amax(dim=1, keepdim=True)).pow(1 / temperature)  # the largest stays 1: no underflow
    return powers / powers.sum(dim=1, keepdim=True)


def align(probs: Tensor, *, running: Tensor, prior: Tensor | None = None) -> Tensor:
    """Take out a network's lean towards some classes: p * prior / running, renormalised.

    Args:
      probs: [B, C] float >= 0, rows sum to 1.
      running: [C] float >= 0, the mean of the network's own predictions (`mean_of`). A class below 1e-6 counts as 1e-6,
        so that one never predicted is not divided by 0.
      prior: [C] float >= 0, the shares that classes should have, in any unit; None = equal.

    Returns: [B, C] float, rows sum to 1; a row with all its probability on classes of prior 0 comes back as it was.

    Raises:
      DataError: ``running`` or ``prior`` has not one entry per class.

    Source: Wang et al. 2025 (arXiv 2506.03229); Berthelot et al. 2020 (ReMixMatch, arXiv 1911.09785), Sec. 3.1.

    Example: a network that says the first class three times too often.
      >>> align(torch.tensor([[0.75, 0.25]]), running=torch.tensor([0.75, 0.25])).tolist()
      [[0.5, 0.5]]
    """
    for name, per_class in (("running", running), ("prior", prior)):
        if per_class is not None and tuple(per_class.shape) != tuple(probs.shape[1:]):
            raise DataError(
                f"{name} has shape {list(per_class.shape)} for probs {list(probs.shape)}",
                fix=f"pass {name} with one entry per class",
            )
    probs = _at_least_float32(probs)
    factor = 1 / running.to(probs).clamp_min(RUNNING_MIN)
    if prior is not None:
        factor = factor * prior.to(probs)
    return lifted(probs, factor)


def lifted(probs: Tensor, lift: Tensor) -> Tensor:
    """Probabilities times a factor per class, renormalised.

    Args:
      probs: [B, C] float >= 0, rows sum to 1.
      lift: [C] float >= 0.

    Returns: [B, C] float, rows sum to 1; a row with all its probability on classes of lift 0 comes back as it was.

    Example:
      >>> lifted(torch.tensor([[0.75, 0.25]]), torch.tensor([1.0, 3.0])).tolist()
      [[0.5, 0.5]]
    """
    scaled = probs * lift
    total = scaled.sum(1, keepdim=True)
    return torch.where(total > 0, scaled / torch.where(total > 0, total, 1), probs)


def init_history(n_classes: int, length: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """An empty history of a network's mean predictions, for `push_history` and `mean_of`.

    Args:
      n_classes: C.
      length: >= 1, batches remembered.
      device: where it lies; None = the default device. `push_history` moves it to its predictions.

    Returns: "means" [length, C] float32, a ring, and "n_pushed", int64 scalar: batches ever pushed.

    Raises:
      ConfigError: length < 1.

    Example:
      >>> {name: list(value.shape) for name, value in init_history(10, 50).items()}
      {'means': [50, 10], 'n_pushed': []}
    """
    if length < 1:
        raise ConfigError(f"length={length} batches is too short", fix="use 1 or more, 50 in Co-Reg")
    return {
        "means": torch.zeros(length, n_classes, device=device),
        "n_pushed": torch.zeros((), dtype=torch.int64, device=device),
    }


def push_history(history: Mapping[str, Tensor], probs: Tensor) -> dict[str, Tensor]:
    """Remember the mean prediction of one batch; the oldest makes room.

    Args:
      history: from `init_history` or an earlier push; left as it is.
      probs: [B, C] float, rows sum to 1; no gradient is kept. An empty batch changes nothing.

    Returns: the new history, on the device of ``probs``.

    Raises:
      DataError: another number of classes.

    Example:
      >>> history = push_history(init_history(2, 50), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
      >>> history["means"][0].tolist(), history["n_pushed"].item()
      ([0.75, 0.25], 1)
    """
    means, n_pushed = history["means"].to(probs.device), history["n_pushed"].to(probs.device)
    if probs.dim() != 2 or probs.shape[1] != means.shape[1]:
        raise DataError(
            f"probs have shape {list(probs.shape)}, the history has {means.shape[1]} classes",
            fix="pass probs [B, C] of the network that the history is of",
        )
    if len(probs) == 0:
        return {"means": means, "n_pushed": n_pushed}
    place = (n_pushed % len(means)).reshape(1)
    return {
        "means": means.index_copy(0, place, probs.detach().float().mean(dim=0, keepdim=True)),
        "n_pushed": n_pushed + 1,
    }


def mean_of(history: Mapping[str, Tensor]) -> Tensor:
    """Mean prediction over the batches remembered.

    Args:
      history: from `push_history`.

    Returns: [C] float32, sums to 1; uniform as long as nothing was pushed, which leaves `align` without effect.

    Example:
      >>> mean_of(init_history(4, 50)).tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    means, n_pushed = history["means"], history["n_pushed"]
    total = means.sum(dim=0) / n_pushed.clamp(min=1, max=len(means))  # places not filled yet hold 0
    return torch.where(n_pushed > 0, total, 1 / means.shape[1])


def unreliable_targets(probs: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Targets of images whose candidates are not trusted: what networks and views say on average, sharpened.

    Args:
      probs: [B, C] float each, rows sum to 1: of both networks on every weak view.
      temperature: > 0, see `sharpen`.

    Returns: [B, C] float, rows sum to 1.

    Raises:
      DataError: no predictions, or of different shapes.
      ConfigError: temperature <= 0.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2.

    Example: the mean is [0.75, 0.25].
      >>> views = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])]
      >>> [round(v, 4) for v in unreliable_targets(views, temperature=0.5)[0].tolist()]
      [0.9, 0.1]
    """
    if not probs or len({one.shape for one in probs}) > 1:
        raise DataError(
            f"predictions have shapes {[list(one.shape) for one in probs]}",
            fix="pass one or more predictions [B, C] of the same images",
        )
    mean = torch.stack([_at_least_float32(one) for one in probs]).mean(dim=0)  # [V, B, C] -> [B, C]
    return sharpen(mean, temperature=temperature)


def reliable_targets(
    own_probs: Tensor, other_probs: Tensor, clean_probability: Tensor, *, temperature: float
) -> Tensor:
    """Targets of images whose candidates are trusted: the other network's word as far as it is trusted, sharpened.

    w * other + (1 - w) * own, where w is how probably the other network has the image right.

    Args:
      own_probs: [B, C] float, rows sum to 1: the learning network's mean over its weak views.
      other_probs: [B, C] float, rows sum to 1: the other network's, aligned.
      clean_probability: [B] float, 0 to 1, from the other network's division (purify.divide).
      temperature: > 0, see `sharpen`.

    Returns: [B, C] float, rows sum to 1.

    Raises:
      DataError: shapes do not fit.
      ConfigError: temperature <= 0.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2.

    Example: 0.5 * [1, 0] + 0.5 * [0.5, 0.5] = [0.75, 0.25].
      >>> own, other = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
      >>> targets = reliable_targets(own, other, torch.tensor([0.5]), temperature=0.5)
      >>> [round(v, 4) for v in targets[0].tolist()]
      [0.9, 0.1]
    """
    if own_probs.shape != other_probs.shape or clean_probability.shape != own_probs.shape[:1]:
        raise DataError(
            f"own_probs {list(own_probs.shape)}, other_probs {list(other_probs.shape)} and clean_probability "
            f"{list(clean_probability.shape)} do not fit",
            fix="pass [B, C], [B, C] and [B] of the same images",
        )
    own_probs = _at_least_float32(own_probs)
    share = clean_probability.to(own_probs.dtype)[:, None]
    return sharpen(share * other_probs + (1 - share) * own_probs, temperature=temperature)


def _at_least_float32(probs: Tensor) -> Tensor:
    return probs.to(torch.promote_types(probs.dtype, torch.float32))
