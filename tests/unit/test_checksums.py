"""Altered content is found: anywhere in a file of few blocks, at its ends and by chance in a large one."""

from pathlib import Path

import pytest

from labelwright import checksums
from labelwright.errors import DataError
from labelwright.replacing import replacing


@pytest.mark.parametrize("n", [0, 1, 8, 9, 80])
def test_fault__every_byte_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(checksums, "BLOCK", 8)
    path, content = tmp_path / "a", bytes(range(n))
    path.write_bytes(content)
    sums = checksums.sums_of(path)
    assert (sums["size"], len(sums["blocks"])) == (n, -(-n // 8))
    assert checksums.fault(path, sums) is None
    for at in range(n):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "has other content" in (checksums.fault(path, sums) or "")
    path.write_bytes(content + b"x")
    assert checksums.fault(path, sums) == f"has {n + 1} bytes and had {n}"


def test_fault__of_a_large_file_a_sample_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK", 8)
    monkeypatch.setattr(checksums, "SAMPLED", 4)
    path, content = tmp_path / "a", bytearray(80)
    path.write_bytes(content)
    sums = checksums.sums_of(path)
    for at in (0, 79):
        path.write_bytes(content[:at] + b"x" + content[at + 1 :])
        assert checksums.fault(path, sums)
    content[40] = 1  # two of eight blocks in the middle are looked at, others each time
    path.write_bytes(content)
    assert {checksums.fault(path, sums) is None for _ in range(200)} == {True, False}
    assert checksums.fault(path, sums, sampled=False) == "has other content in bytes 40 to 48"


@pytest.mark.parametrize("sums", [None, {}, {"size": "x", "blocks": []}, {"size": 3, "blocks": 5}])
def test_fault__sums_that_were_edited(tmp_path: Path, sums: object) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert "cannot be compared" in (checksums.fault(tmp_path / "a", sums) or "")


def test_renewed__a_kill_between_leaves_a_file_without_a_sum(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "weights"
    path.write_bytes(b"old")
    checksums.keep(tmp_path, ["model/weights"])

    def killed() -> None:
        with checksums.renewed(path):
            path.write_bytes(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    checksums.check(path)  # what is there has no sum: nothing is refused that nobody altered
    assert checksums.read(tmp_path) == {}
    checksums.keep(tmp_path, ["model/weights"])
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    checksums.check(path)
    path.write_bytes(b"won")
    with pytest.raises(DataError, match=r"weights has other content: it was altered after labelwright wrote it"):
        checksums.check(path)
