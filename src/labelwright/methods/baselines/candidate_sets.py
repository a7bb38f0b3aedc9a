"""What the methods on candidate sets share: settings, the network, labels and targets of the images, a step's result.

A verified label is the only candidate of its image; rows that say nothing are left out of the losses. One optimizer and
schedule for all, to compare losses and not schedules. Targets are one number per candidate, in the order of
`types.Candidates.classes`, never N x C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from labelwright.errors import ConfigError
from labelwright.losses.candidates import candidate_targets
from labelwright.train.plans import steps_for
from labelwright.train.processes import gather_rows, mean_share
from labelwright.train.settings import Count, TrainSettings
from labelwright.types import Batch, BuildNet, EpochPlan, State, StepResult, Stream, Task


@dataclass(frozen=True, kw_only=True)
class CandidateSettings(TrainSettings):
    """What all baselines that learn from candidate sets share."""

    epochs: int = 100  # passes over all images, with candidates or without (papers: 200 to 800, from pixels)
    batch_size: int = 256  # rows per step
    lr: float = 0.01  # peak learning rate, from pixels; 0.05 suits a head on stored embeddings
    weight_decay: float = 5e-4  # of every trained parameter
    warmup_epochs: float = 0.0  # linear from 0 to lr
    head_width: Count = 256  # of the residual layer under the last one, on frozen features
    view: Literal["auto", "clean", "weak"] = "auto"  # first view; auto: clean on frozen features, weak else


def check_task(task: Task, name: str) -> None:
    """Refuse a task of which no image has a label or a candidate.

    Raises: ConfigError.

    Example:
      >>> check_task(Task(torch.tensor([-1, -1]), ("cat", "dog")), "proden")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: proden learns from candidate labels, and no image has any
        fix: give a column `candidates`, or make it with labelwright annotate
    """
    if not bool((task.labels >= 0).any()) and (task.candidates is None or len(task.candidates.classes) == 0):
        raise ConfigError(
            f"{name} learns from candidate labels, and no image has any",
            fix="give a column `candidates`, or make it with labelwright annotate",
        )


def new_net(cfg: CandidateSettings, task: Task, build_net: BuildNet) -> nn.Module:
    """A network with something to learn: a residual layer under the last one where the features are frozen."""
    if not build_net.is_frozen:
        return build_net(task.n_classes)
    return build_net(task.n_classes, head="mlp", hidden=cfg.head_width)


def put_annotator_in(nets: Sequence[nn.Module], task: Task) -> bool:
    """Make networks on frozen features answer, summed, as the annotator that compared these features with the names.

    Args:
      nets: with heads of `new_net`; the first becomes the annotator, the others say nothing.
      task: holds the text features.

    Returns: whether there is such an annotator; False leaves the networks as they are.
    """
    if task.concepts is None or task.n_novel > 0:
        return False
    for i, net in enumerate(nets):
        head: Any = cast(Any, net).head
        for layer in (head.from_hidden, head.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if i == 0:
            head.linear.weight.data.copy_(task.concepts.logit_scale * task.concepts.feats)
    return True


def setup(cfg: CandidateSettings, task: Task, build_net: BuildNet, *, name: str, has_targets: bool = False) -> State:
    """One network, and if wanted targets of every candidate; ``name`` is the method's, for what is refused."""
    check_task(task, name)
    memory: dict[str, Any] = {"targets": even_targets(task)} if has_targets else {}
    return State(nets={"main": new_net(cfg, task, build_net)}, memory={"is_frozen": build_net.is_frozen, **memory})


def first_view(cfg: CandidateSettings, state: State) -> str:
    """The view of ``cfg``, "auto" resolved by what `setup` has put into the state.

    Example:
      >>> first_view(CandidateSettings(), State({}, memory={"is_frozen": True}))
      'clean'
    """
    return cfg.view if cfg.view != "auto" else "clean" if state.memory["is_frozen"] else "weak"


