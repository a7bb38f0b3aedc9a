"""What a verb found or made, for a terminal."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.padding import Padding
from rich.table import Table

from labelwright.annotators.reliability import reliability_lines
from labelwright.data.checks import format_problems
from labelwright.data.prepare import is_embeddings
from labelwright.data.table import NOTICES
from labelwright.errors import DataError, Problem
from labelwright.reporting.lines import annotated_lines, folded_warnings, lines_of_run, novel_lines, skipped_lines
from labelwright.reporting.words import COLUMNS, beside_rows, doubt_of
from labelwright.reviewing.answers import ANSWERS_FILE
from labelwright.run_folder import Run
from labelwright.screen import screen
from labelwright.wording import counted, percent


def _say(text: object) -> None:
    """Print a text for people."""
    screen().print(text)


def _show(*head: str, rows: Iterable[Sequence[str]]) -> None:
    """Print a table, without a head if there is none."""
    table = Table(*head, box=None, pad_edge=False, show_header=bool(head))
    for row in rows:
        table.add_row(*row)
    screen().print(table)


# ---- printers: (what the verb returned, the values of its flags) -----------------------------------------------------


def _print_inspection(found: Any, values: Mapping[str, Any]) -> None:
    """Counts, situation, problems.

    Raises: DataError if something is wrong with the data.
    """
    table, counts, out = found.table, found.table.counts(), screen()
    bad = [p for p in found.problems if p.kind not in NOTICES]
    n_unfit = len({p.row for p in bad if p.row is not None})
    out.print(
        f"{len(table):,} {found.noun}{f', {n_unfit:,} of them unusable' if n_unfit else ''}, "
        f"{int((table.labels >= 0).sum()):,} labelled, {counted(len(table.class_names), 'class', 'classes')}"
    )
    order = sorted(range(len(counts)), key=lambda c: -int(counts[c]))
    shown = order if len(order) <= 24 else [*order[:12], *order[-12:]]
    if order:
        _show("class", found.noun, rows=((table.class_names[c], f"{int(counts[c]):,}") for c in shown))
    if len(order) > 24:
        out.print(f"(the 12 largest and the 12 smallest of {len(order)})")
    _show(rows=found.situation.facets)
    out.print(f"situation: {found.situation.name}: {found.situation.reason}")
    out.print(f"fit would run: {found.runs}{f' ({found.needs})' if found.needs else ''}")
    if found.time:
        out.print(f"time: {found.time}")
    for line in reliability_lines(found.reliability):
        out.print(line)
    for notice in found.notices:
        out.print(f"notice: {notice}")
    if found.problems:
        out.print(format_problems(found.problems))
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
    summary, out = run.summary, screen()
    n_images, n_labelled = summary["n_images"], summary["n_labelled"]
    images = f"{n_images:,} images, {n_labelled:,} labelled," if n_labelled < n_images else f"{n_images:,} images"
    answer = summary["answer"]
    # colours and edges in place of the network that was trained
    what, of = (answer["title"], " of the network") if answer["name"] == summary["encoder"] else (summary["method"], "")
    out.print(
        f"{what} on {images} of {summary['n_classes']} classes "
        f"({summary['situation']}), {summary['seconds']['train']:.0f} s of training{of}"
    )
    for line in [*skipped_lines(run), *lines_of_run(run)]:
        out.print(line)
    if summary["test"]:
        _print_scores(run.scores)
    _print_beside(summary)
    for line in _promise_lines(summary.get("promise")):
        out.print(line)
    if (summary.get("strangers") or {}).get("n"):
        out.print(f"strangers: {summary['strangers']['says']}")
    for warning in folded_warnings(summary["warnings"]):
        out.print(f"warning: {warning}")
    out.print(f"report: {run.report}")


def _print_beside(summary: Mapping[str, Any]) -> None:
    """The answer beside the obvious ones, and why it was chosen."""
    keys, rows = beside_rows(summary)
    if not rows:
        return
    cells = []
    for row in rows:
        values = ("-" if row[key] is None else f"{row[key]:.4f}" for key in keys)
        cells.append((f"{row['title']}{' (the answer)' if row['is_answer'] else ''}", *values))
    _show("right, as a mean over the classes", *(f"on {COLUMNS[key]}" for key in keys), rows=cells)
    _say(f"answer: {summary['answer']['why']}")


def print_verdict(content: Mapping[str, Any]) -> None:
    """How good the labels of a run are and what to do next, as its report says it."""
    out, verdict = screen(), content["verdict"]
    out.print(f"\n{verdict['sign']} {verdict['words']}: {verdict['sentence']}")
    for _, words in verdict["facts"]:
        out.print(Padding(words, (0, 0, 0, 2)) if out.is_terminal else f"  {words}")
    for card in content["next"]:
        out.print(f"next: {card['title'].lower()}:")
        out.print(f"  {card['command']}", soft_wrap=True)  # to be copied whole


def _print_compared(found: Any, values: Mapping[str, Any]) -> None:
    """Settings and scores that differ, and the labels that changed; or all as JSON."""
    if values["json"]:
        print(json.dumps(found.to_dict()))
        return
    short = [Path(name).resolve().name for name in found.names]
    names = short if short[0] != short[1] else found.names

    def cells(pair: Sequence[Any]) -> Iterator[str]:
        return (f"{v:.4f}" if isinstance(v, float) else "-" if v is None else str(v) for v in pair)

    for what, rows in (("setting", found.settings), ("score", found.scores)):
        if rows:
            _show(what, *names, rows=((SCORES.get(key, key).strip(), *cells(pair)) for key, pair in rows.items()))
    if not found.settings:
        _say("the settings are the same")
    if found.n_common:
        _say(f"labels that differ: {found.n_changed:,} of {counted(found.n_common, 'image')} that both labelled")
    else:
        _say("labels are not compared: no image is in both")
    for was, now, n in found.pairs[:10]:
        _say(f"  {was} -> {now}: {counted(n, 'image')}")
    for note in found.notes:
        _say(f"note: {note}")


def _print_pretrain(path: Path, values: Mapping[str, Any]) -> None:
    """On what, how long, warnings, and what to do with it."""
    run = Run(path)
    summary = run.summary
    _say(
        f"simclr on {summary['n_images']:,} images of {summary['size_px']} px, labels unseen: {summary['encoder']}, "
        f"{summary['epochs']} epochs, {summary['seconds']['train']:.0f} s of training"
    )
    for line in skipped_lines(run):
        _say(line)
    _say(
        f"mean cosine of views of one image {summary['alignment']:.2f}, of different images "
        f"{summary['cosine_of_others']:.2f}"
    )
    for warning in folded_warnings(summary["warnings"]):
        _say(f"warning: {warning}")
    _say(f"start from it: labelwright fit {values['data']} --model {path} --out NEW")


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
    _say(
        f"{counted(found['n_images'], 'image')}, {found['n_labelled']:,} labelled, "
        f"{counted(found['n_classes'], 'class', 'classes')}; features: {found['features']}"
    )
    always = ("wrong_label", "exact_copy", "near_copy")
    rows = [(f"{n:,}", FLAG_WORDS[flag]) for flag, n in found["counts"].items() if n or flag in always]
    rows += [(f"{found['n_duplicate_groups']:,}", "groups of copies")] if found["n_duplicate_groups"] else []
    _show(rows=rows)
    if found["estimated_wrong"] is not None:
        share = found["estimated_wrong"]
        doubt = doubt_of(found["agreement"], share)
        _say(f"about {percent(share)} of the labels are estimated to be wrong{doubt}")
    if found["worst"]:
        cells = (
            (row["id"], row["label"], row["suspected_label"], f"{row['label_score']:.3f}") for row in found["worst"]
        )
        _show("the worst labels: id", "label", "rather", "chance that the label is right", rows=cells)
    for pair in found["alike"]:
        share = "at least as likely" if pair["alike"] >= 1 else f"{pair['alike']:.0%} as likely"
        pair_of = " and ".join(pair["classes"])
        _say(f"classes that look like one: {pair_of} (on images of either the other is {share} as the right one)")
    _print_notices(found["notices"])
    if values["out"] is not None:
        _say(f"a row per image: {values['out']}")
    _print_left_out(found["left_out"])
    if done.failed:
        screen(is_error=True).print(f"found, as --fail-on asks: {', '.join(done.failed)}")


def _print_embedded(done: Any, values: Mapping[str, Any]) -> None:
    """How many features of how many images, and what to do with them."""
    _say(f"{counted(done.n_images, 'image')}, {done.n_features:,} features each: {done.path}")
    answers = f"--annotator-columns {shlex.quote(','.join(done.annotators))} " if done.annotators else ""
    _say(f"learn from them: labelwright fit {done.path} {answers}--out RUN")
    _print_notices(done.notices)
    _print_left_out(done.left_out)


def _print_annotated(done: Any, values: Mapping[str, Any]) -> None:
    """How many candidates there are and, where labels are known, how often they hold them."""
    for line in annotated_lines(done.counts):
        _say(line)
    if n := done.counts.get("n_labelled"):
        _say(
            f"notice: {n:,} of these images have a label, which `fit` on this table takes as verified; --method coreg "
            "learns from the candidates of the others"
        )
    _say(f"candidates: {done.path}")
    _print_notices(done.counts["notices"])
    _print_left_out(done.counts["left_out"])


def _print_described(found: Any, values: Mapping[str, Any]) -> None:
    """The class names that fit no image, and the descriptions asked for."""
    names, evidence = found.class_names, found.mismatch.evidence.tolist()
    weakest = sorted(range(len(names)), key=evidence.__getitem__)
    if found.mismatched:
        fit = "fits" if len(found.mismatched) == 1 else "fit"
        _say(f"{len(found.mismatched)} of {len(names)} class names {fit} no image")
        weakest = [c for c in weakest if found.mismatch.is_mismatched[c]]
    else:
        _say(f"none of {len(names)} class names stands out as fitting no image; the weakest:")
        weakest = weakest[:5]
    _show("class", "evidence (0 to 1)", rows=((names[c], f"{evidence[c]:.2f}") for c in weakest))
    if found.path is None:
        _say("--chat MODEL --out FILE.json asks how they look; a file you write yourself is as good")
        return
    asked = range(len(names)) if values["every"] else [c for c in weakest if found.mismatch.is_mismatched[c]]
    if not asked:
        _say("nothing was asked; --every asks about all classes")
        return
    for name, texts in found.descriptions.items():
        _say(f"{name}: {'; '.join(texts)}")
    if silent := [names[c] for c in asked if names[c] not in found.descriptions]:
        _say(f"no usable answer about: {', '.join(silent)}; the same command asks again")
    if found.descriptions:
        _say(f"descriptions: {found.path}; look them over, then: labelwright fit ... --descriptions {found.path}")


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
    _say(f"{counted(len(rows), 'image')} labelled: {values['out']}")
    _say(kept["strangers"]["says"])
    if values["novel"]:
        sizes = ", ".join(f"{name} ({counted(n, 'image')})" for name, n in new.items())
        _say(f"put together in: {sizes}" if new else "too few of them to be new classes")
    for line in _promise_lines(kept.get("promise")):
        _say(line)
    _print_left_out(kept["left_out"])


def _promise_lines(promise: Mapping[str, Any] | None) -> list[str]:
    """What is promised, and what it takes for granted."""
    if promise is None:
        return []
    return [f"promise: {promise['says']}", *([f"  if {promise['assumes']}"] if promise.get("assumes") else [])]


def _print_to_verify(found: Any, values: Mapping[str, Any]) -> None:
    """How many images to look at, and what to do then."""
    if values["json"]:
        print(json.dumps({**dataclasses.asdict(found), "path": str(found.path)}))
        return
    _say(f"{counted(found.n, 'image')} of {found.n_predicted:,} to look at: {found.path}")
    if found.note:
        _say(f"notice: {found.note}")
    _say("fill in the column verified with the true class, or none where it is of no class; then")
    run, out, share = shlex.quote(str(values["run"])), "accepted.csv", f"{values['error']:g}"
    data = Run(values["run"]).config.get("data")
    if values["data"] is not None and not is_embeddings(data):  # where the images are now
        data = values["data"]
    if data and not str(data).startswith("<"):
        words = shlex.join([str(data), "--error", share, "--verified", str(found.path), "--out", out])
        screen().print(f"  labelwright label {run} {words}", soft_wrap=True)  # to be copied whole
        return
    call = f"labelwright.label({str(values['run'])!r}, data, error={share}, verified={str(found.path)!r}, out={out!r})"
    _say("  in Python, data being what it was learned from:")
    screen().print(f"  {call}", soft_wrap=True)


def _print_evaluated(scores: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Scores of `evaluate`, as a table or as JSON."""
    if values["json"]:
        print(json.dumps(scores))
    else:
        _print_scores(scores)
        _print_notices(scores["notices"])
        _print_left_out(scores["left_out"])


