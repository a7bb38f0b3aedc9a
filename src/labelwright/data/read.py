"""Read any kind of input into a `LabelTable`: folders, tables, Parquet shards, data sets by object or by name."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelwright.data.build import TableBuilder
from labelwright.data.checks import OnBad, resolve_problems
from labelwright.data.class_names import checked_names
from labelwright.data.columns import BATCH_ROWS, LINE, ROLES, Columns, find_roles, open_columns
from labelwright.data.images import IMAGE_SUFFIXES, Decoding
from labelwright.data.in_memory import encoded, is_image
from labelwright.data.layouts import (
    LABELS_FILE,
    METADATA,
    SPLIT_NAMES,
    SPLITS,
    TABLE_SUFFIXES,
    UNLABELLED_NAMES,
    file_names,
    files_below,
    is_run,
    split_folders,
    splits_of,
    tables_in,
)
from labelwright.data.scan import entries, is_image_file, shown
from labelwright.data.table import LabelTable
from labelwright.data.values import as_text
from labelwright.errors import ConfigError, DataError, OfflineError, Problem
from labelwright.paths import check_paths


@dataclass(frozen=True)
class Named:
    """Columns that the user has named, and how they are read.

    Attributes:
      columns: role -> column.
      annotators: columns of one annotator's answers each.
      only_images: labels and all else are not looked at.
      first_number: of the classes, where another table says what numbers they have.
      optional: roles whose column a table may lack, as test images do.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    annotators: tuple[str, ...] = ()
    only_images: bool = False
    first_number: int | None = None
    optional: bool = False

    def roles(self, columns: Columns, where: str) -> dict[str, str]:
        """Which column is what; those that are not read are noted."""
        named = {role: name for role, name in self.columns.items() if not (self.optional and name not in columns.names)}
        roles = find_roles(columns.names, where, named=named, annotators=self.annotators)
        if self.only_images:
            return {role: name for role, name in roles.items() if role in ("image", "id")}
        return roles


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_WRITTEN = frozenset(
    {"probability", "runner_up", "source", "trust", "softmax", "decision", "outside_candidates", "strangeness"}
)
"""Columns of the labels that we write, which say nothing to a reader."""
_LOOKED_AT = 2000  # values of a column that is not read


