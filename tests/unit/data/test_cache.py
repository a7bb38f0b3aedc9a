import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from labelwright.data import cache, checks
from labelwright.data.cache import (
    PixelCache,
    StreamedPixels,
    build_cache,
    default_cache_folder,
    open_pixels,
    resize_to_square,
)
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError

SIZES = ((8, 8), (13, 8), (8, 21), (40, 30), (5, 6), (8, 8))  # width, height


def make_table(folder: Path, *, broken: tuple[int, ...] = (), sizes: tuple[tuple[int, int], ...] = SIZES) -> LabelTable:
    """A table of noise images as PNG files; the rows in `broken` are cut short."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for row, (width, height) in enumerate(sizes):
        path = folder / f"{row}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        if row in broken:
            path.write_bytes(path.read_bytes()[:60])
    return table_of(folder)


def table_of(folder: Path) -> LabelTable:
    """The table of the PNG files that are there: reading them leaves their fingerprint alone."""
    names = sorted(path.name for path in folder.glob("*.png"))
    return LabelTable(
        images=Images(pa.array(names, pa.large_string()), root=str(folder)),
        ids=pa.array(names, pa.large_string()),
        labels=np.zeros(len(names), dtype=np.int32),
        class_names=("thing",),
    )


@pytest.fixture
def table(tmp_path: Path) -> LabelTable:
    return make_table(tmp_path / "images")


@pytest.fixture
def broken(tmp_path: Path) -> LabelTable:
    return make_table(tmp_path / "images", broken=(1, 4))


def test_resize_to_square__leaves_the_right_size_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(resize_to_square(Image.fromarray(pixels), size_px=9), pixels)


def test_resize_to_square__crops_the_centre_without_resampling() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    assert np.array_equal(resize_to_square(Image.fromarray(pixels), size_px=9), pixels[:, 3:12])
    assert np.array_equal(
        resize_to_square(Image.fromarray(pixels).rotate(90, expand=True), size_px=9), np.rot90(pixels)[3:12]
    )


def test_resize_to_square__antialiases() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = resize_to_square(Image.fromarray(stripes), size_px=8)
    assert 120 <= small[:, 1:-1].min() <= small[:, 1:-1].max() <= 135  # the mean, 127.5; picking pixels gives 0 or 255


def test_build_cache__holds_every_image_in_row_order(table: LabelTable, tmp_path: Path) -> None:
    built = build_cache(table, size_px=8, folder=tmp_path / "cache")
    expected = np.stack([resize_to_square(table.image(row), size_px=8) for row in range(len(table))])
    assert (built.n_rows, built.size_px, built.problems) == (6, 8, ())
    assert isinstance(built.pixels, np.memmap)
    rows = torch.tensor([5, 0, 0, 3])
    assert np.array_equal(built.read(rows).numpy(), expected[rows.numpy()])
    assert built.read(torch.empty(0, dtype=torch.int64)).shape == (0, 8, 8, 3)
    built.read(rows).zero_()  # what is read is a copy
    assert np.array_equal(built.read(torch.arange(6)).numpy(), expected)


def test_build_cache__problems_as_another_version_named_them_are_found_anew(broken: LabelTable, tmp_path: Path) -> None:
    first = build_cache(broken, size_px=8, folder=tmp_path)
    (notes,) = tmp_path.glob("*.json")
    notes.write_text(notes.read_text().replace("unreadable_image", "unreadable_images"))
    assert build_cache(broken, size_px=8, folder=tmp_path).problems == first.problems


def test_build_cache__second_call_decodes_nothing_and_reports_the_same_problems(
    broken: LabelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_cache(broken, size_px=8, folder=tmp_path)
    assert [problem.row for problem in first.problems] == [1, 4]
    assert first.problems[0].kind == "unreadable_image"
    assert first.problems[0].where.endswith("1.png")
    is_zero = (first.read(torch.arange(6)) == 0).flatten(1).all(1)
    assert is_zero.tolist() == [False, True, False, False, True, False]
    monkeypatch.setattr(cache, "_build", lambda *args: pytest.fail("built again"))
    second = build_cache(broken, size_px=8, folder=tmp_path)
    assert second.problems == first.problems
    assert np.array_equal(second.pixels, first.pixels)


def test_build_cache__another_size_table_or_format_is_another_file(
    table: LabelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    build_cache(table, size_px=8, folder=folder)
    build_cache(table, size_px=9, folder=folder)
    build_cache(table.subset(np.arange(3)), size_px=8, folder=folder)
    monkeypatch.setattr(cache, "CACHE_FORMAT", cache.CACHE_FORMAT + 1)
    build_cache(table, size_px=8, folder=folder)
    assert len(list(folder.glob("*.npy"))) == 4


def test_build_cache__follows_the_images_and_not_what_is_said_of_them(table: LabelTable, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build_cache(table, size_px=8, folder=folder)
    names = pa.array([f"image {row}" for row in range(len(table))], pa.large_string())
    labels = np.arange(len(table), dtype=np.int32) % 2
    build_cache(LabelTable(table.images, names, labels, ("cat", "dog")), size_px=8, folder=folder)
    assert len(list(folder.glob("*.npy"))) == 1
    changed = tmp_path / "images" / "0.png"
    Image.new("RGB", (8, 8), "red").save(changed)
    again = build_cache(table_of(tmp_path / "images"), size_px=8, folder=folder)
    assert len(list(folder.glob("*.npy"))) == 2
    assert again.read(torch.tensor([0]))[0, 0, 0].tolist() == [255, 0, 0]
    os.utime(changed, ns=(0, 0))  # of the same size and content, but written at another time
    build_cache(table_of(tmp_path / "images"), size_px=8, folder=folder)
    assert len(list(folder.glob("*.npy"))) == 3


def test_build_cache__no_images(table: LabelTable, tmp_path: Path) -> None:
    empty = table.subset(np.arange(0))
    for _ in range(2):  # built, then found
        built = build_cache(empty, size_px=8, folder=tmp_path)
        assert built.read(torch.empty(0, dtype=torch.int64)).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("damage", ["truncated", "empty", "no notes", "bad notes", "other key", "one bit"])
def test_build_cache__rebuilds_a_damaged_file(table: LabelTable, tmp_path: Path, damage: str) -> None:
    built = build_cache(table, size_px=8, folder=tmp_path)
    expected = np.array(built.pixels)
    del built
    (path,) = tmp_path.glob("*.npy")
    notes = path.with_suffix(".json")
    match damage:
        case "truncated":
            os.truncate(path, path.stat().st_size - 100)
        case "empty":
            os.truncate(path, 0)
        case "one bit":
            content = bytearray(path.read_bytes())
            content[-5] ^= 1
            path.write_bytes(content)
        case "no notes":
            notes.unlink()
        case "bad notes":
            notes.write_text("{")
        case "other key":
            written = json.loads(notes.read_text())
            written["key"]["n_rows"] = 7
            notes.write_text(json.dumps(written))
    again = build_cache(table, size_px=8, folder=tmp_path)
    assert np.array_equal(again.pixels, expected)


BUILD_SLOWLY = """
import os, sys, time
from pathlib import Path
from test_cache import table_of
from labelwright.data import cache, checks
folder, n_builds, delay_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
os.cpu_count = lambda: 1
resize = cache.resize_to_square
def slow(image, *, size_px):
    with (folder / "decoded").open("a") as file:
        file.write("x")
    while len(list(folder.glob("ready.*"))) < n_builds:
        time.sleep(0.01)
    time.sleep(delay_s)
    return resize(image, size_px=size_px)
