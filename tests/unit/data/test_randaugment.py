import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from labelwright.data.randaugment import OPERATIONS, RandAugment, apply_operations, cutout, warp


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


def test_rand_augment__refuses_images_of_other_types() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 or float, not torch\.int64"):
        RandAugment()(noise_images(2).long(), generator=seeded())


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
