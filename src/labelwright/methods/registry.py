"""Every method by the name that `--method` takes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from labelwright.errors import ConfigError
from labelwright.methods import beliefs, cap, coreg, coreg_frozen, cross_validated, crowd, cvs, cvs_frozen, lps
from labelwright.methods.baselines import (
    balanced_softmax,
    cc,
    ce,
    clap,
    class_balanced,
    crdpll,
    dividemix,
    fixmatch,
    fixmatch_clusters,
    fixmatch_text,
    focal,
    fpl,
    ib,
    kd,
    kernel,
    la,
    ldam,
    lp_pp,
    majority,
    nearest_mean,
    novel_beliefs,
    orca,
    pico,
    proden,
    protogcd,
    pseudo_probe,
    simgcd,
    softmatch,
    ss_kmeans,
    stata,
    tip_adapter,
    top1,
    transclip,
    vs,
    zero_shot,
    zlap,
)
from labelwright.methods.cap_margin import with_chosen_margin
from labelwright.methods.families.candidates import of_candidates, on_frozen_features
from labelwright.methods.families.labels import of_all_images, of_labels
from labelwright.methods.families.novel import of_novel
from labelwright.methods.families.text import of_text
from labelwright.methods.method import Method, Requires, as_configured, views_of_features, views_per_image
from labelwright.train.settings import TrainSettings, apply_overrides

FROM_PIXELS: Mapping[str, Mapping[str, object]] = {"paper": {"views": "pixels"}}
"""What a published recipe that trains its network needs."""

SHOTS = Requires(labels=True, text=True)
"""What few-shot methods beside class texts cannot do without."""

OWN: Mapping[str, Method] = {
    "cvs": of_labels(
        "CVS",
        cvs,
        presets=cvs.PRESETS,
        schedule=cvs.schedule,
        run_presets=FROM_PIXELS,
        frozen=cvs_frozen.RECIPE,
        on_embeddings=lambda table: "cross_validated",
    ),
    "cap": of_text(
        "CAP",
        cap,
        presets=cap.PRESETS,
        run_presets=FROM_PIXELS,
        default_views=cap.default_views,
        has_start=True,
        pilot=with_chosen_margin,
    ),
    "coreg": of_candidates(
        "Co-Reg",
        coreg,
        presets=coreg.PRESETS,
        run_presets={"paper": {"views": "pixels", "model": "preact_resnet18", "rule": "union"}},
        on_embeddings=on_frozen_features,
    ),
    "coreg_frozen": of_candidates("Co-Reg on frozen features", coreg_frozen, has_start=True),
    "crowd": of_candidates("Crowd", crowd.RECIPE, default_views=views_of_features, schedule=as_configured),
    "lps": of_novel(
        "LPS",
        lps,
        has_start=True,
        presets=lps.PRESETS,
        run_presets=FROM_PIXELS,
        schedule=lps.schedule,
        on_embeddings=lambda table: "simgcd",
    ),
    "beliefs": of_labels(
        "Beliefs",
        beliefs.RECIPE,
        requires=Requires(labels=True, or_text=True),
        default_views=views_of_features,
        schedule=as_configured,
    ),
    "cross_validated": of_labels(
        "Long-tail family, cross-validated",
        cross_validated.RECIPE,
        default_views=views_of_features,
        schedule=as_configured,
    ),
}
"""What the package is there for; a run's answer is the best of such a method, its start and the obvious ones."""

