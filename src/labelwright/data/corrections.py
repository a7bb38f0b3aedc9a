"""Corrections: labels that a person gave to some images, put in place of what the data says of them."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelwright.data.class_names import class_of, close_name, index_of, unknown_words
from labelwright.data.sheets import read_sheet
from labelwright.data.table import LabelTable
from labelwright.data.values import INTEGER, canonical
from labelwright.errors import DataError, Problem
from labelwright.wording import counted

DISCOVERED = re.compile(r"novel-\d+")
"""Names that classes have until somebody names them."""
MENDED = ("unknown_label", "unknown_candidate")
"""Kinds of problems that are none once the row's label is corrected."""


def read_corrections(source: str | Path | Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(where, id, label) of every row of a table with the columns id and label; of a mapping id -> label as well.

    An empty label takes the label away: the image belongs to none of the classes, or nobody knows to which.

    Raises: DataError naming file and row: unreadable, a column missing, no id, an id with two labels.

    Example:
      >>> read_corrections({"img/1.png": "owl"})
      [("corrections['img/1.png']", 'img/1.png', 'owl')]
    """
    if isinstance(source, Mapping):
        return [(f"corrections[{key!r}]", str(key), str(label)) for key, label in source.items()]
    fix = "give a table with the columns id and label, as the report writes it"
    rows = read_sheet(Path(source).expanduser(), {"id": ["id"], "label": ["label"]}, fix=fix)
    found = [(where, texts["id"] or "", texts["label"] or "") for where, texts in rows]
    seen: dict[str, str] = {}
    for where, key, label in found:
        if not key:
            raise DataError(f"{where} has no id", fix="fill it in, or remove the line")
        if seen.setdefault(key, label) != label:
            raise DataError(f"{where}: {key!r} is {label!r} here and {seen[key]!r} above", fix="keep one of the lines")
    return found


def _unknown(label: str, class_names: Sequence[str]) -> str:
    if canonical([label]) == [None]:
        return f"{label!r} is no class; an empty cell takes the label away, and without the row it stays"
    if DISCOVERED.fullmatch(label):
        return f"{label!r} is a discovered class that has no name yet"
    return unknown_words(label, class_names)


def _may_be_new(label: str, class_names: Sequence[str]) -> bool:
    """Whether it names another class, and is neither a number, a discovered class nor a class written otherwise."""
    is_name = canonical([label]) != [None] and not (INTEGER.fullmatch(label) or DISCOVERED.fullmatch(label))
    return is_name and close_name(label, class_names) is None


def corrected(table: LabelTable, source: Any, *, may_add: bool = False) -> LabelTable:
    """The table with the labels of corrections as given labels.

    Args:
      source: see `read_corrections`; or several such, of which the last counts; none leaves the table as it is.
      may_add: whether classes that the corrections alone name become classes: where there are more than the named.

    Raises: DataError naming the row whose id is no image of the table, or whose label is no class of it.

    Example:
      >>> import numpy as np, pyarrow as pa; from labelwright.data.table import Images
      >>> ids = pa.array(["1", "2"], pa.large_string())
      >>> table = LabelTable(Images(ids), ids, np.array([0, -1], np.int32), ("cat", "dog"))
      >>> corrected(table, {"2": "dog"}).labels.tolist()
      [0, 1]
    """
    sources = [source] if isinstance(source, (str, Path, Mapping)) else list(source)
    if not sources:
        return table
    place = {key: row for row, key in enumerate(table.ids.to_pylist())}
    labels, rows = table.labels.copy(), [row for each in sources for row in read_corrections(each)]
    known = index_of(table.class_names)
    more = {label for _, _, label in rows if may_add and label and class_of(label, known) is None}
    new = sorted(label for label in more if _may_be_new(label, table.class_names))
    classes = index_of([*table.class_names, *new])
    bad, mended = [], set[int]()
    composed = dict[str, int]()  # made where an id is not written as in the data
    for where, key, label in rows:
        row, at = place.get(key), class_of(label, classes) if label else -1
        if row is None:
            composed = composed or {unicodedata.normalize("NFC", each): place[each] for each in place}
            row = composed.get(unicodedata.normalize("NFC", key.replace("\\", "/")))
        if row is None:
            bad.append(Problem(where, "missing_image", f"no image has the id {key!r}"))
        elif at is None:
            bad.append(Problem(where, "unknown_label", _unknown(label, table.class_names)))
        else:
            labels[row] = at
            mended |= {row} if label else set()
    if bad:
        first = f"{bad[0].where}: {bad[0].detail}{f'; wrong rows: {len(bad):,}' if len(bad) > 1 else ''}"
        fix = "mend the rows; a class that no label of the data has is named with --classes"
        if any("discovered class" in each.detail for each in bad):
            fix = "write its name, or name it in the run that found it: labelwright review RUN (key m), with Apply"
        if any(each.kind == "missing_image" for each in bad):
            fix = "mend the rows, or give the corrections of these images"
        raise DataError(first, problems=bad if len(bad) > 1 else (), fix=fix)
    n_changed = int((labels != table.labels).sum())
    detail = f"{counted(len(rows), 'correction')}, {n_changed:,} of which change what the data say"
    details = [detail, *([f"classes that corrections alone name: {', '.join(new)}"] if new else [])]
    noticed = [Problem("corrections", "read_as", each) for each in details]
    table = _with_classes(table, new) if new else table
    left = [each for each in table.problems if each.kind not in MENDED or each.row not in mended]
    return dataclasses.replace(table, labels=labels, problems=(*left, *noticed))


def _with_classes(table: LabelTable, new: Sequence[str]) -> LabelTable:
    """The table with further classes; those of a truth, which is numbered by them, may be among these."""
    names = (*table.class_names, *new)
    if table.truth is None:
        return dataclasses.replace(table, class_names=names)
    all_names = (*names, *(name for name in table.truth_names if name not in names))
    at = np.array([*(all_names.index(name) for name in table.truth_names), -1], table.truth.dtype)
    return dataclasses.replace(table, class_names=names, truth=at[table.truth], truth_names=all_names)
