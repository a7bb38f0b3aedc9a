"""Images that are in memory, PIL's or arrays, as the encoded images of a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from labelwright.data.vectors_in_memory import columns_of_frame, is_frame, vectors_of
from labelwright.errors import ConfigError, DataError

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_CHANNELS = (1, 3, 4)
OVERSHOOT = 0.1  # by which resizing takes floats beyond black and white


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


def _is_file(item: Any) -> bool:
    """Whether something is what an image's file holds, as Parquet has it: bytes, or bytes and a path.

    Example:
      >>> _is_file(b"GIF89a"), _is_file({"bytes": b"GIF89a", "path": "a.gif"}), _is_file("a.gif")
      (True, True, False)
    """
    return isinstance(item, bytes) or (isinstance(item, Mapping) and item.keys() == {"bytes", "path"})


def columns_of(source: Any) -> dict[str, Any] | None:
    """The columns of what holds images and labels in memory; None of anything else.

    Args:
      source: a data frame, an Arrow table, a mapping of columns, a list of pairs (image or path, label), or a torch
        `Dataset` of such pairs, whose ``classes`` say what its numbers stand for.

    Raises: DataError where it is none of these by its length or its items, or holds embeddings.

    Example:
      >>> columns_of([("a.png", "cat"), ("b.png", None)]), columns_of(["a.png"])
      ({'image': ['a.png', 'b.png'], 'label': ['cat', None]}, None)
    """
    if type(source).__module__.startswith("datasets."):
        return None
    if vectors_of(source) is not None:
        raise DataError(
            f"this {type(source).__name__} holds embeddings, and images are wanted",
            fix="give it to fit, inspect, audit or label as it is, or write it with numpy.savez (docs/data.md)",
        )
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        source = {name: source[name].to_pylist() for name in source.column_names}
    if isinstance(source, Mapping):
        return {str(name): column for name, column in source.items()}
    if is_frame(source):
        return columns_of_frame(source)
    names: Any = ()
    if isinstance(source, Dataset):
        if not hasattr(source, "__len__"):
            raise DataError(f"a {type(source).__name__} has no length", fix="give a list of pairs (image, label)")
        names = getattr(source, "classes", None) or getattr(getattr(source, "dataset", None), "classes", ())
        source = [source[row] for row in range(len(source))]
    elif not (isinstance(source, (list, tuple)) and source and isinstance(source[0], tuple)):
        return None
    for row, item in enumerate(source):
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise DataError(f"item {row} is a {type(item).__name__}, not an image and its label", fix="give pairs")
    labels = [label.item() if hasattr(label, "item") else label for _, label in source]
    if names:
        known = dict(enumerate(names)) | {-1: None}
        labels = [known.get(label, label) if isinstance(label, int) else label for label in labels]
    return {"image": [image for image, _ in source], "label": labels}


def dataset_of(columns: Mapping[str, Any], image: str | None) -> Any:
    """A `datasets.Dataset` of columns; images of the column ``image`` are encoded, paths in it stay paths.

    Raises: DataError naming a column whose values are of several kinds, or that is longer or shorter than others.
    """
    import datasets

    arrays: dict[str, Any] = {}
    embedded = ""
    for name, column in columns.items():
        if name == image and not isinstance(column, pa.Array):
            values = list(column)
            if any(is_image(value) or _is_file(value) for value in values):
                column, embedded = list(encoded(values).cells), name
            else:
                column = [str(value) if isinstance(value, Path) else value for value in values]
        try:
            array = pa.array(column, from_pandas=True)
            arrays[name] = array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"the column {name!r} cannot be read: {str(error).splitlines()[0]}", fix="give values of one kind"
            ) from error
        if len(arrays[name]) != len(next(iter(arrays.values()))):
            lengths = {key: len(array) for key, array in arrays.items()}
            raise DataError(f"the columns have {lengths} rows", fix="give one value per image in each")
    made = datasets.Dataset(datasets.table.InMemoryTable.from_pydict(arrays))
    return made.cast_column(embedded, datasets.Image(decode=False)) if embedded else made


def encoded(items: Sequence[Any]) -> EncodedImages:
    """Images and paths of some, losslessly encoded; an array [n, H, W, 3] is n images.

    Args:
      items: PIL images of any mode; arrays or tensors [H, W], [H, W, c] or [c, H, W] with c 1, 3 or 4: uint8, uint16
        grey, or floats in 0 to 1 (or to 255); paths; bytes of files, or {bytes, path} as a Parquet table has them.

    Raises: ConfigError for an array that is no image, as one that was normalised.

    Example:
      >>> encoded([np.zeros((5, 4, 4, 3), np.uint8), Image.new("L", (2, 2))]).num_rows
      6
    """
    cells: list[dict[str, Any]] = []
    for item in items:
        if item is None or (isinstance(item, float) and np.isnan(item)):  # as a data frame has none
            cells.append({"bytes": None, "path": None})
        elif _is_file(item):
            cells.append({"bytes": item, "path": None} if isinstance(item, bytes) else dict(item))
        elif isinstance(item, (str, Path)):
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
        white, low, high = 1 if array.max() <= 1 + OVERSHOOT else 255, float(array.min()), float(array.max())
        if low < -OVERSHOOT * high or high > (1 + OVERSHOOT) * white:
            raise ConfigError(
                f"an array of {array.dtype} {list(shape)} holds {low:.3g} to {high:.3g}, which are not pixel values",
                fix="give floats in 0 to 1, not normalised; features go into an .npz, or {name: vector} (docs/data.md)",
            )
        array = (array * (255 / white)).round().clip(0, 255).astype(np.uint8)
    is_kind = array.dtype == np.uint8 or (array.dtype == np.uint16 and array.ndim == 2)
    if not (is_shape and is_kind and array.size):
        raise ConfigError(
            f"an array of {array.dtype} {list(shape)} is no image",
            fix="give uint8, or finite floats in 0 to 1, of [H, W], [H, W, 3] or [3, H, W]",
        )
    return Image.fromarray(np.ascontiguousarray(array))
