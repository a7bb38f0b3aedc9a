"""Agreement with clusters against mutual information by hand, and each failure sign with and without its cause."""

import math

import pytest
import torch
import torch.nn.functional as F

from labelwright.metrics import agreement as module
from labelwright.metrics.agreement import Watch, warnings_of

NAMES = ["cat", "dog", "owl"]
FINE = {
    "class_similarity": 0.3,
    "sure_frac": 0.2,
    "largest_share": 0.4,
    "largest_expected": 0.35,
    "largest_class": 1,
}


def clumps(n_per_class=30, n_classes=3, n_features=6, noise=0.05):
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(n_classes, n_features, generator=draw), dim=1)
    truth = torch.arange(n_classes).repeat(n_per_class)
    return F.normalize(centres[truth] + noise * torch.randn(len(truth), n_features, generator=draw), dim=1), truth


def mutual_information(a, b):
    """Normalised by the mean of the entropies, from counts of pairs."""
    n, pairs = len(a), list(zip(a, b, strict=True))

    def entropy(values):
        return -sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values))

    joint = entropy(pairs)
    return (entropy(a) + entropy(b) - joint) / ((entropy(a) + entropy(b)) / 2)


def test_start__finds_the_clumps_whatever_their_numbers():
    z, truth = clumps()
    watch = Watch.start(z, 3, truth)
    assert watch.zero_shot_agreement == pytest.approx(1)
    assert watch.agreement((truth + 1) % 3) == pytest.approx(1)
    assert watch.agreement(torch.zeros_like(truth)) == 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_agreement__by_hand(share):
    z, truth = clumps()
    draw = torch.Generator().manual_seed(7)
    answers = torch.where(torch.rand(90, generator=draw) < share, torch.randint(3, (90,), generator=draw), truth)
    watch = Watch.start(z, 3, answers)
    want = mutual_information(watch.clusters.tolist(), answers.tolist())
    assert watch.zero_shot_agreement == pytest.approx(want)
    assert 0.1 < want < 0.97


def test_agreement__falls_as_answers_get_worse():
    z, truth = clumps()
    watch = Watch.start(z, 3, truth)
    found = []
    for n_wrong in (0, 10, 30, 60):
        answers = truth.clone()
        answers[:n_wrong] = (truth[:n_wrong] + torch.arange(n_wrong) % 2 + 1) % 3
        found.append(watch.agreement(answers))
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


def test_start__limits():
    one = Watch.start(torch.ones(1, 4), 3, torch.zeros(1, dtype=torch.int64))
    assert one.rows.tolist() == [0]
    z, truth = clumps()
    assert Watch.start(z, 1, torch.zeros_like(truth)).clusters.unique().tolist() == [0]
    same = Watch.start(torch.ones(5, 2), 4, torch.zeros(5, dtype=torch.int64))  # fewer images than clusters, no warning
    assert same.clusters.tolist() == [0] * 5
    assert Watch.start(z[:2], 10, truth[:2]).clusters.unique().numel() == 2


def test_start__many_images_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(module, "ROWS_MAX", 30)
    z, truth = clumps()
    watch = Watch.start(z, 3, truth)
    assert (len(watch.rows), int(watch.rows[0]), int(watch.rows[-1])) == (30, 0, 89)
    assert set(watch.rows.diff().tolist()) == {3, 4}
    assert watch.agreement(truth) == pytest.approx(1)
    others = torch.zeros(90, dtype=torch.bool)
    others[watch.rows] = True
    assert watch.agreement(torch.where(others, truth, 0)) == pytest.approx(1), "only clustered rows count"


def test_start__is_repeatable_and_comes_back_from_a_checkpoint(tmp_path):
    z, truth = clumps(noise=1.0)
    watch, again = Watch.start(z, 3, truth), Watch.start(z, 3, truth)
    assert torch.equal(watch.clusters, again.clusters)
    torch.save(watch.to_dict(), tmp_path / "watch.pt")
    back = Watch.from_dict(torch.load(tmp_path / "watch.pt", weights_only=True))
    assert torch.equal(back.rows, watch.rows)
    assert back.zero_shot_agreement == watch.zero_shot_agreement
    assert back.agreement(truth) == watch.agreement(truth)


def test_describe__by_hand():
    z, truth = clumps()
    watch = Watch.start(z, 3, truth)
    predicted = torch.tensor([0] * 60 + [1] * 20 + [2] * 10)
    confidence = torch.tensor([0.9] * 45 + [0.7] * 45)
    class_feats = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found = watch.describe(predicted, confidence, class_feats, torch.tensor([30.0, 50.0, 10.0]), threshold=0.85)
    assert found.pop("cluster_agreement") == watch.agreement(predicted)
    assert found.pop("class_similarity") == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert found.pop("largest_share") == pytest.approx(60 / 90)
    assert found.pop("largest_expected") == pytest.approx(30 / 90)
    assert found.pop("gini") == pytest.approx((40 + 50 + 10) * 2 / (2 * 3 * 90))  # pairs of counts over 2 C^2 mean
    assert found == {"pseudo_counts": [60, 20, 10], "imbalance_ratio": 6.0, "sure_frac": 0.5, "largest_class": 0}


def test_describe__one_class():
    watch = Watch.start(torch.ones(4, 2), 1, torch.zeros(4, dtype=torch.int64))
    found = watch.describe(
        torch.zeros(4, dtype=torch.int64), torch.ones(4), torch.ones(1, 2), torch.tensor([4.0]), threshold=0.85
    )
    assert (found["largest_share"], found["largest_expected"], found["class_similarity"]) == (1.0, 1.0, 0.0)
    assert warnings_of(found, ["cat"], 0) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_similarity": 0.985}, ["collapse to the mean", "0.985", "epoch 5"]),
        ({"sure_frac": 0.0}, ["not one image", "epoch 5", "self-training stands still"]),
        ({"largest_share": 0.8, "largest_expected": 0.1}, ["'dog' takes 80%", "10% were expected"]),
    ],
)
def test_warnings_of__each_sign_alone(change, words):
    assert warnings_of(FINE, NAMES, 4) == []
    (said,) = warnings_of({**FINE, **change}, NAMES, 4)
    assert all(word in said for word in words)


def test_warnings_of__all_at_once():
    bad = {**FINE, "class_similarity": 0.99, "sure_frac": 0.0, "largest_share": 0.9, "largest_expected": 0.05}
    assert len(warnings_of(bad, NAMES, 0)) == 3


@pytest.mark.parametrize(
    ("expected", "share", "is_said"),
    [
        (1 / 2, 1.0, True),  # of two classes one takes everything
        (1 / 2, 0.7, False),
        (1 / 3, 1.0, True),
        (1 / 3, 0.6, False),
        (1 / 10, 0.51, True),
        (1 / 10, 0.49, False),
        (0.9, 0.95, False),  # a lopsided pool
        (1.0, 1.0, False),  # one class
    ],
)
def test_warnings_of__one_class_taking_everything(expected, share, is_said):
    logs = {**FINE, "largest_share": share, "largest_expected": expected}
    assert bool(warnings_of(logs, NAMES, 0)) is is_said
