"""Values as tables of every format write them: missing ones, numbers, lists, odd text; each read or told, none lost."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import labelwright as lw
from labelwright.data.checks import check_images, each_once
from labelwright.data.columns import METADATA_KEY
from labelwright.data.embeddings import load_embeddings
from labelwright.data.prepare import describe_data, open_source, prepare, read
from labelwright.data.read import load
from labelwright.data.table import NOTICES, LabelTable
from labelwright.data.values import as_lists, as_text, listed
from labelwright.errors import ConfigError, DataError
from labelwright.spreadsheet import write_csv

CELLS = {"csv": str, "jsonl": lambda value: value, "parquet": lambda value: value}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def written(folder: Path, kind: str, **columns: list[Any]) -> Path:
    """A table of images 0.png, 1.png, ... with these columns."""
    path = folder / f"t.{kind}"
    n = len(next(iter(columns.values())))
    columns = {"image": [f"{i}.png" for i in range(n)], **columns}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(columns))
            out.writeheader()
            out.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labels_of(table: LabelTable) -> list[str | None]:
    return [None if code < 0 else table.class_names[code] for code in table.labels.tolist()]


def told(table: LabelTable, kind: str) -> str:
    return "; ".join(problem.detail for problem in table.problems if problem.kind == kind)


# ---------------------------------------------------------------- missing values and numbers


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("none", ["-1", "-1.0", "nan", "NaN", "NA", "None", "null", "<NA>", "", "  "])
def test_missing__is_no_label_in_any_format(photos: Path, kind: str, none: str) -> None:
    table = load(written(photos, kind, label=["0.0", none, "1.0", "1"]))
    assert table.class_names == ("0", "1")
    assert table.labels.tolist() == [0, -1, 1, 1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_missing__beside_names(photos: Path, kind: str) -> None:
    table = load(written(photos, kind, label=["cat", float("nan"), "dog", None]))
    assert labels_of(table) == ["cat", None, "dog", None]
    assert ("'nan'" in told(table, "read_as").lower()) == (kind == "csv" or kind == "jsonl")


def test_missing__a_name_on_the_list_of_classes_is_a_class(photos: Path) -> None:
    path = written(photos, "csv", label=["None", "cat", "NA"])
    assert labels_of(load(path, classes=["None", "cat"])) == ["None", "cat", None]
    sets = load(written(photos, "csv", candidates=["None", "cat|None", "NA"]), classes=["None", "cat"])
    assert [sets.candidates.of(i).tolist() for i in range(3)] == [[0], [0, 1], []]
    path = written(photos, "csv", label=["None", "cat", "NA"])
    assert labels_of(load(path)) == [None, "cat", None]
    assert load(written(photos, "csv", label=["none", "cat"])).class_names == ("cat", "none")


def test_missing__in_every_other_column(photos: Path) -> None:
    path = written(
        photos,
        "csv",
        label=["cat", "dog", "cat"],
        candidates=["cat|dog", "nan", "None"],
        split=["train", "nan", "test"],
        truth=["cat", "NaN", "dog"],
        track=["a", "nan", "nan"],
        id=["x", "nan", "None"],
    )
    table = load(path)
    assert [table.candidates.of(i).tolist() for i in range(3)] == [[0, 1], [], []]
    assert table.split.tolist() == [0, 0, 1]
    assert table.truth.tolist() == [0, -1, 1]
    assert len(set(table.groups.tolist())) == 3  # an image without a group is one of its own
    assert table.ids.to_pylist() == ["x", "nan", "None"]  # ids are what they are


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["1.0", "2", "-1.0"], ("1", "2")),
        (["1.0", "1.5", "2.0"], ("1.0", "1.5", "2.0")),  # versions, not whole numbers
        (["3", "17", "17"], ("3", "17")),
        (["007", "7", "8"], ("007", "7", "8")),
        (["v1.0", "v2.0", "v2.0"], ("v1.0", "v2.0")),
    ],
)
def test_numbers__as_names(photos: Path, values: list[str], names: tuple[str, ...]) -> None:
    assert load(written(photos, "csv", label=values)).class_names == names


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers__from_one_with_names_are_recognised(photos: Path, kind: str) -> None:
    path = written(photos, kind, label=[1, 2, 1, 2])
    table = load(path, classes=["cat", "dog"], on_bad="skip")
    assert labels_of(table) == ["cat", "dog", "cat", "dog"]
    assert "count from 1: 1 is 'cat', 2 'dog'" in told(table, "read_as")
    zero = load(written(photos, kind, label=[0, 1, 1, -1]), classes=["cat", "dog"])
    assert labels_of(zero) == ["cat", "dog", "dog", None]
    assert not zero.problems


def test_numbers__from_one_hold_for_the_test_images_too(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path))
    path = written(photos, "csv", label=[1, 2, 1, 2])
    test = photos / "test.csv"
    test.write_text("image,label\n4.png,1\n5.png,1\n")
    found = prepare(path, test=test, classes=["cat", "dog"])
    assert labels_of(found.test.table) == ["cat", "cat"]
    assert describe_data(found)["first_number"] == 1  # for evaluate
    assert labels_of(read(test, classes=["cat", "dog"], first_number=1)) == ["cat", "cat"]


def test_numbers__from_one_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", embeddings=np.eye(4), labels=[1, 2, 1, -1], class_names=["cat", "dog"])
    assert labels_of(load_embeddings(tmp_path / "f.npz").table) == ["cat", "dog", "cat", None]
    np.savez(tmp_path / "f.npz", embeddings=np.eye(4), labels=[1.0, 0.0, np.nan, -1], class_names=["cat", "dog"])
    assert labels_of(load_embeddings(tmp_path / "f.npz").table) == ["dog", "cat", None, None]


def test_numbers__that_may_count_from_one_are_told(photos: Path) -> None:
    table = load(written(photos, "csv", label=[1, 2, 1, 2]), classes=["cat", "dog", "owl"], on_bad="report")
    assert labels_of(table) == ["dog", "owl", "dog", "owl"]
    assert "count from 0 (there is no 3): 1 is 'dog'" in told(table, "read_as")


def test_numbers__beyond_the_names_are_never_told_to_be_skipped(photos: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(written(photos, "csv", label=[0, 1, 2, 3]), classes=["cat", "dog"])
    assert "numbered 0 to 1: name the classes in the order" in caught.value.problems[0].detail
    assert "skip" not in caught.value.fix


# ---------------------------------------------------------------- lists and other types


@pytest.mark.parametrize(
    "cell",
    [
        "cat|dog",
        "['cat', 'dog']",
        "['cat' 'dog']",
        '["cat", "dog"]',
        "('cat', 'dog')",
        "{'dog', 'cat'}",
        "[np.str_('cat'), np.str_('dog')]",
        "array(['cat', 'dog'], dtype=object)",
        "cat,dog",
        "cat;dog",
        "cat, dog",
    ],
)
def test_candidates__lists_as_text(photos: Path, cell: str) -> None:
    other = cell.replace("dog", "owl")
    table = load(written(photos, "csv", candidates=[cell, other, cell, "owl" if "[" not in cell else "['owl']"]))
    assert table.class_names == ("cat", "dog", "owl")
    assert [table.candidates.of(i).tolist() for i in range(4)] == [[0, 1], [0, 2], [0, 1], [2]]
    assert told(table, "odd_class") == ""


@pytest.mark.parametrize("column", ["candidates", "label"])
@pytest.mark.parametrize("sign", ["/", " | ", "; "])
def test_candidates__joined_by_another_sign_are_named_once_with_the_way_to_write_them(
    photos: Path, column: str, sign: str
) -> None:
    cells = [sign.join(cell) for cell in ("ab", "bc", "abc", "a", "c")]
    table = load(written(photos, "csv", **{column: cells}), on_bad="report")
    notice = told(table, "odd_class")
    if column == "candidates" and sign != "/":  # read as they are meant
        assert (table.class_names, notice) == (("a", "b", "c"), "")
        return
    expected = f"3 of the 5 class names, such as {cells[0]!r}, are others joined by {sign.strip()!r}: "
    assert notice.startswith(f"{expected}where they are candidates, write a|b in a column candidates")
    assert "several names in one" not in notice


def test_names__of_two_levels_are_not_others_joined(photos: Path) -> None:
    table = load(written(photos, "csv", label=["animal/cat", "animal/dog", "plant/fern", "plant/ivy"]))
    assert told(table, "odd_class") == ""


def test_candidates__commas_that_belong_to_the_names_stay(photos: Path) -> None:
    table = load(written(photos, "csv", candidates=["Buckeye, Horse Chestnut", "Gum, Sweet", "Oak"]))
    assert table.class_names == ("Buckeye, Horse Chestnut", "Gum, Sweet", "Oak")
    assert "look like several names in one" in told(table, "odd_class")
    named = ["Gum, Sweet", "Oak", "Elm"]
    table = load(written(photos, "csv", candidates=["Gum, Sweet", "Oak, Elm", "Oak"]), classes=named)
    assert [table.candidates.of(i).tolist() for i in range(3)] == [[0], [1, 2], [1]]


def test_candidates__weights_as_text_lists(photos: Path) -> None:
    for weights in ("0.25|0.75", "[0.25, 0.75]", "[0.25 0.75]", "1,3"):
        table = load(written(photos, "csv", candidates=["['cat', 'dog']"] * 2, weights=[weights] * 2))
        assert table.candidates.weights.tolist() == [0.25, 0.75, 0.25, 0.75]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_label__a_list_of_one_is_a_label_and_of_two_is_told(photos: Path, kind: str) -> None:
    path = written(photos, kind, label=[["cat"], ["cat", "dog"], None, [], ["dog"]])
    table = load(path, on_bad="report")
    assert labels_of(table) == ["cat", None, None, None, "dog"]
    (problem,) = [p for p in table.problems if p.kind not in NOTICES]
    assert (problem.kind, problem.row, problem.where) == (
        "malformed_row",
        1,
        f"{path} {'line' if kind == 'jsonl' else 'row'} 2",
    )


def test_label__text_of_a_list_of_one(photos: Path) -> None:
    table = load(written(photos, "csv", label=["['cat']", "[juvenile]", "['cat', 'dog']"]), on_bad="report")
    assert labels_of(table) == ["cat", "[juvenile]", None]


@pytest.mark.parametrize("role", ["label", "candidates", "weights", "split", "id", "truth", "track"])
@pytest.mark.parametrize(
    "values",
    [
        [{"name": "cat"}, None],
        [[["cat"]], None],
        [[None, "cat"], None],
        [[{"name": "cat"}], None],
        [b"\xff\xfe", None],
        [None, None],
        [[], [None]],
        [{1: 2}, None],
        [2.5, None],
        [True, None],
    ],
)
def test_columns__of_any_type_are_read_or_told(photos: Path, role: str, values: list[Any]) -> None:
    columns = {"candidates": [["cat"], ["dog"]]} if role == "weights" else {}
    array = pa.array(values, pa.map_(pa.int64(), pa.int64())) if values[0] == {1: 2} else pa.array(values)
    table = pa.table({"image": ["0.png", "1.png"], **columns, role: array})
    pq.write_table(table, photos / "odd.parquet")
    found = load(photos / "odd.parquet", on_bad="report")
    assert found.accounted == (2, 2, 0)
    if isinstance(values[0], dict) or values[0] in (b"\xff\xfe", [{"name": "cat"}]):
        assert {p.row for p in found.problems if p.kind in ("malformed_row", "duplicate_id")} == {0}


@pytest.mark.parametrize("image", [[["0.png"], None], [{"path": "0.png"}, None], [{"bytes": None, "path": None}, None]])
def test_images__of_any_type(photos: Path, image: list[Any]) -> None:
    pq.write_table(pa.table({"image": pa.array(image), "label": ["cat", "dog"]}), photos / "odd.parquet")
    with pytest.raises(DataError):
        read_and_decode(photos / "odd.parquet")


def read_and_decode(path: Path) -> None:
    table = load(path)
    for row in range(len(table)):
        table.image(row)


def test_structs__relative_paths_start_at_the_table(photos: Path, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [{"bytes": None, "path": "1.png"}, {"bytes": (photos / "2.png").read_bytes(), "path": None}]
    pq.write_table(pa.table({"image": cells, "label": ["cat", "dog"]}), photos / "s.parquet")
    (photos / "s.jsonl").write_text(json.dumps({"image": {"path": "1.png", "bytes": None}, "label": "cat"}))
    for name, rows in (("s.parquet", [0, 1]), ("s.jsonl", [0])):
        table = load(photos / name)
        assert [table.image(row).getpixel((0, 0))[0] for row in rows] == [40, 80][: len(rows)]


# ---------------------------------------------------------------- text that is broken


def test_quotes__one_that_is_not_closed_loses_its_own_row(photos: Path) -> None:
    path = photos / "q.csv"
    path.write_text('image,label\n0.png,cat\n1.png,"dog\n2.png,cat\n3.png,dog\n4.png,cat\n')
    table = load(path, on_bad="skip")
    assert table.ids.to_pylist() == ["0.png", "2.png", "3.png", "4.png"]
    assert [p.where for p in table.quarantined] == [f"{path} line 3"]
    path.write_text('image,label\n0.png,cat\n1.png,"dog\n2.png,cat\n3.png,"dog\n4.png,cat\n')
    assert [p.where for p in load(path, on_bad="skip").quarantined] == [f"{path} line 3", f"{path} line 5"]


def test_quotes__a_text_of_several_lines_is_one_row(photos: Path) -> None:
    path = photos / "q.csv"
    path.write_text('image,label,notes\n0.png,cat,"one,\ntwo ""and""\nthree"\n1.png,dog,\n2.png,"owl, grey",5" nail\n')
    table = load(path)
    assert labels_of(table) == ["cat", "dog", "owl, grey"]
    path.write_text(path.read_text() + "gone.png,cat,\n")
    with pytest.raises(DataError) as caught:
        load(path)
    (gone,) = [problem for problem in caught.value.problems if problem.kind == "missing_image"]
    assert gone.detail == "there is no such file (q.csv line 7)"  # of the file, not of the rows


@pytest.mark.parametrize(
    "raw",
    [
        b"image,lab\rel\n0.png,cat\n",
        b"image,label\n0.png,c\rat\n1.png,dog\n",
        b"image,candidates\n0.png,\"['cat', '\\ud800']\"\n1.png,cat|dog\n",
        b'"image,label\n0.png,cat\n',
        b"\xff\xfe\x00",
        b"image,label\n\xef\xbb\xbf0.png,cat\n",
    ],
)
def test_csv__found_by_fuzzing(photos: Path, raw: bytes) -> None:
    (photos / "f.csv").write_bytes(raw)
    with contextlib.suppress(DataError):  # and nothing else
        given, kept, reported = load(photos / "f.csv", on_bad="report").accounted
        assert given == kept + reported


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_line_breaks__in_a_label_or_path_are_told(photos: Path, kind: str) -> None:
    path = written(photos, kind, label=["cat\n1.png,dog", "dog", "cat"])
    table = load(path, on_bad="report")
    assert table.class_names == ("cat", "dog")
    assert "a line break in the label" in told(table, "malformed_row")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"null", "not an object"),
        (b'["a"]', "not an object"),
        (b'{"image": "1.png", "label": "\\ud800"}', "lone surrogate"),
        (b'{"\\ud800": "1.png"}', "lone surrogate"),
        (b'{"image": "1.png", "label": {"a": 1}}', "an object where a name is wanted"),
        (b'{"image": "1.png", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"image": "1.png", "label": "caf\xe9"}', "UTF-8"),
        (b'{"image": "1.png"', "not a JSON object"),
    ],
)
def test_jsonl__a_bad_line_is_named_and_the_others_read(photos: Path, line: bytes, detail: str) -> None:
    path = photos / "bad.jsonl"
    path.write_bytes(b'{"image": "0.png", "label": "cat"}\n\n' + line + b'\n{"image": "2.png", "label": "dog"}\n')
    table = load(path, on_bad="skip")
    assert labels_of(table) == ["cat", "dog"]
    (problem,) = table.quarantined
    assert problem.where == f"{path} line 3"
    assert detail in problem.detail
    assert table.accounted == (3, 2, 1)


def test_jsonl__a_key_that_appears_late_is_a_column(photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("labelwright.data.columns.BATCH_ROWS", 2)
    monkeypatch.setattr("labelwright.data.columns._BLOCK_BYTES", 30)
    lines = [{"image": f"{i}.png"} for i in range(5)]
    lines[4] |= {"label": "cat", "group": 3}
    (photos / "late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = load(photos / "late.jsonl")
    assert labels_of(table) == [None] * 4 + ["cat"]
    assert len(set(table.groups.tolist())) == 5


def test_nul__in_a_path_or_label_is_told(photos: Path) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        path = written(photos, kind, label=["cat", "dog", "cat"])
        path = written(photos, kind, image=["0.png", "1\0.png", "2.png"], label=["cat", "dog", "d\0g"])
        table = load(path, on_bad="report")
        bad = [p for p in each_once([*table.problems, *check_images(table)]) if p.kind not in NOTICES]
        assert sorted((p.row, p.kind) for p in bad) == [(1, "malformed_row"), (2, "malformed_row")]
        assert table.images_digest  # nothing on the way falls over it


# ---------------------------------------------------------------- where and how many


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_count__rows_read_and_rows_reported_are_the_rows_given(photos: Path, kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("labelwright.data.columns.BATCH_ROWS", 2)
    path = written(
        photos, kind, image=["0.png", "gone.png", "2.png", "", "4.png"], label=["cat", "dog", "cat", "dog", "x"]
    )
    n_lost = 0
    if kind == "csv":
        path.write_bytes(path.read_bytes() + b"5.png,cat,more\r\n\r\n5.png,caf\xe9\r\n5.png,dog\r\n")
        n_lost = 2
    if kind == "jsonl":
        path.write_text(path.read_text() + 'null\n\n{"image": "5.png", "label": "dog"}\n')
        n_lost = 1
    n = 5 + (kind != "parquet") + n_lost
    table = load(path, classes=["cat", "dog"], on_bad="skip")
    assert table.accounted == (n, n - n_lost - 3, n_lost + 3)
    assert load(path, classes=["cat", "dog"], on_bad="report").accounted == (n, n - n_lost, n_lost)


def test_count__of_folders_and_embeddings(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert load(tmp_path, classes=["x", "y"]).accounted == (1, 1, 0)
    np.savez(tmp_path / "f.npz", embeddings=[[1.0], [np.nan], [2.0]], labels=["cat", "dog", "dog"])
    assert load_embeddings(tmp_path / "f.npz", on_bad="skip").table.accounted == (3, 2, 1)
    pq.write_table(pa.table({"embedding": [[1.0], [2.0, 3.0], [2.0]]}), tmp_path / "f.parquet")
    assert load_embeddings(tmp_path / "f.parquet", on_bad="skip", classes=["a"]).table.accounted == (3, 2, 1)


def test_positions__are_lines_of_the_file_everywhere(photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("labelwright.data.columns.BATCH_ROWS", 1)
    text = (
        "image,label,split,id\n0.png,cat,train,a\n\n1.png,bird,train,b\n2.png,cat,exam,c\n,dog,train,d\n3.png,dog,,a\n"
    )
    (photos / "p.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        load(photos / "p.csv", classes=["cat", "dog"])
    found = {p.kind: p.where for p in caught.value.problems if p.kind not in NOTICES}
    lines = {"missing_image": 6, "unknown_label": 4, "unknown_split": 5, "duplicate_id": 7}
    assert found == {kind: f"{photos / 'p.csv'} line {line}" for kind, line in lines.items()}


def test_problems__of_one_row_are_told_once(photos: Path) -> None:
    (photos / "once.csv").write_text("image,label\n0.png,cat\ngone.png,dog\n,dog\n2.png,dog\n")
    table = read(photos / "once.csv")
    bad = [p for p in each_once([*table.problems, *check_images(table)]) if p.kind not in NOTICES]
    assert sorted((p.row, p.kind) for p in bad) == [(1, "missing_image"), (2, "missing_image")]


# ---------------------------------------------------------------- names


def test_names__accents_composed_or_not_are_equal(tmp_path: Path) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    (tmp_path / decomposed).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / decomposed / "e\u0301.png")
    assert load(tmp_path, classes=[composed, "x"], on_bad="report").labels.tolist() == [0]
    (tmp_path / "t.csv").write_text(f"image,label\n{composed}/\u00e9.png,{decomposed}\n", encoding="utf-8")
    table = load(tmp_path / "t.csv", classes=[composed, "x"], on_bad="report")
    assert table.labels.tolist() == [0]
    assert table.image(0).size == (4, 4)


def test_names__twins_singles_and_lists_are_told(photos: Path) -> None:
    table = load(written(photos, "csv", label=["cat", "CAT", "cat", "CAT", "cat", "a,b"]))
    assert "'CAT' and 'cat' differ in upper and lower case" in told(table, "odd_class")
    assert "'a,b' looks like several names in one" in told(table, "odd_class")
    many = load(written(photos, "csv", label=["cat"] * 4 + ["dog", "dog"]))
    assert told(many, "odd_class") == ""


def test_names__the_closest_class_is_named(photos: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(written(photos, "csv", label=["Cat", "dgo", "zebra"]), classes=["cat", "dog"])
    details = [p.detail for p in caught.value.problems if p.kind == "unknown_label"]
    assert ["did you mean 'cat'?" in details[0], "did you mean 'dog'?" in details[1]] == [True, True]
    assert "mean" not in details[2]


@pytest.mark.parametrize("bad", [[None], 5, ["a", 1.5], ["\ud800"], [True], [["a"]]])
def test_classes__that_are_no_names(photos: Path, bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not a name"):
        load(photos, classes=bad)
    assert load(photos, classes=[0, np.int64(1)]).class_names == ("0", "1")


# ---------------------------------------------------------------- columns


def test_columns__called_otherwise(photos: Path) -> None:
    path = photos / "n.csv"
    path.write_text("photo,species,fold,guesses\n0.png,cat,train,cat|dog\n1.png,dog,test,dog\n2.png,,train,dog\n")
    named = {"image": "photo", "label": "species", "split": "fold", "candidates": "guesses"}
    table = load(path, columns=named)
    assert labels_of(table) == ["cat", "dog", None]
    assert table.split.tolist() == [0, 1, 0]
    assert table.candidates.of(0).tolist() == [0, 1]
    with pytest.raises(DataError, match="no column 'kind', named by --label-column"):
        load(path, columns={"image": "photo", "label": "kind"})
    with pytest.raises(ConfigError, match="no role 'lable'"):
        load(path, columns={"lable": "kind"})
    both = written(photos, "csv", label=["a", "b"], species=["cat", "dog"])
    assert load(both, columns={"label": "species"}).class_names == ("cat", "dog")
    with pytest.raises(DataError, match="has no columns"):
        load(photos, columns={"label": "species"}, classes=["a", "b"])


def test_columns__that_are_not_read_are_named(photos: Path) -> None:
    path = written(photos, "csv", species=["cat", "dog", "cat"], price=["1", "2", "3"])
    found = told(load(path, classes=["cat", "dog"]), "ignored_column")
    assert "not read: species, price" in found
    assert "the values of 'species' are class names: --label-column 'species'" in found
    alike = written(photos, "jsonl", species=["cat", "dog", "cat", "dog"], note=["a", "b", "c", "d"])
    assert "'species' has 2 different values: are they labels?" in told(load(alike), "ignored_column")
    plain = written(photos, "parquet", label=["cat", "dog"], note=["a", "b"])
    assert told(load(plain), "ignored_column") == "not read: note"


def test_columns__that_are_not_read_are_named_of_embeddings_and_where_nothing_else_is_said(tmp_path: Path) -> None:
    columns = {"embedding": [[0.0, 1.0]] * 4, "species": ["cat", "dog"] * 2, "path": ["a.png"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    detail = "not read: species; 'species' has 2 different values: are they labels? --label-column 'species'"
    assert told(load_embeddings(tmp_path / "e.parquet").table, "ignored_column") == detail
    assert load_embeddings(tmp_path / "e.parquet", only_rows=True).table.problems == ()
    for verb, where in ((lw.inspect, {}), (lw.fit, {"out": tmp_path / "run"})):
        with pytest.raises(DataError, match=r"classes are|no class found") as refused:
            verb(tmp_path / "e.parquet", **where)
        assert [problem.detail for problem in refused.value.problems] == [detail]


def test_columns__two_of_one_name(photos: Path) -> None:
    (photos / "d.csv").write_text("image,label,label\n0.png,cat,dog\n")
    twice = pa.table([pa.array(["0.png"]), pa.array(["cat"]), pa.array(["dog"])], names=["image", "label", "label"])
    pq.write_table(twice, photos / "d.parquet")
    for name in ("d.csv", "d.parquet"):
        with pytest.raises(DataError, match="2 columns called 'label'"):
            load(photos / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"huggingface", b"no json"),
        (b"huggingface", b"[1]"),
        (b"huggingface", b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}'),
        (b"huggingface", b'{"info": {"features": {"label": 7}}}'),
        (METADATA_KEY, b"\xff"),
        (METADATA_KEY, b'{"class_names": 3}'),
    ],
)
def test_parquet__metadata_that_say_nothing(photos: Path, key: bytes, value: bytes) -> None:
    table = pa.table({"image": ["0.png", "1.png"], "label": ["cat", "dog"]})
    pq.write_table(table.replace_schema_metadata({key: value}), photos / "m.parquet")
    assert labels_of(load(photos / "m.parquet")) == ["cat", "dog"]


def test_parquet__images_inside_and_metadata_that_say_nothing(photos: Path) -> None:
    raw = (photos / "2.png").read_bytes()
    for facts in (b"{", b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}}'):
        table = pa.table({"image": [raw, raw], "label": ["cat", "dog"]}).replace_schema_metadata({"huggingface": facts})
        pq.write_table(table, photos / "m.parquet")
        assert load(photos / "m.parquet", on_bad="report").image(1).getpixel((0, 0)) == (80, 0, 0)
    pq.write_table(pa.table({"embedding": [[1.0], [2.0]], "label": [b"cat", b"dog"]}), photos / "m.parquet")
    assert labels_of(load_embeddings(photos / "m.parquet").table) == ["cat", "dog"]
    facts = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    table = pa.table({"image": [1, 2]}).replace_schema_metadata({"huggingface": facts})
    pq.write_table(table, photos / "m.parquet")
    with pytest.raises(DataError, match="its column 'image' holds no images"):
        load(photos / "m.parquet")


def test_parquet__metadata_with_numbers_or_repeats(photos: Path) -> None:
    for names, wanted in (([3, 7], ["7", "3"]), (["cat", "cat", "dog"], ["cat", "cat"])):
        facts = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        table = pa.table({"image": ["0.png", "1.png"], "label": [1, 0]})
        pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(facts)}), photos / "m.parquet")
        found = load(photos / "m.parquet", on_bad="report")
        assert labels_of(found) == wanted
        assert len(set(found.class_names)) == len(found.class_names)
    assert "several classes 'cat'" in told(found, "read_as")


# ---------------------------------------------------------------- tables of other programs


def test_csv__semicolons_tabs_byte_orders_and_old_line_breaks(photos: Path) -> None:
    text = "image,label\n0.png,cat\n1.png,dog\n"
    for raw in (
        text.replace(",", ";").encode(),
        text.replace(",", "|").encode(),
        text.replace(",", "\t").encode(),
        ("sep=;\n" + text.replace(",", ";")).encode(),
        text.replace(",", "\t").encode("utf-16"),
        text.replace("\n", "\r\n").encode("utf-8-sig"),
        text.replace("\n", "\r").encode(),
    ):
        (photos / "x.csv").write_bytes(raw)
        assert labels_of(load(photos / "x.csv")) == ["cat", "dog"], raw
    (photos / "x.csv").write_text(text.replace(",", ";"))
    assert "separated by ';'" in told(load(photos / "x.csv"), "read_as")


def test_paths__of_windows_and_from_the_working_folder(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "d" / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "d" / "cat" / "0.png")
    monkeypatch.chdir(tmp_path)
    for path in ("cat\\0.png", "d/cat/0.png", str(tmp_path / "d" / "cat" / "0.png")):
        (tmp_path / "d" / "t.csv").write_text(f"image,label\n{path},cat\n")
        for folder in (Path("d"), tmp_path / "d"):
            table = load(folder / "t.csv")
            assert table.image(0).size == (4, 4)
            assert ("are not there as written" in told(table, "read_as")) == (path[0] != "/")


def test_blanks__belong_to_paths_and_not_to_labels(tmp_path: Path) -> None:
    (tmp_path / "cat ").mkdir()
    for name in ("cat /0.png", " lead.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    table = load(tmp_path)
    assert table.class_names == ("cat",)
    assert table.ids.to_pylist() == [" lead.png", "cat /0.png"]
    (tmp_path / "t.csv").write_text("image,label\ncat /0.png, dog \n lead.png,dog\n")
    assert labels_of(load(tmp_path / "t.csv")) == ["dog", "dog"]


def test_write_csv__no_cell_is_a_formula_and_all_come_back(photos: Path, tmp_path: Path) -> None:
    labels = ["=1+1", "-7", "@home", "+cat", "'=x", "plain"]
    write_csv(pa.table({"image": [f"{photos}/{i}.png" for i in range(6)], "label": labels}), tmp_path / "l.csv")
    cells = [row[1] for row in csv.reader((tmp_path / "l.csv").read_text().splitlines())][1:]
    assert cells == ["'=1+1", "'-7", "'@home", "'+cat", "''=x", "plain"]
    assert labels_of(load(tmp_path / "l.csv")) == labels


# ---------------------------------------------------------------- what says nothing, or two things


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json__a_key_that_is_there_twice(photos: Path, suffix: str) -> None:
    rows = ['{"image": "0.png", "label": "cat"}', '{"image": "1.png", "label": "cat", "label": "dog"}']
    path = photos / f"l{suffix}"
    path.write_text("\n".join(rows) if suffix == ".jsonl" else f"[{', '.join(rows)}]")
    with pytest.raises(DataError) as caught:
        load(path)
    where = "l.jsonl line 2" if suffix == ".jsonl" else "l.json"
    said = f"{caught.value} {[(p.where, p.detail) for p in caught.value.problems]}"
    assert where in said
    assert "the key 'label' is there twice" in said


def test_candidates__empty_values_among_them_are_reported(photos: Path) -> None:
    sets = [["cat", None], ["cat", "dog"], ["dog", ""], None, [None]]
    pq.write_table(pa.table({"image": [f"{i}.png" for i in range(5)], "candidates": sets}), photos / "c.parquet")
    lines = [json.dumps({"image": f"{i}.png", "candidates": each}) for i, each in enumerate(sets)]
    (photos / "c.jsonl").write_text("\n".join(lines))
    for name, noun in (("c.parquet", "row"), ("c.jsonl", "line")):
        table = load(photos / name)
        where = f"{photos / name} {noun} 1"
        assert f"empty values among the candidates are left out, in 3 rows ({where} first)" in told(table, "read_as")
        assert table.candidates is not None
        assert table.candidates.offsets.diff().tolist() == [1, 2, 1, 0, 0]


@pytest.mark.parametrize("odd", [None, "", "  ", {"a": 1}])
def test_parquet__metadata_that_name_a_class_nothing(photos: Path, odd: Any) -> None:
    table = pa.table({"image": ["0.png", "1.png"], "label": [0, 1]})
    label = {"_type": "ClassLabel", "names": ["cat", odd]}
    for about in (
        {"huggingface": json.dumps({"info": {"features": {"label": label}}})},
        {"labelwright": json.dumps({"class_names": ["cat", odd]})},
    ):
        pq.write_table(table.replace_schema_metadata(about), photos / "m.parquet")
        with pytest.raises(DataError, match=r"m.parquet: its metadata call class 1 .* which is not a name") as caught:
            load(photos / "m.parquet")
        assert "name every class of the column 'label'" in caught.value.fix


# ---------------------------------------------------------------- tables to label


def test_only_images__repeats_and_any_split_or_label_are_no_matter(
    photos: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path))
    (photos / "l.csv").write_text("image,label,split\n0.png,cat,exam\n0.png,,holdout\n1.png,zebra,\n")
    source = open_source(photos / "l.csv", classes=None, size_px=8, only_images=True)
    assert source.table.ids.to_pylist() == ["0.png", "0.png", "1.png"]
    with pytest.raises(DataError):
        open_source(photos / "l.csv", classes=None, size_px=8)
    table = read(photos / "l.csv", only_images=True)
    assert (table.class_names, table.split) == ((), None)


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize("make", [lambda v: pa.array(v), lambda v: pa.array(v).dictionary_encode()])
def test_as_text__is_the_same_for_every_encoding(make: Callable[[list[str | None]], Any]) -> None:
    assert as_text(make([" a", "", None, "b"]))[0].to_pylist() == ["a", None, None, "b"]
    assert as_text(pa.array(["a"], pa.large_string()))[0].to_pylist() == ["a"]


def test_as_lists__members_of_any_list_type() -> None:
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)):
        lengths, members, odd, _ = as_lists(pa.array([["a", "b"], ["c", None]], kind))
        assert (lengths.tolist(), members.to_pylist(), odd.any()) == ([2, 2], ["a", "b", "c", None], False)


def test_listed__names_with_quotes_and_commas() -> None:
    assert listed("""["it's", 'a "b"', 'c, d']""") == ["it's", 'a "b"', "c, d"]
    assert listed("gull [juvenile]") is None
