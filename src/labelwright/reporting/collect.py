"""Everything that a report says, as one dict made from the files of a run, for the page, a notebook and the terminal.

title, facts              what the run is
verdict                   level, sign, sentence, facts: how good its labels are, in words
next                      at most three things to do, each with a command
check                     tabs and images to look at
classes, confusions       a row per class; pairs of classes that are mistaken for each other
panels                    what the situation of the run asks for
reliability               how far trust can be relied on
training, again           how it was trained, and how to make it again
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from labelwright.reporting.checks import TABS, is_given, rows_of, to_check
from labelwright.reporting.gallery import read_gallery
from labelwright.reporting.panels import evidence_of, given_panels, interval, kept_epoch, size_panels
from labelwright.reporting.sections import Sections, curve
from labelwright.reporting.svg import Chart, dots, lines, matrix
from labelwright.reporting.words import COLUMNS, SITUATIONS, beside_rows, listed
from labelwright.run_folder import Run
from labelwright.wording import counted, duration, number, percent

GOOD, FAIR = 0.9, 0.7  # share of right labels from which they are called good, or usable after a look
BEHIND = 0.01  # so much less than the obvious is behind it
WORTH_ACCEPTING = (0.95, 0.9, 0.8)  # shares of right labels that the surest ones are looked through for
LEAST_SEEN = 3  # test images of a class, of which none was recognised, before the page names it
ENOUGH = 100  # test images from which scores on them are compared rather than those on labels that were left out
STRANGE = 0.05  # share of images that look like no class, from which there may be more classes
MAX_ROWS = 100  # of a table
MAX_PAIRS = 8

LEVELS = {
    "good": ("✓", "Good"),
    "fair": ("!", "Usable after a look"),
    "poor": ("✗", "Not good enough yet"),
    "unknown": ("?", "Not measured"),
}
"""Level of a verdict -> (sign, words)."""


def collect(run: Run, sections: Sections | None = None, *, command: str = "") -> dict[str, Any]:
    """What there is to say of a finished run; see the head of this file for the keys.

    Args:
      run: its folder.
      sections: what its method adds.
      command: that makes it again.

    Example:
      >>> summary = {"method": "cvs", "test": {"accuracy": 0.8, "n_scored": 100}}
      >>> found = collect(Run("run", summary=summary, data={}, config={}, environment={}, records=[], labels=None))
      >>> found["verdict"]["sentence"]
      'About 80 of 100 labels are right (71 to 87), measured on 100 test images.'
    """
    sections, gallery = sections or Sections(), read_gallery(run.path)
    check = _check(run, gallery)
    verdict = _verdict(run)
    written = run.path / "summary.json"
    when = datetime.fromtimestamp(written.stat().st_mtime, UTC) if written.exists() else datetime.now(UTC)
    return {
        "title": title_of(run),
        "made": when.strftime("%Y-%m-%d"),
        "key": str(run.data.get("fingerprint") or run.name),
        "facts": _facts(run),
        "verdict": verdict,
        "next": _next(run, verdict, check, command),
        "check": check,
        "classes": _classes(run, gallery),
        "confusions": _confusions(run, gallery, check),
        "panels": [*sections.panels, *size_panels(run), *given_panels(run)],
        "small": gallery["small"],
        "reliability": _reliability(gallery["trust"]),
        "training": {"words": _trained_words(run), "charts": [*_training(run), *sections.training]},
        "again": _again(run, command),
    }


def title_of(run: Run) -> str:
    """The title that was given, else the name of the data, else that of the folder.

    Example:
      >>> title_of(Run("run", summary={}, config={"data": "photos/birds.csv"}))
      'birds'
    """
    if run.summary.get("title"):
        return str(run.summary["title"])
    data = str(run.config.get("data") or "")
    return run.name if not data or data.startswith("<") else Path(data).stem


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was given and what was done, a few words each."""
    summary, facts = run.summary, []
    if summary.get("n_images") is not None:
        n, labelled = summary["n_images"], summary.get("n_labelled")
        words = (
            f"{n:,}"
            if labelled is None
            else f"{n:,}, all labelled"
            if labelled == n
            else f"{n:,}, {labelled:,} labelled"
        )
        facts.append(("Training images", words))
    if summary.get("n_classes") is not None:
        extra = f" and {summary['n_novel']:,} found" if summary.get("n_novel") else ""
        facts.append(("Classes", f"{summary['n_classes']:,}{extra}"))
    name = (run.data.get("situation") or {}).get("name") or summary.get("situation")
    facts += [("What was known", SITUATIONS.get(str(name), str(name)))] if name else []
    if summary.get("method"):
        answer = (summary.get("answer") or {}).get("title")
        facts.append(("Method", f"{summary['method']}{f', answer of {answer}' if answer else ''}"))
    if summary.get("encoder"):
        facts.append(("Model", "stored embeddings" if summary["encoder"] == "none" else Path(summary["encoder"]).name))
    seconds = summary.get("seconds")
    if isinstance(seconds, Mapping) and seconds:
        facts.append(("Time", duration(sum(v for v in seconds.values() if isinstance(v, int | float)))))
    return facts


