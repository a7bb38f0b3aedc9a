"""Cross-entropy on the most probable candidate, -log p_y; among equal ones on one by chance, always the same.

Command: labelwright fit DATA --method top1 --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from labelwright.losses.classification import cross_entropy
from labelwright.methods.baselines import candidate_sets
from labelwright.methods.baselines.candidate_sets import CandidateSettings
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, Clock, State, StepResult, Task


def step(cfg: CandidateSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term."""
    batch = batches["train"]
    logits, shares = state.nets["main"](batch.x), task.guesses(batch.rows)
    kept = candidate_sets.tells(shares)
    loss = cross_entropy(logits, candidate_sets.heaviest(shares, batch.rows), where=kept)
    return candidate_sets.result_of(task, state, batch, [logits], loss, kept)


RECIPE = Recipe(
    Config=CandidateSettings,
    setup=partial(candidate_sets.setup, name="top1"),
    plan=candidate_sets.plan_of_all,
    step=step,
)