@check_paths
def load(
    source: Any,
    *,
    classes: Sequence[str] | str | Path | None = None,
    split: str | None = None,
    group: str | None = None,
    annotators: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    on_bad: OnBad = "stop",
    decoding: Decoding | None = None,
) -> LabelTable:
    """Read images with whatever is known of their labels, and check everything that can be checked without decoding.

    Args:
      source: a folder (of class folders, of images, of splits of either, of tables, of a hub repository, exported by
        FiftyOne, or saved by `datasets`); a .csv, .tsv, .jsonl, .json or .parquet file, a pattern of them like
        ``shards/*.parquet``, or a list of them; an image file, a PIL image or an array, or a list of these; a
        `datasets.Dataset` or `DatasetDict`; or the name of a hub data set, "user/name" or "user/name:config".
      classes: the class names in order, or a text file with one per line; None = the labels seen are the classes.
      split: keep only this split, one of SPLITS.
      group: column whose equal values belong together; None = ``group`` or ``track`` if there is one.
      annotators: columns of a table that hold one annotator's answers each; empty = did not answer.
      columns: role (image, label, split, candidates, ...) -> column, where it is called otherwise.
      on_bad: what happens when something is wrong: "stop" raises with everything found, "skip" leaves the rows
        concerned out, "report" keeps them and lists the problems in ``table.problems`` (an unknown label is then -1).
      decoding: how the images will be decoded; the scale of images of more than 8 bits is taken from a sample of these
        unless it is given.

    Returns: the table. Empty, null, NaN and -1 are no label. Integer labels are positions in the class names if these
      are given, or else names.

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
    named = dict(columns or {}) | ({} if group is None else {"group": group})
    if unknown := sorted(set(named) - set(ROLES)):
        raise ConfigError(f"columns: no role {unknown[0]!r}", fix=f"one of {', '.join(ROLES)}")
    asked = Named(named, tuple(annotators))
    return read_as(source, asked, classes=classes, split=split, on_bad=on_bad, decoding=decoding)


def read_as(
    source: Any,
    named: Named,
    *,
    classes: Sequence[str] | str | Path | None = None,
    split: str | None = None,
    on_bad: OnBad = "stop",
    decoding: Decoding | None = None,
) -> LabelTable:
    """`load`, with all notices about the columns."""
    if split is not None and split not in SPLITS:
        raise ConfigError(f"no such split: {split!r}", fix=f"one of {', '.join(SPLITS)}")
    given = read_names(Path(classes)) if isinstance(classes, (str, Path)) else classes
    names = None if given is None else checked_names(given)
    table = _dispatch(source, names, named)
    if named.annotators and table.votes is None:
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
    if is_image(source):
        return _from_images([source], classes)
    if not isinstance(source, (str, Path, list, tuple)):
        return _from_datasets(source, "the data set", classes, named)
    if isinstance(source, (list, tuple)):
        return _from_list(source, classes, named)
    path = Path(source).expanduser()
    if shown(path) != str(path):
        raise DataError(f"{shown(path)}: the name of the path is not UTF-8 text", fix="rename it, as convmv does")
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}", fix="check the path") from error
    if is_folder:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            import datasets

            try:
                saved = datasets.load_from_disk(str(path))
            except Exception as error:  # the library raises whatever its own readers do
                raise DataError(f"{path} cannot be read ({error})", fix="save the data set anew") from error
            return _from_datasets(saved, str(path), classes, named)
        found = tables_in(path)
        if found is not None and not _says_nothing(found[0], named):
            table = _from_files(found[0], classes, named, splits=found[1])
            return _with_unlisted(table, path) if found[0][0].name.lower() in METADATA else table
        if others := sorted(set(named.columns) - {"group"}) if not named.optional else []:
            raise DataError(f"{source} has no columns: --{others[0]}-column needs a table", fix="leave it out")
        return _from_folder(path, classes)
    if path.is_file():
        return _from_list([path], classes, named)
    if any(sign in str(source) for sign in "*?["):
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute too)
        if not matched:
            raise DataError(f"no file matches {source}", fix="check the pattern; quote it in the shell")
        return _from_list(matched, classes, named)
    name = str(source)
    if _HUB_NAME.fullmatch(name) and not path.parent.is_dir() and path.suffix.lower() not in TABLE_SUFFIXES:
        return _from_datasets(_from_hub(name), name, classes, named)
    raise DataError(f"no such file or folder: {source}", fix="check the path")


def _from_list(items: Sequence[Any], classes: Sequence[str] | None, named: Named) -> LabelTable:
    """Images in memory and files of images, or else tables."""
    are_paths = [isinstance(item, (str, Path)) for item in items]
    are_files = [
        path and Path(item).suffix.lower() in IMAGE_SUFFIXES for path, item in zip(are_paths, items, strict=True)
    ]
    if items and all(file or is_image(item) for file, item in zip(are_files, items, strict=True)):
        return _from_images(items, classes)
    if not all(are_paths):
        odd = next(item for item, path in zip(items, are_paths, strict=True) if not path)
        raise DataError(f"cannot read a list with a {type(odd).__name__}", fix="give paths, PIL images or arrays")
    files = [Path(item).expanduser() for item in items]
    return _from_files(files, classes, named, splits=splits_of(files) if len(files) > 1 else None)


def _from_images(items: Sequence[Any], classes: Sequence[str] | None) -> LabelTable:
    """Images, by path or in memory, without labels."""
    builder = TableBuilder("the images")
    if all(isinstance(item, (str, Path)) for item in items):
        paths = [str(Path(item).expanduser()) for item in items]
        builder.are_values = False
        builder.add({"image": pa.array(paths, pa.large_string())}, len(paths))
        table = builder.finish(classes=classes)
        repeats = tuple(p for p in table.problems if p.kind != "duplicate_id")  # asked twice, answered twice
        return dataclasses.replace(table, problems=repeats)
    cells = encoded(items)
    builder.add({}, cells.num_rows)
    return builder.finish(classes=classes, dataset=cells)


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one per line.

    Raises: DataError if it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is a folder" if path.is_dir() else "it is not a file")  # a pipe may never end
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}", fix="one name per line, UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


# ---------------------------------------------------------------- folders


def _from_folder(root: Path, classes: Sequence[str] | None) -> LabelTable:
    builder = TableBuilder(str(root))
    builder.are_values = False
    names = _names_written(root)
    folders = [entry for entry in _entries(root, builder.problems) if entry.is_dir()]
    splits = split_folders({entry.name: _names_in(entry) for entry in folders})
    class_folders: list[str] = []
    if splits and all(name in splits or name.lower() in UNLABELLED_NAMES for name in _beside(folders, splits)):
        for entry in folders:
            if entry.name in splits or entry.name.lower() in UNLABELLED_NAMES:
                is_labelled = entry.name.lower() not in UNLABELLED_NAMES
                split = splits.get(entry.name, "train")
                class_folders += _add_folder(builder, root, Path(entry.path), split, is_labelled=is_labelled)
            else:
                _outside(builder, entry)
        for entry in _entries(root, []):
            if entry.is_file():
                builder.problems.append(Problem(entry.path, "unsupported_file", "it lies outside the split folders"))
    else:
        for entry in folders:
            if entry.name in splits:
                class_folders += _add_folder(builder, root, Path(entry.path), splits[entry.name])
        class_folders += _add_folder(builder, root, root, "train" if splits else None, left_out=splits, names=names)
    builder.extra_names = tuple(names.get(name, name) for name in dict.fromkeys(class_folders))
    if not builder.n_rows and builder.problems:
        builder.where = f"{root} (files of {len(builder.problems)} other kinds were left out)"
    return builder.finish(classes=classes, root=str(root))


def _beside(folders: Sequence[os.DirEntry[str]], splits: Mapping[str, str]) -> list[str]:
    """Folders beside splits that say whether these are all there is: none where there are two splits or more."""
    return [] if len(set(splits.values())) > 1 else [entry.name for entry in folders]


def _outside(builder: TableBuilder, entry: os.DirEntry[str]) -> None:
    n = sum(1 for _ in _images_below(Path(entry.path), Path(entry.path), []))
    detail = f"it lies outside the split folders: {n:,} images in it are not read"
    builder.problems.append(Problem(entry.path, "unsupported_file", detail))


def _names_in(entry: os.DirEntry[str]) -> list[str]:
    """Names of the folders in a folder that may be a split."""
    if entry.name.lower() not in SPLIT_NAMES:
        return []
    return [inner.name for inner in _entries(Path(entry.path), []) if inner.is_dir()]


STRANGERS_FOLDER = "unknown"
"""Of images of no class, where we sorted images into folders."""


def _names_written(root: Path) -> dict[str, str]:
    """Folder -> class, where we sorted images into folders: not every name can be that of a folder."""
    path = root / LABELS_FILE
    if not path.is_file():
        return {}
    try:
        columns = open_columns(path)
        if not {"id", "label"} <= set(columns.names):
            return {}
        found = [as_text(batch.column("label"))[0].to_pylist() for batch in columns.batches(["label"])]
    except DataError:
        return {}
    labels = sorted({label for labels in found for label in labels if label is not None})
    return {name: label for label, name in file_names(labels).items()}


def _add_folder(
    builder: TableBuilder,
    root: Path,
    folder: Path,
    split: str | None,
    *,
    is_labelled: bool = True,
    left_out: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Add one tree: its folders are classes if it is labelled, its loose images unlabelled; gives the classes."""
    paths: list[str] = []
    labels: list[str | None] = []
    classes: list[str] = []
    for entry in _entries(folder, builder.problems if folder != root else []):
        if entry.is_dir():
            if entry.name in (left_out or {}):
                continue
            is_class = is_labelled and entry.name.lower() not in UNLABELLED_NAMES
            if names and entry.name == STRANGERS_FOLDER and entry.name not in names:
                is_class = False  # where we sorted images, those of no class
            found = list(_images_below(Path(entry.path), root, builder.problems))
            classes += [entry.name] if is_class else []
            paths += found
            labels += [(names or {}).get(entry.name, entry.name) if is_class else None] * len(found)
        elif is_image_file(entry, builder.problems):
            paths.append(os.path.relpath(entry.path, root))
            labels.append(None)
    columns = {"image": pa.array(paths, pa.large_string()), "label": pa.array(labels, pa.string())}
    if split is None and (inner := _splits_inside(paths)):
        columns["split"] = pa.array(inner, pa.string())
    if paths:
        builder.add(columns, len(paths), split=split)
    return classes