cache.resize_to_square = slow
table = table_of(folder / "images")
(folder / f"ready.{os.getpid()}").touch()
built = cache.build_cache(table, size_px=8, folder=folder / "cache")
print(int(built.pixels.astype("int64").sum()))
"""


def start_build(folder: Path, *, n_builds: int, delay_s: float) -> subprocess.Popen[str]:
    """Another process that builds the cache once `n_builds` of its kind are ready, `delay_s` an image."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_SLOWLY, str(folder), str(n_builds), str(delay_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def test_build_cache__two_processes_at_once_decode_once(table: LabelTable, tmp_path: Path) -> None:
    builds = [start_build(tmp_path, n_builds=2, delay_s=0.1) for _ in range(2)]
    sums = [build.communicate(timeout=60)[0].strip() for build in builds]
    assert [build.returncode for build in builds] == [0, 0]
    expected = sum(int(resize_to_square(table.image(row), size_px=8).sum()) for row in range(len(table)))
    assert sums == [str(expected)] * 2
    assert (tmp_path / "decoded").read_text() == "x" * len(table)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".lock", ".npy"]


def test_build_cache__killed_half_way_is_built_again_and_swept_up(table: LabelTable, tmp_path: Path) -> None:
    log, folder = tmp_path / "decoded", tmp_path / "cache"
    build = start_build(tmp_path, n_builds=1, delay_s=60)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    build.send_signal(signal.SIGKILL)
    build.communicate(timeout=30)
    left = {path.suffix for path in folder.iterdir()}
    assert left == {".lock", ".tmp"}  # pixels under way, under no name that a later run would open
    built = build_cache(table, size_px=8, folder=folder)
    assert {path.suffix for path in folder.iterdir()} == {".lock", ".npy", ".json"}
    assert (built.read(torch.arange(6)).flatten(1).amax(1) > 0).all()


