"""Semi-supervised k-means on unit features: labelled images keep the cluster of their class; nothing is trained.

The last layer is the nearest centroid. Source: Vaze et al. 2022 (GCD, arXiv 2201.02609), Sec. 3.2. Departure: of
`n_init` starts the tightest end is kept. Exact for features of unit norm, which those of a backbone are scaled to;
stored features of uneven norm are taken as they are.
Command: labelwright fit photos/ --classes seen.txt --novel auto --method ss_kmeans --model openai/clip-vit-base-patch32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from labelwright.encoders.backbones import Classifier, Stored, UnitBackbone
from labelwright.encoders.heads import put_in
from labelwright.methods.cluster_start import from_clusters
from labelwright.methods.open_world import OpenWorldSettings, pace, state_of
from labelwright.methods.recipe import Begun, Recipe
from labelwright.types import BuildNet, Passes, State, Task


@dataclass(frozen=True, kw_only=True)
class Config(OpenWorldSettings):
    """Settings of ss_kmeans."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # nothing is trained


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One linear classifier on unit features, for which it can be the nearest centroid."""
    net: nn.Module = build_net(task.n_classes)
    if isinstance(net, Classifier) and not isinstance(net.backbone, (Stored, UnitBackbone)):
        net = net.with_backbone(UnitBackbone(net.backbone), name=net.name, image_size_px=net.image_size_px)
    return state_of(cfg, task, build_net, net.requires_grad_(False), "ss_kmeans")


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """All of it."""
    layer, _, state, logs = from_clusters(cfg, task, state, passes)
    put_in(state.nets["main"], *layer)
    return state, logs | pace(task, state, passes)[1]


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """The pace of the classes."""
    return state, pace(task, state, passes)[1]


RECIPE = Recipe(Config=Config, setup=setup, begin=begin, end_epoch=end_epoch)
