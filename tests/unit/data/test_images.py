"""Decoding, and what happens to images and rows that are bad."""

import io
import struct

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from labelwright.data.checks import check_images, format_problems, resolve_problems
from labelwright.data.images import decode_rgb
from labelwright.data.read import load
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError, DataError, Problem


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_decode_rgb__exif_orientation_turns_the_image() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    turned = decode_rgb(encode(image, exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)  # top left goes to top right
    assert decode_rgb(encode(image)).size == (4, 2)


def test_decode_rgb__transparency_over_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    rgb = decode_rgb(encode(image))
    assert [rgb.getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (255, 255, 255)]
    grey = Image.new("LA", (1, 1), (100, 0))
    assert decode_rgb(encode(grey)).getpixel((0, 0)) == (255, 255, 255)


def test_decode_rgb__palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode_rgb(encode(image)).getpixel((1, 0)) == (40, 50, 60)
    clear = decode_rgb(encode(image, transparency=1))
    assert [clear.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (0x7FFF, 127), (0xFFFF, 255)])
def test_decode_rgb__16_bit_grey(value: int, expected: int) -> None:
    image = Image.fromarray(np.array([[value]], dtype=np.uint16))
    assert decode_rgb(encode(image)).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize(("value", "other", "expected"), [(0.5, 1.0, 128), (0.5, 200.0, 0), (200.0, 300.0, 200)])
def test_decode_rgb__float_grey(value: float, other: float, expected: int) -> None:
    image = Image.fromarray(np.array([[value, other]], dtype=np.float32))
    assert decode_rgb(encode(image, "tiff")).getpixel((0, 0)) == (expected,) * 3


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_decode_rgb__other_modes(mode: str) -> None:
    decoded = decode_rgb(encode(Image.new(mode, (3, 2)), "tiff"))
    assert (decoded.mode, decoded.size) == ("RGB", (3, 2))


def noise(size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"hello, I am a text\n",
        encode(noise(), "jpeg")[:-200],
        encode(noise())[:-200],
        encode(noise(), "gif")[:40],
        encode(noise(), "tiff")[:100],
        encode(noise(), "bmp")[:300],
        encode(noise())[:16] + struct.pack(">II", 60_000, 60_000) + encode(noise())[24:],
    ],
    ids=["empty", "text", "jpeg", "png", "gif", "tiff", "bmp", "huge_png_header"],
)
@pytest.mark.filterwarnings("ignore:Truncated File Read")  # PIL says so before it gives up on the TIFF
def test_decode_rgb__damage_is_an_oserror(damage: bytes) -> None:
    with pytest.raises(OSError, match=r"\w"):
        decode_rgb(damage)


@pytest.fixture
def bad_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            noise().save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "0.png").write_bytes(b"")
    (tmp_path / "cat" / "1.png").write_text("not an image")
    whole = (tmp_path / "dog" / "2.png").read_bytes()
    (tmp_path / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_check_images__names_each_bad_one(bad_folder) -> None:
    table = load(bad_folder)
    (bad_folder / "dog" / "0.png").unlink()
    problems = check_images(table)
    assert [(p.row, p.kind) for p in problems] == [
        (0, "unreadable_image"),
        (1, "unreadable_image"),
        (3, "missing_image"),
        (5, "unreadable_image"),
    ]
    assert [p.where for p in problems][:2] == [str(bad_folder / "cat" / "0.png"), str(bad_folder / "cat" / "1.png")]
    assert "0 bytes" in problems[0].detail
    assert "not an image" in problems[1].detail


def test_resolve_problems__stop_reports_both_kinds_at_once(bad_folder) -> None:
    table = load(bad_folder, classes=["cat", "owl"], on_bad="report")
    problems = (*table.problems, *check_images(table))
    with pytest.raises(DataError, match=r"7 problems in the data: 3 unknown_label, 1 empty_class, 3 unreadable_image"):
        resolve_problems(table, problems, "stop")


def test_resolve_problems__skip_leaves_out_and_lists(bad_folder) -> None:
    table = load(bad_folder)
    problems = check_images(table)
    left = resolve_problems(table, [*problems, *problems], "skip")
    assert left.ids.to_pylist() == ["cat/2.png", "dog/0.png", "dog/1.png"]
    assert left.quarantined == problems
    assert left.problems == ()
    assert check_images(left) == ()


def test_resolve_problems__skip_tells_of_a_class_that_lost_all(bad_folder) -> None:
    (bad_folder / "cat" / "2.png").write_bytes(b"")
    table = load(bad_folder)
    left = resolve_problems(table, check_images(table), "skip")
    assert left.class_names == ("cat", "dog")
    assert [(p.where, p.kind) for p in left.problems] == [("cat", "empty_class")]


def test_resolve_problems__report_keeps_every_row(bad_folder) -> None:
    table = load(bad_folder)
    kept = resolve_problems(table, check_images(table), "report")
    assert (len(kept), len(kept.problems), kept.quarantined) == (6, 3, ())


def test_resolve_problems__nothing_left_and_bad_argument() -> None:
    names = pa.array(["a.png"], pa.large_string())
    table = LabelTable(Images(names), names, np.array([0], np.int32), ("cat",))
    with pytest.raises(DataError, match="every row has a problem"):
        resolve_problems(table, check_images(table), "skip")
    with pytest.raises(ConfigError, match="on_bad='ignore'"):
        resolve_problems(table, (), "ignore")
    notice = Problem("notes.txt", "unsupported_file", "x")
    assert resolve_problems(table, (notice,), "stop").problems == (notice,)


def test_format_problems__grouped_and_limited() -> None:
    problems = [Problem(f"row {i}", "duplicate_id", f"id {i}", i) for i in range(4)]
    text = format_problems([*problems, Problem("x.png", "missing_image", "gone", 9)], limit=2)
    assert text.splitlines() == [
        "1 missing_image: image files that are not there",
        "  x.png  gone",
        "4 duplicate_id: ids used more than once",
        "  row 0  id 0",
        "  row 1  id 1",
        "  ... and 2 more",
    ]
