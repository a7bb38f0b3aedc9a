"""What the class counts alone say: priors and class weights, each [C], and adjustments of the training logits.

A class without images (count 0) has no prior, yet its logit is in every softmax. Priors count it as half an image, so
that logarithms and powers stay finite and it ranks below a class with one image; weights and margins, which only ever
act on rows *of* that class, are given a finite value that no row uses. Everywhere counts are [C] int or float >= 0,
finite images per class, at least one of them > 0; they may be fractional (soft counts). Lists and arrays count as
tensors.

Raises DataError where counts are negative or infinite, not [C] or all zero, ConfigError where a knob is out of range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment
from labelwright.errors import ConfigError, DataError

EMPTY_COUNT = 0.5  # images that a class without images is taken to have


def prior(counts: Tensor) -> Tensor:
    """Share of each class, pi_k = n_k / sum n, an empty class counted as half an image.

    Returns: [C] float32 (float64 for float64 counts), > 0, sums to 1.

    Example: an empty class beside one of 4.5 images.
      >>> prior(torch.tensor([6, 2])).tolist(), prior(torch.tensor([4.5, 0.0])).tolist()
      ([0.75, 0.25], [0.8999999761581421, 0.10000000149011612])
    """
    filled = _filled(counts)
    return filled / filled.sum()


def log_prior(counts: Tensor) -> Tensor:
    """Natural logarithm of `prior`, [C] float <= 0.

    Example:
      >>> [round(v, 4) for v in log_prior(torch.tensor([3, 1])).tolist()]
      [-0.2877, -1.3863]
    """
    return prior(counts).log()


def effective_number_weights(counts: Tensor, *, beta: float) -> Tensor:
    """Class-balanced weights (1 - beta) / (1 - beta^n_k), scaled to a mean of 1 over the classes with images.

    Args:
      beta: in [0, 1): 0 weighs every class the same, towards 1 the weight becomes 1 / n_k; 0.9999 in the paper.

    Returns: [C] float > 0; 1 for an empty class.

    Source: Cui et al. 2019 (arXiv 1901.05555), Sec. 4.

    Example: beta = 1/2: 1/2 / (1 - 1/2) = 1 and 1/2 / (1 - 1/4) = 2/3, mean 5/6.
      >>> [round(v, 4) for v in effective_number_weights(torch.tensor([1, 2]), beta=0.5).tolist()]
      [1.2, 0.8]
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"beta={beta} is outside [0, 1)", fix="use a value such as 0.999 or 0.9999")
    filled = _filled(counts)
    present = torch.as_tensor(counts) > 0
    if beta == 0:
        return torch.ones_like(filled)
    effective = -torch.expm1(filled.double() * torch.tensor(beta, dtype=torch.float64).log()) / (1 - beta)
    weights = (1 / effective) / (1 / effective)[present].mean()
    return torch.where(present, weights, 1.0).to(filled.dtype)


def inverse_prior_weights(counts: Tensor, *, power: float) -> Tensor:
    """Weights pi_k^(-power), not normalised: the weighted mean of a loss divides by their sum.

    Args:
      power: >= 0; 0 weighs every class the same. (rho in CVS)

    Returns: [C] float >= 1.

    Source: arXiv 2310.04752, Sec. 6.

    Example: shares 3/4 and 1/4, power 1.
      >>> [round(v, 4) for v in inverse_prior_weights(torch.tensor([3, 1]), power=1.0).tolist()]
      [1.3333, 4.0]
    """
    _not_negative("power", power)
    return prior(counts) ** -power


def logit_adjustment(counts: Tensor, *, strength: float = 1.0) -> Adjustment:
    """Logit adjustment: + strength * log pi_k; at strength 1 it is balanced softmax.

    Args:
      strength: any; 1 aims at the balanced error. (tau)

    Returns: an offset [C].

    Source: Menon et al. 2021 (arXiv 2007.07314), Eq. (10); Ren et al. 2020 (arXiv 2007.10740), Sec. 3.

    Example:
      >>> [round(v, 4) for v in logit_adjustment(torch.tensor([3, 1]), strength=2.0).offset.tolist()]
      [-0.5754, -2.7726]
    """
    return Adjustment(offset=strength * log_prior(counts))


def vector_scaling(counts: Tensor, *, power: float, strength: float = 1.0) -> Adjustment:
    """Vector scaling: * (n_k / n_max)^power + strength * log pi_k.

    Args:
      power: >= 0. (gamma)
      strength: any. (tau)

    Returns: a multiplier [C] in (0, 1] and the offset of `logit_adjustment`.

    Source: Kini et al. 2021 (arXiv 2103.01550), Sec. 5.

    Example: (4 / 16)^(1/2) = 1/2.
      >>> vector_scaling(torch.tensor([16, 4]), power=0.5).multiplier.tolist()
      [1.0, 0.5]
    """
    _not_negative("power", power)
    filled = _filled(counts)
    return Adjustment(multiplier=(filled / filled.max()) ** power) + logit_adjustment(counts, strength=strength)


