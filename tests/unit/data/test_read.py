"""Every kind of input, good and bad, through `load`."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from labelwright.data.columns import find_roles
from labelwright.data.read import load
from labelwright.errors import ConfigError, DataError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def draw(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(6):
        draw(tmp_path / f"{i}.png")
    return tmp_path


def write_csv(folder: Path, text: str, name: str = "table.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def kinds(error: DataError) -> list[str]:
    return [problem.kind for problem in error.problems]


# ---------------------------------------------------------------- folders


def test_folder__class_folders(tmp_path) -> None:
    for path in ("dog/1.png", "dog/deep/2.jpg", "cat/1.png"):
        draw(tmp_path / path)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    table = load(tmp_path)
    assert table.class_names == ("cat", "dog")
    assert table.ids.to_pylist() == ["cat/1.png", "dog/1.png", "dog/deep/2.jpg"]
    assert table.labels.tolist() == [0, 1, 1]
    assert table.labels.dtype == np.int32
    assert [(Path(p.where).name, p.kind) for p in table.problems] == [("notes.txt", "unsupported_file")]
    assert table.image(2).size == (4, 4)
    assert (table.split, table.groups, table.truth, table.candidates) == (None, None, None, None)


def test_folder__splits_and_unlabelled(tmp_path) -> None:
    for path in ("train/dog/1.png", "train/cat/1.png", "val/cat/2.png", "test/dog/2.png", "unlabeled/9.png"):
        draw(tmp_path / path)
    table = load(tmp_path)
    found = dict(zip(table.ids.to_pylist(), zip(table.labels.tolist(), table.split.tolist(), strict=True), strict=True))
    assert found == {
        "train/dog/1.png": (1, 0),
        "train/cat/1.png": (0, 0),
        "val/cat/2.png": (0, 2),
        "test/dog/2.png": (1, 1),
        "unlabeled/9.png": (-1, 0),
    }
    assert load(tmp_path, split="test").ids.to_pylist() == ["test/dog/2.png"]
    with pytest.raises(ConfigError, match="no such split: 'exam'"):
        load(tmp_path, split="exam")


def test_folder__mix_of_classes_and_unlabelled(tmp_path) -> None:
    for path in ("cat/1.png", "dog/1.png", "unlabelled/a/1.png", "loose.png"):
        draw(tmp_path / path)
    (tmp_path / "owl").mkdir()
    table = load(tmp_path)
    assert table.class_names == ("cat", "dog", "owl")
    assert sorted(zip(table.ids.to_pylist(), table.labels.tolist(), strict=True)) == [
        ("cat/1.png", 0),
        ("dog/1.png", 1),
        ("loose.png", -1),
        ("unlabelled/a/1.png", -1),
    ]
    assert [(p.where, p.kind) for p in table.problems] == [("owl", "unseen_class")]  # only a notice


def test_folder__flat_with_a_file_of_names(photos) -> None:
    names = photos / "names.txt"
    names.write_text("\ufeffcat\n\n dog \n", encoding="utf-8")
    table = load(photos, classes=names)
    assert table.class_names == ("cat", "dog")
    assert table.labels.tolist() == [-1] * 6
    assert load(str(photos), classes=["a", "b", "c"]).class_names == ("a", "b", "c")


def test_folder__a_class_folder_without_images(tmp_path) -> None:
    for path in ("cat/1.png", "dog/1.png", "emu/1.png"):
        draw(tmp_path / path)
    for name in ("owl", "yak"):
        (tmp_path / name).mkdir()
    (tmp_path / "owl" / ".gitkeep").touch()
    table = load(tmp_path)
    assert table.class_names == ("cat", "dog", "emu")
    found = {p.where: (p.kind, p.detail) for p in table.problems}
    detail = "an empty folder: {!r} is no class here, unless --classes names it"
    assert found == {str(tmp_path / name): ("absent_class", detail.format(name)) for name in ("owl", "yak")}
    assert table.how_read == [detail.format("owl"), detail.format("yak")]
    named = load(tmp_path, classes=["cat", "dog", "emu", "owl"])
    assert named.counts().tolist() == [1, 1, 1, 0]
    assert [(p.where, p.kind) for p in named.problems] == [
        ("owl", "absent_class"),
        (str(tmp_path / "yak"), "absent_class"),
    ]
    (tmp_path / "yak" / "deep").mkdir()
    (tmp_path / "yak" / "deep" / "1.psd").write_bytes(b"8BPS")  # images that nobody reads: no empty folder
    with pytest.raises(DataError, match="1 empty_class"):
        load(tmp_path)
    skipped = load(tmp_path, on_bad="skip")
    assert (skipped.class_names, len(skipped)) == (("cat", "dog", "emu"), 3)
    assert "no image of class 'yak' in its folder: .psd files are not read" in skipped.how_read


def test_folder__classes_that_only_test_images_show(tmp_path) -> None:
    for path in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/owl/1.png"):
        draw(tmp_path / path)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert [(p.kind, p.detail) for p in caught.value.problems] == [
        ("empty_class", "no image of class 'owl' to learn from, and test images are of it")
    ]


def test_folder__numbered_class_folders_are_names_in_number_order(tmp_path) -> None:
    for name in ("2", "10", "1"):
        draw(tmp_path / name / "x.png")
    assert load(tmp_path).class_names == ("1", "2", "10")


def test_folder__all_problems_in_one_report(tmp_path) -> None:
    draw(tmp_path / "cat/1.png")
    draw(tmp_path / "bird/1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError) as caught:
        load(tmp_path, classes=["cat", "dog"])
    assert kinds(caught.value) == ["unknown_label", "empty_class"]
    assert caught.value.exit_code == 2
    skipped = load(tmp_path, classes=["cat", "dog"], on_bad="skip")
    assert skipped.ids.to_pylist() == ["cat/1.png"]
    assert [p.where for p in skipped.quarantined] == [str(tmp_path / "bird/1.png")]
    reported = load(tmp_path, classes=["cat", "dog"], on_bad="report")
    assert reported.labels.tolist() == [-1, 0]
    assert len(reported.problems) == 2


def test_folder__no_image_at_all(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images found") as caught:
        load(tmp_path, on_bad="report")
    assert kinds(caught.value) == ["empty_table"]


# ---------------------------------------------------------------- tables

TABLE = """image,label,candidates,split,id,truth,track
0.png,dog,,train,a,dog,t1
1.png,cat,,training,b,cat,t1
2.png,,dog|cat|dog,train,c,owl,t2
3.png,,cat,val,d,,
4.png,dog,,test,e,dog,t2
5.png,cat,,,f,cat,
"""


def check_table(table) -> None:
    assert table.class_names == ("cat", "dog")
    assert table.labels.tolist() == [1, 0, -1, -1, 1, 0]
    assert [table.candidates.of(i).tolist() for i in range(6)] == [[], [], [0, 1], [0], [], []]
    assert table.split.tolist() == [0, 0, 0, 2, 1, 0]
    assert table.ids.to_pylist() == list("abcdef")
    assert table.truth.tolist() == [1, 0, 2, -1, 1, 0]
    assert table.truth_names == ("cat", "dog", "owl")
    first, second, third = table.groups[0], table.groups[2], table.groups[3]
    assert [*table.groups.tolist()[:3], table.groups[4]] == [first, first, second, second]
    assert len({first, second, third, table.groups[5]}) == 4  # an image without a group is alone
    assert table.image(3).size == (4, 4)
    assert table.problems == ()


def test_csv__every_column(photos) -> None:
    check_table(load(write_csv(photos, TABLE)))
    check_table(load(write_csv(photos, TABLE.replace(",", "\t"), "table.tsv")))


def read_rows() -> list[dict[str, str | None]]:
    header, *lines = TABLE.splitlines()
    return [dict(zip(header.split(","), (v or None for v in line.split(",")), strict=True)) for line in lines]


def test_jsonl__every_column(photos) -> None:
    (photos / "table.jsonl").write_text("\n".join(json.dumps(row) for row in read_rows()))
    check_table(load(photos / "table.jsonl"))


def test_parquet__lists_categories_and_shards(photos) -> None:
    rows = read_rows()
    for row in rows:
        row["candidates"] = row["candidates"].split("|") if row["candidates"] else None
    whole = pa.Table.from_pylist(rows)
    whole = whole.set_column(1, "label", whole.column("label").dictionary_encode())
    pq.write_table(whole, photos / "table.parquet")
    check_table(load(photos / "table.parquet"))
    (photos / "table.parquet").unlink()
    for part, (start, n) in enumerate([(0, 4), (4, 2)]):
        pq.write_table(whole.slice(start, n), photos / f"part-{part}.parquet")
    check_table(load(str(photos / "part-*.parquet")))
    check_table(load([photos / "part-0.parquet", photos / "part-1.parquet"]))


def test_shards__of_two_folders_find_their_own_images(tmp_path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        draw(tmp_path / name / "x.png", colour)
        pq.write_table(pa.table({"image": ["x.png"], "label": [name]}), tmp_path / name / "t.parquet")
    table = load(str(tmp_path / "*" / "t.parquet"))
    assert [table.image(row).getpixel((0, 0)) for row in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_columns__synonyms_and_missing(photos) -> None:
    table = load(write_csv(photos, "notes,File_Name,Category,patient\nx,0.png,cat,7\ny,1.png,dog,7\n"), group="patient")
    assert table.class_names == ("cat", "dog")
    assert table.groups[0] == table.groups[1]
    with pytest.raises(DataError, match="columns found: a, b") as caught:
        load(write_csv(photos, "a,b\n1,2\n"), on_bad="report")
    assert kinds(caught.value) == ["missing_column"]
    with pytest.raises(DataError, match="no column 'patient'"):
        find_roles(["image", "label"], "x", named={"group": "patient"})


def test_labels__integers_and_names(photos) -> None:
    numbers = write_csv(photos, "image,label\n0.png,1\n1.png,0\n2.png,-1\n3.png,2\n")
    assert load(numbers).class_names == ("0", "1", "2")
    assert load(numbers).labels.tolist() == [1, 0, -1, 2]
    assert load(numbers, classes=["cat", "dog", "owl"]).labels.tolist() == [1, 0, -1, 2]
    assert load(numbers, classes=["2", "1", "0"]).labels.tolist() == [1, 2, -1, 0]  # names win over positions
    with pytest.raises(DataError) as caught:
        load(numbers, classes=["cat", "dog"])
    assert [(p.kind, p.row) for p in caught.value.problems] == [("unknown_label", 3)]
    names = write_csv(photos, "image,label\n0.png, dog \n1.png,3\n")
    assert load(names).class_names == ("3", "dog")


def test_labels__numbers_from_one_or_with_gaps_are_names(photos) -> None:
    table = load(write_csv(photos, "image,label\n0.png,17\n1.png,3\n2.png,-1\n"))
    assert (table.class_names, table.labels.tolist()) == (("3", "17"), [1, 0, -1])
    table = load(write_csv(photos, "image,label\n0.png,2\n1.png,1\n"))
    assert (table.class_names, table.labels.tolist()) == (("1", "2"), [1, 0])


def test_labels__floats_of_a_column_with_gaps(photos) -> None:
    pq.write_table(
        pa.table({"image": ["0.png", "1.png", "2.png"], "label": [1.0, float("nan"), 0.0]}), photos / "t.parquet"
    )
    assert load(photos / "t.parquet").labels.tolist() == [1, -1, 0]


def test_bad_rows__everything_at_once(photos) -> None:
    text = (
        "image,label,candidates,id,split\n"
        "0.png,cat,,a,train\n"
        "1.png,bird,,b,train\n"
        "2.png,,cat|fish,c,train\n"
        "3.png,dog,,a,train\n"
        "gone.png,dog,,e,train\n"
        "too,many,values,in,this,row\n"
        "4.png,dog,,f,exam\n"
        ",dog,,g,train\n"
        "5.png,dog,,h,train\n"
    )
    path = write_csv(photos, text)
    with pytest.raises(DataError) as caught:
        load(path, classes=["cat", "dog", "owl"])
    found = {(p.kind, p.row) for p in caught.value.problems}
    assert found == {
        ("malformed_row", None),
        ("unknown_label", 1),
        ("unknown_candidate", 2),
        ("duplicate_id", 3),
        ("missing_image", 4),
        ("unknown_split", 5),
        ("missing_image", 6),
        ("unseen_class", None),
    }
    assert f"{path} line 7" in {p.where for p in caught.value.problems}
    assert "7 problems" in caught.value.message  # the notice is told, not counted
    left = load(path, classes=["cat", "dog", "owl"], on_bad="skip")
    assert left.ids.to_pylist() == ["a", "h"]
    assert len(left.quarantined) == 7
    kept = load(path, classes=["cat", "dog", "owl"], on_bad="report")
    assert len(kept) == 8
    assert kept.candidates.of(2).tolist() == [0]


def test_csv__text_that_is_not_utf8_is_named_by_line(photos) -> None:
    path = photos / "t.csv"
    path.write_bytes(b"image,label\n0.png,cat\n1.png,caf\xe9\nx,y,z\n2.png,d\xf4g\n3.png,dog\n")
    table = load(path, on_bad="skip")
    assert sorted(p.where for p in table.quarantined) == [f"{path} line {n}" for n in (3, 4, 5)]
    assert table.ids.to_pylist() == ["0.png", "3.png"]
    with pytest.raises(DataError, match="3 malformed_row"):
        load(path)


def test_jsonl__bad_lines_are_named_and_mixed_types_read(photos) -> None:
    path = photos / "t.jsonl"
    path.write_bytes(
        b'{"image": "0.png", "label": 1}\n{"image": "1.png", "label": "cat", "candidates": ["cat"]}\n'
        b'{"image": "2.png"\n\n["3.png"]\n{"image": "4.png", "candidates": "cat|1"}\n{"image": "5\xff.png"}\n'
    )
    table = load(path, on_bad="skip")
    assert sorted(p.where for p in table.quarantined) == [f"{path} line {n}" for n in (3, 5, 7)]
    assert table.class_names == ("1", "cat")
    assert table.labels.tolist() == [0, 1, -1]
    assert [table.candidates.of(i).tolist() for i in range(3)] == [[], [1], [0, 1]]


def test_jsonl__dates_stay_names(photos) -> None:
    (photos / "t.jsonl").write_text(
        '{"image": "0.png", "label": "2024-01-01"}\n{"image": "1.png", "label": "2024-01-02"}'
    )
    assert load(photos / "t.jsonl").class_names == ("2024-01-01", "2024-01-02")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.csv", "image,label\n", "empty_table"),
        ("t.jsonl", "PNG\n", "missing_column"),
        ("t.jsonl", '{"image": "a.png"}[]\n', "missing_column"),
        ("t.parquet", "PNG\n", "malformed_row"),
    ],
)
def test_table__empty_or_not_a_table(tmp_path, name, text, expected) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="is empty"):
        load(tmp_path / name)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        load(tmp_path / name, on_bad="report")
    assert kinds(caught.value) == [expected]


def test_ids__the_same_image_twice(photos) -> None:
    with pytest.raises(DataError) as caught:
        load(write_csv(photos, "image,label\n0.png,cat\n1.png,dog\n0.png,dog\n"))
    assert [(p.kind, p.row) for p in caught.value.problems] == [("duplicate_id", 2)]
    detail = "id '0.png' was used before as 'cat', and is 'dog' here: with a column of who answered, "
    assert caught.value.problems[0].detail == f"{detail}--annotator-columns reads several answers per image"
    again = load(write_csv(photos, "image,label\n1.png,dog\n0.png,cat\n0.png,cat\n0.png,\n"), on_bad="report")
    found = [p.detail for p in again.problems if p.kind == "duplicate_id"]
    assert found == ["id '0.png' was used before"] * 2


def test_classes__bad_names(photos) -> None:
    for classes, message in ((["cat", "cat"], "named twice: cat"), ([], "none given"), (["a", " "], "an empty name")):
        with pytest.raises(ConfigError, match=message):
            load(photos, classes=classes)
    with pytest.raises(DataError, match="cannot read the class names"):
        load(photos, classes=photos / "none.txt")


@pytest.mark.parametrize("source", ["no/such/folder/here", "missing.csv", "none-*.parquet", "photos"])
def test_source__not_there(source) -> None:
    with pytest.raises(DataError, match=r"no such file|no file matches"):
        load(source)


# ---------------------------------------------------------------- datasets


def make_dataset() -> datasets.Dataset:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["zebra", "ant"]),
            "track": datasets.Value("string"),
        }
    )
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    return datasets.Dataset.from_dict({"img": images, "label": [1, -1, 0], "track": ["a", "a", "b"]}, features=features)


def check_dataset(table) -> None:
    assert table.class_names == ("zebra", "ant")  # the order of the ClassLabel
    assert table.labels.tolist() == [1, -1, 0]
    assert table.groups.tolist() == [0, 0, 1]
    assert [table.image(row).getpixel((0, 0)) for row in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_datasets__object_disk_and_parquet(tmp_path) -> None:
    data = make_dataset()
    check_dataset(load(data))
    data.save_to_disk(tmp_path / "saved")
    check_dataset(load(tmp_path / "saved"))
    data.to_parquet(tmp_path / "t.parquet")
    check_dataset(load(tmp_path / "t.parquet"))
    (tmp_path / "shards").mkdir()
    for part in range(3):
        data.select([part]).to_parquet(tmp_path / "shards" / f"{part}.parquet")
    check_dataset(load(tmp_path / "shards"))


def test_datasets__selected_rows_and_other_class_order() -> None:
    table = load(make_dataset().select([2, 0]), classes=["ant", "zebra"])
    assert table.labels.tolist() == [1, 0]
    assert [table.image(row).getpixel((0, 0)) for row in range(2)] == [(0, 0, 255), (255, 0, 0)]


def test_datasets__dict_of_splits() -> None:
    data = make_dataset()
    table = load(datasets.DatasetDict({"train": data, "test": data.select([0]), "unlabeled": data.select([2])}))
    assert table.split.tolist() == [0, 0, 0, 1, 0]
    assert table.labels.tolist() == [1, -1, 0, 1, -1]
    assert load(datasets.DatasetDict({"train": data, "test": data.select([2])}), split="test").labels.tolist() == [0]
    with pytest.raises(DataError, match="cannot read a object"):
        load(object())


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self) -> None: ...


class Pairs(torch.utils.data.Dataset):
    classes = ("zebra", "ant")  # in the order of the numbers

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (4, 4), "red"), (0, 1, -1)[row]


def test_memory__frames_columns_pairs_and_torch_data_sets_are_read(photos: Path) -> None:
    paths = [photos / f"{i}.png" for i in range(3)]
    frame = pd.DataFrame({"path": paths, "label": ["ant", None, "zebra"]}, index=[5, 5, 1])
    assert load(frame).labels.tolist() == load(frame.astype({"label": "category"})).labels.tolist() == [0, -1, 1]
    assert load(frame.rename(columns={"label": "kind"}), columns={"label": "kind"}).class_names == ("ant", "zebra")
    images = [Image.open(path) for path in paths]
    for given in (
        pd.DataFrame({"img": images, "label": ["ant", float("nan"), "zebra"]}),
        {"image": np.zeros((3, 4, 4), np.uint8), "label": np.array(["ant", "", "zebra"])},
        [(paths[0], "ant"), (str(paths[1]), None), (paths[2], "zebra")],
        tuple(zip(images, ["ant", "", "zebra"], strict=True)),
    ):
        table = load(given)
        assert (table.labels.tolist(), table.class_names) == ([0, -1, 1], ("ant", "zebra"))
        assert table.image(2).size == (4, 4)
    for pairs in (Pairs(), torch.utils.data.Subset(Pairs(), range(3))):
        assert [load(pairs).class_names[label] for label in load(pairs).labels[:2]] == ["zebra", "ant"]
        assert load(pairs).labels[2] == -1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": [Image.new("L", (2, 2))] * 2, "label": ["a", 1]}, "the column 'label' cannot be read"),
        ({"image": [Image.new("L", (2, 2))] * 2, "label": ["a"]}, r"{'image': 2, 'label': 1} rows"),
        ({"picture": [Image.new("L", (2, 2))]}, "no image column"),
        ([("a.png", "cat"), ("b.png",)], "item 1 is a tuple, not an image and its label"),
        (Endless(), "has no length"),
    ],
)
def test_memory__what_is_wrong_is_named(given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(given)


def test_parquet__raw_bytes_without_features(tmp_path) -> None:
    draw(tmp_path / "x.png", "blue")
    data = (tmp_path / "x.png").read_bytes()
    pq.write_table(pa.table({"image": [data, data], "label": ["b", "a"]}), tmp_path / "t.parquet")
    table = load(tmp_path / "t.parquet")
    assert table.labels.tolist() == [1, 0]
    assert table.image(1).getpixel((0, 0)) == (0, 0, 255)


# ---------------------------------------------------------------- the real files


@pytest.mark.parametrize(("name", "n_rows", "n_classes"), [("gtsrb-test", 12_630, 43), ("cifar10-test", 10_000, 10)])
def test_real__parquet_with_embedded_images(name, n_rows, n_classes) -> None:
    path = SHARED / "data" / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no shared data at {path}")
    table = load(path)
    raw = pq.read_table(path, columns=["label"]).column("label").to_numpy()
    assert (len(table), len(table.class_names)) == (n_rows, n_classes)
    assert np.array_equal(table.labels, raw)
    assert table.image(n_rows - 1).mode == "RGB"
    assert table.problems == ()


def test_table__files_in_the_only_folder_that_has_them_and_others_beside(tmp_path) -> None:
    for i in range(30):
        draw(tmp_path / "holiday" / f"{i}.png")
    (tmp_path / "empty").mkdir()
    table = load(write_csv(tmp_path, "file,label\n0.png,cat\n1.png,dog\n"))
    assert table.images.sources(np.array([0])) == [str(tmp_path / "holiday" / "0.png")]
    [beside] = [problem.detail for problem in table.problems if problem.kind == "skipped_folder"]
    assert beside.startswith("28 images beside those of the table not listed in it, such as 10.png: ")
    draw(tmp_path / "empty" / "0.png")  # now two folders have it: neither is taken
    with pytest.raises(DataError) as caught:
        load(tmp_path / "table.csv")
    assert kinds(caught.value) == ["missing_image"] * 2


def test_table__columns_of_several_people_are_named_together(tmp_path) -> None:
    for i in range(4):
        draw(tmp_path / f"{i}.png")
    rows = "image,ann,bob\n0.png,cat,cat\n1.png,dog,cat\n2.png,dog,dog\n3.png,cat,dog\n"
    [notice] = [problem.detail for problem in load(write_csv(tmp_path, rows)).problems]
    assert notice.endswith("--annotator-columns 'ann,bob'")


def test_table__a_column_per_class_is_labels_or_weighted_candidates(photos: Path) -> None:
    table = load(write_csv(photos, "image,age,owl,ant\n0.png,7,1.0,0.0\n1.png,5,0,1\n2.png,6,,\n3.png,8,0,0\n"))
    assert (table.class_names, table.labels.tolist()) == (("ant", "owl"), [1, 0, -1, -1])
    assert sorted(problem.kind for problem in table.problems) == ["ignored_column", "read_as"]
    frame = pd.DataFrame({"image": [photos / "0.png", photos / "1.png"], "owl": [0.25, 1.0], "ant": [0.75, 0.0]})
    sets = load(frame).candidates
    assert [sets.of(row).tolist() for row in range(2)] == [[0, 1], [1]]
    assert sets.weights.tolist() == [0.75, 0.25, 1.0]
    for rows in ("0.png,1,1\n1.png,0,1\n", "0.png,2,0\n1.png,0,2\n"):  # several labels; other numbers
        table = load(write_csv(photos, f"image,owl,ant\n{rows}"))
        assert (table.class_names, table.candidates) == ((), None)


def test_table__columns_of_other_things_are_no_labels_where_the_classes_are_given(photos: Path) -> None:
    path = write_csv(photos, "image,day,night,owl,ant\n0.png,1,0,0,1\n1.png,0,1,1,0\n")
    table = load(path, classes=["ant", "owl"])
    assert (table.class_names, table.labels.tolist()) == (("ant", "owl"), [0, 1])
    table = load(path, classes=["cat", "dog"])
    assert (table.class_names, table.labels.tolist()) == (("cat", "dog"), [-1, -1])


def test_table__labels_that_export_wrote_are_read(photos: Path) -> None:
    table = load(write_csv(photos, "id,label,probability,decision\n0.png,ant,0.5,review\n1.png,owl,1,accept\n"))
    assert [Path(source).name for source in table.images.sources(np.arange(2))] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("header", "columns", "fix"),
    [
        ("photo,species", {}, "name the column of the images with --image-column"),
        ("a/0.png,ant", {}, "image,label"),
        ("image,species", {"label": "specis"}, "did you mean 'species'?"),
        ("image,label", {"group": "patient"}, "give a column that is there in place of 'patient'"),
        ("image,label,label", {}, "each once"),
    ],
)
def test_table__a_column_that_is_not_there_is_fixed_by_what_was_meant(
    photos: Path, header: str, columns: dict[str, str], fix: str
) -> None:
    with pytest.raises(DataError) as raised:
        load(write_csv(photos, f"{header}\n0.png,{'x,' * (header.count(',') - 1)}y\n"), columns=columns)
    assert fix in raised.value.fix


def test_names__that_are_no_class_are_mentioned(photos: Path) -> None:
    table = load(write_csv(photos, "image,label\n0.png,ant\n1.png,unknown\n2.png,?\n3.png,owl\n"))
    found = [problem.detail for problem in table.problems if problem.kind == "odd_class"]
    assert found[0].startswith("'?', 'unknown' are read as a class")
    (photos / "names.txt").write_text("# my classes\nant\n\nowl\n")
    table = load(write_csv(photos, "image,label\n0.png,ant\n1.png,owl\n2.png,\n"), classes=photos / "names.txt")
    assert "'# my classes' read as a class, too: the file of the names knows no comments" in [
        problem.detail for problem in table.problems if problem.kind == "odd_class"
    ]


def test_hub__who_waits_for_it_is_kept_informed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: make_dataset())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert len(load("phots/train")) == 3
    assert "phots/train is no file or folder here: looking for a data set" in capsys.readouterr().err
