import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from labelwright.data import views as views_module
from labelwright.data.cache import PixelCache
from labelwright.data.views import VIEWS, PixelViews, ViewSettings, channel_stats
from labelwright.errors import ConfigError, Problem
from labelwright.types import ViewSource

CPU = torch.device("cpu")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise_cache(N: int = 40, size_px: int = 16) -> PixelCache:
    return PixelCache(np.random.default_rng(0).integers(0, 256, (N, size_px, size_px, 3), dtype=np.uint8))


@pytest.fixture
def views() -> PixelViews:
    return PixelViews(noise_cache(), ViewSettings())


def test_pixel_views__is_a_view_source(views: PixelViews) -> None:
    source: ViewSource = views
    for view in VIEWS:
        x = source.batch(torch.tensor([3, 1]), view, seed=0, device=CPU)
        assert x.shape == (2, 3, 16, 16)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert source.batch(torch.empty(0, dtype=torch.int64), view, seed=0, device=CPU).shape == (0, 3, 16, 16)
    assert source.n_rows == 40


def test_clean__is_the_normalised_image_whatever_the_seed() -> None:
    pixels = noise_cache()
    views = PixelViews(pixels, ViewSettings(mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 2.0)))
    rows = torch.tensor([7, 0])
    oracle = (pixels.read(rows).double() / 255 - torch.tensor([0.2, 0.4, 0.6])) / torch.tensor([0.5, 0.25, 2.0])
    for seed in (0, 1):
        x = views.batch(rows, "clean", seed=seed, device=CPU)
        assert torch.allclose(x.permute(0, 2, 3, 1).double(), oracle, atol=1e-5)


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_batch__hangs_on_seed_view_and_row_alone(crop: str, view: str) -> None:
    views = PixelViews(noise_cache(), ViewSettings(crop=crop))  # type: ignore[arg-type]
    rows = torch.arange(40)
    whole = views.batch(rows, view, seed=5, device=CPU)
    assert torch.equal(whole, views.batch(rows, view, seed=5, device=CPU))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:13]
    assert torch.equal(whole[order], views.batch(order, view, seed=5, device=CPU))
    other = views.batch(rows, view, seed=6, device=CPU)
    assert (whole != other).flatten(1).any(1).float().mean() > 0.9


def test_batch__weak_and_strong_draw_apart_and_a_row_listed_twice_differs() -> None:
    settings = ViewSettings(randaugment_n=0, cutout_frac=0.0)  # strong = weak but for the draws
    views = PixelViews(noise_cache(), settings)
    rows = torch.arange(40)
    weak, strong = (views.batch(rows, view, seed=5, device=CPU) for view in ("weak", "strong"))
    assert (weak != strong).flatten(1).any(1).float().mean() > 0.9
    twice = views.batch(torch.tensor([3] * 20), "weak", seed=0, device=CPU)
    assert len({x.numpy().tobytes() for x in twice}) > 10


def test_flip_off__never_flips() -> None:
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None] * 10, (200, 16, 16, 3))
    rows = torch.arange(200)

    def rising(flip: bool, crop: str) -> Tensor:
        settings = ViewSettings(flip=flip, crop=crop, pad_mode="reflect", **PLAIN)  # type: ignore[arg-type]
        x = PixelViews(PixelCache(ramp), settings).batch(rows, "weak", seed=0, device=CPU)
        return x[:, 0, 8, 9] > x[:, 0, 8, 6]

    for crop in ("pad", "resized"):
        assert rising(False, crop).all()
        assert 70 < int(rising(True, crop).sum()) < 130  # binomial(200, 1/2), 4 sd


def test_strong__stays_within_the_range_of_pixels_and_changes_more_than_weak() -> None:
    views = PixelViews(noise_cache(), ViewSettings(flip=False, pad_px=0, **PLAIN))
    rows = torch.arange(40)
    clean, weak, strong = (views.batch(rows, view, seed=1, device=CPU) for view in VIEWS)
    assert torch.equal(clean, weak)
    assert 0 <= strong.min() <= strong.max() <= 1
    assert (strong != clean).flatten(1).any(1).all()  # Cutout at least


