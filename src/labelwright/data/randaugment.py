"""RandAugment and Cutout of whole batches, each image with its own draw, on any device.

Nothing loops over images: a batch is grouped by the operation drawn, and each operation runs once. Images and random
numbers are as in augment.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from labelwright.data.augment import Randomness, draw_uniform, sample_affine

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Posterize",
    "Solarize",
    "Brightness",
    "Contrast",
    "Color",
    "Sharpness",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
"""What RandAugment draws from: the position of a name is the integer that stands for it."""

MAX_MAGNITUDE = 10  # RandAugment's scale of magnitudes, Cubuk et al. 2019 (arXiv 1909.13719), Sec. 3
MAX_ENHANCE_CHANGE = 0.9  # Brightness, Contrast, Color, Sharpness: factor 1 +- 0.9 at full magnitude (AutoAugment)
MAX_ROTATE_DEG = 30.0  # AutoAugment, arXiv 1805.09501, supplement
MAX_SHEAR = 0.3  # tangent of the angle; AutoAugment, supplement
MAX_TRANSLATE_FRAC = 0.3  # of the side; FixMatch, arXiv 2001.07685, appendix
MAX_BITS_DROPPED = 4  # Posterize keeps 8 - 4 bits at full magnitude; AutoAugment, supplement

_OP = {name: index for index, name in enumerate(OPERATIONS)}
_FIRST_POINT, _LAST_POINT = _OP["AutoContrast"], _OP["Contrast"]  # operations on single values: a table of 256 each
_FIRST_MOVE = _OP["Rotate"]  # from here on: geometry


@dataclass(frozen=True)
class RandAugment:
    """n operations per image, each image its own, then an optional Cutout.

    Source: Cubuk et al. 2019 (arXiv 1909.13719); varying magnitudes and Cutout: FixMatch (arXiv 2001.07685).
    Differs: geometric operations come after the others, together, in one interpolation; magnitude 10 of Solarize
    inverts every value and magnitude 0 none, so that more magnitude is always more change.

    Example:
      >>> images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
      >>> strong = RandAugment()(images, generator=torch.Generator().manual_seed(0))
      >>> list(strong.shape), strong.dtype
      ([4, 3, 8, 8], torch.uint8)
    """

    n: int = 2  # operations drawn per image, with replacement, from OPERATIONS
    m: int = 10  # greatest magnitude, 0 (leaves the image as it is, but for AutoContrast and Equalize) to 10
    vary_magnitude: bool = True  # each operation draws its magnitude from 1..m, as FixMatch does; False always uses m
    cutout_frac: float = 0.0  # side of the square erased, as a share of the image's shorter side; 0 erases nothing
    fill: int = 128  # value 0..255 that shows where an image was moved away or cut out

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n must be >= 0, not {self.n}")
        if not 0 <= self.m <= MAX_MAGNITUDE:
            raise ValueError(f"m must be 0 to {MAX_MAGNITUDE}, not {self.m}")
        if not 0 <= self.cutout_frac <= 1:
            raise ValueError(f"cutout_frac must be 0 to 1, not {self.cutout_frac}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill must be 0 to 255, not {self.fill}")

    def draw(self, B: int, *, generator: Randomness) -> tuple[Tensor, Tensor]:
        """Which operations, and how far, for B images.

        Returns: ops [B, n] int64, places in OPERATIONS; levels [B, n] float32, -1 to 1: sign times magnitude / 10.
        """
        draws = draw_uniform(generator, B, 3 * self.n).view(B, 3, self.n)
        ops = (draws[:, 0] * len(OPERATIONS)).long()
        if self.vary_magnitude and self.m > 0:
            magnitudes = 1 + (draws[:, 1] * self.m).floor()
        else:
            magnitudes = torch.full_like(draws[:, 1], self.m)
        return ops, torch.where(draws[:, 2] < 0.5, -magnitudes, magnitudes) / MAX_MAGNITUDE

    def __call__(self, images: Tensor, *, generator: Randomness) -> Tensor:
        """Augmented images: [B, 3, H, W] of the same dtype, channels-last. Float images pass through 8 bits."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], not {list(images.shape)}")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(f"images must be uint8 or float, not {images.dtype}")
        ops, levels = self.draw(len(images), generator=generator)
        values = (images * 255).round_().clamp_(0, 255).to(torch.uint8) if images.is_floating_point() else images
        values = apply_operations(values, ops=ops, levels=levels, fill=self.fill)
        if self.cutout_frac > 0:
            values = cutout(values, frac=self.cutout_frac, generator=generator, fill=self.fill)
        return values.to(images.dtype).div_(255) if images.is_floating_point() else values


