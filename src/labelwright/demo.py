"""The offline first run: real handwritten digits without labels, sorted by a small vision-language model."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from rich.table import Table
from sklearn.datasets import load_digits

from labelwright import api
from labelwright.assets import DIGITS_DESCRIPTIONS
from labelwright.data import splits
from labelwright.data.read import load
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError
from labelwright.reporting import lines
from labelwright.screen import screen

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MODEL = "labelwright/digits-clip"
TEST_FRAC = 0.3  # share of each digit that is only scored on
SETTINGS: Mapping[str, object] = {}  # of the method; its own defaults do


def run(out: str) -> None:
    """Adapt the small model to unlabelled digits with CAP; print what its class names alone score and what that gives.

    Args:
      out: folder; each demo gets a numbered folder of its own in it.

    Raises: ConfigError if ``out`` is a file.
    """
    began = time.monotonic()
    console = screen()
    folder = _fresh_folder(Path(out))
    pool, test = digits()
    console.print(
        f"{len(pool):,} real handwritten digits (scikit-learn's) without labels, the ten class names, and descriptions "
        f"of them,\n"
        f"some of no use; {len(test):,} other digits have labels, and are only scored on.\n"
        f"Model: {MODEL}, a CLIP of 0.5 million parameters inside this package. Method: CAP ...",
    )
    with _one_thread():
        done = api.fit(
            pool, test=test, out=folder, method="cap", model=MODEL, descriptions=DIGITS_DESCRIPTIONS, set=SETTINGS
        )
    api.report(done.path, title="Handwritten digits")
    console.print(_table(done.summary["zero_shot"], done.summary["test"]))
    for line in lines.lines_of_run(done):
        console.print(line)
    for warning in lines.folded_warnings(done.summary["warnings"]):
        console.print(f"warning: {warning}")
    console.print(f"{time.monotonic() - began:.0f} s in all; report: {done.report}")
    console.print("next, on a folder of your own:\n  labelwright inspect photos/")


def digits() -> tuple[LabelTable, LabelTable]:
    """(unlabelled images, whose labels are kept as their truth for scoring alone; labelled test images).

    Example:
      >>> pool, test = digits()
      >>> len(pool), len(test), pool.labels.max().item(), pool.truth.max().item()
      (1258, 539, -1, 9)
    """
    found = load_digits()
    pixels = (found.images * (255 / 16)).astype(np.uint8)  # 0 to 16 -> 0 to 255
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": found.target.tolist()}
    table = load(datasets.Dataset.from_dict(columns, features=features))
    kept, held = splits.holdout(table.labels, frac=TEST_FRAC, seed=0)
    pool = table.subset(kept)
    unknown = np.full(len(pool), -1, np.int32)
    return dataclasses.replace(pool, labels=unknown, truth=pool.labels, truth_names=NAMES), table.subset(held)


def _fresh_folder(root: Path) -> Path:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is a file", fix="give --out a folder")
    return next(folder for n in itertools.count(1) if not (folder := root / str(n)).exists())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Images this small are done before threads have met; on a busy machine their waiting costs minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Share of each test digit that is right, before and after."""
    shown = Table("test digits that are right", "by its name alone", "adapted", box=None, pad_edge=False)
    for name, old, new in zip(NAMES, before["per_class"], after["per_class"], strict=True):
        shown.add_row(name, f"{old:.2f}", f"{new:.2f}")
    return shown
