"""Training throughput: labelwright's loop against a PyTorch loop by hand, same images, same network, same run.

    python benchmarks/throughput.py CIFAR10_TRAIN.parquet [--images 5120] [--csv FILE]

The plain loop is what one writes first: a Dataset of decoded images, per-image random crop and flip, a DataLoader in
the main process, float32, torch's default memory layout, SGD. The fair one has two lines more: channels-last networks
and images, and bfloat16 where labelwright takes it. Prints images/s of all, labelwright's over each, and the share
of its step that goes into making batches. All are warmed up; rounds alternate, and medians are reported.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labelwright.benchmarking.results import add_rows
from labelwright.data.cache import PixelCache
from labelwright.data.read import load
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders import backbones
from labelwright.encoders.nets import OwnNets
from labelwright.methods.baselines import ce
from labelwright.train.environment import source_commit
from labelwright.train.loop import LoopOptions, train
from labelwright.train.processes import autocast_dtype
from labelwright.types import Task

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class PlainImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Decoded images, augmented one by one."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        padded = np.pad(self.images[i], ((4, 4), (4, 4), (0, 0)))
        top, left = random.randint(0, 8), random.randint(0, 8)
        image = padded[top : top + 32, left : left + 32]
        if random.random() < 0.5:
            image = image[:, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], int(self.labels[i])


def by_hand_images_per_second(images: NDArray[np.uint8], labels: NDArray[np.int64], *, is_fair: bool) -> float:
    """One epoch of the plain loop, or of the fair one."""
    net = backbones.build("resnet32", 10, image_size_px=32, seed=0)
    layout = torch.channels_last if is_fair else torch.contiguous_format
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    dtype = autocast_dtype(torch.device("cpu"), "auto") if is_fair else None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    loader = torch.utils.data.DataLoader(PlainImages(images, labels), batch_size=128, shuffle=True, drop_last=True)
    began, seen = time.perf_counter(), 0
    for x, y in loader:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(net(x.to(memory_format=layout)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(y)
    return seen / (time.perf_counter() - began)


def loop_images_per_second(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[float, float]:
    """One epoch of labelwright's loop: images/s, and the share of the time spent making batches."""
    trained = train(
        ce.RECIPE,
        ce.Config(epochs=1),
        Task(torch.from_numpy(labels), tuple("0123456789")),
        PixelViews(PixelCache(images), ViewSettings(mean=MEAN, std=STD)),
        OwnNets("resnet32", 32, False, (), 0),
        options=LoopOptions(show_progress=False),
    )
    return trained.images_per_second, trained.input_frac


def main() -> None:
    """Alternate the two loops and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10 training images, Parquet with embedded images")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    options = parser.parse_args()
    table = load(options.data)
    images = np.stack([np.asarray(table.image(row)) for row in range(options.images)])
    labels = table.labels[: options.images].astype(np.int64)
    for is_fair in (False, True):
        by_hand_images_per_second(images[:640], labels[:640], is_fair=is_fair)
    loop_images_per_second(images[:640], labels[:640])
    rounds = [
        (
            by_hand_images_per_second(images, labels, is_fair=False),
            by_hand_images_per_second(images, labels, is_fair=True),
            *loop_images_per_second(images, labels),
        )
        for _ in range(options.rounds)
    ]
    plain, fair, ours, input_frac = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"threads {torch.get_num_threads()}, ResNet-32, batch 128, {options.images} images, {options.rounds} rounds")
    print(f"plain loop     {plain:7.0f} images/s")
    print(f"fair loop      {fair:7.0f} images/s")
    print(f"labelwright    {ours:7.0f} images/s   input {input_frac:.1%} of the step")
    print(f"labelwright over the plain loop {ours / plain:.2f}, over the fair one {ours / fair:.2f}")
    if options.csv is not None:
        values = {"images_per_s": ours, "plain_images_per_s": plain, "fair_images_per_s": fair}
        values |= {"ratio_to_plain": ours / plain, "ratio_to_fair": ours / fair, "input_pct": 100 * input_frac}
        row = {
            "table": "throughput.py",
            "cell": "train",
            "title": f"training ResNet-32, batch 128, {autocast_dtype(torch.device('cpu'), 'auto') or torch.float32}",
            "commit": source_commit() or "",
            "hardware": f"cpu ({torch.get_num_threads()} threads)",
        }
        add_rows(options.csv, [{**row, "metric": name, "value": f"{value:.3g}"} for name, value in values.items()])


if __name__ == "__main__":
    main()
