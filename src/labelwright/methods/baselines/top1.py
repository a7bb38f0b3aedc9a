"""Cross-entropy on the most probable candidate, -log p_y; among equal ones on one by chance, always the same.

Command: labelwright fit DATA --method top1 --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from labelwright.adjust import fixed, named
from labelwright.labels.chunks import chunks_of
from labelwright.labels.first_guess import first_guess, has_first_guess
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods.adjusting import added
from labelwright.methods.baselines import candidate_sets
from labelwright.methods.baselines.candidate_sets import CandidateSettings
from labelwright.methods.recipe import Recipe
from labelwright.types import Batch, BuildNet, Clock, State, StepResult, Task


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of top1."""

    adjust: named.Names | None = None  # adjustments of the logits, e.g. pace+la: names of adjust.named


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network."""
    state = candidate_sets.setup(cfg, task, build_net, name="top1")
    if not cfg.adjust:
        return state
    counts = torch.zeros_like(task.counts)
    for rows in chunks_of(torch.arange(len(task.labels), device=task.labels.device), task.n_classes):
        shares = task.guesses(rows)
        sure = first_guess(shares, rows)[has_first_guess(shares)]
        counts += torch.bincount(sure, minlength=task.n_classes)
    return dataclasses.replace(state, adjust={"named": named.init(counts, fixed.prior(counts))})


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term."""
    batch = batches["train"]
    logits, shares = state.nets["main"](batch.x), task.guesses(batch.rows)
    kept = has_first_guess(shares)
    adjustment, state = added(cfg.adjust, state, logits.detach().float().softmax(1)[kept])
    loss = adjusted_cross_entropy(logits, first_guess(shares, batch.rows), adjustment, where=kept)
    return candidate_sets.result_of(task, state, batch, [logits], loss, kept)


RECIPE = Recipe(Config=Config, setup=setup, plan=candidate_sets.plan_of_all, step=step)
