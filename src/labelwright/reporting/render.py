"""report.html of a run: one page, nothing loaded from elsewhere, made only from the files of the run folder.

What a run did not write (no test images, no slopes, no labels) leaves its section out; nothing is filled in.
Text from the user (class names, paths) is escaped by the template, in charts by charts.py; a content security policy
in the page forbids it any network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from plotly.offline import get_plotlyjs
from scipy.stats import binomtest

from labelwright.metrics.classification import GROUPS
from labelwright.reporting.before_after import compared_class_figures, labelled_figures
from labelwright.reporting.beside import COLUMNS as BESIDE
from labelwright.reporting.beside import beside_rows
from labelwright.reporting.charts import Figure, class_figures, curve_figures, reliability_figures
from labelwright.reporting.class_rows import class_rows
from labelwright.reporting.sections import Sections
from labelwright.reporting.terminal import folded_warnings
from labelwright.reporting.trusting import trust_words
from labelwright.run_folder import Run, write_text_atomically
from labelwright.wording import counted, duration, number, percent, points

SCORES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy (mean over classes)",
    "seen": "Accuracy on classes with labels",
    "novel": "Accuracy on new classes",
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
    "open_world": "labels for some classes, and images of unnamed classes",
}

PLACES = (
    *("counts", "guesses", "changes", "division", "evidence", "pace", "pseudolabels"),
    *("curves", "watch", "margins", "classes", "reliability", "slopes"),
)
"""Places for charts in the template, in its order."""

NO_CONTENT: Mapping[str, Any] = {
    **dict.fromkeys(("names", "guessed", "open_world", "kept_epoch")),
    **dict.fromkeys(("margins", "pseudolabels", "pseudolabel_rows"), ()),
    "knows_annotator": False,
}
"""Variables of the template that methods fill."""

MAX_ROWS = 100  # of a table; what is left out is reported below it


def render(
    run_folder: Path, *, sections: Callable[[Run], Sections] = lambda run: Sections(), command: str = ""
) -> Path:
    """Write ``report.html`` into a run folder, in place of one that may be there.

    Args:
      run_folder: holds summary.json; data.json, config.yaml, environment.json, metrics.jsonl, labels.parquet and
        thumbnails.json are used where present.
      sections: what the method of the run adds.
      command: that makes the run again.

    Returns: path of the report, about 5 MB, most of it plotly.js.

    Raises: DataError: no summary.json, or a file that cannot be read.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "summary.json").write_text('{"method": "cvs", "test": {"accuracy": 0.5}}')
      >>> 'Accuracy</th><td class="n">50.0%' in render(folder).read_text()
      True
    """
    run = Run(run_folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(pct=percent, number=number, two=lambda value: "–" if value is None else f"{value:.2f}")
    environment.globals.update(points=points)
    own = sections(run)
    figures: dict[str, Sequence[Figure]] = {
        "counts": labelled_figures(run),
        "curves": curve_figures(run),
        "classes": compared_class_figures(run) or class_figures(run),
        "reliability": reliability_figures(run),
        **own.figures,
    }
    placed = {name: figures.get(name, ()) for name in PLACES}
    every = [figure for some in placed.values() for figure in some]
    place = iter(range(len(every)))
    numbered = {name: [(next(place), figure) for figure in some] for name, some in placed.items()}
    content = {**NO_CONTENT, **own.content}
    beside_keys, beside = beside_rows(run.summary)
    page = environment.get_template("template.html").render(
        run=run,
        figures=numbered,
        figure_json=[{"data": figure.data, "layout": figure.layout} for figure in every],
        plotly_js=get_plotlyjs(),
        headline=_headline(run, own),
        signs=folded_warnings(run.summary.get("warnings") or []),
        scores=[(title, key, run.test[key]) for key, title in SCORES.items() if run.test.get(key) is not None],
        zero_shot=run.zero_shot,
        beside=beside,
        beside_keys=beside_keys,
        beside_titles={key: title.capitalize() for key, title in BESIDE.items()},
        why=(run.summary.get("answer") or {}).get("why"),
        quarantined=run.data.get("quarantined") or [],
        kinds=Counter(problem.get("kind", "?") for problem in run.data.get("quarantined") or []).most_common(),
        groups=_group_rows(run),
        classes=class_rows(run),
        confusions=_confusion_rows(run),
        least_trusted=_least_trusted(run.labels),
        command=command,
        config_text=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        versions=_flat(run.environment),
        max_rows=MAX_ROWS,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **content,
    )
    path = Path(run_folder) / "report.html"
    write_text_atomically(path, page)
    return path


# ---- words ----------------------------------------------------------------------------------------------------------


def _headline(run: Run, own: Sections) -> list[tuple[str, str]]:
    """(question, answer) pairs, each answer made of what the run wrote."""
    answers = [
        ("What was found", _found(run, own)),
        ("What was done", _done(run)),
        ("How good it is", _how_good(run, own)),
        ("How far to trust it", _how_far(run)),
    ]
    return [(question, answer) for question, answer in answers if answer]


def _found(run: Run, own: Sections) -> str:
    summary, words = run.summary, []
    if summary.get("n_images") is not None:
        labelled = summary.get("n_labelled")
        part = "" if labelled is None else f", {labelled:,} labelled"
        part = ", all labelled" if labelled == summary["n_images"] else part
        classes = "" if summary.get("n_classes") is None else f" of {summary['n_classes']:,} classes"
        words.append(f"{summary['n_images']:,} training images{classes}{part}.")
    situation = run.data.get("situation") or {}
    name = situation.get("name") or summary.get("situation")
    if name:
        meaning = f" ({SITUATIONS[name]})" if name in SITUATIONS else ""
        reason = str(situation.get("reason") or "").rstrip(".")
        words.append(f"Situation: {name}{meaning}{': ' + reason if reason else ''}.")
    words += own.found
    n_out = len(run.data.get("quarantined") or [])
    if n_out:
        words.append(f"{counted(n_out, 'unusable image was', 'unusable images were')} left out: see below.")
    return " ".join(words)


def _done(run: Run) -> str:
    summary = run.summary
    if not summary.get("method"):
        return ""
    words = f"Method {summary['method']}"
    if summary.get("encoder"):
        words += " on stored embeddings" if summary["encoder"] == "none" else f" on {summary['encoder']}"
    has_steps = any("loss" in epoch for epoch in run.epochs)
    words += f", {counted(len(run.epochs), 'epoch', 'epochs')}" if has_steps else ""
    seconds = summary.get("seconds")
    if isinstance(seconds, Mapping) and seconds:
        words += f", {duration(sum(v for v in seconds.values() if isinstance(v, int | float)))} in all"
    answer = summary.get("answer") or {"name": summary["method"]}
    words += f"; the answer is that of {answer['title']}" if answer["name"] != summary["method"] else ""
    words += f", seed {summary['seed']}" if summary.get("seed") is not None else ""
    device = run.environment.get("device")
    return words + (f", on {device}." if device else ".")


def _how_good(run: Run, own: Sections) -> str:
    test = run.test
    accuracy, n = test.get("accuracy"), test.get("n_scored")
    if accuracy is None:
        return "Unknown: there were no labelled test images."
    words = f"Right for {percent(accuracy)} of {f'{n:,} ' if n else ''}test images"
    if n:
        # Wilson's, which holds for few images and for none or all of them right as well.
        low, high = binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
        words += f" (95% interval {percent(low)} to {percent(high)}: sampling error of one run)"
    if test.get("balanced_accuracy") is not None:
        words += f"; {percent(test['balanced_accuracy'])} when every class counts the same"
    zero_shot = run.zero_shot.get("accuracy")
    if zero_shot is not None:
        words += f"; {own.before} {percent(zero_shot)}{own.after}"
    how = {"held out": " The test images were held out of the data given.", "split": " The data named its test images."}
    words += "." + how.get(str(run.data.get("test_is")), "")
    if test.get("few") is not None and run.has_groups:
        words += f" Classes with the fewest training images: {percent(test['few'])}."
    names = test.get("class_names") or run.class_names  # with the unnamed classes of the truth
    weak = [(a, name) for a, name in zip(test.get("per_class") or [], names, strict=False) if a is not None]
    if len(weak) > 1:
        words += f" Weakest class: {min(weak)[1]}, {percent(min(weak)[0])}."
    return words


def _how_far(run: Run) -> str:
    words = []
    table = (run.test.get("reliability") or {}).get("all") or []
    n = sum(row["count"] for row in table)
    if n and run.test.get("ece") is not None and run.test.get("accuracy") is not None:
        confidence = sum(row["count"] * row["confidence"] for row in table if row["count"]) / n
        gap = confidence - run.test["accuracy"]
        leaning = "too sure of itself" if gap > 0 else "too modest"
        leaning = leaning if abs(gap) > 0.02 else "neither too sure nor too modest"
        words.append(
            f"Its probabilities are off by {run.test['ece'] * 100:.1f} points on average; it is {leaning}: "
            f"mean confidence {percent(confidence)}, right {percent(run.test['accuracy'])}."
        )
    words += trust_words(run)
    warnings = len(folded_warnings(run.summary.get("warnings") or []))
    if warnings:
        words.append(f"{counted(warnings, 'failure sign was', 'failure signs were')} seen: see below.")
    return " ".join(words)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _group_rows(run: Run) -> list[dict[str, Any]]:
    if not run.has_groups:
        return []
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


def _confusion_rows(run: Run) -> list[dict[str, Any]]:
    names = run.class_names

    def name(c: Any) -> str:
        return names[c] if isinstance(c, int) and c < len(names) else str(c)

    pairs = run.test.get("confusions") or []
    return [{**pair, "truth": name(pair["truth"]), "predicted": name(pair["predicted"])} for pair in pairs]


def _least_trusted(labels: pa.Table | None) -> list[dict[str, Any]]:
    if labels is None or "trust" not in labels.column_names:
        return []
    rows = pc.array_sort_indices(labels["trust"]).slice(0, 25)  # stable: ties stay in the order of the table
    wanted = ("id", "label", "softmax", "runner_up", "source", "trust")
    return [dict.fromkeys(wanted) | row for row in labels.take(rows).to_pylist()]


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        elif value is not None:
            rows.append((prefix + str(key), value))
    return rows
