"""Annotators told apart by their answers: against a loop over images, annotators and classes in plain Python."""

import math

import numpy as np
import pytest
import torch

from labelwright.errors import DataError
from labelwright.labels.dawid_skene import (
    LEAST_ANSWERS,
    better_names,
    confusion_of,
    dawid_skene,
    doubt_of_names,
    smoothed,
    telling,
    vote_evidence,
    vote_shares,
)


def answered(truth, reliability, n_classes, seed, share=0.9):
    """Votes of annotators who are right as often as ``reliability`` says, else take the next class."""
    draw = np.random.default_rng(seed)
    votes = np.stack(
        [np.where(draw.random(len(truth)) < r, truth, (truth + 1) % n_classes) for r in reliability], axis=1
    )
    votes[draw.random(votes.shape) > share] = -1
    return torch.from_numpy(votes)


def loops(votes, n_classes, n_iter, smoothing):
    """Dawid and Skene with the same smoothing, number by number."""
    N, A = len(votes), len(votes[0])
    q = []
    for row in votes:
        said = [v for v in row if v >= 0]
        q.append([said.count(c) / len(said) if said else 1 / n_classes for c in range(n_classes)])
    for _ in range(n_iter):
        heard = [i for i in range(N) if any(v >= 0 for v in votes[i])]
        prior = [(sum(q[i][c] for i in heard) + 1) / (len(heard) + n_classes) for c in range(n_classes)]
        confusion = []
        for a in range(A):
            n = [
                [sum(q[i][c] for i in range(N) if votes[i][a] == j) for j in range(n_classes)] for c in range(n_classes)
            ]
            right = (sum(n[c][c] for c in range(n_classes)) + 0.5) / (sum(map(sum, n)) + 1)
            wrong = [sum(n[c][j] for c in range(n_classes) if c != j) + 1 for j in range(n_classes)]
            rows = []
            for c in range(n_classes):
                others = sum(wrong) - wrong[c]
                usual = [right if j == c else (1 - right) * wrong[j] / others for j in range(n_classes)]
                rows.append([(n[c][j] + smoothing * usual[j]) / (sum(n[c]) + smoothing) for j in range(n_classes)])
            confusion.append(rows)
        for i in range(N):
            logs = [
                math.log(prior[c]) + sum(math.log(confusion[a][c][v]) for a, v in enumerate(votes[i]) if v >= 0)
                for c in range(n_classes)
            ]
            exps = [math.exp(v - max(logs)) for v in logs]
            q[i] = [e / sum(exps) for e in exps]
    return q


def test_dawid_skene__against_loops(monkeypatch):
    votes = answered(np.arange(60) % 3, (0.8, 0.6, 0.5), 3, seed=0)
    votes[7] = -1
    monkeypatch.setattr("labelwright.labels.dawid_skene.N_ITER", 4)
    found = dawid_skene(votes, 3)
    assert not found.is_majority
    assert np.allclose(found.probs, loops(votes.tolist(), 3, n_iter=4, smoothing=20.0), atol=1e-9)
    assert float(found.probs[7].max()) < 0.45  # nobody answered: the prior


def test_dawid_skene__small_integers_and_no_annotator():
    votes = answered(np.arange(60) % 3, (0.8, 0.6, 0.5), 3, seed=0)
    assert torch.equal(dawid_skene(votes.to(torch.int8), 3).probs, dawid_skene(votes, 3).probs)
    with pytest.raises(DataError, match="nobody answered"):
        dawid_skene(votes[:, :0], 3)


def test_dawid_skene__tells_a_good_annotator_from_two_bad_ones():
    truth = np.random.default_rng(1).integers(0, 4, 800)
    votes = answered(truth, (0.9, 0.45, 0.45), 4, seed=2)
    found, majority = dawid_skene(votes, 4), vote_shares(votes, 4)
    right = float((found.probs.argmax(1).numpy() == truth).mean())
    assert right > float((majority.argmax(1).numpy() == truth).mean()) + 0.1
    assert np.allclose(found.reliability, (0.9, 0.45, 0.45), atol=0.06)
    assert found.n_answers.tolist() == (votes >= 0).sum(0).tolist()


def test_dawid_skene__verified_labels_stay_and_teach():
    truth = np.arange(200) % 2
    votes = answered(truth, (0.1,), 2, seed=3, share=1.0)  # mostly wrong: without labels the names are swapped
    labels = torch.full((200,), -1)
    labels[:40] = torch.from_numpy(truth[:40])
    swapped, taught = dawid_skene(votes, 2), dawid_skene(votes, 2, labels=labels)
    assert float((swapped.probs.argmax(1).numpy() == truth).mean()) < 0.2
    assert torch.equal(taught.probs[:40].argmax(1), labels[:40])
    assert float(taught.probs[:40].max(1).values.min()) == 1.0


def test_dawid_skene__too_few_answers_is_the_majority_vote():
    votes = torch.tensor([[0, 0, 1], [1, 1, -1], [-1, -1, -1]])
    found = dawid_skene(votes, 3)
    assert float((votes >= 0).sum()) < LEAST_ANSWERS * 3 * 3
    assert found.is_majority
    assert torch.equal(found.probs, vote_shares(votes, 3))


