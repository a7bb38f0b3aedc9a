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

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from labelwright.encoders.descriptor import NAME
from labelwright.labels.unlike import ELSEWHERE
from labelwright.reporting.checks import TABS, is_given, rows_of, to_check
from labelwright.reporting.gallery import read_gallery
from labelwright.reporting.given import PER_DOT, given_panels, interval, size_panels
from labelwright.reporting.panels import evidence_of
from labelwright.reporting.sections import Sections, curve
from labelwright.reporting.svg import Chart, dots, lines, matrix
from labelwright.reporting.verdict import better_answer, is_half_known, unlike_labelled, verdict_of
from labelwright.reporting.words import COLUMNS, SITUATIONS, beside_rows, is_doubted, listed
from labelwright.run_folder import Run
from labelwright.wording import counted, duration, number, percent

WORTH_ACCEPTING = (0.95, 0.9, 0.8)  # shares of right labels that the surest ones are looked through for
STRANGE = 0.05  # share of images that look like no class, from which there may be more classes
PER_CLASS = 5  # test images of a class, as a mean, from which classes are ordered by them
MAX_ROWS = 100  # of a table
MAX_CLASSES, MAX_PAIRS = 50, 8
OWN_NETWORKS = ("resnet32", "resnet18", "preact_resnet18")  # that learn from pixels, of random weights
FEW = 30  # images from which trust is held against what was right


def collect(run: Run, sections: Sections | None = None, *, command: str = "") -> dict[str, Any]:
    """What there is to say of a finished run; see the head of this file for the keys.

    Example:
      >>> summary = {"method": "cvs", "test": {"accuracy": 0.8, "n_scored": 100}}
      >>> found = collect(Run("run", summary=summary, data={}, config={}, environment={}, records=[], labels=None))
      >>> found["verdict"]["sentence"]
      'About 80 of 100 labels are right (71 to 87), measured on 100 test images.'
    """
    sections, gallery = sections or Sections(), read_gallery(run.path)
    check = _check(run, gallery)
    verdict = verdict_of(run)
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
        "reliability": _reliability(gallery["trust"], " of named classes" if is_half_known(run) else ""),
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
        answer, method = summary.get("answer") or {}, str(summary["method"])
        own = answer.get("name", method) in (method, NAME)
        facts.append(("Method", answer.get("title") or method if own else f"{method}, answer of {answer['title']}"))
    if summary.get("encoder"):
        named = {"none": "stored embeddings", NAME: "none: colours and edges"}
        facts.append(("Model", named.get(summary["encoder"], Path(summary["encoder"]).name)))
    seconds = summary.get("seconds")
    if isinstance(seconds, Mapping) and seconds:
        facts.append(("Time", duration(sum(v for v in seconds.values() if isinstance(v, int | float)))))
    return facts


# ---- what to do next -------------------------------------------------------------------------------------------------


