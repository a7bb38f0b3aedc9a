"""Folders as they are found on disks: links, leftovers, names and things that are no files."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelwright.data.checks import check_images
from labelwright.data.read import load
from labelwright.errors import DataError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            noise = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{i}.png")
    return tmp_path


def told(folder: Path) -> list[tuple[str, str, str]]:
    table = load(folder)
    assert len(table) == 6
    return [(os.path.relpath(p.where, folder), p.kind, p.detail) for p in (*table.problems, *check_images(table))]


def test_load__links_that_lead_back_are_passed_over_and_named(pets: Path) -> None:
    (pets / "cat" / "all").symlink_to("..")
    (pets / "dog" / "self").symlink_to("self")
    (pets / "cat" / "to_dog").symlink_to("../dog/to_cat")
    (pets / "dog" / "to_cat").symlink_to("../cat/to_dog")
    assert told(pets) == [
        ("cat/all", "skipped_folder", "a link to a folder above it"),
        ("cat/to_dog", "skipped_folder", "a link to itself"),
        ("dog/self", "skipped_folder", "a link to itself"),
        ("dog/to_cat", "skipped_folder", "a link to itself"),
    ]


def test_load__folders_that_link_to_each_other_end(pets: Path) -> None:
    (pets / "cat" / "dogs").symlink_to("../dog")
    (pets / "dog" / "cats").symlink_to("../cat")
    table = load(pets)
    assert {"cat/0.png", "cat/dogs/0.png", "dog/cats/0.png"} <= set(table.ids.to_pylist())
    assert len(table) == 12  # each folder under its own name and once through the link
    assert {p.kind for p in table.problems} == {"skipped_folder"}


def test_load__folders_left_behind_and_hidden_ones_are_named(pets: Path) -> None:
    for name in ("@eaDir", "cat/@eaDir", "cat/.ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", ".git"):
        (pets / name).mkdir()
        Image.new("RGB", (8, 8)).save(pets / name / "0.png")
    for name in ("cat/._0.png", "cat/.DS_Store", "dog/Thumbs.db", ".hidden.txt"):
        (pets / name).write_bytes(b"x")
    assert told(pets) == [
        ("$RECYCLE.BIN", "skipped_folder", "left behind by Windows"),
        (".git", "skipped_folder", "a hidden folder: its name begins with a dot"),
        ("@eaDir", "skipped_folder", "left behind by network storage"),
        ("lost+found", "skipped_folder", "left behind by the file system"),
        ("cat/._0.png", "skipped_folder", "a hidden file: its name begins with a dot"),
        ("cat/.ipynb_checkpoints", "skipped_folder", "a hidden folder: its name begins with a dot"),
        ("cat/@eaDir", "skipped_folder", "left behind by network storage"),
    ]


def test_load__a_name_that_is_not_utf8_stops_or_is_left_out(pets: Path) -> None:
    (pets / "cat" / "0.png").rename(os.fsdecode(os.fsencode(pets / "cat") + b"/caf\xe9.png"))
    (pets / "dog").rename(os.fsdecode(os.fsencode(pets) + b"/ch\xef\xe9n"))
    with pytest.raises(DataError, match="2 problems in the data: 2 unreadable_name") as stopped:
        load(pets)
    assert [p.where for p in stopped.value.problems] == [rf"{pets}/ch\xef\xe9n", rf"{pets}/cat/caf\xe9.png"]
    assert "not UTF-8" in stopped.value.problems[0].detail
    left = load(pets, on_bad="skip")
    assert left.ids.to_pylist() == ["cat/1.png", "cat/2.png"]
    assert left.quarantined == stopped.value.problems
    with pytest.raises(DataError, match=r"ch\\xef\\xe9n': the name of the path is not UTF-8"):
        load(os.fsdecode(os.fsencode(pets) + b"/ch\xef\xe9n"))


def test_load__pipes_and_other_things_that_are_no_files(pets: Path) -> None:
    os.mkfifo(pets / "cat" / "x.png")
    (pets / "dog" / "null.jpg").symlink_to("/dev/null")
    detail = "a pipe, a device or something else that is not a file"
    assert told(pets) == [("cat/x.png", "unsupported_file", detail), ("dog/null.jpg", "unsupported_file", detail)]


def test_check_images__of_a_table_that_names_pipes_folders_and_nonsense(pets: Path) -> None:
    os.mkfifo(pets / "x.png")
    long = "a" * 300 + "/" + "b" * 5000 + ".png"
    names = ["x.png", "cat", "gone.png", "cat/0.png", long]
    (pets / "table.csv").write_text("image,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    table = load(pets / "table.csv", on_bad="report")
    problems = (*table.problems, *check_images(table))
    assert {(p.row, p.kind) for p in problems if p.kind != "blank_image"} >= {
        (0, "unreadable_image"),
        (1, "unreadable_image"),
        (2, "missing_image"),
        (4, "missing_image"),
    }
    assert 3 not in {p.row for p in problems}


def test_load__a_folder_that_may_not_be_listed(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, looked_at = os.scandir, os.stat

    def refuse(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    def hide(path: object, **how: bool) -> os.stat_result:
        if f"{pets / 'dog'}{os.sep}" in str(path):
            raise PermissionError(13, "Permission denied")
        return looked_at(path, **how)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "stat", hide)
    monkeypatch.setattr(os, "scandir", refuse)  # who runs the tests may be root, who may list everything
    with pytest.raises(DataError, match="1 unreadable_folder") as stopped:
        load(pets)
    assert [(p.where, p.kind) for p in stopped.value.problems if p.kind != "empty_class"] == [
        (str(pets / "dog"), "unreadable_folder")
    ]
    assert "Permission denied" in str(stopped.value.problems)
    left = load(pets, on_bad="skip")
    assert len(left) == 3
    assert [p.kind for p in left.quarantined] == ["unreadable_folder"]


def test_load__the_other_suffixes_of_jpeg(pets: Path) -> None:
    for suffix in ("jpe", "JFIF", "mpo"):
        Image.new("RGB", (8, 8), "red").save(pets / "cat" / f"x.{suffix}", "jpeg")
    table = load(pets)
    assert len(table) == 9
    assert table.problems == ()
    assert table.image(table.ids.to_pylist().index("cat/x.mpo")).getpixel((0, 0)) == (254, 0, 0)
