"""CC: -log of the probability of the candidate set, -log sum_{j in S} p_j; which of the set it is, the network decides.

Source: Feng et al. 2020 (arXiv 2007.08929), the classifier-consistent method.
Command: labelwright fit DATA --method cc --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from labelwright.losses.candidates import informative_rows, partial_cross_entropy
from labelwright.methods.baselines.candidate_sets import CandidateSettings, plan_of_all, result_of, setup
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, Clock, State, StepResult, Task


def step(cfg: CandidateSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term."""
    batch = batches["train"]
    logits, possible = state.nets["main"](batch.x), task.possible(batch.rows)
    loss = partial_cross_entropy(logits, possible, eps=0.0)
    return result_of(task, state, batch, [logits], loss, informative_rows(possible))


RECIPE = Recipe(Config=CandidateSettings, setup=partial(setup, name="cc"), plan=plan_of_all, step=step)
