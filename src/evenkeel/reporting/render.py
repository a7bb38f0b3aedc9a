"""report.html of a run: one page, nothing loaded from elsewhere, made only from the files of the run folder.

What a run did not write (no test images, no slopes, no labels) leaves its section out; nothing is filled in.
Text from the user (class names, paths) is escaped by the template, in charts by ``_text``; a content security policy
in the page forbids it any network.
"""

from __future__ import annotations

import html
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from plotly.offline import get_plotlyjs

from evenkeel.errors import DataError
from evenkeel.metrics.classification import GROUPS, imbalance
from evenkeel.train.track import write_text_atomically

SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy (mean over classes)",
    "seen": "Accuracy on classes with labels",
    "novel": "Accuracy on new classes",
    "all": "Accuracy on all classes",
    "unseen": "Accuracy on named classes without labels",
    "harmonic": "Harmonic mean of classes with and without labels",
    "ece": "Expected calibration error",
}
"""Scores shown if the run has them, in this order."""

SITUATIONS = {
    "no_labels": "class names but no labels",
    "few_labels": "a few labels per class",
    "some_classes": "labels for only some of the classes",
    "candidates": "a set of candidate labels per image",
    "long_tailed": "a label for every image, with uneven class counts",
    "open_world": "labels for some classes, and classes nobody named",
}

MAX_ROWS = 100  # of a table; what is left out is said below it
MAX_LINES = 12  # of a chart; more classes are shown as quantiles
COLOURS = {"many": "#0072b2", "medium": "#e69f00", "few": "#d55e00", "": "#0072b2"}  # told apart by colour-blind eyes
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True)
class Figure:
    """One chart.

    Attributes:
      title: heading above it.
      alt: what a reader who cannot see it should know.
      data, layout: of plotly.
    """

    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """The files of a run folder, empty where absent."""

    summary: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    epochs: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    labels: pa.Table | None
    name: str

    @property
    def class_names(self) -> list[str]:
        return [str(name) for name in self.data.get("class_names") or []]

    @property
    def counts(self) -> list[int]:
        return list(self.data.get("train_counts") or [])

    @property
    def test(self) -> dict[str, Any]:
        return self.summary.get("test") or {}


