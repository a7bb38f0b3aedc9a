"""Images that no name explains: whose they are where labels say so, and whether they are a class at all."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread
from labelwright.labels.concepts import ROWS_MAX, TOP_FRAC
from labelwright.labels.gaussians import gaussian_beliefs

TRIAL_ROWS, TRIAL_ITERATIONS = 2_500, 10  # of each start of the clustering of leftovers
N_TRIES, N_ITERATIONS = 30, 15  # such starts; rounds with all images of the best, at most
DISTINCT = 0.85  # of what the classes that are known by name have: less is no class of its own
TELLING = (
    0.7  # chance that names tell an image that a class keeps from one that leaves it, from which they say whose it is
)
ALIKE = 0.4  # of a name's distance to the farthest one: of nearer ones a model takes one for the other
SHRINKAGE, N_ITER = 0.5, 20  # of the Gaussians that tell how distinct classes are
FINALISTS, FINAL_ITERATIONS = 4, 5  # of those that go on with all images, before the tightest is chosen


def last_class(feats: Tensor, class_feats: Tensor, *, logit_scale: float, which: int, seed: int = 0) -> Tensor | None:
    """Give the only class whose name finds no image the images left over, if they are a class and not a part of others.

    The answer is a class feature of `leftover_concepts`, or nothing: where the images left over are not about as
    distinct as the classes that are known by name (`DISTINCT`), or where still another class, which does not exist,
    would pass the same test, as it does where classes fall into tight clumps. Then there is nothing to tell a class
    from a part of one by. Nothing, too, where names do not say which part of the images that one name found is whose:
    where they tell one part from the other hardly better than chance (`TELLING`), or where another name is so like this
    one (`ALIKE`) that the model takes images of the one for the other.

    Args:
      feats: [N, D] float, unit norm, of unlabelled images.
      class_feats: [C, D] float, unit norm.
      which: the class, 0 to C-1; all others are known by name.
      seed: of the clustering.

    Returns: [D] float32 unit norm, or None.

    Source: ours. The thresholds were chosen on CIFAR-10 and GTSRB: docs/results/README.md, "Class names, pools of
      any kind, and few labels".

    Example: a cluster of its own is given; with no such images there is nothing to give.
      >>> draw = torch.Generator().manual_seed(0)
      >>> truth = torch.arange(300) % 3
      >>> z = F.normalize(torch.eye(3, 8)[truth] + 0.15 * torch.randn(300, 8, generator=draw), dim=1)
      >>> names = F.normalize(torch.cat([torch.eye(3, 8)[:2], -torch.ones(1, 8)]), dim=1)
      >>> found = last_class(z, names, logit_scale=20.0, which=2)
      >>> bool(found[2] > 0.8), last_class(z[truth < 2], names, logit_scale=20.0, which=2)
      (True, None)
    """
    n_classes, z = len(class_feats), evenly_spread(feats, ROWS_MAX).float()
    if n_classes < 2 or len(z) < 2 * n_classes or bool(_are_alike(class_feats, torch.tensor([which])).any()):
        return None
    unknown = torch.full((len(z),), -1, device=z.device)

    def placed(t: Tensor, c: int, before: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Class features with class c at the images left over, all shares, and whether it and its loser stand apart."""
        is_left = torch.arange(len(t), device=z.device) == c
        found = leftover_concepts(z, t, logit_scale=logit_scale, is_mismatched=is_left, labels=unknown, seed=seed)
        own, shares = distinctness(z, found, logit_scale=logit_scale)
        usual = shares.clone()
        usual[which] = usual[c] = 0.0
        least = DISTINCT * (own * usual).sum() / usual.sum().clamp(min=1e-9)
        lost = (before - shares[: len(before)]).argmax()  # a class that is swallowed whole is not one more class
        return found, shares, bool(own[c] >= least) and (c == which or bool(own[lost] >= least))

    t = class_feats.float().to(z.device)
    found, shares, is_class = placed(t, which, torch.zeros(n_classes, device=z.device))
    probs = (logit_scale * z @ t.T).softmax(1)
    now = (z @ found.T).argmax(1)
    lost = int(probs[now == which].sum(0).argmax())
    if not is_class or _telling(probs, now, lost, which) < TELLING:
        return None
    one_more = torch.cat([found, F.normalize(found.mean(0, keepdim=True), dim=1)])
    return None if placed(one_more, n_classes, shares)[2] else found[which]


