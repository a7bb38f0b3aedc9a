"""Images that are in memory, PIL's or arrays, as the encoded images of a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from labelwright.errors import ConfigError

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class EncodedImages:
    """N encoded images, with what `data.table.Images` asks of a `datasets.Dataset`."""

    cells: tuple[dict[str, Any], ...]  # bytes or path of each
    places: tuple[str, ...] = ()  # where the user finds each; empty: by its row

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.cells)

    @property
    def data(self) -> EncodedImages:
        """What has a size."""
        return self

    @property
    def nbytes(self) -> int:
        """Of all images in memory."""
        return sum(len(cell["bytes"] or b"") for cell in self.cells)

    def select(self, rows: Sequence[int]) -> EncodedImages:
        """The images of some rows, in that order."""
        places = tuple(self.places[int(row)] for row in rows) if self.places else ()
        return EncodedImages(tuple(self.cells[int(row)] for row in rows), places)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        return {"image": [self.cells[row] for row in rows]}


def is_image(item: Any) -> bool:
    """Whether something is an image in memory, or an array of several.

    Example:
      >>> is_image(Image.new("L", (2, 2))), is_image(np.zeros((2, 2))), is_image("a.png")
      (True, True, False)
    """
    return isinstance(item, (Image.Image, np.ndarray)) or hasattr(item, "__array__")


def encoded(items: Sequence[Any]) -> EncodedImages:
    """Images and paths of some, losslessly encoded; an array [n, H, W, 3] is n images.

    Args:
      items: PIL images of any mode; arrays or tensors [H, W], [H, W, c] or [c, H, W] with c 1, 3 or 4: uint8, uint16
        grey, or floats in 0 to 1 (or to 255); paths.

    Raises: ConfigError for an array that is no image.

    Example:
      >>> encoded([np.zeros((5, 4, 4, 3), np.uint8), Image.new("L", (2, 2))]).num_rows
      6
    """
    cells: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, (str, Path)):
            cells.append({"bytes": None, "path": str(Path(item).expanduser())})
        elif isinstance(item, Image.Image):
            cells.append({"bytes": _bytes_of(item), "path": None})
        else:
            array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
            several = array if array.ndim == 4 else array[None]
            cells += [{"bytes": _bytes_of(_picture(each)), "path": None} for each in several]
    return EncodedImages(tuple(cells))


def _bytes_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    upright = ImageOps.exif_transpose(image)
    upright.save(file, "png" if upright.mode in _PNG_MODES else "tiff")
    return file.getvalue()


def _picture(array: Any) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if np.issubdtype(array.dtype, np.floating) and is_shape and array.size and np.isfinite(array).all():
        array = (array * (255 if array.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    is_kind = array.dtype == np.uint8 or (array.dtype == np.uint16 and array.ndim == 2)
    if not (is_shape and is_kind and array.size):
        raise ConfigError(
            f"an array of {array.dtype} {list(shape)} is no image",
            fix="give uint8, or finite floats in 0 to 1, of [H, W], [H, W, 3] or [3, H, W]",
        )
    return Image.fromarray(np.ascontiguousarray(array))
