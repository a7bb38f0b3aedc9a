"""Tables of embeddings: Parquet with the vectors in a column, and the table of what is known beside an .npy."""

from __future__ import annotations

import dataclasses
import functools
import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from labelwright.data.layouts import splits_of, tables_in
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
        builder = TableBuilder(str(beside))
        add_rows(builder, columns, str(beside), None, annotators, named, classes=classes, only_rows=only_rows)
        detail = f"the table beside {path.name}: a row of the one is a row of the other"
        builder.problems.append(Problem(str(beside), "read_as", detail))
        if builder.n_rows == n_rows:
            return builder
    builder = TableBuilder(str(path))
    builder.add({}, n_rows, file=str(path))
    builder.problems.append(Problem(str(beside), "ignored_column", f"not read: {why}"))
    return builder


def add_rows(
    builder: TableBuilder,
    columns: Columns,
    where: str,
    n_rows: int | None,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
    split: str | None = None,
) -> None:
    """Add what a table says of the rows of embeddings besides the vectors.

    Args: n_rows: of the file that holds the vectors too; None where they are in another one.   split: of all of them.
    """
    others = [name for name in columns.names if name != EMBEDDING_COLUMN]
    find_roles([*others, "image"], where, annotators=annotators)  # needs no image column
    roles = find_roles(others, where, named=named, annotators=annotators, needs_image=False)
    paths = {name: name for name in others if name.lower() in ROLES["image"]}
    if n_rows is None and paths:
        roles.setdefault("id", next(iter(paths)))
    roles = {role: name for role, name in roles.items() if role == "id" or not only_rows}
    columns.embedded = frozenset()  # bytes are text here
    builder.n_given += n_rows or 0
    if not only_rows:
        note_others(builder, columns, {**roles, **paths, "": EMBEDDING_COLUMN}, classes)
    names = columns.class_labels(roles)
    builder.declared = builder.declared or tuple(dict.fromkeys(names.get("label") or names.get("candidates", ())))
    if not roles and n_rows is not None:
        builder.add({}, n_rows, split=split, file=where)
    else:  # without a column to read, any says how many rows there are
        for batch in columns.batches(list(dict.fromkeys(roles.values())) or columns.names[:1]):
            found = {role: batch.column(name) for role, name in roles.items()}
            builder.add(found, batch.num_rows, names=names, split=split, file=where)
    builder.problems += columns.problems


def files_of(source: Any) -> tuple[list[Path], list[str | None]] | None:
    """The Parquet files of embeddings that a path, a folder, a pattern or a list means, and their splits by name.

    Returns: None of anything else, by the columns of the first: ``embedding``, and no ``image``.
    """
    many = list(source) if isinstance(source, (list, tuple)) else [source]
    if not many or not all(isinstance(each, (str, Path)) for each in many):
        return None
    splits: list[str | None] | None = None
    path = Path(many[0]).expanduser()
    if len(many) == 1 and path.suffix.lower() == ".parquet" and any(sign in path.name for sign in "*?["):
        many = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute too)
    elif len(many) == 1 and path.is_dir():
        if next(path.glob("*.parquet"), None) is None:
            return None
        try:
            many, splits = tables_in(path) or ([], [])
        except DataError:
            return None
    files = [Path(each).expanduser() for each in many]
    if not files or any(file.suffix.lower() != ".parquet" or not file.is_file() for file in files):
        return None
    try:
        names = pq.read_schema(files[0]).names
    except (OSError, ValueError):  # the reader says better what is wrong with it
        return None
    return (files, splits or splits_of(files)) if EMBEDDING_COLUMN in names and "image" not in names else None


def read_parquet(
    files: Sequence[Path],
    splits: Sequence[str | None],
    where: str,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """Vectors [N, D] float32, the other columns in a builder, and rows of another length (their vectors are zero)."""
    tables, n_rows, kinds = [open_columns(path) for path in files], list[int](), list[Any]()
    for path in files:
        with pq.ParquetFile(path) as file:
            n_rows.append(file.metadata.num_rows)
            schema = file.schema_arrow
        kinds.append(schema.field(EMBEDDING_COLUMN).type if EMBEDDING_COLUMN in schema.names else None)
        _check_kind(str(path), kinds[-1], schema.names)

    def lists() -> Iterator[Any]:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[EMBEDDING_COLUMN]):
                    yield batch.column(0)

    widest = next((kind for kind in kinds if not pa.types.is_float16(kind.value_type)), kinds[0])
    feats, problems = _vectors(where, widest, lists)
    parts = [
        Part(columns, str(path), {}, split=split or "")
        for columns, path, split in zip(tables, files, splits, strict=True)
    ]
    return _with_rows(feats, problems, parts, n_rows, where, annotators, named, classes=classes, only_rows=only_rows)


