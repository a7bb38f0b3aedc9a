"""`inspect`: what is in the data, what is wrong with it, and what would run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelwright.annotators.reliability import reliability_of
from labelwright.arguments import check_arguments
from labelwright.data import checks
from labelwright.data.cache import PixelCache, resize_to_square
from labelwright.data.columns import named_columns
from labelwright.data.images import Decoding
from labelwright.data.prepare import (
    check_n_classes,
    contents,
    embedded,
    embeddings_to_score,
    images_to_score,
    is_embeddings,
    native_size,
    read,
    read_embeddings,
)
from labelwright.data.situation import Situation, detect, novel_range
from labelwright.data.stored import EmbeddingViews
from labelwright.data.table import NOTICES, LabelTable
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders import at_hand, descriptor
from labelwright.encoders.nets import OwnNets
from labelwright.encoders.resnets import own_network
from labelwright.errors import DataError, Problem
from labelwright.methods.method import Budget
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.pipeline.job import scales_notice, scales_of
from labelwright.pipeline.no_network import without_network
from labelwright.pipeline.novel import novel_notice, unlike_of
from labelwright.pipeline.settings import check_values, column_names
from labelwright.pipeline.time_budget import Clocked, minutes_on
from labelwright.train.processes import device_for
from labelwright.train.speed import CPU_BATCH, N_STEPS, images_per_second

STEP_PX = 4096
"""Pixels that pass through a network when `inspect` times it: that takes 0.1 to 0.3 s of a core, all else 1.6 s."""


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
      notices: what the features show; of images there are none yet.
      time: how long that would train here, measured; empty where it is a matter of seconds, or nobody knows.
      refused: what `fit` would stop with, besides the problems.
      test: the images to score on, where they are given.
      reliability: of the annotators, see `annotators.reliability.reliability_of`; None without their columns.
    """

    table: LabelTable
    situation: Situation
    problems: tuple[Problem, ...]
    runs: str
    needs: str
    noun: str
    notices: tuple[str, ...] = ()
    time: str = ""
    refused: DataError | None = None
    reliability: Mapping[str, Any] | None = None
    test: LabelTable | None = None


