"""The end of Co-Reg: one network of two, and a look at whether it is better than the guesses it learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from labelwright.encoders.heads import MlpHead
from labelwright.labels.first_guess import Overturned, overturned, overturned_warning
from labelwright.losses.classification import soft_cross_entropy
from labelwright.metrics.agreement import Watch
from labelwright.types import Batch, Passes, State, StepResult, Task


@dataclass(frozen=True)
class _Answers:
    """A network's answers to N images.

    Attributes:
      score: how well they fit, without labels: with clusters, or with the candidate sets.
      overturned: the first guesses that they contradict.
    """

    score: float
    overturned: Overturned


def finish(by: str, task: Task, state: State, passes: Passes, warnings: list[str]) -> dict[str, Any]:
    """Make one network of two; where it agrees less with the images than the guesses do, say so, and go back if it can.

    Without labels "better" can only mean: agrees more with the clusters of frozen features, or from pixels, is more
    often inside the candidate sets.
    """
    told: dict[str, Any] = {"deployed": by, "warnings": warnings}
    main, peer = state.nets["main"], state.nets.get("peer")
    if peer is not None and by != "distil":
        scores = {name: _answers(task, state, passes, name).score for name in ("main", "peer")}
        told |= {f"score_{name}": score for name, score in scores.items()}
        if by == "average":
            _average_into(main, peer)
        elif scores["peer"] > scores["main"]:
            main.load_state_dict(peer.state_dict())
    answers = _answers(task, state, passes, "main")
    told |= {"score_deployed": answers.score, "overturned_frac": answers.overturned.frac}
    of_guesses = Watch.from_dict(state.memory["watch"]).zero_shot_agreement if "watch" in state.memory else None
    if of_guesses is not None:
        told["score_guesses"] = of_guesses
    if of_guesses is not None and answers.score < of_guesses:
        can_go_back = task.concepts is not None and _go_back(state, task)
        told["deployed"] = "annotator" if can_go_back else by
        warnings.append(
            f"the networks agree less with the clusters of the images ({answers.score:.3f}) than the guesses "
            f"they learned from ({of_guesses:.3f}): they may be worse than their annotator"
            + ("; the annotator's own classifier is kept instead" if can_go_back else "; compare before you use them")
        )
    else:
        warnings += overturned_warning(task.class_names, answers.overturned)
    return told


def distil(state: State, batch: Batch, scale: Callable[[Tensor, Tensor], Tensor]) -> StepResult:
    """A step in which the first network learns from the mean of both, each scaled as the last division found.

    Args:
      state: with the first network as it was, "teacher".
      batch: of one view.
      scale: probabilities [B, C] of a network with mean predictions [C] to what they should be.
    """
    both = []
    for net, name in (("teacher", "main"), ("peer", "peer")):
        with torch.no_grad():
            probs = cast(Tensor, state.nets[net](batch.x)).float().softmax(1)
        both.append(scale(probs, state.memory["divisions"][name]["mean"]))
    loss = soft_cross_entropy(state.nets["main"](batch.x), torch.stack(both).mean(0))
    return StepResult(loss, len(batch.rows), state, {"distillation": loss.detach()})


def _answers(task: Task, state: State, passes: Passes, name: str) -> _Answers:
    predicted, n_inside, n_told = torch.zeros_like(task.labels), 0, 0
    for rows, logits in passes(name, torch.arange(len(task.labels))):
        predicted[rows] = logits.argmax(1)
        possible = task.possible(rows)
        told = ~possible.all(1)
        n_inside += int(possible.gather(1, predicted[rows][:, None])[told].sum())
        n_told += int(told.sum())
    score = n_inside / max(n_told, 1)
    if "watch" in state.memory:
        score = Watch.from_dict(state.memory["watch"]).agreement(predicted)
    return _Answers(score, overturned(task, predicted))


def _average_into(main: nn.Module, peer: nn.Module) -> None:
    with torch.no_grad():
        for own, others in zip(main.parameters(), peer.parameters(), strict=True):
            own.lerp_(others, 0.5)


def _go_back(state: State, task: Task) -> bool:
    """Put the annotator's class features into the last layer, under an idle trunk; False if they do not fit."""
    assert task.concepts is not None
    head: Any = cast(Any, state.nets["main"]).classifier.head
    weight = task.concepts.logit_scale * task.concepts.feats
    if not isinstance(head, MlpHead) or head.linear.weight.shape != weight.shape:
        return False
    put_in(state, "main", weight.to(head.linear.weight), torch.zeros_like(head.linear.bias))
    with torch.no_grad():
        head.from_hidden.weight.zero_()
        head.from_hidden.bias.zero_()
    return True


def put_in(state: State, name: str, weight: Tensor, bias: Tensor) -> None:
    """Put a linear classifier into a network's last layer."""
    head: Any = cast(Any, state.nets[name]).classifier.head
    linear = head.linear if isinstance(head, MlpHead) else head
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
