"""Decoding, and what happens to images and rows that are bad."""

import io
import os
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from labelwright.data.cache import resize_to_square
from labelwright.data.checks import check_images, format_problems, resolve_problems
from labelwright.data.images import Decoding, decode, decode_rgb, open_image, range_of
from labelwright.data.read import load
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError, DataError, Problem

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # labelwright leaves those of Pillow aside


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


RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


@pytest.mark.parametrize(
    ("values", "brightest", "n_levels"),
    [
        ((RAMP * 65535).astype(np.uint16), 255, 256),
        ((RAMP * 4095).astype(np.uint16), 255, 256),
        ((RAMP * 1023).astype(np.uint16), 255, 256),
        ((RAMP * 255).astype(np.int32), 255, 256),
        ((RAMP * 300).astype(np.int32), 150, 151),  # of 9 bits
        ((RAMP * 30000 - 1000).astype(np.int32), 255, 256),
        (RAMP.astype(np.float32), 255, 256),
        ((RAMP * 1.05).astype(np.float32), 255, 256),
        ((RAMP * 255).astype(np.float32), 255, 256),
        ((RAMP * 4000).astype(np.float32), 249, 250),
        ((RAMP * 2 - 1).astype(np.float32), 255, 256),
        (np.full((32, 32), np.nan, np.float32), 0, 1),
    ],
)
def test_decode_rgb__more_than_8_bits_keep_their_levels(values: np.ndarray, brightest: int, n_levels: int) -> None:
    seen = np.asarray(decode_rgb(encode(Image.fromarray(values), "tiff")))
    assert (seen.max(), len(np.unique(seen))) == (brightest, n_levels)


def test_range_of__a_dead_pixel_is_no_white() -> None:
    values = RAMP * 4000
    values[3, 3] = 65535
    assert range_of([values]) == (0.0, 4095.0)
    assert range_of([]) == range_of([np.zeros((2, 2))]) == (0.0, 1.0)


