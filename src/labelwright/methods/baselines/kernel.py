"""Kernel logistic regression on frozen features: borders between classes may bend.

 1  z = (f - m) / s: the features centred, one scale for all; l: at most `MOST_IMAGES` of the labelled images
 2  k_j = exp(-|z - l_j|^2 / v), v the median of the squared distances between them
 3  x = K^(-1/2) k, K the nearness of the l to one another: the length of a weight on x is that of the function of z
    that it makes, so that the penalty asks for smooth ones (Nystroem)
 4  a convex head on x with logit adjustment, its penalty by cross-validation                  (methods/frozen_heads.py)

Meant for features that were measured and not learned. Of more than `MOST_ROWS` labelled images a sample is learned
from.

Source: Williams and Seeger 2000, "Using the Nystroem method to speed up kernel machines" (NeurIPS 13); the adjustment
is that of Menon et al. 2021 (arXiv 2007.07314).
Command: labelwright fit feats.npz --method kernel --out RUN
Measured: beside the answers of docs/results/choices.csv, where it is one of the references. The median, `MOST_IMAGES`
and line 3 were chosen on scikit-learn's digits, CIFAR-10 and GTSRB (features of a small CLIP's image tower).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import KernelHead
from labelwright.methods.baselines import la
from labelwright.methods.frozen_heads import FrozenRecipe, FrozenSettings
from labelwright.methods.recipe import check_is_pretrained
from labelwright.train.convex import Linear
from labelwright.train.cross_validation import folds_of
from labelwright.train.scaling import centre_and_scale, scaled
from labelwright.train.seeds import generator
from labelwright.types import BuildNet, State, Task

Config = la.FrozenConfig
MOST_IMAGES = 1000
MOST_ROWS = 20_000
LEAST_SHARE = 1e-6  # of the largest eigenvalue of K; smaller ones are rounding


class KernelRecipe(FrozenRecipe):
    """Line 4, on inputs of its own."""

    has_own_inputs = True

    def rows_of(self, labels: Tensor) -> Tensor:
        """[n] int64, ascending."""
        known = super().rows_of(labels)
        if len(known) <= MOST_ROWS:
            return known
        return known[folds_of(labels[known], None, seed=0, limit=MOST_ROWS)[0].to(known.device)]

    def setup(self, cfg: FrozenSettings, task: Task, build_net: BuildNet) -> State:
        """A head on the nearness to images, still to be found."""
        check_is_pretrained(build_net)
        n_images = min(MOST_IMAGES, len(self.rows_of(self.labels_of(task))))
        return State(nets={"main": build_net(task.n_classes, head="kernel", hidden=max(1, n_images))})

    def inputs(self, state: State, feats: Tensor) -> tuple[Tensor, Callable[[Linear], Linear]]:
        """Lines 1 to 3: x [N, R], centred, of unit scale."""
        head: KernelHead = cast(Any, state.nets["main"]).head
        mean, scale = centre_and_scale(feats)
        head.mean.copy_(mean)
        head.scale.copy_(scale)
        some = torch.randperm(len(feats), generator=generator(0, "kernel"))[: len(head.images)].to(feats.device)
        head.images.copy_((feats[some].float() - mean) / scale)
        far = torch.cdist(head.images, head.images).square()
        between = far[far > 0]
        if len(between):
            head.width.copy_(between.median())
        values, vectors = torch.linalg.eigh(torch.exp(-far / head.width).double())
        root = (vectors / values.clamp(min=LEAST_SHARE * float(values.max())).sqrt()).float()
        given = scaled(torch.cat([head.near(block) @ root for block in torch.split(feats, 8192)]))

        def as_given(found: Linear) -> Linear:
            plain = given.plain(found)
            weight = plain.weight / given.scale
            return Linear(weight @ root.T, plain.bias - weight @ given.mean)

        return given.z, as_given


RECIPE = KernelRecipe(Config, la.FROZEN.fit)
