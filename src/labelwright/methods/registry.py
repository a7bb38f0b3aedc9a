"""Every method by the name that `--method` takes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from labelwright.errors import ConfigError
from labelwright.methods import beliefs, cap, coreg, cvs, lps
from labelwright.methods.baselines import (
    balanced_softmax,
    cc,
    ce,
    class_balanced,
    crdpll,
    dividemix,
    fixmatch,
    fixmatch_clusters,
    focal,
    fpl,
    ib,
    kd,
    la,
    ldam,
    orca,
    pico,
    proden,
    pseudo_probe,
    simgcd,
    ss_kmeans,
    top1,
    transclip,
    vs,
    zero_shot,
)
from labelwright.train.settings import TrainSettings, apply_overrides
from labelwright.types import Recipe


@dataclass(frozen=True)
class Method:
    """A recipe with the settings that make it this method.

    Attributes:
      recipe: a module, or a `methods.recipe.Recipe`.
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


METHODS: Mapping[str, Method] = {
    "cvs": Method(_recipe(cvs), "CVS"),
    "cap": Method(_recipe(cap), "CAP", needs="text"),
    "coreg": Method(_recipe(coreg), "Co-Reg", needs="candidates"),
    "lps": Method(_recipe(lps), "LPS", needs="open_world"),
    "beliefs": Method(_recipe(beliefs), "Beliefs"),
    "ce": Method(ce.RECIPE, "Cross-entropy"),
    "class_balanced": Method(class_balanced.RECIPE, "Class-balanced"),
    "focal": Method(focal.RECIPE, "Focal"),
    "balanced_softmax": Method(balanced_softmax.RECIPE, "Balanced softmax"),
    "ldam": Method(ldam.RECIPE, "LDAM"),
    "ldam_drw": Method(ldam.RECIPE, "LDAM + DRW", preset={"drw_from_frac": 0.8}),
    "la": Method(la.RECIPE, "Logit adjustment"),
    "vs": Method(vs.RECIPE, "Vector scaling"),
    "ib": Method(ib.RECIPE, "Influence-balanced"),
    "zero_shot": Method(zero_shot.RECIPE, "Zero-shot", needs="text"),
    "pseudo_probe": Method(pseudo_probe.RECIPE, "Probe on zero-shot labels", needs="text"),
    "fpl": Method(fpl.RECIPE, "Few pseudolabels", needs="text"),
    "fixmatch": Method(fixmatch.RECIPE, "FixMatch on features", needs="text"),
    "transclip": Method(transclip.RECIPE, "TransCLIP", needs="text"),
    "kd": Method(kd.RECIPE, "Knowledge distillation", needs="candidates"),
    "top1": Method(top1.RECIPE, "Top-1 candidate", needs="candidates"),
    "cc": Method(cc.RECIPE, "CC", needs="candidates"),
    "proden": Method(proden.RECIPE, "PRODEN", needs="candidates"),
    "crdpll": Method(crdpll.RECIPE, "CRDPLL", needs="candidates"),
    "ss_kmeans": Method(ss_kmeans.RECIPE, "Semi-supervised k-means", needs="open_world"),
    "orca": Method(orca.RECIPE, "ORCA", needs="open_world"),
    "simgcd": Method(simgcd.RECIPE, "SimGCD", needs="open_world"),
    "fixmatch_clusters": Method(fixmatch_clusters.RECIPE, "FixMatch + clusters", needs="open_world"),
    "pico": Method(pico.RECIPE, "PiCO", needs="candidates"),
    "dividemix": Method(dividemix.RECIPE, "DivideMix", needs="candidates"),
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
