"""The chance that a label is right, from what a classifier says of it: a probability that can be used as a threshold.

    o_T = log-odds of the predicted class in softmax(logits / T)
    trust = sigmoid(slope (o_T + k) + offset - k), k = log(C - 1)

A temperature above 1 lets the classes behind the second have their say, which tells right from wrong better where a
classifier is far too sure. k makes of a slope what a temperature is: towards 0 it leads to chance, 1 / C, and not to
one half. All three come from labelled images whose labels the classifier did not see, by maximum a posteriori: few of
them move little from what is usual. Without such labels the slope is the one at which the mean trust is how sure those
were from whom the classifier learned, a text model or an annotator, before anything was learned from their answers:
what adapts to its own answers becomes too sure of itself.

Some of these labels may be wrong themselves, so many at most as an audit of them finds, w:

    chance that label and prediction agree = w / (C - 1) + (1 - w - w / (C - 1)) trust

with w where the labels are likeliest, and more probable the nearer to what the audit finds.

Where something else speaks for or against a label (`trust.pixel_votes`), its log-odds are added, and the offset is
moved so that the mean of trust stays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit
from torch import Tensor

from labelwright.errors import DataError
from labelwright.labels.chunks import evenly_spread
from labelwright.train.predict import TEMPERATURES

Source = Literal["left-out labels", "text model", "candidates", "none"]

USUAL = ((0.35, 0.5), (0.6, 0.3), (1.1, -0.3))
"""Slope and offset at each temperature where few labels say nothing else; chosen on CIFAR-10 and GTSRB, 2 to 20 labels
a class."""
UNJUDGED = (0.30, 0.99)
"""The same at the middle temperature where no label can be left out; chosen on CIFAR-10 and GTSRB, a label a class."""
MANY_CLASSES, MOST_OF_MANY = 20, 0.94
"""Classes above which that map gives no chance above this: log-odds come near their ends there, right or wrong. Of a
label a class those of 0.95 and more were right in 61% on 200 characters and in 86% on 26 letters (99% on 43 traffic
signs), on sets of 2 to 12 classes in 97 to 100% (a trial)."""
SLOPE_SPREAD, OFFSET_SPREAD = 0.4, 0.7  # deviation of the slope's logarithm, and of the offset
WRONG_START = 2.0  # log-odds of the share of wrong labels within the most that may be, from which it is looked for
Z95 = 1.96  # normal deviate that 95% are within
LEAST_SLOPE = 1e-4  # without labels: log-odds of a saturated softmax, near 90, lead to the chance of a guess
MATCHED_ROWS = 20_000  # by which a map without labels is found
MIDDLE = 1  # the temperature taken without labels
OF_HELD_OUT = TEMPERATURES[MIDDLE : MIDDLE + 1]
"""What is tried by images that were held out and score the run: the order of the chances owes nothing to their labels;
where evidence is added to them, it owes them the slope."""
KNOWN_ROWS = 1_000  # images on which what was known stands beside verified labels
OF_OTHERS = 100
"""Labels that a map from a text model or from candidates counts as beside verified ones; chosen on CIFAR-10 and GTSRB,
and so is `BY_CHANCE`."""
BY_CHANCE = 2.0  # variances of a difference by chance that a squared difference from verified labels may be of
LEAST_ROWS = 10  # left-out labels from which they say more than nothing
AUDITED = 40.0
"""Nats, times their share, by which as many wrong labels as an audit finds are more probable than none; chosen on
CIFAR-10, GTSRB and made-up mixtures, of right labels and with 10 to 40% wrong."""
JUDGED_ROWS, LEAST_WRONG = (
    100,
    0.02,
)  # left-out labels, and share of wrong ones, from which an audit tells them from none
REPEATED_FROM, REPEATED_TO, OF_REPEATED = 0.85, 0.97, 0.65  # see `chance_of_repeated`
BELOW, ABOVE = 0.35, 0.15  # how far from an estimate without labels the truth may be


@dataclass(frozen=True)
class Calibration:
    """A map from a classifier's log-odds to the chance that the predicted class is right.

    Attributes:
      slope: > 0, of the log-odds.
      offset: in nats.
      source: what it rests on.
      n: left-out labels that it rests on.
      n_classes: C, at least 2.
      temperature: one of `TEMPERATURES`, of the log-odds.
      moved: share of the images that fits without the left-out labels answer in another way, or, of candidates,
        whose class may have another's name by the answers, 0 to 1.
      wrong: share of the left-out labels that is taken for wrong, 0 to 1.
      lowered: by how much the mean chance was lowered as the text model may not know the classes, or guesses may
        repeat their mistakes, 0 to 1.
      repeated: of images with one guess each, the share of which the classifier says the same, 0 to 1.
      most: the largest chance, which all others are multiplied by.
    """

    slope: float = 1.0
    offset: float = 0.0
    source: Source = "none"
    n: int = 0
    n_classes: int = 2
    temperature: float = 1.0
    moved: float = 0.0
    wrong: float = 0.0
    lowered: float = 0.0
    repeated: float = 0.0
    most: float = 1.0

    def chance(self, odds: Tensor) -> Tensor:
        """The chance [N] float32 that a prediction is right, of `odds_of` it [N, T].

        A column behind these is evidence from elsewhere, which is added to the log-odds of the chance.

        Example:
          >>> from labelwright.train.predict import odds_of
          >>> odds = odds_of(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
          >>> Calibration(0.5, 0.0).chance(odds).tolist()
          [0.5, 0.75]
          >>> Calibration(0.5, 0.0).chance(with_evidence(odds, torch.tensor([1.0, -1.0]))).mul(100).round().tolist()
          [73.0, 52.0]
        """
        at = odds[:, TEMPERATURES.index(self.temperature)]
        return self.at(at, odds[:, len(TEMPERATURES)] if odds.shape[1] > len(TEMPERATURES) else None)

    def at(self, odds: Tensor, evidence: Tensor | None = None) -> Tensor:
        """The same of log-odds [N] at the map's own temperature."""
        k = math.log(max(self.n_classes, 2) - 1)
        logit = self.slope * (odds.double() + k) + self.offset - k
        return (self.most * torch.sigmoid(logit if evidence is None else logit + evidence.double())).float()

    def agreement(self, chance: Tensor) -> Tensor:
        """The chance [N] that a label as often wrong as the left-out ones is the predicted class.

        Args: chance [N] that this class is right.

        Example:
          >>> Calibration(n_classes=3, wrong=0.1).agreement(torch.tensor([0.0, 1.0])).mul(100).round().tolist()
          [5.0, 90.0]
        """
        by_chance = self.wrong / (max(self.n_classes, 2) - 1)
        return by_chance + (1 - self.wrong - by_chance) * chance

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def from_left_out(
    odds: Tensor,
    right: Tensor,
    *,
    n_classes: int = 2,
    like: Sequence[float] = (1, 1, 1),
    temperatures: Sequence[float] = TEMPERATURES,
    most_wrong: float = 0.0,
) -> Calibration:
    """The calibration that labels ask for which the classifier did not see.

    Args:
      odds: [n, T] of the predicted classes, see `odds_of`.
      right: [n] bool.
      n_classes: C.
      like: at each temperature, what log-odds of the classifier to be calibrated are multiplied by to be spread as
        these, > 0.
      temperatures: those tried. Of a single one the order of the chances is not chosen by these labels, which may then
        be what a promise rests on.
      most_wrong: share of these labels that an audit takes for wrong, 0 to 1: any other class as often.

    Returns: the map with the largest posterior; of fewer than `LEAST_ROWS` rows the usual one.

    Raises: DataError for log-odds that are not finite.

    Source: Platt 1999, with a prior in place of his smoothed targets; temperatures as in Guo et al. 2017 (arXiv
      1706.04599); of wrong labels the forward correction of Patrini et al. 2017 (arXiv 1609.03683).

    Example: half of the labels at 0.9 are right.
      >>> from labelwright.train.predict import odds_of
      >>> odds = odds_of(torch.tensor([[0.9, 0.1]]).expand(1000, 2))
      >>> found = from_left_out(odds, torch.arange(1000) % 2 == 0)
      >>> abs(found.chance(odds[:1]).item() - 0.5) < 0.02
      True
    """
    if not odds.isfinite().all():
        raise DataError("log-odds are not finite", fix="leave out rows whose logits are NaN or infinite")
    if len(odds) < LEAST_ROWS:
        slope, offset = USUAL[MIDDLE]
        return Calibration(slope * like[MIDDLE], offset, "none", 0, n_classes, TEMPERATURES[MIDDLE])

    ones, most = torch.ones(len(odds)), most_wrong if len(odds) >= JUDGED_ROWS and most_wrong >= LEAST_WRONG else 0.0
    found, slope, offset, wrong = _best(odds, right.double(), ones, temperatures, n_classes=n_classes, most=most)
    slope *= like[TEMPERATURES.index(found)]
    return Calibration(slope, offset, "left-out labels", len(odds), n_classes, found, wrong=wrong)


def unjudged(n_classes: int) -> Calibration:
    """The calibration of a solved head where nothing can be left out, as of one label a class: too sure of itself.

    Example:
      >>> from labelwright.train.predict import odds_of
      >>> round(unjudged(10).chance(odds_of(torch.tensor([[0.99] + [0.01 / 9] * 9]))).item(), 2)
      0.45
    """
    most = MOST_OF_MANY if n_classes > MANY_CLASSES else 1.0
    return Calibration(*UNJUDGED, "none", 0, n_classes, TEMPERATURES[MIDDLE], most=most)


def worth_of(right: Tensor, classes: Tensor, *, n_others: int) -> int:
    """How many rows by themselves say as much of images of other classes as rows of these: fewer where classes differ.

    Args:
      right: [n] bool, n >= 1.
      classes: [n] int64 class of each row.
      n_others: other classes, >= 1, of which what is right differs as well.

    Source: the design effect of sampling whole clusters (Kish 1965, Survey Sampling, section 5.4).

    Example: ten rows each of four classes; all of one are wrong, and as it may be of one of four others.
      >>> classes = torch.arange(40) // 10
      >>> worth_of(classes > 0, classes, n_others=10**6), worth_of(classes > 0, classes, n_others=4)
      (4, 2)
      >>> worth_of(torch.arange(40) % 4 > 0, classes, n_others=4)
      40
    """
    n, mean = len(right), float(right.double().mean())
    off = torch.zeros(int(classes.max()) + 1, dtype=torch.float64).index_add_(0, classes, right.double() - mean)
    alone = n * mean * (1 - mean)
    more = max(0.0, float(off.square().sum()) - alone) * (1 + int((torch.bincount(classes) > 0).sum()) / n_others)
    return max(1, round(n * alone / (alone + more))) if more else n


def from_verified(calibration: Calibration, odds: Tensor, rows: Tensor, right: Tensor) -> Calibration:
    """A calibration by labels that somebody verified, and by what it rested on before: n left-out labels, or others.

    These count as so many labels that are right as often as the map says, of all images alike; as fewer, w, the
    farther they are from the verified ones: left out were other images, or whole groups.

        w = n / (1 + n b / v),  b = max(0, d^2 - 2 v (1 / m + 1 / n)),  v = mean of trust (1 - trust)

    with d the difference between trust and the share that is right on m verified labels. A text model and candidates
    stand for 100 labels, that are no data: the map which is found rests on verified ones alone.

    Args:
      calibration: of a classifier; one from nothing has no part in what is found.
      odds: [N, T] of its predicted classes, see `odds_of`, or [N, T + 1] with evidence, which it already counts.
      rows: [m] int64, the verified ones.
      right: [m] bool.

    Returns: the map with the largest posterior; ``calibration`` itself for fewer than `LEAST_ROWS` verified labels.

    Example: of 40 verified labels 80% are right; the less the map agreed, the fewer labels it counts as.
      >>> from labelwright.train.predict import odds_of
      >>> odds, rows = odds_of(torch.tensor([[0.9, 0.1]]).expand(1000, 2)), torch.arange(40)
      >>> for slope in (0.8, 2.0):
      ...     known = Calibration(slope, 0.0, "left-out labels", 40)
      ...     found = from_verified(known, odds, rows, rows % 5 > 0)
      ...     print(round(known.chance(odds[:1]).item(), 2), round(found.chance(odds[:1]).item(), 2), found.n)
      0.85 0.82 80
      0.99 0.8 40
    """
    m, n = len(rows), calibration.n
    if m < LEAST_ROWS:
        return calibration
    if calibration.source in ("text model", "candidates"):
        n = OF_OTHERS
    seen, target, weights = odds[rows], right.double(), torch.ones(m, dtype=torch.float64)
    counted = 0.0
    if n:
        trust = calibration.chance(seen).double()
        v = max(float((trust * (1 - trust)).mean()), 1e-4)
        b = max(0.0, float(trust.mean() - target.mean()) ** 2 - BY_CHANCE * v * (1 / m + 1 / n))
        counted = n / (1 + n * b / v)
        others = evenly_spread(odds, KNOWN_ROWS)
        target = torch.cat([target, calibration.chance(others).double()])
        weights = torch.cat([weights, torch.full((len(others),), counted / len(others), dtype=torch.float64)])
        seen = torch.cat([seen, others])
    found, slope, offset, _ = _best(seen, target, weights, n_classes=calibration.n_classes)
    n_classes, share = calibration.n_classes, counted / (m + counted)
    moved, wrong = calibration.moved * share, calibration.wrong * share
    n = m + (round(counted) if calibration.n else 0)
    return Calibration(slope, offset, "left-out labels", n, n_classes, found, moved, wrong)


def _best(
    odds: Tensor,
    target: Tensor,
    weights: Tensor,
    temperatures: Sequence[float] = TEMPERATURES,
    *,
    n_classes: int,
    most: float = 0.0,
) -> tuple[float, float, float, float]:
    """The temperature of the largest posterior, its slope and offset, and the share of wrong labels up to ``most``."""
    found = {}
    for each in temperatures:
        t = TEMPERATURES.index(each)
        found[each] = _likeliest(
            odds[:, t], target, n_classes=n_classes, usual=USUAL[t], weights=weights, most_wrong=most
        )
    best = min(found, key=lambda each: found[each][0])
    return best, *found[best][1:]


def cross_fitted(
    odds: Tensor,
    right: Tensor,
    *,
    n_classes: int = 2,
    temperatures: Sequence[float] = TEMPERATURES,
    most_wrong: float = 0.0,
) -> Tensor:
    """The chances [n] float32 of labels, each by a map from the half without it: what a map from all of them is worth.

    They are those of agreeing with these labels, some of which may be wrong.

    Args: as of `from_left_out`; odds [n, T + 1] with evidence: it is added to the maps as `levelled` does.

    Example: a network that is sure of itself, and right half of the time.
      >>> from labelwright.train.predict import odds_of
      >>> odds = odds_of(torch.tensor([[0.99, 0.01]]).expand(400, 2))
      >>> round(cross_fitted(odds, torch.arange(400) % 4 < 2).mean().item(), 2)
      0.51
    """
    chances, order = torch.empty(len(odds)), torch.randperm(len(odds), generator=torch.Generator().manual_seed(0))
    first, second = order[::2], order[1::2]
    for own, others in ((first, second), (second, first)):
        found = from_left_out(
            odds[others], right[others], n_classes=n_classes, temperatures=temperatures, most_wrong=most_wrong
        )
        chances[own] = found.agreement(levelled(found, odds[own]).chance(odds[own]))
    return chances


def with_evidence(odds: Tensor, evidence: Tensor) -> Tensor:
    """Log-odds [N, T] with a column of evidence [N], as `Calibration.chance` takes them; added to one that is there."""
    n = len(TEMPERATURES)
    return torch.cat([odds[:, :n], odds[:, n:].sum(1, keepdim=True) + evidence[:, None].to(odds)], 1)


def levelled(calibration: Calibration, odds: Tensor) -> Calibration:
    """A map found without evidence, for log-odds with it: the mean of the chances stays, evidence moves them about it.

    Args:
      odds: [N, T + 1] of predicted classes, see `with_evidence`; [N, T]: the map stays as it is.

    Returns: the map with another offset; as it is where none leads there.

    Example:
      >>> from labelwright.train.predict import odds_of
      >>> odds = with_evidence(odds_of(torch.tensor([[0.8, 0.2]] * 2)), torch.tensor([1.0, -5.0]))
      >>> [round(v, 3) for v in levelled(Calibration(), odds).chance(odds).tolist()]
      [0.998, 0.602]
    """
    if odds.shape[1] == len(TEMPERATURES) or not len(odds):
        return calibration
    mean = float(calibration.chance(evenly_spread(odds, MATCHED_ROWS)[:, : len(TEMPERATURES)]).double().mean())
    return moved_to(calibration, odds, mean)


def moved_to(calibration: Calibration, odds: Tensor, mean: float, *, counts: Tensor | None = None) -> Calibration:
    """The map with the offset at which chances of odds [N, T] have this mean; as it is where none leads there.

    Args: counts: [N] for how many images each stands, >= 0; None: for one.

    Example:
      >>> from labelwright.train.predict import odds_of
      >>> odds = odds_of(torch.tensor([[0.8, 0.2], [0.6, 0.4]]))
      >>> for counts in (None, torch.tensor([1.0, 0.0])):
      ...     [round(v, 2) for v in moved_to(Calibration(), odds, 0.3, counts=counts).chance(odds).tolist()]
      [0.4, 0.2]
      [0.3, 0.14]
    """
    counts = torch.ones(len(odds)) if counts is None else counts
    some, per_image = evenly_spread(odds, MATCHED_ROWS), evenly_spread(counts, MATCHED_ROWS).double()
    per_image = per_image / per_image.sum().clamp(min=1e-12)

    def gap(more: float) -> float:
        shifted = dataclasses.replace(calibration, offset=calibration.offset + more)
        return float((per_image * shifted.chance(some)).sum()) - mean

    more = float(brentq(gap, -100.0, 100.0, xtol=1e-6)) if gap(-100.0) < 0 < gap(100.0) else 0.0
    return dataclasses.replace(calibration, offset=calibration.offset + more)


def _likeliest(
    odds: Tensor,
    target: Tensor,
    *,
    n_classes: int,
    usual: tuple[float, float],
    weights: Tensor | None = None,
    most_wrong: float = 0.0,
) -> tuple[float, float, float, float]:
    """Loss, slope, offset and share of wrong labels under which chances [n], given or 0 and 1, are likeliest.

    Args: weights [n] of these, beside the usual slope and offset; None: the usual ones do not count.
    """
    k = math.log(max(n_classes, 2) - 1)
    shifted, wanted = odds.double().numpy() + k, target.numpy()
    counts = np.ones(len(wanted)) if weights is None else weights.numpy()

    def loss(at: Any) -> float:
        logit = math.exp(at[0]) * shifted + at[1] - k
        if len(at) == 2:
            misfit = (counts * (np.logaddexp(0, logit) - wanted * logit)).sum()
        else:
            wrong = most_wrong * expit(at[2])
            by_chance = wrong / (max(n_classes, 2) - 1)
            agree = (by_chance + (1 - wrong - by_chance) * expit(logit)).clip(1e-12, 1 - 1e-12)
            misfit = -(counts * (wanted * np.log(agree) + (1 - wanted) * np.log1p(-agree))).sum()
            misfit -= AUDITED * most_wrong * expit(at[2])
        prior = ((at[0] - math.log(usual[0])) / SLOPE_SPREAD) ** 2 + ((at[1] - usual[1]) / OFFSET_SPREAD) ** 2
        return float(misfit + (weights is not None) * prior / 2)

    begin = [math.log(usual[0]), usual[1]]
    starts = [begin] if most_wrong <= 0 else [[*begin, -WRONG_START], [*begin, WRONG_START]]
    found = min((minimize(loss, np.array(each), method="BFGS") for each in starts), key=lambda each: float(each.fun))
    wrong = most_wrong * float(expit(found.x[2])) if most_wrong > 0 else 0.0
    return float(found.fun), math.exp(found.x[0]), float(found.x[1]), wrong


def slope_to_mean(odds: Tensor, mean: float, *, n_classes: int = 2) -> float:
    """The slope, 0.0001 to 1, at which the mean of the chances is ``mean``, or as near as can be.

    Args:
      odds: [N] of predicted classes, at one temperature.
      mean: 0 to 1.
      n_classes: C.

    Example:
      >>> from labelwright.train.predict import odds_of
      >>> odds = odds_of(torch.tensor([[0.99, 0.01], [0.9, 0.1], [0.8, 0.2]]))[:, 0]
      >>> slope = slope_to_mean(odds, 0.8)
      >>> round(Calibration(slope).at(odds).mean().item(), 4), slope_to_mean(odds, 0.95)
      (0.8, 1.0)
    """

    def gap(slope: float) -> float:
        return float(Calibration(slope, n_classes=n_classes).at(odds).double().mean()) - mean

    if gap(1.0) <= 0:
        return 1.0
    return LEAST_SLOPE if gap(LEAST_SLOPE) >= 0 else float(brentq(gap, LEAST_SLOPE, 1.0, xtol=1e-8))


def from_confidence(
    odds: Tensor, confidence: float, source: Source, *, n_classes: int = 2, is_voted: bool = False, known: float = 1.0
) -> Calibration:
    """The calibration of answers learned from those of others, by how sure these were: no surer than the softmax.

    Others who do not know the classes are right by chance, however sure they are.

    A slope that leads to their mean says how probable it is that labels of a softmax are right; the middle temperature
    says of which: the map at that temperature which is nearest to these chances is taken. What annotations of an image
    and the model say together is ordered best as it is.

    Args:
      odds: [N, T] of the predicted classes.
      confidence: mean probability of the others' own answers, 0 to 1.
      source: "text model" or "candidates".
      n_classes: C.
      is_voted: whether annotations of the same images have a part in the log-odds.
      known: how probable it is that the others know the classes, 0 to 1.

    Example:
      >>> from labelwright.train.predict import odds_of
      >>> odds = odds_of(torch.tensor([[0.99, 0.01], [0.05, 0.95]]))
      >>> found = [from_confidence(odds, 0.7, "text model", known=known) for known in (1.0, 0.5)]
      >>> [round(each.chance(odds).mean().item(), 3) for each in found]
      [0.7, 0.6]
    """
    lowered = (1 - known) * max(0.0, confidence - 1 / max(n_classes, 2))
    confidence -= lowered
    some = evenly_spread(odds, MATCHED_ROWS)
    plain = Calibration(slope_to_mean(odds[:, 0], confidence, n_classes=n_classes), 0.0, source, n_classes=n_classes)
    if is_voted:
        return dataclasses.replace(plain, lowered=lowered)
    chances = plain.at(some[:, 0]).double()
    start = (plain.slope * TEMPERATURES[MIDDLE], 0.0)
    _, slope, offset, _ = _likeliest(some[:, MIDDLE], chances, n_classes=n_classes, usual=start)
    return Calibration(slope, offset, source, 0, n_classes, TEMPERATURES[MIDDLE], lowered=lowered)


def chance_of_repeated(repeated: float) -> float:
    """How right guesses can be taken to be, one an image, of which a classifier that learned from them says the same.

    A person's slips do not show in the image, and a classifier contradicts them: then those that it does not contradict
    are mostly right. Guesses that it repeats to the last are what a model says, right or wrong, or right labels of
    classes that are easy to tell: on CIFAR-10 and GTSRB, which chose this, guesses of models were right in 59 to 87%.

    Args: repeated: share of the guesses, 0 to 1.

    Example:
      >>> [round(chance_of_repeated(share), 2) for share in (0.6, 0.91, 1.0)]
      [1.0, 0.82, 0.65]
    """
    full = min(1.0, max(0.0, (repeated - REPEATED_FROM) / (REPEATED_TO - REPEATED_FROM)))
    return 1 - full * (1 - OF_REPEATED)


def expected_accuracy(trust: Tensor, calibration: Calibration) -> tuple[float, float, float]:
    """The estimated share of labels that are right, and an interval for it.

    With left-out labels the interval is a 95% one for as many of them, and for as many predicted labels, of which the
    share that is right varies, too. It is wider by half of what fits without them answer unlike: where they do, either
    may be right, so they are worse by an unknown part of it, and the estimate is not raised. It is wider by half of the
    share of labels taken for wrong, too. From a text model or candidates it is what such estimates were off by where we
    looked, lower by the images whose class may have another's name, and it reaches as high as if the text model knew
    the classes. Without any it says nothing.

    Args:
      trust: [N] calibrated chances of predicted labels, N >= 1.

    Returns: estimate, low, high.

    Source: of left-out labels Wilson 1927 (JASA 22).

    Example:
      >>> known = Calibration(1.0, 0.0, "left-out labels", 100)
      >>> [[round(v, 3) for v in expected_accuracy(torch.full((N,), 0.9), known)] for N in (50, 10_000)]
      [[0.9, 0.754, 0.964], [0.9, 0.825, 0.945]]
    """
    mean = float(trust.double().mean())
    if calibration.source == "none":
        return mean, 0.0, 1.0
    if calibration.source in ("text model", "candidates"):
        return mean, max(0.0, mean - BELOW - calibration.moved), min(1.0, mean + calibration.lowered + ABOVE)
    n, unsure = 1 / (1 / calibration.n + 1 / len(trust)), (calibration.moved + calibration.wrong) / 2
    middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    width = Z95 * math.sqrt(mean * (1 - mean) / n + (Z95 / (2 * n)) ** 2) / (1 + Z95**2 / n) + unsure
    return mean, max(0.0, middle - width), min(1.0, middle + width)
