"""What a verb found or made, for a terminal."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from labelwright.annotators.reliability import reliability_lines
from labelwright.data.checks import format_problems
from labelwright.data.table import NOTICES
from labelwright.errors import DataError, Problem
from labelwright.reporting.words import (
    COLUMNS,
    beside_rows,
    deployed_words,
    is_below_annotator,
    knows_annotator,
    own_sets_words,
)
from labelwright.reviewing.answers import ANSWERS_FILE
from labelwright.run_folder import Run
from labelwright.wording import counted, percent

LINES_MAX = 20  # class names listed one by one; the report has them all
NOTICES_SHOWN = 6  # of a run: how values were read, and which columns were not
_OPEN_SCORES = {"seen": "of named classes", "novel": "of the others", "all": "all in all"}


def lines_of_run(run: Run) -> list[str]:
    """Candidates, accuracy, pseudolabels, names or found classes of a finished run; no lines if there are none."""
    summary = run.summary
    if summary.get("n_novel") is not None:
        return _novel_lines(summary)
    if "zero_shot" not in summary or summary["method"] == "zero_shot":
        return []
    begin, lines = run.begun, _candidate_lines(summary)
    if lines:
        lines += deployed_words(run.epochs)
    if summary["test"] and summary["zero_shot"]:
        is_known, before = knows_annotator(summary), summary["zero_shot"]
        lines.append(_student_line(summary) if is_known else _accuracy_line(before, summary["test"]))
    if summary["pseudolabels"]:
        lines += _pseudolabel_lines(summary["pseudolabels"], summary.get("guesses"))
    return lines + _name_lines(begin)


def _novel_lines(summary: Mapping[str, Any]) -> list[str]:
    """How many classes were found beyond the named ones, how large they are, and how right that is if it is known."""
    novel, lines = summary.get("novel") or {}, []
    evidence, clusters = novel.get("evidence"), novel.get("clusters") or []
    sizes = []
    for cluster in clusters:
        words = [str(word) for word, lift in cluster.get("proposed") or [] if lift > 0]
        perhaps = f", perhaps {words[0]}" if words else ""
        sizes.append(f"{cluster['name']} ({counted(cluster['n_images'], 'image')}{perhaps})")
    likely = ""
    if evidence and evidence["plausible"][0] < evidence["plausible"][1]:
        low, high = evidence["plausible"]
        none = evidence.get("could_be_none")
        likely = f" (could be none; at most {high} likely)" if none else f" ({low} to {high} are likely)"
    what = counted(summary["n_novel"], "class", "classes") if summary["n_novel"] else "no class"
    listed = f": {', '.join(sizes[:LINES_MAX])}" if sizes else ""
    more = f" and {len(sizes) - LINES_MAX:,} more" if len(sizes) > LINES_MAX else ""
    lines.append(f"{what} beyond the named ones{likely}{listed}{more}")
    unnamed = [cluster["name"] for cluster in clusters if cluster["name"].startswith("novel-")]
    if unnamed:
        lines.append(f"to name one: labelwright classes RUN rename {unnamed[0]} NAME (or merge, drop)")
    scores = summary.get("pseudolabels") or {}
    known = [f"{words} {scores[key]:.1%}" for key, words in _OPEN_SCORES.items() if scores.get(key) is not None]
    return [*lines, f"unlabelled images right: {', '.join(known)}"] if known else lines


def _accuracy_line(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What the class names alone score, and the adapted model; says so if it is no better."""
    helped = "" if after["accuracy"] > before["accuracy"] else "; this time it did not help"
    return (
        f"zero-shot -> adapted accuracy: {before['accuracy']:.4f} -> {after['accuracy']:.4f} "
        f"on {after['n_scored']:,} test images{helped}"
    )


def _student_line(summary: Mapping[str, Any]) -> str:
    """What the annotator scores on the test images, and the model that learned from it; says so if it is no better."""
    before, after = summary["zero_shot"]["accuracy"], summary["test"]["accuracy"]
    line = f"annotator -> student accuracy: {before:.4f} -> {after:.4f} on {summary['test']['n_scored']:,} test images"
    if is_below_annotator(summary):
        return f"{line}: the student is WORSE than its annotator"
    return line if after > before else f"{line}: the student is no better than its annotator"


