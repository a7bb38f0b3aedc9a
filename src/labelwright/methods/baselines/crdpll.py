"""CRDPLL: no class outside the candidate set S, and the views agree inside it.

 1  -sum_{j not in S} log(1 - p_j) of the first view
 2  + lambda sum over views v of KL(t || p^v); v: the first view and two strong ones; lambda grows from 0
 3  t = geometric mean over the views of the last visit, inside S; 1/|S| at first

t is memory["targets"], one number per candidate and never N x C. A verified label is the only candidate; images without
either, or with every class as a candidate, are left out.
Source: Wu et al. 2022 (ICML, PMLR 162). Departure: strong views are RandAugment and Cutout, not Cutout and AutoAugment.
Command: labelwright fit DATA --method crdpll --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from labelwright.losses.candidates import complementary_loss, informative_rows
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    plan_of_all,
    read_targets,
    result_of,
    setup,
)
from labelwright.methods.recipe import Recipe
from labelwright.train.settings import require
from labelwright.types import Batch, Clock, State, StepResult, Task


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of crdpll."""

    consistency_weight: float = 1.0  # lambda at the end of its ramp (Wu 2022)
    ramp_frac: float = 0.5  # share of the epochs over which lambda grows from 0 (Wu 2022: 100 of 200)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.consistency_weight >= 0, "consistency_weight", self.consistency_weight, "0 or more")
        require(0 <= self.ramp_frac <= 1, "ramp_frac", self.ramp_frac, "in [0, 1]")


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Two terms; `result_of` renews the targets."""
    batch = batches["train"]
    logits, possible = [state.nets["main"](x) for x in batch.views], task.possible(batch.rows)
    kept, targets = informative_rows(possible), read_targets(task, state.memory["targets"], batch.rows)
    outside = complementary_loss(logits[0], possible)  # 1
    crossed = torch.stack([soft_cross_entropy(each, targets, where=kept) for each in logits]).sum()
    entropy = -torch.xlogy(targets, targets).sum(1)[kept].sum() / kept.sum().clamp(min=1)
    divergence = crossed - len(logits) * entropy
    weight = cfg.consistency_weight * linear_ramp(clock.epoch, length_epochs=cfg.ramp_frac * clock.n_epochs)
    return result_of(task, state, batch, logits, outside + weight * divergence, kept)  # 2


RECIPE = Recipe(
    Config=Config,
    setup=partial(setup, name="crdpll", has_targets=True),
    plan=partial(plan_of_all, more_views=("strong", "strong")),
    step=step,
)
