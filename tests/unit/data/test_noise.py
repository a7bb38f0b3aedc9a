"""Noise: every rate within four binomial standard errors of what was asked, on fixed seeds; sets well formed."""

import tracemalloc

import numpy as np
import pytest
import torch

from labelwright.data import noise
from labelwright.errors import ConfigError
from labelwright.types import Candidates

N, C = 20_000, 8
LABELS = np.random.default_rng(0).integers(0, C, size=N)


def dense(sets: Candidates, n_classes: int) -> np.ndarray:
    """[N, C] bool by a slow loop; checks the form of each row on the way."""
    table = np.zeros((len(sets), n_classes), dtype=bool)
    for i in range(len(sets)):
        row = sets.of(i).tolist()
        assert row == sorted(set(row))
        table[i, row] = True
    return table


def within(observed: float, p: float, n: int) -> bool:
    """Whether a share seen in n draws is within four standard errors of p."""
    return abs(observed - p) <= 4 * np.sqrt(p * (1 - p) / n)


def weak_model(n: int = N, n_classes: int = C, seed: int = 1) -> np.ndarray:
    """[N, C] float32 rows that sum to 1: a softmax of noise."""
    z = np.random.default_rng(seed).normal(size=(n, n_classes)) * 1.5
    p = np.exp(z - z.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def test_symmetric__rate_and_evenness():
    noisy = noise.symmetric(LABELS, n_classes=C, rate=0.4, seed=2)
    wrong = noisy != LABELS
    assert within(wrong.mean(), 0.4, N)
    shift = np.bincount((noisy - LABELS)[wrong] % C, minlength=C)
    assert shift[0] == 0
    for k in range(1, C):  # each other class a seventh
        assert within(shift[k] / wrong.sum(), 1 / (C - 1), wrong.sum())
    np.testing.assert_array_equal(noisy, noise.symmetric(LABELS, n_classes=C, rate=0.4, seed=2))
    assert not np.array_equal(noisy, noise.symmetric(LABELS, n_classes=C, rate=0.4, seed=3))


def test_symmetric__limits():
    labels = np.array([0, 1, -1, 2])
    np.testing.assert_array_equal(noise.symmetric(labels, n_classes=3, rate=0, seed=0), labels)
    noisy = noise.symmetric(labels, n_classes=3, rate=1, seed=0)
    assert ((noisy != labels) == [True, True, False, True]).all()
    assert noise.symmetric([0, 1], n_classes=2, rate=1, seed=0).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="no wrong label"):
        noise.symmetric([0], n_classes=1, rate=0.1, seed=0)


@pytest.mark.parametrize(("q", "eta"), [(0.1, 0.0), (0.5, 0.3), (0.03, 1.0)])
def test_candidate_sets__rates(q, eta):
    sets = noise.candidate_sets(LABELS, n_classes=C, q=q, eta=eta, seed=4)
    assert (sets.classes.dtype, sets.offsets.dtype, len(sets)) == (torch.int32, torch.int64, N)
    table = dense(sets, C)
    # a set that already has all the classes keeps its truth: probability q^(C-1)
    missing = eta * (1 - q ** (C - 1))
    assert within(1 - table[np.arange(N), LABELS].mean(), missing, N)
    # size: the wrong labels that entered, plus the truth or what replaced it
    n_wrong = table.sum(1) - 1
    assert (n_wrong >= 0).all()
    assert within(n_wrong.mean() / (C - 1), q, N * (C - 1))
    # and wrong labels enter independently: the variance of their number is binomial
    variance = (C - 1) * q * (1 - q)
    kurtosis_term = (1 - 6 * q * (1 - q)) / ((C - 1) * q * (1 - q)) + 2  # Var(s^2) = variance^2 * (excess + 2) / N
    assert abs(n_wrong.var() - variance) < 4 * variance * np.sqrt(kurtosis_term / N)


def test_candidate_sets__swapped_label_is_even_over_the_outside():
    # truth 0 of 5, wrong labels enter with q = 0.5, all swapped: by symmetry each wrong class is in as often
    n = 40_000
    table = dense(noise.candidate_sets(np.zeros(n, dtype=int), n_classes=5, q=0.5, eta=1.0, seed=5), 5)
    full = 0.5**4  # no class outside: the truth stays
    assert within(table[:, 0].mean(), full, n)
    expected = (2 + 1 - full) / 4  # mean size without the truth is 4 * 0.5 wrong + 1 new, over 4 classes
    for k in range(1, 5):
        assert within(table[:, k].mean(), expected, n)
    # with two wrong labels in, the new one is each of the two others half the time
    sets = dense(noise.candidate_sets(np.full(n, 2), n_classes=4, q=0.0, eta=1.0, seed=6), 4)
    assert sets.sum() == n
    for k in (0, 1, 3):
        assert within(sets[:, k].mean(), 1 / 3, n)


