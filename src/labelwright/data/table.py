"""The one form that every kind of input takes: a table with a row per image."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from labelwright.data.images import Decoded, Decoding, decode, deep_values, image_problem, range_of
from labelwright.data.layouts import SPLITS as SPLITS
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.types import Candidates, Task

PROBLEM_KINDS = {
    "missing_image": "image files that are not there",
    "unreadable_image": "images that cannot be decoded",
    "bad_embedding": "embeddings with a value that is not finite, or of another length",
    "unknown_label": "labels that are not classes",
    "unknown_candidate": "candidates that are not classes",
    "unknown_split": "splits other than train, test, validation",
    "duplicate_id": "ids used more than once",
    "empty_class": "classes without a labelled image",
    "malformed_row": "rows of the table that cannot be read",
    "missing_column": "columns that are not there",
    "empty_table": "no images at all",
    "unreadable_name": "names of files and folders that are not UTF-8 text",
    "unreadable_folder": "folders that cannot be listed",
    "unsupported_file": "files left out because they are not images",
    "skipped_folder": "folders and files passed over",
    "deep_image": "images of more than 8 bits",
    "first_frame": "files of several frames or pages, whose first one is used",
    "blank_image": "images of one colour, or nearly",
    "copy": "images that are there more than once",
    "unseen_class": "classes that no label or candidate names",
    "absent_class": "classes without an image, where every image is labelled",
    "ignored_column": "columns that are not read",
    "read_as": "values that are read in another way than they are written",
    "odd_class": "names of classes that look like mistakes",
}
"""Problem.kind -> what a heading over such problems says."""

NOTICES = frozenset(
    {"unsupported_file", "skipped_folder", "deep_image", "first_frame", "blank_image", "unseen_class", "absent_class"}
    | {"copy", "ignored_column", "read_as", "odd_class"}
)
"""Kinds that are reported but never stop a run."""

HOW_READ = ("empty_class", "absent_class", "read_as", "ignored_column", "odd_class")
"""Kinds that every verb shows, since they change what its numbers mean."""

_HASHED_BYTES_MAX = 4 << 30  # embedded images above this are fingerprinted by their sizes and a sample
_STATTED_FILES_MAX = 100_000  # image files whose size and time go into a fingerprint
_IO_ROWS = 1024  # embedded images held in memory at once while hashing
_SAMPLED_ROWS = 1024  # images whose header is looked at for more than 8 bits
_DEEP_SAMPLED = 64  # images of more than 8 bits whose values fix the scale


@dataclass(frozen=True, eq=False)
class Images:
    """How to get each of N images, files or embedded ones; nothing is opened before it is asked for.

    Example:
      >>> photos = Images(pa.array(["a.png", "/b.png"], pa.large_string()), root="pets")
      >>> photos.sources(np.array([1, 0])), len(photos)
      (['/b.png', 'pets/a.png'], 2)
    """

    paths: Any = None  # [N] Arrow large_string, relative to ``root`` or absolute; None if the images are embedded
    root: str = ""  # folder that relative paths start from, those inside embedded images too
    dataset: Any = None  # `datasets.Dataset` of N rows and the one column ``image``, undecoded; None for files
    hashes: Any = None  # [N, 16] uint8, of each embedded image, once `with_hashes` has read them
    decoding: Decoding | None = None  # one for the data set, see `with_range`; None: each image by itself

    def __len__(self) -> int:
        return len(self.paths) if self.dataset is None else int(self.dataset.num_rows)

    def sources(self, rows: NDArray[np.int64]) -> list[bytes | str]:
        """What `decode` takes, for each of rows [n]: the encoded bytes, or the path of the file."""
        if self.dataset is None:
            return [os.path.join(self.root, path) for path in self.paths.take(pa.array(rows)).to_pylist()]  # noqa: PTH118
        return [_source(cell, self.root) for cell in self.dataset[rows.tolist()]["image"]]

    def with_range(self, decoding: Decoding | None = None) -> tuple[Images, int]:
        """The images with one scale for those of more than 8 bits, taken from a sample spread over all of them.

        Args:
          decoding: what else is chosen; a scale that it has stays.

        Returns: the images, and how many of those sampled have more than 8 bits.
        """
        decoding = decoding or Decoding()
        if decoding.white is not None:
            return dataclasses.replace(self, decoding=decoding), 0
        found: list[NDArray[np.float64]] = []
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED_ROWS), dtype=np.int64))
        for row in np.concatenate([rows[first::16] for first in range(16)]):  # any beginning is spread over all
            values = deep_values(self.sources(np.array([row]))[0], decoding.pixels_max)
            if values is not None:
                found.append(values)
            if len(found) == _DEEP_SAMPLED:
                break
        if found:
            black, white = range_of(found)
            decoding = dataclasses.replace(decoding, black=black, white=white)
        return dataclasses.replace(self, decoding=decoding), len(found)

    def decode(self, row: int, *, side_px: int | None = None) -> Decoded:
        """One image; see `images.decode`, whose errors are raised."""
        return decode(self.sources(np.array([row]))[0], self.decoding, side_px=side_px)

    def take(self, rows: NDArray[np.int64]) -> Images:
        """The images of rows [n], in that order; embedded images are indexed, not copied."""
        if self.dataset is None:
            return dataclasses.replace(self, paths=self.paths.take(pa.array(rows)))
        hashes = None if self.hashes is None else self.hashes[rows]
        return dataclasses.replace(self, dataset=self.dataset.select(rows), hashes=hashes)

    def with_hashes(self) -> Images:
        """The images, and of embedded ones (up to 4 GiB) the hash of each: they and all taken of them are read once."""
        if self.dataset is None or self.hashes is not None or int(self.dataset.data.nbytes) > _HASHED_BYTES_MAX:
            return self
        hashes = np.zeros((len(self), 16), dtype=np.uint8)
        for first in range(0, len(self), _IO_ROWS):
            for row, source in enumerate(self.sources(np.arange(first, min(first + _IO_ROWS, len(self)))), first):
                data = source if isinstance(source, bytes) else source.encode()
                hashes[row] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype=np.uint8)
        return dataclasses.replace(self, hashes=hashes)

    def where(self, row: int) -> str:
        """Where the user finds an image: its path, or ``row 17``, from 1, when it is embedded."""
        if self.dataset is None:
            return str(self.sources(np.array([row]))[0])
        places = getattr(self.dataset, "places", ())
        return str(places[row]) if places else f"row {row + 1}"

    def update_digest(self, digest: Any) -> None:
        """Feed the identity of the images to a hash: embedded bytes, or path with size and time of change.

        More than 4 GiB of embedded images count by their sizes and 1,024 of them; of more than 100,000 files,
        that many (evenly spread) are looked at on the disk and the others count by path.
        """
        rows = np.arange(len(self))
        digest.update(str(self.decoding or "").encode())
        if self.dataset is None:
            _digest_strings(digest, self.paths)
            for source in self.sources(rows[:: max(1, -(-len(rows) // _STATTED_FILES_MAX))]):
                try:
                    found = os.stat(source)  # noqa: PTH116
                    digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
                except (OSError, ValueError):
                    digest.update(b"missing\n")
            return
        hashes = self.with_hashes().hashes
        if hashes is not None:
            digest.update(hashes)
            return
        chosen = rows[:: max(1, len(rows) // _IO_ROWS)]
        digest.update(f"{len(rows)} {int(self.dataset.data.nbytes)}\n".encode())
        for first in range(0, len(chosen), _IO_ROWS):
            for source in self.sources(chosen[first : first + _IO_ROWS]):
                data = source if isinstance(source, bytes) else source.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)


def _source(cell: Any, root: str) -> bytes | str:
    if cell is None:
        return b""
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return os.path.join(root, cell["path"]) if cell.get("path") else b""  # noqa: PTH118


def _digest_strings(digest: Any, strings: Any) -> None:
    plain = pa.concat_arrays([strings])  # starts at offset 0, so that equal content has equal buffers
    for buffer in plain.buffers()[1:]:
        if buffer is not None:
            digest.update(buffer)


@dataclass(frozen=True, eq=False)
class LabelTable:
    """N images with what is known of each; `labelwright.data.read.load` makes one from any kind of input."""

    images: Images  # how to get each image
    ids: Any  # [N] Arrow large_string, unique names of the rows
    labels: NDArray[np.int32]  # [N] class indices, -1 = unknown
    class_names: tuple[str, ...]  # C names, in class order; empty when there are neither labels nor given names
    candidates: Candidates | None = None  # candidate sets of the N rows
    split: NDArray[np.int8] | None = None  # [N] positions in SPLITS, -1 = none of them; None: no splits are given
    groups: NDArray[np.int64] | None = None  # [N], the same number: belong together (one track, one patient)
    # [N], for scoring only, -1 = unknown; C and above are classes outside ``class_names``
    truth: NDArray[np.int32] | None = field(default=None, repr=False)
    votes: NDArray[np.int32] | None = None  # [N, A] class that each annotator answered, -1 = none
    annotators: tuple[str, ...] = ()  # A names, of the columns of ``votes``
    truth_names: tuple[str, ...] = ()  # of the truth's classes: ``class_names``, then the others; empty without a truth
    problems: tuple[Problem, ...] = ()  # what is wrong with the data and was not resolved; rows as in this table
    quarantined: tuple[Problem, ...] = ()  # problems whose rows were left out; rows as in the table before
    n_given: int = -1  # rows that the source holds, those that could not be read too; -1: N
    first_number: int = 0  # number of the first class, where labels are numbers and classes have names

    def __post_init__(self) -> None:
        n = len(self.images)
        columns = (self.ids, self.labels, self.candidates, self.split, self.groups, self.truth, self.votes)
        assert all(column is None or len(column) == n for column in columns), "columns differ in length"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def accounted(self) -> tuple[int, int, int]:
        """Rows given, kept, and reported as left out: the first is the sum of the others until a subset is taken."""
        lost = sum(p.kind == "malformed_row" and p.row is None for p in (*self.problems, *self.quarantined))
        left_out = len({p.row for p in self.quarantined if p.row is not None})
        return len(self) if self.n_given < 0 else self.n_given, len(self), lost + left_out

    def counts(self) -> NDArray[np.int64]:
        """[C] int64 labelled images per class."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))

    def where(self, split: str) -> NDArray[np.int64]:
        """Rows [n] of a split, ascending; all rows are "train" when the data says nothing of splits.

        Raises: ConfigError if ``split`` is not one of SPLITS.
        """
        if split not in SPLITS:
            raise ConfigError(f"no such split: {split!r}", fix=f"one of {', '.join(SPLITS)}")
        if self.split is None:
            return np.arange(len(self) if split == "train" else 0)
        return np.flatnonzero(self.split == SPLITS.index(split))

    def subset(self, rows: NDArray[np.int64]) -> LabelTable:
        """The table of rows [n] int64, in that order (a row may come twice); problems follow their rows."""
        rows = np.asarray(rows, dtype=np.int64)
        moved = {int(old): new for new, old in enumerate(rows)} if self.problems else {}
        problems = [
            p if p.row is None else dataclasses.replace(p, row=moved[p.row])
            for p in self.problems
            if p.row is None or p.row in moved
        ]
        return dataclasses.replace(
            self,
            images=self.images.take(rows),
            ids=self.ids.take(pa.array(rows)),
            labels=self.labels[rows],
            candidates=None if self.candidates is None else self.candidates.take(torch.from_numpy(rows)),
            split=None if self.split is None else self.split[rows],
            groups=None if self.groups is None else self.groups[rows],
            truth=None if self.truth is None else self.truth[rows],
            votes=None if self.votes is None else self.votes[rows],
            problems=tuple(problems),
        )

    def task(self, *, n_novel: int = 0) -> Task:
        """What a recipe may know of these images: labels, names and candidates, never the truth."""
        labels = torch.from_numpy(self.labels.astype(np.int64))
        groups = None if self.groups is None else torch.from_numpy(self.groups)
        votes = None if self.votes is None else torch.from_numpy(self.votes.astype(np.int64))
        return Task(labels, self.class_names, self.candidates, n_novel=n_novel, groups=groups, votes=votes)

    @property
    def how_read(self) -> list[str]:
        """How values, columns and empty folders were read, a sentence each; see `HOW_READ`."""
        return list(dict.fromkeys(p.detail for p in self.problems if p.kind in HOW_READ))

    def image(self, row: int, *, side_px: int | None = None) -> Image.Image:
        """One image, decoded: RGB, upright; large JPEGs smaller where it will be scaled to a side of ``side_px``.

        Raises: DataError naming the image if it is missing or cannot be decoded.
        """
        try:
            return self.images.decode(row, side_px=side_px).image
        except OSError as error:
            problem = image_problem(self.images.where(row), row, error)
            raise DataError(
                f"{problem.where}: {problem.detail}",
                problems=[problem],
                fix="replace the image, or skip such images with --on-bad skip",
            ) from error

    @cached_property
    def images_digest(self) -> str:
        """32 hex digits that change when an image does (see `Images.update_digest`), and not with labels or ids.

        Example:
          >>> ids = pa.array(["a", "b"], pa.large_string())
          >>> table = LabelTable(Images(ids), ids, np.array([0, 1], np.int32), ("cat", "dog"))
          >>> table.images_digest == dataclasses.replace(table, labels=np.array([1, -1], np.int32)).images_digest
          True
        """
        digest = hashlib.blake2b(digest_size=16)
        self.images.update_digest(digest)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change when an id, a label, a class name or an image changes."""
        digest = hashlib.blake2b(digest_size=16)
        _digest_strings(digest, self.ids)
        digest.update(self.labels.tobytes())
        digest.update("\0".join(self.class_names).encode())
        digest.update(self.images_digest.encode())  # not the images once more
        return digest.hexdigest()
