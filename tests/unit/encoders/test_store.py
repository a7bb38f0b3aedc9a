import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from labelwright.data import stored
from labelwright.data.cache import PixelCache
from labelwright.data.stored import EmbeddingStore, EmbeddingViews
from labelwright.data.views import VIEWS, PixelViews, ViewSettings
from labelwright.encoders import store as store_module
from labelwright.encoders.store import build_store
from labelwright.errors import ConfigError
from labelwright.types import ViewSource

CPU = torch.device("cpu")
N, D, V, SIDE = 11, 6, 2, 8


def noise_views(n: int = N, *, side: int = SIDE, flip: bool = True) -> PixelViews:
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return PixelViews(PixelCache(pixels), ViewSettings(flip=flip))


def six_pixels(x: Tensor) -> Tensor:
    """An encoder whose features of an image hang on that image alone, to the bit."""
    return x.permute(0, 2, 3, 1).flatten(1)[:, 60 : 60 + D].contiguous()


def build(folder: Path, *, views: PixelViews | None = None, encode: Any = six_pixels, **changed: Any) -> EmbeddingStore:
    settings: dict[str, Any] = {
        "identity": "six pixels",
        "images_digest": "noise",
        "n_views": V,
        "seed": 0,
        "n_features": D,
        "folder": folder,
        "device": CPU,
        "batch_size": 4,
        **changed,
    }
    return build_store(noise_views() if views is None else views, encode, **settings)


@pytest.fixture
def whole(tmp_path: Path) -> np.ndarray[Any, Any]:
    """What an uninterrupted build holds."""
    return np.array(build(tmp_path / "uninterrupted").feats)


def test_build_store__clean_plane_is_the_encoder_on_the_normalised_pixels(tmp_path: Path) -> None:
    views = noise_views()
    assert isinstance(views.pixels, PixelCache)
    built = build(tmp_path, views=views)
    raw = views.pixels.pixels.astype(np.float64) / 255
    normal = (raw - np.array(views.settings.mean)) / np.array(views.settings.std)
    expected = normal.reshape(N, -1)[:, 60 : 60 + D]
    assert built.feats[0].shape == (N, D)
    assert np.abs(built.feats[0] - expected).max() < 2e-3  # float16 holds 11 bits, and the values are below 3
    assert np.abs(built.feats[0] - expected).max() > 0


