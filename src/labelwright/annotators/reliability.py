"""Answers of several annotators as candidates, weighted by how reliable each of them turns out to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from labelwright.data.table import LabelTable
from labelwright.labels.dawid_skene import DawidSkene, dawid_skene
from labelwright.wording import counted

TELLING_MIN = 5  # answers below which nothing is printed of an annotator's share of right ones
COPIED_MIN = 50  # answers from which annotators who never differ ...
CONTRADICTED_MIN = 0.1  # ... where others contradict so large a share of them, seem to be copies


def weighted(table: LabelTable) -> LabelTable:
    """The table with its candidates weighted by Dawid and Skene's probabilities; as it is without annotators' columns.

    Where there are too few answers to tell the annotators apart, the weights stay shares of the votes.

    Example: see `reliability_of`.
    """
    found = _found(table)
    if found is None or found.is_majority:
        return table
    sets = table.candidates
    assert sets is not None
    rows = torch.arange(len(table)).repeat_interleave(sets.offsets.diff())
    named = found.probs[rows, sets.classes.long()]
    total = torch.zeros(len(table), dtype=named.dtype).index_add_(0, rows, named)
    return replace(table, candidates=replace(sets, weights=(named / total.clamp(min=1e-12)[rows]).float()))


def reliability_of(table: LabelTable) -> dict[str, Any] | None:
    """How reliable each annotator seems to be; None without annotators' columns.

    Returns: JSON-ready: method (dawid_skene, or majority where there are too few answers), and annotators, each with
      name, n_answers, reliability (estimated share of right answers), and most_confused (class, answer, how often), the
      three commonest mistakes; by majority no mistakes, and the reliability is the agreement with the other answers;
      and copies, the names of annotators who gave the same answers, see `_copies`.

    Example: two who agree, and one who always says cat.
      >>> import pyarrow as pa
      >>> from labelwright.data.table import Images
      >>> ids, truth = pa.array([str(i) for i in range(60)], pa.large_string()), np.arange(60, dtype=np.int32) % 2
      >>> votes = np.stack([truth, truth, 0 * truth], axis=1)
      >>> table = LabelTable(
      ...     Images(ids), ids, np.full(60, -1, np.int32), ("cat", "dog"), votes=votes, annotators=("ann", "bob", "cyd")
      ... )
      >>> found = reliability_of(table)
      >>> [(each["name"], each["reliability"]) for each in found["annotators"]]
      [('ann', 1.0), ('bob', 1.0), ('cyd', 0.5)]
      >>> found["annotators"][2]["most_confused"][0][:2]
      ('dog', 'cat')
    """
    found = _found(table)
    if found is None:
        return None
    each = [
        {
            "name": name,
            "n_answers": int(found.n_answers[a]),
            "reliability": round(float(found.reliability[a]), 3),
            "most_confused": [] if found.is_majority else _confused(found.confusion[a], table.class_names),
        }
        for a, name in enumerate(table.annotators)
    ]
    method = "majority" if found.is_majority else "dawid_skene"
    return {"method": method, "annotators": each, "copies": _copies(table)}


def reliability_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What to print of `reliability_of`.

    Example:
      >>> one = {"name": "ann", "n_answers": 9, "reliability": 0.8, "most_confused": [("dog", "cat", 0.25)]}
      >>> reliability_lines({"method": "dawid_skene", "annotators": [one]})
      ['annotator ann: 9 answers, about 80% right, most often cat for dog (25% of dog)']
      >>> reliability_lines({"method": "dawid_skene", "annotators": [one | {"n_answers": 1}]})
      ['annotator ann: 1 answer, too few to say how many of them are right']
    """
    if found is None:
        return []
    lines = []
    for one in found["annotators"]:
        right = "right" if found["method"] == "dawid_skene" else "as the majority (too few answers to estimate more)"
        line = f"annotator {one['name']}: {counted(one['n_answers'], 'answer')}, "
        if one["n_answers"] < TELLING_MIN:
            lines.append(f"{line}too few to say how many of them are right")
            continue
        line += f"about {one['reliability']:.0%} {right}"
        for truth, answer, frac in one["most_confused"][:1]:
            line += f", most often {answer} for {truth} ({frac:.0%} of {truth})"
        lines.append(line)
    for names in found.get("copies", ()):
        n = next(one["n_answers"] for one in found["annotators"] if one["name"] == names[0])
        lines.append(
            f"annotators {', '.join(names)}: the same {n:,} answers, which others often contradict; if they are "
            "copies, leave all but one out: each counts as a vote, and trust is too high"
        )
    return lines


def _copies(table: LabelTable) -> list[list[str]]:
    """Names of annotators who answered the same images, never differ, and are contradicted by others: one list each.

    Annotators who agree because the images are easy are not copies: then the others agree with them, too. Where nobody
    else answered these images, nothing is concluded.
    """
    assert table.votes is not None
    votes, alike = table.votes, dict[bytes, list[int]]()
    for a in range(votes.shape[1]):
        alike.setdefault(np.ascontiguousarray(votes[:, a]).tobytes(), []).append(a)
    found = []
    for them in alike.values():
        own = votes[:, them[0]]
        rows = np.flatnonzero(own >= 0)
        if len(them) < 2 or len(rows) < COPIED_MIN:
            continue
        others = np.delete(votes[rows], them, axis=1)
        if (((others >= 0) & (others != own[rows, None])).any(1)).mean() >= CONTRADICTED_MIN:
            found.append([table.annotators[a] for a in them])
    return found


def _found(table: LabelTable) -> DawidSkene | None:
    if table.votes is None:
        return None
    votes, labels = torch.from_numpy(table.votes.astype(np.int64)), torch.from_numpy(table.labels.astype(np.int64))
    return dawid_skene(votes, len(table.class_names), labels=labels)


def _confused(confusion: torch.Tensor, names: tuple[str, ...]) -> list[tuple[str, str, float]]:
    off = confusion.clone().fill_diagonal_(0.0).flatten()
    top = off.topk(min(3, len(off))).indices.tolist()
    n = len(names)
    return [(names[i // n], names[i % n], round(float(off[i]), 3)) for i in top if float(off[i]) > 0]
