"""The input as shards: a block of a Parquet, .npy or .npz file, a tar of WebDataset, some images of a folder.

A shard is a few strings and numbers, cheap to send to another machine.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow.parquet as pq

from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.layouts import (
    LEFT_BEHIND,
    SHARD_PLAN,
    UNLABELLED_NAMES,
    check_whole,
    split_folders,
    splits_inside,
    splits_of,
    table_of_images,
)
from labelwright.data.scan import shown
from labelwright.errors import ConfigError, DataError
from labelwright.parsing import json_of
from labelwright.scale.arrays import array, errors_of
from labelwright.scale.places import below, file_system, is_url, reading, whole

ROWS_OF_IMAGES, ROWS_OF_VECTORS = 4096, 65_536  # of a shard, unless it says so itself

Kind = Literal["parquet", "tar", "files", "npy", "npz"]


@dataclass(frozen=True)
class Shard:
    """A part of the input that is worked on alone."""

    kind: Kind  # how it is read
    place: str  # file, or folder of ``files``
    first: int = 0  # this and the next: rows of an .npy or .npz; row groups of a Parquet file
    stop: int = 0
    files: tuple[str, ...] = ()  # of a folder, by their paths below it
    splits: tuple[str, ...] = ()  # folders of splits in this folder, and
    has_splits_inside: bool = False  # whether every class folder is made of such
    table: str = ""  # file in this folder that has the labels
    split: str = ""  # that the name of a Parquet file says, beside others
    first_row: int = 0  # of a Parquet file, the number of the first row of its row group ``first``
    prefix: str = ""  # what the ids begin with, so that they differ between files
    index: int = 0  # of the shard among all

    def __str__(self) -> str:
        """Where the user finds it."""
        if self.kind == "files":
            return f"{self.place}/{self.files[0]} to {self.files[-1]}"
        return self.place if self.kind == "tar" else f"{self.place}, block {self.first} to {self.stop}"


@dataclass(frozen=True)
class Input:
    """Some input, listed once for all that is done with it."""

    data: Any  # as it was given
    shards: tuple[Shard, ...]  # its shards, in order
    digest: str  # 32 hex digits, see `digest_of`


# ---- finding them ---------------------------------------------------------------------------------------------------


def find_shards(data: Any, *, n_rows: int | None = None) -> list[Shard]:
    """The shards of some input, in an order that depends on the names alone.

    Args:
      data: a file, a folder, a pattern or a URL of such, or several: Parquet files of images, of paths or of
        embeddings, WebDataset tars, .npy or .npz files of embeddings, or images in folders.
      n_rows: of a shard, about; None: 4,096 images or 65,536 embeddings. A tar, and a row group, is never cut.

    Raises: DataError if there is none, or they are of several kinds; ConfigError for n_rows < 1.

    Example:
      >>> import numpy as np
      >>> from labelwright.scale.places import writing
      >>> with writing("memory://feats/a.npy") as file:
      ...     np.save(file, np.zeros((5, 2), np.float32))
      >>> [(shard.first, shard.stop) for shard in find_shards("memory://feats", n_rows=2)]
      [(0, 2), (2, 4), (4, 5)]
    """
    if n_rows is not None and n_rows < 1:
        raise ConfigError(f"shard_rows={n_rows} is not possible", fix="give 1 or more")
    given = [data] if isinstance(data, (str, os.PathLike)) else list(data) if isinstance(data, (list, tuple)) else []
    if not given or not all(isinstance(each, (str, os.PathLike)) for each in given):
        raise DataError("shards are made of files", fix="give a file, a folder, a pattern or a URL of such")
    places: list[str] = []
    loose: list[str] = []
    folders: list[tuple[str, tuple[list[str], str]]] = []
    for each in given:
        for place in _matching(os.fspath(each)):
            files = _files_in(place)
            if files is None:
                (loose if suffix_of(place) in IMAGE_SUFFIXES else places).append(place)
            elif images := [name for name in files if suffix_of(name) in IMAGE_SUFFIXES]:
                folders.append((place, (images, table_of_images(files))))  # other tables are not read without shards
            else:
                places += [f"{place}/{name}" for name in files if suffix_of(name) in _KINDS]
    kinds = {suffix_of(place) for place in places} | ({"images"} if loose or folders else set())
    if len(kinds) > 1 or (places and kinds - set(_KINDS)):
        raise DataError(
            f"{given[0]}: shards of {', '.join(sorted(kinds)) or 'no kind'}",
            fix=f"give files of one kind: {', '.join(_KINDS)}, or images",
        )
    found: list[Shard] = []
    files_of = dict(folders)  # what is given twice is read once
    places = list(dict.fromkeys(places))
    prefixes = _prefixes(places) | _prefixes(list(files_of))
    splits = splits_of([Path(place) for place in places]) if ".parquet" in kinds else [None] * len(places)
    for place, split in zip(places, splits, strict=True):
        parts = _KINDS[suffix_of(place)](place, n_rows, prefixes[place])
        found += [dataclasses.replace(part, split=split or "") for part in parts]
    for place, (names, table) in files_of.items():
        found += _of_files(place, names, n_rows or ROWS_OF_IMAGES, prefixes[place], table)
    if loose:
        found += _of_files("", sorted(set(loose)), n_rows or ROWS_OF_IMAGES, "")
    if not found:
        raise DataError(f"{given[0]}: no images, embeddings or shards found", fix="check the path")
    return [dataclasses.replace(shard, index=i) for i, shard in enumerate(found)]


def listed_once(data: Any, *, n_rows: int | None = None) -> Input:
    """The shards of some input with their digest, see `find_shards`; an `Input` as it is."""
    if isinstance(data, Input):
        return data
    shards = find_shards(data, n_rows=n_rows)
    return Input(data, tuple(shards), digest_of(shards))


def _prefixes(places: Sequence[str]) -> dict[str, str]:
    """What ids of each place begin with, so that they differ: nothing for one, else its name, or where names are alike
    its path.

    Example:
      >>> _prefixes(["a/x"]), _prefixes(["a/x", "a/y"]), _prefixes(["a/x", "b/x"])
      ({'a/x': ''}, {'a/x': 'x', 'a/y': 'y'}, {'a/x': 'a/x', 'b/x': 'b/x'})
    """
    names = [name_of(place) for place in places]
    if len(places) < 2:
        return dict.fromkeys(places, "")
    return dict(zip(places, names if len(set(names)) == len(names) else places, strict=True))


def digest_of(shards: Sequence[Shard]) -> str:
    """32 hex digits that change with the shards, and with size or time of change of a file of theirs."""
    digest, listed = hashlib.blake2b(digest_size=16), dict[str, Any]()
    for shard in shards:
        digest.update(json.dumps(list(vars(shard).values())).encode())
        if is_url(shard.place) and shard.files:
            if shard.place not in listed:  # once, whatever number of files it has
                system, path = file_system(shard.place)
                listed[shard.place] = system.find(path, detail=True)
            for _, path in below(shard.place, shard.files):
                digest.update(_noted(listed[shard.place].get(path, {})))
        else:
            for name in shard.files:
                digest.update(_state(f"{shard.place}/{name}" if shard.place else name))
    for place in dict.fromkeys(shard.place for shard in shards if not shard.files):
        digest.update(_state(place))
    return digest.hexdigest()


def _state(place: str) -> bytes:
    """Size and time of change of a file; nothing of one that is not there, which is named when its row is read."""
    if not is_url(place):
        try:
            found = os.stat(place)  # noqa: PTH116 (of millions: no Path is made)
        except OSError:
            return b""
        return json.dumps([found.st_size, found.st_mtime_ns]).encode()
    system, path = file_system(place)
    return _noted(system.info(path))


def _noted(info: Mapping[str, Any]) -> bytes:
    return json.dumps([info.get("size"), str(info.get("mtime", info.get("ETag", "")))]).encode()


def _matching(place: str) -> list[str]:
    """The places that a pattern matches, by name; any other place alone."""
    system, path = file_system(place)
    if glob.has_magic(path) and not system.exists(path):
        found = [whole(place, each) for each in sorted(system.glob(path))]
        if not found:
            raise DataError(f"no file matches {place}", fix="check the pattern; quote it in the shell")
        return found
    if not system.exists(path):
        raise DataError(f"no such file or folder: {place}", fix="check the path")
    return [place.rstrip("/") if is_url(place) else path]


def _files_in(place: str) -> list[str] | None:
    """Paths of all files below a folder, by name, without those in hidden folders and in no data; None of a file.

    Raises: DataError of shards that are not all there.
    """
    system, path = file_system(place)
    if not system.isdir(path):
        return None
    root = path.rstrip("/") + "/"
    below = [each.removeprefix(root) for each in system.find(path)]
    if SHARD_PLAN in below:
        with reading(f"{place}/{SHARD_PLAN}") as file:
            check_whole(place, json_of(file.read()), below)
    runs = _runs_among(below)

    def is_data(name: str) -> bool:
        parts = name.split("/")
        if any(part[0] in "._" or part.lower() in LEFT_BEHIND for part in parts):
            return False
        return not runs or not any("/".join(parts[:i]) in runs for i in range(1, len(parts)))

    return sorted(name for name in below if is_data(name))


def _runs_among(names: Sequence[str]) -> set[str]:
    """Folders that are runs (`data.layouts.is_run`), of the files below one folder."""
    configured = {name.removesuffix("/config.yaml") for name in names if name.endswith("/config.yaml")}
    made = {name.removesuffix("/data.json") for name in names if name.endswith("/data.json")}
    return configured & (made | {name.rpartition("/model/")[0] for name in names if "/model/" in name})


def suffix_of(place: str) -> str:
    """What the name of a file ends with, in lower case."""
    return PurePosixPath(place).suffix.lower()


def name_of(place: str) -> str:
    """The name of a file or folder."""
    return PurePosixPath(place).name


def blocks(n: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of blocks of so many of n rows.

    Example:
      >>> list(blocks(5, 2))
      [(0, 2), (2, 4), (4, 5)]
    """
    yield from ((first, min(first + size, n)) for first in range(0, n, size))


