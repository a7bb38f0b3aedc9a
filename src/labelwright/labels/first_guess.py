"""The first guess of an image: its most probable candidate, and how often a student contradicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.labels.chunks import chunks_of
from labelwright.types import Task

OVERTURNED_FRAC = 0.25  # share of the first guesses that a student may contradict before it is reported


def has_first_guess(guesses: Tensor) -> Tensor:
    """Rows whose guesses prefer any class: neither nothing known, nor all classes alike.

    Args:
      guesses: [B, C] float, of `Task.guesses`.

    Returns: [B] bool.

    Example:
      >>> has_first_guess(torch.tensor([[0.5, 0.5], [0.75, 0.25]])).tolist()
      [False, True]
    """
    return guesses.amax(1) > guesses.amin(1)


def first_guess(guesses: Tensor, rows: Tensor) -> Tensor:
    """The class with the largest share; among equal ones a class by chance, for each row always the same.

    The first of equal ones would make sets without weights lean to the classes that are listed first.

    Args:
      guesses: [B, C] float, of `Task.guesses`.
      rows: [B] int64 rows of the training table.

    Returns: [B] int64.

    Example:
      >>> first_guess(torch.tensor([[0.0, 0.25, 0.75]]), torch.tensor([7])).tolist()
      [2]
      >>> first_guess(torch.tensor([[0.5, 0.0, 0.5]]).expand(1000, 3), torch.arange(1000)).bincount().tolist()
      [489, 0, 511]
    """
    lot = rows[:, None] * 0x9E3779B1 + torch.arange(guesses.shape[1], device=rows.device) * 0x85EBCA77
    for _ in range(2):  # a multiplicative hash of 32 bits: no generator could be asked for single rows
        lot = ((lot ^ (lot >> 16)) & 0xFFFFFFFF) * 0x45D9F3B
    lot = (lot ^ (lot >> 16)) & 0xFFFFFFFF
    return lot.masked_fill(guesses < guesses.amax(1, keepdim=True), -1).argmax(1)


def first_guesses(task: Task) -> Tensor:
    """The first guess of every image, a verified label where there is one: [N] int64, made chunk by chunk.

    Example:
      >>> first_guesses(Task(torch.tensor([1, 0]), ("cat", "dog"))).tolist()
      [1, 0]
    """
    everything = torch.arange(len(task.labels), device=task.labels.device)
    found = [first_guess(task.guesses(rows), rows) for rows in chunks_of(everything, task.n_classes)]
    return torch.cat(found)


@dataclass(frozen=True)
class Overturned:
    """First guesses against the answers of a student, over images that have a guess and are not verified."""

    guessed: Tensor  # this and the next: [C] int64, images by first guess and by answer
    answered: Tensor
    frac: float  # share of these images whose answer is not their first guess


def overturned(task: Task, answers: Tensor) -> Overturned:
    """Count the first guesses that answers contradict.

    Args:
      answers: [N] int64.

    Example: the second of two guesses is overturned, the label does not count.
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.arange(4), torch.tensor([0, 0, 0], dtype=torch.int32))
      >>> overturned(Task(torch.tensor([-1, -1, 0]), ("cat", "dog"), sets), torch.tensor([0, 1, 1])).frac
      0.5
    """
    n_classes, device = task.n_classes, task.labels.device
    guessed, answered = torch.zeros(2, n_classes, dtype=torch.int64, device=device)
    n_overturned = 0
    for rows in chunks_of(torch.arange(len(task.labels), device=device), n_classes):
        guesses = task.guesses(rows)
        counts = has_first_guess(guesses) & (task.labels[rows] < 0)
        first, now = first_guess(guesses, rows)[counts], answers[rows][counts]
        guessed += first.bincount(minlength=n_classes)
        answered += now.bincount(minlength=n_classes)
        n_overturned += int((first != now).sum())
    return Overturned(guessed, answered, n_overturned / max(int(guessed.sum()), 1))


def overturned_warning(class_names: Sequence[str], found: Overturned) -> list[str]:
    """What to report of a student that contradicts many of the first guesses, which no score without labels can judge.

    Args:
      found: of `overturned`.

    Example:
      >>> found = Overturned(torch.tensor([90, 10]), torch.tensor([50, 50]), 0.4)
      >>> print(overturned_warning(["cat", "dog"], found)[0][:108])
      the student contradicts the first guess of 40% of the images, most where it was cat (90 guesses, 50 answers)
    """
    if found.frac < OVERTURNED_FRAC:
        return []
    change = (found.answered - found.guessed)[: len(class_names)]
    moved = [c for c in change.abs().argsort(descending=True, stable=True)[:4].tolist() if change[c] != 0]
    where = ""
    for words, some in (
        (", most where it was ", [c for c in moved if change[c] < 0]),
        (", most where it becomes ", [c for c in moved if change[c] > 0]),
    ):
        shown = [
            f"{class_names[c]} ({int(found.guessed[c]):,} guesses, {int(found.answered[c]):,} answers)" for c in some
        ]
        where += words + " and ".join(shown) if shown else ""
    return [
        f"the student contradicts the first guess of {found.frac:.0%} of the images{where}: corrections or mistakes, "
        "nothing without labels can tell which; verify a few of these images, or compare both on labelled ones"
    ]
