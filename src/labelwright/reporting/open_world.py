"""What a report shows of a run that looked for new classes: how good, how many, at what pace, and what they are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from labelwright.reporting.charts import BEFORE, LINES, Curve, Figure, finite, line_figure, marked, over_epochs
from labelwright.run_folder import Run
from labelwright.wording import counted, number, percent

NAMED, NEW = LINES[0], LINES[1]  # colours of named and of new classes
LIKE_OTHERS = 0.02  # of tightness: a class that differs less from the median of all is as tight as most
CLOSE = 0.5  # of how well the best word fits: words that fit less are not proposed here
LEAST_SPAN = 0.1  # of an axis of shares: smaller differences should not look large
SCORES = (
    ("seen", "Right, of images of named classes"),
    ("novel", "Right, of images of new classes"),
    ("all", "Right, of all images"),
    ("to_seen", "Images of new classes taken for a named one"),
    ("to_novel", "Images of named classes taken for a new one"),
)
"""(key of the scores, what it says)"""


def open_world_section(run: Run, thumbnails: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What there is to say of classes beyond the named ones; None for a run that looked for none.

    Args:
      run: its summary has ``n_novel``.
      thumbnails: id of an image -> its picture; see reporting/thumbnails.py.

    Returns: intro (what named and new classes are), columns (headings of the table of scores), scores (what, a value
      per column), unscored (why new classes have no scores; empty if they have), counting (how their number
      came about), chart_note and pace_note (how to read the charts; empty without), cards (of the discovered classes).

    Example:
      >>> clusters = [{"name": "novel-1", "n_images": 3, "tightness": 0.9, "taken_for": [["cat", 1.0]]}]
      >>> summary = {"n_seen": 2, "n_novel": 1, "novel": {"evidence": None, "clusters": clusters}}
      >>> section = open_world_section(Run("run", summary=summary, data={}))
      >>> section["counting"], section["cards"][0]["facts"][-1]
      (['You gave the number: 1 new class.'], ('If it were not novel-1, it would be', 'cat (100.0% of its images)'))
    """
    if run.summary.get("n_novel") is None:
        return None
    evidence = _evidence(run)
    columns, scores = _score_table(run)
    return {
        "intro": _intro(run),
        "columns": columns,
        "scores": scores,
        "unscored": _unscored(run),
        "counting": _counting(run, evidence),
        "chart_note": CHART_NOTE if len(evidence.get("curve") or ()) > 1 else "",
        "pace_note": _pace_note(run) if pace_figures(run) else "",
        "cards": _cards(run, thumbnails or {}),
    }


def found_words(run: Run) -> str:
    """One sentence for the head of the report; empty for a run that looked for no new class.

    Example:
      >>> found_words(Run("run", summary={"n_novel": 2, "novel": {"evidence": {"n_novel": 2}}}, data={}))
      '2 classes beyond the named ones were found: see below.'
    """
    n = run.summary.get("n_novel")
    if n is None:
        return ""
    if n == 0:
        return "No class beyond the named ones was found." if _evidence(run) else ""
    what = counted(n, "class beyond the named ones was", "classes beyond the named ones were")
    doubt = " There could be none." if _evidence(run).get("could_be_none") else ""
    return f"{what} {'found' if _evidence(run) else 'asked for'}: see below.{doubt}"


def _evidence(run: Run) -> Mapping[str, Any]:
    return (run.summary.get("novel") or {}).get("evidence") or {}


def _intro(run: Run) -> str:
    n_named, n_new = run.summary.get("n_seen"), run.summary["n_novel"]
    named = "Named (seen) classes are those that your labels name" + (
        "" if n_named is None else f", {n_named:,} in all"
    )
    if n_new == 0:
        return f"{named}. The model has no class beyond these."
    calls = "novel-1" if n_new == 1 else f"novel-1 to novel-{n_new}"
    return (
        f"{named}. New (novel) classes are groups of unlabelled images that look alike and like no named class; "
        f"the model calls them {calls} until you give them names."
    )


