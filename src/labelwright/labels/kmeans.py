"""K-means in which labelled rows keep their class, on unit-norm features, in chunks: never N x C numbers at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.labels.chunks import slices_of

TRIED_ROWS = 8_192  # unlabelled rows on which starts are tried, at least; and TRIED_ROWS_PER of each class
TRIED_ROWS_PER = 64
MAX_STEPS = 100  # updates of the centroids at most
SAME = 1e-6  # squared distance of unit vectors below which float32 cannot tell them apart
CONVERGED = 1e-4  # relative fall of the inertia in one step at which k-means stops


@dataclass(frozen=True)
class KMeans:
    """What `semi_supervised_kmeans` found, on the device of the features."""

    # [C, D] float32, means of unit vectors (not unit themselves); rows 0..n_seen-1 are the seen classes
    centroids: Tensor
    assigned: Tensor  # [N] int64, cluster of each row; a labelled row has its label
    inertia: float  # >= 0, sum over all rows of the squared distance to their centroid
    sizes: Tensor  # [C] int64 rows per cluster; 0 where there were fewer different rows than clusters
    n_steps: int  # updates of the centroids until they stopped moving, of the run that is returned


def semi_supervised_kmeans(
    feats: Tensor,
    labels: Tensor,
    *,
    n_classes: int,
    n_seen: int,
    n_init: int = 3,
    seed: int = 0,
) -> KMeans:
    """K-means in which labelled rows stay in the cluster of their class.

    Features are scaled to unit norm first. The centroids of seen classes start at the mean of their labelled rows; the
    others, and those of seen classes without a labelled row, start by greedy k-means++ on the unlabelled rows, given
    all centroids so far. A cluster that runs empty moves to the unlabelled row that is farthest from its centroid. Of
    many rows the starts are tried on a sample, and the best goes on with all of them.

    Args:
      feats: [N, D] float, any norm above 0.
      labels: [N] int, 0..n_seen-1, or -1 = unknown.
      n_classes: C >= max(n_seen, 1), clusters in all.   n_seen: >= 0, the first clusters; 0 is plain k-means.
      n_init: >= 1, starts; the lowest inertia is returned.
      seed: any int >= 0; the same seed gives the same result on the same kind of device.

    Raises:
      DataError: shapes that do not go together, a label that is no seen class, a feature that is not finite or a row
        of zeros, with the row.
      ConfigError: fewer unlabelled rows than clusters to start on them.

    Source: Vaze et al. 2022 (arXiv 2201.02609). Differs: of several candidates per start the one that
    lowers the inertia most is taken, as in scikit-learn; starts are tried on 8,192 unlabelled rows (or 64 per
    cluster) and as large a share of the labelled ones.

    Cost: N C D multiplications per step, in blocks of 16 MiB, and one float32 copy of the features.

    Example: two seen classes; the rows that fit neither become cluster 2.
      >>> feats = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0.1, 1], [0.1, 0, 1], [0.1, 1, 0]])
      >>> found = semi_supervised_kmeans(feats, torch.tensor([0, 1, -1, -1, -1, -1]), n_classes=3, n_seen=2, seed=0)
      >>> found.assigned.tolist(), found.sizes.tolist()
      ([0, 1, 0, 2, 2, 1], [2, 2, 2])
    """
    z, labels = checked(feats, labels, n_seen=n_seen)
    n_starts = n_classes - int((torch.bincount(labels[labels >= 0], minlength=n_classes) > 0).sum())
    n_free = int((labels < 0).sum())
    if n_free < n_starts:
        raise ConfigError(
            f"{n_starts} of {n_classes} clusters have no labelled image, and there are {n_free} unlabelled ones",
            fix=f"ask for at most {n_classes - n_starts + n_free} clusters",
        )
    draw = torch.Generator().manual_seed(seed)
    known = means(z, labels, torch.zeros(n_classes, z.shape[1], device=z.device))
    rows = _tried_rows(labels, max(TRIED_ROWS, TRIED_ROWS_PER * n_classes), draw)
    some, own = (z, labels) if len(rows) == len(z) else (z[rows], labels[rows])
    tries = (lloyd(some, own, _spread(some[own < 0], *known, draw=draw), n_iter=MAX_STEPS) for _ in range(n_init))
    best = min(tries if n_starts else [next(tries)], key=lambda found: found.inertia)
    return best if some is z else lloyd(z, labels, best.centroids, n_iter=MAX_STEPS)


def checked(feats: Tensor, labels: Tensor, *, n_seen: int) -> tuple[Tensor, Tensor]:
    """Unit features [N, D] float32 and labels [N] int64 on their device, or an error naming what does not fit."""
    if feats.ndim != 2 or 0 in feats.shape or labels.shape != feats.shape[:1]:
        raise DataError(
            f"features {list(feats.shape)} and labels {list(labels.shape)} are not [N, D] and [N]",
            fix="give one row of features and one label per image, -1 where it is unknown",
        )
    labels = labels.to(feats.device, torch.int64)
    wrong = ((labels < -1) | (labels >= n_seen)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"row {row} has label {int(labels[row])}, and the seen classes are 0..{n_seen - 1}",
            fix="number the seen classes from 0, and give -1 where the class is unknown",
        )
    return _unit(feats), labels


def _unit(feats: Tensor) -> Tensor:
    """The features [N, D] float32 with unit rows, or an error naming a row that cannot be scaled."""
    z = F.normalize(feats.float(), dim=1)
    good = torch.cat([z[some].square().sum(dim=1) > 0.5 for some in slices_of(len(z), z.shape[1], z.device)])
    if not bool(good.all()):  # NaN compares false; infinity over infinity is NaN
        row = int((~good).nonzero()[0])
        what = "all zeros" if bool((feats[row] == 0).all()) else "not finite"
        n = int((~good).sum())
        raise DataError(
            f"the features of row {row} are {what} ({n} such row{'s' if n > 1 else ''})",
            fix="leave out these images, or embed them again",
        )
    return z


def _tried_rows(labels: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """Rows [m] int64, ascending: n of the unlabelled ones and the same share of the others, or all of them."""
    kinds = [(labels < 0).nonzero().flatten(), (labels >= 0).nonzero().flatten()]
    share = n / max(1, len(kinds[0]))
    if share >= 1:
        return torch.arange(len(labels), device=labels.device)
    drawn = [torch.randperm(len(kind), generator=draw)[: round(share * len(kind))] for kind in kinds]
    return torch.cat([kind[some.to(labels.device)] for kind, some in zip(kinds, drawn, strict=True)]).sort().values


def starts(z: Tensor, *, n_classes: int, draw: torch.Generator) -> Tensor:
    """First centroids [C, D] by greedy k-means++.

    Args:
      z: [N, D] float32.   n_classes: C <= N.
      draw: a generator on the CPU, so that the device does not change what is drawn.

    Example: the second start is the row that is not yet covered.
      >>> starts(torch.eye(2), n_classes=2, draw=torch.Generator().manual_seed(0)).sum(0).tolist()
      [1.0, 1.0]
    """
    none = torch.zeros(n_classes, dtype=torch.int64, device=z.device)
    return _spread(z, torch.zeros(n_classes, z.shape[1], device=z.device), none, draw=draw)


def _spread(pool: Tensor, centroids: Tensor, sizes: Tensor, *, draw: torch.Generator) -> Tensor:
    """Centroids [C, D], those of size 0 among rows of the pool, far from one another and from the others."""
    centroids, nearest = centroids.clone(), torch.full((len(pool),), torch.inf, device=pool.device)
    if bool((sizes > 0).any()):
        nearest = assign(pool, torch.full_like(pool[:, 0], -1, dtype=torch.int64), centroids[sizes > 0])[1]
    n_tries = 2 + int(math.log(len(sizes)))
    for k in (sizes == 0).nonzero().flatten().tolist():
        weights = torch.where(nearest.isinf(), 1.0, nearest).clamp(min=1e-12).double().cpu()
        # by hand: multinomial takes no more than 2^24 rows, and differs from device to device
        spins = torch.rand(n_tries, generator=draw, dtype=torch.float64) * weights.sum()
        tries = torch.searchsorted(weights.cumsum(0), spins).clamp(max=len(pool) - 1).to(pool.device)
        after = torch.minimum(nearest[:, None], (2 - 2 * pool @ pool[tries].T).clamp(min=0))  # [rows, tries]
        won = int(after.sum(dim=0).argmin())
        centroids[k], nearest = pool[tries[won]], after[:, won]
    return centroids


def lloyd(z: Tensor, labels: Tensor, centroids: Tensor, *, n_iter: int) -> KMeans:
    """Alternate assignment and means from given centroids until they stop moving.

    Args:
      z: [N, D] float32, unit norm.   labels: [N] int64, -1 = unknown.   centroids: [C, D] float32.
      n_iter: >= 1, updates of the centroids at most.

    Example:
      >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
      >>> lloyd(z, torch.tensor([-1, -1, -1]), torch.eye(2), n_iter=5).assigned.tolist()
      [0, 1, 1]
    """
    assigned, gaps = assign(z, labels, centroids)
    inertia, n_steps = float(gaps.double().sum()), 0
    for n_steps in range(1, n_iter + 1):
        assigned = _fill_empty(assigned, gaps, labels, n_classes=len(centroids))
        centroids, _ = means(z, assigned, centroids)
        before, former = assigned, inertia
        assigned, gaps = assign(z, labels, centroids)
        inertia = float(gaps.double().sum())
        if (former - inertia <= CONVERGED * former and n_steps > 1) or bool((assigned == before).all()):
            break
    return KMeans(centroids, assigned, inertia, torch.bincount(assigned, minlength=len(centroids)), n_steps)


def assign(z: Tensor, labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid [N] int64, or the label, and the squared distance [N] to it.

    Args:
      z: [N, D] float32, unit norm.   labels: [N] int64, -1 = unknown.   centroids: [C, D] float32.

    Example:
      >>> assign(torch.eye(2), torch.tensor([-1, 0]), torch.eye(2))
      (tensor([0, 0]), tensor([0., 2.]))
    """
    assigned, gaps = torch.empty_like(labels), torch.empty_like(z[:, 0])
    half = 0.5 * centroids.square().sum(dim=1)
    for some in slices_of(len(z), len(centroids), z.device):
        sims = z[some] @ centroids.T - half  # [B, C]
        nearest = torch.where(labels[some] >= 0, labels[some], sims.argmax(dim=1))
        assigned[some] = nearest
        gaps[some] = (1 - 2 * sims.gather(1, nearest[:, None]).squeeze(1)).clamp(min=0)
    return assigned, gaps


