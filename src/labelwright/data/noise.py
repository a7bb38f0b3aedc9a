"""Made-up label noise, for experiments: wrong labels, and candidate sets with wrong members or without the truth.

Every function is pure and keeps memory in proportion to what it returns: no images x classes table is ever built.
Only experiments know the true labels these functions start from; recipes get the result alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from labelwright.data.splits import checked_labels
from labelwright.errors import ConfigError
from labelwright.types import Candidates

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK = 4_000_000
"""How many numbers are worked on at once."""


def symmetric(labels: npt.ArrayLike, *, n_classes: int, rate: float, seed: int) -> Ints:
    """Labels of which each is replaced, with probability ``rate``, by another class drawn evenly.

    Args:
      labels: [N] int in 0 .. C-1; -1 = unknown, stays so.
      rate: probability of a wrong label, 0 to 1 (the drawn class is never the old one).

    Returns: [N] int64.
    Raises: ConfigError for a rate out of range, a label out of range, or a rate above 0 with one class.
    Source: "symmetric" noise of the noisy-label literature, e.g. Patrini 2017 (arXiv 1609.03683).

    Example:
      >>> noisy = symmetric([0] * 1000, n_classes=4, rate=0.3, seed=0)
      >>> 250 < int((noisy != 0).sum()) < 350
      True
    """
    labels = checked_labels(labels, n_classes=n_classes)
    _check_share(rate, "rate")
    if n_classes < 2 and rate > 0:
        raise ConfigError(f"no wrong label exists with {n_classes} class", fix="set rate to 0")
    rng = np.random.default_rng(seed)
    flipped = (rng.random(labels.size) < rate) & (labels >= 0)
    noisy = labels.copy()
    shift = rng.integers(1, max(n_classes, 2), size=labels.size)
    noisy[flipped] = (labels[flipped] + shift[flipped]) % n_classes
    return noisy


def candidate_sets(labels: npt.ArrayLike, *, n_classes: int, q: float, eta: float, seed: int) -> Candidates:
    """Candidate sets around the true labels: each wrong label enters alone, and the truth may be missing.

    Each wrong label enters with probability q. With probability eta the true label is then swapped for one drawn
    evenly from those outside the set (a set that already holds every class keeps its truth). Only the members are
    drawn, by the gaps between them, so time and memory go with their number.

    Args:
      labels: [N] int in 0 .. C-1; -1 = unknown, gives an empty set.
      q: probability of each wrong label, 0 to 1.
      eta: probability that the truth is missing, 0 to 1.

    Returns: Candidates without weights; N rows.
    Raises: ConfigError for a share or a label out of range.
    Source: Lian 2023 (arXiv 2211.04774), noisy partial labels; the sets of Lv 2020 (arXiv 2002.08053) at eta = 0.

    Example:
      >>> sets = candidate_sets([2, 0, -1], n_classes=4, q=0.0, eta=0.0, seed=0)
      >>> sets.of(0).tolist(), sets.of(1).tolist(), sets.of(2).tolist()
      ([2], [0], [])
      >>> swapped = candidate_sets([2, 0], n_classes=4, q=0.0, eta=1.0, seed=0)
      >>> 2 in swapped.of(0), len(swapped.of(0))
      (False, 1)
    """
    labels = checked_labels(labels, n_classes=n_classes)
    _check_share(q, "q")
    _check_share(eta, "eta")
    rng = np.random.default_rng(seed)
    n_wrong = n_classes - 1
    parts = []
    for start, stop in _chunks(labels.size, width=max(1.0, n_wrong * q)):
        here = labels[start:stop]
        cells = _bernoulli(here.size * n_wrong, q, rng)  # a cell = a row and one of its C-1 wrong labels
        rows, wrong = np.divmod(cells, max(n_wrong, 1))
        keep = here[rows] >= 0
        parts.append(_sets(here, rows[keep], wrong[keep], n_classes=n_classes, eta=eta, rng=rng))
    return _join(parts)


def instance_dependent(
    probs: npt.ArrayLike | torch.Tensor,
    labels: npt.ArrayLike,
    *,
    n_classes: int,
    rate: float,
    eta: float = 0.0,
    seed: int,
    classes: npt.ArrayLike | None = None,
) -> Candidates:
    """Candidate sets whose wrong members are those that a weak model likes.

    The wrong label j of row i enters with probability min(1, s * p_ij / max over the wrong k of p_ik); the one s is
    solved so that these probabilities average ``rate`` over all wrong labels of the labelled rows.

    Args:
      probs: [N, C] float >= 0, the weak model's probabilities; or [N, K], those of ``classes``.
      labels: [N] int, the truth; -1 = unknown, gives an empty set.
      rate: mean probability of a wrong label to enter, 0 to 1: rate * (C-1) wrong labels per set on average.
      eta: probability that the truth is swapped for a class outside the set, drawn evenly.
      classes: [N, K] int, the classes that the columns of ``probs`` belong to, no class twice in a row; the others
        count as probability 0. None: the columns are the classes.

    Returns: Candidates without weights; N rows.
    Raises: ConfigError for shapes that do not fit, or a rate that the labels with any probability cannot reach.
    Source: Xu 2021 (arXiv 2110.12911), the flipping probability of each wrong label over the largest one. Differs:
      s is solved for the mean after the cut at 1, where the paper scales by the mean before it.

    Example:
      >>> probs = [[0.5, 0.4, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5]]
      >>> sets = instance_dependent(probs, [0, 2], n_classes=4, rate=0.5, seed=0)
      >>> [sets.of(i).tolist() for i in (0, 1)]
      [[0, 1, 2], [2, 3]]
    """
    labels = checked_labels(labels, n_classes=n_classes)
    _check_share(rate, "rate")
    _check_share(eta, "eta")
    table, columns = _weak_model(probs, classes, labels, n_classes)
    rng = np.random.default_rng(seed)
    n_labelled = int((labels >= 0).sum())
    liked = np.empty_like(table, dtype=np.float32)  # p over the largest wrong one; 0 at the truth
    for start, stop in _chunks(labels.size, width=table.shape[1]):
        p = _wrong_probs(table, columns, labels, start, stop)
        top = p.max(axis=1, keepdims=True, initial=0)
        liked[start:stop] = np.divide(p, top, out=np.zeros_like(p), where=top > 0)
    scale = _scale_to_sum(liked[liked > 0], target=rate * n_labelled * (n_classes - 1))
    parts = []
    for start, stop in _chunks(labels.size, width=table.shape[1]):
        here = labels[start:stop]
        rows, cols = np.nonzero(rng.random((stop - start, table.shape[1])) < scale * liked[start:stop])
        chosen = cols if columns is None else columns[start + rows, cols]
        wrong = chosen - (chosen > here[rows])
        order = np.lexsort((wrong, rows))
        parts.append(_sets(here, rows[order], wrong[order], n_classes=n_classes, eta=eta, rng=rng))
    return _join(parts)


def instance_dependent_labels(
    probs: npt.ArrayLike | torch.Tensor,
    labels: npt.ArrayLike,
    *,
    n_classes: int,
    rate: float,
    seed: int,
    classes: npt.ArrayLike | None = None,
) -> Ints:
    """Labels of which an exact share is wrong, where and as a weak model would get them wrong.

    The rows to spoil are drawn without replacement with weights the probability that the weak model gives to wrong
    classes; each gets one of those classes, drawn by the model's probabilities.

    Args:
      probs, labels, n_classes, classes: as in `instance_dependent`; unknown labels stay unknown.
      rate: share of the labelled rows that becomes wrong, 0 to 1; rounded to whole rows, halves up.

    Returns: [N] int64.
    Raises: ConfigError as `instance_dependent`, or if the model gives wrong classes no probability in too many rows.
    Source: our own; differs from Xia 2020 (arXiv 2006.07836) by the exact rate and the model in place of random
      projections.

    Example:
      >>> probs = [[1.0, 0.0, 0.0], [0.2, 0.0, 0.8], [0.5, 0.5, 0.0]]
      >>> instance_dependent_labels(probs, [0, 0, 0], n_classes=3, rate=2 / 3, seed=0).tolist()
      [0, 2, 1]
    """
    labels = checked_labels(labels, n_classes=n_classes)
    _check_share(rate, "rate")
    table, columns = _weak_model(probs, classes, labels, n_classes)
    rng = np.random.default_rng(seed)
    mass = np.zeros(labels.size)
    drawn = np.zeros(labels.size, dtype=np.int64)
    for start, stop in _chunks(labels.size, width=table.shape[1]):
        cumulative = np.cumsum(_wrong_probs(table, columns, labels, start, stop), axis=1)
        mass[start:stop] = cumulative[:, -1]
        threshold = rng.random((stop - start, 1)) * cumulative[:, -1:]
        drawn[start:stop] = (cumulative <= threshold).sum(axis=1)
    n_wrong = int(np.floor(rate * int((labels >= 0).sum()) + 0.5))
    can = np.flatnonzero(mass > 0)
    if n_wrong > can.size:
        raise ConfigError(
            f"rate {rate:g} is {n_wrong} wrong labels, the weak model allows {can.size}",
            fix="lower the rate, or give a softer model",
        )
    # the smallest n of exponential times over weight: a weighted draw without replacement
    spoiled = can[np.argsort(rng.exponential(size=can.size) / mass[can], kind="stable")[:n_wrong]]
    noisy = labels.copy()
    noisy[spoiled] = drawn[spoiled] if columns is None else columns[spoiled, drawn[spoiled]]
    return noisy


def _bernoulli(n_cells: int, q: float, rng: np.random.Generator) -> Ints:
    """Cells, ascending, of which each is drawn alone with probability q; only the drawn ones are ever made."""
    if q <= 0 or n_cells == 0:
        return np.empty(0, dtype=np.int64)
    if q >= 1:
        return np.arange(n_cells)
    blocks, last = [], -1
    while last < n_cells:
        left = (n_cells - last) * q
        gaps = rng.geometric(q, size=int(left + 4 * np.sqrt(left)) + 16)
        # a gap past the end ends the draw wherever exactly it falls, and sums of such gaps could overflow
        blocks.append(last + np.cumsum(np.minimum(gaps, n_cells + 1)))
        last = int(blocks[-1][-1])
    cells = np.concatenate(blocks)
    return cells[: np.searchsorted(cells, n_cells)]


def _sets(
    labels: Ints, rows: Ints, wrong: Ints, *, n_classes: int, eta: float, rng: np.random.Generator
) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Size of each row's set [n], and all members, row after row and ascending inside a row.

    ``rows`` [m] ascending and ``wrong`` [m] ascending inside a row say which wrong labels are in; a wrong label is
    counted among the C-1 wrong ones of its row, that is without the true class.
    """
    n_wrong = np.bincount(rows, minlength=labels.size)
    members = wrong + (wrong >= labels[rows])
    n_outside = n_classes - 1 - n_wrong
    known = labels >= 0
    swapped = known & (rng.random(labels.size) < eta) & (n_outside > 0)
    # the r-th wrong label outside the set, r from 0, is r + how many members lie before it
    r = rng.integers(0, np.maximum(n_outside, 1))
    rank = np.arange(rows.size) - np.searchsorted(rows, rows)
    new = r + np.bincount(rows[wrong - rank <= r[rows]], minlength=labels.size)
    extra = np.where(swapped, new + (new >= labels), labels)
    keys = np.concatenate([rows * n_classes + members, (np.arange(labels.size) * n_classes + extra)[known]])
    keys.sort()
    return n_wrong + known, (keys % n_classes).astype(np.int32)


