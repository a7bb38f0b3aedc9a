"""Tip-Adapter: zero-shot logits plus a vote of the labelled images by how near they are; nothing is trained.

 1  logits of class c: logit_scale z . t_c + alpha sum over its labelled images of exp(-beta (1 - z . z_i))   Eq. (6)
 2  alpha and beta: those under which labelled images that are left out of the cache are most likely, all classes
    counted alike; with one image per class, of which none can be left out, the published 1 and 5.5

Source: Zhang et al. 2022 (arXiv 2207.09519). Departures: (2), where the paper searches on a validation set; features of
un-augmented images. Without Tip-Adapter-F, which trains the cache.
Command: labelwright fit photos/ --model openai/clip-vit-base-patch32 --method tip_adapter --out RUN
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.backbones import Classifier
from labelwright.encoders.heads import CacheHead
from labelwright.encoders.towers import Towers
from labelwright.methods.baselines import zero_shot
from labelwright.methods.recipe import Begun, Recipe, feats_of
from labelwright.methods.shots import check_shots
from labelwright.train.cross_validation import balanced_loss, folds_of
from labelwright.train.settings import AtLeast0
from labelwright.types import BuildNet, Passes, State, Task

ALPHA, BETA = 1.0, 5.5  # (Sec. 4.1)
ALPHAS, BETAS = (0.0, 0.3, 1.0, 3.0, 10.0), (1.0, 3.0, 5.5, 10.0)


@dataclass(frozen=True, kw_only=True)
class Config(zero_shot.Config):
    """Settings of tip_adapter."""

    alpha: AtLeast0 | None = None  # weight of the vote; None = by cross-validation
    beta: AtLeast0 | None = None  # how fast it falls with distance; None = by cross-validation


class CachedNet(nn.Module):
    """The towers with a `CacheHead`.

    Args:
      towers: image and class features, see encoders.towers.
      labels: [n] int64 of the images to be cached.
    """

    def __init__(self, towers: Towers, labels: Tensor) -> None:
        super().__init__()
        self.towers = towers
        self.head = CacheHead(towers.logit_scale * towers.text_feats(), labels)

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of views."""
        return self.towers.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] float32 of views."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def exported(self) -> Classifier:
        """The same answers as a plain classifier that needs no text tower: what a saved model holds."""
        plain = AlignedNet(self.towers).exported()
        return Classifier(
            plain.backbone,
            name=plain.name,
            n_features=plain.n_features,
            n_outputs=plain.n_outputs,
            head=copy.deepcopy(self.head).cpu(),
            image_size_px=plain.image_size_px,
            freeze=(),
        )


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """The cache, still empty."""
    check_shots(task, "tip_adapter")
    return State(nets={"main": CachedNet(build_net.towers(), task.labels[task.labels >= 0])})


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Fill the cache, and weigh it."""
    head, known = cast(CachedNet, state.nets["main"]).head, (task.labels >= 0).nonzero().flatten()
    head.keys.copy_(feats_of(passes, known))
    groups = None if task.groups is None else task.groups[known.to(task.groups.device)]
    rows, fold = folds_of(head.labels, groups, seed=0)
    alphas = ALPHAS if cfg.alpha is None else (cfg.alpha,)
    betas = BETAS if cfg.beta is None else (cfg.beta,)
    alpha, beta = cfg.alpha if cfg.alpha is not None else ALPHA, cfg.beta if cfg.beta is not None else BETA
    if len(rows) and len(alphas) * len(betas) > 1:
        tried = [(left_out_loss(head, rows, fold, a, b), a, b) for a in alphas for b in betas]
        _, alpha, beta = min(tried)
    head.alpha.fill_(alpha)
    head.beta.fill_(beta)
    return state, {"alpha": alpha, "beta": beta}


def left_out_loss(head: CacheHead, rows: Tensor, fold: Tensor, alpha: float, beta: float) -> float:
    """Mean over the classes of -log p of cached images [n], each by a cache without those of its fold.

    Args:
      rows, fold: of `train.cross_validation.folds_of`.   alpha, beta: of line 1.

    Example: two classes apart, two images each: the other image of its class makes each one likelier.
      >>> head = CacheHead(torch.zeros(2, 2), torch.tensor([0, 0, 1, 1]))
      >>> _ = head.keys.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
      >>> losses = [left_out_loss(head, torch.arange(4), torch.tensor([0, 1, 0, 1]), a, 5.0) for a in (0.0, 1.0)]
      >>> [round(loss, 3) for loss in losses]
      [0.693, 0.315]
    """
    rows, fold = rows.to(head.keys.device), fold.to(head.keys.device)
    keys, labels = head.keys[rows], head.labels[rows]
    near = alpha * torch.exp(-beta * (1 - keys @ keys.T)) * (fold[:, None] != fold)
    return balanced_loss((keys @ head.weight.T).index_add(1, labels, near), labels)


RECIPE = Recipe(Config=Config, setup=setup, begin=begin)