# ---- how good -------------------------------------------------------------------------------------------------------


def _scored(run: Run) -> dict[str, Mapping[str, Any]]:
    """Where the truth is known -> scores there."""
    found = {"Test images": run.test, "Unlabelled training images": run.summary.get("pseudolabels") or {}}
    return {where: scores for where, scores in found.items() if any(scores.get(key) is not None for key, _ in SCORES)}


def _score_table(run: Run) -> tuple[list[str], list[tuple[str, list[str]]]]:
    scored = _scored(run)
    rows = [
        (what, [percent(scores.get(key)) for scores in scored.values()])
        for key, what in SCORES
        if any(scores.get(key) is not None for scores in scored.values())
    ]
    for key, what in (("n_seen_images", "named"), ("n_novel_images", "new")):
        if any(key in scores for scores in scored.values()):
            counts = [number(scores.get(key)) for scores in scored.values()]
            rows.append((f"Images of {what} classes that were scored", counts))
    return list(scored), rows


def _unscored(run: Run) -> str:
    if run.summary["n_novel"] == 0 or any(scores.get("novel") is not None for scores in _scored(run).values()):
        return ""
    return (
        "How good the new classes are is not known: no image is known to be of a class without a name. "
        "Look at what was found, below."
    )


# ---- how many -------------------------------------------------------------------------------------------------------


def _counting(run: Run, evidence: Mapping[str, Any]) -> list[str]:
    n = run.summary["n_novel"]
    edits = [f"Afterwards {words}." for words in (run.summary.get("novel") or {}).get("edits") or ()]
    if not evidence:
        return [f"You gave the number: {counted(n, 'new class', 'new classes') if n else 'none'}.", *edits]
    reason = str(evidence.get("reason") or "")
    words = [reason[:1].upper() + reason[1:]] if reason else []
    if evidence.get("is_edge"):
        most = evidence.get("most") or 0
        words.append(f"To look further, run it again with a wider range, as --novel 0-{max(2 * most, 10)}.")
    return [*words, *edits]


CHART_NOTE = (
    "Again and again, one half of the images was put into many small groups, and the other half told which of them are "
    "one class: groups without a valley between them. The chart shows how often each number of new classes came out. "
    "Dashed: the number used, their median. Shaded: most of them."
)


def evidence_figures(run: Run) -> list[Figure]:
    """How well each number of new classes is supported; nothing where the user gave the number.

    Example:
      >>> curve = [{"n_novel": n, "score": s} for n, s in ((0, 0.2), (1, 0.8))]
      >>> found = {"n_novel": 1, "plausible": [1, 1], "curve": curve}
      >>> run = Run("run", summary={"n_novel": 1, "novel": {"evidence": found}}, data={})
      >>> [figure.alt for figure in evidence_figures(run)]
      ['Line chart over the number of new classes: the share is highest at 1 (0.8); 1 is used, 1 to 1 are plausible.']
    """
    evidence = _evidence(run)
    curve = [row for row in evidence.get("curve") or () if finite(row.get("score")) is not None]
    if len(curve) < 2:
        return []
    x = [row["n_novel"] for row in curve]
    title = "How often each number of new classes came out"
    lines = {"share": (x, [finite(row["score"]) for row in curve])}
    figure = line_figure(title, "number of new classes", "share of the counts", lines, y={"rangemode": "tozero"})
    figure.data[0]["line"] = {"color": NAMED, "width": 3.5}
    figure.data[0]["mode"] = "lines+markers"
    used, (low, high) = evidence["n_novel"], evidence.get("plausible") or (evidence["n_novel"],) * 2
    span = {"type": "rect", "x0": low - 0.4, "x1": high + 0.4, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0}}
    span |= {"layer": "below", "fillcolor": NAMED, "opacity": 0.15}
    figure = marked(figure, used, f"used: {used}", is_right=used > max(x) / 2)
    figure.layout["shapes"].insert(0, span)
    best = max(curve, key=lambda row: row["score"])
    alt = (
        f"Line chart over the number of new classes: the share is highest at {best['n_novel']} "
        f"({number(float(best['score']))}); {used} is used, {low} to {high} are plausible."
    )
    return [replace(figure, alt=alt, is_wide=True)]


