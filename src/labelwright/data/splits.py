"""Which rows play which part: long-tailed subsets, few-shot, seen and novel classes, group-safe hold-outs.

Every function is pure: arrays of labels in, sorted row numbers out, the same for the same seed.
A label of -1 means unknown; such a row is never counted as an image of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from labelwright.errors import ConfigError

Ints = npt.NDArray[np.int64]

EXACT_TAIL = 64
"""How many groups of a class are chosen exactly (subset sum) rather than in turn, to meet a share."""


def long_tail_counts(
    n_max: int, n_classes: int, *, ratio: float, profile: Literal["exponential", "step"] = "exponential"
) -> Ints:
    """Images per class of a long-tailed set, largest class first.

    Args:
      n_max: images of the largest class, >= 1.   n_classes: C, >= 1.   ratio: largest over smallest count, >= 1.
      profile: "exponential": n_k = n_max * ratio^(-k / (C-1)), truncated; "step": the second half of the classes
        (the larger half if C is odd) has n_max / ratio.

    Returns: [C] int64, non-increasing.
    Raises: ConfigError for a value out of range, or if the smallest class would be empty.
    Source: Cao 2019 (arXiv 1906.07413), CIFAR-10/100-LT and -Step; truncated as there.

    Example:
      >>> long_tail_counts(5000, 10, ratio=100).tolist()
      [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
      >>> long_tail_counts(5000, 4, ratio=10, profile="step").tolist()
      [5000, 5000, 500, 500]
    """
    if n_max < 1 or n_classes < 1:
        raise ConfigError(f"n_max is {n_max} and n_classes {n_classes}", fix="give both at least 1")
    shares = _tail_shares(n_classes, ratio=ratio, profile=profile)
    counts = np.floor(n_max * shares + 1e-9).astype(np.int64)  # 1e-9: 49 * (1 / 49) is 0.9999999999999999
    if counts[-1] < 1:
        raise ConfigError(
            f"a largest class of {n_max} images at ratio {ratio:g} leaves the smallest class empty",
            fix=f"lower the ratio to {n_max} or less",
        )
    return counts


def long_tail(
    labels: npt.ArrayLike,
    *,
    n_classes: int,
    ratio: float,
    profile: Literal["exponential", "step"] = "exponential",
    seed: int,
    n_max: int | None = None,
    class_order: Sequence[int] | None = None,
) -> Ints:
    """Rows of a long-tailed subset, drawn at random inside each class.

    Args:
      labels: [N] int, -1 = unknown (never drawn).   seed: any int >= 0.
      n_classes, ratio, profile: as in `long_tail_counts`.
      n_max: images of the largest class; None takes as many as the images there are allow.
      class_order: the C classes from largest to smallest; None is 0, 1, 2, ...

    Returns: [n] int64, ascending.
    Raises: ConfigError if a class has fewer images than its count, or class_order is not a permutation.
    Source: as `long_tail_counts`.

    Example:
      >>> rows = long_tail([0] * 8 + [1] * 8, n_classes=2, ratio=4, seed=0)
      >>> len(rows), int((rows < 8).sum())
      (10, 8)
    """
    labels = checked_labels(labels, n_classes=n_classes)
    order = np.arange(n_classes) if class_order is None else np.asarray(class_order, dtype=np.int64)
    if not np.array_equal(np.sort(order), np.arange(n_classes)):
        raise ConfigError(
            f"class_order does not list each of the classes 0 to {n_classes - 1} once", fix="give a permutation of them"
        )
    available = np.bincount(labels[labels >= 0], minlength=n_classes)[order]
    if n_max is None:
        n_max = int(np.floor(np.min(available / _tail_shares(n_classes, ratio=ratio, profile=profile)) + 1e-9))
        if n_max < 1:
            k = int(order[np.argmin(available)])
            raise ConfigError(f"class {k} has no image", fix="leave that class out, or give images of it")
    wanted = long_tail_counts(n_max, n_classes, ratio=ratio, profile=profile)
    _require(available, wanted, names=order, what=f"a long tail of ratio {ratio:g} from {n_max} images")
    per_class = np.empty(n_classes, dtype=np.int64)
    per_class[order] = wanted
    return _first_of_class(labels, per_class, seed=seed)


def few_shot(labels: npt.ArrayLike, *, per_class: int, n_classes: int, seed: int) -> tuple[Ints, Ints]:
    """A few labelled rows of each class, and all the other rows.

    Args:
      labels: [N] int, -1 = unknown (always among the rest).   n_classes: C.
      per_class: labelled images of each class, >= 1.   seed: any int >= 0.

    Returns: (labelled [C * per_class], rest) int64, ascending; together every row once.
    Raises: ConfigError if a class has fewer than ``per_class`` images (names the class and its count).

    Example:
      >>> labelled, rest = few_shot([0, 0, 0, 1, 1, -1], per_class=2, n_classes=2, seed=0)
      >>> len(labelled), len(rest), 5 in rest
      (4, 2, True)
    """
    labels = checked_labels(labels, n_classes=n_classes)
    if per_class < 1:
        raise ConfigError(f"per_class is {per_class}", fix="give at least 1")
    wanted = np.full(n_classes, per_class, dtype=np.int64)
    _require(
        np.bincount(labels[labels >= 0], minlength=n_classes),
        wanted,
        names=np.arange(n_classes),
        what=f"{per_class} labelled images per class",
    )
    labelled = _first_of_class(labels, wanted, seed=seed)
    return labelled, _others(labelled, labels.size)


def seen_novel(
    labels: npt.ArrayLike, *, seen: int | Sequence[int], labelled_frac: float, seed: int
) -> tuple[Ints, Ints]:
    """The open-world split: some images of the seen classes are labelled, everything else is not.

    Args:
      labels: [N] int, -1 = unknown (always unlabelled).   seen: how many classes are seen (the first ones), or which.
      labelled_frac: share of each seen class's images that is labelled, in (0, 1]; at least one.   seed: any int >= 0.

    Returns: (labelled, unlabelled) rows, int64, ascending; together every row once.
    Raises: ConfigError if a seen class has no image, or labelled_frac is out of range.
    Source: Cao 2022 (arXiv 2102.03526), used by LPS: first half of the classes seen, 50% or 10% labelled.

    Example:
      >>> labelled, unlabelled = seen_novel([0, 0, 1, 1, 2, 2], seen=2, labelled_frac=0.5, seed=0)
      >>> len(labelled), bool((labelled < 4).all()), len(unlabelled)
      (2, True, 4)
    """
    labels = checked_labels(labels)
    if not 0 < labelled_frac <= 1:
        raise ConfigError(f"labelled_frac is {labelled_frac}", fix="give a share above 0 and at most 1")
    classes = np.asarray(seen, dtype=np.int64)
    classes = np.unique(classes) if classes.ndim else np.arange(int(classes))
    n_classes = int(max(labels.max(initial=-1), classes.max(initial=-1))) + 1
    counts = np.bincount(labels[labels >= 0], minlength=n_classes)
    if classes.size == 0 or classes.min() < 0:
        raise ConfigError(f"seen is {seen}", fix="give at least one class, by its number from 0")
    _require(counts[classes], np.ones(classes.size, dtype=np.int64), names=classes, what="a seen class")
    wanted = np.zeros(n_classes, dtype=np.int64)
    wanted[classes] = np.maximum(1, _nearest(counts[classes] * labelled_frac))
    labelled = _first_of_class(labels, wanted, seed=seed)
    return labelled, _others(labelled, labels.size)


def seen_unseen(n_classes: int, *, seen_frac: float = 0.62, seed: int) -> tuple[Ints, Ints]:
    """The transductive zero-shot split of the classes: those with labels, and those known by name only.

    Args:
      n_classes: C, >= 2.   seed: any int >= 0.
      seen_frac: share of the classes that is seen, in (0, 1); C * seen_frac is truncated, both sides keep one or more.

    Returns: (seen, unseen) class numbers, int64, ascending; together every class once.
    Raises: ConfigError for fewer than 2 classes or a share out of range.
    Source: Menghini 2023 (arXiv 2306.01669), 62% / 38%.

    Example:
      >>> seen, unseen = seen_unseen(10, seed=0)
      >>> len(seen), len(unseen)
      (6, 4)
    """
    if n_classes < 2 or not 0 < seen_frac < 1:
        raise ConfigError(
            f"n_classes is {n_classes} and seen_frac {seen_frac}",
            fix="give 2 or more classes and a share inside (0, 1)",
        )
    n_seen = min(n_classes - 1, max(1, int(np.floor(n_classes * seen_frac + 1e-9))))
    order = np.random.default_rng(seed).permutation(n_classes).astype(np.int64)
    return np.sort(order[:n_seen]), np.sort(order[n_seen:])


def holdout(labels: npt.ArrayLike, *, frac: float, seed: int, groups: npt.ArrayLike | None = None) -> tuple[Ints, Ints]:
    """Train and test rows with every class on both sides and no group on two.

    Without groups each class gives the nearest whole number of images to ``frac`` of it, at least one and never all.
    With groups, whole groups move; inside a class those are chosen whose sizes add up nearest to the share. Where
    groups hold one class each, every class with two or more groups is on both sides. Where groups mix classes that
    can be impossible: then training comes first, and a class may be missing from the test rows.
    A class with one image (or one group) stays in training, and so do unlabelled rows outside held-out groups.

    Args:
      labels: [N] int, -1 = unknown.   frac: share of each class to hold out, in (0, 1).   seed: any int >= 0.
      groups: [N] int, rows of one number belong together (one physical sign, one patient); None: every row alone.

    Returns: (train, test) rows, int64, ascending; together every row once.
    Raises: ConfigError if frac is out of range or groups has another length.

    Example:
      >>> train, test = holdout([0, 0, 0, 0, 1, 1, 2], frac=0.25, seed=0)
      >>> len(train), len(test), 6 in train
      (5, 2, True)
      >>> train, test = holdout([0] * 6, frac=0.3, seed=0, groups=[7, 7, 8, 8, 9, 9])
      >>> len(test)
      2
    """
    labels = checked_labels(labels)
    if not 0 < frac < 1:
        raise ConfigError(f"frac is {frac}", fix="give a share inside (0, 1)")
    if groups is None:
        counts = np.bincount(labels[labels >= 0])
        wanted = np.where(counts >= 2, np.clip(_nearest(counts * frac), 1, np.maximum(counts - 1, 1)), 0)
        test = _first_of_class(labels, wanted, seed=seed)
    else:
        group_of_row, n_groups = _groups(groups, labels.size)
        held_out = _held_out_groups(labels, group_of_row, n_groups, frac=frac, seed=seed)
        test = np.flatnonzero(held_out[group_of_row])
    return _others(test, labels.size), test


def with_copies(groups: npt.ArrayLike | None, contents: npt.ArrayLike) -> Ints | None:
    """Groups [N] in which rows of the same content belong together too; as they were where no two rows are the same.

    Args:
      groups: [N] int, or None: every row alone.   contents: [N] int from 0 on, the same for equal images.

    Example: the copy in row 2 joins two groups.
      >>> with_copies([7, 7, 8, 8, 9], [0, 1, 0, 2, 3]).tolist()
      [0, 0, 0, 0, 1]
      >>> with_copies(None, [0, 1, 2]) is None
      True
    """
    seen = np.asarray(contents, dtype=np.int64)
    known = None if groups is None else np.asarray(groups, dtype=np.int64)
    if len(np.unique(seen)) == len(seen):
        return known
    if known is None:
        return seen
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    dense, n_groups = _groups(known, seen.size)
    n = n_groups + int(seen.max()) + 1  # groups and contents are joined where a row has both
    _, of = connected_components(coo_matrix((np.ones(len(seen)), (dense, n_groups + seen)), shape=(n, n)))
    return np.asarray(of[dense], dtype=np.int64)


def _held_out_groups(
    labels: Ints, group_of_row: Ints, n_groups: int, *, frac: float, seed: int
) -> npt.NDArray[np.bool_]:
    """[G] bool: the groups on the test side, never all of a class. Classes with the fewest groups choose first."""
    rng = np.random.default_rng(seed)
    n_classes = int(labels.max(initial=-1)) + 1
    known = labels >= 0
    # every group with an image of a class, and how many: class after class
    pairs, counts = np.unique(labels[known] * n_groups + group_of_row[known], return_counts=True)
    starts = np.searchsorted(pairs, np.arange(n_classes + 1) * n_groups)
    undecided, train, test = 0, 1, 2
    side = np.zeros(n_groups, dtype=np.int8)
    for c in np.argsort(np.diff(starts), kind="stable"):
        mine = starts[c] + rng.permutation(starts[c + 1] - starts[c])
        groups, sizes = pairs[mine] % n_groups, counts[mine]
        free = side[groups] == undecided
        if groups.size == 1:
            side[groups[free]] = train
            continue
        already = int(sizes[side[groups] == test].sum())
        taken = _nearest_sum(
            sizes[free],
            float(_nearest(sizes.sum() * frac)) - already,
            at_least_one=already == 0,
            not_all=not (side[groups] == train).any(),
        )
        side[groups[free]] = np.where(taken, test, train)
    for c in range(n_classes):  # other classes may have taken all of its groups
        groups, sizes = pairs[starts[c] : starts[c + 1]] % n_groups, counts[starts[c] : starts[c + 1]]
        if groups.size and (side[groups] == test).all():
            side[groups[sizes.argmin()]] = train
    held_out: npt.NDArray[np.bool_] = side == test
    return held_out


def _nearest_sum(sizes: Ints, target: float, *, at_least_one: bool, not_all: bool) -> npt.NDArray[np.bool_]:
    """Which of the sizes [G] >= 1 to take so that they add up nearest to the target.

    All but the last `EXACT_TAIL` are taken in turn while they fit; the sum of those is met exactly where it can be, by
    the bits of one integer: bit s of ``reach[i]`` is set if some of the first i add up to s.
    """
    taken = np.zeros(sizes.size, dtype=bool)
    if sizes.size == 0:
        return taken
    n_head = max(0, sizes.size - EXACT_TAIL)
    tail = [int(s) for s in sizes[n_head:]]
    budget = target * (1 - sum(tail) / float(sizes.sum()))
    done = 0
    for i, size in enumerate(sizes[:n_head].tolist()):
        if done + size <= budget:
            taken[i] = True
            done += size
    reach = [1]
    for size in tail:
        reach.append(reach[-1] | (reach[-1] << size))
    smallest = 1 if at_least_one and done == 0 else 0
    largest = sum(tail) - (1 if not_all and taken[:n_head].all() else 0)
    raw = np.frombuffer(reach[-1].to_bytes((reach[-1].bit_length() + 7) // 8, "little"), dtype=np.uint8)
    sums = np.flatnonzero(np.unpackbits(raw, bitorder="little"))  # positions of the ones
    sums = sums[(sums >= smallest) & (sums <= largest)]
    if sums.size == 0:  # one group, wanted on both sides: training keeps it
        return taken
    rest = int(sums[np.argmin(np.abs(done + sums - target))])
    for i in range(len(tail), 0, -1):
        if not (reach[i - 1] >> rest) & 1:
            taken[n_head + i - 1] = True
            rest -= tail[i - 1]
    assert rest == 0
    return taken


def _tail_shares(n_classes: int, *, ratio: float, profile: str) -> npt.NDArray[np.float64]:
    """[C] count of each class over the largest, in (0, 1]."""
    if ratio < 1:
        raise ConfigError(f"ratio is {ratio}", fix="give largest over smallest class, 1 or more")
    k = np.arange(n_classes)
    if profile == "exponential":
        return (1.0 / ratio) ** (k / max(n_classes - 1, 1))
    if profile == "step":
        return np.where(k < max(n_classes // 2, 1), 1.0, 1.0 / ratio)
    raise ConfigError(f"no profile {profile!r}", fix='give "exponential" or "step"')


def _first_of_class(labels: Ints, per_class: Ints, *, seed: int) -> Ints:
    """Rows, ascending: of each class the first ``per_class`` [C] in a random order."""
    order = np.random.default_rng(seed).permutation(labels.size)
    order = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[order]
    rank = np.arange(labels.size) - np.searchsorted(sorted_labels, sorted_labels)
    keep = (sorted_labels >= 0) & (rank < np.append(per_class, 0)[sorted_labels])
    return np.sort(order[keep]).astype(np.int64)


def _others(rows: Ints, n_rows: int) -> Ints:
    """Every row not listed, ascending."""
    rest = np.ones(n_rows, dtype=bool)
    rest[rows] = False
    return np.flatnonzero(rest)


def _nearest(values: Any) -> Ints:
    """Nearest whole numbers, halves up."""
    return np.floor(np.asarray(values) + 0.5).astype(np.int64)


def _require(available: Ints, wanted: Ints, *, names: Ints, what: str) -> None:
    """Raise if a class has fewer images than wanted, naming the first such class and the count."""
    short = np.flatnonzero(available < wanted)
    if short.size:
        k = int(short[0])
        raise ConfigError(
            f"{what}: class {int(names[k])} has {int(available[k])} images, {int(wanted[k])} are wanted",
            fix="ask for fewer, or leave that class out",
        )


def checked_labels(labels: Any, *, n_classes: int | None = None) -> Ints:
    """[N] int64 of one integer per row, from -1 for unknown to C-1.

    Raises: ConfigError for anything else.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ConfigError(
            f"labels have shape {array.shape} and type {array.dtype}", fix="give one integer per row, -1 for unknown"
        )
    array = array.astype(np.int64)
    if n_classes is not None and array.max(initial=-1) >= n_classes:
        raise ConfigError(f"label {int(array.max())} with {n_classes} classes", fix="raise n_classes, or fix the label")
    if array.min(initial=0) < -1:
        raise ConfigError(f"label {int(array.min())} is below -1", fix="give -1 for unknown")
    return array


def _groups(groups: Any, n_rows: int) -> tuple[Ints, int]:
    """Group numbers made dense: [N] int64 in 0 .. G-1, and G."""
    array = np.asarray(groups)
    if array.shape != (n_rows,):
        raise ConfigError(f"groups have shape {array.shape} for {n_rows} rows", fix="give one group per row")
    unique, dense = np.unique(array, return_inverse=True)
    return dense.astype(np.int64), int(unique.size)
