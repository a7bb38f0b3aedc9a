"""Classes that a vision-language model does not know by name: which they are, and descriptions in place of names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import evenly_spread

ROWS_MAX = 50_000  # images that descriptions are weighed on; more are thinned out evenly
TOP_FRAC = 0.1  # images that show a class at its best, as a share of N / C; at least one
LEAST_RATIO = 1.5  # what a description has to explain over a name that fits
LEAST_SHARE = 0.05  # of the median gain of the names that are known: a description that explains less is useless
LEAST_FOUND = 0.02  # of its even share of the images: a name that finds fewer finds none
RARE, ABSENT, PRESENCE_ROUNDS = 0.25, 0.1, 30  # of the usual share: below it a class may be absent, is; rounds of EM
KNOWN_FROM, FEWEST_KNOWN, N_MIXTURES, TRIED_ROWS = 1.12, 5, 16, 2_000  # see `knowledge`
STEEPNESS = 23.0  # of `chance_known`
UNKNOWN = (
    "the model does not seem to know these classes: their names tell the images apart hardly better than texts without "
    "meaning would, or most of the classes are absent; take another model, describe how the classes look "
    "(--descriptions), or label an image of each"
)
"""What to say where `knowledge` is below `KNOWN_FROM`."""
CHUNK = 8192  # rows scored at a time
CHOICE_ROUNDS = 3  # passes over the classes, as each choice changes what is left to the others


@dataclass(frozen=True)
class ChosenDescriptions:
    """What `choose_descriptions` decided."""

    class_feats: Tensor  # [C, D] float32 unit norm: of the chosen description, or of the name
    chosen: Tensor  # [C] int64 position of the chosen description among those of the class, -1 = the name stays
    # one list per class: what each description explains, over what the name does (1 = as much)
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


@dataclass(frozen=True)
class Mismatch:
    """What `detect_mismatched` found."""

    is_mismatched: Tensor  # [C] bool
    evidence: Tensor  # [C] float32, 0 to 1: see `evidence`
    threshold: float  # evidence below it is a mismatch; 0 when no class is mismatched


def evidence(feats: Tensor, class_feats: Tensor, *, logit_scale: float) -> Tensor:
    """How sure the model is of a class at its best: its mean probability over the images that look most like it.

    These are `TOP_FRAC` of N / C.

    Args:
      feats: [N, D] float, unit norm, of images.
      class_feats: [C, D] float, unit norm, of class names.

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


def found_by_name(feats: Tensor, class_feats: Tensor) -> Tensor:
    """How many images zero-shot gives to each class, over what each would have if all had the same number.

    Args:
      feats: [N, D] float, unit norm.   class_feats: [C, D] float, unit norm.

    Returns: [C] float32 >= 0, 1 on average.

    Example: `LEAST_FOUND` and less is a name that finds no image.
      >>> found_by_name(torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
      [2.0, 0.0]
    """
    n_classes = len(class_feats)
    answers = torch.cat([(some.float() @ class_feats.float().T).argmax(1) for some in torch.split(feats, CHUNK)])
    return torch.bincount(answers, minlength=n_classes) * n_classes / len(feats)


def log_presence(
    feats: Tensor, class_feats: Tensor, *, logit_scale: float, where: Tensor, least: float = ABSENT
) -> Tensor:
    """What to add to the logits of classes that the images hardly show: most of what they get is then another's.

    The share of every class is estimated by EM from its probabilities. One that is below ``least`` of the usual share,
    which is the share of the class of a random image, is made less probable by what it lacks; others are left alone.
    Estimating all shares instead, as Saerens et al. do, costs what it gains where all classes are there.

    Args:
      feats: [N, D] float, unit norm, of unlabelled images, N >= 1.
      class_feats: [C, D] float, unit norm.
      where: [C] bool, classes that may be absent; the others, and their images, are left alone.
      least: 0 to 1. With 0.25 in place of 0.1 pools of few classes gain more, and one of all classes may lose.

    Returns: [C] float32 <= 0.

    Source: the EM of Saerens et al. 2002 for class shares; ours is to change only those of classes nearly absent.

    Example: the third class has a few images by mistake alone.
      >>> z = F.normalize(torch.tensor([[1.0, 0.0, 0.1]] * 50 + [[0.0, 1.0, 0.1]] * 50), dim=1)
      >>> texts, every = torch.eye(3), torch.ones(3, dtype=torch.bool)
      >>> (log_presence(z, texts, logit_scale=5.0, where=every) < -1).tolist()
      [False, False, True]
    """
    added = torch.zeros(len(class_feats), device=feats.device)
    if not where.any():
        return added
    z = evenly_spread(feats, ROWS_MAX)
    logits = torch.cat([logit_scale * some.float() @ class_feats.float().T for some in torch.split(z, CHUNK)])
    for _ in range(PRESENCE_ROUNDS):
        shares = (logits + added).softmax(1).mean(0)
        lack = (shares / (least * shares.square().sum())).clamp(min=1e-6, max=1).log()
        added = torch.where(where, lack, 0.0)
    return added


