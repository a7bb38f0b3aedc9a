"""Methods that train on labelled images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

from labelwright.methods.families import text
from labelwright.methods.method import Budget, Method, Outcome, Requires
from labelwright.reporting.charts import slope_figures
from labelwright.reporting.sections import Sections
from labelwright.run_folder import Run
from labelwright.types import Recipe

CPU_IMAGES = 300_000
"""Images that a run without ``epochs`` passes through the network on a CPU: 5 minutes for a ResNet-32 on 2 cores."""

CPU_FEATURES = 3_000_000
"""The same of stored features: a minute for a linear head."""

EPOCHS_MIN = 5


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
    """On a CPU as many epochs as make up `CPU_IMAGES` images, or `CPU_FEATURES` features, at least `EPOCHS_MIN`."""
    if "epochs" in given or not budget.is_cpu:
        return cfg
    n_epochs = round((CPU_FEATURES if budget.is_stored else CPU_IMAGES) / max(1, budget.n_labelled))
    return dataclasses.replace(cfg, epochs=min(cfg.epochs, max(EPOCHS_MIN, n_epochs)))


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
