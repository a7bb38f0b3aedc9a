"""`settings`: what a method can be set to, and what it is set to by a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labelwright.methods.registry import method_named, resolve_config
from labelwright.train.settings import described


@dataclass(frozen=True)
class MethodSetting:
    """One setting of a method.

    Attributes:
      name: what ``--set`` calls it.
      value: what the preset sets it to.
      text: what it is, its unit and source.
      is_of_preset: the preset differs from the recipe's own value.
    """

    name: str
    value: Any
    text: str
    is_of_preset: bool


def settings(method: str, *, preset: str = "practical", views: str = "pixels") -> list[MethodSetting]:
    """Every setting of a method: its value under a preset, and what it is.

    Args:
      method: a name of methods.registry.METHODS.
      preset: practical (what runs by default) or paper (the published recipe).
      views: pixels, or embeddings for what is read on stored features.

    Raises: ConfigError for an unknown method, or a preset that it does not have.

    Example:
      >>> {each.name: each.value for each in settings("ldam_drw")}["drw_from_frac"]
      0.8
      >>> [each.name for each in settings("la", views="embeddings")]
      ['epochs', 'penalty', 'adjust', 'effective_beta', 'drw_from_frac', 'tau']
    """
    found = method_named(method)
    if views == "embeddings":
        found = found.on_features()
    cfg, own = resolve_config(found, {}, preset=preset), found.recipe.Config()
    texts = described(found.recipe.Config)
    return [
        MethodSetting(name, getattr(cfg, name), text, getattr(cfg, name) != getattr(own, name))
        for name, text in texts.items()
    ]
