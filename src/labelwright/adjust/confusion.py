"""Margins of CAP: larger for a class that gets too few pseudolabels, against the classes it is taken for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment
from labelwright.errors import ConfigError


def rescaled_similarity(text_feats: Tensor, prototypes: Tensor) -> Tensor:
    """How alike classes are, by text or by image, whichever is more; each row stretched to reach 1.

    Args:
      text_feats: [C, D] float, unit norm.   prototypes: [C, D] float, unit norm (zero rows for classes without one).

    Returns: [C, C] float, of half precision float32: the larger cosine, each row mapped linearly from [min, max] to
      [min, 1].

    Source: arXiv 2505.02056, Eq. (4) and (5) (methods of CAP, section 4).

    Example:
      >>> t = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
      >>> [[round(v, 2) for v in row] for row in rescaled_similarity(t, t).tolist()]
      [[1.0, 0.6], [0.6, 1.0]]
    """
    t, v = (feats.to(torch.promote_types(feats.dtype, torch.float32)) for feats in (text_feats, prototypes))
    sims = torch.maximum(t @ t.T, v @ v.T)
    low, high = sims.amin(1, keepdim=True), sims.amax(1, keepdim=True)
    return low + (sims - low) * (1 - low) / (high - low).clamp(min=1e-12)


def pace(counts: Tensor, expected: Tensor, *, labelled_only: Tensor | None = None) -> Tensor:
    """How far each class has got with its pseudolabels, against what is expected of it: 1 = as far as the furthest.

    Args:
      counts: [C] pseudolabels per class; labelled images of a labelled-only class.
      expected: [C] float, pseudolabels that each class should have, in any unit; equal for all in the paper. Classes
        of which none is expected count as 1 and are not compared with.
      labelled_only: [C] bool, classes without unlabelled images: the others are compared with them too, and they
        themselves count as 1; None = no class.

    Returns: [C] float, 0 to 1.

    Source: arXiv 2505.02056, Section 3.3. Differs: against expected counts, so that a rare class may have few.

    Example: the second class is rare and on its way; the third is rarely predicted.
      >>> pace(torch.tensor([80.0, 8.0, 4.0]), torch.tensor([100.0, 10.0, 10.0])).tolist()
      [1.0, 1.0, 0.5]
    """
    ratio = torch.where(expected > 0, counts.double() / expected.double().clamp(min=1e-9), 0.0)
    ratio = ratio / ratio.amax().clamp(min=1e-12)
    is_compared = expected > 0 if labelled_only is None else (expected > 0) & ~labelled_only
    return torch.where(is_compared, ratio, 1.0).to(torch.get_default_dtype())


def confusion_margin(similarity: Tensor, paces: Tensor, *, scale: float) -> Adjustment:
    """Margins M[y, :] on the training logits of a row with (pseudo)label y.

    Args:
      similarity: [C, C] float, from `rescaled_similarity`.
      paces: [C] float, 0 to 1: pseudolabels of a class over those of the largest.
      scale: m, in logits, >= 0.

    Returns: a pair margin [C, C] with a diagonal of 0.

    Raises: ConfigError: scale < 0.

    Source: arXiv 2505.02056, Eq. (6).

    Example: (1 - 0.5) / (1 + 0.5) * (1 - 0.5) * 12 * 0.6 = 1.2 for the class that is rarely predicted.
      >>> sims = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
      >>> margin = confusion_margin(sims, torch.tensor([1.0, 0.5]), scale=12.0).pair_margin
      >>> [[round(v, 4) for v in row] for row in margin.tolist()]
      [[0.0, 0.0], [1.2, 0.0]]
    """
    if not scale >= 0:
        raise ConfigError(f"scale={scale} is negative", fix="use a scale >= 0; 0 switches the margins off")
    lag = (1 - paces) / (1 + paces)
    margin = lag[:, None] * (paces.max() - paces.min()) * scale * similarity
    return Adjustment(pair_margin=margin * (1 - torch.eye(len(paces), device=margin.device, dtype=margin.dtype)))


def largest_margins(margin: Tensor, class_names: Sequence[str], *, n: int = 200) -> list[list[str | float]]:
    """The pairs of classes with the largest margins.

    Args:
      margin: [C, C] float.   class_names: C names.
      n: pairs at most.

    Returns: [name of y, name of the other class, margin], largest first.

    Example:
      >>> largest_margins(torch.tensor([[0.0, 0.5], [2.0, 0.0]]), ("cat", "dog"), n=2)
      [['dog', 'cat', 2.0], ['cat', 'dog', 0.5]]
    """
    top = margin.flatten().topk(min(n, margin.numel()))
    places = [divmod(int(i), len(class_names)) for i in top.indices]
    return [[class_names[y], class_names[j], round(float(v), 6)] for v, (y, j) in zip(top.values, places, strict=True)]
