"""Methods that find classes nobody named, from labelled and unlabelled images."""

from __future__ import annotations

from typing import Any

import numpy as np

from labelwright.labels.clusters import about_clusters
from labelwright.methods.method import (
    Method,
    Outcome,
    Requires,
    epochs_of,
    schedule_by,
    views_by_model,
    views_per_image,
)
from labelwright.metrics.scores import open_scores, truth_beyond
from labelwright.reporting.panels import novel_sections
from labelwright.types import Recipe

HEAD_STEPS = 500
"""Steps of a run without ``epochs`` that learns a head on stored features, and at least `EPOCHS_MIN` epochs."""

EPOCHS_MIN = 10

N_VIEWS = 3
"""Of each image in an epoch."""


passes = views_per_image(N_VIEWS)
schedule = schedule_by(passes, epochs_of(HEAD_STEPS, least=EPOCHS_MIN), least=EPOCHS_MIN)


def of_novel(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    more = {"default_views": views_by_model, "schedule": schedule, "summarise": summarise, "sections": novel_sections}
    more |= {"passes": passes}
    return Method(title, recipe, Requires(labels=True, novel=True), **{**more, **own})


def summarise(outcome: Outcome) -> dict[str, Any]:
    """Discovered classes, how their number came about, and the scores of unlabelled images whose truth is known."""
    table, n_seen = outcome.train, len(outcome.task.class_names)
    clusters = about_clusters(table, outcome.own, outcome.feats(), n_seen=n_seen, words=outcome.words)
    found: dict[str, Any] = {
        "n_seen": n_seen,
        "n_novel": outcome.task.n_novel,
        "novel": {"evidence": outcome.evidence, "clusters": clusters},
        "pseudolabels": None,
    }
    truth, names = truth_beyond(table, n_seen)
    truth = np.where(table.labels < 0, truth, -1)
    if (truth >= 0).any():
        found["pseudolabels"] = open_scores(outcome.own, truth, names, n_seen=n_seen)
    return found
