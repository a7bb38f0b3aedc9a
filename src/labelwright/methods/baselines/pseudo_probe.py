"""A linear probe on the zero-shot labels of all unlabelled images, and on labelled images with their own.

Source: Lee 2013 (pseudo-labels), on frozen features. Departure: a linear classifier where the paper trains a network.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method pseudo_probe
"""

from __future__ import annotations

from functools import partial
from typing import cast

from labelwright.methods.baselines.probe import Probe, ProbeSettings, plan, setup, step, with_pseudolabels
from labelwright.methods.class_names import allowed_classes, unlabelled_rows
from labelwright.methods.recipe import Begun, Recipe
from labelwright.types import Passes, State, Task


def begin(cfg: ProbeSettings, task: Task, state: State, passes: Passes) -> Begun:
    """Every unlabelled image takes the class whose text is nearest."""
    pseudolabels, classes = task.labels.clone(), allowed_classes(task, cfg.pool).nonzero().flatten()
    text_feats = cast(Probe, state.nets["main"]).towers.text_feats()[classes]
    for rows, z in passes("main", unlabelled_rows(task), output="feats"):
        pseudolabels[rows] = classes[(z @ text_feats.T).argmax(1)]
    return with_pseudolabels(cfg, task, state, pseudolabels)


RECIPE = Recipe(Config=ProbeSettings, setup=partial(setup, name="pseudo_probe"), begin=begin, plan=plan, step=step)
