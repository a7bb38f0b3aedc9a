"""Few pseudolabels: a linear probe on the k images of each class that zero-shot is surest of, and on labelled images.

Source: Menghini et al. 2023 (arXiv 2306.01669). Departure: a linear classifier where the paper trains prompts.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method fpl --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

from labelwright.labels.transduce import fpl_pseudolabels
from labelwright.methods.baselines import probe
from labelwright.methods.class_names import allowed_classes, unlabelled_rows
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.settings import Count
from labelwright.types import Passes, State, Task


@dataclass(frozen=True, kw_only=True)
class Config(probe.ProbeSettings):
    """Settings of fpl."""

    k: Count = 16  # images per class (Menghini 2023)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The k surest images of each class take its label, the others none."""
    pseudolabels, classes = task.labels.clone(), allowed_classes(task, cfg.pool).nonzero().flatten()
    unlabelled, towers = unlabelled_rows(task), cast(probe.Probe, state.nets["main"]).towers
    if len(unlabelled):
        chunks = (z for _, z in passes("main", unlabelled, output="feats"))
        text_feats = towers.text_feats()[classes]
        places, chosen = fpl_pseudolabels(chunks, text_feats, logit_scale=towers.logit_scale, k=cfg.k)
        pseudolabels[unlabelled[places]] = classes[chosen]
    return probe.with_pseudolabels(cfg, task, state, pseudolabels)


RECIPE = Recipe(Config=Config, setup=partial(probe.setup, name="fpl"), begin=begin, plan=probe.plan, step=probe.step)
