"""Influence-balanced loss: cross-entropy at first, then divided by the image's influence on the last layer.

The influence is |softmax(f) - onehot(y)|_1 * |h|_1 with h what the last layer saw; with it come class weights.

Source: Park et al. 2021 (arXiv 2110.02444).
Command: labelwright fit DATA --method ib --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labelwright.losses.classification import influence_balanced
from labelwright.methods.baselines.labelled import DeferredSettings, LabelledRecipe, Seen, weighted_cross_entropy
from labelwright.train.settings import Share


@dataclass(frozen=True, kw_only=True)
class Config(DeferredSettings):
    """Settings of the influence-balanced loss."""

    ib_from_frac: Share = 0.5  # influence and class weights from this share of the epochs on (Park 2021: half)


def loss(cfg: Config, seen: Seen) -> Tensor:
    """Cross-entropy, later the influence-balanced loss, with the class weights, scalar."""
    if seen.clock.epoch < cfg.ib_from_frac * seen.clock.n_epochs:
        return weighted_cross_entropy(cfg, seen)
    return influence_balanced(seen.logits, seen.labels, feats=seen.feats, class_weight=seen.class_weight)


RECIPE = LabelledRecipe(Config, loss=loss, weighted_from_frac=lambda cfg: min(cfg.ib_from_frac, cfg.drw_from_frac))
