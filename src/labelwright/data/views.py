"""Views of images for training: clean, weakly and strongly augmented batches out of decoded pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from labelwright.data.augment import RowGenerator, normalize, random_crop_flip, random_resized_crop
from labelwright.data.cache import PixelSource
from labelwright.data.randaugment import MAX_MAGNITUDE, RandAugment
from labelwright.errors import ConfigError

VIEWS = ("clean", "weak", "strong")
"""clean: as decoded; weak: cropped and flipped; strong: weak, then RandAugment and Cutout. All normalised."""

MAX_IMAGES = 10_000  # whose mean and deviation are taken for those of all


@dataclass(frozen=True)
class ViewSettings:
    """How the views are made.

    Raises: ConfigError naming the setting that cannot have its value.

    Example:
      >>> ViewSettings(crop="resized", crop_area_frac_min=0.5).randaugment_n
      2
    """

    flip: bool = True  # mirror left and right half of the time; off for digits, traffic signs, text
    crop: Literal["pad", "resized"] = "pad"  # "pad": shift by up to pad_px; "resized": a random part, stretched
    pad_px: int | None = None  # px; None = an eighth of the side, 4 at 32 px (arXiv 1512.03385, Sec. 4.2)
    pad_mode: Literal["zero", "reflect"] = "zero"  # what a shifted image shows beyond its border
    crop_area_frac_min: float = 0.08  # of the area, 0 to 1, for crop="resized" (arXiv 1409.4842, Sec. 6)
    randaugment_n: int = 2  # operations per strong view, as in FixMatch (arXiv 2001.07685)
    randaugment_m: int = 10  # greatest magnitude, 0 to 10; FixMatch uses the whole range
    randaugment_vary: bool = True  # each operation draws its magnitude from 1..m; False: always m (arXiv 1909.13719)
    cutout_frac: float = 0.5  # side of the square erased from strong views, of the shorter side; 0 = none (FixMatch)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1; these are ImageNet's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # of RGB in 0..1; these are ImageNet's

    def __post_init__(self) -> None:
        def check(is_fine: bool, key: str, allowed: str) -> None:
            if not is_fine:
                raise ConfigError(f"{key}={getattr(self, key)!r} is not possible", fix=f"{key} must be {allowed}")

        check(self.crop in ("pad", "resized"), "crop", "'pad' or 'resized'")
        check(self.pad_px is None or self.pad_px >= 0, "pad_px", "0 or more pixels")
        check(self.pad_mode in ("zero", "reflect"), "pad_mode", "'zero' or 'reflect'")
        check(0 < self.crop_area_frac_min <= 1, "crop_area_frac_min", "above 0, at most 1")
        check(self.randaugment_n >= 0, "randaugment_n", "0 or more")
        check(0 <= self.randaugment_m <= MAX_MAGNITUDE, "randaugment_m", f"0 to {MAX_MAGNITUDE}")
        check(0 <= self.cutout_frac <= 1, "cutout_frac", "0 to 1")
        check(len(self.mean) == 3, "mean", "three numbers")
        check(len(self.std) == 3 and min(self.std) > 0, "std", "three positive numbers")


class PixelViews:
    """Views of decoded images (a `types.ViewSource`).

    What is drawn for an image depends on (seed, view, the image's row in ``pixels``) alone: a batch gives the same
    views in any order, among any other rows, in one process or several. A row listed twice in one batch gets two
    different views. To see one view of the same rows twice in a step ("strong" and "strong"), give each its own seed.

    Args:
      rows: [N] int64 rows of ``pixels`` that are rows 0..N-1 here; None = all of them.

    Raises: ConfigError if pad_px does not fit the size of the images.

    Example:
      >>> import numpy as np
      >>> from labelwright.data.cache import PixelCache
      >>> views = PixelViews(PixelCache(np.zeros((5, 8, 8, 3), dtype=np.uint8)), ViewSettings())
      >>> x = views.batch(torch.tensor([1]), "weak", seed=0, device=torch.device("cpu"))
      >>> list(x.shape), x.dtype
      ([1, 3, 8, 8], torch.float32)
    """

    def __init__(self, pixels: PixelSource, settings: ViewSettings, *, rows: Tensor | None = None) -> None:
        if settings.pad_mode == "reflect" and settings.pad_px is not None and settings.pad_px >= pixels.size_px:
            raise ConfigError(
                f"pad_px={settings.pad_px} does not fit images of {pixels.size_px} px", fix="reflect fewer pixels"
            )
        self.pixels = pixels
        self.settings = settings
        self._rows = rows
        self._strong = RandAugment(
            n=settings.randaugment_n,
            m=settings.randaugment_m,
            vary_magnitude=settings.randaugment_vary,
            cutout_frac=settings.cutout_frac,
        )

    @property
    def n_rows(self) -> int:
        """N images behind this source."""
        return self.pixels.n_rows if self._rows is None else len(self._rows)

    def prefetch(self, rows: Tensor) -> None:
        """Hint that these rows [B] int64 come soon, so that streamed images are decoded meanwhile."""
        self.pixels.prefetch(self._behind(rows.cpu()))

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        """One view of rows [B] int64, one of VIEWS, made on ``device``; the same seed gives the same view.

        Returns: [B, 3, H, W] float32, normalised, channels-last.
        Raises: ConfigError for an unknown view.
        """
        if view not in VIEWS:
            raise ConfigError(f"no such view: {view!r}", fix=f"one of {', '.join(VIEWS)}")
        behind = self._behind(rows.cpu())
        images = self.pixels.read(behind).to(device, non_blocking=True).permute(0, 3, 1, 2)  # -> [B, 3, H, W]
        generator = RowGenerator(behind, seed=seed, stream=VIEWS.index(view))
        if view != "clean":
            images = self._crop_flip(images, generator)
        if view == "strong":
            images = self._strong(images, generator=generator)
        return normalize(images, mean=self.settings.mean, std=self.settings.std)

    def _crop_flip(self, images: Tensor, generator: RowGenerator) -> Tensor:
        s = self.settings
        if s.crop == "resized":
            area_frac = (s.crop_area_frac_min, 1.0)
            return random_resized_crop(
                images, size_px=self.pixels.size_px, generator=generator, flip=s.flip, area_frac=area_frac
            )
        return random_crop_flip(images, generator=generator, flip=s.flip, pad_px=s.pad_px, pad_mode=s.pad_mode)

    def _behind(self, rows: Tensor) -> Tensor:
        return rows if self._rows is None else self._rows[rows]


def channel_stats(
    pixels: PixelSource, *, rows: Tensor | None = None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each colour over the training images, for ViewSettings.

    Args:
      pixels: decoded images; those that could not be read do not count.
      rows: [n] int64 the training rows; None = all. Of more than MAX_IMAGES so many, evenly spread, are looked at.

    Returns: (mean, std) of RGB in 0..1; a std below 1/255 is given as 1/255.
    Raises: ConfigError if there is no readable image.

    Example:
      >>> import numpy as np
      >>> from labelwright.data.cache import PixelCache
      >>> channel_stats(PixelCache(np.array([0, 255], dtype=np.uint8).repeat(3).reshape(2, 1, 1, 3)))
      ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    rows = torch.arange(pixels.n_rows) if rows is None else rows.cpu()
    if len(rows) > MAX_IMAGES:
        rows = rows[torch.linspace(0, len(rows) - 1, MAX_IMAGES, dtype=torch.float64).long()]
    n_images_at_once = max(1, 2**24 // (3 * pixels.size_px**2))
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for some in torch.split(rows, n_images_at_once):
        images = pixels.read(some)
        unreadable = torch.tensor([p.row for p in pixels.problems if p.row is not None], dtype=torch.int64)
        values = images[~torch.isin(some, unreadable)].flatten(0, 2)  # [P, 3]
        counts += torch.stack([torch.bincount(values[:, c], minlength=256) for c in range(3)])
    if not counts.any():
        raise ConfigError("no readable image to take the mean and deviation of", fix="check the images")
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels  # [3]
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)
    (r, g, b), (dr, dg, db) = mean.tolist(), std.tolist()
    return (r, g, b), (dr, dg, db)
