"""First guesses, and how many of them answers overturn, against loops over rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tiny
from labelwright.labels.first_guess import (
    Overturned,
    first_guess,
    first_guesses,
    has_first_guess,
    overturned,
    overturned_warning,
)
from labelwright.train.seeds import generator
from labelwright.types import Task


def test_first_guess__takes_the_largest_share() -> None:
    guesses = torch.rand(50, 6, generator=generator(0, "guesses"))
    assert torch.equal(first_guess(guesses, torch.arange(50)), guesses.argmax(1))


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_first_guess__equal_shares_lean_to_no_class_and_depend_on_the_row_alone(n_classes: int) -> None:
    n = 6000
    rows = torch.arange(n)
    found = first_guess(torch.full((n, n_classes), 1 / n_classes), rows)
    share = torch.bincount(found, minlength=n_classes) / n
    assert (share - 1 / n_classes).abs().max() < 4 * (1 / n_classes / n) ** 0.5  # four standard deviations
    as_listed = (found == rows % n_classes).float().mean()  # rows that lie in the order of their classes say nothing
    assert abs(as_listed - 1 / n_classes) < 4 * (1 / n_classes / n) ** 0.5
    some = torch.tensor([5000, 3, 77])
    assert torch.equal(first_guess(torch.full((3, n_classes), 0.1), some), found[some])


def test_first_guess__only_among_equal_ones() -> None:
    guesses = torch.tensor([[0.4, 0.0, 0.4, 0.2]]).expand(400, 4)
    assert set(first_guess(guesses, torch.arange(400)).tolist()) == {0, 2}


def test_has_first_guess() -> None:
    task = tiny.candidate_task_of((14, 8, 4))
    sizes = task.possible(torch.arange(26)).sum(1).tolist()
    assert sizes[4] == 3  # an empty set
    assert has_first_guess(task.guesses(torch.arange(26))).tolist()[4] is False
    assert has_first_guess(task.guesses(torch.arange(26))).tolist()[0] is True  # verified
    assert has_first_guess(torch.ones(2, 1)).tolist() == [False, False]  # one class: nothing to prefer


def test_first_guesses__of_all_rows_and_verified_labels_first() -> None:
    task = tiny.candidate_task_of((14, 8, 4))
    expected = [int(first_guess(task.guesses(torch.tensor([i])), torch.tensor([i]))) for i in range(26)]
    found = first_guesses(task)
    assert found.tolist() == expected
    assert torch.equal(found[task.labels >= 0], task.labels[task.labels >= 0])


def test_overturned__counts_no_verified_image_and_none_without_guesses() -> None:
    task = tiny.candidate_task_of((14, 8, 4))
    answers = torch.arange(26) % 3
    guessed, answered, wrong = [0] * 3, [0] * 3, 0
    for i, answer in enumerate(answers.tolist()):
        row = torch.tensor([i])
        guesses = task.guesses(row)
        if task.labels[i] >= 0 or len(set(guesses[0].tolist())) == 1:
            continue
        first = int(first_guess(guesses, row))
        guessed[first] += 1
        answered[answer] += 1
        wrong += first != answer
    assert 0 < wrong < sum(guessed) < 26
    found = overturned(task, answers)
    assert (found.guessed.tolist(), found.answered.tolist()) == (guessed, answered)
    assert found.frac == pytest.approx(wrong / sum(guessed))


def test_overturned__nothing_to_contradict() -> None:
    truth = torch.tensor([0, 1, 1])
    verified = Task(truth, ("a", "b"), tiny.sets_of(F.one_hot(truth, 2).bool()))
    full = Task(torch.full((3,), -1), ("a", "b"), tiny.sets_of(torch.ones(3, 2, dtype=torch.bool)))
    assert [overturned(task, 1 - truth).frac for task in (verified, full)] == [0.0, 0.0]


def test_overturned_warning__where_only_one_direction_is_among_the_largest_changes() -> None:
    changed = Overturned(torch.tensor([10, 10, 10, 10, 100]), torch.tensor([35, 35, 35, 35, 0]), 0.7)
    (reported,) = overturned_warning("abcde", changed)
    assert (
        "most where it was e (100 guesses, 0 answers), most where it becomes a (10 guesses, 35 answers) and b"
        in reported
    )
    (reported,) = overturned_warning("ab", Overturned(torch.tensor([5, 5]), torch.tensor([5, 5]), 1.0))
    assert "of 100% of the images: corrections" in reported
    assert overturned_warning("ab", Overturned(torch.tensor([9, 1]), torch.tensor([8, 2]), 0.2)) == []
