"""PiCO: contrastive learning and class prototypes that find the label among the candidates.

Source: Wang et al. 2022, "PiCO: Contrastive Label Disambiguation for Partial Label Learning" (arXiv 2201.08984), with
what the authors' code (hbzju/PiCO) says of order and settings.

Algorithm, of a batch with a first view and a strong one
 1  q = projection of the first view; k = projection of the strong one by the momentum network
 2  y' = most probable class of the first view inside the set S
 3  positives of an image: its own key, and queries, keys and queued keys of the same y'
 4  L_cont = -mean over positives of log(exp(q . k / T) / sum over all but itself)
 5  s <- phi s + (1 - phi) onehot(nearest prototype to q inside S), phi from 0.95 to 0.8; s = 1/|S| at first
 6  L_cls = -sum_j s_j log p_j
 7  mu_y' <- gamma mu_y' + (1 - gamma) q, unit norm
 8  L = L_cls + lambda L_cont
 9  in the first epochs (plain_epochs) s stays, and the only positive of an image is its own key, against the queue
10  keys into the queue, first in, first out; the momentum network follows with decay 0.999
11  predict with the logits of the trained network

Symbols: T=temperature, phi=phi_first to phi_last, gamma=prototype_decay, lambda=contrastive_weight,
s=memory["targets"], one number per candidate; mu=memory["prototypes"].

Departures from the paper: SGD settings are those of all baselines on candidate sets; a class without a prototype is
the nearest only where the set has no other; images without candidates, which PiCO does not know, have the set of all
classes in L_cont and the prototypes, and are left out of L_cls; several processes contrast with one another's images.

Command: labelwright fit DATA --method pico --out RUN
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.candidates import candidate_targets, informative_rows
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.contrastive import init_queue, noisy_contrastive, push_queue
from labelwright.losses.prototypes import prototype_collapse, update_prototypes
from labelwright.methods.baselines.candidate_sets import (
    CandidateSettings,
    check_task,
    even_targets,
    new_net,
    plan_of_all,
    read_targets,
    write_targets,
)
from labelwright.methods.recipe import Begun, Recipe
from labelwright.train.processes import gather_queries, gather_rows, mean_share, sum_gradients
from labelwright.train.settings import AtLeast0, Count, CountOr0, Positive, Share
from labelwright.types import Average, Batch, BuildNet, Clock, EpochPlan, Network, Passes, State, StepResult, Task

N_DIMS = 128  # of the projections
COLLAPSED = 0.95  # mean cosine between prototypes from which we warn


@dataclass(frozen=True, kw_only=True)
class Config(CandidateSettings):
    """Settings of PiCO; the values are the paper's."""

    plain_epochs: CountOr0 = 1  # epochs before targets move and labels choose positives
    contrastive_weight: AtLeast0 = 0.5  # lambda
    temperature: Positive = 0.07  # T, divides the cosines
    queue_size: Count = 8192  # keys
    key_decay: Share = 0.999  # share of the old weights that the momentum network keeps per step
    prototype_decay: Share = 0.99  # gamma
    phi_first: Share = 0.95  # share of the old target kept at each visit, at the start
    phi_last: Share = 0.8  # the same at the end


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network with a projector and its momentum copy; no prototype yet, an empty queue."""
    check_task(task, "pico")
    net = ProjectedNet(cast(Network, new_net(cfg, task, build_net)), n_dims=N_DIMS)
    device = task.labels.device
    memory = {
        "is_frozen": build_net.is_frozen,
        "targets": even_targets(task),
        "prototypes": torch.zeros(task.n_classes, N_DIMS, device=device),
        "queue": init_queue(cfg.queue_size, N_DIMS, device=device),
    }
    averages = {"key": Average("main", cfg.key_decay)}
    return State(nets={"main": net, "key": copy.deepcopy(net)}, memory=memory, averages=averages)


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once, with a strong view beside the first."""
    return plan_of_all(cfg, task, state, epoch, ("strong",))


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Cross-entropy against the pseudo-targets, and the contrastive loss."""
    batch, memory = batches["train"], dict(state.memory)
    net, key_net = cast(ProjectedNet, state.nets["main"]), cast(ProjectedNet, state.nets["key"])
    possible = task.possible(batch.rows)
    logits, query = net.both(batch.views[0])
    with torch.no_grad():
        key_net.train()  # batch norms take the batch's statistics, as published: running ones lag far behind
        key = key_net.both(batch.views[1])[1]
        labels = candidate_targets(logits.float().softmax(1), possible).argmax(1)  # 2
    targets, has_begun = read_targets(task, memory["targets"], batch.rows), clock.epoch >= cfg.plain_epochs
    if has_begun:
        phi = cfg.phi_first + clock.epoch / clock.n_epochs * (cfg.phi_last - cfg.phi_first)
        nearest = nearest_prototype(query.detach(), memory["prototypes"], possible)
        targets = phi * targets + (1 - phi) * F.one_hot(nearest, task.n_classes)  # 5
        memory["targets"] = write_targets(task, memory["targets"], batch.rows, targets)
    kept = informative_rows(possible)
    classification = soft_cross_entropy(logits, targets, where=kept) * mean_share(kept.sum().float())  # 6
    queries, keys, labels = gather_queries(query), gather_rows(key), gather_rows(labels)
    is_there = torch.ones_like(labels, dtype=torch.bool)
    contrastive = noisy_contrastive(
        queries,
        keys,
        labels=labels,
        is_reliable=is_there,
        queue=memory["queue"],
        n_classes=task.n_classes,
        rule="supervised" if has_begun else "unsupervised",
        temperature=cfg.temperature,
    )  # 3, 4
    contrastive = sum_gradients(contrastive)
    memory["prototypes"] = update_prototypes(memory["prototypes"], queries, labels, decay=cfg.prototype_decay)  # 7
    memory["queue"] = push_queue(memory["queue"], keys, labels, is_there)
    loss = classification + cfg.contrastive_weight * contrastive  # 8
    logs = {"classification": classification.detach(), "contrastive": contrastive.detach()}
    return StepResult(loss, len(batch.rows), dataclasses.replace(state, memory=memory), logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Say so when all prototypes point the same way."""
    cosine = float(prototype_collapse(state.memory["prototypes"]))
    logs: dict[str, Any] = {"prototype_cosine": cosine}
    if cosine > COLLAPSED:
        logs["warnings"] = [
            f"the prototypes have collapsed: their mean cosine is {cosine:.2f} after epoch {epoch + 1}; lower lr or "
            "raise contrastive_weight"
        ]
    return state, logs


def nearest_prototype(query: Tensor, prototypes: Tensor, possible: Tensor) -> Tensor:
    """The class of the nearest prototype inside the set; one without a prototype only if none of the set has one.

    Args:
      query: [B, D] float, unit norm.
      prototypes: [C, D] float, unit norm, or zero for a class not seen yet.
      possible: [B, C] bool, no row all False.

    Returns: [B] int64.

    Example: the second prototype is not there yet, and the third no candidate.
      >>> prototypes = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
      >>> nearest_prototype(torch.tensor([[1.0, 0.0]]), prototypes, torch.tensor([[True, True, False]])).tolist()
      [0]
    """
    with torch.autocast(query.device.type, enabled=False):
        sims = query.float() @ prototypes.T
    sims = sims.masked_fill((prototypes == 0).all(1), -2.0)  # below every cosine
    return sims.masked_fill(~possible, -torch.inf).argmax(1)


RECIPE = Recipe(Config=Config, setup=setup, plan=plan, step=step, end_epoch=end_epoch)
