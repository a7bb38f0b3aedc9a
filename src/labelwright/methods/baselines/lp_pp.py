"""LP++: a linear probe whose class weights are w + alpha t, with a multiplier of the class text for each class.

 1  minimise over w and alpha: mean of -log softmax(z . (w_c + alpha_c t_c)) over the labelled images
 2     + penalty / 2n (sum |w_c|^2 + ALPHA_WEIGHT sum (alpha_c - logit_scale)^2)

Given the sum of the two, w is what of it is orthogonal to t and alpha what is along it: one convex problem.
Source: Huang et al. 2024 (arXiv 2404.02285). Departure: the penalty, chosen on labelled images that are left out,
stands in for the paper's 300 steps of block-wise descent at step sizes from Lipschitz bounds, which end before they
converge.
Command: labelwright fit photos/ --model openai/clip-vit-base-patch32 --method lp_pp --out RUN
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.methods import shots
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import CHOSEN, Begun, Recipe
from labelwright.train.settings import Positive
from labelwright.types import Passes, State, Task

ALPHA_WEIGHT = 0.1  # of what the multipliers leave the logit scale by: nearly free, but the logits stay finite
USUAL_PENALTY = 30.0  # where too few images are labelled to leave any out


@dataclass(frozen=True, kw_only=True)
class Config(zero_shot.Config):
    """Settings of lp_pp."""

    penalty: Positive | None = None  # L2 of w, summed over the labelled images; None = by cross-validation


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Lines 1 and 2."""
    found = shots.shots_of(task, state, passes)
    root = math.sqrt(ALPHA_WEIGHT)
    unit, length = F.normalize(found.text, dim=1), found.text.norm(dim=1, keepdim=True)

    def deviation(weight: Tensor) -> Tensor:
        along = (weight * unit).sum(1, keepdim=True)
        moved: Tensor = weight - along * unit + root * (along - length) * unit
        return moved

    validated = found.cross_validate(deviation) if cfg.penalty is None else None
    penalty = cfg.penalty or (USUAL_PENALTY if validated is None else validated.penalty)
    weight = found.solve(deviation, penalty=penalty)
    shots.put(state, weight)
    return replace(state, memory={CHOSEN: {"penalty": penalty}}), {"penalty": penalty}


RECIPE = Recipe(Config=Config, setup=partial(shots.setup, name="lp_pp"), begin=begin)
