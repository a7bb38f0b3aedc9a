"""Before and after, class by class: what the class names alone answer, and what the trained model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from labelwright.metrics.classification import imbalance
from labelwright.reporting.charts import (
    AFTER,
    BEFORE,
    LEGEND_ON_TOP,
    MAX_NAMED,
    PERCENT,
    Figure,
    axes_layout,
    count_figures,
    plain_text,
    rows_layout,
)
from labelwright.reporting.class_rows import class_rows
from labelwright.run_folder import Run
from labelwright.wording import number, percent

MAX_HALF = 12  # classes that fit beside another chart


def pseudolabel_summary(run: Run) -> list[tuple[str, str, str]]:
    """(what, by class names alone, by this model) of the labels given to unlabelled images; nothing without them.

    Example:
      >>> found = {"counts": [6, 4], "accuracy": 0.9, "zero_shot": {"counts": [10, 0], "accuracy": 0.6}}
      >>> for row in pseudolabel_summary(Run("run", summary={"pseudolabels": found}, data={})):
      ...     print(*row, sep=" | ")
      Right, where the truth is known | 60.0% | 90.0%
      Largest to smallest class | 1 class is empty | 1.5 to 1
      Gini coefficient (0 even, near 1 all in one class) | 0.50 | 0.10
    """
    after = run.summary.get("pseudolabels") or {}
    before = after.get("zero_shot") or {}
    if not after.get("counts") or not before.get("counts"):
        return []
    rows = []
    if before.get("accuracy") is not None and after.get("accuracy") is not None:
        rows.append(("Right, where the truth is known", percent(before["accuracy"]), percent(after["accuracy"])))
    uneven = [imbalance(found["counts"]) for found in (before, after)]
    rows.append(("Largest to smallest class", _ratio(uneven[0]), _ratio(uneven[1])))
    gini = [f"{each['gini']:.2f}" if each["gini"] is not None else "–" for each in uneven]
    return [*rows, ("Gini coefficient (0 even, near 1 all in one class)", gini[0], gini[1])]


def pseudolabel_rows(run: Run) -> list[dict[str, Any]]:
    """Per class: pseudolabels and the share of them that is right, before and after; most pseudolabels first.

    Returns: C rows with the keys name, before, after (images), right_before, right_after (recall among the images of
      the class, None where not known); nothing without pseudolabels.

    Example:
      >>> found = {"counts": [1, 9], "zero_shot": {"counts": [8, 2]}}
      >>> run = Run("run", summary={"pseudolabels": found}, data={"class_names": ["a", "b"]})
      >>> [(row["name"], row["before"], row["after"]) for row in pseudolabel_rows(run)]
      [('b', 2, 9), ('a', 8, 1)]
    """
    after = run.summary.get("pseudolabels") or {}
    before = after.get("zero_shot") or {}
    names = run.class_names
    n = len(names)
    if not n or len(after.get("counts") or ()) != n or len(before.get("counts") or ()) != n:
        return []
    right = [found.get("per_class") or [None] * n for found in (before, after)]
    table = zip(names, before["counts"], after["counts"], *right, strict=True)
    keys = ("name", "before", "after", "right_before", "right_after")
    rows = [dict(zip(keys, row, strict=True)) for row in table]
    return sorted(rows, key=lambda row: -row["after"])


def pseudolabel_figures(run: Run) -> list[Figure]:
    """Pseudolabels per class before and after, and how many of each class's images they find.

    Example:
      >>> found = {"counts": [1, 9], "zero_shot": {"counts": [8, 2]}}
      >>> run = Run("run", summary={"pseudolabels": found}, data={"class_names": ["a", "b"]})
      >>> [figure.alt for figure in pseudolabel_figures(run)]
      ['Bar chart of 2 classes, zero-shot and this model: images from 2 to 8 before, from 1 to 9 after.']
    """
    rows = pseudolabel_rows(run)
    if not rows:
        return []
    names = [row["name"] for row in rows]
    figures = [
        _pair_figure(
            "Pseudolabels per class, most first",
            names,
            [row["before"] for row in rows],
            [row["after"] for row in rows],
            what="images",
        )
    ]
    known = [row for row in rows if row["right_before"] is not None or row["right_after"] is not None]
    if known:
        title = "Images of each class that got the right pseudolabel"
        right = [[row[key] for row in known] for key in ("right_before", "right_after")]
        names = [row["name"] for row in known]
        figures.append(_pair_figure(title, names, right[0], right[1], what="share right", is_share=True))
    return figures


def compared_class_figures(run: Run) -> list[Figure]:
    """Test accuracy of each class by its name alone and by this model; nothing for a run without the former.

    Example:
      >>> summary = {"test": {"per_class": [1.0, 0.5]}, "zero_shot": {"per_class": [1.0, None]}}
      >>> run = Run("run", summary=summary, data={"class_names": ["a", "b"]})
      >>> [figure.title for figure in compared_class_figures(run)]
      ['Accuracy per class on the test images']
    """
    rows = [row for row in class_rows(run) if row["recall"] is not None]
    if not rows or all(row["zero_shot"] is None for row in rows):
        return []
    title = "Accuracy per class on the test images"
    title += ", most labelled training images first" if rows[0]["count"] else ""
    before, after = [row["zero_shot"] for row in rows], [row["recall"] for row in rows]
    return [_pair_figure(title, [row["name"] for row in rows], before, after, what="accuracy", is_share=True)]


def _pair_figure(
    title: str,
    names: Sequence[str],
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    what: str,
    is_share: bool = False,
) -> Figure:
    """Two bars per class, by class names alone and by this model; ``what`` the values are, for the axis."""
    show = percent if is_share else number
    spans = []
    for values, when in ((before, "before"), (after, "after")):
        known = [value for value in values if value is not None]
        spans += [f"from {show(min(known))} to {show(max(known))} {when}"] if known else []
    alt = f"Bar chart of {len(names)} classes, zero-shot and this model: {what} {', '.join(spans)}."
    series = {"zero-shot": (before, BEFORE), "this model": (after, AFTER)}
    data, layout = named_bars(names, series, what=what, is_share=is_share)
    return Figure(title, alt, data, layout, is_wide=len(names) > MAX_HALF)


def labelled_figures(run: Run) -> list[Figure]:
    """Labelled images per class, as `charts.count_figures`; of a vision-language model with names in full.

    Where every class has the same few labels there is nothing to see, and no chart.

    Example:
      >>> data = {"class_names": ["a", "b"], "train_counts": [2, 2]}
      >>> labelled_figures(Run("run", summary={"zero_shot": None}, data=data))
      []
    """
    figures, names, counts = count_figures(run), run.class_names, run.counts
    if not figures or "zero_shot" not in run.summary:
        return figures
    if min(counts) == max(counts):
        return []
    if MAX_HALF < len(names) <= MAX_NAMED:
        data, layout = named_bars(names, {"labelled images": (counts, AFTER)}, what="images")
        figures[0] = replace(figures[0], data=data, layout=layout, is_wide=True)
    return figures


def named_bars(
    names: Sequence[str],
    series: Mapping[str, tuple[Sequence[float | None], str]],
    *,
    what: str,
    is_share: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """plotly's data and layout of bars, lying, with all names beside them; standing where the names are too many.

    Args:
      names: C names, in the order shown.
      series: what it is -> (C values, their colour).
      what: the values are, for the axis.
      is_share: they are shares 0 to 1, shown in percent.
    """
    is_named = len(names) <= MAX_NAMED
    texts = [plain_text(name) for name in names]
    along, across = ("x", "y") if is_named else ("y", "x")
    data = []
    for name, (values, colour) in series.items():
        bars: dict[str, Any] = {"type": "bar", "name": name, across: list(range(len(names))), along: list(values)}
        bars |= {"customdata": texts, "marker": {"color": colour}, "orientation": "h" if is_named else "v"}
        bars["hovertemplate"] = f"%{{customdata}}: %{{{along}:{'.1%' if is_share else ',.0f'}}} {name}<extra></extra>"
        if is_named:  # the number at the end of its bar
            bars |= {"texttemplate": f"%{{x:{'.0%' if is_share else ',.0f'}}}", "textposition": "outside"}
            bars |= {"cliponaxis": False, "textfont": {"size": 10}}
        data.append(bars)
    known = [value for values, _ in series.values() for value in values if value is not None]
    largest = 1.0 if is_share else max(known, default=1) or 1
    axis: dict[str, Any] = {**(PERCENT if is_share else {}), "range": [0, largest * 1.12]}
    if is_named:
        layout = rows_layout(what, names, x=axis)
    else:
        layout = axes_layout("", what, names=names, y=axis)
        layout |= {"height": 360, "margin": {"l": 12, "r": 24, "t": 36, "b": 48}, "legend": LEGEND_ON_TOP}
    return data, layout | {"showlegend": len(series) > 1}


def _ratio(uneven: Mapping[str, Any]) -> str:
    if uneven["ratio"] is None:
        return f"{uneven['n_empty']} {'class is' if uneven['n_empty'] == 1 else 'classes are'} empty"
    ratio = uneven["ratio"]
    return f"{ratio:,.1f} to 1" if ratio < 10 else f"{ratio:,.0f} to 1"
