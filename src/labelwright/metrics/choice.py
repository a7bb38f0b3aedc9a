"""Which of several classifiers to keep, by answers to images whose labels they did not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CRITERION = "balanced accuracy on labelled images that were left out"


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    name: str  # of the classifier
    why: str  # in a sentence
    scores: Mapping[str, float]  # name -> value of the criterion, of those that have one


def choose(
    own: str,
    titles: Mapping[str, str],
    answers: Mapping[str, Tensor],
    truth: Tensor,
    *,
    groups: Tensor | None = None,
) -> Choice:
    """The run's own classifier, unless another is better by more than one standard error of the difference.

    Args:
      own: name of the run's own.
      titles: name -> what to call it.
      answers: name -> answers [n] int64 to the same rows, -1 = not asked, of those that were asked.
      truth: [n] int64 labels.
      groups: [n] int64, rows of one group are right and wrong together (frames of one track); or None.

    Source: the error of whole groups is that of Liang and Zeger 1986 (Biometrika 73:1).

    Example:
      >>> truth = torch.tensor([0, 1]).repeat(50)
      >>> choice = choose("a", {"a": "A", "b": "B"}, {"a": truth * 0, "b": truth}, truth)
      >>> choice.name, choice.why
      ('b', 'B is right on 100.0% of labelled images that were left out, A on 50.0%, as a mean over the classes')
    """
    asked = truth >= 0
    for found in answers.values():
        asked = asked & (found >= 0)
    if own not in answers or len(answers) < 2 or not asked.any():
        why = f"{titles.get(own, own)} stands: no labels could be left out to hold the others against it"
        return Choice(own, why, {})
    y = truth[asked]
    counts = torch.bincount(y)
    weights = (1 / counts.clamp(min=1))[y].double() / (counts > 0).sum()  # each class counts alike
    right = {name: (found[asked] == y).double() for name, found in answers.items()}
    scores = {name: float(weights @ hits) for name, hits in right.items()}
    best = max(scores, key=lambda name: scores[name])  # the first of those that are level
    gain = scores[best] - scores[own]

    def chance_of(other: str) -> float:
        """The standard error of what an answer gains over the own one if neither is better, as McNemar."""
        better = weights * (right[other] - right[own])
        if groups is not None:
            group = torch.unique(groups[asked], return_inverse=True)[1]
            better = torch.zeros(len(group), dtype=better.dtype).index_add_(0, group, better)  # [number of groups, 0s]
        return float(better.square().sum().sqrt())

    rounded = {name: round(score, 5) for name, score in scores.items()}
    of = "of labelled images that were left out"
    if gain > 1.000001 * chance_of(best):
        why = f"{titles[best]} is right on {scores[best]:.1%} {of}, {titles[own]} on {scores[own]:.1%}"
        return Choice(best, f"{why}, as a mean over the classes", rounded)
    others = [name for name in scores if name != own]
    second = max(others, key=lambda name: scores[name])
    how = "more than" if scores[own] - scores[second] > 1.000001 * chance_of(second) else "within chance of"
    why = f"{titles[own]} is right on {scores[own]:.1%} {of}, {how} {titles[second]} on {scores[second]:.1%}"
    return Choice(own, f"{why}, as a mean over the classes", rounded)
