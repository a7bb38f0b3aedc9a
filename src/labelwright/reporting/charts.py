"""The charts of a report, as plotly takes them; a chart whose numbers the run did not write is left out."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labelwright.metrics.classification import GROUPS, imbalance
from labelwright.reporting.class_rows import class_rows
from labelwright.run_folder import Run
from labelwright.wording import number, percent

MAX_LINES = 12  # of a chart; more classes are shown as quantiles
MAX_NAMED = 60  # classes whose names stand at an axis; of more they are shown on hover
COLOURS = {"many": "#0072b2", "medium": "#e69f00", "few": "#d55e00", "": "#0072b2"}  # distinct to colour-blind eyes
BEFORE, AFTER = "#808080", "#0072b2"  # what training began with, and what it reached
PERCENT: dict[str, Any] = {"tickformat": ".0%", "rangemode": "tozero"}  # of an axis
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LEGEND_ON_TOP = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}


Curve = tuple[list[Any], list[Any]]
"""x and y of a line, of the same length."""


@dataclass(frozen=True)
class Figure:
    """One chart.

    Attributes:
      title: heading above it.
      alt: what a reader who cannot see it should know.
      data, layout: of plotly. ``layout["meta"]["narrow"]``, if there, replaces parts of the layout on narrow screens.
      is_wide: takes the width of the page, not of a column.
      least_px: width under which it is scrolled rather than squeezed; 0 = none.
    """

    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    is_wide: bool = False
    least_px: int = 0


def count_figures(run: Run) -> list[Figure]:
    """Labelled images per class, and the same from largest to smallest; nothing for a run without counts.

    Example:
      >>> run = Run("run", summary={}, data={"class_names": ["a", "b"], "train_counts": [20, 2]})
      >>> [figure.title for figure in count_figures(run)]
      ['Labelled images per class', 'Long-tail profile: largest to smallest 10 to 1, Gini 0.41']
    """
    names, counts = run.class_names, run.counts
    if not counts or len(names) != len(counts) or sum(counts) == 0:
        return []
    skew = imbalance(counts)
    ratio = f"largest to smallest {skew['ratio']:.0f} to 1" if skew["ratio"] else f"{skew['n_empty']} classes are empty"
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    bars = _bars(names, counts, hover="%{x}: %{y:,} images")
    profile = {
        "type": "scatter",
        "mode": "lines+markers" if len(counts) <= 50 else "lines",
        "x": list(range(1, len(counts) + 1)),
        "y": [counts[c] or None for c in order],
        "text": [plain_text(names[c]) for c in order],
        "hovertemplate": "%{text}: %{y:,} images<extra></extra>",
        "line": {"color": COLOURS[""]},
    }
    most, least = order[0], order[-1]
    is_log = (skew["ratio"] or math.inf) >= 10  # within one decade a log axis would have no tick
    scale, axis = (" (log scale)", {"type": "log", "dtick": 1}) if is_log else ("", {"rangemode": "tozero"})
    span = f"most {names[most]} ({counts[most]:,}), fewest {names[least]} ({counts[least]:,})"
    return [
        Figure("Labelled images per class", f"Bar chart: {span}.", [bars], axes_layout("", "images", names=names)),
        Figure(
            f"Long-tail profile: {ratio}, Gini {skew['gini']:.2f}",
            f"Line chart of the class counts from largest to smallest{scale}: {span}; {ratio}.",
            [profile],
            axes_layout("class, from most to fewest images", f"images{scale}", y=axis),
        ),
    ]


def curve_figures(run: Run) -> list[Figure]:
    """Loss, accuracy and learning rate over epochs (of a run of one epoch, the loss over logged steps).

    Example:
      >>> epochs = [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0}]
      >>> [figure.alt for figure in curve_figures(Run("run", summary={}, data={}, epochs=epochs))]
      ['Line chart over epoch: loss from 2 to 1.']
    """
    epochs, figures = run.epochs, []
    x = [record.get("epoch", i) + 1 for i, record in enumerate(epochs)]
    if len(epochs) > 1 and any("loss" in r for r in epochs):
        losses = [finite(record.get("loss")) for record in epochs]
        figures.append(line_figure("Training loss", "epoch", "loss", {"loss": (x, losses)}))
    elif len(run.steps) > 1:
        losses = [finite(record.get("loss")) for record in run.steps]
        at = list(range(len(losses)))
        figures.append(line_figure("Training loss", "step logged", "loss", {"loss": (at, losses)}))
    curves: dict[str, Curve] = {}
    if any("train_accuracy" in r for r in epochs):
        curves["training, as augmented"] = (x, [finite(r.get("train_accuracy")) for r in epochs])
    for key in ("balanced_accuracy", *GROUPS):
        scored = over_epochs(run, [(record.get("test") or {}).get(key) for record in epochs])
        if scored[0]:
            curves[f"test, {key.replace('_accuracy', '')}"] = scored
    if curves:
        figures.append(line_figure("Accuracy while training", "epoch", "accuracy", curves, y=PERCENT))
    if len(epochs) > 1 and any("lr" in r for r in epochs):
        rates = [finite(r.get("lr")) for r in epochs]
        figures.append(line_figure("Learning rate", "epoch", "rate", {"lr": (x, rates)}))
    return figures


def class_figures(run: Run) -> list[Figure]:
    """Test accuracy of each class, most training images first; nothing for a run without it.

    Example:
      >>> run = Run("run", summary={"test": {"per_class": [1.0, 0.5]}}, data={"class_names": ["a", "b"]})
      >>> [figure.alt for figure in class_figures(run)]
      ['Bar chart: best a (100.0%), worst b (50.0%).']
    """
    rows = [row for row in class_rows(run) if row["recall"] is not None]
    if not rows:
        return []
    names = [row["name"] for row in rows]
    bars = _bars(names, [row["recall"] for row in rows], hover="%{x}: %{y:.1%}<br>%{customdata}")
    bars["customdata"] = ["" if row["count"] is None else f"{row['count']:,} training images" for row in rows]
    worst, best = min(rows, key=lambda r: r["recall"]), max(rows, key=lambda r: r["recall"])
    span = f"best {best['name']} ({percent(best['recall'])}), worst {worst['name']} ({percent(worst['recall'])})"
    title = "Accuracy per class" + (", most training images first" if run.counts else "")
    return [Figure(title, f"Bar chart: {span}.", [bars], axes_layout("", "accuracy", names=names, y=PERCENT))]


def reliability_figures(run: Run) -> list[Figure]:
    """Accuracy against confidence, for all classes and for each group that has a calibration error.

    Example:
      >>> table = [{"lower": 0.5, "upper": 1.0, "count": 4, "accuracy": 0.75, "confidence": 0.8}]
      >>> run = Run("run", summary={"test": {"ece": 0.05, "reliability": {"all": table}}}, data={})
      >>> [figure.title for figure in reliability_figures(run)]
      ['All classes: ECE 5.0 points, 4 images']
    """
    figures = []
    for group, table in (run.test.get("reliability") or {}).items():
        if group != "all" and not run.has_groups:
            continue
        ece = run.test.get("ece" if group == "all" else f"ece_{group}")
        filled = [row for row in table if row["count"]]
        if not filled or ece is None:
            continue
        bars = {
            "type": "bar",
            "name": "accuracy",
            "x": [(row["lower"] + row["upper"]) / 2 for row in filled],
            "width": [0.9 * (row["upper"] - row["lower"]) for row in filled],
            "y": [row["accuracy"] for row in filled],
            "customdata": [[row["count"], row["confidence"]] for row in filled],
            "hovertemplate": "right %{y:.1%}, sure %{customdata[1]:.1%}<br>%{customdata[0]:,} images<extra></extra>",
            "marker": {"color": COLOURS.get(group, COLOURS[""])},
        }
        line: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip"}
        line |= {"line": {"dash": "dash", "color": "#808080"}, "name": "perfect"}
        n = sum(row["count"] for row in filled)
        figures.append(
            Figure(
                f"{'All classes' if group == 'all' else group.capitalize()}: ECE {ece * 100:.1f} points, {n:,} images",
                f"Reliability diagram: accuracy against confidence in bins; expected calibration error {ece:.3f}.",
                [bars, line],
                axes_layout("confidence", "accuracy", x={"range": [0, 1], **PERCENT}, y={"range": [0, 1], **PERCENT}),
            )
        )
    return figures


def slope_figures(run: Run) -> list[Figure]:
    """Calibration slopes over epochs, a line per class, or their quantiles where classes are many.

    Example:
      >>> epochs = [{"epoch": 0, "kappa_additive": [1.0, 2.0]}, {"epoch": 1, "kappa_additive": [1.0, 1.5]}]
      >>> [figure.alt for figure in slope_figures(Run("run", summary={}, data={}, epochs=epochs))]
      ['Line chart over epoch: class 0 from 1 to 1; class 1 from 2 to 1.5.']
    """
    figures = []
    titles = {"kappa_additive": "κ⁺ (additive phase)", "kappa_multiplicative": "κ* (multiplicative phase)"}
    for key, title in titles.items():
        logged = [(i, record) for i, record in enumerate(run.epochs) if record.get(key)]
        if not logged:
            continue
        x = [record.get("epoch", i) + 1 for i, record in logged]
        table = [record[key] for _, record in logged]  # [epochs][C]
        n = len(table[0])
        names = run.class_names if len(run.class_names) == n else [f"class {c}" for c in range(n)]
        if len(names) <= MAX_LINES:
            curves = {name: (x, [finite(row[c]) for row in table]) for c, name in enumerate(names)}
        else:
            shares = {"lowest": 0.0, "lower quarter": 0.25, "median": 0.5, "upper quarter": 0.75, "highest": 1.0}
            curves = {
                name: (x, [sorted(row)[round(share * (len(row) - 1))] for row in table])
                for name, share in shares.items()
            }
        figures.append(line_figure(f"Calibration slope {title}", "epoch", "κ", curves))
    return figures


def _bars(names: Sequence[str], values: Sequence[Any], *, hover: str) -> dict[str, Any]:
    # Positions, not names, are the x values: two classes may share a name, and a name may look like a number.
    bars: dict[str, Any] = {"type": "bar", "x": list(range(len(values))), "y": list(values)}
    bars["text"] = [plain_text(name) for name in names]
    bars |= {"textposition": "none", "hovertemplate": hover.replace("%{x}", "%{text}") + "<extra></extra>"}
    return bars | {"marker": {"color": COLOURS[""]}}


def over_epochs(run: Run, values: Iterable[Any], *, start: Any = None) -> Curve:
    """(epochs, values) of a number, where it is finite.

    Args:
      run: its epochs are counted from 1.
      values: one per record of an epoch.
      start: the value before the first epoch, if known.

    Example:
      >>> epochs = [{"epoch": 0, "gini": 0.5}, {"epoch": 1, "gini": None}, {"epoch": 2, "gini": 0.25}]
      >>> over_epochs(Run("run", epochs=epochs), [record["gini"] for record in epochs])
      ([1, 3], [0.5, 0.25])
    """
    epochs = [0, *(record.get("epoch", i) + 1 for i, record in enumerate(run.epochs))]
    known = [(x, y) for x, value in zip(epochs, [start, *values], strict=True) if (y := finite(value)) is not None]
    return [x for x, _ in known], [y for _, y in known]


def line_figure(
    title: str,
    x_title: str,
    y_title: str,
    curves: Mapping[str, Curve],
    *,
    y: Mapping[str, Any] | None = None,
) -> Figure:
    """A chart of named lines.

    Args:
      title, x_title, y_title: words above it and at its axes.
      curves: name -> (x, y), of the same length, not empty.
      y: more of plotly's settings of the y axis.

    Example:
      >>> line_figure("Loss", "epoch", "loss", {"loss": ([1, 2], [0.5, 0.25])}).alt
      'Line chart over epoch: loss from 0.5 to 0.25.'
    """
    data = []
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        dash = ("solid", "dash", "dot")[i // len(LINES) % 3]
        line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers" if len(xs) <= 20 else "lines"}
        line |= {"x": xs, "y": ys, "name": plain_text(name, 18 if len(curves) > len(LINES) else 60)}
        data.append(line | {"line": {"color": LINES[i % len(LINES)], "dash": dash}})
    layout = axes_layout(x_title, y_title, y=y)
    layout["showlegend"] = len(curves) > 1
    if len(curves) > len(LINES):  # too many to stand below the chart
        layout |= {"legend": {}, "height": 400}
    ends = [f"{name} from {number(ys[0])} to {number(ys[-1])}" for name, (_, ys) in curves.items()]
    return Figure(title, f"Line chart over {x_title}: {'; '.join(ends)}.", data, layout)


def marked(figure: Figure, x: float, words: str, *, is_right: bool) -> Figure:
    """The figure with a dashed line at x and words at its top, on the right of which is room (or, ``is_right``, none).

    Example:
      >>> figure = line_figure("Loss", "epoch", "loss", {"loss": ([1, 2], [0.5, 0.25])})
      >>> found = marked(figure, 1, "kept", is_right=False)
      >>> found.layout["shapes"][0]["x0"], found.layout["annotations"][0]["xanchor"]
      (1, 'left')
    """
    line = {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1}
    line |= {"line": {"dash": "dash", "color": BEFORE, "width": 1.5}}
    note = {"text": words, "x": x, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
    note["xanchor"] = "right" if is_right else "left"
    margin = {**figure.layout["margin"], "t": 28}
    return replace(figure, layout={**figure.layout, "shapes": [line], "annotations": [note], "margin": margin})


def axes_layout(
    x_title: str,
    y_title: str,
    *,
    names: Sequence[str] = (),
    x: Mapping[str, Any] | None = None,
    y: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Layout of a chart, for plotly.

    Args:
      x_title, y_title: words at the axes.
      names: of classes at the positions 0, 1, ... of the x axis.
      x, y: more of plotly's settings of the axes.

    Example:
      >>> axes_layout("epoch", "loss")["xaxis"]["title"]
      {'text': 'epoch'}
    """
    x_axis: dict[str, Any] = {"title": {"text": x_title}, "automargin": True, **(x or {})}
    if names:
        few = len(names) <= MAX_NAMED
        x_axis |= {"tickmode": "array", "tickvals": list(range(len(names))), "showticklabels": few}
        x_axis |= {"ticktext": [plain_text(n, 18) for n in names]}
        x_axis |= {"title": {"text": "" if few else "classes (names on hover)"}}
    return {
        "xaxis": x_axis,
        "yaxis": {"title": {"text": y_title}, "automargin": True, **(y or {})},
        "height": 320,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "showlegend": False,
        "legend": {"orientation": "h", "y": -0.25},
        "bargap": 0.15,
    }


