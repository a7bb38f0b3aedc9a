"""Annotations of images, as evidence: its kind, its likelihood, and how far to trust it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from labelwright.labels.annotations import Annotations, fit_annotations
from labelwright.types import Candidates, Task

N, C = 600, 3
ROWS = torch.arange(N)
NAMES = ("a", "b", "c")


def truth_of(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, C, N))


def seen(truth, strength, seed=1, right=0.7):
    """Calibrated logits that find the class of a share of the images."""
    draw = np.random.default_rng(seed)
    shown = torch.where(torch.from_numpy(draw.random(N) < right), truth, (truth + 1) % C)
    return strength * np.log(right * (C - 1) / (1 - right)) * F.one_hot(shown, C)


def votes_of(truth, reliability, seed=2):
    draw = np.random.default_rng(seed)
    each = [torch.where(torch.from_numpy(draw.random(N) < r), truth, (truth + 1) % C) for r in reliability]
    return torch.stack(each, dim=1)


def task_of(**known):
    return Task(torch.full((N,), -1), NAMES, **known)


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (None, "sets"),
        ([0.5, 0.5, 1.0, 0.5, 0.5], "sets"),  # all alike in their row
        ([2 / 3, 1 / 3, 1.0, 0.25, 0.75], "votes"),
        ([0.91, 0.09001, 1.0, 0.53123, 0.46877], "shares"),
    ],
)
def test_kind__by_the_weights(weights, kind):
    sets = Candidates(
        torch.tensor([0, 2, 3, 5]),
        torch.tensor([0, 1, 2, 0, 2], dtype=torch.int32),
        None if weights is None else torch.tensor(weights),
    )
    assert Annotations(Task(torch.full((3,), -1), NAMES, sets)).kind == kind


def test_kind__answers_come_first_and_nothing_is_none():
    sets = Candidates(torch.zeros(N + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    assert Annotations(task_of()).kind is None
    assert Annotations(task_of(candidates=sets)).kind is None
    assert Annotations(task_of(votes=votes_of(truth_of(), (0.9,)))).kind == "answers"


def test_n_votes__of_a_set_of_one_what_is_usual():
    sets = Candidates(
        torch.tensor([0, 2, 3, 5]),
        torch.tensor([0, 1, 2, 0, 2], dtype=torch.int32),
        torch.tensor([2 / 3, 1 / 3, 1.0, 1 / 3, 2 / 3]),
    )
    annotations = Annotations(Task(torch.full((3,), -1), NAMES, sets))
    assert annotations.n_votes.tolist() == [3, 3, 3]
    assert torch.allclose(annotations.members(torch.arange(3))[0], torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))


def test_hear__finds_how_often_annotators_are_right_and_the_temperature():
    truth = truth_of()
    annotations = Annotations(task_of(votes=votes_of(truth, (0.9, 0.6, 0.5))), smoothing=1.0)
    for strength in (1.0, 0.5, 3.0):
        logits = seen(truth, strength)
        fitted = fit_annotations(annotations, logits, ROWS)
        rates = [float(confusion.diagonal().mean()) for confusion in fitted.rates.weight]
        assert np.allclose(rates, (0.9, 0.6, 0.5), atol=0.06)
        assert 0.8 < fitted.temperature * strength < 1.3  # what makes the logits calibrated again
        together = annotations.posterior(fitted, logits, ROWS)
        right = (together.argmax(1) == truth).double().mean()
        assert right > 0.94
        assert abs(float(together.max(1).values.mean()) - float(right)) < 0.03  # a probability is one


def test_hear__sets_that_always_hold_the_class_are_not_left():
    truth, draw = truth_of(3), torch.Generator().manual_seed(4)
    mask = torch.rand(N, C, generator=draw) < 0.4
    mask[ROWS, truth] = True
    annotations, logits = Annotations(task_of(candidates=tiny.sets_of(mask))), seen(truth, 1.0)
    fitted = fit_annotations(annotations, logits, ROWS)
    labels = annotations.posterior(fitted, logits, ROWS).argmax(1)
    assert fitted.inside > 0.98
    assert bool(mask[ROWS, labels].all())
    assert not bool(mask[ROWS, logits.argmax(1)].all())


def test_hear__sets_that_often_miss_the_class_are_left():
    truth, draw = truth_of(5), np.random.default_rng(6)
    named = torch.where(torch.from_numpy(draw.random(N) < 0.4), truth, (truth + 1) % C)
    annotations, logits = (
        Annotations(task_of(candidates=tiny.sets_of(F.one_hot(named, C).bool()))),
        seen(truth, 1.0, right=0.9),
    )
    fitted = fit_annotations(annotations, logits, ROWS)
    labels = annotations.posterior(fitted, logits, ROWS).argmax(1)
    assert abs(fitted.inside - 0.4) < 0.1
    assert float((labels == truth).double().mean()) > 0.85


@pytest.mark.parametrize("holds", [0.6, 1.0])
def test_hear__small_sets_that_miss_the_class_are_noticed(holds):
    """Of eight classes one or two are named; sets that came out empty are not there."""
    n_classes, draw = 8, np.random.default_rng(7)
    truth = draw.integers(0, n_classes, 1000)
    mask = draw.random((1000, n_classes)) < 0.1
    mask[np.arange(1000), truth] = draw.random(1000) < holds
    truth, mask = torch.from_numpy(truth[mask.any(1)]), torch.from_numpy(mask[mask.any(1)])
    rows = torch.arange(len(truth))
    logits = 3.2 * (1.6 * F.one_hot(truth, n_classes) + 0.7 * torch.from_numpy(draw.standard_normal(mask.shape)))
    annotations = Annotations(Task(torch.full((len(truth),), -1), tuple("abcdefgh"), tiny.sets_of(mask)))
    fitted = fit_annotations(annotations, logits, rows)
    assert abs(fitted.inside - float(mask[rows, truth].double().mean())) < 0.03
    together = annotations.posterior(fitted, logits, rows)
    right = float((together.argmax(1) == truth).double().mean())
    assert right > 0.85
    assert abs(float(together.amax(1).mean()) - right) < 0.03


def test_fit_annotations__wrong_candidates_that_look_like_the_class():
    """Classes are points in space, sets hold their neighbours: the model stays with the classifier's classes."""
    n_classes, right, trust = 8, [], []
    for seed in range(4):
        draw = np.random.default_rng(seed)
        truth, places = draw.integers(n_classes, size=900), draw.standard_normal((n_classes, 3))
        rank = ((places[:, None] - places) ** 2).sum(-1).argsort(1).argsort(1)
        mask = np.zeros((900, n_classes), bool)
        for row, k in enumerate(truth):
            chance, is_missed = np.exp(-rank[k] / 1.5) * (np.arange(n_classes) != k), draw.random() < 0.2
            mask[row, draw.choice(n_classes, 2 + is_missed, replace=False, p=chance / chance.sum())] = True
            mask[row, k] = not is_missed
        z = places[truth] + 0.7 * draw.standard_normal((900, 3))
        logits = torch.from_numpy(-((z[:, None] - places) ** 2).sum(-1) / (2 * 0.7**2))
        sets = tiny.sets_of(torch.from_numpy(mask))
        annotations = Annotations(Task(torch.full((900,), -1), tuple("abcdefgh"), sets))
        together = annotations.posterior(
            fit_annotations(annotations, logits, torch.arange(900)), logits, torch.arange(900)
        )
        right.append(float((together.argmax(1) == torch.from_numpy(truth)).double().mean()))
        trust.append(float(together.amax(1).mean()))
        assert right[-1] > float((logits.argmax(1) == torch.from_numpy(truth)).double().mean()) + 0.05
    assert abs(np.mean(trust) - np.mean(right)) < 0.05


