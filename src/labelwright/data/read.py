"""Read any kind of input into a `LabelTable`: folders, tables, Parquet shards, data sets by object or by name."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labelwright.data.build import SPLIT_NAMES, TableBuilder
from labelwright.data.checks import OnBad, resolve_problems
from labelwright.data.columns import BATCH_ROWS, Columns, find_roles, open_columns
from labelwright.data.images import Decoding
from labelwright.data.scan import entries, is_image, shown
from labelwright.data.table import SPLITS, LabelTable
from labelwright.errors import ConfigError, DataError, OfflineError, Problem

TABLE_SUFFIXES = frozenset([".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
UNLABELLED_NAMES = frozenset({"unlabeled", "unlabelled"})


@dataclass(frozen=True)
class Named:
    """Columns that the user has named.

    Attributes:
      group: whose equal values belong together; None = as for `find_roles`.
      annotators: of one annotator's answers each.
    """

    group: str | None = None
    annotators: tuple[str, ...] = ()


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


def load(
    source: Any,
    *,
    classes: Sequence[str] | str | Path | None = None,
    split: str | None = None,
    group: str | None = None,
    annotators: Sequence[str] = (),
    on_bad: OnBad = "stop",
    decoding: Decoding | None = None,
) -> LabelTable:
    """Read images with whatever is known of their labels, and check everything that can be checked without decoding.

    Args:
      source: a folder (of class folders, of images, of splits of either, of Parquet shards, or saved by `datasets`);
        a .csv, .tsv, .jsonl or .parquet file, a pattern of them like ``shards/*.parquet``, or a list of them; a
        `datasets.Dataset` or `DatasetDict`; or the name of a hub data set, "user/name" or "user/name:config".
      classes: the class names in order, or a text file with one per line; None = the labels seen are the classes.
      split: keep only this split, one of SPLITS.
      group: column whose equal values belong together; None = ``group`` or ``track`` if there is one.
      annotators: columns of a table that hold one annotator's answers each; empty = did not answer.
      on_bad: what happens when something is wrong: "stop" raises with everything found, "skip" leaves the rows
        concerned out, "report" keeps them and lists the problems in ``table.problems`` (an unknown label is then -1).
      decoding: how the images will be decoded; the scale of images of more than 8 bits is taken from a sample of these
        unless it is given.

    Returns: the table. An empty label, null or -1 is no label. Integer labels are positions in the class names.

    Raises: DataError with every problem found; ConfigError on an impossible argument; OfflineError if a data set
      named is neither on this machine nor within reach.

    Example:
      >>> import datasets
      >>> from PIL import Image
      >>> pets = {"image": [Image.new("RGB", (2, 2))] * 3, "label": ["dog", "cat", None]}
      >>> table = load(datasets.Dataset.from_dict(pets))
      >>> table.class_names, table.labels.tolist()
      (('cat', 'dog'), [1, 0, -1])
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"no such split: {split!r}", fix=f"one of {', '.join(SPLITS)}")
    names = read_names(Path(classes)) if isinstance(classes, (str, Path)) else classes
    table = _dispatch(source, names, Named(group, tuple(annotators)))
    if annotators and table.votes is None:
        raise DataError(
            f"{source} has no columns: --annotator-columns needs a table", fix="give a table, or leave it out"
        )
    if split is not None:
        rows = table.where(split)
        if not len(rows):
            problem = Problem(str(source)[:200], "empty_table", f"there is not an image in the split {split!r}")
            raise DataError(problem.detail, problems=[*table.problems, problem], fix="choose another split")
        table = table.subset(rows)
    images, n_deep = table.images.with_range(decoding)
    problems = table.problems
    if n_deep and images.decoding is not None:
        black, white = images.decoding.black, images.decoding.white
        detail = f"images of more than 8 bits: {black:g} to {white:g} become black to white, in all of them alike"
        problems = (*problems, Problem(str(source)[:200], "deep_images", detail))
    return resolve_problems(dataclasses.replace(table, images=images), problems, on_bad)


def _dispatch(source: Any, classes: Sequence[str] | None, named: Named) -> LabelTable:
    if not isinstance(source, (str, Path, list, tuple)):
        return _from_datasets(source, "the data set", classes, named)
    if isinstance(source, (list, tuple)):
        return _from_files([Path(path) for path in source], classes, named)
    path = Path(source).expanduser()
    if shown(path) != str(path):
        raise DataError(f"{shown(path)}: the name of the path is not UTF-8 text", fix="rename it, as convmv does")
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            import datasets

            return _from_datasets(datasets.load_from_disk(str(path)), str(path), classes, named)
        shards = sorted(path.glob("*.parquet"))
        return _from_files(shards, classes, named) if shards else _from_folder(path, classes)
    if path.is_file():
        return _from_files([path], classes, named)
    if any(sign in str(source) for sign in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute too)
        if not found:
            raise DataError(f"no file matches {source}", fix="check the pattern; quote it in the shell")
        return _from_files(found, classes, named)
    name = str(source)
    if _HUB_NAME.fullmatch(name) and not path.parent.is_dir() and path.suffix.lower() not in TABLE_SUFFIXES:
        return _from_datasets(_from_hub(name), name, classes, named)
    raise DataError(f"no such file or folder: {source}", fix="check the path")


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one per line.

    Raises: DataError if it cannot be read.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}", fix="one name per line, UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


# ---------------------------------------------------------------- folders


def _from_folder(root: Path, classes: Sequence[str] | None) -> LabelTable:
    builder = TableBuilder(str(root))
    builder.numbers_are_indices = False
    folders = [entry for entry in entries(root, []) if entry.is_dir()]
    is_split = bool(folders) and all(
        entry.name.lower() in SPLIT_NAMES or entry.name.lower() in UNLABELLED_NAMES for entry in folders
    )
    class_folders: list[str] = []
    if is_split and any(entry.name.lower() in SPLIT_NAMES for entry in folders):
        for entry in folders:
            code = SPLIT_NAMES.get(entry.name.lower(), SPLITS.index("train"))
            is_labelled = entry.name.lower() not in UNLABELLED_NAMES
            class_folders += _add_folder(builder, root, Path(entry.path), SPLITS[code], is_labelled=is_labelled)
        for entry in entries(root, builder.problems):
            if entry.is_file():
                builder.problems.append(Problem(entry.path, "unsupported_file", "it lies outside the split folders"))
    else:
        class_folders = _add_folder(builder, root, root, None)
    builder.extra_names = tuple(dict.fromkeys(class_folders))
    if not builder.n_rows and builder.problems:
        builder.where = f"{root} (files of {len(builder.problems)} other kinds were left out)"
    return builder.finish(classes=classes, root=str(root))


def _add_folder(
    builder: TableBuilder, root: Path, folder: Path, split: str | None, *, is_labelled: bool = True
) -> list[str]:
    """Add one tree: its folders are classes if it is labelled, its loose images unlabelled; gives the classes."""
    paths: list[str] = []
    labels: list[str | None] = []
    classes: list[str] = []
    for entry in entries(folder, builder.problems):
        if entry.is_dir():
            is_class = is_labelled and entry.name.lower() not in UNLABELLED_NAMES
            found = list(_images_below(Path(entry.path), root, builder.problems))
            classes += [entry.name] if is_class else []
            paths += found
            labels += [entry.name if is_class else None] * len(found)
        elif is_image(entry, builder.problems):
            paths.append(os.path.relpath(entry.path, root))
            labels.append(None)
    columns = {"image": pa.array(paths, pa.large_string()), "label": pa.array(labels, pa.string())}
    if paths:
        builder.add(columns, len(paths), split=split)
    return classes


def _images_below(folder: Path, root: Path, problems: list[Problem]) -> Iterator[str]:
    for entry in entries(folder, problems):
        if entry.is_dir():
            yield from _images_below(Path(entry.path), root, problems)
        elif is_image(entry, problems):
            yield os.path.relpath(entry.path, root)


# ---------------------------------------------------------------- tables


def _from_files(files: Sequence[Path], classes: Sequence[str] | None, named: Named) -> LabelTable:
    unfit = [path for path in files if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file()]
    if unfit or not files:
        raise DataError(
            f"not a table that can be read: {', '.join(map(str, unfit[:5])) or 'an empty list'}",
            problems=[Problem(str(path), "unsupported_file", "not a table") for path in unfit],
            fix=f"one of {' '.join(sorted(TABLE_SUFFIXES))}, or a folder",
        )
    builder = TableBuilder(str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more")
    folders = {str(path.parent) for path in files}
    embedded: list[tuple[Path, str]] = []
    for path in files:
        columns = open_columns(path)
        roles = find_roles(columns.names, str(path), group=named.group, annotators=named.annotators)
        if roles["image"] in columns.embedded:
            embedded.append((path, roles["image"]))
        _add_columns(builder, columns, roles, prefix=str(path.parent) if len(folders) > 1 else None)
    if embedded and len(embedded) < len(files):
        raise DataError("some of the files hold images and some hold paths", fix="read them one by one")
    dataset = _embedded_images(embedded) if embedded and builder.n_rows else None
    return builder.finish(classes=classes, root=folders.pop() if len(folders) == 1 else "", dataset=dataset)


def _add_columns(
    builder: TableBuilder,
    columns: Columns,
    roles: dict[str, str],
    *,
    prefix: str | None = None,
    split: str | None = None,
) -> None:
    names = columns.class_labels(roles)
    builder.declared = builder.declared or names.get("label") or names.get("candidates", ())
    for batch in columns.batches(list(dict.fromkeys(roles.values()))):
        present = {role: batch.column(name) for role, name in roles.items() if name in batch.schema.names}
        if prefix and "image" in present and roles["image"] not in columns.embedded:
            relative = pc.invert(pc.starts_with(present["image"], pattern="/"))
            joined = pc.binary_join_element_wise(prefix, present["image"], "/")
            present["image"] = pc.if_else(relative, joined, present["image"])
        builder.add(present, batch.num_rows, names=names, split=split)
    builder.problems += columns.malformed


def _embedded_images(files: Sequence[tuple[Path, str]]) -> Any:
    """One `datasets.Dataset` with the images of Parquet files, memory-mapped from the library's cache."""
    import datasets

    with _without_bars():
        parts = [datasets.Dataset.from_parquet(str(path), columns=[column]) for path, column in files]
    return _image_column(parts, [column for _, column in files])


def _image_column(parts: Sequence[Any], columns: Sequence[str]) -> Any:
    import datasets

    undecoded = datasets.Image(decode=False)
    with _without_bars():
        pairs = zip(parts, columns, strict=True)
        alike = [part.select_columns([column]).rename_columns({column: "image"}) for part, column in pairs]
        joined = datasets.concatenate_datasets([part.cast_column("image", undecoded) for part in alike])
        return joined.with_format(None)


@contextmanager
def _without_bars() -> Iterator[None]:
    import datasets

    was_shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()


# ---------------------------------------------------------------- datasets


def _from_datasets(data: Any, where: str, classes: Sequence[str] | None, named: Named) -> LabelTable:
    import datasets

    if isinstance(data, datasets.Dataset):
        parts = {"": data}
    elif isinstance(data, datasets.DatasetDict):
        parts = dict(data)
    else:
        raise DataError(
            f"cannot read a {type(data).__name__}", fix="give a path, a datasets.Dataset or the name of a data set"
        )
    builder = TableBuilder(where)
    images: list[Any] = []
    image_columns: list[str] = []
    for name, part in parts.items():
        columns = _dataset_columns(part)
        roles = find_roles(columns.names, where, group=named.group, annotators=named.annotators)
        is_unlabelled = name.lower() in (*UNLABELLED_NAMES, "unsupervised")
        if is_unlabelled:
            roles.pop("label", None)
        _add_columns(builder, columns, roles, split="train" if is_unlabelled else name or None)
        if roles["image"] in columns.embedded:
            images.append(part)
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

    facts = part.features.to_dict()
    return Columns(tuple(features), batches, facts, embedded=embedded)


def _from_hub(name: str) -> Any:
    import datasets

    path, _, config = name.partition(":")
    try:
        with _without_bars():
            data = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises a dozen unrelated types here; each means: no data
        reason = (str(error).splitlines() or [""])[0]
        raise OfflineError(
            f"{name} is neither a file or folder here nor a data set in the local cache or on a hub within reach"
            f" ({type(error).__name__}: {reason})",
            fix="check the name and the network, or give the path of a downloaded copy",
        ) from error
    return data
