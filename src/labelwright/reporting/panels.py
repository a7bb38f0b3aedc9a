"""The part of a report about the situation of a run: names, candidates, new classes, class sizes, given labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from labelwright.annotators.reliability import reliability_lines
from labelwright.metrics.classification import imbalance
from labelwright.reporting.sections import Card, Panel, Sections, Table, curve
from labelwright.reporting.svg import Chart, bars, lines
from labelwright.reporting.words import (
    deployed_words,
    finite,
    is_below_annotator,
    knows_annotator,
    listed,
    own_sets_words,
)
from labelwright.run_folder import Run
from labelwright.wording import counted, number, percent, points

HARDLY = 0.1  # of an even share of the first guesses: a class with less is hardly ever named
CHANGED = 0.05  # of a class's images: smaller changes are not called a correction or a loss
LIKE_OTHERS = 0.02  # of tightness: a class that differs less from the median of all is as tight as most
CLOSE = 0.5  # of how well the best word fits: words that fit less are not proposed
BARS_MAX = 20


# ---- class names ----------------------------------------------------------------------------------------------------


def names_sections(run: Run) -> Sections:
    """Class names that fit no image and what took their place; labels by the names alone and by this model.

    Example:
      >>> begin = {"mismatched": ["owl"], "evidence": [0.9, 0.1], "unrepaired": ["owl"], "guessed": ["owl"]}
      >>> run = Run("run", summary={}, data={"class_names": ["cat", "owl"]}, begun=begin, epochs=[])
      >>> names_sections(run).panels[0].tables[0].rows
      [('owl', '0.10', 'The images left over, which are a class of their own')]
    """
    panels = [panel for panel in (_names_panel(run), _shares_panel(run)) if panel is not None]
    kept = kept_epoch(run)
    meaning = "" if kept is None else f"The state {'after epoch ' + str(kept) if kept else 'before training'} was kept."
    training = [
        *curve(
            run,
            "Agreement with groups of images that look alike",
            {"agreement": "cluster_agreement"},
            meaning=meaning,
            kept=kept,
        ),
        *curve(run, "Unevenness of the labels (Gini: 0 even, near 1 all in one class)", {"Gini": "gini"}, kept=kept),
    ]
    return Sections(panels, training)


def evidence_of(run: Run) -> dict[str, tuple[float | None, str]]:
    """Class name -> (how well the images bear it out, 0 to 1; what stands in for it, empty if it stays)."""
    begin = run.begun
    if "mismatched" not in begin:
        return {}
    names = [str(name) for name in begin.get("class_names") or run.class_names]
    evidence = begin.get("evidence") or []
    known = [finite(value) for value in evidence] if len(evidence) == len(names) else [None] * len(names)
    keys = ("mismatched", "contradicted", "unrepaired", "descriptions")
    concerned = {name for key in keys for name in begin.get(key) or ()}
    return {
        name: (value, _stand_in(begin, name) if name in concerned else "")
        for name, value in zip(names, known, strict=True)
    }


def kept_epoch(run: Run) -> int | None:
    """How many epochs the kept state has trained, 0 = none; None for a run that does not say.

    Example:
      >>> kept_epoch(Run("run", summary={}, data={}, epochs=[{"epoch": 0}, {"epoch": 1, "kept_epoch": 0}]))
      1
    """
    found = [record["kept_epoch"] for record in run.epochs if record.get("kept_epoch") is not None]
    return int(found[-1]) + 1 if found else None


def _names_panel(run: Run) -> Panel | None:
    found = evidence_of(run)
    if not found:
        return None
    order = sorted(found.items(), key=lambda item: 2.0 if item[1][0] is None else item[1][0])
    rows = [(name, _two(value), used) for name, (value, used) in order if used]
    if not rows:
        weakest = [f"{name} ({_two(value)})" for name, (value, _) in order[:3] if value is not None]
        return Panel(
            "Class names", [f"Every class name fits some images; the weakest: {', '.join(weakest) or 'none'}."]
        )
    refused = run.begun.get("rejected") or {}
    wrong = run.begun["mismatched"]
    words = [
        f"{counted(len(wrong), 'class name fits', 'class names fit')} no image: {listed(wrong)}."
        if wrong
        else "Every class name fits some images; some classes are better described than named.",
        *(f"Described worse than named, so not used: {name}: {listed(texts, 2)}." for name, texts in refused.items()),
    ]
    table = Table("Names that gave way", ("Class", "Evidence (0 to 1)", "What stands in for the name"), rows)
    return Panel("Class names and descriptions", words[:8], [table])


def _stand_in(begin: Mapping[str, Any], name: str) -> str:
    if name in (begin.get("guessed") or ()):
        return "The images left over, which are a class of their own"
    if name in (begin.get("placed") or ()):
        return "Its labelled images"
    if name in (begin.get("descriptions") or {}):
        return f"“{begin['descriptions'][name]}”"
    return "Nothing: the name stays, though it fits no image" if name in (begin.get("unrepaired") or ()) else "Nothing"


def _shares_panel(run: Run) -> Panel | None:
    """Labels by the class names alone and by this model: how even, how right."""
    after = run.summary.get("pseudolabels") or {}
    before = after.get("zero_shot") or {}
    if not after.get("counts") or not before.get("counts"):
        return None
    uneven = [imbalance(found["counts"]) for found in (before, after)]
    rows = [("Largest to smallest class", _ratio(uneven[0]), _ratio(uneven[1]))]
    words = [f"Largest to smallest class: {_ratio(uneven[0])} by the names alone, {_ratio(uneven[1])} by this model."]
    if before.get("accuracy") is not None and after.get("accuracy") is not None:
        rows.insert(0, ("Right, where the truth is known", percent(before["accuracy"]), percent(after["accuracy"])))
        words.insert(
            0,
            f"Of the unlabelled images whose truth is known {percent(after['accuracy'])} are right; by the class names "
            f"alone {percent(before['accuracy'])}.",
        )
    table = Table("Labels of unlabelled images", ("", "By the class names alone", "By this model"), rows)
    return Panel("Before and after", words, [table])


def _ratio(uneven: Mapping[str, Any]) -> str:
    if uneven["ratio"] is None:
        return f"{counted(uneven['n_empty'], 'class is', 'classes are')} empty"
    return f"{uneven['ratio']:,.1f} to 1" if uneven["ratio"] < 10 else f"{uneven['ratio']:,.0f} to 1"


# ---- candidates -----------------------------------------------------------------------------------------------------


def candidate_sections(run: Run) -> Sections:
    """What the guesses were, whether training bettered them, and class by class what was gained and lost."""
    if not run.summary.get("candidates"):
        return Sections()
    words = [_origin(run), *_compared_words(run), *deployed_words(run.epochs)]
    words += [f"{words[:1].upper()}{words[1:]}." for words in own_sets_words(run.summary.get("own_sets"))]
    replaced = list(((run.summary.get("annotator") or {}).get("descriptions") or {}).items())
    what = "Guesses" if run.summary.get("annotator") else "Candidates"
    tables = [Table(f"The {what.lower()}", ("", ""), _guess_facts(run, what))]
    if replaced:
        tables.append(Table("Described in place of named", ("Class", "Description"), replaced))
    rows = change_rows(run)
    changes = [row for row in rows if row["change"] is not None and abs(row["change"]) >= CHANGED]
    if changes:
        shown = changes if len(changes) <= 12 else [*changes[:6], *changes[-6:]]
        head = ("Class", "Before", "After", "Points")
        cells = [
            (row["name"], percent(row["before"]), percent(row["after"]), points(row["before"], row["after"]))
            for row in shown
        ]
        tables.append(Table(f"Classes that changed most, {_scored_on(run)}", head, cells))
    shares = {
        "guesses trusted": "reliable_frac",
        "answers among the guesses": "in_set_frac",
        "answers inside": "inside_frac",
        "two networks agree": "network_agreement",
    }
    training = curve(
        run, "Guesses and answers", shares, is_share=True, meaning="An answer outside is a correction, or a mistake."
    )
    return Sections([Panel("Candidate labels", words, tables, _guess_charts(run))], training)


def _is_ranked(run: Run) -> bool:
    return bool((run.summary.get("guesses") or {}).get("is_ranked", True))


def _origin(run: Run) -> str:
    who = run.summary.get("annotator") or {}
    if not who:
        return "The candidates came with the data."
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
    rule = rules.get(str(who.get("rule")), "the classes that fit")
    name = Path(who["name"]).name if str(who["name"]).startswith("/") else who["name"]
    return f"{name} compared each image with the class names{how}; its guesses are {rule}."


def _guess_facts(run: Run, what: str) -> list[tuple[str, str]]:
    found, counts, names = run.summary["candidates"], run.summary.get("guesses") or {}, run.class_names
    facts = [("Images", number(found.get("n_images")))]
    if found.get("mean_set_size") is not None:
        facts.append((f"{what} per image", f"{found['mean_set_size']:.2f} on average, at most {found['largest_set']}"))
    facts += [("Images with a single one", number(found["n_single"]))] if found.get("n_single") else []
    facts += [("Images without any", number(found["n_empty"]))] if found.get("n_empty") else []
    if found.get("truth_inside") is not None:
        of = f" of {found['n_scored']:,} images" if found.get("n_scored") else ""
        facts.append((f"Right class among the {what.lower()}, where it is known", percent(found["truth_inside"]) + of))
    first_words = "first guess" if _is_ranked(run) else "guess drawn by chance"
    if counts.get("accuracy") is not None:
        facts.append((f"{first_words.capitalize()}, right", percent(counts["accuracy"])))
    for line in reliability_lines(run.summary.get("crowd")):
        who, _, rest = line.removeprefix("annotator ").partition(": ")
        facts.append((f"Annotator {who}", rest))
    named, first = counts.get("named") or [], counts.get("first") or []
    if len(named) != len(names) or len(first) != len(names):
        return facts
    never = [name for name, n in zip(names, named, strict=True) if n == 0]
    even = sum(first) / max(1, len(first))
    hardly = [f"{c} ({n:.0f})" for c, n, m in zip(names, first, named, strict=True) if m and n < HARDLY * even]
    facts += [("Never guessed", listed(never))] if never else []
    return facts + ([(f"Hardly ever the {first_words}", listed(hardly))] if hardly else [])


def _guess_charts(run: Run) -> list[Chart]:
    counts, names = run.summary.get("guesses") or {}, run.class_names
    first = counts.get("first") or []
    if not names or len(first) != len(names) or not sum(first):
        return []
    rows = sorted(zip(names, first, strict=True), key=lambda row: -row[1])
    even = sum(first) / len(first)
    most, least = rows[0], rows[-1]
    if most[1] < 1.5 * max(least[1], 1e-9):  # as good as even: nothing to see
        return []
    finding = (
        f"{most[0]} is guessed {most[1] / even:.1f} times as often as an even share, {least[0]} {least[1] / even:.1f}."
    )
    shown = rows if len(rows) <= BARS_MAX else [*rows[: BARS_MAX // 2], *rows[-BARS_MAX // 2 :]]
    which = "" if len(rows) <= BARS_MAX else f", the {BARS_MAX // 2} most and least frequent"
    words = "first guess" if _is_ranked(run) else "guess"
    return [bars(f"How often each class is the {words}{which}", finding, [(n, v, f"{v:,.0f}") for n, v in shown])]


def change_rows(run: Run) -> list[dict[str, Any]]:
    """Class by class, the share that is right before and after training, the largest gain first; on test images, else
    on training images whose truth is known.

    Example:
      >>> summary = {"pseudolabels": {"per_class": [0.5, 1.0]}, "guesses": {"per_class": [0.75, 0.25]}}
      >>> run = Run("run", summary=summary, data={"class_names": ["cat", "owl"]})
      >>> [(row["name"], row["change"]) for row in change_rows(run)]
      [('owl', 0.75), ('cat', -0.25)]
    """
    names = run.class_names
    for images in ("test", "train"):
        was, now = _compared(run, images, "per_class")
        if names and len(was or ()) == len(names) == len(now or ()):
            rows = [
                {"name": n, "before": b, "after": a, "change": None if a is None or b is None else a - b}
                for n, b, a in zip(names, was, now, strict=True)
            ]
            return sorted(rows, key=lambda row: -2.0 if row["change"] is None else -row["change"])
    return []


def _scored_on(run: Run) -> str:
    return "on test images" if _compared(run, "test", "per_class")[0] else "on training images whose truth is known"


def _compared(run: Run, images: str, key: str) -> tuple[Any, Any]:
    """(before, after) of a score: the annotator's, or on training images that of the first guesses; None if unknown."""
    after = run.test if images == "test" else run.summary.get("pseudolabels") or {}
    asked = run.zero_shot if images == "test" else after.get("zero_shot") or {}
    before = asked.get(key) if knows_annotator(run.summary) else None
    if images == "test" or before is not None:
        return before, after.get(key)
    return (run.summary.get("guesses") or {}).get(key), after.get(key)


