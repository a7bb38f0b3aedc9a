"""Answers that stand one a row (image, annotator, label), in one table or several: a row per image, however it is held.

An image is known by its path; one that lies inside the table, or an embedding, by its id where ids come again, else by
its content.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labelwright.data.columns import ANSWER, LINE, Columns, Named
from labelwright.data.values import as_text
from labelwright.errors import Problem
from labelwright.wording import counted

ANSWERED_MIN = 0.9  # of the rows with an annotator that have a label, from which it is that annotator's answer
ANSWERS_MIN = 1.5  # rows an image from which images with equal content are taken for one that comes again


@dataclass(frozen=True)
class Part:
    """A table, alone or one of several that are read as one."""

    columns: Columns
    where: str  # for messages
    roles: dict[str, str]  # role -> column
    folder: str = ""  # that its paths start from
    split: str = ""  # the same image in two splits is two
    chosen: NDArray[np.int64] | None = None  # rows of the source that are its rows now; None: all

    def keys(self, contents: Sequence[str] | None, batch: Any, first: int) -> list[str]:
        """What tells the images of a batch apart, of rows ``first`` and after."""
        if contents is not None:
            found: list[str | None] = list(contents[first : first + batch.num_rows])
        elif self.roles.get("image") in batch.schema.names:
            texts = as_text(batch.column(self.roles["image"]), is_path=True)[0].to_pylist()
            found = [None if text is None else os.path.normpath(f"{self.folder}/{text}") for text in texts]
        else:
            found = [None] * batch.num_rows
        return [f"{self.split}\n{key or f'row {first + i} of {self.where}'}" for i, key in enumerate(found)]


def with_a_column_each(parts: Sequence[Part], named: Named) -> tuple[list[Part], Named]:
    """Answers that stand one a row, with a column per annotator in their place; other tables as they are.

    It is so where one column of annotators is named, there is a column of labels, and images come again, or what that
    column holds is no label at all: an image each, by one annotator or another.

    Args: parts whose roles are by ``named``.

    Returns: tables of which each image is in one, the first that held it; and what is named of them.
    """
    if any(named.answered_by in part.columns.names for part in parts):
        return _with_each_image_once(parts), named
    if len(named.annotators) != 1 or any("label" not in part.roles for part in parts):
        return list(parts), named
    who = ANSWER + named.annotators[0]
    contents, are_close = _contents(parts)
    firsts, chosen = list[dict[str, list[Any]]](), list[list[int]]()
    rows: dict[str, int] = {}  # image -> its row
    answers: dict[str, dict[int, str]] = {}  # annotator -> row -> answer
    n_read = n_again = n_people = n_answers = n_unsigned = 0
    for part, own in zip(parts, contents, strict=True):
        roles, n_before = part.roles, n_read
        labels = part.columns.class_labels(roles).get("label")
        first: dict[str, list[Any]] = {LINE: [], **{role: [] for role in roles if role not in ("label", who)}}
        kept = list[int]()
        for batch in part.columns.batches(list(dict.fromkeys(roles.values()))):
            keys = part.keys(own, batch, n_read - n_before)
            texts = {
                role: as_text(batch.column(name), is_path=role == "image", names=labels if role == "label" else None)[0]
                for role, name in roles.items()
                if name in batch.schema.names
            }
            texts[LINE] = batch.column(LINE) if LINE in batch.schema.names else pa.nulls(batch.num_rows)
            for key, *cells in zip(keys, *(column.to_pylist() for column in texts.values()), strict=True):
                cell = dict(zip(texts, cells, strict=True))
                if key not in rows:
                    rows[key] = len(rows)
                    kept.append(n_read - n_before)
                    for role, values in first.items():
                        values.append(cell.get(role) or (kept[-1] + 1 if role == LINE else None))
                n_read += 1
                n_people += bool(cell.get(who))
                n_unsigned += not cell.get(who) and bool(cell.get("label"))
                if cell.get(who) and cell.get("label"):
                    n_answers += 1
                    given = answers.setdefault(cell[who], {})
                    n_again += rows[key] in given
                    given[rows[key]] = cell["label"]
        firsts.append(first)
        chosen.append(kept)
    given_labels = {label for given in answers.values() for label in given.values()}
    are_others = not given_labels & answers.keys()
    is_sure = not are_close or len(rows) * ANSWERS_MIN <= n_read or are_others
    come_again = len(rows) < n_read or (are_others and n_answers >= ANSWERED_MIN * n_people)
    if not come_again or not answers or not is_sure:
        for part in parts:
            _read_anew(part.columns)
        return list(parts), named
    n_signed = n_read - n_unsigned
    detail = f"an answer a row: {n_signed} of {counted(len(answers), 'annotator')} about {counted(len(rows), 'image')}"
    if n_again:
        detail += f"; {counted(n_again, 'answer')} about an image that annotator had answered about: the last counts"
    if n_unsigned:
        detail += f"; {counted(n_unsigned, 'answer')} without a name under {named.annotators[0]!r}: not read"
    parts[0].columns.problems.append(Problem(parts[0].where, "read_as", detail))
    taken = {LINE, *(name for part in parts for name in part.columns.names)}
    people = {name if name not in taken else f"{named.annotators[0]} {name}": name for name in answers}
    found, n_before = list[Part](), 0
    for part, first, kept in zip(parts, firsts, chosen, strict=True):
        of_rows = range(n_before, n_before + len(kept))
        n_before += len(kept)
        made: dict[str, Any] = {
            part.roles[role]: pa.array(values, pa.string())
            for role, values in first.items()
            if role != LINE and any(value is not None for value in values)
        }
        made |= {shown: pa.array([answers[n].get(i) for i in of_rows], pa.string()) for shown, n in people.items()}
        whole = pa.record_batch({**made, LINE: pa.array(first[LINE], pa.int64())})
        if others := [name for name in part.columns.names if name not in part.roles.values()]:
            detail = f"not read: {', '.join(others[:20])}"
            part.columns.problems.append(Problem(part.where, "ignored_column", detail))
        names = dict.fromkeys([*(name for role, name in part.roles.items() if role not in ("label", who)), *people])
        columns = Columns(
            part.columns.path,
            tuple(names),
            _only(whole),
            problems=part.columns.problems,
            embedded=part.columns.embedded & {part.roles.get("image", "")},
        )
        found.append(dataclasses.replace(part, columns=columns, chosen=np.array(kept, np.int64)))
    rest = {role: name for role, name in named.columns.items() if role != "label"}
    return found, dataclasses.replace(named, annotators=tuple(people), columns=rest)


def _only(batch: pa.RecordBatch) -> Callable[[Sequence[str]], Iterator[pa.RecordBatch]]:
    return lambda wanted: iter([batch])


def _read_anew(columns: Columns) -> None:
    """Rows that could not be read are noted again by whoever reads them next."""
    columns.problems[:] = [problem for problem in columns.problems if problem.kind != "malformed_row"]


def _contents(parts: Sequence[Part]) -> tuple[list[list[str] | None], bool]:
    """Of every table whose images lie in it, what tells them apart, row by row; and whether any is known by content."""
    inside = [part for part in parts if part.columns.contents is not None and part.roles.get("image") in _held(part)]
    ids = list[list[str | None]]()
    for part in inside:
        own = part.roles.get("id")
        batches = part.columns.batches([own]) if own is not None else iter(())
        ids.append([text for batch in batches for text in as_text(batch.column(own))[0].to_pylist()])
    every = [text for own in ids for text in own]
    have_ids = bool(inside) and all(ids) and None not in every
    by_id = [list(map(str, ids.pop(0))) if part in inside else None for part in parts] if have_ids else []
    if have_ids and len(set(every)) < len(every):
        return by_id, False
    found = [list(contents_of(part.columns, part.roles.get("image"))) if part in inside else None for part in parts]
    n_images = len({text for own in found if own is not None for text in own})
    if have_ids and n_images * ANSWERS_MIN > len(every):  # of few copies each has an id of its own
        return by_id, False
    return found, bool(inside)


def _held(part: Part) -> frozenset[str | None]:
    """The columns of images inside; of embeddings the one that there is not."""
    return part.columns.embedded or frozenset([None])


def contents_of(columns: Columns, image: str | None, at_most: int | None = None) -> Iterator[str]:
    """A name of the content of every row, or of the first of them."""
    assert columns.contents is not None, "of images inside"
    return islice(columns.contents(image), at_most)


def _with_each_image_once(parts: Sequence[Part]) -> list[Part]:
    """The first row of every image; labels in which the rows of an image differ are answers, and no row has one."""
    contents, _ = _contents(parts)
    first, firsts, is_answered = dict[str, str | None](), list[list[bool]](), False
    for part, own in zip(parts, contents, strict=True):
        label, is_first = part.roles.get("label"), list[bool]()
        names = part.columns.class_labels(part.roles).get("label")
        wanted = [part.roles[role] for role in ("image", "label") if role in part.roles]
        for batch in part.columns.batches(wanted):
            cells = batch.column(label) if label in batch.schema.names else pa.nulls(batch.num_rows, pa.string())
            labels = as_text(cells, names=names)[0].to_pylist()
            for key, text in zip(part.keys(own, batch, len(is_first)), labels, strict=True):
                is_first.append(key not in first)
                is_answered |= first.setdefault(key, text) != text
        _read_anew(part.columns)
        firsts.append(is_first)
    if all(map(all, firsts)):
        return list(parts)
    detail = f"an answer a row: {sum(map(len, firsts)):,} rows about {counted(len(first), 'image')}"
    if is_answered:
        detail += f"; the answers differ, so none is read from {parts[0].roles['label']!r} as a label"
    parts[0].columns.problems.append(Problem(parts[0].where, "read_as", detail))
    found = []
    for part, is_first in zip(parts, firsts, strict=True):
        batches = _first_rows(part.columns, is_first, part.roles.get("label") if is_answered else None)
        columns = dataclasses.replace(part.columns, batches=batches, n_given=0)  # rows that are left are what is given
        found.append(dataclasses.replace(part, columns=columns, chosen=np.flatnonzero(is_first)))
    return found


def _first_rows(
    columns: Columns, is_first: Sequence[bool], emptied: str | None
) -> Callable[[Sequence[str]], Iterator[pa.RecordBatch]]:
    read = columns.batches

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        n_before = 0
        for batch in read(wanted):
            chosen = pa.array(is_first[n_before : n_before + batch.num_rows])
            n_before += batch.num_rows
            if emptied in batch.schema.names:
                at = batch.schema.get_field_index(emptied)
                batch = batch.set_column(at, emptied, pa.nulls(batch.num_rows, pa.string()))
            yield batch.filter(chosen)

    return batches
