"""Finding the images of a table that cannot be used, and deciding what happens to bad rows."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
from PIL import Image

from labelwright.data.images import image_problem
from labelwright.data.table import NOTICES, PROBLEM_KINDS, LabelTable
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.train.progress import counter

OnBad = Literal["stop", "skip", "report"]
ALIKE = 3  # rows that are listed of those of which the same is to say: notices, and labels by one unknown name
_WITHOUT_ROW = ("malformed_row", "unreadable_name", "unreadable_folder")  # what they hold never became a row


def check_images(table: LabelTable, *, digests: dict[int, bytes] | None = None) -> tuple[Problem, ...]:
    """Decode every image, showing progress, and say which ones cannot be, in row order; then what else was noticed.

    Large JPEGs are decoded at reduced scale, for which every byte of them is read as well.

    Args:
      digests: empty, gets row -> `digest`, and images with equal pixels are noticed too.
    """

    def remember(row: int, image: Image.Image) -> None:
        if digests is not None:
            digests[row] = digest(image)

    problems = each_image(table, "checking images", remember, side_px=1)
    return (*problems, *_copies(table, digests or {}))


def digest(image: Image.Image) -> bytes:
    """The same for two images if all their pixels are equal: 16 bytes.

    Example:
      >>> digest(Image.new("RGB", (2, 3))) == digest(Image.new("RGB", (3, 2)))
      False
    """
    return hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes(), digest_size=16).digest()


def _copies(table: LabelTable, digests: Mapping[int, bytes]) -> list[Problem]:
    """A notice about images whose pixels are equal, and one about those of them that have different labels."""
    first, labelled = dict[bytes, int](), dict[bytes, int]()
    pairs, contrary, twice = list[tuple[int, int]](), list[tuple[int, int]](), list[tuple[int, int]]()

    def are_one(row: int, seen: int) -> bool:  # a file named twice is no copy
        return table.images.where(row) == table.images.where(seen)

    for row in sorted(digests):
        seen = first.setdefault(digests[row], row)
        if seen != row and not are_one(row, seen):
            pairs.append((row, seen))
        if table.labels[row] < 0:
            continue
        seen = labelled.setdefault(digests[row], row)
        if table.labels[seen] != table.labels[row]:
            (twice if are_one(row, seen) else contrary).append((row, seen))
    found = []
    for rows, what in (
        (pairs, "shows the same as {place}"),
        (contrary, "is labelled {label!r}, and its copy {place} {other!r}"),
        (twice, "is labelled {label!r}, and {other!r} in a row before"),
    ):
        if rows:
            row, seen = rows[0]
            label, other = (table.class_names[table.labels[at]] if table.labels[at] >= 0 else "" for at in (row, seen))
            detail = what.format(place=table.images.where(seen), label=label, other=other)
            found.append(Problem(table.images.where(row), "copy", detail + _others(len(rows))))
    return found


def _others(n: int) -> str:
    """Behind the message about the first of ``n`` images.

    Example:
      >>> _others(1), _others(2), _others(1001)
      ('', '; so does 1 more', '; so do 1,000 more')
    """
    return "" if n == 1 else "; so does 1 more" if n == 2 else f"; so do {n - 1:,} more"


def each_image(
    table: LabelTable,
    doing: str,
    use: Callable[[int, Image.Image], None],
    *,
    side_px: int | None = None,
    n_rows_at_once: int = 16,
) -> tuple[Problem, ...]:
    """Decode every image once, in threads, and hand it on; shows progress.

    Args:
      use: called with row and image, in any order, several at a time.
      side_px: see `images.decode`.   n_rows_at_once: of each thread.

    Returns: the images that could not be decoded, in row order; then notices about all of them.
    """
    noticed: dict[str, list[int]] = {"first_frame": [], "blank_image": []}

    def attempt(first: int) -> list[Problem]:
        problems = []
        for row in range(first, min(first + n_rows_at_once, len(table))):
            try:
                found = table.images.decode(row, side_px=side_px)
            except OSError as error:
                problems.append(image_problem(table.images.where(row), row, error))
                continue
            if found.is_first_of_several:
                noticed["first_frame"].append(row)
            if found.is_blank:
                noticed["blank_image"].append(row)
            use(row, found.image)
        return problems

    problems: list[Problem] = []
    pool = decoding_threads()
    try:
        with counter(doing, len(table)) as progress:
            for n_done, found in enumerate(pool.map(attempt, range(0, len(table), n_rows_at_once)), start=1):
                problems.extend(found)
                progress(min(n_done * n_rows_at_once, len(table)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the images under way, not after all of them
    details = {"first_frame": "has several frames or pages: the first is used", "blank_image": "has one colour"}
    for kind, rows in noticed.items():
        if rows:
            problems.append(Problem(table.images.where(min(rows)), kind, details[kind] + _others(len(rows))))
    return tuple(problems)


def decoding_threads() -> ThreadPoolExecutor:
    """A thread per core; Pillow decodes outside Python's lock."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="labelwright-decode")


