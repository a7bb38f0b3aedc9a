"""TransCLIP: a mixture of Gaussians over all images at once, with their neighbours and the texts; no training.

What it finds is a linear classifier, and becomes the network's. Labelled images keep their class.
Source: Zanella et al. 2024 (arXiv 2406.01837).
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method transclip --out RUN
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch

from labelwright.encoders.aligned import AlignedNet
from labelwright.labels.transduce import transclip
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import Begun, Recipe, feats_of
from labelwright.types import Passes, State, Task


def begin(cfg: zero_shot.Config, task: Task, state: State, passes: Passes, *, anchor: float = 0.0) -> Begun:
    """Label the pool as a whole."""
    net = cast(AlignedNet, state.nets["main"])
    # Half precision, as a store keeps them: all features are held at once.
    feats = feats_of(passes, torch.arange(len(task.labels)), dtype=torch.float16)
    text, scale = net.towers.text_feats(), net.towers.logit_scale
    lam = 0.5 if bool((task.labels >= 0).any()) else 1.0  # as published, with and without labels
    labels, weight, bias = transclip(feats, text, logit_scale=scale, labels=task.labels, lam=lam, anchor=anchor)
    net.put_linear(weight, bias)
    counts = torch.bincount(labels[task.labels < 0], minlength=task.n_classes)
    return state, {"pseudolabel_counts": counts.tolist()}


RECIPE = Recipe(Config=zero_shot.Config, setup=partial(zero_shot.setup, name="transclip"), begin=begin)
