"""Rows of labels.parquet, worked by hand; files that are whole or not there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from labelwright.data.read import load
from labelwright.data.table import Images, LabelTable
from labelwright.errors import DiskError
from labelwright.metrics.scores import confusions
from labelwright.pipeline.label import _write_labels
from labelwright.pipeline.label_rows import label_rows
from labelwright.pipeline.saved_model import model_card
from labelwright.train.predict import Answers, odds_of
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
    odds=odds_of(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])),
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


def test_label_rows__given_labels_are_judged_by_those_who_did_not_see_them() -> None:
    chance = torch.tensor([0.95, torch.nan, 0.1])
    rows = label_rows(table_of(3), ANSWERS, NAMES, Calibration(), keep_given=True, given_chance=chance)
    assert rows["trust"].to_pylist() == pytest.approx([0.95, 0.3, 0.6])  # nothing of the second; the third is predicted


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
    assert unsure["strangeness"].null_count == 3
    more: dict[str, Any] = {"strangeness": torch.tensor([0.5, 0.999, 0.995]), "threshold": 0.99}
    accepted = torch.tensor([True, False, True])
    rows = label_rows(table_of(3), ANSWERS, NAMES, Calibration(), keep_given=True, accepted=accepted, **more)
    assert rows["decision"].to_pylist() == ["accept", "review", "unknown"]  # the second label was given
    assert rows["trust"].to_pylist() == pytest.approx([0.7, 0.3, 0.6 * 0.005 / 0.01], rel=1e-3)
    assert rows["strangeness"].to_pylist() == pytest.approx([0.5, 0.999, 0.995])


def test_confusions__by_name() -> None:
    found = confusions(ANSWERS, np.array([0, 2, 2], np.int32), NAMES)
    assert {(pair["truth"], pair["predicted"]) for pair in found} == {("cow", "ant"), ("cow", "bee")}


def test_write_class_folders__awkward_names(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"x": 4})
    paths = pa.array([f"x/{i}.png" for i in range(4)], pa.large_string())
    ids = pa.array(["p/q", "p-q", "v1.2", "fine.png"], pa.large_string())
    table = LabelTable(Images(paths, str(root)), ids, np.full(4, -1, np.int32), NAMES)
    words = {"decision": ["review"] * 4, "source": ["predicted"] * 4}
    rows = pa.table({"id": ids, "label": ["a/b", "a/b", "a/b", ".."], **words})
    _write_labels(rows, table, tmp_path / "out", NAMES)
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    expected = {"a-b/p-q.png": 0, "a-b/p-q-row-1.png": 1, "a-b/v1.2.png": 2, "-/fine.png": 3}
    assert found == {name: (root / "x" / f"{i}.png").read_bytes() for name, i in expected.items()}
    assert pq.read_table(tmp_path / "out" / "labels.parquet").equals(rows)


def test_write_class_folders__appears_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = pa.array(["gone.png"], pa.large_string())
    table = LabelTable(Images(paths, str(tmp_path)), paths, np.full(1, -1, np.int32), NAMES)
    words = {"label": ["ant"], "decision": ["review"], "source": ["predicted"]}
    stale = tmp_path / ".out.killed.tmp"
    stale.mkdir()
    with pytest.raises(DiskError, match=r"out cannot be written: No such file .*gone\.png"):
        _write_labels(pa.table({"id": paths, **words}), table, tmp_path / "out", NAMES)
    assert not list(tmp_path.iterdir())  # nor what was being built


def test_write_class_folders__any_name_and_any_path_come_back(tmp_path: Path) -> None:
    names = ["a/b", "a-b", "A-B", ".hidden", "labels.parquet", "x" * 300, "x" * 299 + "y", "caf\u00e9", "dots. "]
    deep = "/".join(["d" * 120] * 4)
    root = write_folders(tmp_path / "photos", {"x": len(names)})
    (root / deep).mkdir(parents=True)
    (root / "x" / "0.png").rename(root / deep / "0.png")
    ids = [f"{deep}/0.png", *(f"x/{i}.png" for i in range(1, len(names)))]
    paths = pa.array(ids, pa.large_string())
    table = LabelTable(Images(paths, str(root)), paths, np.full(len(names), -1, np.int32), NAMES)
    rows = pa.table({"id": paths, "label": [name.strip() for name in names]})
    for key, value in (("decision", "review"), ("source", "predicted")):
        rows = rows.append_column(key, pa.array([value] * len(names)))
    _write_labels(rows, table, tmp_path / "out", NAMES)
    found = load(tmp_path / "out")
    assert sorted(found.class_names) == sorted(name.strip() for name in names)
    assert found.counts().tolist() == [1] * len(names)
    assert found.image(0).size == (10, 10)


def test_write_class_folders__images_of_no_class_are_in_none(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "photos", {"x": 3})
    paths = pa.array([f"x/{i}.png" for i in range(3)], pa.large_string())
    table = LabelTable(Images(paths, str(root)), paths, np.full(3, -1, np.int32), NAMES)
    decision, source = ["review", "unknown", "unknown"], ["predicted", "predicted", "cluster"]
    rows = pa.table({"id": paths, "label": ["ant", "ant", "new 1"], "decision": decision, "source": source})
    _write_labels(rows, table, tmp_path / "out", NAMES)
    found = {str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert found == {"ant", "unknown", "new 1"}
    # one who calls a class so gets them beside it
    rows = rows.set_column(1, "label", pa.array(["Unknown", "ant", "new 1"]))
    _write_labels(rows, table, tmp_path / "beside", ("ant", "Unknown"))
    found = {path.parent.name: path.name for path in (tmp_path / "beside").rglob("*.png")}
    assert found == {"Unknown": "x-0.png", "of no class": "x-1.png", "new 1": "x-2.png"}
    table = load(tmp_path / "beside")
    assert (table.class_names, (table.labels < 0).sum()) == (("Unknown", "new 1"), 1)


def test_model_card__scores_only_where_there_are_some() -> None:
    summary = {"method": "cvs", "n_labelled": 1234, "situation": "long_tailed", "encoder": "resnet32", "seed": 3}
    summary |= {"n_images": 1234}
    card = model_card({**summary, "test": {"accuracy": 0.5, "few": None}}, NAMES, "9.9")
    assert "1,234 images, 1,234 of them labelled" in card
    assert "| accuracy | 0.5000 |" in card
    assert "few" not in card
    assert "| value |" not in model_card({**summary, "test": None}, NAMES, "9.9")


def test_model_card__of_embeddings_and_of_discovered_classes() -> None:
    summary = {"method": "lps", "n_labelled": 9, "situation": "open_world", "encoder": "none", "seed": 3}
    summary |= {"n_images": 90, "n_seen": 2, "strangers": {"threshold": 0.99}, "test": {"accuracy": 0.5}}
    card = model_card(summary, NAMES, "9.9")
    assert 'lw.label("THIS_FOLDER", "new-embeddings.npz")' in card
    assert "image" not in card
    assert "Classes: ant, bee\n\nDiscovered, confirmed by no label: cow\n" in card
    assert "no class is `unknown`" in card
