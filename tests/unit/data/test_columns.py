"""Weights of candidates, as every kind of table may hold them, through `load`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelwright.data.columns import METADATA_KEY
from labelwright.data.read import load
from labelwright.data.values import as_weights
from labelwright.errors import DataError


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    return tmp_path


def read_weights(folder: Path, *, sets: list, weights: list, **columns) -> list[list[float]]:
    table = {"image": [f"{i}.png" for i in range(len(sets))], "candidates": sets, "weights": weights, **columns}
    pq.write_table(pa.table(table), folder / "t.parquet")
    found = load(folder / "t.parquet").candidates
    return [found.weights[found.offsets[i] : found.offsets[i + 1]].tolist() for i in range(len(found))]


def test_weights__follow_their_classes_and_sum_to_one(photos) -> None:
    sets = [["owl", "cat"], None, ["dog"], ["cat", "dog", "cat"]]
    found = read_weights(photos, sets=sets, weights=[[3.0, 1.0], None, None, [1.0, 2.0, 1.0]])
    assert found == [[0.25, 0.75], [], [1.0], [0.5, 0.5]]  # cat < dog < owl; the cat named twice has both its shares


def test_weights__beyond_float32_keep_their_ratios(photos) -> None:
    found = read_weights(photos, sets=[["cat", "dog"]] * 3, weights=[[1e-60, 3e-60], [3e300, 1e300], [1.0, 3.0]])
    assert found == [pytest.approx([0.25, 0.75]), pytest.approx([0.75, 0.25]), [0.25, 0.75]]


def test_weights__of_csv_and_json_lines(photos) -> None:
    (photos / "t.csv").write_text("image,candidates,weights\n0.png,cat|dog,0.2|0.8\n1.png,,\n2.png,owl,\n")
    lines = [
        {"image": "0.png", "candidates": ["cat", "dog"], "weights": [0.2, 0.8]},
        {"image": "1.png"},
        {"image": "2.png", "candidates": ["owl"]},
    ]
    (photos / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("t.csv", "t.jsonl"):
        found = load(photos / name).candidates
        assert found.classes.tolist() == [0, 1, 2]
        assert found.weights.tolist() == pytest.approx([0.2, 0.8, 1.0])


def test_weights__without_the_column_there_are_none(photos) -> None:
    (photos / "t.csv").write_text("image,candidates\n0.png,cat|dog\n")
    assert load(photos / "t.csv").candidates.weights is None


def test_weights__without_candidates_are_another_matter(photos) -> None:
    (photos / "t.csv").write_text("image,label,weights\n0.png,cat,heavy\n1.png,dog,\n")
    assert load(photos / "t.csv").candidates is None


@pytest.mark.parametrize(
    ("weights", "detail"),
    [
        ([1.0], "1 weights for 2 candidates"),
        ([1.0, 1.0, 1.0], "3 weights for 2 candidates"),
        ([], "0 weights for 2 candidates"),
        ([1.0, -0.5], "weights must be numbers >= 0, one above 0"),
        ([0.0, 0.0], "weights must be numbers >= 0, one above 0"),
        ([1.0, float("nan")], "weights must be numbers >= 0, one above 0"),
        ([1.0, None], "weights must be numbers >= 0, one above 0"),
    ],
)
def test_weights__that_do_not_fit_name_the_row(photos, weights, detail) -> None:
    sets = [["cat"], ["cat", "dog"], ["dog"]]
    with pytest.raises(DataError) as caught:
        read_weights(photos, sets=sets, weights=[[1.0], weights, [2.0]])
    (problem,) = caught.value.problems
    assert (problem.row, problem.kind, problem.detail) == (1, "malformed_row", detail)
    assert problem.where == f"{photos / 't.parquet'} row 2"
    kept = load(photos / "t.parquet", on_bad="skip")
    assert kept.ids.to_pylist() == ["0.png", "2.png"]
    assert kept.candidates.weights.tolist() == [1.0, 1.0]


def test_weights__of_unknown_candidates_go_with_them(photos) -> None:
    table = {"image": ["0.png"], "candidates": [["cat", "elk", "dog"]], "weights": [[0.3, 0.6, 0.1]]}
    pq.write_table(pa.table(table), photos / "t.parquet")
    found = load(photos / "t.parquet", classes=["cat", "dog"], on_bad="report")
    assert [p.kind for p in found.problems] == ["unknown_candidate"]
    assert found.candidates.weights.tolist() == pytest.approx([0.75, 0.25])


def test_weights__of_a_later_batch_name_its_row(photos, monkeypatch) -> None:
    monkeypatch.setattr("labelwright.data.columns.BATCH_ROWS", 2)
    with pytest.raises(DataError) as caught:
        read_weights(photos, sets=[["cat"]] * 4, weights=[[1.0], [1.0], [1.0], [1.0, 1.0]])
    assert [p.row for p in caught.value.problems] == [3]


def test_as_weights__text_and_lists_agree() -> None:
    lists = as_weights(pa.array([[0.5, 0.5], [1.0], None, []]))
    text = as_weights(pa.array(["0.5|0.5", "1", None]))
    assert lists[0].tolist() == [2, 1, -1, 0]
    assert text[0].tolist() == [2, 1, -1]
    assert lists[1].tolist() == text[1].tolist() == [0.5, 0.5, 1.0]


def test_class_names__of_our_own_parquet_fix_the_order(photos) -> None:
    table = pa.table({"image": ["0.png", "1.png"], "label": ["dog", None], "candidates": [["dog"], ["cat", "dog"]]})
    ours = {METADATA_KEY: json.dumps({"class_names": ["owl", "dog", "cat"]})}
    pq.write_table(table.replace_schema_metadata(ours), photos / "t.parquet")
    found = load(photos / "t.parquet")
    assert found.class_names == ("owl", "dog", "cat")
    assert (found.labels.tolist(), found.candidates.classes.tolist()) == ([1, -1], [1, 1, 2])
    assert load(photos / "t.parquet", classes=["cat", "dog"]).class_names == ("cat", "dog")