@check_arguments
def inspect(
    data: Any,
    *,
    test: Any = None,
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    candidates_column: str | None = None,
    annotator_columns: Any = None,
    check_images: bool = True,
    largest_image: float = 179.0,
) -> Inspection:
    """Read data, say which situation it is and why, and find everything wrong with it; writes nothing.

    Args:
      data: a folder, table, Parquet file, hub data set: see data.read.load.
      test: images to score on, as `fit` would take them: their problems, and copies of training images, are found too.
      classes: class names or a file of them, fixing names and order.
      novel: K or "auto" when classes outside the list may be present.
      group: column whose rows belong together.
      image_column, label_column, split_column, candidates_column: columns of a table that are called otherwise.
      annotator_columns: names of columns, a list or with commas between, that hold one annotator's answers each.
      check_images: decode every image in full, and measure how long `fit` would train.
      largest_image: see `fit`.

    Raises: DataError if there is nothing to read at all.
    """
    check_values(novel=novel, group=group, image_column=image_column, label_column=label_column)
    check_values(split_column=split_column, candidates_column=candidates_column, annotator_columns=annotator_columns)
    notices: list[str] = []
    annotators = column_names(annotator_columns)
    columns = named_columns(image=image_column, label=label_column, split=split_column, candidates=candidates_column)
    is_open, scored, same = novel_range(novel) is not None, None, np.zeros(0, dtype=np.int64)
    if is_embeddings(data):
        noun = "embeddings"
        loaded = read_embeddings(
            data, classes=classes, group=group, annotators=annotators, columns=columns, on_bad="report"
        )
        table, has_text, problems = loaded.table, loaded.class_feats is not None, loaded.table.problems
        stored, usable = loaded.stored, _learned_from(table, problems)
        scales = None if has_text else scales_of(table.subset(usable), stored, torch.from_numpy(usable))
        if scales is not None:
            stored, notices = stored.divided(scales), [*scales_notice(scales)]
        if novel is None:
            views = EmbeddingViews(stored)
            notices += novel_notice(unlike_of(table, lambda rows: torch.cat(list(views.feats(rows)))))
        sources = [embedded(loaded)]
        if test is not None:
            sources.append(embeddings_to_score(test, loaded, is_open=is_open, on_bad="report"))
            scored = sources[1].table
        if scored is not None or table.split is not None:
            same = contents(sources)
    else:
        noun, has_text, decoding = "images", True, Decoding.chosen(largest_image=largest_image)
        table = read(data, classes=classes, group=group, annotators=annotators, columns=columns, decoding=decoding)
        scored = None if test is None else images_to_score(test, table, is_open=is_open, columns=columns)
        problems, digests = table.problems, [dict[int, bytes](), dict[int, bytes]()]
        if check_images:
            problems = checks.each_once([*problems, *checks.check_images(table, digests=digests[0])])
            if scored is not None:
                damaged = checks.check_images(scored, digests=digests[1])
                scored = replace(scored, problems=checks.each_once([*scored.problems, *damaged]))
            same = _numbers(digests, [len(table), 0 if scored is None else len(scored)])
    notices += _of_test(table, scored, same, noun)
    kept = _usable(table, problems)
    situation = detect(kept, novel=novel)
    runs, needs = situation.method(has_text=has_text), ""
    found = at_hand.at_hand() if noun == "images" else None
    if noun == "images" and found is None and (found := without_network(kept, novel=novel)) is not None:
        notices.append(f"no pretrained network is on this machine; {at_hand.PRETRAINED_HELPS}")
    if found is not None and not found.reads_names and not METHODS[situation.method(has_text=False)].requires.text:
        runs = situation.method(has_text=False)
    if found is None and noun == "images" and not METHODS[runs].requires.text:
        runs = situation.method(has_text=False, has_features=False)
    is_cpu, time = device_for("auto").type == "cpu" or (found is not None and found.model == descriptor.NAME), ""
    requires = METHODS[runs].requires
    instead = METHODS[runs].on_embeddings
    if instead is not None and (noun == "embeddings" or (found is not None and is_cpu)):
        runs = instead(kept)
    if found is not None and (found.reads_names or not requires.text):
        needs = f"on {'features of ' if is_cpu else ''}{found.name}, {found.where}"
    elif requires.candidates:
        needs = "on the candidates there are"
        if noun == "images":
            needs += ", a small network from scratch; --model openai/clip-vit-base-patch32: on it"
    elif requires.text and noun == "embeddings":
        needs = "the file has to hold class_embeddings, text features of the classes"
    elif requires.text:
        needs = "name a vision-language model, e.g. --model openai/clip-vit-base-patch32"
        if (other := situation.method(has_text=False)) != runs:
            needs += f"; with a vision model it would be {other}"
        if (other := situation.method(has_text=False, has_features=False)) != runs:
            needs += f", and without any {other}"
    if noun == "images" and check_images and not (needs and found is not None and is_cpu):
        time = _time(kept, situation)
        if time and found is None:
            notices.append(f"no pretrained network is on this machine; {at_hand.PRETRAINED_HELPS}")
    refused = None
    try:
        check_n_classes(table, is_open=situation.n_novel is not None)
    except DataError as error:
        refused = DataError(error.message, fix=error.fix)  # its problems are listed
    listed, crowd = tuple(notices), reliability_of(table)
    if scored is not None:
        problems = (*problems, *(replace(problem, row=None) for problem in scored.problems))
    return Inspection(table, situation, problems, runs, needs, noun, listed, time, refused, crowd, scored)


def _numbers(digests: Sequence[Mapping[int, bytes]], sizes: Sequence[int]) -> NDArray[np.int64]:
    """A number per image of all tables, the same for equal pixels; one of its own where an image cannot be decoded."""
    number: dict[object, int] = {}
    keys = [found.get(row, (i, row)) for i, found in enumerate(digests) for row in range(sizes[i])]
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