def apply_operations(images: Tensor, *, ops: Tensor, levels: Tensor, fill: int = 128) -> Tensor:
    """Run the given operations, a different list on each image.

    Values follow PIL exactly, but for Brightness, Contrast, Color and Sharpness, which may differ by 1 of 255 where a
    float32 product lands on a whole number. All operations on single values become a table of 256 per image and
    channel and run as one gather; geometry runs last, all of an image's moves as one affine map.

    Args:
      images: [B, 3, H, W] uint8.
      ops: [B, n] int64 on the CPU, places in OPERATIONS, applied from the first column to the last.
      levels: [B, n] float32 on the CPU, -1 to 1; operations without a direction use the absolute value.
      fill: value 0..255 where an image was moved away.

    Returns: [B, 3, H, W] uint8, channels-last; the input is left as it was.

    Example: solarize at full magnitude inverts.
      >>> image = torch.tensor([0, 100, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
      >>> solarize = torch.tensor([[OPERATIONS.index("Solarize")]])
      >>> apply_operations(image, ops=solarize, levels=torch.ones(1, 1))[0, 0].tolist()
      [[255, 155, 0]]
    """
    B, _, H, W = images.shape
    x = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)  # [B, H, W, 3]
    moves = torch.eye(3).repeat(B, 1, 1)  # [B, 3, 3] from a place in the result to the place it comes from
    for column, level in zip(ops.unbind(1), levels.unbind(1), strict=True):
        is_point = (column >= _FIRST_POINT) & (column <= _LAST_POINT)
        if is_point.any():
            rows = _places(is_point, x.device)
            some = x[rows]
            tables = _point_tables(some, ops=column[is_point], levels=level[is_point])
            x[rows] = tables.gather(1, some.flatten(1, 2).long()).view_as(some)  # each value becomes its entry
        for name, enhance in (("Color", _color), ("Sharpness", _sharpness)):
            is_op = column == _OP[name]
            if is_op.any():
                rows = _places(is_op, x.device)
                x[rows] = enhance(x[rows], (1 + MAX_ENHANCE_CHANGE * level[is_op]).to(x.device))
        moves = moves @ _moves(column, level, H=H, W=W)
    out = x.permute(0, 3, 1, 2)
    is_moved = ((ops >= _FIRST_MOVE) & (levels != 0)).any(1)
    if is_moved.any():
        rows = _places(is_moved, x.device)
        out[rows] = warp(out[rows], moves[is_moved], fill=fill)
    return out


def _places(where: Tensor, device: torch.device) -> Tensor:
    return where.nonzero()[:, 0].to(device, non_blocking=True)


