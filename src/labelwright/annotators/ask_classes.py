"""Candidate sets from a chat model: it is shown each image and asked, in several phrasings, which class it is.

The class list comes in another order with each question, as models favour what they read first. Every answer goes
into a journal as it comes: a run that was stopped continues there and asks nothing twice.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout

from labelwright.annotators.answers import AnswerParser
from labelwright.annotators.chat import ChatModel, Estimate, Question, ask_many, estimate
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.parsing import json_of
from labelwright.replacing import disk_errors
from labelwright.train.progress import track
from labelwright.train.seeds import derive_seed
from labelwright.types import Candidates

PHRASINGS = (
    "Which one of these classes does the image show?\n{classes}\nAnswer with the name of the class and nothing else.",
    "Classes: {classes}\nLook at the image and choose the class that fits it best. Reply with its name only.",
    "What is the main subject of this picture? Choose one of: {classes}. Give only the name, as written here.",
    "An image classifier knows these labels: {classes}. Which label belongs to this image? Name just the label.",
    "Here is a list of categories: {classes}\nIn which category would you file this photo? Answer with one name.",
)
"""Ways to ask; ``{classes}`` becomes the shuffled list. Beyond the last they start over, in other orders."""

ANSWER_TOKENS = 10  # of an answer, for the estimate


def phrase(class_names: Sequence[str], *, seed: int, image_id: str, phrasing: int) -> str:
    """The question number ``phrasing`` about an image, with the classes in an order of its own.

    Args:
      seed, image_id: the order depends on these two and ``phrasing``, on nothing else.
      phrasing: 0 or more; 0 to 4 are different wordings.

    Example:
      >>> print(phrase(["cat", "dog", "owl"], seed=0, image_id="1.png", phrasing=1))
      Classes: dog, owl, cat
      Look at the image and choose the class that fits it best. Reply with its name only.
    """
    shuffled = list(class_names)
    random.Random(derive_seed(seed, "classes in a question", image_id, phrasing)).shuffle(shuffled)
    return PHRASINGS[phrasing % len(PHRASINGS)].format(classes=", ".join(shuffled))


@dataclass(frozen=True)
class Asked:
    """What a chat model answered about N images."""

    # sets of N rows: the union over phrasings, weighted by the share of phrasings that named the class; empty where no
    # answer could be read
    candidates: Candidates
    counts: dict[str, int]  # n_calls (made now), n_from_journal, n_answers, n_failed, n_unparseable: JSON-ready
    unparseable: tuple[tuple[str, int, str], ...]  # (id, phrasing, answer) of every answer in which no class was found


def annotate_with_chat(
    chat: ChatModel,
    table: LabelTable,
    class_names: Sequence[str],
    *,
    journal: Path,
    n_phrasings: int = 3,
    seed: int = 0,
    n_workers: int | None = None,
    approve: Callable[[Estimate], bool] | None = None,
) -> Asked:
    """Ask a chat model for the class of every image, several times each; see the head of this file.

    Args:
      chat: the model.   table: N images that can be decoded.   class_names: C names.
      journal: JSON lines, made if missing: a head, then id, phrasing and answer of each question answered so far.
      n_phrasings: questions per image, >= 1.   seed: of the orders of the class list.
      n_workers: questions under way at once; None = as many as the model was opened for.
      approve: called with what is left to ask, before it is and only if there is anything; False stops.

    Returns: candidate sets and counts. Questions that failed after all their repetitions are counted; another call
      with the same journal asks them again.
    Raises: ConfigError if the journal belongs to another model, seed or class list or is in use;
      DataError if a line of it cannot be read; what `ask_many` raises if the model cannot be asked at all.
    """
    parse = AnswerParser(class_names)
    head = {"model": chat.name, "seed": seed, "class_names": list(class_names)}
    ids = table.ids.to_pylist()
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{journal}.lock", timeout=0):
            known = _open_journal(journal, head)
            wanted = [(row, k) for row in range(len(ids)) for k in range(n_phrasings) if (ids[row], k) not in known]
            n_kept = len(ids) * n_phrasings - len(wanted)
            if wanted:
                if approve is not None and not approve(_estimated(len(wanted), class_names)):
                    raise ConfigError("stopped before anything was asked", fix="fewer phrasings or images cost less")
                _ask_all(chat, table, class_names, wanted, known, journal, ids=ids, seed=seed, n_workers=n_workers)
    except Timeout as error:
        raise ConfigError(f"{journal} is in use by another run", fix="wait for it, or choose another --out") from error
    answers = [[known.get((name, k)) for k in range(n_phrasings)] for name in ids]
    named = [[() if answer is None else parse(answer) for answer in row] for row in answers]
    unread = tuple(
        (name, k, answer)
        for name, row, found in zip(ids, answers, named, strict=True)
        for k, answer in enumerate(row)
        if answer is not None and not found[k]
    )
    n_answers = sum(answer is not None for row in answers for answer in row)
    counts = {
        "n_calls": len(wanted),
        "n_from_journal": n_kept,
        "n_answers": n_answers,
        "n_failed": len(ids) * n_phrasings - n_answers,
        "n_unparseable": len(unread),
    }
    return Asked(votes_to_candidates(named), counts, unread)


def votes_to_candidates(named: Sequence[Sequence[Sequence[int]]]) -> Candidates:
    """Sets out of votes: the union of what was named, weighted by how often; weights of a row sum to 1.

    Args:
      named: for each of N rows, for each question the class indices its answer named.

    Example:
      >>> sets = votes_to_candidates([[(2,), (0, 2)], [(), ()]])
      >>> sets.offsets.tolist(), sets.classes.tolist(), sets.weights.tolist()
      ([0, 2, 2], [0, 2], [0.3333333432674408, 0.6666666865348816])
    """
    rows: list[int] = []
    classes: list[int] = []
    for row, answers in enumerate(named):
        for answer in answers:
            rows += [row] * len(answer)
            classes += answer
    n_classes = max(classes, default=0) + 1
    keys = torch.tensor(rows, dtype=torch.int64) * n_classes + torch.tensor(classes, dtype=torch.int64)
    keys, votes = torch.unique(keys, return_counts=True)  # sorted: row by row, classes ascending
    row_of = keys // n_classes
    totals = torch.zeros(len(named)).index_add_(0, row_of, votes.float())
    offsets = F.pad(torch.bincount(row_of, minlength=len(named)).cumsum(0), (1, 0))
    return Candidates(offsets, (keys % n_classes).int(), votes / totals[row_of])


def _estimated(n_questions: int, class_names: Sequence[str]) -> Estimate:
    lengths = [len(phrase(class_names, seed=0, image_id="", phrasing=k)) for k in range(len(PHRASINGS))]
    return estimate(
        n_questions,
        prompt_chars=sum(lengths) / len(lengths),
        answer_tokens=ANSWER_TOKENS,
        n_images=n_questions,
    )


def _ask_all(
    chat: ChatModel,
    table: LabelTable,
    class_names: Sequence[str],
    wanted: Sequence[tuple[int, int]],
    known: dict[tuple[str, int], str],
    journal: Path,
    *,
    ids: Sequence[str],
    seed: int,
    n_workers: int | None,
) -> None:
    """Ask the questions (row, phrasing) wanted; answers go into ``known`` and, at once, into the journal."""

    def questions() -> Iterator[Question]:
        for row, k in track(wanted, f"asking {chat.name}", len(wanted)):
            yield Question(phrase(class_names, seed=seed, image_id=ids[row], phrasing=k), partial(table.image, row))

    with journal.open("a", encoding="utf-8") as file:

        def keep(place: int, answer: str | None) -> None:
            if answer is None:
                return
            row, k = wanted[place]
            known[ids[row], k] = answer
            with disk_errors(journal):
                file.write(json.dumps({"id": ids[row], "phrasing": k, "answer": answer}, ensure_ascii=False) + "\n")
                file.flush()

        ask_many(chat, questions(), n_workers=n_workers, on_answer=keep)


def _open_journal(journal: Path, head: dict[str, Any]) -> dict[tuple[str, int], str]:
    """Answers of earlier runs; the file is made, or cut behind its last whole line, ready to be appended to."""
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):  # what a killed run left of its last line
            os.truncate(journal, content.rfind(b"\n") + 1)
    if not journal.exists() or journal.stat().st_size == 0:
        journal.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
        return {}
    known = {}
    with journal.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json_of(line)
                if number == 1:
                    _check_head(journal, record, head)
                else:
                    known[str(record["id"]), int(record["phrasing"])] = str(record["answer"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{journal} line {number} is not an answer: {type(error).__name__}: {error}",
                    fix="remove that line, or the whole file to ask everything anew",
                ) from error
    return known


def _check_head(journal: Path, found: dict[str, Any], head: dict[str, Any]) -> None:
    changed = [key for key in head if found.get(key) != head[key]]
    if changed:
        raise ConfigError(
            f"{journal} holds answers to other questions: {', '.join(changed)} differ",
            fix="go on with the settings of that run, or choose another --out",
        )