# ---- verdict --------------------------------------------------------------------------------------------------------


BASIS = {
    "left-out labels": "judged by {n} that the classifier had not seen",
    "text model": "no label confirms this: it rests on how sure the text model was before anything was learned",
    "candidates": "no label confirms this: it rests on how sure those were who named the candidates",
    "none": "no label confirms this",
}


def _verdict(run: Run) -> dict[str, Any]:
    """level, sign, words, sentence, facts [(kind, words)], warnings, never (classes that are not recognised)."""
    share, sentence = _share_right(run)
    level = "unknown" if share is None else "good" if share >= GOOD else "fair" if share >= FAIR else "poor"
    facts: list[tuple[str, str]] = []
    predicted = _n_predicted(run)
    if share is not None and predicted:
        wrong = round(predicted * (1 - share))
        facts.append(("wrong", f"About {wrong:,} of the {predicted:,} labels that it gave are likely wrong."))
    for block in ("promise", "strangers", "audit"):
        if words := (run.summary.get(block) or {}).get("says"):
            facts.append((block, str(words)))
    is_behind = False
    if found := _obvious(run):
        words, is_behind = found
        facts.append(("behind" if is_behind else "obvious", words))
    facts += [("training", words) for words in _added_nothing(run)]
    never = never_recognised(run)
    if never:
        facts.append(("never", f"Never recognised: {listed(never)}."))
    if level == "good" and (never or is_behind):
        level = "fair"
    sign, words = LEVELS[level]
    warnings = run.summary.get("warnings") or []
    return {
        **{"level": level, "sign": sign, "words": words, "sentence": sentence},
        **{"facts": facts, "never": never, "is_behind": is_behind, "warnings": [str(each) for each in warnings]},
    }


def _share_right(run: Run) -> tuple[float | None, str]:
    """The share of labels that is right, and the sentence that says so with its interval and basis.

    Test images, or labels that were left out where these tell more; then what is known for scoring alone; then what
    trust rests on without any label.
    """
    accuracy, n, trust = run.test.get("accuracy"), run.test.get("n_scored") or 0, run.summary.get("trust") or {}
    estimated, source = trust.get("estimated"), trust.get("source", "none")
    low, high = interval(accuracy or 0.0, n)
    narrow = source == "left-out labels" and estimated is not None and trust["interval"][1] - trust["interval"][0]
    if accuracy is not None and not (n and narrow and narrow < high - low):
        how = " that were held out" if run.data.get("test_is") == "held out" else ""
        basis = f"measured on {f'{n:,} ' if n else ''}test images{how}"
        return accuracy, f"{_about(accuracy, (low, high) if n else None)}, {basis}."
    known = run.summary.get("pseudolabels") or {}
    share = known.get("all", known.get("accuracy"))
    if share is not None and narrow is False:
        return share, f"{_about(share, None)}, of the unlabelled images whose truth is known."
    if estimated is not None and source != "none":
        basis = BASIS.get(source, source).format(n=counted(trust.get("n") or 0, "label"))
        return estimated, f"{_about(estimated, trust['interval'])}; {basis}."
    return None, "How many labels are right is not known: there were no labelled images to measure it on."