def distinctness(feats: Tensor, class_feats: Tensor, *, logit_scale: float) -> tuple[Tensor, Tensor]:
    """How far the images of each class stand apart from those of all others, judged on images left out.

    Gaussians of one covariance are fitted to one half of the images, by EM from the texts, and say for the images of
    the other half how surely each belongs to no other class: -log(1 - q), in nats, averaged by q.

    Args:
      feats: [N, D] float, unit norm, N >= 2.
      class_feats: [C, D] float, unit norm.

    Returns: [C] float32 >= 0, and the share of each class [C], which sums to 1.

    Example: two clumps that two names share, one of them cut in half by the third.
      >>> draw = torch.Generator().manual_seed(0)
      >>> z = F.normalize(torch.eye(2, 6)[torch.arange(200) % 2] + 0.1 * torch.randn(200, 6, generator=draw), dim=1)
      >>> names = F.normalize(torch.eye(2, 6)[[0, 1, 1]] + 0.2 * torch.eye(6)[[3, 4, 5]], dim=1)
      >>> own, shares = distinctness(z, names, logit_scale=20.0)
      >>> bool(own[2] < 0.5 * own[0]), round(shares[0].item(), 2)
      (True, 0.5)
    """
    t = logit_scale * class_feats
    total, sums = torch.zeros(len(t), device=feats.device), torch.zeros(len(t), device=feats.device)
    order = torch.randperm(len(feats), generator=torch.Generator().manual_seed(0)).to(feats.device)
    halves = feats[order[::2]], feats[order[1::2]]
    for fitted, left_out in (halves, halves[::-1]):
        unknown = torch.full((len(fitted),), -1, device=feats.device)
        found = gaussian_beliefs(
            fitted, partial(_logits, fitted, t), unknown, strength=1.0, shrinkage=SHRINKAGE, n_iter=N_ITER
        )
        q = found.probs(left_out, left_out @ t.T)
        total += q.sum(0)
        sums -= torch.log1p(-q.clamp(max=1 - 1e-6)).sum(0)  # -log(1 - q) q over q, as both are near 0 or both are not
    return sums / total.clamp(min=1e-6), total / total.sum()


