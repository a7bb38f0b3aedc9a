"""Unlabelled images of classes without labels are noticed, and a drawn sample of labels is no alarm."""

import pytest
import torch
from torch import Tensor

from labelwright.labels.unlike import Unlike, unlike_labelled

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
