import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from labelwright.labels import purify
from labelwright.labels.purify import (
    division_losses,
    min_max,
)


def divide(losses: Tensor, *, threshold: float = 0.5, **how: Any) -> SimpleNamespace:
    clean, means = purify.divide(losses, **how)
    return SimpleNamespace(clean_probability=clean, is_reliable=clean > threshold, means=means)


def two_groups(n_low=300, n_high=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    low = 0.25 + 0.08 * torch.randn(n_low, generator=draw)
    high = 0.7 + 0.1 * torch.randn(n_high, generator=draw)
    return torch.cat([low, high]).clamp(0, 1)


def peaked(seed=0):
    """A narrow group near 0.1 and a wide one around 0.5, which reaches to both ends."""
    draw = torch.Generator().manual_seed(seed)
    low = 0.1 + 0.01 * torch.randn(700, generator=draw)
    return torch.cat([low, 0.5 + 0.25 * torch.randn(300, generator=draw)]).clamp(0, 1)


def em(values):
    """The mixture by plain loops in float64: two means, then rounds of EM until one gains less than 0.01 nats."""
    centres = [min(values), max(values)]
    for _ in range(20):
        is_low = [abs(v - centres[0]) <= abs(v - centres[1]) for v in values]
        shares = [[float(low), float(not low)] for low in is_low]
        centres = gaussians(values, shares)[0]
    fits = []
    while len(fits) < 2 or abs(fits[-1] - fits[-2]) >= 0.01:
        shares, fit = memberships(values, *gaussians(values, shares))
        fits.append(fit)
    assert len(fits) < 10
    found = gaussians(values, shares)
    return found[0], [row[0] for row in memberships(values, *found)[0]]


def gaussians(values, shares):
    pairs = list(zip(values, shares, strict=True))
    sizes = [sum(row[k] for row in shares) for k in range(2)]
    means = [sum(row[k] * v for v, row in pairs) / sizes[k] for k in range(2)]
    variances = [sum(row[k] * (v - means[k]) ** 2 for v, row in pairs) / sizes[k] + 5e-4 for k in range(2)]
    return means, variances, [size / len(values) for size in sizes]


def memberships(values, means, variances, weights):
    shares, fit = [], 0.0
    for v in values:
        density = [
            weights[k] * math.exp(-((v - means[k]) ** 2) / (2 * variances[k])) / math.sqrt(2 * math.pi * variances[k])
            for k in range(2)
        ]
        shares.append([d / sum(density) for d in density])
        fit += math.log(sum(density)) / len(values)
    return shares, fit


def test_division_losses__equals_loops():
    probs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(dim=1)
    candidates = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    candidates[0], candidates[1] = True, False
    candidates[2:, 3] = True
    best = [
        max((p for p, is_in in zip(row, inside, strict=True) if is_in), default=1e-8)
        for row, inside in zip(probs.tolist(), candidates.tolist(), strict=True)
    ]
    assert division_losses(probs, candidates).tolist() == pytest.approx([-math.log(p) for p in best], rel=1e-12)


def test_division_losses__bounds():
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0000001, 0.0]])
    losses = division_losses(probs, torch.tensor([[True, False]]).expand(3, 2))
    assert losses.tolist() == pytest.approx([0, -math.log(1e-8), 0], rel=1e-6)
    assert (losses >= 0).all()
    assert division_losses(probs.half(), torch.ones(3, 2, dtype=torch.bool)).dtype == torch.float32


def test_min_max__range_and_rows_left_out():
    losses = torch.tensor([3.0, math.nan, 1.0, 100.0, 2.0])
    where = torch.tensor([True, True, True, False, True])
    assert min_max(losses, where=where).tolist() == [1, 0, 0, 0, 0.5]
    assert min_max(torch.full((3,), 7.0)).tolist() == [0, 0, 0]
    assert min_max(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize("seed", [0, 3])
def test_divide__equals_plain_em(seed):
    losses = two_groups(seed=seed)
    means, clean = em(losses.tolist())
    division = divide(losses, seed=seed)
    assert division.means == pytest.approx(means, rel=1e-9)
    assert division.clean_probability.tolist() == pytest.approx(clean, abs=1e-6)  # float32
    assert division.is_reliable.tolist() == [p > 0.5 for p in clean]


def test_divide__between_the_means_it_is_the_posterior_of_the_mixture():
    losses = peaked()
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
    column = losses.double().numpy()[:, None]
    posterior = mixture.fit(column).predict_proba(column)[:, mixture.means_[:, 0].argmin()]
    division = divide(losses)
    low, high = division.means
    assert division.means == pytest.approx(sorted(mixture.means_[:, 0].tolist()), rel=1e-6)
    inside = ((losses >= low) & (losses <= high)).numpy()
    assert inside.sum() > 400
    np.testing.assert_allclose(division.clean_probability.numpy()[inside], posterior[inside], atol=1e-5)
    # the wide group takes the lowest losses of all; not so here
    assert (posterior[(losses < 0.01).numpy()] < 0.5).all()
    assert (losses < 0.01).sum() > 5
    assert division.is_reliable[losses < low].all()
    assert (division.clean_probability[losses < low] > 0.99).all()


def test_divide__high_losses_stay_unreliable_where_the_low_group_is_the_wide_one():
    losses = 1 - peaked()
    division = divide(losses)
    at_high = division.clean_probability[(losses - division.means[1]).abs().argmin()]
    assert at_high < 0.1
    beyond = division.clean_probability[losses > division.means[1]]
    assert beyond.max() <= at_high + 1e-3
    assert (losses > 0.99).sum() > 5


def test_divide__threshold():
    losses = two_groups()
    strict, loose = divide(losses, threshold=0.99), divide(losses, threshold=0.01)
    assert torch.equal(strict.clean_probability, loose.clean_probability)
    assert strict.is_reliable.sum() < loose.is_reliable.sum()
    assert torch.equal(strict.is_reliable, strict.clean_probability > 0.99)


def test_divide__order_does_not_matter():
    losses = two_groups()
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))
    assert torch.equal(divide(losses[order]).clean_probability, divide(losses).clean_probability[order])


