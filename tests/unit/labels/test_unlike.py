"""Unlabelled images of classes without labels are noticed, and a drawn sample of labels is no alarm."""

import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor

from labelwright.labels.unlike import ROWS, Unlike, _chance_of, unlike_labelled

N_CLASSES, N_FEATS = 6, 24


def pool(sizes: list[int], *, per_class: int, n_hidden: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of overlapping classes, labels of ``per_class`` images each but of the last classes, and the truth."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    truth = truth[torch.randperm(len(truth), generator=draw)]
    centres = 1.2 * torch.randn(len(sizes), N_FEATS, generator=draw)
    feats = centres[truth] + torch.randn(len(truth), N_FEATS, generator=draw)
    labels = torch.full_like(truth, -1)
    for c in range(len(sizes) - n_hidden):
        rows = (truth == c).nonzero().flatten()[:per_class]
        labels[rows] = c
    return feats, labels, truth


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[500] * 6, [1500, 700, 300, 200, 100, 60]], ids=["even", "tailed"])
def test_unlike_labelled__drawn_labels_are_no_alarm(sizes: list[int], seed: int) -> None:
    feats, labels, _ = pool(sizes, per_class=50, seed=seed)
    assert unlike_labelled(feats, labels) == Unlike()


@pytest.mark.parametrize("per_class", [2, 5])
def test_unlike_labelled__a_handful_of_labels_is_no_reason_for_an_alarm(per_class: int) -> None:
    pools = [pool([200, 200], per_class=per_class, seed=seed)[:2] for seed in range(20)]
    assert sum(unlike_labelled(*each).share > 0 for each in pools) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_unlike_labelled__finds_about_how_many_are_of_hidden_classes(seed: int) -> None:
    feats, labels, truth = pool([500] * 6, per_class=150, n_hidden=2, seed=seed)
    hidden = float((truth >= 4).sum() / (labels < 0).sum())
    found = unlike_labelled(feats, labels)
    assert 0.15 < found.least <= hidden
    assert found.share == pytest.approx(hidden, abs=0.08)


def test_likeness__tells_which_are_of_hidden_classes_and_how_many() -> None:
    feats, labels, truth = pool([500] * 6, per_class=150, n_hidden=2)
    found = unlike_labelled(feats, labels)
    assert found.likeness is not None
    rows = (labels < 0).nonzero().flatten()
    chance, is_named = found.likeness.chance(feats[rows], rows), truth[rows] < 4
    assert chance.mean() == pytest.approx(1 - found.share, abs=0.02)
    assert chance[~is_named].mean() < 0.3 < 0.7 < chance[is_named].mean()
    elsewhere = found.likeness.chance(feats[:5] + 100, torch.full((5,), -1))  # features of new images, of no unit here
    assert elsewhere.isfinite().all()
    assert (elsewhere >= 0).all()


def test_unlike_labelled__shift_and_scale_do_not_change_it() -> None:
    feats, labels, _ = pool([500] * 6, per_class=150, n_hidden=2)
    found = unlike_labelled(feats, labels)
    assert unlike_labelled(37 * feats - 100, labels).least == pytest.approx(found.least, abs=0.02)
    assert unlike_labelled(0.03 * feats, labels) == found


