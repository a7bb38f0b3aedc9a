"""Tables and `datasets` objects: their columns become the rows of a `LabelTable`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelwright.data.answer_rows import Part, contents_of, with_a_column_each
from labelwright.data.build import TableBuilder
from labelwright.data.columns import (
    BATCH_ROWS,
    CONTENTS_ROWS,
    LINE,
    ROLES,
    Columns,
    Named,
    content_names,
    find_roles,
    open_columns,
)
from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.layouts import METADATA, TABLE_SUFFIXES, UNLABELLED_NAMES, files_below
from labelwright.data.table import LabelTable
from labelwright.data.values import as_text
from labelwright.errors import DataError, Problem
from labelwright.parsing import yaml_of
from labelwright.wording import counted

_WRITTEN = frozenset(
    {"probability", "runner_up", "source", "trust", "softmax", "decision", "outside_candidates", "strangeness"}
)
"""Columns of the labels that we write, which say nothing to a reader."""
_LOOKED_AT, _LOOKED_INTO = 2000, 256  # values of a column that is not read; images inside a table
LISTED_MAX, FOLDERS_MAX = 100_000, 20  # rows above which nobody looks for images that are not listed; folders
UNLISTED_MIN = 20  # such images that are worth a word


def says_nothing(files: Sequence[Path], named: Named) -> bool:
    """Whether tables are ``metadata`` beside images that say nothing of classes: then the folders do."""
    if named.columns or named.annotators or any(path.name.lower() not in METADATA for path in files):
        return False
    try:
        roles = [find_roles(open_columns(path).names, str(path)) for path in files]
    except DataError:
        return True
    return not any({"label", "candidates", "split", "truth"} & set(found) for found in roles)


def with_unlisted(table: LabelTable, root: Path | None = None) -> LabelTable:
    """The table of files, with a notice of images beside those that it lists, which nobody has asked about.

    Args:
      root: a folder that the table speaks for, as ``metadata`` files do; None: the folders of its images, if they hold
        many images, and more that it does not list than it lists.
    """
    if table.images.dataset is not None or len(table) > LISTED_MAX:
        return table
    sources = [each for each in table.images.sources(np.arange(len(table))) if isinstance(each, str)]
    given = {os.path.abspath(source) for source in sources}  # noqa: PTH100
    folders = {os.path.dirname(source) for source in given}  # noqa: PTH120
    paths: list[Path] = []
    for each in sorted(folders)[:FOLDERS_MAX] if root is None else ():
        with suppress(OSError, ValueError):
            paths += sorted(Path(each).iterdir())
    paths = paths if root is None else list(files_below(root, 8))
    images = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    others = [path for path in images if os.path.abspath(path) not in given]  # noqa: PTH100
    if not others or (root is None and len(others) < max(UNLISTED_MIN, len(sources))):
        return table
    detail = f"{counted(len(others), 'image')} beside those of the table not listed in it, such as {others[0].name}: "
    detail += "a row without a label gets one from fit"
    unlisted = Problem(str(others[0].parent), "skipped_folder", detail)
    return dataclasses.replace(table, problems=(*table.problems, unlisted))


def refuse_tars(files: Sequence[Path]) -> None:
    """Say what to do with tars of WebDataset, which are read by the verbs that work over shards alone: DataError."""
    if tars := [path for path in files if path.suffix.lower() == ".tar" and path.is_file()]:
        raise DataError(
            f"{tars[0]}: a tar is read by embed, annotate, label and audit alone, shard by shard",
            fix="labelwright embed DATA --model MODEL --out feats, and give feats; answers of several people are read "
            "from a table (image, worker, label)",
        )


def read_files(
    files: Sequence[Path],
    classes: Sequence[str] | None,
    named: Named,
    *,
    splits: Sequence[str | None] | None = None,
) -> LabelTable:
    """The rows of tables, one file after the other.

    Args:
      files: .csv, .tsv, .jsonl, .json or .parquet.   classes: names in order; None: as the source says.
      named: columns that the user has named.   splits: of each file, where its name says one.

    Raises: DataError if one of them cannot be read.
    """
    unfit = [path for path in files if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file()]
    refuse_tars(unfit)
    if unfit or not files:
        absent = not unfit or unfit[0].is_file()
        raise DataError(
            f"{'not a table that can be read' if absent else 'no such file'}: "
            f"{', '.join(map(str, unfit[:5])) or 'an empty list'}",
            problems=[Problem(str(path), "unsupported_file", "not a table") for path in unfit],
            fix=f"one of {' '.join(sorted(TABLE_SUFFIXES))}, or a folder",
        )
    builder = TableBuilder(str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more")
    builder.first_number = named.first_number
    builder.known = frozenset(classes or ())
    folders = {str(path.parent) for path in files}
    splits = splits or [None] * len(files)
    if any(splits):
        counted = ", ".join(f"{path.name} is {split}" for path, split in list(zip(files, splits, strict=True))[:5])
        builder.problems.append(Problem(builder.where, "read_as", f"splits are read from names: {counted}"))
    embedded: list[tuple[Path, str, NDArray[np.int64] | None]] = []
    parts, asked = list[Part](), named
    for path, split in zip(files, splits, strict=True):
        columns = _with_ids_as_images(open_columns(path), named)
        roles = named.roles(columns, str(path)) if named.are_answers else {}
        parts.append(Part(columns, str(path), roles, folder=str(path.parent), split=split or ""))
    if named.are_answers:
        parts, asked = with_a_column_each(parts, named)
    for path, split, part in zip(files, splits, parts, strict=True):
        columns = _with_labels_of_classes(part.columns, asked, str(path), classes)
        roles = asked.roles(columns, str(path))
        if roles["image"] in columns.embedded:
            embedded.append((path, roles["image"], part.chosen))
        if not named.only_images:
            note_others(builder, columns, roles, classes)
        prefix = str(path.parent) if len(folders) > 1 else None
        _add_columns(builder, columns, roles, prefix=prefix, split=split)
    if embedded and len(embedded) < len(files):
        raise DataError("some of the files hold images and some hold paths", fix="read them one by one")
    dataset = _embedded_images(embedded) if embedded and builder.n_rows else None
    return builder.finish(classes=classes, root=folders.pop() if len(folders) == 1 else "", dataset=dataset)


def _with_ids_as_images(columns: Columns, named: Named) -> Columns:
    """Labels that we wrote beside a run name their images by id: paths from the folder of the run's data."""
    assert columns.path is not None
    if "image" in named.columns or not {"id", "label", "probability", "decision"} <= set(columns.names):
        return columns
    if any(name.lower() in ROLES["image"] for name in columns.names):
        return columns
    root, config = columns.path.parent, columns.path.parent / "config.yaml"
    if config.is_file():
        try:
            data = Path(str(yaml_of(config.read_text(encoding="utf-8")).get("data")))
            root = data if data.is_dir() else data.parent
        except (OSError, ValueError, AttributeError):
            pass
    read = columns.batches

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in read([name for name in dict.fromkeys(["id", *wanted]) if name != "image"]):
            ids = as_text(batch.column("id"), is_path=True)[0]
            paths = pc.binary_join_element_wise(str(root.absolute()), ids, "/")
            yield batch.append_column("image", paths)

    columns.batches, columns.names = batches, ("image", *columns.names)
    return columns


