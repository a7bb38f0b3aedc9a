"""The division of Co-Reg: against a float64 loop, and what it does with labels, empty sets and full ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

import tiny
from labelwright.labels.codivide import CoDivision, aligned_division, read_beliefs
from labelwright.labels.purify import init_history
from labelwright.train.seeds import generator
from labelwright.types import Task

N, C = 60, 4
ROWS = torch.arange(N)
TRUTH = ROWS % C
LABELLED, EMPTY, FULL, WRONG = ROWS % 10 == 3, ROWS % 12 == 5, ROWS % 12 == 7, ROWS % 4 == 1
DIVIDED = ~LABELLED & ~EMPTY & ~FULL
Floats = list[list[float]]


def a_task() -> Task:
    weights = torch.rand(N, C, generator=generator(0, "weights")) + 0.1
    mask = torch.rand(N, C, generator=generator(0, "mask")) < 0.3
    mask[ROWS, TRUTH] = ~WRONG
    mask[ROWS, (TRUTH + 1) % C] |= WRONG
    mask[ROWS, (TRUTH + 2) % C] = False  # no set is full by chance
    mask[EMPTY] = False
    mask[FULL] = True
    weights[FULL] = 1.0
    return Task(torch.where(LABELLED, TRUTH, -1), tuple("abcd"), tiny.sets_of(mask, weights))


def logits_of(seed: int = 0) -> Tensor:
    """A network that knows something, and leans to the first class."""
    noise = torch.randn(N, C, generator=generator(seed, "logits"))
    return 2.5 * F.one_hot(TRUTH, C) + noise + torch.tensor([1.0, 0, 0, -0.5])


def passes_of(logits: Tensor, chunk: int = 17) -> Any:
    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        assert (net, view, output) == ("main", "clean", "logits")
        for some in rows.split(chunk):
            yield some, logits[some]

    return passes


MISS = torch.tensor([0.1, 0.2, 0.3, 0.6])
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1])


def divided(logits: Tensor, task: Task | None = None, *, chunk: int = 17, **changed: Any) -> CoDivision:
    task = a_task() if task is None else task
    history = changed.pop("history", init_history(len(logits), 5))
    wanted = {"prior": PRIOR, "miss": MISS, "guess_strength": 1.0, **changed}
    return aligned_division("main", task, passes_of(logits, chunk), history, **wanted)


# ---- the oracle -----------------------------------------------------------------------------------------------------


def slow_division(
    logits: Tensor, *, strength: float, prior: list[float] | None, ratio: list[float], before: list[list[float]]
) -> tuple[Floats, list[float], list[float]]:
    """Beliefs, clean probabilities and division losses, image by image; without ``prior`` nothing is aligned."""
    task = a_task()
    guesses = task.guesses(ROWS).double().tolist()
    beliefs: Floats = []
    for i, f in enumerate(logits.double().tolist()):
        weighed = [
            f[c] + strength * math.log((1 - float(MISS[c])) * guesses[i][c] + float(MISS[c]) / C) for c in range(C)
        ]
        exps = [math.exp(v) for v in weighed]
        beliefs.append([e / sum(exps) for e in exps])

    def scaled(i: int, factor: list[float]) -> list[float]:
        if LABELLED[i]:
            return [float(c == TRUTH[i]) for c in range(C)]
        if prior is None:
            return beliefs[i]
        values = [p * r for p, r in zip(beliefs[i], factor, strict=True)]
        return [v / sum(values) for v in values]

    for _ in range(3 if prior is not None else 0):
        assert prior is not None
        total = [sum(scaled(i, ratio)[c] for i in range(N)) for c in range(C)]
        ratio = [r * q * N / t for r, q, t in zip(ratio, prior, total, strict=True)]
        ratio = [r / (sum(ratio) / C) for r in ratio]
    found = [scaled(i, ratio) for i in range(N)]
    losses = [
        -math.log(max(max(p for p, g in zip(found[i], guesses[i], strict=True) if g > 0), 1e-8)) for i in range(N)
    ]
    inside = [losses[i] for i in range(N) if DIVIDED[i]]
    stretched = [(losses[i] - min(inside)) / (max(inside) - min(inside)) if DIVIDED[i] else 0.0 for i in range(N)]
    epochs = [*before, stretched]
    mean = [sum(epoch[i] for epoch in epochs) / len(epochs) for i in range(N)]
    values = np.array(sorted(mean[i] for i in range(N) if DIVIDED[i]))[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=3).fit(values)
    low = int(mixture.means_[:, 0].argmin())
    means = sorted(mixture.means_[:, 0])

    def of_lower(value: float) -> float:
        return float(mixture.predict_proba([[value]])[0, low])

    clean = []
    for i in range(N):
        if LABELLED[i] or not DIVIDED[i]:
            clean.append(float(LABELLED[i]))
        elif mean[i] < means[0]:
            clean.append(max(of_lower(mean[i]), of_lower(means[0])))
        elif mean[i] > means[1]:
            clean.append(min(of_lower(mean[i]), of_lower(means[1])))
        else:
            clean.append(of_lower(mean[i]))
    return found, clean, stretched


@pytest.mark.filterwarnings("ignore:Best performing initialization did not converge")
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("align", [True, False], ids=["aligned", "as it is"])
@pytest.mark.parametrize("starts_from", [None, [2.0, 1.0, 0.5, 0.5]], ids=["afresh", "from the epoch before"])
def test_division__matches_a_slow_loop(strength: float, align: bool, starts_from: list[float] | None) -> None:
    history, before = init_history(N, 5), []
    for epoch in range(2):  # the second epoch averages its losses with those of the first
        logits = logits_of(epoch)
        found = divided(
            logits,
            guess_strength=strength,
            use_alignment=align,
            ratio=None if starts_from is None else torch.tensor(starts_from),
            history=history,
            seed=3,
        )
        prior = PRIOR.tolist() if align else None
        beliefs, clean, stretched = slow_division(
            logits, strength=strength, prior=prior, ratio=starts_from or [1.0] * C, before=before
        )
        assert read_beliefs(found.beliefs, ROWS, C).tolist() == [pytest.approx(row, abs=1e-5) for row in beliefs]
        assert found.clean.tolist() == pytest.approx(clean, abs=1e-3)
        before.append(stretched)
        history = found.history
    assert 0.1 < (found.clean[DIVIDED] > 0.5).float().mean() < 0.9  # there is something to divide


def test_division__right_guesses_are_trusted_and_wrong_ones_are_not() -> None:
    found = divided(6.0 * F.one_hot(TRUTH, C), guess_strength=0.0, prior=torch.full((C,), 0.25))
    assert found.clean[DIVIDED & ~WRONG].min() > 0.9
    assert found.clean[DIVIDED & WRONG].max() < 0.1
    assert found.n_divided == int(DIVIDED.sum())
    share = float((~WRONG)[DIVIDED].float().mean())
    assert found.reliable_frac == pytest.approx(share)
    assert found.in_set_frac == pytest.approx(share)
    assert torch.equal(found.predicted, TRUTH)
    assert found.means[0] < 0.1 < 0.9 < found.means[1]


def test_division__verified_labels_and_sets_that_say_nothing() -> None:
    found = divided(-8.0 * F.one_hot(TRUTH, C) + logits_of())  # a network that is sure to be wrong
    beliefs = read_beliefs(found.beliefs, ROWS, C)
    assert torch.equal(beliefs[LABELLED], F.one_hot(TRUTH[LABELLED], C).float())
    assert (found.clean[LABELLED] == 1).all()
    assert (found.clean[(EMPTY | FULL) & ~LABELLED] == 0).all()
    assert (found.history["means"][:, ~DIVIDED] == 0).all()


def test_division__what_cannot_be_divided_does_not_move_the_others() -> None:
    logits = logits_of()
    off = torch.where((EMPTY | FULL | LABELLED)[:, None], 50 * torch.eye(C)[(TRUTH + 1) % C], logits)
    plain, moved = (divided(x, use_alignment=False) for x in (logits, off))
    assert torch.equal(plain.clean, moved.clean)
    assert plain.in_set_frac == moved.in_set_frac


def test_division__mean_belief_comes_to_the_prior() -> None:
    task = Task(torch.full((N,), -1), tuple("abcd"), a_task().candidates)
    gaps = []
    for n_rounds in (0, 1, 3, 30):
        found = divided(logits_of(), task, n_rounds=n_rounds)
        gaps.append(float((read_beliefs(found.beliefs, ROWS, C).mean(0) - PRIOR).abs().max()))
    assert gaps[0] > 0.05
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[3] < 1e-4


def test_division__without_alignment_nothing_is_scaled() -> None:
    assert divided(logits_of(), use_alignment=False).ratio.tolist() == [1.0] * C


def test_division__chunks_and_calls_change_nothing() -> None:
    first, second, whole = (divided(logits_of(), chunk=chunk) for chunk in (17, 17, N))
    assert torch.equal(first.clean, second.clean)
    assert torch.allclose(first.clean, whole.clean, atol=1e-5)


def test_division__sparse_table() -> None:
    exact, sparse = divided(logits_of()), divided(logits_of(), keep=2)
    assert {key: (t.dtype, list(t.shape)) for key, t in sparse.beliefs.items()} == {
        "probs": (torch.float32, [N, 2]),
        "classes": (torch.int16, [N, 2]),
    }
    assert list(exact.beliefs) == ["probs"]
    gap = (read_beliefs(exact.beliefs, ROWS, C) - read_beliefs(sparse.beliefs, ROWS, C)).abs()
    assert gap.mean() < 0.03
    assert torch.equal(read_beliefs(sparse.beliefs, ROWS, C)[LABELLED], F.one_hot(TRUTH[LABELLED], C).float())


@pytest.mark.parametrize("case", ["every label", "nothing", "one class", "one image"])
def test_division__nothing_to_divide(case: str) -> None:
    n, n_classes = {"one class": (5, 1), "one image": (1, 3)}.get(case, (5, 3))
    labels = torch.arange(n) % n_classes if case == "every label" else torch.full((n,), -1)
    sets = tiny.sets_of(torch.zeros(n, n_classes, dtype=torch.bool))
    if case == "one image":
        sets = tiny.sets_of(torch.tensor([[True, False, False]]))
    task = Task(labels, tuple("abc")[:n_classes], sets)
    even = torch.full((n_classes,), 1 / n_classes)
    logits = torch.randn(n, n_classes, generator=generator(0, case))
    found = divided(logits, task, prior=even, miss=torch.full_like(even, 0.1))
    assert found.n_divided == (case == "one image")
    assert found.clean.tolist() == [float(case in ("every label", "one image"))] * n
    assert found.reliable_frac == float(case == "one image")
    assert read_beliefs(found.beliefs, torch.arange(n), n_classes).isfinite().all()


def test_division__a_class_that_should_have_no_image() -> None:
    logits = logits_of()
    logits[0] = torch.tensor([0.0, 0.0, 0.0, 500.0])
    found = divided(logits, prior=torch.tensor([0.5, 0.3, 0.2, 0.0]), guess_strength=0.0)
    beliefs = read_beliefs(found.beliefs, ROWS, C)
    assert beliefs.isfinite().all()
    assert torch.allclose(beliefs.sum(1), torch.ones(N))
    assert beliefs[~LABELLED][1:, 3].max() == 0
