"""Methods that find classes nobody named, from labelled and unlabelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any

import numpy as np

from labelwright.labels.clusters import about_clusters
from labelwright.methods.families.labels import CPU_IMAGES
from labelwright.methods.method import Budget, Method, Outcome, Requires, views_by_model
from labelwright.metrics.scores import open_scores, truth_beyond
from labelwright.reporting.open_world import evidence_figures, found_words, open_world_section, pace_figures
from labelwright.reporting.sections import Sections
from labelwright.reporting.thumbnails import read_thumbnails
from labelwright.run_folder import Run
from labelwright.train.plans import steps_for
from labelwright.types import Recipe

HEAD_STEPS = 500
"""Steps of a run without ``epochs`` that learns a head on stored features, and at least `EPOCHS_MIN` epochs."""

EPOCHS_MIN = 10


def of_novel(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    more = {"default_views": views_by_model, "schedule": schedule, "summarise": summarise, "sections": sections}
    return Method(title, recipe, Requires(labels=True, novel=True), **{**more, **own})


def schedule(cfg: Any, budget: Budget, given: Container[str]) -> Any:
    """`HEAD_STEPS` on stored features; on a CPU as many epochs as make up `CPU_IMAGES` views."""
    if "epochs" in given:
        return cfg
    if budget.is_stored:
        n_epochs = round(HEAD_STEPS / steps_for(budget.n_images, cfg.batch_size))
    elif budget.is_cpu:  # three views of each image
        n_epochs = round(CPU_IMAGES / (3 * max(1, budget.n_images)))
    else:
        return cfg
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


def sections(run: Run) -> Sections:
    """The discovered classes, the evidence for their number, and the pace of seen and novel ones."""
    words = found_words(run)
    return Sections(
        figures={"evidence": evidence_figures(run), "pace": pace_figures(run)},
        content={"open_world": open_world_section(run, read_thumbnails(run.path))},
        found=(words,) if words else (),
    )
