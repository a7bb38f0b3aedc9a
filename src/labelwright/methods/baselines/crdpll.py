"""CRDPLL: no class outside the candidate set S, and the views agree inside it.

 1  -sum_{j not in S} log(1 - p_j) of the first view
 2  + lambda sum over views v of KL(t || p^v); v: the first view and two strong ones; lambda grows from 0 to 1
 3  t = geometric mean over the views of the last visit, inside S; 1/|S| at first

Source: Wu et al. 2022 (ICML, PMLR 162); t=memory["targets"]. Departure: RandAugment, not AutoAugment, beside Cutout.
Command: labelwright fit DATA --method crdpll --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from labelwright.losses.candidates import complementary_loss, informative_rows
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods.baselines.candidate_sets import CandidateSettings, plan_of_all, read_targets, result_of, setup
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, Clock, State, StepResult, Task

RAMP_FRAC = 0.5  # share of the epochs over which lambda grows (Wu 2022: 100 of 200)


def step(cfg: CandidateSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Two terms; `result_of` renews the targets."""
    batch = batches["train"]
    logits, possible = [state.nets["main"](x) for x in batch.views], task.possible(batch.rows)
    kept, targets = informative_rows(possible), read_targets(task, state.memory["targets"], batch.rows)
    outside = complementary_loss(logits[0], possible)  # 1
    crossed = torch.stack([soft_cross_entropy(each, targets, where=kept) for each in logits]).sum()
    entropy = -torch.xlogy(targets, targets).sum(1)[kept].sum() / kept.sum().clamp(min=1)
    divergence = crossed - len(logits) * entropy
    weight = linear_ramp(clock.epoch, length_epochs=RAMP_FRAC * clock.n_epochs)
    return result_of(task, state, batch, logits, outside + weight * divergence, kept)  # 2


RECIPE = Recipe(
    Config=CandidateSettings,
    setup=partial(setup, name="crdpll", has_targets=True),
    plan=partial(plan_of_all, more_views=("strong", "strong")),
    step=step,
)
