"""What ORCA and SimGCD share: a last layer of cosines, its start, and the loss that spreads the predictions.

On frozen features the class weights start at centroids (`start`), and the prior weighs more. A saved model has the
cosines unscaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.candidates import negative_entropy_of_mean
from labelwright.methods.open_world import TrainedSettings, from_clusters, new_net, starts_by_clusters
from labelwright.methods.recipe import Begun
from labelwright.train.settings import require_range
from labelwright.types import BuildNet, Passes, State, Task


@dataclass(frozen=True, kw_only=True)
class CosineSettings(TrainedSettings):
    """Settings of both."""

    start: Literal["auto", "clusters", "none"] = "auto"  # class weights from k-means; auto: on frozen features
    prior_weight: float | None = None  # of `divergence_of_mean`; None = what suits the method, on pixels or features

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "0 or more, or none", "prior_weight")


def cosine_net(cfg: CosineSettings, task: Task, build_net: BuildNet) -> nn.Module:
    """As `new_net` with a cosine layer; its weights start at norm 1, which is what the rates are for."""
    net = new_net(cfg, task, build_net, head="cosine")
    weight = cast(Any, net).head.weight
    weight.data.copy_(F.normalize(weight.data, dim=1))
    return net


def start_cosines(cfg: CosineSettings, task: Task, state: State, passes: Passes) -> Begun:
    """Class weights and prior from k-means, if ``cfg.start`` says so."""
    if not starts_by_clusters(cfg.start, is_frozen=state.memory["is_frozen"]):
        return state, {}
    _, clusters, state, logs = from_clusters(cfg, task, state, passes)
    net = state.nets["main"]
    inner: Any = net.classifier if isinstance(net, ProjectedNet) else net
    inner.head.weight.data.copy_(F.normalize(clusters.centroids, dim=1))
    return state, logs


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
      >>> import torch
      >>> round(divergence_of_mean(torch.tensor([[50.0, 0.0]]), torch.tensor([0.5, 0.5])).item(), 4)
      0.6931
    """
    mean = logits.float().softmax(1).mean(0)
    return negative_entropy_of_mean(logits) - (mean * prior.clamp(min=1e-6).log()).sum()