def _point_tables(x: Tensor, *, ops: Tensor, levels: Tensor) -> Tensor:
    """What each value 0..255 becomes: [b, H, W, 3] uint8 -> [b, 256, 3] uint8. ops, levels: [b] on the CPU."""
    b = len(x)
    values = torch.arange(256, device=x.device).view(1, 256, 1)
    tables = torch.zeros(b, 256, 3, dtype=torch.uint8, device=x.device)
    for op in sorted(set(ops.tolist())):
        is_op = ops == op
        rows = _places(is_op, x.device)
        level = levels[is_op].to(x.device).view(-1, 1, 1)
        group = x[rows].flatten(1, 2)  # [g, H*W, 3]
        match OPERATIONS[op]:
            case "AutoContrast":
                table = _autocontrast_table(group)
            case "Equalize":
                table = _equalize_table(group)
            case "Posterize":
                dropped = (MAX_BITS_DROPPED * level.abs()).round().long()
                table = values >> dropped << dropped
            case "Solarize":
                table = torch.where(values < 256 * (1 - level.abs()), values, 255 - values)
            case "Brightness":
                table = _blend(torch.zeros_like(values), values, 1 + MAX_ENHANCE_CHANGE * level)
            case "Contrast":
                grey = (_luma(group).double().mean(1) + 0.5).long()[:, None, None]  # [g, 1, 1]
                table = _blend(grey, values, 1 + MAX_ENHANCE_CHANGE * level)
            case name:
                raise AssertionError(f"{name} is no operation on single values")
        tables[rows] = table.to(torch.uint8).expand(-1, 256, 3)
    return tables


def _autocontrast_table(group: Tensor) -> Tensor:
    """Stretch each channel's span to 0..255: [g, P, 3] uint8 -> [g, 256, 3], truncated in float64 as PIL does."""
    low, high = group.amin(1, keepdim=True).double(), group.amax(1, keepdim=True).double()  # [g, 1, 3]
    values = torch.arange(256, device=group.device, dtype=torch.float64).view(1, 256, 1)
    scale = 255.0 / (high - low).clamp(min=1.0)
    stretched = (values * scale + -low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, values)


def _equalize_table(group: Tensor) -> Tensor:
    """Flatten each channel's histogram: [g, P, 3] uint8 -> [g, 256, 3], in integers as PIL does."""
    g, P, _ = group.shape
    channel = torch.arange(g * 3, device=group.device).view(g, 1, 3)
    counts = torch.bincount((group.int() + channel.int() * 256).flatten(), minlength=g * 3 * 256).view(g, 3, 256)
    last = group.amax(1).long()  # [g, 3] the greatest value present
    step = (P - counts.gather(2, last[..., None])) // 255  # [g, 3, 1]
    before = counts.cumsum(2) - counts  # pixels below each value
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    values = torch.arange(256, device=group.device).view(1, 1, 256)
    return torch.where(step > 0, table, values).transpose(1, 2)


