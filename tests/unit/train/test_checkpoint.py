from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from labelwright.errors import DataError, DiskError
from labelwright.train import checkpoint
from labelwright.types import State

PAYLOAD = {"format": checkpoint.FORMAT, "n": 3, "nested": {"x": torch.arange(4)}}


def test_save_then_load(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save_atomically(PAYLOAD, path)
    assert torch.load(path, weights_only=True)["n"] == 3
    assert checkpoint.load(path)["nested"]["x"].tolist() == [0, 1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_save__torn_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_atomically(PAYLOAD, path)
    old = path.read_bytes()

    def torn(payload: Any, file: Any) -> None:
        file.write(old[: len(old) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(DiskError, match=r"last\.pt cannot be written: disk full"):
        checkpoint.save_atomically({**PAYLOAD, "n": 4}, path)
    assert path.read_bytes() == old
    assert checkpoint.load(path)["n"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_save__sweeps_up_after_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.99999.tmp").write_bytes(b"half")
    (tmp_path / ".other.pt.99999.tmp").write_bytes(b"not ours")
    checkpoint.save_atomically(PAYLOAD, tmp_path / "last.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.pt.99999.tmp", "last.pt"]


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, ("/nowhere",))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a checkpoint"),
        lambda path: torch.save({"model": torch.zeros(2)}, path),
        lambda path: torch.save({"format": 99}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"format": 1, "x": Harmful()}, path),  # weights_only refuses to run what it reads
    ],
    ids=["empty", "text", "other keys", "other format", "a list", "code"],
)
def test_load__foreign_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "last.pt"
    write(path)
    with pytest.raises(DataError, match=r"last\.pt (is not|cannot be read as) a checkpoint") as caught:
        checkpoint.load(path)
    assert caught.value.fix


def test_load__cut_short(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_atomically(PAYLOAD, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        checkpoint.load(path)


def test_newest__an_altered_one_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.pt"
    assert checkpoint.newest(path) is None
    for n in (1, 2, 3):
        checkpoint.save_atomically({"format": checkpoint.FORMAT, "n": n, "x": torch.full((99,), float(n))}, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((99,), 3.0).numpy().tobytes())
    content[at + 5] ^= 1  # a bit of a number: torch.load says nothing
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["n"] == 3
    found = checkpoint.newest(path)
    assert found is not None
    assert (found["n"], found["x"][0].item()) == (2, 2.0)
    assert "was altered); going on from previous.pt" in capsys.readouterr().err.replace("\n", " ")
    path.unlink()  # a kill between two renames
    assert (checkpoint.newest(path) or {})["n"] == 2
    path.with_name("previous.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"previous\.pt cannot be read"):
        checkpoint.newest(path)


def test_state__goes_out_and_comes_back(tmp_path: Path) -> None:
    def fresh(value: float) -> State:
        net = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(net.weight, value)
        return State(nets={"main": net}, adjust={"kappa": torch.full((2,), value)}, memory={"q": {"n": int(value)}})

    saved, other = fresh(5.0), fresh(0.0)
    checkpoint.save_atomically({"format": checkpoint.FORMAT, **checkpoint.state_dict(saved)}, tmp_path / "last.pt")
    net = other.nets["main"]
    back = checkpoint.load_state(other, checkpoint.load(tmp_path / "last.pt"), torch.device("cpu"))
    assert back.nets["main"] is net  # in place: the optimizer holds its parameters
    assert torch.equal(net.weight, saved.nets["main"].weight)
    assert back.adjust["kappa"].tolist() == [5.0, 5.0]
    assert back.memory["q"]["n"] == 5
