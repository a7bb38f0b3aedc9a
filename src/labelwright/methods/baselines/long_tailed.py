"""Published losses for long-tailed labels, one short function each, in one recipe.

Name                 Loss                                                          Source
ce                   cross-entropy
class_balanced       cross-entropy weighted by the effective number of images       Cui 2019 (arXiv 1901.05555)
focal                focal loss                                                     Lin 2017 (arXiv 1708.02002)
balanced_softmax     softmax over counts-weighted exponentials                      Ren 2020 (arXiv 2007.10740)
ldam                 margins n^(-1/4) on a cosine head, scale 30                    Cao 2019 (arXiv 1906.07413)
la                   logit adjustment, + tau log prior                              Menon 2020 (arXiv 2007.07314)
vs                   vector scaling, x (n / n_max)^gamma + tau log prior            Kini 2021 (arXiv 2103.01550)
ib                   influence-balanced, after cross-entropy in the first half      Park 2021 (arXiv 2110.02444)

Any of them takes deferred re-weighting (`drw_from_frac`): weights by effective number from that share of training on.
Command: labelwright fit DATA --method la --out RUN
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.adjust import fixed
from labelwright.losses import classification
from labelwright.train.plans import steps_for
from labelwright.train.processes import mean_share
from labelwright.train.settings import TrainSettings
from labelwright.types import (
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Network,
    Passes,
    Prediction,
    State,
    StepResult,
    Stream,
    Task,
)

Weight = Tensor | None
LossName = Literal["ce", "class_balanced", "focal", "balanced_softmax", "ldam", "la", "vs", "ib"]


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of every baseline; each loss reads its own."""

    loss: LossName = "ce"  # which of the losses above
    view: Literal["weak", "strong"] = "weak"  # augmentation of the training images
    tau: float = 1.0  # la, vs: strength of the log prior
    gamma: float = 0.05  # vs: power of n / n_max (Kini 2021 uses 0.05 and 0.15)
    focal_gamma: float = 1.0  # focal: power of (1 - p)
    max_margin: float = 0.5  # ldam: margin of the rarest class (Cao 2019)
    scale: float = 30.0  # ldam: multiplies the cosines (Cao 2019)
    effective_beta: float = 0.9999  # class_balanced, DRW: share of images that overlap (Cui 2019)
    drw_from_frac: float = 1.0  # re-weight by effective number from this share of the epochs on; 1 = never
    ib_from_frac: float = 0.5  # ib: influence weights from this share of the epochs on (Park 2021: half)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network; no adjustment is learnt."""
    return State(nets={"main": build_net(task.n_classes, head="cosine" if cfg.loss == "ldam" else "linear")})


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    """Nothing: everything is known before the first pass."""
    return state, {}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every labelled image once."""
    rows = torch.nonzero(task.labels >= 0).flatten().cpu()
    return EpochPlan({"train": Stream(rows, cfg.batch_size, (cfg.view,))}, steps_for(len(rows), cfg.batch_size))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """One term: the loss named by ``cfg.loss``."""
    batch, net = batches["train"], cast(Network, state.nets["main"])
    feats = net.features(batch.x)
    logits = net.head_logits(feats)
    counts = task.counts
    weight = class_weight(cfg, counts, clock)
    loss = LOSSES[cfg.loss](cfg, counts, weight, clock, logits, batch.labels, feats)
    if weight is not None:
        loss = loss * mean_share(weight[batch.labels].sum())  # several processes: one weighted mean
    accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
    return StepResult(loss, len(batch.rows), state, {"train_accuracy": accuracy})


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    """Nothing to re-estimate."""
    return state, {}


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    """Plain logits: these losses put the prior into training, so nothing is subtracted at test time."""
    return Prediction(state.nets["main"](x))


def class_weight(cfg: Config, counts: Tensor, clock: Clock) -> Tensor | None:
    """Weights [C] by effective number, or None: what this loss has at this moment."""
    weighted_from_frac = {"class_balanced": 0.0, "ib": min(cfg.ib_from_frac, cfg.drw_from_frac)}
    if clock.epoch < weighted_from_frac.get(cfg.loss, cfg.drw_from_frac) * clock.n_epochs:
        return None
    return fixed.effective_number_weights(counts, beta=cfg.effective_beta)


# ---- losses: (cfg, counts [C], weight [C] or None, clock, logits [B, C], labels [B], feats [B, D]) -> scalar ---------


def _ce(cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    return classification.cross_entropy(logits, labels, class_weight=weight)


def _focal(
    cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor
) -> Tensor:
    return classification.focal(logits, labels, power=cfg.focal_gamma, class_weight=weight)


def _balanced_softmax(
    cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor
) -> Tensor:
    return classification.adjusted_cross_entropy(logits, labels, fixed.logit_adjustment(counts), class_weight=weight)


def _ldam(
    cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor
) -> Tensor:
    margins = fixed.ldam(counts, max_margin=cfg.max_margin, scale=cfg.scale)
    return classification.adjusted_cross_entropy(logits, labels, margins, class_weight=weight)


def _la(cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    offset = fixed.logit_adjustment(counts, strength=cfg.tau)
    return classification.adjusted_cross_entropy(logits, labels, offset, class_weight=weight)


def _vs(cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    scaling = fixed.vector_scaling(counts, power=cfg.gamma, strength=cfg.tau)
    return classification.adjusted_cross_entropy(logits, labels, scaling, class_weight=weight)


def _ib(
    cfg: Config, counts: Tensor, weight: Weight, clock: Clock, logits: Tensor, labels: Tensor, feats: Tensor
) -> Tensor:
    if clock.epoch < cfg.ib_from_frac * clock.n_epochs:
        return classification.cross_entropy(logits, labels, class_weight=weight)
    return classification.influence_balanced(logits, labels, feats=feats, class_weight=weight)


LOSSES: Mapping[str, Callable[[Config, Tensor, Weight, Clock, Tensor, Tensor, Tensor], Tensor]] = {
    "ce": _ce,
    "class_balanced": _ce,
    "focal": _focal,
    "balanced_softmax": _balanced_softmax,
    "ldam": _ldam,
    "la": _la,
    "vs": _vs,
    "ib": _ib,
}
