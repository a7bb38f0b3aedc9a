"""A run in a process of its own, killed or interrupted at moments that nobody chose, then resumed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from labelwright.run_folder import Run
from labelwright.train import checkpoint

SCRIPT = Path(__file__).parents[2] / "tiny_run.py"
WAIT_S = 120.0  # for anything: the machine may be busy

HELDOUT = {
    "name": "cvs",
    "counts": [24, 16, 8],
    "settings": {
        "epochs": 8,
        "batch_size": 8,
        "kappa_from": "heldout",
        "heldout_frac": 0.25,
        "heldout_min_rows": 0,
        "sam_radius": 0.05,
    },
}
BATCHES = {
    "name": "cvs",
    "counts": [24, 16, 8],
    "settings": {"epochs": 8, "batch_size": 8, "kappa_from": "batches", "rho": 0.5, "mixup_alpha": 0.2},
}
CAP = {
    "name": "cap",
    "counts": [24, 16, 8],
    "settings": {"epochs": 8, "steps_per_epoch": 4, "batch_size": 8, "start_size": 2, "patience_epochs": 0},
}


@contextlib.contextmanager
def started(out: Path, wanted: dict[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "error::UserWarning", str(SCRIPT), str(out), json.dumps(wanted)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def wait_until(child: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not reached():
        assert child.poll() is None, f"ended too soon: {child.communicate()[1]}"
        assert time.monotonic() - began < WAIT_S
        time.sleep(0.005)


def place(out: Path) -> tuple[int, int]:
    """Epoch and step of the newest checkpoint; one can be read whenever it is looked at."""
    saved = checkpoint.newest(out / "checkpoints" / "last.pt")
    return (-1, 0) if saved is None else (saved["epoch"], saved["step"])


def resumed(out: Path, wanted: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Run what is left, here; the final state, and metrics.jsonl but for how fast it went."""
    run = Run(out)
    trained, _ = tiny.run_method(run=run, **wanted)
    run.close()
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    timeless = [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]
    return tiny.tensors_of(trained.state), timeless


def assert_same(tmp_path: Path, wanted: dict[str, Any]) -> None:
    """What was cut, once resumed, against a run that was never cut."""
    (tensors, records), (others, other_records) = (resumed(tmp_path / name, wanted) for name in ("whole", "cut"))
    assert tensors.keys() == others.keys()
    assert [path for path in tensors if not torch.equal(tensors[path], others[path])] == []
    assert [record["epoch"] for record in records if record["kind"] == "epoch"] == list(range(8))
    assert records == other_records


def stop_inside_an_epoch(child: "subprocess.Popen[str]", out: Path) -> None:
    """Halt the process, look, and let it go on until it stands between two steps of an epoch."""
    while True:
        child.send_signal(signal.SIGSTOP)
        if place(out)[1] > 0:
            return
        child.send_signal(signal.SIGCONT)
        time.sleep(0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "n_kills"),
    [(HELDOUT, 2), (BATCHES, 2), (CAP, 2)],
    ids=["heldout, sharpness-aware", "batches, mixup", "class names"],
)
def test_kill__at_random_moments_changes_nothing(tmp_path: Path, wanted: dict[str, Any], n_kills: int) -> None:
    cut, draws, places = tmp_path / "cut", random.Random(3), []
    for kill in range(n_kills):
        before = place(cut)
        # A checkpoint after every step and a rest inside each: the kill falls into steps, into writes, between epochs.
        with started(cut, {**wanted, "checkpoint_minutes": 0.0, "rest_s": 0.03}) as child:
            wait_until(child, lambda before=before: place(cut) > max(before, (0, 0)))  # a step at least, however slow
            time.sleep(draws.uniform(0.0, 0.3))
            if kill == 1:
                stop_inside_an_epoch(child, cut)
            child.send_signal(signal.SIGKILL)
            assert child.wait(WAIT_S) == -signal.SIGKILL
        places.append(place(cut))
    assert places == sorted(set(places))  # each went on from where the last was killed
    assert (0, 0) < places[0] <= places[-1] < (8, 0)
    assert places[1][1] > 0  # in the middle of an epoch
    assert_same(tmp_path, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt__leaves_a_checkpoint_of_the_step_under_way(tmp_path: Path, number: int) -> None:
    cut = tmp_path / "cut"
    with started(cut, {**BATCHES, "rest_s": 0.1}) as child:  # checkpoints only at the end of epochs
        wait_until(child, lambda: place(cut) >= (1, 0))
        time.sleep(0.25)  # of 0.6 s an epoch
        child.send_signal(number)
        errors = child.communicate(timeout=WAIT_S)[1]
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    epoch, step = place(cut)
    assert 1 <= epoch < 8
    assert step > 0
    assert_same(tmp_path, BATCHES)


@pytest.mark.slow
def test_interrupt__twice_stops_at_once(tmp_path: Path) -> None:
    long = {**BATCHES, "rest_s": 30.0, "began": str(tmp_path / "began")}
    with started(tmp_path, long) as child:
        wait_until(child, lambda: (tmp_path / "began").exists())
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert child.poll() is None  # the first waits for the step to end
        child.send_signal(signal.SIGINT)
        began = time.monotonic()
        errors = child.communicate(timeout=WAIT_S)[1]
        assert time.monotonic() - began < 10.0  # far less than the rest in the step
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert place(tmp_path) == (-1, 0)  # nothing had been saved, and nothing was saved in a hurry
