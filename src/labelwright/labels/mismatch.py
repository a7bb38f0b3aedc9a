"""Which classes does a vision-language model not know by their name?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

CHUNK = 8192  # rows scored at a time


@dataclass(frozen=True)
class Mismatch:
    """What `detect_mismatched` found.

    Attributes:
      is_mismatched: [C] bool.
      evidence: [C] float32, 0 to 1: see `evidence`.
      threshold: evidence below it is a mismatch; 0 when no class is mismatched.
    """

    is_mismatched: Tensor
    evidence: Tensor
    threshold: float


def evidence(feats: Tensor, class_feats: Tensor, *, logit_scale: float, top_frac: float = 0.1) -> Tensor:
    """How sure the model is of a class at its best: its mean probability over the images that look most like it.

    Args:
      feats: [N, D] float, unit norm, of images.
      class_feats: [C, D] float, unit norm, of class names.
      logit_scale: what cosines are multiplied by.
      top_frac: images looked at per class, as a share of N / C; at least one.

    Returns: [C] float32, 0 to 1.

    Example: nothing looks like the second class.
      >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
      >>> [round(v, 2) for v in evidence(z, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), logit_scale=5.0).tolist()]
      [1.0, 0.0]
    """
    n_best = max(1, int(top_frac * len(feats) / len(class_feats)))
    best = feats.new_zeros(0, len(class_feats)).float()
    for some in torch.split(feats, CHUNK):
        probs = (logit_scale * some.float() @ class_feats.float().T).softmax(1)
        best = torch.cat([best, probs]).topk(min(n_best, len(best) + len(probs)), dim=0).values
    return best.mean(0)


def detect_mismatched(
    feats: Tensor, class_feats: Tensor, *, logit_scale: float, labelled: Tensor | None = None, top_frac: float = 0.1
) -> Mismatch:
    """Find the classes whose name fits none of the images, without clustering: in one pass over the images.

    A class that the name names well is sure of at least some images, however rare it is; a mismatched one is sure of
    none. The threshold comes from the data: of the cuts below which the classes have less than half the evidence of
    the others on average, the one that separates them best (Otsu); no class is mismatched if there is no such cut. So
    any number of classes may be mismatched, most of them included; if all are, there is nothing to tell them by. A
    class that is absent from the images looks the same as a mismatched one.

    Args:
      feats: [N, D] float, unit norm, of unlabelled images.
      class_feats: [C, D] float, unit norm, of class names.
      logit_scale: what cosines are multiplied by.
      labelled: [C] bool, classes known by labelled images: never mismatched; None = none.
      top_frac: see `evidence`.

    Source: replaces Algorithm 1 of arXiv 2505.02056 (`detect_by_clustering`); Otsu 1979 for the threshold.

    Example:
      >>> z = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> names = torch.tensor([[1.0, 0.0], [-0.6, -0.8], [0.0, 1.0]])
      >>> detect_mismatched(z, names, logit_scale=10.0).is_mismatched.tolist()
      [False, True, False]
    """
    found = evidence(feats, class_feats, logit_scale=logit_scale, top_frac=top_frac)
    none = torch.zeros(len(found), dtype=torch.bool, device=found.device)
    ordered = found.sort().values
    low = ordered.cumsum(0)[:-1]
    n_low = torch.arange(1, len(found), device=found.device)
    mean_low, mean_high = low / n_low, (ordered.sum() - low) / (len(found) - n_low)
    if not len(low):
        return Mismatch(none, found, 0.0)
    separation = n_low * (len(found) - n_low) * (mean_high - mean_low) ** 2
    separation = separation.masked_fill(mean_low >= 0.5 * mean_high, -1.0)
    cut = int(separation.argmax())
    if separation[cut] < 0:
        return Mismatch(none, found, 0.0)
    threshold = float(ordered[cut] + ordered[cut + 1]) / 2
    is_mismatched = found < threshold
    return Mismatch(is_mismatched if labelled is None else is_mismatched & ~labelled, found, threshold)


def detect_by_clustering(
    feats: Tensor, class_feats: Tensor, *, logit_scale: float, n_left: int | None = None, seed: int = 0
) -> Tensor:
    """The paper's detection: cluster, settle the surest class with its images, take both away, and again.

    Kept for comparison: one k-means per class, and the number of mismatched classes is fixed beforehand.

    Args:
      feats: [N, D] float, unit norm.   class_feats: [C, D] float, unit norm.
      logit_scale: what cosines are multiplied by.
      n_left: classes left over; None = C / 10, at least 1.
      seed: of k-means.

    Returns: [C] bool, the classes left over.

    Source: arXiv 2505.02056, Algorithm 1.

    Example:
      >>> z = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> detect_by_clustering(z, torch.tensor([[1.0, 0.0], [-0.6, -0.8]]), logit_scale=10.0).tolist()
      [False, True]
    """
    n_rows, n_classes = len(feats), len(class_feats)
    n_left = max(1, n_classes // 10) if n_left is None else n_left
    z, t = feats.float().cpu(), class_feats.float().cpu()
    logits = logit_scale * z @ t.T
    rows, classes = torch.arange(n_rows), torch.arange(n_classes)
    per_class = n_rows // n_classes
    while len(classes) > n_left and len(rows) > len(classes):
        clusters = KMeans(len(classes), n_init=1, random_state=seed).fit(z[rows].numpy())
        assigned = torch.from_numpy(clusters.labels_.astype(np.int64))
        centres = F.normalize(torch.from_numpy(clusters.cluster_centers_).float(), dim=1)
        over_centres = (logit_scale * t[classes] @ centres.T).softmax(1)  # [c, K]
        best = int(over_centres.max(1).values.argmax())
        cluster = int(over_centres[best].argmax())
        probs = logits[rows][:, classes].softmax(1)
        is_own = probs.argmax(1) == best
        order = probs[:, best].argsort(descending=True)
        own = order[(is_own & (assigned == cluster))[order]][:per_class]
        more = order[(is_own & (assigned != cluster))[order]][: per_class - len(own)]
        keep = torch.ones(len(rows), dtype=torch.bool)
        keep[torch.cat([own, more])] = False
        rows, classes = rows[keep], classes[torch.arange(len(classes)) != best]
    left = torch.zeros(n_classes, dtype=torch.bool)
    left[classes] = True
    return left