def _next(run: Run, verdict: Mapping[str, Any], check: Mapping[str, Any], command: str) -> list[dict[str, str]]:
    """At most three cards of title, why and command, the most useful first."""
    folder, is_there = shlex.quote(str(run.path)), bool(command)
    data = shlex.quote(str(run.config["data"])) if is_there else "DATA"
    is_stored, is_poor = run.summary.get("encoder") == "none", verdict["level"] == "poor"
    cards = []
    encoder, answer = run.summary.get("encoder"), (run.summary.get("answer") or {}).get("name")
    is_auto = run.config.get("model", "auto") == "auto" or answer == NAME
    if encoder in (*OWN_NETWORKS, NAME) and is_auto and verdict["level"] != "good":
        is_known = encoder == NAME or NAME in (run.summary.get("reference") or {})  # what they are worth here
        began = "This network began with random weights, and few images do not teach one to see. "
        if is_there and not is_known:
            why = began + "Colours and edges may say more, in seconds, and a pretrained network (--model) far more."
            cards.append(("Start from what is known of images", why, f"{command} --model descriptor"))
        else:
            began = "Colours and edges are all that was seen of these images. " if encoder == NAME else began
            why = began + "Install a network that has seen ImageNet; fit without --model, into another --out, takes it."
            cards.append(("Start from a pretrained network", why, "pip install 'labelwright[imagenet]'"))
    if is_doubted(run.summary.get("trust") or {}):
        why = "To this model the names say little of these images. Label a few of every class: the page learns again."
        cards.append(("Label some images", why, f"labelwright review {folder}"))
    elif not verdict["is_confirmed"] and not run.summary.get("promise"):
        why = "Look at 200 of these labels: they say how many are right and which to accept."
        cards.append(("Measure it", why, f"labelwright verify-sample {folder} --n 200 --out to-verify.csv"))
    if better := better_answer(run.summary):
        best = f"{command.replace(' --answer trained', '')} --answer best"
        python = f'labelwright.fit(data, config="{run.path / "config.yaml"}", answer="best", out="again")'
        cards.append(("Take the better answer", f"{better}.", best if is_there else python))
    clusters = (run.summary.get("novel") or {}).get("clusters") or []
    unnamed = [str(c["name"]) for c in clusters if str(c["name"]).startswith("novel-") and c.get("n_images")]
    if unnamed:
        why = f"{counted(len(unnamed), 'class', 'classes')} beyond those that your labels name: look at them below."
        cards.append(("Name the new classes", why, f"labelwright classes {folder} rename {unnamed[0]} NAME"))
    if check["items"]:
        why = (
            f"{counted(len(check['items']), 'image')} below deserve a look. Mark them on this page, download "
            f"{check['file']}, and learn again from it."
        )
        again = _with_corrections(run, command)
        cards.append(("Check images and learn again", why, again))
    unlike = unlike_labelled(run)
    strange = max((run.summary.get("strangers") or {}).get("share") or 0.0, unlike if unlike < ELSEWHERE else 0.0)
    if strange > STRANGE and is_there and run.summary.get("n_novel") is None:
        why = f"{percent(strange)} of the images, by estimate, look like none of the classes."
        cards.append(("Look for new classes", why, f"{command} --novel auto"))
    wanted = verdict["never"] if run.summary.get("zero_shot") is not None or evidence_of(run) else []
    model = run.summary.get("encoder")
    if wanted and model and is_there:
        looks = json.dumps({wanted[0]: ["how it looks"]}, ensure_ascii=False)
        why = f"{listed(wanted, 4)}: the name may not say how the class looks. Write it into looks.json: {looks}"
        cards.append(("Describe what is not recognised", why, f"{command} --descriptions looks.json"))
    is_judged = (run.summary.get("audit") or {}).get("n_suspected") is not None
    if run.summary.get("n_labelled") and not is_judged and is_there and encoder not in OWN_NETWORKS:
        why = "Your own labels may hold mistakes and copies; this finds them."
        cards.append(("Look through the given labels", why, f"labelwright audit {data} --out audit.csv"))
    if not is_poor or not cards:
        why = f"Labels for other {'embeddings' if is_stored else 'images'}, each with the chance that it is right."
        new = "new-embeddings.npz" if is_stored else "new-photos/"
        cards.append(("Use it", why, f"labelwright label {folder} {new} --out labels.csv"))
    return [{"title": title, "why": why, "command": words} for title, why, words in cards[:3]]


def _with_corrections(run: Run, command: str) -> str:
    if not command:
        config = str(run.path / "config.yaml")
        return f'labelwright.fit(data, config="{config}", corrections="{corrections_file(run)}", out="again")'
    before = " --corrections " + shlex.join(map(str, run.config.get("corrections") or ()))
    head, out, tail = command.replace(before, "").rpartition(" --out ")
    before = before if run.config.get("corrections") else " --corrections"
    return f"{head}{before} {corrections_file(run)}{out}{tail}"


