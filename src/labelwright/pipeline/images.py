"""The images of a finished run, found again, and pictures of some of them for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from labelwright.data.columns import named_columns
from labelwright.data.images import Decoding
from labelwright.data.prepare import is_embeddings, read, resolved_path
from labelwright.data.table import Images
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.settings import is_in_memory
from labelwright.replacing import whole_folder
from labelwright.run_folder import Run

SIDES_PX = (128, 1024)  # of the longer side of a picture: smaller images are enlarged, larger ones reduced


def images_of(run: Run, data: Any = None) -> tuple[Any, Images]:
    """Ids [M], Arrow strings, and images of what a run learned from; or of ``data``, if they are no longer there.

    Raises: ConfigError if the run names none; LabelwrightError where they cannot be read.
    """
    data = run.config.get("data") if data is None else data
    if is_in_memory(data):
        raise ConfigError(
            f"the images were in memory, and {run.path} keeps no copy", fix="pass them again from Python, as data="
        )
    if not is_embeddings(data):
        decoding = Decoding(**run.read("model/config.json").get("decoding", {}))
        columns = named_columns(image=run.config.get("image_column"))
        table = read(data, only_images=True, columns=columns, answered_by=run.answered_by, decoding=decoding)
        return table.ids, table.images
    path = Path(resolved_path(data)).expanduser()
    if path.suffix == ".npz":
        with np.load(path) as file:
            if "paths" in file.files:
                paths = file["paths"].astype(str)
                ids = file["ids"].astype(str) if "ids" in file.files else paths
                return pa.array(ids), Images(
                    pa.array(paths.tolist(), pa.large_string()), root=str(path.resolve().parent)
                )
    raise ConfigError(f"{path} holds embeddings and no paths of images", fix="name the images: --data photos/")


def to_look_at(found: tuple[Any, Images], ids: Sequence[str], folder: Path) -> list[str]:
    """Where a person finds each of some images: its file, or a picture written for images that are not files.

    Args:
      found: of `images_of`.   ids: of the images, in the order of the pictures.   folder: made if there are any.

    Returns: paths, empty for an id that is not there and an image that cannot be read.
    """
    known, images = found
    at = pc.index_in(pa.array(ids, pa.string()), value_set=known.cast(pa.string())).to_pylist()
    paths, embedded = [""] * len(ids), dict[int, int]()
    for i, row in enumerate(at):
        source = b"" if row is None else images.sources(np.array([row]))[0]
        if isinstance(source, str):
            paths[i] = source
        elif row is not None:
            embedded[i] = row
    if embedded:
        with whole_folder(folder) as building:
            for i, row in embedded.items():
                try:
                    image = images.decode(row, side_px=SIDES_PX[1]).image
                except DataError:
                    continue
                name = f"{i + 1:0{len(str(len(ids)))}d}.png"
                _sized(image).save(building / name)
                paths[i] = str(folder / name)
    return paths


def _sized(image: Image.Image) -> Image.Image:
    """The image with its longer side within `SIDES_PX`, enlarged in whole pixels.

    Example:
      >>> _sized(Image.new("L", (8, 4))).size, _sized(Image.new("L", (4096, 512))).size
      ((128, 64), (1024, 128))
    """
    times = SIDES_PX[0] // max(image.size)
    if times > 1:
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((SIDES_PX[1], SIDES_PX[1]))
    return image
