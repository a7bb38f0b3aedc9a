"""Run folders under hostile conditions: in use, deleted, altered, edited, on a full disk; nothing is lost or silent."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

import labelwright as lw
import tiny
from labelwright import checksums, cli
from labelwright.data.read import load
from labelwright.encoders.store import build_store
from labelwright.errors import ConfigError, DataError, DiskError, LabelwrightError, TrainingError
from labelwright.pipeline import fit as fit_module
from labelwright.run_folder import LOCK, Run
from labelwright.spreadsheet import write_csv
from labelwright.train import checkpoint, loop
from labelwright.train.settings import TrainSettings, apply_overrides
from pictures import write_folders

QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "method": "nearest_mean"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 40 images of two classes."""
    draws = np.random.default_rng(0)
    labels = np.repeat(["cat", "dog"], 20)
    feats = np.where(labels[:, None] == "cat", 1.0, -1.0) * np.ones(8) + 0.3 * draws.normal(size=(40, 8))
    path = tmp_path_factory.mktemp("data") / "feats.npz"
    np.savez(path, embeddings=feats.astype(np.float32), labels=labels)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A finished run, to be copied."""
    out = tmp_path_factory.mktemp("runs") / "run"
    lw.fit(str(data), out=out, **QUICK)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- in use ---------------------------------------------------------------------------------------------------------


def test_held__a_second_process_is_refused_and_touches_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = FileLock(run / LOCK)  # as another process holds it: not the object that this one reuses
    with other:
        for call in (
            lambda: lw.fit(str(data), out=run, resume=True, **QUICK),
            lambda: lw.pretrain(str(data), out=run, resume=True),
            lambda: lw.report(run),
            lambda: lw.classes(run, "rename", ["cat", "cow"]),
            lambda: lw.label(run, str(data), rename={"cat": "cow"}),
        ):
            with pytest.raises(ConfigError, match="in use by another process") as caught:
                call()
            assert caught.value.exit_code == 2
        assert lw.label(run, str(data)).num_rows == 40  # reading needs no lock
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with FileLock(tmp_path / LOCK), pytest.raises(ConfigError, match="in use"):  # a run that has just begun
        lw.fit(str(data), out=tmp_path / "." / "", **QUICK) if names_in(tmp_path) == {LOCK} else Run(
            tmp_path
        ).held().__enter__()
    lw.report(run)  # the lock went with its holder
    assert lw.verify(run).faults == {}


def test_held__bad_input_removes_what_this_run_made_and_nothing_else(data: Path, tmp_path: Path) -> None:
    for settings in (
        {"method": "cap"},
        {"set": {"lr": float("inf")}, "method": "ce"},
        {"test": str(tmp_path / "none")},
    ):
        with pytest.raises(LabelwrightError):
            lw.fit(str(data), out=tmp_path / "a" / "b", **{**QUICK, **settings})
        assert names_in(tmp_path) == set()

    def refused(run: Run, *, paid: bool) -> None:
        with run.held():
            run.write_yaml("config.yaml", {"method": "cap"})
            run.log({"kind": "begin", "x": 1.0}, step=0)
            (run.path / "mine.txt").write_text("of somebody else")
            if paid:
                (run.path / "descriptions.json").write_text('{"cat": ["whiskers"]}')
            raise ConfigError("only the network could refuse it")

    with pytest.raises(ConfigError):
        refused(Run(tmp_path / "new"), paid=False)
    assert names_in(tmp_path / "new") == {LOCK, "mine.txt"}
    with pytest.raises(ConfigError):
        refused(Run(tmp_path / "paid"), paid=True)  # answers that were paid for: all stays, and --resume goes on
    assert names_in(tmp_path / "paid") >= {"descriptions.json", "config.yaml", "mine.txt"}


def test_stored_features__two_processes_build_one_store(tmp_path: Path) -> None:
    from labelwright.data.cache import PixelCache
    from labelwright.data.views import PixelViews, ViewSettings

    pixels = PixelCache(np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3))
    views = PixelViews(pixels, ViewSettings(flip=False, mean=(0.5,) * 3, std=(0.5,) * 3))
    calls: list[int] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        time.sleep(0.05)
        return x.flatten(1)[:, :4]

    def build() -> Any:
        how: dict[str, Any] = {"identity": "e", "images_digest": "d", "n_views": 1, "seed": 0, "n_features": 4}
        return build_store(views, encode, folder=tmp_path, device=torch.device("cpu"), batch_size=2, **how)

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(build())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(calls) == 18  # six images, clean and two views, once
    assert np.array_equal(found[0].feats, found[1].feats)
    (feats,) = tmp_path.rglob("feats.npy")
    content = bytearray(feats.read_bytes())
    content[-3] ^= 1
    feats.write_bytes(content)
    assert np.array_equal(build().feats, found[0].feats)  # made anew, not read as it is
    assert sum(calls) == 36


# ---- deleted, full, read-only ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_fit__its_folder_goes_while_it_trains(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out, prepare = tmp_path / "run", fit_module.prepare_job

    def prepared(*args: Any) -> Any:
        shutil.rmtree(out)
        if what == "replaced":
            out.mkdir()
        return prepare(*args)

    monkeypatch.setattr(fit_module, "prepare_job", prepared)
    with pytest.raises(DiskError, match="deleted or moved") as caught:
        lw.fit(str(data), out=out, **QUICK)
    assert caught.value.exit_code == 1
    assert names_in(tmp_path) <= {"run"}
    assert not out.exists() or names_in(out) == set()  # nothing half-written in its place


def full_disk(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """From now on no file of such a name can be renamed into place, as on a disk that is full or read-only."""
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if Path(target).name == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replaced)


@pytest.mark.parametrize("fails", ["config.yaml", "last.pt", "model.safetensors", "summary.json"])
def test_fit__full_disk_is_a_sentence_and_a_resume_ends_as_ever(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    with monkeypatch.context() as full:
        full_disk(full, fails)
        with pytest.raises(DiskError, match=rf"{fails} cannot be written: No space left") as caught:
            lw.fit(str(data), out=tmp_path / "run", **QUICK)
    assert caught.value.exit_code == 1
    assert not list(tmp_path.rglob("*.tmp"))
    lw.fit(str(data), out=tmp_path / "run", resume=True, **QUICK)
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (finished / weights).read_bytes()
    assert Run(tmp_path / "run").labels == Run(finished).labels
    modes = {(tmp_path / "run" / name).stat().st_mode for name in (weights, "config.yaml", "labels.parquet")}
    assert len(modes) == 1


@pytest.mark.parametrize("fails", ["finish.strangers_of", "fit.report"])
def test_fit__the_model_is_there_before_what_describes_it(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(f"labelwright.pipeline.{fails}", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lw.fit(str(data), out=tmp_path / "run", **QUICK)
    answers = lw.label(tmp_path / "run", str(data))["label"].to_pylist()
    assert answers == lw.label(finished, str(data))["label"].to_pylist()


def test_command__disk_errors_are_sentences(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["label", str(run), str(data), "--out", "/proc/labels.csv"],
        ["fit", str(data), "--out", "/proc/run"],
    ):
        assert cli.run(words) == 2
        assert "cannot be written" in capsys.readouterr().err
    with monkeypatch.context() as full:
        full_disk(full, "labels.csv")
        assert cli.run(["label", str(run), str(data), "--out", str(tmp_path / "labels.csv")]) == 1
    assert "labels.csv cannot be written: No space left on device" in capsys.readouterr().err.replace("\n", " ")
    assert names_in(tmp_path) == {"run"}

    def full_elsewhere(**_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/x")

    monkeypatch.setattr(lw, "report", full_elsewhere, raising=False)
    assert cli.run(["report", str(run)]) == 1
    assert "/cache/x cannot be written: No space left" in capsys.readouterr().err


def test_fit__not_into_the_data_and_past_runs_that_lie_there(finished: Path, tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos", {"cat": 4, "dog": 4})
    for out in (photos / "run", photos / "cat" / "run"):
        with pytest.raises(ConfigError, match="lies in the data"):
            lw.fit(photos, out=out, device="cpu")
        with pytest.raises(ConfigError, match="lies in the data"):
            lw.pretrain(photos, out=out, device="cpu")
    assert names_in(photos) == {"cat", "dog"}
    shutil.copytree(finished, photos / "run")
    shutil.copytree(finished, photos / "cat" / "run")
    table = load(photos)
    assert (table.class_names, len(table)) == (("cat", "dog"), 8)
    told = {Path(problem.where).relative_to(photos).as_posix(): problem.detail for problem in table.problems}
    assert told == dict.fromkeys(["run", "cat/run"], "the folder of a run: not read")


def test_command__a_reader_that_has_seen_enough(monkeypatch: pytest.MonkeyPatch, handlers: None) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["fit", "--help"])
    assert stopped.value.code == 0


# ---- altered and edited ---------------------------------------------------------------------------------------------


OF_A_RUN = [
    *("model/model.safetensors", "model/config.json", "model/README.md", "labels.parquet", "summary.json"),
    *("data.json", "config.yaml", "metrics.jsonl", "report.html", "environment.json", "checkpoints/last.pt"),
    *("gallery.json", "model/strangers.safetensors"),
]


def altered(path: Path, at: float = 0.5) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_verify__finds_every_altered_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = lw.verify(run)
    assert (whole.faults, whole.notes) == ({}, ())
    assert whole.n_files == len(OF_A_RUN)
    for name in OF_A_RUN:
        kept = (run / name).read_bytes()
        for at in (0.02, 0.5):
            altered(run / name, at)
            assert set(lw.verify(run).faults) == {name}
            (run / name).write_bytes(kept)
    (run / "labels.parquet").unlink()
    with (run / "summary.json").open("a") as file:
        file.write(" ")
    assert set(lw.verify(run).faults) == {"labels.parquet", "summary.json"}
    assert cli.run(["verify", str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"]["labels.parquet"] == "is missing"
    (run / "config.yaml").unlink()
    assert lw.verify(run).faults["config.yaml"] == "is missing"
    (run / checksums.NAME).write_text("[]")
    with pytest.raises(DataError, match=r"checksums\.json cannot be read"):
        lw.verify(run)
    with pytest.raises(DataError, match="not the folder of a run"):
        lw.verify(run.parent)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json"])
def test_label__an_altered_model_is_refused(run: Path, data: Path, name: str) -> None:
    altered(run / name, 0.9)
    with pytest.raises(DataError, match=Path(name).name):
        lw.label(run, str(data))


EDITS: dict[str, tuple[str, Any]] = {
    "a class name more": ("model/config.json", lambda c: c["class_names"].append("owl")),
    "no view": ("model/config.json", lambda c: c.pop("view")),
    "size in words": ("model/config.json", lambda c: c.update(size_px="large")),
    "outputs beyond the classes": ("model/config.json", lambda c: c.update(outputs=[0, 7])),
    "another network": ("model/config.json", lambda c: c["classifier"].update(n_outputs=9)),
    "no method": ("summary.json", lambda c: c.pop("method")),
    "warnings in words": ("summary.json", lambda c: c.update(warnings="none")),
    "no fingerprint": ("data.json", lambda c: c.pop("fingerprint")),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_edited_files__named_and_refused(run: Path, data: Path, edit: str, is_sealed: bool) -> None:
    if not is_sealed:  # of a run of an earlier version, or one that was stopped before its end
        (run / checksums.NAME).unlink()
    name, change = EDITS[edit]
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))

    def read() -> None:
        lw.label(run, str(data))
        lw.report(run)
        lw.fit(str(data), out=run, resume=True, **QUICK)

    with pytest.raises(DataError, match=Path(name).name) as caught:
        read()
    assert caught.value.fix


def test_labels__without_their_columns(run: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "x": ["a", "b"]}), run / "labels.parquet")
    (run / checksums.NAME).unlink()
    for call in (
        lambda: lw.compare(run, run),
        lambda: lw.verify_sample(run, out=run.parent / "v.csv"),
        lambda: lw.export(run, format="label-studio", out=run.parent / "e"),
        lambda: lw.review(run, export=run.parent / "c.csv"),
        lambda: lw.report(run),
    ):
        with pytest.raises(DataError, match=r"labels.parquet has no column 'label'"):
            call()
    assert names_in(run.parent) == {"run"}


def test_metrics__lines_that_no_run_writes(run: Path) -> None:
    (run / checksums.NAME).unlink()
    for line in ("5", '{"epoch": "one"}', "null", "{"):
        (run / "metrics.jsonl").write_text(line + '\n{"kind": "step"}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl line 1 is not JSON"):
            Run(run).records  # noqa: B018


@pytest.mark.parametrize("name", ["data.json", "config.yaml"])
def test_resume__without_what_it_began_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = {**QUICK, "method": "ce", "epochs": 2}
    with monkeypatch.context() as stopped:
        stopped.setattr(fit_module, "contest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lw.fit(str(data), out=tmp_path / "run", **settings)
    (tmp_path / "run" / name).unlink()
    with pytest.raises(LabelwrightError, match=f"{name}|not the folder of a run"):
        lw.fit(str(data), out=tmp_path / "run", resume=True, **{**settings, "seed": 5})


def test_changes_of_a_run__keep_its_checksums(run: Path, data: Path) -> None:
    lw.report(run)
    lw.label(run, str(data), rename={"cat": "cow"})
    assert lw.verify(run).faults == {}
    assert set(lw.label(run, str(data))["label"].to_pylist()) == {"cow", "dog"}


# ---- no longer numbers ----------------------------------------------------------------------------------------------


def test_train__weights_that_are_no_numbers_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, n_done = loop.optimizer_step, []

    def last_step_diverges(optimizer: Any, nets: Any, *args: Any, **more: Any) -> Any:
        loss = step(optimizer, nets, *args, **more)
        n_done.append(1)
        if len(n_done) == 6:  # the last of two epochs of three steps: no loss is computed from it
            with torch.no_grad():
                next(iter(nets.values())).head.weight[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(loop, "optimizer_step", last_step_diverges)
    run = Run(tmp_path)
    with pytest.raises(TrainingError, match=r"head\.weight are no longer numbers in epoch 1") as caught:
        tiny.run_method("ce", (14, 8, 4), settings={"epochs": 2, "batch_size": 8, "lr": 0.05}, run=run)
    run.close()
    assert len(n_done) == 6
    assert (caught.value.exit_code, "lower lr" in caught.value.fix) == (1, True)
    assert checkpoint.load(run.checkpoint)["epoch"] == 1  # what was sound is kept


@pytest.mark.parametrize("value", ["inf", "nan", "1e308", "-inf"])
@pytest.mark.parametrize("key", ["lr", "weight_decay", "max_grad_norm", "sam_radius_late"])
def test_settings__no_number_that_training_could_not_compute_with(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}="):
        apply_overrides(TrainSettings(), {key: value})
    with pytest.raises(ConfigError, match=f"{key}="):
        TrainSettings(**{key: float(value)})


def test_label__answers_that_are_no_numbers(run: Path, data: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "model" / "model.safetensors"
    save_file({name: value * torch.nan for name, value in load_file(path).items()}, path)
    (run / checksums.NAME).unlink()
    with pytest.raises(TrainingError, match="is no number"):
        lw.label(run, str(data))


# ---- signals --------------------------------------------------------------------------------------------------------


PHASES = {
    "reading": "labelwright.pipeline.fit.resolve",
    "set-up": "labelwright.pipeline.fit.prepare_job",
    "references": "labelwright.pipeline.fit.contest",
    "the end": "labelwright.pipeline.finish.label_rows",
    "the model": "labelwright.pipeline.finish.save_model",
    "report": "labelwright.pipeline.fit.report",
}


@pytest.mark.parametrize(
    ("number", "phase"),
    [*((signal.SIGTERM, phase) for phase in PHASES), (signal.SIGINT, "set-up"), (signal.SIGINT, "the end")],
)
def test_signals__in_every_phase(
    data: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    handlers: None,
    phase: str,
    number: int,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    words = ["fit", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", "--method", "nearest_mean"]
    words += ["--precision", "fp32"]
    with monkeypatch.context() as patch:
        patch.setattr(PHASES[phase], interrupted)
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted; continue with the same command and --resume\n")
    if phase == "reading":
        assert names_in(tmp_path) == set()  # nothing was made yet
    if phase != "the model":
        return
    assert cli.run([*words, "--resume"]) == 0
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (finished / weights).read_bytes()
    assert lw.verify(tmp_path / "run").faults == {}


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_csv__what_a_spreadsheet_would_compute_comes_back_as_it_was(tmp_path: Path) -> None:
    ids = ["=cmd|' /C calc'!A0", "+1", "-2", "@x", "'=quoted", "'tis", "plain", "a=b"]
    labels = ["=SUM(A1)", "-1 degrees", "cat", "@home", "'+", "cat", "cat", "cat"]
    for name in ids:
        (tmp_path / name.replace("/", "-")).write_bytes(b"")
    path = tmp_path / "labels.csv"
    write_csv(pa.table({"id": [each.replace("/", "-") for each in ids], "label": labels}), path)
    cells = path.read_text().splitlines()[1:]
    assert not [cell for cell in cells if cell.lstrip('"')[0] in "=+-@"]
    (tmp_path / "images.csv").write_text(path.read_text().replace('"id"', '"image"', 1))
    table = load(tmp_path / "images.csv", on_bad="report")
    assert [table.class_names[c] for c in table.labels] == labels
    assert table.images.paths.to_pylist() == [each.replace("/", "-") for each in ids]


# ---- no network -----------------------------------------------------------------------------------------------------


def test_verbs__open_no_connection(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folders(tmp_path / "photos", {"one": 6, "two": 6})
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Any] = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda _, *where: opened.append(where))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: opened.append(where))
    clip: dict[str, Any] = {"model": "labelwright/digits-clip", "device": "cpu"}
    lw.inspect(photos)
    lw.audit(photos, model="none", out=tmp_path / "audit.csv")
    lw.annotate(photos, out=tmp_path / "candidates.parquet", **clip)
    lw.describe(photos, **clip)
    lw.embed(photos, out=tmp_path / "feats.npz", function=lambda images: [np.asarray(i).mean((0, 1)) for i in images])
    lw.pretrain(photos, out=tmp_path / "pretrained", epochs=1, size=16, device="cpu")
    lw.fit(photos, out=tmp_path / "fitted", method="zero_shot", views="embeddings", **clip)
    lw.label(run, str(data), out=tmp_path / "labels.csv")
    lw.evaluate(run, str(data))
    lw.report(run)
    lw.verify(run)
    lw.settings("cap")
    assert opened == []