def test_candidate_sets__limits():
    everything = noise.candidate_sets([0, 3, -1], n_classes=4, q=1.0, eta=1.0, seed=0)
    assert [everything.of(i).tolist() for i in range(3)] == [[0, 1, 2, 3], [0, 1, 2, 3], []]
    one_class = noise.candidate_sets([0, 0], n_classes=1, q=0.5, eta=0.5, seed=0)
    assert [one_class.of(i).tolist() for i in range(2)] == [[0], [0]]
    empty = noise.candidate_sets(np.empty(0, dtype=int), n_classes=4, q=0.5, eta=0.5, seed=0)
    assert (len(empty), empty.classes.numel()) == (0, 0)


def test_candidate_sets__chunks_change_nothing_in_law(monkeypatch):
    labels = np.where(np.arange(N) % 10 == 0, -1, LABELS)
    monkeypatch.setattr(noise, "CHUNK", 997)
    table = dense(noise.candidate_sets(labels, n_classes=C, q=0.2, eta=0.5, seed=7), C)
    known = labels >= 0
    assert not table[~known].any()
    assert within((table.sum(1)[known] - 1).mean() / (C - 1), 0.2, known.sum() * (C - 1))
    missing = 0.5 * (1 - 0.2 ** (C - 1))
    assert within(1 - table[known, labels[known]].mean(), missing, known.sum())


def test_candidate_sets__memory_goes_with_the_members():
    n, n_classes = 50_000, 1000
    labels = np.arange(n) % n_classes
    tracemalloc.start()
    sets = noise.candidate_sets(labels, n_classes=n_classes, q=0.001, eta=0.1, seed=0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert within((sets.classes.numel() - n) / (n * (n_classes - 1)), 0.001, n * (n_classes - 1))
    assert peak_bytes < n * n_classes / 2  # half of what a table of single bytes would take


@pytest.mark.parametrize("rate", [0.3, 0.6])  # no probability cut at 1, and many
def test_instance_dependent__mean_rate_and_each_probability(rate):
    probs = weak_model()
    table = dense(noise.instance_dependent(probs, LABELS, n_classes=C, rate=rate, seed=8), C)
    assert table[np.arange(N), LABELS].all()
    # the oracle: bisection for s on a float64 table, one entry after the other
    wrong = probs.astype(np.float64)
    wrong[np.arange(N), LABELS] = 0
    liked = wrong / wrong.max(1, keepdims=True)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * liked).sum() < rate * N * (C - 1) else (low, middle)
    p = np.minimum(1, low * liked)
    table[np.arange(N), LABELS] = False
    assert abs(table.sum() - rate * N * (C - 1)) < 4 * np.sqrt((p * (1 - p)).sum())
    for bottom in np.arange(0.05, 0.95, 0.1):  # labels of like probability enter with that probability
        bucket = (p >= bottom) & (p < bottom + 0.1)
        expected, variance = p[bucket].sum(), (p * (1 - p))[bucket].sum()
        assert variance > 50
        assert abs(table[bucket].sum() - expected) < 4 * np.sqrt(variance)
    assert table[p == 1].all()


def test_instance_dependent__eta_unknown_rows_and_sparse_input(monkeypatch):
    monkeypatch.setattr(noise, "CHUNK", 3001)
    probs = weak_model()
    labels = np.where(np.arange(N) % 5 == 0, -1, LABELS)
    top = np.argsort(-probs, axis=1)[:, :4]
    sparse = np.take_along_axis(probs, top, axis=1)
    sets = noise.instance_dependent(
        torch.from_numpy(sparse), labels, n_classes=C, rate=0.2, eta=0.25, seed=9, classes=top
    )
    table = dense(sets, C)
    known = labels >= 0
    assert not table[~known].any()
    assert within(1 - table[known, labels[known]].mean(), 0.25, known.sum())
    n_entries = known.sum() * (C - 1)
    assert within((table.sum(1)[known] - 1).mean() / (C - 1), 0.2, n_entries)
    # without swaps, nothing outside the model's top four gets in but the truth
    table = dense(noise.instance_dependent(sparse, labels, n_classes=C, rate=0.2, seed=9, classes=top), C)
    allowed = np.zeros((N, C), dtype=bool)
    np.put_along_axis(allowed, top, True, axis=1)
    allowed[known, labels[known]] = True
    assert not (table & ~allowed).any()


