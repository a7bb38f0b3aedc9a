"""`label`: any images with the model of a run; and labels as tables and folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from labelwright.arguments import check_arguments
from labelwright.data.checks import OnBad
from labelwright.data.columns import named_columns
from labelwright.data.images import IMAGE_SUFFIXES, suffix_of
from labelwright.data.layouts import LABELS_FILE, STRANGERS_FOLDERS, file_names, path_from, plain_name, strangers_folder
from labelwright.data.prepare import listed
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError
from labelwright.launch import rank
from labelwright.pipeline.label_rows import label_rows, of_no_class, plain, strange_facts
from labelwright.pipeline.label_shards import label_shards
from labelwright.pipeline.promises import (
    by_thresholds,
    check_promised,
    check_shares,
    promised_by,
    read_verified,
    recalibrated,
    truths,
)
from labelwright.pipeline.report import report
from labelwright.pipeline.saved_model import answers_for, change_classes, load_model, renamed, write_card
from labelwright.pipeline.settings import check_values
from labelwright.pipeline.strange import facts_of, with_new
from labelwright.replacing import disk_errors, new_output, whole_folder
from labelwright.reporting.gallery import rename_in_gallery
from labelwright.reviewing.edits import recorded
from labelwright.run_folder import Run, write_parquet_atomically
from labelwright.scale.work import is_sharded
from labelwright.spreadsheet import write_csv
from labelwright.train.predict import Answers
from labelwright.train.processes import accelerator_for
from labelwright.trust.calibration import Calibration


@check_arguments
def label(
    run: str | Path,
    data: Any,
    *,
    out: str | Path | None = None,
    error: float | None = None,
    confidence: float = 0.95,
    verified: str | Path | None = None,
    rename: Mapping[str, str] | None = None,
    image_column: str | None = None,
    novel: bool = False,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
    engine: str = "local",
    shard_rows: int | None = None,
) -> Any:
    """Label any images with the model of a run, each with its probability, its runner-up and how far to trust it.

    Args:
      run: a finished run folder; or what `export` wrote of one, a folder for the hub or a .safetensors file.
      data: images: a folder, a table, a file, an image in memory, or a list of files or images; what else is known of
        them is not looked at.
      out: .csv, .parquet, or a folder: a copy of every image under its label, those of no class under ``unknown``
        (``of no class`` where a class is called so), and ``labels.parquet``; None writes nothing.
      error: largest share of wrong labels among those whose ``decision`` is to be "accept"; None: all are for review.
      confidence: of that promise.
      verified: file of ids and true classes of some of these images, see `verify_sample`; None: the thresholds that
        the run promised as much with, which hold for images like its own.
      rename: {old: new} names of classes, as of discovered ones; the model keeps them.
      image_column: column of a table with the paths, if it is called otherwise.
      novel: put images of no class into new ones, "new 1", "new 2", ..., see `strange.with_new`.
      on_bad: stop, or skip unusable images.
      engine: "local", or "ray": shards on a Ray cluster.
      shard_rows: images of a shard; ``out`` is then a folder or URL of Parquet files, one a shard, see scale.work.
        None: one table, or shards of 4,096 images or 65,536 embeddings with ``engine="ray"``, of URLs and of tars.

    Returns: Arrow table with the columns of LABEL_COLUMNS; its schema metadata holds as JSON, under ``left_out``, the
      images that ``on_bad="skip"`` left out, under ``strangers`` what there is to say of images of no class (see
      `strange.facts_of`) and, under ``promise``, what is promised, with ``error``. Of shards a `scale.work.Sharded`.

    Raises: DataError or ConfigError, with nothing written.
    """
    check_values(image_column=image_column, device=device, precision=precision)
    is_over_shards = is_sharded(data, engine=engine, shard_rows=shard_rows)
    if is_over_shards and (out is None or verified is not None or novel or rename):
        raise ConfigError(
            "shards are labelled one by one: --verified, --novel and --rename need all images, and --out a folder",
            fix="rename classes by `labelwright classes`; give --out a folder and leave the others out",
        )
    if is_over_shards:
        check_shares(error, confidence)
        saved = load_model(Path(run), device=accelerator_for(device).device)
        if error is not None:
            check_promised(saved, Path(run), error, confidence)
        return label_shards(
            saved,
            Path(run),
            data,
            out=cast(str, out),
            is_promised=error is not None,
            image_column=image_column,
            on_bad=on_bad,
            device=device,
            precision=precision,
            engine=engine,
            shard_rows=shard_rows,
        )
    target = None if out is None else new_output(out, ".csv", ".parquet", "", data=data)
    check_shares(error, confidence)
    saved = load_model(Path(run), device=accelerator_for(device).device)
    names = renamed(saved.class_names, rename or {})  # a mistake should not wait for the images
    rename = {old: new for old, new in zip(saved.class_names, names, strict=True) if old in (rename or {})}
    if novel and saved.strangers is None:
        raise ConfigError(
            f"the model of {run} does not detect images of no class",
            fix="leave --novel out, or fit the run again (with 20 images or more)",
        )
    seen = None if verified is None else read_verified(verified, names)
    if error is not None and seen is None:
        check_promised(saved, Path(run), error, confidence)
    table, answers, strange = answers_for(
        saved,
        data,
        on_bad=on_bad,
        device=device,
        precision=precision,
        classes=None,
        columns=named_columns(image=image_column),
        only_images=True,
        answered_by=Run(run).answered_by,
        shared=True,
    )

    if seen is not None and not saved.info.get("is_verified"):  # else it is in the answers already
        answers = replace(answers, odds=saved.as_in_the_run(answers.odds, answers.predicted))

    of, kept_chance = None if seen is None or not seen.drawn else Run(run).labels, None
    if of is not None:  # verify-sample drew images of the run, whose given labels stay
        answers, kept_chance = _with_given(answers, table.ids, of, saved.class_names)

    def labelled(calibration: Calibration) -> pa.Table:
        how = {"keep_given": of is not None, "given_chance": kept_chance, **strange_facts(strange)}
        return plain(label_rows(table, answers, names, calibration, **how))

    rows, promised = labelled(saved.calibration), None
    shares = None if error is None else {"error": error, "confidence": confidence}
    if seen is not None:
        truth = truths(rows, seen)
        shown = labelled(recalibrated(saved.calibration, answers.odds, rows, truth, names))
        rows, promised = promised_by(seen, rows, shown, truth, names, shares, of=of)
    elif shares is not None:
        rows, promised = by_thresholds(rows, saved.info["promise"], names)
    facts = facts_of(rows, None if strange is None else strange.strangers.threshold)
    if target is not None and not target.suffix and facts["n"] and strangers_folder(names) != STRANGERS_FOLDERS[0]:
        facts["says"] += f" They lie in {strangers_folder(names)}/: {STRANGERS_FOLDERS[0]}/ is a class of yours."
    if novel and strange is not None:
        rows = with_new(rows, strange, names)
    kept = {"left_out": listed(table.quarantined), "strangers": facts}
    kept |= {} if promised is None else {"promise": promised}
    rows = rows.replace_schema_metadata({key: json.dumps(value) for key, value in kept.items()})
    if target is not None and not rank():
        _write_labels(rows, table, target, names)
    if rename and not rank():
        pairs = [name for pair in rename.items() for name in pair]
        with Run(run).held() as folder, recorded(folder.path, "rename", pairs):
            rename_in_run(run, saved.class_names, rename)
    return rows


def rename_in_run(run: str | Path, class_names: Sequence[str], rename: Mapping[str, str]) -> None:
    """Give classes other names in the model of a run and in its labels.parquet, summary.json and report.html.

    Args: class_names of the model; rename {old: new}.
    Raises: ConfigError as `saved_model.renamed`, with nothing written.
    """
    names, folder = renamed(class_names, rename), Run(run)
    rename = {old: new for old, new in zip(class_names, names, strict=True) if old in rename}
    if (rows := folder.labels) is not None:
        for key in ("label", "runner_up"):
            column = pa.array([rename.get(name, name) for name in rows[key].to_pylist()], pa.string())
            rows = rows.set_column(rows.schema.get_field_index(key), key, column)
        write_parquet_atomically(rows, folder.path / "labels.parquet")
    summary = folder.read("summary.json")
    for cluster in (summary.get("novel") or {}).get("clusters", []):
        cluster["name"] = rename.get(cluster["name"], cluster["name"])
        cluster["taken_for"] = [[rename.get(name, name), share] for name, share in cluster.get("taken_for") or []]
    summary["class_names"] = list(names)
    if promised := summary.get("promise"):
        promised["thresholds"] = {rename.get(name, name): value for name, value in promised["thresholds"].items()}
    folder.write_json("summary.json", summary)
    rename_in_gallery(folder.path, rename)
    write_card(folder.path / "model", summary)
    change_classes(folder.path / "model", names)
    report(run)


def _with_given(
    answers: Answers, ids: pa.Array, of: pa.Table, class_names: Sequence[str]
) -> tuple[Answers, torch.Tensor]:
    """Answers with the labels that were given to a run, and the chance [N] that each is right, NaN where none was."""
    place = pc.index_in(ids.cast(pa.string()), of["id"].cast(pa.string()).combine_chunks())
    rows = of.take(place)
    is_given = np.asarray(pc.fill_null(pc.equal(rows["source"], "given"), False), bool)
    label = np.asarray(pc.fill_null(pc.index_in(rows["label"], pa.array(class_names, pa.string())), -1), np.int64)
    given = torch.from_numpy(np.where(is_given, label, -1))

    def of_given(column: str) -> torch.Tensor:
        found = rows[column].to_numpy().astype(np.float32)
        return torch.where(given >= 0, torch.from_numpy(found), torch.nan)

    return replace(answers, given=given, given_probability=of_given("softmax")), of_given("trust")


def _write_labels(rows: pa.Table, table: LabelTable, target: Path, class_names: Sequence[str]) -> None:
    """Write labels; tables of files say where their images are, so that they are data again."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix and table.images.paths is not None:
        folder, chosen = target.parent.resolve(), np.arange(len(table))
        paths = [path_from(folder, str(source)) for source in table.images.sources(chosen)]
        rows = rows.append_column("image", pa.array(paths, pa.string()))
    if target.suffix == ".csv":
        write_csv(rows, target)
    elif target.suffix == ".parquet":
        write_parquet_atomically(rows, target)
    else:
        with whole_folder(target) as building:
            write_class_folders(rows, table, building, class_names)