def _candidate_lines(summary: Mapping[str, Any]) -> list[str]:
    """Who guessed the candidate labels of a run, and what they were like; no lines if it had none."""
    if not summary.get("candidates"):
        return []
    annotator = summary.get("annotator") or {}
    who = f"candidates from {annotator['name']}" if annotator else "candidates of the data"
    first, *others = _annotated_lines({**summary["candidates"], **annotator}, again="a run in another --out asks")
    lines = [f"{who}: {first}", *others, *reliability_lines(summary.get("crowd"))]
    return lines + own_sets_words(summary.get("own_sets"))


def _pseudolabel_lines(found: Mapping[str, Any], guesses: Mapping[str, Any] | None = None) -> list[str]:
    """How uneven the answers on unlabelled images are before and after, and how right where the truth is known."""
    before = found.get("zero_shot")
    if before is None:
        lines = [f"pseudolabels, largest class over smallest: {_uneven(found)}"]
        if "accuracy" not in found:
            return lines
        first = (guesses or {}).get("accuracy")
        which = "first guesses" if (guesses or {}).get("is_ranked", True) else "guesses drawn by chance"
        lines += [] if first is None else [f"{which} that are right: {first:.4f}"]
        return [*lines, f"pseudolabels that are right: {found['accuracy']:.4f}"]
    gini = " -> ".join("none" if each["gini"] is None else f"{each['gini']:.2f}" for each in (before, found))
    lines = [f"pseudolabels, largest class over smallest: {_uneven(before)} -> {_uneven(found)} (Gini {gini})"]
    if "accuracy" in found and "accuracy" in before:
        lines.append(f"pseudolabels that are right: {before['accuracy']:.4f} -> {found['accuracy']:.4f}")
    return lines


def _uneven(found: Mapping[str, Any]) -> str:
    if found["imbalance_ratio"] is not None:
        return f"{found['imbalance_ratio']:.1f}"
    return counted(sum(n == 0 for n in found["counts"]), "class", "classes") + " empty"


def _name_lines(begin: Mapping[str, Any]) -> list[str]:
    """Which class names fit no image and what repaired them, what is described better than named, what was refused."""
    if "mismatched" not in begin:
        return []
    names = begin["class_names"]
    facts = begin.get("descriptions", {})
    contradicted = begin.get("contradicted", [])
    wrong = {*begin["mismatched"], *contradicted, *begin.get("guessed", [])}
    lines = [f"class names that fit no image: {f'{len(wrong)} of {len(names)}' if wrong else 'none found'}"]
    lines += _listed([f"{name!r}: {_repair(name, begin)}" for name in names if name in wrong])
    better = [f"{name!r}: {facts[name]!r}" for name in names if name in facts and name not in wrong]
    if better:
        lines += [f"described better than named: {len(better)} of {len(names)}", *_listed(better)]
    return lines + _refused_lines(begin)


def _repair(name: str, begin: Mapping[str, Any]) -> str:
    """What took the place of a name that fits no image."""
    if name in begin.get("guessed", []):
        return "given the images left over, which are a class of their own"
    if name in begin.get("placed", []):
        return "placed by its labelled images"
    if name in begin.get("unrepaired", []):
        return "not repaired"
    if name in begin.get("descriptions", {}):
        return f"described as {begin['descriptions'][name]!r}"
    return "its labelled images bear the name out"


def folded_warnings(warnings: Sequence[str]) -> list[str]:
    """Warnings that differ in their numbers alone, as those of one epoch after another, once: the last of them.

    Example:
      >>> folded_warnings(["loss 3.1 in epoch 1", "no class", "loss 2.9 in epoch 2"])
      ['no class', 'loss 2.9 in epoch 2 (2 such warnings)']
    """
    alike: dict[str, list[str]] = {}
    for warning in warnings:
        key = re.sub(r"\d+", "0", warning)
        alike[key] = [*alike.pop(key, []), warning]  # the last comes last
    return [some[-1] + (f" ({len(some)} such warnings)" if len(some) > 1 else "") for some in alike.values()]


