"""Methods that read class names with a vision-language model."""

from __future__ import annotations

from typing import Any

import torch

from labelwright.methods.method import Method, Outcome, Requires, views_of_features
from labelwright.metrics.scores import pseudolabel_scores, scores_of
from labelwright.reporting.before_after import pseudolabel_figures, pseudolabel_rows, pseudolabel_summary
from labelwright.reporting.sections import Sections
from labelwright.reporting.vision_language import kept_epoch, margin_figures, margin_rows, name_fit, watch_figures
from labelwright.run_folder import Run
from labelwright.types import Recipe


def of_text(title: str, recipe: Recipe, **own: Any) -> Method:
    """A method of this family."""
    return Method(
        title,
        recipe,
        **{
            "requires": Requires(text=True),
            "default_views": views_of_features,
            "summarise": summarise,
            "sections": sections,
            **own,
        },
    )


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


def sections(run: Run) -> Sections:
    """Which names fit, pseudo-labels before and after, the diagnostics of training, margins."""
    fit = name_fit(run)
    found: tuple[str, ...] = ()
    if fit is not None and fit.n_mismatched:
        n_all, is_one = len(fit.changed) + len(fit.kept), fit.n_mismatched == 1
        found = (f"{fit.n_mismatched:,} of {n_all:,} class names {'fits' if is_one else 'fit'} no image: see below.",)
    return Sections(
        figures={
            "watch": watch_figures(run),
            "margins": margin_figures(run),
            "pseudolabels": pseudolabel_figures(run),
        },
        content={
            "names": fit,
            "margins": margin_rows(run),
            "kept_epoch": kept_epoch(run),
            "pseudolabels": pseudolabel_summary(run),
            "pseudolabel_rows": pseudolabel_rows(run),
        },
        found=found,
    )
