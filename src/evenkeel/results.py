"""What a run leaves besides the network: scores, labels.parquet, the model card, summary.json."""

from __future__ import annotations

import io
import re
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from evenkeel.data.table import LabelTable
from evenkeel.metrics.classification import score, top_confusions
from evenkeel.predict import Answers, trust

LABEL_COLUMNS = ("id", "label", "probability", "runner_up", "source", "trust")


def test_scores(answers: Answers, truth: NDArray[np.int32], train_counts: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of answers against the truth: JSON-ready, see metrics.classification.score."""
    return score(
        answers.predicted,
        answers.probability,
        torch.from_numpy(truth.astype(np.int64)),
        n_classes=len(train_counts),
        train_counts=torch.from_numpy(train_counts),
    )


def confusions(answers: Answers, truth: NDArray[np.int32], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The ten pairs of classes most often taken for each other, by name: JSON-ready."""
    pairs = top_confusions(answers.predicted, torch.from_numpy(truth.astype(np.int64)), k=10)
    return [
        {**pair, "truth": class_names[pair["truth"]], "predicted": class_names[pair["predicted"]]} for pair in pairs
    ]


def label_rows(table: LabelTable, answers: Answers, class_names: tuple[str, ...], *, keep_given: bool) -> pa.Table:
    """One row per image: which label, how probable, what else it could be, where from, how far to trust it.

    Args:
      table: N images.
      answers: of the classifier, with ``given`` = the labels the table holds.
      class_names: C names the answers refer to.
      keep_given: a given label stays ("given"); False puts the classifier's own answer everywhere ("predicted").

    Returns: Arrow table of LABEL_COLUMNS; ``probability`` is that of ``label``; ``trust`` is the normalised margin of
      `predict.trust`: 1 sure, 0.5 a tie, under 0.5 the classifier prefers another class (a given label to look at).
    """
    known = (answers.given >= 0) & keep_given
    label = torch.where(known, answers.given, answers.predicted)
    probability = torch.where(known, answers.given_probability, answers.probability)
    other = torch.where(known, answers.best_other_probability, answers.runner_up_probability)
    # The best class that is not the label: the prediction itself where a given label disagrees with it.
    runner_up = torch.where(label == answers.predicted, answers.runner_up, answers.predicted)
    names = pa.array(class_names, pa.string())
    return pa.table(
        {
            "id": table.ids,
            "label": names.take(pa.array(label.numpy())),
            "probability": pa.array(probability.float().numpy()),
            "runner_up": names.take(pa.array(runner_up.numpy())),
            "source": pa.array(np.where(known.numpy(), "given", "predicted")),
            "trust": pa.array(trust(probability, other).float().numpy()),
        }
    )


def write_parquet_atomically(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is always whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def write_class_folders(rows: pa.Table, table: LabelTable, folder: Path) -> None:
    """Copy every image into ``folder/LABEL/``, with labels.parquet beside the class folders.

    Args:
      rows: what `label_rows` returned for ``table``.
      table: N images.
      folder: must not exist; it appears whole, once every image is in place.
    """
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    labels, ids = rows["label"].to_pylist(), rows["id"].to_pylist()
    for start in range(0, len(table), 1024):
        chunk = np.arange(start, min(start + 1024, len(table)))
        for row, source in zip(chunk.tolist(), table.images.sources(chunk), strict=True):
            target = building / _file_name(labels[row]) / _file_name(ids[row])
            target.parent.mkdir(exist_ok=True)
            if isinstance(source, bytes):
                target = target if target.suffix else target.with_suffix(_suffix_of(source))
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target if target.suffix else target.with_suffix(Path(source).suffix))
    write_parquet_atomically(rows, building / "labels.parquet")
    building.replace(folder)


def _file_name(text: str) -> str:
    """Text as one name in a folder: separators become ``-``.

    Example:
      >>> _file_name("Speed limit (20km/h)"), _file_name("..")
      ('Speed limit (20km-h)', '-')
    """
    return re.sub(r"[/\\\0]", "-", text) if text.strip(". ") else "-"


def _suffix_of(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        return f".{(image.format or 'img').lower()}"


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def model_card(summary: Mapping[str, Any], class_names: tuple[str, ...], version: str) -> str:
    """README.md of a saved model, in the hub's model-card format."""
    test = summary.get("test") or {}
    lines = [
        "---",
        "library_name: evenkeel",
        "pipeline_tag: image-classification",
        "---",
        f"# Image classifier, {len(class_names)} classes",
        "",
        f"Trained by evenkeel {version} with method `{summary['method']}` on {summary['n_labelled']:,} labelled images "
        f"(situation: {summary['situation']}), backbone `{summary['encoder']}`, seed {summary['seed']}.",
        "",
    ]
    if test:
        lines += ["| score on the test images | value |", "|---|---|"]
        for key in ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece"):
            if test.get(key) is not None:
                lines.append(f"| {key.replace('_', ' ')} | {test[key]:.4f} |")
        lines.append("")
    lines += [
        "Use it:",
        "",
        "```python",
        "import evenkeel as ek",
        'labels = ek.label("RUN", "photos/")  # RUN: the folder above this one',
        "```",
        "",
        "Classes: " + ", ".join(class_names),
        "",
    ]
    return "\n".join(lines)