def _with_labels_of_classes(columns: Columns, named: Named, where: str, classes: Sequence[str] | None) -> Columns:
    """A column per class, whose numbers sum to 1 in every row, as labels or weighted candidates; else as it is.

    A row that is empty, or 0 throughout, has no label. Tables with labels or candidates are left alone, and so are
    columns that are none of the classes, where these are given.
    """
    if named.annotators or named.only_images:
        return columns
    try:
        roles = named.roles(columns, where)
    except DataError:
        return columns
    used = {*roles.values(), *columns.embedded, *_WRITTEN}
    names = [name for name in columns.names if name not in used and columns.names.count(name) == 1]
    names = names if classes is None else [name for name in names if name in classes]
    if {"label", "candidates"} & set(roles) or len(names) < 2:
        return columns
    some = next(iter(columns.batches(names)), None)
    found = {name: _shares_of(some.column(name)) for name in names} if some is not None else {}
    names = [name for name, shares in found.items() if shares is not None]
    kinds = set[bool]()
    for batch in columns.batches(names) if len(names) > 1 else ():
        shares = [_shares_of(batch.column(name)) for name in names]
        table = np.stack([each for each in shares if each is not None], axis=1)
        total = table.sum(axis=1)
        if table.shape[1] < len(names) or not np.logical_or(np.abs(total - 1) < 0.02, total == 0).all():
            kinds.clear()
            break
        kinds |= {bool((table.max(axis=1)[total > 0] > 0.98).all())} if (total > 0).any() else set()
    columns.problems[:] = [problem for problem in columns.problems if problem.kind != "malformed_row"]
    if not kinds:
        return columns
    are_labels, read = kinds == {True}, columns.batches
    what = "labels" if are_labels else "candidates, and their numbers as weights"
    columns.problems.append(
        Problem(where, "read_as", f"{len(names)} columns of classes are read as {what}: {names[0]}, ...")
    )

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        rest = [name for name in wanted if name not in ("label", "candidates", "weights")]
        for batch in read([*rest, *names]):
            table = np.stack([np.asarray(_shares_of(batch.column(name))) for name in names], axis=1)
            sets = [np.flatnonzero(row > (0.98 if are_labels else 0)).tolist() for row in table]
            made = {"label": pa.array([names[some[0]] if some else None for some in sets], pa.string())}
            if not are_labels:
                lists = [[names[each] for each in some] for some in sets]
                weights = [row[some].tolist() for row, some in zip(table, sets, strict=True)]
                made = {"candidates": pa.array(lists, pa.list_(pa.string())), "weights": pa.array(weights)}
            kept = {name: batch.column(name) for name in batch.schema.names if name not in names}
            yield pa.record_batch({**kept, **made})

    rest = tuple(name for name in columns.names if name not in names)
    columns.batches, columns.names = batches, (*rest, *(("label",) if are_labels else ("candidates", "weights")))
    return columns


