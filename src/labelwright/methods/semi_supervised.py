"""What methods share that learn from a few labels and from their own answers on all images; no class name is read.

A student is trained; "main", the moving average of its weights, answers and is what a run saves. Pseudo-labels are
the student's answers on weak views, brought towards the class shares of the labelled images.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from labelwright.losses.classification import cross_entropy
from labelwright.methods.balanced_start import balanced_start, starts_balanced
from labelwright.methods.method import Budget
from labelwright.methods.recipe import Begun
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_rows
from labelwright.train.settings import AtLeast0, Count, ShareBelow1, TrainSettings
from labelwright.types import Average, Batch, BuildNet, EpochPlan, Network, Passes, State, StepResult, Stream, Task

AVERAGED_FRAC = 0.05
"""Of the steps, over which the averaged weights reach back at most: a short run must leave its start."""


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedSettings(TrainSettings):
    """What all of them read."""

    epochs: int = 1000  # passes over all images: more than there is time for, mostly
    batch_size: int = 32  # labelled images per step, over all processes (Sohn 2020: 64)
    unlabelled_ratio: Count = 3  # images without their label per labelled one in a step (Sohn 2020: 7)
    lr: float = 0.03  # peak learning rate (Sohn 2020)
    nesterov: bool = True  # look ahead along the momentum (Sohn 2020)
    weight_decay: float = 5e-4  # of every trained parameter (Sohn 2020)
    unlabelled_weight: AtLeast0 = 1.0  # of the pseudo-label loss
    average_decay: ShareBelow1 = 0.999  # per step, of the weights that give the answers (Sohn 2020); less in short runs
    align: bool = True  # bring pseudo-labels towards the class shares of the labelled images (Berthelot 2020)
    align_decay: ShareBelow1 = 0.99  # per step, of the mean answer (Berthelot 2020: the last 128 steps)


def setup(cfg: SemiSupervisedSettings, task: Task, build_net: BuildNet, **memory: Any) -> State:
    """The student and its average; the mean answer starts at the class shares of the labelled images.

    Args:
      memory: what a method remembers besides.
    """
    student = build_net(task.n_classes)
    n_steps = cfg.epochs * _steps_per_epoch(cfg, len(task.labels))
    decay = min(cfg.average_decay, max(0.0, 1 - 1 / max(1.0, AVERAGED_FRAC * n_steps)))
    prior = (task.counts + 1) / (task.counts + 1).sum()  # one more of each: of few labels the shares are uncertain
    starts = starts_balanced(build_net)
    return State(
        nets={"student": student, "main": copy.deepcopy(student)},
        averages={"main": Average("student", decay)},
        memory={"prior": prior, "mean_answer": prior.clone(), "starts": starts, **memory},
    )


def begin(cfg: SemiSupervisedSettings, task: Task, state: State, passes: Passes) -> Begun:
    """On a pretrained network that goes on learning, the head starts balanced on its features; see `balanced_start`."""
    return balanced_start(task, state, passes, nets=("student", "main")) if state.memory["starts"] else (state, {})


def plan(cfg: SemiSupervisedSettings, task: Task, state: State, epoch: int) -> EpochPlan:
    """Every image once in a weak and a strong view, its label unseen; labelled images over and over beside them."""
    labelled, every = (task.labels >= 0).nonzero().flatten().cpu(), torch.arange(len(task.labels))
    streams = {
        "labelled": Stream(labelled, cfg.batch_size),
        "unlabelled": Stream(every, cfg.batch_size * cfg.unlabelled_ratio, ("weak", "strong")),
    }
    return EpochPlan(streams, _steps_per_epoch(cfg, len(every)))


def passes_per_epoch(cfg: SemiSupervisedSettings, budget: Budget) -> float:
    """Images that an epoch passes through the network, forward and back; forward alone counts a third.

    Example: 300 images in steps of 10 labelled and 30 others, of which weak views go forward alone.
      >>> budget = Budget(n_images=300, n_labelled=50, is_stored=False, is_cpu=False)
      >>> passes_per_epoch(SemiSupervisedSettings(batch_size=10, unlabelled_ratio=3), budget)
      500.0
    """
    return _steps_per_epoch(cfg, budget.n_images) * cfg.batch_size * (1 + cfg.unlabelled_ratio * 4 / 3)


@dataclass(frozen=True)
class Seen:
    """What a pseudo-label loss looks at in a step."""

    probs: Tensor  # [B, C] float32 answers on weak views, rows sum to 1, no gradient
    aligned: Tensor  # [B, C] the same, aligned; ``probs`` themselves where nothing is aligned
    strong: Tensor  # [B, C] logits of the strong views of the same images


def both(
    cfg: SemiSupervisedSettings, state: State, batches: Mapping[str, Batch]
) -> tuple[Tensor, Seen, State, dict[str, Tensor | float]]:
    """The loss on labelled images, what there is to see of the others, the state that has seen them, and logs."""
    net = cast(Network, state.nets["student"])
    labelled, (weak, strong) = batches["labelled"], batches["unlabelled"].views
    with torch.no_grad():
        probs = net(weak).float().softmax(1)
    logits = net(torch.cat([labelled.x, strong])).float()
    known, taught = logits[: len(labelled.x)], logits[len(labelled.x) :]
    mean = gather_rows(probs).mean(0)
    mean_answer = cfg.align_decay * state.memory["mean_answer"] + (1 - cfg.align_decay) * mean
    state = dataclasses.replace(state, memory={**state.memory, "mean_answer": mean_answer})
    aligned = align(probs, prior=state.memory["prior"], mean_answer=mean_answer) if cfg.align else probs
    loss = cross_entropy(known, labelled.labels)
    return loss, Seen(probs, aligned, taught), state, {"loss_labelled": loss.detach()}


def align(probs: Tensor, *, prior: Tensor, mean_answer: Tensor) -> Tensor:
    """Answers times prior over mean answer, each row brought to sum 1.

    Args:
      probs: [B, C] float, rows sum to 1.   prior: [C] > 0, sums to 1.   mean_answer: [C] >= 0, sums to 1.

    Source: Berthelot et al. 2020 (ReMixMatch, arXiv 1911.09785), Sec. 3.1.

    Example: the first class is predicted three times as often as its prior says.
      >>> probs = torch.tensor([[0.75, 0.25]])
      >>> align(probs, prior=torch.tensor([0.5, 0.5]), mean_answer=torch.tensor([0.75, 0.25])).tolist()
      [[0.5, 0.5]]
    """
    ratio = probs * (prior / mean_answer.clamp(min=1e-6))
    return ratio / ratio.sum(1, keepdim=True)


def added_up(
    cfg: SemiSupervisedSettings,
    batches: Mapping[str, Batch],
    supervised: Tensor,
    taught: Tensor,
    state: State,
    logs: Mapping[str, Tensor | float],
) -> StepResult:
    """Both losses, the second with its weight."""
    n_rows = len(batches["labelled"].rows) + len(batches["unlabelled"].rows)
    loss = supervised + cfg.unlabelled_weight * taught
    return StepResult(loss, n_rows, state, {**logs, "loss_unlabelled": taught.detach()})


def end_epoch(cfg: SemiSupervisedSettings, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """At the very end: say so if a class has all but vanished from the answers, or taken over."""
    if epoch + 1 < cfg.epochs or not bool((task.labels < 0).any()):
        return state, {}
    shares, prior = state.memory["mean_answer"], state.memory["prior"]
    logs: dict[str, Any] = {"mean_answer": [round(value, 4) for value in shares.tolist()]}
    c = int((shares / prior).argmax())
    if shares[c] > max(0.5, 3 * float(prior[c])):
        logs["warnings"] = [
            f"{task.class_names[c]} has taken over: it is {shares[c]:.0%} of the answers and {prior[c]:.0%} of the "
            "labels; label a few more images of the other classes, or raise confidence"
        ]
    return state, logs


def _steps_per_epoch(cfg: SemiSupervisedSettings, n_images: int) -> int:
    return steps_for(n_images, cfg.batch_size * cfg.unlabelled_ratio)
