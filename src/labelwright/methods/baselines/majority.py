"""Logistic regression on the majority vote: what a careful user would do first with candidate labels and features.

Each image has its most probable candidate for a label, among equal ones one by chance; classes are weighted evenly.
Command: labelwright fit feats.npz --method majority --out RUN
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.labels.chunks import chunks_of
from labelwright.labels.first_guess import first_guess, has_first_guess
from labelwright.methods.baselines import class_balanced
from labelwright.methods.baselines.candidate_sets import check_task
from labelwright.methods.baselines.labelled_frozen import WeightedSettings
from labelwright.methods.frozen_heads import FrozenRecipe, FrozenSettings
from labelwright.types import BuildNet, State, Task

Config = WeightedSettings


def votes(task: Task) -> Tensor:
    """Most probable candidate [N] int64 of each image, its label where it has one; -1 where nothing is known.

    Example:
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0.3, 0.7]))
      >>> votes(Task(torch.tensor([-1, -1]), ("cat", "dog"), sets)).tolist()
      [1, -1]
    """
    found = []
    for rows in chunks_of(torch.arange(len(task.labels), device=task.labels.device), task.n_classes):
        shares = task.guesses(rows)
        found.append(torch.where(has_first_guess(shares) | (task.n_classes == 1), first_guess(shares, rows), -1))
    return torch.cat(found)


class MajorityRecipe(FrozenRecipe):
    """Class-balanced regression on `votes`."""

    def labels_of(self, task: Task) -> Tensor:
        """[N] int64."""
        return votes(task)

    def setup(self, cfg: FrozenSettings, task: Task, build_net: BuildNet) -> State:
        """As of every head on features, where there is a vote."""
        check_task(task, "majority")
        return super().setup(cfg, task, build_net)


RECIPE = MajorityRecipe(Config, class_balanced.FROZEN.fit)
