"""`label`: any images with the model of a run; and labels as tables and folders."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import torch
from PIL import Image

from labelwright.data.checks import OnBad
from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.prepare import listed
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError
from labelwright.pipeline.report import report
from labelwright.pipeline.saved_model import answers_for, change_classes, load_model, renamed
from labelwright.replacing import replacing
from labelwright.run_folder import Run, write_parquet_atomically
from labelwright.train.predict import Answers
from labelwright.train.processes import accelerator_for
from labelwright.trust.calibration import Calibration

LABEL_COLUMNS = ("id", "label", "probability", "runner_up", "source", "trust", "softmax", "decision")


def label(
    run: str | Path,
    data: Any,
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

    Returns: Arrow table with the columns of LABEL_COLUMNS; its schema metadata holds under ``left_out`` the
      images that ``on_bad="skip"`` left out, as JSON.

    Raises: DataError or ConfigError, with nothing written.
    """
    target = None if out is None else _checked_target(Path(out))
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    names = renamed(saved.class_names, rename or {})  # a mistake should not wait for the images
    table, answers = answers_for(saved, data, on_bad=on_bad, device=device, precision=precision, classes=None)
    rows = label_rows(table, answers, names, saved.calibration, keep_given=False)
    rows = rows.replace_schema_metadata({"left_out": json.dumps(listed(table.quarantined))})
    if target is not None:
        _write_labels(rows, table, target)
    if rename:
        rename_in_run(run, saved.class_names, rename)
    return rows


def rename_in_run(run: str | Path, class_names: Sequence[str], rename: Mapping[str, str]) -> None:
    """Give classes other names in the model of a run and in its labels.parquet, summary.json and report.html.

    Args: class_names of the model; rename {old: new}.
    Raises: ConfigError as `saved_model.renamed`, with nothing written.
    """
    names, folder = renamed(class_names, rename), Run(run)
    if (rows := folder.labels) is not None:
        for key in ("label", "runner_up"):
            column = pa.array([rename.get(name, name) for name in rows[key].to_pylist()], pa.string())
            rows = rows.set_column(rows.schema.get_field_index(key), key, column)
        write_parquet_atomically(rows, folder.path / "labels.parquet")
    summary = folder.read("summary.json")
    for cluster in (summary.get("novel") or {}).get("clusters", []):
        cluster["name"] = rename.get(cluster["name"], cluster["name"])
        cluster["taken_for"] = [[rename.get(name, name), share] for name, share in cluster.get("taken_for") or []]
    folder.write_json("summary.json", summary)
    change_classes(folder.path / "model", names)
    report(run)


def label_rows(
    table: LabelTable,
    answers: Answers,
    class_names: tuple[str, ...],
    calibration: Calibration,
    *,
    keep_given: bool,
    accepted: torch.Tensor | None = None,
    unknown: torch.Tensor | None = None,
) -> pa.Table:
    """One row per image: which label, how likely it is right, what else it could be, where from, how far to trust it.

    Args:
      table: N images.
      answers: of the classifier, with ``given`` = the labels the table holds.
      class_names: C names the answers refer to.
      calibration: of the classifier.
      keep_given: a given label stays ("given"); False puts the classifier's own answer everywhere ("predicted").
      accepted: [N] bool, labels that may be used as they are; None: none.
      unknown: [N] bool, images of no class; None: none.

    Returns: Arrow table of LABEL_COLUMNS. ``trust``, and ``probability``, its other name, is the estimated chance that
      the label is right: of a predicted one the calibrated probability; of a given one the same where the classifier
      agrees, and what it leaves where it prefers another class (under 0.5: a label to look at). ``softmax`` is what the
      classifier itself says of the label; ``decision`` is "unknown", "accept" or "review".
    """
    known = (answers.given >= 0) & keep_given
    label = torch.where(known, answers.given, answers.predicted)
    # The best class that is not the label: the prediction itself where a given label disagrees with it.
    runner_up = torch.where(label == answers.predicted, answers.runner_up, answers.predicted)
    chance = calibration(answers.probability)
    agreed = label == answers.predicted
    trust = pa.array(torch.where(agreed, chance, (1 - chance).clamp(max=0.5)).float().numpy())
    none = torch.zeros(len(table), dtype=torch.bool)
    kind = torch.where(none if unknown is None else unknown, 2, (none if accepted is None else accepted).long())
    names = pa.array(class_names, pa.string())
    return pa.table(
        {
            "id": table.ids,
            "label": names.take(pa.array(label.numpy())),
            "probability": trust,
            "runner_up": names.take(pa.array(runner_up.numpy())),
            "source": pa.array(np.where(known.numpy(), "given", "predicted")),
            "trust": trust,
            "softmax": pa.array(torch.where(known, answers.given_probability, answers.probability).float().numpy()),
            "decision": pa.array(("review", "accept", "unknown"), pa.string()).take(pa.array(kind.numpy())),
        }
    )


def _checked_target(target: Path) -> Path:
    """The path to write labels to, if it is new and ends in .csv, .parquet or, a folder, in no suffix."""
    if target.exists():
        raise ConfigError(f"{target} exists", fix="choose another --out, or remove it first")
    if target.suffix not in ("", ".csv", ".parquet"):
        raise ConfigError(f"{target} is neither .csv, .parquet nor a folder", fix="end --out in .csv or .parquet")
    return target


def _write_labels(rows: pa.Table, table: LabelTable, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".csv":
        with replacing(target) as temporary:
            pa_csv.write_csv(rows, temporary)
    elif target.suffix == ".parquet":
        write_parquet_atomically(rows, target)
    else:
        _write_class_folders(rows, table, target)


def _write_class_folders(rows: pa.Table, table: LabelTable, folder: Path) -> None:
    """Copy every image into ``folder/LABEL/``, with labels.parquet beside; the folder appears whole, or not at all."""
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    labels, ids = rows["label"].to_pylist(), rows["id"].to_pylist()
    for start in range(0, len(table), 1024):
        chunk = np.arange(start, min(start + 1024, len(table)))
        for row, source in zip(chunk.tolist(), table.images.sources(chunk), strict=True):
            target = building / _file_name(labels[row]) / _file_name(ids[row])
            target.parent.mkdir(exist_ok=True)
            if target.suffix.lower() not in IMAGE_SUFFIXES:
                suffix = _suffix_of(source) if isinstance(source, bytes) else Path(source).suffix
                target = target.with_name(target.name + suffix)
            if target.exists():  # ids a/b and a-b are one name here
                target = target.with_name(f"{target.stem}-row-{row}{target.suffix}")
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
    write_parquet_atomically(rows, building / "labels.parquet")
    building.replace(folder)


def _file_name(text: str) -> str:
    """Text as one name in a folder: separators become ``-``."""
    return re.sub(r"[/\\\0]", "-", text) if text.strip(". ") else "-"


def _suffix_of(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        return f".{(image.format or 'img').lower()}"
