from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from labelwright.data.prepare import prepare
from labelwright.pipeline.copies import same_picture


def waves(n: int) -> list[Image.Image]:
    """Pictures of 48 px with soft shapes, each of its own."""
    draws = np.random.default_rng(0)
    small = draws.integers(0, 255, (n, 6, 6, 3)).astype(np.uint8)
    return [Image.fromarray(each).resize((48, 48), Image.Resampling.BICUBIC) for each in small]


def test_same_picture__a_hold_out_keeps_saved_and_resized_copies_on_one_side(tmp_path: Path) -> None:
    pictures = waves(40)
    for i, picture in enumerate(pictures):
        folder = tmp_path / "photos" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
        picture.save(folder / f"{i}-saved.jpg", quality=60)
        picture.resize((30, 30)).save(folder / f"{i}-small.png")
    for seed in range(3):
        alone = prepare(tmp_path / "photos", size_px=32, seed=seed)
        together = prepare(tmp_path / "photos", size_px=32, seed=seed, same_picture=same_picture)
        names = []
        for prepared in (alone, together):
            assert prepared.test is not None
            assert 20 <= len(prepared.test.table) <= 28
            names.append(
                {name.split("/")[1].split("-")[0].split(".")[0] for name in prepared.test.table.ids.to_pylist()}
            )
        assert len(names[0]) > 15  # most have a copy among the training images
        assert together.test is not None
        assert len(together.test.table) == 3 * len(names[1])


def test_same_picture__exact_copies_alone_where_images_are_streamed(tmp_path: Path) -> None:
    for i, picture in enumerate(waves(6)):
        folder = tmp_path / "photos" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
        picture.save(folder / f"{i}-saved.jpg", quality=60)
    streamed = prepare(tmp_path / "photos", size_px=32, test_frac=0, cache_limit_gb=0).train
    kept = prepare(tmp_path / "photos", size_px=32, test_frac=0).train
    content = np.arange(12)
    assert same_picture(streamed, content) is content
    assert len(np.unique(same_picture(kept, content))) == 6