def read_table(
    table: pa.Table,
    where: str,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """The same of a table in memory, which messages call ``where``."""
    names = tuple(table.column_names)
    columns = Columns(None, names, lambda wanted: iter(table.select(list(wanted)).to_batches()))
    kind = table.schema.field(EMBEDDING_COLUMN).type
    _check_kind(where, kind, names)
    lists = table[EMBEDDING_COLUMN].chunks
    feats, problems = _vectors(where, kind, lambda: iter(lists))
    parts = [Part(columns, where, {})]
    return _with_rows(
        feats, problems, parts, [len(table)], where, annotators, named, classes=classes, only_rows=only_rows
    )


def _with_rows(
    feats: npt.NDArray[Any],
    problems: list[Problem],
    parts: list[Part],
    n_rows: Sequence[int],
    where: str,
    annotators: Sequence[str],
    named: Mapping[str, str],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
) -> tuple[npt.NDArray[Any], TableBuilder, list[Problem]]:
    """What `read_parquet` gives of vectors and the columns beside them; of answers that stand one a row, each once.

    Args: n_rows: of each table.
    """
    asked, firsts = Named(dict(named), tuple(annotators)), [0, *np.cumsum(n_rows).tolist()]
    if asked.are_answers and not only_rows:
        tables = list[Part]()
        for part, first, stop in zip(parts, firsts, firsts[1:], strict=False):
            others = tuple(name for name in part.columns.names if name != EMBEDDING_COLUMN)
            roles = find_roles(others, part.where, named=named, annotators=annotators, needs_image=False)
            part.columns.names, part.columns.embedded = others, frozenset()
            part.columns.contents = functools.partial(_contents_of, feats[first:stop])
            tables.append(dataclasses.replace(part, roles=roles))
        parts, asked = with_a_column_each(tables, asked)
    if any(part.chosen is not None for part in parts):
        kept = [first + part.chosen for first, part in zip(firsts, parts, strict=False) if part.chosen is not None]
        chosen = np.concatenate(kept)
        place = {row: i for i, row in enumerate(chosen.tolist())}
        problems = [dataclasses.replace(p, row=place[p.row or 0]) for p in problems if p.row in place]
        feats, n_rows = feats[chosen], list(map(len, kept))
    builder = TableBuilder(where)
    for part, n in zip(parts, n_rows, strict=True):
        how: dict[str, Any] = {"classes": classes, "only_rows": only_rows, "split": part.split or None}
        add_rows(builder, part.columns, part.where, n, asked.annotators, asked.columns, **how)
    return feats, builder, problems


def _contents_of(feats: npt.NDArray[Any], name: str | None) -> Iterator[str]:
    return content_names(row.tobytes() for row in feats)


def _check_kind(where: str, kind: Any, names: Sequence[str]) -> None:
    """Refuse a table without a column of vectors: ``kind`` is its Arrow type, None: there is none."""
    if not _holds_vectors(kind):
        detail = f"no column {EMBEDDING_COLUMN}" if kind is None else f"its column {EMBEDDING_COLUMN} holds {kind}"
        raise DataError(
            f"{where}: {detail}; columns found: {', '.join(names)}",
            fix=f"name the column {EMBEDDING_COLUMN}, lists of float",
        )


def _vectors(where: str, kind: Any, lists: Callable[[], Iterator[Any]]) -> tuple[npt.NDArray[Any], list[Problem]]:
    """Vectors [N, D] of a column of lists, and rows of another length.

    Args: kind: Arrow type of the column.   lists: its blocks, from the first on each time.
    """
    lengths = np.concatenate([np.zeros(0, np.int64), *map(_lengths, lists())])
    if not lengths.any():
        raise DataError(f"{where}: it holds no embedding", fix="give a row per item, with its list of numbers")
    return _filled(where, kind, lengths, lists())


def vectors_of_block(where: str, lists: Any, first_row: int) -> tuple[npt.NDArray[Any], list[Problem]]:
    """The same of one block, which may hold no vector at all: then D is 0, and every row is reported.

    Args: first_row: number of the first row of the block, for messages.

    Raises: DataError if the column holds something else than lists of numbers.
    """
    if not _holds_vectors(lists.type):
        raise DataError(
            f"{where}: its column {EMBEDDING_COLUMN} holds {lists.type}", fix="write lists of numbers there"
        )
    return _filled(where, lists.type, _lengths(lists), [lists], first_row)


def _filled(
    where: str, kind: Any, lengths: npt.NDArray[np.int64], lists: Iterable[Any], first_row: int = 0
) -> tuple[npt.NDArray[Any], list[Problem]]:
    D = int(np.bincount(lengths[lengths > 0]).argmax()) if lengths.any() else 0
    # One array, filled block by block: nothing is there twice.
    feats = np.zeros((len(lengths), D), np.float16 if pa.types.is_float16(kind.value_type) else np.float32)
    first, fits = 0, (lengths == D) & (lengths > 0)
    for some in lists:
        own = fits[first : first + len(some)]
        flat = some.filter(pa.array(own)).flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            feats[first : first + len(some)][own] = flat.reshape(int(own.sum()), D).astype(feats.dtype, copy=False)
        first += len(some)
    usual = f" where most rows have {D}" if D else ""
    problems = [
        Problem(f"{where} row {first_row + row + 1}", "bad_embedding", f"{lengths[row]} numbers{usual}", row)
        for row in np.flatnonzero(~fits).tolist()
    ]
    return feats, problems


def _lengths(lists: Any) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)


def _holds_vectors(kind: Any) -> bool:
    """Whether an Arrow type is one of lists of numbers."""
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if kind is None or not any(check(kind) for check in is_list):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