def _refused_lines(facts: Mapping[str, Any]) -> list[str]:
    refused = [f"{name!r}: {', '.join(map(repr, texts))}" for name, texts in facts.get("rejected", {}).items()]
    heading = "descriptions refused, as they explain the images worse than the names:"
    return [heading, *_listed(refused)] if refused else []


def _listed(lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - LINES_MAX} more, see the report"] if len(lines) > LINES_MAX else []
    return [*(f"  {line}" for line in lines[:LINES_MAX]), *more]


def _annotated_lines(
    counts: Mapping[str, Any], *, again: str = "take the table away and repeat the command to ask"
) -> list[str]:
    """What `annotate` counted; ``again`` says how failed questions are asked again, up to the word before "them"."""
    empty = f"; {counts['n_empty']:,} without any" if counts["n_empty"] else ""
    lines = [
        f"{counted(counts['n_images'], 'image')}, {counts['mean_set_size']:.2f} candidates each on average, "
        f"at most {counts['largest_set']}{empty}"
    ]
    if counts["n_classes_never_named"]:
        lines.append(f"classes that no image has among its candidates: {counts['n_classes_never_named']}")
    if "n_scored" in counts:
        lines.append(
            f"truth inside the candidates: {counts['truth_inside']:.4f} of {counts['n_scored']:,} images whose label "
            f"is known; on top of them: {counts['top1_accuracy']:.4f}"
        )
    if "n_calls" in counts:
        kept = f", {counts['n_from_journal']:,} kept from before" if counts["n_from_journal"] else ""
        asked = f"{counted(counts['n_calls'], 'question')} asked{kept}, {counted(counts['n_answers'], 'answer')}"
        unread = counts["n_unparseable"]
        if unread:
            where, _, answer = counts["unparseable"][0]
            shown = answer if len(answer) <= 60 else answer[:59] + "…"
            asked += f"; {counted(unread, 'answer')} {'names' if unread == 1 else 'name'} no class, such as "
            asked += f"{shown!r} to {where}"
        lines.append(asked)
        if failed := counts["n_failed"]:
            lines.append(f"{counted(failed, 'question')} failed: {again} {'it' if failed == 1 else 'them'} again")
    return lines + _description_lines(counts)


def _description_lines(counts: Mapping[str, Any]) -> list[str]:
    """Which names were replaced before the images were annotated, and which descriptions were of no use."""
    used, lines = counts.get("descriptions", {}), list[str]()
    if used:
        lines.append(f"described in the prompts instead of named: {counted(len(used), 'class', 'classes')}")
        lines += _listed([f"{name!r}: {text!r}" for name, text in used.items()])
    lines += _refused_lines(counts)
    if left := [name for name in counts.get("mismatched", []) if name not in used]:
        lines.append("class names that fit no image and stay as they are: " + ", ".join(left[:LINES_MAX]))
    return lines


# ---- printers: (what the verb returned, the values of its flags) -----------------------------------------------------