def _of_files(place: str, names: Sequence[str], size: int, prefix: str, table: str = "") -> list[Shard]:
    """Images of a folder, whose folders are classes, splits and unlabelled images as without shards."""
    if not place:  # files that were named one by one
        return [Shard("files", "", files=tuple(names[first:stop])) for first, stop in blocks(len(names), size)]
    inner: dict[str, set[str]] = {}
    for name in names:
        first, *rest = name.split("/")
        if rest:
            inner.setdefault(first, set()).update(rest[:-1][:1])
    splits = split_folders(inner)
    others = [name for name in inner if name not in splits and name.lower() not in UNLABELLED_NAMES]
    if splits and (not others or len(set(splits.values())) > 1):  # what lies beside splits is not read
        names = [name for name in names if "/" in name and name.split("/")[0] not in others]
    if unreadable := [name for name in names if not name.isascii() and shown(name) != name]:
        raise DataError(
            f"{place}/{shown(unreadable[0])}: the name is not UTF-8 text", fix="rename it, as convmv does for a folder"
        )
    is_inside = not splits and bool(splits_inside(names))
    whole = Shard("files", place, prefix=prefix, splits=tuple(splits), has_splits_inside=is_inside, table=table)
    return [dataclasses.replace(whole, files=tuple(names[first:stop])) for first, stop in blocks(len(names), size)]


