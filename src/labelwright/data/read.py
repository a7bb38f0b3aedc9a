"""Read any kind of input into a `LabelTable`: folders, tables, Parquet shards, data sets by object or by name."""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelwright.arguments import check_arguments
from labelwright.data.build import TableBuilder
from labelwright.data.checks import OnBad, resolve_problems
from labelwright.data.class_names import checked_names, read_names
from labelwright.data.columns import ROLES, Named, find_roles
from labelwright.data.folders import read_folder
from labelwright.data.images import IMAGE_SUFFIXES, Decoding
from labelwright.data.in_memory import columns_of, dataset_of, encoded, is_image
from labelwright.data.layouts import METADATA, SPLITS, TABLE_SUFFIXES, splits_of, tables_in
from labelwright.data.scan import shown
from labelwright.data.table import LabelTable
from labelwright.data.tabular import read_datasets, read_files, says_nothing, with_unlisted, without_bars
from labelwright.data.vectors_in_memory import is_series
from labelwright.errors import ConfigError, DataError, OfflineError, Problem
from labelwright.train.progress import say

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


@check_arguments
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
        `datasets.Dataset` or `DatasetDict`; a data frame or a mapping of columns with the paths or images in one;
        a list of pairs (image, label) or a torch `Dataset` of them; or the name of a hub data set, "user/name" or
        "user/name:config".
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
        detail = f"{black:g} to {white:g} become black to white, in all of them alike"
        problems = (*problems, Problem(str(source)[:200], "deep_image", detail))
    return resolve_problems(dataclasses.replace(table, images=images), problems, on_bad)


def _dispatch(source: Any, classes: Sequence[str] | None, named: Named) -> LabelTable:
    source = list(source) if is_series(source) else source
    if (columns := columns_of(source)) is not None:
        roles = find_roles(list(columns), "the data", named=named.columns, annotators=named.annotators)
        return read_datasets(dataset_of(columns, roles["image"]), "the data", classes, named)
    if is_image(source):
        return _from_images([source], classes)
    if not isinstance(source, (str, Path, list, tuple)):
        return read_datasets(source, "the data set", classes, named)
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
            return read_datasets(saved, str(path), classes, named)
        found = tables_in(path)
        if found is not None and not says_nothing(found[0], named):
            table = read_files(found[0], classes, named, splits=found[1])
            return with_unlisted(table, path) if found[0][0].name.lower() in METADATA else table
        if others := sorted(set(named.columns) - {"group"}) if not named.optional else []:
            raise DataError(f"{source} has no columns: --{others[0]}-column needs a table", fix="leave it out")
        return read_folder(path, classes)
    if path.is_file():
        return _from_list([path], classes, named)
    if any(sign in str(source) for sign in "*?["):
        matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute too)
        if not matched:
            raise DataError(f"no file matches {source}", fix="check the pattern; quote it in the shell")
        return _from_list(matched, classes, named)
    name = str(source)
    if _HUB_NAME.fullmatch(name) and not path.parent.is_dir() and path.suffix.lower() not in TABLE_SUFFIXES:
        return read_datasets(_from_hub(name), name, classes, named)
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
    table = read_files(files, classes, named, splits=splits_of(files) if len(files) > 1 else None)
    return table if named.only_images else with_unlisted(table)


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


def _from_hub(name: str) -> Any:
    import datasets
    from huggingface_hub import constants as config_of_hub

    path, _, config = name.partition(":")
    if not config_of_hub.HF_HUB_OFFLINE:
        say(f"{name} is no file or folder here: looking for a data set of that name in the cache and on the hub")
    try:
        with without_bars():
            data = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library raises a dozen unrelated types here; each means: no data
        reason = (str(error).splitlines() or [""])[0]
        raise OfflineError(
            f"{name} is neither a file or folder here nor a data set in the local cache or on a hub within reach"
            f" ({type(error).__name__}: {reason})",
            fix="check the name and the network, or give the path of a downloaded copy",
        ) from error
    return data
