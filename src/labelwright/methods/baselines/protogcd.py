"""ProtoGCD: one prototype per class, named or not; hard pseudo-labels for the sure, soft ones for the rest.

 1  cosines with the prototypes, of two weak views; p = softmax(cos / 0.1); teacher q = softmax(cos / t), and t falls
 2  target of a view from q of the other: its argmax for the surest share of the unlabelled, which grows; else q
 3  L = (1 - w) CE(target, p) + w CE(p, label)
 4    + e KL(mean p || prior) + s log mean over pairs of prototypes exp(cos / 0.1): spread predictions, and prototypes
 5  predict with the student's cosines

Source: Ma et al. 2025 (arXiv 2504.03755), by its text: unified prototypes, dual-level pseudo-labels (line 2) and both
regularisers (line 4). Not taken: its contrastive losses on a tuned backbone, which teach a last layer nothing, and its
estimate of the number of classes; line 2 ranks by the highest probability. Departures as simgcd: open_world.py,
cosines.py (start, end, prior).
Command: labelwright fit features.npz --novel auto --method protogcd --out RUN
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.losses.classification import cross_entropy, soft_cross_entropy
from labelwright.losses.soft_targets import linear_ramp
from labelwright.methods import open_world
from labelwright.methods.baselines import cosines, simgcd
from labelwright.train.processes import gather_rows, sum_gradients
from labelwright.train.settings import AtLeast0, Share
from labelwright.types import Batch, BuildNet, Clock, State, StepResult, Task


@dataclass(frozen=True, kw_only=True)
class Config(cosines.CosineSettings):
    """Settings of protogcd; `prior_weight` None = 2, or 4 on frozen features."""

    supervised_weight: Share = 0.35  # w
    sure_frac: Share = 0.8  # share of the unlabelled images of a batch with hard targets at the end; 0 at first
    separation_weight: AtLeast0 = 0.1  # s


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """One network of cosines."""
    return open_world.state_of(cfg, task, build_net, cosines.cosine_net(cfg, task, build_net), "protogcd")


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 4."""
    net: Any = state.nets["main"]
    views, own = open_world.rows_of_both(batches)
    students = open_world.gathered(net(torch.cat(views)).float().view(2, len(own), -1))
    labels = gather_rows(own)
    sure_frac = cfg.sure_frac * linear_ramp(clock.epoch, length_epochs=simgcd.TEACHER_RAMP_FRAC * clock.n_epochs)
    teachers = [simgcd.sharpened(logits, clock) for logits in students]  # 1
    targets = [dual_targets(q, labels < 0, sure_frac=sure_frac) for q in teachers]  # 2
    taught = (soft_cross_entropy(students[0], targets[1]) + soft_cross_entropy(students[1], targets[0])) / 2
    both, w = torch.cat(students), cfg.supervised_weight
    supervised = cross_entropy(both, labels.repeat(2))
    spread = cosines.divergence_of_mean(both, state.memory["prior"])
    apart = separation(net.head.weight)
    prior_weight = cosines.prior_weight_of(cfg, state, pixels=2.0, frozen=4.0)
    loss = (1 - w) * taught + w * supervised + prior_weight * spread + cfg.separation_weight * apart  # 3, 4
    logs = {"loss_taught": taught.detach(), "loss_labelled": supervised.detach()}
    logs |= {"loss_prior": spread.detach(), "loss_separation": apart.detach()}
    return StepResult(sum_gradients(loss), len(own), state, logs)


def dual_targets(probs: Tensor, hidden: Tensor, *, sure_frac: float) -> Tensor:
    """Line 2: one-hot for the surest share of the hidden rows, the probabilities themselves for all others.

    Args:
      probs: [B, C] float, rows sum to 1.
      hidden: [B] bool, the unlabelled rows.
      sure_frac: 0 to 1, of these.

    Example:
      >>> probs = torch.tensor([[0.6, 0.4], [0.1, 0.9], [1.0, 0.0]])
      >>> dual_targets(probs, torch.tensor([True, True, False]), sure_frac=0.5)[:2].tolist()
      [[0.6000000238418579, 0.4000000059604645], [0.0, 1.0]]
    """
    sure, best = probs.max(1)
    n_sure = (sure_frac * hidden.sum().double()).round()
    rank = sure.masked_fill(~hidden, -1.0).argsort(descending=True, stable=True).argsort()
    return torch.where((rank < n_sure)[:, None], F.one_hot(best, probs.shape[1]).to(probs.dtype), probs)


def separation(prototypes: Tensor) -> Tensor:
    """Line 4: how near prototypes [C, D] are to each other, scalar: log mean over pairs of exp(cosine / 0.1).

    Example: two that are orthogonal.
      >>> separation(torch.eye(2)).item()
      0.0
    """
    z = F.normalize(prototypes.float(), dim=1)
    if len(z) == 1:
        return z.sum() * 0
    pairs = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    sims = cosines.SCALE * (z @ z.T)[pairs]
    return sims.logsumexp(0) - math.log(len(sims))


RECIPE = dataclasses.replace(simgcd.RECIPE, Config=Config, setup=setup, step=step)
