"""pipeline/audit.py: the verb, from images and from embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import labelwright as lw
from labelwright import cli
from labelwright.errors import ConfigError, DataError
from pictures import write_folders


def picture(seed: int) -> Image.Image:
    """Sixteen coloured squares."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight, with copies: exact in another format and class, re-saved, and one among test images."""
    for i in range(16):
        folder = tmp_path / "photos" / ("cat" if i < 8 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    picture(0).save(tmp_path / "photos" / "dog" / "0.bmp")
    picture(1).save(tmp_path / "photos" / "cat" / "1.jpg", quality=80)
    for i, name in ((2, "cat"), (20, "dog")):
        (tmp_path / "test" / name).mkdir(parents=True)
        picture(i).resize((48, 48)).save(tmp_path / "test" / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    """120 embeddings of three classes, ten of them under a wrong label, a row twice, one far from all."""
    draw = np.random.default_rng(0)
    truth = np.arange(120) % 3
    values = np.eye(3, 8)[truth] * 4 + draw.normal(size=(120, 8))
    labels = np.where(np.arange(120) < 10, (truth + 1) % 3, truth)
    values[50] = values[47]
    values[119] = 60
    split = np.where(np.arange(120) >= 100, "test", "train")
    values[110] = values[20]
    np.savez(
        tmp_path / "feats.npz",
        embeddings=values.astype(np.float32),
        labels=np.array(["ant", "bee", "cow"])[labels],
        split=split,
    )
    return tmp_path / "feats.npz"


def flags_of(rows: object, name: str) -> set[str]:
    return {r["id"] for r in rows.to_pylist() if name in r["flags"].split(",")}  # type: ignore[attr-defined]


def test_audit__copies_of_images(photos: Path) -> None:
    found = lw.audit(photos / "photos", test=photos / "test", model="none")
    assert flags_of(found.rows, "exact_copy") == {"cat/0.png", "dog/0.bmp"}
    assert flags_of(found.rows, "two_labels") == {"cat/0.png", "dog/0.bmp"}
    assert flags_of(found.rows, "near_copy") == {"cat/1.png", "cat/1.jpg", "cat/2.png"}
    by_id = {row["id"]: row for row in found.rows.to_pylist() if row["split"] == "train"}
    assert [key for key, row in by_id.items() if row["is_copy_in_test"]] == ["cat/2.png"]
    assert by_id["cat/1.png"]["duplicate_group"] == by_id["cat/1.jpg"]["duplicate_group"]
    assert Path(by_id["cat/1.png"]["path"]).is_file()
    assert found.summary["n_duplicate_groups"] == 3
    assert "need features" in found.summary["notices"][0]
    assert "label_score" not in found.rows.column_names


def test_audit__odd_images(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        picture(i).save(folder / f"{i}.png")
    picture(30).resize((10, 10)).save(folder / "tiny.png")
    picture(31).resize((400, 64)).save(folder / "wide.png")
    Image.new("RGB", (64, 64), (120, 10, 10)).save(folder / "blank.png")
    picture(32).point(lambda value: value // 10).save(folder / "dark.png")
    rows = lw.audit(folder, classes=["cat", "dog"], model="none").rows
    for name, odd in (("tiny", "tiny"), ("odd_aspect", "wide"), ("blank", "blank")):
        assert flags_of(rows, name) == {f"{odd}.png"}
    assert "dark.png" in flags_of(rows, "dark")
    assert set(rows["label"].to_pylist()) == {None}


def test_audit__embeddings(feats: Path) -> None:
    found = lw.audit(feats, fail_on=["wrong", "copies_in_test", "alike"])
    rows = found.rows.to_pylist()
    wrong = {i for i, row in enumerate(rows) if "wrong_label" in row["flags"]}
    assert len(wrong & set(range(10))) >= 8
    assert len(wrong - set(range(10))) <= 2
    assert [rows[i]["suspected_label"] for i in (3, 4, 5)] == ["ant", "bee", "cow"]
    assert {i for i, row in enumerate(rows) if "exact_copy" in row["flags"]} == {47, 50, 20, 110}
    assert [i for i, row in enumerate(rows) if row["is_copy_in_test"]] == [20]
    outliers = {i for i, row in enumerate(rows) if "outlier" in row["flags"].split(",")}
    assert 119 in outliers
    assert len(outliers) <= 2
    assert found.failed == ("wrong", "copies_in_test")
    assert found.summary["worst"][0]["label_score"] < 0.2


def test_audit__files(feats: Path) -> None:
    whole = lw.audit(feats, out=feats.with_name("a.parquet")).rows
    assert pq.read_table(feats.with_name("a.parquet")).equals(whole)
    lw.audit(feats, out=feats.with_name("a.csv"))
    assert pa_csv.read_csv(feats.with_name("a.csv")).num_rows == 120
    with pytest.raises(ConfigError, match=r"a\.csv exists"):
        lw.audit(feats, out=feats.with_name("a.csv"))


def test_audit__a_model_sees_the_images(photos: Path) -> None:
    rows = lw.audit(photos / "photos", model="labelwright/digits-clip", device="cpu").rows
    assert {"label_score", "suspected_label", "outlier_score"} <= set(rows.column_names)
    assert flags_of(rows, "near_copy") == {"cat/1.png", "cat/1.jpg"}


def test_audit__colours_and_edges_where_no_model_is_at_hand(tmp_path: Path) -> None:
    """Each class has its own brightness; one image lies in the wrong folder."""
    photos = write_folders(tmp_path / "photos", {"ant": 20, "bee": 20, "cow": 20}, size_px=12)
    (photos / "ant" / "0.png").rename(photos / "cow" / "strayed.png")
    found = lw.audit(photos)
    assert found.summary["features"] == "descriptor"
    assert any("colours and edges" in notice for notice in found.summary["notices"])
    suspected = found.rows.filter(pa.array(["wrong_label" in flags for flags in found.rows["flags"].to_pylist()]))
    assert [Path(name).name for name in suspected["id"].to_pylist()] == ["strayed.png"]
    assert suspected["suspected_label"].to_pylist() == ["ant"]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"fail_on": "wrong,typo"}, "--fail-on typo"),
        ({"out": "a.txt"}, "neither .csv nor .parquet"),
        ({"model": "resnet32"}, "random weights"),
        ({"model": "none", "fail_on": "wrong"}, "cannot be looked for"),
    ],
)
def test_audit__what_cannot_be(photos: Path, how: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        lw.audit(photos / "photos", **how)  # type: ignore[arg-type]


def test_audit__sources_that_do_not_fit(photos: Path, feats: Path) -> None:
    with pytest.raises(DataError, match="holds embeddings, the data images"):
        lw.audit(photos / "photos", test=feats, model="none")
    np.savez(photos / "other.npz", embeddings=np.ones((4, 3)), labels=["ant", "bee", "cow", "ant"])
    with pytest.raises(DataError, match="holds 3 features"):
        lw.audit(feats, test=photos / "other.npz")
    with pytest.raises(ConfigError, match="nothing to work on"):
        lw.audit(feats, model="labelwright/digits-clip")
    (photos / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 unreadable_image"):
        lw.audit(photos / "photos", model="none")
    found = lw.audit(photos / "photos", model="none", on_bad="skip")
    assert len(found.rows) == 18
    assert found.summary["left_out"][0]["kind"] == "unreadable_image"


def test_audit__command(feats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", str(feats), "--out", str(feats.with_name("rows.csv"))]) == 0
    told = capsys.readouterr().out
    assert "120 images, 120 labelled, 3 classes" in told
    assert "labels that are probably wrong" in told
    assert cli.run(["audit", str(feats), "--json", "--fail-on", "outliers,odd"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["outliers"]
    assert cli.run(["audit", str(feats), "--fail-on", "alike"]) == 0
    assert cli.run(["audit", str(feats), "--fail-on", "nothing"]) == 2


def test_fit__training_images_among_the_test_images_are_a_warning(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values, labels = draw.normal(size=(40, 4)) + 3 * np.eye(4)[np.arange(40) % 2], np.arange(40) % 2
    np.savez(tmp_path / "train.npz", embeddings=values, labels=labels, class_names=["ant", "bee"])
    np.savez(tmp_path / "test.npz", embeddings=values[30:], labels=labels[30:], class_names=["ant", "bee"])
    how = {"method": "nearest_mean", "device": "cpu"}
    run = lw.fit(tmp_path / "train.npz", test=str(tmp_path / "test.npz"), out=tmp_path / "run", **how)
    assert [text for text in run.summary["warnings"] if text.startswith("10 of the training images")]
    run = lw.fit(tmp_path / "train.npz", out=tmp_path / "other", **how)
    assert not [text for text in run.summary["warnings"] if "training images are" in text]


def test_audit__columns_in_units_of_their_own__no_copies_and_the_wrong_label_is_found(tmp_path: Path) -> None:
    """One column in thousands, by which many rows look alike, says nothing of the class."""
    draw = np.random.default_rng(0)
    truth = np.arange(90) % 3
    feats = 4 * np.eye(12)[truth] + draw.standard_normal((90, 12))
    feats[:, 11] = 1000 * draw.integers(1, 4, 90)
    given = np.where(np.arange(90) == 7, 2, truth)
    np.savez(tmp_path / "units.npz", embeddings=feats.astype(np.float32), labels=np.array(["a", "b", "c"])[given])
    found = lw.audit(tmp_path / "units.npz")
    assert found.summary["counts"]["near_copy"] == 0
    assert found.summary["counts"]["wrong_label"] == 1
    assert found.summary["worst"][0]["id"] == found.rows["id"][7].as_py()
    assert any("deviate by" in notice for notice in found.summary["notices"])


def test_audit__embeddings_are_grouped_by_the_column_that_is_named(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    truth = np.arange(60) % 2
    np.save(tmp_path / "feats.npy", (np.eye(8)[truth] + draw.standard_normal((60, 8))).astype(np.float32))
    lines = ["label,place", *(f"{'ab'[c]},{c}" for c in truth)]  # a place for each class
    (tmp_path / "feats.csv").write_text("\n".join(lines), encoding="utf-8")
    assert any("not judged" in notice for notice in lw.audit(tmp_path / "feats.npy", group="place").summary["notices"])
    with pytest.raises(DataError, match="no column 'site' to group by"):
        lw.audit(tmp_path / "feats.npy", group="site")
