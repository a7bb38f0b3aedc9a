"""Crops, flips and normalisation of whole batches, each image with its own draw, on any device.

Every function takes [B, 3, H, W] images (uint8 0..255, or float 0..1) and gives [B, 3, H, W] stored channels-last.
Random numbers come from an explicit source (``Randomness``), always drawn on the CPU, so that the CPU and a GPU draw
the same. Nothing loops over images. Stronger changes are in randaugment.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

ASPECT = (3 / 4, 4 / 3)  # least and greatest width / height of a random part (arXiv 1409.4842, Sec. 6)

UInt64s = npt.NDArray[np.uint64]


@dataclass
class RowGenerator:
    """Random numbers that depend on (seed, stream, row) alone, whatever the other rows of the batch are.

    The k-th number of a row is the splitmix64 hash of those and k. A row listed twice in one batch gets a fresh
    sequence the second time. Stateful, as torch.Generator is: each call moves on.

    Source: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators.

    Example:
      >>> many = RowGenerator(torch.tensor([7, 3, 7]), seed=0).uniform(2)
      >>> alone = RowGenerator(torch.tensor([3]), seed=0).uniform(2)
      >>> bool((many[1] == alone[0]).all()), bool((many[0] == many[2]).any())
      (True, False)
    """

    rows: Tensor  # [B] int64
    seed: int  # any integer
    stream: int = 0  # tells apart sequences of the same rows and seed
    _drawn: int = field(default=0, init=False)
    _keys: UInt64s = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = self.rows.detach().cpu().numpy().astype(np.int64)
        order = np.argsort(rows, kind="stable")
        places = np.arange(len(rows))
        is_first = np.ones(len(rows), dtype=bool)
        is_first[1:] = rows[order][1:] != rows[order][:-1]
        nth_time = np.empty(len(rows), dtype=np.uint64)  # 0 the first time a row is listed, then 1, 2...
        nth_time[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
        keys: UInt64s = np.full(len(rows), self.seed % 2**64, dtype=np.uint64)
        for part in (np.uint64(self.stream % 2**64), rows.view(np.uint64), nth_time):
            keys = _splitmix64(keys + _GOLDEN * (part + np.uint64(1)))
        self._keys = keys

    def uniform(self, n: int) -> Tensor:
        """The next n numbers of every row: [B, n] float32 on the CPU, in [0, 1)."""
        counters = np.arange(self._drawn + 1, self._drawn + n + 1, dtype=np.uint64)
        self._drawn += n
        bits = _splitmix64(self._keys[:, None] + _GOLDEN * counters)
        return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


Randomness = torch.Generator | RowGenerator
"""Where draws come from: a CPU torch.Generator (draws go by place in the batch) or a RowGenerator (by row)."""

_GOLDEN = np.asarray([0x9E3779B97F4A7C15], dtype=np.uint64)  # arrays wrap around silently, numpy scalars warn


def _splitmix64(z: UInt64s) -> UInt64s:
    z = (z ^ (z >> np.uint64(30))) * np.asarray([0xBF58476D1CE4E5B9], dtype=np.uint64)
    z = (z ^ (z >> np.uint64(27))) * np.asarray([0x94D049BB133111EB], dtype=np.uint64)
    return z ^ (z >> np.uint64(31))


def draw_uniform(generator: Randomness, B: int, n: int) -> Tensor:
    """The next n numbers of every image of a batch: [B, n] float32 on the CPU, in [0, 1)."""
    if isinstance(generator, RowGenerator):
        assert len(generator.rows) == B, "one row per image"
        return generator.uniform(n)
    return torch.rand(B, n, generator=generator)


def random_crop_flip(
    images: Tensor,
    *,
    generator: Randomness,
    flip: bool = True,
    pad_px: int | None = None,
    pad_mode: str = "zero",
) -> Tensor:
    """Shift each image by up to pad_px in both directions and mirror half of them: pad, crop, flip in one gather.

    Args:
      images: [B, 3, H, W] uint8 or float, any range.   generator: source of the draws.
      flip: mirror left and right with probability 1/2.
      pad_px: >= 0; None is an eighth of the shorter side, 4 px at 32 px (He et al. 2015, arXiv 1512.03385, Sec. 4.2).
      pad_mode: "zero" fills with 0; "reflect" mirrors the image at its border (pad_px < the shorter side).

    Returns: [B, 3, H, W] of the same dtype, channels-last.

    Example:
      >>> image = torch.arange(4, dtype=torch.uint8).expand(1, 3, 4, 4)
      >>> random_crop_flip(image, generator=torch.Generator().manual_seed(2), pad_px=0)[0, 0, 0].tolist()
      [0, 1, 2, 3]
      >>> random_crop_flip(image, generator=torch.Generator().manual_seed(1), pad_px=0)[0, 0, 0].tolist()
      [3, 2, 1, 0]
    """
    B, _, H, W = images.shape
    pad_px = round(min(H, W) / 8) if pad_px is None else pad_px
    draws = draw_uniform(generator, B, 3)
    shifts = (draws[:, :2] * (2 * pad_px + 1)).long() - pad_px  # [B, 2]
    ys = torch.arange(H) + shifts[:, :1]  # [B, H] the source row of each row of the result
    xs = torch.arange(W) + shifts[:, 1:]
    if flip:
        xs = torch.where(draws[:, 2:] < 0.5, xs.flip(1), xs)
    if pad_mode == "reflect":
        ys, xs = _reflect(ys, H), _reflect(xs, W)
    ys, xs = ys.to(images.device, non_blocking=True), xs.to(images.device, non_blocking=True)
    starts = torch.arange(B, device=images.device)[:, None] * H
    source = (starts + ys.clamp(0, H - 1))[:, :, None] * W + xs.clamp(0, W - 1)[:, None, :]  # [B, H, W]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)  # [B, 3, H, W] -> [B*H*W, 3]
    out = pixels.index_select(0, source.flatten()).view(B, H, W, 3)
    if pad_mode == "zero" and pad_px > 0:
        inside = ((ys >= 0) & (ys < H))[:, :, None] & ((xs >= 0) & (xs < W))[:, None, :]
        out.mul_(inside[..., None])
    return out.permute(0, 3, 1, 2)


def _reflect(places: Tensor, length: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= length, 2 * (length - 1) - places, places)


def random_resized_crop(
    images: Tensor,
    *,
    size_px: int,
    generator: Randomness,
    flip: bool = True,
    area_frac: tuple[float, float] = (0.08, 1.0),
) -> Tensor:
    """Cut a random rectangle out of each image and stretch it to size_px x size_px (bilinear), mirroring half of them.

    Its width / height is drawn log-uniformly from ASPECT; a rectangle that would stick out of the image is narrowed to
    fit. The stretch does not antialias: keep the images no larger than about twice size_px.

    Args:
      images: [B, 3, H, W] uint8 0..255 or float, any range.   size_px: side of the result.
      generator: source of the draws.   flip: mirror left and right with probability 1/2.
      area_frac: least and greatest share of the image's area, within (0, 1].

    Returns: [B, 3, size_px, size_px] of the same dtype, channels-last.
    Source: Szegedy et al. 2014 (arXiv 1409.4842), Sec. 6. Differs: clamped to fit, not redrawn.

    Example:
      >>> whole = random_resized_crop(torch.full((2, 3, 8, 8), 7, dtype=torch.uint8), size_px=4,
      ...                             generator=torch.Generator().manual_seed(0))
      >>> list(whole.shape), whole.unique().tolist()
      ([2, 3, 4, 4], [7])
    """
    B, _, H, W = images.shape
    draws = draw_uniform(generator, B, 5)
    area = H * W * (area_frac[0] + draws[:, 0] * (area_frac[1] - area_frac[0]))
    ratio = (math.log(ASPECT[0]) + draws[:, 1] * math.log(ASPECT[1] / ASPECT[0])).exp()
    width = ((area * ratio).sqrt() / W).clamp(max=1.0)  # [B] share of the image's width
    height = ((area / ratio).sqrt() / H).clamp(max=1.0)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, (2 * draws[:, 2] - 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, (2 * draws[:, 3] - 1) * (1 - height)
    if flip:
        theta[:, 0, 0] = torch.where(draws[:, 4] < 0.5, -width, width)
    return sample_affine(images, theta, size=(size_px, size_px), padding_mode="border")


def sample_affine(images: Tensor, theta: Tensor, *, size: tuple[int, int], padding_mode: str) -> Tensor:
    """Bilinear sampling at affine places; uint8 images are rounded to nearest.

    Args:
      images: [B, 3, h, w] uint8 or float, any range.
      theta: [B, 2, 3] float; map (x, y, 1) of the result to the place it comes from, both from -1 to 1 over a side.
      size: (H, W) of the result.
      padding_mode: of F.grid_sample: what lies outside, "zeros" or "border".

    Returns: [B, 3, H, W] of the same dtype, channels-last.

    Example: the identity map at half the size averages neighbours.
      >>> image = torch.tensor([1.0, 3.0, 5.0, 7.0]).expand(1, 3, 2, 4)
      >>> sample_affine(image, torch.eye(3)[None, :2], size=(1, 2), padding_mode="border")[0, 0].tolist()
      [[2.0, 6.0]]
    """
    B = len(images)
    if B == 0:
        return images.new_zeros(0, 3, *size)
    values = images if images.is_floating_point() else images.float()
    grid = F.affine_grid(theta.to(values.device, values.dtype), [B, 3, *size], align_corners=False)
    out = F.grid_sample(values, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
    if not images.is_floating_point():
        out = out.round_().to(images.dtype)
    return out.contiguous(memory_format=torch.channels_last)


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std for uint8 images; (images - mean) / std for float ones.

    Args:
      images: [B, 3, H, W].   mean, std: 3 numbers each, in units of 0..1; std > 0.

    Returns: [B, 3, H, W] float32, channels-last.

    Example:
      >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.25,) * 3).flatten()
      tensor([2., 2., 2.])
    """
    unit = 1.0 if images.is_floating_point() else 255.0
    scale = torch.tensor([1 / (unit * s) for s in std], device=images.device).view(1, 3, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, 3, 1, 1)
    out = images.to(torch.float32, copy=True, memory_format=torch.channels_last)
    return out.mul_(scale).add_(offset)