def rows_layout(what: str, names: Sequence[str], *, x: Mapping[str, Any]) -> dict[str, Any]:
    """Layout of a chart with one row per class, its name beside it in full, and a legend on top.

    Args:
      what: the words at the x axis.
      names: of the classes at 0, 1, ... of the y axis, the first on top.
      x: more of plotly's settings of the x axis.

    Example:
      >>> rows_layout("images", ["cat", "a <b>"], x={})["yaxis"]["ticktext"]
      ['cat', 'a &lt;b&gt;']
    """
    n, wrapped = len(names), [wrapped_text(name) for name in names]
    layout = axes_layout(what, "", x={"nticks": 6, **x})
    rows = {"tickmode": "array", "tickvals": list(range(n)), "range": [n - 0.5, -0.5], "showgrid": False}
    layout["yaxis"] |= rows | {"ticktext": [plain_text(name) for name in names], "zeroline": False}
    row_px = 32 if max(text.count("<br>") for text in wrapped) < 2 else 42
    small = {"ticktext": wrapped, "tickfont": {"size": 11}}
    narrow = {"height": 110 + row_px * n, "yaxis": small, "xaxis": {"nticks": 3}}
    return layout | {
        "bargap": 0.25,
        "height": 110 + 25 * n,
        "margin": {"l": 12, "r": 24, "t": 36, "b": 48},
        "showlegend": True,
        "legend": LEGEND_ON_TOP,
        "meta": {"narrow": narrow},
    }


def wrapped_text(name: str, width: int = 22) -> str:
    """A name in at most three lines, as plain text for plotly.

    Example:
      >>> wrapped_text("No passing for vehicles over 3.5 metric tons")
      'No passing for<br>vehicles over 3.5<br>metric tons'
    """
    lines = textwrap.wrap(name, width) or [""]
    if len(lines) > 3:
        lines = [*lines[:2], textwrap.shorten(" ".join(lines[2:]), width, placeholder="…")]
    return "<br>".join(plain_text(line) for line in lines)


def plain_text(name: str, limit: int = 60) -> str:
    """A name as plain text in a chart: plotly would otherwise read tags in it.

    Example:
      >>> plain_text("<b>cat</b>"), plain_text("a long name", 6)
      ('&lt;b&gt;cat&lt;/b&gt;', 'a lon…')
    """
    return html.escape(name if len(name) <= limit else name[: limit - 1] + "…", quote=False)


def finite(value: Any) -> float | None:
    """A number to draw, None for anything that is none.

    Example:
      >>> finite(2), finite(math.inf), finite(None)
      (2.0, None, None)
    """
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
