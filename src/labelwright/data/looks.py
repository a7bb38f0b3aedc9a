"""What each image looks like in a few numbers: a hash of its pixels, its size, a small grey picture of the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from labelwright.data.checks import OnBad, digest, each_image, resolve_problems
from labelwright.data.table import LabelTable

THUMB_PX = 32
_ROWS_PER_ROUND = 512  # images scaled at once


@dataclass(frozen=True, eq=False)
class Looks:
    """Of N images."""

    digests: list[bytes]  # N; two are the same where all pixels of two images are equal
    sides_px: npt.NDArray[np.int32]  # [N, 2] int32, width and height
    thumbs: npt.NDArray[np.uint8]  # [N, 32, 32] uint8, the whole image in grey, its sides scaled to 32 px each


def numbered(items: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """The same number for equal items, counted from 0 in the order in which they first appear: [N] int64.

    Example:
      >>> numbered([b"cat", b"dog", b"cat"]).tolist()
      [0, 1, 0]
    """
    hashes = bytearray()
    for item in items:
        hashes += hashlib.blake2b(item, digest_size=16).digest()
    halves = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    by = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: of equal ones the first comes first
    is_first = np.ones(len(by), bool)
    is_first[1:] = (halves[by[1:]] != halves[by[:-1]]).any(axis=1)
    first = np.empty(len(by), np.int64)  # of each item, the first that is its equal
    first[by] = by[is_first][np.cumsum(is_first) - 1]
    return (np.cumsum(first == np.arange(len(first))) - 1)[first]


def thumb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """An image as [32, 32] uint8 grey, squeezed where it is no square.

    Example:
      >>> thumb(Image.new("RGB", (40, 20), (50, 50, 50)))[0, :2].tolist()
      [50, 50]
    """
    return np.asarray(image.convert("L").resize((THUMB_PX, THUMB_PX), Image.Resampling.BICUBIC))


def grey_thumbs(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Decoded images [N, H, W, 3] uint8 as [N, 32, 32] uint8 grey.

    Example:
      >>> grey_thumbs(torch.full((1, 64, 64, 3), 50, dtype=torch.uint8))[0, 0, :2].tolist()
      [50, 50]
    """
    out = np.zeros((len(pixels), THUMB_PX, THUMB_PX), dtype=np.uint8)
    for first in range(0, len(pixels), _ROWS_PER_ROUND):
        grey = pixels[first : first + _ROWS_PER_ROUND].float() @ torch.tensor([0.299, 0.587, 0.114])
        small = F.interpolate(grey[:, None], size=(THUMB_PX, THUMB_PX), mode="bicubic", antialias=True)[:, 0]
        out[first : first + _ROWS_PER_ROUND] = small.round().clamp(0, 255).numpy()
    return out


def look_at(table: LabelTable, *, on_bad: OnBad = "stop") -> tuple[LabelTable, Looks]:
    """Decode every image once.

    Args:
      table: images.   on_bad: "stop", or "skip" those that cannot be decoded or whose row has another problem.

    Returns: the table without the rows that were left out, and the looks of its rows.

    Raises: DataError with every problem (on "stop").

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from labelwright.data.read import load
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name, grey in (("a.png", 0), ("b.bmp", 0), ("c.png", 9)):
      ...     Image.new("L", (8, 6), grey).save(folder / name)
      >>> numbered(look_at(load(folder))[1].digests).tolist()
      [0, 0, 1]
    """
    thumbs = np.zeros((len(table), THUMB_PX, THUMB_PX), dtype=np.uint8)
    sides = np.zeros((len(table), 2), dtype=np.int32)
    digests = [b""] * len(table)

    def look(row: int, image: Image.Image) -> None:
        thumbs[row], sides[row] = thumb(image), image.size
        digests[row] = digest(image)

    problems = each_image(table, "looking at images", look)
    kept = resolve_problems(table, [*table.problems, *problems], on_bad)
    bad = [problem.row for problem in kept.quarantined if problem.row is not None]
    rows = np.setdiff1d(np.arange(len(table)), np.array(bad, dtype=np.int64))
    return kept, Looks([digests[row] for row in rows], sides[rows], thumbs[rows])
