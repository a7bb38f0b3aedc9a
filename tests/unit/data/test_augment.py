import numpy as np
import pytest
import torch
from torch import Tensor

from labelwright.data import augment
from labelwright.data.augment import RowGenerator, normalize, random_crop_flip, random_resized_crop
from labelwright.data.randaugment import RandAugment, warp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(B: int, H: int = 24, W: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (B, 3, H, W), dtype=torch.uint8, generator=seeded(seed))


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


def test_random_resized_crop__whole_area_square_is_the_image_or_its_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise_images(40, 8, 8)
    monkeypatch.setattr(augment, "ASPECT", (1.0, 1.0))
    out = random_resized_crop(images, size_px=8, generator=seeded(), area_frac=(1.0, 1.0))
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


def test_every_function__takes_an_empty_batch() -> None:
    empty = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert random_crop_flip(empty, generator=seeded()).shape == (0, 3, 8, 8)
    assert random_resized_crop(empty, size_px=4, generator=seeded()).shape == (0, 3, 4, 4)
    assert RandAugment(cutout_frac=0.5)(empty, generator=seeded()).shape == (0, 3, 8, 8)
    assert warp(empty, torch.empty(0, 2, 3)).shape == (0, 3, 8, 8)
    assert normalize(empty, mean=(0.5,) * 3, std=(0.5,) * 3).shape == (0, 3, 8, 8)


def test_rand_augment__refuses_images_without_three_channels() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        RandAugment()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), generator=seeded())


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
