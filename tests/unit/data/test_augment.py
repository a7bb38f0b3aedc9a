import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from evenkeel.data.augment import (
    OPERATIONS,
    RandAugment,
    RowGenerator,
    apply_operations,
    cutout,
    normalize,
    random_crop_flip,
    random_resized_crop,
    warp,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(B: int, H: int = 24, W: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8, generator=seeded(seed))


def one_op(images: Tensor, name: str, level: float) -> Tensor:
    B = len(images)
    return apply_operations(images, ops=torch.full((B, 1), OPERATIONS.index(name)), levels=torch.full((B, 1), level))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ------------------------------------------------------------------------------------------------------------- draws


def test_row_generator__same_numbers_in_any_company() -> None:
    together = RowGenerator(torch.tensor([5, 9, 2]), seed=3, stream=1).uniform(6)
    backwards = RowGenerator(torch.tensor([2, 9]), seed=3, stream=1)
    in_parts = torch.cat([backwards.uniform(2), backwards.uniform(4)], dim=1)
    assert torch.equal(in_parts, together[[2, 1]])


def test_row_generator__seed_stream_row_and_repetition_all_matter() -> None:
    first = RowGenerator(torch.tensor([5, 5, 6]), seed=3).uniform(4)
    others = [
        RowGenerator(torch.tensor([5]), seed=4).uniform(4),
        RowGenerator(torch.tensor([5]), seed=3, stream=1).uniform(4),
    ]
    for other in (first[1], first[2], *others):
        assert not (first[0] == other).any()


def test_row_generator__uniform_and_uncorrelated() -> None:
    draws = RowGenerator(torch.arange(20_000), seed=-1).uniform(3).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    chi2 = ((counts - 3000) ** 2 / 3000).sum()
    assert 4 < chi2 < 50  # 19 degrees of freedom: outside this with probability about 1e-4 at either end
    correlations = torch.corrcoef(torch.cat([draws.T, draws[:, :1].roll(1).T]))
    assert (correlations - torch.eye(4)).abs().max() < 0.03  # sd 1/sqrt(20000) = 0.007


def test_row_generator__no_rows() -> None:
    assert RowGenerator(torch.empty(0, dtype=torch.int64), seed=0).uniform(3).shape == (0, 3)


# -------------------------------------------------------------------------------------------------------- crop and flip


@pytest.mark.parametrize(("pad_mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_random_crop_flip__every_image_is_a_window_of_its_padded_self(pad_mode: str, numpy_mode: str) -> None:
    B, H, W, pad = 200, 6, 8, 2
    images = noise_images(B, H, W)
    out = random_crop_flip(images, generator=seeded(), pad_px=pad, pad_mode=pad_mode)
    seen, n_flipped = set(), 0
    for image, got in zip(images.numpy(), out.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=numpy_mode)
        places = [
            (top, left, flip)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for flip in (False, True)
            if np.array_equal(padded[:, top : top + H, left : left + W][:, :, :: -1 if flip else 1], got)
        ]
        assert len(places) >= 1
        seen.add(places[0])
        n_flipped += places[0][2]
    assert len(seen) > 40  # of 50 equally likely; 200 draws miss one with probability 0.98^200 = 2%
    assert 70 < n_flipped < 130  # binomial(200, 1/2), 4 sd


def test_random_crop_flip__flip_off_and_no_padding_changes_nothing() -> None:
    images = noise_images(64)
    assert torch.equal(random_crop_flip(images, generator=seeded(), flip=False, pad_px=0), images)


def test_random_crop_flip__default_padding_is_an_eighth() -> None:
    images = torch.ones(400, 3, 32, 32)
    out = random_crop_flip(images, generator=seeded())
    lost_rows = (out[:, 0].amax(2) == 0).sum(1)
    assert lost_rows.max() == 4
    assert lost_rows.min() == 0


def test_random_crop_flip__keeps_dtype_input_and_gives_channels_last() -> None:
    images = noise_images(3)
    before = images.clone()
    out = random_crop_flip(images, generator=seeded())
    assert out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    as_float = random_crop_flip(images.float(), generator=seeded())
    assert torch.equal(as_float, out.float())


@pytest.mark.parametrize("settings", [{"pad_px": -1}, {"pad_px": 20, "pad_mode": "reflect"}, {"pad_mode": "wrap"}])
def test_random_crop_flip__refuses(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="pad_"):
        random_crop_flip(noise_images(1), generator=seeded(), **settings)  # type: ignore[arg-type]


def test_random_resized_crop__whole_area_square_is_the_image_or_its_mirror() -> None:
    images = noise_images(40, 8, 8)
    out = random_resized_crop(images, size_px=8, generator=seeded(), area_frac=(1.0, 1.0), aspect=(1.0, 1.0))
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 8 < int(same.sum()) < 32  # binomial(40, 1/2), 3.8 sd


def test_random_resized_crop__cuts_the_area_asked_for() -> None:
    H = W = 64
    ramp = torch.arange(W, dtype=torch.float64).expand(3, H, W)
    images = torch.stack([ramp, ramp.transpose(1, 2)] * 100)  # the slope of a ramp in the result tells the extent
    crops = [
        random_resized_crop(part, size_px=W, generator=seeded(1), flip=False, area_frac=(0.25, 0.25))
        for part in (images[::2], images[1::2])
    ]
    widths = crops[0][:, 0, 5, 40] - crops[0][:, 0, 5, 39]  # share of the width, [100]
    heights = crops[1][:, 0, 40, 5] - crops[1][:, 0, 39, 5]
    assert torch.allclose(widths * heights, torch.full((100,), 0.25, dtype=torch.float64), atol=1e-4)
    ratios = widths / heights
    assert 0.75 - 1e-3 <= ratios.min() < 0.85
    assert 1.2 < ratios.max() <= 4 / 3 + 1e-3


# ----------------------------------------------------------------------------------------------- operations against PIL

LEVELS = (-1.0, -0.7, -0.1, 0.0, 0.3, 1.0)
EXACT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "Solarize": lambda image, level: ImageOps.solarize(image, math.ceil(256 * (1 - abs(level)))),
    "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "Contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "Color": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
}


def sample_images() -> Tensor:
    """Noise, dim noise, a smooth ramp, two values, one value, few pixels of one value and many of another."""
    ramp = torch.linspace(30, 200, 24 * 20).view(1, 24, 20).expand(3, 24, 20).to(torch.uint8)
    two = torch.full((3, 24, 20), 17, dtype=torch.uint8)
    two[:, :3] = 90
    return torch.stack([*noise_images(3), noise_images(1)[0] // 3 + 40, ramp, two, torch.full_like(two, 200)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", list(EXACT))
def test_apply_operations__equals_pil(name: str, level: float) -> None:
    images = sample_images()
    expected = torch.stack([from_pil(EXACT[name](to_pil(image), level)) for image in images])
    difference = (one_op(images, name, level).int() - expected.int()).abs()
    # blends are float32 in both; a product that lands on a whole number may truncate to either side
    assert difference.max() <= (1 if name in ("Brightness", "Contrast", "Color", "Sharpness") else 0)
    assert (difference > 0).float().mean() <= 0.002


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_apply_operations__equals_pil_on_larger_images(name: str) -> None:
    images = noise_images(3, 70, 50) // torch.tensor([1, 2, 5]).view(3, 1, 1, 1).to(torch.uint8)  # 13 pixels a level
    expected = torch.stack([from_pil(EXACT[name](to_pil(image), 0.0)) for image in images])
    assert torch.equal(one_op(images, name, 0.0), expected)


def test_apply_operations__sharpness_leaves_what_is_only_border() -> None:
    images = noise_images(2, 2, 20)
    assert torch.equal(one_op(images, "Sharpness", 1.0), images)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("AutoContrast", "Equalize")])
def test_apply_operations__level_zero_is_exactly_the_identity(name: str) -> None:
    images = noise_images(4)
    assert torch.equal(one_op(images, name, 0.0), images)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Identity"])
def test_apply_operations__full_level_changes_the_image(name: str) -> None:
    images = noise_images(4) // 2 + 20
    before = images.clone()
    assert (one_op(images, name, 1.0) != images).float().mean() > 0.3
    assert torch.equal(images, before)


def test_apply_operations__posterize_keeps_only_the_upper_bits() -> None:
    out = one_op(noise_images(4), "Posterize", 1.0)
    assert (out & 0b1111).max() == 0
    assert torch.equal(out, noise_images(4) & 0b11110000)


def test_apply_operations__each_image_as_if_alone_and_in_the_order_given() -> None:
    images = noise_images(30)
    ops = torch.randint(0, 9, (30, 3), generator=seeded(1))  # no geometry, which always comes last
    levels = torch.rand(30, 3, generator=seeded(2)) * 2 - 1
    together = apply_operations(images, ops=ops, levels=levels)
    for b in range(30):
        alone = images[b : b + 1]
        for column in range(3):
            alone = one_op(alone, OPERATIONS[int(ops[b, column])], float(levels[b, column]))
        assert torch.equal(together[b], alone[0])


def test_apply_operations__translations_move_whole_pixels_and_fill() -> None:
    images = noise_images(2, 20, 20)
    out = one_op(images, "TranslateX", 0.5)  # 0.3 * 0.5 * 20 = 3 px
    assert torch.equal(out[..., :-3], images[..., 3:])
    assert (out[..., -3:] == 128).all()
    out = one_op(images, "TranslateY", -1.0)  # 6 px the other way
    assert torch.equal(out[:, :, 6:], images[:, :, :-6])
    assert (out[:, :, :6] == 128).all()


def test_apply_operations__two_moves_compose_into_one_interpolation() -> None:
    images = noise_images(1, 20, 20)
    rotate = OPERATIONS.index("Rotate")
    there_and_back = apply_operations(images, ops=torch.tensor([[rotate, rotate]]), levels=torch.tensor([[0.8, -0.8]]))
    assert torch.equal(there_and_back, images)


def test_warp__quarter_turn_and_slow_bilinear_loop() -> None:
    images = noise_images(1, 12, 12).double()
    turned = warp(images, torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]))
    assert torch.allclose(turned, torch.rot90(images, 1, (2, 3)), atol=1e-3) or torch.allclose(
        turned, torch.rot90(images, -1, (2, 3)), atol=1e-3
    )
    H, W, fill = 5, 8, 9.0
    image = torch.rand(1, 3, H, W, generator=seeded(), dtype=torch.float64)
    m = [[0.9, 0.3, 0.7], [-0.2, 1.1, -0.4]]
    got = warp(image, torch.tensor([m]), fill=fill)
    for y in range(H):
        for x in range(W):
            cx, cy = x - (W - 1) / 2, y - (H - 1) / 2
            sx = m[0][0] * cx + m[0][1] * cy + m[0][2] + (W - 1) / 2
            sy = m[1][0] * cx + m[1][1] * cy + m[1][2] + (H - 1) / 2
            expected = torch.zeros(3, dtype=torch.float64)
            for iy in (math.floor(sy), math.floor(sy) + 1):
                for ix in (math.floor(sx), math.floor(sx) + 1):
                    weight = (1 - abs(sx - ix)) * (1 - abs(sy - iy))
                    inside = 0 <= iy < H and 0 <= ix < W
                    expected += weight * (image[0, :, iy, ix] if inside else fill)
            assert torch.allclose(got[0, :, y, x], expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- RandAugment


def test_rand_augment__operations_differ_between_images_and_follow_the_scale() -> None:
    ops, levels = RandAugment(n=2, m=10).draw(4000, generator=seeded())
    counts = torch.bincount(ops.flatten(), minlength=len(OPERATIONS)).double()
    assert counts.min() > 480  # 8000 / 14 = 571, sd 23
    assert counts.max() < 665
    assert sorted({round(abs(v) * 10) for v in levels.flatten().tolist()}) == list(range(1, 11))
    assert 0.47 < float((levels < 0).float().mean()) < 0.53
    fixed = RandAugment(n=2, m=7, vary_magnitude=False).draw(50, generator=seeded())[1]
    assert torch.allclose(fixed.abs(), torch.tensor(0.7))


def test_rand_augment__one_image_many_times_gives_many_results() -> None:
    images = noise_images(1).expand(64, -1, -1, -1)
    out = RandAugment(n=2, m=10)(images, generator=seeded())
    assert len({image.numpy().tobytes() for image in out}) > 50


def test_rand_augment__same_seed_same_result_and_other_seed_another() -> None:
    images = noise_images(16)
    augment = RandAugment(cutout_frac=0.5)
    assert torch.equal(augment(images, generator=seeded(5)), augment(images, generator=seeded(5)))
    assert not torch.equal(augment(images, generator=seeded(5)), augment(images, generator=seeded(6)))


def test_rand_augment__no_operations_leaves_uint8_and_float_alone() -> None:
    images = noise_images(3)
    assert torch.equal(RandAugment(n=0)(images, generator=seeded()), images)
    unit = images.float() / 255
    assert torch.equal(RandAugment(n=0)(unit, generator=seeded()), unit)


@pytest.mark.parametrize("settings", [{"n": -1}, {"m": 11}, {"cutout_frac": 1.5}, {"fill": 256}])
def test_rand_augment__refuses(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RandAugment(**settings)  # type: ignore[arg-type]


def test_cutout__erases_a_square_and_nothing_else() -> None:
    images = torch.zeros(300, 3, 16, 16)
    out = cutout(images, frac=0.5, generator=seeded(), fill=1)
    is_erased = out[:, 0] == 1
    assert torch.equal(out, is_erased[:, None].expand_as(out).float())
    heights, widths = is_erased.any(2).sum(1), is_erased.any(1).sum(1)
    assert torch.equal(heights * widths, is_erased.flatten(1).sum(1))  # full rectangles
    assert heights.max() == widths.max() == 8
    assert heights.min() == 4  # centred in the outermost row
    assert torch.equal(cutout(images, frac=0.0, generator=seeded(), fill=1), images)


# ------------------------------------------------------------------------------------------------------------- the rest


def test_normalize__worked_number_and_layout() -> None:
    images = noise_images(2)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    out = normalize(images, mean=mean, std=std)
    oracle = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(out.double(), oracle, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    unit = images.float() / 255
    assert torch.allclose(normalize(unit, mean=mean, std=std), out, atol=1e-5)
    assert torch.equal(unit, images.float() / 255)
    with pytest.raises(ValueError, match="std"):
        normalize(images, mean=mean, std=(0.0, 1.0, 1.0))


def test_every_function__takes_an_empty_batch() -> None:
    empty = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert random_crop_flip(empty, generator=seeded()).shape == (0, 3, 8, 8)
    assert random_resized_crop(empty, size_px=4, generator=seeded()).shape == (0, 3, 4, 4)
    assert RandAugment(cutout_frac=0.5)(empty, generator=seeded()).shape == (0, 3, 8, 8)
    assert warp(empty, torch.empty(0, 2, 3)).shape == (0, 3, 8, 8)
    assert normalize(empty, mean=(0.5,) * 3, std=(0.5,) * 3).shape == (0, 3, 8, 8)


def test_every_function__refuses_images_without_three_channels() -> None:
    grey = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for call in (
        lambda: random_crop_flip(grey, generator=seeded()),
        lambda: random_resized_crop(grey, size_px=4, generator=seeded()),
        lambda: RandAugment()(grey, generator=seeded()),
        lambda: cutout(grey, frac=0.5, generator=seeded()),
        lambda: normalize(grey, mean=(0.5,) * 3, std=(0.5,) * 3),
    ):
        with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_function__draws_the_same_on_a_gpu() -> None:
    images = noise_images(64, 32, 32)
    for call in (
        lambda x: random_crop_flip(x, generator=seeded()),
        lambda x: random_resized_crop(x, size_px=24, generator=seeded()),
        lambda x: RandAugment(cutout_frac=0.5)(x, generator=seeded()),
    ):
        difference = (call(images).int() - call(images.cuda()).cpu().int()).abs()
        assert (difference > 1).float().mean() < 1e-3  # interpolation may round to either side