# ---- pace -----------------------------------------------------------------------------------------------------------


def pace_figures(run: Run) -> list[Figure]:
    """How named and new classes come along: accuracy, confidence, shares, and how far these are from what is expected.

    Example:
      >>> epochs = [{"epoch": e, "novel_frac": 0.5, "divergence": 0.2 - e / 10} for e in range(2)]
      >>> run = Run("run", summary={"n_novel": 1}, data={}, epochs=epochs)
      >>> [figure.alt for figure in pace_figures(run)][1:]
      ['Line chart over epoch: distance from 0.2 to 0.1.']
    """
    if run.summary.get("n_novel") is None:
        return []
    figures = []
    right = _by_truth(run, "seen", "novel")
    if right:
        figures.append(_pace("Right while training", "share that is right", right))
    sure, title = _by_truth(run, "confidence_seen", "confidence_novel"), "Confidence while training, by true class"
    if not sure:
        sure = _own(run, {"taken for named": "confidence_seen", "taken for new": "confidence_novel"})
        title = "Confidence while training"
    if sure:
        figures.append(_pace(title, "mean confidence", sure))
    shares = _own(run, {"taken for new": "novel_frac", "expected": "novel_expected"})
    if shares:
        figure = _pace("Unlabelled images taken for new classes", "share of them", shares)
        for trace in figure.data:
            is_expected = trace["name"] == "expected"
            trace["line"] = {"color": BEFORE if is_expected else NEW, "dash": "dash" if is_expected else "solid"}
            trace["mode"] = "lines" if is_expected else trace["mode"]
        figures.append(figure)
    apart = _own(run, {"distance": "divergence"})
    if apart:
        title = "Distance of the class shares from the expected ones"
        figures.append(line_figure(title, "epoch", "KL divergence, 0 = equal", apart, y={"rangemode": "tozero"}))
    return figures


Curves = dict[str, Curve]


def _by_truth(run: Run, named: str, new: str) -> Curves:
    """Scores over epochs of images whose class is known."""
    curves: Curves = {}
    for prefix, where in (("", "test"), ("pool_", "training")):
        for key, what in ((prefix + named, "named"), (prefix + new, "new")):
            found = over_epochs(run, [(record.get("test") or {}).get(key) for record in run.epochs])
            if found[0]:
                curves[f"{what}, {where}"] = found
    return curves


def _own(run: Run, keys: Mapping[str, str]) -> Curves:
    """What the method logs of itself, from before the first epoch on; nothing of fewer than two epochs."""
    found = {
        what: over_epochs(run, [record.get(key) for record in run.epochs], start=run.begun.get(key))
        for what, key in keys.items()
    }
    return {what: curve for what, curve in found.items() if len(curve[0]) > 1}


def _pace(title: str, y_title: str, curves: Curves) -> Figure:
    """Named and new in their colours, test images solid, training images dashed."""
    known = [y for _, ys in curves.values() for y in ys]
    middle, half = (max(known) + min(known)) / 2, max((max(known) - min(known)) * 0.6, LEAST_SPAN / 2)
    axis = {"range": [middle - half, middle + half], "tickformat": ".0%"}
    figure = line_figure(title, "epoch", y_title, curves, y=axis)
    for trace, name in zip(figure.data, curves, strict=True):
        colour = NEW if "new" in name.split(", ")[0] else NAMED
        trace["line"] = {"color": colour, "dash": "dot" if name.endswith("training") else "solid"}
    layout = {**figure.layout, "showlegend": True}
    return replace(figure, layout=layout)


