"""Milliseconds to make one batch of views from cached pixels, beside PIL doing the same image by image.

    python benchmarks/augment.py [--threads 2] [--batch 128] [--size 32] [--repeats 30]

Weak: read, pad, crop, flip, normalise. Strong: weak, then two operations of RandAugment and Cutout. The images are
random; the PIL versions draw from the same operations with the same magnitudes. Printed: median and fastest batch.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from labelwright.data import randaugment
from labelwright.data.cache import PixelCache
from labelwright.data.views import PixelViews, ViewSettings

ENHANCERS = {
    "Brightness": ImageEnhance.Brightness,
    "Contrast": ImageEnhance.Contrast,
    "Color": ImageEnhance.Color,
    "Sharpness": ImageEnhance.Sharpness,
}


def pil_operation(image: Image.Image, name: str, level: float) -> Image.Image:
    """One RandAugment operation on one image, at a level of -1 to 1."""
    width, height = image.size
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(1 + randaugment.MAX_ENHANCE_CHANGE * level)
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Posterize":
            return ImageOps.posterize(image, 8 - round(randaugment.MAX_BITS_DROPPED * abs(level)))
        case "Solarize":
            return ImageOps.solarize(image, int(256 * (1 - abs(level))))
        case "Rotate":
            return image.rotate(randaugment.MAX_ROTATE_DEG * level, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
    numbers = {
        "ShearX": (1, randaugment.MAX_SHEAR * level, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, randaugment.MAX_SHEAR * level, 1, 0),
        "TranslateX": (1, 0, randaugment.MAX_TRANSLATE_FRAC * width * level, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, randaugment.MAX_TRANSLATE_FRAC * height * level),
    }.get(name)
    if numbers is None:
        return image
    return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)


def pil_view(pixels: np.ndarray, settings: ViewSettings, draws: random.Random, *, strong: bool) -> np.ndarray:
    """One image, [H, W, 3] uint8 -> [3, H, W] float32."""
    image = Image.fromarray(pixels)
    size_px = image.width
    pad_px = round(size_px / 8)
    padded = ImageOps.expand(image, pad_px)
    left, top = draws.randint(0, 2 * pad_px), draws.randint(0, 2 * pad_px)
    image = padded.crop((left, top, left + size_px, top + size_px))
    if draws.random() < 0.5:
        image = ImageOps.mirror(image)
    if strong:
        for _ in range(settings.randaugment_n):
            level = draws.choice((-1, 1)) * draws.randint(1, settings.randaugment_m) / randaugment.MAX_MAGNITUDE
            image = pil_operation(image, draws.choice(randaugment.OPERATIONS), level)
        half = round(settings.cutout_frac * size_px) // 2
        x, y = draws.randrange(size_px), draws.randrange(size_px)
        image.paste((128, 128, 128), (x - half, y - half, x + half, y + half))
    unit = np.asarray(image, dtype=np.float32) / 255
    return ((unit - np.float32(settings.mean)) / np.float32(settings.std)).transpose(2, 0, 1)


def measure(name: str, one_batch: Callable[[int], object], *, repeats: int) -> None:
    """Print the median and the fastest of `repeats` batches, after three to warm up."""
    for repeat in range(3):
        one_batch(repeat)
    times_ms = []
    for repeat in range(repeats):
        start = time.perf_counter()
        one_batch(repeat)
        times_ms.append(1e3 * (time.perf_counter() - start))
    print(f"{name:<22} median {statistics.median(times_ms):8.2f} ms   fastest {min(times_ms):8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="px")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    n_images = max(args.batch, 1_500_000_000 // (100 * args.size**2))  # 45 MB
    stored = np.random.default_rng(0).integers(0, 256, (n_images, args.size, args.size, 3), dtype=np.uint8)
    settings = ViewSettings()
    views = PixelViews(PixelCache(stored), settings)
    rows = torch.randint(n_images, (args.batch,), generator=torch.Generator().manual_seed(0))

    def batched(view: str) -> Callable[[int], object]:
        def one_batch(seed: int) -> object:
            x = views.batch(rows, view, seed=seed, device=device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return x

        return one_batch

    def image_by_image(*, strong: bool) -> Callable[[int], object]:
        def one_batch(seed: int) -> object:
            draws = random.Random(seed)
            images = [pil_view(stored[row], settings, draws, strong=strong) for row in rows.tolist()]
            return torch.from_numpy(np.stack(images)).to(device)

        return one_batch

    print(f"{args.batch} images of {args.size} px, {args.threads} threads, {device}, {platform.processor() or 'cpu'}")
    for view in ("clean", "weak", "strong"):
        measure(f"batched {view}", batched(view), repeats=args.repeats)
    for view in ("weak", "strong"):
        measure(f"PIL, one thread, {view}", image_by_image(strong=view == "strong"), repeats=args.repeats)


if __name__ == "__main__":
    main()
