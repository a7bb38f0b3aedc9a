"""What CAP and its baselines share: a model that reads class names, and a pool of images that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.train.settings import Count, TrainSettings
from labelwright.types import Task

Pool = Literal["any", "unseen"]


@dataclass(frozen=True, kw_only=True)
class PoolSettings(TrainSettings):
    """What those that train on a pool of unlabelled images share."""

    epochs: int = 20  # of steps_per_epoch steps
    steps_per_epoch: Count = 50  # 1,000 steps in all: enough for a probe on 25,000 images of CIFAR-10 to converge
    warmup_epochs: float = 1.0  # linear from 0 to lr
    pool: Pool = "any"  # classes of unlabelled images: any, or only those without labels (TRZSL)


def check_task(task: Task, name: str) -> None:
    """Refuse a task whose class names nothing reads, or that has classes without a name.

    Raises: ConfigError.

    Example:
      >>> check_task(Task(torch.tensor([-1]), ("cat", "dog")), "fpl")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: fpl needs a vision-language model, to read the class names
        fix: name one: --model openai/clip-vit-base-patch32, or labelwright/digits-clip offline
    """
    if task.concepts is None:
        raise ConfigError(
            f"{name} needs a vision-language model, to read the class names",
            fix="name one: --model openai/clip-vit-base-patch32, or labelwright/digits-clip offline",
        )
    if task.n_novel:
        raise ConfigError(
            f"{name} needs the names of all classes, {task.n_novel} are unknown",
            fix="list every class with --classes, and leave --novel out",
        )


def allowed_classes(task: Task, pool: Pool) -> Tensor:
    """[C] bool: classes that an unlabelled image may have. With "unseen" those without a label, if there are any.

    Example:
      >>> allowed_classes(Task(torch.tensor([0, -1]), ("cat", "dog")), "unseen").tolist()
      [False, True]
    """
    unseen = task.counts == 0
    return unseen if pool == "unseen" and bool(unseen.any()) else torch.ones_like(unseen)


def unlabelled_rows(task: Task) -> Tensor:
    """[n] int64 rows without a label."""
    return (task.labels < 0).nonzero().flatten()
