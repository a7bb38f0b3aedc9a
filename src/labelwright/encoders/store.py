"""A frozen encoder run once over every image and its augmented views, and the features kept as float16 on the disk.

What a store holds depends on the encoder, the images and how the views are drawn, never on labels or classes: another
class list, another method or another seed of training reads the same store. Training on it never runs the encoder.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from labelwright import checksums
from labelwright.data.cache import (
    CACHE_FORMAT,
    RESIZE_RULE,
    PixelSource,
    check_room,
    default_cache_folder,
    write_errors_explained,
)
from labelwright.data.stored import EmbeddingStore, Halves
from labelwright.data.views import PixelViews
from labelwright.errors import ConfigError, Problem
from labelwright.launch import rank
from labelwright.parsing import json_of
from labelwright.replacing import replacing
from labelwright.train import progress as progress_shown
from labelwright.train.processes import gather_objects, gather_rows, n_processes
from labelwright.train.seeds import derive_seed

STORE_FORMAT = 1  # part of every key: raise it whenever the same views would be drawn or laid out otherwise

_SAVE_EVERY_S = 2.0  # a killed build loses at most this much work
_BATCHES_AHEAD = 2  # views made while the encoder runs; two, as strong views take longer than clean ones
_WRITES_BEHIND = 4  # batches of features that may wait for the disk

Job = tuple[int, int]  # which of this process's chunks of rows, which plane of the store
Made = tuple[Job, Tensor]
Encode = Callable[[Tensor], Tensor]
"""Views [B, 3, H, W] float32 -> feats [B, D]."""
Progress = Callable[[int], None]
"""Called with the number of images done so far."""


# ------------------------------------------------------------------------------------------------------------ building


def build_store(
    views: PixelViews,
    encode: Encode,
    *,
    identity: str,
    images_digest: str,
    n_views: int,
    seed: int,
    n_features: int,
    folder: Path | None = None,
    device: torch.device,
    batch_size: int = 256,
    memory_gb: float = 1.0,
    progress: Progress | None = None,
    shared: bool = False,
) -> EmbeddingStore:
    """Encode every image clean, in V weak and in V strong views, or open the store that holds just this already.

    View v of a row depends on (seed, v, the image's row in the pixels behind ``views``). The next batches are augmented
    and the last ones written while the encoder runs. A build killed at any moment goes on where it was, to the same
    content. Several processes may ask for the same store at once: the first builds, the others wait for it; processes
    of one run build it together, each the n-th batches, where all of them ask (``shared``).

    Args:
      views: N images and how they are augmented.
      encode: maps views [B, 3, H, W] float32 on ``device`` to feats [B, D]; called without gradients.
      identity: what tells the encoder from others: hash of weights and configuration, and the precision.
      images_digest: what tells the images from others, see data.table.LabelTable.images_digest.
      n_views: V, 0 or more; 0 stores the clean view alone.   seed: of the augmentation.   n_features: D.
      folder: where stores are kept, one folder each; None = ``embeddings`` in `default_cache_folder()`.
      device: where views are made and encoded.   batch_size: images encoded together.
      memory_gb: a store of at most so many 10^9 bytes is read into memory: then no step ever waits for the disk.
      progress: called with the number of images done so far; not at all when the store is there already.
      shared: whether every process of the run is here.

    Raises: ConfigError if a number is out of range, the folder has no room or cannot be written, or the encoder gives
      values that float16 cannot hold.
    """
    if n_views < 0 or batch_size < 1:
        raise ConfigError(f"n_views={n_views}, batch_size={batch_size} is not possible", fix="say 4 and 256")
    folder = default_cache_folder() / "embeddings" if folder is None else Path(folder)
    shape = (1 + 2 * n_views, views.n_rows, n_features)
    if not views.n_rows:
        return EmbeddingStore(np.zeros(shape, dtype=np.float16))
    key = {
        "identity": identity,
        "views": repr(views.settings),
        "size_px": views.pixels.size_px,
        "decoding": f"{RESIZE_RULE} {CACHE_FORMAT}",
        "images": images_digest,
        "shape": list(shape),
        "seed": seed,
        "format": STORE_FORMAT,
    }
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    files = _Files(folder / name, key)
    sharing = Sharing(rank(), n_processes()) if shared else Sharing()
    if sharing.agreed(files.n_done()) < views.n_rows:  # a finished store is never locked: its folder may be read-only
        lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if sharing.is_main:
            with write_errors_explained("features", folder):
                folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(folder / f"{name}.lock").acquire()
        with lock:
            n_done = sharing.agreed(files.n_done())
            if n_done < views.n_rows:
                _build(files, views, encode, progress, n_done, sharing, device=device, batch_size=batch_size)
    return files.open(memory_gb)


@dataclass(frozen=True)
class Sharing:
    """Which of ``n`` processes this is, of those that build a store together; the first one writes it."""

    index: int = 0
    n: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one writes."""
        return self.index == 0

    def agreed(self, n_done: int) -> int:
        """What the writing process found."""
        return n_done if self.n == 1 else gather_objects(n_done)[0]

    def own(self, n_chunks: int) -> list[int]:
        """Its chunks: every n-th; the last one once more where the others have one more, so that all have as many.

        Example:
          >>> Sharing(0, 2).own(3), Sharing(1, 2).own(3)
          ([0, 2], [1, 2])
        """
        return [min(first + self.index, n_chunks - 1) for first in range(0, n_chunks, self.n)]

    def exchanged(self, z: Tensor, batch_size: int) -> list[Tensor]:
        """The features [b, D] of each process, padded to [batch_size, D] where there are several."""
        if self.n == 1:
            return [z]
        padded = torch.nn.functional.pad(z, (0, 0, 0, batch_size - len(z)))
        return list(gather_rows(padded).view(batch_size, self.n, -1).unbind(1))


class _Files:
    """The folder of one store: feats.npy, and progress.json with how many rows of it are complete.

    Features are written with plain writes, not through the memory map: a full disk is then an error, not a SIGBUS.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, key
        self.shape: tuple[int, int, int] = tuple(key["shape"])
        self.feats, self.notes = folder / "feats.npy", folder / "progress.json"
        self.saved_s = time.monotonic()

    def n_done(self) -> int:
        """Rows complete in all views; 0 if there is no store, or one altered from outside."""
        try:
            written = json_of(self.notes.read_text(encoding="utf-8"))
            feats = np.load(self.feats, mmap_mode="r")
            fits = written["key"] == self.key and feats.shape == self.shape and feats.dtype == np.float16
            if not fits:
                return 0
            if "sums" in written and (what := checksums.fault(self.feats, written["sums"])):
                progress_shown.say(f"stored features {self.feats}: the file {what}; they are made anew")
                return 0
            return min(int(written["n_done"]), self.shape[1])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return 0

    def open(self, memory_gb: float) -> EmbeddingStore:
        """The finished store."""
        feats: Halves = np.load(self.feats, mmap_mode="r")
        if feats.nbytes <= memory_gb * 1e9:
            feats = np.array(feats)
        return EmbeddingStore(feats)

    def create(self) -> None:
        """Make the empty file, sparse; whatever was there goes."""
        check_room("features", self.folder, n_bytes=2 * math.prod(self.shape), instead="store fewer views (--n-views)")
        self.notes.unlink(missing_ok=True)
        self.feats.unlink(missing_ok=True)  # whoever still reads a damaged one keeps it
        np.lib.format.open_memmap(self.feats, mode="w+", dtype=np.float16, shape=self.shape).flush()

    def save(self, n_done: int) -> None:
        """Note that rows 0..n_done-1 are complete, once they have reached the disk."""
        with self.feats.open("r+b") as file:
            os.fsync(file.fileno())
        notes: dict[str, Any] = {"key": self.key, "n_done": n_done}
        if n_done == self.shape[1]:
            notes["sums"] = checksums.sums_of(self.feats)
        with replacing(self.notes) as temporary:
            temporary.write_text(json.dumps(notes), encoding="utf-8")
        self.saved_s = time.monotonic()

    def write(self, first: int, plane: int, z: Tensor) -> None:
        """Write the features [b, D] of rows first.. in one view; note progress now and then after the last view."""
        half = z.to(torch.float16).cpu()
        if not bool(torch.isfinite(half).all()):
            row = first + int((~torch.isfinite(half)).any(1).nonzero()[0])
            raise ConfigError(
                f"the encoder gives values that float16 cannot hold, first for image {row}",
                fix="run it in full precision (--precision fp32), or check its weights",
            )
        n_planes, n_rows, n_features = self.shape
        with write_errors_explained("features", self.folder):
            with self.feats.open("r+b") as file:
                file.seek(-2 * n_features * ((n_planes - plane) * n_rows - first), os.SEEK_END)  # before it: a header
                file.write(half.numpy().tobytes())
            n_done = first + len(half)
            is_due = n_done == n_rows or time.monotonic() - self.saved_s >= _SAVE_EVERY_S
            if plane == n_planes - 1 and is_due:
                self.save(n_done)


class _ReadOnce:
    """Pixels that are read once for all views of a batch: streamed images are decoded once, not 1+2V times."""

    def __init__(self, pixels: PixelSource) -> None:
        self.n_rows, self.size_px, self.prefetch = pixels.n_rows, pixels.size_px, pixels.prefetch
        self.problems: tuple[Problem, ...] = ()
        self._pixels = pixels
        self._rows, self._read = torch.empty(0, dtype=torch.int64), torch.empty(0)

    def read(self, rows: Tensor) -> Tensor:
        """As the pixels' own."""
        if not torch.equal(rows, self._rows):
            self._rows, self._read = rows, self._pixels.read(rows)
        return self._read


def _build(
    files: _Files,
    views: PixelViews,
    encode: Encode,
    progress: Progress | None,
    n_done: int,
    sharing: Sharing,
    *,
    device: torch.device,
    batch_size: int,
) -> None:
    """Encode and write what is not there yet, batch by batch in all views; the main process writes for all."""
    n_planes, n_rows, n_features = files.shape
    with write_errors_explained("features", files.folder) if sharing.is_main else contextlib.nullcontext():
        if sharing.is_main:
            files.folder.mkdir(parents=True, exist_ok=True)
            for leftover in files.folder.glob("*.tmp"):  # we hold the lock: whoever wrote it is gone
                leftover.unlink()
            if not n_done:
                files.create()
    planes = ["clean", *["weak"] * (n_planes // 2), *["strong"] * (n_planes // 2)]
    views = copy.copy(views)
    views.pixels = _ReadOnce(views.pixels)
    chunks = list(torch.split(torch.arange(n_done, n_rows), batch_size))
    own = sharing.own(len(chunks))

    def make(job: Job) -> Tensor:
        turn, plane = job
        if plane == 0 and turn + 1 < len(own):
            views.prefetch(chunks[own[turn + 1]])
        return views.batch(
            chunks[own[turn]], planes[plane], seed=derive_seed(files.key["seed"], "store", plane), device=device
        )

    jobs = ((turn, plane) for turn in range(len(own)) for plane in range(n_planes))
    writing: deque[Future[None]] = deque()
    makers = ThreadPoolExecutor(1, thread_name_prefix="labelwright-views")
    writers = ThreadPoolExecutor(1, thread_name_prefix="labelwright-store")
    try:
        for (turn, plane), x in _made_ahead(makers, make, jobs):
            with torch.inference_mode():
                z = encode(x)
                assert z.shape == (len(x), n_features), z.shape
                parts = sharing.exchanged(z, batch_size)
            turns = chunks[turn * sharing.n : (turn + 1) * sharing.n]
            if sharing.is_main:
                for rows, part in zip(turns, parts, strict=False):
                    writing.append(writers.submit(files.write, int(rows[0]), plane, part[: len(rows)]))
            while len(writing) > _WRITES_BEHIND:
                writing.popleft().result()
            if plane == n_planes - 1 and progress is not None:
                progress(int(turns[-1][-1]) + 1)
        for future in writing:
            future.result()
        sharing.agreed(n_rows)  # the others read it once it is written
    finally:
        makers.shutdown(cancel_futures=True)
        writers.shutdown(cancel_futures=True)


def _made_ahead(pool: ThreadPoolExecutor, make: Callable[[Job], Tensor], jobs: Iterable[Job]) -> Iterator[Made]:
    """Each job with what `make` makes of it, in order, a few ahead in another thread."""
    waiting: deque[tuple[Job, Future[Tensor]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(make, job)))
        if len(waiting) > _BATCHES_AHEAD:
            ready, future = waiting.popleft()
            yield ready, future.result()
    for ready, future in waiting:
        yield ready, future.result()
