"""Settings that every recipe's Config shares, and how `--set KEY=VALUE` reaches them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from labelwright.errors import ConfigError

ConfigT = TypeVar("ConfigT")

LARGEST = 3.4e38  # of a setting: training computes in float32

RANGES: Mapping[str, Callable[[Any], bool]] = {
    "0 or more": lambda value: value >= 0,
    "above 0": lambda value: value > 0,
    "at least 1": lambda value: value >= 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in (0, 1)": lambda value: 0 < value < 1,
}
"""What a setting may be, as a message says it -> whether a value is."""

Count = Annotated[int, "at least 1"]
CountOr0 = Annotated[int, "0 or more"]
AtLeast0 = Annotated[float, "0 or more"]
Positive = Annotated[float, "above 0"]
Share = Annotated[float, "in [0, 1]"]
ShareBelow1 = Annotated[float, "in [0, 1)"]
ShareAbove0 = Annotated[float, "in (0, 1]"]
ShareInside = Annotated[float, "in (0, 1)"]
"""Types of settings, each checked when a Config is made; of `AtLeast0 | None` None is allowed as well."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long and how fast to train; a recipe's Config extends this and may change the defaults."""

    takes_steps: ClassVar[bool] = True  # False: nothing is trained, and of the settings below only epochs can be set
    epochs: Count = 200  # passes over the training set
    batch_size: Count = 128  # rows per optimizer step, over all processes
    optimizer: Literal["sgd", "adamw"] = "sgd"  # adamw for fine-tuning transformers, with a far smaller lr
    lr: Positive = 0.1  # peak learning rate
    momentum: ShareBelow1 = 0.9  # SGD momentum; AdamW keeps its own betas
    nesterov: bool = False  # look ahead along the momentum
    weight_decay: AtLeast0 = 2e-4  # of every trained parameter (He 2016; the CIFAR-LT papers)
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # of the learning rate after the warm-up
    warmup_epochs: AtLeast0 = 5.0  # linear from 0 to lr; never longer than a tenth of the epochs
    step_at_frac: tuple[float, ...] = (0.8, 0.9)  # schedule="step": learning rate x0.1 at these shares of the epochs
    layer_decay: ShareAbove0 = 1.0  # a block's learning rate = lr * layer_decay ** (blocks above it); 1 = the same
    max_grad_norm: AtLeast0 = 0.0  # clip the global gradient norm to this; 0 = never
    sam_radius: AtLeast0 = 0.0  # sharpness-aware minimisation, radius in parameter space; 0 = off (Foret 2021)
    sam_radius_late: AtLeast0 | None = None  # radius from `sam_late_from_frac` on; None = the same as before
    sam_late_from_frac: Share = 0.8  # share of the epochs after which sam_radius_late applies

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), float):
                require(
                    abs(value) <= LARGEST, field.name, value, f"a number up to {LARGEST:g}, which is what float32 holds"
                )
        for name, (allowed, may_be_none) in _checks(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(allowed, str):
                is_fine = may_be_none if value is None else RANGES[allowed](value)
                require(is_fine, name, value, f"{allowed}, or none" if may_be_none else allowed)
            else:
                allowed(value)
        fine = all(0 <= frac <= 1 for frac in self.step_at_frac)
        require(fine, "step_at_frac", self.step_at_frac, "shares of the epochs, each in [0, 1]")
        require(not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "false when momentum is 0")


FINE_TUNING: Mapping[str, object] = {
    "optimizer": "adamw",
    "batch_size": 32,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "layer_decay": 0.75,
    "warmup_epochs": 1.0,
    "max_grad_norm": 1.0,
}
"""Settings of a network that comes with weights and is trained on: a small rate, smaller from block to block downwards
(Bao et al. 2021, arXiv 2106.08254), AdamW, a warm-up."""


def fine_tuned(cfg: ConfigT, given: Container[str]) -> ConfigT:
    """A Config for a pretrained network: `FINE_TUNING`, but for what the user or a preset sets.

    Example:
      >>> cfg = fine_tuned(TrainSettings(), {"lr"})
      >>> cfg.optimizer, cfg.lr, cfg.layer_decay
      ('adamw', 0.1, 0.75)
    """
    changes = {key: value for key, value in FINE_TUNING.items() if key not in given}
    return dataclasses.replace(cfg, **changes)  # type: ignore[type-var]


def require(ok: bool, key: str, value: object, wanted: str) -> None:
    """Refuse a setting unless ``ok``; ``wanted`` says what it must be, for the fix.

    Raises: ConfigError naming the setting, its value and the fix.

    Example:
      >>> require(False, "epochs", 0, "at least 1")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: epochs=0 is not possible
        fix: epochs must be at least 1
    """
    if not ok:
        raise ConfigError(f"{key}={value} is not possible", fix=f"{key} must be {wanted}")


@functools.cache
def _checks(config: type[Any]) -> dict[str, tuple[str | Callable[[Any], object], bool]]:
    """Field -> key of `RANGES` or what refuses a value, and whether it may be None.

    A class that changes the default of a field keeps its check.
    """
    found: dict[str, tuple[str | Callable[[Any], object], bool]] = {}
    for owner in reversed(config.__mro__):
        for name, hint in typing.get_type_hints(owner, include_extras=True).items():
            is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
            kinds = typing.get_args(hint) if is_union else (hint,)
            allowed = [kind.__metadata__[0] for kind in kinds if typing.get_origin(kind) is Annotated]
            if allowed:
                found[name] = allowed[0], type(None) in kinds
    return found


def setting_names(config: type[Any]) -> list[str]:
    """What of a Config can be set: its fields; of a method that takes no steps those that are not about steps.

    Example:
      >>> setting_names(TrainSettings)[:3]
      ['epochs', 'batch_size', 'optimizer']
    """
    takes_steps = getattr(config, "takes_steps", True)
    about_steps = () if takes_steps else {field.name for field in dataclasses.fields(TrainSettings)} - {"epochs"}
    return [field.name for field in dataclasses.fields(config) if field.name not in about_steps]


def described(config: type[Any]) -> dict[str, str]:
    """Field of a Config -> what it is, by the comment beside or above it.

    Example:
      >>> described(TrainSettings)["lr"]
      'peak learning rate'
    """
    found = {}
    for owner in reversed(config.__mro__[:-1]):
        lines = inspect.getsource(owner).splitlines()
        for name in vars(owner).get("__annotations__", {}):
            at = next(i for i, line in enumerate(lines) if re.match(rf"    {name}: ", line))
            beside = re.search(r"  # (.*)$", lines[at])
            above: list[str] = []
            while beside is None and at > 0 and re.match(r"    # ", lines[at - 1]):
                at -= 1
                above.insert(0, lines[at].strip().removeprefix("# "))
            found[name] = beside[1] if beside else " ".join(above)
    return {name: found[name] for name in setting_names(config)}


def apply_overrides(cfg: ConfigT, overrides: Mapping[str, object]) -> ConfigT:
    """A copy of a Config with some fields replaced; text is converted to the field's type.

    Args:
      cfg: a recipe's frozen Config.
      overrides: field name -> value, or the text of a value as typed after ``--set``.

    Raises: ConfigError naming the unknown key and the closest valid ones, or the value that does not convert.

    Example:
      >>> apply_overrides(TrainSettings(), {"epochs": "3", "step_at_frac": "0.5,0.75"}).step_at_frac
      (0.5, 0.75)
    """
    hints = typing.get_type_hints(type(cfg))
    names = setting_names(type(cfg))
    values: dict[str, object] = {}
    for key, value in overrides.items():
        if key not in names and key in TrainSettings.__dataclass_fields__:
            raise ConfigError(
                f"{key} is about training steps, and on frozen features this method takes none",
                fix=f"leave it out; valid settings: {', '.join(sorted(names))}",
            )
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"unknown setting {key!r}", fix=f"{hint}valid settings: {', '.join(sorted(names))}")
        values[key] = _convert(key, value, hints[key])
    return dataclasses.replace(cfg, **values)  # type: ignore[type-var]


def _convert(key: str, value: object, hint: Any) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and str(value).lower() in ("none", "null"):
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        for kind in kinds[:-1]:
            with contextlib.suppress(ConfigError):
                return _convert(key, value, kind)
        return _convert(key, value, kinds[-1])
    if origin is Literal:
        require(value in args, key, value, f"one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        items = value.strip("()[]").split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{key}={value} is not possible", fix=f"{key} takes comma-separated values")
        kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(kinds) != len(items):
            raise ConfigError(f"{key}={value} is not possible", fix=f"{key} takes {len(kinds)} values, comma-separated")
        return tuple(_convert(key, item, kind) for item, kind in zip(items, kinds, strict=True))
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if hint is int:
            number = json.loads(value) if isinstance(value, str) else value
            if isinstance(number, bool) or int(typing.cast(float, number)) != number:
                raise ValueError
            return int(typing.cast(float, number))
        if hint is float:
            return float(typing.cast(float, value))
        return hint(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        kind = hint.__name__
        raise ConfigError(f"{key}={value} is not a valid {kind}", fix=f"give {key} a {kind}") from None
