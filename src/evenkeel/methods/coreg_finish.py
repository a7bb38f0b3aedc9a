"""The end of Co-Reg: one network of two, and a look at whether it is better than the guesses it learned from."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from evenkeel.encoders.heads import MlpHead
from evenkeel.labels.watch import Watch
from evenkeel.types import Passes, State, Task


def finish(by: str, task: Task, state: State, passes: Passes, warnings: list[str]) -> dict[str, Any]:
    """Make one network of two; where it agrees less with the images than the guesses do, say so, and go back if it can.

    Without labels "better" can only mean: agrees more with the clusters of frozen features, or from pixels, is more
    often inside the candidate sets.
    """
    told: dict[str, Any] = {"deployed": by, "warnings": warnings}
    main, peer = state.nets["main"], state.nets.get("peer")
    if peer is not None and by == "average":
        told |= {f"score_{name}": _score(task, state, passes, name) for name in ("main", "peer")}
        _average_into(main, peer)
    elif peer is not None and by == "better":
        scores = {name: _score(task, state, passes, name) for name in ("main", "peer")}
        told |= {f"score_{name}": score for name, score in scores.items()}
        if scores["peer"] > scores["main"]:
            main.load_state_dict(peer.state_dict())
    told["score_deployed"] = _score(task, state, passes, "main")
    if "watch" not in state.memory:
        return told
    of_guesses = Watch.from_dict(state.memory["watch"]).zero_shot_agreement
    told["score_guesses"] = of_guesses
    if told["score_deployed"] < of_guesses:
        can_go_back = task.concepts is not None and _go_back(state, task)
        told["deployed"] = "annotator" if can_go_back else by
        warnings.append(
            f"the networks agree less with the clusters of the images ({told['score_deployed']:.3f}) than the guesses "
            f"they learned from ({of_guesses:.3f}): they may be worse than their annotator"
            + ("; the annotator's own classifier is kept instead" if can_go_back else "; compare before you use them")
        )
    return told


def _score(task: Task, state: State, passes: Passes, name: str) -> float:
    """How well a network's answers fit, without labels: with clusters, or with the candidate sets."""
    predicted, n_inside, n_guessed = torch.zeros_like(task.labels), 0, 0
    for rows, logits in passes(name, torch.arange(len(task.labels))):
        predicted[rows] = logits.argmax(1)
        possible = task.possible(rows)
        told = ~possible.all(1)
        n_inside += int(possible.gather(1, predicted[rows][:, None])[told].sum())
        n_guessed += int(told.sum())
    if "watch" in state.memory:
        return Watch.from_dict(state.memory["watch"]).agreement(predicted)
    return n_inside / max(n_guessed, 1)


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
