"""Small pictures of images, kept in the run folder for its report, which reads nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from labelwright.data.table import LabelTable
from labelwright.errors import DataError
from labelwright.run_folder import write_text_atomically

THUMBNAILS_FILE = "thumbnails.json"  # of a run folder: id of an image -> data URL
EDGE_PX = 112  # of the longer side; smaller images stay as they are


def thumbnail(image: Image.Image) -> str:
    """An RGB image as a data URL: PNG if it is small already, else a JPEG of at most `EDGE_PX`.

    Example:
      >>> thumbnail(Image.new("RGB", (4, 4)))[:22], thumbnail(Image.new("RGB", (400, 200)))[:23]
      ('data:image/png;base64,', 'data:image/jpeg;base64,')
    """
    is_small = max(image.size) <= EDGE_PX // 2
    small = image.copy()
    small.thumbnail((EDGE_PX, EDGE_PX))
    kind, buffer = "png" if is_small else "jpeg", io.BytesIO()
    small.save(buffer, format=kind, **({} if is_small else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def write_thumbnails(folder: Path, table: LabelTable, rows: Iterable[int]) -> None:
    """Write the pictures of some rows of a table into a run folder; an image that cannot be read has none.

    Example:
      >>> import tempfile, datasets; from labelwright.data.read import load
      >>> folder = Path(tempfile.mkdtemp())
      >>> table = load(datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2))] * 2, "label": ["a", "b"]}))
      >>> write_thumbnails(folder, table, [1]); list(read_thumbnails(folder))
      ['1']
    """
    found = {}
    for row in rows:
        try:
            found[str(table.ids[row].as_py())] = thumbnail(table.image(row))
        except DataError:  # gone since it was decoded for training
            continue
    write_text_atomically(folder / THUMBNAILS_FILE, json.dumps(found) + "\n")


def read_thumbnails(folder: Path) -> dict[str, str]:
    """Id of an image -> its picture, as a data URL; empty for a run that kept none.

    Raises: DataError: a file that cannot be read.
    """
    path = folder / THUMBNAILS_FILE
    if not path.is_file():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="restore it from the run, or remove it") from error
    kept = content.items() if isinstance(content, dict) else ()
    return {str(name): url for name, url in kept if str(url).startswith("data:image/")}