def _compared_words(run: Run) -> list[str]:
    words = []
    for images, where in (("test", "test images"), ("train", "training images whose truth is known")):
        before, after = _compared(run, images, "accuracy")
        if before is not None and after is not None:
            change = points(before, after)
            words.append(
                f"On {where} the guesses alone are right for {percent(before)}, the model that learned from them for "
                f"{percent(after)} ({change} points)."
            )
    if is_below_annotator(run.summary):
        words.append("The model is worse than its annotator: use the annotator's guesses, or better ones.")
    return words


# ---- new classes ----------------------------------------------------------------------------------------------------


def novel_sections(run: Run) -> Sections:
    """How many classes there are beyond the named ones, with the range, how good they are, and a card for each.

    Example:
      >>> clusters = [{"name": "novel-1", "n_images": 3, "tightness": 0.9, "taken_for": [["cat", 1.0]]}]
      >>> summary = {"n_seen": 2, "n_novel": 1, "novel": {"evidence": None, "clusters": clusters}}
      >>> panel = novel_sections(Run("run", summary=summary, data={}, epochs=[], begun={})).panels[0]
      >>> panel.words[0], panel.cards[0].words
      ('1 new class: you gave the number.', ['3 images.', 'Nearest other class: cat.'])
    """
    n = run.summary.get("n_novel")
    if n is None:
        return Sections()
    novel = run.summary.get("novel") or {}
    evidence, clusters = novel.get("evidence") or {}, novel.get("clusters") or []
    words = [_count_words(n, evidence)]
    how = str(evidence.get("reason") or "").partition(". ")[0].rstrip(".")  # the rest stands in the chart
    words += [f"{how[:1].upper()}{how[1:]}."] if how else []
    if evidence.get("is_edge"):
        most = max(2 * (evidence.get("most") or 0), 10)
        words.append(f"This is an end of the range that was tried: run it again with a wider one, as --novel 0-{most}.")
    words += [f"Afterwards {edit}." for edit in novel.get("edits") or ()]
    scored = {"Test images": run.test, "Unlabelled images": run.summary.get("pseudolabels") or {}}
    scored = {where: found for where, found in scored.items() if found.get("novel") is not None}
    if n and not scored:
        words.append("How good the new classes are is not known: no image is known to be of one. Look at them below.")
    keys = (
        ("seen", "Right, of images of named classes"),
        ("novel", "Right, of images of new classes"),
        ("all", "Right, of all images"),
        ("to_seen", "Images of new classes taken for a named one"),
        ("to_novel", "Images of named classes taken for a new one"),
    )
    rows = [(what, *(percent(found.get(key)) for found in scored.values())) for key, what in keys]
    tables = [Table("Scores", ("", *scored), rows)] if scored else []
    tight = sorted(c["tightness"] for c in clusters if c.get("n_images") and c.get("tightness") is not None)
    cards = [_cluster_card(run, cluster, i, tight) for i, cluster in enumerate(clusters)]
    panel = Panel("Classes beyond the named ones", words, tables, _evidence_chart(evidence), cards)
    pace = {"named": "test.seen", "new": "test.novel"}
    pool = {"named": "test.pool_seen", "new": "test.pool_novel"}
    training = curve(run, "Right while training, test images", pace, is_share=True)
    training += curve(run, "Right while training, unlabelled images", pool, is_share=True)
    return Sections([panel], training)


