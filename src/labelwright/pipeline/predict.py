"""`load_model`: the classifier of a run in Python, for images one by one, in lists or in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from labelwright.arguments import check_arguments
from labelwright.data.checks import OnBad
from labelwright.data.columns import named_columns
from labelwright.pipeline.label_rows import label_rows, plain, strange_facts
from labelwright.pipeline.saved_model import SavedModel, answers_for
from labelwright.pipeline.saved_model import load_model as read_model
from labelwright.train.processes import accelerator_for


@dataclass(frozen=True)
class Model:
    """A classifier that is loaded once and asked often."""

    saved: SavedModel
    device: str = "auto"
    precision: str = "auto"

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in class order."""
        return self.saved.class_names

    def predict(self, data: Any, *, image_column: str | None = None, on_bad: OnBad = "stop") -> pa.Table:
        """Labels of images, with the chance that each is right; nothing is written, and no decoded image is kept.

        Args:
          data: a path, a PIL image, an array [H, W, 3], or a list of these; an array [n, H, W, 3]; or what else `label`
            takes: a folder, a table, a data frame. Of a model of embeddings: [n, D] numbers, {name: vector}, a data
            frame with a column ``embedding``, or a file of such.
          image_column: column of a table with the images or their paths, if it is called otherwise.
          on_bad: "stop", or "skip" images that cannot be read.

        Returns: Arrow table of `pipeline.label_rows.LABEL_COLUMNS`, a row per image in the order given; ``to_pylist()``
          makes dicts of it.

        Raises: DataError or ConfigError naming the image or its place in the list, from 1.
        """
        table, answers, strange = answers_for(
            self.saved,
            data,
            on_bad=on_bad,
            device=self.device,
            precision=self.precision,
            classes=None,
            columns=named_columns(image=image_column),
            only_images=True,
            cache_limit_gb=0,
        )
        rows = label_rows(
            table, answers, self.class_names, self.saved.calibration, keep_given=False, **strange_facts(strange)
        )
        return plain(rows)


@check_arguments
def load_model(path: str | Path, *, device: str = "auto", precision: str = "auto") -> Model:
    """The classifier of a finished run, to label images with; needs neither the network nor the training data.

    Args:
      path: a run folder, or what `export` wrote of one: a folder for the hub, or a .safetensors file.
      device, precision: see `fit`.

    Raises: DataError if there is no model.

    Example:
      >>> load_model("no-run")
      Traceback (most recent call last):
      labelwright.errors.DataError: no model in no-run: there is no such folder
        fix: give the run folder of a finished fit
    """
    return Model(read_model(Path(path).expanduser(), device=accelerator_for(device).device), device, precision)
