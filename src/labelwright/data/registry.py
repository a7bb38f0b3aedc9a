"""Data sets by name (see cards.py): from a local copy when there is one, else from the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelwright.data.cards import DatasetCard, dataset_card, plain_name, spelling_index
from labelwright.data.checks import resolve_problems
from labelwright.data.read import load
from labelwright.data.table import SPLITS, LabelTable
from labelwright.errors import ConfigError, DataError, OfflineError, Problem

DATA_VARIABLE = "LABELWRIGHT_DATA"
"""Environment variable: a folder with a sub-folder per data set, named by its key in `cards.DATASETS`."""


def open_dataset(name: str, *, root: str | Path | None = None, split: str) -> LabelTable:
    """One split of a data set as a table, from a local copy or else from the hub.

    A local copy is looked for in ``root`` if given, and nowhere else then; otherwise in ``$LABELWRIGHT_DATA/<key>``. It
    is a folder with the card's list files, or Parquet files with the split in their names (``train.parquet``,
    ``cifar10-train.parquet``, ``data/train-00000-of-00003.parquet``), or a folder per split with a folder per class.
    Of several data sets in one folder, the files with the key in their names are taken. ``root`` may also be one
    Parquet file. Classes are put into the official order and given the official names where
    the copy's own names or numbers can be matched.

    Args:
      name: a key of `cards.DATASETS` or a title.
      root: folder or file of the local copy, or None.
      split: one of the card's splits.

    Returns: the table; ``split`` is set on every row ("extra" counts as "train").
    Raises: ConfigError for an unknown name or split; OfflineError saying where it was looked for and how to get it;
      DataError if what is there cannot be read.
    """
    card = dataset_card(name)
    if split not in card.splits:
        raise ConfigError(f"{card.title} has no split {split!r}", fix=f"one of {', '.join(card.splits)}")
    folder = _local_folder(card, root)
    table = _open_hub(card, split) if folder is None else _open_local(card, folder, split)
    if len(table.class_names) > card.n_classes:
        raise DataError(
            f"{len(table.class_names)} classes were found, {card.title} has {card.n_classes}",
            fix="check that the folder holds this data set and nothing else",
        )
    code = SPLITS.index(split) if split in SPLITS else SPLITS.index("train")
    table = dataclasses.replace(table, split=np.full(len(table), code, dtype=np.int8))
    return _in_official_order(table, card)


def _local_folder(card: DatasetCard, root: str | Path | None) -> Path | None:
    """Where the local copy is; None if the hub is to be asked."""
    if root is not None:
        path = Path(root).expanduser()
        if not path.exists():
            raise _offline(card, f"there is no {path}")
        return path
    if base := os.environ.get(DATA_VARIABLE):
        path = Path(base).expanduser() / card.key
        return path if path.is_dir() else None
    return None


def _open_local(card: DatasetCard, folder: Path, split: str) -> LabelTable:
    if folder.is_file():
        return _load_parquet(card, [folder])
    if split in card.lists and (folder / card.lists[split]).is_file():
        return _load_list(card, folder, split)
    hub_split = card.hub_splits.get(split, split)
    within = folder / card.hub_config if card.hub_config and (folder / card.hub_config).is_dir() else folder
    named = re.compile(rf"(^|[-_.])({re.escape(split)}|{re.escape(hub_split)})([-_.]|$)")
    shards = [p for p in sorted([*within.glob("*.parquet"), *within.glob("*/*.parquet")]) if named.search(p.stem)]
    if shards:
        own = [p for p in shards if card.key in p.stem]  # several data sets may share the folder
        return _load_parquet(card, own or shards)
    for name in (split, hub_split):
        if (folder / name).is_dir():
            return _load(folder / name)
    raise _offline(card, f"{folder} does not hold its {split} split")


def _load(source: Any, *, classes: Sequence[str] | None = None) -> LabelTable:
    """The table of what was found; a copy that lacks some of the classes will do, any other problem stops."""
    table = load(source, classes=classes, on_bad="report")
    return resolve_problems(table, [p for p in table.problems if p.kind != "empty_class"], "stop")


def _load_parquet(card: DatasetCard, files: Sequence[Path]) -> LabelTable:
    if card.label_column == "label":
        return _load(list(files))
    import datasets

    return _load(_plain_label(card, datasets.Dataset.from_parquet([str(path) for path in files])))


def _plain_label(card: DatasetCard, data: Any) -> Any:
    """The data set with its labels in a column ``label``."""
    if card.label_column in data.column_names and card.label_column != "label":
        return data.rename_column(card.label_column, "label")
    return data


def _open_hub(card: DatasetCard, split: str) -> LabelTable:
    if not card.hub_id:
        raise _offline(card, "it is not on the hub")
    if card.hub_splits and split not in card.hub_splits:
        raise _offline(card, f"{card.hub_id} on the hub has no {split} split")
    import datasets

    try:
        data = datasets.load_dataset(card.hub_id, card.hub_config or None, split=card.hub_splits.get(split, split))
    except Exception as error:  # the library raises a dozen unrelated types here; each means: no data
        reason = (str(error).splitlines() or [""])[0]
        raise _offline(card, f"{card.hub_id} on the hub: {type(error).__name__}: {reason}") from error
    return _load(_plain_label(card, data))


def _offline(card: DatasetCard, reason: str) -> OfflineError:
    """What was asked for, where it was looked for, and how to get it."""
    base = os.environ.get(DATA_VARIABLE)
    looked = f"{DATA_VARIABLE} is {base}" if base else f"{DATA_VARIABLE} is not set"
    layout = f"Parquet files or folders named {', '.join(card.splits)}"
    if card.lists:
        images = f"{card.image_dir or 'the images'} and " if card.image_dir else "the images they name and "
        layout = f"{images}{', '.join(card.lists.values())}, or {layout}"
    if card.hub_id:
        login = "accept its terms on huggingface.co, run `hf auth login`, then " if card.is_gated else ""
        get = f"{login}where there is a network run `hf download --repo-type dataset {card.hub_id} --local-dir "
        get += f"DATA/{card.key}`"
    else:
        get = f"fetch it from its authors ({card.citation}) into DATA/{card.key}"
    fix = (
        f"{get}, and set {DATA_VARIABLE}=DATA or give --data DATA/{card.key} (root in Python); expected there: {layout}"
    )
    return OfflineError(f"{card.title} is not on this machine nor within reach: {reason} ({looked})", fix=fix)


def _load_list(card: DatasetCard, folder: Path, split: str) -> LabelTable:
    """The table of a list file: a line ``path label`` (a number or a name) or ``class/image`` per image."""
    import datasets

    file = folder / card.lists[split]
    paths: list[str] = []
    labels: list[str] = []
    malformed: list[Problem] = []
    base = str((folder / card.image_dir).absolute())
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        path, _, label = line.strip().partition(" ")
        label = label.strip() or path.rpartition("/")[0].rpartition("/")[2]
        if path and label and not (label.isdecimal() and int(label) >= card.n_classes):
            paths.append(f"{base}/{path}{card.image_suffix}")
            labels.append(label)
        elif path:
            detail = f"no label from 0 to {card.n_classes - 1} in {line.strip()[:60]!r}"
            malformed.append(Problem(f"{file} line {number}", "malformed_row", detail))
    if malformed:
        raise DataError(
            f"{malformed[0].where}: {malformed[0].detail} ({len(malformed)} such lines)",
            problems=malformed,
            fix="put the authors' own file there",
        )
    if not paths:
        raise DataError(f"{file} names no image", fix="put the authors' own file there")
    if not all(label.isdecimal() for label in labels):
        return _load(datasets.Dataset.from_dict({"image": paths, "label": labels}))
    numbers = [int(label) for label in labels]
    return _load(datasets.Dataset.from_dict({"image": paths, "label": numbers}), classes=_numbered_names(card, folder))


def _numbered_names(card: DatasetCard, folder: Path) -> list[str]:
    """Names of the classes that a list file gives as numbers: the card's, those of classes.txt, or the numbers."""
    names = folder / "classes.txt"
    if card.class_names or not names.is_file():
        return list(card.class_names) or [str(k) for k in range(card.n_classes)]
    given = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(given) != card.n_classes:
        raise DataError(
            f"{names} has {len(given)} names, {card.title} has {card.n_classes} classes", fix="give one name per line"
        )
    return given