def _join(parts: list[tuple[Ints, npt.NDArray[np.int32]]]) -> Candidates:
    """Candidates of consecutive chunks of rows."""
    offsets = np.zeros(1 + sum(sizes.size for sizes, _ in parts), dtype=np.int64)
    np.cumsum(np.concatenate([np.empty(0, dtype=np.int64)] + [sizes for sizes, _ in parts]), out=offsets[1:])
    members = np.concatenate([np.empty(0, dtype=np.int32)] + [classes for _, classes in parts])
    return Candidates(torch.from_numpy(offsets), torch.from_numpy(members))


def _scale_to_sum(values: npt.NDArray[np.float32], *, target: float) -> float:
    """The s at which min(1, s * values) adds up to the target; values are above 0."""
    if target <= 0:
        return 0.0
    if target > values.size * (1 + 1e-9):
        raise ConfigError(
            f"rate asks for {target:.6g} wrong labels, the weak model gives {values.size} any probability",
            fix="lower the rate, or give a softer model or more of its classes",
        )
    descending = -np.sort(-values.astype(np.float64))
    n_full = np.arange(values.size)  # with the n largest at 1, s has to be (target - n) / the sum of the others
    s = (target - n_full) / np.cumsum(descending[::-1])[::-1]
    fits = np.flatnonzero(s * descending <= 1)
    return float(s[fits[0]]) if fits.size else float(1 / descending[-1])


