"""The command line as a user meets it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evenkeel import cli
from evenkeel.results import LABEL_COLUMNS
from pictures import COUNTS, spoil, write_folders

FAST = ["--epochs", "1", "--size", "8", "--device", "cpu", "--evaluations", "0", "--set", "batch_size=8"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENKEEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["fit", str(photos), "--test", str(photos), "--out", str(out), "--method", "ce", *FAST]) == 0
    return out


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


# ---- inspect --------------------------------------------------------------------------------------------------------


def test_inspect__says_counts_situation_and_method(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(photos)]) == 0
    told = capsys.readouterr().out
    assert "20 images, 20 labelled, 3 classes" in told
    assert "situation: long_tailed: all 20 images are labelled, very unevenly, 2 to 12 per class" in told
    assert "fit would run: cvs\n" in told


def test_inspect__judges_the_rows_that_can_be_used(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[str(photos / name / f"{i}.png"), name] for name, n in COUNTS.items() for i in range(n)]
    rows[0][1] = "cat"
    (tmp_path / "names.txt").write_text("\n".join(COUNTS), encoding="utf-8")
    table = write_csv(tmp_path / "t.csv", [["image", "label"], *rows])
    assert cli.run(["inspect", str(table), "--classes", str(tmp_path / "names.txt")]) == 2
    told = capsys.readouterr()
    assert "situation: long_tailed: all 19 images are labelled" in told.out  # not few_labels, of 20
    assert told.out.count("label 'cat' is not one of the 3 classes") == 1
    assert "1 problem in the data" in told.err


def calls_of_inspect(table: Path) -> int:
    """Python functions called by one inspect."""
    n = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal n
        n += event == "call"

    sys.setprofile(count)
    try:
        assert cli.run(["inspect", str(table), "--no-check-images"]) == 0
    finally:
        sys.setprofile(None)
    return n


def test_inspect__does_nothing_per_row_in_python(tmp_path: Path) -> None:
    for n in (150_000, 600_000):
        names = pa.array(np.arange(n)).cast(pa.string())
        labels = pa.array(["a", "b", "c"]).take(pa.array(np.arange(n) % 3))
        pq.write_table(pa.table({"image": names, "label": labels}), tmp_path / f"{n}.parquet")
    calls_of_inspect(tmp_path / "150000.parquet")  # imports and the like
    few, many = calls_of_inspect(tmp_path / "150000.parquet"), calls_of_inspect(tmp_path / "600000.parquet")
    assert few > 100  # the count counts
    assert many - few < 5_000  # of 450,000 more rows


# ---- bad data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["inspect", "fit"])
def test_bad_folder__every_problem_in_one_report(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_folders(tmp_path / "photos"), tmp_path / "run"
    expected = spoil(root)
    assert cli.run([verb, str(root), *(["--out", str(out), *FAST] if verb == "fit" else [])]) == 2
    streams = capsys.readouterr()
    told = streams.out + streams.err
    for where, detail in expected.items():
        lines = [line for line in told.splitlines() if line.startswith(f"  {where} ")]
        assert len(lines) == 1, where
        assert detail.lower() in lines[0].lower()
    assert "4 problems in the data" in told
    assert "--on-bad skip" in told
    assert not out.exists()


def test_bad_folder__skip_goes_on_and_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_folders(tmp_path / "photos"), tmp_path / "run"
    spoil(root)
    (root / "notes.txt").write_text("hello", encoding="utf-8")
    assert cli.run(["fit", str(root), "--out", str(out), "--method", "ce", "--on-bad", "skip", *FAST]) == 0
    told = json.loads((out / "data.json").read_text(encoding="utf-8"))
    assert sorted(Path(problem["where"]).name for problem in told["quarantined"]) == [
        "cut.jpg",
        "letter.png",
        "zero.png",
    ]
    assert sorted(problem["kind"] for problem in told["notices"]) == ["empty_class", "unsupported_file"]
    assert told["splits"] == {"train": 16, "test": 4}  # of 12, 6 and 2 good images 2, 1 and 1
    shown = capsys.readouterr().out
    assert "left out: 3 rows" in shown
    assert "notices: 2" in shown


@pytest.fixture
def bad_table(photos: Path, tmp_path: Path) -> Path:
    rows = [[str(photos / name / f"{i}.png"), name, f"{name}{i}"] for name, n in COUNTS.items() for i in range(n)]
    rows[3][1], rows[5][2], rows[7][0] = "ape", "ant4", str(photos / "gone.png")
    (tmp_path / "names.txt").write_text("\n".join(COUNTS), encoding="utf-8")
    return write_csv(tmp_path / "photos.csv", [["image", "label", "id"], *rows])


def test_bad_table__every_problem_in_one_report(
    bad_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    names = ["--classes", str(tmp_path / "names.txt")]
    assert cli.run(["fit", str(bad_table), "--out", str(out), *names, *FAST]) == 2
    told = capsys.readouterr().err
    assert told.count("label 'ape' is not one of the 3 classes") == 1
    assert told.count("id 'ant4' was used before") == 1
    assert told.count("gone.png  there is no such file") == 1
    assert "3 problems in the data" in told
    assert not out.exists()

    assert cli.run(["fit", str(bad_table), "--out", str(out), "--method", "ce", *names, "--on-bad", "skip", *FAST]) == 0
    listed = json.loads((out / "data.json").read_text(encoding="utf-8"))["quarantined"]
    assert sorted(problem["kind"] for problem in listed) == ["duplicate_id", "missing_image", "unknown_label"]


# ---- settings that cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method cvss", "method 'cvss' is not known\n  fix: did you mean cvs?"),
        ("--set lrr=3", "unknown setting 'lrr'\n  fix: did you mean lr?"),
        ("--set lr=fast", "lr=fast is not a valid float"),
        ("--set lr", "--set 'lr' is not KEY=VALUE"),
        ("--set=lr=fast", "lr=fast is not a valid float"),
        ("--epochs 0", "epochs=0 is not possible"),
        ("--model resnet99", "unknown model: 'resnet99'"),
        ("--device tpu", "device 'tpu' is not known"),
        ("--precision fp8", "precision 'fp8' is not known"),
        ("--size 4", "images of 4 px are too small"),
        ("--size 0", "images of 0 px are too small"),
        ("--seed -1", "seed=-1 is not possible"),
        ("--test-frac 1", "test_frac=1.0 is not possible"),
        ("--novel many", "novel='many' is not possible"),
        ("--novel 2", "the situation open_world"),
        ("--group track", "has no column 'track' to group by"),
        ("--freeze nothing.*", "'nothing.*' matches no parameter"),
        ("--freeze *", "leaves nothing to train"),
        ("--test nowhere", "no such file or folder: nowhere"),
        ("--classes nowhere.txt", "cannot read the class names in nowhere.txt"),
    ],
)
def test_fit__impossible_setting(
    words: str, said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.run(["fit", str(photos), "--out", str(out), *shlex.split(words)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "\n  fix: " in told
    assert not out.exists()


@pytest.mark.parametrize("words", ["fit photos", "fit photos --out run --bogus 1", "", "train photos", "--epochs 3"])
def test_run__words_that_do_not_parse(words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(shlex.split(words))
    assert stopped.value.code == 2


def test_fit__no_labels_one_class_or_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    one = write_folders(tmp_path / "one", {"ant": 3})
    flat, names, out = str(photos / "ant"), ["--classes", str(tmp_path / "names.txt")], ["--out", str(tmp_path / "run")]
    for words, said in (
        ([flat, *names], "the situation no_labels"),
        ([flat, *names, "--method", "ce"], "method ce needs labels, and no training image has one"),
        ([flat], "no class found"),
        ([str(one)], "only one class found"),
        ([str(tmp_path / "empty")], "no images found"),
        ([str(tmp_path / "nowhere")], "no such file or folder"),
        ([str(photos), "--test", flat], f"no image of {flat} has a label"),
    ):
        assert cli.run(["fit", *words, *out]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_fit__refuses_a_folder_in_use(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert cli.run(["fit", str(photos), "--out", str(finished), *FAST]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.run(["fit", str(photos), "--out", str(finished / "summary.json"), *FAST]) == 2
    assert "is a file" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_fit__resume_with_other_settings_names_the_setting(
    finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["fit", str(photos), "--test", str(photos), "--out", str(finished), "--method", "ce", *FAST, "--resume"]
    assert cli.run([*same, "--set", "lr=0.3"]) == 2
    assert "lr was 0.1 when this run began and is 0.3 now" in capsys.readouterr().err
    assert cli.run([*same, "--seed", "1"]) == 2
    assert "seed was 0 when this run began and is 1 now" in capsys.readouterr().err
    assert cli.run(same) == 0


def test_offline__a_name_that_is_nowhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evenkeel.cli", "inspect", "some/dataset"]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: some/dataset is no file or folder here, nor a data set in the local cache")
    assert "Traceback" not in found.stderr


# ---- label, evaluate, report ----------------------------------------------------------------------------------------


def test_fit__prints_scores_and_writes_the_run_folder(finished: Path) -> None:
    written = {path.name for path in finished.iterdir()}
    assert written == {
        *("config.yaml", "environment.json", "data.json", "metrics.jsonl", "summary.json", "labels.parquet"),
        *("report.html", "checkpoints", "model", "tensorboard"),
    }


def test_label__csv_parquet_and_folder_agree(finished: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "sorted"):
        assert cli.run(["label", str(finished), str(photos), "--out", str(tmp_path / name)]) == 0
    rows = pq.read_table(tmp_path / "a.parquet")
    assert tuple(rows.schema.names) == LABEL_COLUMNS
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert [row["id"] for row in told] == rows["id"].to_pylist()
    assert [row["label"] for row in told] == rows["label"].to_pylist()
    assert np.allclose([float(row["trust"]) for row in told], rows["trust"].to_pylist(), atol=1e-6)
    copies = {path.relative_to(tmp_path / "sorted"): path.read_bytes() for path in (tmp_path / "sorted").rglob("*.png")}
    assert len(copies) == 20
    for row in rows.to_pylist():
        copy = copies[Path(row["label"]) / row["id"].replace("/", "-")]
        assert copy == (photos / row["id"]).read_bytes()


def test_label__what_cannot_be_written_is_said_first(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.csv").touch()
    for name, said in (("there.csv", "exists"), ("labels.xlsx", "is neither .csv, .parquet nor a folder")):
        assert cli.run(["label", str(tmp_path / "no run"), str(photos), "--out", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert cli.run(["label", str(tmp_path / "no run"), str(photos), "--out", str(tmp_path / "x.csv")]) == 2
    assert "give the run folder of a finished fit" in capsys.readouterr().err


def test_label__bad_images_stop_or_are_told(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folders(tmp_path / "photos")
    spoil(root)
    words = ["label", str(finished), str(root), "--out", str(tmp_path / "labels.csv")]
    assert cli.run(words) == 2
    assert "3 problems in the data: 3 unreadable_image" in capsys.readouterr().err
    assert not (tmp_path / "labels.csv").exists()
    assert cli.run([*words, "--on-bad", "skip"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("20 images labelled: ")
    assert "3 images left out:" in told.err
    assert [line.split("  ")[-1] for line in told.err.splitlines() if "zero.png" in line] == [
        "the file is empty (0 bytes)"
    ]


def test_evaluate__prints_what_the_run_found(finished: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(finished), str(photos), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    assert scores["n_scored"] == 20
    assert scores["per_class"] == summary["test"]["per_class"]
    assert cli.run(["evaluate", str(finished), str(photos)]) == 0
    told = capsys.readouterr().out
    assert "20 images scored" in told
    assert f"{scores['balanced_accuracy']:.4f}" in told


def test_evaluate__unknown_classes_and_no_labels(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folders(tmp_path / "other", {"ant": 2, "yak": 3})
    assert cli.run(["evaluate", str(finished), str(other)]) == 2
    assert capsys.readouterr().err.count("label 'yak' is not one of the 3 classes") == 3
    assert cli.run(["evaluate", str(finished), str(other), "--on-bad", "skip"]) == 0
    told = capsys.readouterr()
    assert "2 images scored" in told.out
    assert "3 images left out" in told.err
    assert cli.run(["evaluate", str(finished), str(photos / "ant")]) == 2
    assert "has a label" in capsys.readouterr().err


def test_report__writes_it_anew(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "report.html").write_text("old", encoding="utf-8")
    assert cli.run(["report", str(finished)]) == 0
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "is this the folder of a run?" in capsys.readouterr().err


def test_run__interrupted(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(command: Any) -> None:
        raise KeyboardInterrupt

    for verb in (cli.Fit, cli.Inspect):
        monkeypatch.setitem(cli._ACTIONS, verb, interrupt)
    assert cli.run(["fit", str(photos), "--out", "run"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert cli.run(["inspect", str(photos)]) == 130
    assert "--resume" not in capsys.readouterr().err