def _in_official_order(table: LabelTable, card: DatasetCard) -> LabelTable:
    """The table with the card's class names in their order, if each of its own can be matched; else as it is."""
    official = card.class_names
    if not official:
        tidy = tuple(re.sub(r"^\d+\.", "", name).replace("_", " ") for name in table.class_names)
        return dataclasses.replace(table, class_names=tidy) if len(set(tidy)) == len(tidy) else table
    if table.class_names == official or table.candidates is not None or table.truth is not None:
        return table
    places = _places(table.class_names, card)
    if places is None:
        return table
    labels = np.append(places, -1).astype(np.int32)[table.labels]  # the last one serves label -1
    return dataclasses.replace(table, labels=labels, class_names=official)


def _places(names: Sequence[str], card: DatasetCard) -> list[int] | None:
    """Official class of each name, by spelling or by number (from 0, or from 1 to C); None if one cannot be decided."""
    known = spelling_index(card)
    places = [known.get(plain_name(name), -1) for name in names]
    if min(places, default=-1) < 0:
        if not all(name.isdecimal() for name in names):
            return None
        numbers = [int(name) for name in names]
        first = 0 if 0 in numbers else 1
        if first == 1 and max(numbers) != card.n_classes:
            return None  # counted from 0 or from 1: both fit
        places = [number - first for number in numbers]
    return places if len(set(places)) == len(places) and max(places) < card.n_classes else None
