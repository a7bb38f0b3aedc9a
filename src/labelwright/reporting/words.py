"""Sentences and rows that the report, the terminal and a notebook have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from labelwright.wording import percent

COLUMNS = {
    "left_out": "labelled images left out",
    "test": "test images",
    "unlabelled": "unlabelled images",
    "within_sets": "unlabelled images within their candidates",
}
"""What an answer is scored on: balanced accuracy, of unlabelled images the share that is right, alone and among what
annotators or candidates name for the image."""

SITUATIONS = {
    "no_labels": "class names but no labels",
    "few_labels": "a few labels per class",
    "some_classes": "labels for only some of the classes",
    "candidates": "a set of candidate labels per image",
    "long_tailed": "a label for every image, with uneven class counts",
    "balanced": "a label for every image, with even class counts",
    "open_world": "labels for some classes, and images of unnamed classes",
}


NEARLY_ALL = 0.99  # estimated share of candidate sets that hold the class, from which it says nothing else than all
REPEATS = 0.9  # share of the guesses, one an image, from which a classifier repeats nearly all of them

TURNING = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Characters that turn the direction of the text after them."""

TELLING = 0.7
"""Share of labels that are what the others say, below which the others may be wrong as well: right labels of 26 to 200
kinds of letters and emoji, of which they say half, were taken for 4 to 18% wrong."""
MANY_WRONG = 0.03  # estimated share of wrong labels, from which that matters


def beside_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """What there are scores of, keys of `COLUMNS`, and a row for each answer; no rows if there is nothing to compare.

    Returns: the keys, and dicts of title, is_answer and the keys.

    Example:
      >>> beside = {"la": {"title": "LA", "left_out": 0.9, "test": None, "unlabelled": None, "seconds": 1.0},
      ...           "ce": {"title": "CE", "left_out": 0.8, "test": None, "unlabelled": None, "seconds": 1.0}}
      >>> beside_rows({"reference": beside, "answer": {"name": "la"}})[1][0]
      {'title': 'LA', 'is_answer': True, 'left_out': 0.9}
    """
    found = summary.get("reference") or {}
    if len(found) < 2:
        return [], []
    values = {
        name: {**each, "test": None if each["test"] is None else each["test"].get("balanced_accuracy")}
        for name, each in found.items()
    }
    keys = [key for key in COLUMNS if any(each.get(key) is not None for each in values.values())]
    rows = [
        {"title": each["title"], "is_answer": name == summary["answer"]["name"], **{key: each.get(key) for key in keys}}
        for name, each in values.items()
    ]
    return (keys, rows) if keys else ([], [])


def is_doubted(trust: Mapping[str, Any]) -> bool:
    """Whether ``trust`` of summary.json says that the text model rather does not know the classes.

    Example:
      >>> is_doubted({"estimated": 0.2, "n_classes": 10, "lowered": 0.5})
      True
      >>> is_doubted({"estimated": 0.7, "n_classes": 10, "lowered": 0.01})
      False
    """
    left = (trust.get("estimated") or 0.0) - 1 / max(2, trust.get("n_classes") or 2)
    return float(trust.get("lowered") or 0.0) > max(0.0, left)


def is_repeated(trust: Mapping[str, Any]) -> bool:
    """Whether ``trust`` of summary.json says that a classifier repeats nearly all of the guesses, one an image.

    Example:
      >>> is_repeated({"repeated": 0.98}), is_repeated({"repeated": 0.7})
      (True, False)
    """
    return float(trust.get("repeated") or 0.0) >= REPEATS


def knows_annotator(summary: Mapping[str, Any]) -> bool:
    """Whether ``zero_shot`` of summary.json is what the run's annotator answers: of two towers, not of a chat model.

    Example:
      >>> knows_annotator({"candidates": {"n_images": 1}, "annotator": {"kind": "chat"}})
      False
    """
    return bool(summary.get("candidates")) and (summary.get("annotator") or {}).get("kind") == "two towers"


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