def deep_folder(folder: Path, *, dtype: type = np.uint16, suffix: str = "png", top: float = 4095) -> Path:
    for name, share in (("dark", 0.1), ("light", 1.0)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray((RAMP * share * top).astype(dtype)).save(folder / name / f"{i}.{suffix}")
    return folder


@pytest.mark.parametrize(("dtype", "suffix", "top"), [(np.uint16, "png", 4095), (np.float32, "tif", 1.0)])
def test_load__one_scale_for_all_images_of_a_set_and_it_is_told(
    tmp_path: Path, dtype: type, suffix: str, top: float
) -> None:
    table = load(deep_folder(tmp_path, dtype=dtype, suffix=suffix, top=top))
    assert [int(np.asarray(table.image(row)).max()) for row in (0, 3)] == [pytest.approx(25.5, abs=0.6), 255]
    assert [(p.kind, p.where) for p in table.problems] == [("deep_image", str(tmp_path))]
    assert f"0 to {top:g} become black to white" in table.problems[0].detail
    dark = table.subset(np.array([0]))
    assert dark.images.decoding == table.images.decoding
    alone = load(tmp_path / "dark")
    assert alone.images_digest != load(tmp_path / "dark", decoding=table.images.decoding).images_digest


def test_check_images__blank_and_several_frames_are_told_once(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (name == "cat" and "red") or "blue").save(tmp_path / name / "0.png")
        frames = [noise(8), noise(8).rotate(90), noise(8).rotate(180)]
        frames[0].save(tmp_path / name / "1.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "dog" / "2.mpo", save_all=True, append_images=frames[1:])  # the others are previews
    table = load(tmp_path)
    assert len(table) == 5
    cat = str(tmp_path / "cat")
    assert [(p.where, p.kind, p.row) for p in check_images(table)] == [
        (f"{cat}/1.gif", "first_frame", None),
        (f"{cat}/0.png", "blank_image", None),
    ]
    assert resolve_problems(table, check_images(table), "stop").problems == check_images(table)


def test_check_images__copies_are_told_and_those_under_two_labels(tmp_path: Path) -> None:
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.bmp", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(8, seed=int(name[-5])).save(tmp_path / name)  # the numbers say which are the same
    cat, dog = tmp_path / "cat", tmp_path / "dog"
    assert [(p.where, p.kind, p.detail) for p in check_images(load(tmp_path), digests={})] == [
        (str(dog / "0.png"), "copy", f"shows the same as {cat / '0.png'}; so does 1 more"),
        (str(dog / "0.png"), "copy", f"is labelled 'dog', and its copy {cat / '0.png'} 'cat'; so does 1 more"),
    ]
    assert check_images(load(dog), digests={}) == ()


def test_check_images__a_file_that_a_table_names_under_two_labels_is_no_copy_of_itself(tmp_path: Path) -> None:
    for name in "ab":
        noise(8, seed=ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("id,image,label\n1,a.png,cat\n2,b.png,dog\n3,a.png,dog\n")
    (found,) = check_images(load(tmp_path / "t.csv"), digests={})
    assert (found.kind, found.detail) == ("copy", "is labelled 'dog', and 'cat' in a row before")


def exif_of(*tags: bytes) -> bytes:
    block = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + b"\0" * 20
    return b"Exif\0\0" + block


TURN, MAKE = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHIf", 0x010F, 11, 1, 1.0)  # a text as a float


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_decode_rgb__of_exif_the_orientation_alone_counts(kind: str) -> None:
    turned = decode_rgb(encode(Image.new("RGB", (24, 32), "red"), kind, exif=exif_of(MAKE, TURN)))
    assert turned.size == (32, 24)
    nonsense = exif_of(struct.pack("<HHII", 0x0112, 2, 4000, 4_000_000_000))
    assert decode_rgb(encode(Image.new("RGB", (24, 32), "red"), kind, exif=nonsense)).size == (24, 32)


def test_decode_rgb__png_with_a_large_profile_or_text() -> None:
    texts = PngInfo()
    texts.add_text("comment", "x" * 2_000_000, zip=True)
    for options in ({"icc_profile": b"\0" * 2_000_000}, {"pnginfo": texts}):
        assert decode_rgb(encode(Image.new("RGB", (3, 2), "red"), **options)).getpixel((2, 1)) == (255, 0, 0)


def test_decode__jpegs_of_3_megapixels_come_smaller_and_nearly_the_same() -> None:
    waves = np.sin(np.linspace(0, 40, 2400)[None] + np.linspace(0, 25, 1400)[:, None])
    photo = encode(Image.fromarray((127 + 120 * waves).astype(np.uint8)).convert("RGB"), "jpeg")
    small, large = decode(photo, side_px=64).image, decode(photo, Decoding(exact=True), side_px=64).image
    assert (small.size, large.size) == ((300, 175), (2400, 1400))
    assert decode(photo).image.size == decode(photo, side_px=900).image.size == (2400, 1400)
    got, exact = (resize_to_square(image, size_px=64).astype(float) for image in (small, large))
    assert np.abs(got - exact).mean() < 1.5
    with pytest.raises(OSError, match="truncated"):
        decode(photo[: len(photo) // 2], side_px=64)


def test_decode__images_larger_than_allowed_and_the_setting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    header = b"P6\n20000 10000\n255\n" + b"\0" * 99
    with pytest.raises(OSError, match=r"more than 179 million pixels.*--largest-image"):
        decode(header)
    with pytest.raises(OSError, match=r"more than 6\.3e-05 million pixels"):
        decode(encode(Image.new("L", (8, 8))), Decoding(pixels_max=63))
    with open_image(header, pixels_max=200_000_000) as opened:
        assert opened.size == (20_000, 10_000)


def test_decode__a_program_is_never_run_and_a_pipe_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(Image.new("RGB", (8, 8)), "eps"))  # Pillow would start Ghostscript
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("x.png", "not an image"), ("pipe.png", "a pipe, not a file"), (".", "a folder, not a file")):
        with pytest.raises(OSError, match=words):
            decode_rgb(tmp_path / name)
    with pytest.raises(OSError, match="null byte"):
        decode_rgb("a\0b.png")


def test_decode__heic_names_the_extra_or_is_read_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(encode(noise()))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {kind: opener for kind, opener in Image.OPEN.items() if kind != "HEIF"})
    for source in (tmp_path / "x.heic", b"\0\0\0\x18ftypheic" + b"\0" * 20):
        with pytest.raises(OSError, match=r"pip install 'labelwright\[heic\]'"):
            decode_rgb(source)
    heif = types.ModuleType("pillow_heif")
    heif.register_heif_opener = lambda: None  # what it opens is a PNG here
    monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    assert decode_rgb(tmp_path / "x.heic").size == (32, 32)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_decode_rgb__other_modes(mode: str) -> None:
    decoded = decode_rgb(encode(Image.new(mode, (3, 2)), "tiff"))
    assert (decoded.mode, decoded.size) == ("RGB", (3, 2))


def noise(size: int = 32, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


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


def test_format_problems__labels_by_one_unknown_name_are_folded() -> None:
    names = ["Q"] * 5 + ["R", "S"]
    problems = [Problem(f"row {i}", "unknown_label", f"label {n!r} is no class", i) for i, n in enumerate(names)]
    assert format_problems(problems, limit=2).splitlines() == [
        "7 unknown_label: labels that are not classes",
        "  row 0  label 'Q' is no class",
        "  row 1  label 'Q' is no class",
        "  row 2  label 'Q' is no class",
        "  ... and 2 more: label 'Q' is no class",
        "  row 5  label 'R' is no class",
        "  ... and 1 more",
    ]
