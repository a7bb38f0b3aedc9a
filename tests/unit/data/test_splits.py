"""Splits: the published counts, no group and no row on two sides, shares as near as groups allow."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from labelwright.data import splits
from labelwright.errors import ConfigError

CIFAR = np.repeat(np.arange(10), 5000)


@pytest.mark.parametrize(
    ("ratio", "profile", "total"),
    [
        (100, "exponential", 12_406),  # Cao 2019's CIFAR-10-LT sets
        (10, "exponential", 20_431),
        (100, "step", 5 * 5000 + 5 * 50),
        (10, "step", 5 * 5000 + 5 * 500),
    ],
)
def test_long_tail__published_totals(ratio, profile, total):
    rows = splits.long_tail(CIFAR, n_classes=10, ratio=ratio, profile=profile, seed=3)
    assert len(rows) == total
    np.testing.assert_array_equal(
        np.bincount(CIFAR[rows]), splits.long_tail_counts(5000, 10, ratio=ratio, profile=profile)
    )
    assert (np.diff(rows) > 0).all()


def test_long_tail_counts__cifar100_and_reciprocal():
    # CIFAR-100-LT, ratio 100: 10,847 images (Cao 2019), from 500 down to 5
    counts = splits.long_tail_counts(500, 100, ratio=100)
    assert (counts.sum(), counts[0], counts[-1]) == (10_847, 500, 5)
    # 49 * (1 / 49) is 0.9999999999999999 in float64: one image, not none
    assert splits.long_tail_counts(49, 2, ratio=49).tolist() == [49, 1]
    assert splits.long_tail_counts(7, 1, ratio=100).tolist() == [7]
    assert splits.long_tail_counts(40, 5, ratio=4, profile="step").tolist() == [40, 40, 10, 10, 10]


def test_long_tail__class_order_seed_and_default_n_max():
    labels = np.repeat([0, 1, 2], [30, 60, 90])
    rows = splits.long_tail(labels, n_classes=3, ratio=9, seed=0, class_order=[2, 1, 0])
    # the largest head that all classes can follow: 90, 30, 10
    assert np.bincount(labels[rows]).tolist() == [10, 30, 90]
    again = splits.long_tail(labels, n_classes=3, ratio=9, seed=0, class_order=[2, 1, 0])
    other = splits.long_tail(labels, n_classes=3, ratio=9, seed=1, class_order=[2, 1, 0])
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, other)


def test_long_tail__errors():
    with pytest.raises(ConfigError, match="class 1 has 3 images, 10 are wanted"):
        splits.long_tail([0] * 20 + [1] * 3, n_classes=2, ratio=2, n_max=20, seed=0)
    with pytest.raises(ConfigError, match="class 1 has no image"):
        splits.long_tail([0] * 20, n_classes=2, ratio=2, seed=0)
    with pytest.raises(ConfigError, match="smallest class empty"):
        splits.long_tail_counts(9, 3, ratio=10)
    with pytest.raises(ConfigError, match="no profile 'steps'"):
        splits.long_tail_counts(9, 3, ratio=3, profile="steps")
    with pytest.raises(ConfigError, match=r"ratio is 0\.5"):
        splits.long_tail_counts(9, 3, ratio=0.5)
    with pytest.raises(ConfigError, match="class_order"):
        splits.long_tail([0, 1], n_classes=2, ratio=1, seed=0, class_order=[0, 0])
    with pytest.raises(ConfigError, match="label 5 with 2 classes"):
        splits.long_tail([0, 5], n_classes=2, ratio=1, seed=0)


def test_few_shot__counts_partition_and_error():
    labels = np.array([-1, 0, 1, 0, 1, 0, -1, 2, 2])
    labelled, rest = splits.few_shot(labels, per_class=2, n_classes=3, seed=5)
    assert np.bincount(labels[labelled]).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(np.sort(np.concatenate([labelled, rest])), np.arange(9))
    with pytest.raises(ConfigError, match="class 1 has 2 images, 3 are wanted"):
        splits.few_shot(labels, per_class=3, n_classes=3, seed=5)


def test_few_shot__every_row_is_drawn_alike():
    # 10 rows, 2 drawn, 2,000 seeds: each is drawn 400 +- 4 * sqrt(2000 * 0.2 * 0.8) times
    times = np.zeros(10)
    for seed in range(2000):
        times[splits.few_shot(np.zeros(10, dtype=int), per_class=2, n_classes=1, seed=seed)[0]] += 1
    assert np.abs(times - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)
    assert times.std() > 0


def test_seen_novel__shares_and_errors():
    labels = np.repeat(np.arange(4), [10, 5, 1, 8])
    labelled, unlabelled = splits.seen_novel(labels, seen=3, labelled_frac=0.5, seed=0)
    # halves round up: 5, 3, 1 (a seen class keeps one image at least), none of class 3
    assert np.bincount(labels[labelled], minlength=4).tolist() == [5, 3, 1, 0]
    np.testing.assert_array_equal(np.sort(np.concatenate([labelled, unlabelled])), np.arange(24))
    again = splits.seen_novel(labels, seen=np.int64(3), labelled_frac=0.5, seed=0)
    np.testing.assert_array_equal(again[0], labelled)
    labelled, _ = splits.seen_novel(labels, seen=[3, 1], labelled_frac=0.1, seed=0)
    assert np.bincount(labels[labelled], minlength=4).tolist() == [0, 1, 0, 1]
    with pytest.raises(ConfigError, match="labelled_frac is 0"):
        splits.seen_novel(labels, seen=2, labelled_frac=0, seed=0)
    with pytest.raises(ConfigError, match="class 6 has 0 images"):
        splits.seen_novel(labels, seen=[6], labelled_frac=0.5, seed=0)
    with pytest.raises(ConfigError, match="seen is 0"):
        splits.seen_novel(labels, seen=0, labelled_frac=0.5, seed=0)


@pytest.mark.parametrize(("n_classes", "n_seen"), [(102, 63), (45, 27), (100, 62), (10, 6), (47, 29), (200, 124)])
def test_seen_unseen__sizes(n_classes, n_seen):
    # truncated, not rounded: 0.62 * 45 = 27.9 gives 27
    seen, unseen = splits.seen_unseen(n_classes, seed=1)
    assert len(seen) == n_seen
    np.testing.assert_array_equal(np.sort(np.concatenate([seen, unseen])), np.arange(n_classes))


def test_seen_unseen__keeps_both_sides():
    for frac in (0.01, 0.99):
        assert [len(side) for side in splits.seen_unseen(2, seen_frac=frac, seed=0)] == [1, 1]
    with pytest.raises(ConfigError, match="n_classes is 1"):
        splits.seen_unseen(1, seed=0)


def test_holdout__stratified_without_groups():
    labels = np.repeat([0, 1, 2, 3, -1], [100, 10, 2, 1, 7])
    train, test = splits.holdout(labels, frac=0.2, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(labels.size))
    # 0.2 * 2 rounds to none, but both sides get one; a single image and unlabelled rows stay in training
    assert np.bincount(labels[test], minlength=4).tolist() == [20, 2, 1, 0]
    assert (labels[train] == -1).sum() == 7
    train, test = splits.holdout([0, 0, 1, 1, 1], frac=0.99, seed=0)
    assert np.bincount(np.array([0, 0, 1, 1, 1])[train]).tolist() == [1, 1]


def test_holdout__groups_meet_the_best_share_there_is():
    rng = np.random.default_rng(0)
    for trial in range(60):
        n_groups = int(rng.integers(2, 9))
        sizes = rng.integers(1, 30, size=n_groups)
        groups = rng.permutation(np.repeat(np.arange(n_groups) * 17 - 5, sizes))
        frac = float(rng.uniform(0.05, 0.95))
        train, test = splits.holdout(np.zeros(groups.size, dtype=int), frac=frac, seed=trial, groups=groups)
        assert not set(groups[train]) & set(groups[test])
        assert min(train.size, test.size) > 0
        assert train.size + test.size == groups.size
        target = int(np.floor(groups.size * frac + 0.5))
        # every proper, non-empty subset of the groups
        subsets = [c for k in range(1, n_groups) for c in itertools.combinations(sizes.tolist(), k)]
        best = min(abs(sum(subset) - target) for subset in subsets)
        assert abs(test.size - target) == best


def test_holdout__many_groups_of_one_class():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(3000), rng.integers(1, 40, size=3000))
    train, test = splits.holdout(np.zeros(groups.size, dtype=int), frac=0.3, seed=0, groups=groups)
    assert not np.intersect1d(groups[train], groups[test]).size
    assert test.size == int(np.floor(groups.size * 0.3 + 0.5))  # the exact tail can make up any remainder here
    first_half = (groups[test] < 1500).mean()
    assert 0.4 < first_half < 0.6  # spread over the groups, not the first or the last of them


def test_holdout__groups_that_mix_classes():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 400, size=6000)
    labels = (groups % 7 + (rng.random(6000) < 0.2) * rng.integers(0, 7, size=6000)) % 7
    train, test = splits.holdout(labels, frac=0.25, seed=0, groups=groups)
    assert not set(groups[train]) & set(groups[test])
    share = np.bincount(labels[test]) / np.bincount(labels)
    assert np.abs(share - 0.25).max() < 0.05
    # a class in a single group keeps its images for training, whatever else that group holds
    labels, groups = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1])
    train, test = splits.holdout(labels, frac=0.5, seed=0, groups=groups)
    assert test.tolist() == [0, 1]


def test_with_copies__joins_groups_and_changes_nothing_without_copies():
    groups = np.array([5, 5, 9, 9, 2, 7])
    assert splits.with_copies(groups, np.arange(6)).tolist() == groups.tolist()
    joined = splits.with_copies(groups, [0, 1, 1, 2, 3, 4])
    assert len(set(joined[:4])) == 1
    assert len(set(joined)) == 3
    assert splits.with_copies(None, [0, 1, 0]).tolist() == [0, 1, 0]


def test_holdout__no_class_is_left_without_training_by_what_others_hold_out():
    """Five images of each of forty classes, in groups that are of several classes at once."""
    labels = np.repeat(np.arange(40), 5)
    for seed in range(20):
        groups = np.random.default_rng(seed).integers(0, 14, len(labels))
        train, test = splits.holdout(labels, frac=0.2, seed=seed, groups=groups)
        assert len(set(labels[train])) == 40
        assert not set(groups[train]) & set(groups[test])
        assert 0.1 < len(test) / len(labels) < 0.4


def test_holdout__errors():
    with pytest.raises(ConfigError, match="frac is 1"):
        splits.holdout([0, 0], frac=1, seed=0)
    with pytest.raises(ConfigError, match=r"groups have shape \(3,\) for 2 rows"):
        splits.holdout([0, 0], frac=0.5, seed=0, groups=[1, 2, 3])
    with pytest.raises(ConfigError, match="type float64"):
        splits.holdout(np.array([0.0, 1.0]), frac=0.5, seed=0)
    with pytest.raises(ConfigError, match="below -1"):
        splits.holdout([0, -2], frac=0.5, seed=0)


def test_gtsrb__no_sign_on_two_sides():
    folder = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
    path = folder / "data/gtsrb-train.parquet"
    if not path.exists():
        pytest.skip(f"no {path}: set LABELWRIGHT_SHARED")
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["label", "track"])
    labels = table["label"].to_numpy()
    tracks = table["track"].combine_chunks().dictionary_encode().indices.to_numpy()
    train, test = splits.holdout(labels, frac=0.2, seed=0, groups=tracks)
    assert not np.intersect1d(tracks[train], tracks[test]).size
    share = np.bincount(labels[test], minlength=43) / np.bincount(labels)
    # tracks have 30 images: a class of 7 tracks (the fewest here) can miss 20% by half a track, 15 / 210 = 0.07
    assert np.abs(share - 0.2).max() <= 15 / np.bincount(labels).min() + 1e-9
    assert abs(share.mean() - 0.2) < 0.02
