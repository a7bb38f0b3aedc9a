"""Pictures of images in the folder of a run: gallery.json, which is all of the images that a report can show."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from labelwright.data.table import LabelTable
from labelwright.errors import DataError
from labelwright.parsing import json_of
from labelwright.run_folder import write_text_atomically

GALLERY_FILE = "gallery.json"
LARGE_PX, SMALL_PX = 256, 80  # longer side of an image to check, and of one beside others
LARGE_CHARS, SMALL_CHARS = 2_900_000, 800_000  # of all such pictures of a run: a page of under 4 MB
EMPTY: Mapping[str, Any] = {"items": {}, "large": {}, "small": {}, "samples": {}, "matrix": None, "trust": None}


def picture(image: Image.Image, edge_px: int = LARGE_PX) -> str:
    """An RGB image as a data URL: a WebP of at most ``edge_px``, lossless where the image is tiny.

    Example:
      >>> picture(Image.new("RGB", (4, 4)))[:23], len(picture(Image.new("RGB", (900, 600)), 80)) < 200
      ('data:image/webp;base64,', True)
    """
    small, buffer = image.convert("RGB"), io.BytesIO()
    is_tiny = max(small.size) <= 40
    small.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    small.save(buffer, format="webp", lossless=is_tiny, quality=80 if is_tiny else 68, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def pictures(table: LabelTable, rows: Iterable[int], *, edge_px: int, chars_max: int) -> dict[str, str]:
    """Id -> picture, of rows of a table; unreadable images are left out, and whatever is beyond ``chars_max``.

    Example:
      >>> import datasets; from labelwright.data.read import load
      >>> table = load(datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2))] * 3, "label": ["a", "b", "a"]}))
      >>> list(pictures(table, [2, 0], edge_px=80, chars_max=1000))
      ['2', '0']
    """
    found: dict[str, str] = {}
    used = 0
    for row in rows:
        try:
            one = picture(table.image(row), edge_px)
        except DataError:  # gone since it was decoded for training
            continue
        used += len(one)
        if used > chars_max:
            break
        found[str(table.ids[row].as_py())] = one
    return found


def write_gallery(folder: Path, content: Mapping[str, Any]) -> None:
    """Write gallery.json: see `EMPTY` for its keys.

    items: id -> {top: [[class, probability]], neighbours: [[id, label, source]], history: [[who, label]], and for a
      test mistake label, rather, probability}; large, small: id -> picture; samples: class -> ids; matrix: [C][C]
      counts of test images, row: the truth; trust: see `pipeline.gallery.trust_against`.
    """
    write_text_atomically(folder / GALLERY_FILE, json.dumps({**EMPTY, **content}, allow_nan=False) + "\n")


def read_gallery(folder: Path) -> dict[str, Any]:
    """What gallery.json holds, `EMPTY` for a run that has none; only data URLs of images are taken for pictures.

    Raises: DataError: a file that cannot be read.
    """
    path = folder / GALLERY_FILE
    if not path.is_file():
        return dict(EMPTY)
    try:
        content: Any = json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="restore it from the run, or remove it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys and values", fix="restore it from the run, or remove it")
    for size in ("large", "small"):
        kept = (content.get(size) or {}).items()
        content[size] = {str(key): url for key, url in kept if str(url).startswith("data:image/webp;base64,")}
    return {**EMPTY, **content}


def rename_in_gallery(folder: Path, rename: Mapping[str, str | None]) -> None:
    """Give classes other names in gallery.json; nothing for a run without one.

    Probabilities of classes that become one are added up; those of a class that becomes None, which is gone, are shared
    out among the others as a softmax without it does.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> write_gallery(folder, {"items": {"1": {"top": [["novel-1", 0.9]]}}, "samples": {"novel-1": ["1"]}})
      >>> rename_in_gallery(folder, {"novel-1": "okapi"}); read_gallery(folder)["samples"]
      {'okapi': ['1']}
    """
    if not (folder / GALLERY_FILE).is_file():
        return
    found = read_gallery(folder)
    for item in found["items"].values():
        left = dict[str | None, float]()
        for name, p in item.get("top") or []:
            left[rename.get(name, name)] = left.get(rename.get(name, name), 0.0) + p
        rest = 1 - left.pop(None, 0.0)
        surest = sorted(left.items(), key=lambda pair: -pair[1])
        item["top"] = [[name, round(p / max(rest, p, 1e-6), 4)] for name, p in surest]
        who_says = [[who, rename.get(name, name)] for who, name in item.get("history") or []]
        item["history"] = [[who, name] for who, name in who_says if name is not None]
        near = [[key, rename.get(name, name), how] for key, name, how in item.get("neighbours") or []]
        item["neighbours"] = [[key, name, how] for key, name, how in near if name is not None]
        item |= {key: rename.get(item[key], item[key]) for key in ("label", "rather") if key in item}
    samples = [(rename.get(name, name), ids) for name, ids in found["samples"].items()]
    found["samples"] = {name: ids for name, ids in samples if name is not None}
    write_gallery(folder, found)