def _print_inspection(found: Any, values: Mapping[str, Any]) -> None:
    """Counts, situation, problems.

    Raises: DataError if something is wrong with the data.
    """
    table, counts, out = found.table, found.table.counts(), _console()
    out.print(
        f"{len(table):,} {found.noun}, {int((table.labels >= 0).sum()):,} labelled, {len(table.class_names)} classes"
    )
    shown = Table("class", found.noun, box=None, pad_edge=False)
    order = sorted(range(len(counts)), key=lambda c: -int(counts[c]))
    for c in order if len(order) <= 24 else [*order[:12], *order[-12:]]:
        shown.add_row(table.class_names[c], f"{int(counts[c]):,}")
    if len(order):
        out.print(shown)
    if len(order) > 24:
        out.print(f"(the 12 largest and the 12 smallest of {len(order)})")
    facets = Table(box=None, pad_edge=False, show_header=False)
    for what, words in found.situation.facets:
        facets.add_row(what, words)
    out.print(facets)
    out.print(f"situation: {found.situation.name}: {found.situation.reason}", markup=False)
    out.print(f"fit would run: {found.runs}{f' ({found.needs})' if found.needs else ''}", markup=False)
    if found.time:
        out.print(f"time: {found.time}", markup=False)
    for line in reliability_lines(found.reliability):
        out.print(line, markup=False)
    for notice in found.notices:
        out.print(f"notice: {notice}", markup=False)
    bad = [p for p in found.problems if p.kind not in NOTICES]
    if found.problems:
        out.print(format_problems(found.problems), markup=False)
    given, kept, lost = table.accounted
    if lost:
        out.print(f"{counted(given, 'row')} given: {kept:,} read, {lost:,} not, as listed above")
    if found.refused is not None:
        raise found.refused
    if bad:
        is_shift = any("which are numbered" in problem.detail for problem in bad)
        raise DataError(
            f"{counted(len(bad), 'problem')} in the data, listed above",
            fix="correct them" if is_shift else "correct them, or leave the rows concerned out with fit --on-bad skip",
        )


def _print_fit(run: Run, values: Mapping[str, Any]) -> None:
    """Scores, what names and pseudolabels were like, warnings, and where the report is."""
    summary, out = run.summary, _console()
    n_images, n_labelled = summary["n_images"], summary["n_labelled"]
    images = f"{n_images:,} images, {n_labelled:,} labelled," if n_labelled < n_images else f"{n_images:,} images"
    out.print(
        f"{summary['method']} on {images} of {summary['n_classes']} classes "
        f"({summary['situation']}), {summary['seconds']['train']:.0f} s of training"
    )
    for line in [*_skipped_lines(run), *lines_of_run(run)]:
        out.print(line, markup=False)
    if summary["test"]:
        _print_scores(summary["test"])
    _print_beside(summary)
    for line in _promise_lines(summary.get("promise")):
        out.print(line, markup=False)
    if (summary.get("strangers") or {}).get("n"):
        out.print(f"strangers: {summary['strangers']['says']}", markup=False)
    for warning in folded_warnings(summary["warnings"]):
        out.print(f"warning: {warning}", markup=False)
    out.print(f"report: {run.report}", markup=False)


def _print_beside(summary: Mapping[str, Any]) -> None:
    """The answer beside the obvious ones, and why it was chosen."""
    keys, rows = beside_rows(summary)
    if not rows:
        return
    out = _console()
    shown = Table(
        "right, as a mean over the classes", *(f"on {COLUMNS[key]}" for key in keys), box=None, pad_edge=False
    )
    for row in rows:
        values = ("-" if row[key] is None else f"{row[key]:.4f}" for key in keys)
        shown.add_row(f"{row['title']}{' (the answer)' if row['is_answer'] else ''}", *values)
    out.print(shown)
    out.print(f"answer: {summary['answer']['why']}", markup=False)


def print_verdict(content: Mapping[str, Any]) -> None:
    """How good the labels of a run are and what to do next, as its report says it.

    Args:
      content: see reporting.collect.
    """
    out, verdict = _console(), content["verdict"]
    out.print(f"\n{verdict['sign']} {verdict['words']}: {verdict['sentence']}", markup=False)
    for _, words in verdict["facts"]:
        out.print(f"  {words}", markup=False)
    for card in content["next"]:
        out.print(f"next: {card['title'].lower()}: {card['command']}", markup=False)