def test_build_store__planes_hold_views_that_differ(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert (built.n_rows, built.n_features, built.n_views("weak"), built.n_views("clean")) == (N, D, V, 1)
    assert built.feats.shape == (1 + 2 * V, N, D)
    planes = built.feats
    for i, one in enumerate(planes):
        for other in planes[:i]:
            assert (one != other).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_build_store__views_do_not_hang_on_the_batches(
    tmp_path: Path, whole: np.ndarray[Any, Any], batch_size: int
) -> None:
    built = build(tmp_path / "other", batch_size=batch_size)
    assert np.array_equal(built.feats, whole)


def test_build_store__second_call_encodes_nothing_and_takes_no_lock(
    tmp_path: Path, whole: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FileLock", lambda path: pytest.fail("a finished store is only read"))
    again = build(tmp_path / "uninterrupted", encode=lambda x: pytest.fail("encoded again"))
    assert np.array_equal(again.feats, whole)


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": "other weights"},
        {"images_digest": "other images"},
        {"n_views": 1},
        {"seed": 1},
        {"views": noise_views(flip=False)},
        {"views": noise_views(side=9)},
        {"views": noise_views(N - 1)},
        {"n_features": D - 1, "encode": lambda x: six_pixels(x)[:, :-1]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_build_store__what_changes_the_features_is_another_store(tmp_path: Path, changed: dict[str, Any]) -> None:
    build(tmp_path)
    build(tmp_path, **changed)
    assert len(list(tmp_path.glob("*/feats.npy"))) == 2


# ------------------------------------------------------------------------------------------------------- interruptions


def test_build_store__interrupted_build_goes_on_where_it_was(
    tmp_path: Path, whole: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_SAVE_EVERY_S", 0.0)
    calls: list[int] = []

    def stops(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 7:  # in the second of three batches, each in five views
            raise KeyboardInterrupt
        return six_pixels(x)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "interrupted", encode=stops)
    done: list[int] = []
    calls.clear()

    def counts(x: Tensor) -> Tensor:
        calls.append(len(x))
        return six_pixels(x)

    built = build(tmp_path / "interrupted", encode=counts, progress=done.append)
    assert calls == [4] * 5 + [3] * 5
    assert done == [8, 11]
    assert np.array_equal(built.feats, whole)


BUILD_SLOWLY = """
import sys, time
from pathlib import Path
import test_store
from labelwright.encoders import store
store._SAVE_EVERY_S = 0.0
folder, delay_s = Path(sys.argv[1]), float(sys.argv[2])
def slow(x):
    with (folder / "encoded").open("a") as file:
        file.write("x")
    time.sleep(delay_s)
    return test_store.six_pixels(x)
print(float(test_store.build(folder / "store", encode=slow).feats.astype("float64").sum()))
"""


def start_build(folder: Path, *, delay_s: float) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_SLOWLY, str(folder), str(delay_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_build_store__killed_build_ends_with_the_same_content(tmp_path: Path, whole: np.ndarray[Any, Any]) -> None:
    process = start_build(tmp_path, delay_s=0.2)
    wait_for(lambda: len(list(tmp_path.glob("store/*/progress.json"))) == 1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    n_before = len((tmp_path / "encoded").read_text())
    assert n_before < 15, "it was killed before it was done"
    calls: list[int] = []
    built = build(tmp_path / "store", encode=lambda x: (calls.append(len(x)), six_pixels(x))[1])
    assert 5 <= len(calls) <= 10
    assert np.array_equal(built.feats, whole)


def test_build_store__two_processes_at_once_encode_once(tmp_path: Path, whole: np.ndarray[Any, Any]) -> None:
    first = start_build(tmp_path, delay_s=0.3)
    wait_for(lambda: (tmp_path / "encoded").exists())
    waited = build(tmp_path / "store", encode=lambda x: pytest.fail("encoded by the second as well"))
    assert np.array_equal(waited.feats, whole)
    told = first.communicate(timeout=60)[0]
    assert float(told) == float(whole.astype(np.float64).sum())
    assert (tmp_path / "encoded").read_text() == "x" * 15


@pytest.mark.parametrize("damage", ["truncated", "gone", "no notes", "bad notes", "other key"])
def test_build_store__rebuilds_a_damaged_store(tmp_path: Path, whole: np.ndarray[Any, Any], damage: str) -> None:
    (notes,) = tmp_path.glob("uninterrupted/*/progress.json")
    feats = notes.with_name("feats.npy")
    match damage:
        case "truncated":
            os.truncate(feats, feats.stat().st_size - 100)
        case "gone":
            feats.unlink()
        case "no notes":
            notes.unlink()
        case "bad notes":
            notes.write_text("{")
        case "other key":
            notes.write_text(json.dumps({**json.loads(notes.read_text()), "key": {}}))
    calls: list[int] = []
    again = build(tmp_path / "uninterrupted", encode=lambda x: (calls.append(len(x)), six_pixels(x))[1])
    assert len(calls) == 15
    assert np.array_equal(again.feats, whole)


# -------------------------------------------------------------------------------------------------------------- errors


def test_build_store__folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"cannot keep features in .*file") as caught:
        build(tmp_path / "file")
    assert "LABELWRIGHT_CACHE" in caught.value.fix
    needed = 2 * 5 * N * D
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    with pytest.raises(ConfigError, match=r"no room for the features .* GB needed, .* GB free") as caught:
        build(tmp_path / "full")
    assert "LABELWRIGHT_CACHE" in caught.value.fix
    assert "--n-views" in caught.value.fix
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed))
    assert build(tmp_path / "full").n_rows == N


def test_build_store__disk_that_fills_up_midway(
    tmp_path: Path, whole: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_SAVE_EVERY_S", 0.0)
    fsync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        build(tmp_path / "filling")
    monkeypatch.setattr(os, "fsync", fsync)
    encoded: list[int] = []
    built = build(tmp_path / "filling", encode=lambda x: (encoded.append(len(x)), six_pixels(x))[1])
    assert len(encoded) == 10, "the first batch was kept"
    assert np.array_equal(built.feats, whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70_000.0])
def test_build_store__values_that_float16_cannot_hold(tmp_path: Path, value: float) -> None:
    def encode(x: Tensor) -> Tensor:
        z = six_pixels(x)
        z[-1, 2] = value
        return z

    with pytest.raises(ConfigError, match=r"cannot hold, first for image 3"):
        build(tmp_path, encode=encode)


@pytest.mark.parametrize("wrong", [{"n_views": -1}, {"batch_size": 0}])
def test_build_store__refuses(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        build(tmp_path, **wrong)


def test_build_store__errors_of_encoder_and_pixels_come_through(tmp_path: Path) -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("the encoder's own")

    with pytest.raises(ValueError, match="the encoder's own"):
        build(tmp_path, encode=fails)
    views = noise_views()
    views.pixels = Counting(views.pixels, fails_at=4)
    with pytest.raises(OSError, match="the pixels' own"):
        build(tmp_path, views=views)


# --------------------------------------------------------------------------------------------------------------- speed


class Counting:
    """Pixels that note what is read and hinted."""

    def __init__(self, pixels: Any, *, fails_at: int = -1) -> None:
        self.pixels, self.fails_at = pixels, fails_at
        self.n_rows, self.size_px, self.problems = pixels.n_rows, pixels.size_px, ()
        self.was_read: list[list[int]] = []
        self.hinted: list[list[int]] = []

    def read(self, rows: Tensor) -> Tensor:
        if self.fails_at in rows.tolist():
            raise OSError("the pixels' own")
        self.was_read.append(rows.tolist())
        found: Tensor = self.pixels.read(rows)
        return found

    def prefetch(self, rows: Tensor) -> None:
        self.hinted.append(rows.tolist())


def test_build_store__reads_pixels_once_for_all_views(tmp_path: Path, whole: np.ndarray[Any, Any]) -> None:
    views = noise_views()
    counting = Counting(views.pixels)
    views.pixels = counting
    built = build(tmp_path / "counted", views=views)
    batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert counting.was_read == batches
    assert counting.hinted == batches[1:]
    assert views.pixels is counting, "the user's views are left as they were"
    assert np.array_equal(built.feats, whole)


def test_build_store__makes_the_next_batch_while_the_encoder_runs(tmp_path: Path) -> None:
    next_is_made = threading.Event()
    was_ahead: list[bool] = []

    class Telling(Counting):
        def read(self, rows: Tensor) -> Tensor:
            if 4 in rows.tolist():
                next_is_made.set()
            return super().read(rows)

    def waits(x: Tensor) -> Tensor:
        was_ahead.append(next_is_made.wait(timeout=20))
        return six_pixels(x)

    views = noise_views()
    views.pixels = Telling(views.pixels)
    build(tmp_path, views=views, encode=waits, n_views=0)
    assert was_ahead == [True] * 3


def test_build_store__small_stores_are_kept_in_memory(tmp_path: Path, whole: np.ndarray[Any, Any]) -> None:
    n_gb = whole.nbytes / 1e9
    in_memory = build(tmp_path / "uninterrupted", memory_gb=n_gb)
    mapped = build(tmp_path / "uninterrupted", memory_gb=0.99 * n_gb)
    assert isinstance(mapped.feats.base, np.memmap)
    assert not isinstance(in_memory.feats.base, np.memmap)
    rows, index = torch.tensor([3, 10, 3]), torch.tensor([1, 0, 0])
    for view in ("weak", "strong"):
        assert torch.equal(mapped.read(rows, view, index), in_memory.read(rows, view, index))


def test_build_store__without_augmented_views_and_without_images(tmp_path: Path) -> None:
    clean = build(tmp_path, n_views=0)
    assert clean.feats.shape == (1, N, D)
    views = EmbeddingViews(clean)
    assert torch.equal(
        views.batch(torch.arange(N), "clean", seed=0, device=CPU), torch.from_numpy(clean.feats[0]).float()
    )
    with pytest.raises(ConfigError, match="no weak views were stored"):
        views.batch(torch.tensor([0]), "weak", seed=0, device=CPU)
    empty = build(tmp_path, views=noise_views(0))
    assert empty.feats.shape == (5, 0, D)
    assert next(iter(EmbeddingViews(empty).feats())).shape == (0, D)


# --------------------------------------------------------------------------------------------------------------- views


@pytest.fixture
def numbered() -> EmbeddingStore:
    """Features (plane, row): 1 + 2*4 planes of 50 rows."""
    plane, row = np.meshgrid(np.arange(9), np.arange(50), indexing="ij")
    return EmbeddingStore(np.stack([plane, row], axis=2).astype(np.float16))


def test_embedding_views__is_a_view_source_of_what_was_stored(numbered: EmbeddingStore) -> None:
    source: ViewSource = EmbeddingViews(numbered)
    rows = torch.tensor([7, 49, 0, 7])
    for view, planes in zip(VIEWS, ({0}, {1, 2, 3, 4}, {5, 6, 7, 8}), strict=True):
        seen: set[int] = set()
        for seed in range(20):
            x = source.batch(rows, view, seed=seed, device=CPU)
            assert x.dtype == torch.float32
            assert x[:, 1].tolist() == rows.tolist()
            seen |= {int(plane) for plane in x[:, 0]}
        assert seen == planes
    source.prefetch(rows)
    assert source.n_rows == 50


def test_embedding_views__choice_hangs_on_seed_view_and_row_alone(numbered: EmbeddingStore) -> None:
    views = EmbeddingViews(numbered)
    rows = torch.arange(50)

    def planes(rows: Tensor, view: str = "weak", seed: int = 3) -> Tensor:
        return views.batch(rows, view, seed=seed, device=CPU)[:, 0]

    assert torch.equal(planes(rows), planes(rows))
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(planes(shuffled), planes(rows)[shuffled])
    assert 2 <= len(planes(rows).unique()) <= 4
    assert (planes(rows) != planes(rows, seed=4)).float().mean() > 0.5  # 3/4 are expected to change
    assert (planes(rows) != planes(rows, view="strong") - 4).float().mean() > 0.5


def test_embedding_views__every_view_is_as_likely(numbered: EmbeddingStore) -> None:
    views = EmbeddingViews(numbered)
    drawn = torch.cat([views.batch(torch.arange(50), "strong", seed=s, device=CPU)[:, 0] for s in range(80)]).long() - 5
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert (shares - 0.25).abs().max() < 0.03  # 4.4 standard deviations of a share of 4,000


def test_embedding_views__of_some_rows_and_feats(numbered: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    views, some = EmbeddingViews(numbered), EmbeddingViews(numbered, rows=torch.tensor([43, 41]))
    assert (some.n_rows, some.n_features) == (2, 2)
    assert some.batch(torch.tensor([1, 0]), "clean", seed=0, device=CPU)[:, 1].tolist() == [41, 43]
    x = some.batch(torch.tensor([0]), "weak", seed=9, device=CPU)
    assert torch.equal(x, views.batch(torch.tensor([43]), "weak", seed=9, device=CPU))
    monkeypatch.setattr(stored, "CHUNK", 20)
    chunks = list(views.feats())
    assert [len(chunk) for chunk in chunks] == [20, 20, 10]
    assert torch.cat(chunks)[:, 1].tolist() == list(range(50))
    rows = torch.tensor([5, 3])
    assert torch.equal(torch.cat(list(views.feats(rows))), views.batch(rows, "clean", seed=0, device=CPU))


def test_embedding_views__unknown_view(numbered: EmbeddingStore) -> None:
    with pytest.raises(ConfigError, match="no such view: 'loud'"):
        EmbeddingViews(numbered).batch(torch.tensor([0]), "loud", seed=0, device=CPU)
