"""Pictures of the images of a run, made when they are asked for; small ones are kept in the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelwright.errors import LabelwrightError
from labelwright.replacing import replacing

SMALL_PX, LARGE_PX = 192, 1600  # of the longer side, at most
FOLDER = "review/pictures"  # of a run folder

OpenImages = Callable[[], tuple[Any, Any]]
"""Returns ids [M] (Arrow strings) and their `data.table.Images`."""


class Pictures:
    """Pictures by row of a run, as WebP. What a person can name is a row: nothing but the run's images is ever read.

    Args:
      run: folder.   ids: [N] Arrow strings, of its rows.   open_images: called once, when the first is asked for.
    """

    def __init__(self, run: Path, ids: Any, open_images: OpenImages) -> None:
        self._folder, self._ids, self._open_images = run / FOLDER, ids, open_images
        self._images: Any = None
        self._at: Any = None  # [N] place of each row among the images, -1 = not there
        self._opening = threading.Lock()
        self._making = [threading.Lock() for _ in range(64)]
        self.problem = ""  # why there are none

    def open(self) -> bool:
        """Find the images, once; whether there are any."""
        with self._opening:
            if self._at is None:
                try:
                    ids, self._images = self._open_images()
                    at = pc.index_in(self._ids.cast(pa.string()), value_set=ids.cast(pa.string()))
                    self._at = np.asarray(at.fill_null(-1))
                except (LabelwrightError, OSError) as error:
                    self._at, self.problem = np.full(len(self._ids), -1), str(error)
            return not self.problem

    def small(self, row: int) -> bytes | None:
        """A picture of at most SMALL_PX of row 0..N-1; None where the image cannot be read."""
        key = hashlib.blake2b(str(self._ids[row]).encode(), digest_size=16).hexdigest()
        path = self._folder / key[:2] / f"{key}.webp"
        with self._making[int(key[:2], 16) % len(self._making)]:  # two pages may ask for the same one
            with contextlib.suppress(OSError):
                return path.read_bytes()
            made = self._made(row, SMALL_PX)
            if made is not None:
                with contextlib.suppress(OSError):  # a full disk: it is made again next time
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as temporary:
                        temporary.write_bytes(made)
            return made

    def large(self, row: int) -> bytes | None:
        """The same of at most LARGE_PX; not kept."""
        return self._made(row, LARGE_PX)

    def _made(self, row: int, edge_px: int) -> bytes | None:
        if not self.open() or self._at[row] < 0:
            return None
        try:
            image = self._images.decode(int(self._at[row]), side_px=edge_px).image
        except (LabelwrightError, OSError):
            return None
        image.thumbnail((edge_px, edge_px))
        buffer = io.BytesIO()
        image.save(buffer, format="webp", quality=80, method=1)
        return buffer.getvalue()
