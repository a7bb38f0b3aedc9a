"""Oracles: torchmetrics, scikit-learn, and slow loops in float64."""

import json
import math

import pytest
import torch
import torchmetrics.functional.classification as oracle
from sklearn.metrics import balanced_accuracy_score, precision_score

from labelwright.metrics.classification import imbalance, score, top_confusions

N, C = 4000, 12


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(N, C, generator=generator)).softmax(1)
    confidence, predicted = probs.max(1)
    truth = torch.where(
        torch.rand(N, generator=generator) < 0.5, predicted, torch.randint(C - 1, (N,), generator=generator)
    )
    truth[truth == C - 1] = 0  # the last class has no test image
    return probs, predicted, confidence, truth


def test_score__agrees_with_torchmetrics_and_sklearn(rows):
    probs, predicted, confidence, truth = rows
    s = score(predicted, confidence, truth, n_classes=C)
    accuracy = oracle.multiclass_accuracy(predicted, truth, num_classes=C, average="micro")
    ece = oracle.multiclass_calibration_error(probs, truth, num_classes=C, n_bins=15, norm="l1")
    assert s["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    assert s["ece"] == pytest.approx(float(ece), abs=1e-6)
    # scikit-learn warns of predicted classes that the truth lacks: recall is over the classes present, as here.
    recall = [float((predicted[truth == c] == c).double().mean()) for c in range(C - 1)]
    assert s["balanced_accuracy"] == pytest.approx(sum(recall) / (C - 1), abs=1e-12)
    assert s["per_class"] == [*map(pytest.approx, recall), None]
    precision = precision_score(truth.numpy(), predicted.numpy(), average=None, labels=range(C))
    assert s["precision"] == pytest.approx(precision.tolist())
    assert s["n_scored"] == N


def test_score__balanced_accuracy_is_sklearns(rows):
    _, predicted, confidence, truth = rows
    keep = predicted < C - 1
    s = score(predicted[keep], confidence[keep], truth[keep], n_classes=C)
    assert s["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth[keep], predicted[keep]), abs=1e-12)


def test_score__unknown_rows_change_nothing(rows):
    _, predicted, confidence, truth = rows
    more = [torch.cat([t, t[:50]]) for t in (predicted, confidence, truth)]
    more[2][N:] = -1
    assert score(*more, n_classes=C) == score(predicted, confidence, truth, n_classes=C)


def test_score__groups_by_hand():
    # Classes 0 (101 training images: many), 1 (100: medium), 2 (20: medium), 3 (19: few).
    truth = torch.tensor([0, 0, 1, 1, 2, 3])
    predicted = torch.tensor([0, 1, 1, 1, 0, 3])
    confidence = torch.tensor([0.7, 0.7, 0.5, 0.5, 1.0, 0.25])
    s = score(predicted, confidence, truth, n_classes=4, train_counts=[101, 100, 20, 19], n_bins=4)
    assert (s["many"], s["medium"], s["few"]) == (1 / 2, (1 + 0) / 2, 1.0)
    assert s["group_thresholds"] == {"many_above": 100, "few_below": 20}
    assert s["group_sizes"] == {"many": 1, "medium": 2, "few": 1}
    assert s["ece_many"] == pytest.approx(abs(0.5 - 0.7), abs=1e-7)
    assert s["ece_medium"] == pytest.approx((2 * abs(1 - 0.5) + 1 * abs(0 - 1)) / 3, abs=1e-7)
    assert s["ece_few"] == pytest.approx(1 - 0.25, abs=1e-7)
    # (lower, upper]: 0.5 falls in (0.25, 0.5] and 0.25 in (0, 0.25].
    assert [row["count"] for row in s["reliability"]["all"]] == [1, 2, 2, 1]
    assert sum(row["count"] for g in ("many", "medium", "few") for row in s["reliability"][g]) == 6


def test_score__absent_group_and_no_rows_are_none_and_json():
    one = torch.tensor([0])
    s = score(one, torch.tensor([0.9]), one, n_classes=1, train_counts=torch.tensor([500]))
    assert (s["many"], s["medium"], s["few"], s["ece_few"]) == (1.0, None, None, None)
    nothing = score(one, torch.tensor([0.9]), torch.tensor([-1]), n_classes=1)
    assert (nothing["accuracy"], nothing["balanced_accuracy"], nothing["ece"], nothing["n_scored"]) == (
        None,
        None,
        None,
        0,
    )
    assert json.loads(json.dumps([s, nothing], allow_nan=False)) == [s, nothing]


@pytest.mark.parametrize(
    ("predicted", "confidence", "truth", "message"),
    [
        ([0, 1], [0.5], [0, 1], r"must all be \[N\]"),
        ([0], [0.5], [3], "truth must lie in -1..2, got 3..3"),
        ([0], [0.5], [-2], "truth must lie in"),
        ([-1], [0.5], [0], "predicted must lie in 0..2"),
        ([0], [1.5], [0], "confidence must lie"),
        ([0], [math.nan], [0], "confidence must lie"),
    ],
)
def test_score__bad_input(predicted, confidence, truth, message):
    with pytest.raises(ValueError, match=message):
        score(torch.tensor(predicted), torch.tensor(confidence), torch.tensor(truth), n_classes=3)


def test_score__bad_train_counts():
    with pytest.raises(ValueError, match=r"train_counts has shape \(2,\), expected \(3,\)"):
        score(torch.tensor([0]), torch.tensor([0.5]), torch.tensor([0]), n_classes=3, train_counts=[1, 2])


def test_imbalance__slow_loop():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # CIFAR-10-LT, ratio 100
    mean = sum(counts) / len(counts)
    gini = sum(abs(a - b) for a in counts for b in counts) / (2 * len(counts) ** 2 * mean)
    found = imbalance(torch.tensor(counts))
    assert found["ratio"] == pytest.approx(100)
    assert found["gini"] == pytest.approx(gini, abs=1e-12)
    assert found["n_empty"] == 0


def test_imbalance__limits():
    assert imbalance([7, 7, 7]) == {"ratio": 1.0, "gini": 0.0, "n_empty": 0}
    assert imbalance([0, 0, 9, 0])["gini"] == pytest.approx(1 - 1 / 4)
    assert imbalance([0, 0]) == {"ratio": None, "gini": None, "n_empty": 2}
    with pytest.raises(ValueError, match="negative"):
        imbalance([3, -1])


def test_top_confusions__slow_loop(rows):
    _, predicted, _, truth = rows
    found = top_confusions(predicted, truth, range(C), k=5)
    cells = {}
    for p, t in zip(predicted.tolist(), truth.tolist(), strict=True):
        if p != t:
            cells[t, p] = cells.get((t, p), 0) + 1
    best = sorted(cells.items(), key=lambda item: (-item[1], item[0]))[:5]
    assert [((f["truth"], f["predicted"]), f["count"]) for f in found] == best
    assert found[0]["frac"] == pytest.approx(best[0][1] / int((truth == best[0][0][0]).sum()))


def test_top_confusions__nothing_wrong_or_unknown():
    assert top_confusions(torch.tensor([0, 1]), torch.tensor([0, -1]), ("cat", "dog")) == []
