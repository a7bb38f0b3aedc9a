"""Logit adjustment, -log softmax(f + tau log pi)_y.

Source: Menon et al. 2021 (arXiv 2007.07314).
Command: labelwright fit DATA --method la --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines.labelled import DeferredSettings, LabelledRecipe
from labelwright.train.settings import require_range


@dataclass(frozen=True, kw_only=True)
class Config(DeferredSettings):
    """Settings of logit adjustment."""

    tau: float = 1.0  # strength of the log prior

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "0 or more", "tau")


def adjustment(cfg: Config, counts: Tensor) -> Adjustment:
    """+ tau log pi."""
    return fixed.logit_adjustment(counts, strength=cfg.tau)


RECIPE = LabelledRecipe(Config, adjustment)
