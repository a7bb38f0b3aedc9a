"""A finished run, as `fit` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labelwright.data.images import OnBad
from labelwright.train.track import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return RunFolder(self.path, resume=True).read_json("summary.json")

    @cached_property
    def labels(self) -> pa.Table:
        """labels.parquet: one row per training image."""
        return pq.read_table(self.path / "labels.parquet")

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def predict(self, data: Any, *, on_bad: OnBad = "stop", device: str = "auto") -> pa.Table:
        """Labels for any images, with trust; see `label`."""
        from labelwright.api import label  # which needs this module

        return label(self.path, data, on_bad=on_bad, device=device)
