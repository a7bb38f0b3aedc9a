"""In which order to ask a person about images, so that few answers teach much: by what every run says of its labels.

Pure functions of features. benchmarks/review_order.py holds the order against known ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread, slices_of
from labelwright.labels.gaussians import principal
from labelwright.labels.kmeans import assign, semi_supervised_kmeans

BATCHES = (200, 200)  # answers after which the spread is made anew around all that was asked about before
N_STEPS = 10  # of k-means in a batch
TRIES = 4  # starts of k-means++ that the best one is taken of
MAX_ROWS = 20_000  # the most doubtful rows among which a batch is looked for; rows that groups are fitted to
N_DIMS = 128  # principal components in which rows are near each other, as the method `beliefs` has them
GROUP_SIZE, MAX_GROUPS = 30, 300  # of look-alikes, as a mean; and how many groups there are at most


def components(feats: Tensor) -> Tensor:
    """What `suggested` and `groups_of` compare: the largest principal components [N, n] of centred features, unit norm.

    Args: feats [N, D] float, any norm.

    Example: a part that all rows share says nothing.
      >>> components(torch.tensor([[9.0, 1.0], [9.0, 3.0], [9.0, -4.0]])).abs().tolist()
      [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    """
    mean, directions = principal(evenly_spread(feats, MAX_ROWS), min(N_DIMS, feats.shape[1]))
    z = F.normalize(feats @ directions.T - mean @ directions.T, dim=1)
    z[z.square().sum(1) < 0.5, 0] = 1.0  # a row at the mean has no direction, and is given one
    return z


def suggested(z: Tensor, doubt: Tensor, labels: Tensor, *, batches: tuple[int, ...] = BATCHES, seed: int = 0) -> Tensor:
    """The tool's order: representatives of doubtful regions, one each, the largest first; then the doubtful by doubt.

    1  weight of a row: w = d / n, d its doubt, n the number of rows with its label: doubt x class balance
    2  weighted k-means with as many centres as answers in the batch; rows known or asked about are centres that stay
    3  of each centre the nearest row; centres in the order of the weight around them: density x doubt x class balance
    4  again with the next batch

    Args:
      z: [N, D] float, unit norm.
      doubt: [N] float 0 to 1, estimated chance that the label is wrong; 0 = known, not asked about.
      labels: [N] int64, the label of each row as it stands, -1 = none.
      batches: answers in each round.   seed: of k-means++.

    Source: Zhdanov 2019 (arXiv 1901.05954), diverse mini-batches by weighted k-means. Differs: class balance in the
      weights, known rows as fixed centres, all rows and not the most doubtful alone.

    Example: two clumps, each asked about by its middle; the doubtful one comes first.
      >>> angles = torch.tensor([0.0, 2, 4, 86, 88, 90]).deg2rad()
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> doubt = torch.tensor([0.1, 0.1, 0.1, 0.5, 0.5, 0.5])
      >>> suggested(z, doubt, torch.tensor([0, 0, 0, 1, 1, 1]), batches=(2,)).tolist()[:2]
      [4, 1]
    """
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(labels + 1, minlength=2).clamp(min=1)
    weight = doubt.clamp(min=0).float() / sizes[labels + 1]
    taken: list[Tensor] = []
    is_open, known = doubt > 0, (doubt <= 0).nonzero().flatten()
    if len(known) > MAX_ROWS // 10:
        known = known[torch.randperm(len(known), generator=draw)[: MAX_ROWS // 10]]
    for n in batches:
        rows = is_open.nonzero().flatten()
        if len(rows) > MAX_ROWS:
            rows = rows[weight[rows].topk(MAX_ROWS).indices]
        if not len(rows):
            break
        fixed = z[torch.cat([known, *taken])]
        found = rows[_representatives(z[rows], weight[rows], fixed, n=min(n, len(rows)), draw=draw)]
        taken.append(found)
        is_open[found] = False
    rest = is_open.nonzero().flatten()
    return torch.cat([*taken, rest[doubt[rest].argsort(descending=True, stable=True)]])


def _representatives(z: Tensor, weight: Tensor, fixed: Tensor, *, n: int, draw: torch.Generator) -> Tensor:
    """Rows nearest to the centres of a weighted k-means beside fixed centres, by the weight of their clusters."""
    weight = (weight / weight.mean()).clamp(min=1e-6)
    covered = _largest(z, fixed, torch.zeros(len(fixed)))[0]  # fixed centres are of unit norm, and never move
    centres = _starts(z, weight, (2 - 2 * covered).clamp(min=0, max=2), n=n, draw=draw)
    for step in range(N_STEPS + 1):
        best, assigned = _largest(z, centres, 0.5 * centres.square().sum(1))
        own = (best >= covered - 0.5).nonzero().flatten()
        assigned, heavy = assigned[own], weight[own]
        mass = torch.zeros(n).index_add_(0, assigned, heavy)
        if step < N_STEPS:
            sums = torch.zeros_like(centres).index_add_(0, assigned, z[own] * heavy[:, None])
            centres = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-9)[:, None], centres)
    sims = (z[own] * centres[assigned]).sum(1)
    best = torch.full((n,), -3.0).scatter_reduce(0, assigned, sims, "amax")
    is_best = sims >= best[assigned]
    row_of = torch.full((n,), -1)
    row_of[assigned[is_best]] = own[is_best]
    order = mass.argsort(descending=True, stable=True)
    return row_of[order][row_of[order] >= 0]


def _starts(z: Tensor, weight: Tensor, gaps: Tensor, *, n: int, draw: torch.Generator) -> Tensor:
    """Greedy k-means++ [n, D] in which a row counts by its weight; gaps [N]: squared distances to what is covered."""
    found = torch.empty(n, z.shape[1])
    for k in range(n):
        chances = (gaps * weight).clamp(min=1e-12).double().cumsum(0)
        spins = torch.rand(TRIES, generator=draw, dtype=torch.float64) * chances[-1]
        tries = torch.searchsorted(chances, spins).clamp(max=len(z) - 1)
        after = torch.minimum(gaps, (z[tries] @ z.T).mul_(-2).add_(2).clamp_(min=0))  # [TRIES, N]
        won = int((after @ weight).argmin())
        found[k], gaps = z[tries[won]], after[won]
    return found


def _largest(z: Tensor, centres: Tensor, less: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the largest similarity to a centre, ``less`` [n] of it taken off, and which; -1 where n is 0."""
    best, at = torch.full((len(z),), -1.0), torch.zeros(len(z), dtype=torch.int64)
    if len(centres):
        for some in slices_of(len(z), len(centres)):
            best[some], at[some] = (z[some] @ centres.T - less).max(1)
    return best, at


def groups_of(z: Tensor, *, seed: int = 0) -> Tensor:
    """Group of look-alikes [N] int64 of each row: k-means with about `GROUP_SIZE` rows a group, numbered by size.

    Args: z [N, D] float, unit norm.

    Example:
      >>> groups_of(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])).tolist()
      [0, 0, 0]
    """
    some = evenly_spread(z, MAX_ROWS)
    n = min(MAX_GROUPS, max(1, len(z) // GROUP_SIZE))
    found = semi_supervised_kmeans(some, torch.full((len(some),), -1), n_classes=n, n_seen=0, n_init=1, seed=seed)
    assigned = assign(z, torch.full((len(z),), -1), found.centroids)[0]
    sizes = torch.bincount(assigned, minlength=n)
    return sizes.argsort(descending=True, stable=True).argsort()[assigned]
