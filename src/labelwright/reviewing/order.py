"""In which order to ask a person about images, so that few answers teach much: by what every run says of its labels.

Pure functions of features of unit norm. benchmarks/review_order.py holds the order against known ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.labels.chunks import slices_of
from labelwright.labels.kmeans import semi_supervised_kmeans

BATCHES = (200, 200)  # answers after which the spread is made anew around all that was asked about before
N_STEPS = 10  # of k-means in a batch
TRIES = 4  # starts of k-means++ that the best one is taken of
MAX_ROWS = 25_000  # the most doubtful rows among which a batch is looked for
GROUP_SIZE, MAX_GROUPS = 30, 300  # of look-alikes, as a mean; and how many groups there are at most


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
    centres = torch.cat([_starts(z, weight, fixed, n=n, draw=draw), fixed])
    for _ in range(N_STEPS):
        assigned, sums, mass = _assign(z, weight, centres, n)
        centres[:n] = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-9)[:, None], centres[:n])
    assigned, _, mass = _assign(z, weight, centres, n)
    own = assigned < n
    sims = torch.where(own, (z * centres[assigned.clamp(max=n - 1)]).sum(1), -2.0)
    best = torch.full((n,), -3.0).scatter_reduce(0, assigned[own], sims[own], "amax")
    is_best = own & (sims >= best[assigned.clamp(max=n - 1)])
    row_of = torch.full((n,), -1)
    row_of[assigned[is_best]] = is_best.nonzero().flatten()
    order = mass.argsort(descending=True, stable=True)
    return row_of[order][row_of[order] >= 0]


def _starts(z: Tensor, weight: Tensor, fixed: Tensor, *, n: int, draw: torch.Generator) -> Tensor:
    """Greedy k-means++ in which a row counts by its weight."""
    gaps = torch.full((len(z),), 2.0)
    for some in slices_of(len(z), max(1, len(fixed))):
        if len(fixed):
            gaps[some] = (2 - 2 * (z[some] @ fixed.T).amax(1)).clamp(min=0)
    found = torch.empty(n, z.shape[1])
    for k in range(n):
        chances = (gaps * weight).clamp(min=1e-12).double().cumsum(0)
        spins = torch.rand(TRIES, generator=draw, dtype=torch.float64) * chances[-1]
        tries = torch.searchsorted(chances, spins).clamp(max=len(z) - 1)
        after = torch.minimum(gaps[:, None], (2 - 2 * z @ z[tries].T).clamp(min=0))  # [N, tries]
        won = int((after * weight[:, None]).sum(0).argmin())
        found[k], gaps = z[tries[won]], after[:, won]
    return found


def _assign(z: Tensor, weight: Tensor, centres: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest centre of each row; weighted sums [n, D] and weight [n] of the rows of the first n."""
    assigned, half = torch.empty(len(z), dtype=torch.int64), 0.5 * centres.square().sum(1)
    for some in slices_of(len(z), len(centres)):
        assigned[some] = (z[some] @ centres.T - half).argmax(1)
    own = assigned < n
    sums = torch.zeros(n, z.shape[1]).index_add_(0, assigned[own], z[own] * weight[own, None])
    return assigned, sums, torch.zeros(n).index_add_(0, assigned[own], weight[own])


def groups_of(z: Tensor, *, seed: int = 0) -> Tensor:
    """Group of look-alikes [N] int64 of each row: k-means with about `GROUP_SIZE` rows a group, numbered by size.

    Args: z [N, D] float, unit norm.

    Example:
      >>> groups_of(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])).tolist()
      [0, 0, 0]
    """
    n = min(MAX_GROUPS, max(1, len(z) // GROUP_SIZE))
    found = semi_supervised_kmeans(z, torch.full((len(z),), -1), n_classes=n, n_seen=0, n_init=1, seed=seed)
    return found.sizes.argsort(descending=True, stable=True).argsort()[found.assigned]
