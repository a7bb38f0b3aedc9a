"""Balanced softmax, -log(n_y exp f_y / sum_k n_k exp f_k): logit adjustment of strength 1, without a setting.

Source: Ren et al. 2020 (arXiv 2007.10740).
Command: labelwright fit DATA --method balanced_softmax --out RUN
"""

from __future__ import annotations

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines import labelled_frozen
from labelwright.methods.baselines.labelled import DeferredSettings, LabelledRecipe

Config = DeferredSettings


def adjustment(cfg: Config, counts: Tensor) -> Adjustment:
    """+ log pi."""
    return fixed.logit_adjustment(counts)


RECIPE = LabelledRecipe(Config, adjustment)
FROZEN = labelled_frozen.frozen(labelled_frozen.DeferredSettings, adjustment)
