"""Methods that find classes nobody named, from labelled and unlabelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

import numpy as np

from labelwright.labels.clusters import about_clusters
from labelwright.methods.method import Budget, Method, Outcome, Requires, in_time, views_by_model, views_per_image
from labelwright.metrics.scores import open_scores, truth_beyond
from labelwright.reporting.panels import novel_sections
from labelwright.train.plans import steps_for
from labelwright.types import Recipe

HEAD_STEPS = 500
"""Steps of a run without ``epochs`` that learns a head on stored features, and at least `EPOCHS_MIN` epochs."""

EPOCHS_MIN = 10

N_VIEWS = 3
"""Of each image in an epoch."""


def of_novel(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    more = {"default_views": views_by_model, "schedule": schedule, "summarise": summarise, "sections": novel_sections}
    more |= {"passes": views_per_image(N_VIEWS)}
    return Method(title, recipe, Requires(labels=True, novel=True), **{**more, **own})


def schedule(cfg: Any, budget: Budget, given: Container[str]) -> Any:
    """`HEAD_STEPS` on stored features; of pixels as many epochs as there is time for; at least `EPOCHS_MIN`."""
    if "epochs" in given:
        return cfg
    if not budget.is_stored:
        return in_time(cfg, budget, N_VIEWS * budget.n_images, least=EPOCHS_MIN)
    n_epochs = round(HEAD_STEPS / steps_for(budget.n_images, cfg.batch_size))
    return dataclasses.replace(cfg, epochs=min(cfg.epochs, max(EPOCHS_MIN, n_epochs)))


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
