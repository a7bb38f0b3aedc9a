"""Folders of images: folders of classes, splits and unlabelled images, and images of none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from labelwright.data.build import TableBuilder
from labelwright.data.columns import open_columns
from labelwright.data.layouts import (
    LABELS_FILE,
    SPLIT_NAMES,
    UNLABELLED_NAMES,
    file_names,
    is_run,
    is_strangers_folder,
    split_folders,
    splits_inside,
)
from labelwright.data.scan import entries, is_image_file
from labelwright.data.table import LabelTable
from labelwright.data.tabular import refuse_tars
from labelwright.data.values import as_text
from labelwright.errors import DataError, Problem


def read_folder(root: Path, classes: Sequence[str] | None) -> LabelTable:
    """The images of a folder; folders of classes and of splits say what they are.

    Args:
      root: the folder.   classes: their names in order; None: the folders of classes seen.

    Raises: DataError if there is no image in it.
    """
    builder = TableBuilder(str(root))
    builder.are_values = False
    names = _names_written(root)
    folders = [entry for entry in _entries(root, builder.problems) if entry.is_dir()]
    splits = split_folders({entry.name: _names_in(entry) for entry in folders})
    # where there are two splits or more, what lies beside them does not say whether they are all there is
    beside = [] if len(set(splits.values())) > 1 else [entry.name for entry in folders]
    if splits and all(name in splits or name.lower() in UNLABELLED_NAMES for name in beside):
        for entry in folders:
            if entry.name in splits or entry.name.lower() in UNLABELLED_NAMES:
                is_labelled = entry.name.lower() not in UNLABELLED_NAMES
                split = splits.get(entry.name, "train")
                _add_folder(builder, root, Path(entry.path), split, is_labelled=is_labelled)
            else:
                _outside(builder, entry)
        for entry in _entries(root, []):
            if entry.is_file():
                builder.problems.append(Problem(entry.path, "unsupported_file", "it lies outside the split folders"))
    else:
        for entry in folders:
            if entry.name in splits:
                _add_folder(builder, root, Path(entry.path), splits[entry.name])
        _add_folder(builder, root, root, "train" if splits else None, left_out=splits, names=names)
    if not builder.n_rows:
        refuse_tars(sorted(root.glob("*.tar")))
    if not builder.n_rows and builder.problems:
        builder.where = f"{root} (files of {len(builder.problems)} other kinds were left out)"
    return builder.finish(classes=classes, root=str(root))


def _outside(builder: TableBuilder, entry: os.DirEntry[str]) -> None:
    n = sum(1 for _ in _images_below(Path(entry.path), Path(entry.path), []))
    detail = f"it lies outside the split folders: {n:,} images in it are not read"
    builder.problems.append(Problem(entry.path, "unsupported_file", detail))


def _names_in(entry: os.DirEntry[str]) -> list[str]:
    """Names of the folders in a folder that may be a split."""
    if entry.name.lower() not in SPLIT_NAMES:
        return []
    return [inner.name for inner in _entries(Path(entry.path), []) if inner.is_dir()]


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
) -> None:
    """Add one tree: its folders are classes if it is labelled, its loose images unlabelled."""
    paths: list[str] = []
    labels: list[str | None] = []
    for entry in _entries(folder, builder.problems if folder != root else []):
        if entry.is_dir():
            if entry.name in (left_out or {}):
                continue
            is_class = is_labelled and entry.name.lower() not in UNLABELLED_NAMES
            if names and is_strangers_folder(entry.name) and entry.name not in names:
                is_class = False  # where we sorted images, those of no class
            name, n_noted = (names or {}).get(entry.name, entry.name), len(builder.problems)
            found = list(_images_below(Path(entry.path), root, builder.problems))
            if is_class and not found:
                builder.hollow[name] = entry.path, tuple(builder.problems[n_noted:])
            paths += found
            labels += [name if is_class else None] * len(found)
        elif is_image_file(entry, builder.problems):
            paths.append(os.path.relpath(entry.path, root))
            labels.append(None)
    columns = {"image": pa.array(paths, pa.large_string()), "label": pa.array(labels, pa.string())}
    if split is None and (inner := splits_inside(paths)):
        columns["split"] = pa.array(inner, pa.string())
    if paths:
        builder.add(columns, len(paths), split=split)


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
