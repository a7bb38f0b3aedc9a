"""A step's images in parts: peak memory and time of a step, beside the whole batch at once.

    python benchmarks/accumulate.py [--model resnet32] [--size 32] [--batch-size 128] [--parts 1 2 4 8] [--csv FILE]

Each number of parts is a process of its own: forward, backward and one step of SGD on random images, three times.
Printed are the most memory that the steps added to the process, and the median processor seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from labelwright.benchmarking.results import Row, add_rows
from labelwright.encoders import backbones
from labelwright.train.parts import set_parts


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(model: str, size_px: int, batch_size: int, n_parts: int) -> dict[str, float]:
    """In this process."""
    net = backbones.build(model, 10, pretrained=False, image_size_px=size_px, seed=0)
    set_parts(net, n_parts)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, labels = torch.randn(batch_size, 3, size_px, size_px), torch.arange(batch_size) % 10
    before, seconds = peak_mb(), []
    for _ in range(3):
        began = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
    return {"added_mb": peak_mb() - before, "cpu_s": statistics.median(seconds)}


def main() -> None:
    """Print a line for each number of parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measured(args.model, args.size, args.batch_size, args.parts[0])))
        return
    rows: list[Row] = []
    for n_parts in args.parts:
        words = ["--model", args.model, "--size", str(args.size), "--batch-size", str(args.batch_size), "--here"]
        command = [sys.executable, __file__, *words, "--parts", str(n_parts)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{n_parts} parts", *(f"{key} {value:.3g}" for key, value in found.items()), sep="  ", flush=True)
        rows += [
            {
                "table": "accumulate.py",
                "cell": f"parts_{n_parts}",
                "title": f"{n_parts} part{'s' * (n_parts > 1)}",
                "metric": metric,
                "value": f"{value:.3g}",
                "n_seeds": "1",
            }
            for metric, value in found.items()
        ]
    if args.csv:
        add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
