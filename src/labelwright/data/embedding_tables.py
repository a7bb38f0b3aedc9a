"""Tables of embeddings: Parquet with the vectors in a column, and the table of what is known beside an .npy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from labelwright.data.answer_rows import Part, with_a_column_each
from labelwright.data.build import TableBuilder
from labelwright.data.columns import ROLES, Columns, Named, content_names, find_roles, open_columns
from labelwright.data.tabular import note_others
from labelwright.errors import DataError, Problem

EMBEDDING_COLUMN = "embedding"
BESIDE = (".csv", ".tsv", ".jsonl")
"""Suffixes of a table that says what is known of the rows of an .npy of the same name."""

_ROWS_AT_ONCE = 65_536


def rows_beside(
    path: Path,
    n_rows: int,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> TableBuilder | None:
    """Labels, ids and all else in the table beside an .npy, feats.csv beside feats.npy; None if there is no such table.

    Of a table of another length nothing is read, with a notice.

    Args: path: of the .npy.   n_rows: of its rows.   others: see `embeddings.load_embeddings`.
    """
    beside = next((each for suffix in BESIDE if (each := path.with_suffix(suffix)).is_file()), None)
    if beside is None:
        return None
    columns, why = open_columns(beside), f"it has another number of rows than {path.name}, which has {n_rows:,}"
    if {"id", "label", "probability", "decision"} <= set(columns.names):
        why = "labels that labelwright wrote are not given labels; where they are, give them by another name"
    else:
        builder = rows_of(columns, beside, None, annotators, named, classes=classes, only_rows=only_rows)
        detail = f"the table beside {path.name}: a row of the one is a row of the other"
        builder.problems.append(Problem(str(beside), "read_as", detail))
        if builder.n_rows == n_rows:
            return builder
    builder = TableBuilder(str(path))
    builder.add({}, n_rows, file=str(path))
    builder.problems.append(Problem(str(beside), "ignored_column", f"not read: {why}"))
    return builder


def rows_of(
    columns: Columns,
    path: Path,
    n_rows: int | None,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> TableBuilder:
    """What a table says of the rows of embeddings besides the vectors.

    Args: n_rows: of the file that holds the vectors too; None where they are in another one.
    """
    others = [name for name in columns.names if name != EMBEDDING_COLUMN]
    find_roles([*others, "image"], str(path), annotators=annotators)  # needs no image column
    roles = find_roles(others, str(path), named=named, annotators=annotators, needs_image=False)
    paths = {name: name for name in others if name.lower() in ROLES["image"]}
    if n_rows is None and paths:
        roles.setdefault("id", next(iter(paths)))
    roles = {role: name for role, name in roles.items() if role == "id" or not only_rows}
    columns.embedded = frozenset()  # bytes are text here
    builder = TableBuilder(str(path))
    builder.n_given = n_rows or 0
    if not only_rows:
        note_others(builder, columns, {**roles, **paths, "": EMBEDDING_COLUMN}, classes)
    names = columns.class_labels(roles)
    builder.declared = tuple(dict.fromkeys(names.get("label") or names.get("candidates", ())))
    if not roles and n_rows is not None:
        builder.add({}, n_rows, file=str(path))
    else:  # without a column to read, any says how many rows there are
        for batch in columns.batches(list(dict.fromkeys(roles.values())) or columns.names[:1]):
            found = {role: batch.column(name) for role, name in roles.items()}
            builder.add(found, batch.num_rows, names=names, file=str(path))
    builder.problems += columns.problems
    return builder


def read_parquet(
    path: Path,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """Vectors [N, D] float32, the other columns in a builder, and rows of another length (their vectors are zero)."""
    columns = open_columns(path)
    with pq.ParquetFile(path) as file:
        n_rows = file.metadata.num_rows
        kind = file.schema_arrow.field(EMBEDDING_COLUMN).type if EMBEDDING_COLUMN in columns.names else None
        feats, problems = _vectors(path, columns.names, kind, n_rows, lambda: _lists_of(file))
    return _with_rows(feats, problems, columns, path, annotators, named, classes=classes, only_rows=only_rows)


def read_table(
    table: pa.Table,
    path: Path,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """The same of a table in memory, which messages call ``path``."""
    names = tuple(table.column_names)
    columns = Columns(None, names, lambda wanted: iter(table.select(list(wanted)).to_batches()))
    kind = table.schema.field(EMBEDDING_COLUMN).type
    lists = table[EMBEDDING_COLUMN].chunks
    feats, problems = _vectors(path, names, kind, len(table), lambda: iter(lists))
    return _with_rows(feats, problems, columns, path, annotators, named, classes=classes, only_rows=only_rows)


def _with_rows(
    feats: npt.NDArray[Any],
    problems: list[Problem],
    columns: Columns,
    path: Path,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """What `read_parquet` gives of vectors and the columns beside them; of answers that stand one a row, each once."""
    asked = Named(dict(named), tuple(annotators))
    if asked.are_answers and not only_rows:
        others = [name for name in columns.names if name != EMBEDDING_COLUMN]
        roles = find_roles(others, str(path), named=named, annotators=annotators, needs_image=False)
        columns.names, columns.embedded = tuple(others), frozenset()
        columns.contents = lambda name: content_names(row.tobytes() for row in feats)
        (part,), asked = with_a_column_each([Part(columns, str(path), roles)], asked)
        columns = part.columns
        if part.chosen is not None:
            place = {row: i for i, row in enumerate(part.chosen.tolist())}
            kept = [problem for problem in problems if problem.row in place]
            problems = [dataclasses.replace(problem, row=place[problem.row or 0]) for problem in kept]
            feats = feats[part.chosen]
    how: dict[str, Any] = {"classes": classes, "only_rows": only_rows}
    return feats, rows_of(columns, path, len(feats), asked.annotators, asked.columns, **how), problems


def _vectors(
    path: Path, names: Sequence[str], kind: Any, n_rows: int, lists: Callable[[], Iterator[Any]]
) -> tuple[npt.NDArray[Any], list[Problem]]:
    """Vectors [N, D] of a column of lists, and rows of another length.

    Args: names: of all columns.   kind: Arrow type of this one; None: there is none.   lists: its blocks, from the
      first on each time.
    """
    if not _holds_vectors(kind):
        detail = f"no column {EMBEDDING_COLUMN}" if kind is None else f"its column {EMBEDDING_COLUMN} holds {kind}"
        raise DataError(
            f"{path}: {detail}; columns found: {', '.join(names)}",
            fix=f"name the column {EMBEDDING_COLUMN}, lists of float",
        )
    lengths = np.concatenate([np.zeros(0, np.int64), *map(_lengths, lists())])
    D = int(np.bincount(lengths[lengths > 0]).argmax()) if lengths.any() else 0
    if not D:
        raise DataError(f"{path}: it holds no embedding", fix="give a row per item, with its list of numbers")
    # One array, filled block by block: nothing is there twice.
    feats = np.zeros((n_rows, D), np.float16 if pa.types.is_float16(kind.value_type) else np.float32)
    first, fits = 0, lengths == D
    for some in lists():
        own = fits[first : first + len(some)]
        flat = some.filter(pa.array(own)).flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            feats[first : first + len(some)][own] = flat.reshape(-1, D).astype(feats.dtype, copy=False)
        first += len(some)
    problems = [
        Problem(f"{path} row {row + 1}", "bad_embedding", f"{lengths[row]} numbers where most rows have {D}", row)
        for row in np.flatnonzero(~fits).tolist()
    ]
    return feats, problems


def _lists_of(file: pq.ParquetFile) -> Iterator[Any]:
    """The column of embeddings, block by block."""
    return (batch.column(0) for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[EMBEDDING_COLUMN]))


def _lengths(lists: Any) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _holds_vectors(kind: Any) -> bool:
    """Whether an Arrow type is one of lists of numbers."""
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if kind is None or not any(check(kind) for check in is_list):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
