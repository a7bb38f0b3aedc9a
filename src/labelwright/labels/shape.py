"""What the shape of the features says beyond the class texts: a Gaussian mixture with the texts as its prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16_384  # rows of probabilities held at a time
LEAST_SPREAD = 0.01  # of classes that have one image each, or copies of one: their covariance is not singular


@dataclass(frozen=True)
class Shape:
    """A linear term to be added to the text logits.

    Attributes:
      weight: [C, D] float32.   bias: [C] float32.
      prior: [C] float32, share of each class in the pool, sums to 1.
    """

    weight: Tensor
    bias: Tensor
    prior: Tensor


def fit_shape(
    feats: Tensor,
    text_weight: Tensor,
    *,
    labels: Tensor,
    strength: float = 0.2,
    shrinkage: float = 0.1,
    n_iterations: int = 20,
) -> Shape:
    """Fit one Gaussian per class, all of one covariance, by expectation-maximisation that starts from the texts.

    E-step: probabilities = softmax(text logits + strength * (log prior + log density)), labelled images fixed.
    M-step: means, shares and the shared covariance under these probabilities. The log density of Gaussians of one
    covariance is linear in the features, so what comes out is a linear term.

    Args:
      feats: [N, D] float, unit norm.
      text_weight: [C, D] float, class features times the logit scale.
      labels: [N] int64, -1 = unknown.
      strength: share of the log density, >= 0; 0 leaves the texts alone and only estimates the prior.
      shrinkage: of the covariance towards a multiple of the identity, 0 to 1.
      n_iterations: of expectation and maximisation.

    Returns: the term of the last iteration, centred over the classes.

    Source: linear discriminant analysis fitted by EM; Zanella et al. 2024 (arXiv 2406.01837) has the same text prior
      with diagonal covariances and neighbour smoothing. Differs: one full covariance.

    Example: two clumps of images on a circle; the border halfway between the texts, at 45 degrees, cuts the second.
      >>> angles = torch.tensor([0.0, 4, 8, 12, 40, 50, 54, 58]).deg2rad()
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> text = 5 * torch.eye(2)
      >>> shape = fit_shape(z, text, labels=torch.full((8,), -1), strength=1.0)
      >>> (z @ text.T).argmax(1).tolist(), (z @ (text + shape.weight).T + shape.bias).argmax(1).tolist()
      ([0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    """
    z, text_weight = feats.float(), text_weight.float()
    n_rows, n_classes = len(z), len(text_weight)
    total = z.T @ z / n_rows  # [D, D]
    weight, bias = torch.zeros_like(text_weight), text_weight.new_zeros(n_classes)
    eye = torch.eye(z.shape[1], device=z.device)
    for i in range(n_iterations + 1):
        counts, sums = _moments(z, text_weight + strength * weight, strength * bias, labels)
        counts = counts.clamp(min=1e-3)
        if strength == 0 or i == n_iterations:
            break
        means = sums / counts[:, None]
        within = total - (means.T * (counts / counts.sum())) @ means
        spread = within.diagonal().mean().clamp(min=LEAST_SPREAD * total.diagonal().mean())
        within = (1 - shrinkage) * within + shrinkage * spread * eye
        weight = torch.linalg.solve(within, means.T).T
        bias = -0.5 * (weight * means).sum(1) + counts.log()
    weight, bias = strength * (weight - weight.mean(0)), strength * (bias - bias.mean())
    return Shape(weight, bias, counts / counts.sum())


def _moments(z: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the probabilities [C], and of the features weighted by them [C, D], over all rows."""
    counts, sums = weight.new_zeros(len(weight)), torch.zeros_like(weight)
    for start in range(0, len(z), CHUNK):
        some, given = z[start : start + CHUNK], labels[start : start + CHUNK].to(z.device)
        probs = F.linear(some, weight, bias).softmax(1)
        known = given >= 0
        probs[known] = F.one_hot(given[known], len(weight)).to(probs.dtype)
        counts += probs.sum(0)
        sums += probs.T @ some
    return counts, sums
