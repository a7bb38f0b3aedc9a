"""Trust by class: rare classes are believed less than left-out labels say, common ones more, where that is clear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelwright.trust.class_shares import MOST, MOST_CLASSES, by_class


def answers(truth: Tensor, right: float, n_classes: int, seed: int) -> Tensor:
    """What a classifier that is right so often says, any other class as often."""
    draw = torch.Generator().manual_seed(seed)
    others = (truth + torch.randint(1, n_classes, truth.shape, generator=draw)) % n_classes
    return torch.where(torch.rand(truth.shape, generator=draw) < right, truth, others)


@pytest.mark.parametrize(("per_class", "most_left"), [(10, 0.6), (100, 0.5)])
def test_by_class__a_rare_class_is_believed_about_as_often_as_it_is_right(per_class: int, most_left: float) -> None:
    """One image in twenty is of class 1; of those called so about a third are."""
    off_before, off_after = [], []
    for seed in range(10):
        labels = torch.arange(2 * per_class) % 2
        images = (torch.arange(4000) < 200).long()
        answered, predicted = answers(labels, 0.9, 2, seed), answers(images, 0.9, 2, seed + 100)
        shift = by_class(labels, answered, predicted, n_classes=2)
        right = float((images[predicted == 1] == 1).float().mean())
        trust = torch.tensor(0.9).logit()  # what labels as common as one another ask for
        off_before.append(abs(0.9 - right))
        off_after.append(abs(float((trust + shift[1]).sigmoid()) - right))
        assert shift[0] > 0 > shift[1]
    assert sum(off_before) / 10 > 0.5
    assert sum(off_after) < most_left * sum(off_before)  # WEIGHT of the way


def test_by_class__classes_as_common_as_the_labels_are_left_alone() -> None:
    moved = 0
    for seed in range(20):
        labels, images = torch.arange(50) % 10, torch.arange(2000) % 10
        shift = by_class(labels, answers(labels, 0.7, 10, seed), answers(images, 0.7, 10, seed + 100), n_classes=10)
        moved += bool(shift.any())
    assert moved <= 2


def test_by_class__labels_in_groups_say_less() -> None:
    labels, images = torch.arange(20) % 2, (torch.arange(1000) < 50).long()
    answered, predicted = answers(labels, 0.9, 2, 0), answers(images, 0.9, 2, 1)
    alone, grouped = (by_class(labels, answered, predicted, n_classes=2, worth=worth) for worth in (1.0, 0.4))
    assert alone[1] < grouped[1] <= 0


def test_by_class__bounds_and_what_says_nothing() -> None:
    labels = torch.arange(400) % 2
    shift = by_class(labels, labels, (torch.arange(100_000) < 3).long(), n_classes=2)
    assert shift.isfinite().all()
    assert float(shift.abs().max()) <= MOST
    none = torch.tensor([], dtype=torch.int64)
    assert not by_class(none, none, torch.zeros(5).long(), n_classes=2).any()
    assert not by_class(labels, labels, none, n_classes=2).any()
    assert not by_class(labels, labels, torch.zeros(5).long(), n_classes=MOST_CLASSES + 1).any()
    unseen = by_class(labels, labels, torch.full((1000,), 2), n_classes=3)  # a class without a left-out label
    assert unseen.isfinite().all()
