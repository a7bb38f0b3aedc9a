"""Vector scaling, -log softmax((n / n_max)^gamma * f + tau log pi)_y.

Source: Kini et al. 2021 (arXiv 2103.01550).
Command: labelwright fit DATA --method vs --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines import labelled, labelled_frozen
from labelwright.train.settings import AtLeast0


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Of vector scaling."""

    gamma: AtLeast0 = 0.05  # power of n / n_max (Kini 2021 uses 0.05 and 0.15)
    tau: AtLeast0 = 1.0  # strength of the log prior


@dataclass(frozen=True, kw_only=True)
class Config(Scaling, labelled.DeferredSettings):
    """Settings of vector scaling."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Scaling, labelled_frozen.DeferredSettings):
    """Settings of vector scaling on frozen features."""


def adjustment(cfg: Scaling, counts: Tensor) -> Adjustment:
    """* (n / n_max)^gamma + tau log pi."""
    return fixed.vector_scaling(counts, power=cfg.gamma, strength=cfg.tau)


RECIPE = labelled.LabelledRecipe(Config, adjustment)
FROZEN = labelled_frozen.frozen(FrozenConfig, adjustment)