def test_posterior__a_verified_label_stays_and_silence_changes_nothing():
    truth = truth_of()
    votes = votes_of(truth, (0.9, 0.9))
    votes[5] = -1
    labels = torch.full((N,), -1)
    labels[0] = (truth[0] + 1) % C
    annotations, logits = Annotations(Task(labels, NAMES, votes=votes)), seen(truth, 1.0)
    fitted = fit_annotations(annotations, logits, ROWS)
    together = annotations.posterior(fitted, logits, ROWS)
    assert together[0].argmax() == labels[0]
    assert together[0].max() == 1
    alone = (fitted.temperature * logits[5].double() + fitted.log_prior).softmax(0)
    assert torch.allclose(together[5], alone)
    assert annotations.is_annotated(torch.tensor([0, 5, 6])).tolist() == [True, False, True]
    assert annotations.named(torch.tensor([5])).all()


def test_sets__likelihood_against_a_loop():
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    annotations = Annotations(Task(torch.full((3,), -1), NAMES, tiny.sets_of(mask)))
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    found = annotations.evidence(annotations.fit(torch.arange(3), probs), torch.arange(3))
    n = [sum(float(probs[i, c]) for i in (0, 1)) for c in range(C)]  # the empty set says nothing
    hold = [[sum(float(probs[i, c]) * bool(mask[i, j]) for i in (0, 1)) for j in range(C)] for c in range(C)]
    for c in range(C):
        expected = 0.0
        for j in range(C):
            others = (sum(hold[k][j] for k in range(C) if k != j) + 0.5) / (sum(n) - n[j] + 1)
            rate = (hold[c][j] + 20.0 * others) / (n[c] + 20.0)
            if j == c:
                rate = (sum(hold[k][k] for k in range(C)) + 0.5) / (sum(n) + 1)
            expected += np.log(rate if mask[0, j] else 1 - rate)
        assert float(found[0, c]) == pytest.approx(expected)
    assert found[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("extra", [0.0, 0.2])  # of the images with two guesses
def test_fit_annotations__one_guess_is_an_answer(extra):
    """Not a set that holds the class by itself: how often guesses are wrong shows in what a classifier sees."""
    truth, more = truth_of(), torch.from_numpy(np.random.default_rng(3).random(N) < extra)
    guess = votes_of(truth, (0.6,))[:, 0]
    rows = [[int(g), int((g + 1) % C)] if two else [int(g)] for g, two in zip(guess, more, strict=True)]
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    sets = Candidates(offsets, torch.tensor([c for row in rows for c in row], dtype=torch.int32), None)
    annotations = Annotations(task_of(candidates=sets))
    assert (annotations.kind, annotations.has_one_guess) == ("votes", True)
    assert annotations.answers.flatten().equal(torch.where(more, -1, guess))
    assert abs(fit_annotations(annotations, seen(truth, 1.0, right=0.9), ROWS).inside - 0.6) < 0.06


def test_fit_annotations__annotators_of_few_answers_are_taken_as_alike():
    """Forty of fifteen answers each, about an image each; with four of them the worst differs from the best."""
    truth, who = truth_of(), np.arange(N) % 40
    for n, reliability in ((40, np.full(40, 0.7)), (4, np.array([0.95, 0.7, 0.7, 0.4]))):
        draw = np.random.default_rng(4).random(N) < reliability[who % n]
        votes = torch.full((N, n), -1)
        votes[ROWS, torch.from_numpy(who % n)] = torch.where(torch.from_numpy(draw), truth, (truth + 1) % C)
        fitted = fit_annotations(Annotations(task_of(votes=votes)), seen(truth, 1.0, right=0.9), ROWS)
        right = fitted.rates.weight.diagonal(dim1=1, dim2=2).mean(1)
        assert (float(right.max() - right.min()) < 1e-6) == (n == 40)
        assert np.abs(right.numpy() - reliability[:n]).max() < 0.12
