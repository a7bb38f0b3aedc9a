"""Decoded pixels: every image once into one memory-mapped file, or on the fly where that would not fit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from labelwright import checksums
from labelwright.data.checks import decoding_threads, each_image
from labelwright.data.images import FULL_SIZE
from labelwright.data.table import PROBLEM_KINDS, LabelTable
from labelwright.errors import ConfigError, DataError, DiskError, Problem
from labelwright.parsing import json_of
from labelwright.replacing import replacing
from labelwright.train.progress import say

CACHE_FORMAT = 3  # part of every key: raise it whenever the same image would give other pixels or another layout
RESIZE_RULE = "centre-square-bicubic"  # see `resize_to_square`; part of every key

_MAX_AHEAD = 1024  # decoded images kept waiting by a stream; beyond it the oldest hints are dropped

Pixels = npt.NDArray[np.uint8]


class PixelSource(Protocol):
    """Decoded images by row, all of one size."""

    n_rows: int  # N images
    size_px: int  # height and width

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Images found unreadable so far; their pixels are zero."""
        ...

    def read(self, rows: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 on the CPU, for rows [B] int64 within 0..N-1."""
        ...

    def prefetch(self, rows: Tensor) -> None:
        """Hint that these rows will be read soon."""
        ...


class PixelCache:
    """N images of one size in memory or in a memory-mapped file.

    Attributes:
      pixels: [N, H, W, 3] uint8.
      problems: images that could not be read; their pixels are zero.

    Example:
      >>> cache = PixelCache(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3))
      >>> cache.read(torch.tensor([1, 0]))[:, 0, 0].tolist()
      [[12, 13, 14], [0, 1, 2]]
    """

    def __init__(self, pixels: Pixels, *, problems: Sequence[Problem] = ()) -> None:
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.shape[1:] == (pixels.shape[1], pixels.shape[1], 3), pixels.shape
        self.pixels = pixels
        self.n_rows, self.size_px = pixels.shape[:2]
        self.problems = tuple(problems)

    def read(self, rows: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 on the CPU, for rows [B] int64 within 0..N-1."""
        return torch.from_numpy(np.take(self.pixels, rows.cpu().numpy(), axis=0))

    def prefetch(self, rows: Tensor) -> None:
        """Nothing to do: reading is a copy from the page cache."""


