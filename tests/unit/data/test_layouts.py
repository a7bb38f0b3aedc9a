"""Folders as `datasets`, the hub, annotation tools and this package lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelwright.data.in_memory import encoded
from labelwright.data.layouts import found_elsewhere, split_folders, splits_of
from labelwright.data.read import load
from labelwright.data.table import SPLITS, LabelTable
from labelwright.errors import ConfigError, DataError


def draw(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (20 * i, 0, 0)).save(path)


def rows_of(table: LabelTable) -> dict[str, tuple[str | None, str | None]]:
    """Id -> (label, split)."""
    labels = [None if code < 0 else table.class_names[code] for code in table.labels.tolist()]
    splits = [None] * len(table) if table.split is None else [SPLITS[code] for code in table.split.tolist()]
    return dict(zip(table.ids.to_pylist(), zip(labels, splits, strict=True), strict=True))


def told(table: LabelTable) -> str:
    return "; ".join(f"{Path(p.where).name}: {p.detail}" for p in table.problems)


def shard(path: Path, *labels: str) -> None:
    """A Parquet file with an embedded image per label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path.with_suffix(".png"))
    raw = path.with_suffix(".png").read_bytes()
    path.with_suffix(".png").unlink()
    pq.write_table(pa.table({"image": [raw] * len(labels), "label": list(labels)}), path)


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0.parquet", "eval/0.parquet"),
        ("my_train.parquet", "my_testing.parquet"),
        ("photos.parquet", "photos.test.parquet"),
        ("default/train/0.parquet", "default/test/0.parquet"),
    ],
)
def test_shards__the_split_is_in_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    shard(tmp_path / names[0], "cat", "dog", "cat")
    shard(tmp_path / names[1], "cat")
    (tmp_path / ".git").mkdir()
    shard(tmp_path / ".git" / "validation.parquet", "owl")
    (tmp_path / "README.md").write_text("# pets")
    table = load(tmp_path)
    assert (len(table.where("train")), len(table.where("test"))) == (3, 1)
    assert "splits are read from names" in told(table)
    assert load(str(tmp_path / names[0])).split is None  # one alone is what it is given as


def test_shards__of_one_split_and_a_column_that_says_more(tmp_path: Path) -> None:
    for part in range(2):
        shard(tmp_path / f"train-0000{part}-of-00002.parquet", "cat", "dog")
    assert load(tmp_path).split is None
    draw(tmp_path / "x" / "0.png")
    (tmp_path / "x" / "train.csv").write_text("image,label,split\n0.png,cat,test\n")
    (tmp_path / "x" / "test.csv").write_text("image,label,split\n0.png,cat,train\n")
    table = load([tmp_path / "x" / "train.csv", tmp_path / "x" / "test.csv"], on_bad="report")
    assert table.split.tolist() == [1, 0]


def test_splits_of__words_that_only_look_like_splits() -> None:
    assert splits_of([Path("contest.csv"), Path("trained.csv")]) == [None, None]
    assert splits_of([Path("test/cat.csv"), Path("test/dog.csv")]) == [None, None]
    assert splits_of([Path("a_val.csv"), Path("dev/b.csv"), Path("c.csv")]) == ["validation", "validation", "train"]


@pytest.mark.parametrize("test_name", ["test", "Testing", "eval", "evaluation"])
def test_folders__splits_beside_others(tmp_path: Path, test_name: str) -> None:
    draw(*(tmp_path / p for p in ("train/cat/1.png", "train/dog/1.png", f"{test_name}/cat/2.png", "docs/figure.png")))
    table = load(tmp_path)
    assert rows_of(table) == {
        "train/cat/1.png": ("cat", "train"),
        "train/dog/1.png": ("dog", "train"),
        f"{test_name}/cat/2.png": ("cat", "test"),
    }
    assert "docs: it lies outside the split folders: 1 images in it are not read" in told(table)


def test_folders__a_split_beside_classes_or_inside_them(tmp_path: Path) -> None:
    beside, inside = tmp_path / "beside", tmp_path / "inside"
    draw(*(beside / p for p in ("cat/1.png", "dog/1.png", "test/cat/2.png", "test/dog/2.png")))
    assert set(rows_of(load(beside)).values()) == {(c, s) for c in ("cat", "dog") for s in ("train", "test")}
    draw(*(inside / p for p in ("cat/train/1.png", "cat/val/2.png", "dog/train/1.png")))
    assert rows_of(load(inside)) == {
        "cat/train/1.png": ("cat", "train"),
        "cat/val/2.png": ("cat", "validation"),
        "dog/train/1.png": ("dog", "train"),
    }


