"""Versions, hardware and commit that a result depends on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from labelwright.train.processes import autocast_dtype


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, hardware and commit that a result depends on: JSON-ready."""
    packages = {}
    for name in ("labelwright", "torch", "transformers", "accelerate", "datasets", "numpy", "pyarrow"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "precision_used": str(autocast_dtype(device, precision) or torch.float32).removeprefix("torch."),
        "packages": packages,
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """Commit of the checkout that labelwright runs from (``+`` if changed since), None if installed as a package."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        run = [
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10)
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "src"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, MB; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
