"""A file appears whole, or stays as it was."""

from pathlib import Path

import pytest

from labelwright.errors import ConfigError, DiskError
from labelwright.replacing import check_output, new_output, replacing


def test_replacing__an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise OSError("the disk is full")

    with pytest.raises(DiskError, match=r"a\.txt cannot be written: the disk is full"):
        fail()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


def test_new_output__new_and_of_a_known_kind(tmp_path: Path) -> None:
    kinds = (".csv", ".parquet", "")
    for name in ("a.csv", "a.parquet", "folder", "not/yet/there.csv"):
        assert new_output(tmp_path / name, *kinds) == tmp_path / name
    (tmp_path / "a.csv").touch()
    with pytest.raises(ConfigError, match="exists"):
        new_output(tmp_path / "a.csv", *kinds)
    with pytest.raises(ConfigError, match=r"neither \.csv, \.parquet nor a folder"):
        new_output(tmp_path / "a.txt", *kinds)
    with pytest.raises(ConfigError, match=r"not a \.parquet file"):
        new_output(tmp_path / "a.txt", ".parquet")


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run", "{tmp}/file/run", "{tmp}/" + "x" * 256, "{tmp}/a\0b"])
def test_check_output__what_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check_output(Path(place.format(tmp=tmp_path)))
    assert "--out" in caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_check_output__not_in_the_data(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for inside in ("photos/run", "link/cat/run", "photos/../photos/run"):
        with pytest.raises(ConfigError, match="lies in the data"):
            check_output(tmp_path / inside, None, str(tmp_path / "photos"))
    check_output(tmp_path / "photos" / ".hidden" / "run", tmp_path / "photos")
    check_output(tmp_path / "photos-run", tmp_path / "photos", tmp_path / "photos.csv")


def test_replacing__has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a", durable=True) as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)  # as safetensors leaves a file
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
