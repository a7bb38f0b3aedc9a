"""Methods that read class names with a vision-language model."""

from __future__ import annotations

from typing import Any

import torch

from labelwright.methods.method import Method, Outcome, Requires, views_of_features
from labelwright.metrics.scores import pseudolabel_scores, scores_of
from labelwright.reporting.panels import names_sections
from labelwright.types import Recipe


def of_text(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    more = {"default_views": views_of_features, "summarise": summarise, "sections": names_sections}
    return Method(title, recipe, **{"requires": Requires(text=True), **more, **own})


def summarise(outcome: Outcome) -> dict[str, Any]:
    """What the class names alone score, and the pseudo-labels before and after.

    Returns: ``zero_shot`` (as ``test``; None without test images or a text model) and ``pseudolabels``: ratio, Gini and
      counts of the unlabelled images, and where their truth is known accuracy and per_class, after and, with a text
      model, before (``zero_shot``).
    """
    train, test, ask = outcome.train, outcome.test, outcome.ask
    scores = None if test is None or ask is None else scores_of(ask("test"), test.labels, train.counts())
    found: dict[str, Any] = {"zero_shot": scores, "pseudolabels": None}
    hidden = torch.from_numpy(train.labels < 0)
    if hidden.any():
        before = {} if ask is None else {"zero_shot": pseudolabel_scores(ask("train"), train, hidden)}
        found["pseudolabels"] = pseudolabel_scores(outcome.own, train, hidden) | before
    return found
