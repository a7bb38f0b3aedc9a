"""Scores of a classifier from one number per image: predicted class, its confidence, the truth.

Nothing here takes or makes an images x classes table, so the cost in memory is N + C + number of bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GROUPS = ("many", "medium", "few")
"""Groups of classes by how many training images they have, in the order shown."""
MANY_ABOVE = 100  # a class with more training images is one of the many
FEW_BELOW = 20  # a class with fewer is one of the few; those between are medium


def score(
    predicted: Tensor,
    confidence: Tensor,
    truth: Tensor,
    *,
    n_classes: int,
    train_counts: Tensor | Sequence[int] | None = None,
    n_bins: int = 15,
) -> dict[str, Any]:
    """Accuracy, per-class and per-group accuracy, and calibration, ready for JSON.

    Rows whose truth is -1 are not scored. A number that cannot be computed (a class without test images, a
    group without classes) is None, never 0.

    Args:
      predicted: [N] int, 0 to C-1.
      confidence: [N] float, 0 to 1: the probability given to the predicted class.
      truth: [N] int, -1 (unknown) to C-1.
      train_counts: [C] training images per class; without it there are no groups.
      n_bins: equal-width confidence bins (lower, upper] of the calibration error; 0 belongs to the first.

    Returns:
      ``n_scored``; ``accuracy``; ``balanced_accuracy`` (mean recall over the classes present in the truth);
      ``per_class`` (C recalls), ``precision`` (C) and ``n_per_class`` (C scored images of the truth); ``ece``
      (expected calibration error, 0 to 1);
      ``reliability``: {"all": table}, a table being a list of {lower, upper, count, confidence, accuracy} per bin.
      With ``train_counts`` also, for each group of GROUPS: ``many`` (mean recall over its classes), ``ece_many``, a
      table in ``reliability``, its number of classes in ``group_sizes``; and ``group_thresholds``.

    Raises:
      ValueError: shapes differ, or a class or confidence is outside its range.

    Source: many/medium/few: Liu et al. 2019 (arXiv 1904.05160), section 4; ece: Guo et al. 2017 (arXiv 1706.04599),
    Eq. (3).

    Example:
      >>> s = score(torch.tensor([0, 1, 1]), torch.tensor([0.9, 0.6, 0.8]), torch.tensor([0, 1, 0]), n_classes=3)
      >>> s["accuracy"], s["balanced_accuracy"], s["per_class"], s["precision"]
      (0.6666666666666666, 0.75, [0.5, 1.0, None], [1.0, 0.5, None])
      >>> round(s["ece"], 4)  # (|1 - 0.9| + |1 - 0.6| + |0 - 0.8|) / 3
      0.4333
    """
    predicted, confidence, truth = predicted.detach().cpu(), confidence.detach().cpu().double(), truth.detach().cpu()
    _check(predicted, confidence, truth, n_classes)
    counts = None if train_counts is None else torch.as_tensor(train_counts).cpu()
    if counts is not None and counts.shape != (n_classes,):
        raise ValueError(f"train_counts has shape {tuple(counts.shape)}, expected ({n_classes},)")
    scored = truth >= 0
    predicted, confidence, truth = predicted[scored].long(), confidence[scored], truth[scored].long()
    right = predicted == truth
    n_true = torch.bincount(truth, minlength=n_classes)
    n_predicted = torch.bincount(predicted, minlength=n_classes)
    n_right = torch.bincount(truth[right], minlength=n_classes)
    recall = n_right.double() / n_true  # nan where a class has no test image
    table = _reliability(confidence, right, n_bins)
    out: dict[str, Any] = {
        "n_scored": int(truth.numel()),
        "accuracy": _mean(right.double()),
        "balanced_accuracy": _mean(recall[n_true > 0]),
        "per_class": _nullable(recall),
        "precision": _nullable(n_right.double() / n_predicted),
        "n_per_class": n_true.tolist(),
        "ece": _ece(table),
        "reliability": {"all": table},
    }
    if counts is None:
        return out
    members = (counts > MANY_ABOVE, (counts <= MANY_ABOVE) & (counts >= FEW_BELOW), counts < FEW_BELOW)
    out["group_thresholds"] = {"many_above": MANY_ABOVE, "few_below": FEW_BELOW}
    out["group_sizes"] = {}
    for group, member in zip(GROUPS, members, strict=True):
        rows = member[truth]
        table = _reliability(confidence[rows], right[rows], n_bins)
        out[group] = _mean(recall[member & (n_true > 0)])
        out[f"ece_{group}"] = _ece(table)
        out["reliability"][group] = table
        out["group_sizes"][group] = int(member.sum())
    return out


def imbalance(counts: Tensor | Sequence[int]) -> dict[str, Any]:
    """How lopsided class counts are.

    Args:
      counts: [C] images per class, >= 0.

    Returns:
      ``ratio``: largest / smallest count, None while a class is empty; ``gini``: 0 (even) to 1 - 1/C (all in one
      class), the mean absolute difference of two counts over twice their mean, None if there is not an image;
      ``n_empty``: classes without an image.

    Raises:
      ValueError: there is no class, or a count is negative.

    Example:
      >>> imbalance([30, 10])
      {'ratio': 3.0, 'gini': 0.25, 'n_empty': 0}
      >>> imbalance([4, 0])
      {'ratio': None, 'gini': 0.5, 'n_empty': 1}
    """
    sizes = torch.as_tensor(counts).detach().cpu().double().flatten().sort().values
    if sizes.numel() == 0 or float(sizes[0]) < 0:
        raise ValueError("counts must hold at least one class and no negative number")
    C, total, smallest = sizes.numel(), float(sizes.sum()), float(sizes[0])
    # Sorted ascending, sum_i sum_j |n_i - n_j| = 2 sum_i (2i - C + 1) n_i with i from 0.
    spread = float(((2 * torch.arange(C, dtype=torch.float64) - C + 1) * sizes).sum())
    return {
        "ratio": float(sizes[-1]) / smallest if smallest > 0 else None,
        "gini": spread / (C * total) if total > 0 else None,
        "n_empty": int((sizes == 0).sum()),
    }


def top_confusions(
    predicted: Tensor, truth: Tensor, class_names: Sequence[str], *, k: int = 10
) -> list[dict[str, Any]]:
    """The k most frequent mistakes, most frequent first; ties by class index.

    Args:
      predicted: [N] int >= 0.
      truth: [N] int, -1 = unknown (left out).
      class_names: of both.
      k: how many pairs at most, >= 0.

    Returns:
      Up to k dicts: ``truth``, ``predicted`` (names), ``count``, ``frac`` (of the images of that true class).

    Raises:
      ValueError: shapes differ.

    Example:
      >>> top_confusions(torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 1]), ("cat", "dog", "owl"), k=1)
      [{'truth': 'cat', 'predicted': 'dog', 'count': 2, 'frac': 0.6666666666666666}]
    """
    if predicted.shape != truth.shape or truth.dim() != 1:
        raise ValueError(f"predicted {tuple(predicted.shape)} and truth {tuple(truth.shape)} must both be [N]")
    scored = truth >= 0
    predicted, truth = predicted[scored].long().cpu(), truth[scored].long().cpu()
    wrong = predicted != truth
    C = len(class_names)
    pairs, count = torch.unique(truth[wrong] * C + predicted[wrong], return_counts=True)  # only pairs that occur
    n_true = torch.bincount(truth, minlength=C)
    order = torch.argsort(count, descending=True, stable=True)[:k]
    return [
        {"truth": class_names[i // C], "predicted": class_names[i % C], "count": n, "frac": n / int(n_true[i // C])}
        for i, n in zip(pairs[order].tolist(), count[order].tolist(), strict=True)
    ]


def _check(predicted: Tensor, confidence: Tensor, truth: Tensor, n_classes: int) -> None:
    if not (predicted.shape == confidence.shape == truth.shape) or truth.dim() != 1:
        shapes = [tuple(t.shape) for t in (predicted, confidence, truth)]
        raise ValueError(f"predicted, confidence and truth must all be [N], got {shapes}")
    if truth.numel() == 0:
        return
    for name, classes, lowest in (("truth", truth, -1), ("predicted", predicted, 0)):
        if int(classes.min()) < lowest or int(classes.max()) >= n_classes:
            found = f"{int(classes.min())}..{int(classes.max())}"
            raise ValueError(f"{name} must lie in {lowest}..{n_classes - 1}, got {found}")
    if not bool(((confidence >= 0) & (confidence <= 1 + 1e-6)).all()):  # False for nan; float32 sums may pass 1
        raise ValueError("confidence must lie in 0..1 and hold no nan")


def _reliability(confidence: Tensor, right: Tensor, n_bins: int) -> list[dict[str, Any]]:
    """One row per bin (lower, upper]: count, mean confidence, accuracy (None where the bin is empty)."""
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(bins, minlength=n_bins)
    mean_confidence = _nullable(torch.bincount(bins, weights=confidence, minlength=n_bins) / count)
    accuracy = _nullable(torch.bincount(bins, weights=right.double(), minlength=n_bins) / count)
    return [
        {"lower": lower, "upper": upper, "count": n, "confidence": c, "accuracy": a}
        for lower, upper, n, c, a in zip(
            edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), mean_confidence, accuracy, strict=True
        )
    ]


def calibration_error(confidence: Tensor, right: Tensor, *, n_bins: int = 15) -> float:
    """Expected calibration error of confidences [N], 0 to 1, in predictions that are right [N] bool or not; N >= 1.

    Example:
      >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 4)
      0.4
    """
    found = _ece(_reliability(confidence.detach().cpu().double(), right.detach().cpu(), n_bins))
    assert found is not None, "there are rows"
    return found


def _ece(table: list[dict[str, Any]]) -> float | None:
    """Mean over rows of |accuracy - confidence| of their bin; None without rows."""
    total = sum(row["count"] for row in table)
    if total == 0:
        return None
    return float(sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table if row["count"]) / total)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None


def _nullable(values: Tensor) -> list[float | None]:
    """Numbers for JSON: nan (nothing to divide by) becomes None."""
    return [None if v != v else v for v in values.tolist()]
