"""Small image files on disk, for tests that read data as a user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"ant": 12, "bee": 6, "cow": 2}


def write_folders(root: Path, counts: Mapping[str, int] = COUNTS, *, size_px: int = 10, seed: int = 0) -> Path:
    """A folder per class with PNG files 0.png, 1.png, ...; every class has its own brightness."""
    draws = np.random.default_rng(seed)
    for c, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = draws.integers(0, 60, (size_px, size_px, 3)) + 60 * c
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def spoil(root: Path) -> dict[str, str]:
    """Put every kind of bad file into a folder of `write_folders`; where it is -> what is said of it."""
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3)).astype(np.uint8))
    photo.save(root / "ant" / "cut.jpg")
    whole = (root / "ant" / "cut.jpg").read_bytes()
    (root / "ant" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "ant" / "zero.png").write_bytes(b"")
    (root / "bee" / "letter.png").write_text("dear reader", encoding="utf-8")
    (root / "hollow").mkdir()
    (root / "hollow" / "draft.psd").write_bytes(b"8BPS")
    return {
        str(root / "ant" / "cut.jpg"): "truncated",
        str(root / "ant" / "zero.png"): "the file is empty (0 bytes)",
        str(root / "bee" / "letter.png"): "not an image",
        str(root / "hollow"): "no image of class 'hollow' in its folder: .psd files are not read",
    }
