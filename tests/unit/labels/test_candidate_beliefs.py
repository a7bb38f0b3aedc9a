"""The first classifier out of guesses: against a float64 loop, and what it makes of guesses that fail."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from labelwright.labels import candidate_beliefs as candidate_beliefs_module
from labelwright.labels import chunks
from labelwright.labels.candidate_beliefs import (
    CandidateBeliefs,
    candidate_beliefs,
    candidate_evidence,
    estimate_prior,
    fitted,
)
from labelwright.train.seeds import generator
from labelwright.types import Task

C = 3
Array = npt.NDArray[np.float64]


def clumps(counts: tuple[int, ...], *, spread: float = 0.15, n_features: int = 6) -> tuple[Tensor, Tensor]:
    """Unit features around one direction per class, and the classes."""
    g, truth = generator(0, "clumps"), torch.tensor(tiny.classes_of(counts))
    centres = torch.linalg.qr(torch.randn(n_features, len(counts), generator=g)).Q.T
    return F.normalize(centres[truth] + spread * torch.randn(len(truth), n_features, generator=g), dim=1), truth


def a_task(truth: Tensor, *, labelled: bool = False) -> Task:
    """Weighted sets, a fifth of them without the truth, one in eleven empty; with labels on one image in seven."""
    n, rows = len(truth), torch.arange(len(truth))
    weights = torch.rand(n, C, generator=generator(0, "weights")) + 0.05
    weights[rows, truth] += 1.0
    mask = torch.rand(n, C, generator=generator(0, "mask")) < 0.5
    mask[rows, truth] = rows % 5 != 1
    mask[rows[rows % 5 == 1], (truth[rows % 5 == 1] + 1) % C] = True
    mask[rows % 11 == 4] = False
    labels = torch.where(rows % 7 == 2, truth, -1) if labelled else torch.full((n,), -1)
    mask[labels == 2] = torch.tensor([True, False, False])  # where they count for more than one
    return Task(labels, tuple("abc"), tiny.sets_of(mask, weights))


def guessed_by(classes: Tensor, n_classes: int, labels: Tensor | None = None) -> Task:
    """Sets of one class each."""
    sets = tiny.sets_of(F.one_hot(classes, n_classes).bool())
    names = tuple(f"class {c}" for c in range(n_classes))
    return Task(torch.full_like(classes, -1) if labels is None else labels, names, sets)


def answers(found: CandidateBeliefs, z: Tensor) -> Tensor:
    return (z @ found.beliefs.weight.T + found.beliefs.bias).argmax(1)


# ---- the oracle -----------------------------------------------------------------------------------------------------


def slow_fit(
    z: Array, guesses: Array, own_shares: Array, labels: list[int], *, n_iter: int, prior: list[float] | None
) -> tuple[Array, Array, Array, Array]:
    """Weight, bias, shares and miss, image by image."""
    n, d = z.shape
    n_verified = [labels.count(c) for c in range(C)]
    miss, stands_for = [0.1] * C, [1.0] * C
    if sum(n_verified):
        named_by = [sum(own_shares[i, c] for i in range(n) if labels[i] == c) for c in range(C)]
        usual = sum(named_by) / sum(n_verified)
        for c, k in enumerate(n_verified):
            missed = max(0.0, k - named_by[c] / usual)
            miss[c] = min(max((missed + 0.1) / (k + 1), 0.1), 0.99)
            stands_for[c] = max(1.0, 0.3 * (miss[c] - 0.1) / 0.9 * n / C / max(k, 1))
    mass = [1.0 if y < 0 else stands_for[y] for y in labels]
    total = sum(m * np.outer(x, x) for m, x in zip(mass, z, strict=True)) / sum(mass)
    weight, bias, ratio = np.zeros((C, d)), np.zeros(C), np.ones(C)
    for iteration in range(n_iter):
        counts, sums, named, once = np.zeros(C), np.zeros((C, d)), np.zeros(C), np.zeros(C)
        for i in range(n):
            if labels[i] >= 0:
                p = guesses[i] * stands_for[labels[i]]
            else:
                scale = 0.0 if iteration == 0 else 0.4
                score = [(1 - miss[c]) * guesses[i, c] + miss[c] / C for c in range(C)]
                f = [np.log(score[c]) + scale * (weight[c] @ z[i] + bias[c]) for c in range(C)]
                p = np.exp(np.array(f) - max(f))
                p = p / p.sum() * ratio
                p = p / p.sum()
            counts += p
            once += p / p.sum()
            sums += np.outer(p, z[i])
            named += p * guesses[i]
        if prior is not None:
            ratio = ratio * np.array(prior) * sum(mass) / counts
            ratio = ratio / ratio.mean()
        means = sums / counts[:, None]
        between = sum(counts[c] * np.outer(means[c], means[c]) for c in range(C)) / counts.sum()
        within = total - between
        within = 0.5 * within + 0.5 * np.trace(within) / d * np.eye(d)
        for c in range(C):
            weight[c] = np.linalg.inv(within) @ means[c]
            bias[c] = -weight[c] @ means[c] / 2 + (0 if prior else np.log(counts[c]))
    trusted = (named + 1) / (counts + 2)
    found_miss = np.maximum(np.clip(1 - trusted / trusted.max(), 0.1, 0.99), miss)
    shares = np.array(prior) if prior else once / once.sum()
    return weight - weight.mean(0), bias - bias.mean(), shares, found_miss


@pytest.mark.parametrize("labelled", [False, True], ids=["guesses", "guesses and labels"])
@pytest.mark.parametrize("prior", [None, [0.5, 0.3, 0.2]], ids=["shares estimated", "shares known"])
def test_candidate_beliefs__matches_a_slow_loop(
    labelled: bool, prior: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_beliefs_module, "N_ITER", 5)
    z, truth = clumps((30, 20, 12))
    task = a_task(truth, labelled=labelled)
    rows = torch.arange(len(z))
    assert task.candidates is not None
    own = task.candidates.shares(rows, C).double().numpy()
    expected = slow_fit(
        z.double().numpy(), task.guesses(rows).double().numpy(), own, task.labels.tolist(), n_iter=5, prior=prior
    )
    if prior is None:
        found = candidate_beliefs(z, task)
        b, miss = found.beliefs, found.miss
    else:
        b, miss = fitted(z, task, torch.tensor(prior))
    for name, tensor, wanted in zip(
        ("weight", "bias", "prior", "miss"), (b.weight, b.bias, b.prior, miss), expected, strict=True
    ):
        # float32 against float64, through five solutions of a linear system
        assert tensor.double().numpy() == pytest.approx(wanted, rel=1e-3, abs=2e-4), name
    assert np.abs(expected[0]).max() > 1
    assert not labelled or 0.3 * (expected[3][2] - 0.1) / 0.9 * len(z) / C / int((task.labels == 2).sum()) > 1.5
    assert (miss > 0.1).any() or not labelled  # it is not all at its least


def test_candidate_beliefs__chunks_and_half_precision_change_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, truth = clumps((30, 20, 12))
    task = a_task(truth, labelled=True)
    whole, half = candidate_beliefs(z, task), candidate_beliefs(z.half(), task)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 7 * z.shape[1])
    chunked = candidate_beliefs(z, task)
    assert torch.allclose(chunked.beliefs.weight, whole.beliefs.weight, rtol=1e-3, atol=1e-3)
    assert torch.allclose(chunked.beliefs.prior, whole.beliefs.prior, atol=1e-5)
    assert half.beliefs.weight.dtype == torch.float32
    assert torch.equal(answers(half, z), answers(whole, z))


def test_candidate_beliefs__corrects_guesses_that_the_shape_contradicts() -> None:
    z, truth = clumps((60, 60, 60))
    guessed = torch.where(torch.arange(180) % 4 == 0, (truth + 1) % C, truth)
    found = candidate_beliefs(z, guessed_by(guessed, C))
    assert (guessed == truth).float().mean() == 0.75
    assert (answers(found, z) == truth).float().mean() > 0.98


def test_candidate_beliefs__a_class_that_is_never_guessed_gets_the_images_that_fit_no_other() -> None:
    z, truth = clumps((40, 40, 40, 40))
    guessed = torch.where(truth == 3, 0, truth)
    found = candidate_beliefs(z, guessed_by(guessed, 4))
    assert (found.rarely_guessed, found.is_rebalanced) == ((3,), True)
    assert found.beliefs.prior.tolist() == [0.25] * 4
    assert (answers(found, z) == truth).float().mean() > 0.95
    assert found.miss[3] > 0.9  # its name says nothing
    assert found.miss[:3].max() < 0.5


def test_candidate_beliefs__a_rare_class_of_a_long_tail_stays_rare() -> None:
    z, truth = clumps((120, 60, 20, 3))
    found = candidate_beliefs(z, guessed_by(truth, 4))
    assert (found.rarely_guessed, found.is_rebalanced) == ((3,), False)
    assert found.beliefs.prior.tolist() == pytest.approx([120 / 203, 60 / 203, 20 / 203, 3 / 203], abs=0.01)
    assert (answers(found, z) == truth).float().mean() > 0.98


def test_candidate_beliefs__verified_images_move_a_class_that_guesses_mistake() -> None:
    # Guesses swap the last two classes. Eight labels of each tell, and only they can.
    z, truth = clumps((60, 60, 60))
    swapped = torch.tensor([0, 2, 1])[truth]
    known = torch.arange(180) % 60 < 8
    blind = candidate_beliefs(z, guessed_by(swapped, C))
    told = candidate_beliefs(z, guessed_by(swapped, C, torch.where(known, truth, -1)))
    assert (answers(blind, z) == truth).float().mean() < 0.4
    assert (answers(told, z) == truth).float().mean() > 0.9
    assert told.miss[1:].min() > 0.8
    assert told.miss[0] == pytest.approx(0.1)


@pytest.mark.parametrize("counts", [(9,), (1, 1, 1), (2, 0, 0, 0, 0), (1,)], ids=str)
def test_candidate_beliefs__few_images_and_one_class(counts: tuple[int, ...]) -> None:
    z, truth = clumps(counts)
    found = candidate_beliefs(z, guessed_by(truth, len(counts)))
    for tensor in (found.beliefs.weight, found.beliefs.bias, found.beliefs.prior, found.miss):
        assert tensor.isfinite().all()
    assert found.beliefs.prior.sum() == pytest.approx(1.0)
    assert torch.equal(answers(found, z), truth)


def test_candidate_beliefs__every_image_verified() -> None:
    z, truth = clumps((20, 10, 5))
    found = candidate_beliefs(z, Task(truth, tuple("abc")))
    assert found.beliefs.prior.tolist() == pytest.approx([1 / 3] * 3, abs=0.25)
    assert torch.equal(answers(found, z), truth)


def test_candidate_evidence__worked_numbers_and_limits() -> None:
    guesses, miss = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([0.1, 0.4, 0.7])
    wanted = [0.9 * 0.75 + 0.1 / 3, 0.6 * 0.25 + 0.4 / 3, 0.7 / 3]
    assert candidate_evidence(guesses, miss)[0].exp().tolist() == pytest.approx(wanted, rel=1e-6)
    nothing = candidate_evidence(guesses, torch.ones(3))  # guesses that never say anything
    assert torch.allclose(nothing, torch.full((1, 3), 1 / 3).log())
    assert candidate_evidence(guesses.double(), miss).dtype == torch.float32


@pytest.mark.parametrize(
    ("shares", "rarely_guessed", "is_rebalanced"),
    [
        ([1.0] * 10, (), False),
        ([1.0] * 9 + [0.0], (9,), True),
        ([1.0] * 8 + [0.0, 0.0], (8, 9), False),  # which of the two gets what?
        ([1.0] * 18 + [0.0, 0.0], (18, 19), True),
        ([1.0] * 9 + [0.15], (), False),
        ([100 * 0.6**c for c in range(9)] + [0.1], (8, 9), False),
        ([40.0, 30, 20, 10, 0.5], (4,), True),  # not even, but not a long tail: standard deviation over mean 0.45
        ([60.0, 30, 8, 4, 0.5], (4,), False),
        ([1.0], (), False),
        ([1.0, 0.0], (1,), True),
    ],
    ids=str,
)
def test_estimate_prior(shares: list[float], rarely_guessed: tuple[int, ...], is_rebalanced: bool) -> None:
    prior, found, has_moved = estimate_prior(torch.tensor(shares))
    assert (found, has_moved) == (rarely_guessed, is_rebalanced)
    wanted = [1 / len(shares)] * len(shares) if is_rebalanced else [s / sum(shares) for s in shares]
    assert prior.tolist() == pytest.approx(wanted, abs=1e-6)
