"""The one decoder: whatever a file is, an upright RGB image comes out, or a sentence on what is wrong with it."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from labelwright.errors import ConfigError, Problem

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
IMAGE_SUFFIXES = HEIF_SUFFIXES | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Files that are taken for images; what they are is seen from their content."""

COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Tried where a table names an image without its suffix."""

PIXELS_MAX = 179_000_000
"""Pixels of the largest image that is decoded unless a larger one is allowed; about Pillow's own limit."""

FULL_SIZE = "labelwright_full_size"
"""Key of an image's ``info``, where it was decoded at reduced scale: (width, height) of the file."""

BLANK_LEVELS = 4  # an image whose brightest and darkest values differ by less is blank
_DRAFT_PIXELS_MIN = 3_000_000  # JPEGs from here on are decoded at reduced scale
_NEVER = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})  # run other programs, or cannot be decoded at all
_HEIF_EXTRA = "HEIC images need an extra: pip install 'labelwright[heic]'"
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = (
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
)
_ORIENTATION = 0x0112
_FULL_SCALES = np.array([1.0, *(2.0**bits - 1 for bits in range(8, 33))])
_OVERSHOT = np.where(_FULL_SCALES <= 255, 1.05, 1.0)  # filters leave shares a little above 1

warnings.filterwarnings("ignore", module=r"PIL\.")  # what they tell of is raised, or does not touch the pixels

Source = bytes | str | Path


@dataclass(frozen=True)
class Decoding:
    """How the images of one data set become 8-bit RGB."""

    # this and the next: values of images of more than 8 bits that become 0 and 255; None: of each image alone
    black: float | None = None
    white: float | None = None
    exact: bool = False  # never decode large JPEGs at reduced scale
    pixels_max: int = PIXELS_MAX  # pixels of the largest image

    def __str__(self) -> str:
        """What the pixels depend on, as part of a fingerprint; empty if nothing was chosen.

        Example:
          >>> str(Decoding()), str(Decoding(0.0, 4095.0))
          ('', '0.0 4095.0 False')
        """
        own = (self.black, self.white, self.exact)
        return "" if own == (None, None, False) else " ".join(map(str, own))

    @classmethod
    def chosen(cls, *, largest_image: float, exact_decoding: bool = False) -> Decoding:
        """What the settings of those names ask for; ``largest_image`` in megapixels.

        Raises: ConfigError if that is not above 0.

        Example:
          >>> Decoding.chosen(largest_image=0.5).pixels_max
          500000
        """
        if not 0 < largest_image < 1e6:
            raise ConfigError(f"largest_image={largest_image} is not possible", fix="give megapixels, as 500")
        return cls(exact=exact_decoding, pixels_max=round(largest_image * 1e6))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; ``Decoding(**d)`` is the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Decoded:
    """An image and what is worth a word about it."""

    image: Image.Image  # RGB, upright
    is_first_of_several: bool = False  # the file holds more frames or pages, which are not looked at

    @property
    def is_blank(self) -> bool:
        """Whether (nearly) all pixels have one colour."""
        return all(high - low < BLANK_LEVELS for low, high in self.image.getextrema())  # type: ignore[misc]


def decode_rgb(source: Source, decoding: Decoding | None = None) -> Image.Image:
    """One image as upright 8-bit RGB; see `decode`, whose ``image`` this is.

    Example: one grey 16-bit pixel of value 0x8000.
      >>> buffer = io.BytesIO()
      >>> Image.fromarray(np.array([[0x8000]], dtype=np.uint16)).save(buffer, format="png")
      >>> decode_rgb(buffer.getvalue()).getpixel((0, 0))
      (128, 128, 128)
    """
    return decode(source, decoding).image