def knowledge(feats: Tensor, class_feats: Tensor, *, seed: int = 0) -> float:
    """How much more the best name of an image stands out than the best of mixtures of the names, which mean nothing.

    A model that knows the classes has a text in the direction of each cluster of images: of the cosines of an image,
    centred by class and by image, the largest is large. Texts with the same mean and covariance as the names, which are
    random rotations of the centred names among themselves, have that by chance alone.

    Args:
      feats: [N, D] float, unit norm.   class_feats: [C, D] float, unit norm.
      seed: of the rotations.

    Returns: the ratio, about 1 if the names mean nothing to the model, see `KNOWN_FROM`; infinite for fewer than
      `FEWEST_KNOWN` classes, whose mixtures say too little.

    Source: ours; the threshold was chosen on CIFAR-10 and GTSRB: docs/results/README.md, "Class names, pools of
      any kind, and few labels".

    Example: names on the clusters, and the same names each halfway between two of them.
      >>> z = torch.eye(6).repeat(10, 1)
      >>> between = F.normalize(torch.eye(6) + torch.eye(6).roll(1, 0), dim=1)
      >>> knowledge(z, torch.eye(6)) > KNOWN_FROM > knowledge(z, between)
      True
    """
    if len(class_feats) < FEWEST_KNOWN:
        return float("inf")
    z, t = evenly_spread(feats, TRIED_ROWS).float(), class_feats.float().to(feats.device)

    def standing_out(texts: Tensor) -> float:
        sims = z @ texts.T
        sims = sims - sims.mean(0)
        sims = sims - sims.mean(1, keepdim=True)
        return float(sims.amax(1).mean() / sims.square().mean().sqrt().clamp(min=1e-12))

    draw, centred = torch.Generator().manual_seed(seed), t - t.mean(0)
    if len(t) > t.shape[1]:  # more names than dimensions: of a rotation only the part that these see is drawn
        centred = torch.linalg.qr(centred).R
    turns = [torch.linalg.qr(torch.randn(len(t), len(centred), generator=draw)).Q.to(t) for _ in range(N_MIXTURES)]
    of_mixtures = [standing_out(F.normalize(t.mean(0) + turn @ centred, dim=1)) for turn in turns]
    return standing_out(t) / max(sum(of_mixtures) / N_MIXTURES, 1e-9)


def chance_known(ratio: float) -> float:
    """How probable it is that a model knows the classes, by what `knowledge` measured: even odds at `KNOWN_FROM`.

    Source: ours. The steepness makes a model's mean probability times this nearest to the share that is right, on pools
      of CIFAR-10 and GTSRB and two models, of which one knows neither: `benchmarks/knowledge.py`.

    Example:
      >>> [round(chance_known(ratio), 2) for ratio in (1.0, 1.12, 1.25, float("inf"))]
      [0.06, 0.5, 0.95, 1.0]
    """
    return 1 / (1 + math.exp(-min(STEEPNESS * (ratio - KNOWN_FROM), 100.0)))


def detect_by_clustering(feats: Tensor, class_feats: Tensor, *, logit_scale: float, seed: int = 0) -> Tensor:
    """The paper's detection: cluster, assign the surest class with its images, take both away, and again.

    Kept for comparison: one k-means per class, and the number of mismatched classes is fixed: C / 10, at least 1.

    Args:
      feats: [N, D] float, unit norm.   class_feats: [C, D] float, unit norm.
      seed: of k-means.

    Returns: [C] bool, the classes left over.

    Source: arXiv 2505.02056, Algorithm 1.

    Example:
      >>> z = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> detect_by_clustering(z, torch.tensor([[1.0, 0.0], [-0.6, -0.8]]), logit_scale=10.0).tolist()
      [False, True]
    """
    from sklearn.cluster import KMeans

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
