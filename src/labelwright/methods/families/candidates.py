"""Methods that learn from candidate labels: those of the data, or those that an annotator gives before training."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelwright.annotators.annotator import truth_of
from labelwright.annotators.candidate_rules import describe_candidates
from labelwright.annotators.reliability import reliability_of
from labelwright.annotators.training_candidates import summary_of
from labelwright.data.table import LabelTable
from labelwright.labels.annotations import Annotations
from labelwright.methods.families import text
from labelwright.methods.method import (
    Method,
    Outcome,
    Requires,
    epochs_of,
    schedule_by,
    views_by_model,
    views_per_image,
)
from labelwright.metrics.scores import guess_counts
from labelwright.reporting.panels import candidate_sections, names_sections
from labelwright.reporting.sections import Sections
from labelwright.run_folder import Run
from labelwright.types import Recipe

HEAD_STEPS = 1_500
"""Steps of a run without ``epochs`` that learns a head on stored features, and at least `HEAD_EPOCHS_MIN` epochs."""

HEAD_EPOCHS_MIN = 20
PIXEL_EPOCHS_MIN = 15
"""Of a run from pixels, however little time there is."""

N_VIEWS = 8
"""Two networks see four views of each image."""


def of_candidates(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    more = {"default_views": views_by_model, "summarise": summarise, "sections": sections, "templates": "photo27"}
    passes = own.pop("passes", views_per_image(N_VIEWS))
    on_features = epochs_of(HEAD_STEPS, least=HEAD_EPOCHS_MIN)
    more |= {"schedule": schedule_by(passes, on_features, least=PIXEL_EPOCHS_MIN), "passes": passes}
    return Method(title, recipe, Requires(candidates=True), **{**more, **own})


def on_frozen_features(table: LabelTable) -> str:
    """What learns from these candidates on stored features: `crowd` from answers, votes and sets, which tell how far to
    trust them; `coreg_frozen` from what a model thinks, whose mistakes repeat what the features show.
    """
    return "crowd" if Annotations(table.task()).kind in ("answers", "votes", "sets") else "coreg_frozen"


def summarise(outcome: Outcome) -> dict[str, Any]:
    """What the images may be and who guessed it, against labels or truth, which nobody learned from; pseudo-labels."""
    table, n_classes = outcome.train, len(outcome.train.class_names)
    assert table.candidates is not None
    hidden = None if table.truth is None else np.where(table.labels < 0, table.truth, -1)
    return {
        "candidates": describe_candidates(table.candidates, n_classes=n_classes, truth=truth_of(table)),
        "crowd": reliability_of(table),
        "annotator": None if outcome.guesses is None else summary_of(outcome.guesses),
        "guesses": guess_counts(table.candidates, n_classes=n_classes, truth=hidden),
        **text.summarise(outcome),
    }


def sections(run: Run) -> Sections:
    """The guesses and what became of them; names, where a text model reads them."""
    own, names = candidate_sections(run), names_sections(run)
    return Sections([*own.panels, *names.panels], [*own.training, *names.training])
