"""Which of several classifiers to keep."""

import numpy as np
import pytest
import torch

from labelwright.metrics.choice import choose

TITLES = {"own": "Own", "other": "Other", "third": "Third"}
TRUTH = torch.arange(300) % 3


def right_on(share: float, *, seed: int = 0, classes: tuple[int, ...] = (0, 1, 2)) -> torch.Tensor:
    """Answers right on that share of the rows of some classes, and on all rows of the others."""
    draw = np.random.default_rng(seed)
    wrong = torch.from_numpy(draw.random(len(TRUTH)) >= share) & torch.isin(TRUTH, torch.tensor(classes))
    return torch.where(wrong, (TRUTH + 1) % 3, TRUTH)


def test_choose__a_clear_winner_takes_the_place() -> None:
    found = choose("own", TITLES, {"own": right_on(0.5), "other": right_on(0.9), "third": right_on(0.7)}, TRUTH)
    assert found.name == "other"
    assert found.scores["other"] == pytest.approx(float((right_on(0.9) == TRUTH).float().mean()), abs=0.01)
    assert found.why.startswith("Other is right on 86.0% of")


def test_choose__within_one_standard_error_the_own_one_stays() -> None:
    own = right_on(0.8)
    other = own.clone()
    other[(own != TRUTH).nonzero()[0]] = TRUTH[(own != TRUTH).nonzero()[0]]  # one more is right
    assert choose("own", TITLES, {"own": own, "other": other}, TRUTH).name == "own"
    assert "within chance of Other" in choose("own", TITLES, {"own": own, "other": other}, TRUTH).why
    better = choose("own", TITLES, {"own": other, "other": own}, TRUTH)
    assert better.name == "own"
    assert "within chance of Other" in better.why
    other[(own != TRUTH).nonzero()[:4]] = TRUTH[(own != TRUTH).nonzero()[:4]]  # four more: two standard errors
    assert "more than Other" in choose("own", TITLES, {"own": other, "other": own}, TRUTH).why


def test_choose__frames_of_one_track_count_as_one() -> None:
    tracks = torch.arange(300) // 30
    own = (TRUTH + 1) % 3
    other = torch.where(tracks < 2, TRUTH, own)  # right on two tracks of ten, and never wrong where the own one is not
    own = torch.where(tracks == 9, TRUTH, own)  # which is right on one more
    answers = {"own": own, "other": other}
    assert choose("own", TITLES, answers, TRUTH).name == "other"
    assert choose("own", TITLES, answers, TRUTH, groups=torch.arange(300)).name == "other"
    assert choose("own", TITLES, answers, TRUTH, groups=tracks).name == "own"


def test_choose__classes_count_alike() -> None:
    truth = torch.cat([torch.zeros(900, dtype=torch.int64), torch.ones(10, dtype=torch.int64)])
    common = torch.zeros(910, dtype=torch.int64)  # right on 99% of the rows, on half of the classes
    both = truth.clone()
    both[:200] = 1
    found = choose("own", TITLES, {"own": common, "other": both}, truth)
    assert found.name == "other"
    assert found.scores == {"own": 0.5, "other": pytest.approx(0.5 + 700 / 1800, abs=1e-5)}


def test_choose__rows_that_one_was_not_asked_about_do_not_count() -> None:
    own, other = right_on(0.9), right_on(0.9, seed=1)
    other[:150] = -1
    own[:150] = (TRUTH[:150] + 1) % 3  # all wrong, where the other was not asked
    assert choose("own", TITLES, {"own": own, "other": other}, TRUTH).name == "own"


def test_choose__nothing_to_compare() -> None:
    for answers in ({}, {"other": TRUTH}, {"own": TRUTH}):
        found = choose("own", TITLES, answers, TRUTH)
        assert (found.name, found.scores) == ("own", {})
