"""SoftMatch: FixMatch whose every pseudo-label counts, by how its confidence compares with those so far.

 1  q = softmax f(weak view), no gradient; q' aligned to the class shares of the labels      Sec. 3.3
 2  m, v = running mean and variance of max q', over steps                                   Eq. (7), (8)
 3  w = exp(-(max q' - m)^2 / (2 v / 4)) where max q' < m, else 1                            Eq. (6), departure 1
 4  L = CE(f(weak view of a labelled image), its label)                                      Eq. (1)
 5    + weight * mean over unlabelled of w CE(f(strong view), argmax q)                      Eq. (2)

Source: Chen et al. 2023 (arXiv 2301.10921). Departures
 1  the width of the Gaussian is half the running deviation, as in the authors' code (n_sigma = 2).
 2  aligned to the class shares of the labelled images, where the paper aligns to even shares.
 3  sizes of steps and the moving average of the weights as of fixmatch.
Command: labelwright fit photos/ --method softmatch --out RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.losses.classification import cross_entropy
from labelwright.methods import semi_supervised
from labelwright.methods.baselines import fixmatch
from labelwright.train.processes import gather_rows
from labelwright.train.settings import Positive, ShareBelow1
from labelwright.types import Batch, BuildNet, Clock, State, StepResult, Task


@dataclass(frozen=True, kw_only=True)
class Config(semi_supervised.SemiSupervisedSettings):
    """Settings of softmatch."""

    n_sigma: Positive = 2.0  # the deviation is divided by this: larger counts unsure answers less (authors' code)
    confidence_decay: ShareBelow1 = 0.99  # per step, of the mean and variance of the confidence (Chen 2023: 0.999)


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """As fixmatch; confidence starts at that of an even answer, with a deviation of 1 (Sec. 3.2)."""
    start = {"confidence_mean": torch.tensor(1 / task.n_classes), "confidence_variance": torch.tensor(1.0)}
    device = task.labels.device
    return semi_supervised.setup(cfg, task, build_net, **{key: value.to(device) for key, value in start.items()})


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 5."""
    supervised, seen, state, logs = semi_supervised.both(cfg, state, batches)  # 1, 4
    confidence = seen.aligned.max(1).values
    every = gather_rows(confidence)
    keep, memory = cfg.confidence_decay, dict(state.memory)
    variance = every.var() if len(every) > 1 else torch.zeros_like(every[0])
    memory["confidence_mean"] = keep * memory["confidence_mean"] + (1 - keep) * every.mean()  # 2
    memory["confidence_variance"] = keep * memory["confidence_variance"] + (1 - keep) * variance
    mean, variance = memory["confidence_mean"], memory["confidence_variance"]
    weights = truncated_gaussian(confidence, mean, variance / cfg.n_sigma**2)  # 3
    each = cross_entropy(seen.strong, seen.probs.argmax(1), reduce="none")
    taught = (weights * each).mean()  # 5
    return semi_supervised.added_up(
        cfg,
        batches,
        supervised,
        taught,
        dataclasses.replace(state, memory=memory),
        {**logs, "mean_weight": weights.mean(), "confidence": confidence.mean()},
    )


def truncated_gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """exp(-(x - mean)^2 / (2 variance)) where x < mean, else 1.

    Args:
      x: [B] float.   mean: scalar.   variance: scalar >= 0.

    Source: Chen et al. 2023 (arXiv 2301.10921), Eq. (6).

    Example: one deviation below the mean, and above it.
      >>> weights = truncated_gaussian(torch.tensor([0.4, 0.9]), torch.tensor(0.5), torch.tensor(0.01))
      >>> [round(w, 4) for w in weights.tolist()]
      [0.6065, 1.0]
    """
    below = (x - mean).clamp(max=0.0)
    return torch.exp(-below.square() / (2 * variance.clamp(min=1e-8)))


RECIPE = dataclasses.replace(fixmatch.RECIPE, Config=Config, setup=setup, step=step)