def _about(share: float, span: Sequence[float] | None) -> str:
    words = "" if span is None else f" ({span[0] * 100:.0f} to {span[1] * 100:.0f})"
    return f"About {share * 100:.0f} of 100 labels are right{words}"


def _n_predicted(run: Run) -> int:
    if run.labels is None or "source" not in run.labels.column_names:
        return 0
    return int((~is_given(run.labels)).sum())


def _obvious(run: Run) -> tuple[str, bool] | None:
    """What the best obvious alternative gets, and whether the answer is behind it."""
    keys, rows = beside_rows(run.summary)
    n = run.test.get("n_scored") or 0
    order = ("test", "left_out", "unlabelled") if n >= ENOUGH else ("left_out", "test", "unlabelled")
    key = next((key for key in order if key in keys), None)
    reference = run.summary.get("reference") or {}
    if key is None:
        before, after = run.zero_shot.get("accuracy"), run.test.get("accuracy")
        if before is None or after is None:
            return None
        words = f"The class names alone get {percent(before)} of the test images right, this answer {percent(after)}."
        return words, before > after + BEHIND
    starts = {reference["start"]["title"]} if "start" in reference else set()
    own = next((row for row in rows if row["is_answer"]), None)
    others = [row for row in rows if not row["is_answer"] and row[key] is not None and row["title"] not in starts]
    if own is None or own[key] is None or not others:
        return None
    best = max(others, key=lambda row: row[key])
    mean = "" if key == "unlabelled" else " (mean over the classes)"
    gap = own[key] - best[key]
    of = {"test": n, "left_out": (run.summary.get("trust") or {}).get("n"), "unlabelled": _n_predicted(run)}[key] or 0
    chance = max(0.002, (own[key] * (1 - own[key]) / of) ** 0.5 if of else 0.0)  # a standard error
    more = "better" if gap > chance else "about the same" if gap > -chance else "worse"
    return (
        f"The obvious alternative, {best['title']}, gets {percent(best[key])} of the {COLUMNS[key]} right{mean}; "
        f"this answer {percent(own[key])}: {more}."
    ), gap < -max(BEHIND, chance)


def _added_nothing(run: Run) -> list[str]:
    """That training did not help, where it did not."""
    answer, method = run.summary.get("answer") or {}, run.summary.get("method")
    if answer.get("name") and answer["name"] != method:
        return [f"Training added nothing: the answer is that of {answer['title']}, which was at least as good."]
    if kept_epoch(run) == 0:
        return ["Training added nothing: its start was kept."]
    return []


def never_recognised(run: Run) -> list[str]:
    """Classes of which no test image was recognised, or that no image has as its label.

    Example:
      >>> test = {"per_class": [0.5, 0.0, None]}
      >>> never_recognised(Run("run", summary={"test": test}, data={"class_names": ["a", "b", "c"]}, labels=None))
      ['b']
    """
    names = [str(name) for name in run.test.get("class_names") or run.class_names]
    recall = run.test.get("per_class") or []
    sizes = run.test.get("n_per_class") or [LEAST_SEEN] * len(recall)
    found = [n for n, right, size in zip(names, recall, sizes, strict=False) if right == 0 and size >= LEAST_SEEN]
    if run.labels is not None and _n_predicted(run):
        used = set(run.labels["label"].unique().to_pylist())
        found += [name for name in run.class_names if name not in used and name not in found]
    return found