def means(z: Tensor, assigned: Tensor, former: Tensor) -> tuple[Tensor, Tensor]:
    """Means [C, D] of the rows of each cluster, the former one where there is none, and their numbers [C].

    Args:
      z: [N, D] float32.   assigned: [N] int64, -1 = in no cluster.   former: [C, D] float32.

    Example:
      >>> means(torch.eye(2), torch.tensor([0, 0]), torch.zeros(2, 2))
      (tensor([[0.5000, 0.5000],
            [0.0000, 0.0000]]), tensor([2, 0]))
    """
    sums = torch.zeros_like(former)
    for some in slices_of(len(z), max(former.shape) if z.is_cuda else z.shape[1], z.device):
        is_in = assigned[some] >= 0
        if z.is_cuda:  # index_add_ there adds in another order every time
            sums += F.one_hot(assigned[some][is_in], len(former)).to(z.dtype).T @ z[some][is_in]
        else:
            sums.index_add_(0, assigned[some][is_in], z[some][is_in])
    sizes = torch.bincount(assigned[assigned >= 0], minlength=len(former))
    return torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], former), sizes


def _fill_empty(assigned: Tensor, gaps: Tensor, labels: Tensor, *, n_classes: int) -> Tensor:
    """Assignment in which empty clusters got the unlabelled rows that lie farthest from their centroid, if any do."""
    empty = (torch.bincount(assigned, minlength=n_classes) == 0).nonzero().flatten()
    if not len(empty):
        return assigned
    far = torch.where(labels < 0, gaps, 0).topk(min(len(empty), len(gaps)))
    rows = far.indices[far.values > SAME]
    assigned = assigned.clone()
    assigned[rows] = empty[: len(rows)]
    return assigned