def ldam(counts: Tensor, *, max_margin: float = 0.5, scale: float = 30.0) -> Adjustment:
    """Label-distribution-aware margins: scale * (f - m_y at the label), m in proportion to n_k^(-1/4).

    Args:
      max_margin: >= 0, of the rarest class with images and of empty ones, in units of the logits before the scale.
      scale: > 0; 30 suits cosines of a unit-norm head.

    Returns: a multiplier [C] and a target margin [C] <= 0.

    Source: Cao et al. 2019 (arXiv 1906.07413), Sec. 3.2.

    Example: 16^(-1/4) = 1/2 of 1^(-1/4).
      >>> ldam(torch.tensor([16, 1, 0]), scale=10.0).target_margin.tolist()
      [-2.5, -5.0, -5.0]
    """
    _not_negative("max_margin", max_margin)
    if not scale > 0:
        raise ConfigError(f"scale={scale} is not positive", fix="it multiplies the logits: use a value > 0, 30 in LDAM")
    filled = _filled(counts)
    margins = (filled / filled[torch.as_tensor(counts) > 0].min()).clamp_min(1.0) ** -0.25 * max_margin
    return Adjustment(multiplier=torch.full_like(margins, scale), target_margin=-scale * margins)


def multiplicative_adjustment(prior: Tensor, kappa: Tensor, *, power: float) -> Adjustment:
    """Multiplicative adjustment of CVS (MLA): * pi_k^power / kappa_k.

    Args:
      prior: [C] float > 0, see `prior`.
      kappa: [C] float > 0, slopes of adjust.slopes. (kappa*)
      power: >= 0. (gamma)

    Returns: a multiplier [C].

    Source: arXiv 2310.04752, Sec. 6, early phase.

    Example: (1/4)^(1/2) / 2 = 1/4.
      >>> prior, kappa = torch.tensor([1.0, 0.25]), torch.tensor([1.0, 2.0])
      >>> multiplicative_adjustment(prior, kappa, power=0.5).multiplier.tolist()
      [1.0, 0.25]
    """
    _not_negative("power", power)
    return Adjustment(multiplier=prior**power / kappa)


def additive_adjustment(prior: Tensor, kappa: Tensor, *, strength: float) -> Adjustment:
    """Additive adjustment of CVS (CLA): + strength * log(pi_k / kappa_k).

    Args:
      prior: [C] float > 0, see `prior`.
      kappa: [C] float > 0, slopes of adjust.slopes. (kappa+)
      strength: any; 1 aims at the balanced error. (tau)

    Returns: an offset [C].

    Source: arXiv 2310.04752, Sec. 6, terminal phase.

    Example: log(1/4 / 2) = -log 8.
      >>> prior, kappa = torch.tensor([1.0, 0.25]), torch.tensor([1.0, 2.0])
      >>> [round(v, 4) for v in additive_adjustment(prior, kappa, strength=1.0).offset.tolist()]
      [0.0, -2.0794]
    """
    return Adjustment(offset=strength * (prior / kappa).log())


def subtract_log_prior(logits: Tensor, log_prior: Tensor, *, strength: float = 1.0) -> Tensor:
    """For test time, after training with plain cross-entropy: logits - strength * log_prior (post-hoc adjustment).

    Never on top of a loss that had the prior added: that would count it twice.

    Args:
      logits: [B, C] float.
      log_prior: [C] float, see `log_prior`.
      strength: any. (tau)

    Returns: [B, C].

    Source: Menon et al. 2021 (arXiv 2007.07314), Eq. (9).

    Example:
      >>> subtract_log_prior(torch.zeros(1, 2), torch.tensor([0.0, -1.5]), strength=2.0).tolist()
      [[0.0, 3.0]]
    """
    return logits - strength * log_prior


def _filled(counts: Tensor) -> Tensor:
    """Counts as floats, 0 replaced by half an image; refuses what are not counts."""
    counts = torch.as_tensor(counts)
    if counts.dim() != 1 or counts.numel() == 0:
        raise DataError(f"counts have shape {list(counts.shape)}, not [C]", fix="pass images per class")
    is_count = (counts >= 0) & counts.isfinite()
    if not bool(is_count.all()):
        class_id = int((~is_count).nonzero()[0])
        raise DataError(
            f"class {class_id} has count {counts[class_id].item()}", fix="counts are images per class, 0 or more"
        )
    if not bool((counts > 0).any()):
        raise DataError("every class has count 0", fix="pass the counts of the labelled images")
    values = counts if counts.dtype == torch.float64 else counts.float()
    return torch.where(values > 0, values, EMPTY_COUNT)


def _not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{name}={value} is negative", fix=f"use {name} >= 0; 0 switches it off")