def _print_compared(found: Any, values: Mapping[str, Any]) -> None:
    """Settings and scores that differ, and the labels that changed; or all as JSON."""
    if values["json"]:
        print(json.dumps(found.to_dict()))
        return
    out = _console()
    for what, rows in (("setting", found.settings), ("score", found.scores)):
        if rows:
            shown = Table(what, *found.names, box=None, pad_edge=False)
            for key, pair in rows.items():
                shown.add_row(
                    key, *(f"{v:.4f}" if isinstance(v, float) else "-" if v is None else str(v) for v in pair)
                )
            out.print(shown)
    if not found.settings:
        print("the settings are the same")
    print(f"labels that differ: {found.n_changed:,} of {counted(found.n_common, 'image')} that both labelled")
    for was, now, n in found.pairs[:10]:
        out.print(f"  {was} -> {now}: {counted(n, 'image')}", markup=False)
    for note in found.notes:
        print(f"note: {note}")


def _print_pretrain(path: Path, values: Mapping[str, Any]) -> None:
    """On what, how long, warnings, and what to do with it."""
    run = Run(path)
    summary = run.summary
    print(
        f"simclr on {summary['n_images']:,} images of {summary['size_px']} px, labels unseen: {summary['encoder']}, "
        f"{summary['epochs']} epochs, {summary['seconds']['train']:.0f} s of training"
    )
    for line in _skipped_lines(run):
        print(line)
    print(
        f"mean cosine of views of one image {summary['alignment']:.2f}, of different images "
        f"{summary['cosine_of_others']:.2f}"
    )
    for warning in folded_warnings(summary["warnings"]):
        print(f"warning: {warning}")
    print(f"start from it: labelwright fit {values['data']} --model {path} --out NEW")


FLAG_WORDS = {
    "wrong_label": "labels that are probably wrong",
    "exact_copy": "images with an exact copy",
    "near_copy": "images with a copy that was re-saved, resized or slightly cropped",
    "two_labels": "images with a copy under another label",
    "copy_in_test": "training images with a copy among the test images",
    "outlier": "images unlike all others",
    "dark": "images that are nearly black",
    "blank": "images of one colour",
    "blurred": "images that are far more blurred than the others",
    "tiny": "images of under a quarter of the usual side",
    "odd_aspect": "images that are far wider or higher than the others",
}
"""Flag of a row of `audit` -> what it says of images."""


def _print_audit(done: Any, values: Mapping[str, Any]) -> None:
    """Counts of what was found, the worst labels, and where the rows are; or all as JSON."""
    found = done.summary
    if values["json"]:
        print(json.dumps(found))
        return
    print(
        f"{counted(found['n_images'], 'image')}, {found['n_labelled']:,} labelled, "
        f"{counted(found['n_classes'], 'class', 'classes')}; features: {found['features']}"
    )
    shown = Table(box=None, show_header=False, pad_edge=False)
    for flag, n in found["counts"].items():
        if n or flag in ("wrong_label", "exact_copy", "near_copy"):
            shown.add_row(f"{n:,}", FLAG_WORDS[flag])
    if found["n_duplicate_groups"]:
        shown.add_row(f"{found['n_duplicate_groups']:,}", "groups of copies")
    _console().print(shown)
    if found["estimated_wrong"] is not None:
        print(f"about {percent(found['estimated_wrong'])} of the labels are estimated to be wrong")
    if found["worst"]:
        worst = Table(
            "the worst labels: id", "label", "rather", "chance that the label is right", box=None, pad_edge=False
        )
        for row in found["worst"]:
            worst.add_row(row["id"], row["label"], row["suspected_label"], f"{row['label_score']:.3f}")
        _console().print(worst)
    for pair in found["alike"]:
        print(f"classes that look like one: {' and '.join(pair['classes'])} ({pair['alike']:.2f} of 1)")
    for notice in found["notices"]:
        print(f"notice: {notice}")
    if values["out"] is not None:
        print(f"a row per image: {values['out']}")
    _print_left_out(found["left_out"])
    if done.failed:
        print(f"found, as --fail-on asks: {', '.join(done.failed)}", file=sys.stderr)


def _print_embedded(done: Any, values: Mapping[str, Any]) -> None:
    """How many features of how many images, and what to do with them."""
    print(f"{counted(done.n_images, 'image')}, {done.n_features:,} features each: {done.path}")
    print(f"learn from them: labelwright fit {done.path} --out RUN")
    _print_left_out(done.left_out)


