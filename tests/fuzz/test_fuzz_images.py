"""Images of every format that Pillow writes here, cut, flipped, renamed and made up."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import fuzzed, read_or_refused
from PIL import Image

from labelwright.data.checks import check_images, resolve_problems
from labelwright.data.images import IMAGE_SUFFIXES, Decoding, decode
from labelwright.data.read import load

pytestmark = pytest.mark.filterwarnings("ignore")  # labelwright leaves Pillow's warnings aside

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16", "I", "F", "CMYK", "YCbCr", "PA")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded() -> dict[str, bytes]:
    """An image in every format and mode that Pillow can write: name -> bytes."""
    Image.init()
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            rgb = Image.fromarray(PIXELS)
            image = rgb.convert("I").convert(mode) if mode == "I;16" else rgb.convert(mode)
            file = io.BytesIO()
            try:
                image.save(file, kind)
            except (OSError, ValueError, KeyError, AttributeError, NotImplementedError):  # not in this mode
                continue
            found[f"{kind} {mode}"] = file.getvalue()
    frames = [Image.fromarray(np.roll(PIXELS, shift, 0)) for shift in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        found[f"{kind} of frames"] = file.getvalue()
    return found


WHOLE = encoded()
SUFFIXES = sorted(IMAGE_SUFFIXES)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of an image with a few kinds of damage, or none."""
    data = bytearray(WHOLE[draw(st.sampled_from(sorted(WHOLE)))])
    for damage in draw(st.lists(st.sampled_from(["cut", "flip", "header", "splice", "repeat", "zero"]), max_size=3)):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if damage == "cut":
            del data[at:]
        elif damage == "flip" and data:
            for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
                data[place] ^= 1 << draw(st.integers(0, 7))
        elif damage == "header":  # sizes, offsets and lengths stand there
            some = draw(st.binary(min_size=1, max_size=4))
            start = draw(st.integers(0, min(48, len(data))))
            data[start : start + len(some)] = some
        elif damage == "splice":
            other = WHOLE[draw(st.sampled_from(sorted(WHOLE)))]
            data[at:] = other[draw(st.integers(0, len(other))) :]
        elif damage == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 50))
        elif damage == "zero":
            data[at : at + 16] = b"\0" * len(data[at : at + 16])
    return bytes(data)


def outcome(data: bytes, side_px: int | None) -> str:
    """What the decoder makes of bytes: a size, or a sentence."""
    try:
        image = decode(data, Decoding(pixels_max=4_000_000), side_px=side_px).image
    except OSError as error:
        said = str(error)
        assert said.strip(), "an error without a word"
        assert "\n" not in said
        return said
    assert image.mode == "RGB"
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return "decoded"


def is_whole(data: bytes) -> bool:
    """Whether Pillow reads what it wrote: older releases do not of some small icons and TIFF files."""
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def test_every_whole_image_is_decoded_but_for_formats_that_cannot_be() -> None:
    refused = {name.split()[0] for name, data in WHOLE.items() if is_whole(data) and outcome(data, None) != "decoded"}
    assert refused <= {"EPS", "PDF", "PALM", "WMF", "GRIB", "BUFR", "HDF5"}
    assert {"JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "TGA"} <= {
        name.split()[0] for name, data in WHOLE.items() if outcome(data, None) == "decoded"
    }


@fuzzed(150)
@given(data=damaged(), side_px=st.sampled_from([None, 8]))
@example(data=b"", side_px=None)
@example(data=b"\x89PNG\r\n\x1a\n", side_px=None)
@example(data=b"P6\n2000 1999\n255\n", side_px=None)
def test_decode__any_bytes_are_an_image_or_a_sentence(data: bytes, side_px: int | None) -> None:
    assert read_or_refused(lambda: outcome(data, side_px)) is not None


@fuzzed(60)
@given(files=st.lists(st.tuples(damaged(), st.sampled_from(SUFFIXES)), min_size=1, max_size=4))
def test_folder__rows_read_and_rows_reported_are_all_there_are(
    files: list[tuple[bytes, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("folder")
    for i, (data, suffix) in enumerate(files):
        (folder / f"{i}{suffix}").write_bytes(data)
    table = load(folder)
    assert len(table) == len(files)
    problems = check_images(table)
    bad = [problem.row for problem in problems if problem.row is not None]
    assert all(problem.where.startswith(str(folder)) for problem in problems)
    assert bad == sorted(set(bad))
    kept = read_or_refused(lambda: resolve_problems(table, problems, "skip"), str(folder))
    assert (0 if kept is None else len(kept)) + len(bad) == len(files)


@fuzzed(40)
@given(data=st.binary(max_size=200))
def test_decode__nonsense_is_a_sentence(data: bytes) -> None:
    assert outcome(data, None)
