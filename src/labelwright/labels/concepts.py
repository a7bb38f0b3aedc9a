"""Repair of classes that a vision-language model does not know by name: descriptions, or the images left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from labelwright.labels.chunks import evenly_spread

ROWS_MAX = 50_000  # images that descriptions are weighed on and clusters found in; more are thinned out evenly
TOP_FRAC = 0.1  # images that show a class at its best, as a share of N / C; at least one
LEAST_RATIO = 1.5  # what a description has to explain over a name that fits
LEAST_SHARE = 0.05  # of the median gain of the names that are known: a description that explains less is useless
CHOICE_ROUNDS = 3  # passes over the classes, as each choice changes what is left to the others
TRIAL_ROWS, TRIAL_ITERATIONS = 2_500, 10  # of each start of the clustering of leftovers
N_TRIES, N_ITERATIONS = 30, 15  # such starts; rounds with all images of the best, at most
FINALISTS, FINAL_ITERATIONS = 4, 5  # of those that go on with all images, before the tightest is chosen


@dataclass(frozen=True)
class ChosenDescriptions:
    """What `choose_descriptions` decided.

    Attributes:
      class_feats: [C, D] float32 unit norm: of the chosen description, or of the name.
      chosen: [C] int64 position of the chosen description among those of the class, -1 = the name stays.
      gains: one list per class: what each description explains, over what the name does (1 = as much).
    """

    class_feats: Tensor
    chosen: Tensor
    gains: tuple[tuple[float, ...], ...]


def choose_descriptions(
    feats: Tensor,
    name_feats: Tensor,
    description_feats: Sequence[Tensor],
    *,
    is_mismatched: Tensor,
) -> ChosenDescriptions:
    """Put a description in place of a name only where it explains the images better; refuse useless ones.

    What a text explains is how much closer it brings the images to their nearest class: the mean over images of
    max(0, cosine with the text - best cosine with another class). A poem or a wrong guess brings none closer.

    Args:
      feats: [N, D] float, unit norm, of images.
      name_feats: [C, D] float, unit norm, of the class names.
      description_feats: per class [k, D] float, unit norm; k may be 0.
      is_mismatched: [C] bool; their descriptions need only be better than the name, others `LEAST_RATIO` times.

    Returns: the class features to go on with, what was chosen, and the figures behind it.

    Source: our own guard against hallucinated descriptions (open question 1 of arXiv 2505.02056); the criterion is the
      facility-location objective.

    Example: a name that fits nothing, a useless description and a good one.
      >>> z = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.1], [0.0, 1.0, 0.0]]), dim=1)
      >>> names = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
      >>> texts = [torch.zeros(0, 3), F.normalize(torch.tensor([[0.0, 0.0, -2.0], [0.1, 1.0, 0.0]]), dim=1)]
      >>> choose_descriptions(z, names, texts, is_mismatched=torch.tensor([False, True])).chosen.tolist()
      [-1, 1]
    """
    z = evenly_spread(feats, ROWS_MAX).float()
    names = name_feats.float().to(z.device)
    texts = [t.float().to(z.device) for t in description_feats]
    current = names.clone()
    chosen = torch.full((len(names),), -1, dtype=torch.int64)
    top, owner = _two_best(z, current)
    known = (~is_mismatched).nonzero().flatten().tolist() or range(len(names))
    gains_of_names = torch.stack([_gain(z, names[c], top, owner, c) for c in known])
    least = LEAST_SHARE * float(gains_of_names.median())
    ratios: list[tuple[float, ...]] = [()] * len(names)
    for _ in range(CHOICE_ROUNDS):
        before = chosen.clone()
        for c, options in enumerate(texts):
            if not len(options):
                continue
            of_name = float(_gain(z, names[c], top, owner, c))
            gains = [float(_gain(z, text, top, owner, c)) for text in options]
            ratios[c] = tuple(gain / max(of_name, 1e-12) for gain in gains)
            best = max(range(len(gains)), key=gains.__getitem__)
            wanted = of_name * (1.0 if is_mismatched[c] else LEAST_RATIO)
            pick = best if gains[best] > max(wanted, least) else -1
            if pick != int(chosen[c]):
                chosen[c] = pick
                current[c] = names[c] if pick < 0 else options[pick]
                top, owner = _two_best(z, current)
        if torch.equal(before, chosen):
            break
    return ChosenDescriptions(current, chosen, tuple(ratios))


def _two_best(z: Tensor, class_feats: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest cosines of each image [N, 2], and the class of the first [N]."""
    # a cosine of -1 stands in for the second class where there is only one
    parts = [F.pad(some @ class_feats.T, (0, 1), value=-1.0).topk(2, dim=1) for some in torch.split(z, 8192)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices[:, 0] for p in parts])


