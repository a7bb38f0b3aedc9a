"""CLAP: a linear probe that starts at the class texts and is held there, class by class as far as these are right.

 1  lambda_c = mean zero-shot probability of class c on its labelled images: of a class without any, 1
 2  minimise mean of -log softmax(logit_scale z . w_c) over the labelled images + sum of lambda_c |w_c - t_c|^2

Nothing is searched, as in the paper. Source: Silva-Rodriguez et al. 2024 (arXiv 2312.12730). Departures: solved to
convergence where the paper takes 300 epochs; the multipliers keep their first value, after which the paper's augmented
Lagrangian leaves them; features of un-augmented images.
Command: labelwright fit photos/ --model openai/clip-vit-base-patch32 --method clap --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch

from labelwright.encoders.aligned import AlignedNet
from labelwright.methods import shots
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.settings import Positive
from labelwright.types import Passes, State, Task

LEAST_HELD = 1e-3  # of lambda: weights that nothing holds would grow for ever


@dataclass(frozen=True, kw_only=True)
class Config(zero_shot.Config):
    """Settings of clap."""

    constraint: Positive = 1.0  # multiplies lambda (Silva-Rodriguez 2024)


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Lines 1 and 2."""
    found = shots.shots_of(task, state, passes)
    n, n_features = found.z.shape
    counts = torch.bincount(found.labels, minlength=task.n_classes)
    own = (found.z @ found.text.T).softmax(1).gather(1, found.labels[:, None])[:, 0]
    sums = torch.zeros_like(found.text[:, 0]).index_add_(0, found.labels, own)
    held = torch.where(counts > 0, sums / counts.clamp(min=1), 1.0).clamp(min=LEAST_HELD)  # 1
    scale = cast(AlignedNet, state.nets["main"]).towers.logit_scale
    # w is logit_scale w / sqrt(D) here, and solve() halves the penalty and divides it by n.
    penalty = cfg.constraint * 2 * n * n_features / scale**2
    root = held.sqrt()[:, None]
    weight = found.solve(lambda w: root * (w - found.text), penalty=penalty)  # 2
    shots.put(state, weight)
    return state, {"lambda": [round(value, 4) for value in held.tolist()]}


RECIPE = Recipe(Config=Config, setup=partial(shots.setup, name="clap"), begin=begin)