def test_unlike_labelled__images_of_a_group_count_as_one() -> None:
    """Whole tracks of one sign have labels: told apart by their tracks, unless these are known."""
    draw = torch.Generator().manual_seed(0)
    n_tracks, length = 60, 50
    tracks = torch.arange(n_tracks).repeat_interleave(length)
    truth = tracks % 3
    feats = 2 * torch.randn(3, N_FEATS, generator=draw)[truth] + torch.randn(n_tracks, N_FEATS, generator=draw)[tracks]
    feats += 0.2 * torch.randn(len(tracks), N_FEATS, generator=draw)
    labels = torch.where(tracks < n_tracks // 2, truth, -1)
    assert unlike_labelled(feats, labels).least > 0
    assert unlike_labelled(feats, labels, groups=tracks).least == 0


@pytest.mark.parametrize("labels", [[0, 1, -1, -1], [0, 0, 1, 1], [-1] * 4], ids=["one each", "all", "none"])
def test_unlike_labelled__says_nothing_without_two_of_a_class_and_an_unlabelled_one(labels: list[int]) -> None:
    assert unlike_labelled(torch.eye(4), torch.tensor(labels)) == Unlike()


def test_unlike_labelled__numbers_that_cannot_be_are_left_to_their_reader() -> None:
    feats, labels, _ = pool([100] * 6, per_class=20)
    feats[::7], feats[1] = torch.nan, torch.inf
    assert unlike_labelled(feats, labels) == Unlike()
    assert (
        unlike_labelled(torch.full_like(feats, 1e30), labels) == unlike_labelled(0 * feats[2:3], labels[:1]) == Unlike()
    )


def test_unlike_labelled__rare_labels_among_many_are_not_lost() -> None:
    """Half of the classes have nearly all labels, more than are compared; all classes are alike among the others."""
    n_classes, most, few, rest = 50, 2 * ROWS // 25, 3, 20
    feats, _, truth = pool([most + rest] * n_classes, per_class=0)
    rank = torch.zeros_like(truth)
    for c in range(n_classes):
        rank[truth == c] = torch.arange(most + rest)
    labels = torch.where(rank < torch.where(truth % 2 == 0, most, few), truth, -1)
    seen = (labels >= 0) | (rank >= most)
    assert int((labels >= 0).sum()) > ROWS
    assert unlike_labelled(feats[seen], labels[seen]) == Unlike()


@pytest.mark.parametrize("n_others", [1, 3, 10])
def test_unlike_labelled__a_few_more_images_are_no_reason_for_an_alarm(n_others: int) -> None:
    n_alarms = 0
    for seed in range(60):
        feats, labels, _ = pool([60] * 3, per_class=30, seed=seed)
        seen = torch.cat([(labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten()[:n_others]])
        n_alarms += unlike_labelled(feats[seen], labels[seen]).share > 0
    assert n_alarms <= 2  # one in 200 is allowed: of 60, three or more are so with a chance of 0.003


@pytest.mark.parametrize("n_labelled", [4, 10, 30])
def test_unlike_labelled__groups_given_are_no_alarm(n_labelled: int) -> None:
    """Images of a group are far more alike than those of two: a labelled one is no measure of how near others are."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        groups = torch.arange(2 * n_labelled).repeat_interleave(20)
        centres = torch.randn(2, N_FEATS, generator=draw)[torch.arange(2 * n_labelled) % 2]
        centres += 0.7 * torch.randn(len(centres), N_FEATS, generator=draw)
        feats = centres[groups] + 0.3 * torch.randn(len(groups), N_FEATS, generator=draw)
        labels = torch.where(groups < n_labelled, groups % 2, -1)
        assert unlike_labelled(feats, labels, groups=groups) == Unlike()


@pytest.mark.parametrize(("n_points", "copies"), [(2, 200), (6, 60), (20, 60)])
def test_unlike_labelled__copies_of_the_same_images_are_no_alarm(n_points: int, copies: int) -> None:
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        of = torch.arange(n_points).repeat_interleave(copies)
        feats = torch.randn(n_points, 16, generator=draw)[of]
        labels = torch.where(torch.rand(len(of), generator=draw) < 0.3, of % 2, -1)
        assert unlike_labelled(feats, labels) == Unlike()


@pytest.mark.parametrize(("m", "n", "rank", "k"), [(1, 20, 1.0, 1), (10, 20, 2.0, 3), (400, 50, 1.7, 40)])
def test_chance_of__is_the_tail_of_a_beta_binomial(m: int, n: int, rank: float, k: int) -> None:
    assert _chance_of(k / m, m, n, rank) == pytest.approx(betabinom.sf(k - 1, m, rank, n - rank + 1), rel=1e-6)
    assert _chance_of(0.0, m, n, rank) == pytest.approx(1.0, rel=1e-6)
    assert _chance_of(1.0, 1, 10, 1.0) == pytest.approx(1 / 11, abs=1e-4)  # one is the lowest of eleven


def test_unlike_labelled__classes_of_two_labels_do_not_say_that_a_class_is_missing() -> None:
    alarms = 0
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        middles = torch.randn(10, 16, generator=g)
        middles[1::2] = middles[::2] + 0.6 * torch.randn(5, 16, generator=g)  # neighbours in pairs
        truth = torch.arange(2000) % 10
        z = middles[truth] + 1.6 * torch.randn(2000, 16, generator=g)
        labels = torch.full((2000,), -1)
        for c, n in enumerate((100, 60, 36, 22, 13, 8, 5, 3, 2, 2)):
            labels[(truth == c).nonzero().flatten()[:n]] = c
        alarms += unlike_labelled(z, labels).share > 0
    assert alarms <= 1
