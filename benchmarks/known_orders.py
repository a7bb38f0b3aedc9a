"""Known orders in which to ask a person about images, to be held against the tool's own (see review_order.py).

All return rows [n], the first to ask about first; rows that are known already are never among them. z [N, D] are
features of unit norm, probs [N, C] a classifier's probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.labels.audit import nearest
from labelwright.labels.kmeans import semi_supervised_kmeans

TYPICAL_OF, LEAST_CLUSTER = 20, 5  # neighbours that make a row typical; rows of a cluster that is asked about


def by_chance(is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """Rows drawn evenly from those that are not known.

    Example:
      >>> by_chance(torch.tensor([True, False]), n=5, seed=0).tolist()
      [1]
    """
    rows = (~is_known).nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def by_margin(probs: Tensor, is_known: Tensor, *, n: int) -> Tensor:
    """Smallest difference of the two largest probabilities [N, C] first.

    Source: Scheffer et al. 2001 (IDA), active hidden Markov models.

    Example:
      >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
      >>> by_margin(probs, torch.tensor([False, False, True]), n=2).tolist()
      [1, 0]
    """
    best = probs.topk(2, dim=1).values
    margin = torch.where(is_known, torch.inf, best[:, 0] - best[:, 1])
    return margin.argsort(stable=True)[: min(n, int((~is_known).sum()))]


def badge(z: Tensor, probs: Tensor, is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """k-means++ on the gradients of the loss of the predicted class: the head's, (p - onehot) outer z.

    Source: Ash et al. 2020 (arXiv 1906.03671), Algorithm 1. Their inner products are products of two small ones.

    Example: of two equal rows one is taken.
      >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> sorted(badge(z, torch.full((3, 2), 0.5), torch.zeros(3) > 0, n=2, seed=0).tolist()) in ([0, 2], [1, 2])
      True
    """
    rows = (~is_known).nonzero().flatten()
    gap, z = probs[rows].clone(), z[rows]
    gap[torch.arange(len(rows)), gap.argmax(1)] -= 1
    norm = gap.square().sum(1) * z.square().sum(1)
    draw, far, found = torch.Generator().manual_seed(seed), norm.new_full((len(rows),), torch.inf), list[int]()
    at = int(norm.argmax())
    for _ in range(min(n, len(rows))):
        found.append(at)
        far = torch.minimum(far, (norm + norm[at] - 2 * (gap @ gap[at]) * (z @ z[at])).clamp(min=0))
        far[found] = 0
        if not bool((far > 0).any()):
            break
        at = int(torch.multinomial(far, 1, generator=draw))
    return rows[torch.tensor(found, dtype=torch.int64)]


def typiclust(z: Tensor, is_known: Tensor, *, n: int, seed: int) -> Tensor:
    """The most typical row of the largest cluster in which the fewest rows are known, again and again.

    Source: Hacohen et al. 2022 (arXiv 2202.02794), TPC_RP: as many clusters as there are known rows and answers, those
      with fewer than 5 rows left out; typical is the inverse mean distance to the 20 nearest. Differs: nearest of all
      rows, not of the cluster.

    Example:
      >>> z = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=1)
      >>> len(typiclust(z, torch.arange(40) < 2, n=4, seed=0))
      4
    """
    n_clusters = min(n + int(is_known.sum()), max(1, len(z) // LEAST_CLUSTER))
    unknown = torch.full((len(z),), -1)
    own = semi_supervised_kmeans(z, unknown, n_classes=n_clusters, n_seen=0, n_init=1, seed=seed)
    sims = nearest(z, k=TYPICAL_OF).sims
    typical = 1 / ((2 - 2 * sims).clamp(min=0).sqrt().mean(1) + 1e-6)
    typical = torch.where(is_known, -1.0, typical)
    n_known = torch.bincount(own.assigned[is_known], minlength=n_clusters)
    is_asked = own.sizes >= LEAST_CLUSTER
    found: list[int] = []
    while len(found) < n and bool(is_asked.any()):
        key = torch.where(is_asked, n_known * len(z) - own.sizes, torch.iinfo(torch.int64).max)
        cluster = int(key.argmin())
        at = int(torch.where(own.assigned == cluster, typical, -1.0).argmax())
        if typical[at] < 0:
            is_asked[cluster] = False
            continue
        found.append(at)
        typical[at] = -1.0
        n_known[cluster] += 1
    return torch.tensor(found, dtype=torch.int64)
