"""Ctrl-C and termination requests in every verb that works for long: one line, code 130, nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import labelwright as lw
from labelwright import cli, replacing
from labelwright.data.images import decode
from labelwright.reviewing import server
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog
from pictures import write_folders


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, names, a function that embeds, and a finished run on them."""
    folder = tmp_path_factory.mktemp("signals")
    photos = write_folders(folder / "photos", {"ant": 4, "bee": 4, "unlabeled": 2})
    (folder / "names.txt").write_text("ant\nbee\n", encoding="utf-8")
    text = "import numpy as np\ndef embed(images):\n    return [np.asarray(i).mean((0, 1)) for i in images]\n"
    (folder / "own.py").write_text(text, encoding="utf-8")
    clip: dict[str, Any] = {"model": "labelwright/digits-clip", "views": "embeddings", "device": "cpu"}
    run = lw.fit(photos, out=folder / "run", method="nearest_mean", test_frac=0.0, **clip)
    AnswerLog(run.path / ANSWERS_FILE).append("assign", labels={"ant/0.png": "bee"})
    return folder


@pytest.fixture
def work(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to write into, with a run of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "out").mkdir()
    shutil.copytree(root / "run", tmp_path / "out" / "run")
    yield tmp_path / "out"
    for number, handler in before.items():
        signal.signal(number, handler)


WORDS = {
    "label .csv": "label RUN PHOTOS --out OUT/l.csv",
    "label .parquet": "label RUN PHOTOS --out OUT/l.parquet",
    "label folder": "label RUN PHOTOS --out OUT/sorted",
    "verify-sample": "verify-sample RUN --n 4 --out OUT/v.csv",
    "report": "report RUN",
    "export": "export RUN --format safetensors --out OUT/net.safetensors",
    "export hub": "export RUN --format hub --out OUT/hub",
    "review": "review RUN --export OUT/corrections.csv",
    "audit": "audit PHOTOS --model none --out OUT/audit.csv",
    "embed": "embed PHOTOS --function ROOT/own.py:embed --out OUT/feats.npz",
    "annotate": "annotate PHOTOS --model labelwright/digits-clip --classes ROOT/names.txt --out OUT/c.parquet",
    "inspect": "inspect PHOTOS",
    "evaluate": "evaluate RUN PHOTOS",
    "pretrain": "pretrain PHOTOS --out OUT/pre --epochs 1 --size 16 --device cpu",
}
WRITE_NOTHING = ("inspect", "evaluate", "pretrain")
READ_NO_PICTURE = ("verify-sample", "report", "export", "export hub", "review")


def words_of(verb: str, root: Path, out: Path) -> list[str]:
    places = {"RUN": out / "run", "PHOTOS": root / "photos", "OUT": out, "ROOT": root}
    words = WORDS[verb].split()
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    return words


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock"}


def interrupted(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints on standard error as it is interrupted, after bars of progress."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    said = capsys.readouterr().err
    assert stopped.value.code == 130, said
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", [verb for verb in WORDS if verb not in WRITE_NOTHING])
def test_signals__while_it_writes(
    root: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    number = [signal.SIGINT, signal.SIGTERM][list(WORDS).index(verb) % 2]
    before, words = files_in(work), words_of(verb, root, work)

    @contextmanager
    def stop(path: Path) -> Iterator[None]:
        signal.raise_signal(number)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(replacing.checksums, "renewed", stop)
        patch.setattr(replacing.Path, "replace", lambda *_: signal.raise_signal(number))
        said = interrupted(words, capsys)
    assert said.startswith("interrupted")
    assert files_in(work) == before
    assert lw.verify(work / "run").faults == {}
    assert cli.run(words) == 0


@pytest.mark.parametrize("verb", [verb for verb in WORDS if verb not in READ_NO_PICTURE])
def test_signals__while_it_decodes(
    root: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    number = [signal.SIGTERM, signal.SIGINT][list(WORDS).index(verb) % 2]
    before, words, n_asked = files_in(work), words_of(verb, root, work), []

    def stop(*args: Any, **how: Any) -> Any:
        n_asked.append(1)
        if len(n_asked) == 3:
            signal.raise_signal(number)
        return decode(*args, **how)

    monkeypatch.setattr("labelwright.data.table.decode", stop)
    said = interrupted(words, capsys)
    assert said.startswith("interrupted")
    assert {name for name in files_in(work) - before if not name.startswith("pre")} == set()


def test_signals__end_a_review_in_good_order(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("labelwright.pipeline.review._look_ahead", lambda *_: None)  # it would outlive this test
    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(server.ReviewServer, "serve_forever", lambda *_, n=number, **__: signal.raise_signal(n))
        with pytest.raises(SystemExit) as stopped:
            cli.main(["review", str(work / "run"), "--no-open"])
        assert stopped.value.code == 0
    assert "Traceback" not in capsys.readouterr().err


def test_signals__in_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Path
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("labelwright.benchmarking.runner.open_dataset", stop)
    said = interrupted(["bench", "--table", "cifar10-lt-100", "--out", str(tmp_path / "bench")], capsys)
    assert said == "interrupted; the same command runs what is missing"
    assert not (tmp_path / "bench").exists() or files_in(tmp_path / "bench") == set()


def test_signals__end_the_cells_that_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Path
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def start(*_: Any, **__: Any) -> subprocess.Popen[bytes]:
        begun.append(Process([sys.executable, "-c", "import time; time.sleep(20)"]))
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return begun[-1]

    Process = subprocess.Popen
    monkeypatch.setattr("labelwright.benchmarking.runner.subprocess.Popen", start)
    words = ["bench", "--table", "cifar10-lt-100", "--out", str(tmp_path / "bench"), "--jobs", "2"]
    words += ["--seeds", "0", "--device", "cpu"]
    assert interrupted(words, capsys).startswith("interrupted")
    assert {process.wait(10) for process in begun} == {-signal.SIGTERM}


def test_signals__that_a_library_makes_an_error_of_its_own_of(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("failed to export") from error

    monkeypatch.setattr("torch.onnx.export", stop)
    assert interrupted(["export", str(work / "run"), "--out", str(work / "net.onnx")], capsys) == "interrupted"
    assert not (work / "net.onnx").exists()
