"""Answers of a classifier held against the truth: JSON-ready scores for summary.json and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelwright.data.table import LabelTable
from labelwright.metrics.classification import imbalance, score, top_confusions
from labelwright.metrics.open_world import open_match, seen_novel_all
from labelwright.train.predict import Answers
from labelwright.types import Candidates


def scores_of(answers: Answers, truth: NDArray[np.int32], train_counts: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of answers against the truth: JSON-ready, see metrics.classification.score."""
    return score(
        answers.predicted,
        answers.probability,
        torch.from_numpy(truth.astype(np.int64)),
        n_classes=len(train_counts),
        train_counts=torch.from_numpy(train_counts),
    )


FEW_SCORES = ("accuracy", "balanced_accuracy", "seen", "novel", "ece")


def few_scores(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Those of FEW_SCORES among the scores that have a value; None of None.

    Example:
      >>> few_scores({"accuracy": 0.5, "ece": None, "per_class": [0.5]})
      {'accuracy': 0.5}
    """
    return None if scores is None else {key: scores[key] for key in FEW_SCORES if scores.get(key) is not None}


def seen_unseen(scores: Mapping[str, Any], train_counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Mean recall over classes with labels (seen), without (unseen), and their harmonic mean.

    Example:
      >>> seen_unseen({"per_class": [1.0, 0.5, None]}, np.array([3, 0, 0]))
      {'seen': 1.0, 'unseen': 0.5, 'harmonic': 0.6666666666666666}
    """
    groups: dict[str, list[float]] = {"seen": [], "unseen": []}
    for recall, n in zip(scores["per_class"], train_counts.tolist(), strict=True):
        if recall is not None:
            groups["seen" if n else "unseen"].append(recall)
    seen, unseen = (sum(g) / len(g) if g else None for g in groups.values())
    both = None if seen is None or unseen is None else 2 * seen * unseen / max(seen + unseen, 1e-12)
    return {"seen": seen, "unseen": unseen, "harmonic": both}


def confusions(answers: Answers, truth: NDArray[np.int32], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The ten pairs of classes most often taken for each other, by name: JSON-ready."""
    return top_confusions(answers.predicted, torch.from_numpy(truth.astype(np.int64)), class_names)


def truth_beyond(table: LabelTable, n_seen: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The true class of every image, [N] int64, -1 = unknown, and the names of all classes: for scoring only.

    The table's ``class_names`` begin with the ``n_seen`` seen ones; the classes of the truth alone come after them.
    """
    labels = np.where(table.labels < n_seen, table.labels, -1).astype(np.int64)
    if table.truth is None:
        return labels, table.class_names[:n_seen]
    truth = table.truth.astype(np.int64)
    return np.where(labels >= 0, labels, truth), table.truth_names


def open_scores(answers: Answers, truth: NDArray[np.int64], names: Sequence[str], *, n_seen: int) -> dict[str, Any]:
    """Scores of answers some of which are clusters, with the truth and the names of `truth_beyond`: JSON-ready.

    Returns: as metrics.classification.score after discovered classes were given the true class they fit best (so that
      ``accuracy`` is that of all images), plus metrics.open_world.seen_novel_all, ``confidence_seen`` and
      ``confidence_novel`` (mean, of images that are so in truth), ``confusions``, ``class_names`` of per_class, and
      ``matched`` (true class of each output, None: none).
    """
    known = torch.from_numpy(truth >= 0)
    predicted, target = answers.predicted[known], torch.from_numpy(truth)[known]
    match = open_match(predicted, target, n_seen=n_seen)
    n_classes = len(names)
    mapped = match[predicted]
    mapped = torch.where(mapped < 0, n_classes, mapped)  # an output without a class is never right
    scores = score(mapped, answers.probability[known], target, n_classes=n_classes + 1)
    scores |= {key: scores[key][:n_classes] for key in ("per_class", "precision", "n_per_class")}
    is_novel = target >= n_seen
    sure = answers.probability[known]
    return (
        scores
        | seen_novel_all(predicted, target, n_seen=n_seen)
        | {
            "confidence_seen": float(sure[~is_novel].mean()) if (~is_novel).any() else None,
            "confidence_novel": float(sure[is_novel].mean()) if is_novel.any() else None,
            "confusions": top_confusions(mapped, target, [*names, "no class"]),
            "class_names": list(names),
            "matched": [names[m] if m >= 0 else None for m in match.tolist()],
        }
    )


def pseudolabel_scores(answers: Answers, table: LabelTable, hidden: torch.Tensor) -> dict[str, Any]:
    """Class sizes of the answers on images without a label (hidden, [N] bool); scores where there is a truth."""
    n_classes = len(table.class_names)
    predicted = answers.predicted[hidden]
    counts = torch.bincount(predicted, minlength=n_classes)
    uneven = imbalance(counts)
    found: dict[str, Any] = {"imbalance_ratio": uneven["ratio"], "gini": uneven["gini"], "counts": counts.tolist()}
    if table.truth is not None:
        truth = torch.from_numpy(table.truth.astype(np.int64))[hidden]
        is_known = (truth >= 0) & (truth < n_classes)
        if is_known.any():
            scored = score(
                predicted[is_known], answers.probability[hidden][is_known], truth[is_known], n_classes=n_classes
            )
            found |= {"accuracy": scored["accuracy"], "per_class": scored["per_class"]}
    return found


def guess_counts(
    candidates: Candidates, *, n_classes: int, truth: NDArray[np.integer[Any]] | None = None
) -> dict[str, Any]:
    """Class by class, how often candidate sets hold it and how often it is their first guess: JSON-ready.

    The first guess is the most probable candidate; k that tie count 1/k each, so that no class gains by its place.

    Args:
      candidates: sets of N rows.
      truth: [N] class indices, -1 = unknown, C and above = no class of the list; None = no truth. For scoring only.

    Returns: named [C] (sets that hold the class with a weight above 0), first [C], is_ranked (some set has a candidate
      that weighs less than another), sizes (sets with 0, 1, 2, ... candidates); with a truth also n_scored, accuracy of
      the first guess and per_class, its recall (None: no images).

    Example: the second image has two candidates that tie.
      >>> sets = Candidates(torch.tensor([0, 2, 4]), torch.tensor([0, 1, 1, 2]), torch.tensor([0.9, 0.1, 0.5, 0.5]))
      >>> facts = guess_counts(sets, n_classes=3, truth=np.array([0, 2]))
      >>> facts["named"], facts["first"], facts["sizes"], facts["accuracy"], facts["per_class"]
      ([1, 2, 1], [1.0, 0.5, 0.5], [0, 0, 2], 0.75, [1.0, None, 0.5])
    """
    n_rows = len(candidates)
    weights = torch.ones(len(candidates.classes)) if candidates.weights is None else candidates.weights.float()
    rows = torch.repeat_interleave(torch.arange(n_rows), candidates.offsets.diff())
    counted = weights > 0
    rows, weights, classes = rows[counted], weights[counted], candidates.classes.long()[counted]
    is_first = weights == torch.zeros(n_rows).scatter_reduce_(0, rows, weights, "amax")[rows]
    n_tied = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, rows, is_first.double())
    share = is_first / n_tied[rows]
    facts: dict[str, Any] = {
        "named": torch.bincount(classes, minlength=n_classes).tolist(),
        "first": [round(n, 4) for n in torch.bincount(classes, share, minlength=n_classes).tolist()],
        "is_ranked": not bool(is_first.all()),
        "sizes": torch.bincount(torch.bincount(rows, minlength=n_rows)).tolist(),
    }
    known = None if truth is None else torch.from_numpy(np.asarray(truth, dtype=np.int64))
    if known is None or not (known >= 0).any():
        return facts
    right = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, rows, share * (classes == known[rows]))
    listed = (known >= 0) & (known < n_classes)
    of_class = torch.bincount(known[listed], minlength=n_classes)
    found = torch.bincount(known[listed], right[listed], minlength=n_classes)
    per_class = [round(r / n, 4) if n else None for r, n in zip(found.tolist(), of_class.tolist(), strict=True)]
    scored = {"n_scored": int(listed.sum()), "per_class": per_class}
    return facts | scored | {"accuracy": round(float(right[listed].mean()), 4) if listed.any() else None}