def _of_parquet(place: str, n_rows: int | None, prefix: str) -> list[Shard]:
    """Row groups, as many as make a shard."""
    with reading(place) as file, errors_of(place), pq.ParquetFile(file) as table:
        meta, names = table.metadata, table.schema_arrow.names
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    size = n_rows or (ROWS_OF_VECTORS if "embedding" in names and "image" not in names else ROWS_OF_IMAGES)
    found, first, rows, start = list[Shard](), 0, 0, 0
    for i, n in enumerate(sizes):
        rows += n
        if rows >= size or i == len(sizes) - 1:
            found.append(Shard("parquet", place, first, i + 1, first_row=start, prefix=prefix))
            first, start, rows = i + 1, start + rows, 0
    return found


def _of_npy(place: str, n_rows: int | None, prefix: str) -> list[Shard]:
    with array(place) as (shape, _, _, _):
        return [
            Shard("npy", place, first, stop, prefix=prefix)
            for first, stop in blocks(shape[0], n_rows or ROWS_OF_VECTORS)
        ]


_KINDS: dict[str, Callable[[str, int | None, str], list[Shard]]] = {
    ".parquet": _of_parquet,
    ".tar": lambda place, n_rows, prefix: [Shard("tar", place, prefix=prefix)],
    ".npy": _of_npy,
    ".npz": _of_npy,
}
