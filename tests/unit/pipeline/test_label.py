"""Rows of labels.parquet, worked by hand; files that are whole or not there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from labelwright.data.table import Images, LabelTable
from labelwright.errors import DiskError
from labelwright.metrics.scores import confusions
from labelwright.pipeline.label import _write_class_folders, folder_names, label_rows
from labelwright.pipeline.saved_model import model_card
from labelwright.train.predict import Answers
from labelwright.trust.calibration import Calibration
from pictures import write_folders

NAMES = ("ant", "bee", "cow")
# probabilities:  [.7, .2, .1]   [.7, .2, .1]   [.1, .6, .3]
# given:          ant            cow            none
ANSWERS = Answers(
    predicted=torch.tensor([0, 0, 1]),
    probability=torch.tensor([0.7, 0.7, 0.6]),
    runner_up=torch.tensor([1, 1, 2]),
    runner_up_probability=torch.tensor([0.2, 0.2, 0.3]),
    given=torch.tensor([0, 2, -1]),
    given_probability=torch.tensor([0.7, 0.1, torch.nan]),
    best_other_probability=torch.tensor([0.2, 0.7, torch.nan]),
)


def table_of(n: int) -> LabelTable:
    names = pa.array([f"{i}.png" for i in range(n)], pa.large_string())
    return LabelTable(Images(names), names, np.array([0, 2, -1][:n], np.int32), NAMES)


def test_label_rows__given_labels_stay_and_the_doubtful_one_shows() -> None:
    rows = label_rows(table_of(3), ANSWERS, NAMES, Calibration(), keep_given=True)
    assert rows["label"].to_pylist() == ["ant", "cow", "bee"]
    assert rows["source"].to_pylist() == ["given", "given", "predicted"]
    assert rows["runner_up"].to_pylist() == ["bee", "ant", "cow"]  # the best class that is not the label
    assert rows["softmax"].to_pylist() == pytest.approx([0.7, 0.1, 0.6])
    # the second label is contradicted with a chance of 0.7 of being right
    assert rows["trust"].to_pylist() == pytest.approx([0.7, 0.3, 0.6])
    assert rows["probability"].equals(rows["trust"])


def test_label_rows__predictions_only_and_calibrated() -> None:
    rows = label_rows(table_of(3), ANSWERS, NAMES, Calibration(0.5, -0.2), keep_given=False)
    assert rows["label"].to_pylist() == ["ant", "ant", "bee"]
    assert set(rows["source"].to_pylist()) == {"predicted"}
    odds = [0.5 * math.log(p / (1 - p)) - 0.2 for p in (0.7, 0.7, 0.6)]
    assert rows["trust"].to_pylist() == pytest.approx([1 / (1 + math.exp(-x)) for x in odds])
    assert rows["softmax"].to_pylist() == pytest.approx([0.7, 0.7, 0.6])


def test_label_rows__decision() -> None:
    unsure = label_rows(table_of(3), ANSWERS, NAMES, Calibration(), keep_given=True)
    assert unsure["decision"].to_pylist() == ["review"] * 3
    accepted, unknown = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    rows = label_rows(table_of(3), ANSWERS, NAMES, Calibration(), keep_given=True, accepted=accepted, unknown=unknown)
    assert rows["decision"].to_pylist() == ["accept", "review", "unknown"]


def test_confusions__by_name() -> None:
    found = confusions(ANSWERS, np.array([0, 2, 2], np.int32), NAMES)
    assert {(pair["truth"], pair["predicted"]) for pair in found} == {("cow", "ant"), ("cow", "bee")}


def test_write_class_folders__awkward_names(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"x": 4})
    paths = pa.array([f"x/{i}.png" for i in range(4)], pa.large_string())
    ids = pa.array(["p/q", "p-q", "v1.2", "fine.png"], pa.large_string())
    table = LabelTable(Images(paths, str(root)), ids, np.full(4, -1, np.int32), NAMES)
    rows = pa.table({"id": ids, "label": ["a/b", "a/b", "a/b", ".."]})
    _write_class_folders(rows, table, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    expected = {"a-b/p-q.png": 0, "a-b/p-q-row-1.png": 1, "a-b/v1.2.png": 2, "-/fine.png": 3}
    assert found == {name: (root / "x" / f"{i}.png").read_bytes() for name, i in expected.items()}
    assert pq.read_table(tmp_path / "out" / "labels.parquet").equals(rows)


def test_write_class_folders__appears_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = pa.array(["gone.png"], pa.large_string())
    table = LabelTable(Images(paths, str(tmp_path)), paths, np.full(1, -1, np.int32), NAMES)
    stale = tmp_path / ".out.killed.tmp"
    stale.mkdir()
    with pytest.raises(DiskError, match=r"out cannot be written: No such file .*gone\.png"):
        _write_class_folders(pa.table({"id": paths, "label": ["ant"]}), table, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_write_class_folders__names_that_no_file_may_have(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"x": 5})
    paths = pa.array([f"x/{i}.png" for i in range(5)], pa.large_string())
    ids = pa.array(["/".join(["d" * 120] * 3) + f"/{i}.png" for i in range(5)], pa.large_string())
    labels = ["labels.parquet", "Cat", "cat", ".cat", "ö" * 300]
    table = LabelTable(Images(paths, str(root)), ids, np.full(5, -1, np.int32), NAMES)
    _write_class_folders(pa.table({"id": ids, "label": labels}), table, tmp_path / "out")
    names = folder_names(labels, taken=("labels.parquet",))
    assert len({name.casefold() for name in names.values()}) == 5
    assert not any(name.startswith(".") for name in names.values())
    assert names["Cat"] == "Cat"
    for i, label in enumerate(labels):
        (image,) = (tmp_path / "out" / names[label]).iterdir()
        assert image.read_bytes() == (root / "x" / f"{i}.png").read_bytes()
        assert (image.name.endswith(f"-{i}.png"), len(image.name.encode()) <= 255) == (True, True)
    assert pq.read_table(tmp_path / "out" / "labels.parquet")["label"].to_pylist() == labels


def test_model_card__scores_only_where_there_are_some() -> None:
    summary = {"method": "cvs", "n_labelled": 1234, "situation": "long_tailed", "encoder": "resnet32", "seed": 3}
    summary |= {"n_images": 1234}
    card = model_card({**summary, "test": {"accuracy": 0.5, "few": None}}, NAMES, "9.9")
    assert "1,234 labelled images" in card
    assert "| accuracy | 0.5000 |" in card
    assert "few" not in card
    assert "| value |" not in model_card({**summary, "test": None}, NAMES, "9.9")
