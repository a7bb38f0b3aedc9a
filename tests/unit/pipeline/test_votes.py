"""What pixels add to trust in a run: as much as labels that were left out ask for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

import labelwright as lw
from labelwright.pipeline.saved_model import load_model


def png(image: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(held, "png")
    return held.getvalue()


def test_votes__weighed_by_fits_that_did_not_see_the_labels(tmp_path: Path) -> None:
    """Neighbours under labels predicted from colours and edges say little that these do not: they count less than 1."""
    found = load_digits()
    labels = [str(y) if i < 30 else None for i, y in enumerate(found.target[:300])]
    table = pa.table({"image": [png(each) for each in found.images[:300]], "label": labels})
    pq.write_table(table, tmp_path / "digits.parquet")
    run = lw.fit(
        str(tmp_path / "digits.parquet"),
        out=str(tmp_path / "run"),
        model="descriptor",
        test_frac=0,
        evaluations=0,
    )
    assert run.summary["trust"]["n"] == 30
    votes = load_model(tmp_path / "run" / "model", device=torch.device("cpu")).votes
    assert votes is not None
    assert 0 <= votes.weight < 0.9
    labels = run.labels
    assert labels is not None
    right = np.array(labels["label"].to_pylist()) == found.target[:300].astype(str)
    assert abs(labels["trust"].to_numpy().mean() - right.mean()) < 0.05
