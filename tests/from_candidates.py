"""The smallest recipe that learns from candidate labels: cross-entropy against what the classes of a row may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from labelwright.methods.families.candidates import of_candidates
from labelwright.methods.method import Method
from labelwright.methods.recipe import nothing_after, nothing_before, plain_logits
from labelwright.train.settings import TrainSettings
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, State, StepResult, Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    epochs: int = 400  # as a published schedule would have
    batch_size: int = 16  # rows per step


class Guessed:
    """A recipe as an object, so that a test can look at the tasks it was given."""

    Config = Config
    begin, end_epoch, predict = (staticmethod(f) for f in (nothing_before, nothing_after, plain_logits))

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def setup(self, cfg: Config, task: Task, build_net: BuildNet) -> State:
        self.tasks.append(task)
        return State(nets={"main": build_net(task.n_classes)})

    def plan(self, cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
        n_rows = len(task.labels)
        return EpochPlan({"train": Stream(torch.arange(n_rows), cfg.batch_size)}, -(-n_rows // cfg.batch_size))

    def step(self, cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
        batch = batches["train"]
        log_probs = state.nets["main"](batch.x).float().log_softmax(1)
        return StepResult(-(task.guesses(batch.rows) * log_probs).sum(1).mean(), len(batch.rows), state)


def method() -> tuple[Method, Guessed]:
    """To be put into methods.registry.METHODS, and the recipe behind it."""
    recipe: Any = Guessed()
    return of_candidates("Guessed", recipe), recipe
