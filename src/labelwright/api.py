"""The verbs: inspect, fit, pretrain, annotate, describe, label, evaluate, report. The command line calls these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from labelwright import results
from labelwright.annotating import Annotated, annotate
from labelwright.data.images import OnBad, check_images, resolve_problems
from labelwright.data.situation import Situation, detect
from labelwright.data.table import LabelTable
from labelwright.describing import describe
from labelwright.discovering import open_scores, renamed, truth_beyond
from labelwright.errors import DataError, Problem
from labelwright.fitting import fit
from labelwright.model import SavedModel, load_model, rename_classes
from labelwright.predict import Answers, answer
from labelwright.prepare import beyond, is_embeddings, listed, open_embeddings, open_source, read, resolved_path
from labelwright.pretraining import pretrain
from labelwright.reporting.render import render
from labelwright.run import Run
from labelwright.train.processes import accelerator_for
from labelwright.train.track import RunFolder

__all__ = [
    "Annotated",
    "Inspection",
    "Run",
    "annotate",
    "describe",
    "evaluate",
    "fit",
    "inspect",
    "label",
    "pretrain",
    "report",
]

Data = str | Path | Sequence[str] | Any


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      table: the images and what is known of them.
      situation: which situation the rows that can be used are in, and why.
      problems: everything wrong with the data; notices among them.
      runs: the method that ``fit --method auto`` would run.
    """

    table: LabelTable
    situation: Situation
    problems: tuple[Problem, ...]
    runs: str


def inspect(
    data: Data,
    *,
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    check_pixels: bool = True,
) -> Inspection:
    """Read data, say which situation it is and why, and find everything wrong with it; writes nothing.

    Args:
      data: a folder, table, Parquet file, hub data set: see data.read.load.
      classes: class names or a file of them, fixing names and order.
      novel: K or "auto" when classes outside the list may be present.
      group: column whose rows belong together.
      check_pixels: decode every image in full.

    Raises: DataError if there is nothing to read at all.
    """
    if is_embeddings(data):
        source = open_embeddings(data, classes=classes, on_bad="report")
        found = detect(_usable(source.table, source.table.problems), novel=novel)
        runs = found.method
        return Inspection(source.table, found, source.table.problems, runs)
    table = read(data, classes=classes, group=group)
    problems = tuple(dict.fromkeys([*table.problems, *(check_images(table) if check_pixels else ())]))
    situation = detect(_usable(table, problems), novel=novel)
    return Inspection(table, situation, problems, situation.method)


def label(
    run: str | Path,
    data: Data,
    *,
    out: str | Path | None = None,
    rename: Mapping[str, str] | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
) -> pa.Table:
    """Label any images with the model of a run, each with its probability, its runner-up and how far to trust it.

    Args:
      run: a finished run folder.
      data: images; labels they may have are ignored.
      out: .csv, .parquet, or a folder: a copy of every image under its label, and ``labels.parquet``;
        None writes nothing.
      rename: {old: new} names of classes, as of discovered ones; the model keeps them.
      on_bad: stop, or skip unusable images.

    Returns: Arrow table with the columns of results.LABEL_COLUMNS; its schema metadata holds under ``left_out`` the
      images that ``on_bad="skip"`` left out, as JSON.

    Raises: DataError or ConfigError, with nothing written.
    """
    target = None if out is None else results.checked_target(Path(out))
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    renamed(saved.class_names, rename or {})  # a mistake should not wait for the images
    table, answers = _ask(saved, data, on_bad=on_bad, device=device, precision=precision, classes=None)
    names = renamed(saved.class_names, rename or {})
    rows = results.label_rows(table, answers, names, keep_given=False)
    rows = rows.replace_schema_metadata({"left_out": json.dumps(listed(table.quarantined))})
    if target is not None:
        results.write_labels(rows, table, target)
    if rename:
        rename_classes(Path(run) / "model", lambda names: renamed(names, rename))
        _rename_in_report(run, rename)
    return rows


def evaluate(
    run: str | Path, data: Data, *, on_bad: OnBad = "stop", device: str = "auto", precision: str = "auto"
) -> dict[str, Any]:
    """Score the model of a run on labelled images: accuracy, balanced accuracy, groups, calibration.

    Args:
      run: a finished run folder.
      data: images with labels of the run's classes; unlabelled rows are not scored.

    Returns: see metrics.classification.score, plus ``confusions``, and ``left_out``: what ``on_bad="skip"`` left out.

    Raises: DataError if no image has a label.
    """
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    n_seen = saved.info.get("n_seen")
    known = saved.class_names if n_seen is None else None  # discovered classes: any labels will do
    table, answers = _ask(saved, data, on_bad=on_bad, device=device, precision=precision, classes=known)
    if not (table.labels >= 0).any():
        raise DataError(f"no image of {resolved_path(data)} has a label", fix="evaluate needs labelled images")
    if n_seen is not None:
        truth, names = truth_beyond(beyond(table, saved.class_names[:n_seen]), n_seen)
        return {**open_scores(answers, truth, names, n_seen=n_seen), "left_out": listed(table.quarantined)}
    counts = torch.tensor(RunFolder(run, resume=True).read_json("data.json")["train_counts"]).numpy()
    scores = results.scores_of(answers, table.labels, counts)
    confusions = results.confusions(answers, table.labels, saved.class_names)
    return {**scores, "confusions": confusions, "left_out": listed(table.quarantined)}


def report(run: str | Path) -> Path:
    """Write report.html of a finished run anew; returns its path.

    Raises: DataError if the run has not finished, or has nothing to report: one of `pretrain`.
    """
    if "n_classes" not in RunFolder(run, resume=True).read_json("summary.json"):
        raise DataError(f"{run} holds a pretrained backbone, of which there is no report", fix="give the run of a fit")
    return render(Path(run))


def _usable(table: LabelTable, problems: Sequence[Problem]) -> LabelTable:
    """The rows that ``--on-bad skip`` would keep; the whole table when it would keep none."""
    try:
        return resolve_problems(table, problems, "skip")
    except DataError:
        return table


def _rename_in_report(run: str | Path, rename: Mapping[str, str]) -> None:
    """Give discovered classes their names in summary.json and report.html as well."""
    folder = RunFolder(run, resume=True)
    summary = folder.read_json("summary.json")
    for cluster in (summary.get("novel") or {}).get("clusters", []):
        cluster["name"] = rename.get(cluster["name"], cluster["name"])
    folder.write_json("summary.json", summary)
    render(Path(run))


# ---- phases of label and evaluate -----------------------------------------------------------------------------------


def _ask(
    saved: SavedModel, data: Data, *, on_bad: OnBad, device: str, precision: str, classes: Sequence[str] | None
) -> tuple[LabelTable, Answers]:
    if saved.size_px == 0:
        source = open_embeddings(data, classes=classes, on_bad=on_bad)
    else:
        source = open_source(data, classes=classes, size_px=saved.size_px, on_bad=on_bad)
    views = source.views(saved.view)
    answers = answer(
        saved.probs,
        views,
        torch.arange(views.n_rows),
        device=accelerator_for(device).device,
        precision=precision,
        description="labelling",
    )
    return source.table, answers
