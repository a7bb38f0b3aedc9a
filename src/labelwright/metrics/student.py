"""Whether a student is better than the pseudolabels it learned from, as far as that shows without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labelwright.labels.chunks import chunks_of
from labelwright.labels.first_guess import overturned, overturned_warning
from labelwright.metrics.agreement import Watch
from labelwright.types import Task


def judge_student(task: Task, answers: Tensor, watch: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """Score the answers of a student, and compare them with the guesses.

    Args:
      answers: [N] int64.
      watch: of `metrics.agreement.Watch`, with the agreement of the guesses; None = there are no clusters.

    Returns: score_deployed, the agreement with the clusters or else the share of answers inside the sets (NaN if all
      sets are full);
      score_guesses, where there are clusters; overturned_frac, see labels.first_guess. And sentences: that it agrees
      less with the clusters than the guesses, or else that it contradicts many of them.

    Example:
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.arange(4), torch.tensor([0, 0, 1], dtype=torch.int32))
      >>> task = Task(torch.full((3,), -1), ("cat", "dog"), sets)
      >>> found, sentences = judge_student(task, torch.tensor([0, 0, 1]), None)
      >>> found, sentences
      ({'overturned_frac': 0.0, 'score_deployed': 1.0}, [])
    """
    contradicted = overturned(task, answers)
    found: dict[str, Any] = {"overturned_frac": contradicted.frac}
    if watch is None:
        n_inside = n_counted = 0
        for rows in chunks_of(torch.arange(len(answers), device=answers.device), task.n_classes):
            possible = task.possible(rows)
            counts = ~possible.all(1)
            n_inside += int(possible.gather(1, answers[rows][:, None])[counts].sum())
            n_counted += int(counts.sum())
        found["score_deployed"] = n_inside / n_counted if n_counted else math.nan
        return found, overturned_warning(task.class_names, contradicted)
    clusters = Watch.from_dict(watch)
    score, of_guesses = clusters.agreement(answers), clusters.zero_shot_agreement
    found |= {"score_deployed": score, "score_guesses": of_guesses}
    if score >= of_guesses:
        return found, overturned_warning(task.class_names, contradicted)
    return found, [
        f"the student agrees less with the clusters of the images ({score:.3f}) than the guesses it learned from "
        f"({of_guesses:.3f}): it may be worse than its annotator"
    ]
