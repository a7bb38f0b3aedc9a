"""SimGCD: self-distillation between two views, and predictions spread over all classes.

 1  cosines of two weak views; student p = softmax(cos / 0.1), teacher q = softmax(cos / t), no gradient; t falls
 2  L = (1 - w) (CE(q of the other view, p) + e KL(mean p || prior)) + w CE(p, label)
 3    + (1 - w) NT-Xent of the views' projections + w SupCon of the labelled ones
 4  predict with the student's cosines

Source: Wen et al. 2023 (arXiv 2211.11727); t=teacher_temperature, w=supervised_weight, e=prior_weight. Departures:
open_world.py, cosines.py; on frozen features line 3 is left out, where a projector beside the last layer teaches it
nothing; t falls over the published share of the epochs; the projector has two layers, not three.
Command: labelwright fit photos/ --classes seen.txt --novel auto --method simgcd --model openai/clip-vit-base-patch32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.classification import cross_entropy, soft_cross_entropy
from labelwright.losses.contrastive import noisy_contrastive, nt_xent
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods import open_world
from labelwright.methods.baselines import cosines
from labelwright.methods.recipe import Begun, Recipe, plain_logits
from labelwright.train.processes import gather_rows, sum_gradients
from labelwright.train.settings import Share
from labelwright.types import Batch, BuildNet, Clock, Network, Passes, State, StepResult, Task

TEACHER_TEMPERATURES = (0.07, 0.04)  # t at first, and from the end of its ramp on
TEACHER_RAMP_FRAC = 0.15  # share of the epochs over which t falls (Wen 2023: 30 of 200)
TEMPERATURE, SUPERVISED_TEMPERATURE = 1.0, 0.07  # of NT-Xent and of SupCon in line 3 (authors' code)


@dataclass(frozen=True, kw_only=True)
class Config(cosines.CosineSettings):
    """Settings of simgcd; `prior_weight` None = 2 (authors' code: 1 to 4 by data set), or 4 on frozen features."""

    supervised_weight: Share = 0.35  # w (Wen 2023)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network of cosines, with a projector if a backbone learns."""
    net = cosines.cosine_net(cfg, task, build_net)
    net = net if build_net.is_frozen else ProjectedNet(cast(Network, net))
    return open_world.state_of(cfg, task, build_net, net, "simgcd")


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The start."""
    state, logs = cosines.start_cosines(cfg, task, state, passes)
    state, more = end_epoch(cfg, task, state, passes, -1)
    return state, {**logs, **more}


plan = open_world.plan_of_both  # two weak views


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 3."""
    net: Any = state.nets["main"]
    views, own = open_world.rows_of_both(batches)
    out, z = net.both(torch.cat(views)) if isinstance(net, ProjectedNet) else (net(torch.cat(views)), None)
    students, labels = open_world.gathered(out.float().view(2, len(own), -1)), gather_rows(own)
    teachers = [sharpened(logits, clock) for logits in students]  # 1
    w, both = cfg.supervised_weight, torch.cat(students)
    distilled = (soft_cross_entropy(students[0], teachers[1]) + soft_cross_entropy(students[1], teachers[0])) / 2
    spread = cosines.divergence_of_mean(both, state.memory["prior"])
    supervised = cross_entropy(both, labels.repeat(2))
    prior_weight = cosines.prior_weight_of(cfg, state, pixels=2.0, frozen=4.0)
    loss = (1 - w) * (distilled + prior_weight * spread) + w * supervised  # 2
    logs = {"loss_distilled": distilled.detach(), "loss_prior": spread.detach(), "loss_labelled": supervised.detach()}
    if z is not None:
        z1, z2 = open_world.gathered(z.view(2, len(own), -1))
        apart = nt_xent(z1, z2, temperature=TEMPERATURE)
        grouped = supervised_contrastive(z1, z2, labels, temperature=SUPERVISED_TEMPERATURE)
        loss = loss + ((1 - w) * apart + w * grouped)  # 3
        logs |= {"loss_contrastive": apart.detach(), "loss_supcon": grouped.detach()}
    return StepResult(sum_gradients(loss), len(own), state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """The pace of the classes, and whether it goes on."""
    return cosines.still_or_not(cfg, state, *open_world.pace(task, state, passes))


predict = plain_logits


def sharpened(logits: Tensor, clock: Clock) -> Tensor:
    """Line 1: the teacher's probabilities [B, C] where the student's logits [B, C] are scaled cosines; no gradient."""
    return (logits.detach().float() / cosines.SCALE / teacher_temperature(clock)).softmax(1)


def teacher_temperature(clock: Clock) -> float:
    """Line 1: t falls at first, then stays.

    Example:
      >>> round(teacher_temperature(Clock(epoch=15, n_epochs=200, step=0, steps_per_epoch=1, seed=0)), 4)
      0.055
    """
    first, last = TEACHER_TEMPERATURES
    return first + (last - first) * linear_ramp(clock.epoch, length_epochs=TEACHER_RAMP_FRAC * clock.n_epochs)


def supervised_contrastive(z1: Tensor, z2: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Line 3: SupCon of two views, both of them anchors; scalar in nats.

    Args:
      z1, z2: [B, D] float, unit norm.
      labels: [B] int64; rows with -1 take no part.
      temperature: > 0, divides the cosines.

    Example: as `nt_xent` where no two rows share a label.
      >>> round(supervised_contrastive(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0).item(), 4)
      0.5514
    """
    where = labels >= 0
    one_side = partial(noisy_contrastive, labels=labels, is_reliable=where, rule="supervised", temperature=temperature)
    return (one_side(z1, z2, where=where) + one_side(z2, z1, where=where)) / 2


RECIPE = Recipe(Config=Config, setup=setup, begin=begin, plan=plan, step=step, end_epoch=end_epoch, predict=predict)
