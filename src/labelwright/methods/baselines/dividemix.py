"""DivideMix: two networks on one label per image, each shown by the other which labels to trust.

Source: Li et al. 2020, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning" (arXiv 2002.07394), with
what the authors' code (LiJunnan1992/DivideMix) says of order and settings.

Algorithm
 1  y = the verified label, or the most probable candidate
 2  first epochs: -log p_y + w_H sum_j p_j log p_j, on both networks; w_H = 1 for errors that repeat themselves, 0 for
    errors by chance, where the even prediction would be the best one
 3  then after each epoch, per network: l_i = -log p_iy on the clean images, stretched to 0..1
 4  w_i = probability of the lower of two Gaussians fitted to l
 5  each network takes the *other's* w; X = {w > tau} keeps its label, U does not                  co-divide
 6  X: sharpen(w y + (1 - w) * its own mean over two views)                                        co-refine
 7  U: sharpen(mean of both networks on two views)                                                 co-guess
 8  mixup of both views of X and U, Beta(4, 4), lam >= 1/2
 9  L = cross-entropy on X + lambda_u(t) * squared error on U + KL(uniform || mean prediction)
10  predict with the first network

Symbols: tau=threshold, T=sharpen_temperature, alpha=mixup_alpha, lambda_u=unlabelled_weight, w=memory["clean"].

Departures from the paper
 1  It predicts with both networks; here with `main`, the first, which is also what is saved. `peer` serves training.
 2  Both learn in one step from one batch of X and U together, and an epoch visits every image once. The paper trains
    one after the other, on batches of X and of U of equal size.
 3  Verified labels are always in X with w = 1, images without candidates always in U; neither is fitted in step 4.

Command: labelwright fit DATA --method dividemix --out RUN
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels import purify
from labelwright.labels.first_guess import first_guess, has_first_guess
from labelwright.losses.candidates import negative_entropy
from labelwright.losses.classification import cross_entropy, soft_cross_entropy
from labelwright.losses.mixup import mixup
from labelwright.losses.soft_targets import linear_ramp, squared_error_of_probs
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    check_task,
    first_view,
    new_net,
    plan_of_all,
)
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.processes import mean_share
from labelwright.train.seeds import generator
from labelwright.train.settings import AtLeast0, Positive, Share, ShareBelow1
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, State, StepResult, Task

OTHER = {"main": "peer", "peer": "main"}


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of DivideMix; the values are the paper's for CIFAR-10."""

    plain_frac: Share = 0.1  # share of the epochs before the first division, at least one epoch (10 to 30 of 300)
    entropy_weight: AtLeast0 = 1.0  # w_H: 1 for errors that repeat themselves, 0 for errors by chance (section 3.1)
    threshold: ShareBelow1 = 0.5  # tau: probability above which a label is trusted
    sharpen_temperature: Positive = 0.5  # T
    mixup_alpha: AtLeast0 = 4.0  # of Beta(alpha, alpha); 0 = off
    unlabelled_weight: AtLeast0 = 25.0  # lambda_u at the end of its ramp
    ramp_epochs: AtLeast0 = 16.0  # epochs over which lambda_u grows from 0


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """Two networks of different weights; no label is trusted yet."""
    check_task(task, "dividemix")
    nets = {name: new_net(cfg, task, build_net) for name in OTHER}
    clean = {name: torch.zeros(len(task.labels), device=task.labels.device) for name in OTHER}
    return State(nets=nets, memory={"is_frozen": build_net.is_frozen, "clean": clean})


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once; in two views from the first division on."""
    return plan_of_all(cfg, task, state, epoch, () if epoch < plain_epochs(cfg) else (first_view(cfg, state),))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The loss of both networks, each on its own targets."""
    batch = batches["train"]
    guesses = task.guesses(batch.rows)
    labels = first_guess(guesses, batch.rows)
    if clock.epoch < plain_epochs(cfg):
        kept = has_first_guess(guesses)
        losses = [_plain(cfg, net(batch.x), labels, kept) for net in state.nets.values()]
        return StepResult(torch.stack(losses).sum(), kept.sum(), state)
    with torch.no_grad():
        probs = {name: [net(x).float().softmax(1) for x in batch.views] for name, net in state.nets.items()}
        every = torch.stack([*probs["main"], *probs["peer"]])
        guessed = purify.sharpen(every.mean(0), temperature=cfg.sharpen_temperature)  # 7
    onehot = F.one_hot(labels, task.n_classes).to(guessed.dtype)
    losses, logs = [], {}
    for name, other in OTHER.items():
        clean = state.memory["clean"][other][batch.rows]
        is_trusted = clean > cfg.threshold
        own = torch.stack(probs[name]).mean(0)
        refined = purify.reliable_targets(own, onehot, clean, temperature=cfg.sharpen_temperature)  # 6
        targets = torch.where(is_trusted[:, None], refined, guessed)
        losses.append(_divided(cfg, state, name, batch, targets, is_trusted, clock))
        logs[f"trusted_frac_{name}"] = is_trusted.float().mean()
    return StepResult(torch.stack(losses).sum(), len(labels), state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Each network divides the labels by how far it is from them."""
    if epoch + 1 < plain_epochs(cfg) or epoch + 1 == cfg.epochs:
        return state, {}
    clean = {name: _clean_probability(cfg, task, name, passes) for name in state.nets}
    memory = {**state.memory, "clean": clean}
    return dataclasses.replace(state, memory=memory), {}


def plain_epochs(cfg: Config) -> int:
    """Epochs before the first division.

    Example:
      >>> plain_epochs(Config(epochs=100)), plain_epochs(Config(epochs=3))
      (10, 1)
    """
    return max(1, round(cfg.plain_frac * cfg.epochs))


def _plain(cfg: Config, logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    loss = cross_entropy(logits, labels, where=kept) + cfg.entropy_weight * negative_entropy(logits, where=kept)  # 2
    return loss * mean_share(kept.sum().float())


def _divided(
    cfg: Config, state: State, name: str, batch: Batch, targets: Tensor, is_trusted: Tensor, clock: Clock
) -> Tensor:
    """The loss of one network after the division, on mixed views; with several processes each mixes its own share."""
    draws = generator(clock.seed, "mixup", name, clock.epoch, clock.step)
    x, both = torch.cat(batch.views), targets.repeat(len(batch.views), 1)
    mixed = mixup(x, both, alpha=cfg.mixup_alpha, generator=draws, at_least_half=True)  # 8
    logits = state.nets[name](mixed.x)
    trusted = is_trusted.repeat(len(batch.views))
    labelled = soft_cross_entropy(logits, mixed.targets, where=trusted) * mean_share(trusted.sum().float())
    unlabelled = squared_error_of_probs(logits, mixed.targets, where=~trusted)
    unlabelled = unlabelled * mean_share((~trusted).sum().float())
    mean_probs = logits.float().softmax(1).mean(0)
    lean = -mean_probs.clamp_min(1e-8).log().mean() - math.log(len(mean_probs))  # KL(uniform || mean)
    weight = cfg.unlabelled_weight * linear_ramp(clock.epoch_frac - plain_epochs(cfg), length_epochs=cfg.ramp_epochs)
    loss: Tensor = labelled + weight * unlabelled + lean  # 9
    return loss


def _clean_probability(cfg: Config, task: Task, name: str, passes: Passes) -> Tensor:
    """[N] float32: how probably a network finds each label right; 1 where verified, 0 where there is none."""
    losses = torch.zeros(len(task.labels), device=task.labels.device)
    is_guess = torch.zeros_like(losses, dtype=torch.bool)
    for rows, logits in passes(name, torch.arange(len(losses))):
        guesses = task.guesses(rows)
        losses[rows] = cross_entropy(logits, first_guess(guesses, rows), reduce="none")
        is_guess[rows] = has_first_guess(guesses)
    is_guess &= task.labels < 0
    clean, _ = purify.divide(purify.min_max(losses, where=is_guess), where=is_guess)
    return clean.masked_fill(task.labels >= 0, 1.0)


RECIPE = Recipe(Config=Config, setup=setup, plan=plan, step=step, end_epoch=end_epoch)