def decode(source: Source, decoding: Decoding | None = None, *, side_px: int | None = None) -> Decoded:
    """One image as upright 8-bit RGB: turned as its EXIF data says, transparency laid over white, the first frame.

    Grey images of more than 8 bits, or of floating point, are scaled as ``decoding`` says.

    Args:
      source: the encoded bytes, or the path of a file.
      decoding: of the data set; None = of this image alone.
      side_px: the image will be scaled to this shorter side: a JPEG of 3 megapixels or more may come at a half, a
        quarter or an eighth of its size, still at least twice as large as that. None = its full size.

    Raises: FileNotFoundError if there is no such file; OSError, in one sentence, if it is not an image, not a whole
      one or too large.

    Example:
      >>> buffer = io.BytesIO()
      >>> Image.new("RGB", (2400, 1600), "red").save(buffer, format="jpeg")
      >>> decode(buffer.getvalue()).image.size, decode(buffer.getvalue(), side_px=224).image.size
      ((2400, 1600), (1200, 800))
    """
    decoding = decoding or Decoding()
    try:
        return _decoded(source, decoding, side_px)
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise
        is_there = isinstance(source, bytes) or os.path.isfile(source)  # noqa: PTH113 (a NUL in a path is no error)
        if isinstance(error, ValueError) and is_there and (slim := _without_texts(source)) is not None:
            try:
                return _decoded(slim, decoding, side_px)
            except Exception as second:
                error = second
        raise _UnreadableError(_sentence(source, error, decoding)) from error


class _UnreadableError(OSError):
    """Its text says in one sentence why there is no image."""


def _decoded(source: Source, decoding: Decoding, side_px: int | None) -> Decoded:
    with open_image(source, decoding.pixels_max) as opened:
        width, height = opened.size
        is_large = opened.format in ("JPEG", "MPO") and width * height >= _DRAFT_PIXELS_MIN
        if is_large and side_px is not None and not decoding.exact:
            shrink = 2 * side_px / min(width, height)
            opened.draft(None, (round(shrink * width), round(shrink * height)))
        opened.load()
        turn, is_several = None, False
        with suppress(Exception):  # what cannot be read around the pixels: they are whole
            turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
        with suppress(Exception):  # the other frames of an MPO are previews
            is_several = opened.format != "MPO" and getattr(opened, "is_animated", False)
        is_reduced = opened.size != (width, height)
        image = _to_rgb(opened if turn is None else opened.transpose(turn), decoding)
        image = image.copy() if image is opened else image  # the opened file closes behind us
        if is_reduced:
            image.info[FULL_SIZE] = (height, width) if turn in _ON_THE_SIDE else (width, height)
        return Decoded(image, is_several)


def open_image(source: Source, pixels_max: int = PIXELS_MAX) -> Image.Image:
    """A file's header as Pillow reads it, for `with`; nothing is decoded yet.

    Raises: whatever Pillow raises; OSError for what is no file, and for images of more pixels than ``pixels_max``.
    """
    if isinstance(source, bytes) and not source:
        raise OSError("it holds no image (0 bytes)")
    if not isinstance(source, bytes) and not stat.S_ISREG((found := Path(source).stat()).st_mode):
        raise OSError(f"it is {_kind_of(found.st_mode)}, not a file")
    if Image.MAX_IMAGE_PIXELS is not None and pixels_max > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = pixels_max  # Pillow knows one limit for everyone: ours is looked at below
    if _is_heif(source):
        _read_heif()
    Image.preinit()
    try:
        opened = _open(source)
    except UnidentifiedImageError:
        Image.init()  # the rarer formats, which take a while to load
        opened = _open(source)
    if opened.width * opened.height > pixels_max:
        opened.close()
        raise Image.DecompressionBombError
    return opened


def suffix_of(source: Source) -> str:
    """What a copy of an image should end in: as its file does, or by its content where that says nothing.

    Example:
      >>> buffer = io.BytesIO()
      >>> Image.new("L", (1, 1)).save(buffer, format="png")
      >>> suffix_of(buffer.getvalue()), suffix_of("no-image.v2")
      ('.png', '.v2')
    """
    own = "" if isinstance(source, bytes) else Path(source).suffix
    if own.lower() in IMAGE_SUFFIXES:
        return own
    with suppress(Exception), open_image(source) as opened:  # what cannot be read is copied as it is
        return {"JPEG2000": ".jp2"}.get(str(opened.format), f".{opened.format}".lower())
    return own


def _open(source: Source) -> Image.Image:
    kinds = [kind for kind in Image.ID if kind not in _NEVER]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=kinds)


