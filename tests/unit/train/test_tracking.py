"""A run in an experiment tracker, which a stub module plays."""

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright.errors import ConfigError
from labelwright.train.tracking import Tracking


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    draw, labels = np.random.default_rng(0), np.arange(60) % 3
    rows = np.eye(3, 8)[labels] + 0.3 * draw.normal(size=(60, 8))
    np.savez(tmp_path / "f.npz", embeddings=rows.astype(np.float32), labels=labels)
    return tmp_path / "f.npz"


def stub(name: str, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> list[Any]:
    """Put a module in the place of a tracker; what it is given is in the list."""
    seen = list[Any]()

    def log(values: dict[str, float], step: int) -> None:
        if fails:
            raise OSError("no space left")
        seen.append((step, values))

    def init(**settings: str) -> Any:
        seen.append({**settings, "mode": os.environ["WANDB_MODE"]})
        return types.SimpleNamespace(log=log, finish=lambda: seen.append("finish"))

    module: Any = types.ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    module.init, module.finish = init, lambda: seen.append("finish")
    module.config = types.SimpleNamespace(update=lambda values, **_: seen.append(values))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    return seen


def test_fit__tracked_by_settings_numbers_and_scores(feats: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen = stub("wandb", monkeypatch)
    run = lw.fit(feats, out=tmp_path / "run", method="nearest_mean", track="wandb", device="cpu")
    first, config, *rows, last = seen
    assert first == {"project": "labelwright", "name": "run", "mode": "offline"}
    assert (config["method"], config["test_frac"], config["track"]) == ("nearest_mean", 0.2, "wandb")
    assert last == "finish"
    steps = [step for step, _ in rows]
    assert steps == sorted(set(steps))
    assert rows[-1][1]["final/test/accuracy"] == run.summary["test"]["accuracy"]
    assert rows[-1][1]["final/n_images"] == run.summary["n_images"]


def test_tracking__numbers_of_epochs_without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stub("trackio", monkeypatch)
    tracking = Tracking("trackio", "run", {"lr": 0.1, "set": {}})
    tracking.log({"kind": "step", "epoch": 0, "loss": 2.0}, 50)
    for epoch in range(2):
        record = {"kind": "epoch", "epoch": epoch, "loss": 1.0 - epoch / 4, "stop": False, "test": {"accuracy": 0.5}}
        tracking.log(record, epoch + 1)
    tracking.finish(None)
    tracking.finish(None)
    assert seen[1:] == [
        {"lr": 0.1, "set": "{}"},
        (1, {"epoch": 0, "loss": 1.0, "test/accuracy": 0.5}),
        (2, {"epoch": 1, "loss": 0.75, "test/accuracy": 0.5}),
        "finish",
    ]


def test_tracking__what_fails_is_reported_once(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seen = stub("wandb", monkeypatch, fails=True)
    tracking = Tracking("wandb", "run", {})
    for step in (1, 2):
        tracking.log({"loss": 1.0}, step)
    tracking.finish({"n_images": 3})
    assert capsys.readouterr().err == "warning: wandb failed and is left out from here on: OSError: no space left\n"
    assert "finish" not in seen


def test_fit__a_tracker_that_is_not_installed_or_not_known(feats: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--track wandb needs a package that is not installed") as stopped:
        lw.fit(feats, out=tmp_path / "run", track="wandb")
    assert stopped.value.fix.endswith(" install wandb")
    with pytest.raises(ConfigError, match="no tracker 'comet'"):
        lw.fit(feats, out=tmp_path / "run", track="comet")
    assert not (tmp_path / "run").exists()
