"""A column per annotator, in every kind of table: classes, candidates, what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelwright.data.embeddings import load_embeddings
from labelwright.data.prepare import read
from labelwright.data.read import load
from labelwright.errors import ConfigError, DataError

ANN, BOB = ["cat", "dog", None, None], ["cat", "owl", "dog", None]
VOTES = [[0, 0], [1, 2], [-1, 1], [-1, -1]]


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    return tmp_path


def write(folder: Path, kind: str, **more: list) -> Path:
    columns = {"image": [f"{i}.png" for i in range(4)], "ann": ANN, "bob": BOB, **more}
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
        return path
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "jsonl":  # keys left out, as people write it
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    else:
        lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns__become_votes_and_candidates(photos: Path, kind: str) -> None:
    table = load(write(photos, kind), annotators=("ann", "bob"))
    assert table.class_names == ("cat", "dog", "owl")
    assert table.annotators == ("ann", "bob")
    assert table.votes.tolist() == VOTES
    sets = table.candidates
    assert [sets.of(i).tolist() for i in range(4)] == [[0], [1, 2], [1], []]
    assert sets.weights.tolist() == [1.0, 0.5, 0.5, 1.0]
    assert (table.labels == -1).all()
    task = table.subset(np.array([2, 0])).task()
    assert task.votes.tolist() == [[-1, 1], [0, 0]]


@pytest.mark.parametrize("kind", ["csv", "parquet", "memory"])
def test_long__an_answer_a_row_is_read_as_columns_are(photos: Path, kind: str, monkeypatch) -> None:
    rows = [("ann", "0.png", "cat"), ("bob", "0.png", "cat"), ("bob", "1.png", "cat"), ("ann", "1.png", "dog")]
    rows += [("bob", "1.png", "owl"), ("bob", "2.png", "dog"), ("ann", "3.png", "")]  # once more, and none
    columns = dict(zip(("who", "image", "choice"), map(list, zip(*rows, strict=True)), strict=True))
    source = photos / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), source)
    elif kind == "csv":
        source.write_text("who,image,choice\n" + "".join(",".join(row) + "\n" for row in rows))
    monkeypatch.chdir(photos)
    table = load(pd.DataFrame(columns) if kind == "memory" else source, annotators=("who",))
    assert (table.annotators, table.votes.tolist()) == (("ann", "bob"), VOTES)
    assert (table.class_names, (table.labels == -1).all()) == (("cat", "dog", "owl"), True)
    (notice,) = (problem.detail for problem in table.problems if problem.kind == "read_as")
    assert notice.startswith("an answer a row: 7 of 2 annotators about 4 images; 1 answer about an image that")


def test_long__answers_of_nobody_are_counted(photos: Path) -> None:
    (photos / "t.csv").write_text("image,who,label\n0.png,ann,cat\n0.png,,dog\n1.png,bob,dog\n1.png,,cat\n1.png,ann,\n")
    table = load(photos / "t.csv", annotators=("who",))
    (notice,) = (problem.detail for problem in table.problems if problem.kind == "read_as")
    assert notice == "an answer a row: 3 of 2 annotators about 2 images; 2 answers without a name under 'who': not read"
    assert table.votes.tolist() == [[0, -1], [-1, 1]]


@pytest.mark.parametrize("kind", ["paths", "bytes", "structs", "images", "embeddings"])
def test_long__over_files_and_of_images_inside_them(photos: Path, kind: str) -> None:
    pixels = [np.full((4, 4, 3), 60 * i, np.uint8) for i in range(4)]
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(photos / f"{i}.png")
    files = [(photos / f"{i}.png").read_bytes() for i in range(4)]
    held = {"paths": [f"{i}.png" for i in range(4)], "bytes": files, "images": pixels}
    held |= {"structs": [{"bytes": each, "path": "x.png"} for each in files], "embeddings": np.eye(4).tolist()}
    rows = [
        (0, "ann", "cat"),
        (1, "bob", "dog"),
        (0, "bob", "owl"),
        (3, "ann", ""),
        (1, "ann", "cat"),
        (2, "bob", "dog"),
    ]
    name = "embedding" if kind == "embeddings" else "image"
    columns = {
        name: [held[kind][i] for i, _, _ in rows],
        "who": [w for _, w, _ in rows],
        "label": [x for _, _, x in rows],
    }
    if kind in ("images", "embeddings"):
        table = (load_embeddings if kind == "embeddings" else load)(columns, annotators=("who",))
        table = table.table if kind == "embeddings" else table
    else:
        for part in (0, 1):
            some = {key: column[3 * part : 3 * part + 3] for key, column in columns.items()}
            pq.write_table(pa.table(some), photos / f"part-{part}.parquet")
        table = load(f"{photos}/part-*.parquet", annotators=("who",))
    assert (table.class_names, table.annotators) == (("cat", "dog", "owl"), ("ann", "bob"))
    assert table.votes.tolist() == [[0, 2], [0, 1], [-1, -1], [-1, 1]]  # images 0, 1, 3 and 2, as they come
    if kind != "embeddings":
        assert [table.image(row).getpixel((0, 0))[0] for row in range(4)] == [0, 60, 180, 120]
        many = {"image": 3 * held[kind], "who": [*"aaaabbbbcccc"], "label": 6 * ["cat", "dog"]}
        told = load(pd.DataFrame(many), on_bad="report").problems  # without the column named, a notice names it
        assert "--annotator-columns 'who'" in " ".join(problem.detail for problem in told)


def test_long__images_inside_that_are_equal_are_not_answers(photos: Path) -> None:
    image = (photos / "0.png").read_bytes()
    columns = {
        "image": [image, image, b"x", b"y"],
        "label": ["cat", "dog", "", ""],
        "ann": ["cat", "dog", "owl", "cat"],
    }
    pq.write_table(pa.table(columns), photos / "t.parquet")
    table = load(photos / "t.parquet", annotators=("ann",))
    assert (table.annotators, len(table)) == (("ann",), 4)


@pytest.mark.parametrize("kind", ["csv", "parquet", "memory"])
def test_read__answers_of_a_run_that_stand_one_a_row_are_an_image_each(photos: Path, kind: str, monkeypatch) -> None:
    columns = {"id": list("abcde"), "image": ["0.png", "0.png", "1.png", "2.png", "1.png"], "who": list("xyxyy")}
    columns |= {"label": ["cat", "dog", "owl", "owl", "owl"], "truth": ["cat", "cat", "owl", "dog", "owl"]}
    source = photos / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), source)
    elif kind == "csv":
        pd.DataFrame(columns).to_csv(source, index=False)
    data = pd.DataFrame(columns) if kind == "memory" else source
    monkeypatch.chdir(photos)
    table = read(data, only_images=True, answered_by="who")
    assert table.ids.to_pylist() == ["a", "c", "d"]
    assert [str(each)[-5:] for each in table.images.sources(np.arange(3))] == ["0.png", "1.png", "2.png"]
    assert len(read(data, only_images=True, answered_by="ann")) == 5  # no such column: a row is a row
    answers = read(data, classes=["cat", "dog", "owl"], answered_by="who")
    assert (answers.ids.to_pylist(), answers.labels.tolist()) == (["a", "c", "d"], [-1, -1, -1])
    truth = read(data, classes=["cat", "dog", "owl"], columns={"label": "truth"}, answered_by="who")
    assert truth.labels.tolist() == [0, 2, 1]  # one of every image, whoever answered
    assert {problem.kind for problem in truth.problems} <= {"read_as", "ignored_column"}


def test_long__without_the_column_named_the_notice_names_it(photos: Path) -> None:
    answers = "".join(f"{who},{i}.png,{'cat' if i % 2 else 'dog'},{who}{i}\n" for i in range(4) for who in "abc")
    (photos / "t.csv").write_text("who,image,label,key\n" + answers)
    with pytest.raises(DataError) as raised:
        load(photos / "t.csv")
    details = [problem.detail for problem in raised.value.problems if problem.kind == "ignored_column"]
    assert details[0].endswith("answers of several people? --annotator-columns 'who'")
    (photos / "t.csv").write_text("ann,image,label\nx,0.png,cat\ny,1.png,dog\n")  # a column of answers beside labels
    assert load(photos / "t.csv", annotators=("ann",)).votes.max() >= 0


def test_columns__a_label_beside_them_and_class_indices(photos: Path) -> None:
    (photos / "t.csv").write_text("image,label,a,b\n0.png,owl,0,2\n1.png,,1,\n2.png,,-1,0\n")
    table = load(photos / "t.csv", classes=["cat", "dog", "owl"], annotators=("a", "b"))
    assert table.labels.tolist() == [2, -1, -1]
    assert table.votes.tolist() == [[0, 2], [1, -1], [-1, 0]]


def test_columns__of_several_files_where_one_lacks_an_annotator(photos: Path) -> None:
    (photos / "a.csv").write_text("image,ann,bob\n0.png,cat,dog\n")
    (photos / "b.csv").write_text("image,ann\n1.png,dog\n")
    with pytest.raises(DataError, match="no column 'bob' of an annotator") as caught:
        load([photos / "a.csv", photos / "b.csv"], annotators=("ann", "bob"))
    assert [problem.kind for problem in caught.value.problems] == ["missing_column"]


def test_columns__an_answer_that_is_no_class_is_named(photos: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(photos, "csv"), classes=["cat", "dog"], annotators=("ann", "bob"))
    problem = caught.value.problems[0]
    assert (problem.kind, problem.row) == ("unknown_candidate", 1)
    assert problem.detail == "bob answers 'owl', which is not a class"


def test_columns__beside_candidates_are_refused(photos: Path) -> None:
    path = write(photos, "csv", candidates=["cat", "dog", "owl", "cat"])
    with pytest.raises(ConfigError, match="'candidates' holds candidates"):
        load(path, annotators=("ann",))


def test_columns__of_a_folder_are_refused(photos: Path) -> None:
    (photos / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(photos / "cat" / "x.png")
    with pytest.raises(DataError, match="has no columns"):
        load(photos, annotators=("ann",))


def test_columns__of_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"embedding": list(np.eye(4, dtype=np.float32)), "ann": ANN, "bob": BOB}), path)
    table = load_embeddings(path, annotators=("ann", "bob")).table
    assert table.votes.tolist() == VOTES
    assert load_embeddings(path, classes=["cat", "dog"]).table.votes is None
    np.savez(tmp_path / "t.npz", embeddings=np.eye(4))
    with pytest.raises(ConfigError, match="has no columns"):
        load_embeddings(tmp_path / "t.npz", annotators=("ann",))


@pytest.mark.parametrize("kind", ["csv", "embeddings"])
def test_long__an_image_each(photos: Path, kind: str) -> None:
    """Nobody answers about an image again: the column of people holds no class, so labels are their answers."""
    rows = [("w1", "0.png", "cat"), ("w2", "1.png", "dog"), ("w1", "2.png", "dog"), ("w3", "3.png", "owl")]
    source = photos / ("t.csv" if kind == "csv" else "t.parquet")
    if kind == "csv":
        source.write_text("who,image,label\n" + "".join(",".join(row) + "\n" for row in rows))
    else:
        who, ids, said = (list(column) for column in zip(*rows, strict=True))
        alike = [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]  # a copy has an id of its own
        pq.write_table(pa.table({"who": who, "id": ids, "label": said, "embedding": alike}), source)
    asked = {"annotators": ("who",)}
    table = load(source, **asked) if kind == "csv" else load_embeddings(source, **asked).table
    assert (table.annotators, table.class_names) == (("w1", "w2", "w3"), ("cat", "dog", "owl"))
    assert table.votes.tolist() == [[0, -1, -1], [-1, 1, -1], [1, -1, -1], [-1, -1, 2]]
    assert (table.labels == -1).all()


def test_columns__answers_beside_verified_labels_stay_answers(photos: Path) -> None:
    """Another class than every verified label, and yet no person's name."""
    (photos / "t.csv").write_text("image,who,label\n0.png,dog,cat\n1.png,dog,\n2.png,dog,\n")
    table = load(photos / "t.csv", annotators=("who",))
    assert (table.annotators, table.labels.tolist(), table.votes.tolist()) == (("who",), [0, -1, -1], [[1], [1], [1]])


def test_answers__a_misspelled_class_and_a_mistyped_column_are_named(photos: Path) -> None:
    answers = ["ant,ant", "ant,ant", "ant,antt", "bee,bee"]
    rows = [
        f"{image.relative_to(photos)},{one}" for image, one in zip(sorted(photos.rglob("*.png")), answers, strict=False)
    ]
    (photos / "t.csv").write_text("\n".join(["image,ann,bob", *rows]), encoding="utf-8")
    found = [
        each.detail for each in load(photos / "t.csv", annotators=("ann", "bob")).problems if each.kind == "odd_class"
    ]
    assert found[0] == "'antt' for 'ant' is perhaps misspelled: then mend it in the data"
    with pytest.raises(DataError) as raised:
        load(photos / "t.csv", annotators=("ann", "bop"))
    assert raised.value.fix == "did you mean 'bob'?"