def own_sets_words(found: Mapping[str, Any] | None) -> list[str]:
    """How labels of training images were decided between the model and their candidates; no words if there are none.

    Example:
      >>> own_sets_words({"rule": "no", "outside_frac": 0.16, "label_outside_frac": 0.0})
      ['labels of training images: the best of their candidates; the model alone would leave them for 16.0%']
      >>> sure = {"rule": "auto", "outside_frac": 0.16, "label_outside_frac": 0.0, "truth_inside": 0.998}
      >>> own_sets_words(sure)[0].split("; ")[1]
      'the candidates are taken to hold the right class: the model shows nothing else'
    """
    if not found:
        return []
    how = {
        "no": "the best of their candidates",
        "yes": "what the model says of the image alone, inside its candidates or not",
        "auto": "what the model and the candidates say together",
    }[found["rule"]]
    alone = f"the model alone would leave them for {percent(found['outside_frac'])}"
    if found["rule"] == "auto" and found.get("one_guess"):
        alone = f"of the guesses, one an image, the model alone contradicts {percent(found['outside_frac'])}, and the"
        alone += f" labels {percent(found['label_outside_frac'])}"
    elif found["rule"] == "auto":
        inside, other = found["truth_inside"], f"{percent(found['label_outside_frac'])} of the labels are another class"
        alone = f"the candidates are estimated to hold the right class for {percent(inside)} of the images; {other}"
        if inside >= NEARLY_ALL:  # sets that miss it and a model that errs look alike
            alone = f"the candidates are taken to hold the right class: the model shows nothing else; {other}"
    return [f"labels of training images: {how}; {alone}"]


def deployed_words(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of Co-Reg was saved, and its score; no words for a run that does not say.

    Example:
      >>> deployed_words([{"deployed": "sum", "score_deployed": 0.75}])[0]
      'Two networks were trained; both were saved, and their answers are summed.'
    """
    last = next((record for record in reversed(epochs) if record.get("deployed")), None)
    if last is None:
        return []
    how = {
        "sum": "Two networks were trained; both were saved, and their answers are summed.",
        "one": "The one network that was trained was saved.",
        "annotator": "The annotator's own classifier was saved, not what was trained: it fits the images better.",
    }
    words = [how.get(str(last["deployed"]), f"Saved: {last['deployed']}.")]
    reached, start = finite(last.get("score_deployed")), finite(last.get("score_guesses"))
    if reached is not None and start is not None:
        words.append(
            "Score, found without any label: how well answers agree with groups of images that look alike "
            f"(0 not at all, 1 fully). The guesses: {start:.3f}; the trained network: {reached:.3f}."
        )
    elif reached is not None:
        words.append(
            f"Score, found without any label: {percent(reached)} of its answers are among the image's guesses."
        )
    return words


def finite(value: Any) -> float | None:
    """A number that can be drawn; None for anything else.

    Example:
      >>> finite(1), finite(float("nan")), finite("2"), finite(None)
      (1.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def plain(text: str) -> str:
    """Text without the marks that turn the direction of what follows: one in a class name would turn its sentence.

    Example:
      >>> plain("\\u202ewo") == "wo"
      True
    """
    return text.translate(TURNING)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas, those beyond ``most`` as their number.

    Example:
      >>> listed(["a", "b", "c"], 2)
      'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def doubt_of(agreement: float | None, wrong: float) -> str:
    """What has to stand beside wrong labels where what judges them says few of all labels; else nothing.

    Args: agreement: share of the labels that it says, None = not known.   wrong: estimated share of wrong ones.

    Example:
      >>> doubt_of(0.46, 0.18), doubt_of(0.46, 0.01), doubt_of(0.9, 0.18), doubt_of(None, 0.18)
      ('; what judges them says only 46.0% of all labels, so that many of these may be right', '', '', '')
    """
    if agreement is None or agreement >= TELLING or wrong < MANY_WRONG:
        return ""
    return f"; what judges them says only {percent(agreement)} of all labels, so that many of these may be right"