def _print_reviewed(done: Any, values: Mapping[str, Any]) -> None:
    """How much was answered, what was written, and what to do with it."""
    where = f"{counted(done.n_answered, 'image')} answered, in {done.run / ANSWERS_FILE}"
    _say(where if done.n_answered else "no image was answered")
    if done.corrections is not None:
        _say(f"corrections: {done.corrections}")
    if done.applied is not None:
        _say(done.says)
    elif done.n_answered and done.corrections is None:
        _say(f"to learn from it: labelwright review {done.run} --apply")


def _print_settings(found: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Settings of a method as a table, those that the preset changes marked, or as JSON."""
    if values["json"]:
        print(json.dumps({each.name: {"value": each.value, "text": each.text} for each in found}))
        return
    rows = []
    for each in found:
        value = ",".join(map(str, each.value)) if isinstance(each.value, tuple) else str(each.value)
        rows.append((each.name, value, "*" if each.is_of_preset else "", each.text))
    _show("setting", "value", "", "what it is", rows=rows)
    if any(each.is_of_preset for each in found):
        _say(f"* set by the preset {values['preset']}")


def _print_verified(verified: Any, values: Mapping[str, Any]) -> None:
    if values["json"]:
        print(json.dumps(dataclasses.asdict(verified)))
        return
    for name, what in verified.faults.items():
        _say(f"{name} {what}")
    for note in verified.notes:
        _say(note)
    state = "as they were written" if not verified.faults else f"{len(verified.faults)} of them altered"
    _say(f"{counted(verified.n_files, 'file')}, {verified.n_bytes / 1e6:,.1f} MB: {state}")


def print_sharded(done: Any, values: Mapping[str, Any]) -> None:
    """What work over shards wrote, as a few lines or as JSON."""
    facts = {**vars(done), "left_out": len(done.left_out)}
    if values.get("json"):
        print(json.dumps(facts))
        return
    before = f", {done.n_before:,} of them there before" if done.n_before else ""
    print(f"{counted(done.n_images, 'image')} in {counted(done.n_shards, 'shard')}{before}: {done.path}")
    for key, words in (("n_accept", "labels may be accepted"), ("n_unknown", "look like no class")):
        if key in done.counts and (key != "n_accept" or values.get("error") is not None):
            print(f"{done.counts[key]:,} {words}")
    if done.counts.get("n_scored"):
        print(
            f"of {done.counts['n_scored']:,} with a label, {done.counts['n_inside']:,} have it among their candidates"
        )
    _print_notices(done.notices)
    _print_left_out(done.left_out)


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
    "classes": lambda result, values: _say("\n".join(novel_lines(result.summary, result.path))),
    "evaluate": _print_evaluated,
    "export": lambda result, values: _say(f"written: {result}"),
    "report": lambda result, values: _say(result),
    "review": _print_reviewed,
    "compare": _print_compared,
    "verify": _print_verified,
    "settings": _print_settings,
    "bench": lambda result, values: _say(result),
}


def _print_notices(notices: Sequence[str]) -> None:
    for notice in notices:
        _say(f"notice: {notice}")


def _print_left_out(problems: Sequence[Mapping[str, str]]) -> None:
    if problems:
        screen(is_error=True).print(f"{counted(len(problems), 'image')} left out:")
        screen(is_error=True).print(format_problems([Problem(p["where"], p["kind"], p["detail"]) for p in problems]))


SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "accuracy, mean over the classes",
    "many": "  classes with many labels",
    "medium": "  classes with a medium number of labels",
    "few": "  classes with few labels",
    "seen": "  classes with labels",
    "unseen": "  classes without labels",
    "harmonic": "  harmonic mean of these two",
    "novel": "  discovered classes",
    "trust_ece": "trust, mean distance from the share that is right",
}
"""Score -> what it is, in the order of printing."""

PARTS = (("many", "medium", "few"), ("seen", "unseen", "novel"))
"""Scores that part the accuracy over the classes."""


def _print_scores(scores: Mapping[str, Any]) -> None:
    parts = [[key for key in keys if scores.get(key) is not None] for keys in PARTS]
    alone = {part[0] for part in parts if len(part) == 1}  # the accuracy over the classes over again
    known = [key for key in SCORES if scores.get(key) is not None and key not in alone]
    rows = ((SCORES[key], f"{scores[key]:.4f}") for key in known)
    _show("score", f"on {counted(scores['n_scored'], 'image')}", rows=rows)