def _splits_inside(paths: Sequence[str]) -> list[str | None]:
    """The splits of images that lie in folders of splits inside every class folder; empty if they do not."""
    parts = [Path(path).parts for path in paths]
    inner = [each[1].lower() if len(each) > 2 else None for each in parts]
    codes = {SPLIT_NAMES.get(name or "", -1) for each, name in zip(parts, inner, strict=True) if len(each) > 1}
    return inner if -1 not in codes and len(codes) > 1 else []


def _images_below(folder: Path, root: Path, problems: list[Problem]) -> Iterator[str]:
    for entry in _entries(folder, problems):
        if entry.is_dir():
            yield from _images_below(Path(entry.path), root, problems)
        elif is_image_file(entry, problems):
            yield os.path.relpath(entry.path, root)


def _entries(folder: Path, problems: list[Problem]) -> list[os.DirEntry[str]]:
    """What a folder holds, see `scan.entries`, without the folders of runs; these are noted."""
    kept = []
    for entry in entries(folder, problems):
        if entry.is_dir() and is_run(Path(entry.path)):
            problems.append(Problem(entry.path, "unsupported_file", "the folder of a run: not read"))
        else:
            kept.append(entry)
    return kept


# ---------------------------------------------------------------- tables


def _says_nothing(files: Sequence[Path], named: Named) -> bool:
    """Whether tables are ``metadata`` beside images that say nothing of classes: then the folders do."""
    if named.columns or named.annotators or any(path.name.lower() not in METADATA for path in files):
        return False
    try:
        roles = [find_roles(open_columns(path).names, str(path)) for path in files]
    except DataError:
        return True
    return not any({"label", "candidates", "split", "truth"} & set(found) for found in roles)


