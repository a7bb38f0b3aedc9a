"""The rows of a shard, batch by batch: memory grows with the batch and never with the input."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from labelwright.data.columns import METADATA_KEY
from labelwright.data.embedding_tables import vectors_of_block
from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.layouts import SPLIT_NAMES, SPLITS, UNLABELLED_NAMES
from labelwright.errors import DataError, Problem
from labelwright.parsing import json_of
from labelwright.scale.arrays import array, errors_of, read_rows
from labelwright.scale.places import below, contents, file_system, is_url, reading
from labelwright.scale.shards import Shard, blocks, name_of, suffix_of

BATCH_IMAGES, BATCH_VECTORS = 256, 16_384  # in memory at once
_TAR_LABELS = (".cls", ".txt", ".json")  # beside an image of WebDataset: its label
_OF_ROWS = ("ids", "paths", "labels", "groups", "split", "truth")  # keys of an .npz with a value a row


@dataclass(frozen=True)
class Rows:
    """Some rows of a shard."""

    ids: list[str]  # their names
    columns: dict[str, Any]  # role (image, label, split, ...) -> Arrow array
    # encoded images as {"bytes", "path"}; None of vectors, and of local files, which ``columns`` names
    cells: tuple[dict[str, Any], ...] | None
    vectors: npt.NDArray[Any] | None  # [n, D] floats; None of images
    where: str  # the file, and
    first_row: int  # the number of the first of them in it, for messages
    root: str = ""  # folder that the paths of local files start from
    places: tuple[str, ...] = ()  # where the user finds each encoded image; empty: by its id
    class_names: tuple[str, ...] = ()  # that the file itself fixes, in order; empty if it does not
    problems: tuple[Problem, ...] = ()  # rows without a vector, or with one of another length; labels that are none


def rows_of(shard: Shard, *, roles_of: Callable[[Sequence[str], str], dict[str, str]]) -> Iterator[Rows]:
    """The rows of a shard, batch by batch, each exactly once.

    Args:
      roles_of: names of the columns of a table and where it is -> role -> column.

    Raises: DataError if it cannot be read.
    """
    with errors_of(shard.place):
        if shard.kind == "parquet":
            yield from _rows_of_parquet(shard, roles_of)
        elif shard.kind == "tar":
            yield from _rows_of_tar(shard)
        elif shard.kind == "files":
            yield from _rows_of_files(shard)
        else:
            yield from _rows_of_npy(shard)


def _rows_of_files(shard: Shard) -> Iterator[Rows]:
    remote = is_url(shard.place or shard.files[0])
    for first, stop in blocks(len(shard.files), BATCH_IMAGES):
        names = list(shard.files[first:stop])
        ids = [f"{shard.prefix}/{name}" if shard.prefix else name for name in names]
        labels, splits = zip(*(_by_folders(name, shard) for name in names), strict=True)
        columns = {"label": pa.array(labels, pa.string())}
        if shard.splits or shard.has_splits_inside:
            columns["split"] = pa.array(splits, pa.string())
        cells = None
        if remote:
            found = contents(below(shard.place, names))
            cells = tuple({"bytes": each, "path": name} for each, name in zip(found, names, strict=True))
        else:
            columns["image"] = pa.array(names, pa.large_string())
        yield Rows(ids, columns, cells, None, shard.place, first, root=shard.place)


def _by_folders(name: str, shard: Shard) -> tuple[str | None, str | None]:
    """The class and the split of an image, by the folders that it lies in.

    Example:
      >>> shard = Shard("files", "photos", splits=("test",))
      >>> _by_folders("test/cat/1.png", shard), _by_folders("cat/1.png", shard), _by_folders("unlabeled/1.png", shard)
      (('cat', 'test'), ('cat', 'train'), (None, 'train'))
    """
    folders, split = list(PurePosixPath(name).parts[:-1] if shard.place else ()), None
    if shard.splits:
        is_in_split = bool(folders) and folders[0] in shard.splits
        split = SPLITS[SPLIT_NAMES[folders.pop(0).lower()]] if is_in_split else "train"
    elif shard.has_splits_inside and len(folders) > 1:
        split = folders[1].lower()
    is_labelled = bool(folders) and folders[0].lower() not in UNLABELLED_NAMES
    return folders[0] if is_labelled else None, split


def _rows_of_tar(shard: Shard) -> Iterator[Rows]:
    """Samples of WebDataset: files of one name up to its first dot, one after the other."""
    name = shard.prefix or name_of(shard.place)
    with reading(shard.place) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        found: list[tuple[str, bytes, str | None, str]] = []
        n_before = 0
        for key, members in _samples(tar):
            images = [suffix for suffix in members if suffix_of(f"image{suffix}") in IMAGE_SUFFIXES]
            if not images:
                continue
            found.append((f"{name}/{key}{images[0]}", members[images[0]], *_label_beside(members)))
            if len(found) == BATCH_IMAGES:
                yield _rows_of_samples(found, shard.place, n_before)
                n_before, found = n_before + len(found), []
        if found:
            yield _rows_of_samples(found, shard.place, n_before)


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, members = "", dict[str, bytes]()
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        if not member.isfile() or base.startswith("."):
            continue
        stem, dot, suffix = base.partition(".")
        own = f"{folder}/{stem}" if folder else stem
        if own != key and members:
            yield key, members
            members = {}
        key, file = own, tar.extractfile(member)
        members[dot + suffix] = b"" if file is None else file.read()
    if members:
        yield key, members


def _label_beside(members: dict[str, bytes]) -> tuple[str | None, str]:
    """The label of a sample: the text of its .cls or .txt file, or "label" in its .json; and what is wrong with it.

    Example:
      >>> _label_beside({".cls": b"cat"}), _label_beside({".json": b"{cat}"})
      (('cat', ''), (None, 'its .json is not JSON'))
    """
    for suffix in _TAR_LABELS:
        if suffix in members:
            text = members[suffix].decode("utf-8", errors="replace").strip()
            if suffix != ".json":
                return text or None, ""
            try:
                notes = json_of(text or "{}")
            except ValueError:
                return None, "its .json is not JSON"
            label = notes.get("label") if isinstance(notes, dict) else None
            if isinstance(label, (list, dict)):
                return None, '"label" in its .json is not one label'
            return None if label is None else str(label), ""
    return None, ""


def _rows_of_samples(found: Sequence[tuple[str, bytes, str | None, str]], place: str, first_row: int) -> Rows:
    ids, content, labels, wrong = zip(*found, strict=True)
    cells = tuple({"bytes": each, "path": None} for each in content)
    problems = tuple(Problem(ids[i], "malformed_row", words, i) for i, words in enumerate(wrong) if words)
    columns = {"label": pa.array(labels, pa.string())}
    return Rows(list(ids), columns, cells, None, place, first_row, problems=problems)


def _rows_of_parquet(shard: Shard, roles_of: Callable[[Sequence[str], str], dict[str, str]]) -> Iterator[Rows]:
    with reading(shard.place) as file, pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        has_vectors = "embedding" in schema.names and "image" not in schema.names
        others = [name for name in schema.names if not (has_vectors and name == "embedding")]
        roles = roles_of([*others, *(["image"] if has_vectors else [])], shard.place)
        roles = {role: name for role, name in roles.items() if not (has_vectors and role == "image")}
        notes = json_of((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        wanted = list(dict.fromkeys([*roles.values(), *(["embedding"] if has_vectors else [])]))
        row = shard.first_row
        size = BATCH_VECTORS if has_vectors else BATCH_IMAGES
        groups = list(range(shard.first, shard.stop))
        for batch in table.iter_batches(size, row_groups=groups, columns=wanted):
            columns = {role: batch.column(name) for role, name in roles.items()}
            if shard.split:
                columns.setdefault("split", pa.array([shard.split] * batch.num_rows, pa.string()))
            numbers = [f"{shard.prefix}:{row + i}" if shard.prefix else str(row + i) for i in range(batch.num_rows)]
            given = columns["id"].cast(pa.string()).to_pylist() if "id" in columns else numbers
            ids = [number if name is None else name for name, number in zip(given, numbers, strict=True)]
            vectors, bad = vectors_of_block(shard.place, batch["embedding"], row) if has_vectors else (None, [])
            cells = None if has_vectors else tuple(_cells_of(columns.pop("image"), shard.place))
            places = tuple(_place(shard.place, row + i, cell["path"]) for i, cell in enumerate(cells or ()))
            names = tuple(notes.get("class_names", ()))
            known: dict[str, Any] = {"places": places, "class_names": names, "problems": tuple(bad)}
            yield Rows(ids, columns, cells, vectors, shard.place, row, **known)
            row += batch.num_rows


def _place(place: str, row: int, path: str | None) -> str:
    """Where the user finds an image.

    Example:
      >>> _place("a.parquet", 4, None), _place("a.parquet", 4, "b.png")
      ('a.parquet row 5', 'b.png (a.parquet row 5)')
    """
    return f"{place} row {row + 1}" if path is None else f"{path} ({place} row {row + 1})"


def _cells_of(column: Any, place: str) -> list[dict[str, Any]]:
    """Encoded images of a column of bytes, of {bytes, path}, or of paths from the folder of the file."""
    folder = place.rpartition("/")[0]
    found, far = list[dict[str, Any]](), dict[int, tuple[Any, str]]()
    for row, value in enumerate(column.to_pylist()):
        value = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        content, path = value.get("bytes"), value.get("path")
        if content is None and path is not None:
            path = path if is_url(path) or path.startswith("/") else f"{folder}/{path}" if folder else path
            if is_url(path):
                far[row] = file_system(path)
        found.append({"bytes": content, "path": path})
    for row, content in zip(far, contents(list(far.values())), strict=True):
        found[row]["bytes"] = content
    return found


def _rows_of_npy(shard: Shard) -> Iterator[Rows]:
    roles = {"labels": "label", "groups": "group", "split": "split", "truth": "truth"}
    for first, stop in blocks(shard.stop - shard.first, BATCH_VECTORS):
        first, stop = shard.first + first, shard.first + stop
        vectors, others, class_names = slices(shard.place, first, stop)
        columns = {roles[key]: pa.array(some) for key, some in others.items() if key in roles}
        names = next((others[key].tolist() for key in ("ids", "paths") if key in others), None)
        ids = names or [f"{shard.prefix}:{row}" if shard.prefix else str(row) for row in range(first, stop)]
        yield Rows(list(map(str, ids)), columns, None, vectors, shard.place, first, class_names=class_names)


def slices(place: str, first: int, stop: int) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """Rows first to stop of an .npy or .npz of embeddings: the vectors, the other arrays by key, the class names.

    Raises: DataError if it is compressed or not of that form.
    """
    vectors = read_rows(place, "embeddings", first, stop)
    if vectors.ndim != 2:
        raise DataError(f"{place}: embeddings are not [rows, features]", fix="one row per item")
    if not place.lower().endswith(".npz"):
        return vectors, {}, ()
    with reading(place) as file, zipfile.ZipFile(file) as archive:
        keys = {name.removesuffix(".npy") for name in archive.namelist()}
    others = {key: read_rows(place, key, first, stop) for key in _OF_ROWS if key in keys}
    names = tuple[str, ...]()
    if "class_names" in keys:
        with array(place, "class_names") as (shape, _, _, _):
            n_classes = shape[0]
        names = tuple(read_rows(place, "class_names", 0, n_classes).astype(str).tolist())
    return vectors, others, names
