"""StatA: TransCLIP with a statistical anchor, so that classes that no image shows stay with their texts; no training.

To the objective of `transclip` it adds, for each class, the KL divergence between the Gaussian that its text gives and
the one that is fitted: the text counts for `anchor` images. Made for pools that show any number of the named classes.
Source: Zanella et al. 2025 (arXiv 2501.03729). Departures: those of labels/transduce.py; labelled images as TransCLIP
takes them, where the paper has none.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method stata --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from labelwright.methods.baselines import transclip, zero_shot
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.settings import Positive
from labelwright.types import Passes, State, Task


@dataclass(frozen=True, kw_only=True)
class Config(zero_shot.Config):
    """Settings of stata."""

    anchor: Positive = 1.0  # alpha, images that the text of a class counts for (Zanella 2025)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Label the pool as a whole."""
    return transclip.begin(cfg, task, state, passes, anchor=cfg.anchor)


RECIPE = Recipe(Config=Config, setup=partial(zero_shot.setup, name="stata"), begin=begin)
