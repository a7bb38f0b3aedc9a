"""Decoding images, finding the ones that cannot be, and deciding what happens to bad rows."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from labelwright.errors import Problem

_DAMAGE = (SyntaxError, ValueError, IndexError, TypeError, EOFError, struct.error, Image.DecompressionBombError)
"""What PIL's decoders raise on damaged files, besides OSError."""


def decode_rgb(source: bytes | str | Path) -> Image.Image:
    """One image as upright 8-bit RGB: turned as its EXIF data says, transparency laid over white.

    16-bit grey keeps its upper 8 bits; floating-point grey counts as 0 to 1, or as 0 to 255 if it exceeds 1.

    Args:
      source: the encoded bytes, or the path of a file.

    Raises: FileNotFoundError if there is no such file; OSError if it is not an image or not a whole one.

    Example: one grey 16-bit pixel of value 0x8000.
      >>> buffer = io.BytesIO()
      >>> Image.fromarray(np.array([[0x8000]], dtype=np.uint16)).save(buffer, format="png")
      >>> decode_rgb(buffer.getvalue()).getpixel((0, 0))
      (128, 128, 128)
    """
    if isinstance(source, bytes) and not source:
        raise OSError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except _DAMAGE as damage:
        raise OSError(str(damage) or type(damage).__name__) from damage


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # the opened file closes behind us
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or grey.max() > 255:
            grey = grey >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey_f = np.nan_to_num(np.asarray(image))
        scale = 255.0 if grey_f.max() <= 1.0 else 1.0
        return Image.fromarray((grey_f * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def image_problem(where: str, row: int, error: BaseException) -> Problem:
    """The problem that an error of `decode_rgb` is: of the image ``where``, in row ``row`` of a table."""
    if isinstance(error, FileNotFoundError):
        return Problem(where, "missing_image", "there is no such file", row)
    if isinstance(error, UnidentifiedImageError):
        try:
            empty = Path(where).stat().st_size == 0
        except OSError:
            empty = False
        detail = "the file is empty (0 bytes)" if empty else "its content is not an image of any known format"
        return Problem(where, "unreadable_image", detail, row)
    return Problem(where, "unreadable_image", str(error).splitlines()[0] if str(error) else type(error).__name__, row)
