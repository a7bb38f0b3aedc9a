"""`export`: the model, or the labels, of a run in the formats of other tools."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

import labelwright
from labelwright.arguments import check_arguments
from labelwright.data.images import IMAGE_SUFFIXES, suffix_of
from labelwright.data.layouts import INTERFACE_FILE, LABELS_FILE
from labelwright.data.prepare import resolved_path
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.exporting import Format, label_files
from labelwright.exporting.onnx_file import write_onnx
from labelwright.exporting.served import Served
from labelwright.pipeline.images import images_of
from labelwright.pipeline.label import write_class_folders
from labelwright.pipeline.label_rows import of_no_class
from labelwright.pipeline.saved_model import STRANGERS_FILE, SavedModel, load_model, without_paths, write_single_file
from labelwright.replacing import new_output, replacing, whole_folder
from labelwright.run_folder import Run, write_text_atomically
from labelwright.spreadsheet import write_csv
from labelwright.train.progress import say
from labelwright.wording import counted

SUFFIX = {
    "onnx": ".onnx",
    "torchscript": ".pt",
    "safetensors": ".safetensors",
    "csv": ".csv",
}  # of the others: none, a folder
CLASS_FOLDERS = ("yolo-folder", "imagefolder")  # where a folder is a class, and every image lies in one
EACH_NTH_IN_VAL = 10  # of each class, in a yolo-folder


@check_arguments
def export(
    run: str | Path, *, out: str | Path, format: Format = "onnx", data: Any = None, accepted: bool = False
) -> Path:
    """Write the model of a run as others serve it, or its labels as annotation tools and trainers read them.

    Args:
      run: a finished run folder.
      out: a file with the suffix of the format, or a folder; must not exist.
      format: of the model: onnx, a file that takes decoded images of any size, with the normalisation and the
        calibration inside, and is run beside the model before it is kept; torchscript, the same for images of the
        network's own size, [B, 3, H, W] in 0 to 255, with the texts of the ONNX file as extra files; safetensors, one
        file that `label` reads; hub, a folder with a model card. Of the labels: csv (the columns of labels.parquet),
        label-studio (tasks.json and interface.xml), fiftyone (data/ and labels.json), coco (labels.json), yolo-folder
        (train/CLASS/ and val/CLASS/: every tenth image of a class, or one of fewer), imagefolder (CLASS/), datasets
        (Parquet that `load_dataset` and the hub's viewer read).
      data: the images of the run, if they are no longer where config.yaml has them; for labels.
      accepted: labels whose ``decision`` is "accept" only.

    Returns: ``out``. Images that lie in files are copied into fiftyone, yolo-folder, imagefolder and datasets; the
      other formats name them by their path, and embedded ones are written into ``images/`` there. Images of no class
      (``decision`` is "unknown") have no label there, the class that is nearest as their runner-up in csv, and are left
      out of CLASS_FOLDERS; a line on standard error says how many.

    Raises: ConfigError or DataError, with nothing written; LabelwrightError if an ONNX file gives other values
      than the model.
    """
    if format not in get_args(Format):
        raise ConfigError(f"there is no format {format!r}", fix=f"one of {', '.join(get_args(Format))}")
    of_run = Run(run).config.get("data") if (Path(run) / "config.yaml").is_file() else None
    target = new_output(out, SUFFIX.get(format, ""), data=of_run if data is None else data)
    saved = load_model(Path(run), device=torch.device("cpu"))
    if format == "csv" or format in LABEL_WRITERS:
        rows = _labels(Run(run), saved, accepted=accepted)
        strange, in_folders = of_no_class(rows), format in CLASS_FOLDERS
        rows = rows.filter(pa.array(~strange)) if in_folders else _without_labels(rows, strange)
        _write_labels(Run(run), rows, saved, target, format, data=data)
        if n := int(strange.sum()):
            how = "left out" if in_folders else "written without a label"
            say(f"{counted(n, 'image')} of no class (decision: unknown): {how}")
    elif format == "hub":
        with whole_folder(target) as building:
            _write_hub(Path(run) / "model", building)
    elif format == "safetensors":
        write_single_file(Path(run) / "model", target)
    else:
        first: Any = getattr(saved.net, "first", saved.net)  # of an ensemble
        served, n_features = _served(saved), int(first.n_features)
        if format == "onnx":
            write_onnx(served, target, size_px=saved.size_px, n_features=n_features, metadata=_about(saved))
        else:
            _write_torchscript(served, target, saved.size_px, n_features, about=_about(saved))
    return target


# ---- models ---------------------------------------------------------------------------------------------------------


def _served(saved: SavedModel) -> Served:
    pixels = {"mean": saved.view.mean, "std": saved.view.std} if saved.size_px else {}
    net = saved.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    served = Served(
        net,
        len(saved.class_names),
        outputs=saved.outputs,
        trust_of=saved.trust_of,
        strangers=saved.strangers,
        **pixels,
    )
    return served.eval().requires_grad_(False)


def _about(saved: SavedModel) -> dict[str, str]:
    """What travels in an ONNX or TorchScript file."""
    black, white = saved.decoding.black, saved.decoding.white
    return {
        "class_names": json.dumps(list(saved.class_names), ensure_ascii=False),
        "input": f"RGB, upright, uint8; seen at {saved.size_px} px" if saved.size_px else "embeddings, float32",
        "calibration": json.dumps(saved.calibration.to_dict()),
        **({} if saved.strangers is None else {"strange_from": str(saved.strangers.threshold)}),
        **({} if white is None else {"grey_range": json.dumps([black or 0.0, white])}),
        "labelwright": labelwright.__version__,
    }


def _write_torchscript(served: Served, path: Path, size_px: int, n_features: int, *, about: Mapping[str, str]) -> None:
    import warnings

    shape = (3, size_px, size_px) if size_px else (n_features,)
    example = torch.zeros(2, *shape)
    made = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        traced: Any = torch.jit.trace(served, example, check_inputs=[torch.rand(5, *shape)])  # type: ignore[no-untyped-call]
        torch.jit.save(traced, made, _extra_files=dict(about))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(made.getbuffer())


def _write_hub(folder: Path, building: Path) -> None:
    """The files of a saved model, without the paths of this machine."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    public = without_paths(config)
    for name in ("model.safetensors", STRANGERS_FILE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, building / name)
    write_text_atomically(building / "config.json", json.dumps(public, indent=2) + "\n")
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(config["classifier"]["name"], public["classifier"]["name"])
    write_text_atomically(building / "README.md", card)
    load_model(building, device=torch.device("cpu"))  # what cannot be read back is not kept


# ---- labels ---------------------------------------------------------------------------------------------------------


def _write_labels(run: Run, rows: pa.Table, saved: SavedModel, target: Path, format: str, *, data: Any) -> None:
    if format == "csv":
        target.parent.mkdir(parents=True, exist_ok=True)
        write_csv(rows, target)
        return
    table = _images_of(run, rows["id"].to_pylist(), data)
    with whole_folder(target) as building:
        LABEL_WRITERS[format](rows, table, saved.class_names, building, target)


def _labels(run: Run, saved: SavedModel, *, accepted: bool) -> pa.Table:
    """Rows of labels.parquet."""
    found = run.labels
    if found is None:
        raise DataError(f"{run.path} has no labels.parquet", fix="give the run folder of a finished fit")
    found = found.filter(pc.is_in(found["label"], pa.array(saved.class_names)))
    if accepted:
        decided = found["decision"] if "decision" in found.column_names else pa.nulls(len(found), pa.string())
        found = found.filter(pc.equal(decided, "accept"))
        if not len(found):
            raise ConfigError(
                f"no label of {run.path} is accepted", fix="say what share may be wrong, as in fit --error 0.05"
            )
    return found


def _without_labels(rows: pa.Table, which: NDArray[np.bool_]) -> pa.Table:
    """Rows of labels, some [N] of them without their label, which becomes their runner-up."""
    nearest, none = rows["label"], pa.nulls(len(rows), pa.string())
    rows = rows.set_column(
        rows.schema.get_field_index("runner_up"), "runner_up", pc.if_else(which, nearest, rows["runner_up"])
    )
    return rows.set_column(rows.schema.get_field_index("label"), "label", pc.if_else(which, none, nearest))


def _images_of(run: Run, ids: Sequence[str], data: Any) -> LabelTable:
    """The images of a run by their ids, in that order."""
    data = run.config.get("data") if data is None else data
    try:
        known, images = images_of(run, data)
    except DataError as error:
        raise DataError(
            f"the images of the run cannot be read from {resolved_path(data)} ({error.message})",
            fix="give them with --data",
        ) from error
    place = {key: row for row, key in enumerate(known.to_pylist())}
    if missing := [key for key in ids if key not in place]:
        raise DataError(
            f"{len(missing)} images of the run are not in {resolved_path(data)}, first {missing[0]!r}",
            fix="give its images with --data",
        )
    table = LabelTable(images=images, ids=known, labels=np.full(len(known), -1, dtype=np.int32), class_names=())
    table = table.subset(np.array([place[key] for key in ids], dtype=np.int64))
    if gone := [file for file in _own_files(table) if not os.path.isfile(file)]:  # noqa: PTH113 (many files)
        raise DataError(
            f"{counted(len(gone), 'image')} of the run cannot be found, first {gone[0]}",
            fix="put them back, or give the run's images with --data",
        )
    return table


def _own_files(table: LabelTable) -> Iterator[str]:
    """The files of those images that lie in one."""
    for start in range(0, len(table), 1024):
        sources = table.images.sources(np.arange(start, min(start + 1024, len(table))))
        yield from (source for source in sources if isinstance(source, str))


def _files(table: LabelTable, folder: Path, *, copied: bool) -> list[Path]:
    """Where each image lies: its own file, or one written into a folder, under its row and its name."""
    found = []
    for start in range(0, len(table), 1024):
        rows = np.arange(start, min(start + 1024, len(table)))
        for row, source in zip(rows.tolist(), table.images.sources(rows), strict=True):
            if isinstance(source, str) and not copied:
                found.append(Path(source).resolve())
                continue
            folder.mkdir(exist_ok=True)
            name = f"{row:07d}-{_tail(table.ids[row].as_py())}"
            target = folder / (name if PurePath(name).suffix.lower() in IMAGE_SUFFIXES else name + suffix_of(source))
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
            found.append(target)
    return found


def _tail(id: str) -> str:
    """The end of an id as a part of a file name."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in PurePath(id).name)
    return kept[-80:] or "image"


def _label_studio(rows: pa.Table, table: LabelTable, names: Sequence[str], folder: Path, target: Path) -> None:
    files = _files(table, folder / "images", copied=False)
    label_files.write_json(
        label_files.label_studio(rows.to_pylist(), _final(files, folder, target)), folder / "tasks.json"
    )
    (folder / INTERFACE_FILE).write_text(label_files.label_studio_interface(names), encoding="utf-8")


def _fiftyone(rows: pa.Table, table: LabelTable, names: Sequence[str], folder: Path, target: Path) -> None:
    files = _files(table, folder / "data", copied=True)
    label_files.write_json(label_files.fiftyone(rows.to_pylist(), files, names), folder / "labels.json")


def _coco(rows: pa.Table, table: LabelTable, names: Sequence[str], folder: Path, target: Path) -> None:
    files = _files(table, folder / "images", copied=False)
    content = label_files.coco(rows.to_pylist(), files, names)
    for image, file in zip(content["images"], _final(files, folder, target), strict=True):
        image["file_name"] = file.as_posix()
    label_files.write_json(content, folder / "labels.json")


def _final(files: Sequence[Path], building: Path, target: Path) -> list[Path]:
    """Paths in the folder as they will be called once it is whole."""
    folder = target.resolve()
    return [folder / file.relative_to(building) if file.is_relative_to(building) else file for file in files]


def _yolo_folder(rows: pa.Table, table: LabelTable, names: Sequence[str], folder: Path, target: Path) -> None:
    (folder / "train").mkdir()
    write_class_folders(rows, table, folder / "train", names)
    (folder / "train" / LABELS_FILE).rename(folder / LABELS_FILE)
    for place in (folder / "train").iterdir():  # trainers number the classes of train and val each by their folders
        held_out = folder / "val" / place.name
        held_out.mkdir(parents=True)
        files = sorted(place.iterdir())
        for file in files[EACH_NTH_IN_VAL - 1 :: EACH_NTH_IN_VAL] or files[1:][-1:]:
            file.rename(held_out / file.name)


def _datasets(rows: pa.Table, table: LabelTable, names: Sequence[str], folder: Path, target: Path) -> None:
    files = _files(table, folder / "images", copied=False)
    label_files.write_datasets(rows.to_pylist(), files, names, folder)
    shutil.rmtree(folder / "images", ignore_errors=True)  # they are in the Parquet file


LABEL_WRITERS: dict[str, Callable[[pa.Table, LabelTable, Sequence[str], Path, Path], None]] = {
    "label-studio": _label_studio,
    "fiftyone": _fiftyone,
    "coco": _coco,
    "yolo-folder": _yolo_folder,
    "imagefolder": lambda rows, table, names, folder, target: write_class_folders(rows, table, folder, names),
    "datasets": _datasets,
}
"""Format -> writer of (rows, their images, class names, folder to fill, folder that it will be)."""
