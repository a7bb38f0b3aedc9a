"""A run shown in an experiment tracker, by Accelerate's trackers; nothing leaves the machine unless you set that up."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from labelwright.errors import ConfigError
from labelwright.train.progress import say

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "labelwright"
OF_SUMMARY = ("test", "seconds", "n_images", "n_labelled", "n_classes", "n_novel", "peak_memory_mb")


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that there is not, or that is not installed.

    Raises: ConfigError with the command that installs it.

    Example:
      >>> check_tracker("tensorboard")
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}", fix=f"--track one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--track {name} needs a package that is not installed", fix=f"pip install {name}")


def numbers_of(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record and of the records in it, by the path to them.

    Example:
      >>> numbers_of({"kind": "epoch", "loss": 0.5, "test": {"accuracy": 0.9, "per_class": [1.0]}})
      {'loss': 0.5, 'test/accuracy': 0.9}
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


class Tracking:
    """One run in a tracker. What fails there is reported once, and the run goes on without it.

    Args:
      name: one of `TRACKERS`; None or tensorboard, which every run writes anyway, tracks nothing here.
      config: settings of the run; values that are no plain ones are kept as text.
    """

    def __init__(self, name: str | None, run_name: str, config: Mapping[str, Any]) -> None:
        self.name, self.last_step = name, 0
        self.tracker: Any = None
        if name is None or name == "tensorboard":
            return
        self._attempt(lambda: self._start(name, run_name, config))

    def _start(self, name: str, run_name: str, config: Mapping[str, Any]) -> None:
        from accelerate import tracking

        os.environ.setdefault("WANDB_MODE", "offline")  # `wandb sync` sends it, if that is wanted
        started: Any
        if name == "mlflow":
            started = tracking.MLflowTracker(PROJECT, run_name=run_name)
        else:
            kind = {"wandb": tracking.WandBTracker, "trackio": tracking.TrackioTracker}[name]
            started = kind(PROJECT, name=run_name)
        started.start()
        plain = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in config.items()}
        started.store_init_configuration(plain)
        self.tracker = started

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Numbers of an epoch, or of what precedes the first; steps are left out."""
        if self.tracker is None or record.get("kind") == "step":
            return
        tracker, self.last_step = self.tracker, step
        self._attempt(lambda: tracker.log(numbers_of(record), step=step))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The scores of the finished run, if it was finished, and the end."""
        if self.tracker is None:
            return
        tracker = self.tracker
        if summary is not None:
            final = numbers_of({"final": {key: summary[key] for key in OF_SUMMARY if key in summary}})
            self._attempt(lambda: tracker.log(final, step=self.last_step + 1))
        if self.tracker is not None:
            self._attempt(tracker.finish)
        self.tracker = None

    def _attempt(self, what: Callable[[], Any]) -> None:
        try:
            what()
        except Exception as error:  # a tracker is somebody else's service, and no reason to lose a run
            self.tracker = None
            say(f"warning: {self.name} failed and is left out from here on: {type(error).__name__}: {error}")
