"""Methods that train on labelled images alone."""

from __future__ import annotations

from typing import Any

from labelwright.methods.families import text
from labelwright.methods.method import Budget, Method, Outcome, Requires, passes_of_labelled, schedule_by
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
    more: dict[str, Any] = {"requires": Requires(labels=True), "schedule": schedule, "summarise": beside_the_names}
    return Method(title, recipe, **{"sections": names_sections, **more, **own})


def of_all_images(title: str, recipe: Recipe) -> Method:
    """A method of this family that sees unlabelled images, too."""
    of_both = schedule_by(passes_per_epoch, _on_all, least=EPOCHS_MIN)
    return of_labels(title, recipe, schedule=of_both, passes=passes_per_epoch)


def _on_labelled(cfg: Any, budget: Budget) -> int:
    return max(EPOCHS_MIN, round(CPU_FEATURES / max(1, budget.n_labelled)) if budget.is_cpu else cfg.epochs)


schedule = schedule_by(passes_of_labelled, _on_labelled, least=EPOCHS_MIN)
"""Of a run that learns from labelled images alone."""


def _on_all(cfg: Any, budget: Budget) -> int:
    return max(EPOCHS_MIN, round(HEAD_STEPS / steps_for(budget.n_images, cfg.batch_size * cfg.unlabelled_ratio)))


def beside_the_names(outcome: Outcome) -> dict[str, Any]:
    """What the class names alone answer, where a text model reads them."""
    return {} if outcome.ask is None else text.summarise(outcome)
