"""The best of the long-tail family on frozen features, by cross-validation: which loss suits is a question to the data.

 1  each of `family` with its penalty, as methods/frozen_heads.py finds it; the first one's and its neighbours are what
    the others try
 2  the one with the highest balanced accuracy on rows that were left out; the earlier one where two are level
 3  that problem, solved on all rows

Source: ours.
Command: labelwright fit feats.npz --method cross_validated --out RUN
Measured: docs/benchmarks.md, "Long tails on stored features".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from labelwright.errors import ConfigError
from labelwright.methods import cvs_frozen
from labelwright.methods.baselines import ce, class_balanced, la, ldam, vs
from labelwright.methods.baselines.labelled_frozen import DeferredSettings, WeightedSettings
from labelwright.methods.frozen_heads import Fit, FrozenRecipe, FrozenSettings, Labelled, balanced_accuracy
from labelwright.train.cross_validation import PENALTIES

FAMILY: Mapping[str, Callable[[], tuple[FrozenRecipe, Any]]] = {
    "la": lambda: (la.FROZEN, la.FrozenConfig()),
    "vs": lambda: (vs.FROZEN, vs.FrozenConfig()),
    "cvs": lambda: (cvs_frozen.RECIPE, cvs_frozen.Config()),
    "class_balanced": lambda: (class_balanced.FROZEN, WeightedSettings()),
    "ldam_drw": lambda: (ldam.FROZEN, ldam.FrozenConfig(drw_from_frac=0.8)),
    "ce": lambda: (ce.FROZEN, DeferredSettings()),
}
"""Name -> recipe and settings."""


@dataclass(frozen=True, kw_only=True)
class Config(FrozenSettings):
    """Settings of the choice."""

    family: tuple[str, ...] = ("la", "vs", "cvs", "class_balanced", "ldam_drw")  # which losses are tried

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.family if name not in FAMILY]
        if unknown or not self.family:
            raise ConfigError(
                f"family={','.join(self.family)} is not possible", fix=f"one or more of {', '.join(FAMILY)}"
            )


def fit(cfg: Config, data: Labelled) -> Fit:
    """Lines 1 and 2."""
    fits: dict[str, Fit] = {}
    scores: dict[str, float] = {}
    for name in cfg.family:
        recipe, own = FAMILY[name]()
        fits[name] = found = recipe.fit(replace(own, penalty=cfg.penalty), data)
        if found.validated is not None:
            scores[name] = round(balanced_accuracy(found.validated, data.labels), 5)
            if cfg.penalty is None and name == cfg.family[0]:
                at = PENALTIES.index(found.penalty)
                near = PENALTIES[max(0, at - 2) : at + 2]
                data = replace(data, penalties=near, start=found.validated.heads)
    chosen = max(fits, key=lambda name: scores.get(name, 0.0))  # the first of those that are level
    logs = {**fits[chosen].logs, "chosen": chosen, "left_out_scores": scores}
    return replace(fits[chosen], logs=logs, chosen={"family": cfg.family.index(chosen)})


RECIPE = FrozenRecipe(Config, fit)