def _luma(x: Tensor) -> Tensor:
    """Grey value of [..., 3] uint8, rounded to 0..255: [...] int32 (ITU-R 601, in 16-bit fixed point as PIL)."""
    red, green, blue = x.int().unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _blend(base: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """base + factor * (values - base), clamped to 0..255 and truncated: factor 1 gives values, 0 gives base."""
    base = base.float()
    return (base + factor * (values.float() - base)).clamp_(0, 255).to(torch.uint8)


def _color(x: Tensor, factors: Tensor) -> Tensor:
    """[b, H, W, 3] uint8, factors [b]: 0 is grey, 1 the image, 2 twice as colourful."""
    return _blend(_luma(x)[..., None], x, factors.view(-1, 1, 1, 1))


def _sharpness(x: Tensor, factors: Tensor) -> Tensor:
    """[b, H, W, 3] uint8, factors [b]: 0 is smoothed, 1 the image, 2 sharpened; the border stays as it is."""
    if min(x.shape[1:3]) < 3:
        return x  # nothing but border
    planes = x.permute(0, 3, 1, 2).float()  # [b, 3, H, W]
    nine = F.avg_pool2d(planes, 3, stride=1, divisor_override=1)  # sums of 3 x 3, the centre weighs 5 of 13
    smooth = planes.clone()
    smooth[:, :, 1:-1, 1:-1] = nine.add_(planes[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return _blend(smooth, planes, factors.view(-1, 1, 1, 1)).permute(0, 2, 3, 1)


def _moves(ops: Tensor, levels: Tensor, *, H: int, W: int) -> Tensor:
    """Affine maps in pixels about the centre, the identity where the operation is no geometry: [b, 3, 3]."""
    amount = {name: torch.where(ops == _OP[name], levels, 0.0) for name in OPERATIONS[_FIRST_MOVE:]}
    angle = amount["Rotate"] * math.radians(MAX_ROTATE_DEG)
    maps = torch.eye(3).repeat(len(ops), 1, 1)
    maps[:, 0, 0] = maps[:, 1, 1] = angle.cos()
    maps[:, 0, 1] = MAX_SHEAR * amount["ShearX"] - angle.sin()
    maps[:, 1, 0] = MAX_SHEAR * amount["ShearY"] + angle.sin()
    maps[:, 0, 2] = MAX_TRANSLATE_FRAC * W * amount["TranslateX"]
    maps[:, 1, 2] = MAX_TRANSLATE_FRAC * H * amount["TranslateY"]
    return maps


def warp(images: Tensor, maps: Tensor, *, fill: float = 0.0) -> Tensor:
    """Move each image by its own affine map, with bilinear interpolation.

    Args:
      images: [B, 3, H, W] uint8 or float, any range.
      maps: [B, 2 or 3, 3] float; map (x, y, 1) of the result, in pixels from the centre, to the place it comes from.
      fill: value where a place lies outside the image.

    Returns: [B, 3, H, W] of the same dtype, channels-last.

    Example: every pixel comes from its right neighbour.
      >>> image = torch.tensor([1.0, 2.0, 3.0]).expand(1, 3, 1, 3)
      >>> warp(image, torch.tensor([[[1.0, 0, 1], [0, 1, 0]]]), fill=9)[0, 0].tolist()
      [[2.0, 3.0, 9.0]]
    """
    H, W = images.shape[2:]
    # grid_sample counts in half sides, not in pixels
    theta = maps[:, :2].float() * torch.tensor([[1.0, H / W, 2 / W], [W / H, 1.0, 2 / H]], device=maps.device)
    values = images if images.is_floating_point() else images.float()
    moved = sample_affine(values - fill, theta, size=(H, W), padding_mode="zeros")
    out = moved + fill  # outside is 0, so `fill` after all
    return out if images.is_floating_point() else out.round_().clamp_(0, 255).to(images.dtype)


def cutout(images: Tensor, *, frac: float, generator: Randomness, fill: float = 128) -> Tensor:
    """Erase one square per image, centred anywhere in it; what sticks out is lost.

    Args:
      images: [B, 3, H, W] uint8 or float.   frac: side of the square as a share of the shorter side, 0 to 1.
      generator: source of the draws.   fill: value of the square, in the images' own range.

    Returns: [B, 3, H, W] of the same dtype, channels-last.
    Source: DeVries & Taylor 2017 (arXiv 1708.04552).

    Example:
      >>> erased = cutout(torch.zeros(1, 3, 8, 8), frac=1.0, generator=torch.Generator().manual_seed(0), fill=1)
      >>> 16 <= int(erased[0, 0].sum()) <= 64
      True
    """
    B, _, H, W = images.shape
    side_px = round(frac * min(H, W))
    starts = (draw_uniform(generator, B, 2) * torch.tensor([H, W])).long() - side_px // 2  # [B, 2]
    starts = starts.to(images.device, non_blocking=True)
    ys = torch.arange(H, device=images.device) - starts[:, :1]  # [B, H] place within the square
    xs = torch.arange(W, device=images.device) - starts[:, 1:]
    is_erased = ((ys >= 0) & (ys < side_px))[:, :, None] & ((xs >= 0) & (xs < side_px))[:, None, :]
    return images.masked_fill(is_erased[:, None], fill).contiguous(memory_format=torch.channels_last)