def test_rows__are_renumbered_and_keep_their_views(views: PixelViews) -> None:
    last = PixelViews(views.pixels, views.settings, rows=torch.tensor([17, 30]))
    assert last.n_rows == 2
    for view in VIEWS:
        expected = views.batch(torch.tensor([17, 30]), view, seed=4, device=CPU)
        assert torch.equal(last.batch(torch.arange(2), view, seed=4, device=CPU), expected)


def test_prefetch__asks_for_the_rows_behind() -> None:
    asked: list[int] = []

    class Listening(PixelCache):
        def prefetch(self, rows: Tensor) -> None:
            asked.extend(rows.tolist())

    views = PixelViews(Listening(noise_cache().pixels), ViewSettings(), rows=torch.tensor([30, 2, 17]))
    views.prefetch(torch.tensor([2, 0]))
    assert asked == [17, 30]


def test_batch__unknown_view_lists_the_known_ones(views: PixelViews) -> None:
    with pytest.raises(ConfigError, match="no such view: 'medium'") as caught:
        views.batch(torch.tensor([0]), "medium", seed=0, device=CPU)
    assert "clean, weak, strong" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop", "middle"),
        ("pad_px", -1),
        ("pad_mode", "wrap"),
        ("crop_area_frac_min", 0.0),
        ("randaugment_n", -1),
        ("randaugment_m", 11),
        ("cutout_frac", 1.5),
        ("mean", (0.5,)),
        ("std", (0.0, 1.0, 1.0)),
    ],
)
def test_view_settings__refuse_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}=") as caught:
        ViewSettings(**{key: value})  # type: ignore[arg-type]
    assert caught.value.fix.startswith(key)


def test_pixel_views__reflection_must_fit() -> None:
    with pytest.raises(ConfigError, match="pad_px=16 does not fit images of 16 px"):
        PixelViews(noise_cache(), ViewSettings(pad_px=16, pad_mode="reflect"))


def test_channel_stats__equal_numpy_and_leave_out_unreadable_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.array(noise_cache().pixels)
    pixels[5] = 0
    broken = PixelCache(pixels, problems=[Problem("row 5", "unreadable_image", "cut short", 5)])
    unit = np.delete(pixels, 5, axis=0).reshape(-1, 3) / 255
    mean, std = channel_stats(broken)
    assert mean == pytest.approx(unit.mean(0), abs=1e-9)
    assert std == pytest.approx(unit.std(0), abs=1e-9)
    some = pixels[[0, 2]].reshape(-1, 3) / 255
    assert channel_stats(broken, rows=torch.tensor([0, 2]))[0] == pytest.approx(some.mean(0), abs=1e-9)
    ends = pixels[[0, 39]].reshape(-1, 3) / 255
    with monkeypatch.context() as patch:
        patch.setattr(views_module, "MAX_IMAGES", 2)
        assert channel_stats(broken)[1] == pytest.approx(ends.std(0), abs=1e-9)
    with pytest.raises(ConfigError, match="no readable image"):
        channel_stats(broken, rows=torch.tensor([5]))


def test_cifar__weak_and_strong_views_of_real_images() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    shared = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))
    file = shared / "data" / "cifar10-test.parquet"
    if not file.exists():
        pytest.skip(f"no CIFAR-10 at {file}")
    import io

    from PIL import Image

    column = next(parquet.ParquetFile(file).iter_batches(batch_size=128)).column("image").to_pylist()
    stored = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in column])
    pixels = PixelCache(stored)
    mean, std = channel_stats(pixels)
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.03)  # of all 50,000; 128 images miss by about 0.01
    views = PixelViews(pixels, ViewSettings(mean=mean, std=std))
    clean = views.batch(torch.arange(128), "clean", seed=0, device=CPU)
    assert clean.mean((0, 2, 3)).abs().max() < 1e-4
    assert (clean.std((0, 2, 3)) - 1).abs().max() < 1e-4
    strong = views.batch(torch.arange(128), "strong", seed=0, device=CPU)
    assert torch.isfinite(strong).all()
    assert 0.3 < float(strong.std()) < 3
