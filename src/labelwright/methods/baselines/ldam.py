"""Label-distribution-aware margins: cross-entropy of scale * (cos - m_y at the label), m ~ n^(-1/4).

The cosines are those between unit-norm features and unit-norm class weights. `ldam_drw` is the preset with deferred
re-weighting in the last fifth of the epochs. On frozen features the logits are those of a linear layer and the margins
are in nats: there the scale is what the layer makes of it.

Source: Cao et al. 2019 (arXiv 1906.07413).
Command: labelwright fit DATA --method ldam_drw --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines import labelled, labelled_frozen
from labelwright.train.settings import AtLeast0, Positive


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Of LDAM."""

    max_margin: AtLeast0 = 0.5  # margin of the rarest class (Cao 2019)


@dataclass(frozen=True, kw_only=True)
class Config(Margin, labelled.DeferredSettings):
    """Settings of LDAM."""

    scale: Positive = 30.0  # multiplies the cosines (Cao 2019)


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Margin, labelled_frozen.DeferredSettings):
    """Settings of LDAM on frozen features."""


def adjustment(cfg: Config, counts: Tensor) -> Adjustment:
    """* scale, - scale m at the label."""
    return fixed.ldam(counts, max_margin=cfg.max_margin, scale=cfg.scale)


def margin(cfg: FrozenConfig, counts: Tensor) -> Adjustment:
    """- m at the label."""
    return fixed.ldam(counts, max_margin=cfg.max_margin, scale=1.0)


RECIPE = labelled.LabelledRecipe(Config, adjustment, head="cosine")
FROZEN = labelled_frozen.frozen(FrozenConfig, margin)
