"""Corrections: labels of a person in place of those of the data, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from labelwright import cli
from labelwright.data.corrections import corrected, read_corrections
from labelwright.data.prepare import prepare
from labelwright.data.read import load
from labelwright.errors import DataError
from labelwright.pipeline.promises import read_verified
from pictures import write_folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "photos", {"ant": 6, "bee": 6})


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / ("corrections.jsonl" if lines[0].startswith("{") else "corrections.csv")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prepare__corrected_labels_are_given_labels(photos: Path, tmp_path: Path) -> None:
    (photos / "unlabeled").mkdir()
    (photos / "ant" / "5.png").rename(photos / "unlabeled" / "5.png")
    path = write(tmp_path, "label,id", "bee,ant/0.png", "ant,unlabeled/5.png", '"ant","bee/1.png"')
    found = prepare(photos, test_frac=0.0, corrections=path).train.table
    plain = prepare(photos, test_frac=0.0).train.table
    moved = {
        key: found.class_names[label]
        for key, label, was in zip(found.ids.to_pylist(), found.labels, plain.labels, strict=True)
        if label != was
    }
    assert moved == {"ant/0.png": "bee", "unlabeled/5.png": "ant", "bee/1.png": "ant"}
    assert found.fingerprint != plain.fingerprint
    assert found.how_read == ["3 corrections, 3 of which change what the data say"]
    again = prepare(photos, test_frac=0.0, corrections=[path, {"ant/0.png": "ant"}]).train.table  # the last counts
    assert again.labels[again.ids.to_pylist().index("ant/0.png")] == 0
    assert again.labels[again.ids.to_pylist().index("bee/1.png")] == 0
    assert prepare(photos, test_frac=0.0, corrections={"ant/0.png": "ant"}).train.table.fingerprint == plain.fingerprint


def test_prepare__a_corrected_label_mends_the_row_that_it_was_wrong_in(photos: Path, tmp_path: Path) -> None:
    path, names = tmp_path / "answers.csv", tmp_path / "names.txt"
    names.write_text("ant\nbee\n", encoding="utf-8")
    wrong = ["photos/ant/0.png,Antt,ant", "photos/bee/0.png,bee,Bbee", "photos/bee/1.png,bee,beee"]
    path.write_text("\n".join(["image,ann,bob", *wrong, "photos/ant/1.png,ant,ant"]), encoding="utf-8")
    given = {"test_frac": 0.0, "classes": names, "annotators": ("ann", "bob"), "on_bad": "skip"}
    corrections = {"photos/ant/0.png": "ant", "photos/bee/0.png": "bee"}
    found = prepare(path, **given, corrections=corrections).train.table
    assert found.ids.to_pylist() == ["photos/ant/0.png", "photos/bee/0.png", "photos/ant/1.png"]
    assert found.labels.tolist() == [0, 1, -1]
    assert [each.where for each in found.quarantined] == [f"{path} line 4"]


def test_prepare__an_empty_label_takes_the_label_away(photos: Path, tmp_path: Path) -> None:
    found = prepare(photos, test_frac=0.0, corrections=write(tmp_path, "id,label", "ant/0.png,", "bee/0.png,")).train
    gone = [key for key, label in zip(found.table.ids.to_pylist(), found.table.labels, strict=True) if label < 0]
    assert gone == ["ant/0.png", "bee/0.png"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("id,label", "ant/99.png,bee"), r"line 2: no image has the id 'ant/99.png'"),
        (("id,label", "ant/0.png,bees"), r"line 2: label 'bees' is not one of the 2 classes; did you mean 'bee'\?"),
        (("id,label", "ant/0.png,BEE", "ant/1.png,ant", "ant/2.png,x"), r"did you mean 'bee'\?; wrong rows: 2"),
        (
            ("id,label", "ant/0.png,nan"),
            r"'nan' is no class; an empty cell takes the label away, and without the row it",
        ),
        (("id,label", ",bee"), r"line 2 has no id"),
        (("id,label", "ant/0.png,bee", "ant/0.png,ant"), r"line 3: 'ant/0.png' is 'ant' here and 'bee' above"),
        (("image,label", "ant/0.png,bee"), r"has no column 'id'"),
        (("id,label", "ant/0.png,bee", "ant/1.png"), r"line 3: 1 values for 2 columns"),
        (("id,label,label", "ant/0.png,bee,ant"), r"has 2 columns called 'label'"),
        (("id,label", "ant/0.png,\"['ant', 'bee']\""), r"line 2: the label is not one text"),
        (("id,label", 'ant/0.png,"bee'), r"line 2: a quote that is not closed"),
        (('{"id": "ant/0.png", "label": "bee"}', '{"id": 1'), r"line 2: not a JSON object"),
    ],
)
def test_prepare__what_cannot_be(photos: Path, tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        prepare(photos, corrections=write(tmp_path, *lines))


def test_prepare__classes_that_corrections_alone_name(photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.iterdir() if path.is_dir())
    table = load(photos)
    first, second = table.ids.to_pylist()[:2]
    given = {first: "okapi", second: ""}
    found = prepare(photos, novel="auto", corrections=given, test_frac=0).train.table
    assert found.class_names == (*names, "okapi")
    assert found.labels[:2].tolist() == [len(names), -1]
    assert any("corrections alone name: okapi" in each.detail for each in found.problems)
    with pytest.raises(DataError, match=r"'okapi' is not one of"):
        prepare(photos, corrections=given, test_frac=0)
    with pytest.raises(DataError, match=r"'okapi' is not one of"):
        prepare(photos, novel="auto", classes=names, corrections=given, test_frac=0)
    with pytest.raises(DataError, match=rf"did you mean {names[0]!r}"):
        prepare(photos, novel="auto", corrections={first: names[0].upper()}, test_frac=0)
    with pytest.raises(
        DataError, match=r"'novel-3' is a discovered class that has no name yet\s*fix: [^\n]*review RUN"
    ):
        prepare(photos, novel="auto", corrections={first: "novel-3"}, test_frac=0)
    truth = dataclasses.replace(table, truth=table.labels, truth_names=(*table.class_names, "emu", "okapi"))
    truth.truth[0] = len(names) + 1
    found = corrected(truth, {first: "okapi"}, may_add=True)
    assert found.truth_names == (*names, "okapi", "emu")
    assert found.truth[0] == found.labels[0] == len(names)


def test_prepare__booleans_are_classes_however_they_are_written(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", {"True": 4, "False": 4})
    path = write(tmp_path, "id,label", "True/0.png,FALSE", "True/1.png,false", "False/0.png,TRUE")
    found = prepare(photos, corrections=str(path), test_frac=0).train.table
    assert found.class_names == ("False", "True")
    assert found.labels.tolist() == [1, 0, 0, 0, 0, 0, 1, 1]
    rows = pd.DataFrame({"image": [str(photos / "True" / "0.png"), str(photos / "False" / "0.png")]})
    rows = rows.assign(label=[True, False])
    assert load(rows, classes=["True", "False"]).labels.tolist() == [0, 1]
    assert load(rows, classes=["True", "true", "False"], on_bad="skip").labels.tolist() == [1, 2]
    verified = tmp_path / "verified.csv"
    verified.write_text("id,verified\na,TRUE\nb,false\n", encoding="utf-8")
    assert read_verified(verified, ["False", "True"]).labels == {"a": 1, "b": 0}


def test_prepare__accents_numbers_and_empty_rows_as_programs_write_them(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", {"Gr\u00f6\u00dfe": 3, "1": 3})
    lines = ("1/0.png,Gro\u0308\u00dfe", "Gro\u0308\u00dfe\\0.png,1.0", ",", ",")
    found = prepare(photos, corrections=write(tmp_path, "id,label", *lines), test_frac=0).train.table
    labels = dict(zip(found.ids.to_pylist(), (found.class_names[c] for c in found.labels), strict=True))
    assert (labels["1/0.png"], labels["Gr\u00f6\u00dfe/0.png"]) == ("Gr\u00f6\u00dfe", "1")
    verified = tmp_path / "verified.csv"
    verified.write_text("id,verified\na,Gro\u0308\u00dfe\nb,1.0\n,\n", encoding="utf-8")
    assert read_verified(verified, ["1", "Gr\u00f6\u00dfe"]).labels == {"a": 1, "b": 0}


def test_read_corrections__ids_with_line_breaks_and_of_other_tables(tmp_path: Path) -> None:
    named = write(tmp_path, "id,label,page", '"a\nb.png",bee,1', "'=c.png,ant,2")
    assert [row[1:] for row in read_corrections(named)] == [("a\nb.png", "bee"), ("=c.png", "ant")]
    lines = tmp_path / "corrections.jsonl"
    lines.write_text('{"id": "a\\nb.png", "label": "bee"}\n{"id": " c", "label": null}\n', encoding="utf-8")
    assert [row[1:] for row in read_corrections(lines)] == [("a\nb.png", "bee"), (" c", "")]


def test_fit__refuses_them_before_anything_is_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", str(photos), "--out", str(tmp_path / "run"), "--model", "resnet32"]
    assert cli.run([*words, "--corrections", str(tmp_path / "none.csv")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
