"""Scores with novel classes: named classes count by their names, clusters by their best match to the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labelwright.errors import DataError


def cluster_match(predicted: Tensor, truth: Tensor) -> Tensor:
    """For each predicted class the true class it stands for, no two for the same one, so that most images are right.

    Args:
      predicted: [N] int >= 0, classes or clusters.
      truth: [N] int >= 0, any number of classes, more or fewer than the predicted ones.

    Returns: [P] int64, P = the largest predicted number + 1; -1 for a cluster without a class or an image.

    Raises: DataError: lengths differ, there is no image, or a number is negative.

    Source: Kuhn 1955 (Hungarian method), by scipy.

    Example: cluster 1 is class 0 twice of three times.
      >>> cluster_match(torch.tensor([0, 1, 1, 1]), torch.tensor([2, 0, 0, 1])).tolist()
      [2, 0]
    """
    from scipy.optimize import linear_sum_assignment

    table = _table(predicted, truth)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    match = torch.full((len(table),), -1, dtype=torch.int64)
    shared = table[rows, columns] > 0  # the method also pairs what is left over, with no image in common
    match[torch.from_numpy(rows)[shared]] = torch.from_numpy(columns)[shared]
    return match


def open_match(predicted: Tensor, truth: Tensor, *, n_seen: int) -> Tensor:
    """For each predicted class the true one it stands for: itself if it has a name, else as `cluster_match` says.

    Args:
      predicted, truth: [N] int >= 0; 0..n_seen-1 are the seen classes in both.
      n_seen: classes with a name, >= 0.

    Returns: [P] int64, P = the larger of n_seen and the largest predicted number + 1; -1 for a cluster without a class.

    Example: cluster 2 holds the novel class 3, whatever seen images it holds besides.
      >>> open_match(torch.tensor([0, 2, 2, 2]), torch.tensor([1, 1, 1, 3]), n_seen=2).tolist()
      [0, 1, 3]
    """
    match = torch.full((max(n_seen, int(predicted.max()) + 1 if len(predicted) else 0),), -1, dtype=torch.int64)
    match[:n_seen] = torch.arange(n_seen)
    both = (predicted >= n_seen) & (truth >= n_seen)
    if both.any():
        found = cluster_match(predicted[both] - n_seen, truth[both] - n_seen)
        match[n_seen : n_seen + len(found)] = torch.where(found >= 0, found + n_seen, -1)
    return match


def seen_novel_all(predicted: Tensor, truth: Tensor, *, n_seen: int) -> dict[str, Any]:
    """Accuracy on seen classes, on novel ones and on all; named classes by name, clusters by `open_match`.

    Args:
      predicted: [N] int >= 0; 0..n_seen-1 are the seen classes.
      truth: [N] int, likewise, -1 = unknown: left out; n_seen and above are novel classes in any order.
      n_seen: classes with a name, >= 0.

    Returns: seen, novel, all (None without images), n_seen_images, n_novel_images, n_novel_classes (that have an
      image), n_clusters_used (novel outputs with an image), to_seen (share of novel images taken for a seen class) and
      to_novel (the other way round).

    Raises: DataError: lengths differ, or no truth is known.

    Source: Cao et al. 2022 (arXiv 2102.03526), Sec. 4. Differs: there novel and all are matched freely, so that a named
    class may stand for another or for a novel one; here it never does, and these are at most what they are there.

    Example:
      >>> scores = seen_novel_all(torch.tensor([0, 0, 3, 2]), torch.tensor([0, 1, 2, 3]), n_seen=2)
      >>> scores["seen"], scores["novel"], scores["all"], scores["n_clusters_used"]
      (0.5, 1.0, 0.75, 2)
    """
    if predicted.shape != truth.shape:
        raise DataError(f"{len(predicted)} predictions for {len(truth)} images", fix="pass one of each per image")
    known = truth >= 0
    if not known.any():
        raise DataError("no image has a known class", fix="give images with labels, or a truth")
    predicted, truth = predicted[known].cpu().long(), truth[known].cpu().long()
    is_seen = truth < n_seen
    right = open_match(predicted, truth, n_seen=n_seen)[predicted] == truth
    novel = predicted[~is_seen]
    return {
        "seen": float(right[is_seen].double().mean()) if is_seen.any() else None,
        "novel": float(right[~is_seen].double().mean()) if (~is_seen).any() else None,
        "all": float(right.double().mean()),
        "n_seen_images": int(is_seen.sum()),
        "n_novel_images": int((~is_seen).sum()),
        "n_novel_classes": len(torch.unique(truth[~is_seen])),
        "n_clusters_used": len(torch.unique(predicted[predicted >= n_seen])),
        "to_seen": float((novel < n_seen).float().mean()) if (~is_seen).any() else None,
        "to_novel": float((predicted[is_seen] >= n_seen).float().mean()) if is_seen.any() else None,
    }


def _table(predicted: Tensor, truth: Tensor) -> Tensor:
    """Images [P, T] of each predicted and each true class."""
    if predicted.shape != truth.shape:
        raise DataError(f"{len(predicted)} predictions for {len(truth)} images", fix="pass one of each per image")
    if len(predicted) == 0 or int(predicted.min()) < 0 or int(truth.min()) < 0:
        raise DataError("no image, or a class below 0", fix="leave images of unknown class out")
    predicted, truth = predicted.cpu().long(), truth.cpu().long()
    n_predicted, n_true = int(predicted.max()) + 1, int(truth.max()) + 1
    return torch.bincount(predicted * n_true + truth, minlength=n_predicted * n_true).view(n_predicted, n_true)