def _next(run: Run, verdict: Mapping[str, Any], check: Mapping[str, Any], command: str) -> list[dict[str, str]]:
    """At most three cards of title, why and command, the most useful first."""
    folder, data = shlex.quote(str(run.path)), shlex.quote(str(run.config.get("data") or "DATA"))
    is_there = bool(command)
    data = data if is_there else "DATA"
    cards = []
    better = (run.summary.get("answer") or {}).get("best")
    if better and better != run.summary["answer"]["name"]:
        cards.append(
            (
                "Take the better answer",
                "Something simpler did better on labels that were left out.",
                f"{command} --answer best",
            )
        )
    clusters = (run.summary.get("novel") or {}).get("clusters") or []
    unnamed = [str(c["name"]) for c in clusters if str(c["name"]).startswith("novel-") and c.get("n_images")]
    if unnamed:
        why = f"{counted(len(unnamed), 'class', 'classes')} beyond those that your labels name: look at them below."
        cards.append(("Name the new classes", why, f"labelwright classes {folder} rename {unnamed[0]} NAME"))
    if check["items"]:
        why = (
            f"{counted(len(check['items']), 'image')} below deserve a look. Mark them on this page, download "
            "corrections.csv, and learn again from it."
        )
        again = _with_corrections(run, command)
        cards.append(("Check images and learn again", why, again))
    trust, test = run.summary.get("trust") or {}, run.test.get("accuracy")
    if test is None and not trust.get("n") and not run.summary.get("promise"):
        why = (
            "Nobody has looked at these labels yet. 200 of them, looked at, say how many are right and which to accept."
        )
        cards.append(("Measure it", why, f"labelwright verify-sample {folder} --n 200 --out to-verify.csv"))
    strange = (run.summary.get("strangers") or {}).get("share") or 0.0
    if strange > STRANGE and is_there and run.summary.get("n_novel") is None:
        why = f"{percent(strange)} of the images look like none of the classes."
        cards.append(("Look for new classes", why, f"{command} --novel auto"))
    wanted = verdict["never"] if run.summary.get("zero_shot") is not None else []
    model = run.summary.get("encoder")
    if wanted and model and is_there:
        why = f"{listed(wanted, 4)}: the name may not say how the class looks. Write down how it looks."
        cards.append(("Describe what is not recognised", why, f"{command} --descriptions looks.json"))
    if run.summary.get("n_labelled") and not run.summary.get("audit") and is_there:
        why = "Your own labels may hold mistakes and copies; this finds them."
        cards.append(("Look through the given labels", why, f"labelwright audit {data} --out audit.csv"))
    cards.append(
        (
            "Use it",
            "Labels for other images, each with the chance that it is right.",
            f"labelwright label {folder} new-photos/ --out labels.csv",
        )
    )
    return [{"title": title, "why": why, "command": words} for title, why, words in cards[:3]]


def _with_corrections(run: Run, command: str) -> str:
    if not command:
        config = str(run.path / "config.yaml")
        return f'labelwright.fit(data, config="{config}", corrections="corrections.csv", out="again")'
    before = " --corrections " + shlex.join(map(str, run.config.get("corrections") or ()))
    head, out, tail = command.replace(before, "").rpartition(" --out ")
    before = before if run.config.get("corrections") else " --corrections"
    return f"{head}{before} corrections.csv{out}{tail}"


# ---- images to check ------------------------------------------------------------------------------------------------


