"""Crowd: better than a regression on the majority vote, its probabilities, its parts."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import tiny
from labelwright.labels.dawid_skene import dawid_skene, vote_shares
from labelwright.methods.crowd import _folds
from labelwright.methods.recipe import CHOSEN
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.types import Task

N, C, D = 500, 4, tiny.N_FEATURES


def crowd_of(seed, reliability=(0.75, 0.5, 0.35)):
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.arange(N) % C)
    x = (1.6 * np.eye(D)[truth] + draw.standard_normal((N, D))).astype(np.float32)
    votes = [np.where(draw.random(N) < r, truth, (truth + draw.integers(1, 3, N)) % C) for r in reliability]
    votes = torch.from_numpy(np.stack(votes, axis=1))
    votes[torch.from_numpy(draw.random(votes.shape) < 0.1)] = -1
    return torch.from_numpy(x), torch.from_numpy(truth), votes


class Views:
    """Features, as they are."""

    def __init__(self, x):
        self.x, self.n_rows = x, len(x)

    def batch(self, rows, view, *, seed, device):
        return self.x[rows].to(device)

    def prefetch(self, rows):
        pass


def trained_on(task, x, **settings):
    cfg = resolve_config(METHODS["crowd"], settings)
    return train(METHODS["crowd"].recipe, cfg, task, Views(x), tiny.BuildHead(), options=tiny.options_of())


def test_crowd__beats_regression_on_the_majority_vote_and_is_calibrated():
    gains, gaps = [], []
    for seed in range(3):
        x, _, votes = crowd_of(seed)
        test_x, test_truth, _ = crowd_of(seed + 10)
        found = trained_on(Task(torch.full((N,), -1), ("a", "b", "c", "d"), votes=votes, candidates=sets_of(votes)), x)
        with torch.no_grad():
            probs = found.state.nets["main"].eval()(test_x).softmax(1)
        majority = vote_shares(votes, C).argmax(1).numpy()
        plain = LogisticRegression(class_weight="balanced", max_iter=500).fit(x, majority)
        right = (probs.argmax(1) == test_truth).float()
        gains.append(float(right.mean()) - float((plain.predict(test_x) == test_truth.numpy()).mean()))
        gaps.append(float(probs.amax(1).mean() - right.mean()))
    assert min(gains) > 0.02
    assert abs(np.mean(gaps)) < 0.08  # of 500 images; larger sets are nearer


def weak_crowd(seed, n=900, n_classes=6):
    """Three voters of reliability 0.5, 0.4 and 0.3, whose mistakes on a class are mostly one other."""
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.arange(n) % n_classes)
    x, votes = 3 * np.eye(D)[truth] + draw.standard_normal((n, D)), []
    for mean in (0.5, 0.4, 0.3):
        right, confusion = draw.beta(4 * mean, 4 * (1 - mean), n_classes), []
        for c in range(n_classes):
            wrong = (1 - right[c]) * draw.dirichlet(np.full(n_classes - 1, 0.3))
            confusion.append(np.insert(wrong, c, right[c]))
        drawn = (np.stack(confusion)[truth].cumsum(1) < draw.random((n, 1))).sum(1)
        votes.append(drawn.clip(max=n_classes - 1))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(truth), torch.from_numpy(np.stack(votes, 1))


@pytest.mark.parametrize(("seed", "alone"), [(5, 0.55), (15, 0.65), (20, 0.55)])
def test_crowd__classes_that_voters_take_for_each_other_get_their_own_names(seed, alone):
    x, truth, votes = weak_crowd(seed)
    task = Task(torch.full((len(x),), -1), tuple("abcdef"), votes=votes, candidates=sets_of(votes, 6))
    with torch.no_grad():
        found = trained_on(task, x).state.nets["main"].eval()(x).argmax(1)
    assert float((dawid_skene(votes, 6).probs.argmax(1) == truth).double().mean()) < alone
    assert float((found == truth).double().mean()) > 0.9


def sets_of(votes, n_classes=C):
    mask = torch.zeros(len(votes), n_classes, dtype=torch.bool)
    for said in votes.T:
        rows = (said >= 0).nonzero().flatten()
        mask[rows, said[rows]] = True
    return tiny.sets_of(mask)


def test_crowd__neither_shift_nor_scale_of_the_features_matters():
    x, _, votes = crowd_of(3)
    task = Task(torch.full((N,), -1), ("a", "b", "c", "d"), votes=votes, candidates=sets_of(votes))
    logits = []
    for moved in (x, 0.03 * x, 37 * x + 5):
        with torch.no_grad():
            logits.append(trained_on(task, moved).state.nets["main"].eval()(moved).softmax(1))
    assert torch.allclose(logits[0], logits[1], atol=2e-3)
    assert torch.allclose(logits[0], logits[2], atol=2e-3)


def test_folds__groups_stay_together():
    groups = torch.arange(60) // 4
    fold = _folds(60, groups)
    assert all(len(fold[groups == g].unique()) == 1 for g in groups.unique())
    assert 2 <= len(fold.unique()) <= 5
    assert len(_folds(2, None).unique()) == 2


def test_crowd__a_class_of_one_group_is_not_denied_and_new_groups_are_less_sure():
    x, truth, votes = crowd_of(5)
    frames, generator = torch.arange(N) // 20, torch.Generator().manual_seed(0)
    groups = truth * N + frames * (truth != 3)  # of the last class all images are of one group
    x = x + torch.eye(D)[truth] + 1.5 * torch.randn(4 * N, D, generator=generator)[groups]  # as images of a group are
    logs, sure = [], []
    for known in (groups, None):
        task = Task(torch.full((N,), -1), ("a", "b", "c", "d"), votes=votes, candidates=sets_of(votes), groups=known)
        recipe, cfg = METHODS["crowd"].recipe, resolve_config(METHODS["crowd"], {})
        state = recipe.setup(cfg, task, tiny.BuildHead())
        state, found = recipe.begin(cfg, task, state, lambda net, rows, output: [(rows, x[rows])])
        logs.append(found)
        probs = state.nets["main"].eval()(x).detach().softmax(1)
        sure.append(float(probs.amax(1).mean()))
        right = probs.argmax(1) == truth
        assert float(right[truth == 3].float().mean()) > 0.95
    assert logs[0]["truth_inside"] == pytest.approx(logs[1]["truth_inside"], abs=0.01)
    assert sure[0] < sure[1] - 0.01


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_crowd__rounds_end_where_nothing_moves(n_rounds):
    x, _, votes = crowd_of(4)
    task = Task(torch.full((N,), -1), ("a", "b", "c", "d"), votes=votes, candidates=sets_of(votes))
    build, cfg = tiny.BuildHead(), resolve_config(METHODS["crowd"], {"n_rounds": n_rounds})
    recipe = METHODS["crowd"].recipe
    state = recipe.setup(cfg, task, build)
    _, logs = recipe.begin(cfg, task, state, lambda net, rows, output: [(rows, x[rows])])
    assert 1 <= len(logs["moved_frac"]) <= n_rounds
    assert 0.6 < logs["truth_inside"] < 1


def test_crowd__a_fit_with_what_was_chosen_is_the_same_fit():
    """Sets of two wrong classes and the true one: the first penalty is chosen among guesses that are mostly wrong."""
    x, truth, _ = crowd_of(5)
    draw = np.random.default_rng(5)
    mask = torch.zeros(N, C, dtype=torch.bool).scatter_(1, truth[:, None], True)
    mask |= torch.from_numpy(draw.permuted(np.tile([True, True, False, False], (N, 1)), axis=1))
    task = Task(torch.full((N,), -1), ("a", "b", "c", "d"), candidates=tiny.sets_of(mask))
    found = trained_on(task, x)
    chosen = found.state.memory[CHOSEN]
    assert chosen["first_penalty"] > chosen["penalty"]
    again, other = trained_on(task, x, **chosen), trained_on(task, x, penalty=chosen["penalty"])
    logits = [each.state.nets["main"].eval()(x).detach() for each in (found, again, other)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)
