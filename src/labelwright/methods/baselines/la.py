"""Logit adjustment, -log softmax(f + tau log pi)_y.

Source: Menon et al. 2021 (arXiv 2007.07314).
Command: labelwright fit DATA --method la --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines import labelled, labelled_frozen
from labelwright.train.settings import AtLeast0


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Of logit adjustment."""

    tau: AtLeast0 = 1.0  # strength of the log prior


@dataclass(frozen=True, kw_only=True)
class Config(Strength, labelled.DeferredSettings):
    """Settings of logit adjustment."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Strength, labelled_frozen.DeferredSettings):
    """Settings of logit adjustment on frozen features."""


def adjustment(cfg: Strength, counts: Tensor) -> Adjustment:
    """+ tau log pi."""
    return fixed.logit_adjustment(counts, strength=cfg.tau)


RECIPE = labelled.LabelledRecipe(Config, adjustment)
FROZEN = labelled_frozen.frozen(FrozenConfig, adjustment)
