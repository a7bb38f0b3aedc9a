"""ZLaP: the class texts spread over a graph of nearest neighbours of the images; nothing is trained.

 1  graph over C texts and N images: each image with its k nearest images and its k nearest texts, at weight
    cosine^gamma; none between texts                                                                      Sec. 3.3
 2  S = D^-1/2 (A + A^T) D^-1/2; solve (I - alpha S) F = Y, a column of Y for each class: 1 at its text, and at its
    labelled images                                                                                       Eq. (3)
 3  an image belongs to the class of its largest F; labelled ones to their own

What classifies other images is a linear head that is fitted to these answers.
Source: Stojnic et al. 2024 (arXiv 2404.04072). Departure: the paper answers other images through the graph.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method zlap --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from labelwright.encoders.aligned import AlignedNet
from labelwright.labels.transduce import nearest_neighbours
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import Begun, Recipe, feats_of
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.scaling import principal_axes
from labelwright.train.settings import Count, Positive, ShareBelow1
from labelwright.types import Passes, State, Task

PENALTY = 30.0  # of the head that is fitted to the answers
CG_STEPS, CG_TOLERANCE = 20, 1e-6


@dataclass(frozen=True, kw_only=True)
class Config(zero_shot.Config):
    """Settings of zlap."""

    k: Count = 5  # neighbours of an image among the images, and among the texts (Stojnic 2024)
    gamma: Positive = 5.0  # power of the cosines (Stojnic 2024)
    alpha: ShareBelow1 = 0.3  # share of an image's score that its neighbours make (Stojnic 2024)


def propagated(feats: Tensor, text: Tensor, labels: Tensor, *, k: int, gamma: float, alpha: float) -> Tensor:
    """Lines 1 to 3: scores F [N, C] float32 >= 0 of the images.

    Args:
      feats: [N, D] float, unit norm.   text: [C, D] float, unit norm.
      labels: [N] int64, -1 = unknown.
      k, gamma, alpha: see `Config`.

    Example: the third image is as near to either text, and nearer to the images of the first.
      >>> angles = torch.tensor([0.2, 0.3, 0.78, 1.5, 1.55])
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> found = propagated(z, torch.eye(2), torch.full((5,), -1), k=2, gamma=5.0, alpha=0.3)
      >>> found.argmax(1).tolist()
      [0, 0, 0, 1, 1]
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    n, n_classes = len(feats), len(text)
    sims, near = nearest_neighbours(feats, n_neighbours=k)
    to_text = torch.cat([z.float() @ text.float().T for z in torch.split(feats, 8192)]).topk(min(k, n_classes), dim=1)
    weights = torch.cat([sims, to_text.values], dim=1).clamp(min=0).pow(gamma).cpu().numpy().astype(np.float64)
    ends = torch.cat([near + n_classes, to_text.indices], dim=1).cpu().numpy()
    starts = np.repeat(np.arange(n) + n_classes, ends.shape[1])
    size = n + n_classes
    graph = sparse.csr_matrix((weights.ravel(), (starts, ends.ravel())), shape=(size, size))
    graph = graph + graph.T
    root = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).ravel(), 1e-12)))
    system = (sparse.identity(size) - alpha * root @ graph @ root).tocsr()
    given = labels.cpu().numpy()
    scores = np.empty((n, n_classes), dtype=np.float32)
    for c in range(n_classes):
        seeds = np.concatenate([np.arange(n_classes) == c, given == c]).astype(np.float64)
        scores[:, c] = cg(system, seeds, rtol=CG_TOLERANCE, maxiter=CG_STEPS)[0][n_classes:]
    return torch.from_numpy(scores).clamp(min=0).to(feats.device)


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Spread the texts, and fit a head to the answers."""
    net = cast(AlignedNet, state.nets["main"])
    feats = feats_of(passes, torch.arange(len(task.labels)), dtype=torch.float16)
    text, given = net.towers.text_feats(), task.labels.to(feats.device)
    found = propagated(feats, text, given, k=cfg.k, gamma=cfg.gamma, alpha=cfg.alpha).argmax(1)
    answers = torch.where(given >= 0, given, found)
    root = feats.shape[1] ** 0.5  # features of unit scale, as penalties expect them
    z, weight = root * feats.float(), net.towers.logit_scale * text / root
    axes = principal_axes(z)
    if axes is not None:
        z, weight = z @ axes, weight @ axes
    start = Linear(weight, torch.zeros_like(text[:, 0]))
    head = solve(z, answers, Problem(), n_classes=task.n_classes, penalty=PENALTY, start=start)
    net.put_linear(root * (head.weight if axes is None else head.weight @ axes.T), head.bias)
    counts = torch.bincount(answers[given < 0], minlength=task.n_classes)
    fit = float((head(z).argmax(1) == answers).float().mean())
    return state, {"pseudolabel_counts": counts.tolist(), "head_agreement": round(fit, 5)}


RECIPE = Recipe(Config=Config, setup=partial(zero_shot.setup, name="zlap"), begin=begin)
