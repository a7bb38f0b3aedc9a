"""A training step of LPS from pixels, and an epoch of it on stored features.

    python benchmarks/lps_step.py step [--batch 128] [--network resnet18]
    python benchmarks/lps_step.py epoch [--images 100000] [--classes 200] [--features 512]

step: this package's step (three views in one pass, bfloat16 where the processor has it, channels last) against three
separate passes in float32, on the same images; forward, losses, backward, optimizer; medians, in one process.
epoch: seconds of one epoch of the loop, with its look at the classes at the end; start by k-means not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from labelwright.data.stored import EmbeddingStore, EmbeddingViews
from labelwright.encoders.backbones import build
from labelwright.encoders.nets import EncoderNets
from labelwright.methods import lps
from labelwright.methods.open_world import prior_of
from labelwright.train.loop import LoopOptions, train
from labelwright.types import Batch, Clock, State, Task


class Alone:
    """A network whose three views pass one after the other: what a step costs without the one pass."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.net(part) for part in x.chunk(3)])


def seconds_of(step: Callable[[], None], rounds: int) -> float:
    step()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def one_step(batch: int, network: str, rounds: int) -> None:
    labels = torch.where(torch.arange(batch) < batch // 4, torch.arange(batch) % 5, -1)
    task = Task(labels, tuple(f"class{c}" for c in range(5)), n_novel=5)
    cfg, clock = lps.Config(start="none"), Clock(0, 200, 0, 1, 0)
    draw = torch.Generator().manual_seed(0)
    views = [torch.randn(batch, 3, 32, 32, generator=draw) for _ in range(3)]

    def stepper(*, is_plain: bool) -> Callable[[], None]:
        net = build(network, 10, seed=0)
        x = [v if is_plain else v.contiguous(memory_format=torch.channels_last) for v in views]
        if not is_plain:
            net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        memory = {"is_frozen": False, "offset": torch.zeros(10), "prior": prior_of(cfg, task), "divergences": []}
        memory["epoch_sums"] = torch.zeros(2)
        nets = {"main": Alone(net) if is_plain else net}
        state = State(nets=nets, adjust={"kappa": torch.ones(10)}, memory=memory)  # type: ignore[arg-type]
        known = labels >= 0
        batches = {
            name: Batch(rows.nonzero().flatten(), tuple(v[rows] for v in x), labels[rows])
            for name, rows in (("labelled", known), ("unlabelled", ~known))
        }

        def run() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not is_plain):
                result = lps.step(cfg, task, state, batches, clock)
            optimizer.zero_grad()
            result.loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return run

    plain, ours = (seconds_of(stepper(is_plain=is_plain), rounds) for is_plain in (True, False))
    print(f"{network}, {batch} images in three views, {torch.get_num_threads()} threads")
    print(f"three passes, float32: {plain:.3f} s; one pass: {ours:.3f} s; ratio {plain / ours:.2f}")


def one_epoch(n_images: int, n_classes: int, n_features: int) -> None:
    draw = torch.Generator().manual_seed(0)
    n_seen = n_classes // 2
    classes = torch.randint(n_classes, (n_images,), generator=draw)
    centres = torch.randn(n_classes, n_features, generator=draw)
    feats = torch.stack([centres[classes] + torch.randn(n_images, n_features, generator=draw) for _ in range(3)])
    feats = torch.nn.functional.normalize(feats, dim=2)
    hidden = (classes >= n_seen) | (torch.rand(n_images, generator=draw) < 0.5)
    names = tuple(f"class{c}" for c in range(n_seen))
    task = Task(classes.masked_fill(hidden, -1), names, n_novel=n_classes - n_seen)
    views = EmbeddingViews(EmbeddingStore(feats.half().numpy()))
    nets = EncoderNets(n_features, None, None, True, names, "", 0)  # type: ignore[arg-type]
    cfg = lps.Config(epochs=1, start="none", use_balance="on")
    options = LoopOptions(device="cpu", n_evaluations=0, show_progress=False)
    trained = train(lps, cfg, task, views, nets, options=options)  # type: ignore[arg-type]
    print(f"{n_images:,} images, {n_classes} classes, {n_features} features, {torch.get_num_threads()} threads")
    print(f"one epoch: {trained.seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "epoch"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--features", type=int, default=512)
    args = parser.parse_args()
    if args.what == "step":
        one_step(args.batch, args.network, args.rounds)
    else:
        one_epoch(args.images, args.classes, args.features)


if __name__ == "__main__":
    main()
