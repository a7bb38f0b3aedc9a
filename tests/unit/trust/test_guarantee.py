"""Promises hold as often as they say, whatever is wrong and wherever it hides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import beta, hypergeom

from labelwright.trust import guarantee
from labelwright.trust.guarantee import BY_CLASS_FROM, Promise, _ends, _steps, _strata, draw, enough, promise


def asked(
    trust: np.ndarray,
    wrong: np.ndarray,
    n: int,
    *,
    error: float = 0.05,
    seed: int = 0,
    labels: np.ndarray | None = None,
) -> Promise:
    """The promise of a sample of n."""
    sample, seen = draw(trust, n, error=error, seed=seed), np.zeros(len(trust), bool)
    seen[sample.rows] = True
    labels = np.zeros(len(trust), np.int64) if labels is None else labels
    return promise(trust, labels, sample.stratum, seen, wrong, error=error)


def test_draw__each_row_once_and_every_stratum_as_it_says() -> None:
    trust = np.random.default_rng(0).beta(8, 1, 1000)
    sample = draw(trust, 150, seed=3)
    assert len(set(sample.rows.tolist())) == 150
    assert np.array_equal(draw(trust, 150, seed=3).rows, sample.rows)
    assert not np.array_equal(draw(trust, 150, seed=4).rows, sample.rows)
    rates = np.bincount(sample.stratum[sample.rows]) / np.bincount(sample.stratum)
    assert rates.min() > 0  # every label can be drawn
    sure = [trust[sample.stratum == h].mean() for h in range(len(rates))]
    assert sure == sorted(sure, reverse=True)


@pytest.mark.parametrize("n", [1, 7, 99, 100, 1000])
def test_draw__few_rows_or_all(n: int) -> None:
    sample = draw(np.linspace(0.5, 1, 100), n)
    assert len(set(sample.rows.tolist())) == min(n, 100)


@pytest.mark.parametrize("region", [0.5, 1.0])
def test_steps__no_placement_of_wrong_labels_passes_more_often_than_allowed(region: float) -> None:
    sizes, numbers = _strata(120, 60, region)
    sizes, numbers = (np.array([part.sum() for part in np.array_split(x, 3)]) for x in (sizes, numbers))
    stratum = np.repeat(np.arange(3), sizes)
    steps = _steps(np.arange(1, 121), stratum, numbers / sizes, 0.1, 0.05, 0)
    assert steps
    for size, most in steps:
        inside = np.bincount(stratum[:size], minlength=3)
        too_many = int(0.1 * size + 1e-9) + 1
        for placed in itertools.product(*(range(min(too_many, m) + 1) for m in inside)):
            if sum(placed) != too_many:
                continue
            drawn = np.ones(1)
            for m, k, d in zip(sizes, numbers, placed, strict=True):  # of a set that parts a stratum too
                drawn = np.convolve(drawn, hypergeom.pmf(np.arange(d + 1), m, d, k))
            assert drawn[: most + 1].sum() <= 0.05


def test_steps__as_clopper_and_pearson_for_one_large_stratum() -> None:
    n_labels, n = 100_000, 200
    steps = _steps(np.array([n_labels]), np.zeros(n_labels, np.int64), np.array([n / n_labels]), 0.05, 0.05, 0)
    allowed = max(k for k in range(n) if beta.ppf(0.95, k + 1, n - k) <= 0.05)
    assert steps == [(n_labels, allowed)]


def test_promise__over_redraws_it_is_broken_at_most_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee, "_region", lambda *_: (1.0, 0.0))  # the same every time, and slow
    trust = np.sort(np.random.default_rng(0).beta(8, 1, 600))[::-1].copy()
    for at in (300, 590):  # wrong labels as dense as can be just beyond the promise, and as late
        wrong = np.zeros(600, bool)
        wrong[at - int(0.1 * at) - 1 : at] = True
        broken = [
            found.accepted.any() and wrong[found.accepted].mean() > 0.1
            for found in (asked(trust, wrong, 80, error=0.1, seed=seed) for seed in range(200))
        ]
        assert np.mean(broken) <= 0.05 + 2 * 0.0154  # two standard errors of 200 draws at 5%


def test_promise__all_right_all_wrong_and_none_verified() -> None:
    trust = np.linspace(1, 0.9, 1000)
    right = np.zeros(1000, bool)
    assert asked(trust, right, 200).accepted.mean() >= 0.9
    assert asked(trust, right, 1000).accepted.all()  # everything was looked at
    assert not asked(trust, ~right, 200).accepted.any()
    few = asked(trust, right, 20)  # 59 right ones are the fewest that show 5%
    assert not few.accepted.any()
    assert np.isinf(few.thresholds).all()
    none = promise(trust, np.zeros(1000, int), np.zeros(1000, int), right, right, error=0.05)
    assert (none.n_verified, none.accepted.any()) == (0, False)
    nothing = promise(np.zeros(0), np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool), error=0.05)
    assert nothing.accepted.shape == (0,)


def test_promise__labels_that_could_not_be_drawn_are_not_accepted() -> None:
    trust, right = np.linspace(1, 0.5, 1000), np.zeros(1000, bool)
    sample, seen = draw(trust, 200), np.zeros(1000, bool)
    seen[sample.rows] = True
    stratum = np.where(np.arange(1000) < 100, -1, sample.stratum)
    found = promise(trust, np.zeros(1000, int), stratum, seen, right, error=0.05)
    assert not found.accepted[:100].any()
    assert found.accepted[100:].any()


def test_promise__labels_of_one_trust_are_not_parted() -> None:
    trust = np.round(np.linspace(1, 0.5, 1000), 1)
    wrong = np.arange(1000) >= 800
    found = asked(trust, wrong, 300)
    assert 0 < found.accepted.sum() < 1000
    assert all(len(set(found.accepted[trust == value])) == 1 for value in np.unique(trust))
    assert _ends(-trust).tolist() == np.cumsum(np.unique(-trust, return_counts=True)[1]).tolist()


def test_promise__a_class_that_is_wrong_and_trusted_goes_to_review() -> None:
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(4), 1000)
    trust = np.where(labels == 3, 0.99, generator.uniform(0.9, 1, 4000))
    wrong = (labels == 3) & (generator.random(4000) < 0.6)
    found = asked(trust, wrong, 2 * BY_CLASS_FROM, labels=labels)
    assert found.by_class
    assert found.accepted[labels < 3].mean() > 0.3
    assert wrong[found.accepted].mean() <= 0.05
    assert np.isinf(found.thresholds).tolist() == [False, False, False, True]


def test_promise__of_the_others_where_labels_held_back_make_it() -> None:
    trust = np.linspace(1, 0.5, 1200)
    wrong, apart = np.arange(1200) >= 900, np.random.default_rng(0).permutation(1200) < 200
    found = promise(trust, np.zeros(1200, int), np.zeros(1200, int), apart, wrong, error=0.05, n_apart=200)
    others = found.accepted & ~apart
    assert others.sum() > 300
    assert wrong[others].mean() <= 0.05


def test_enough__more_for_less_error() -> None:
    trust = np.linspace(0.9, 1, 2000)
    at_five, at_two = (enough(trust, 40, error=error) for error in (0.05, 0.02))
    assert at_five is not None
    assert at_two is not None
    assert at_five[0] < at_two[0]
    assert 0 < at_two[1] < at_five[1] <= 1
