"""SimCLR: a backbone that learns from images alone, by telling two views of one image from all other images.

Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709).

Algorithm
 1  a batch of B images, each in two views of their own: random crop, flip, colour           Sec. 2.1, departure 1
 2  h = backbone of all 2B views, in one forward pass                                                 Sec. 2.1
 3  z = projector of h, two layers, unit norm                                                 Sec. 2.1, Sec. 4.2
 4  s_ij = z_i . z_j                                                                             the cosine, Sec. 2.1
 5  l_i = -log(exp(s_ij / T) / sum_{k != i} exp(s_ik / T)), j the other view of i's image                  Eq. (1)
 6  L = mean of l over all 2B views                                                                    Algorithm 1
 7  after each epoch: the mean cosine of views of one image (alignment), and of views of different images
 8  keep the backbone, drop the projector                                                              Algorithm 1

Symbols: T=temperature, h=what the last layer of a classifier would see, z=unit-norm projections [2B, n_dims].

Departures from the paper
 1  the view is labelwright's strong one: a random part stretched to the full size and flipped, as in the paper
    (App. A), then two operations of RandAugment, where the paper shifts colours, takes them away and blurs.
 2  SGD with momentum at batch 256, where the paper has LARS at 4096; rate and weight decay are those of the authors of
    SupCon for SimCLR on CIFAR (arXiv 2004.11362, their code: 0.5 at batch 1024, 1e-4), scaled to the batch.
 3  batch norms take the statistics of one process's share of the batch, where the paper gathers them.

It reads no label, and is no method of `fit`: what it leaves is where `fit --model RUN` starts.
Command: labelwright pretrain DATA --out RUN
Measured, one seed: 2,000 CIFAR-10 images, resnet32, 30 epochs, 733 s on one busy core: a linear head on the frozen
features (`--views embeddings`, 50 epochs on the same images' labels) scores 0.260 on 2,000 others, on a
random backbone 0.164.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.contrastive import nt_xent
from labelwright.methods.recipe import Begun, nothing_before, plain_logits
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_queries, sum_gradients
from labelwright.train.settings import Count, Positive, TrainSettings, require
from labelwright.types import (
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Network,
    Passes,
    State,
    StepResult,
    Stream,
    Task,
)

COLLAPSED = 0.95  # mean cosine of different images from which we warn, unless it falls


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of SimCLR."""

    batch_size: int = 256  # images per step; each is distinguished from all others of its batch
    lr: float = 0.125  # peak learning rate: 0.5 at batch 1024 (SupCon's authors), in proportion to the batch
    weight_decay: float = 1e-4  # of every trained parameter (SupCon's authors)
    warmup_epochs: float = 10.0  # linear from 0 to lr (Sec. 2.2); never longer than a tenth of the epochs
    view: Literal["weak", "strong"] = "strong"  # of both views; strong ones are what makes the task worth solving
    temperature: Positive = 0.5  # T, divides the cosines (SupCon's authors: 0.5 as well)
    n_dims: Count = 128  # of the projections (Sec. 2.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.batch_size >= 2, "batch_size", self.batch_size, "at least 2: an image is distinguished from others"
        )


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network with a projector. Its last layer is there to be a classifier's, and learns nothing."""
    net = ProjectedNet(cast(Network, build_net(1)), n_dims=cfg.n_dims)
    memory = {"tally": torch.zeros(3, device=task.labels.device), "alignment": 0.0, "cosine": 1.0}
    return State(nets={"main": net}, memory=memory)


begin = nothing_before


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once, in two views."""
    rows = torch.arange(len(task.labels))
    return EpochPlan(
        {"train": Stream(rows, cfg.batch_size, (cfg.view, cfg.view))}, steps_for(len(rows), cfg.batch_size)
    )


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """The contrastive loss of the batch, over all processes."""
    batch, net = batches["train"], cast(ProjectedNet, state.nets["main"])
    _, z = net.both(torch.cat(batch.views))  # 2, 3: [2B, n_dims]
    first, second = (gather_queries(part) for part in z.chunk(2))
    loss = nt_xent(first, second, temperature=cfg.temperature)  # 4, 5, 6
    alignment, cosine = _cosines(first.detach(), second.detach())  # 7
    n_rows = len(first)
    tally = state.memory["tally"] + n_rows * torch.stack([alignment, cosine, torch.ones_like(cosine)])
    state = dataclasses.replace(state, memory={**state.memory, "tally": tally})
    logs = {"alignment": alignment, "cosine_of_others": cosine}
    return StepResult(sum_gradients(loss), len(batch.rows), state, logs)


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Say so when all images look alike to the projector, and no less so than an epoch ago."""
    alignment, cosine, n = state.memory["tally"].tolist()
    alignment, cosine, logs = alignment / max(n, 1), cosine / max(n, 1), dict[str, Any]()
    if cosine > COLLAPSED and epoch > 0 and cosine >= state.memory["cosine"]:
        logs["warnings"] = [
            f"the projections have collapsed: views of different images have a mean cosine of {cosine:.3f} after epoch "
            f"{epoch + 1}; lower lr, or give more and more varied images"
        ]
    memory = {"tally": torch.zeros_like(state.memory["tally"]), "alignment": alignment, "cosine": cosine}
    return dataclasses.replace(state, memory=memory), logs


predict = plain_logits  # [B, 1], of a last layer without training: SimCLR sees no labels


def _cosines(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of the two views of an image, and of views of different images; 0 if there is one image.

    Args:
      first, second: [B, D] float32, unit norm.

    Example: the two images lie at right angles, their own views at 0 and at 90 degrees.
      >>> alignment, cosine = _cosines(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
      >>> alignment.item(), cosine.item()
      (0.5, 0.5)
    """
    n = len(first)
    own = (first * second).sum(1)
    among = first.sum(0) + second.sum(0)
    # Of the 4 B^2 pairs of views, 2B are a view with itself and 2B the two views of an image.
    others = among.dot(among) - 2 * n - 2 * own.sum()
    return own.mean(), others / max(4 * n * (n - 1), 1)