def _count_words(n: int, evidence: Mapping[str, Any]) -> str:
    what = counted(n, "new class", "new classes") if n else "No new class"
    if not evidence:
        return f"{what}: you gave the number."
    low, high = evidence.get("plausible") or (n, n)
    span = f"{low} to {high} are plausible" if low < high else "no other number is plausible"
    doubt = " There could be none." if evidence.get("could_be_none") else ""
    return f"{what} found; {span}.{doubt}"


def _evidence_chart(evidence: Mapping[str, Any]) -> list[Chart]:
    curve_rows = [row for row in evidence.get("curve") or () if finite(row.get("score")) is not None]
    if len(curve_rows) < 2:
        return []
    xs, ys = [row["n_novel"] for row in curve_rows], [finite(row["score"]) for row in curve_rows]
    used, (low, high) = evidence["n_novel"], evidence.get("plausible") or (evidence["n_novel"],) * 2
    finding = f"{used} is the median of the counts; most lie between {low} and {high} (shaded)."
    return [
        lines(
            "How often each number of new classes came out",
            finding,
            {"share of the counts": (xs, ys)},
            x_title="number of new classes",
            is_share=True,
            mark=(used, f"used: {used}"),
            band=(low, high),
        )
    ]


def _cluster_card(run: Run, cluster: Mapping[str, Any], i: int, tight: Sequence[float]) -> Card:
    name, n = str(cluster["name"]), cluster.get("n_images") or 0
    if n == 0:
        return Card(name, ["The model put no image here: it needs fewer classes."])
    words = [f"{counted(n, 'image')}."]
    if cluster.get("tightness") is not None and len(tight) >= 3:
        away = cluster["tightness"] - median(tight)
        if abs(away) > LIKE_OTHERS:
            words.append("Its images are more alike than most." if away > 0 else "Mixed: it may hold several classes.")
    at = (run.summary.get("n_seen") or 0) + i
    for scores in (run.summary.get("pseudolabels") or {}, run.test):
        matched = scores.get("matched") or []
        if at < len(matched) and scores.get("novel") is not None:  # images of new classes are known
            words.append(f"True class it fits best: {matched[at] or 'none'}.")
            break
    offered: list[Any] = cluster.get("proposed") or []
    names = [str(word) for word, lift in offered if lift > 0 and lift >= CLOSE * offered[0][1]]
    words += [f"Perhaps {', '.join(names)}."] if names else []
    taken = [str(other) for other, _ in cluster.get("taken_for") or ()][:2]
    words += [f"Nearest other class: {' and '.join(taken)}."] if taken else []
    return Card(name, words, [str(key) for key in cluster.get("central") or ()])


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