def _check(run: Run, gallery: Mapping[str, Any]) -> dict[str, Any]:
    """tabs [(key, title, number)], items, and the names of all classes."""
    known = gallery["items"]
    guesses = {k: dict(map(tuple, i.get("history") or [])).get("first guess") for k, i in known.items()}
    changed = {key: name for key, name in guesses.items() if name is not None}
    wrong = [key for key, item in known.items() if "rather" in item]
    tabs = to_check(run.labels, run.summary, changed=changed, mistakes=wrong)
    listed_ids = list(dict.fromkeys(key for ids in tabs.values() for key in ids))
    rows = {} if run.labels is None else rows_of(run.labels, listed_ids)
    suspected = {str(row["id"]): row for row in (run.summary.get("audit") or {}).get("suspected") or []}
    copies: dict[str, str] = {}
    for a, b, *_ in (run.summary.get("audit") or {}).get("duplicates") or []:
        copies |= {str(a): str(b), str(b): str(a)}
    items = []
    for key in listed_ids:
        facts, row = known.get(key) or {}, rows.get(key) or {}
        mine = [tab for tab, ids in tabs.items() if key in ids]
        label = suspected.get(key, {}).get("given") or row.get("label") or facts.get("label") or "–"
        rather = suspected.get(key, {}).get("suggested") or facts.get("rather") or row.get("runner_up") or ""
        source = row.get("source") or "test"
        why = [TABS[tab][1] for tab in mine]
        why += [f"copy of {copies[key]}"] if key in copies else []
        items.append(
            {
                **{"id": key.removeprefix("test/"), "tabs": mine, "label": str(label), "rather": str(rather)},
                **{"source": source, "trust": row.get("trust"), "decision": row.get("decision"), "why": why},
                "may_correct": key in rows,
                "candidates": (row.get("candidates") or "").split("|") if row.get("candidates") else [],
                "picture": gallery["large"].get(key) or gallery["small"].get(key),
                "top": facts.get("top") or [],
                "history": _who_says(facts.get("history") or []),
                "neighbours": [
                    {"id": other, "label": name, "how": how, "picture": gallery["small"].get(other)}
                    for other, name, how in facts.get("neighbours") or []
                ],
            }
        )
    names = list(dict.fromkeys([*run.class_names, *(str(c["name"]) for c in _clusters(run))]))
    return {
        "tabs": [(tab, TABS[tab][0], len(ids)) for tab, ids in tabs.items()],
        "items": items,
        "names": names,
    }


def _who_says(history: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """(who says so, class), those who say the same together, in the order of their first answers."""
    found: dict[str, list[str]] = {}
    for who, name in history:
        found.setdefault(name, []).append(who)
    return [(", ".join(some), name) for name, some in found.items()]


def _clusters(run: Run) -> Sequence[Mapping[str, Any]]:
    return (run.summary.get("novel") or {}).get("clusters") or []


# ---- classes, confusions --------------------------------------------------------------------------------------------


def _classes(run: Run, gallery: Mapping[str, Any]) -> dict[str, Any]:
    """head [(key, title, is number)] of the columns that there are, rows, n_more."""
    test, names = run.test, run.class_names
    scored = [str(name) for name in test.get("class_names") or names]
    recall = dict(zip(scored, test.get("per_class") or [], strict=False))
    n_test = dict(zip(scored, test.get("n_per_class") or [], strict=False))
    precision = dict(zip(scored, test.get("precision") or [], strict=False))
    before = dict(zip(names, run.zero_shot.get("per_class") or [], strict=False))
    labelled = dict(zip(names, run.counts, strict=False))
    given = Counter[str]()
    others: dict[str, Counter[str]] = {}
    if run.labels is not None and {"source", "runner_up"} <= set(run.labels.column_names):
        own = run.labels.filter(pa.array(~is_given(run.labels)))
        for row in own.group_by(["label", "runner_up"]).aggregate([("id", "count")]).to_pylist():
            given[str(row["label"])] += row["id_count"]
            others.setdefault(str(row["label"]), Counter())[str(row["runner_up"])] += row["id_count"]
    was = ((run.summary.get("pseudolabels") or {}).get("zero_shot") or {}).get("counts") or []
    was_counts = dict(zip(names, was, strict=False))
    evidence, confused = evidence_of(run), _confused_with(names, gallery["matrix"])
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*names, *(str(cluster["name"]) for cluster in _clusters(run))]):
        often = others.get(name, Counter()).most_common(1)
        rows.append(
            {
                "name": name,
                "pictures": [
                    (key, gallery["small"][key]) for key in gallery["samples"].get(name, []) if key in gallery["small"]
                ],
                "labelled": labelled.get(name) if any(run.counts) else None,
                "was": was_counts.get(name),
                "given": given[name] if given else None,
                "before": before.get(name),
                "recall": recall.get(name),
                "n_test": n_test.get(name),
                "precision": precision.get(name),
                "confused": confused.get(name) or (often[0][0] if often and not gallery["matrix"] else None),
                "evidence": evidence.get(name, (None, ""))[0],
            }
        )
    head = [
        ("labelled", "Labelled", "count"),
        ("was", "Labels by name alone", "count"),
        ("given", "Labels given", "count"),
        ("before", "Found by name alone", "share"),
        ("recall", "Found", "share"),
        ("precision", "Right when named", "share"),
        ("confused", "Most confused with", "text"),
        ("evidence", "Name fits", "number"),
    ]
    kept = [column for column in head if any(row[column[0]] is not None for row in rows)]
    order = sorted(rows, key=lambda row: (2.0 if row["recall"] is None else row["recall"], -(row["given"] or 0)))
    return {"head": kept, "rows": order[:MAX_ROWS], "n_more": max(0, len(order) - MAX_ROWS)}


