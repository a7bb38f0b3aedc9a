"""A pretrained network that is to be trained starts with a head that is right for its features.

 1  z = the network's features of the labelled images, before any training
 2  head = argmin of the logit-adjusted cross-entropy on z, its penalty by cross-validation     (frozen_heads.py)
 3  that head, on the features as they come, takes the place of the random one

Training then moves features that classify already, where a random head would first spoil them: Kumar et al. 2022
(arXiv 2202.10054), linear probing, then fine-tuning. Line 2 is balanced (Menon et al. 2021, arXiv 2007.07314): a rare
class starts with an even chance, whatever the loss that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from labelwright.adjust import fixed
from labelwright.encoders.heads import put_in
from labelwright.methods.frozen_heads import Labelled, balanced_accuracy, fitted
from labelwright.methods.recipe import Begun, feats_of
from labelwright.train.convex import Problem
from labelwright.train.cross_validation import folds_of
from labelwright.train.scaling import scaled
from labelwright.types import BuildNet, Passes, State, Task


def starts_balanced(build_net: BuildNet) -> bool:
    """Whether a network has features worth starting a head on, and goes on to learn."""
    return build_net.is_pretrained and not build_net.is_frozen


@torch.no_grad()
def balanced_start(task: Task, state: State, passes: Passes, *, nets: Sequence[str] = ("main",)) -> Begun:
    """The state with lines 1 to 3 done to the heads of ``nets``, whose features are the same; and what to log.

    Heads that are not linear (cosines), and tasks with one class, stay as they are.
    """
    known = (task.labels >= 0).nonzero().flatten()
    is_linear = isinstance(cast(Any, state.nets[nets[0]]).head, nn.Linear)
    if not is_linear or int((task.counts > 0).sum()) < 2:
        return state, {}
    given = scaled(feats_of(passes, known, net=nets[0]))  # 1
    labels, groups = task.labels[known], None if task.groups is None else task.groups[known.to(task.groups.device)]
    data = Labelled(given.z, labels, task.n_classes, *folds_of(labels, groups, seed=0), adjust=None)
    found = fitted(lambda counts: Problem(fixed.logit_adjustment(counts, strength=1.0)), None, data)  # 2
    start = None if found.validated is None else found.validated.head
    head = given.plain(data.solve(found.problem_of, found.penalty, start))
    weight = head.weight / given.scale
    for name in nets:
        put_in(state.nets[name], weight, head.bias - weight @ given.mean)  # 3
    score = None if found.validated is None else round(balanced_accuracy(found.validated, labels), 5)
    return state, {"start_penalty": found.penalty, "start_left_out_balanced_accuracy": score}
