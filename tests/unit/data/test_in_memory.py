"""data/in_memory.py and data/vectors_in_memory.py: images and embeddings in memory."""

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
from labelwright.data.prepare import is_embeddings
from labelwright.data.read import load
from labelwright.errors import DataError
from sharded import model_of_embeddings, model_of_images


def test_embeddings__in_memory_are_read_as_files_of_them_are() -> None:
    X, labels, ids = np.eye(3), ["b", "", "a"], ["1.png", "2.png", "3.png"]
    for data in (
        {"embedding": X, "label": np.array(labels), "id": ids},
        {"embeddings": X, "labels": np.array([1, -1, 0]), "ids": ids, "class_names": ["a", "b"], "logit_scale": 9.0},
        pd.DataFrame({"embedding": list(X), "label": pd.Categorical(labels), "id": ids}),
        pd.DataFrame({"embedding": list(X), "label": labels}, index=pd.Index(ids, name="image")),
        pd.DataFrame(X, columns=["x", "y", "z"], index=ids).assign(label=labels),
        pa.table({"embedding": X.tolist(), "label": labels, "id": ids}),
    ):
        assert is_embeddings(data)
        found = load_embeddings(data)
        assert found.table.class_names == ("a", "b")
        assert (found.table.labels.tolist(), found.feats.tolist()) == ([1, -1, 0], X.tolist())
        assert found.table.ids.to_pylist() == ids
        with pytest.raises(DataError, match="holds embeddings, and images are wanted"):
            load(data)
    for named in (dict(zip(ids, X, strict=True)), pd.Series(list(X), index=ids)):
        assert load_embeddings(named).table.ids.to_pylist() == ids
    with pytest.raises(DataError, match="1 bad_embedding") as raised:
        load_embeddings({"1.png": [1.0, 2.0], "2.png": [1.0], "3.png": [0.0, 2.0]})
    assert "the data row 2" in raised.value.problems[0].where
    # beside images, whatever the column of these is called, it is one that nobody asked for
    frame = pd.DataFrame({"scan": [np.zeros((4, 4), np.uint8)] * 3, "label": labels, "embedding": list(X)})
    assert load(frame, columns={"image": "scan"}).class_names == ("a", "b")
    assert not is_embeddings(pd.DataFrame({"photo": ids, "width": [1, 2, 3], "height": [1, 2, 3]}))


def test_embeddings__with_labels_of_python_objects() -> None:
    X, names, numbers = np.eye(3, dtype=np.float32), ["b", None, "a"], [1, None, 0]
    objects = {"embeddings": pd.Series(list(X)), "labels": np.array(numbers, object)}
    named = objects | {"class_names": np.array(["a", "b"], object), "paths": [Path("1.png"), Path("2.png"), None]}
    for data in (
        {"embeddings": X, "labels": names},
        {"embeddings": X, "labels": np.array(["b", float("nan"), "a"], object)},
        {"embeddings": X, "labels": pd.Series(names, dtype="string")},
        {"embeddings": X, "labels": pd.Series(names).astype("category")},
        named,
    ):
        found = load_embeddings(data)
        assert (found.table.class_names, found.table.labels.tolist()) == (("a", "b"), [1, -1, 0])
        assert np.array_equal(found.feats, X)
    assert load_embeddings(objects).table.labels.tolist() == [1, -1, 0]
    assert load_embeddings({"embeddings": X, "labels": [None] * 3}).table.labels.tolist() == [-1] * 3
    with pytest.raises(DataError, match=r"labels: .*'a'") as raised:
        load_embeddings({"embeddings": X, "labels": [0, "a", None]})
    assert raised.value.fix == "give values of one kind"
    for rows in ([np.zeros(3), np.zeros(2)], pd.Series([np.zeros(3), np.zeros(2)])):
        with pytest.raises(DataError, match="embeddings: the rows differ in length"):
            load_embeddings({"embeddings": rows})


def test_predict__takes_what_label_takes(tmp_path: Path) -> None:
    model, numbers = lw.load_model(model_of_images(tmp_path / "run")), np.random.default_rng(0).normal(size=(3, 4))
    images = [Image.new("L", (8, 8), grey) for grey in (0, 100, 200)]
    paths = pd.Series([str(tmp_path / f"{i}.png") for i in range(3)])
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    wanted = model.predict(images)["probability"]
    frame = pd.DataFrame({"photo": images}, index=pd.Index(["a", "b", "c"], name="id"))
    assert model.predict(frame, image_column="photo")["id"].to_pylist() == ["a", "b", "c"]
    for data in (paths, pa.record_batch({"image": paths.tolist()}), pd.DataFrame({"path": paths})):
        assert model.predict(data)["probability"].equals(wanted)
    stored = model_of_embeddings(tmp_path / "stored")
    wanted = lw.load_model(stored).predict(numbers)
    named = lw.label(stored, dict(zip("abc", numbers, strict=True)))
    assert named["id"].to_pylist() == ["a", "b", "c"]
    assert named["probability"].equals(wanted["probability"])
    assert lw.label(stored, numbers)["probability"].equals(wanted["probability"])


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
