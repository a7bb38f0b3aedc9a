"""Knowledge distillation: cross-entropy against the annotator's shares t of the candidates, -sum_j t_j log p_j.

Source: Hinton et al. 2015 (arXiv 1503.02531). Departure: no temperature.
Command: labelwright fit DATA --method kd --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from labelwright.labels.first_guess import has_first_guess
from labelwright.losses.classification import soft_cross_entropy
from labelwright.methods.baselines.candidate_sets import CandidateSettings, plan_of_all, result_of, setup
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, Clock, State, StepResult, Task


def step(cfg: CandidateSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term."""
    batch = batches["train"]
    logits, shares = state.nets["main"](batch.x), task.guesses(batch.rows)
    kept = has_first_guess(shares)
    return result_of(task, state, batch, [logits], soft_cross_entropy(logits, shares, where=kept), kept)


RECIPE = Recipe(Config=CandidateSettings, setup=partial(setup, name="kd"), plan=plan_of_all, step=step)