def render(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder, in place of one that may be there.

    Args:
      run_folder: holds summary.json; data.json, config.yaml, environment.json, metrics.jsonl and labels.parquet are
        used where present.

    Returns: path of the report, about 5 MB, most of it plotly.js.

    Raises: DataError: no summary.json, or a file that cannot be read.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "summary.json").write_text('{"method": "cvs", "test": {"accuracy": 0.5}}')
      >>> 'Accuracy</th><td class="n">50.0%' in render(folder).read_text()
      True
    """
    run = _read(Path(run_folder))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(pct=_pct, number=_number, two=lambda value: "–" if value is None else f"{value:.2f}")
    sections = {
        "counts": _count_figures(run),
        "curves": _curve_figures(run),
        "classes": _class_figures(run),
        "reliability": _reliability_figures(run),
        "slopes": _slope_figures(run),
    }
    every = [figure for figures in sections.values() for figure in figures]
    place = iter(range(len(every)))
    numbered = {name: [(next(place), figure) for figure in figures] for name, figures in sections.items()}
    page = environment.get_template("template.html").render(
        run=run,
        figures=numbered,
        figure_json=[{"data": figure.data, "layout": figure.layout} for figure in every],
        plotly_js=get_plotlyjs(),
        headline=_headline(run),
        scores=[(title, key, run.test[key]) for key, title in SCORES.items() if run.test.get(key) is not None],
        zero_shot=run.summary.get("zero_shot") or {},
        quarantined=run.data.get("quarantined") or [],
        kinds=Counter(problem.get("kind", "?") for problem in run.data.get("quarantined") or []).most_common(),
        groups=_group_rows(run),
        classes=_class_rows(run),
        confusions=_confusion_rows(run),
        least_trusted=_least_trusted(run.labels),
        command=_command(run.config),
        config_text=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        versions=_flat(run.environment),
        max_rows=MAX_ROWS,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path = Path(run_folder) / "report.html"
    write_text_atomically(path, page)
    return path


# ---- reading --------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> _Run:
    if not (folder / "summary.json").is_file():
        raise DataError(f"no summary.json in {folder}", fix="give the folder of a finished run")
    records = _read_lines(folder / "metrics.jsonl")
    labels = folder / "labels.parquet"
    try:
        table = pq.read_table(labels) if labels.is_file() else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{labels} cannot be read ({error})", fix="run evenkeel fit anew, or remove the file"
        ) from error
    return _Run(
        summary=_read_mapping(folder / "summary.json", json.loads),
        data=_read_mapping(folder / "data.json", json.loads),
        config=_read_mapping(folder / "config.yaml", yaml.safe_load),
        environment=_read_mapping(folder / "environment.json", json.loads),
        epochs=[r for r in records if r.get("kind") == "epoch"],
        steps=[r for r in records if r.get("kind") == "step"],
        labels=table,
        name=folder.resolve().name,
    )


def _read_mapping(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="restore it from the run, or remove it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys and values", fix="restore it from the run, or remove it")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if i == len(lines) - 1:  # a run killed while it wrote
                break
            raise DataError(f"{path} line {i + 1} is not JSON ({error})", fix="remove that line") from error
    return records


# ---- words ----------------------------------------------------------------------------------------------------------


def _headline(run: _Run) -> list[tuple[str, str]]:
    """(question, answer) pairs, each answer made of what the run wrote."""
    answers = [
        ("What was found", _found(run)),
        ("What was done", _done(run)),
        ("How good it is", _how_good(run)),
        ("How far to trust it", _how_far(run)),
    ]
    return [(question, answer) for question, answer in answers if answer]


def _found(run: _Run) -> str:
    summary, words = run.summary, []
    if summary.get("n_images") is not None:
        labelled = summary.get("n_labelled")
        part = (
            ""
            if labelled is None
            else ", all labelled"
            if labelled == summary["n_images"]
            else f", {labelled:,} labelled"
        )
        classes = "" if summary.get("n_classes") is None else f" of {summary['n_classes']:,} classes"
        words.append(f"{summary['n_images']:,} training images{classes}{part}.")
    situation = run.data.get("situation") or {}
    name = situation.get("name") or summary.get("situation")
    if name:
        meaning = f" ({SITUATIONS[name]})" if name in SITUATIONS else ""
        reason = str(situation.get("reason") or "").rstrip(".")
        words.append(f"Situation: {name}{meaning}{': ' + reason if reason else ''}.")
    n_out = len(run.data.get("quarantined") or [])
    if n_out:
        words.append(f"{n_out:,} unusable {'image was' if n_out == 1 else 'images were'} left out: see below.")
    return " ".join(words)


def _done(run: _Run) -> str:
    summary = run.summary
    if not summary.get("method"):
        return ""
    words = f"Method {summary['method']}"
    words += f" on {summary['encoder']}" if summary.get("encoder") else ""
    words += f", {len(run.epochs):,} epochs" if run.epochs else ""
    seconds = summary.get("seconds")
    if isinstance(seconds, Mapping) and seconds:
        words += f", {_duration(sum(v for v in seconds.values() if isinstance(v, int | float)))} in all"
    words += f", seed {summary['seed']}" if summary.get("seed") is not None else ""
    device = run.environment.get("device")
    return words + (f", on {device}." if device else ".")


def _how_good(run: _Run) -> str:
    test = run.test
    accuracy, n = test.get("accuracy"), test.get("n_scored")
    if accuracy is None:
        return "Unknown: there were no labelled test images."
    words = f"Right for {_pct(accuracy)} of {f'{n:,} ' if n else ''}test images"
    if n:
        words += (
            f" (± {1.96 * math.sqrt(accuracy * (1 - accuracy) / n) * 100:.1f} points: 95% sampling error of one run)"
        )
    if test.get("balanced_accuracy") is not None:
        words += f"; {_pct(test['balanced_accuracy'])} when every class counts the same"
    zero_shot = (run.summary.get("zero_shot") or {}).get("accuracy")
    words += f"; zero-shot it was {_pct(zero_shot)}" if zero_shot is not None else ""
    how = {"held out": " The test images were held out of the data given.", "split": " The data named its test images."}
    words += "." + how.get(str(run.data.get("test_is")), "")
    if test.get("few") is not None:
        words += f" Classes with the fewest training images: {_pct(test['few'])}."
    weak = [(a, name) for a, name in zip(test.get("per_class") or [], run.class_names, strict=False) if a is not None]
    if len(weak) > 1:
        words += f" Weakest class: {min(weak)[1]}, {_pct(min(weak)[0])}."
    return words


def _how_far(run: _Run) -> str:
    words = []
    table = (run.test.get("reliability") or {}).get("all") or []
    n = sum(row["count"] for row in table)
    if n and run.test.get("ece") is not None and run.test.get("accuracy") is not None:
        confidence = sum(row["count"] * row["confidence"] for row in table if row["count"]) / n
        gap = confidence - run.test["accuracy"]
        leaning = (
            "too sure of itself" if gap > 0.02 else "too modest" if gap < -0.02 else "neither too sure nor too modest"
        )
        words.append(
            f"Its probabilities are off by {run.test['ece'] * 100:.1f} points on average; it is {leaning}: "
            f"mean confidence {_pct(confidence)}, right {_pct(run.test['accuracy'])}."
        )
    if run.labels is not None and "trust" in run.labels.column_names and run.labels.num_rows:
        low = pc.sum(pc.less(run.labels["trust"], 0.5)).as_py() or 0
        words.append(
            f"Of {run.labels.num_rows:,} labels, {low:,} have a trust under 0.5: look at these first (listed below)."
        )
    warnings = len(run.summary.get("warnings") or [])
    if warnings:
        words.append(f"{warnings} failure {'sign was' if warnings == 1 else 'signs were'} seen: see below.")
    return " ".join(words)


def _command(config: Mapping[str, Any]) -> str:
    """The command line that makes the run again, from the keys of config.yaml that have a flag."""
    if not config.get("data"):
        return ""
    words = ["evenkeel", "fit", str(config["data"]), "--out", "RUN"]
    flags = {"test": "test", "test_frac": "test-frac", "method": "method", "model": "model", "size_px": "size"}
    flags |= {
        "seed": "seed",
        "device": "device",
        "precision": "precision",
        "on_bad": "on-bad",
        "group": "group",
        "novel": "novel",
    }
    for key, flag in flags.items():
        if config.get(key) is not None:
            words += [f"--{flag}", str(config[key])]
    if config.get("flip") is not None:
        words += [
            "--flip",
            "on" if config["flip"] is True else "off" if config["flip"] is False else str(config["flip"]),
        ]
    if config.get("pretrained") is False:
        words.append("--no-pretrained")
    if config.get("freeze"):
        words += ["--freeze", *map(str, config["freeze"])]
    settings = [f"{key}={_setting(value)}" for key, value in (config.get("settings") or {}).items()]
    return shlex.join(words + (["--set", *settings] if settings else []))


def _setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _group_rows(run: _Run) -> list[dict[str, Any]]:
    sizes = run.test.get("group_sizes") or {}
    keys = [g for g in GROUPS if run.test.get(g) is not None or sizes.get(g)]
    bounds = run.test.get("group_thresholds") or {}
    many, few = bounds.get("many_above"), bounds.get("few_below")
    words = {"many": f" (over {many})", "medium": f" ({few} to {many})", "few": f" (under {few})"} if bounds else {}
    return [
        {
            "name": group.capitalize() + words.get(group, ""),
            "size": sizes.get(group),
            "accuracy": run.test.get(group),
            "ece": run.test.get(f"ece_{group}"),
        }
        for group in keys
    ]


def _class_rows(run: _Run) -> list[dict[str, Any]]:
    """Per class: name, training images, recall, precision; most training images first."""
    recall, names, counts = run.test.get("per_class") or [], run.class_names, run.counts
    if not recall or len(names) != len(recall):
        return []
    precision = run.test.get("precision") or [None] * len(recall)
    known: Sequence[int | None] = counts if len(counts) == len(names) else [None] * len(names)
    rows = [
        {"name": n, "count": c, "recall": r, "precision": p}
        for n, c, r, p in zip(names, known, recall, precision, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row["count"] or 0))


def _confusion_rows(run: _Run) -> list[dict[str, Any]]:
    names = run.class_names

    def name(c: Any) -> str:
        return names[c] if isinstance(c, int) and c < len(names) else str(c)

    pairs = run.test.get("confusions") or []
    return [{**pair, "truth": name(pair["truth"]), "predicted": name(pair["predicted"])} for pair in pairs]


def _least_trusted(labels: pa.Table | None, n: int = 25) -> list[dict[str, Any]]:
    if labels is None or "trust" not in labels.column_names:
        return []
    rows = pc.array_sort_indices(labels["trust"]).slice(0, n)  # stable: ties stay in the order of the table
    wanted = ("id", "label", "probability", "runner_up", "source", "trust")
    return [dict.fromkeys(wanted) | row for row in labels.take(rows).to_pylist()]


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        elif value is not None:
            rows.append((prefix + str(key), value))
    return rows


# ---- charts ---------------------------------------------------------------------------------------------------------


def _count_figures(run: _Run) -> list[Figure]:
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
        "text": [_text(names[c]) for c in order],
        "hovertemplate": "%{text}: %{y:,} images<extra></extra>",
        "line": {"color": COLOURS[""]},
    }
    most, least = order[0], order[-1]
    is_log = (skew["ratio"] or math.inf) >= 10  # within one decade a log axis would have no tick
    scale, axis = (" (log scale)", {"type": "log", "dtick": 1}) if is_log else ("", {"rangemode": "tozero"})
    span = f"most {names[most]} ({counts[most]:,}), fewest {names[least]} ({counts[least]:,})"
    return [
        Figure("Labelled images per class", f"Bar chart: {span}.", [bars], _layout("", "images", names=names)),
        Figure(
            f"Long-tail profile: {ratio}, Gini {skew['gini']:.2f}",
            f"Line chart of the class counts from largest to smallest{scale}: {span}; {ratio}.",
            [profile],
            _layout("class, from most to fewest images", f"images{scale}", y=axis),
        ),
    ]


def _curve_figures(run: _Run) -> list[Figure]:
    epochs, figures = run.epochs, []
    x = [record.get("epoch", i) + 1 for i, record in enumerate(epochs)]
    if len(epochs) > 1 and any("loss" in r for r in epochs):
        losses = [_finite(record.get("loss")) for record in epochs]
        figures.append(_lines("Training loss", "epoch", "loss", {"loss": (x, losses)}))
    elif len(run.steps) > 1:
        losses = [_finite(record.get("loss")) for record in run.steps]
        figures.append(_lines("Training loss", "step logged", "loss", {"loss": (list(range(len(losses))), losses)}))
    curves: dict[str, tuple[list[Any], list[Any]]] = {}
    if any("train_accuracy" in r for r in epochs):
        curves["training, as augmented"] = (x, [_finite(r.get("train_accuracy")) for r in epochs])
    scored = [(at, record["test"]) for at, record in zip(x, epochs, strict=True) if record.get("test")]
    for key in ("balanced_accuracy", *GROUPS):
        found = [(at, _finite(test[key])) for at, test in scored if test.get(key) is not None]
        if found:
            curves[f"test, {key.replace('_accuracy', '')}"] = ([at for at, _ in found], [v for _, v in found])
    if curves:
        figures.append(_lines("Accuracy while training", "epoch", "accuracy", curves, y=_PERCENT))
    if len(epochs) > 1 and any("lr" in r for r in epochs):
        figures.append(_lines("Learning rate", "epoch", "rate", {"lr": (x, [_finite(r.get("lr")) for r in epochs])}))
    return figures


def _class_figures(run: _Run) -> list[Figure]:
    rows = [row for row in _class_rows(run) if row["recall"] is not None]
    if not rows:
        return []
    names = [row["name"] for row in rows]
    bars = _bars(names, [row["recall"] for row in rows], hover="%{x}: %{y:.1%}<br>%{customdata}")
    bars["customdata"] = ["" if row["count"] is None else f"{row['count']:,} training images" for row in rows]
    worst, best = min(rows, key=lambda r: r["recall"]), max(rows, key=lambda r: r["recall"])
    span = f"best {best['name']} ({_pct(best['recall'])}), worst {worst['name']} ({_pct(worst['recall'])})"
    title = "Accuracy per class" + (", most training images first" if run.counts else "")
    return [Figure(title, f"Bar chart: {span}.", [bars], _layout("", "accuracy", names=names, y=_PERCENT))]


def _reliability_figures(run: _Run) -> list[Figure]:
    figures = []
    for group, table in (run.test.get("reliability") or {}).items():
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
                _layout("confidence", "accuracy", x={"range": [0, 1], **_PERCENT}, y={"range": [0, 1], **_PERCENT}),
            )
        )
    return figures


def _slope_figures(run: _Run) -> list[Figure]:
    figures = []
    titles = {"kappa_additive": "κ⁺ (additive phase)", "kappa_multiplicative": "κ* (multiplicative phase)"}
    for key, title in titles.items():
        logged = [(i, record) for i, record in enumerate(run.epochs) if record.get(key)]
        if not logged:
            continue
        x = [record.get("epoch", i) + 1 for i, record in logged]
        table = [record[key] for _, record in logged]  # [epochs][C]
        names = (
            run.class_names if len(run.class_names) == len(table[0]) else [f"class {c}" for c in range(len(table[0]))]
        )
        if len(names) <= MAX_LINES:
            curves = {name: (x, [_finite(row[c]) for row in table]) for c, name in enumerate(names)}
        else:
            shares = {"lowest": 0.0, "lower quarter": 0.25, "median": 0.5, "upper quarter": 0.75, "highest": 1.0}
            curves = {
                name: (x, [sorted(row)[round(share * (len(row) - 1))] for row in table])
                for name, share in shares.items()
            }
        figures.append(_lines(f"Calibration slope {title}", "epoch", "κ", curves))
    return figures


_PERCENT: dict[str, Any] = {"tickformat": ".0%", "rangemode": "tozero"}


def _bars(names: Sequence[str], values: Sequence[Any], *, hover: str) -> dict[str, Any]:
    # Positions, not names, are the x values: two classes may share a name, and a name may look like a number.
    bars: dict[str, Any] = {"type": "bar", "x": list(range(len(values))), "y": list(values)}
    bars["text"] = [_text(name) for name in names]
    bars |= {"textposition": "none", "hovertemplate": hover.replace("%{x}", "%{text}") + "<extra></extra>"}
    return bars | {"marker": {"color": COLOURS[""]}}


def _lines(
    title: str,
    x_title: str,
    y_title: str,
    curves: Mapping[str, tuple[list[Any], list[Any]]],
    *,
    y: Mapping[str, Any] | None = None,
) -> Figure:
    data = []
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        dash = ("solid", "dash", "dot")[i // len(LINES) % 3]
        line = {"color": LINES[i % len(LINES)], "dash": dash}
        mode = "lines+markers" if len(xs) <= 20 else "lines"
        data.append(
            {
                "type": "scatter",
                "mode": mode,
                "x": xs,
                "y": ys,
                "name": _text(name, 18 if len(curves) > len(LINES) else 60),
                "line": line,
            }
        )
    layout = _layout(x_title, y_title, y=y)
    layout["showlegend"] = len(curves) > 1
    if len(curves) > len(LINES):  # too many to stand below the chart
        layout |= {"legend": {}, "height": 400}
    ends = [f"{name} from {_number(ys[0])} to {_number(ys[-1])}" for name, (_, ys) in curves.items()]
    return Figure(title, f"Line chart over {x_title}: {'; '.join(ends)}.", data, layout)


def _layout(
    x_title: str,
    y_title: str,
    *,
    names: Sequence[str] = (),
    x: Mapping[str, Any] | None = None,
    y: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    x_axis: dict[str, Any] = {"title": {"text": x_title}, "automargin": True, **(x or {})}
    if names:
        few = len(names) <= 60
        x_axis |= {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [_text(n, 18) for n in names]}
        x_axis |= {"showticklabels": few, "title": {"text": "" if few else "classes (names on hover)"}}
    return {
        "xaxis": x_axis,
        "yaxis": {"title": {"text": y_title}, "automargin": True, **(y or {})},
        "height": 320,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "showlegend": False,
        "legend": {"orientation": "h", "y": -0.25},
        "bargap": 0.15,
    }


def _text(name: str, limit: int = 60) -> str:
    """A name as plain text in a chart: plotly would otherwise read tags in it."""
    return html.escape(name if len(name) <= limit else name[: limit - 1] + "…", quote=False)


# ---- numbers --------------------------------------------------------------------------------------------------------


def _pct(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f}%"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _duration(seconds: float) -> str:
    """Seconds for people.

    Example:
      >>> _duration(12.34), _duration(125), _duration(7260)
      ('12 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