def _with_unlisted(table: LabelTable, root: Path) -> LabelTable:
    """The table of ``metadata`` files, with a notice of the images beside that it does not list."""
    sources = table.images.sources(np.arange(len(table)))
    given = {os.path.abspath(source) for source in sources if isinstance(source, str)}  # noqa: PTH100
    images = (path for path in files_below(root, 8) if path.suffix.lower() in IMAGE_SUFFIXES)
    others = [path for path in images if os.path.abspath(path) not in given]  # noqa: PTH100
    if not others or table.images.dataset is not None:
        return table
    detail = f"{len(others)} images are not in it, such as {others[0].relative_to(root)}"
    unlisted = Problem(str(root / "metadata"), "unsupported_file", detail)
    return dataclasses.replace(table, problems=(*table.problems, unlisted))


def _from_files(
    files: Sequence[Path],
    classes: Sequence[str] | None,
    named: Named,
    *,
    splits: Sequence[str | None] | None = None,
) -> LabelTable:
    unfit = [path for path in files if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file()]
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
    embedded: list[tuple[Path, str]] = []
    for path, split in zip(files, splits, strict=True):
        columns = _with_ids_as_images(open_columns(path), named)
        roles = named.roles(columns, str(path))
        if roles["image"] in columns.embedded:
            embedded.append((path, roles["image"]))
        _note_others(builder, columns, roles, classes, named)
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
        import yaml

        try:
            data = Path(str(yaml.safe_load(config.read_text(encoding="utf-8")).get("data")))
            root = data if data.is_dir() else data.parent
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            pass
    read = columns.batches

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in read([name for name in dict.fromkeys(["id", *wanted]) if name != "image"]):
            ids = as_text(batch.column("id"), is_path=True)[0]
            paths = pc.binary_join_element_wise(str(root.absolute()), ids, "/")
            yield batch.append_column("image", paths)

    columns.batches, columns.names = batches, ("image", *columns.names)
    return columns


def _note_others(
    builder: TableBuilder, columns: Columns, roles: Mapping[str, str], classes: Sequence[str] | None, named: Named
) -> None:
    """Name the columns that are not read, and those of them that hold labels by the look of it."""
    if named.only_images:
        return
    others = [name for name in columns.names if name not in roles.values() and name not in _WRITTEN]
    others = [name for name in others if name not in columns.embedded]
    if not others:
        return
    detail = f"not read: {', '.join(others[:20])}{f' and {len(others) - 20} more' if len(others) > 20 else ''}"
    known = set(classes or ())
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
            detail += f"; {name!r} has {len(set(values))} different values: are they labels? --label-column {name!r}"
    columns.problems[:] = [problem for problem in columns.problems if problem.kind != "malformed_row"]
    builder.problems.append(Problem(str(columns.path or builder.where), "ignored_column", detail))


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


def _embedded_images(files: Sequence[tuple[Path, str]]) -> Any:
    """One `datasets.Dataset` with the images of Parquet files, memory-mapped from the library's cache."""
    import datasets

    parts, undecoded = [], datasets.Image(decode=False)
    for path, column in files:  # with the feature given, the library does not trip over metadata of the file
        features = datasets.Features({column: undecoded})
        try:
            with _without_bars():
                parts.append(datasets.Dataset.from_parquet(str(path), columns=[column], features=features))
        except Exception as error:  # it raises whatever its own readers do
            reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
            problem = Problem(str(path), "malformed_row", f"its column {column!r} holds no images: {reason}")
            raise DataError(
                f"{path}: {problem.detail}", problems=[problem], fix="give bytes, {bytes, path}, or paths of images"
            ) from error
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
    builder.first_number = named.first_number
    images: list[Any] = []
    image_columns: list[str] = []
    for name, part in parts.items():
        columns = _dataset_columns(part)
        roles = named.roles(columns, where)
        _note_others(builder, columns, roles, classes, named)
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
    return Columns(None, tuple(features), batches, facts, embedded=embedded, n_given=part.num_rows)


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