def format_problems(problems: Sequence[Problem], limit: int = 50) -> str:
    """A plain table of problems, grouped by kind with counts.

    At most ``limit`` of each kind are listed; of notices, and of unknown labels, in the same words `ALIKE`.

    Example:
      >>> print(format_problems([Problem("a.png", "missing_image", "there is no such file", 0)]))
      1 missing_image: image files that are not there
        a.png  there is no such file
    """
    lines = []
    for kind, heading in PROBLEM_KINDS.items():
        found = [problem for problem in problems if problem.kind == kind]
        if not found:
            continue
        lines.append(f"{len(found)} {kind}: {heading}")
        groups: dict[str, list[Problem]] = {}
        for problem in found:
            is_folded = kind in NOTICES or kind == "unknown_label"
            groups.setdefault(problem.detail if is_folded else "", []).append(problem)
        listed = dict(list(groups.items())[:limit])
        shown = {key: some[: ALIKE if key else limit] for key, some in listed.items()}
        width = max(len(problem.where) for some in shown.values() for problem in some)
        for key, some in listed.items():
            lines.extend(f"  {problem.where:<{width}}  {problem.detail}" for problem in shown[key])
            if len(some) > len(shown[key]):
                lines.append(f"  ... and {len(some) - len(shown[key]):,} more" + (f": {key}" if key else ""))
        if more := sum(map(len, groups.values())) - sum(map(len, listed.values())):
            lines.append(f"  ... and {more:,} more")
    return "\n".join(lines)


def resolve_problems(table: LabelTable, problems: Sequence[Problem], on_bad: OnBad) -> LabelTable:
    """Decide on problems found in this table: stop, leave the rows out, or only list them.

    Args:
      table: the table; ``table.problems`` are replaced by ``problems`` (give both kinds together).
      problems: rows as in ``table``; one listed twice counts once.
      on_bad: "stop" raises if anything but a notice is among them; "skip" leaves the rows concerned out and lists
        them in ``quarantined``; "report" keeps every row.

    Raises: DataError holding all the problems (on "stop", or if "skip" would leave nothing); ConfigError if
      ``on_bad`` is none of the three.
    """
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad={on_bad!r} is not possible", fix=f"one of {', '.join(get_args(OnBad))}")
    problems = each_once(problems)
    bad = [problem for problem in problems if problem.kind not in NOTICES]
    if on_bad == "report" or not bad:
        return dataclasses.replace(table, problems=problems)
    if on_bad == "stop":
        raise DataError(
            f"{len(bad)} {'problem' if len(bad) == 1 else 'problems'} in the data: {_kinds(bad)}",
            problems=problems,
            fix="correct them"
            if any(map(_is_shift, bad))
            else "correct them, or leave the rows concerned out with --on-bad skip",
        )
    keep = np.ones(len(table), dtype=bool)
    keep[[problem.row for problem in bad if problem.row is not None]] = False
    if not keep.any():
        raise DataError(f"every row has a problem: {_kinds(bad)}", problems=problems, fix="correct the data")
    out = [problem for problem in bad if problem.row is not None or problem.kind in _WITHOUT_ROW]
    left = dataclasses.replace(table, problems=tuple(problem for problem in problems if problem not in set(out)))
    left = left if keep.all() else left.subset(np.flatnonzero(keep))
    lost = np.flatnonzero((table.counts() > 0) & (left.counts() == 0))
    emptied = [
        Problem(table.class_names[c], "empty_class", "every labelled image of it had to be left out") for c in lost
    ]
    return dataclasses.replace(left, problems=(*left.problems, *emptied), quarantined=(*table.quarantined, *out))


def each_once(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Problems without repeats; of an image that is missing or damaged, or whose row cannot be read, the first alone.

    Example:
      >>> gone = Problem("a.png", "missing_image", "there is no such file (line 3)", 1)
      >>> len(each_once([gone, Problem("a.png", "missing_image", "there is no such file", 1)]))
      1
    """
    found: dict[object, Problem] = {}
    for problem in problems:
        is_whole = problem.row is not None and problem.kind in ("missing_image", "unreadable_image", "malformed_row")
        found.setdefault(("row", problem.row) if is_whole else problem, problem)
    return tuple(found.values())


def _is_shift(problem: Problem) -> bool:
    """Whether it is a number beyond the class names: to skip its rows would leave the others one class off."""
    return problem.kind == "unknown_label" and "which are numbered" in problem.detail


def _kinds(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(problem.kind for problem in problems).items())
