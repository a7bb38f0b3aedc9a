"""data/in_memory.py: columns of images, and what holds embeddings and not images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import labelwright as lw
from labelwright.data.embeddings import load_embeddings
from labelwright.data.read import load
from labelwright.errors import DataError


def test_embeddings__in_memory_get_the_call_that_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    X = np.eye(3)
    for data in (
        {"embedding": X, "label": np.array(["b", "", "a"])},
        {"embeddings": X, "labels": np.array([1, -1, 0]), "class_names": ["a", "b"], "logit_scale": 9.0},
        pd.DataFrame({"embedding": list(X), "label": pd.Categorical(["b", "", "a"])}),
    ):
        with pytest.raises(DataError, match="holds embeddings, which are read from a file") as raised:
            load(data)
        assert raised.value.fix is not None
        call, rest = raised.value.fix.split(", and give ")
        eval(call, {"numpy": np, "data": data})
        found = load_embeddings(rest.strip("'"))
        assert found.table.class_names == ("a", "b")
        assert (found.table.labels.tolist(), found.feats.tolist()) == ([1, -1, 0], X.tolist())
    # beside images, whatever the column of these is called, it is one that nobody asked for
    frame = pd.DataFrame({"scan": [np.zeros((4, 4), np.uint8)] * 3, "label": ["b", "", "a"], "embedding": list(X)})
    assert load(frame, columns={"image": "scan"}).class_names == ("a", "b")


def test_images__as_a_parquet_table_has_them() -> None:
    files = []
    for grey in (0, 100, 200):
        Image.new("L", (4, 4), grey).save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    labels = ["b", None, "a"]
    structs = [{"bytes": file, "path": "a.png"} for file in files]
    for data in (
        pd.DataFrame({"image": files, "label": labels}),
        pd.DataFrame({"image": structs, "label": labels}),
        pa.table({"image": files, "label": labels}),
        pa.table({"image": structs, "label": labels}),
    ):
        table = load(data)
        assert table.problems == ()
        assert table.labels.tolist() == [1, -1, 0]
        assert table.images.dataset[[1]]["image"][0]["bytes"] == files[1]
    unread = lw.inspect(pd.DataFrame({"image": [*structs[:2], None], "label": labels}))
    assert [problem.row for problem in unread.problems if problem.kind == "unreadable_image"] == [2]