def _print_annotated(done: Any, values: Mapping[str, Any]) -> None:
    """How many candidates there are and, where labels are known, how often they hold them."""
    for line in _annotated_lines(done.counts):
        print(line)
    if n := done.counts.get("n_labelled"):
        print(
            f"notice: {n:,} of these images have a label, which `fit` on this table takes as verified; --method coreg "
            "learns from the candidates of the others"
        )
    print(f"candidates: {done.path}")
    _print_left_out(done.counts["left_out"])


def _print_described(found: Any, values: Mapping[str, Any]) -> None:
    """The class names that fit no image, and the descriptions asked for."""
    names, evidence = found.class_names, found.mismatch.evidence.tolist()
    weakest = sorted(range(len(names)), key=evidence.__getitem__)
    if found.mismatched:
        fit = "fits" if len(found.mismatched) == 1 else "fit"
        print(f"{len(found.mismatched)} of {len(names)} class names {fit} no image")
        weakest = [c for c in weakest if found.mismatch.is_mismatched[c]]
    else:
        print(f"none of {len(names)} class names stands out as fitting no image; the weakest:")
        weakest = weakest[:5]
    shown = Table("class", "evidence (0 to 1)", box=None, pad_edge=False)
    for c in weakest:
        shown.add_row(names[c], f"{evidence[c]:.2f}")
    _console().print(shown)
    if found.path is None:
        print("--chat MODEL --out FILE.json asks how they look; a file you write yourself is as good")
        return
    asked = range(len(names)) if values["every"] else [c for c in weakest if found.mismatch.is_mismatched[c]]
    if not asked:
        print("nothing was asked; --every asks about all classes")
        return
    for name, texts in found.descriptions.items():
        print(f"{name}: {'; '.join(texts)}")
    if silent := [names[c] for c in asked if names[c] not in found.descriptions]:
        print(f"no usable answer about: {', '.join(silent)}; the same command asks again")
    if found.descriptions:
        print(f"descriptions: {found.path}; look them over, then: labelwright fit ... --descriptions {found.path}")


def _print_labels(rows: pa.Table, values: Mapping[str, Any]) -> None:
    """How many images were labelled, where the labels are, which are of no class, what is promised and left out."""
    kept = {key.decode(): json.loads(value) for key, value in rows.schema.metadata.items()}
    new = dict[str, int]()
    for name, source in zip(rows["label"].to_pylist(), rows["source"].to_pylist(), strict=True):
        if source == "cluster":
            new[name] = new.get(name, 0) + 1
    if values["json"]:
        print(json.dumps({"n_images": len(rows), "out": values["out"], **kept, "new": new}))
        return
    print(f"{counted(len(rows), 'image')} labelled: {values['out']}")
    print(kept["strangers"]["says"])
    if values["novel"]:
        sizes = ", ".join(f"{name} ({counted(n, 'image')})" for name, n in new.items())
        print(f"put together in: {sizes}" if new else "too few of them to be new classes")
    for line in _promise_lines(kept.get("promise")):
        print(line)
    _print_left_out(kept["left_out"])


def _promise_lines(promise: Mapping[str, Any] | None) -> list[str]:
    """What is promised, and what it takes for granted."""
    if promise is None:
        return []
    return [f"promise: {promise['says']}", *([f"  if {promise['assumes']}"] if promise.get("assumes") else [])]


def _print_to_verify(found: Any, values: Mapping[str, Any]) -> None:
    """How many images to look at, and what to do then."""
    if values["json"]:
        print(json.dumps({"path": str(found.path), "n": found.n, "n_predicted": found.n_predicted}))
        return
    print(f"{counted(found.n, 'image')} of {found.n_predicted:,} to look at: {found.path}")
    print("fill in the column verified with the true class, or none where it is of no class; then")
    print(f"  labelwright label {values['run']} DATA --error {values['error']:g} --verified {found.path}")


