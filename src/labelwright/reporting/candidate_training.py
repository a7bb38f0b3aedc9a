"""How learning from candidate labels went, for a report: trust, agreement, parts of the loss, what was deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labelwright.reporting.charts import PERCENT, Curve, Figure, finite, line_figure, over_epochs
from labelwright.run_folder import Run
from labelwright.wording import percent

SHARES = {
    "reliable_frac": "guesses trusted",
    "trusted_frac": "guesses trusted",
    "in_set_frac": "answers that are among the guesses",
    "inside_frac": "answers that are among the guesses",
    "network_agreement": "images on which the two networks agree",
}
"""Shares logged after each epoch, in plain words; the first of two with the same words is shown."""

PARTS = {
    "partial_loss": "any of the guesses",
    "loss_p": "trusted guesses",
    "loss_u": "the other images",
    "loss_prototypes": "class centres",
    "loss_contrastive": "pairs of images",
    "classification": "labels",
    "contrastive": "pairs of images",
}
"""Parts of the loss, in plain words."""


def division_figures(run: Run) -> list[Figure]:
    """Shares of trusted guesses and of agreement, likeness of the class centres, parts of the loss, over epochs.

    Example:
      >>> epochs = [{"epoch": e, "reliable_frac": 0.5 + e / 10} for e in range(3)]
      >>> summary = {"candidates": {"n_images": 3}}
      >>> [figure.alt for figure in division_figures(Run("run", summary=summary, data={}, epochs=epochs))]
      ['Line chart over epoch: guesses trusted from 0.5 to 0.7.']
    """
    if not run.summary.get("candidates"):
        return []
    figures = []
    curves: dict[str, Curve] = {}
    for key, words in SHARES.items():
        found = _curve(run, key)
        if found is not None and words not in curves:
            curves[words] = found
    if curves:
        axis = {**PERCENT, "range": [0, 1.03]}
        title = "Guesses and answers" if len(curves) > 1 else next(iter(curves)).capitalize()
        figures.append(line_figure(title, "epoch", "share of the images", curves, y=axis))
        figures[0].layout["height"] = 380 if len(curves) > 1 else 320  # long words in the legend
    alike = _curve(run, "prototype_cosine", skip=0.0)  # exactly 0: none are there yet
    if alike is not None:
        axis = {"range": [min(0.0, *alike[1]), 1.03]}
        title = "Likeness of the class centres"
        figures.append(line_figure(title, "epoch", "mean cosine, 1 = all alike", {title: alike}, y=axis))
    parts = {words: found for key, words in PARTS.items() if (found := _curve(run, key)) is not None}
    if len(parts) > 1:
        figures.append(line_figure("Parts of the loss", "epoch", "loss", parts, y={"rangemode": "tozero"}))
    return figures


def curve_notes(run: Run) -> list[str]:
    """How to read the charts of `division_figures` that there are.

    Example:
      >>> epochs = [{"epoch": e, "inside_frac": 0.5} for e in range(2)]
      >>> curve_notes(Run("run", summary={"candidates": {"n_images": 3}}, data={}, epochs=epochs))
      ['An answer that is not among the guesses is a correction, or a mistake.']
    """
    figures = division_figures(run)
    drawn = {trace["name"] for figure in figures for trace in figure.data}
    notes = {
        SHARES["reliable_frac"]: "A guess is trusted when what the model sees agrees with it.",
        SHARES["in_set_frac"]: "An answer that is not among the guesses is a correction, or a mistake.",
    }
    found = [words for curve, words in notes.items() if curve in drawn]
    has_parts = any(figure.title == "Parts of the loss" for figure in figures)
    return found + (["The loss jumps where a part of it sets in or ends; that is no failure."] if has_parts else [])


def _curve(run: Run, key: str, *, skip: float | None = None) -> Curve | None:
    """A number over epochs, the mean over networks where each logs its own; None with fewer than two.

    Values that are exactly ``skip`` are left out.
    """

    def mean(record: Mapping[str, Any]) -> float | None:
        own = [finite(record.get(name)) for name in ((key,) if key in record else (f"{key}_main", f"{key}_peer"))]
        known = [each for each in own if each is not None]
        return sum(known) / len(known) if known else None

    start, *values = (None if y == skip else y for y in (finite(run.begun.get(key)), *map(mean, run.epochs)))
    found = over_epochs(run, values, start=start)
    return found if len(found[0]) > 1 else None


def deployed_words(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of Co-Reg was saved, and its score; no words for a run that does not say.

    Args:
      epochs: records of the epochs.

    Example:
      >>> deployed_words([{"deployed": "sum", "score_deployed": 0.75}])[0]
      'Two networks were trained; both were saved, and their answers are summed.'
    """
    last = next((record for record in reversed(epochs) if record.get("deployed")), None)
    if last is None:
        return []
    how = {
        "sum": "Two networks were trained; both were saved, and their answers are summed.",
        "one": "The one network that was trained was saved.",
        "annotator": "The annotator's own classifier was saved, not what was trained: it fits the images better.",
    }
    words = [how.get(str(last["deployed"]), f"Saved: {last['deployed']}.")]
    reached, start = finite(last.get("score_deployed")), finite(last.get("score_guesses"))
    if reached is not None and start is not None:
        words.append(
            "Score, found without any label: how well answers agree with groups of images that look alike "
            f"(0 not at all, 1 fully). The guesses: {start:.3f}; the trained network: {reached:.3f}."
        )
    elif reached is not None:
        words.append(
            f"Score, found without any label: {percent(reached)} of its answers are among the image's guesses."
        )
    return words