def _confused_with(names: Sequence[str], counts: Sequence[Sequence[int]] | None) -> dict[str, str]:
    found = {}
    for i, row in enumerate(counts or []):
        n, j = max(((n, j) for j, n in enumerate(row) if j != i), default=(0, 0))
        if n:
            found[names[i]] = f"{names[j]} ({n} of {sum(row)})"
    return found


def _confusions(run: Run, gallery: Mapping[str, Any], check: Mapping[str, Any]) -> dict[str, Any] | None:
    """pairs (truth, taken for, words, pictures of both) and, of few classes, the matrix."""
    pairs = []
    for pair in (run.test.get("confusions") or [])[:MAX_PAIRS]:
        truth, predicted = str(pair["truth"]), str(pair["predicted"])
        if pair["count"] < 2:  # once is no habit
            continue
        shown = [
            (item["id"], item["picture"])
            for item in check["items"]
            if "mistake" in item["tabs"] and (item["label"], item["rather"]) == (truth, predicted) and item["picture"]
        ]
        like = [
            (key, gallery["small"][key]) for key in gallery["samples"].get(predicted, []) if key in gallery["small"]
        ]
        frac = f", {percent(pair['frac'])} of its images" if pair.get("frac") is not None else ""
        words = f"{counted(pair['count'], 'test image')}{frac}"
        pairs.append({"truth": truth, "predicted": predicted, "words": words, "shown": shown[:3], "like": like[:2]})
    if not pairs:
        return None
    top = pairs[0]
    finding = f"Most often {top['truth']} is taken for {top['predicted']}: {top['words']}."
    counts = gallery["matrix"]
    chart = matrix("All confusions", finding, run.class_names, counts) if counts and len(counts) > 2 else None
    return {"pairs": pairs, "finding": finding, "matrix": chart}


# ---- reliability, training, again -----------------------------------------------------------------------------------


