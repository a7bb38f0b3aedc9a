"""A method as one value, for files that need only some of the seven functions of `types.Recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.types import Batch, BuildNet, Clock, EpochPlan, Passes, Prediction, State, StepResult, Task

Begun = tuple[State, Mapping[str, Any]]  # the state, and what to log


def nothing_before(cfg: Any, task: Task, state: State, passes: Passes) -> Begun:
    """Everything is known before the first pass."""
    return state, {}


def no_steps(cfg: Any, task: Task, state: State, epoch: int) -> EpochPlan:
    """Nothing is trained."""
    return EpochPlan({}, 0)


def no_step(cfg: Any, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Of a method that takes none."""
    raise AssertionError("a plan without steps leads to none")


def nothing_after(cfg: Any, task: Task, state: State, passes: Passes, epoch: int) -> Begun:
    """Nothing is estimated anew."""
    return state, {}


def plain_logits(cfg: Any, state: State, x: Tensor) -> Prediction:
    """The network's own logits: no adjustment applies at test time."""
    return Prediction(state.nets["main"](x))


def feats_of(passes: Passes, rows: Tensor, *, net: str = "main", dtype: torch.dtype = torch.float32) -> Tensor:
    """Features [n, D] of rows [n] int64 in one tensor, filled block by block: they are never there twice.

    Example:
      >>> def passes(net, rows, view="clean", output="logits"):
      ...     return ((some, some[:, None].float()) for some in torch.split(rows, 2))
      >>> feats_of(passes, torch.tensor([5, 6, 7])).flatten().tolist()
      [5.0, 6.0, 7.0]
    """
    found, first = torch.empty(0), 0
    for _, some in passes(net, rows.cpu(), output="feats"):
        if not first:
            found = torch.empty(len(rows), some.shape[1], dtype=dtype, device=some.device)
        found[first : first + len(some)] = some
        first += len(some)
    return found


CHOSEN = "chosen"  # in the memory of a state: what the method chose of its settings, as `as_chosen` reads it


def as_chosen(cfg: Any, state: State) -> Any:
    """The settings with what the method has chosen by cross-validation, so that fitting anew need not search again.

    Args:
      cfg: of the method.
      state: whose memory may hold, by setting, the number that was chosen, or the place in a tuple of names.

    Example:
      >>> from labelwright.methods.cross_validated import Config
      >>> cfg = as_chosen(Config(), State({}, memory={CHOSEN: {"penalty": 30.0, "family": 1}}))
      >>> cfg.penalty, cfg.family
      (30.0, ('vs',))
    """
    chosen = {
        name: (getattr(cfg, name)[value],) if isinstance(getattr(cfg, name), tuple) else value
        for name, value in state.memory.get(CHOSEN, {}).items()
    }
    return replace(cfg, **chosen)


def check_is_pretrained(build_net: BuildNet) -> None:
    """Refuse to classify features of random weights.

    Raises: ConfigError.
    """
    if not (build_net.is_frozen or build_net.is_pretrained):
        raise ConfigError(
            "this method classifies features of a pretrained network, and this one has random weights",
            fix="name a pretrained one with --model, or give embeddings",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A `types.Recipe`; what is left out is done by the functions above. Without `plan` and `step` nothing is trained.

    Example:
      >>> from labelwright.train.settings import TrainSettings
      >>> recipe = Recipe(Config=TrainSettings, setup=lambda cfg, task, build_net: State({}))
      >>> recipe.plan(TrainSettings(), None, State({}), 0).n_steps
      0
    """

    Config: type[Any]
    setup: Callable[..., State]
    begin: Callable[..., Begun] = nothing_before
    plan: Callable[..., EpochPlan] = no_steps
    step: Callable[..., StepResult] = no_step
    end_epoch: Callable[..., Begun] = nothing_after
    predict: Callable[..., Prediction] = plain_logits
