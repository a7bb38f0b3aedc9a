"""What ORCA and SimGCD share: a last layer of cosines, its start, and the loss that spreads the predictions.

On frozen features the class weights start where LPS does (`start`): at the mean directions of the classes as the
beliefs of `cluster_start.beliefs_from` have them. Training ends, as that of LPS, once it moves no answer, and the prior
weighs more than from pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.candidates import negative_entropy_of_mean
from labelwright.methods.cluster_start import from_clusters, starts_by_clusters
from labelwright.methods.open_world import STILL_EPOCHS, TrainedSettings, moved_answers, new_net
from labelwright.methods.recipe import Begun
from labelwright.train.settings import AtLeast0
from labelwright.types import BuildNet, Passes, State, Task

SCALE = 10.0  # multiplies the cosines (ORCA's authors' code; SimGCD, a temperature of 0.1)


@dataclass(frozen=True, kw_only=True)
class CosineSettings(TrainedSettings):
    """Settings of both."""

    start: Literal["auto", "beliefs", "clusters", "none"] = "auto"  # class weights; auto: beliefs, on frozen features
    prior_weight: AtLeast0 | None = None  # of `divergence_of_mean`; None = what suits the method, on pixels or features


def cosine_net(cfg: CosineSettings, task: Task, build_net: BuildNet) -> nn.Module:
    """As `new_net` with a layer of `SCALE` cosines; its weights start at norm 1, which is what the rates are for."""
    net = new_net(cfg, task, build_net, head="cosine")
    head = cast(Any, net).head
    head.weight.data.copy_(F.normalize(head.weight.data, dim=1))
    head.scale.fill_(SCALE)
    return net


def start_cosines(cfg: CosineSettings, task: Task, state: State, passes: Passes) -> Begun:
    """Class weights and prior from beliefs or from k-means, if ``cfg.start`` says so."""
    if not starts_by_clusters(cfg.start, is_frozen=state.memory["is_frozen"]):
        return state, {}
    with_beliefs = cfg.start != "clusters"
    (weight, bias), clusters, state, logs = from_clusters(cfg, task, state, passes, with_beliefs=with_beliefs)
    centres = clusters.centroids
    if with_beliefs:
        centres = torch.zeros_like(weight)
        for rows, feats in passes("main", torch.arange(len(task.labels)), output="feats"):
            probs = (feats.float() @ weight.T + bias).softmax(1)
            labels = task.labels[rows.to(task.labels.device)]
            probs[labels >= 0] = F.one_hot(labels[labels >= 0], task.n_classes).float()
            centres += probs.T @ F.normalize(feats.float(), dim=1)
    net = state.nets["main"]
    inner: Any = net.classifier if isinstance(net, ProjectedNet) else net
    inner.head.weight.data.copy_(F.normalize(centres, dim=1))
    return state, logs


def still_or_not(cfg: CosineSettings, state: State, logits: torch.Tensor, logs: dict[str, Any]) -> Begun:
    """As in LPS: training from a start close to its end stops once it has moved next to no answer for some epochs."""
    state = dataclasses.replace(state, memory={**state.memory, **moved_answers(state.memory, logits)})
    starts_close = starts_by_clusters(cfg.start, is_frozen=state.memory["is_frozen"])
    return state, {**logs, "stop": starts_close and state.memory["n_still"] >= STILL_EPOCHS}


def prior_weight_of(cfg: CosineSettings, state: State, *, pixels: float, frozen: float) -> float:
    """The weight of `divergence_of_mean`: what was set, or what suits pixels or frozen features."""
    if cfg.prior_weight is not None:
        return cfg.prior_weight
    return frozen if state.memory["is_frozen"] else pixels


def divergence_of_mean(logits: Tensor, prior: Tensor) -> Tensor:
    """KL(mean prediction || prior), scalar >= 0 in nats.

    Args:
      logits: [B, C] float.
      prior: [C] float, sums to 1; a share of 0 counts as 1e-6.

    Example: one class only, where two are equally probable.
      >>> round(divergence_of_mean(torch.tensor([[50.0, 0.0]]), torch.tensor([0.5, 0.5])).item(), 4)
      0.6931
    """
    mean = logits.float().softmax(1).mean(0)
    return negative_entropy_of_mean(logits) - (mean * prior.clamp(min=1e-6).log()).sum()
