"""PRODEN: cross-entropy against the network's own shares t of the candidates as of the last visit, -sum_j t_j log p_j.

t = 1/|S| at first, then p_j / sum_{k in S} p_k: memory["targets"].
Source: Lv et al. 2020 (arXiv 2002.08053).
Command: labelwright fit DATA --method proden --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from labelwright.losses.candidates import informative_rows
from labelwright.losses.classification import soft_cross_entropy
from labelwright.methods.baselines.candidate_sets import CandidateSettings, plan_of_all, read_targets, result_of, setup
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, Clock, State, StepResult, Task


def step(cfg: CandidateSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term; `result_of` renews the targets."""
    batch = batches["train"]
    logits, kept = state.nets["main"](batch.x), informative_rows(task.possible(batch.rows))
    targets = read_targets(task, state.memory["targets"], batch.rows)
    return result_of(task, state, batch, [logits], soft_cross_entropy(logits, targets, where=kept), kept)


RECIPE = Recipe(
    Config=CandidateSettings, setup=partial(setup, name="proden", has_targets=True), plan=plan_of_all, step=step
)
