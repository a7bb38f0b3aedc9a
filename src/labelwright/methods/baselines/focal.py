"""Focal loss, -(1 - p_y)^g log p_y: images that are already right count less.

Source: Lin et al. 2017 (arXiv 1708.02002), g = focal_gamma.
Command: labelwright fit DATA --method focal --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.losses import classification
from labelwright.methods.baselines.labelled import DeferredSettings, LabelledRecipe, Seen
from labelwright.train.settings import AtLeast0


@dataclass(frozen=True, kw_only=True)
class Config(DeferredSettings):
    """Settings of the focal loss."""

    focal_gamma: AtLeast0 = 1.0  # power of (1 - p) (Lin 2017: 2)


def loss(cfg: Config, seen: Seen) -> Tensor:
    """The focal loss with the class weights, scalar."""
    return classification.focal(seen.logits, seen.labels, power=cfg.focal_gamma, class_weight=seen.class_weight)


RECIPE = LabelledRecipe(Config, loss=loss)