def _logits(z: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    return z[rows] @ t.T


def leftover_concepts(
    feats: Tensor,
    class_feats: Tensor,
    *,
    logit_scale: float,
    is_mismatched: Tensor,
    labels: Tensor,
    seed: int = 0,
) -> Tensor:
    """Give mismatched classes the images that no other class explains: class features made out of clusters.

    k-means on the sphere with one centre per class. Known classes start at their surest images, mismatched classes with
    labelled images at these, as do classes with names like theirs, the others at images far from all centres. Then
    every known class is matched with a cluster by the overlap of its zero-shot probabilities with the cluster, and the
    clusters left over with the mismatched classes by what little their names say: certain for classes with labelled
    images, a guess for several. A mismatched class and the one that most of its images would be by name exchange their
    clusters where the two names say so. A cluster's centre is carried into the space of texts by the shift and scale
    that take the known classes' centres to their names.

    Args:
      feats: [N, D] float, unit norm, of images.
      class_feats: [C, D] float, unit norm, of names or descriptions.
      is_mismatched: [C] bool; where all are, the centres come back as they are.
      labels: [N] int64, -1 = unknown; images with a label stay in the cluster of their class.
      seed: of the starts.

    Returns: [C, D] float32 unit norm: ``class_feats`` with the mismatched rows replaced.

    Source: arXiv 2505.02056, Section 3.1 leaves such classes to a description; without one this takes their place.

    Example: "second" is unknown by name; the images left over are its own.
      >>> z = F.normalize(torch.tensor([[1.0, 0.0, 0.1], [0.9, 0.1, 0.1], [0.1, 1.0, 0.1], [0.0, 1.0, 0.1]]), dim=1)
      >>> names = F.normalize(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, -1.0]]), dim=1)
      >>> unknown = torch.full((4,), -1)
      >>> mismatched = torch.tensor([False, True])
      >>> found = leftover_concepts(z, names, logit_scale=10.0, is_mismatched=mismatched, labels=unknown)
      >>> (z @ found.T).argmax(1).tolist()
      [0, 0, 1, 1]
    """
    labels = labels.to(feats.device)
    kinds = [(labels < 0).nonzero().flatten(), (labels >= 0).nonzero().flatten()]
    rows = torch.cat([evenly_spread(kind, ROWS_MAX) for kind in kinds])
    rows = rows.sort().values  # few labels among many images are not thinned out
    z, kept_labels = feats[rows].float(), labels[rows]
    t = class_feats.float().to(z.device)
    known = ~is_mismatched.to(z.device)
    probs = (logit_scale * z @ t.T).softmax(1)
    best = probs.topk(max(1, int(TOP_FRAC * len(z) / len(t))), dim=0).indices  # [m, C]
    starts = F.normalize(z[best].mean(0), dim=1)
    has_labels = torch.zeros_like(known)
    has_labels[kept_labels[kept_labels >= 0]] = True
    is_seeded = ~known & has_labels
    sums = torch.zeros_like(starts).index_add_(0, kept_labels.clamp(min=0), z * (kept_labels >= 0)[:, None])
    by_labels = is_seeded | (has_labels & _are_alike(t, is_seeded.nonzero().flatten()))
    starts[by_labels] = F.normalize(sums, dim=1)[by_labels]
    centres, cluster = _anchored_kmeans(z, starts, known | is_seeded, kept_labels, seed=seed)
    of_class = _match_clusters(probs, cluster, centres, t, known=known, seeded=is_seeded, logit_scale=logit_scale)
    for c in (~known & ~is_seeded).nonzero().flatten().tolist():
        lost = int(torch.where(known, probs[cluster == of_class[c]].sum(0), -1.0).argmax())
        if known.any() and _telling(probs, cluster, lost, c, of_class) < 0.5:  # each has what is the other's
            of_class[[c, lost]] = of_class[[lost, c]]
    mu = centres[of_class]
    if not known.any():  # no name to tell the texts' place from: classes of labelled images, where their images are
        return mu
    mean_t, mean_mu = t[known].mean(0), mu[known].mean(0)
    spread = ((mu[known] - mean_mu) ** 2).sum()
    scale = ((t[known] - mean_t) * (mu[known] - mean_mu)).sum() / spread if spread > 1e-8 else torch.tensor(1.0)
    repaired = t.clone()
    repaired[~known] = F.normalize(mean_t + scale * (mu[~known] - mean_mu), dim=1)
    return repaired


def _anchored_kmeans(
    z: Tensor, starts: Tensor, is_anchored: Tensor, labels: Tensor, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Centres [C, D] and cluster of each image [N] of the tightest of some k-means; free centres start far off.

    The starts are compared after a few rounds on some of the images; the best of them go on with all.
    """
    generator = torch.Generator().manual_seed(seed)
    free = (~is_anchored).nonzero().flatten().tolist()
    some = torch.cat([evenly_spread((labels < 0).nonzero().flatten(), TRIAL_ROWS), (labels >= 0).nonzero().flatten()])
    some_z, some_labels = z[some], labels[some]
    trials: list[tuple[float, Tensor]] = [] if free else [(0.0, starts)]
    for _ in range(N_TRIES if free else 0):
        centres = starts.clone()
        known = centres[is_anchored]
        far = 1 - (some_z @ known.T).max(1).values if len(known) else torch.ones(len(some_z), device=z.device)
        for c in free:  # greedy k-means++: of some far images the one that serves the others best
            tried = torch.multinomial(far.clamp(min=1e-6).cpu(), min(8, len(some_z)), generator=generator).to(z.device)
            nearer = torch.minimum(far[:, None], 1 - some_z @ some_z[tried].T)
            place = int(nearer.mean(0).argmin())
            centres[c], far = some_z[tried[place]], nearer[:, place]
        centres, _, tightness = _lloyd(some_z, centres, some_labels, n_iterations=TRIAL_ITERATIONS)
        trials.append((tightness, centres))
    best = sorted(trials, key=lambda trial: -trial[0])[:FINALISTS]
    ends = [_lloyd(z, centres, labels, n_iterations=FINAL_ITERATIONS) for _, centres in best]
    centres, cluster, _ = _lloyd(z, max(ends, key=lambda end: end[2])[0], labels, n_iterations=N_ITERATIONS)
    return centres, cluster


def _lloyd(z: Tensor, centres: Tensor, labels: Tensor, *, n_iterations: int) -> tuple[Tensor, Tensor, float]:
    """Centres [C, D], cluster of each image [N] and mean cosine with its centre after k-means on the sphere."""
    has_label, before = labels >= 0, torch.full_like(labels, -1)
    for _ in range(n_iterations):
        cluster = torch.where(has_label, labels, (z @ centres.T).argmax(1))
        if torch.equal(cluster, before):
            break
        before = cluster
        sums = torch.zeros_like(centres).index_add_(0, cluster, z)
        filled = torch.bincount(cluster, minlength=len(centres)) > 0
        centres = torch.where(filled[:, None], F.normalize(sums, dim=1), centres)
    sims = z @ centres.T
    cluster = torch.where(has_label, labels, sims.argmax(1))
    return centres, cluster, float(sims.gather(1, cluster[:, None]).mean())


def _are_alike(class_feats: Tensor, which: Tensor) -> Tensor:
    """[C] bool: another class whose name is much nearer to that of one of ``which`` [k] than the farthest name is."""
    apart = torch.cdist(class_feats[which].float(), class_feats.float())
    near = apart < ALIKE * apart.max(1, keepdim=True).values
    near[torch.arange(len(which)), which] = False
    return near.any(0)


def _telling(probs: Tensor, cluster: Tensor, kept: int, gone: int, of_class: Tensor | None = None) -> float:
    """Chance that, of an image of class ``kept`` and one of ``gone``, names say so; 0.5 where one has none.

    Args: probs [N, C] by the names; cluster [N] of each image; of_class [C], the cluster of each class, None = its own.
    """
    sides = (kept, gone) if of_class is None else (int(of_class[kept]), int(of_class[gone]))
    surer = probs[:, kept] - probs[:, gone]
    above, below = (surer[cluster == side].sort().values for side in sides)
    if not len(above) or not len(below):
        return 0.5
    return float(torch.searchsorted(below, above).double().mean()) / len(below)


def _match_clusters(
    probs: Tensor, cluster: Tensor, centres: Tensor, t: Tensor, *, known: Tensor, seeded: Tensor, logit_scale: float
) -> Tensor:
    """Which cluster is whose: [C] int64. Known classes by overlap (Dice), then the mismatched by their names."""
    from scipy.optimize import linear_sum_assignment

    n_classes = len(t)
    mass = torch.zeros(n_classes, n_classes, device=probs.device).index_add_(0, cluster, probs)  # [K, C]
    sizes = torch.bincount(cluster, minlength=n_classes)
    dice = 2 * mass / (sizes[:, None] + mass.sum(0)).clamp(min=1e-6)
    of_class = torch.arange(n_classes)
    open_clusters = (~seeded).nonzero().flatten().cpu()  # a class with labelled images has its own cluster
    known_classes = known.nonzero().flatten().cpu()
    rows, columns = linear_sum_assignment(-dice.cpu()[open_clusters][:, known_classes].numpy())
    of_class[known_classes[torch.from_numpy(columns)]] = open_clusters[torch.from_numpy(rows)]
    taken = set(rows.tolist())
    left = open_clusters[[i for i in range(len(open_clusters)) if i not in taken]]
    guessed = (~known & ~seeded).nonzero().flatten().cpu()
    names_say = (logit_scale * centres @ t.T).log_softmax(1).cpu()[left][:, guessed]
    rows, columns = linear_sum_assignment(-names_say.numpy())
    of_class[guessed[torch.from_numpy(columns)]] = left[torch.from_numpy(rows)]
    return of_class.to(probs.device)
