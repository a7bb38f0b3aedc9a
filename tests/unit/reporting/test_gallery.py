"""gallery.json: pictures of images as WebP, what is kept of a file, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwright.data.read import load
from labelwright.errors import DataError
from labelwright.reporting.gallery import (
    GALLERY_FILE,
    LARGE_PX,
    SMALL_PX,
    picture,
    pictures,
    read_gallery,
    write_gallery,
)
from pictures import write_folders


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_picture__is_a_webp_of_at_most_its_edge_and_tiny_ones_are_exact() -> None:
    draw = np.random.default_rng(0)
    large = Image.fromarray(draw.integers(0, 255, (300, 600, 3)).astype(np.uint8))
    assert opened(picture(large)).size == (LARGE_PX, LARGE_PX // 2)
    assert opened(picture(large, SMALL_PX)).size == (SMALL_PX, SMALL_PX // 2)
    tiny = draw.integers(0, 255, (9, 8, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(opened(picture(Image.fromarray(tiny))).convert("RGB")), tiny)


def test_pictures__an_image_that_is_gone_has_none_and_there_is_a_limit(tmp_path: Path) -> None:
    table = load(write_folders(tmp_path / "photos", {"ant": 2, "bee": 2}))
    (tmp_path / "photos" / "ant" / "1.png").unlink()
    found = pictures(table, [3, 1, 0], edge_px=SMALL_PX, chars_max=10_000)
    assert list(found) == ["bee/1.png", "ant/0.png"]
    limit = len(found["bee/1.png"])
    assert list(pictures(table, [3, 0], edge_px=SMALL_PX, chars_max=limit)) == ["bee/1.png"]
    write_gallery(tmp_path, {"large": {"x": found["ant/0.png"]}, "samples": {"ant": ["x"]}})
    assert set(read_gallery(tmp_path)["large"]) == {"x"}
    assert read_gallery(tmp_path)["samples"] == {"ant": ["x"]}


def test_read_gallery__none_broken_and_foreign(tmp_path: Path) -> None:
    assert read_gallery(tmp_path)["items"] == {}
    found = {"large": {"a": "https://example.org/a.webp", "b": "data:image/webp;base64,UklGRg=="}, "small": None}
    (tmp_path / GALLERY_FILE).write_text(json.dumps(found))
    assert set(read_gallery(tmp_path)["large"]) == {"b"}
    for broken in ("{", "[]"):
        (tmp_path / GALLERY_FILE).write_text(broken)
        with pytest.raises(DataError, match=GALLERY_FILE):
            read_gallery(tmp_path)
