"""What a run found, in lines: candidates, accuracy, pseudolabels, names, discovered classes, left-out rows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwright.annotators.reliability import reliability_lines
from labelwright.data.table import HOW_READ
from labelwright.reporting.words import deployed_words, is_below_annotator, knows_annotator, own_sets_words
from labelwright.run_folder import Run
from labelwright.wording import counted

LINES_MAX = 20  # class names listed one by one; the report has them all
NOTICES_SHOWN = 6  # of a run: how values were read, and which columns were not
_OPEN_SCORES = {"seen": "of named classes", "novel": "of the others", "all": "all in all"}


def lines_of_run(run: Run) -> list[str]:
    """Candidates, accuracy, pseudolabels, names or found classes of a finished run; no lines if there are none."""
    summary = run.summary
    if summary.get("n_novel") is not None:
        return novel_lines(summary, run.path)
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


MANY_NEW = 20  # new classes, from which on about a third of them was found together with others


def novel_lines(summary: Mapping[str, Any], run: str | Path = "RUN") -> list[str]:
    """How many classes were found beyond the named ones, how large they are, and how right that is if it is known."""
    novel, lines = summary.get("novel") or {}, []
    evidence, clusters = novel.get("evidence"), novel.get("clusters") or []
    sizes = []
    filled = [cluster for cluster in clusters if cluster["n_images"]]
    for cluster in filled:
        words = [str(word) for word, lift in cluster.get("proposed") or [] if lift > 0]
        perhaps = f", perhaps {words[0]}" if words else ""
        sizes.append(f"{cluster['name']} ({counted(cluster['n_images'], 'image')}{perhaps})")
    likely = ""
    if evidence and evidence["plausible"][0] < evidence["plausible"][1]:
        low, high = evidence["plausible"]
        none = evidence.get("could_be_none")
        likely = f" (could be none; at most {high} likely)" if none else f" ({low} to {high} are likely)"
        if low >= MANY_NEW:
            likely = f" ({low} to {high}, or more: classes that look alike are found as one)"
    what = counted(summary["n_novel"], "class", "classes") if summary["n_novel"] else "no class"
    listed = f": {', '.join(sizes[:LINES_MAX])}" if sizes else ""
    more = f" and {len(sizes) - LINES_MAX:,} more" if len(sizes) > LINES_MAX else ""
    n_empty = len(clusters) - len(filled)
    empty = f"; {n_empty:,} more {'has' if n_empty == 1 else 'have'} no image" if n_empty else ""
    lines.append(f"{what} beyond the named ones{likely}{listed}{more}{empty}")
    unnamed = [cluster["name"] for cluster in clusters if cluster["name"].startswith("novel-")]
    if unnamed:
        lines.append(
            f"to name one: labelwright classes {shlex.quote(str(run))} rename {unnamed[0]} NAME (or merge, drop)"
        )
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
    first, *others = annotated_lines({**summary["candidates"], **annotator}, again="a run in another --out asks")
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


def annotated_lines(
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


def skipped_lines(run: Run) -> list[str]:
    """Rows that a run left out, and notices about its data."""
    lines, where = [], f"listed in {run.path / 'data.json'}"
    if run.data["quarantined"]:
        n = len({each["where"] for each in run.data["quarantined"]})  # a row may be wrong in two ways
        lines.append(f"left out: {counted(n, 'row')}, {where}")
    if run.data["notices"]:
        lines.append(f"notices: {len(run.data['notices'])}, {where}")
        listed = [each for each in run.data["notices"] if each["kind"] in HOW_READ]
        lines += [f"  {Path(each['where']).name}: {each['detail']}" for each in listed[:NOTICES_SHOWN]]
    return lines
