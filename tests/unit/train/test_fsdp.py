"""A tower in shares, one a process, learns what it learns whole, and its checkpoints are those of a whole one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny_tower
from labelwright import cli, launch
from labelwright.errors import ConfigError
from labelwright.train import fsdp


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    """What two processes with FSDP make of the runs of tiny_tower, and where."""
    out = tmp_path_factory.mktemp("shared")
    assert tiny_tower.trained("ce", folder=out / "begun", stop_at=9) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true"}
    children = [
        subprocess.Popen(
            [sys.executable, tiny_tower.__file__, str(out)],
            env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [child.communicate(timeout=300)[1] for child in children]  # of both: one ends because of the other
        assert not any(child.returncode for child in children), "\n".join(errors)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return out, torch.load(out / "state.pt", weights_only=True)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for path, tensor in one.items():
        assert torch.allclose(tensor, two[path], rtol=0, atol=1e-5), path


@pytest.mark.slow
@pytest.mark.parametrize("name", [*tiny_tower.RUNS, "parts"])
def test_shares__learn_what_a_whole_one_learns(name: str, shared: tuple[Path, dict[str, dict[str, Tensor]]]) -> None:
    same(tiny_tower.trained("ce" if name == "parts" else name), shared[1][name])


@pytest.mark.slow
def test_shares__go_on_with_a_run_of_one_process_and_one_process_with_theirs(
    shared: tuple[Path, dict[str, dict[str, Tensor]]],
) -> None:
    whole = tiny_tower.trained("ce")
    same(whole, shared[1]["resumed"])
    same(whole, tiny_tower.trained("ce", folder=shared[0] / "of-two"))


def test_fsdp__is_seen_by_us_alone_and_refused_where_nothing_is_tuned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("LABELWRIGHT_FSDP", "")
    monkeypatch.delenv("LABELWRIGHT_FSDP")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(["label", "run", "photos", "--out", "labels.csv"]) == 2
    assert "label trains nothing that --use_fsdp could share out" in capsys.readouterr().err
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert launch.asks_for_fsdp()
    fsdp.check_tunes(False)  # of one process nothing is shared out
    monkeypatch.setattr(fsdp, "n_processes", lambda: 2)
    fsdp.check_tunes(True)
    with pytest.raises(ConfigError, match="this run tunes none"):
        fsdp.check_tunes(False)