def _print_evaluated(scores: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Scores of `evaluate`, as a table or as JSON."""
    if values["json"]:
        print(json.dumps(scores))
    else:
        _print_scores(scores)
        _print_left_out(scores["left_out"])


def _print_reviewed(done: Any, values: Mapping[str, Any]) -> None:
    """How much was answered, what was written, and what to do with it."""
    print(f"{counted(done.n_answered, 'image')} answered, in {done.run / ANSWERS_FILE}")
    if done.corrections is not None:
        print(f"corrections: {done.corrections}")
    if done.applied is not None:
        print(done.says)
    elif done.n_answered and done.corrections is None:
        print(f"to learn from it: labelwright review {done.run} --apply")


def _print_settings(found: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Settings of a method as a table, those that the preset changes marked, or as JSON."""
    if values["json"]:
        print(json.dumps({each.name: {"value": each.value, "text": each.text} for each in found}))
        return
    shown = Table("setting", "value", "", "what it is", box=None, pad_edge=False)
    for each in found:
        value = ",".join(map(str, each.value)) if isinstance(each.value, tuple) else str(each.value)
        shown.add_row(each.name, value, "*" if each.is_of_preset else "", each.text)
    _console().print(shown)
    if any(each.is_of_preset for each in found):
        print(f"* set by the preset {values['preset']}")


def _print_verified(verified: Any, values: Mapping[str, Any]) -> None:
    if values["json"]:
        print(json.dumps(dataclasses.asdict(verified)))
        return
    for name, what in verified.faults.items():
        print(f"{name} {what}")
    for note in verified.notes:
        print(note)
    state = "as they were written" if not verified.faults else f"{len(verified.faults)} of them altered"
    print(f"{counted(verified.n_files, 'file')}, {verified.n_bytes / 1e6:,.1f} MB: {state}")


PRINTERS: Mapping[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "demo": lambda result, values: None,
    "inspect": _print_inspection,
    "audit": _print_audit,
    "fit": _print_fit,
    "pretrain": _print_pretrain,
    "embed": _print_embedded,
    "annotate": _print_annotated,
    "describe": _print_described,
    "label": _print_labels,
    "verify-sample": _print_to_verify,
    "classes": lambda result, values: print("\n".join(_novel_lines(result.summary))),
    "evaluate": _print_evaluated,
    "export": lambda result, values: print(f"written: {result}"),
    "report": lambda result, values: print(result),
    "review": _print_reviewed,
    "compare": _print_compared,
    "verify": _print_verified,
    "settings": _print_settings,
    "bench": lambda result, values: print(result),
}


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def _skipped_lines(run: Run) -> list[str]:
    """Rows that a run left out, and notices about its data."""
    lines, where = [], f"listed in {run.path / 'data.json'}"
    if run.data["quarantined"]:
        lines.append(f"left out: {counted(len(run.data['quarantined']), 'row')}, {where}")
    if run.data["notices"]:
        lines.append(f"notices: {len(run.data['notices'])}, {where}")
        listed = [each for each in run.data["notices"] if each["kind"] in ("read_as", "ignored_column", "odd_class")]
        lines += [f"  {Path(each['where']).name}: {each['detail']}" for each in listed[:NOTICES_SHOWN]]
    return lines


def _print_left_out(problems: Sequence[Mapping[str, str]]) -> None:
    if problems:
        print(f"{counted(len(problems), 'image')} left out:", file=sys.stderr)
        print(format_problems([Problem(p["where"], p["kind"], p["detail"]) for p in problems]), file=sys.stderr)


def _print_scores(scores: Mapping[str, Any]) -> None:
    shown = Table("score", f"on {counted(scores['n_scored'], 'image')}", box=None, pad_edge=False)
    groups = [key for key in ("many", "medium", "few") if scores.get(key) is not None]
    groups = groups if len(groups) > 1 else []  # one alone is the balanced accuracy over again
    for key in ("accuracy", "balanced_accuracy", *groups, "seen", "unseen", "harmonic", "novel", "ece"):
        if scores.get(key) is not None:
            shown.add_row(key.replace("_", " "), f"{scores[key]:.4f}")
    _console().print(shown)
