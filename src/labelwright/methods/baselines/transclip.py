"""TransCLIP: a mixture of Gaussians over all images at once, with their neighbours and the texts; no training.

What it finds is a linear classifier, and becomes the network's. Labelled images keep their class.
Source: Zanella et al. 2024 (arXiv 2406.01837).
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method transclip --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch

from labelwright.encoders.aligned import AlignedNet
from labelwright.labels.transduce import transclip
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.settings import TrainSettings, require
from labelwright.types import Passes, State, Task


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of transclip."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # nothing is trained
    n_neighbours: int = 3  # of an image (Zanella 2024)
    text_strength: float | None = None  # lambda; None = 1 without labels, 0.5 with some (Zanella 2024)

    def __post_init__(self) -> None:
        super().__post_init__()
        strength = self.text_strength
        require(self.n_neighbours >= 0, "n_neighbours", self.n_neighbours, "0 or more")
        require(strength is None or strength >= 0, "text_strength", strength, "0 or more, or none")


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Label the pool as a whole."""
    net = cast(AlignedNet, state.nets["main"])
    # Half precision, as a store keeps them: all features are held at once.
    feats = torch.cat([z.half() for _, z in passes("main", torch.arange(len(task.labels)), output="feats")])
    strength = cfg.text_strength
    if strength is None:
        strength = 0.5 if bool((task.labels >= 0).any()) else 1.0
    found = transclip(
        feats,
        net.towers.text_feats(),
        logit_scale=net.towers.logit_scale,
        labels=task.labels,
        n_neighbours=cfg.n_neighbours,
        lam=strength,
    )
    net.linear_weight.copy_(found.weight - net.towers.logit_scale * net.class_feats())  # the net adds the text itself
    net.linear_bias.copy_(found.bias)
    counts = torch.bincount(found.labels[task.labels < 0], minlength=task.n_classes)
    return state, {"pseudolabel_counts": counts.tolist()}


RECIPE = Recipe(Config=Config, setup=partial(zero_shot.setup, name="transclip"), begin=begin)
