"""The offline first run: real handwritten digits made long-tailed, plain cross-entropy against CVS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from evenkeel import api
from evenkeel.data import splits
from evenkeel.data.read import load
from evenkeel.data.table import LabelTable
from evenkeel.errors import ConfigError

RATIO = 50.0  # images of the commonest digit over those of the rarest
TEST_PER_CLASS = 20  # images of each digit that are only scored on
SIZE_PX = 12  # the digits are 8 px; a little larger leaves room to shift them
SETTINGS: Mapping[str, object] = {"epochs": 30, "batch_size": 32, "lr": 0.05}  # the same for both methods
METHODS = {"ce": "cross-entropy", "cvs": "CVS"}
SCORES = ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece")


def run(out: str) -> None:
    """Train on the digits with cross-entropy and with CVS, print both scores and where the reports are.

    Args:
      out: folder; each demo gets a numbered folder of its own in it.

    Raises: ConfigError if ``out`` is a file.
    """
    console = Console(highlight=False, soft_wrap=True)
    folder = _fresh_folder(Path(out))
    train, test = digits()
    counts = train.counts().tolist()
    console.print(
        f"{len(train):,} real handwritten digits (scikit-learn's, {counts[0]} zeros down to {counts[-1]} nines) to "
        f"learn from, {len(test):,} others, {TEST_PER_CLASS} of each digit, to score on",
        markup=False,
    )
    scores, reports = {}, []
    for number, (method, title) in enumerate(METHODS.items(), 1):
        console.print(f"[{number}/{len(METHODS)}] {title}, {SETTINGS['epochs']} epochs ...", markup=False)
        with _one_thread():
            done = api.fit(train, test=test, out=folder / method, method=method, size_px=SIZE_PX, settings=SETTINGS)
        scores[method] = done.summary["test"]
        reports.append(done.report)
        console.print(f"      {done.summary['seconds']['train']:.0f} s", markup=False)
    console.print(_table(scores))
    console.print(verdict(scores["ce"], scores["cvs"]), markup=False)
    for path in reports:
        console.print(f"report: {path}", markup=False)


def digits() -> tuple[LabelTable, LabelTable]:
    """(training images with a long tail, test images with equally many of each digit); always the same ones.

    Example:
      >>> train, test = digits()
      >>> train.counts().tolist(), test.counts().tolist()
      ([158, 102, 66, 42, 27, 17, 11, 7, 4, 3], [20, 20, 20, 20, 20, 20, 20, 20, 20, 20])
    """
    found = load_digits()
    pixels = (found.images * (255 / 16)).astype(np.uint8)  # 0 to 16 -> 0 to 255
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": found.target.tolist()}
    table = load(datasets.Dataset.from_dict(columns, features=features))
    test, pool = splits.few_shot(table.labels, per_class=TEST_PER_CLASS, n_classes=10, seed=0)
    rows = splits.long_tail(table.labels[pool], n_classes=10, ratio=RATIO, profile="exponential", seed=0)
    return table.subset(pool[rows]), table.subset(test)


def verdict(ce: Mapping[str, Any], cvs: Mapping[str, Any]) -> str:
    """One sentence on the rare digits, whichever way it went.

    Args:
      ce, cvs: test scores, ``few`` and ``balanced_accuracy`` in 0 to 1.

    Example:
      >>> verdict({"few": 0.4, "balanced_accuracy": 0.7}, {"few": 0.8, "balanced_accuracy": 0.9})
      'Of the rare digits (under 20 images each) cross-entropy got 40% right and CVS 80%: it kept them learning.'
    """
    better = cvs["few"] > ce["few"] and cvs["balanced_accuracy"] > ce["balanced_accuracy"]
    told = f"cross-entropy got {ce['few']:.0%} right and CVS {cvs['few']:.0%}"
    end = "it kept them learning" if better else "this time it did not help"
    return f"Of the rare digits (under 20 images each) {told}: {end}."


def _fresh_folder(root: Path) -> Path:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is a file", fix="give --out a folder")
    number = 1
    while (root / str(number)).exists():
        number += 1
    return root / str(number)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Images this small are done before threads have met; on a busy machine their waiting costs minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    shown = Table("score on the test digits", *METHODS.values(), box=None, pad_edge=False)
    for key in SCORES:
        shown.add_row(key.replace("_", " "), *(f"{scores[method][key]:.3f}" for method in METHODS))
    return shown
