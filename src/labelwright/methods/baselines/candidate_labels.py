"""Published ways to learn from candidate sets with one network, one short function each.

Name      Loss                                                                     Source
kd        cross-entropy against the annotator's shares of the candidates           Hinton 2015 (arXiv 1503.02531)
top1      cross-entropy on the most probable candidate
cc        -log of the probability of the set                                       Feng 2020 (arXiv 2007.08929), CC
proden    cross-entropy against the network's own shares of the candidates         Lv 2020 (arXiv 2002.08053)
crdpll    no class outside the set, and the views agree inside it                  Wu 2022 (ICML, PMLR 162)

Algorithm
 1  S_i = the verified label alone, or the candidates of image i; without either, image i is left out of every loss
 2  kd:     -sum_j t_ij log p_ij, t = the annotator's shares                       no temperature
 3  top1:   -log p_iy, y = the most probable candidate                             equal ones: one of them by chance
 4  cc:     -log sum_{j in S} p_ij
 5  proden: -sum_j t_ij log p_ij; t = 1/|S| at first, then p_ij / sum_{k in S} p_ik of the last visit
 6  crdpll: -sum_{j not in S} log(1 - p_ij) of the first view
 7          + lambda(t) sum over views v of KL(t_i || p_i^v), lambda ramped up; v: the first view and two strong ones
 8          t = geometric mean over the views of the last visit, inside S          1/|S| at first
 9  predict with plain logits

Symbols: lambda=consistency_weight, t=memory["targets"], one number per candidate and never N x C.

Departures from the papers: one optimizer and schedule for all of them, to compare losses and not schedules; the strong
views are RandAugment and Cutout, Wu 2022 uses Cutout and AutoAugment; rows that say nothing are left out of the mean.

Command: labelwright fit DATA --method proden --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from labelwright.labels.first_guess import first_guess, has_first_guess
from labelwright.losses import candidates as set_losses
from labelwright.losses.classification import cross_entropy, soft_cross_entropy
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    check_task,
    even_targets,
    new_net,
    plan_of_all,
    read_targets,
    write_targets,
)
from labelwright.train.processes import mean_share
from labelwright.train.settings import require
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, Prediction, State, StepResult, Task

BaselineName = Literal["kd", "top1", "cc", "proden", "crdpll"]


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of kd, top1, cc, proden and crdpll."""

    baseline: BaselineName = "proden"  # which of the above
    consistency_weight: float = 1.0  # crdpll: lambda at the end of its ramp (Wu 2022)
    ramp_frac: float = 0.5  # crdpll: share of the epochs over which lambda grows from 0 (Wu 2022: 100 of 200)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.consistency_weight >= 0, "consistency_weight", self.consistency_weight, "0 or more")
        require(0 <= self.ramp_frac <= 1, "ramp_frac", self.ramp_frac, "in [0, 1]")


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network; proden and crdpll keep targets of every candidate."""
    check_task(task, cfg.baseline)
    memory: dict[str, Any] = {"is_frozen": build_net.is_frozen}
    if cfg.baseline in ("proden", "crdpll"):
        memory["targets"] = even_targets(task)
    return State(nets={"main": new_net(cfg, task, build_net)}, memory=memory)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    """Nothing: everything is known before the first pass."""
    return state, {}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once; crdpll adds two strong views."""
    return plan_of_all(cfg, task, state, ("strong", "strong") if cfg.baseline == "crdpll" else ())


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The loss named by ``cfg.baseline``; then the targets of its images, if it keeps any."""
    batch, memory = batches["train"], dict(state.memory)
    logits = [state.nets["main"](x) for x in batch.views]
    possible = task.possible(batch.rows)
    loss, kept = LOSSES[cfg.baseline](cfg, task, state, clock, batch.rows, logits, possible)
    loss = loss * mean_share(kept.sum().float())  # several processes: one mean over the rows that count
    if "targets" in memory:
        with torch.no_grad():
            agreed = torch.stack([each.float().log_softmax(1) for each in logits]).mean(0).softmax(1)
            targets = set_losses.candidate_targets(agreed, possible)
        memory["targets"] = write_targets(task, memory["targets"], batch.rows, targets)
    is_inside = possible.gather(1, logits[0].argmax(1, keepdim=True))[kept].float()
    n_kept = len(is_inside)
    return StepResult(
        loss,
        n_kept,
        dataclasses.replace(state, memory=memory),
        {"inside_frac": is_inside.sum() / max(n_kept, 1)},
    )


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    """Nothing: targets move in every step."""
    return state, {}


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Plain logits."""
    return Prediction(state.nets["main"](x))


# ---- losses: (cfg, task, state, clock, rows [B], logits [B, C] per view, possible [B, C]) -> scalar, kept [B] --------


def _kd(
    cfg: Config, task: Task, state: State, clock: Clock, rows: Tensor, logits: list[Tensor], _: Tensor
) -> tuple[Tensor, Tensor]:
    guesses = task.guesses(rows)
    kept = has_first_guess(guesses)
    return soft_cross_entropy(logits[0], guesses, where=kept), kept


def _top1(
    cfg: Config, task: Task, state: State, clock: Clock, rows: Tensor, logits: list[Tensor], _: Tensor
) -> tuple[Tensor, Tensor]:
    guesses = task.guesses(rows)
    kept = has_first_guess(guesses)
    return cross_entropy(logits[0], first_guess(guesses, rows), where=kept), kept


def _cc(
    cfg: Config, task: Task, state: State, clock: Clock, rows: Tensor, logits: list[Tensor], possible: Tensor
) -> tuple[Tensor, Tensor]:
    loss = set_losses.partial_cross_entropy(logits[0], possible, eps=0.0)
    return loss, set_losses.informative_rows(possible)


def _proden(
    cfg: Config, task: Task, state: State, clock: Clock, rows: Tensor, logits: list[Tensor], possible: Tensor
) -> tuple[Tensor, Tensor]:
    kept = set_losses.informative_rows(possible)
    targets = read_targets(task, state.memory["targets"], rows)
    return soft_cross_entropy(logits[0], targets, where=kept), kept


def _crdpll(
    cfg: Config, task: Task, state: State, clock: Clock, rows: Tensor, logits: list[Tensor], possible: Tensor
) -> tuple[Tensor, Tensor]:
    kept = set_losses.informative_rows(possible)
    targets = read_targets(task, state.memory["targets"], rows)
    outside = set_losses.complementary_loss(logits[0], possible)
    crossed = torch.stack([soft_cross_entropy(each, targets, where=kept) for each in logits]).sum()
    entropy = -torch.xlogy(targets, targets).sum(1)[kept].sum() / kept.sum().clamp(min=1)
    divergence = crossed - len(logits) * entropy  # KL, summed over views
    weight = cfg.consistency_weight * linear_ramp(clock.epoch, length_epochs=cfg.ramp_frac * clock.n_epochs)
    return outside + weight * divergence, kept


LOSSES: Mapping[
    BaselineName,
    Callable[[Config, Task, State, Clock, Tensor, list[Tensor], Tensor], tuple[Tensor, Tensor]],
] = {"kd": _kd, "top1": _top1, "cc": _cc, "proden": _proden, "crdpll": _crdpll}
