"""One recipe for images that all have a label; each baseline is a file of its own with settings, adjustment and loss.

An epoch visits every labelled image once. The loss sees the logits with the baseline's adjustment, and class weights by
effective number from a share of the training on: deferred re-weighting (Cao 2019, arXiv 1906.07413, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.adjust import fixed, named
from labelwright.adjust.adjustment import Adjustment, adjusted_logits
from labelwright.losses.classification import cross_entropy
from labelwright.methods.adjusting import added
from labelwright.methods.balanced_start import balanced_start, starts_balanced
from labelwright.train.plans import steps_for
from labelwright.train.processes import mean_share
from labelwright.train.settings import Share, ShareBelow1, TrainSettings
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


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(TrainSettings):
    """What all of them read."""

    view: Literal["weak", "strong"] = "weak"  # augmentation of the training images
    effective_beta: ShareBelow1 = 0.9999  # of the class weights: share of images that overlap (Cui 2019)
    adjust: named.Names | None = None  # adjustments added to the baseline's own, e.g. pace+la: names of adjust.named


@dataclass(frozen=True, kw_only=True)
class DeferredSettings(LabelledSettings):
    """With class weights that come late."""

    drw_from_frac: Share = 1.0  # re-weight by effective number from this share of the epochs on; 1 = never


@dataclass(frozen=True)
class Seen:
    """What a loss may look at in a step."""

    logits: Tensor  # [B, C] float32, adjusted
    labels: Tensor  # [B] int64, 0 to C-1
    feats: Tensor  # [B, D] what the last layer saw
    class_weight: Tensor | None  # [C] float, or None for 1
    clock: Clock  # where in training the step is


def plain(cfg: Any, counts: Tensor) -> Adjustment:
    """No adjustment, whatever the counts [C] are."""
    return Adjustment()


def weighted_cross_entropy(cfg: Any, seen: Seen) -> Tensor:
    """Cross-entropy with the class weights, scalar."""
    return cross_entropy(seen.logits, seen.labels, class_weight=seen.class_weight)


def deferred(cfg: DeferredSettings) -> float:
    """Share of the epochs after which classes are weighted."""
    return cfg.drw_from_frac


@dataclass(frozen=True)
class LabelledRecipe:
    """A `types.Recipe` of what sets a baseline apart."""

    Config: type[LabelledSettings]  # its settings
    adjustment: Callable[[Any, Tensor], Adjustment] = plain  # (cfg, counts [C]) -> `Adjustment` of the logits
    loss: Callable[[Any, Seen], Tensor] = weighted_cross_entropy  # (cfg, seen) -> scalar
    weighted_from_frac: Callable[[Any], float] = deferred  # cfg -> share of the epochs after which classes are weighted
    head: Literal["linear", "cosine"] = "linear"  # "linear", or "cosine" for logits that are cosines

    def setup(self, cfg: LabelledSettings, task: Task, build_net: BuildNet) -> State:
        """One network."""
        adjust = {"named": named.init(task.counts, fixed.prior(task.counts))} if cfg.adjust else {}
        net = build_net(task.n_classes, head=self.head)
        counts = task.counts if bool(task.counts.any()) else torch.ones_like(task.counts)  # none: no plan
        memory = {
            "starts": starts_balanced(build_net),
            "adjustment": {k: v for k, v in vars(self.adjustment(cfg, counts)).items() if v is not None},
            "class_weight": fixed.effective_number_weights(counts, beta=cfg.effective_beta),
        }
        return State(nets={"main": net}, adjust=adjust, memory=memory)

    def begin(self, cfg: LabelledSettings, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
        """A balanced head on the features of a pretrained network; else everything is known before the first pass."""
        return balanced_start(task, state, passes) if state.memory["starts"] else (state, {})

    def plan(self, cfg: LabelledSettings, task: Task, state: State, epoch: int) -> EpochPlan:
        """Every labelled image once."""
        rows = torch.nonzero(task.labels >= 0).flatten().cpu()
        return EpochPlan({"train": Stream(rows, cfg.batch_size, (cfg.view,))}, steps_for(len(rows), cfg.batch_size))

    def step(
        self, cfg: LabelledSettings, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock
    ) -> StepResult:
        """One term: the baseline's loss of the adjusted logits."""
        batch, net = batches["train"], cast(Network, state.nets["main"])
        feats = net.features(batch.x)
        logits = net.head_logits(feats).float()
        weight = None
        if clock.epoch >= self.weighted_from_frac(cfg) * clock.n_epochs:
            weight = state.memory["class_weight"]
        adjustment = Adjustment(**state.memory["adjustment"])
        scale = Adjustment(adjustment.multiplier) if self.head == "cosine" else Adjustment()
        probs = adjusted_logits(logits.detach(), batch.labels, scale).softmax(1)  # cosines say little before it
        more, state = added(cfg.adjust, state, probs)
        adjusted = adjusted_logits(logits, batch.labels, adjustment + more)
        loss = self.loss(cfg, Seen(adjusted, batch.labels, feats, weight, clock))
        if weight is not None:
            loss = loss * mean_share(weight[batch.labels].sum())  # several processes: one weighted mean
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepResult(loss, len(batch.rows), state, {"train_accuracy": accuracy})

    def end_epoch(
        self, cfg: LabelledSettings, task: Task, state: State, passes: Passes, epoch: int
    ) -> tuple[State, Mapping[str, Any]]:
        """Nothing to re-estimate."""
        return state, {}

    def predict(self, cfg: LabelledSettings, state: State, x: Tensor) -> Prediction:
        """Plain logits: adjustments act in training only, so nothing is subtracted at test time."""
        return Prediction(state.nets["main"](x))
