"""Which situation a table is in, and so which method fits it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labelwright.data.table import HOW_READ, LabelTable
from labelwright.errors import ConfigError, DataError

LONG_TAILED_RATIO = 3.0
"""Largest over smallest class count from which full labels are long-tailed: log 3 = 1.1 nats of prior is what it takes
to turn a 75 % sure answer for the rare class into an even one, so below it plain cross-entropy does little harm."""

NEARLY_ALL = 0.95
"""Share of labelled images from which the few others change nothing: they are labelled at the end."""

CANDIDATE_SHARE = 0.05
"""Share of images with candidates and no label from which candidates are what there is to learn from."""

METHODS = {
    "no_labels": "cap",
    "few_labels": "cap",
    "some_classes": "cap",
    "candidates": "coreg",
    "long_tailed": "cvs",
    "balanced": "ce",
    "open_world": "lps",
}
"""Situation -> the method that fits it."""

METHODS_WITHOUT_TEXT = METHODS | {"few_labels": "beliefs"}
"""The same where no text model reads the class names."""

METHODS_FROM_PIXELS = METHODS | {"few_labels": "fixmatch", "long_tailed": "la"}
"""The same where there is no pretrained model at all, neither of words nor of images. Logit adjustment was never far
behind CVS, and 9 points ahead on GTSRB (docs/results, long_tailed.csv)."""


@dataclass(frozen=True)
class Situation:
    """What there is to learn from, counted over the training rows."""

    name: str  # a key of METHODS
    reason: str  # the numbers that decided, and what the method leaves unused
    facets: tuple[
        tuple[str, str], ...
    ]  # (what, words) for everything known of the images; several may call for a method
    n_images: int
    n_labelled: int
    n_classes: int  # named ones
    n_candidate_rows: int  # rows that have candidates
    candidates_per_row: float  # mean size of their sets; 0 if there are none
    imbalance_ratio: float  # largest over smallest count among classes with a label; 1 if none has one
    gini: float  # inequality of the counts of all named classes, 0 (all equal) to 1
    unlabelled_frac: float  # share of rows without a label, 0 to 1
    classes_without_labels: tuple[str, ...]
    n_novel: int | str | None = None  # classes beyond the named ones: a number, "auto" or None

    def method(self, *, has_text: bool = True, has_features: bool = True) -> str:
        """The method that fits, where a text model reads the class names or not, and there are features or pixels."""
        return (METHODS if has_text else METHODS_WITHOUT_TEXT if has_features else METHODS_FROM_PIXELS)[self.name]


def gini(counts: np.ndarray[tuple[int], np.dtype[np.integer]]) -> float:
    """Gini coefficient of [C] counts >= 0: mean absolute difference of two over twice the mean; 0 for no counts.

    Source: Gini 1912; the sorted form sum((2i - C - 1) x_i) / (C sum(x)), i from 1.

    Example: (|1-3| * 2 pairs / 4) / (2 * 2) = 0.25
      >>> gini(np.array([1, 3]))
      0.25
    """
    total, n = int(counts.sum()), len(counts)
    if total == 0:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(counts)).sum() / (n * total))


def where_classes_are(table: LabelTable) -> str:
    """How to say what the classes of data are that say nothing of them."""
    names = "the names of the classes go into a file, one per line: --classes names.txt"
    if any(problem.kind == "ignored_column" for problem in table.problems):
        return f"if a column holds the labels, name it with --label-column; {names}"
    if getattr(table.images, "vectors", None) is not None:
        return f"labels go into the key labels of an .npz, or a table beside an .npy (docs/data.md); {names}"
    return f"{names}; labels of single images go into a table with the columns image and label, which is then DATA"


def detect(table: LabelTable, *, novel: int | str | None = None) -> Situation:
    """Say which situation the training rows are in.

    Args:
      table: as read; rows of the train split decide if there are splits.   novel: as for `novel_range`.

    Raises: DataError if there are neither class names nor labels; ConfigError if ``novel`` is neither.

    Example:
      >>> import pyarrow as pa
      >>> from labelwright.data.table import Images
      >>> names = pa.array(["a", "b", "c", "d"], pa.large_string())
      >>> table = LabelTable(Images(names), names, np.array([0, 1, -1, -1], np.int32), ("cat", "dog"))
      >>> found = detect(table)
      >>> found.name, found.method(), found.method(has_text=False), found.method(has_text=False, has_features=False)
      ('few_labels', 'cap', 'beliefs', 'fixmatch')
      >>> found.reason
      '2 of 4 images are labelled (50.0% are not), 1 to 1 per class, in all 2 classes'
    """
    found = novel_range(novel)
    n_novel = None if found is None else found[0] if found[0] == found[1] else str(novel)
    rows = table.where("train") if table.split is not None else np.arange(len(table))
    rows = rows if len(rows) else np.arange(len(table))
    labels = table.labels[rows]
    n_classes, n_images = len(table.class_names), len(rows)
    if not n_classes:
        raise DataError(
            "there are neither labels nor class names: nothing says what the classes are",
            problems=[problem for problem in table.problems if problem.kind in HOW_READ],
            fix=where_classes_are(table),
        )
    counts = np.bincount(labels[labels >= 0], minlength=n_classes)
    n_labelled = int(counts.sum())
    present = counts[counts > 0]
    ratio = float(present.max() / present.min()) if len(present) else 1.0
    without = tuple(table.class_names[c] for c in np.flatnonzero(counts == 0))
    has = "has" if len(without) == 1 else "have"
    sizes = np.zeros(n_images, dtype=np.int64)
    if table.candidates is not None:
        sizes = np.diff(table.candidates.offsets.numpy())[rows]
    n_candidate_rows = int((sizes > 0).sum())
    per_row = float(sizes.sum() / n_candidate_rows) if n_candidate_rows else 0.0
    n_open_candidates = int(((sizes > 0) & (labels < 0)).sum())
    unlabelled_frac = 1 - n_labelled / n_images
    of_all = f"{n_labelled:,} of {n_images:,} images are labelled ({unlabelled_frac:.1%} are not)"
    spread = f"{present.min():,} to {present.max():,} per class" if len(present) else ""
    uneven = f"ratio {ratio:.3g}, Gini {gini(counts):.2f}"
    is_nearly_all = n_labelled >= NEARLY_ALL * n_images
    labelled = f"all {n_images:,} images are labelled" if n_labelled == n_images else of_all

    if n_novel is not None:
        more = "an unknown number of" if n_novel == "auto" else str(n_novel).replace("-", " to ")
        name, reason = "open_world", f"{of_all}, and {more} classes beyond the {n_classes} named ones may be present"
    elif n_open_candidates >= max(1, CANDIDATE_SHARE * n_images):
        name = "candidates"
        reason = (
            f"{n_candidate_rows:,} of {n_images:,} images have candidate labels, {per_row:.2f} each on average,"
            f" and {n_labelled:,} have a label"
        )
    elif n_labelled == 0:
        name, reason = "no_labels", f"none of {n_images:,} images is labelled; {n_classes} class names are given"
    elif not is_nearly_all and without:
        name = "some_classes"
        reason = f"{of_all}, {spread}; {len(without)} of {n_classes} classes {has} no label"
    elif not is_nearly_all:
        name, reason = "few_labels", f"{of_all}, {spread}, in all {n_classes} classes"
    elif ratio >= LONG_TAILED_RATIO:
        name, reason = "long_tailed", f"{labelled}, very unevenly, {spread}: {uneven}"
    else:
        name = "balanced"
        reason = f"{labelled}, evenly enough, {spread}: {uneven} (uneven from {LONG_TAILED_RATIO:g})"
    if name in ("long_tailed", "balanced") and without:
        reason += f"; {len(without)} of {n_classes} classes {has} no label and will never be predicted: {without[0]}"
        reason += ", ..." if len(without) > 1 else ""
    if name not in ("candidates", "open_world") and n_candidate_rows:
        reason += f"; the candidate labels of {n_candidate_rows:,} images are not used (--method coreg uses them)"
    facets = (
        ("labels", f"{of_all}{f', {spread}: {uneven}' if spread else ''}"),
        ("class names", f"{n_classes}, {len(without)} of them without a label"),
        ("candidate labels", f"{n_candidate_rows:,} images, {per_row:.2f} each" if n_candidate_rows else "none"),
        ("classes beyond the names", "none expected; --novel auto looks for them" if n_novel is None else str(n_novel)),
    )
    return Situation(
        name=name,
        reason=reason,
        facets=facets,
        n_images=n_images,
        n_labelled=n_labelled,
        n_classes=n_classes,
        n_candidate_rows=n_candidate_rows,
        candidates_per_row=per_row,
        imbalance_ratio=ratio,
        gini=gini(counts),
        unlabelled_frac=unlabelled_frac,
        classes_without_labels=without,
        n_novel=n_novel,
    )


def novel_range(novel: int | str | None) -> tuple[int, int | None] | None:
    """Least and greatest number of novel classes; None for no such classes, a greatest of None for no limit.

    Raises: ConfigError if it is not a number, "auto" or range.

    Example:
      >>> novel_range("auto"), novel_range("3-12"), novel_range(5), novel_range(0)
      ((0, None), (3, 12), (5, 5), None)
    """
    if novel is None:
        return None
    if novel == "auto":
        return 0, None
    parts = str(novel).split("-")
    if not (1 <= len(parts) <= 2 and all(part.strip().isdecimal() for part in parts)):
        raise ConfigError(f"novel={novel!r} is not possible", fix='give a number, a range such as 3-12, or "auto"')
    least, most = int(parts[0]), int(parts[-1])
    if least > most:
        raise ConfigError(f"novel={novel!r} is an empty range", fix="write the smaller number first")
    return None if most == 0 else (least, most)
