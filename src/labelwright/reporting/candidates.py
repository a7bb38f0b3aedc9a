"""What a report shows of a run on candidate labels: what the guesses were, and whether training bettered them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from labelwright.annotators.reliability import reliability_lines
from labelwright.reporting.before_after import named_bars
from labelwright.reporting.candidate_training import curve_notes, deployed_words
from labelwright.reporting.charts import AFTER, BEFORE, MAX_NAMED, Figure, axes_layout, plain_text, rows_layout
from labelwright.reporting.thumbnails import read_thumbnails
from labelwright.run_folder import Run
from labelwright.wording import number, percent, points

HARDLY = 0.1  # of an even share of the first guesses: a class with less is hardly ever named, as for Co-Reg's prior
CHANGED = 0.05  # of a class's images: smaller changes are not called a correction or a loss
LISTED_MAX = 20
OVERRULED_MAX = 24  # images shown
LOST = "#d55e00"


def guessed_section(run: Run) -> dict[str, Any] | None:
    """What there is to say of candidate labels; None for a run that had none.

    Returns: origin (where the guesses come from), facts (what, value), replaced (class, the description that took the
      place of its name), verdict (sentences that compare the model with what it learned from), is_worse (than its
      annotator, on the test images), corrected and lost (rows of `change_rows`, largest change first), scored_on (the
      images that these were counted on), own_sets (how candidates decided on labels), overruled (images where they
      and the model differ: id, label, probability, candidates, picture or None), notes (how to read the curves),
      deployed (which network was saved, and why).

    Example:
      >>> sets = {"n_images": 4, "mean_set_size": 2.0, "largest_set": 2, "n_empty": 0, "n_single": 0}
      >>> summary = {"candidates": sets, "annotator": None, "guesses": {"named": [4, 4], "first": [4, 0], "sizes": [0]}}
      >>> section = guessed_section(Run("run", summary=summary, data={"class_names": ["cat", "owl"]}))
      >>> section["origin"], section["facts"][-1], section["verdict"]
      ('They came with the data.', ('Hardly ever the first guess', 'owl (0)'), [])
    """
    if not run.summary.get("candidates"):
        return None
    on_test, on_train = change_rows(run, "test"), change_rows(run, "train")
    known = [row for row in on_test or on_train if row["change"] is not None]
    return {
        "origin": _origin(run),
        "facts": _facts(run),
        "replaced": list((_annotator(run).get("descriptions") or {}).items()),
        "verdict": _verdict(run),
        "is_worse": is_below_annotator(run.summary),
        "corrected": [row for row in known if row["change"] >= CHANGED],
        "lost": [row for row in reversed(known) if row["change"] <= -CHANGED],
        "scored_on": "test images" if on_test else "training images whose truth is known",
        "notes": curve_notes(run),
        "own_sets": own_sets_words(run.summary.get("own_sets")),
        "overruled": _overruled_rows(run),
        "deployed": deployed_words(run.epochs),
    }


def own_sets_words(found: Mapping[str, Any] | None) -> list[str]:
    """How labels of training images were decided between the model and their candidates; no words if there are none.

    Args:
      found: ``own_sets`` of summary.json.

    Example:
      >>> own_sets_words({"rule": "no", "outside_frac": 0.16, "label_outside_frac": 0.0})
      ['labels of training images: the best of their candidates (the model alone would leave them for 16.0%)']
    """
    if not found:
        return []
    how = {
        "no": "the best of their candidates",
        "yes": "what the model says of the image alone, inside its candidates or not",
        "auto": "what the model and their candidates say together",
    }[found["rule"]]
    alone = f"the model alone would leave them for {percent(found['outside_frac'])}"
    if found["rule"] == "auto":
        alone = (
            f"the class is among them for an estimated {percent(found['truth_inside'])} of the images; "
            f"{percent(found['label_outside_frac'])} of the labels are not, {alone}"
        )
    return [f"labels of training images: {how} ({alone})"]


def overruled(labels: pa.Table) -> list[int]:
    """Rows of labels.parquet where the model and the candidates differ, at most `OVERRULED_MAX`.

    First come labels that are none of the candidates, then those whose candidates overruled the model; of each the
    surest first.

    Example:
      >>> table = {"label": ["a", "b", "a"], "probability": [0.9, 0.6, 0.8], "source": ["predicted"] * 3}
      >>> sets = {"candidates": ["a|b", "b|c", "b"], "outside_candidates": [False, True, True]}
      >>> overruled(pa.table(table | sets))
      [2, 1]
    """
    if "outside_candidates" not in labels.column_names:
        return []
    wanted = ("label", "probability", "source", "candidates", "outside_candidates")
    rank = []
    for row, (label, probability, source, named, is_outside) in enumerate(
        zip(*(labels[name].to_pylist() for name in wanted), strict=True)
    ):
        is_out = named is not None and label not in named.split("|")
        if source != "given" and (is_out or is_outside):
            rank.append((not is_out, -probability, row))
    return [row for *_, row in sorted(rank)[:OVERRULED_MAX]]


def _overruled_rows(run: Run) -> list[dict[str, Any]]:
    if run.labels is None:
        return []
    pictures, wanted = read_thumbnails(run.path), ("id", "label", "probability", "candidates")
    rows = overruled(run.labels)
    shown = run.labels.take(rows).select(wanted).to_pylist() if rows else []
    return [row | {"picture": pictures.get(row["id"])} for row in shown]


def _annotator_lines(run: Run) -> list[tuple[str, str, str]]:
    return [line.removeprefix("annotator ").partition(": ") for line in reliability_lines(run.summary.get("crowd"))]


# ---- the guesses ----------------------------------------------------------------------------------------------------


def _annotator(run: Run) -> Mapping[str, Any]:
    return run.summary.get("annotator") or {}


def _origin(run: Run) -> str:
    who = _annotator(run)
    if not who:
        return "They came with the data."
    if who.get("kind") == "chat":
        words = f"The chat model {who['name']} was asked about each image, in {who.get('phrasings', 1)} wordings"
        unread = who.get("n_unparseable") or 0
        words += f"; {unread:,} of {who.get('n_answers', 0):,} answers named no class of the list" if unread else ""
        failed = who.get("n_failed") or 0
        return words + (f"; {failed:,} questions failed." if failed else ".")
    rules = {
        "union": "every class that one of the wordings puts first",
        "top_k": f"the {who.get('top_k')} classes that fit best",
        "ratio": f"every class at least {who.get('ratio')} times as probable as the best one",
        "mean": "the one class that fits best",
    }
    wordings = who.get("n_templates") or 1
    how = f", in {wordings} wordings" if wordings > 1 else ""
    return (
        f"{who['name']} compared each image with the class names{how}; its guesses are "
        f"{rules.get(str(who.get('rule')), 'the classes that fit')}."
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    found, counts = run.summary["candidates"], run.summary.get("guesses") or {}
    facts = [("Images", number(found.get("n_images")))]
    if found.get("mean_set_size") is not None:
        facts.append(("Guesses per image", f"{found['mean_set_size']:.2f} on average, at most {found['largest_set']}"))
    facts += [("Images with a single guess", number(found["n_single"]))] if found.get("n_single") else []
    facts += [("Images without any", number(found["n_empty"]))] if found.get("n_empty") else []
    if found.get("truth_inside") is not None:
        of = f" of {found['n_scored']:,} images" if found.get("n_scored") else ""
        facts.append(("Truth among the guesses, where it is known", percent(found["truth_inside"]) + of))
    if counts.get("accuracy") is not None:
        facts.append((f"{_one_guess(run).capitalize()}, right", percent(counts["accuracy"])))
    names = run.class_names
    facts += [(f"Annotator {who}", rest) for who, _, rest in _annotator_lines(run)]
    named, first = counts.get("named") or [], counts.get("first") or []
    if len(named) != len(names) or len(first) != len(names):
        return facts
    never = [name for name, n in zip(names, named, strict=True) if n == 0]
    even = sum(first) / max(1, len(first))
    hardly = [f"{c} ({n:.0f})" for c, n, m in zip(names, first, named, strict=True) if m and n < HARDLY * even]
    facts += [("Never guessed", _listed(never))] if never else []
    what = "Hardly ever the first guess" if _is_ranked(run) else "Hardly ever guessed"
    return facts + ([(what, _listed(hardly))] if hardly else [])


def _is_ranked(run: Run) -> bool:
    return bool((run.summary.get("guesses") or {}).get("is_ranked", True))


def _one_guess(run: Run) -> str:
    """What ``first`` of the guesses counts: of sets whose members all weigh the same there is no first one."""
    return "first guess" if _is_ranked(run) else "guess drawn by chance"


def guess_figures(run: Run) -> list[Figure]:
    """Images whose guesses hold a class, and whose first guess it is; sizes of the sets where they differ.

    Example:
      >>> summary = {"candidates": {"n_images": 3}, "guesses": {"named": [3, 2], "first": [3, 0], "sizes": [0, 1, 2]}}
      >>> figures = guess_figures(Run("run", summary=summary, data={"class_names": ["cat", "owl"]}))
      >>> [figure.title for figure in figures]
      ['How often each class is guessed', 'Guesses per image']
    """
    counts, names = run.summary.get("guesses") or {}, run.class_names
    figures = []
    named, first = counts.get("named") or [], counts.get("first") or []
    if names and len(named) == len(first) == len(names):
        rows = sorted(zip(names, named, first, strict=True), key=lambda row: (-row[2], -row[1]))
        class_names, values = [name for name, *_ in rows], [n for *_, n in rows]
        series = {"among the guesses": ([n for _, n, _ in rows], BEFORE), _one_guess(run): (values, AFTER)}
        data, layout = named_bars(class_names, series, what="images")
        alt = (
            f"Bar chart of {len(names)} classes: the first guess most often {class_names[0]} "
            f"({values[0]:,.0f} images), least often {class_names[-1]} ({values[-1]:,.0f})."
        )
        is_wide = len(names) > MAX_NAMED
        figures.append(Figure("How often each class is guessed", alt, data, layout, is_wide=is_wide))
    sizes = [(size, n) for size, n in enumerate(counts.get("sizes") or []) if n]
    if len(sizes) > 1:
        bars: dict[str, Any] = {"type": "bar", "x": [s for s, _ in sizes], "y": [n for _, n in sizes]}
        bars |= {"marker": {"color": AFTER}, "hovertemplate": "%{x} guesses: %{y:,} images<extra></extra>"}
        most = max(sizes, key=lambda row: row[1])
        alt = f"Bar chart: from {sizes[0][0]} to {sizes[-1][0]} guesses per image, most often {most[0]}."
        layout = axes_layout("guesses", "images", x={"tickformat": "d"})
        figures.append(Figure("Guesses per image", alt, [bars], layout))
    return figures


# ---- against what it learned from -----------------------------------------------------------------------------------


def is_below_annotator(summary: Mapping[str, Any]) -> bool:
    """Whether the model is right less often on the test images than the annotator it learned from.

    Example:
      >>> summary = {"candidates": {"n_images": 1}, "annotator": {"kind": "two towers"}, "zero_shot": {"accuracy": 0.6}}
      >>> is_below_annotator({**summary, "test": {"accuracy": 0.5}}), is_below_annotator(summary)
      (True, False)
    """
    test, before = summary.get("test") or {}, summary.get("zero_shot") or {}
    if not knows_annotator(summary) or test.get("accuracy") is None or before.get("accuracy") is None:
        return False
    return bool(test["accuracy"] < before["accuracy"])


def knows_annotator(summary: Mapping[str, Any]) -> bool:
    """Whether ``zero_shot`` of summary.json is what the run's annotator answers: of two towers, not of a chat model.

    Example:
      >>> knows_annotator({"candidates": {"n_images": 1}, "annotator": {"kind": "chat"}})
      False
    """
    return bool(summary.get("candidates")) and (summary.get("annotator") or {}).get("kind") == "two towers"


def change_rows(run: Run, images: str) -> list[dict[str, Any]]:
    """Class by class, the share that is right before and after training, the largest gain first.

    Args:
      run: on candidate labels.
      images: "test", against the annotator's answers on them; or "train", where the truth is known for scoring, against
        the annotator's answers or, without these, the first guesses.

    Returns: rows with the keys name, before, after, change; None where a class has no such images. No rows where there
      is nothing to compare.

    Example:
      >>> summary = {"pseudolabels": {"per_class": [0.5, 1.0]}, "guesses": {"per_class": [0.75, 0.25]}}
      >>> run = Run("run", summary=summary, data={"class_names": ["cat", "owl"]})
      >>> [(row["name"], row["change"]) for row in change_rows(run, "train")]
      [('owl', 0.75), ('cat', -0.25)]
    """
    names, (was, now, _) = run.class_names, _compared(run, images, "per_class")
    if not names or len(was or ()) != len(names) or len(now or ()) != len(names):
        return []
    rows = [
        {"name": name, "before": b, "after": a, "change": None if a is None or b is None else a - b}
        for name, b, a in zip(names, was, now, strict=True)
    ]
    return sorted(rows, key=lambda row: -2.0 if row["change"] is None else -row["change"])


def _compared(run: Run, images: str, key: str) -> tuple[Any, Any, str]:
    """(before, after, what answered before) of a score of ``change_rows``' images; None where it is not known."""
    after = run.test if images == "test" else run.summary.get("pseudolabels") or {}
    asked = run.zero_shot if images == "test" else after.get("zero_shot") or {}
    before = asked.get(key) if knows_annotator(run.summary) else None
    if images == "test" or before is not None:
        return before, after.get(key), "annotator"
    return (run.summary.get("guesses") or {}).get(key), after.get(key), _one_guess(run)