def write_class_folders(rows: pa.Table, table: LabelTable, folder: Path, class_names: Sequence[str]) -> None:
    """Copy every image into ``folder/LABEL/``, those of no class into a folder of their own, labels.parquet beside.

    Args:
      rows: N labels, with the columns id, label, source and decision.
      table: their N images.
      folder: exists.
      class_names: of the model; labels may be others, too.
    """
    ids, labels, is_strange = rows["id"].to_pylist(), rows["label"].to_pylist(), of_no_class(rows).tolist()
    apart = strangers_folder([*class_names, *labels])
    named = sorted({label for label, strange in zip(labels, is_strange, strict=True) if not strange})
    folders, files = file_names(named), {each: plain_name(each) for each in ids}
    for start in range(0, len(table), 1024):
        chunk = np.arange(start, min(start + 1024, len(table)))
        for row, source in zip(chunk.tolist(), table.images.sources(chunk), strict=True):
            target = folder / (apart if is_strange[row] else folders[labels[row]]) / files[ids[row]]
            target.parent.mkdir(exist_ok=True)
            if target.suffix.lower() not in IMAGE_SUFFIXES:
                target = target.with_name(target.name + suffix_of(source))
            if target.exists():  # ids a/b and a-b are one name here
                target = target.with_name(f"{target.stem}-row-{row}{target.suffix}")
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
    write_parquet_atomically(rows, folder / LABELS_FILE)
