"""Classes that nobody named: how many there are, which images are theirs, and what to show of each.

`estimate_n_novel` says how many clusters to ask `semi_supervised_kmeans` for; `describe_clusters` gives the rows to
look at. All of them work on unit-norm features and in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.labels.chunks import slices_of
from labelwright.labels.gaussians import principal
from labelwright.labels.kmeans import assign, checked, lloyd, means, starts

SEARCH_ROWS = 4_000  # rows looked at, at least; and SEARCH_ROWS_PER of each piece
SEARCH_ROWS_PER = 10
SEARCH_DIMS = 32  # principal components looked at
PIECES = 20  # small clusters to begin with, beyond three per seen class
N_RESAMPLINGS = 9
N_STARTS = 2  # of k-means, of which the better after FIRST_STEPS goes on for at most LAST_STEPS
FIRST_STEPS, LAST_STEPS = 4, 15
UNIFORM = 0.75
"""Separation of the halves of a uniform density, which has no valley: 1/2 (a quarter of the width) squared over itself
plus four times the variance of a half. Halves of a normal density have 0.64, two points 1."""

BELOW, ABOVE = 0.02, 0.04  # how far the labels may move the bar from there
STEPS = [round(0.60 + 0.02 * i, 2) for i in range(16)]  # bars tried on the labels
ABOUT_EQUAL = 0.02  # of the adjusted Rand index: bars that are as good
DOUBT = 0.02  # of the bar, either way, in the range of plausible numbers
PLAUSIBLE = 0.1  # share of the counts cut off at either end
SEEN_SHARE = 0.5  # of the labelled rows expected in a piece of a seen class, from which it is taken for one
HANDFUL = 5
"""Unlabelled rows below which a cluster is no class."""
LEAST_EXPECTED = 0.7
"""Labelled rows to be expected in a group that is counted: with so many, half of those of seen classes have one."""

OUT = 9.0  # separation of what may not be merged; true ones are at most 1


def estimate_n_novel(
    feats: Tensor, labels: Tensor, *, n_seen: int, fewest: int = 0, most: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """How many classes the unlabelled rows hold beyond the seen ones.

    Each of 9 times the rows are cut in halves, one is clustered into many small pieces, and the other half tells which
    of these are one class: pieces are merged, the least separated pair first, until every pair has a valley between it.
    The separation of two groups is D^2 / (D^2 + 4 v) on the line through their centres: D is how far apart their means
    are, v the mean of their variances. It does not grow with the number of clusters nor with a class's size, so that a
    class which holds most images is not cut up. The bar is 0.75, at which a density has no valley, or between 0.73 and
    0.79 where that joins labelled rows more as their classes do. A piece which holds at least half the share of
    labelled rows that pieces of seen classes do belongs to one. Groups of fewer than 5 unlabelled rows do not count,
    nor those in which fewer than 0.7 labelled rows were to be expected: with few labels many of seen classes have none.
    The estimate is the median count, and it is none where none is the median.

    Args:
      feats: [N, D] float, any norm above 0; scaled to unit norm first.
      labels: [N] int, 0..n_seen-1, or -1 = unknown; some labelled row is needed.
      n_seen: >= 1.
      fewest, most: 0 <= fewest <= most <= unlabelled rows; None: 3 n_seen + 20, at most a tenth of the unlabelled rows.
      seed: any int >= 0; the same seed gives the same result.

    Returns, ready for JSON:
      n_novel: the estimate, in fewest..most; 0 when nothing is unlabelled.   n_seen: seen classes, which come on top.
      fewest, most: the range allowed.
      plausible: the 10% and 90% quantiles of the counts at the bar and 0.02 above and below it.
      could_be_none: whether the least plausible number is 0 and the estimate is not.
      is_edge: whether the estimate is ``most`` or a ``fewest`` above 0: the truth may lie outside.
      curve: by n_novel ascending, dicts of n_novel (int) and score, the share of these counts.
      bar: separation at which merging ended.
      reason: a few sentences for a human.

    Raises: DataError as `semi_supervised_kmeans`, and without any label; ConfigError for a range that is none.

    Source: own. That the half which did not make the clusters judges them is as in Tibshirani and Walther 2005
    (prediction strength); the numbers here were chosen on CIFAR-10 and GTSRB by a small CLIP, with 0 to 22 hidden
    classes, even, long-tailed and with 70% in one, `LEAST_EXPECTED` on scikit-learn's digits as well;
    benchmarks/n_novel.py measures it. Classes that the features do not
    tell apart count as one.

    Cost: 9 clusterings of 2,000 rows (5 per piece if that is more) in 32 dimensions: seconds.

    Example: two seen classes and a third that nobody labelled.
      >>> feats = torch.eye(3).repeat(40, 1) + 0.1 * torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
      >>> labels = torch.tensor([0, 1, -1] * 20 + [-1] * 60)
      >>> found = estimate_n_novel(feats, labels, n_seen=2)
      >>> found["n_novel"], found["most"], found["could_be_none"]
      (1, 8, False)
    """
    z, labels = checked(feats, labels, n_seen=n_seen)
    n_free = int((labels < 0).sum())
    if n_seen < 1 or n_free == len(z):
        raise DataError(
            f"{n_seen} seen classes and {len(z) - n_free} labelled images: nothing says how large a class is",
            fix="label a few images of some classes, or give the number of novel classes yourself",
        )
    given = most
    if most is None:
        most = max(min(3 * n_seen + 20, n_free // 10), min(fewest, n_free))
    if not 0 <= fewest <= most <= n_free:
        raise ConfigError(
            f"the range of novel classes is {fewest}..{most}, with {n_free} unlabelled images",
            fix=f"give 0 <= fewest <= most <= {n_free}",
        )
    draw = torch.Generator().manual_seed(seed)
    n_pieces = max(3 * n_seen + PIECES, n_seen + 2 * (given or 0))
    rows = _sample(len(z), max(SEARCH_ROWS, SEARCH_ROWS_PER * n_pieces), draw).to(z.device)
    z, labels = z[rows].cpu(), labels[rows].cpu()
    n_pieces = max(2, min(n_pieces, len(z) // SEARCH_ROWS_PER))
    mean, directions = principal(z, min(SEARCH_DIMS, z.shape[1]))
    z = (z - mean) @ directions.T
    found = [_Pieces(z, labels, n_seen=n_seen, n_pieces=n_pieces, draw=draw) for _ in range(N_RESAMPLINGS)]
    bar = _bar(found) if n_seen > 1 else UNIFORM
    votes = [
        [min(max(each.n_novel(bar + off), fewest), most) for each in found] if n_free else [fewest]
        for off in (-DOUBT, 0.0, DOUBT)
    ]
    return _evidence(votes, bar=bar, n_seen=n_seen, fewest=fewest, most=most)


def _sample(n_rows: int, n: int, draw: torch.Generator) -> Tensor:
    """At most n of the rows, in order."""
    return torch.arange(n_rows) if n_rows <= n else torch.randperm(n_rows, generator=draw)[:n].sort().values


class _Pieces:
    """Small clusters of one half of the rows, and in which order the other half would merge them."""

    def __init__(self, z: Tensor, labels: Tensor, *, n_seen: int, n_pieces: int, draw: torch.Generator):
        from sklearn.metrics import adjusted_rand_score

        is_first = torch.zeros(len(z), dtype=torch.bool)
        is_first[torch.randperm(len(z), generator=draw)[: max(len(z) // 2, n_pieces)]] = True
        one, none = z[is_first], torch.full_like(labels, -1)
        tries = (starts(one, n_classes=n_pieces, draw=draw) for _ in range(N_STARTS))
        best = min((lloyd(one, none[is_first], c, n_iter=FIRST_STEPS) for c in tries), key=lambda km: km.inertia)
        centres = lloyd(one, none[is_first], best.centroids, n_iter=LAST_STEPS).centroids
        pieces, known = assign(z, none, centres)[0], labels >= 0
        self.first, self.other = (one, pieces[is_first]), (z[~is_first], pieces[~is_first])
        self.n_pieces = n_pieces
        n_free = torch.bincount(pieces[~known], minlength=n_pieces)
        least = max(HANDFUL, LEAST_EXPECTED * int((~known).sum()) / max(1, int(known.sum())))
        by_class = torch.bincount(pieces[known] * n_seen + labels[known], minlength=n_pieces * n_seen)
        by_class = by_class.view(n_pieces, n_seen)
        share = by_class.sum(1) / (by_class.sum(1) + n_free).clamp(min=1)
        is_seen = (share >= SEEN_SHARE * share[pieces[known]].median()) & (share > 0)
        of_known, true = pieces[known], labels[known].numpy()
        self.counts = self._merged(
            torch.where(is_seen, by_class.argmax(1), -1),
            lambda groups, classes: _n_classes(groups, classes, n_free, least=least),
        )
        self.agreements = self._merged(
            torch.full((n_pieces,), -1), lambda groups, _: float(adjusted_rand_score(true, groups[of_known].numpy()))
        )

    def n_novel(self, bar: float) -> int:
        """Groups of no seen class where none is separated by less than the bar."""
        return int(_at(self.counts, bar))

    def _merged(self, classes: Tensor, value: Callable[[Tensor, Tensor], float]) -> list[tuple[float, float]]:
        """(separation of the pair that is merged next, value(groups [K], their classes [K])), one merge at a time.

        Args: classes [K]: of the pieces, -1 = of none; a group takes the class of what it is merged with, and two that
          have one stay apart.
        """
        groups, classes = torch.arange(self.n_pieces), classes.clone()
        sums = torch.zeros(self.n_pieces, self.first[0].shape[1]).index_add_(0, self.first[1], self.first[0])
        n_first = torch.bincount(self.first[1], minlength=self.n_pieces).float()
        centres = sums / n_first.clamp(min=1)[:, None]
        z, of_row = self.other[0], self.other[1].clone()
        own = (z * centres[of_row]).sum(1)
        apart = torch.stack([_separations(z, own, of_row, centres, g) for g in range(self.n_pieces)])
        apart.fill_diagonal_(OUT)
        found = []
        while True:
            has_class = classes >= 0
            is_out = has_class & (torch.bincount(of_row, minlength=self.n_pieces) < 2)  # nothing to judge it by
            barred = (has_class[:, None] & has_class) | is_out[:, None] | is_out
            allowed = torch.where(barred, OUT, apart)
            least, at = allowed.flatten().min(0)
            found.append((float(least), value(groups, classes)))
            if least >= OUT:
                return found
            keep, gone = divmod(int(at), self.n_pieces)
            groups[groups == gone] = keep
            of_row[of_row == gone] = keep
            classes[keep] = max(int(classes[keep]), int(classes[gone]))
            sums[keep] += sums[gone]
            n_first[keep] += n_first[gone]
            centres[keep] = sums[keep] / n_first[keep].clamp(min=1)
            own[of_row == keep] = z[of_row == keep] @ centres[keep]
            apart[gone], apart[:, gone] = OUT, OUT
            row = _separations(z, own, of_row, centres, keep)
            row[apart[keep] >= OUT] = OUT
            apart[keep], apart[:, keep] = row, row


def _separations(z: Tensor, own: Tensor, groups: Tensor, centres: Tensor, g: int) -> Tensor:
    """Separation [K] of group g from every other: near 0 for one of fewer than two rows, the nearer centre the less.

    Args: z [N, D] rows; own [N], their products with the centre of their group; groups [N]; centres [K, D].
    """
    n_groups, mine = len(centres), groups == g
    counts = torch.bincount(groups, minlength=n_groups).float()
    there = own - z @ centres[g]  # along the line from centre g to that of their own group
    here = own[mine, None] - z[mine] @ centres.T  # [n, K], the other way
    mean = torch.zeros(n_groups).index_add_(0, groups, there) / counts.clamp(min=1)
    variance = torch.zeros(n_groups).index_add_(0, groups, (there - mean[groups]).square()) / counts.clamp(min=1)
    n_here = counts[g].clamp(min=1)
    mean_here = here.sum(0) / n_here
    variance += (here - mean_here).square().sum(0) / n_here
    gap = (mean + mean_here).clamp(min=0).square()
    found = gap / (gap + 2 * variance).clamp(min=1e-12)
    return torch.where((counts < 2) | (counts[g] < 2), 1e-6 * (centres - centres[g]).norm(dim=1), found)


def _n_classes(groups: Tensor, classes: Tensor, n_free: Tensor, *, least: float) -> int:
    """Groups without a class that have enough unlabelled rows."""
    sizes = torch.zeros_like(n_free).index_add_(0, groups, n_free)
    return int(((sizes >= least) & (classes < 0)).sum())


def _at(steps: list[tuple[float, float]], bar: float) -> float:
    """The value once all that is separated by the bar or less is merged."""
    return next((value for apart, value in steps if apart > bar), steps[-1][1])


def _bar(found: list[_Pieces]) -> float:
    """The mean of the bars at which merged pieces agree best with the labels, near the separation of no valley."""
    agreement = {bar: sum(_at(each.agreements, bar) for each in found) / len(found) for bar in STEPS}
    best = [bar for bar, value in agreement.items() if value >= max(agreement.values()) - ABOUT_EQUAL]
    return min(max(sum(best) / len(best), UNIFORM - BELOW), UNIFORM + ABOVE)


def _evidence(votes: list[list[int]], *, bar: float, n_seen: int, fewest: int, most: int) -> dict[str, Any]:
    """The estimate, in words too, from counts just below, at and just above the bar."""
    n_novel = sorted(votes[1])[len(votes[1]) // 2]
    every = sorted(vote for some in votes for vote in some)
    cut = int(PLAUSIBLE * len(every))
    plausible = [min(every[cut], n_novel), max(every[-1 - cut], n_novel)]
    could_be_none = n_novel > 0 and plausible[0] == 0
    is_most = most > fewest and n_novel == most
    is_fewest = most > fewest > 0 and n_novel == fewest
    what = "no novel class" if n_novel == 0 else f"{n_novel} novel class{'es' if n_novel > 1 else ''}"
    reason = (
        f"{what} beside {n_seen} seen: the median of {len(votes[1])} resamplings, each counting the groups of images "
        f"with a valley between any two (separation above {bar:.2f})."
    )
    if plausible[0] < plausible[1]:
        reason += f" Most counts lie between {plausible[0]} and {plausible[1]}."
    if could_be_none:
        reason += " There could be none."
    if is_most:
        reason += " This is the upper end of the range: there may be more; raise most."
    elif is_fewest:
        reason += " This is the lower end of the range: there may be fewer; lower fewest."
    return {
        "n_novel": n_novel,
        "n_seen": n_seen,
        "fewest": fewest,
        "most": most,
        "plausible": plausible,
        "could_be_none": could_be_none,
        "is_edge": is_most or is_fewest,
        "curve": [
            {"n_novel": n, "score": round(every.count(n) / len(every), 4)} for n in range(every[0], every[-1] + 1)
        ],
        "bar": round(bar, 4),
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
    for some in slices_of(len(rows), z.shape[1], z.device):
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