def _of_test(table: LabelTable, scored: LabelTable | None, same: NDArray[np.int64], noun: str) -> list[str]:
    """Notices of what is scored on: how many there are, copies of them to learn from, classes that nobody can learn.

    Args:
      scored: of ``--test``; None: those that the table calls test.
      same: a number per row of both, see `_numbers`; empty if nobody has looked.
    """
    if scored is None and (table.split is None or not len(table.where("test"))):
        return []
    train = table.where("train") if scored is None else np.arange(len(table))
    rows = table.where("test") if scored is None else len(table) + np.arange(len(scored))
    labels = table.labels[rows] if scored is None else scored.labels
    found = [f"{len(rows):,} test {noun}, {int((labels >= 0).sum()):,} labelled"]
    n_copies = int(np.isin(same[train], same[rows]).sum()) if len(same) else 0
    if n_copies:
        found.append(f"{n_copies:,} of the training {noun} are among the test {noun} too: scores would be too good")
    learned = np.bincount(table.labels[train][table.labels[train] >= 0], minlength=len(table.class_names))
    asked = np.bincount(labels[labels >= 0], minlength=len(table.class_names))
    lacking = [table.class_names[c] for c in np.flatnonzero((asked > 0) & (learned == 0))] if learned.any() else []
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        found.append(f"no training label is of {', '.join(lacking[:5])}{more}, as test {noun} are")
    return found


def _time(table: LabelTable, situation: Situation) -> str:
    """How long `fit` would train a network of its own on these images; empty where it would train none.

    By one small step on a CPU, which takes as long as a few images do: `fit` times three full ones.
    """
    name = situation.method(has_text=False, has_features=False)
    method, cfg, device = METHODS[name], resolve_config(METHODS[name], {}), device_for("auto")
    if method.requires.text or cfg.epochs < 2:
        return ""
    size_px, images, is_cpu = native_size(table), [], device.type == "cpu"
    n_timed = max(1, STEP_PX // size_px**2) if is_cpu else CPU_BATCH
    for row in np.unique(np.linspace(0, len(table) - 1, n_timed, dtype=np.int64)):
        with contextlib.suppress(DataError):  # a missing image is reported elsewhere
            images.append(resize_to_square(table.image(int(row), side_px=size_px), size_px=size_px))
    if not images:
        return ""
    views = PixelViews(PixelCache(np.stack(images)), ViewSettings())  # in memory: nothing is written
    model, kept = own_network(size_px), 1.0 if table.split is not None else 0.8
    net = OwnNets(model, size_px, pretrained=False, freeze=(), seed=0)(max(2, situation.n_classes))
    speed = images_per_second(
        net,
        views,
        batch_size=n_timed if is_cpu else cfg.batch_size,
        device=device,
        precision="auto",
        n_steps=1 if is_cpu else N_STEPS,
        n_warm_up=0 if is_cpu else 1,
    )
    clock = Clocked(speed, minutes_on(device), measured_on="a few images" if is_cpu else "three steps")
    n_images, n_labelled = situation.n_images, round(kept * situation.n_labelled)
    budget = Budget(n_images, n_labelled, is_stored=False, is_cpu=True, n_passes=clock.n_passes)
    planned = method.schedule(cfg, budget, ())
    return f"{name}, {model}: {clock.words(planned, method.passes(planned, budget), most=cfg.epochs)}"


def _learned_from(table: LabelTable, problems: Sequence[Problem]) -> NDArray[np.int64]:
    """Rows for training in which nothing is wrong."""
    bad = [problem.row for problem in problems if problem.row is not None and problem.kind not in NOTICES]
    rows = np.arange(len(table)) if table.split is None else table.where("train")
    return np.setdiff1d(rows, np.array(bad, dtype=np.int64))


def _usable(table: LabelTable, problems: Sequence[Problem]) -> LabelTable:
    """The rows that ``--on-bad skip`` would keep; the whole table when it would keep none."""
    try:
        return checks.resolve_problems(table, problems, "skip")
    except DataError:
        return table