def _shares_of(column: Any) -> NDArray[np.float64] | None:
    """A column as numbers in 0 to 1, 0 where it is empty; None if it holds anything else."""
    try:
        numbers = np.asarray(pc.cast(column, pa.float64()).fill_null(0))
    except (pa.ArrowException, TypeError):
        return None
    return numbers if len(numbers) and numbers.min() >= 0 and numbers.max() <= 1 else None


def note_others(
    builder: TableBuilder, columns: Columns, roles: Mapping[str, str], classes: Sequence[str] | None
) -> None:
    """Name the columns that are not read, and those of them that hold labels by the look of it.

    Args:
      builder: where that is noted.   columns: of a table.   roles: role -> column that is read.
      classes: names that the user gave.
    """
    others = [name for name in columns.names if name not in roles.values() and name not in _WRITTEN]
    others = [name for name in others if name not in columns.embedded]
    if not others:
        return
    detail = f"not read: {', '.join(others[:20])}{f' and {len(others) - 20} more' if len(others) > 20 else ''}"
    known, alike = set(classes or ()), dict[str, set[str]]()
    for name in [] if "label" in roles else others:
        if columns.names.count(name) > 1:
            continue
        try:
            batch = next(iter(columns.batches([name])), None)
        except DataError:
            continue
        values = [] if batch is None else as_text(batch.column(name).slice(0, _LOOKED_AT))[0].drop_null().to_pylist()
        if values and known and sum(value in known for value in values) * 2 >= len(values):
            detail += f"; the values of {name!r} are class names: --label-column {name!r} reads them as labels"
        elif values and not known and "candidates" not in roles and 1 < len(set(values)) <= max(2, len(values) // 2):
            alike[name] = set(values)
    if len(alike) > 1 and len(set.union(*alike.values())) < sum(map(len, alike.values())) / 1.5:
        names = ",".join(alike)
        detail += (
            f"; {', '.join(alike)} have values in common: answers of several people? --annotator-columns {names!r}"
        )
    else:
        for name, some in alike.items():
            detail += f"; {name!r} has {len(some)} different values: are they labels? --label-column {name!r}"
    if (who := _who_answered(columns, roles, others)) is not None:
        detail += (
            f"; images come again, never twice of one {who!r}: answers of several people? --annotator-columns {who!r}"
        )
    columns.problems[:] = [problem for problem in columns.problems if problem.kind != "malformed_row"]
    builder.problems.append(Problem(str(columns.path or builder.where), "ignored_column", detail))


def _who_answered(columns: Columns, roles: Mapping[str, str], others: Sequence[str]) -> str | None:
    """The column that says who gave each label, where images come again: the first that tells their rows apart."""
    image = roles.get("image")
    is_inside = image in columns.embedded
    if image is None or "label" not in roles or (is_inside and columns.contents is None):
        return None
    inside = list(contents_of(columns, image, _LOOKED_INTO)) if is_inside else []
    for name in others:
        batch = next(iter(columns.batches([name] if is_inside else [image, name])), None)
        if batch is None:
            return None
        n_looked_at = _LOOKED_INTO if is_inside else _LOOKED_AT
        people = as_text(batch.column(name).slice(0, n_looked_at))[0].to_pylist()
        images = inside if is_inside else as_text(batch.column(image).slice(0, n_looked_at))[0].to_pylist()
        n_rows, n_people = len(images), len(set(people))
        if len(set(images)) * 1.5 > n_rows:
            return None
        if 1 < n_people <= n_rows / 2 and len(set(zip(images, people, strict=True))) == n_rows:
            return name
    return None


def _add_columns(
    builder: TableBuilder,
    columns: Columns,
    roles: dict[str, str],
    *,
    prefix: str | None = None,
    split: str | None = None,
) -> None:
    names = columns.class_labels(roles)
    columns.embedded &= {roles.get("image", "")}  # bytes in another column are text
    if roles.get("candidates") == "candidates":  # those of `annotate`, and no others of the same table
        builder.knowledge = min(builder.knowledge, columns.knowledge)
    builder.declared = builder.declared or tuple(dict.fromkeys(names.get("label") or names.get("candidates", ())))
    for batch in columns.batches(list(dict.fromkeys(roles.values()))):
        present = {role: batch.column(name) for role, name in roles.items() if name in batch.schema.names}
        if prefix and "image" in present and roles["image"] not in columns.embedded:
            paths = as_text(present["image"], is_path=True)[0]
            relative = pc.invert(pc.starts_with(paths, pattern="/"))
            present["image"] = pc.if_else(relative, pc.binary_join_element_wise(prefix, paths, "/"), paths)
        lines = batch.column(LINE) if LINE in batch.schema.names else None
        builder.add(present, batch.num_rows, names=names, split=split, file=str(columns.path or ""), lines=lines)
    builder.problems += columns.problems
    builder.n_given += columns.n_given


def _embedded_images(files: Sequence[tuple[Path, str, NDArray[np.int64] | None]]) -> Any:
    """One `datasets.Dataset` with the images of Parquet files, memory-mapped from the library's cache."""
    import datasets

    parts, undecoded = [], datasets.Image(decode=False)
    for path, column, chosen in files:  # with the feature given, the library does not trip over metadata of the file
        features = datasets.Features({column: undecoded})
        try:
            with without_bars():
                part = datasets.Dataset.from_parquet(str(path), columns=[column], features=features)
                parts.append(part if chosen is None else part.select(chosen))
        except Exception as error:  # it raises whatever its own readers do
            reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
            problem = Problem(str(path), "malformed_row", f"its column {column!r} holds no images: {reason}")
            raise DataError(
                f"{path}: {problem.detail}", problems=[problem], fix="give bytes, {bytes, path}, or paths of images"
            ) from error
    return _image_column(parts, [column for _, column, _ in files])


def _image_column(parts: Sequence[Any], columns: Sequence[str]) -> Any:
    import datasets

    undecoded = datasets.Image(decode=False)
    with without_bars():
        pairs = zip(parts, columns, strict=True)
        alike = [part.select_columns([column]).rename_columns({column: "image"}) for part, column in pairs]
        joined = datasets.concatenate_datasets([part.cast_column("image", undecoded) for part in alike])
        return joined.with_format(None)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of `datasets` within."""
    import datasets

    was_shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()


def read_datasets(data: Any, where: str, classes: Sequence[str] | None, named: Named) -> LabelTable:
    """The rows of a `datasets.Dataset`, or of the splits of a `DatasetDict`.

    Args:
      data: the object.   where: what it is called in messages.   classes, named: see `read_files`.

    Raises: DataError if it is neither.
    """
    import datasets

    if isinstance(data, datasets.Dataset):
        parts = {"": data}
    elif isinstance(data, datasets.DatasetDict):
        parts = dict(data)
    else:
        raise DataError(
            f"cannot read a {type(data).__name__}",
            fix="give a path, a data frame, columns or pairs (docs/data.md), or the name of a data set",
        )
    builder = TableBuilder(where)
    builder.first_number = named.first_number
    images: list[Any] = []
    image_columns: list[str] = []
    tables, asked = list[Part](), named
    for name, part in parts.items():
        columns = _dataset_columns(part)
        tables.append(Part(columns, where, named.roles(columns, where) if named.are_answers else {}, split=name))
    if named.are_answers:
        tables, asked = with_a_column_each(tables, named)
    for (name, part), table in zip(parts.items(), tables, strict=True):
        columns = _with_labels_of_classes(table.columns, asked, where, classes)
        roles = asked.roles(columns, where)
        if not named.only_images:
            note_others(builder, columns, roles, classes)
        is_unlabelled = name.lower() in (*UNLABELLED_NAMES, "unsupervised")
        if is_unlabelled:
            roles.pop("label", None)
        _add_columns(builder, columns, roles, split="train" if is_unlabelled else name or None)
        if roles["image"] in columns.embedded:
            images.append(part if table.chosen is None else part.select(table.chosen))
            image_columns.append(roles["image"])
    dataset = _image_column(images, image_columns) if images and builder.n_rows else None
    return builder.finish(classes=classes, dataset=dataset)


def _dataset_columns(part: Any) -> Columns:
    import datasets

    features = dict(part.features.items())
    embedded = frozenset(name for name, feature in features.items() if isinstance(feature, datasets.Image))

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        plain = [name for name in wanted if name not in embedded]
        if not plain:
            yield pa.record_batch([pa.nulls(part.num_rows)], ["image"])
            return
        for table in part.select_columns(plain).with_format("arrow").iter(BATCH_ROWS):
            yield from table.combine_chunks().to_batches()

    def contents(name: str | None) -> Iterator[str]:
        undecoded = part.select_columns([name]).cast_column(name, datasets.Image(decode=False))
        for table in undecoded.with_format("arrow").iter(CONTENTS_ROWS):
            yield from content_names(table.column(0).to_pylist())

    facts = part.features.to_dict()
    return Columns(None, tuple(features), batches, facts, embedded=embedded, n_given=part.num_rows, contents=contents)
