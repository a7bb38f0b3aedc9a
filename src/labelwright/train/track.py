"""The run folder: what a run writes, where, and how it survives a kill."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from labelwright.errors import ConfigError, DataError
from labelwright.train.processes import autocast_dtype


class RunFolder:
    """A folder that holds one run: config.yaml, metrics.jsonl, checkpoints/, model/, summary.json and the rest.

    Args:
      path: the folder.
      resume: continue what is there; otherwise the folder must be empty or absent.

    Raises: ConfigError if the folder is not empty and ``resume`` is False.
    """

    def __init__(self, path: Path | str, *, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file", fix="give --out a folder that does not exist yet")
        if not resume and self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(
                f"{self.path} is not empty", fix="choose another --out, or --resume to continue the run that is there"
            )
        self._writer: SummaryWriter | None = None

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: what was measured, in order."""
        return self.path / "metrics.jsonl"

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file so that it is always whole."""
        write_text_atomically(self.path / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a YAML file so that it is always whole."""
        write_text_atomically(self.path / name, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises: DataError if it is missing or broken.
        """
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path / name} cannot be read ({error})", fix="is this the folder of a run?"
            ) from error
        return dict(content)

    def read_yaml(self, name: str) -> dict[str, Any]:
        """Read a YAML file of the run.

        Raises: DataError if it is missing or broken.
        """
        try:
            return dict(yaml.safe_load((self.path / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise DataError(
                f"{self.path / name} cannot be read ({error})", fix="is this the folder of a run?"
            ) from error

    def log(self, record: Mapping[str, Any], *, step: int) -> None:
        """Append one record to metrics.jsonl and its scalars to TensorBoard."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=True) + "\n")
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("epoch", "step"):
                self._writer.add_scalar(f"{record.get('kind', 'run')}/{key}", value, step)

    def metrics_size(self) -> int:
        """Bytes in metrics.jsonl: saved with a checkpoint, so that a resume can cut what came after it."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Drop what metrics.jsonl holds past ``size`` bytes: records of steps that will be run again."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics_size()))

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a reader sees the old one or the new one, never a part.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> write_text_atomically(folder / "a.txt", "hello"); (folder / "a.txt").read_text()
      'hello'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
