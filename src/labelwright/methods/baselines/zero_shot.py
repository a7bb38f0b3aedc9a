"""Zero-shot: class names against images, as the vision-language model is. Labels are ignored, nothing is trained.

Source: Radford et al. 2021 (arXiv 2103.00020). Other prompts, or several at once (the prompt ensemble), are a setting
of the class features.
Command: labelwright fit photos/ --classes names.txt --model openai/clip-vit-base-patch32 --method zero_shot --out RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from labelwright.encoders.aligned import AlignedNet
from labelwright.methods.class_names import check_task
from labelwright.methods.recipe import Recipe
from labelwright.train.settings import TrainSettings
from labelwright.types import BuildNet, State, Task


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of zero_shot and transclip."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # nothing is trained


def setup(cfg: Config, task: Task, build_net: BuildNet, *, name: str = "zero_shot") -> State:
    """The towers with nothing to train."""
    check_task(task, name)
    return State(nets={"main": AlignedNet(build_net.towers())})


RECIPE = Recipe(Config=Config, setup=setup)
