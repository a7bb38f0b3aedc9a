"""The verdict of a report: how many labels are right, with an interval and what confirms it, in a sentence and facts.

A share that no label confirms is never called good, however sure the model is: neither an estimate without labels, nor
one of images of new classes, of which no image is known. Nor is a share whose interval reaches far down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelwright.data.situation import NEARLY_ALL
from labelwright.encoders.descriptor import NAME
from labelwright.reporting.checks import is_given
from labelwright.reporting.given import interval
from labelwright.reporting.lines import folded_warnings
from labelwright.reporting.panels import kept_epoch
from labelwright.reporting.words import COLUMNS, beside_rows, is_doubted, is_repeated, listed
from labelwright.run_folder import Run
from labelwright.wording import counted, percent

GOOD, FAIR = 0.9, 0.7  # share of right labels from which they are called good, or usable after a look
SURE = 0.8  # lower end of the interval from which a share is called good
BEHIND = 0.01  # so much less than the obvious is behind it
LEAST_SEEN = 3  # test images of a class, of which none was recognised, before the page names it
FEW = 10  # labels of its own below which a run is judged by new images, where nearly all images had labels
COPIED = 0.05  # share of the test images from which, as copies of labelled training images, they measure nothing
ENOUGH = 100  # test images from which scores on them are compared rather than those on labels that were left out

LEVELS = {
    "good": ("✓", "Good"),
    "fair": ("!", "Usable after a look"),
    "poor": ("✗", "Not good enough yet"),
    "unconfirmed": ("?", "Not confirmed yet"),
    "unknown": ("?", "Not measured"),
}
"""Level of a verdict -> (sign, words)."""

BASIS = {
    "left-out labels": "judged by {n} that the classifier had not seen",
    "text model": "no label confirms this: it rests on how sure the text model was before anything was learned",
    "candidates": "no label confirms this: it rests on how sure those were who named the candidates",
    "none": "no label confirms this",
}


DOUBTED = "the model that read the class names does not seem to know these classes"
REPEATED = "the classifier repeats nearly every guess, one an image, and would repeat wrong ones as well"
LABELS, NEW = "labels are right", "new images are labelled right"
UNLIKE = "and many unlabelled images look unlike all labelled ones"


@dataclass(frozen=True)
class Share:
    """The share of labels that is right, None = not known, its interval, the sentence that says so, and whether labels
    confirm it."""

    right: float | None
    span: tuple[float, float] | None
    sentence: str
    is_confirmed: bool = True


def verdict_of(run: Run) -> dict[str, Any]:
    """level, sign, words, sentence, facts [(kind, words)], warnings, never (classes that are not recognised),
    is_behind (the obvious), is_confirmed (by labels).

    Example: sure of itself, but nobody has looked.
      >>> trust = {"source": "candidates", "n": 0, "estimated": 0.99, "interval": [0.6, 1.0]}
      >>> found = verdict_of(Run("run", summary={"trust": trust}, data={}, records=[], labels=None))
      >>> found["words"], found["sentence"][:45]
      ('Not confirmed yet', 'About 99 of 100 labels are right (60 to 100);')
    """
    share = share_right(run)
    facts: list[tuple[str, str]] = []
    predicted = n_predicted(run)
    if share.right is not None and predicted > 1:
        low, high = (round(predicted * (1 - end)) for end in reversed(share.span or (share.right,) * 2))
        span = f" ({low:,} to {high:,})" if low < high else ""
        wrong = round(predicted * (1 - share.right))
        facts.append(("wrong", f"Of the {predicted:,} labels that it gave about {wrong:,} are likely wrong{span}."))
    if is_half_known(run) and not is_of_copies(run.test):
        right, n = float(run.test["accuracy"]), run.test.get("n_scored") or 0
        words = _about(right, interval(right, n) if n else None, "test images of the named classes are labelled right")
        facts.append(("named", f"{words}."))
    for block in ("promise", "strangers", "audit", "names"):
        of_block = run.summary.get(block) or {}
        is_quiet = block == "strangers" and of_block.get("n") == 0 and of_block.get("share") is not None
        if of_block.get("says") and not is_quiet:
            facts.append((block, str(of_block["says"])))
    is_behind = False
    if found := _obvious(run):
        words, is_behind = found
        facts.append(("behind" if is_behind else "obvious", words))
    facts += [("training", words) for words in _added_nothing(run)]
    never = never_recognised(run)
    if never:
        sizes = dict(zip(_tested_names(run), run.test.get("n_per_class") or (), strict=False))
        shown = [f"{name} (0 of {sizes[name]})" if sizes.get(name) else name for name in never]
        facts.append(("never", f"Never recognised: {listed(shown)}."))
    level = _level(share)
    if level == "good" and (never or is_behind):
        level = "fair"
    sign, words = LEVELS[level]
    warnings = folded_warnings([str(each) for each in run.summary.get("warnings") or []])
    return {
        **{"level": level, "sign": sign, "words": words, "sentence": share.sentence},
        **{
            "facts": facts,
            "never": never,
            "is_behind": is_behind,
            "is_confirmed": share.is_confirmed and share.right is not None,
        },
        **{"warnings": warnings},
    }


def _level(share: Share) -> str:
    if share.right is None:
        return "unknown"
    if share.right < FAIR:
        return "poor"
    if not share.is_confirmed:
        return "unconfirmed"
    return "good" if share.right >= GOOD and (share.span is None or share.span[0] >= SURE) else "fair"


def unlike_labelled(run: Run) -> float:
    """Up to what share of the unlabelled images look unlike every labelled one; labels do not speak for these."""
    return float((run.summary.get("trust") or {}).get("unlike") or 0.0)


def share_right(run: Run) -> Share:
    """The share of labels that is right, and what is known of it.

    Test images, or labels that were left out where these tell more; then what is known for scoring alone; then what
    trust rests on without any label. Labels by answers or candidates are better than those of test images, which have
    none: there trust counts, less by as much as the classifier claims too much of test images. Images held out do not
    speak for unlabelled ones that look unlike all of them.
    """
    accuracy, n, trust = run.test.get("accuracy"), run.test.get("n_scored") or 0, run.summary.get("trust") or {}
    is_copied = is_of_copies(run.test)
    accuracy = None if is_copied else accuracy
    estimated, source = trust.get("estimated"), trust.get("source", "none")
    half_known = is_half_known(run)
    span = interval(accuracy or 0.0, n) if n else None
    narrow = source == "left-out labels" and estimated is not None and trust["interval"][1] - trust["interval"][0]
    held_out, is_verified = run.data.get("test_is") == "held out", bool(run.config.get("verified"))
    labelled, n_images = run.summary.get("n_labelled") or 0, run.summary.get("n_images") or 0
    n_own = n_images - labelled
    are_new = n_own < FEW and 0 < NEARLY_ALL * n_images <= labelled  # the images that want labels are still to come
    are_new &= not run.summary.get("n_novel")
    are_apart = held_out and unlike_labelled(run) > 0  # held-out images are like the labelled ones
    if are_new and accuracy is not None:
        are_apart = narrow = False  # what the few labels say of themselves is not asked for
    answers = _answers(run)
    if accuracy is not None and span and estimated is not None and answers:
        more = claims(run.test) - accuracy
        own = estimated - (more if more >= (span[1] - span[0]) / 2 else 0)
        if own > accuracy:
            ends = max(trust["interval"][0], span[0]), max(trust["interval"][1], span[1])
            words = f"{_about(own, ends)}, by {answers} and images together; of new images, which have no {answers}, "
            words += f"about {accuracy * 100:.0f} ({span[0] * 100:.0f} to {span[1] * 100:.0f}), measured on "
            return Share(own, ends, f"{words}{counted(n, 'test image')}.")
    if accuracy is not None and not (half_known or are_apart or (span and narrow and narrow < span[1] - span[0])):
        of_test = counted(n, "test image") if n else "test images"
        basis = f"measured on {of_test}{(' that was' if n == 1 else ' that were') + ' held out' if held_out else ''}"
        noise, what = (run.summary.get("audit") or {}).get("test_noise"), NEW if are_new else LABELS
        if run.summary.get("n_novel"):  # labels of new classes are not judged
            noise = None
        corrected = accuracy + noise["corrected"] - noise["accuracy"] if noise else accuracy
        if noise and span and corrected > span[1]:  # the truth lies between the two
            high = interval(corrected, n)[1]
            words = f"{accuracy * 100:.0f} by their labels as they are, {corrected * 100:.0f} with those that "
            words += f"look wrong ({percent(noise['n'] / noise['n_judged'])}) set right"
            middle = (accuracy + corrected) / 2
            return Share(middle, (span[0], high), f"{_about(middle, (span[0], high), what)}, {basis}: {words}.")
        return Share(accuracy, span, f"{_about(accuracy, span, what)}, {basis}.")
    if are_new and n_own and estimated is not None and source != "none":
        words = f"Of the {counted(n_own, 'label')} that it gave about {n_own * estimated:.0f} are right"
        words = words if n_own > 1 else f"The one label that it gave is right with a chance of {percent(estimated)}"
        return Share(None, None, f"{words}; how it labels new images was not measured.")
    known = run.summary.get("pseudolabels") or {}
    share = known.get("all", known.get("accuracy"))
    if share is not None and narrow is False:
        return Share(share, None, f"{_about(share, None)}, of the unlabelled images whose truth is known.")
    if estimated is not None and source != "none":
        low, high = trust["interval"]
        basis = BASIS.get(source, source).format(n=counted(trust.get("n") or 0, "label"))
        basis = f"no label confirms this: {REPEATED}" if is_repeated(trust) else basis
        basis = f"no label confirms this: {DOUBTED}" if is_doubted(trust) else basis
        if run.summary.get("n_novel"):
            basis = "labels confirm the named classes alone, and nothing the new ones"
        elif unlike_labelled(run) and not is_verified:
            basis += f", {UNLIKE}"
        is_confirmed = source == "left-out labels" and not run.summary.get("n_novel")
        is_confirmed &= is_verified or not unlike_labelled(run)
        return Share(estimated, (low, high), f"{_about(estimated, (low, high))}; {basis}.", is_confirmed)
    if half_known:
        return Share(None, None, "How many labels are right is not known: no image is known to be of a new class.")
    why = "there were no labelled images to measure it on"
    why = "the test images are copies of labelled training images" if is_copied else why
    return Share(None, None, f"How many labels are right is not known: {why}.")


def _answers(run: Run) -> str:
    """What labels rest on that test images do not have, more than one guess an image; "" for nothing of the kind."""
    trust, sets = run.summary.get("trust") or {}, run.summary.get("candidates") or {}
    if trust.get("source") != "candidates" or is_repeated(trust):
        return ""
    if run.summary.get("crowd"):
        return "answers"
    return "candidates" if sets.get("has_weights") is False and sets["largest_set"] > 1 else ""


def claims(test: Mapping[str, Any]) -> float:
    """What share of the test images the classifier itself says is right: the mean of its probabilities.

    Example:
      >>> bins = [{"count": 3, "confidence": 0.9}, {"count": 1, "confidence": 0.5}, {"count": 0, "confidence": None}]
      >>> round(claims({"reliability": {"all": bins}}), 2)
      0.8
    """
    bins = [each for each in test["reliability"]["all"] if each["count"]]
    return float(sum(each["count"] * each["confidence"] for each in bins) / sum(each["count"] for each in bins))


def is_of_copies(test: Mapping[str, Any] | None) -> bool:
    """Whether scores are of so many copies of labelled training images that they measure nothing.

    Args: test: of summary.json.

    Example:
      >>> is_of_copies({"n_scored": 100, "n_copied": 80}), is_of_copies({"n_scored": 100}), is_of_copies(None)
      (True, False, False)
    """
    found = test or {}
    n = found.get("n_copied", 0)
    return bool(n and n >= COPIED * (found.get("n_scored") or 0))


def is_half_known(run: Run) -> bool:
    """Whether test images are of named classes alone, while there are others."""
    return bool(run.summary.get("n_novel")) and "accuracy" in run.test and run.test.get("novel") is None


def _about(share: float, span: Sequence[float] | None, what: str = LABELS) -> str:
    words = "" if span is None else f" ({span[0] * 100:.0f} to {span[1] * 100:.0f})"
    return f"About {share * 100:.0f} of 100 {what}{words}"


def n_predicted(run: Run) -> int:
    """How many labels of a run are its own."""
    if run.labels is None or "source" not in run.labels.column_names:
        return 0
    return int((~is_given(run.labels)).sum())


def _obvious(run: Run) -> tuple[str, bool] | None:
    """What the best obvious alternative gets, and whether the answer is behind it."""
    keys, rows = beside_rows(run.summary)
    key = judged_on(run.summary, keys)
    reference = run.summary.get("reference") or {}
    if key is None:
        before, after = run.zero_shot.get("accuracy"), run.test.get("accuracy")
        if before is None or after is None:
            return None
        words = f"The class names alone get {percent(before)} of the test images right, this answer {percent(after)}."
        return words, before > after + BEHIND
    is_network = run.summary["answer"]["name"] == NAME  # the only other that there is
    ours = {"start", *(() if is_network else (run.summary["method"],))}
    titles = {reference[name]["title"] for name in ours if name in reference}
    own = next((row for row in rows if row["is_answer"]), None)
    others = [row for row in rows if not row["is_answer"] and row[key] is not None and row["title"] not in titles]
    if own is None or own[key] is None or not others:
        return None
    best = max(others, key=lambda row: row[key])
    silent = [name for name, n in zip(run.class_names, run.counts, strict=False) if n == 0]
    labelled = f"the {len(run.counts) - len(silent):,} classes that have labels"
    over = labelled if silent and key == "left_out" else "the classes"
    mean = "" if key == "unlabelled" else f" (mean over {over})"
    lead = "The network that was trained" if is_network else "The obvious alternative"
    gap, chance = own[key] - best[key], standard_error(run.summary, key, own[key], n_predicted(run))
    more = "better" if gap > chance else "about the same" if gap > -chance else "worse"
    words = (
        f"{lead}, {best['title']}, gets {percent(best[key])} of the {COLUMNS[key]} right{mean}; "
        f"this answer {percent(own[key])}: {more}."
    )
    is_behind = gap < -max(BEHIND, chance)
    if is_behind and silent and run.summary["answer"]["best"] == run.summary["answer"]["name"]:
        words += f" Give images of {listed(silent, 3)} labels, and the better one is taken."
    return words, is_behind


def judged_on(summary: Mapping[str, Any], keys: Collection[str]) -> str | None:
    """By which of ``keys``, of `COLUMNS`, answers are compared: scores on many test images go before all others."""
    n = (summary.get("test") or {}).get("n_scored") or 0
    order: tuple[str, ...] = ("test", "left_out", "unlabelled") if n >= ENOUGH else ("left_out", "test", "unlabelled")
    if is_of_copies(summary.get("test")):
        order = tuple(key for key in order if key != "test")
    return next((key for key in order if key in keys), None)


def standard_error(summary: Mapping[str, Any], key: str, share: float, n_labels: int = 0) -> float:
    """Of a share right by one of `COLUMNS`, so far as its number of images is known; 0.002 at least.

    Args: n_labels: of the run's own, for ``unlabelled``.
    """
    n_scored, n_left_out = (summary.get("test") or {}).get("n_scored"), (summary.get("trust") or {}).get("n")
    n = {"test": n_scored, "left_out": n_left_out, "unlabelled": n_labels}[key] or 0
    return max(0.002, (share * (1 - share) / n) ** 0.5 if n else 0.0)


def better_answer(summary: Mapping[str, Any]) -> str:
    """That the answer which labels left out would choose is better than the run's, beyond chance; empty if it is not.

    Example:
      >>> each = {"test": None, "unlabelled": None, "seconds": 1.0}
      >>> beside = {"ce": {"title": "CE", "left_out": 0.5, **each}, "la": {"title": "LA", "left_out": 0.9, **each}}
      >>> answer = {"name": "ce", "title": "CE", "best": "la"}
      >>> better_answer({"reference": beside, "answer": answer, "trust": {"n": 100}})
      'LA gets 90.0% of the labelled images left out right, this answer 50.0%'
      >>> better_answer({"reference": beside, "answer": answer, "trust": {"n": 1}})
      ''
    """
    answer = summary.get("answer") or {}
    keys, rows = beside_rows(summary)
    key, best = judged_on(summary, keys), answer.get("best")
    if key is None or best in (None, answer["name"]):
        return ""
    own = next(row[key] for row in rows if row["is_answer"])
    title = summary["reference"][best]["title"]
    other = next(row[key] for row in rows if row["title"] == title)
    if own is None or other is None or other - own <= max(BEHIND, standard_error(summary, key, own)):
        return ""
    return f"{title} gets {percent(other)} of the {COLUMNS[key]} right, this answer {percent(own)}"


def _added_nothing(run: Run) -> list[str]:
    """That training did not help, where it did not; how to get what it was held against, of a network and colours."""
    answer, method = run.summary.get("answer") or {}, run.summary.get("method")
    if (beside := run.summary.get("reference") or {}).keys() >= {NAME} and len(beside) > 1:
        network = next(each["model"] for name, each in beside.items() if name != NAME)
        if answer["name"] == NAME:
            return [f"Colours and edges are kept; --model {network} trains the network in their place."]
        return [f"The network is kept; --model {NAME} fits colours and edges in its place."]
    if answer.get("name") and answer["name"] != method:
        return [f"Training added nothing: the answer is that of {answer['title']}, which was at least as good."]
    if kept_epoch(run) == 0:
        return ["Training added nothing to its start, which is the answer."]
    return []


def _tested_names(run: Run) -> list[str]:
    return [str(name) for name in run.test.get("class_names") or run.class_names]


def never_recognised(run: Run) -> list[str]:
    """Classes of which no test image was recognised, or that no image has as its label.

    Example:
      >>> test = {"per_class": [0.5, 0.0, None]}
      >>> never_recognised(Run("run", summary={"test": test}, data={"class_names": ["a", "b", "c"]}, labels=None))
      ['b']
    """
    names = _tested_names(run)
    recall = run.test.get("per_class") or []
    sizes = run.test.get("n_per_class") or [LEAST_SEEN] * len(recall)
    found = [n for n, right, size in zip(names, recall, sizes, strict=False) if right == 0 and size >= LEAST_SEEN]
    if run.labels is not None and n_predicted(run):
        passed_over = {*run.labels["label"].unique().to_pylist(), *found}
        if any(run.counts):  # of a class that no label and no test image is of, there is nothing to recognise
            tested = {name for name, right in zip(names, recall, strict=False) if right is not None}
            passed_over |= {n for n, k in zip(run.class_names, run.counts, strict=False) if not k and n not in tested}
        found += [name for name in run.class_names if name not in passed_over]
    return found
