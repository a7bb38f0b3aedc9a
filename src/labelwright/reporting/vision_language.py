"""What a report shows of a run that began with class names: names that fit no image, how training went, margins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from labelwright.metrics.classification import imbalance
from labelwright.reporting.charts import (
    AFTER,
    PERCENT,
    Figure,
    axes_layout,
    finite,
    line_figure,
    marked,
    plain_text,
    wrapped_text,
)
from labelwright.run_folder import Run
from labelwright.wording import number

MAX_MARGINS = 30  # classes of the chart of margins
CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("imbalance_ratio", "Pseudolabels, largest to smallest class", "largest / smallest", {"rangemode": "tozero"}),
    ("gini", "Pseudolabels, Gini coefficient", "0 even, near 1 all in one class", {"rangemode": "tozero"}),
    ("cluster_agreement", "Agreement with clusters of the images", "normalised mutual information", {}),
    ("sure_frac", "Images classified with enough confidence", "share of the images", PERCENT),
    ("main_set", "Main set", "images", {"rangemode": "tozero"}),
)
"""(key of the epoch records, title, what the y axis says, its settings)"""


# ---- class names that fit no image ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NameFit:
    """How well the class names fit the images.

    Attributes:
      changed: rows of the classes whose name fits no image, or gave way to a description, least evidence first; with
        the keys name, evidence (0 to 1, None if not known), used (what stands in for the name), is_guess,
        is_contradicted (by the class's labelled images) and refused (descriptions not taken).
      kept: rows (name, evidence) of the others.
      n_mismatched: classes whose name fits no image.
    """

    changed: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    n_mismatched: int


def name_fit(run: Run) -> NameFit | None:
    """Which class names fit no image and what took their place; None for a run that did not look.

    Example:
      >>> begin = {"mismatched": ["owl"], "evidence": [0.9, 0.1], "unrepaired": ["owl"], "guessed": ["owl"]}
      >>> run = Run("run", summary={}, data={"class_names": ["cat", "owl"]}, begun=begin)
      >>> [(row["name"], row["used"]) for row in name_fit(run).changed]
      [('owl', 'The images left over, which are a class of their own')]
    """
    begin = run.begun
    if "mismatched" not in begin:
        return None
    names = [str(name) for name in begin.get("class_names") or run.class_names]
    evidence = begin.get("evidence") or []
    known = [finite(value) for value in evidence] if len(evidence) == len(names) else [None] * len(names)
    keys = ("mismatched", "contradicted", "unrepaired", "descriptions", "rejected")
    concerned = {name for key in keys for name in begin.get(key) or ()}
    rows = sorted(zip(names, known, strict=True), key=lambda row: 2.0 if row[1] is None else row[1])
    changed = [
        {
            "name": name,
            "evidence": value,
            "used": _stand_in(begin, name),
            "is_guess": name in (begin.get("guessed") or ()),
            "is_contradicted": name in (begin.get("contradicted") or ()),
            "refused": list((begin.get("rejected") or {}).get(name) or ()),
        }
        for name, value in rows
        if name in concerned
    ]
    kept = [{"name": name, "evidence": value} for name, value in rows if name not in concerned]
    return NameFit(changed, kept, len(begin["mismatched"]))


def _stand_in(begin: Mapping[str, Any], name: str) -> str:
    """What represents a class in place of its name, in words."""
    if name in (begin.get("guessed") or ()):
        return "The images left over, which are a class of their own"
    if name in (begin.get("placed") or ()):
        return "Its labelled images"
    if name in (begin.get("descriptions") or {}):
        return f"“{begin['descriptions'][name]}”"
    if name in (begin.get("unrepaired") or ()):
        return "Nothing: the name stays, though it fits no image"
    if name in begin["mismatched"]:
        return "Nothing: the name stays; after the other repairs it was no mismatch"
    return "Nothing: the name stays"


# ---- while training -------------------------------------------------------------------------------------------------


def watch_figures(run: Run) -> list[Figure]:
    """Imbalance, cluster agreement, sure images and main set over epochs, with the epoch whose state was kept.

    Example:
      >>> epochs = [{"epoch": e, "gini": 0.4 - e / 10} for e in range(3)]
      >>> [figure.alt for figure in watch_figures(Run("run", summary={}, data={}, epochs=epochs))]
      ['Line chart over epoch: Pseudolabels, Gini coefficient from 0.4 to 0.2.']
    """
    figures = []
    kept = kept_epoch(run)
    for key, title, y_title, axis in CURVES:
        x = [record.get("epoch", i) + 1 for i, record in enumerate(run.epochs) if key in record]
        y = [finite(record[key]) for record in run.epochs if key in record]
        start = _at_start(run, key)
        if start is not None and y:
            x, y = [0, *x], [start, *y]
        known = [value for value in y if value is not None]
        if len(x) < 2 or not known:
            continue
        if key == "cluster_agreement" and max(known) - min(known) < 0.02:  # else noise would look like a trend
            middle = (max(known) + min(known)) / 2
            axis = {"range": [middle - 0.015, middle + 0.015], "tickformat": ".3f"}
        if key == "imbalance_ratio" and max(known) > 10 * max(min(known), 1e-9):
            axis, y_title = {"type": "log", "dtick": 1}, f"{y_title} (log scale)"
        figures.append(_marked(line_figure(title, "epoch", y_title, {title: (x, y)}, y=axis), kept))
    return figures


def kept_epoch(run: Run) -> int | None:
    """How many epochs the kept state has trained, 0 = none; None for a run that does not say.

    Example:
      >>> kept_epoch(Run("run", summary={}, data={}, epochs=[{"epoch": 0}, {"epoch": 1, "kept_epoch": 0}]))
      1
    """
    found = [record["kept_epoch"] for record in run.epochs if record.get("kept_epoch") is not None]
    return int(found[-1]) + 1 if found else None


def _at_start(run: Run, key: str) -> float | None:
    """A value of before the first epoch, where it means the same as those of the epochs."""
    if key in ("cluster_agreement", "main_set"):
        return finite(run.begun.get(key))
    counts = run.begun.get("aligned_counts")  # of unlabelled images; the epochs count all
    first = next((record["pseudo_counts"] for record in run.epochs if record.get("pseudo_counts")), None)
    if key not in ("imbalance_ratio", "gini") or not counts or first is None or sum(counts) != sum(first):
        return None
    return finite(imbalance(counts)["ratio" if key == "imbalance_ratio" else "gini"])


def _marked(figure: Figure, kept: int | None) -> Figure:
    """The figure with a dashed line at the epoch whose state was kept."""
    if kept is None:
        return figure
    last = max(x for trace in figure.data for x in trace["x"])
    when = f"after epoch {kept}" if kept else "from before training"
    alt = f"{figure.alt} The state {when} was kept."
    return replace(marked(figure, kept, "kept", is_right=kept > last / 2), alt=alt)


# ---- margins --------------------------------------------------------------------------------------------------------


def margin_rows(run: Run) -> list[dict[str, Any]]:
    """The largest margins at the end: (rare class, class it resembles, logits), largest first.

    Returns: rows with the keys rare, resembled, margin and odds (the factor by which a margin raises the odds that
      are asked for); zero margins are left out.

    Example:
      >>> epochs = [{"margin_pairs": [["cat", "dog", 0.7], ["dog", "cat", 0.0]]}]
      >>> [row] = margin_rows(Run("run", summary={}, data={}, epochs=epochs))
      >>> row["rare"], row["resembled"], round(row["odds"], 2)
      ('cat', 'dog', 2.01)
    """
    pairs: list[tuple[str, str, float]] = next(
        (r["margin_pairs"] for r in reversed(run.epochs) if r.get("margin_pairs")), []
    )
    rows = [
        {"rare": str(i), "resembled": str(j), "margin": float(value), "odds": math.exp(min(value, 700))}
        for i, j, value in pairs
        if value > 0
    ]
    return sorted(rows, key=lambda row: -row["margin"])


def margin_figures(run: Run) -> list[Figure]:
    """The largest margins as a table of colours; nothing without any.

    Example:
      >>> epochs = [{"margin_pairs": [["cat", "dog", 0.7]]}]
      >>> [figure.alt for figure in margin_figures(Run("run", summary={}, data={}, epochs=epochs))]
      ['Heat map of the largest margins: most cat against dog, 0.7.']
    """
    rows = margin_rows(run)
    rare: list[str] = []
    resembled: list[str] = []
    shown = []
    for row in rows:
        new = {row["rare"], row["resembled"]} - {*rare, *resembled}
        if len({*rare, *resembled}) + len(new) > MAX_MARGINS:
            break
        rare += [row["rare"]] if row["rare"] not in rare else []
        resembled += [row["resembled"]] if row["resembled"] not in resembled else []
        shown.append(row)
    if not shown:
        return []
    z: list[list[float | None]] = [[None] * len(resembled) for _ in rare]
    for row in shown:
        z[rare.index(row["rare"])][resembled.index(row["resembled"])] = row["margin"]
    hover = [[f"{plain_text(i)} against {plain_text(j)}" for j in resembled] for i in rare]
    heat: dict[str, Any] = {"type": "heatmap", "z": z, "customdata": hover, "xgap": 2, "ygap": 2, "hoverongaps": False}
    heat |= {"hovertemplate": "%{customdata}: %{z:.3g}<extra></extra>", "zmin": 0, "zmax": shown[0]["margin"]}
    heat |= {"colorscale": [[0, "#b9d9ec"], [1, AFTER]], "colorbar": {"title": {"text": "logits"}, "thickness": 12}}
    layout = axes_layout("", "", x={"side": "top"}) | {"height": 200 + 28 * len(rare)}
    for axis, names in (("xaxis", resembled), ("yaxis", rare)):
        layout[axis] |= {"tickmode": "array", "tickvals": list(range(len(names))), "showgrid": False, "zeroline": False}
    layout["xaxis"] |= {"tickangle": -60, "ticktext": [wrapped_text(name, 26) for name in resembled]}
    layout["yaxis"] |= {"range": [len(rare) - 0.5, -0.5], "ticktext": [plain_text(name) for name in rare]}
    small = {"ticktext": [wrapped_text(name) for name in rare], "tickfont": {"size": 11}}
    layout["meta"] = {"narrow": {"height": 200 + 42 * len(rare), "yaxis": small}}
    top = shown[0]
    alt = f"Heat map of the largest margins: most {top['rare']} against {top['resembled']}, {number(top['margin'])}."
    title = "Row: class that has too few pseudolabels. Column: class it must win against"
    return [Figure(title, alt, [heat], layout, is_wide=True, least_px=200 + 30 * len(resembled))]