def test_instance_dependent__unreachable_rate_and_bad_input():
    probs = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    full = noise.instance_dependent(probs, [0, 0], n_classes=3, rate=0.25, seed=0)  # 1 of 4: the only liked one
    assert [full.of(i).tolist() for i in (0, 1)] == [[0], [0, 1]]
    none = noise.instance_dependent(probs, [0, 0], n_classes=3, rate=0.0, seed=0)
    assert [none.of(i).tolist() for i in (0, 1)] == [[0], [0]]
    with pytest.raises(ConfigError, match="the weak model gives 1 any"):
        noise.instance_dependent(probs, [0, 0], n_classes=3, rate=0.5, seed=0)
    with pytest.raises(ConfigError, match=r"shape \(2, 3\) for 3 labels"):
        noise.instance_dependent(probs, [0, 0, 0], n_classes=3, rate=0.1, seed=0)
    with pytest.raises(ConfigError, match="negative or missing"):
        noise.instance_dependent(probs - 0.1, [0, 0], n_classes=3, rate=0.1, seed=0)
    with pytest.raises(ConfigError, match="classes go from 0 to 3"):
        noise.instance_dependent(probs, [0, 0], n_classes=3, rate=0.1, seed=0, classes=[[0, 1, 3], [0, 1, 2]])


def test_instance_dependent_labels__exact_rate_and_direction():
    probs = weak_model()
    labels = np.where(np.arange(N) % 4 == 0, -1, LABELS)
    noisy = noise.instance_dependent_labels(probs, labels, n_classes=C, rate=0.3, seed=10)
    wrong = noisy != labels
    assert wrong.sum() == round(0.3 * 15_000)
    assert (noisy[labels < 0] == -1).all()
    # the model likes what it was given far better than chance among the wrong ones
    liked = probs.astype(np.float64)
    known = labels >= 0
    liked[known, labels[known]] = 0
    mass = liked.sum(1)
    liked /= mass[:, None]
    given = liked[wrong, noisy[wrong]]
    expected, variance = (liked[wrong] ** 2).sum(1), (liked[wrong] ** 3).sum(1) - (liked[wrong] ** 2).sum(1) ** 2
    assert abs(given.sum() - expected.sum()) < 4 * np.sqrt(variance.sum())
    assert expected.mean() > 1.5 / (C - 1)
    # and rows where it doubts the truth are spoiled more often
    doubt = np.argsort(mass[known])
    n_third = doubt.size // 3
    assert wrong[known][doubt[-n_third:]].mean() > 1.3 * wrong[known][doubt[:n_third]].mean()


def test_instance_dependent_labels__dense_and_sparse_agree_and_errors():
    probs = weak_model(n=500)
    labels = LABELS[:500]
    columns = np.tile(np.arange(C), (500, 1))
    a = noise.instance_dependent_labels(probs, labels, n_classes=C, rate=0.5, seed=1)
    b = noise.instance_dependent_labels(probs, labels, n_classes=C, rate=0.5, seed=1, classes=columns)
    np.testing.assert_array_equal(a, b)
    everything = noise.instance_dependent_labels(probs, labels, n_classes=C, rate=1.0, seed=1)
    assert (everything != labels).all()
    with pytest.raises(ConfigError, match="2 wrong labels, the weak model allows 1"):
        noise.instance_dependent_labels([[1.0, 0.0], [0.5, 0.5]], [0, 0], n_classes=2, rate=1.0, seed=0)


def test_arguments__out_of_range():
    with pytest.raises(ConfigError, match=r"q is 1\.5"):
        noise.candidate_sets([0], n_classes=2, q=1.5, eta=0, seed=0)
    with pytest.raises(ConfigError, match="eta is -1"):
        noise.candidate_sets([0], n_classes=2, q=0.5, eta=-1, seed=0)
    with pytest.raises(ConfigError, match="rate is 2"):
        noise.symmetric([0], n_classes=2, rate=2, seed=0)
    with pytest.raises(ConfigError, match="label 5 with 3 classes"):
        noise.symmetric([0, 5], n_classes=3, rate=0.1, seed=0)
    with pytest.raises(ConfigError, match="type float64"):
        noise.symmetric([0.5], n_classes=3, rate=0.1, seed=0)
