"""FixMatch on features: adapters learn from labels, and on strong views what the model is sure of on weak ones.

Source: Sohn et al. 2020 (arXiv 2001.07685). Departures: a visual and a text adapter are trained, at the rates of
adapters (arXiv 2505.02056, Sec. 4.1), and a step has as many labelled images as unlabelled ones. Without labels it
learns its own mistakes, and warns when one class takes over.
Command: labelwright fit photos/ --classes names.txt --model MODEL --method fixmatch_text --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.adjust import named
from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.residual import ResidualAdapter
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.methods.adjusting import added
from labelwright.methods.class_names import PoolSettings, allowed_classes, check_task, unlabelled_rows
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.settings import ShareBelow1
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, State, StepResult, Stream, Task

TAKEN_OVER_FRAC = 0.25  # of the unlabelled images, by which one class may grow in training before we warn


@dataclass(frozen=True, kw_only=True)
class Config(PoolSettings):
    """Settings of fixmatch_text."""

    lr: float = 0.01  # peak learning rate; that of a probe would let its own mistakes run away with it
    weight_decay: float = 5e-4  # of every trained parameter
    confidence: ShareBelow1 = 0.85  # probability from which a prediction teaches (Sohn 2020: 0.95)
    adjust: named.Names | None = None  # adjustments of the logits, e.g. pace+la: names of adjust.named


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """The class features on the towers, each side with an adapter."""
    check_task(task, "fixmatch_text")
    towers = build_net.towers()
    n_features, weight = int(towers.text_feats().shape[1]), 1 / towers.logit_scale
    visual, textual = (ResidualAdapter(n_features, weight=weight) for _ in range(2))
    even = torch.full((task.n_classes,), 1 / task.n_classes, device=task.labels.device)
    adjust = {"named": named.init(torch.ones_like(even), even)} if cfg.adjust else {}
    return State(nets={"main": AlignedNet(towers, visual=visual, textual=textual)}, adjust=adjust)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Predictions per class before training, to compare with those at its end."""
    counts = _predicted_counts(cfg, task, passes)
    memory = {**state.memory, "first_counts": counts}
    return dataclasses.replace(state, memory=memory), {"pseudolabel_counts": counts.tolist()}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled images, and unlabelled ones in two views."""
    rows = {"labelled": (task.labels >= 0).nonzero().flatten(), "unlabelled": unlabelled_rows(task)}
    views = {"labelled": ("weak",), "unlabelled": ("weak", "strong")}
    streams = {k: Stream(of.cpu(), cfg.batch_size, views[k]) for k, of in rows.items() if len(of)}
    return EpochPlan(streams, cfg.steps_per_epoch if streams else 0)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Cross-entropy on labelled images + on strong views of which the weak one is sure."""
    net = cast(AlignedNet, state.nets["main"])
    t = net.class_feats()
    loss, n_rows = t.sum() * 0.0, 0
    logs: dict[str, Tensor | float] = {}
    seen: list[tuple[Tensor, Tensor]] = []  # predictions and (pseudo)labels of the rows that teach
    if "labelled" in batches:
        known = net.logits(net.adapted(net.features(batches["labelled"].x)), t)
        seen.append((known.detach().softmax(1), batches["labelled"].labels))
    if "unlabelled" in batches:
        weak, strong = batches["unlabelled"].views
        with torch.no_grad():
            logits = net.logits(net.adapted(net.features(weak)), t)
            probs = logits.masked_fill(~allowed_classes(task, cfg.pool), -torch.inf).softmax(1)
            sure, labels = probs.max(1)
            is_sure = sure > cfg.confidence
        seen.append((probs[is_sure], labels[is_sure]))
    taught, pseudolabels = (torch.cat(column) for column in zip(*seen, strict=True))
    adjustment, state = added(cfg.adjust, state, taught, labels=pseudolabels)
    if "labelled" in batches:
        loss = loss + adjusted_cross_entropy(known, batches["labelled"].labels, adjustment)  # Eq. (3)
        n_rows += len(known)
    if "unlabelled" in batches:
        each = net.logits(net.adapted(net.features(strong)), t)
        total = adjusted_cross_entropy(each, labels, adjustment, where=is_sure, reduce="sum")
        loss, n_rows = loss + total / len(labels), n_rows + len(labels)  # Eq. (4): mean over all, as published
        logs["confident_frac"] = is_sure.float().mean()
    return StepResult(loss, n_rows, state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """At the very end: whether one class has taken over the unlabelled images."""
    first = state.memory["first_counts"]
    if epoch + 1 < cfg.epochs or not int(first.sum()):
        return state, {}
    now = _predicted_counts(cfg, task, passes)
    shares, first_shares = now / now.sum(), first / first.sum()
    c = int((shares - first_shares).argmax())
    logs: dict[str, Any] = {"pseudolabel_counts": now.tolist()}
    if shares[c] - first_shares[c] > TAKEN_OVER_FRAC:
        logs["warnings"] = [
            f"{task.class_names[c]} has taken over: it is the answer to {shares[c]:.0%} of the unlabelled images, "
            f"{first_shares[c]:.0%} before training; label a few images per class, or lower lr or epochs"
        ]
    return state, logs


def _predicted_counts(cfg: Config, task: Task, passes: Passes) -> Tensor:
    """[C] int64 unlabelled images that the network gives to each class."""
    counts, is_barred = torch.zeros_like(task.counts), ~allowed_classes(task, cfg.pool)
    for _, logits in passes("main", unlabelled_rows(task)):
        counts += torch.bincount(logits.masked_fill(is_barred, -torch.inf).argmax(1), minlength=task.n_classes)
    return counts


RECIPE = Recipe(Config=Config, setup=setup, begin=begin, plan=plan, step=step, end_epoch=end_epoch)
