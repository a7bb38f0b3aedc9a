"""ORCA: an adaptive margin on labelled images, pairs of neighbours, and predictions spread over all classes.

 1  s = scale * cosines with the class weights, of two weak views 1 and 2
 2  u = 1 - mean highest probability of the unlabelled images, after every epoch, 0.5 at most
 3  L = CE(s1 + scale u at the label, label) on labelled images
 4    - mean log(p1 . p2 of the partner): one of the same label, or the nearest in the batch
 5    + KL(mean p1 || prior)
 6  predict with s

Source: Cao et al. 2022 (arXiv 2102.03526); u=memory["uncertainty"]. Departures: open_world.py, cosines.py.
Command: labelwright fit photos/ --classes seen.txt --novel auto --method orca --model openai/clip-vit-base-patch32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods import open_world
from labelwright.methods.baselines import cosines
from labelwright.methods.recipe import Begun, Recipe, plain_logits
from labelwright.train.processes import gather_rows, sum_gradients
from labelwright.train.settings import AtLeast0
from labelwright.types import Batch, BuildNet, Clock, Network, Passes, State, StepResult, Task

MAX_UNCERTAINTY = 0.5  # line 2 (the authors' code): early on everything is uncertain


@dataclass(frozen=True, kw_only=True)
class Config(cosines.CosineSettings):
    """Settings of orca; `prior_weight` None = 1 (Cao 2022), or 3 on frozen features."""

    margin_weight: AtLeast0 = 1.0  # of the uncertainty in line 3 (Cao 2022)
    pair_weight: AtLeast0 = 1.0  # of line 4 (Cao 2022)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network of cosines."""
    return open_world.state_of(cfg, task, build_net, cosines.cosine_net(cfg, task, build_net), "orca")


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The start, and the first uncertainty."""
    state, logs = cosines.start_cosines(cfg, task, state, passes)
    state, more = end_epoch(cfg, task, state, passes, -1)
    return state, {**logs, **more}


plan = open_world.plan_of_both  # two weak views


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 5."""
    net = cast(Network, state.nets["main"])
    views, own = open_world.rows_of_both(batches)
    h = net.penultimate(torch.cat(views))
    s1, s2 = open_world.gathered(net.from_penultimate(h).float().view(2, len(own), -1))  # 1
    labels, feats = gather_rows(own), gather_rows(h.detach().float()[: len(own)])
    margin = torch.full_like(s1[0], cosines.SCALE * cfg.margin_weight) * state.memory["uncertainty"]
    supervised = adjusted_cross_entropy(s1, labels, Adjustment(target_margin=margin))  # 3
    pairs = pair_loss(s1.softmax(1), s2.softmax(1)[partners(feats, labels)])  # 4
    spread = cosines.divergence_of_mean(s1, state.memory["prior"])  # 5
    prior_weight = cosines.prior_weight_of(cfg, state, pixels=1.0, frozen=3.0)
    loss = supervised + cfg.pair_weight * pairs + prior_weight * spread
    logs = {"loss_labelled": supervised.detach(), "loss_pairs": pairs.detach(), "loss_prior": spread.detach()}
    return StepResult(sum_gradients(loss), len(own), state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Line 2, and the pace of the classes."""
    logits, logs = open_world.pace(task, state, passes)
    uncertainty = (1 - logits.softmax(1).amax(1).mean()).clamp(max=MAX_UNCERTAINTY)
    logs["uncertainty"] = round(float(uncertainty), 5)
    state = dataclasses.replace(state, memory={**state.memory, "uncertainty": uncertainty})
    return cosines.still_or_not(cfg, state, logits, logs)


predict = plain_logits


def partners(feats: Tensor, labels: Tensor) -> Tensor:
    """Line 4: the row that each is paired with, [B] int64.

    A labelled row is paired with another of its label, drawn by chance, or with itself if there is none; an unlabelled
    one with the nearest other row.

    Args:
      feats: [B, D] float, any norm.
      labels: [B] int64, -1 = unknown.

    Example:
      >>> feats = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.9, 0.1]])
      >>> partners(feats, torch.tensor([0, 0, -1, 1])).tolist()
      [1, 0, 1, 3]
    """
    z = F.normalize(feats.float(), dim=1)
    rows = torch.arange(len(z), device=z.device)
    is_itself = rows[:, None] == rows
    is_same = (labels[:, None] == labels) & (labels >= 0) & ~is_itself
    drawn = torch.rand(is_same.shape, device=z.device).masked_fill(~is_same, -1.0).argmax(1)
    nearest = (z @ z.T).masked_fill(is_itself, -torch.inf).argmax(1)
    return torch.where(labels < 0, nearest, torch.where(is_same.any(1), drawn, rows))


def pair_loss(probs: Tensor, others: Tensor) -> Tensor:
    """Line 4: binary cross-entropy of the inner products of predictions that should be one class, scalar in nats.

    Args:
      probs, others: [B, C], rows sum to 1.

    Source: Cao et al. 2022 (arXiv 2102.03526), pairwise objective; 1e-7 as in the authors' code.

    Example: log 2, where a pair agrees half of the time.
      >>> round(pair_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])).item(), 4)
      0.6931
    """
    return -((probs * others).sum(1) + 1e-7).log().mean()


RECIPE = Recipe(Config=Config, setup=setup, begin=begin, plan=plan, step=step, end_epoch=end_epoch, predict=predict)
