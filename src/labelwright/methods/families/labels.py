"""Methods that train on labelled images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from labelwright.methods.families import text
from labelwright.methods.method import Budget, Method, Outcome, Requires, in_time
from labelwright.methods.semi_supervised import passes_per_epoch
from labelwright.reporting.panels import names_sections
from labelwright.train.plans import steps_for
from labelwright.types import Recipe

CPU_FEATURES = 3_000_000
"""Stored features that a run without ``epochs`` passes through a head on a CPU: a minute for a linear one."""

HEAD_STEPS = 1_500
"""Steps of a head on stored features that learns from unlabelled ones, too."""

EPOCHS_MIN = 5
"""Of a run from pixels, however little time there is."""


def of_labels(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    return Method(
        title,
        recipe,
        **{
            "requires": Requires(labels=True),
            "schedule": schedule,
            "summarise": beside_the_names,
            "sections": names_sections,
            **own,
        },
    )


def schedule(cfg: Any, budget: Budget, given: Container[str]) -> Any:
    """As many epochs as there is time for; on a CPU `CPU_FEATURES` stored features; at least `EPOCHS_MIN`."""
    if "epochs" in given:
        return cfg
    if not budget.is_stored:
        return in_time(cfg, budget, budget.n_labelled, least=EPOCHS_MIN)
    n_epochs = round(CPU_FEATURES / max(1, budget.n_labelled)) if budget.is_cpu else cfg.epochs
    return dataclasses.replace(cfg, epochs=min(cfg.epochs, max(EPOCHS_MIN, n_epochs)))


def schedule_of_all(cfg: Any, budget: Budget, given: Container[str]) -> Any:
    """Of methods that see unlabelled images, too: as there is time for; `HEAD_STEPS` on stored features."""
    if "epochs" in given:
        return cfg
    if not budget.is_stored:
        return in_time(cfg, budget, passes_of_all(cfg, budget), least=EPOCHS_MIN)
    n_epochs = round(HEAD_STEPS / steps_for(budget.n_images, cfg.batch_size * cfg.unlabelled_ratio))
    return dataclasses.replace(cfg, epochs=min(cfg.epochs, max(EPOCHS_MIN, n_epochs)))


def passes_of_all(cfg: Any, budget: Budget) -> float:
    """Of methods that see unlabelled images, too."""
    return passes_per_epoch(cfg, budget.n_images)


def beside_the_names(outcome: Outcome) -> dict[str, Any]:
    """What the class names alone answer, where a text model reads them."""
    return {} if outcome.ask is None else text.summarise(outcome)