def corrections_file(run: Run) -> str:
    """What the corrections of this page are called: not as those that the run has learned from."""
    n = len(run.config.get("corrections") or ())
    return f"corrections-{n + 1}.csv" if n else "corrections.csv"


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
        runner_up = "" if mine == ["copy"] else row.get("runner_up")  # nothing doubts the label of a copy
        rather = suspected.get(key, {}).get("suggested") or facts.get("rather") or runner_up or ""
        source = row.get("source") or "test"
        why = [TABS[tab][1] for tab in mine if tab != "copy" or key not in copies]
        why += [f"copy of {copies[key]}"] if key in copies else []
        items.append(
            {
                **{"id": key.removeprefix("test/"), "tabs": mine, "label": str(label), "rather": str(rather)},
                **{"source": source, "trust": row.get("trust"), "decision": row.get("decision"), "why": why},
                "says": [words for words in why if words != TABS["doubt"][1]],
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
        "file": corrections_file(run),
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
    expected: dict[str, float] = {}
    if run.labels is not None and {"source", "runner_up"} <= set(run.labels.column_names):
        columns = [name for name in ("id", "label", "runner_up", "trust") if name in run.labels.column_names]
        own = run.labels.select(columns).filter(pa.array(~is_given(run.labels)))
        for row in own.group_by(["label", "runner_up"]).aggregate([("id", "count")]).to_pylist():
            given[str(row["label"])] += row["id_count"]
            others.setdefault(str(row["label"]), Counter())[str(row["runner_up"])] += row["id_count"]
        if "trust" in own.column_names:
            means = own.group_by("label").aggregate([("trust", "mean")]).to_pylist()
            expected = {str(row["label"]): row["trust_mean"] for row in means}
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
                "expected": expected.get(name),
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
        ("expected", "Expected right", "share"),
        ("before", "Found by name alone", "share"),
        ("recall", "Found", "share"),
        ("precision", "Right when named", "share"),
        ("confused", "Most confused with", "text"),
        ("evidence", "Name fits", "number"),
    ]
    kept = [column for column in head if any(row[column[0]] is not None for row in rows)]
    is_tested = sum(n or 0 for n in n_test.values()) >= PER_CLASS * len(rows)
    by = "recall" if is_tested or not expected else "expected"
    order = sorted(rows, key=lambda row: (2.0 if row[by] is None else row[by], -(row["given"] or 0)))
    keys = [key for key, *_ in kept]
    words = ["Weakest first" if by in keys else "Largest first"]
    words += ["expected right: mean trust of its labels"] if "expected" in keys else []
    words += ["found: share of its test images that were recognised"] if "recall" in keys else []
    caption = "; ".join(words)
    return {"caption": caption, "head": kept, "rows": order[:MAX_CLASSES], "n_more": max(0, len(order) - MAX_CLASSES)}


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
    caption = "Images of the class at the left that were labelled as the class above."
    chart = matrix("All confusions", caption, run.class_names, counts) if counts and len(counts) > 2 else None
    return {"pairs": pairs, "finding": finding, "matrix": chart}


# ---- reliability, training, again -----------------------------------------------------------------------------------


def _reliability(found: Mapping[str, Any] | None, of: str) -> dict[str, Any] | None:
    """words, charts and rows of trust held against what was right; one sentence where there is too little to hold.

    Args: of: what is left to say of the images, as " (all of named classes)".
    """
    if not found:
        return None
    basis = found["basis"] + of
    bins, n = _joined(found["bins"]), sum(each["n"] for each in found["bins"])
    if n < FEW:
        words = [f"Only {n:,} {basis} are there to hold it against: too few to tell."]
        return {"words": words, "charts": [], "rows": [], "basis": basis}
    surest = [each for each in found["surest"] if each["n"] >= PER_DOT]
    points = []
    for each in bins:
        low, high = interval(each["right"] / each["n"], each["n"])
        name = f"trust about {percent(each['trust'])}, {counted(each['n'], 'image')}"
        points.append((each["trust"], each["right"] / each["n"], low, high, name))
    n_right = sum(each["right"] for each in bins)
    mean, (low, high) = sum(each["n"] * each["trust"] for each in bins) / n, interval(n_right / n, n)
    leaning = "too sure" if mean > high else "too modest" if mean < low else "within chance of it"
    off = f", bin by bin off by {100 * found['off']:.1f} points" if "off" in found else ""
    finding = (
        f"Of {n:,} {basis} {percent(n_right / n)} are right ({low * 100:.0f} to {high * 100:.0f}); trust expects "
        f"{percent(mean)}: {leaning}{off}. Below each dot the number of its images; lines are 95% intervals."
    )
    if (wrong := found.get("wrong") or 0) >= 0.005:
        finding += (
            f" {percent(wrong)} of these labels are taken for wrong: trust is lowered to how often it agrees with them."
        )
    if found.get("is_crossed"):
        finding += " The trust of either half is by the labels of the other half; all of them make the map."
    chart = dots("Is a trust of 80% right 80 times in 100?", finding, points, x_title="trust", y_title="share right",
                 has_diagonal=True, x_is_share=True, counts=[each["n"] for each in bins])  # fmt: skip
    charts = [chart] if len(bins) > 1 else []
    if of:  # images of other classes are not among them
        return {"words": [] if charts else [finding], "charts": charts, "rows": [], "basis": basis}
    accept = accepting(surest)
    shares = [each["right"] / each["n"] for each in surest]
    if "surest" in accept and max(shares) - min(shares) >= 0.02:
        curve_of = {"right": ([each["share"] * 100 for each in surest], shares)}
        x_title = "percent of the images accepted, surest first"
        charts.append(lines("Accept only the surest", "Right among these.", curve_of, x_title=x_title, is_share=True))
    rows = [
        (f"{each['share'] * 100:.0f}%", f"{each['n']:,}", percent(each["right"] / each["n"]),
         "{:.0f} to {:.0f}%".format(*(100 * end for end in interval(each["right"] / each["n"], each["n"]))))
        for each in surest
    ]  # fmt: skip
    words = [accept] if chart in charts else [accept, finding]
    return {"words": words, "charts": charts, "rows": rows, "basis": basis}


def _joined(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bins of trust, neighbours joined until each holds `PER_DOT` images: a dot of fewer says nothing.

    Example:
      >>> _joined([{"n": 1, "trust": 0.1, "right": 0}, {"n": 9, "trust": 0.3, "right": 4}])
      [{'n': 10, 'trust': 0.28, 'right': 4}]
    """
    found: list[dict[str, Any]] = []
    for each in reversed(bins):  # the surest, which are many, stay as they are
        if found and found[-1]["n"] < PER_DOT:
            found[-1] = _sum_of(found[-1], each)
        else:
            found.append(dict(each))
    if len(found) > 1 and found[-1]["n"] < PER_DOT:
        found[-2:] = [_sum_of(found[-2], found[-1])]
    return found[::-1]


def _sum_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    n = a["n"] + b["n"]
    return {
        "n": n,
        "trust": round((a["n"] * a["trust"] + b["n"] * b["trust"]) / n, 4),
        "right": a["right"] + b["right"],
    }


def accepting(surest: Sequence[Mapping[str, Any]]) -> str:
    """How many of the surest labels can be accepted so that so many are right, by the lower end of the interval.

    Example:
      >>> accepting([{"share": 0.5, "n": 500, "right": 490}, {"share": 1.0, "n": 1000, "right": 800}])
      'Accept the surest 50%: 98.0% of them are right (96 to 99). All of them: 80.0% (77 to 82).'
    """
    spans = [interval(each["right"] / each["n"], each["n"]) for each in surest]
    words = [
        f"{percent(each['right'] / each['n'])}{{}} ({low * 100:.0f} to {high * 100:.0f})"
        for each, (low, high) in zip(surest, spans, strict=True)
    ]
    everything = words[-1].format("")
    for wanted in WORTH_ACCEPTING:
        enough = [i for i, (low, _) in enumerate(spans) if low >= wanted]
        if enough and enough[-1] == len(surest) - 1:
            return f"Accept all of them: {words[-1].format(' are right')}."
        if enough:
            i = enough[-1]
            right = words[i].format(" of them are right")
            return f"Accept the surest {surest[i]['share'] * 100:.0f}%: {right}. All of them: {everything}."
    return f"Look at all of them: none are sure enough to accept unseen. All of them: {everything} are right."


def _trained_words(run: Run) -> list[str]:
    words, answer = [], run.summary.get("answer") or {}
    if run.epochs and any("loss" in record for record in run.epochs):
        of = " of the network, which is not kept" if answer.get("name") == NAME else ""
        words.append(f"{counted(len(run.epochs), 'epoch')}{of}.")
    if why := answer.get("why"):
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