def _reliability(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """words, charts and rows of trust held against what was right."""
    if not found:
        return None
    bins, surest, basis = found["bins"], found["surest"], found["basis"]
    points = []
    for each in bins:
        low, high = interval(each["right"] / each["n"], each["n"])
        name = f"trust about {percent(each['trust'])}, {counted(each['n'], 'image')}"
        points.append((each["trust"], each["right"] / each["n"], low, high, name))
    n = sum(each["n"] for each in bins)
    gap = sum(each["n"] * each["trust"] - each["right"] for each in bins) / n
    off = sum(abs(each["n"] * each["trust"] - each["right"]) for each in bins) / n
    leaning = "too sure" if gap > 0.02 else "too modest" if gap < -0.02 else "neither too sure nor too modest"
    finding = f"Trust is off by {off * 100:.1f} points on average and {leaning}, on {n:,} {basis}."
    charts = [
        dots("Is a trust of 80% right 80 times in 100?", finding, points, x_title="trust", y_title="share right",
             has_diagonal=True, x_is_share=True)
    ]  # fmt: skip
    accept = accepting(surest)
    shares = [each["right"] / each["n"] for each in surest]
    if max(shares) - min(shares) >= 0.02:
        curve_of = {"right": ([each["share"] * 100 for each in surest], shares)}
        charts.append(
            lines(
                "Accept only the surest",
                accept,
                curve_of,
                x_title="percent of the images accepted, surest first",
                is_share=True,
            )
        )
    rows = [
        (f"{each['share'] * 100:.0f}%", f"{each['n']:,}", percent(each["right"] / each["n"]),
         "{:.0f} to {:.0f}%".format(*(100 * end for end in interval(each["right"] / each["n"], each["n"]))))
        for each in surest
    ]  # fmt: skip
    return {"words": [accept, finding], "charts": charts, "rows": rows, "basis": basis}


def accepting(surest: Sequence[Mapping[str, Any]]) -> str:
    """How many of the surest labels can be accepted so that so many are right.

    Example:
      >>> accepting([{"share": 0.5, "n": 50, "right": 49}, {"share": 1.0, "n": 100, "right": 80}])
      'Accept the surest 50%: 98.0% of them are right. All of them: 80.0%.'
    """
    last = surest[-1]
    everything = percent(last["right"] / last["n"])
    for wanted in WORTH_ACCEPTING:
        enough = [each for each in surest if each["right"] / each["n"] >= wanted]
        if enough and enough[-1] is last:
            return f"Accept all of them: {everything} are right."
        if enough:
            best = enough[-1]
            share = percent(best["right"] / best["n"])
            return (
                f"Accept the surest {best['share'] * 100:.0f}%: {share} of them are right. All of them: {everything}."
            )
    best = max(surest, key=lambda each: each["right"] / each["n"])
    share = percent(best["right"] / best["n"])
    return f"Even of the surest {best['share'] * 100:.0f}% only {share} are right."


def _trained_words(run: Run) -> list[str]:
    words = []
    if run.epochs and any("loss" in record for record in run.epochs):
        words.append(f"{counted(len(run.epochs), 'epoch')}.")
    if why := (run.summary.get("answer") or {}).get("why"):
        words.append(f"{str(why)[:1].upper()}{str(why)[1:].rstrip('.')}.")
    left = run.begun.get("left_out_scores")
    if left:
        scores = ", ".join(f"{name} {percent(value)}" for name, value in left.items())
        words.append(f"Right on labelled images that were left out, as a mean over the classes: {scores}.")
    return words


def _training(run: Run) -> list[Chart]:
    scores = {"accuracy": "test.accuracy", "mean over classes": "test.balanced_accuracy"}
    loss = curve(run, "Loss", {"loss": "loss"})
    return [*loss, *curve(run, "Accuracy on the test images", scores, is_share=True)]


def _again(run: Run, command: str) -> dict[str, Any]:
    keys, beside = beside_rows(run.summary)
    problems = run.data.get("quarantined") or []
    return {
        "command": command,
        "python": ""
        if command or not run.config
        else f'labelwright.fit(data, config="{run.path / "config.yaml"}", out="again")',
        "fingerprint": run.data.get("fingerprint") or "",
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        "versions": _flat(run.environment),
        "beside_head": ["", *(COLUMNS[key].capitalize() for key in keys)],
        "beside": [
            (f"{row['title']}{' (the answer)' if row['is_answer'] else ''}", *(percent(row[key]) for key in keys))
            for row in beside
        ],
        "left_out": [(str(p.get("where")), str(p.get("detail") or p.get("kind"))) for p in problems[:MAX_ROWS]],
        "n_left_out": len(problems),
    }


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key} ")
        elif value is not None:
            rows.append((prefix + str(key), number(value)))
    return rows