def _gain(z: Tensor, text: Tensor, top: Tensor, owner: Tensor, c: int) -> Tensor:
    """Mean rise of the best cosine of an image when class ``c`` has this text; scalar."""
    others = torch.where(owner == c, top[:, -1], top[:, 0])
    return (z @ text - others).clamp(min=0).mean()


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

    k-means on the sphere with one centre per class. Known classes start at their surest images, classes with labelled
    images at these, the others at images far from all centres. Then every known class is matched with a cluster by the
    overlap of its zero-shot probabilities with the cluster, and the clusters left over with the mismatched classes by
    what little their names say. With one class left that is certain; with many it is a guess, better than a name that
    fits nothing. A cluster's centre is carried into the space of texts by the shift and scale that take the known
    classes' centres to their names.

    Args:
      feats: [N, D] float, unit norm, of images.
      class_feats: [C, D] float, unit norm, of names or descriptions.
      logit_scale: what cosines are multiplied by.
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
    starts[is_seeded] = F.normalize(sums, dim=1)[is_seeded]
    centres, cluster = _anchored_kmeans(z, starts, known | is_seeded, kept_labels, seed=seed)
    of_class = _match_clusters(probs, cluster, centres, t, known=known, seeded=is_seeded, logit_scale=logit_scale)
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


def _match_clusters(
    probs: Tensor, cluster: Tensor, centres: Tensor, t: Tensor, *, known: Tensor, seeded: Tensor, logit_scale: float
) -> Tensor:
    """Which cluster is whose: [C] int64. Known classes by overlap (Dice), then the mismatched by their names."""
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


def evidence(feats: Tensor, class_feats: Tensor, *, logit_scale: float) -> Tensor:
    """How sure the model is of a class at its best: its mean probability over the images that look most like it.

    These are `TOP_FRAC` of N / C.

    Args:
      feats: [N, D] float, unit norm, of images.
      class_feats: [C, D] float, unit norm, of class names.
      logit_scale: what cosines are multiplied by.

    Returns: [C] float32, 0 to 1.

    Example: nothing looks like the second class.
      >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
      >>> [round(v, 2) for v in evidence(z, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), logit_scale=5.0).tolist()]
      [1.0, 0.0]
    """
    n_best = max(1, int(TOP_FRAC * len(feats) / len(class_feats)))
    best = feats.new_zeros(0, len(class_feats)).float()
    for some in torch.split(feats, CHUNK):
        probs = (logit_scale * some.float() @ class_feats.float().T).softmax(1)
        best = torch.cat([best, probs]).topk(min(n_best, len(best) + len(probs)), dim=0).values
    return best.mean(0)


def detect_mismatched(feats: Tensor, class_feats: Tensor, *, logit_scale: float) -> Mismatch:
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

    Source: replaces Algorithm 1 of arXiv 2505.02056 (`detect_by_clustering`); Otsu 1979 for the threshold.

    Example:
      >>> z = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> names = torch.tensor([[1.0, 0.0], [-0.6, -0.8], [0.0, 1.0]])
      >>> detect_mismatched(z, names, logit_scale=10.0).is_mismatched.tolist()
      [False, True, False]
    """
    found = evidence(feats, class_feats, logit_scale=logit_scale)
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
    return Mismatch(found < threshold, found, threshold)


def detect_by_clustering(feats: Tensor, class_feats: Tensor, *, logit_scale: float, seed: int = 0) -> Tensor:
    """The paper's detection: cluster, assign the surest class with its images, take both away, and again.

    Kept for comparison: one k-means per class, and the number of mismatched classes is fixed: C / 10, at least 1.

    Args:
      feats: [N, D] float, unit norm.   class_feats: [C, D] float, unit norm.
      logit_scale: what cosines are multiplied by.
      seed: of k-means.

    Returns: [C] bool, the classes left over.

    Source: arXiv 2505.02056, Algorithm 1.

    Example:
      >>> z = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> detect_by_clustering(z, torch.tensor([[1.0, 0.0], [-0.6, -0.8]]), logit_scale=10.0).tolist()
      [False, True]
    """
    n_rows, n_classes = len(feats), len(class_feats)
    n_left = max(1, n_classes // 10)
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