def _kind_of(mode: int) -> str:
    kinds: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR,
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }
    return next((name for name, fits in kinds.items() if fits(mode)), "something else")


def _is_heif(source: Source) -> bool:
    if not isinstance(source, bytes):
        return Path(source).suffix.lower() in HEIF_SUFFIXES
    return source[4:8] == b"ftyp" and source[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _read_heif() -> None:
    """Let Pillow read HEIC files, if the extra that does it is installed."""
    if "HEIF" in Image.OPEN:
        return
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise OSError(_HEIF_EXTRA) from error
    register_heif_opener()


def _without_texts(source: Source) -> bytes | None:
    """A PNG without its texts and colour profile, which may be larger than Pillow reads; None if it is no PNG."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data.startswith(_PNG):
        return None
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _sentence(source: Source, error: Exception, decoding: Decoding) -> str:
    """What is wrong with an image, for people."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return (
            f"it has more than {decoding.pixels_max / 1e6:,g} million pixels; if it is meant to be that large: "
            "--largest-image MEGAPIXELS"
        )
    if isinstance(error, UnidentifiedImageError):
        is_empty = not isinstance(source, bytes) and Path(source).stat().st_size == 0
        return "the file is empty (0 bytes)" if is_empty else "its content is not an image of any known format"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).strip()
    text = text.splitlines()[0][:200] if text else type(error).__name__
    return text if isinstance(error, OSError) else f"it is damaged ({text})"


# ------------------------------------------------------------------------------------------------- more than 8 bits


def _to_rgb(image: Image.Image, decoding: Decoding) -> Image.Image:
    if _is_deep(image):
        values = _values(image)
        if decoding.white is None:
            black, white = range_of([values])
        else:
            black, white = decoding.black or 0.0, decoding.white
        grey = ((values - black) * (255.0 / (white - black))).round().clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _values(image: Image.Image) -> npt.NDArray[np.float64]:
    """[H, W]; infinite ones and those that are no number count as 0."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def range_of(images: Iterable[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """The values that become black and white in images of more than 8 bits, one pair for all of them.

    The largest value, but for the 0.1% largest of an image, belongs to a full scale (1; 8, 9, 10 .. 32 bits) of which
    it fills at least half; if to none, it is white itself. Black is 0, or the smallest value if that is negative.

    Args:
      images: [H, W] each, finite.

    Example: 12 bits, a share of 1, values around zero.
      >>> [range_of([np.array([[0.0, top]])]) for top in (4000.0, 0.9)], range_of([np.array([[-1.0, 3.0]])])
      ([(0.0, 4095.0), (0.0, 1.0)], (-1.0, 3.0))
    """
    low, high = 0.0, 0.0
    for values in images:
        if values.size:
            bottom, top = np.quantile(values, [0.001, 0.999], method="closest_observation")
            low, high = min(low, float(bottom)), max(high, float(top))
    if low < 0:
        return (low, high) if high > low else (low, low + 1.0)
    fits = _FULL_SCALES[(high <= _FULL_SCALES * _OVERSHOT) & (2 * high >= _FULL_SCALES)]
    return 0.0, float(fits[0]) if len(fits) else (high or 1.0)


def deep_values(source: Source, pixels_max: int = PIXELS_MAX) -> npt.NDArray[np.float64] | None:
    """Values [H, W] of an image of more than 8 bits; None of others, and of what cannot be read."""
    if isinstance(source, str) and Path(source).suffix.lower() in (".jpg", ".jpeg", ".gif", ".bmp", ".webp"):
        return None  # never deep: the file is not even opened
    try:
        with open_image(source, pixels_max) as opened:
            return _values(opened) if _is_deep(opened) else None
    except Exception:  # reported when it is decoded
        return None


# ------------------------------------------------------------------------------------------------------------ problems


def image_problem(where: str, row: int, error: BaseException) -> Problem:
    """The problem that an error of `decode` is: of the image ``where``, in row ``row`` of a table."""
    if isinstance(error, FileNotFoundError):
        return Problem(where, "missing_image", "there is no such file", row)
    return Problem(where, "unreadable_image", str(error), row)
