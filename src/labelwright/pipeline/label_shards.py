"""`label` over shards: the model of a run as a pure function of a shard, for either engine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labelwright import checksums
from labelwright.data.checks import OnBad
from labelwright.data.columns import named_columns
from labelwright.pipeline.label_rows import label_rows, plain, strange_facts
from labelwright.pipeline.promises import by_thresholds
from labelwright.pipeline.saved_model import SavedModel, answers_of_source, check_fits, load_model
from labelwright.scale.shards import Shard
from labelwright.scale.tables import Reading, batches
from labelwright.scale.work import Sharded, noted, over_shards
from labelwright.train.processes import accelerator_for

SCHEMA = pa.schema(
    [("id", pa.large_string())]
    + [(name, pa.string()) for name in ("label", "runner_up", "source", "decision")]
    + [(name, pa.float32()) for name in ("probability", "trust", "softmax", "strangeness")]
)


@dataclass(frozen=True)
class LabelShard:
    """The rows of `label` for a shard."""

    run: str  # folder of the run, or of its model
    how: Reading  # how shards are read
    is_promised: bool  # rows above the thresholds of the run's promise are accepted
    device: str  # this and the next: see `label`
    precision: str

    def __call__(self, shard: Shard) -> pa.Table:
        """A row per usable image, in the order of the shard."""
        saved = _loaded(self.run, self.device)
        parts, left_out = list[pa.Table](), list[Any]()
        for batch in batches(shard, self.how, size_px=saved.size_px):
            left_out += batch.left_out
            if (source := batch.source) is None:
                continue
            check_fits(saved, source, str(shard))
            answers, strange = answers_of_source(saved, source, device=self.device, precision=self.precision)
            rows = label_rows(
                source.table, answers, saved.class_names, saved.calibration, keep_given=False, **strange_facts(strange)
            )
            if self.is_promised:
                rows, _ = by_thresholds(rows, saved.info["promise"], saved.class_names)
            paths = source.table.images.paths
            if paths is not None:
                rows = rows.append_column(
                    "image", pa.array(map(str, source.table.images.sources(np.arange(len(rows)))))
                )
            parts.append(plain(rows))
        decisions = pa.concat_tables(parts)["decision"] if parts else pa.array([], pa.string())
        counts = {f"n_{word}": pc.sum(pc.equal(decisions, word)).as_py() or 0 for word in ("accept", "unknown")}
        return noted(parts, SCHEMA, left_out, **counts)


@functools.lru_cache(maxsize=1)
def _loaded(run: str, device: str) -> SavedModel:
    """Once in a process, whatever number of shards it works on."""
    return load_model(Path(run), device=accelerator_for(device).device)


def label_shards(
    saved: SavedModel,
    run: Path,
    data: Any,
    *,
    out: str | Path,
    is_promised: bool,
    image_column: str | None,
    on_bad: OnBad,
    device: str,
    precision: str,
    engine: str,
    shard_rows: int | None,
) -> Sharded:
    """Label images shard by shard, see `label` for the parameters and scale.work for what is written.

    Args:
      saved: the model of ``run``, already read once to see that it can be.
    """
    columns = tuple(named_columns(image=image_column).items())
    how = Reading(columns, only_images=True, on_bad=on_bad, decoding=saved.decoding)
    run = run.expanduser().resolve()
    model = run / "model" if (run / "model").is_dir() else run
    files = [model] if model.is_file() else [model / "config.json", model / "model.safetensors"]
    what = {
        "verb": "label",
        "model": [checksums.sums_of(file)["blocks"] for file in files],
        "classes": list(saved.class_names),
        "is_promised": is_promised,
        "columns": dict(columns),
        "on_bad": on_bad,
        "precision": precision,
    }
    make = LabelShard(str(run), how, is_promised, device, precision)
    return over_shards(
        data,
        out,
        make,
        what=what,
        engine=engine,
        shard_rows=shard_rows,
        doing="labelling shards",
        may_repeat=True,
    )