def change_figures(run: Run) -> list[Figure]:
    """A line per class from the annotator to the model, on the test and on the training images.

    Example:
      >>> summary = {"candidates": {"n_images": 1}, "annotator": {"kind": "two towers"},
      ...            "zero_shot": {"per_class": [0.5, 1.0]}, "test": {"per_class": [1.0, 0.75]}}
      >>> figures = change_figures(Run("run", summary=summary, data={"class_names": ["a", "b"]}))
      >>> [figure.alt for figure in figures]
      ['Chart of 2 classes before and after training: most gained a (+50.0 points), least b (-25.0 points).']
    """
    figures = []
    for images, where in (("test", "test images"), ("train", "training images whose truth is known")):
        rows = [row for row in change_rows(run, images) if row["change"] is not None]
        if rows:
            who = _compared(run, images, "per_class")[2]
            figures.append(_dumbbells(f"Right in each class, {where}", rows, who))
    return figures


def _dumbbells(title: str, rows: Sequence[Mapping[str, Any]], who: str) -> Figure:
    names, at = [row["name"] for row in rows], list(range(len(rows)))
    data: list[dict[str, Any]] = []
    for colour, is_gain in ((AFTER, True), (LOST, False)):
        shown = [(c, row) for c, row in enumerate(rows) if row["change"] and (row["change"] > 0) == is_gain]
        line: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": "corrected" if is_gain else "lost"}
        line |= {"x": [v for _, row in shown for v in (row["before"], row["after"], None)], "hoverinfo": "skip"}
        line |= {"y": [v for c, _ in shown for v in (c, c, None)], "line": {"color": colour, "width": 4}}
        data += [line] if shown else []
    hover = [f"{plain_text(row['name'])}: {percent(row['before'])} → {percent(row['after'])}" for row in rows]
    for key, words, colour in (("before", who, BEFORE), ("after", "this model", AFTER)):
        dots: dict[str, Any] = {"type": "scatter", "mode": "markers", "name": words, "customdata": hover, "y": at}
        dots |= {"x": [row[key] for row in rows], "marker": {"color": colour, "size": 10}}
        data.append(dots | {"hovertemplate": "%{customdata}<extra></extra>"})
    axis = {"range": [-0.03, 1.03], "tickformat": ".0%"}
    layout = rows_layout("share of the class's images that is right", names, x=axis)
    if len(rows) > MAX_NAMED:
        layout["yaxis"] |= {"showticklabels": False, "title": {"text": "classes (names on hover)"}}
        layout |= {"height": 600, "meta": {}}
    best, worst = rows[0], rows[-1]
    alt = (
        f"Chart of {len(rows)} classes before and after training: most gained {best['name']} "
        f"({points(best['before'], best['after'])} points), least {worst['name']} "
        f"({points(worst['before'], worst['after'])} points)."
    )
    return Figure(title, alt, data, layout)


def _verdict(run: Run) -> list[str]:
    verdict = []
    before, after, _ = _compared(run, "test", "accuracy")
    if before is not None and after is not None:
        verdict.append(
            f"On {run.test.get('n_scored', 0):,} test images the annotator alone is right for {percent(before)}, the "
            f"model that learned from it for {percent(after)} ({points(before, after)} points)."
        )
        if is_below_annotator(run.summary):
            verdict.append(
                "It is worse than its annotator: use the annotator's guesses, or better ones, rather than this model."
            )
    before, after, who = _compared(run, "train", "accuracy")
    if before is not None and after is not None:
        who = "the annotator's answers are" if who == "annotator" else f"the {who} is"
        verdict.append(
            f"Training images whose truth is known (used for scoring alone): {who} right for {percent(before)}, the "
            f"model's answers for {percent(after)}."
        )
    return verdict


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED_MAX]) + (f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else "")