def plan_of_all(
    cfg: CandidateSettings, task: Task, state: State, epoch: int, more_views: tuple[str, ...] = ()
) -> EpochPlan:
    """Every image about once, in its first view and more."""
    rows = torch.arange(len(task.labels))
    stream = Stream(rows, cfg.batch_size, (first_view(cfg, state), *more_views))
    return EpochPlan({"train": stream}, steps_for(len(rows), cfg.batch_size))


def even_targets(task: Task) -> Tensor:
    """Targets to begin with: the candidates of an image share it evenly, those of weight 0 have none of it.

    Returns: [nnz] float32, one number per candidate, on the device of the labels.

    Example:
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.tensor([0, 2]), torch.tensor([0, 2], dtype=torch.int32))
      >>> task = Task(torch.tensor([-1]), ("cat", "dog", "owl"), sets)
      >>> read_targets(task, even_targets(task), torch.tensor([0])).tolist()
      [[0.5, 0.0, 0.5]]
    """
    sets = task.candidates
    if sets is None:
        return torch.zeros(0, device=task.labels.device)
    targets = torch.ones(len(sets.classes)) if sets.weights is None else (sets.weights > 0).float()
    return targets.to(task.labels.device)


def read_targets(task: Task, targets: Tensor, rows: Tensor) -> Tensor:
    """Targets of some rows: a verified label alone, else the row's own, even where there are no candidates.

    Args:
      targets: [nnz] float, of `even_targets` or `write_targets`.
      rows: [B] int64.

    Returns: [B, C] float32, rows sum to 1.

    Example: see `write_targets`.
    """
    sets = task.candidates
    if sets is None:
        return task.guesses(rows)
    return dataclasses.replace(task, candidates=dataclasses.replace(sets, weights=targets)).guesses(rows)


def write_targets(task: Task, targets: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """Targets with some rows renewed, by what every process has of its share of the batch.

    Args:
      targets: [nnz] float; stays as it is.
      rows: [B] int64; of a row that comes twice the last counts.
      new: [B, C] float; only what stands at candidates is kept.

    Returns: [nnz] float32.

    Example:
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.tensor([0, 2, 4]), torch.tensor([0, 2, 1, 2], dtype=torch.int32))
      >>> task = Task(torch.tensor([-1, -1]), ("cat", "dog", "owl"), sets)
      >>> new = torch.tensor([[0.0, 0.75, 0.25]])
      >>> targets = write_targets(task, even_targets(task), torch.tensor([1]), new)
      >>> read_targets(task, targets, torch.tensor([0, 1])).tolist()
      [[0.5, 0.0, 0.5], [0.0, 0.75, 0.25]]
    """
    sets = task.candidates
    rows, new = gather_rows(rows), gather_rows(new.detach().float())
    if sets is None:
        return targets
    ordered, order = rows.sort(stable=True)
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    rows, new = ordered[is_last], new[order[is_last]]
    offsets = sets.offsets.to(rows.device)
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    own = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)  # [n] row of each candidate written
    at = (starts - lengths.cumsum(0) + lengths)[own] + torch.arange(len(own), device=rows.device)
    classes = sets.classes.to(rows.device)[at].long()
    return targets.index_copy(0, at, new[own, classes])


def result_of(
    task: Task, state: State, batch: Batch, logits: Sequence[Tensor], loss: Tensor, kept: Tensor
) -> StepResult:
    """A step's result: the mean loss over all processes, and the targets renewed if there are any.

    Args:
      logits: [B, C] of each view; new targets are the geometric mean of their probabilities inside the sets.
      kept: [B] bool, rows that the loss counts.
    """
    possible, memory = task.possible(batch.rows), dict(state.memory)
    if "targets" in memory:
        with torch.no_grad():
            agreed = torch.stack([each.float().log_softmax(1) for each in logits]).mean(0).softmax(1)
            targets = candidate_targets(agreed, possible)
        memory["targets"] = write_targets(task, memory["targets"], batch.rows, targets)
    is_inside = possible.gather(1, logits[0].argmax(1, keepdim=True))[kept].float()
    logs = {"inside_frac": is_inside.sum() / max(len(is_inside), 1)}
    loss = loss * mean_share(kept.sum().float())
    return StepResult(loss, len(is_inside), dataclasses.replace(state, memory=memory), logs)
