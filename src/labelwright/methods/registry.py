"""Every method by the name that `--method` takes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from labelwright.errors import ConfigError
from labelwright.methods import cap, coreg, coreg_frozen, cvs, lps
from labelwright.methods.baselines import (
    balanced_softmax,
    candidate_labels,
    ce,
    class_balanced,
    dividemix,
    focal,
    ib,
    la,
    ldam,
    open_world,
    pico,
    vision_language,
    vs,
)
from labelwright.train.settings import TrainSettings, apply_overrides
from labelwright.types import Recipe


@dataclass(frozen=True)
class Method:
    """A recipe with the settings that make it this method.

    Attributes:
      recipe: a module, or an object with its seven names.
      title: what to call it in tables and reports.
      needs: "labels" if it trains on labelled images only; "text" if it reads class names; "candidates" if it learns
        from candidate labels (Task.candidates), which `fit` has an annotator guess where the data have none;
        "open_world" if it learns from labelled and unlabelled images and finds classes that nobody named.
      preset: settings that differ from the recipe's defaults.
    """

    recipe: Recipe
    title: str
    needs: str = "labels"
    preset: Mapping[str, object] = field(default_factory=dict)


def _recipe(module: object) -> Recipe:
    return cast(Recipe, module)


_BASELINES: Mapping[vision_language.BaselineName, str] = {
    "zero_shot": "Zero-shot",
    "pseudo_probe": "Probe on zero-shot labels",
    "fpl": "Few pseudolabels",
    "fixmatch": "FixMatch on features",
    "transclip": "TransCLIP",
}

_CANDIDATE_BASELINES: Mapping[candidate_labels.BaselineName, str] = {
    "kd": "Knowledge distillation",
    "top1": "Top-1 candidate",
    "cc": "CC",
    "proden": "PRODEN",
    "crdpll": "CRDPLL",
}

_OPEN_WORLD_BASELINES: Mapping[open_world.BaselineName, str] = {
    "ss_kmeans": "Semi-supervised k-means",
    "orca": "ORCA",
    "simgcd": "SimGCD",
    "fixmatch_clusters": "FixMatch + clusters",
}

METHODS: Mapping[str, Method] = {
    "cvs": Method(_recipe(cvs), "CVS"),
    "cap": Method(_recipe(cap), "CAP", needs="text"),
    "coreg": Method(_recipe(coreg), "Co-Reg", needs="candidates"),
    "coreg_frozen": Method(_recipe(coreg_frozen), "Co-Reg on frozen features", needs="candidates"),
    "lps": Method(_recipe(lps), "LPS", needs="open_world"),
    "ce": Method(ce.RECIPE, "Cross-entropy"),
    "class_balanced": Method(class_balanced.RECIPE, "Class-balanced"),
    "focal": Method(focal.RECIPE, "Focal"),
    "balanced_softmax": Method(balanced_softmax.RECIPE, "Balanced softmax"),
    "ldam": Method(ldam.RECIPE, "LDAM"),
    "ldam_drw": Method(ldam.RECIPE, "LDAM + DRW", preset={"drw_from_frac": 0.8}),
    "la": Method(la.RECIPE, "Logit adjustment"),
    "vs": Method(vs.RECIPE, "Vector scaling"),
    "ib": Method(ib.RECIPE, "Influence-balanced"),
    **{
        name: Method(_recipe(vision_language), title, needs="text", preset=vision_language.PRESETS[name])
        for name, title in _BASELINES.items()
    },
    **{
        name: Method(_recipe(candidate_labels), title, needs="candidates", preset={"baseline": name})
        for name, title in _CANDIDATE_BASELINES.items()
    },
    **{
        name: Method(_recipe(open_world), title, needs="open_world", preset=open_world.PRESETS[name])
        for name, title in _OPEN_WORLD_BASELINES.items()
    },
    "pico": Method(_recipe(pico), "PiCO", needs="candidates"),
    "dividemix": Method(_recipe(dividemix), "DivideMix", needs="candidates"),
}


def method_named(name: str) -> Method:
    """The method of this name.

    Raises: ConfigError listing the valid names and the closest.

    Example:
      >>> method_named("la").title
      'Logit adjustment'
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"method {name!r} is not known", fix=f"{hint}valid methods: auto, {', '.join(METHODS)}")


def resolve_config(method: Method, overrides: Mapping[str, object]) -> TrainSettings:
    """The recipe's Config with the method's preset and the user's settings on top.

    Example:
      >>> resolve_config(method_named("ldam_drw"), {"epochs": "10"}).drw_from_frac
      0.8
    """
    config: Any = method.recipe.Config
    return cast(TrainSettings, apply_overrides(config(), {**method.preset, **overrides}))
