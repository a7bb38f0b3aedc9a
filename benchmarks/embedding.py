"""Images per second into the embedding store against the bare encoder, and what reading the store costs a step.

    python benchmarks/embedding.py MODEL_FOLDER IMAGES.parquet [--images 2048] [--views 2] [--batch 256] [--rounds 3]

Both sides have blocks of memory kept, as every run of labelwright on a CPU does (`allocator.py`).

The bare encoder gets batches prepared beforehand: reading, augmenting, copying and writing are never counted for it.
`build_store` starts from the decoded pixels and ends with features on the disk. Both encode the same views, in bf16.
Rounds alternate, medians are reported: for the clean view alone, and for it with V weak and V strong ones. The step
is a residual adapter 512 -> 128 -> 512 with the logits of 1,000 classes, forward, backward and SGD, batch 128.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.allocator import keep_blocks
from labelwright.data.cache import build_cache
from labelwright.data.read import load
from labelwright.data.stored import EmbeddingStore, EmbeddingViews
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders.pretrained import image_stats, load_vision_model
from labelwright.encoders.store import build_store

CPU = torch.device("cpu")
Seconds = tuple[float, float]  # by the clock, and of all cores together: the latter hardly minds busy neighbours


def seconds_bare(views: PixelViews, encode: Callable[[Tensor], Tensor], *, n_views: int, batch_size: int) -> Seconds:
    """Encode every view of every image from prepared batches, a part of the images at a time."""
    wall_s = cpu_s = 0.0
    for first in range(0, views.n_rows, 4 * batch_size):
        rows = torch.arange(first, min(first + 4 * batch_size, views.n_rows))
        batches = [
            views.batch(some, view, seed=v, device=CPU)
            for some in torch.split(rows, batch_size)
            for view, n in (("clean", 1), ("weak", n_views), ("strong", n_views))
            for v in range(n)
        ]
        began, began_cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for x in batches:
                encode(x)
        wall_s += time.perf_counter() - began
        cpu_s += time.process_time() - began_cpu
    return wall_s, cpu_s


def seconds_store(
    views: PixelViews, encode: Callable[[Tensor], Tensor], *, n_features: int, n_views: int, batch_size: int
) -> Seconds:
    """Build a fresh store."""
    with tempfile.TemporaryDirectory() as folder:
        began, began_cpu = time.perf_counter(), time.process_time()
        build_store(
            views,
            encode,
            identity="benchmark",
            images_digest="benchmark",
            n_views=n_views,
            seed=0,
            n_features=n_features,
            folder=Path(folder),
            device=CPU,
            batch_size=batch_size,
        )
        return time.perf_counter() - began, time.process_time() - began_cpu


def milliseconds_reading_and_step(
    *, is_mapped: bool, n_images: int = 50_000, n_steps: int = 100
) -> tuple[float, float]:
    """Medians of reading a batch (half of them weak, half strong views, V = 4) and of a training step on it."""
    B, C, D, V = 128, 1000, 512, 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feats.npy"
        shape = (1 + 2 * V, n_images, D)
        feats = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for plane in feats:
            plane[:] = np.random.default_rng(0).standard_normal((n_images, D), dtype=np.float32) / D**0.5
        views = EmbeddingViews(EmbeddingStore(feats if is_mapped else np.array(feats)))
        down, up, head = nn.Linear(D, 128), nn.Linear(128, D), nn.Linear(D, C)
        parameters = [p for layer in (down, up, head) for p in layer.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        reading, steps = [], []
        for step in range(n_steps):
            rows, labels = torch.randint(n_images, (B,)), torch.randint(C, (B,))
            began = time.perf_counter()
            x = views.batch(rows, "weak" if step % 2 else "strong", seed=step, device=CPU)
            read = time.perf_counter()
            loss = F.cross_entropy(head(F.normalize(x + up(torch.relu(down(x))), dim=1)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(time.perf_counter() - read)
            reading.append(read - began)
        return 1e3 * statistics.median(reading), 1e3 * statistics.median(steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a CLIP or another vision model of transformers")
    parser.add_argument("data", help="images, Parquet with embedded images")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--views", type=int, default=2, help="V: weak views, and as many strong ones")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_blocks()
    stats = image_stats(options.model)
    model = load_vision_model(options.model).eval().to(torch.bfloat16)

    def encode(x: Tensor) -> Tensor:
        return F.normalize(model(x.to(torch.bfloat16)).float(), dim=1)

    table = load(options.data)
    table = table.subset(np.arange(min(options.images, len(table))))
    pixels = build_cache(table, size_px=stats.size_px)
    views = PixelViews(pixels, ViewSettings(mean=stats.mean, std=stats.std))
    with torch.inference_mode():
        n_features = encode(views.batch(torch.arange(2), "clean", seed=0, device=CPU)).shape[1]
    print(f"threads {torch.get_num_threads()}, {views.n_rows} images, {stats.size_px} px, batch {options.batch}, bf16")
    for n_views in (0, options.views):
        bare, stored = [], []
        for _ in range(options.rounds):
            bare.append(seconds_bare(views, encode, n_views=n_views, batch_size=options.batch))
            stored.append(
                seconds_store(views, encode, n_features=n_features, n_views=n_views, batch_size=options.batch)
            )
        n = views.n_rows * (1 + 2 * n_views)
        name = "clean alone" if not n_views else f"clean, {n_views} weak, {n_views} strong"
        for clock, which in enumerate(("elapsed", "cpu")):
            ours, theirs = (n / statistics.median(seconds[clock] for seconds in all_s) for all_s in (stored, bare))
            print(f"{name:24} per {which:7} s: encoder {theirs:6.0f}   store {ours:6.0f}   ratio {ours / theirs:.3f}")
    for is_mapped in (False, True):
        read_ms, step_ms = milliseconds_reading_and_step(is_mapped=is_mapped)
        place = "mapped file" if is_mapped else "memory"
        print(f"reading from {place:11} {read_ms:.3f} ms beside a step of {step_ms:.2f} ms: {read_ms / step_ms:.1%}")


if __name__ == "__main__":
    main()
