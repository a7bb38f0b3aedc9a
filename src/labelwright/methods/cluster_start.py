"""The last layer from which methods for open worlds start on frozen features: clusters, or beliefs that begin there."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread
from labelwright.labels.gaussians import gaussian_beliefs, principal
from labelwright.labels.kmeans import KMeans, semi_supervised_kmeans
from labelwright.labels.self_training import labelled_weight, self_train
from labelwright.methods.open_world import (
    SAMPLE_ROWS,
    OpenWorldSettings,
    balance,
    expected_unlabelled,
    n_seen,
    prior_of,
)
from labelwright.methods.recipe import feats_of
from labelwright.types import Passes, State, Task

BELIEF_DIMS = 128  # principal components that the Gaussians of a start see
BELIEF_SHRINKAGE = 0.1  # of their covariance
BELIEF_ROUNDS = 20  # of EM
CLUSTER_DOUBT = 0.1  # share of the evidence that is spread over all classes, whatever the cluster
START_SCALE = 20.0  # logits over the cosines with the centroids
CENTROIDS, BELIEFS = (
    "centroids",
    "beliefs",
)  # in the memory of a state: the last layers that clusters, and beliefs, give


def starts_by_clusters(start: str, *, is_frozen: bool) -> bool:
    """Whether the last layer starts from clusters: as they are, or by way of beliefs."""
    return start in ("clusters", "beliefs") or (start == "auto" and is_frozen)


def from_clusters(
    cfg: OpenWorldSettings, task: Task, state: State, passes: Passes, *, with_beliefs: bool = False
) -> tuple[tuple[Tensor, Tensor], KMeans, State, dict[str, Any]]:
    """A last layer to start from: nearest centroids of semi-supervised k-means, or `beliefs_from` these clusters.

    Logits of the centroids are START_SCALE * (c . z - |c|^2 / 2), z the unit features. For a layer that sees features
    of another norm, the weights are divided by its mean.

    Returns: weight [C, D] and bias [C], what k-means found, the state with the prior that goes with it, what to log.
      Where beliefs take the place of the centroids, both layers are in its memory, under CENTROIDS and BELIEFS.
    """
    feats = feats_of(passes, torch.arange(len(task.labels)))
    norm, feats = feats.norm(dim=1).mean(), F.normalize(feats, dim=1)
    seed = int(torch.randint(2**31, (1,)))
    found = semi_supervised_kmeans(
        feats, task.labels, n_classes=task.n_classes, n_seen=n_seen(task), n_init=cfg.n_init, seed=seed
    )
    prior = prior_of(cfg, task, found.sizes)
    weight = START_SCALE * found.centroids
    bias = -START_SCALE / 2 * found.centroids.square().sum(1)
    memory = {**state.memory, "prior": prior}
    if with_beliefs:
        memory[CENTROIDS] = {"weight": weight / norm, "bias": bias}
        weight, bias = beliefs_from(feats, task, found.assigned, prior)
        memory[BELIEFS] = {"weight": weight / norm, "bias": bias}
    state = dataclasses.replace(state, memory=memory)
    return (weight / norm, bias), found, state, {"start_inertia": found.inertia, "n_kmeans_steps": found.n_steps}


def beliefs_from(feats: Tensor, task: Task, assigned: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """One Gaussian per class with the clusters as evidence, then a softmax regression on what they say.

    The Gaussians see the principal components. The regression is what makes logits of them that follow how often they
    are right: in so many dimensions Gaussians alone are sure of everything.

    Args:
      feats: [N, D] float32, unit norm.
      assigned: [N] int64, the cluster of each row.
      prior: [C] float, shares of the classes among all rows.

    Returns: weight [C, D] and bias [C].
    """
    labels, n_classes = task.labels, task.n_classes
    expected = expected_unlabelled(prior, task.counts, len(labels))
    mean, directions = principal(feats, min(BELIEF_DIMS, feats.shape[1]))
    n_hidden = int((labels < 0).sum())
    counted = labelled_weight(len(labels) - n_hidden, n_hidden)
    wanted = expected * n_hidden + counted * task.counts  # a labelled row counts as often as in the regression
    found = gaussian_beliefs(
        (feats - mean) @ directions.T,
        lambda rows: ((1 - CLUSTER_DOUBT) * F.one_hot(assigned[rows], n_classes) + CLUSTER_DOUBT / n_classes).log(),
        labels,
        strength=1.0,
        shrinkage=BELIEF_SHRINKAGE,
        n_iter=BELIEF_ROUNDS,
        prior=wanted / wanted.sum(),
        label_weight=counted,
    )
    weight = found.weight @ directions
    rows = _some_rows(labels)
    balanced = partial(balance, expected=expected)
    return self_train(feats[rows], labels[rows], weight, found.bias - weight @ mean, balanced=balanced)


def _some_rows(labels: Tensor) -> Tensor:
    """Rows [n] int64: all, or of more than 2 `SAMPLE_ROWS` an evenly spread share, labelled and unlabelled alike."""
    kinds = [(labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten()]
    share = min(1.0, 2 * SAMPLE_ROWS / len(labels))
    return torch.cat([evenly_spread(rows, max(1, round(share * len(rows)))) for rows in kinds if len(rows)])