def test_build_cache__tells_how_far_it_is_and_an_interrupt_leaves_nothing(
    table: LabelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    @contextmanager
    def counter(*what: object) -> Iterator[Callable[[int], None]]:
        told.extend(what)

        def interrupt(n_done: int) -> None:
            told.append(n_done)
            raise KeyboardInterrupt

        yield interrupt

    monkeypatch.setattr(checks, "counter", counter)
    with pytest.raises(KeyboardInterrupt):
        build_cache(table, size_px=8, folder=tmp_path / "cache")
    assert told == ["decoding images", 6, 6]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_build_cache__no_room_and_unwritable_folders_say_so(
    table: LabelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot keep decoded images in .*file"):
        build_cache(table, size_px=8, folder=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"no room .* GB needed, .* GB free") as caught:
        build_cache(table, size_px=10_000_000, folder=tmp_path / "cache")
    assert "LABELWRIGHT_CACHE" in caught.value.fix
    assert "--cache-limit-gb" in caught.value.fix

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError, match="No space left on device"):
        build_cache(table, size_px=8, folder=tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_build_cache__refuses(table: LabelTable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        build_cache(table, folder=tmp_path, size_px=0)


def test_default_cache_folder__environment_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LABELWRIGHT_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "labelwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "labelwright"


def test_streamed_pixels__equal_the_cache_bit_for_bit(broken: LabelTable, tmp_path: Path) -> None:
    built = build_cache(broken, size_px=8, folder=tmp_path)
    streamed = StreamedPixels(broken, size_px=8)
    rows = torch.tensor([3, 1, 1, 0, 5, 2, 4])
    streamed.prefetch(torch.tensor([5, 1, 2]))
    for _ in range(2):
        assert torch.equal(streamed.read(rows), built.read(rows))
    assert streamed.problems == built.problems
    assert (streamed.n_rows, streamed.size_px) == (built.n_rows, built.size_px)
    assert streamed.read(torch.empty(0, dtype=torch.int64)).shape == (0, 8, 8, 3)
    streamed.close()


def test_streamed_pixels__prefetched_rows_are_decoded_once_and_old_hints_dropped(
    table: LabelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = cache._decode

    def counting(table: LabelTable, row: int, size_px: int) -> object:
        decoded.append(row)
        return decode(table, row, size_px)

    monkeypatch.setattr(cache, "_decode", counting)
    monkeypatch.setattr(cache, "_MAX_AHEAD", 2)
    streamed = StreamedPixels(table, size_px=8)
    streamed.prefetch(torch.tensor([0, 1]))
    streamed.prefetch(torch.tensor([0]))
    streamed.read(torch.tensor([0, 1]))
    assert sorted(decoded) == [0, 1]
    streamed.prefetch(torch.arange(6))
    assert list(streamed._ahead) == [4, 5]
    streamed.close()


def test_open_pixels__caches_up_to_the_limit(
    table: LabelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path))
    n_gb = 6 * 8 * 8 * 3 / 1e9
    assert isinstance(open_pixels(table, size_px=8, limit_gb=n_gb), PixelCache)
    streamed = open_pixels(table, size_px=8, limit_gb=n_gb * 0.99)
    assert isinstance(streamed, StreamedPixels)
    streamed.close()
