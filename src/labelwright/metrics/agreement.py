"""Watching pseudolabels without labels: agreement with clusters, imbalance, confidence, and the signs of failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelwright.labels.chunks import evenly_spread
from labelwright.metrics.classification import imbalance

ROWS_MAX = 50_000  # images that are clustered; more are thinned out evenly


@dataclass(frozen=True)
class Watch:
    """Clusters of the images, against which every later answer is held."""

    rows: Tensor  # [n] int64 rows clustered
    clusters: Tensor  # [n] int64 their cluster
    zero_shot_agreement: float  # of the answers that training began with

    @classmethod
    def start(cls, feats: Tensor, n_clusters: int, zero_shot: Tensor) -> Watch:
        """Cluster the images, features [N, D] of unit norm, with k-means; zero_shot: [N] answers of the names alone.

        Example:
          >>> watch = Watch.start(torch.eye(2).repeat(3, 1), 2, torch.tensor([0, 1] * 3))
          >>> watch.agreement(torch.tensor([1, 0] * 3)), watch.agreement(torch.zeros(6, dtype=torch.int64))
          (1.0, 0.0)
        """
        return cls.of_clusters(clusters_of(feats, n_clusters), zero_shot)

    @classmethod
    def of_clusters(cls, clusters: Tensor, zero_shot: Tensor) -> Watch:
        """Watch by clusters that are known, [N] int64, -1 = not looked at; zero_shot: as in `start`.

        Example:
          >>> Watch.of_clusters(torch.tensor([0, 1, -1]), torch.tensor([1, 0, 0])).zero_shot_agreement
          1.0
        """
        rows = (clusters.cpu() >= 0).nonzero().flatten()
        watch = cls(rows, clusters.cpu()[rows], 0.0)
        return cls(rows, watch.clusters, watch.agreement(zero_shot))

    def agreement(self, predicted: Tensor) -> float:
        """Normalised mutual information of answers [N] with the clusters, 0 to 1."""
        from sklearn.metrics import normalized_mutual_info_score

        answers = predicted.cpu()[self.rows].numpy()
        return float(normalized_mutual_info_score(self.clusters.numpy(), answers))

    def describe(
        self, predicted: Tensor, confidence: Tensor, class_feats: Tensor, expected: Tensor, *, threshold: float
    ) -> dict[str, Any]:
        """What to log of answers [N] with their confidence [N], given class features [C, D] and expected counts [C]."""
        counts = torch.bincount(predicted, minlength=len(expected))
        uneven = imbalance(counts)
        sims = class_feats @ class_feats.T
        n = len(class_feats)
        return {
            "cluster_agreement": self.agreement(predicted),
            "pseudo_counts": counts.tolist(),
            "imbalance_ratio": uneven["ratio"],
            "gini": uneven["gini"],
            "sure_frac": float((confidence > threshold).float().mean()),
            "largest_share": float(counts.max() / counts.sum().clamp(min=1)),
            "largest_expected": float(expected[counts.argmax()] / expected.sum().clamp(min=1e-9)),
            "largest_class": int(counts.argmax()),
            "class_similarity": float((sims.sum() - sims.trace()) / max(n * (n - 1), 1)),
        }

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"rows": self.rows, "clusters": self.clusters, "zero_shot_agreement": self.zero_shot_agreement}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Watch:
        """What `to_dict` gave."""
        return cls(saved["rows"].cpu(), saved["clusters"].cpu(), saved["zero_shot_agreement"])


def clusters_of(feats: Tensor, n_clusters: int) -> Tensor:
    """Cluster of each image by k-means on at most `ROWS_MAX` of them, evenly thinned out; -1 for the others.

    Args:
      feats: [N, D] float.   n_clusters: wanted; fewer if there are fewer different images.

    Returns: [N] int64 on the CPU.

    Example:
      >>> found = clusters_of(torch.eye(2).repeat(3, 1), 2)
      >>> bool((found[::2] == found[0]).all()), bool((found[1::2] == 1 - found[0]).all())
      (True, True)
    """
    from sklearn.cluster import KMeans

    n = len(feats)
    rows = evenly_spread(torch.arange(n), ROWS_MAX)
    z = feats[rows.to(feats.device)].float().cpu().numpy()
    n_distinct = min(n_clusters, len(np.unique(z, axis=0)))
    clusters = torch.full((n,), -1, dtype=torch.int64)
    clusters[rows] = torch.from_numpy(KMeans(n_distinct, n_init=1, random_state=0).fit(z).labels_.astype(np.int64))
    return clusters


def warnings_of(
    logs: Mapping[str, Any], class_names: Sequence[str], epoch: int, *, has_self_training: bool = True
) -> list[str]:
    """The failure signs of CAP, in words: collapse to the mean, stagnation, one class taking everything.

    Without self-training nothing can stand still.

    Example:
      >>> logs = {"class_similarity": 0.2, "sure_frac": 0.4, "largest_share": 0.9, "largest_expected": 0.1,
      ...         "largest_class": 1}
      >>> warnings_of(logs, ["cat", "dog"], 3)
      ["'dog' takes 90% of the pseudolabels in epoch 4, 10% were expected: lower lr or margin_scale"]
    """
    found = []
    if logs["class_similarity"] > 0.98:
        found.append(
            f"the class features have become alike (mean cosine {logs['class_similarity']:.3f} in epoch {epoch + 1}): "
            "collapse to the mean; lower margin_scale"
        )
    if has_self_training and logs["sure_frac"] == 0:
        found.append(
            f"not one image is classified with enough confidence in epoch {epoch + 1}: self-training stands still; "
            "lower confidence, or check that the names fit the images"
        )
    expected = logs["largest_expected"]  # with few classes three times as many is more than all: a third of the others
    if logs["largest_share"] > max(0.5, min(3 * expected, 1 - (1 - expected) / 3)):
        found.append(
            f"{class_names[logs['largest_class']]!r} takes {logs['largest_share']:.0%} of the pseudolabels in epoch "
            f"{epoch + 1}, {logs['largest_expected']:.0%} were expected: lower lr or margin_scale"
        )
    return found


def worse_than_names(agreement: float, zero_shot_agreement: float) -> list[str]:
    """What to report where the kept answers agree less with the clusters than those of the class names; else nothing.

    Example:
      >>> worse_than_names(0.8, 0.75), worse_than_names(0.5, 0.75)[0][:69]
      ([], 'the result agrees less with the clusters of the images (0.500) than t')
    """
    if agreement >= zero_shot_agreement:
        return []
    return [
        f"the result agrees less with the clusters of the images ({agreement:.3f}) than the class names alone did "
        f"({zero_shot_agreement:.3f}): it may be worse than zero-shot; compare with --method zero_shot"
    ]