BASELINES: Mapping[str, Method] = {
    "fixmatch": of_all_images("FixMatch", fixmatch.RECIPE),
    "softmatch": of_all_images("SoftMatch", softmatch.RECIPE),
    "ce": of_labels("Cross-entropy", ce.RECIPE, frozen=ce.FROZEN),
    "class_balanced": of_labels("Class-balanced", class_balanced.RECIPE, frozen=class_balanced.FROZEN),
    "focal": of_labels("Focal", focal.RECIPE),
    "balanced_softmax": of_labels("Balanced softmax", balanced_softmax.RECIPE, frozen=balanced_softmax.FROZEN),
    "ldam": of_labels("LDAM", ldam.RECIPE, frozen=ldam.FROZEN),
    "ldam_drw": of_labels("LDAM + DRW", ldam.RECIPE, presets={"practical": {"drw_from_frac": 0.8}}, frozen=ldam.FROZEN),
    "la": of_labels("Logit adjustment", la.RECIPE, frozen=la.FROZEN),
    "vs": of_labels("Vector scaling", vs.RECIPE, frozen=vs.FROZEN),
    "ib": of_labels("Influence-balanced", ib.RECIPE),
    "nearest_mean": of_labels(
        "Nearest class mean", nearest_mean.RECIPE, default_views=views_of_features, schedule=as_configured
    ),
    "kernel": of_labels(
        "Kernel logistic regression", kernel.RECIPE, default_views=views_of_features, schedule=as_configured
    ),
    "zero_shot": of_text("Zero-shot", zero_shot.RECIPE),
    "pseudo_probe": of_text("Probe on zero-shot labels", pseudo_probe.RECIPE),
    "fpl": of_text("Few pseudo-labels", fpl.RECIPE),
    "fixmatch_text": of_text("FixMatch on features", fixmatch_text.RECIPE),
    "transclip": of_text("TransCLIP", transclip.RECIPE),
    "stata": of_text("StatA", stata.RECIPE),
    "zlap": of_text("ZLaP", zlap.RECIPE),
    "tip_adapter": of_text("Tip-Adapter", tip_adapter.RECIPE, requires=SHOTS),
    "lp_pp": of_text("LP++", lp_pp.RECIPE, requires=SHOTS),
    "clap": of_text("CLAP", clap.RECIPE, requires=SHOTS),
    "kd": of_candidates("Knowledge distillation", kd.RECIPE, passes=views_per_image(1)),
    "majority": of_candidates(
        "Logistic regression on the majority vote",
        majority.RECIPE,
        default_views=views_of_features,
        schedule=as_configured,
    ),
    "top1": of_candidates("Top-1 candidate", top1.RECIPE, passes=views_per_image(1)),
    "cc": of_candidates("CC", cc.RECIPE, passes=views_per_image(1)),
    "proden": of_candidates("PRODEN", proden.RECIPE, passes=views_per_image(1)),
    "crdpll": of_candidates("CRDPLL", crdpll.RECIPE, passes=views_per_image(3)),
    "pico": of_candidates("PiCO", pico.RECIPE, passes=views_per_image(2)),
    "dividemix": of_candidates("DivideMix", dividemix.RECIPE),
    "ss_kmeans": of_novel("Semi-supervised k-means", ss_kmeans.RECIPE),
    "novel_beliefs": of_novel("Beliefs from clusters", novel_beliefs.RECIPE),
    "orca": of_novel("ORCA", orca.RECIPE, has_start=True),
    "simgcd": of_novel("SimGCD", simgcd.RECIPE, has_start=True),
    "protogcd": of_novel("ProtoGCD", protogcd.RECIPE, has_start=True),
    "fixmatch_clusters": of_novel("FixMatch + clusters", fixmatch_clusters.RECIPE),
}
"""What others have published, and the obvious."""

METHODS: Mapping[str, Method] = {
    **OWN,
    **{name: replace(method, is_baseline=True) for name, method in BASELINES.items()},
}
"""Every method by name."""


def method_named(name: str) -> Method:
    """The method of this name.

    Raises: ConfigError listing the valid names and the closest.

    Example:
      >>> method_named("la").title
      'Logit adjustment'
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(str(name), METHODS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"method {name!r} is not known", fix=f"{hint}valid methods: auto, {', '.join(METHODS)}")


def resolve_config(method: Method, overrides: Mapping[str, object], *, preset: str = "practical") -> TrainSettings:
    """The recipe's Config with a preset of the method and the user's settings on top.

    Raises: ConfigError for a preset that the method does not have.

    Example:
      >>> resolve_config(method_named("ldam_drw"), {"epochs": "10"}).drw_from_frac
      0.8
    """
    if preset not in ("practical", *method.presets):
        names = ", ".join(["practical", *(name for name in method.presets if name != "practical")])
        raise ConfigError(f"{method.title} has no preset {preset!r}", fix=f"its presets: {names}")
    config: Any = method.recipe.Config
    return cast(TrainSettings, apply_overrides(config(), {**method.presets.get(preset, {}), **overrides}))
