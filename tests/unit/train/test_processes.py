import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tiny
from labelwright import cli
from labelwright.encoders.store import Sharing
from labelwright.errors import ConfigError, TrainingError
from labelwright.run_folder import Run
from labelwright.train import predict, processes
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
    "simclr in parts": {"name": "simclr", "settings": {"epochs": 3, "batch_size": 8, "lr": 0.2}, "accumulate": 2},
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
    begin_with_one(out / "begun")
    write_photos(out)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    orders = {name: {**wanted, "counts": [20, 8, 8], "norm": False} for name, wanted in RUNS.items()}
    orders["resumed"] = {**orders["batches"], "resumes": "begun"}
    for name, words in VERBS.items():
        orders[name] = {"verb": [word.replace("OUT", str(out)) for word in [*words, f"OUT/{name}-of-two.parquet"]]}
    children = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), json.dumps(orders)],
            env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for i, child in enumerate(children):
            printed, errors = child.communicate(timeout=300)
            assert child.returncode == 0, errors
            assert bool(printed) == (i == 0), "the main process alone prints"
    finally:
        for child in children:
            child.kill()
    found = [torch.load(out / f"state{i}.pt", weights_only=True) for i in range(2)]
    for name in RUNS:
        both = [found[i][name]["tensors"] for i in range(2)]
        assert [path for path in both[0] if not torch.equal(both[0][path], both[1][path])] == [], "processes disagree"
    return {**found[0], "out": out}


def begin_with_one(folder: Path) -> None:
    """A run that ends as if interrupted, on one process: a checkpoint in its second epoch."""
    run, settings = Run(folder), RUNS["batches"]["settings"]
    steps = 0

    def check_there() -> None:
        nonlocal steps
        steps += 1
        if steps == 7:  # of saves, one a step
            raise KeyboardInterrupt

    run.check_there = check_there  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tiny.run_method("cvs", [20, 8, 8], settings=settings, norm=False, run=run, checkpoint_minutes=0.0)
    run.close()


def write_photos(root: Path) -> None:
    """Six small images of two classes, a function that embeds them."""
    for i in range(6):
        (root / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 10, 90)).save(root / "photos" / "ab"[i % 2] / f"{i}.png")
    function = "import numpy as np\ndef embed(images):\n    return [np.asarray(i).mean((0, 1)) for i in images]\n"
    (root / "own.py").write_text(function)


CLIP = ["--model", "labelwright/digits-clip", "--device", "cpu"]
VERBS = {
    "embed": ["embed", "OUT/photos", "--function", "OUT/own.py:embed", "--batch-size", "2", "--device", "cpu", "--out"],
    "audit": ["audit", "OUT/photos", *CLIP, "--out"],
    "annotate": ["annotate", "OUT/photos", *CLIP, "--out"],
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_two_processes__write_what_one_writes(two_processes: dict[str, Any], verb: str) -> None:
    out = two_processes["out"]
    words = [word.replace("OUT", str(out)) for word in [*VERBS[verb], f"OUT/{verb}.parquet"]]
    assert cli.run(words) == 0
    assert pq.read_table(out / f"{verb}-of-two.parquet").equals(pq.read_table(out / f"{verb}.parquet"))


@pytest.mark.slow
def test_two_processes__go_on_with_the_run_of_one(two_processes: dict[str, Any]) -> None:
    whole, resumed = two_processes["batches"], two_processes["resumed"]
    assert 0 < len(resumed["losses"]) < len(whole["losses"])
    for path, tensor in whole["tensors"].items():
        torch.testing.assert_close(resumed["tensors"][path], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_chunks", [1, 2, 5])
def test_share_of_a_store__each_chunk_once_and_equally_many(n_chunks: int) -> None:
    shares = [Sharing(i, 3).own(n_chunks) for i in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert sorted({chunk for share in shares for chunk in share}) == list(range(n_chunks))
    written = [[*range(n_chunks)][turn * 3 : (turn + 1) * 3] for turn in range(len(shares[0]))]
    assert all(shares[k][turn] == chunk for turn, some in enumerate(written) for k, chunk in enumerate(some))


def test_share_of_answers__whole_batches_of_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(1300)
    monkeypatch.setattr(predict, "n_processes", lambda: 2)
    shares = []
    for i in range(2):
        monkeypatch.setenv("RANK", str(i))
        shares.append(predict.share_of(rows))
    assert torch.equal(torch.cat(shares), rows)
    assert [len(share) % predict.BATCH for share in shares[:1]] == [0]


def test_exchange__with_a_process_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    monkeypatch.setattr(torch.distributed, "barrier", lost)
    with pytest.raises(TrainingError, match=r"another process of this run has ended.*Connection closed") as raised:
        processes.wait_for_all()
    assert "--resume" in raised.value.fix
    with pytest.raises(TrainingError, match="another process of this run has ended"), processes.exchanging():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RuntimeError, match="sizes differ"), processes.exchanging():
        raise RuntimeError("sizes differ")


def test_cli__other_verbs_are_done_by_the_first_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["verify", str(tmp_path / "none")]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert cli.run(["verify", str(tmp_path / "none")]) == 2
    assert "RANK" not in os.environ


def test_cli__bad_input_is_reported_once_and_by_another_process_where_the_first_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", str(tmp_path / "none"), "--onnx", "no.onnx", "--out", str(tmp_path / "x.npz")]

    def ends(seconds: float) -> None:  # as the launcher ends a process, once the first one has said what is wrong
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patched:
        patched.setattr(cli.time, "sleep", ends)
        assert cli.run(words) == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(cli, "SECONDS_TO_REPORT", 0.0)
    assert cli.run(words) == 2
    assert capsys.readouterr().err.startswith("process 1: error: ")


def test_end__one_of_several_processes__not_as_the_interpreter_ends() -> None:
    words = "import atexit, os; from labelwright import launch; atexit.register(os.abort); print('said'); launch.end(0)"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for size, code, kept in (("2", 0, "said\n"), ("1", -signal.SIGABRT, "")):  # an abort loses what was not flushed
        env = plain | {"WORLD_SIZE": size}
        done = subprocess.run([sys.executable, "-c", words], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, kept)


@pytest.mark.parametrize(("size", "is_told"), [(None, True), ("1", False)])
def test_cli__accelerate_that_started_one_process_of_several(
    size: str | None, is_told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate launch --cpu --num_processes 2 sets
    monkeypatch.setenv("MASTER_PORT", "29500")
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert cli.run(["embed", "none", "--onnx", "no.onnx", "--out", "x.npz"]) == 2
    assert ("accelerate started one process" in capsys.readouterr().err) == is_told


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
    with pytest.raises(ConfigError, match="precision 'fp64' is not known"):
        autocast_dtype(cpu, "fp64")


@pytest.mark.parametrize(
    ("able", "is_bf16"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_autocast_dtype__auto(able: dict[str, object], is_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert (autocast_dtype(torch.device("cpu"), "auto") is torch.bfloat16) == is_bf16
