"""Whether glibc pays for keeping large blocks, instead of returning them to the system: training and encoding on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/allocator.py [--pairs 5] [--only NAME ...] [--csv FILE]

Each side is a process of its own, by turns: as it is, and with M_MMAP_THRESHOLD at 1 GiB and M_TRIM_THRESHOLD at 2
GiB by `mallopt`, before anything is computed (Linux with glibc alone), as labelwright sets them on a CPU. Steps of
ResNet-32 on 128 images of 32 pixels in bfloat16; an EfficientNet-B0, a ViT-B/32 and a small ViT of 32 pixels as a
frozen encoder of batches, in bfloat16, with random weights. Printed are medians over the pairs of what the settings
make of the time by the clock, of processor seconds and of the most memory held (1 = no difference), with the least
and the highest, and page faults of both.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, EfficientNetConfig, EfficientNetModel

from labelwright.allocator import keep_blocks
from labelwright.benchmarking.results import Row, add_rows
from labelwright.encoders import backbones
from labelwright.train.environment import source_commit

N_WARM, N_STEPS = 2, {"train resnet32": 16, "encode efficientnet-b0": 4, "encode vit-b-32": 4, "encode small vit": 60}
TITLES = {
    "train resnet32": "training ResNet-32, batch 128",
    "encode efficientnet-b0": "encoding, EfficientNet-B0, 128 px, batch 256",
    "encode vit-b-32": "encoding, ViT-B/32, 224 px, batch 64",
    "encode small vit": "encoding, a small ViT, 32 px, batch 256",
}


def training() -> Callable[[], object]:
    """A step of the network that the package trains from pixels."""
    net = backbones.build("resnet32", 10, pretrained=False, image_size_px=32, seed=0)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    labels = torch.arange(128) % 10

    def step() -> None:
        x = torch.rand(128, 3, 32, 32).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def encoding(net: torch.nn.Module, n: int, size_px: int) -> Callable[[], object]:
    """A batch through a frozen encoder, and its features kept."""
    net = net.eval().to(torch.bfloat16)
    kept = []

    @torch.inference_mode()
    def batch() -> None:
        x = torch.rand(n, 3, size_px, size_px).to(torch.bfloat16)
        kept.append(F.normalize(net(pixel_values=x).pooler_output.float(), dim=1))

    return batch


def measured(name: str) -> dict[str, float]:
    """In this process."""
    vit = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, patch_size=32)
    small = CLIPVisionConfig(
        hidden_size=192, intermediate_size=576, num_attention_heads=6, num_hidden_layers=6, image_size=32, patch_size=4
    )
    made: dict[str, Callable[[], Callable[[], object]]] = {
        "train resnet32": training,
        "encode efficientnet-b0": lambda: encoding(
            EfficientNetModel(EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)),
            256,
            128,
        ),
        "encode vit-b-32": lambda: encoding(CLIPVisionModel(vit), 64, 224),
        "encode small vit": lambda: encoding(CLIPVisionModel(small), 256, 32),
    }
    step = made[name]()
    for _ in range(N_WARM):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(N_STEPS[name]):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - began_cpu,
        "peak_mb": after.ru_maxrss / 1024,
        "page_faults": float(after.ru_minflt - before.ru_minflt),
    }


def main() -> None:
    """Print a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(N_STEPS), choices=list(N_STEPS))
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    parser.add_argument("--here", choices=("as it is", "kept"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if platform.libc_ver()[0] != "glibc":
        parser.error("mallopt is of glibc, which this machine does not run on")
    if options.here:
        if options.here == "kept" and not keep_blocks():
            raise SystemExit("this is not glibc, or the environment sets malloc")
        print(json.dumps(measured(options.only[0])))
        return
    rows: list[Row] = []
    for name in options.only:
        sides: dict[str, list[dict[str, float]]] = {"as it is": [], "kept": []}
        for pair in range(options.pairs):
            for side in sorted(sides, reverse=bool(pair % 2)):
                command = [sys.executable, __file__, "--only", name, "--here", side]
                sides[side].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        values = {}
        for what in ("wall_s", "cpu_s", "peak_mb"):
            ratios = [kept[what] / plain[what] for plain, kept in zip(*sides.values(), strict=True)]
            key = f"{what.rsplit('_', 1)[0]}_ratio"
            values |= {key: statistics.median(ratios), f"{key}_least": min(ratios), f"{key}_highest": max(ratios)}
        faults = [statistics.median(each["page_faults"] for each in every) for every in sides.values()]
        shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
        print(f"{name}: {shown}, page faults {faults[0]:,.0f} and {faults[1]:,.0f}", flush=True)
        row = {
            "table": "allocator.py",
            "cell": name.replace(" ", "_"),
            "title": TITLES[name],
            "n_seeds": str(options.pairs),
            "commit": source_commit() or "",
            "hardware": f"cpu (glibc {platform.libc_ver()[1]}; {torch.get_num_threads()} thread(s))",
        }
        rows += [{**row, "metric": key, "value": f"{value:.3f}"} for key, value in values.items()]
    if options.csv is not None:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