def test_folders__a_class_may_be_called_train(tmp_path: Path) -> None:
    draw(*(tmp_path / p for p in ("car/1.png", "train/1.png", "train/steam/2.png")))
    table = load(tmp_path)
    assert (table.class_names, table.split) == (("car", "train"), None)
    assert split_folders({"cat": [], "unlabeled": [], "val": []}) == {}


# ---------------------------------------------------------------- tables beside images


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata__says_what_the_images_are(tmp_path: Path, kind: str) -> None:
    draw(*(tmp_path / "train" / f"{i}.png" for i in range(3)), tmp_path / "test" / "0.png")
    for part, names in (("train", ["0.png", "1.png", "2.png"]), ("test", ["0.png"])):
        labels = ["cat", "dog", "cat"][: len(names)]
        path = tmp_path / part / f"metadata.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"file_name": names, "label": labels}), path)
        elif kind == "csv":
            lines = [f"{name},{label}\n" for name, label in zip(names, labels, strict=True)]
            path.write_text("file_name,label\n" + "".join(lines))
        else:
            rows = [{"file_name": n, "label": c} for n, c in zip(names, labels, strict=True)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load(tmp_path, on_bad="report")
    assert table.counts().tolist() == [3, 1]
    assert [len(table.where(split)) for split in ("train", "test")] == [3, 1]
    assert table.image(1).size == (4, 4)


def test_metadata__without_labels_leaves_them_to_the_folders(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "1.png", tmp_path / "dog" / "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\ncat/1.png,a cat\n")
    table = load(tmp_path)
    assert rows_of(table) == {"cat/1.png": ("cat", None), "dog/1.png": ("dog", None)}
    assert "metadata.csv: a table beside images is not read; give its path" in told(table)


def test_metadata__images_that_it_does_not_list_are_told(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", tmp_path / "1.png", tmp_path / "2.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    assert "1 image beside those of the table not listed in it, such as 2.png" in told(load(tmp_path))


def test_stray_tables__do_not_hide_images(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "1.png", tmp_path / "dog" / "1.png")
    pq.write_table(pa.table({"feature": [1.0]}), tmp_path / "stats.parquet")
    (tmp_path / "old.csv").write_text("image,label\n")
    table = load(tmp_path)
    assert len(table) == 2
    assert "stats.parquet: a table beside images is not read" in told(table)
    assert "old.csv: a table beside images is not read" in told(table)


def test_shards__are_not_hidden_by_a_stray_image(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-00000-of-00001.parquet", "cat", "dog")
    draw(tmp_path / "preview.png")
    assert len(load(tmp_path)) == 2


# ---------------------------------------------------------------- repositories


HEAD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: "parts/a*.csv"
  - split: test
    path: ["held.csv"]
---
# pets
"""


def test_repository__the_head_of_the_readme_names_the_files(tmp_path: Path) -> None:
    draw(tmp_path / "parts" / "0.png", tmp_path / "parts" / "1.png", tmp_path / "2.png")
    (tmp_path / "parts" / "a1.csv").write_text("image,label\n0.png,cat\n1.png,dog\n")
    (tmp_path / "held.csv").write_text("image,label\n2.png,cat\n")
    (tmp_path / "other.csv").write_text("image,label\n2.png,owl\n")
    (tmp_path / "README.md").write_text(HEAD)
    table = load(tmp_path)
    assert [len(table.where(split)) for split in ("train", "test")] == [2, 1]
    assert table.class_names == ("cat", "dog")
    two = HEAD.replace("- config_name: default", "- config_name: other\n  data_files: other.csv\n- config_name: big")
    (tmp_path / "README.md").write_text(two)
    with pytest.raises(DataError, match="several configurations: other, big"):
        load(tmp_path)
    for broken in (
        "---\n: [\n---\n",
        "---\nconfigs: 3\n---\n",
        "---",
        HEAD.replace("parts", "../..").replace("held", "/x"),
    ):
        (tmp_path / "README.md").write_text(broken)
        assert load(tmp_path, on_bad="report", classes=["cat", "dog"]).n_given >= 3


# ---------------------------------------------------------------- annotation tools


def said(*choices: str, **more: Any) -> dict[str, Any]:
    result = [{"type": "choices", "from_name": "choice", "to_name": "image", "value": {"choices": list(choices)}}]
    return {"result": result, **more}


def test_label_studio__json(tmp_path: Path) -> None:
    draw(*(tmp_path / "images" / f"{i}.png" for i in range(7)))
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-0.png"}, "annotations": [said("cat")]},
        {"id": 2, "data": {"image": "/data/local-files/?d=images/1.png"}, "annotations": [said("dog")]},
        {"id": 3, "data": {"image": "images/2.png"}, "annotations": []},
        {"id": 4, "data": {"image": "http://host/x/3.png"}, "annotations": [said("owl", was_cancelled=True)]},
        {"id": 5, "data": {"image": "images/4.png"}, "annotations": [said("cat"), said("dog"), said("cat")]},
        {"id": 6, "data": {"image": "images/5.png"}, "annotations": [said("cat"), said("dog", ground_truth=True)]},
        {"id": 7, "data": {"image": "images/6.png"}, "annotations": [], "predictions": [said("owl", score=0.5)]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    table = load(tmp_path / "export.json")
    assert table.class_names == ("cat", "dog")
    assert table.labels.tolist() == [0, 1, -1, -1, -1, 1, -1]
    assert table.candidates.of(4).tolist() == [0, 1]
    assert table.candidates.weights[0] == pytest.approx(2 / 3)
    assert [table.image(row).size for row in range(7)] == [(4, 4)] * 7
    tasks[0]["annotations"] = [said("cat", "dog")]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "export.json")
    places = [problem.where for problem in caught.value.problems if problem.kind == "malformed_row"]
    assert places == [f"{tmp_path / 'export.json'} row 1"]


def test_label_studio__the_short_form(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", tmp_path / "1.png")
    rows = [{"id": 1, "image": "0.png", "choice": "cat"}, {"id": 2, "image": "1.png", "choice": "dog"}]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    table = load(tmp_path / "min.json")
    assert rows_of(table) == {"1": ("cat", None), "2": ("dog", None)}


def test_fiftyone__image_classification(tmp_path: Path) -> None:
    draw(*(tmp_path / "data" / name for name in ("a.png", "b.v2.jpg", "c.png", "extra.png")))
    labels = {"a": 1, "b.v2": {"label": 0, "confidence": 0.5}, "c": None}
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["dog", "cat"], "labels": labels}))
    for source in (tmp_path, tmp_path / "labels.json"):
        table = load(source)
        assert table.class_names == ("dog", "cat")
        expected = {"a.png": "cat", "b.v2.jpg": "dog", "c.png": None, "extra.png": None}
        assert rows_of(table) == {f"data/{name}": (label, None) for name, label in expected.items()}
    (tmp_path / "labels.json").write_text(json.dumps({"classes": None, "labels": {"a": "cat", "gone": "dog"}}))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert [p.kind for p in caught.value.problems if p.kind == "missing_image"] == ["missing_image"]


def test_fiftyone__samples(tmp_path: Path) -> None:
    draw(*(tmp_path / "data" / f"{i}.png" for i in range(3)))

    def sample(i: int, label: str | None, *tags: str) -> dict[str, Any]:
        truth = None if label is None else {"_cls": "Classification", "label": label}
        guess = {"_cls": "Classification", "label": "owl", "confidence": 0.3}
        return {"filepath": f"data/{i}.png", "tags": list(tags), "ground_truth": truth, "guess": guess}

    samples = [sample(0, "cat", "train", "good"), sample(1, "dog", "val"), sample(2, "cat")]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    (tmp_path / "metadata.json").write_text("{}")
    table = load(tmp_path)
    assert rows_of(table) == {
        "data/0.png": ("cat", "train"),
        "data/1.png": ("dog", "validation"),
        "data/2.png": ("cat", "train"),
    }
    assert "not read: guess" in told(table)
    assert load(tmp_path / "samples.json", columns={"label": "guess"}).class_names == ("owl",)


def test_coco__categories_of_images(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", tmp_path / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 1, "category_id": 5}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert rows_of(load(tmp_path / "coco.json")) == {"0.png": ("cat", None), "1.png": (None, None)}


@pytest.mark.parametrize(
    "text", ["{", "3", "{}", "[1]", "[" * 100_000, "null", '{"samples": 3}', '{"labels": {}}', "[]"]
)
def test_json__of_another_form_is_one_clear_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "x.json")
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- what is no data


def test_folders__runs_and_what_machines_leave_are_passed_over(tmp_path: Path) -> None:
    draw(
        *(tmp_path / p for p in ("cat/1.png", "dog/1.png", "run/thumbnails/1.png", "@eaDir/1.png", "cat/@eaDir/2.png"))
    )
    (tmp_path / "run" / "config.yaml").write_text("a: 1")
    (tmp_path / "run" / "data.json").write_text("{}")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "dog" / ".ipynb_checkpoints").mkdir()
    table = load(tmp_path)
    assert table.ids.to_pylist() == ["cat/1.png", "dog/1.png"]
    assert table.class_names == ("cat", "dog")
    for name, why in (("run", "the folder of a run"), ("@eaDir", "left behind"), ("lost+found", "left behind")):
        assert f"{name}: {why}" in told(table)


# ---------------------------------------------------------------- single images, lists, images in memory


def test_images__files_lists_and_patterns(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b.JPG")
    for source, n in (
        (tmp_path / "a.png", 1),
        ([str(tmp_path / "a.png"), tmp_path / "b.JPG", tmp_path / "a.png"], 3),
        (str(tmp_path / "*.png"), 1),
    ):
        table = load(source, classes=["x", "y"])
        assert len(table) == n
        assert table.image(n - 1).size == (4, 4)
    with pytest.raises(DataError, match="1 missing_image"):
        load([tmp_path / "gone.png"], classes=["x", "y"])
    with pytest.raises(DataError, match="a list with a int"):
        load([tmp_path / "a.png", 3])


def test_images__in_memory_are_what_they_were() -> None:
    red = np.zeros((3, 5, 3), np.uint8)
    red[..., 0] = 204
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    items = [
        *(red, red / np.float32(255), red.transpose(2, 0, 1).copy(), Image.fromarray(red)),
        *(Image.fromarray(red).convert("CMYK"), Image.fromarray(red).convert("P"), red[..., 0], red[..., :1]),
    ]
    table = load(items, classes=["x", "y"])
    pixels = [table.image(row).getpixel((4, 2)) for row in range(len(items))]
    assert pixels == [(204, 0, 0)] * 6 + [(204, 204, 204)] * 2
    assert load(turned, classes=["x", "y"]).image(0).size == (2, 4)
    assert len(load(np.zeros((5, 4, 4, 3), np.uint8), classes=["x", "y"])) == 5
    assert load([Image.new("F", (2, 2)), Image.new("I;16", (2, 2), 65535)], classes=["x", "y"]).image(1).size == (2, 2)
    for bad in (
        np.zeros(3),
        np.zeros((2, 2, 7)),
        np.zeros((2, 2), "datetime64[s]"),
        np.full((2, 2), np.nan),
        np.zeros((0, 4)),
    ):
        with pytest.raises(ConfigError, match="is no image"):
            encoded([bad])


def test_images__normalised_ones_and_features_are_no_colours() -> None:
    red = np.zeros((4, 4, 3), np.float32)
    red[..., 0] = 1
    over = load([red * 1.04 - 0.02], classes=["x", "y"]).image(0)  # as a resize leaves it
    assert over.getpixel((0, 0)) == (255, 0, 0)
    for bad in ((red - 0.5) / 0.25, np.random.default_rng(0).normal(size=(9, 5)), red * 900):
        with pytest.raises(ConfigError, match="which are not pixel values"):
            encoded([bad])


def test_found_elsewhere__nothing_is_made_up(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    assert found_elsewhere("b.png", str(tmp_path)) is None
    assert found_elsewhere("x/a.png", str(tmp_path)) is None  # a name alone is not enough
    assert found_elsewhere("file://" + str(tmp_path / "a.png"), "/") == str(tmp_path / "a.png")


def test_found_elsewhere__a_suffix_left_out_or_in_other_letters(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.png", "c.jpg", "c.png"):
        draw(tmp_path / "train" / name)
    (tmp_path / "t.csv").write_text("id,breed\na,x\nb,y\n")
    table = load(tmp_path / "t.csv", columns={"image": "id", "label": "breed"})
    assert [Path(source).name for source in table.images.sources(np.arange(2))] == ["a.JPG", "b.png"]
    assert any("2 paths are not there as written" in problem.detail for problem in table.problems)
    folder = str(tmp_path / "train")
    assert found_elsewhere("a.jpg", folder) == found_elsewhere(f"{folder}/a.jpg", "/") == f"{folder}/a.JPG"
    assert found_elsewhere("c", folder) is None  # which of the two?
    assert found_elsewhere("b.jpg", folder) is None  # another file
