"""`inspect`: what is in the data, what is wrong with it, and what would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labelwright.data import checks
from labelwright.data.prepare import is_embeddings, open_embeddings, read
from labelwright.data.situation import Situation, detect
from labelwright.data.table import LabelTable
from labelwright.errors import DataError, Problem
from labelwright.methods.registry import METHODS


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      table: the images and what is known of them.
      situation: which situation the rows that can be used are in, and why.
      problems: everything wrong with the data; notices among them.
      runs: the method that ``fit --method auto`` would run.
      needs: what that method would have to be given besides the data; empty if nothing.
      noun: "images" or "embeddings".
    """

    table: LabelTable
    situation: Situation
    problems: tuple[Problem, ...]
    runs: str
    needs: str
    noun: str


def inspect(
    data: Any,
    *,
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    check_images: bool = True,
) -> Inspection:
    """Read data, say which situation it is and why, and find everything wrong with it; writes nothing.

    Args:
      data: a folder, table, Parquet file, hub data set: see data.read.load.
      classes: class names or a file of them, fixing names and order.
      novel: K or "auto" when classes outside the list may be present.
      group: column whose rows belong together.
      check_images: decode every image in full.

    Raises: DataError if there is nothing to read at all.
    """
    if is_embeddings(data):
        source = open_embeddings(data, classes=classes, on_bad="report")
        found = detect(_usable(source.table, source.table.problems), novel=novel)
        return _inspection(source.table, found, source.table.problems, "embeddings")
    table = read(data, classes=classes, group=group)
    problems = tuple(dict.fromkeys([*table.problems, *(checks.check_images(table) if check_images else ())]))
    situation = detect(_usable(table, problems), novel=novel)
    return _inspection(table, situation, problems, "images")


def _usable(table: LabelTable, problems: Sequence[Problem]) -> LabelTable:
    """The rows that ``--on-bad skip`` would keep; the whole table when it would keep none."""
    try:
        return checks.resolve_problems(table, problems, "skip")
    except DataError:
        return table


def _inspection(table: LabelTable, situation: Situation, problems: tuple[Problem, ...], noun: str) -> Inspection:
    requires, needs = METHODS[situation.method].needs, ""
    if requires == "candidates":
        needs = "on the candidates there are"
        if noun == "images":
            needs += ", a small network from scratch; --model openai/clip-vit-base-patch32: on it"
    elif requires == "text":
        needs = "name a vision-language model, e.g. --model openai/clip-vit-base-patch32"
        if noun == "embeddings":
            needs = "the file has to hold class_embeddings, text features of the classes"
    return Inspection(table, situation, problems, situation.method, needs, noun)
