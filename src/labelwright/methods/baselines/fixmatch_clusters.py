"""FixMatch on the named classes; at the end k-means of the images that it is least sure of makes the novel ones.

 1  on the seen outputs alone, L = CE(weak, label) on labelled images
 2    + mean over unlabelled of [max p(weak) >= 0.95] CE(strong, argmax p(weak))
 3  at the end, k-means of the unlabelled images least sure of a seen class; the last layer is refitted to what every
    image is then, so that one linear classifier says it

Source: Sohn et al. 2020 (arXiv 2001.07685), Eq. (3) and (4). Departures: open_world.py; no running average of the
weights; line 3 takes as many images as the prior expects to be novel, where ORCA's comparison takes the true number.
Command: labelwright fit photos/ --classes seen.txt --novel 3 --method fixmatch_clusters --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from labelwright.encoders.heads import put_in
from labelwright.labels.kmeans import semi_supervised_kmeans
from labelwright.labels.self_training import self_train
from labelwright.losses.classification import cross_entropy
from labelwright.methods import cluster_start, open_world
from labelwright.methods.recipe import Begun, Recipe, feats_of
from labelwright.train.settings import Share
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, State, StepResult, Task

NEVER = -100.0  # bias of outputs that have no class yet


@dataclass(frozen=True, kw_only=True)
class Config(open_world.TrainedSettings):
    """Settings of fixmatch_clusters."""

    confidence: Share = 0.95  # probability from which a prediction teaches (Sohn 2020)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One linear classifier that never answers with a novel class."""
    net: Any = open_world.new_net(cfg, task, build_net)
    weight, bias = net.head.weight.detach().clone(), net.head.bias.detach().clone()
    weight[open_world.n_seen(task) :], bias[open_world.n_seen(task) :] = 0.0, NEVER
    put_in(net, weight, bias)
    return open_world.state_of(cfg, task, build_net, net, "fixmatch_clusters")


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """The prior, on frozen features from clusters."""
    logs: dict[str, Any] = {}
    if state.memory["is_frozen"]:
        _, _, state, logs = cluster_start.from_clusters(cfg, task, state, passes)
    return state, logs | open_world.pace(task, state, passes)[1]


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Labelled images in a weak view and unlabelled ones in a weak and a strong one, in proportion."""
    both = open_world.plan_of_both(cfg, task, state, epoch, ("weak", "strong"))
    labelled = dataclasses.replace(both.streams["labelled"], views=("weak",))
    return EpochPlan({**both.streams, "labelled": labelled}, both.n_steps)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 and 2; every mean is over as many rows in every process."""
    labelled, unlabelled = batches["labelled"], batches["unlabelled"]
    logits = state.nets["main"](torch.cat([labelled.x, *unlabelled.views]))[:, : open_world.n_seen(task)].float()
    n_hidden = len(unlabelled.rows)
    known, weak, strong = logits.split([len(labelled.rows), n_hidden, n_hidden])
    sure, best = weak.detach().softmax(1).max(1)
    is_sure = sure >= cfg.confidence
    supervised = cross_entropy(known, labelled.labels)  # 1
    taught = cross_entropy(strong, best, where=is_sure, reduce="sum") / n_hidden  # 2
    logs = {"loss_labelled": supervised.detach(), "loss_unlabelled": taught.detach()}
    logs["sure_frac"] = is_sure.float().mean()
    return StepResult(supervised + taught, len(known) + n_hidden, state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """The pace of the classes; at the very end line 3 before it."""
    logs = _add_clusters(cfg, task, state, passes) if task.n_novel and epoch + 1 == cfg.epochs else {}
    return state, logs | open_world.pace(task, state, passes)[1]


def _add_clusters(cfg: Config, task: Task, state: State, passes: Passes) -> dict[str, Any]:
    """Line 3: cluster the images least sure of a seen class, and refit the last layer to what all images are."""
    named, every = open_world.n_seen(task), torch.arange(len(task.labels))
    feats = feats_of(passes, every)
    norm, z = feats.norm(dim=1).mean(), F.normalize(feats, dim=1)
    seen = [logits[:, :named].softmax(1).max(1) for _, logits in passes("main", every)]
    sure, best = (torch.cat(column) for column in zip(*seen, strict=True))
    answer = torch.where(task.labels >= 0, task.labels, best)
    hidden = (task.labels < 0).nonzero().flatten()
    expected = open_world.expected_unlabelled(state.memory["prior"], task.counts, len(task.labels))
    n_novel_rows = min(max(round(float(expected[named:].sum()) * len(hidden)), task.n_novel), len(hidden))
    rows = hidden[sure[hidden].argsort(stable=True)[:n_novel_rows]]
    unknown, seed = torch.full_like(rows, -1), int(torch.randint(2**31, (1,)))
    found = semi_supervised_kmeans(z[rows], unknown, n_classes=task.n_novel, n_seen=0, n_init=cfg.n_init, seed=seed)
    answer[rows] = named + found.assigned
    zeros = torch.zeros(task.n_classes, device=z.device)
    weight = torch.zeros(task.n_classes, z.shape[1], device=z.device)
    weight, bias = self_train(z, answer, weight, zeros, balanced=lambda logits: zeros)
    put_in(state.nets["main"], weight / norm, bias)
    fitted = (z @ weight.T + bias).argmax(1)
    return {"cluster_inertia": found.inertia, "fitted_frac": round(float((fitted == answer).float().mean()), 5)}


RECIPE = Recipe(Config=Config, setup=setup, begin=begin, plan=plan, step=step, end_epoch=end_epoch)