def test_dawid_skene__annotators_who_know_some_classes_are_no_worse_than_a_majority():
    n_classes, draw = 8, np.random.default_rng(5)
    truth = draw.integers(n_classes, size=800)
    votes = np.full((800, 8), -1)
    for a in range(8):
        answers = np.where(draw.random(800) < 0.75, truth, (truth + 1) % n_classes)
        knows = draw.permutation(n_classes)[:4]
        votes[:, a] = np.where(np.isin(answers, knows) & (draw.random(800) < 0.7), answers, -1)
    votes, truth = torch.from_numpy(votes), torch.from_numpy(truth)
    assert telling(votes, n_classes).tolist() == list(range(8))
    found = dawid_skene(votes, n_classes).probs.argmax(1)
    right, usual = ((each == truth).double().mean() for each in (found, vote_shares(votes, n_classes).argmax(1)))
    assert right > usual + 0.02


def test_telling__silence_by_chance_says_nothing():
    truth = np.random.default_rng(6).integers(0, 5, 500)
    for share in (0.1, 0.5, 1.0):
        assert telling(answered(truth, [0.6] * 10, 5, seed=7, share=share), 5).tolist() == []


def test_confusion__of_a_class_that_others_answer_and_one_never_does():
    probs = torch.eye(3, dtype=torch.float64)[torch.arange(60) % 3]
    truth = torch.arange(60) % 3
    votes = torch.stack([truth, torch.where(truth == 2, 0, truth)], dim=1)
    both, alone = confusion_of(probs, votes), confusion_of(probs, votes[:, 1:])
    assert 0 < both[1, 2, 2] < 1e-6
    assert alone[0, 2, 2] > 0.1  # nobody answers it: nothing says that there is such a class
    assert confusion_of(probs[:9], votes[:9])[1, 2, 2] > 0.1  # of so few answers none need be of it


def test_confusion__rows_are_distributions_and_follow_many_answers():
    draw = torch.Generator().manual_seed(0)
    probs = torch.rand(5000, 3, generator=draw, dtype=torch.float64).softmax(1)
    votes = torch.randint(-1, 3, (5000, 2), generator=draw)
    found = confusion_of(probs, votes)
    assert torch.allclose(found.sum(2), torch.ones(2, 3, dtype=torch.float64))
    plain = torch.stack([probs[votes[:, 0] == j].sum(0) for j in range(3)], dim=1)
    assert torch.allclose(found[0], plain / plain.sum(1, keepdim=True), atol=0.01)


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_smoothed__is_finite_whatever_was_counted(n_classes):
    for counts in (torch.zeros(n_classes, n_classes), torch.full((n_classes, n_classes), 1e6)):
        found = smoothed(counts.double())
        assert torch.allclose(found.sum(1), torch.ones(n_classes, dtype=torch.float64))
        assert bool((found > 0).all())


def test_evidence__is_a_sum_over_annotators():
    confusion = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)).softmax(2)
    votes = torch.tensor([[0, 2], [-1, 1]])
    found = vote_evidence(votes, confusion)
    assert torch.allclose(found[0], confusion[0, :, 0].log() + confusion[1, :, 2].log())
    assert torch.allclose(found[1], confusion[1, :, 1].log())


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (1, 2, 0, 3), (3, 2, 1, 0)])
def test_better_names__any_order_is_undone_though_most_answers_are_wrong(order):
    truth = torch.arange(800) % 4
    votes = answered(truth.numpy(), (0.6, 0.4, 0.35), 4, seed=0)
    votes[:, 2] = torch.where(votes[:, 2] == (truth + 1) % 4, (truth + 2) % 4, votes[:, 2])  # errs elsewhere
    probs = torch.eye(4, dtype=torch.float64)[truth][:, list(order)]
    nobody = torch.full((800,), -1)
    found = better_names(probs, votes, nobody)
    if order == (0, 1, 2, 3):
        assert found is None
    else:
        assert torch.equal(probs[:, found].argmax(1), truth)


def test_better_names__verified_labels_hold_a_name():
    truth = torch.arange(400) % 2
    votes = answered(1 - truth.numpy(), (0.9, 0.8), 2, seed=1)  # nearly always wrong
    probs = torch.eye(2, dtype=torch.float64)[truth]
    assert better_names(probs, votes, torch.full((400,), -1)).tolist() == [1, 0]
    assert better_names(probs, votes, truth) is None


def test_doubt_of_names__grows_as_annotators_err_and_has_no_part_in_what_is_verified():
    truth, nobody = torch.arange(1200) % 4, torch.full((1200,), -1)
    doubts = [
        doubt_of_names(truth, answered(truth.numpy(), (r, r, r), 4, seed=2), nobody, 4) for r in (0.9, 0.7, 0.55, 0.45)
    ]
    assert doubts == sorted(doubts)
    assert doubts[0] < 0.02
    assert doubts[-1] > 0.4
    assert doubt_of_names(truth, answered(truth.numpy(), (0.45,) * 3, 4, seed=2), truth, 4) < doubts[-1] / 2
