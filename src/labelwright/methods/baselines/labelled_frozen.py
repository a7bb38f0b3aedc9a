"""The baselines of `labelled` on frozen features: the same adjustments and class weights, solved as convex problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.methods.baselines.labelled import plain
from labelwright.methods.frozen_heads import FrozenRecipe, FrozenSettings, fit_of
from labelwright.train.convex import Problem
from labelwright.train.settings import Share, ShareBelow1


@dataclass(frozen=True, kw_only=True)
class WeightedSettings(FrozenSettings):
    """With class weights by effective number."""

    effective_beta: ShareBelow1 = 0.9999  # of the class weights: share of images that overlap (Cui 2019)


@dataclass(frozen=True, kw_only=True)
class DeferredSettings(WeightedSettings):
    """With class weights that come late, which in a convex problem is with or without."""

    drw_from_frac: Share = 1.0  # below 1: classes are weighted by effective number


def frozen(config: type[WeightedSettings], adjustment: Callable[[Any, Tensor], Adjustment] = plain) -> FrozenRecipe:
    """The recipe of a baseline on features.

    Args:
      config: its settings; classes are weighted unless it has a ``drw_from_frac`` of 1.
      adjustment: (cfg, counts [C]) -> `Adjustment` of the logits.
    """

    def problem(cfg: WeightedSettings, counts: Tensor) -> Problem:
        is_weighted = not isinstance(cfg, DeferredSettings) or cfg.drw_from_frac < 1
        weight = fixed.effective_number_weights(counts, beta=cfg.effective_beta) if is_weighted else None
        return Problem(adjustment(cfg, counts), weight)

    return FrozenRecipe(config, fit_of(problem))
