"""The start of LPS alone: beliefs on frozen features whose evidence are the clusters of semi-supervised k-means.

 1  clusters: semi-supervised k-means, labelled images in the cluster of their class (`ss_kmeans`)
 2  one Gaussian per class, its evidence the clusters; a softmax regression on what they say (`beliefs_from`)
 3  predict with that linear layer; nothing is trained

Source: own; what LPS, ORCA and SimGCD begin with on frozen features, and what they have to improve on.
Command: labelwright fit features.npz --novel auto --method novel_beliefs --out RUN
"""

from __future__ import annotations

from labelwright.encoders.heads import put_in
from labelwright.methods.baselines import ss_kmeans
from labelwright.methods.cluster_start import from_clusters
from labelwright.methods.open_world import pace
from labelwright.methods.recipe import Begun, Recipe
from labelwright.types import Passes, State, Task


class Config(ss_kmeans.Config):
    """Settings of novel_beliefs."""


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """All of it."""
    layer, _, state, logs = from_clusters(cfg, task, state, passes, with_beliefs=True)
    put_in(state.nets["main"], *layer)
    return state, logs | pace(task, state, passes)[1]


RECIPE = Recipe(Config=Config, setup=ss_kmeans.setup, begin=begin, end_epoch=ss_kmeans.end_epoch)
