"""Which labels may be accepted: sets of labels of which at most a given share is wrong, from a few that were verified.

Sets S_1 < S_2 < … of labels, from the most trusted on, are fixed before a verified label is looked at, and tested in
that order until a test fails (fixed-sequence testing: Angelopoulos et al. 2021, arXiv 2110.01052, section 4). So the
chance that any accepted set has too many wrong labels is the chance that the first such set passes its own test.

One test. Of a set with at least T wrong labels, the number X of those among the verified images is a sum of independent
hypergeometric numbers, one per stratum of the sample, and as such a sum of T independent yes or no's (Vatutin and
Mikhailov 1982), whose mean is at least the sum of the T smallest chances of being drawn, m. For k <= m - 1

    P(X <= k) <= Binomial(T, m / T)(k)        (Hoeffding 1956)

whatever labels are wrong, in whatever stratum. T = floor(error N) + 1 is the least number that breaks the promise. For
the same chance for every image this is within a verified label or two of Clopper and Pearson's bound.

With 400 verified labels or more the sequence is taken twice: with all of them, in the order of trust; and, with a part
of the allowed chance of error, in an order in which 30% of them correct trust class by class, tested by the other 70%.
The second helps where the labels of a class are wrong and trusted: they go to review, and others are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALIKE_SHARE = 0.7  # of the allowed chance of a broken promise, for the order in which all classes are alike
BY_CLASS_FROM = 400  # verified labels; of fewer a part is too small to test by, and all are used in the first order
PILOT_FRAC = 0.3  # of the verified labels, to correct the other order by
MOST_SETS = 200  # tested sets, at most
REGION_STRATA, REST_STRATA = 8, 3  # of a sample
REST_FRAC = 0.35  # of a sample, from labels that will hardly be accepted: to calibrate by
REGIONS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the labels that most of a sample is of
N_IMAGINED, DOUBT = 400, 0.8  # imagined samples; deviation of the logarithm of (true / expected) number of wrong labels
LARGER = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0)  # samples, as multiples, that `enough` looks at


@dataclass(frozen=True)
class Sample:
    """Images to verify.

    Attributes:
      rows: [n] int64 in random order, each once.
      stratum: [N] int64, the group of labels that each was in when rows were drawn from every group at random.
    """

    rows: Ints
    stratum: Ints


@dataclass(frozen=True)
class Promise:
    """A set of labels, and what is promised of it.

    Attributes:
      accepted: [N] bool.
      thresholds: [C] the least trust of an accepted label of each class; inf where there is none.
      by_class: whether thresholds differ between classes.
      n_verified: labels that it rests on.
      error: largest share of wrong labels, 0 to 1.
      confidence: of the promise.
    """

    accepted: Bools
    thresholds: Floats
    by_class: bool
    n_verified: int
    error: float
    confidence: float


def draw(trust: Floats, n: int, *, error: float = 0.05, confidence: float = 0.95, seed: int = 0) -> Sample:
    """Labels to verify: most of them, evenly, from as many of the most trusted ones as could be accepted.

    Args:
      trust: [N] estimated chances that labels are right.
      n: how many; N or more: all of them.
      error, confidence: of the promise that is to be made.

    Returns: min(n, N) rows. How many could be accepted is guessed from ``trust``; a bad guess costs coverage alone.

    Example:
      >>> trust = np.linspace(0.5, 1, 1000)
      >>> drawn = draw(trust, 200)
      >>> len(set(drawn.rows.tolist())), bool(trust[drawn.rows].mean() > 0.8)
      (200, True)
    """
    generator, n_labels = np.random.default_rng(seed), len(trust)
    order = np.lexsort((generator.random(n_labels), -trust))
    if n >= n_labels:
        return Sample(generator.permutation(n_labels), np.zeros(n_labels, np.int64))
    sizes, numbers = _strata(n_labels, n, _region(trust, n, error, confidence)[0])
    ends = np.cumsum(sizes)
    places = [end - size + generator.choice(size, m, replace=False) for end, size, m in zip(ends, sizes, numbers)]  # noqa: B905
    stratum = np.empty(n_labels, np.int64)
    stratum[order] = np.repeat(np.arange(len(sizes)), sizes)
    return Sample(generator.permutation(order[np.concatenate(places)]), stratum)


def promise(
    trust: Floats,
    labels: Ints,
    stratum: Ints,
    verified: Bools,
    wrong: Bools,
    *,
    error: float,
    confidence: float = 0.95,
    n_apart: int = 0,
) -> Promise:
    """The largest set of labels that can be promised to have at most a share ``error`` of wrong ones.

    Args:
      trust: [N] estimated chances that labels are right, which no verified label has had a part in.
      labels: [N] int, 0 to C-1.
      stratum: [N] int, as in `Sample`; -1: could not have been drawn, and is not accepted.
      verified: [N] bool; in every stratum drawn at random.
      wrong: [N] bool, of the verified ones.
      error: 0 to 1, both excluded.
      confidence: 0 to 1, both excluded: with this probability over the draw the promise holds.
      n_apart: so many of the rows, all of them verified, are not among the labels that the share is of; 0, or all that
        were verified.

    Returns: the promise; nothing is accepted where nothing can be promised. The share is of labels as they were before
      the wrong ones among the verified were corrected.

    Example: of 1,000 labels the 300 of least trust are wrong.
      >>> trust, is_wrong = np.repeat([0.97, 0.5], [700, 300]), np.arange(1000) >= 700
      >>> drawn, is_drawn = draw(trust, 200), np.zeros(1000, bool)
      >>> is_drawn[drawn.rows] = True
      >>> found = promise(trust, np.zeros(1000, int), drawn.stratum, is_drawn, is_wrong, error=0.05)
      >>> int(found.accepted.sum()), found.thresholds.tolist()
      (700, [0.97])
    """
    n_classes, delta = int(labels.max(initial=0)) + 1, 1 - confidence
    rows = np.flatnonzero(stratum >= 0)
    seen = verified & (stratum >= 0)
    share = ALIKE_SHARE if n_classes > 1 and seen.sum() >= BY_CLASS_FROM else 1.0

    def tested(score: Floats, chance: Floats, of: Ints, delta: float, n_apart: int) -> Ints:
        return of[_tested(score[of], chance[of], stratum[of], seen[of], wrong[of], error, delta, n_apart)]

    accepted = tested(trust, 1 - trust, rows, delta * share, n_apart)
    by_class = False
    pilot = seen & (np.random.default_rng(0).random(len(trust)) < PILOT_FRAC)
    if share < 1 and (wrong & pilot).any():
        chance = 1 / (1 + np.exp(_corrected(_log_odds(trust), labels, pilot, wrong, n_classes)))
        n_left = max(0, n_apart - int(pilot.sum()))
        others = tested(-chance, chance, rows[~pilot[rows]], delta * (1 - share), n_left)
        if len(others) > len(accepted):
            accepted, by_class = others, True
    is_accepted = np.zeros(len(trust), bool)
    is_accepted[accepted] = True
    thresholds = np.full(n_classes, np.inf)
    np.minimum.at(thresholds, labels[accepted], trust[accepted])
    return Promise(is_accepted, thresholds, by_class, int(seen.sum()), error, confidence)


def enough(trust: Floats, n: int, *, error: float, confidence: float = 0.95) -> tuple[int, float] | None:
    """How many verified labels would do, if labels are right as often as trust says.

    Args:
      trust: [N] chances that labels are right, as well as they are known.
      n: verified labels that were not enough, >= 1.

    Returns: (a number of verified labels, the share of the N labels that could then be accepted); of the numbers looked
      at the least with which it is half of the share that could be with all of them. None: there is no such number.

    Example:
      >>> enough(np.linspace(0.9, 1, 2000), 40, error=0.05)[0] > 40, enough(np.full(500, 0.7), 40, error=0.05)
      (True, None)
    """
    chance = np.sort(1 - trust)
    within = np.flatnonzero(np.cumsum(chance) <= error * np.arange(1, len(chance) + 1))
    if not len(within):
        return None
    for larger in sorted({min(len(trust), round(n * factor)) for factor in LARGER} - {n}):
        share = _region(trust, larger, error, confidence)[1]
        if share >= (within[-1] + 1) / len(trust) / 2:
            return larger, share
    return None


def _strata(n_labels: int, n: int, region: float) -> tuple[Ints, Ints]:
    """Sizes of groups of labels, the most trusted first, and how many are drawn of each."""
    top = max(1, round(region * n_labels))
    n_rest = round(REST_FRAC * n) if top < n_labels else 0
    n_top = min(n - n_rest, top)
    n_rest = min(n - n_top, n_labels - top)
    sizes, numbers = [], []
    for size, number, strata in ((top, n_top, REGION_STRATA), (n_labels - top, n_rest, REST_STRATA)):
        if size:
            pieces = strata if strata <= number <= size / 2 else 1
            sizes.append(_even(size, pieces))
            numbers.append(_even(number, pieces))
    return np.concatenate(sizes), np.concatenate(numbers)


def _even(n: int, pieces: int) -> Ints:
    return np.diff(np.arange(pieces + 1) * n // pieces)


def _region(trust: Floats, n: int, error: float, confidence: float) -> tuple[float, float]:
    """The share of the labels to verify in, and the share that can then be expected to be accepted."""
    chance = np.sort(1 - trust)
    best = (1.0, 0.0)
    ends = _ends(chance)
    for region in REGIONS:
        sizes, numbers = _strata(len(trust), min(n, len(trust)), region)
        inclusion, stratum = numbers / sizes, np.repeat(np.arange(len(sizes)), sizes)
        steps = _steps(ends, stratum, inclusion, error, 1 - confidence, 0)
        share = _start(steps, chance * inclusion[stratum])[1] / len(trust)
        if share > best[1]:
            best = (region, share)
    return best


def _tested(
    score: Floats, chance: Floats, stratum: Ints, seen: Bools, wrong: Bools, error: float, delta: float, n_apart: int
) -> Ints:
    """Rows of the largest set, of sets with the largest scores, that passes its test with all those before it."""
    if not seen.any():
        return np.zeros(0, np.int64)
    order = np.argsort(-score, kind="stable")
    n_strata = int(stratum.max()) + 1
    sizes, numbers = np.bincount(stratum, minlength=n_strata), np.bincount(stratum[seen], minlength=n_strata)
    inclusion = numbers / np.maximum(sizes, 1)
    steps = _steps(_ends(-score[order]), stratum[order], inclusion, error, delta, n_apart)
    first, _ = _start(steps, (chance * inclusion[stratum])[order])
    n_wrong = np.cumsum((seen & wrong)[order])
    end = 0
    for size, most in steps[first:]:
        if n_wrong[size - 1] > most:
            break
        end = size
    if n_apart and end - seen[order[:end]].sum() < _fewest(np.array([end, len(order)]), n_apart)[0]:
        return order[:0]
    return order[:end]


def _ends(ascending: Floats) -> Ints:
    """Sizes of sets to test, ascending: no set parts rows of one score."""
    last = np.flatnonzero(np.append(np.diff(ascending) != 0, True)) + 1
    wanted = np.linspace(0, len(ascending), MOST_SETS + 1)[1:]
    return np.unique(last[np.searchsorted(last, wanted).clip(max=len(last) - 1)])


def _steps(
    ends: Ints, stratum: Ints, inclusion: Floats, error: float, delta: float, n_apart: int
) -> list[tuple[int, int]]:
    """(size of a set, number of wrong verified labels with which it passes) where this number grows.

    Args: ends [J]; stratum [N] in the order of the sets; inclusion [H], the chance of being drawn in a stratum.
    """
    n_strata, by_chance = len(inclusion), np.argsort(inclusion, kind="stable")
    piece = np.searchsorted(ends, np.arange(len(stratum)), side="right")
    counts = np.bincount(piece * n_strata + stratum, minlength=len(ends) * n_strata)
    counts = counts.reshape(len(ends), n_strata).cumsum(0)[:, by_chance]
    n_wrong = np.floor(error * _fewest(ends, n_apart) + 1e-9).astype(np.int64) + 1  # breaks the promise
    taken = np.clip(n_wrong[:, None] - (counts.cumsum(1) - counts), 0, counts)  # where they are drawn least often
    mean = taken @ inclusion[by_chance]
    from scipy.stats import binom  # takes a second to load

    most = binom.ppf(delta, n_wrong, np.minimum(mean / n_wrong, 1)) - 1  # the largest k with a chance under delta
    most = np.minimum(most, np.floor(mean - 1 + 1e-9)).astype(np.int64)
    steps, before = list[tuple[int, int]](), -1
    for end, k in zip(ends.tolist(), most.tolist(), strict=True):
        if k > before:
            steps.append((end, k))
            before = k
    return steps


def _fewest(ends: Ints, n_apart: int) -> Floats:
    """How many of the first rows are not apart: all, or three deviations fewer than on average."""
    share = n_apart / ends[-1]
    found: Floats = np.maximum(ends * (1 - share) - 3 * np.sqrt(ends * share * (1 - share)), 0)
    return found


def _start(steps: list[tuple[int, int]], expected: Floats) -> tuple[int, float]:
    """The step to begin with so that most is accepted on average, and how many labels that is.

    Args: expected [N], the expected number of wrong verified labels of each row, in the order of the sets.
    """
    if not steps:
        return 0, 0.0
    sizes, most = (np.array(column) for column in zip(*steps, strict=True))
    pieces = np.diff(np.cumsum(expected)[sizes - 1], prepend=0.0)
    generator = np.random.default_rng(0)
    scale = np.exp(generator.normal(0, DOUBT, (N_IMAGINED, 1)))
    passed = np.cumsum(generator.poisson(pieces * scale), 1) <= most  # [N_IMAGINED, J]
    best = (0, 0.0)
    for first in range(min(len(steps), 40)):
        n_passed = np.cumprod(passed[:, first:], 1).sum(1)
        mean = float(np.where(n_passed > 0, sizes[first - 1 + n_passed], 0).mean())
        if mean > best[1]:
            best = (first, mean)
    return best


def _log_odds(trust: Floats) -> Floats:
    kept = trust.clip(1e-4, 1 - 1e-4)
    found: Floats = np.log(kept / (1 - kept))
    return found


def _corrected(odds: Floats, labels: Ints, pilot: Bools, wrong: Bools, n_classes: int) -> Floats:
    """Log-odds [N] of being right with an offset per class, from the verified labels of a pilot.

    Maximum a posteriori of logistic regression: offsets are normal with deviation 1, the slope with 0.5 around 1.
    """
    x, of, sign = odds[pilot], labels[pilot], np.where(wrong[pilot], -1.0, 1.0)

    def loss(at: Any) -> tuple[float, Floats]:
        margin = sign * (at[0] * x + at[1] + at[2:][of])
        pull = -sign / (1 + np.exp(margin))
        value = np.logaddexp(0, -margin).sum() + (at[2:] ** 2).sum() / 2 + 2 * (at[0] - 1) ** 2
        of_class = np.bincount(of, weights=pull, minlength=n_classes) + at[2:]
        return float(value), np.concatenate([[(pull * x).sum() + 4 * (at[0] - 1), pull.sum()], of_class])

    bounds = [(0.05, None)] + [(None, None)] * (n_classes + 1)
    found = minimize(loss, np.r_[1.0, np.zeros(n_classes + 1)], jac=True, method="L-BFGS-B", bounds=bounds).x
    corrected: Floats = found[0] * odds + found[1] + found[2:][labels]
    return corrected
