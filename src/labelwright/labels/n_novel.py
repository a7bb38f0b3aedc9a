"""Classes that nobody named: how many there are, which images are theirs, and what to show of each.

`estimate_n_novel` says how many clusters to ask `semi_supervised_kmeans` for; `describe_clusters` gives the rows to
look at. All of them work on unit-norm features and in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.labels.chunks import slices_of
from labelwright.labels.kmeans import assign, checked, lloyd, means, starts

SEARCH_ROWS = 8_000  # rows clustered while looking for the number of classes, at least; and SEARCH_ROWS_PER of each
SEARCH_ROWS_PER = 50
N_RUNS = 4  # clusterings of all these rows per number of classes, and as many of halves of them
N_STARTS = 3  # of each clustering; the best after FIRST_STEPS goes on for at most LAST_STEPS
FIRST_STEPS = 3
LAST_STEPS = 20
AGREEMENT_WEIGHT = 0.75  # in the score; the rest is stability
TIE = 0.03  # of the score, within which the largest number wins: small classes merge before large ones are split
TIE_SHARE = 0.1  # the same as a share of what the best score lacks of 1, if that is more: blurred classes, flat curves
MARGIN = 0.05  # of the score, within which a number is plausible
SMOOTHING = 0.04  # standard deviation in log(clusters) over which scores are averaged; nothing below 20 clusters


EXPECTED_UNLIKE = 0.05
"""Share of labelled images under the bar of `unlike_labelled`."""

UNLIKE = 0.125
"""Share of unlabelled images under it from which classes nobody named are likely. Three seeds of 4,000 images each of
CIFAR-10 and GTSRB, which chose it: at most 0.10 where there are none, 0.23 to 0.47 where half of the classes are."""

QUANTILE_ROWS = 1 << 23  # torch.quantile takes no more


def unlike_labelled(feats: Tensor, labels: Tensor) -> float:
    """Share of the unlabelled images that look unlike every labelled class: 0.05 is expected where all are of these.

    An image is unlike a class by its cosine to the mean of the class's labelled images; the bar is the one that 5% of
    the labelled images miss, each left out of its own mean.

    Args:
      feats: [N, D] float, any norm.
      labels: [N] int64, -1 = unknown.

    Returns: 0 to 1; 0 where too little is labelled to tell (fewer than two images in every class), or nothing is
      unlabelled.

    Example: two of four unlabelled images point elsewhere.
      >>> labelled = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1], [1.0, 0.1, 0.1]])
      >>> others = torch.tensor([[1.0, 0.05, 0.05], [1.0, 0.0, 0.05], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
      >>> unlike_labelled(torch.cat([labelled, others]), torch.tensor([0] * 4 + [-1] * 4))
      0.5
    """
    z, known = F.normalize(feats.float(), dim=1), labels >= 0
    classes, own, sizes = torch.unique(labels[known], return_inverse=True, return_counts=True)
    if not bool((sizes > 1).any()) or bool(known.all()):
        return 0.0
    sums = torch.zeros(len(classes), z.shape[1], device=z.device).index_add_(0, own, z[known])
    means = F.normalize(sums, dim=1)
    several = sizes[own] > 1  # left out of a mean of its own, a single image has none
    rows, its = z[known][several], own[several]
    left_out = (rows * F.normalize(sums[its] - rows, dim=1)).sum(1)
    others = (rows @ means.T).scatter(1, its[:, None], -2.0).amax(1)
    bar = torch.quantile(torch.maximum(left_out, others)[:QUANTILE_ROWS], EXPECTED_UNLIKE)
    near = torch.cat([(some @ means.T).amax(1) for some in torch.split(z[~known], 16_384)])
    return round(float((near < bar).float().mean()), 4)


def estimate_n_novel(
    feats: Tensor, labels: Tensor, *, n_seen: int, fewest: int = 0, most: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """How many classes the unlabelled rows hold beyond the seen ones.

    For each number of clusters, plain k-means that sees no label clusters a sample of the rows from several starts, and
    halves of the sample. Two things speak for a number: the labelled rows fall into clusters as they fall into classes
    (agreement), and these clusterings are alike (stability), both by adjusted Rand indices. The score is 3/4 agreement
    and 1/4 stability; of the numbers within 0.03 of the best score, or within a tenth of what that lacks of 1, the
    largest wins: k-means merges small classes while it already splits large ones, and one class too many costs less
    than two classes in one.
    With one seen class there is no agreement to measure: it is how far labelled rows stay together, and no novel class
    is the answer where two clusters cut the one class in two.

    Args:
      feats: [N, D] float, any norm above 0; scaled to unit norm first.
      labels: [N] int, 0..n_seen-1, or -1 = unknown; some labelled row is needed.
      n_seen: >= 1.
      fewest, most: 0 <= fewest <= most <= unlabelled rows; None: 3 n_seen + 20, at most a tenth of the unlabelled rows.
      seed: any int >= 0; the same seed gives the same result on the same kind of device.

    Returns, ready for JSON:
      n_novel: the estimate, in fewest..most; 0 when nothing is unlabelled.   n_seen: seen classes, which come on top.
      fewest, most: range examined.
      plausible: least and greatest number examined whose score is within 0.05 of the best, or about equal to it.
      is_edge: whether the estimate is ``most``, or a ``fewest`` above 0 scores about as well as the best: the truth
        may lie outside.
      curve: by n_novel ascending, dicts of n_novel (int), and of agreement, stability and score (float, up to 1). Not
        every number of a wide range is examined.
      reason: a few sentences for a human.

    Raises: DataError as `semi_supervised_kmeans`, and without any label; ConfigError for a range that is none.

    Source: own. The agreement is the criterion of Vaze et al. 2022 (arXiv 2201.02609) with the Rand index in place of
    accuracy; the stability that of Lange et al. 2004 (Neural Computation 16), over starts and halves. Weights and
    tolerances were set on embeddings of CIFAR-10 and GTSRB by a small CLIP; benchmarks/n_novel.py measures it.
    Classes that the features do not tell apart count as one.

    Cost: about 30 numbers, 8 clusterings each, of 8,000 rows (50 per cluster if that is more).

    Example: two seen classes and a third that nobody labelled.
      >>> feats = torch.eye(3).repeat(20, 1) + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
      >>> labels = torch.tensor([0, 1, -1] * 10 + [-1] * 30)
      >>> found = estimate_n_novel(feats, labels, n_seen=2)
      >>> found["n_novel"], found["most"], [row["n_novel"] for row in found["curve"]]
      (1, 4, [0, 1, 2, 3, 4])
    """
    z, labels = checked(feats, labels, n_seen=n_seen)
    n_free = int((labels < 0).sum())
    if n_seen < 1 or n_free == len(z):
        raise DataError(
            f"{n_seen} seen classes and {len(z) - n_free} labelled images: nothing says how large a class is",
            fix="label a few images of some classes, or give the number of novel classes yourself",
        )
    if most is None:
        most = max(min(3 * n_seen + 20, n_free // 10), min(fewest, n_free))
    if not 0 <= fewest <= most <= n_free:
        raise ConfigError(
            f"the range of novel classes is {fewest}..{most}, with {n_free} unlabelled images",
            fix=f"give 0 <= fewest <= most <= {n_free}",
        )
    draw = torch.Generator().manual_seed(seed)
    n_rows = min(len(z), max(SEARCH_ROWS, SEARCH_ROWS_PER * (n_seen + most)))
    most = min(most, max(fewest, n_rows - n_seen))
    rows = _sample(torch.arange(len(z)), n_rows, draw).to(z.device)
    known = _sample((labels >= 0).nonzero().flatten().cpu(), n_rows, draw).to(z.device)
    search = _Search(z[rows], z[known], labels[known], n_seen=n_seen, seed=seed)
    for n_novel in _first_numbers(fewest, most, n_seen):
        search.examine(n_seen + n_novel)
    tried = sorted(search.found)
    at = _best([search.found[k] for k in tried])
    between = range(tried[max(at - 1, 0)] + 1, tried[min(at + 1, len(tried) - 1)])
    for n_classes in between[:: max(1, len(between) // 8)]:
        search.examine(n_classes)
    curve = _smooth([{"n_novel": k - n_seen, **search.found[k]} for k in sorted(search.found)], n_seen)
    return _evidence(curve, n_seen=n_seen, fewest=fewest, most=most)


def _sample(rows: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """At most n of the rows, in order."""
    return rows if len(rows) <= n else rows[torch.randperm(len(rows), generator=draw)[:n].sort().values]


def _first_numbers(fewest: int, most: int, n_seen: int) -> list[int]:
    """Numbers of novel classes to look at first: all of the first nine, then steps that grow as the total does."""
    numbers = set(range(fewest, min(fewest + 8, most) + 1)) | {most}
    n = fewest + 8
    while n < most:
        numbers.add(n)
        n += max(1, round(0.08 * (n_seen + n)))
    return sorted(numbers)


class _Search:
    """Scores of numbers of clusters, kept once computed."""

    def __init__(self, z: Tensor, z_known: Tensor, labels: Tensor, *, n_seen: int, seed: int):
        self.z, self.z_known, self.labels = z, z_known, labels
        self.n_seen, self.seed = n_seen, seed
        self.has_one = bool((labels == labels[0]).all())
        self.found: dict[int, dict[str, float]] = {}

    def examine(self, n_classes: int) -> None:
        """Score a number of clusters, unless it is known."""
        if n_classes in self.found:
            return
        clusterings = self._clusterings(max(n_classes, 2))
        agreement, stability = 0.0, 0.0
        if n_classes == 1:  # one seen class, no novel one: it is all there is if two clusters would cut it
            share = torch.bincount(clusterings[0][1], minlength=2).double() / len(self.labels)
            stability = agreement = min(1.0, float(torch.special.entr(share).sum().exp()) - 1)
        elif all(
            int((torch.bincount(rows, minlength=n_classes) > 0).sum()) == n_classes for rows, _ in clusterings
        ):  # else too few rows differ
            whole, halves = clusterings[:N_RUNS], clusterings[N_RUNS:]
            stability = sum(_likeness([all_rows for all_rows, _ in some]) for some in (whole, halves)) / 2
            agreement = sum(self._agreement(known) for _, known in clusterings) / len(clusterings)
        self.found[n_classes] = {
            "agreement": round(agreement, 6),
            "stability": round(stability, 6),
            "score": round(AGREEMENT_WEIGHT * agreement + (1 - AGREEMENT_WEIGHT) * stability, 6),
        }

    def _clusterings(self, n_classes: int) -> list[tuple[Tensor, Tensor]]:
        """Clusters of all rows and of the labelled ones, first by k-means on all rows, then on halves."""
        found = []
        draw = torch.Generator().manual_seed(self.seed)
        for run in range(2 * N_RUNS):
            n = len(self.z) if run < N_RUNS else max(len(self.z) // 2, n_classes)
            z = self.z[_sample(torch.arange(len(self.z)), n, draw).to(self.z.device)]
            none = torch.full((len(z),), -1, device=z.device)
            tries = (starts(z, none, n_classes=n_classes, draw=draw) for _ in range(N_STARTS))
            first = min((lloyd(z, none, each, n_iter=FIRST_STEPS) for each in tries), key=lambda km: km.inertia)
            centroids = lloyd(z, none, first.centroids, n_iter=LAST_STEPS).centroids
            each = [torch.full((len(some),), -1, device=z.device) for some in (self.z, self.z_known)]
            found.append((assign(self.z, each[0], centroids)[0], assign(self.z_known, each[1], centroids)[0]))
        return found

    def _agreement(self, known: Tensor) -> float:
        """Of clusters of the labelled rows with their classes."""
        if not self.has_one:
            return _rand(known, self.labels)
        sizes = torch.bincount(known).double()
        return float((sizes * (sizes - 1)).sum() / max(len(known) * (len(known) - 1), 1))


def _best(curve: Sequence[Mapping[str, float]]) -> int:
    """Position of the highest score, of about equal ones the last; 0 if there are no clusters to speak of."""
    highest = max(row["score"] for row in curve)
    return max(i for i, row in enumerate(curve) if row["score"] >= highest - _tie(highest)) if highest > 0 else 0


def _tie(highest: float) -> float:
    """Within how much of the highest score another one is about equal."""
    return max(TIE, TIE_SHARE * (1 - highest))


def _smooth(curve: list[dict[str, Any]], n_seen: int) -> list[dict[str, Any]]:
    """The curve with scores that are averaged over nearly equal numbers of clusters."""
    places = torch.tensor([n_seen + row["n_novel"] for row in curve], dtype=torch.float64).log()
    weights = (-0.5 * ((places[:, None] - places) / SMOOTHING) ** 2).exp()
    scores = weights @ torch.tensor([row["score"] for row in curve], dtype=torch.float64) / weights.sum(dim=1)
    return [{**row, "score": round(score, 6)} for row, score in zip(curve, scores.tolist(), strict=True)]


def _likeness(clusterings: list[Tensor]) -> float:
    """Mean adjusted Rand index of all pairs."""
    pairs = [_rand(a, b) for i, a in enumerate(clusterings) for b in clusterings[:i]]
    return sum(pairs) / len(pairs)


def _rand(one: Tensor, other: Tensor) -> float:
    """Adjusted Rand index of two groupings [N]: 1 alike, 0 by chance."""
    return float(adjusted_rand_score(one.cpu().numpy(), other.cpu().numpy()))


def _evidence(curve: list[dict[str, Any]], *, n_seen: int, fewest: int, most: int) -> dict[str, Any]:
    """The estimate, in words too."""
    best = curve[_best(curve)]
    n_novel = best["n_novel"]
    highest = max(row["score"] for row in curve)
    near = [row["n_novel"] for row in curve if row["score"] >= highest - max(MARGIN, _tie(highest))]
    plausible = [min(near), max(near)]
    is_most = most > fewest and n_novel == most
    is_fewest = most > fewest > 0 and curve[0]["score"] >= highest - _tie(highest)
    what = "no novel class" if n_novel == 0 else f"{n_novel} novel class{'es' if n_novel > 1 else ''}"
    reason = (
        f"{what} beside {n_seen} seen: of {len(curve)} numbers from {fewest} to {most} novel, the largest at which "
        f"clusters agree about as well as anywhere with the labels ({best['agreement']:.2f}) and with each other over "
        f"starts and halves of the rows ({best['stability']:.2f})."
    )
    if plausible[0] < plausible[1]:
        reason += f" The evidence is about as good from {plausible[0]} to {plausible[1]}."
    if is_most:
        reason += " This is the upper end of the range: there may be more; raise most."
    elif is_fewest:
        reason += " The lower end of the range scores about as well: there may be fewer; lower fewest."
    return {
        "n_novel": n_novel,
        "n_seen": n_seen,
        "fewest": fewest,
        "most": most,
        "plausible": plausible,
        "is_edge": is_most or is_fewest,
        "curve": curve,
        "reason": reason,
    }


def describe_clusters(
    feats: Tensor, assigned: Tensor, *, n_clusters: int, n_central: int = 9
) -> list[tuple[list[int], int, float]]:
    """What to show of each cluster: its most central rows, its size and how tight it is.

    Args:
      feats: [N, D] float, any norm above 0; scaled to unit norm first.
      assigned: [N] int in 0..n_clusters-1, or -1 = in no cluster.
      n_clusters: C >= 1.   n_central: >= 0, rows per cluster.

    Returns, of each of the C clusters: its most central rows, the most central first, fewer if it has fewer, and of
      equally central ones the first first; its size; and its tightness, the mean cosine of its rows to its unit
      centroid, 0 for an empty cluster.

    Raises: DataError as `semi_supervised_kmeans`.

    Example:
      >>> feats = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.9, 0.3], [0.0, 2.0]])
      >>> first, second = describe_clusters(feats, torch.tensor([0, 0, 0, 1]), n_clusters=2, n_central=2)
      >>> first[0], first[1], round(first[2], 3), second
      ([2, 0], 3, 0.966, ([3], 1, 1.0))
    """
    z, assigned = checked(feats, assigned, n_seen=n_clusters)
    centres, sizes = means(z, assigned, torch.zeros(n_clusters, z.shape[1], device=z.device))
    centres = F.normalize(centres, dim=1)
    rows = (assigned >= 0).nonzero().flatten()
    totals = torch.zeros(n_clusters, dtype=torch.float64)
    sims = torch.empty(len(rows), device=z.device)
    for some in slices_of(len(rows), z.shape[1]):
        sims[some] = (z[rows[some]] * centres[assigned[rows[some]]]).sum(dim=1)
    totals.index_add_(0, assigned[rows].cpu(), sims.double().cpu())
    rows = rows[sims.sort(descending=True, stable=True).indices]
    rows = rows[assigned[rows].sort(stable=True).indices].cpu()
    found = []
    at = 0
    for size, total in zip(sizes.tolist(), totals.tolist(), strict=True):
        found.append((rows[at : at + min(size, n_central)].tolist(), size, total / max(size, 1)))
        at += size
    return found
