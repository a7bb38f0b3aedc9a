"""A student against the guesses it learned from, without labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from labelwright.metrics.agreement import Watch
from labelwright.metrics.student import judge_student
from labelwright.types import Candidates, Task

TRUTH = torch.tensor(tiny.classes_of((20, 20, 20)))
N = len(TRUTH)
MERGED = torch.tensor([0, 0, 2])[TRUTH]


def a_task() -> Task:
    return Task(torch.full((N,), -1), ("a", "b", "c"), tiny.sets_of(F.one_hot(TRUTH, 3).bool()))


def test_judge_student__counts_answers_inside_sets_that_say_something() -> None:
    mask = F.one_hot(TRUTH, 3).bool()
    mask[::4] = True  # full: not counted
    mask[1] = False  # empty: neither
    labels = torch.full((N,), -1)
    labels[2] = 2  # contradicts the answers
    found, _ = judge_student(Task(labels, ("a", "b", "c"), tiny.sets_of(mask)), MERGED, None)
    counted = [i for i in range(N) if i % 4 != 0 and i != 1]
    inside = [i for i in counted if int(TRUTH[i]) != 1 and i != 2]
    assert found["score_deployed"] == pytest.approx(len(inside) / len(counted))
    assert "score_guesses" not in found


@pytest.mark.parametrize("of_guesses", [0.5, 1.0])
def test_judge_student__one_that_agrees_as_much_as_the_guesses(of_guesses: float) -> None:
    watch = Watch(torch.arange(N), TRUTH, of_guesses).to_dict()
    found, sentences = judge_student(a_task(), TRUTH, watch)
    assert found == {"overturned_frac": 0.0, "score_deployed": pytest.approx(1.0), "score_guesses": of_guesses}
    assert sentences == []


def test_judge_student__one_that_agrees_less_is_reported_and_nothing_else() -> None:
    watch = Watch(torch.arange(N), TRUTH, 0.999).to_dict()
    found, (reported,) = judge_student(a_task(), MERGED, watch)
    assert f"({found['score_deployed']:.3f}) than the guesses it learned from (0.999)" in reported
    assert found["overturned_frac"] == pytest.approx(1 / 3)
    _, (reported,) = judge_student(a_task(), MERGED, {**watch, "zero_shot_agreement": 0.0})
    assert "contradicts the first guess of 33% of the images" in reported


def test_judge_student__sets_of_every_class_say_nothing() -> None:
    sets = Candidates(torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1], dtype=torch.int32))
    task = Task(torch.full((2,), -1), ("cat", "dog"), sets)
    assert math.isnan(judge_student(task, torch.tensor([0, 1]), None)[0]["score_deployed"])