def default_cache_folder() -> Path:
    """Where decoded pixels are kept: $LABELWRIGHT_CACHE, or labelwright's folder in the user's cache of this platform.

    Example:
      >>> default_cache_folder().name in ("labelwright", Path(os.environ.get("LABELWRIGHT_CACHE", "")).name)
      True
    """
    chosen = os.environ.get("LABELWRIGHT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "labelwright"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "labelwright"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labelwright"


def resize_to_square(image: Image.Image, *, size_px: int) -> Pixels:
    """The centre square of an RGB image at size_px x size_px: cropped, then resized, antialiased.

    An image of exactly that size comes back bit for bit. One that was decoded at reduced scale is cropped where its
    file would be. Nothing outside the square is read, so that exported models can do the same (exporting.onnx_file).

    Returns: [size_px, size_px, 3] uint8.

    Example:
      >>> resize_to_square(Image.new("RGB", (40, 20), (1, 2, 3)), size_px=10)[9, 9].tolist()
      [1, 2, 3]
    """
    if image.size != (size_px, size_px):
        width, height = image.info.get(FULL_SIZE, image.size)
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        x, y = image.width / width, image.height / height  # 1 unless it was decoded at reduced scale
        x0, y0, x1, y1 = left * x, top * y, (left + side) * x, (top + side) * y
        column, row = math.floor(x0), math.floor(y0)
        square = image.crop((column, row, math.ceil(x1), math.ceil(y1)))
        box = (x0 - column, y0 - row, x1 - column, y1 - row)  # all of the square, unless it ends between two pixels
        image = square.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    return np.array(image, dtype=np.uint8)


def _decode(table: LabelTable, row: int, size_px: int) -> tuple[Pixels, Problem | None]:
    """One image's pixels, or zeros and what is wrong with it."""
    try:
        return resize_to_square(table.image(row, side_px=size_px), size_px=size_px), None
    except DataError as error:
        return np.zeros((size_px, size_px, 3), dtype=np.uint8), error.problems[0]


# ------------------------------------------------------------------------------------------------------ cached on disk


def build_cache(table: LabelTable, *, size_px: int, folder: Path | None = None) -> PixelCache:
    """Decode every image of the table once into one file, or open that file if it is there already.

    The file is named by what its pixels depend on: the images (not their labels), the size, the resize rule and the
    format. Several runs may ask for the same one at once: the first builds, the others wait for it. It appears under
    its name only when complete, so a build killed half-way is never taken for one; what it left behind is removed by
    the next.

    Args:
      size_px: height and width of the decoded images, see `resize_to_square`.
      folder: where to keep the file, `default_cache_folder()` if None; made if missing.

    Returns: the cache, with the images that could not be read as `problems` (known on a hit as well).
    Raises: ConfigError if size_px is not positive, or the folder has no room or cannot be written.
    """
    _check_size(size_px)
    folder = default_cache_folder() if folder is None else folder
    key = {
        "images": table.images_digest,
        "n_rows": len(table),
        "size_px": size_px,
        "resize": RESIZE_RULE,
        "format": CACHE_FORMAT,
    }
    name = "pixels-" + hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path, notes = folder / f"{name}.npy", folder / f"{name}.json"
    with write_errors_explained("decoded images", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            for leftover in folder.glob(f".{name}.*.tmp"):  # we hold the lock: whoever wrote it is gone
                leftover.unlink()
            return _open(path, notes, key) or _build(table, path, notes, key)


def decoded(table: LabelTable, *, size_px: int) -> PixelCache:
    """Every image of a small table decoded once, into memory; parameters and errors as for `build_cache`."""
    _check_size(size_px)
    pixels = np.zeros((len(table), size_px, size_px, 3), dtype=np.uint8)
    return PixelCache(pixels, problems=_decode_all(table, pixels) if len(table) else ())


def _open(path: Path, notes: Path, key: dict[str, Any], *, is_new: bool = False) -> PixelCache | None:
    """The finished cache, or None if there is none, or one that was altered from outside."""
    try:
        written = json_of(notes.read_text(encoding="utf-8"))
        pixels = np.load(path, mmap_mode="r" if key["n_rows"] else None)
        problems = [Problem(**problem) for problem in written["problems"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError):
        return None
    shape = (key["n_rows"], key["size_px"], key["size_px"], 3)
    are_known = all(problem.kind in PROBLEM_KINDS for problem in problems)  # or another version named them
    if written.get("key") != key or pixels.shape != shape or pixels.dtype != np.uint8 or not are_known:
        return None
    if not is_new and "sums" in written and (what := checksums.fault(path, written["sums"])):
        say(f"decoded images {path}: the file {what}; they are made anew")
        return None
    return PixelCache(pixels, problems=problems)


def _build(table: LabelTable, path: Path, notes: Path, key: dict[str, Any]) -> PixelCache:
    shape = (len(table), key["size_px"], key["size_px"], 3)
    with replacing(path) as temporary, replacing(notes) as temporary_notes:
        problems: list[Problem] = []
        if len(table):
            check_room("decoded images", path.parent, n_bytes=math.prod(shape), instead="lower --cache-limit-gb")
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(temporary)
            problems = _decode_all(table, pixels)
            pixels.flush()
            del pixels
        else:
            with temporary.open("wb") as file:
                np.save(file, np.zeros(shape, dtype=np.uint8))
        notes_of = {
            "key": key,
            "problems": [asdict(problem) for problem in problems],
            "sums": checksums.sums_of(temporary),
        }
        text = json.dumps(notes_of, ensure_ascii=False)
        temporary_notes.write_text(text, encoding="utf-8")
        path.unlink(missing_ok=True)  # a damaged one: the notes are never seen beside it
    built = _open(path, notes, key, is_new=True)
    assert built is not None, "a cache just written opens"
    return built


def _decode_all(table: LabelTable, pixels: Pixels) -> list[Problem]:
    """Fill pixels [N, H, W, 3] in place; returns what could not be read, in row order, and notices."""
    size_px = pixels.shape[1]

    def fill(row: int, image: Image.Image) -> None:
        pixels[row] = resize_to_square(image, size_px=size_px)

    chunk = max(1, min(256, 2**20 // pixels[0].nbytes))  # about a megabyte a turn
    return list(each_image(table, "decoding images", fill, side_px=size_px, n_rows_at_once=chunk))


def check_room(what: str, folder: Path, *, n_bytes: int, instead: str) -> None:
    """Refuse, with a ConfigError, to begin a file that the disk has no room for.

    Args:
      what: what is kept in the file.   folder: where.   n_bytes: its size.   instead: another way out than more room.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise ConfigError(
            f"no room for the {what} in {folder}: {n_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            fix=f"free some space, name another folder in LABELWRIGHT_CACHE, or {instead}",
        )


def _reserve(path: Path) -> None:
    """Claim the blocks of a sparse file: writing to a mapped file on a disk that fills up would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def write_errors_explained(what: str, folder: Path) -> Iterator[None]:
    """Turn an error of the disk into a ConfigError that names ``what`` is kept in ``folder``."""
    try:
        yield
    except (OSError, DiskError) as error:
        reason = error.reason if isinstance(error, DiskError) else error.strerror or error
        raise ConfigError(
            f"cannot keep {what} in {folder}: {reason}",
            fix="name a folder that can be written, with room, in LABELWRIGHT_CACHE",
        ) from error


def _check_size(size_px: int) -> None:
    if size_px < 1:
        raise ConfigError(f"size_px must be at least 1, not {size_px}", fix="use the side the model expects, e.g. 224")


# -------------------------------------------------------------------------------------------------- decoded on the fly


class StreamedPixels:
    """Decodes when asked, for sets too large to keep decoded: same pixels as `build_cache`, bit for bit.

    `prefetch` starts decoding in the background; `read` waits for what is under way and decodes the rest.

    Args:
      size_px: height and width of the decoded images, see `resize_to_square`.

    Raises: ConfigError if size_px is not positive.
    """

    def __init__(self, table: LabelTable, *, size_px: int) -> None:
        _check_size(size_px)
        self._table = table
        self.n_rows, self.size_px = len(table), size_px
        self._pool = decoding_threads()
        self._ahead: OrderedDict[int, Future[tuple[Pixels, Problem | None]]] = OrderedDict()
        self._problems: dict[int, Problem] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Images found unreadable among those read so far, in row order; their pixels are zero."""
        return tuple(self._problems[row] for row in sorted(self._problems))

    def read(self, rows: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 on the CPU, for rows [B] int64 within 0..N-1."""
        wanted = rows.tolist()
        futures = {row: self._ahead.pop(row) if row in self._ahead else self._start(row) for row in set(wanted)}
        out = np.empty((len(wanted), self.size_px, self.size_px, 3), dtype=np.uint8)
        for place, row in enumerate(wanted):
            out[place], problem = futures[row].result()
            if problem is not None:
                self._problems[row] = problem
        return torch.from_numpy(out)

    def prefetch(self, rows: Tensor) -> None:
        """Start decoding rows [B] int64 in the background."""
        for row in rows.tolist():
            if row not in self._ahead:
                self._ahead[row] = self._start(row)
        while len(self._ahead) > _MAX_AHEAD:
            _, dropped = self._ahead.popitem(last=False)
            dropped.cancel()

    def close(self) -> None:
        """Drop what is waiting and end the decoding threads."""
        self._ahead.clear()
        self._pool.shutdown(cancel_futures=True)

    def _start(self, row: int) -> Future[tuple[Pixels, Problem | None]]:
        return self._pool.submit(_decode, self._table, row, self.size_px)


def open_pixels(table: LabelTable, *, size_px: int, limit_gb: float) -> PixelCache | StreamedPixels:
    """The table's pixels: cached on disk if they take at most limit_gb decoded, else decoded on the fly.

    Args:
      table, size_px: see `build_cache`; errors as there.
      limit_gb: in 10^9 bytes; a decoded image takes 3 size_px^2 bytes (0.15 MB at 224 px).
    """
    if len(table) * 3 * size_px**2 > limit_gb * 1e9:
        return StreamedPixels(table, size_px=size_px)
    return build_cache(table, size_px=size_px)