def _pace_note(run: Run) -> str:
    words = (
        "Named classes have labels and are learned sooner. If the model grows sure of them much faster, it takes "
        "images of new classes for named ones."
    )
    if _by_truth(run, "seen", "novel") or _by_truth(run, "confidence_seen", "confidence_novel"):
        words += " Test: test images. Training: unlabelled training images whose class is known (for scoring alone)."
    if _own(run, {"": "novel_expected"}):
        words += " Expected: the share of new classes if classes are as large as the model assumes."
    if _own(run, {"": "divergence"}):
        words += (
            " Distance: how far the shares of the classes, among images the model is sure of, are from those expected; "
            "by the Kullback-Leibler (KL) divergence, 0 if they are equal. The larger it is, the more is a class that "
            "is ahead held back."
        )
    return words


# ---- what they are --------------------------------------------------------------------------------------------------


def _cards(run: Run, thumbnails: Mapping[str, str]) -> list[dict[str, Any]]:
    clusters = (run.summary.get("novel") or {}).get("clusters") or []
    tight = sorted(c["tightness"] for c in clusters if c.get("n_images") and c.get("tightness") is not None)
    return [_card(run, cluster, i, tight, thumbnails) for i, cluster in enumerate(clusters)]


def _card(
    run: Run, cluster: Mapping[str, Any], i: int, tight: Sequence[float], thumbnails: Mapping[str, str]
) -> dict[str, Any]:
    """One discovered class: name, size in words, facts (what, value), images (id, data URL), rename (the command)."""
    name, n = str(cluster["name"]), cluster.get("n_images") or 0
    if n == 0:
        empty = ("Left empty", "the model put no image here; it needs fewer classes")
        return {"name": name, "size": "no image", "facts": [empty], "images": [], "rename": ""}
    facts = []
    if cluster.get("tightness") is not None:
        facts.append(("How alike its images are", _alike(cluster["tightness"], tight)))
    fit = _fits(run, i)
    facts += [("True class it fits best", fit)] if fit else []
    words: list[Any] = cluster.get("proposed") or []
    proposed = [str(word) for word, lift in words if lift > 0 and lift >= CLOSE * words[0][1]]
    facts += [("Names from your vocabulary", ", ".join(proposed))] if proposed else []
    taken = enumerate(cluster.get("taken_for") or ())
    mixed = [f"{other} ({percent(share)}{' of its images' if j == 0 else ''})" for j, (other, share) in taken]
    facts += [(f"If it were not {name}, it would be", ", ".join(mixed))] if mixed else []
    return {
        "name": name,
        "size": counted(n, "image"),
        "facts": facts,
        "images": [(str(key), thumbnails[str(key)]) for key in cluster.get("central") or () if str(key) in thumbnails],
        "rename": f"labelwright classes RUN rename {shlex.quote(name)} NAME",
    }


def _alike(tightness: float, tight: Sequence[float]) -> str:
    """Tightness against that of the other classes: what is much depends on the model that sees the images."""
    words = f"{tightness:.2f} of 1"
    if len(tight) < 3:
        return words
    middle = median(tight)
    if tightness > middle + LIKE_OTHERS:
        return f"{words}, more than in most new classes"
    if tightness < middle - LIKE_OTHERS:
        return f"{words}, less than in most new classes: it may hold several classes"
    return f"{words}, about as in most new classes"


def _fits(run: Run, i: int) -> str:
    """The true class that a discovered class was matched with, where a truth is known."""
    at = (run.summary.get("n_seen") or 0) + i
    for scores in (run.summary.get("pseudolabels") or {}, run.test):
        matched = scores.get("matched") or []
        if at < len(matched):
            return str(matched[at]) if matched[at] is not None else "none: others fit each class better"
    return ""
