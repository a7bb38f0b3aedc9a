"""A few labelled images beside class texts, on frozen features: a linear head that stays near the texts.

Published few-shot recipes stop early or search on a validation set; here each is the convex problem that it descends,
solved (train/convex.py), and what is searched is searched on labelled images that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.encoders.aligned import AlignedNet
from labelwright.errors import ConfigError
from labelwright.methods.class_names import check_task
from labelwright.methods.recipe import feats_of
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.cross_validation import CrossValidated, cross_validate, folds_of
from labelwright.train.scaling import principal_axes
from labelwright.types import BuildNet, Passes, State, Task

Deviation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shots:
    """Labelled images and class texts, such that z . text are the logits of zero-shot."""

    # [n, D] float32 unit features times the root of D: of unit scale, as the penalties of
    # `train.cross_validation` expect it; turned along their axes, as the text is
    z: Tensor
    labels: Tensor  # [n] int64
    text: Tensor  # [C, D] float32, class texts times the logit scale over the root of D
    rows: Tensor  # this and the next: of `train.cross_validation.folds_of`; empty where nothing can be left out
    fold: Tensor
    axes: Tensor | None = None  # [D, D] orthonormal, that z and text are multiplied by; None: by none

    @staticmethod
    def of(feats: Tensor, text: Tensor, task: Task) -> Shots:
        """Of a task.

        Args:
          feats: [n, D] float, unit norm, of the labelled images.
          text: [C, D] float, class texts times the logit scale.
          task: whose labels and groups they are.
        """
        known = (task.labels >= 0).nonzero().flatten()
        labels = task.labels[known].to(feats.device)
        groups = None if task.groups is None else task.groups[known.to(task.groups.device)]
        rows, fold = folds_of(labels, groups, seed=0) if len(labels) else (labels, labels)
        root = feats.shape[1] ** 0.5
        z, text = root * feats.float(), text.float().to(feats.device) / root
        axes = principal_axes(z, complete=True)
        return Shots(*((z, labels, text) if axes is None else (z @ axes, labels, text @ axes)), rows, fold, axes)

    def cross_validate(self, deviation: Deviation) -> CrossValidated | None:
        """How a head of `solve` does on images that were left out, at its best penalty; None where none could be."""
        if not len(self.rows):
            return None
        problem, n_classes = Problem(deviation=deviation, has_bias=False), len(self.text)
        return cross_validate(
            self.z, self.labels, lambda _: problem, n_classes=n_classes, rows=self.rows, fold=self.fold
        )

    def solve(self, deviation: Deviation, *, penalty: float) -> Tensor:
        """The weight [C, D] of a head without bias on unit features, with a penalty on its ``deviation``.

        Args:
          deviation: see `train.convex.Problem`; of a weight on `z`, as `text` is one.
          penalty: of it, > 0.

        Example: the text of class 1 points away from its images; with labels the head does not.
          >>> feats = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]))
          >>> task = Task(torch.tensor([0, 0, 1, 1]), ("cat", "dog"))
          >>> shots = Shots.of(feats, torch.tensor([[5.0, 0.0], [4.0, -4.0]]), task)
          >>> (shots.z @ shots.text.T).argmax(1).tolist()
          [0, 0, 0, 0]
          >>> weight = shots.solve(lambda w: w - shots.text, penalty=0.01)
          >>> (feats @ weight.T).argmax(1).tolist()
          [0, 0, 1, 1]
        """
        problem, n_classes = Problem(deviation=deviation, has_bias=False), len(self.text)
        start = Linear(self.text, torch.zeros_like(self.text[:, 0]))
        head = solve(self.z, self.labels, problem, n_classes=n_classes, penalty=penalty, start=start)
        weight = head.weight if self.axes is None else head.weight @ self.axes.T
        return math.sqrt(self.z.shape[1]) * weight


def check_shots(task: Task, name: str) -> None:
    """Refuse a task without labelled images or without texts.

    Raises: ConfigError.

    Example:
      >>> from labelwright.types import Concepts
      >>> check_shots(Task(torch.tensor([-1]), ("cat",), concepts=Concepts(torch.eye(1), 10.0)), "clap")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: clap learns from labelled images beside the class names, and no image has a label
        fix: label one image of each class or more, or choose --method cap, beliefs, stata, transclip or zlap
    """
    check_task(task, name)
    if not bool((task.labels >= 0).any()):
        raise ConfigError(
            f"{name} learns from labelled images beside the class names, and no image has a label",
            fix="label one image of each class or more, or choose --method cap, beliefs, stata, transclip or zlap",
        )


def setup(cfg: Any, task: Task, build_net: BuildNet, *, name: str) -> State:
    """The towers with a linear classifier, still to be found."""
    check_shots(task, name)
    return State(nets={"main": AlignedNet(build_net.towers())})


def shots_of(task: Task, state: State, passes: Passes) -> Shots:
    """Of what a recipe is given."""
    net, known = cast(AlignedNet, state.nets["main"]), (task.labels >= 0).nonzero().flatten()
    feats = feats_of(passes, known)
    return Shots.of(feats, net.towers.logit_scale * net.class_feats(), task)


def put(state: State, weight: Tensor) -> None:
    """Make a head [C, D] on unit features that of the network."""
    cast(AlignedNet, state.nets["main"]).put_linear(weight, torch.zeros_like(weight[:, 0]))
