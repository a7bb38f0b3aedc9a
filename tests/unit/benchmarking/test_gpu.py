"""benchmarks/gpu.py at toy length on a CPU: every part before a GPU is at hand."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from labelwright.benchmarking.results import read_rows

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_parts__finish_once_and_keep_their_numbers(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(gpu, "in_time", lambda command, limit_s: asked.append(list(command)) or 0)
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "gpu"), "--device", "cpu", "--toy"]
    assert gpu.main(words) == 0
    assert json.loads((tmp_path / "gpu" / "finished.json").read_text()) == ["parity", "speed", "profile"]
    found = {(row["cell"], row["metric"]): float(row["value"]) for row in read_rows(tmp_path / "gpu" / "gpu.csv")}
    for name in ("cvs", "lps"):
        assert found[f"parity, {name}", "largest_relative_difference"] == 0  # the CPU against itself
        assert found[f"parity, {name}", "first_loss"] > 0
    assert found["speed, loop", "images_per_second"] > 0
    assert found["profile, cvs", "launches_per_step"] == 0
    assert [(command[5], command[7]) for command in asked] == [(table, cell) for table, cell, _ in gpu.CELLS]
    began = time.monotonic()
    assert gpu.main(words) == 0
    assert time.monotonic() - began < 5
    assert "failed" not in capsys.readouterr().out


def test_in_time__a_command_that_is_too_slow_is_interrupted(gpu: ModuleType) -> None:
    assert gpu.in_time([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    began = time.monotonic()
    assert gpu.in_time([sys.executable, "-c", "import time; time.sleep(60)"], 1) is None
    assert time.monotonic() - began < 30