def test_divide__rows_left_out_are_as_if_not_there():
    losses = two_groups()
    where = torch.arange(len(losses)) % 3 > 0
    poisoned = losses.masked_fill(~where, 50.0)
    poisoned[0] = math.nan
    division, alone = divide(poisoned, where=where), divide(losses[where])
    assert torch.equal(division.clean_probability[where], alone.clean_probability)
    assert division.means == alone.means
    assert not division.is_reliable[~where].any()
    assert not division.clean_probability[~where].any()


def test_divide__a_loss_that_is_not_finite_is_not_reliable():
    losses = two_groups()
    losses[:2] = torch.tensor([math.nan, math.inf])
    division = divide(losses)
    assert division.is_reliable[:4].tolist() == [False, False, True, True]
    nothing = divide(torch.full((3,), math.nan))
    assert nothing.is_reliable.tolist() == [False] * 3
    assert nothing.means == (0, 0)


@pytest.mark.parametrize("losses", [[], [0.4], [0.25] * 50, [0.3, 0.3 + 1e-7] * 20, [0.5, 0.54] * 20])
def test_divide__nothing_to_divide_is_all_reliable(losses):
    division = divide(torch.tensor(losses, dtype=torch.float64))
    assert division.is_reliable.tolist() == [True] * len(losses)
    assert division.clean_probability.dtype == torch.float32
    assert division.means[0] == division.means[1] == pytest.approx(sum(losses) / max(len(losses), 1), abs=1e-9)


def test_divide__a_mixture_with_an_empty_group_is_one_group(monkeypatch):
    fitted = SimpleNamespace(
        weights_=np.array([1e-16, 1.0]),
        means_=np.array([[0.0], [0.4]]),
        covariances_=np.full((2, 1, 1), 5e-4),
        fit=lambda _: None,
    )
    monkeypatch.setattr("sklearn.mixture.GaussianMixture", lambda **_: fitted)
    division = divide(two_groups())
    assert division.is_reliable.all()
    fitted.weights_ = np.array([0.5, 0.5])
    assert not divide(two_groups()).is_reliable.all()


@pytest.mark.parametrize(
    "losses",
    [
        [0.0, 1.0],
        [0.0] * 99 + [1.0],
        [0.0] + [1.0] * 99,
        [0.5] * 99 + [0.5001],
        [0.0] * 50 + [1.0] * 50,
        torch.linspace(0, 1, 200).tolist(),
        (torch.linspace(0, 1, 200) ** 8).tolist(),
        [0.0, 1e8] * 10,
        torch.linspace(0, 1e-3, 50).tolist(),
    ],
)
def test_divide__odd_losses_give_numbers_and_never_favour_the_higher(losses):
    losses = torch.tensor(losses)
    for seed in range(3):
        division = divide(losses, seed=seed)  # any warning is an error here
        assert ((division.clean_probability >= 0) & (division.clean_probability <= 1)).all()
        assert division.means[0] <= division.means[1]
        in_order = division.is_reliable[losses.argsort(stable=True)].long()
        assert (in_order.diff() <= 0).all()
        assert division.is_reliable.any()


def test_divide__more_rows_than_are_fitted(monkeypatch):
    losses = two_groups(6000, 4000)
    losses[-1] = 1.0
    whole = divide(losses)
    sizes = []

    class Counted(GaussianMixture):
        def fit(self, x):
            sizes.append((len(x), x.min(), x.max()))
            return super().fit(x)

    monkeypatch.setattr("sklearn.mixture.GaussianMixture", Counted)
    monkeypatch.setattr(purify, "ROWS_MAX", 1000)
    thinned = divide(losses)
    assert sizes == [(1000, losses.min().item(), 1.0)]
    assert thinned.means == pytest.approx(whole.means, abs=0.002)
    assert (thinned.is_reliable != whole.is_reliable).sum() <= 10
    assert len(thinned.is_reliable) == 10_000


def test_divide__does_not_converge_in_silence(recwarn):
    """Overlapping groups, so that ten rounds are not enough; pytest would turn the warning into an error."""
    losses = torch.rand(2000, generator=torch.Generator().manual_seed(0)) ** 3
    mixture = GaussianMixture(2, max_iter=1, tol=1e-9, reg_covar=5e-4, random_state=0)
    with pytest.warns(UserWarning, match="did not converge"):
        mixture.fit(losses.double().numpy()[:, None])
    before = len(recwarn)
    divide(losses)
    assert len(recwarn) == before
