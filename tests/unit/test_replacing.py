"""A file appears whole, or stays as it was."""

from pathlib import Path

import pytest

from labelwright.replacing import replacing


def test_replacing__an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])
