import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import tiny
from labelwright.errors import ConfigError
from labelwright.train.processes import accelerator_for, autocast_dtype, gather_rows, mean_share, shard

SCRIPT = Path(__file__).parents[2] / "tiny_run.py"
SETTINGS = {"epochs": 5, "batch_size": 8, "lr": 0.2, "switch_frac": 0.6, "rho": 1.0, "kappa_decay": 0.997}
RUNS: dict[str, dict[str, Any]] = {
    # 20 + 8 + 8 rows: phase 1 of "heldout" visits 27 of them, phase 2 all 36, in batches of 8
    "batches": {"name": "cvs", "settings": {**SETTINGS, "kappa_from": "batches"}},
    "heldout": {
        "name": "cvs",
        "settings": {
            **SETTINGS,
            "kappa_from": "heldout",
            "heldout_frac": 0.25,
            "heldout_min_rows": 0,
            "sam_radius": 0.05,
        },
    },
    "class_balanced": {"name": "class_balanced", "settings": {"epochs": 2, "batch_size": 8, "effective_beta": 0.99}},
    **{
        f"{name}, pace+la": {
            "name": name,
            "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2, "adjust": "pace+la", **own},
        }
        for name, own in {
            "ce": {},
            "cvs": {"kappa_from": "none"},
            "cap": {"steps_per_epoch": 6, "confidence": 0.4, "patience_epochs": 0},
            "lps": {},
        }.items()
    },
    "cap": {
        "name": "cap",
        "settings": {
            "epochs": 3,
            "steps_per_epoch": 6,
            "batch_size": 8,
            "lr": 0.2,
            "confidence": 0.4,
            "patience_epochs": 0,
        },
    },
    "kd": {"name": "kd", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}},
    "proden": {"name": "proden", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}},
    "pico": {"name": "pico", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.05, "queue_size": 20}},
    "simclr": {"name": "simclr", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}},
    "coreg": {  # nothing is mixed on features: partners are drawn within a process
        "name": "coreg",
        "settings": {"epochs": 4, "batch_size": 8, "lr": 0.05, "queue_size": 20},
        "stored": True,
    },
    "coreg_frozen": {"name": "coreg_frozen", "settings": {"epochs": 4, "batch_size": 8, "lr": 0.2}},
    "lps": {"name": "lps", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}},
    "lps on features": {"name": "lps", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}, "stored": True},
    "orca": {"name": "orca", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}, "stored": True},
    "simgcd": {"name": "simgcd", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}, "stored": True},
}
TRAINS = {
    "cap": "nets.main.visual.up.weight",
    "pico": "nets.main.classifier.head.weight",
    "simclr": "nets.main.classifier.backbone.weight",
    "coreg": "nets.main.classifier.head.linear.weight",
    "coreg_frozen": "nets.main.head.linear.weight",
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes make of each of RUNS, as the first saved it."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    orders = {name: {**wanted, "counts": [20, 8, 8], "norm": False} for name, wanted in RUNS.items()}
    children = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), json.dumps(orders)],
            env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for child in children:
            errors = child.communicate(timeout=120)[1]
            assert child.returncode == 0, errors
    finally:
        for child in children:
            child.kill()
    found = [torch.load(out / f"state{i}.pt", weights_only=True) for i in range(2)]
    for name in RUNS:
        both = [found[i][name]["tensors"] for i in range(2)]
        assert [path for path in both[0] if not torch.equal(both[0][path], both[1][path])] == [], "processes disagree"
    return cast(dict[str, dict[str, Any]], found[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes__end_where_one_does(two_processes: dict[str, dict[str, Any]], name: str) -> None:
    wanted = RUNS[name]
    stored = wanted.get("stored", False)
    trained, _ = tiny.run_method(wanted["name"], [20, 8, 8], settings=wanted["settings"], norm=False, stored=stored)
    one, two = tiny.tensors_of(trained.state), two_processes[name]["tensors"]
    assert one.keys() == two.keys()
    for path in one:
        if one[path].is_floating_point():
            assert torch.allclose(one[path], two[path], rtol=0, atol=1e-5), path
        else:
            assert torch.equal(one[path], two[path]), path
    short = {**wanted["settings"], "epochs": 1}
    fresh, _ = tiny.run_method(wanted["name"], [20, 8, 8], settings=short, norm=False, stored=stored)
    trains = TRAINS.get(wanted["name"], "nets.main.head.weight")
    moved = (one[trains] - tiny.tensors_of(fresh.state)[trains]).abs().max()
    assert moved > 1e-3  # training went somewhere, a hundred tolerances away
    if "kappa_decay" in wanted["settings"]:
        assert (one["adjust.kappa_additive"] - 1).abs().max() > 1e-3  # and so did the slopes


def half(i: int) -> Any:
    return SimpleNamespace(process_index=i, num_processes=2)


def test_shard__deals_rows_in_turn() -> None:
    rows = torch.arange(6)
    assert [shard(rows, half(i)).tolist() for i in range(2)] == [[0, 2, 4], [1, 3, 5]]


def test_one_process__changes_nothing() -> None:
    x = torch.tensor([3, 1])
    assert gather_rows(x) is x
    assert float(mean_share(torch.tensor(0.0))) == 1.0


def test_accelerator_for__devices() -> None:
    assert accelerator_for("cpu").device.type == "cpu"
    assert accelerator_for("auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device 'tpu' is not known"):
        accelerator_for("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_accelerator_for__cuda_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        accelerator_for("cuda")


def test_autocast_dtype() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype(cpu, "fp32") is None
    assert autocast_dtype(cpu, "bf16") is torch.bfloat16
    assert autocast_dtype(cpu, "auto") in (None, torch.bfloat16)
    with pytest.raises(ConfigError, match="precision 'fp64' is not known"):
        autocast_dtype(cpu, "fp64")