def _wrong_probs(
    table: npt.NDArray[np.floating[Any]], columns: Ints | None, labels: Ints, start: int, stop: int
) -> Floats:
    """[n, K] float64 of a chunk: the weak model's probabilities, 0 at the truth and in unlabelled rows."""
    p = table[start:stop].astype(np.float64)
    here = labels[start:stop, None]
    of_column = np.arange(table.shape[1])[None] if columns is None else columns[start:stop]
    p[(of_column == here) | (here < 0)] = 0
    return p


def _chunks(n_rows: int, *, width: float) -> list[tuple[int, int]]:
    """(start, stop) of runs of rows of about `CHUNK` numbers."""
    step = max(1, int(CHUNK / max(width, 1)))
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _weak_model(
    probs: Any, classes: Any, labels: Ints, n_classes: int
) -> tuple[npt.NDArray[np.floating[Any]], Ints | None]:
    """The table of probabilities as an array, and the classes of its columns, both checked."""
    table = np.asarray(probs.detach().cpu() if isinstance(probs, torch.Tensor) else probs)
    if not np.issubdtype(table.dtype, np.floating):
        table = table.astype(np.float64)
    columns = None if classes is None else np.asarray(classes).astype(np.int64)
    wanted = (labels.size, n_classes) if columns is None else columns.shape
    if table.ndim != 2 or table.shape != wanted or table.shape[0] != labels.size or table.shape[1] < 1:
        raise ConfigError(
            f"probs have shape {table.shape} for {labels.size} labels and {n_classes} classes",
            fix="give [N, C], or [N, K] with classes of the same shape",
        )
    if columns is not None and columns.size and not (columns.min() >= 0 and columns.max() < n_classes):
        raise ConfigError(f"classes go from {columns.min()} to {columns.max()}", fix=f"give 0 to {n_classes - 1}")
    if not (table >= 0).all():
        raise ConfigError("probs hold negative or missing numbers", fix="give probabilities, not logits")
    return table, columns


def _check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}", fix="give a share from 0 to 1")
