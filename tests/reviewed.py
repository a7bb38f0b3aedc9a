"""A finished run as far as its review needs one: no training, pictures of one colour each, names that hurt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

HOSTILE = '<img src=x onerror="window.hurt=1">'
CLASSES = ["cat", "dog", HOSTILE, "../../etc/passwd"]


def write_run(folder: Path, *, n: int = 40, has_pictures: bool = True, classes: list[str] = CLASSES) -> Path:
    """A run of n images: a quarter given, the others predicted, the first the least certain."""
    data, run = folder / "photos", folder / "run"
    ids = [f"{HOSTILE.replace('/', '')}{i}.png" if i % 7 == 3 else f"{i:05}.png" for i in range(n)]
    if has_pictures:
        data.mkdir(parents=True)
        for i, name in enumerate(ids):
            Image.new("RGB", (24, 16), (i * 5 % 256, 80, 120)).save(data / name)
    (run / "model").mkdir(parents=True)
    label, numbers = np.arange(n) % len(classes), np.arange(n)
    columns = {
        "id": pa.array(ids, pa.large_string()),
        "label": [classes[c] for c in label],
        "runner_up": [classes[(c + 1) % len(classes)] for c in label],
        "source": np.where(numbers % 4 == 1, "given", "predicted").tolist(),
        "trust": (0.2 + 0.7 * numbers / n).astype(np.float32),
        "decision": np.where(numbers == 5, "unknown", "review").tolist(),
    }
    pq.write_table(pa.table(columns), run / "labels.parquet")
    (run / "summary.json").write_text(json.dumps({"method": "beliefs", "n_classes": len(classes)}), encoding="utf-8")
    (run / "model" / "config.json").write_text(json.dumps({"class_names": classes}), encoding="utf-8")
    config = {"data": str(data), "resolved": {"views": "pixels"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return run
