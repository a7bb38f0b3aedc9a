"""How long a network that learns from pixels trains: by the clock, measured on this machine before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from labelwright.train.parts import set_parts
from labelwright.train.settings import TrainSettings
from labelwright.train.speed import images_per_second
from labelwright.types import ViewSource
from labelwright.wording import counted

MINUTES_CPU = 20.0
"""Of training, where neither ``minutes`` nor ``epochs`` is given."""

MINUTES_GPU = 120.0


@dataclass(frozen=True)
class Clocked:
    """The speed of a network here, and the time that there is."""

    images_per_second: float  # forward and back, over all processes
    minutes: float  # to train for
    n_scored: int = 0  # test images that pass forward while training, over all evaluations
    measured_on: str = "three steps"  # what says so

    @property
    def n_passes(self) -> float:
        """Images that pass through the network in that time, those that are scored counting a third."""
        return max(0.0, 60 * self.minutes * self.images_per_second - self.n_scored / 3)

    def seconds(self, n_epochs: int, per_epoch: float) -> float:
        """Of so many epochs of ``per_epoch`` passes each, scoring among it."""
        return (n_epochs * per_epoch + self.n_scored / 3) / self.images_per_second

    def words(self, cfg: TrainSettings, per_epoch: float, *, most: int) -> str:
        """What is about to happen, for people.

        Args:
          cfg: with the epochs that will run.   per_epoch: see `methods.method.Method.passes`.
          most: epochs of the method without a limit of time.
        """
        per_epoch *= 2 if cfg.sam_radius > 0 else 1
        took = self.seconds(cfg.epochs, per_epoch)
        text = f"about {about(took)} of training on this machine for {counted(cfg.epochs, 'epoch')}"
        text += f", measured on {self.measured_on}"
        if took > 66 * self.minutes:  # over by more than a tenth
            text += f"; fewer would teach nothing, so --minutes {self.minutes:g} is passed over"
        if cfg.epochs < most:
            text += f"; --epochs {most} would take {about(self.seconds(most, per_epoch))}"
        return text


def clocked(
    net: Callable[[], nn.Module],
    views: ViewSource,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    minutes: float | None,
    n_scored: int = 0,
    n_processes: int = 1,
    accumulate: int = 1,
    known: float | None = None,
) -> Clocked:
    """Measure, or take the speed that a run which is resumed has measured.

    Args:
      net: makes the network.   views, batch_size, device, precision: see train.speed.images_per_second.
      minutes: None = `MINUTES_CPU` or `MINUTES_GPU`.   n_scored: see `Clocked`.
      n_processes: which all train, at the speed of the first.   accumulate: see `fit`.
      known: images per second measured before.
    """
    if known is None:
        learner = net()
        set_parts(learner, accumulate)
        speed = images_per_second(learner, views, batch_size=batch_size, device=device, precision=precision)
        measured = [n_processes * speed]
        if n_processes > 1:  # all must plan the same epochs
            from accelerate.utils import broadcast_object_list

            measured = broadcast_object_list(measured)
        known = float(f"{measured[0]:.3g}")
    return Clocked(known, minutes_on(device) if minutes is None else minutes, n_scored)


def minutes_on(device: torch.device) -> float:
    """Of training, where nobody says how long."""
    return MINUTES_CPU if device.type == "cpu" else MINUTES_GPU


def about(seconds: float) -> str:
    """A time that is only estimated.

    Example:
      >>> about(20), about(1083), about(18200)
      ('20 seconds', '18 minutes', '5.1 hours')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
