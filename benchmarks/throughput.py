"""Training throughput: labelwright's loop against the plainest PyTorch loop, same images, same network, same run.

    python benchmarks/throughput.py CIFAR10_TRAIN.parquet [--images 5120]

The plain loop is what one writes first: a Dataset of decoded images, per-image random crop and flip, a DataLoader in
the main process, float32, torch's default memory layout, SGD. Prints images/s of both, their ratio, and the share of
labelwright's step that goes into making batches. Both are warmed up; rounds alternate, and medians are reported.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labelwright.data.cache import PixelCache
from labelwright.data.read import load
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders import backbones
from labelwright.methods.baselines import ce
from labelwright.train.loop import LoopOptions, train
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


def plain_images_per_second(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """One epoch of the plain loop."""
    net = backbones.build("resnet32", 10, image_size_px=32, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    loader = torch.utils.data.DataLoader(PlainImages(images, labels), batch_size=128, shuffle=True, drop_last=True)
    began, seen = time.perf_counter(), 0
    for x, y in loader:
        loss = F.cross_entropy(net(x), y)
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
        lambda n, head="linear": backbones.build("resnet32", n, head=head, image_size_px=32, seed=0),  # type: ignore[misc]
        options=LoopOptions(show_progress=False),
    )
    return trained.images_per_second, trained.input_frac


def main() -> None:
    """Alternate the two loops and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="CIFAR-10 training images, Parquet with embedded images")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = load(options.data)
    images = np.stack([np.asarray(table.image(row)) for row in range(options.images)])
    labels = table.labels[: options.images].astype(np.int64)
    plain_images_per_second(images[:640], labels[:640])
    loop_images_per_second(images[:640], labels[:640])
    rounds = [
        (plain_images_per_second(images, labels), *loop_images_per_second(images, labels))
        for _ in range(options.rounds)
    ]
    plain, ours, input_frac = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"threads {torch.get_num_threads()}, ResNet-32, batch 128, {options.images} images, {options.rounds} rounds")
    print(f"plain loop     {plain:7.0f} images/s")
    print(f"labelwright loop  {ours:7.0f} images/s   ratio {ours / plain:.2f}   input {input_frac:.1%} of the step")


if __name__ == "__main__":
    main()
