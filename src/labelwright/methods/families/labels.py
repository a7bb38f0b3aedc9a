"""Methods that train on labelled images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from labelwright.methods.families import text
from labelwright.methods.method import Budget, Method, Outcome, Requires, in_time
from labelwright.methods.semi_supervised import passes_per_epoch
from labelwright.reporting.charts import slope_figures
from labelwright.reporting.sections import Sections
from labelwright.run_folder import Run
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
            "sections": sections,
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


def sections(run: Run) -> Sections:
    """Slopes, of a method that has any; pseudo-labels before and after, where a text model reads the names.

    Of a head that was solved on features, how labelled images were answered that were left out.
    """
    own = text.sections(run)
    return dataclasses.replace(
        own, figures={**own.figures, "slopes": slope_figures(run)}, found=(*own.found, *left_out_words(run))
    )


def left_out_words(run: Run) -> tuple[str, ...]:
    """One sentence on labelled images that were left out of a fit, where the first record of the run says how they did.

    Example:
      >>> from types import SimpleNamespace
      >>> begun = {"kind": "begin", "left_out_balanced_accuracy": 0.85, "left_out_scores": {"la": 0.85, "vs": 0.8}}
      >>> left_out_words(SimpleNamespace(records=[begun | {"chosen": "la"}]))[0]
      'Labelled images that were left out: la is right on 85.0%, vs 80.0%, as a mean over the classes; la was taken.'
    """
    begun = next((record for record in run.records if record["kind"] == "begin"), {})
    if "left_out_balanced_accuracy" not in begun:
        return ()
    scores = begun.get("left_out_scores", {"the classifier": begun["left_out_balanced_accuracy"]})
    (first, score), *others = scores.items()
    words = "".join(f", {name} {100 * value:.1f}%" for name, value in others)
    taken = f"; {begun['chosen']} was taken" if "chosen" in begun else ""
    return (
        f"Labelled images that were left out: {first} is right on {100 * score:.1f}%{words}, as a mean over the "
        f"classes{taken}.",
    )
