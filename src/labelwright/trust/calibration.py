"""The chance that a label is right, from what a classifier says of it: a probability that can be used as a threshold.

    trust = sigmoid(slope (log(p / (1 - p)) + k) + offset - k), p the softmax of the predicted class, k = log(C - 1)

k makes of a slope what a temperature is: towards 0 it leads to chance, 1 / C, and not to one half. Slope and offset
come from labelled images whose labels the classifier did not see, by maximum a posteriori: few of them move little from
what is usual. Without such labels the slope is the one at which the mean trust is the mean confidence of a text model
before anything was learned from its answers: what adapts to its own answers becomes too sure of itself.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

Source = Literal["left-out labels", "text model", "none"]

USUAL_SLOPE, SLOPE_SPREAD = 0.35, 0.4  # log-normal: median of the slope, and deviation of its logarithm
USUAL_OFFSET, OFFSET_SPREAD = 0.5, 0.7  # normal; chosen on CIFAR-10 and GTSRB, beliefs from 2 to 20 labels a class
LEAST_ROWS = 10  # left-out labels from which they say more than nothing
BELOW_TEXT, ABOVE_TEXT = 0.35, 0.15  # how far from a text model's mean confidence the truth may be
MOST_ODDS = 16.0  # float32 probabilities know no larger log-odds


@dataclass(frozen=True)
class Calibration:
    """A map from probabilities of predicted classes to the chance that they are right.

    Attributes:
      slope: > 0, of the log-odds.
      offset: in nats.
      source: what it rests on.
      n: left-out labels that it rests on.
      n_classes: C, at least 2.
    """

    slope: float = 1.0
    offset: float = 0.0
    source: Source = "none"
    n: int = 0
    n_classes: int = 2

    def __call__(self, probability: Tensor) -> Tensor:
        """The chance [N] that a prediction is right, of its probability [N].

        Example:
          >>> Calibration(0.5, 0.0)(torch.tensor([0.5, 0.9])).tolist()
          [0.5, 0.75]
        """
        chance = math.log(max(self.n_classes, 2) - 1)
        return torch.sigmoid(self.slope * (log_odds(probability) + chance) + self.offset - chance).float()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def log_odds(probability: Tensor) -> Tensor:
    """log(p / (1 - p)) [N] float64, kept within `MOST_ODDS`.

    Example:
      >>> log_odds(torch.tensor([0.5, 1.0])).tolist()
      [0.0, 16.0]
    """
    p = probability.double()
    return (p.log() - (1 - p).log()).clamp(-MOST_ODDS, MOST_ODDS)


def from_left_out(probability: Tensor, right: Tensor, *, n_classes: int = 2, like: float = 1.0) -> Calibration:
    """The calibration that left-out labels ask for.

    Args:
      probability: [n] of the predicted classes, of a classifier that did not see these labels.
      right: [n] bool.
      n_classes: C.
      like: what log-odds of the classifier to be calibrated are multiplied by to be spread as these, > 0.

    Returns: the map with the largest posterior; of fewer than `LEAST_ROWS` rows the usual one.

    Source: Platt 1999, with a prior in place of his smoothed targets.

    Example: half of what is said at 0.9 is right.
      >>> found = from_left_out(torch.full((1000,), 0.9), torch.arange(1000) % 2 == 0)
      >>> abs(found(torch.tensor([0.9])).item() - 0.5) < 0.02
      True
    """
    chance = math.log(max(n_classes, 2) - 1)
    odds, sign = log_odds(probability).numpy() + chance, 2.0 * right.double().numpy() - 1

    def loss(at: Any) -> float:
        misfit = np.logaddexp(0, -sign * (math.exp(at[0]) * odds + at[1] - chance)).sum()
        prior = ((at[0] - math.log(USUAL_SLOPE)) / SLOPE_SPREAD) ** 2 + ((at[1] - USUAL_OFFSET) / OFFSET_SPREAD) ** 2
        return float(misfit + prior / 2)

    start = np.array([math.log(USUAL_SLOPE), USUAL_OFFSET])
    if len(odds) < LEAST_ROWS:
        return Calibration(USUAL_SLOPE * like, USUAL_OFFSET, "none", 0, n_classes)
    slope, offset = minimize(loss, start, method="BFGS").x
    return Calibration(math.exp(slope) * like, float(offset), "left-out labels", len(odds), n_classes)


def slope_to_mean(probability: Tensor, mean: float, *, n_classes: int = 2) -> float:
    """The slope, 0.01 to 1, at which the mean of the calibrated probabilities is ``mean``, or as near as can be.

    Args:
      probability: [N] of predicted classes.
      mean: 0 to 1.
      n_classes: C.

    Example:
      >>> p = torch.tensor([0.99, 0.9, 0.8])
      >>> slope = slope_to_mean(p, 0.8)
      >>> round(Calibration(slope)(p).mean().item(), 4), slope_to_mean(p, 0.95)
      (0.8, 1.0)
    """

    def gap(slope: float) -> float:
        return float(Calibration(slope, n_classes=n_classes)(probability).double().mean()) - mean

    if gap(1.0) <= 0:
        return 1.0
    return 0.01 if gap(0.01) >= 0 else float(brentq(gap, 0.01, 1.0, xtol=1e-6))


def from_text_model(probability: Tensor, confidence: float, *, n_classes: int = 2) -> Calibration:
    """The calibration of answers learned from those of a text model, by the text model's own mean confidence.

    Args:
      probability: [N] of the predicted classes.
      confidence: mean probability of the text model's own answers, 0 to 1.
      n_classes: C.

    Example:
      >>> from_text_model(torch.tensor([0.99, 0.95]), 0.7).source
      'text model'
    """
    slope = slope_to_mean(probability, confidence, n_classes=n_classes)
    return Calibration(slope, 0.0, "text model", 0, n_classes)


def expected_accuracy(trust: Tensor, calibration: Calibration) -> tuple[float, float, float]:
    """The estimated share of labels that are right, and an interval for it.

    With left-out labels the interval is a 95% one for as many of them; from a text model it is what such estimates were
    off by where we looked; without either it says nothing.

    Args:
      trust: [N] calibrated chances of predicted labels, N >= 1.

    Returns: estimate, low, high.

    Example:
      >>> known = Calibration(1.0, 0.0, "left-out labels", 100)
      >>> [round(v, 3) for v in expected_accuracy(torch.full((50,), 0.9), known)]
      [0.9, 0.841, 0.959]
    """
    mean = float(trust.double().mean())
    if calibration.source == "none":
        return mean, 0.0, 1.0
    if calibration.source == "text model":
        return mean, max(0.0, mean - BELOW_TEXT), min(1.0, mean + ABOVE_TEXT)
    width = 1.96 * math.sqrt(max(mean * (1 - mean), 1 / calibration.n) / calibration.n)
    return mean, max(0.0, mean - width), min(1.0, mean + width)
