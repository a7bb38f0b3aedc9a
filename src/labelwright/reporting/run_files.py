"""What a run folder holds, read back for its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from labelwright.errors import DataError


@dataclass(frozen=True)
class Run:
    """The files of a run folder, empty where absent.

    Attributes:
      summary, data, config, environment: contents of summary.json, data.json, config.yaml and environment.json.
      epochs, steps: two kinds of records of metrics.jsonl, in the order they were written.
      labels: labels.parquet; None where absent.
      name: of the folder.
      begin: the record of metrics.jsonl about what came before the first epoch.
    """

    summary: dict[str, Any]
    data: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    epochs: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    labels: pa.Table | None
    name: str
    begin: dict[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """C names in class order."""
        return [str(name) for name in self.data.get("class_names") or []]

    @property
    def counts(self) -> list[int]:
        """Labelled training images of each of the C classes."""
        return list(self.data.get("train_counts") or [])

    @property
    def test(self) -> dict[str, Any]:
        """Scores on the test images."""
        return self.summary.get("test") or {}

    @property
    def zero_shot(self) -> dict[str, Any]:
        """Scores of the class names alone on the test images, of a vision-language model."""
        return self.summary.get("zero_shot") or {}

    @property
    def has_groups(self) -> bool:
        """Do many, medium and few tell classes apart? Of a vision-language model all may be in one group, unlabelled.

        Example:
          >>> test = {"group_sizes": {"many": 0, "medium": 0, "few": 43}}
          >>> Run({"test": test, "zero_shot": None}, {}, {}, {}, [], [], None, "run").has_groups
          False
        """
        sizes = self.test.get("group_sizes") or {}
        return "zero_shot" not in self.summary or sum(n > 0 for n in sizes.values()) > 1


def read_run(folder: Path) -> Run:
    """Everything a report may use out of a run folder.

    Args:
      folder: holds summary.json; the other files may be absent. A last line of metrics.jsonl that was being written
        when the run was killed is left out.

    Raises: DataError: no summary.json, or a file that cannot be read.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "summary.json").write_text('{"test": {"accuracy": 0.5}}')
      >>> run = read_run(folder)
      >>> run.test, run.epochs, run.labels is None
      ({'accuracy': 0.5}, [], True)
    """
    if not (folder / "summary.json").is_file():
        raise DataError(f"no summary.json in {folder}", fix="give the folder of a finished run")
    records = _read_lines(folder / "metrics.jsonl")
    labels = folder / "labels.parquet"
    try:
        table = pq.read_table(labels) if labels.is_file() else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{labels} cannot be read ({error})", fix="run labelwright fit anew, or remove the file"
        ) from error
    return Run(
        summary=_read_mapping(folder / "summary.json", json.loads),
        data=_read_mapping(folder / "data.json", json.loads),
        config=_read_mapping(folder / "config.yaml", yaml.safe_load),
        environment=_read_mapping(folder / "environment.json", json.loads),
        epochs=[r for r in records if r.get("kind") == "epoch"],
        steps=[r for r in records if r.get("kind") == "step"],
        labels=table,
        name=folder.resolve().name,
        begin=next((r for r in reversed(records) if r.get("kind") == "begin"), {}),
    )


def _read_mapping(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="restore it from the run, or remove it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys and values", fix="restore it from the run, or remove it")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if i == len(lines) - 1:  # a run killed while it wrote
                break
            raise DataError(f"{path} line {i + 1} is not JSON ({error})", fix="remove that line") from error
    return records


def class_rows(run: Run) -> list[dict[str, Any]]:
    """Per class: name, training images, recall, precision; most training images first.

    Returns: C rows with the keys name, count, recall, precision and zero_shot (recall by class names alone), shares 0
      to 1, None where the run does not say; no rows without recalls for all named classes.

    Example:
      >>> test = {"per_class": [1.0, 0.5], "precision": [0.75, None]}
      >>> run = Run({"test": test}, {"class_names": ["a", "b"], "train_counts": [1, 9]}, {}, {}, [], [], None, "run")
      >>> [(row["name"], row["count"], row["recall"]) for row in class_rows(run)]
      [('b', 9, 0.5), ('a', 1, 1.0)]
    """
    recall, names, counts = run.test.get("per_class") or [], run.class_names, run.counts
    if not recall or len(names) != len(recall):
        return []
    precision = run.test.get("precision") or [None] * len(recall)
    is_counted = len(counts) == len(names) and (any(counts) or "zero_shot" not in run.summary)
    known: Sequence[int | None] = counts if is_counted else [None] * len(names)
    before = run.zero_shot.get("per_class") or [None] * len(recall)
    rows = [
        {"name": n, "count": c, "recall": r, "precision": p, "zero_shot": z}
        for n, c, r, p, z in zip(names, known, recall, precision, before, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row["count"] or 0))
