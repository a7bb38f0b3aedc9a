"""bfloat16 against float32 on this CPU: images a second of training and of inference, by turns, for three networks.

    python benchmarks/precision.py [--rounds 5] [--csv FILE]

Random weights, channels-last, one thread unless OMP_NUM_THREADS says otherwise: ResNet-32 and ResNet-18 at 32 pixels,
and CLIP's ViT-B/32 tower at 224. What `--precision auto` takes here is printed first. Not every processor that knows
bfloat16 is quicker in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from labelwright.benchmarking.results import add_rows
from labelwright.encoders.resnets import OWN
from labelwright.train.environment import source_commit
from labelwright.train.processes import autocast_dtype

DTYPES = {"bf16": torch.bfloat16, "fp32": None}


class Tower(nn.Module):
    """CLIP's ViT-B/32, images [B, 3, 224, 224] to feats [B, 768]."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=768, intermediate_size=3072, patch_size=32))

    def forward(self, x: Tensor) -> Tensor:
        feats: Tensor = self.tower(pixel_values=x).pooler_output
        return feats


NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # with pixels and images a step
    "resnet32": (OWN["resnet32"], 32, 64),
    "resnet18": (OWN["resnet18"], 32, 16),
    "vit-b-32": (Tower, 224, 8),
}


def seconds(net: nn.Module, x: Tensor, dtype: torch.dtype | None, *, trains: bool) -> float:
    """A pass forward, and back where ``trains``."""
    net.train(trains)
    began = time.perf_counter()
    with torch.set_grad_enabled(trains), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        out = net(x)
    if trains:
        out.float().square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Print a line per network, and add rows to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="file of results to add to")
    options = parser.parse_args()
    able = torch.cpu.get_capabilities()
    kind = ", ".join(name for name in ("avx512_bf16", "amx_bf16") if able.get(name)) or "no bfloat16"
    hardware = f"cpu ({able.get('cpu_name', 'unknown')}: {kind}; {torch.get_num_threads()} thread(s))"
    print(f"{hardware}; auto is {autocast_dtype(torch.device('cpu'), 'auto') or torch.float32}")
    rows = []
    for name, (build, size, n) in NETS.items():
        net = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(n, 3, size, size).to(memory_format=torch.channels_last)
        values = {}
        for what, trains in (("train", True), ("infer", False)):
            took: dict[str, list[float]] = {each: [] for each in DTYPES}
            for _ in range(options.rounds + 1):
                for each, dtype in DTYPES.items():
                    took[each].append(seconds(net, x, dtype, trains=trains))
            rates = {each: n / statistics.median(every[1:]) for each, every in took.items()}  # the first warms up
            values |= {f"{what}_{each}_images_per_s": rate for each, rate in rates.items()}
            values[f"{what}_bf16_over_fp32"] = rates["bf16"] / rates["fp32"]
        print(name, *(f"{metric} {value:.3g}" for metric, value in values.items()), sep="  ", flush=True)
        row = {"table": "precision.py", "cell": name, "title": name, "commit": source_commit() or ""}
        rows += [{**row, "hardware": hardware, "metric": m, "value": f"{v:.3g}"} for m, v in values.items()]
    if options.csv is not None:
        add_rows(options.csv, rows)


if __name__ == "__main__":
    main()
