"""The command line as a user meets it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import from_candidates
import labelwright as lw
from chat_stub import ChatStub, Fail, Seen
from labelwright import api, cli, launch
from labelwright.data.table import NOTICES
from labelwright.encoders import descriptor
from labelwright.errors import DataError
from labelwright.methods.registry import METHODS
from labelwright.pipeline.label_rows import LABEL_COLUMNS
from labelwright.verbs import VERBS
from pictures import COUNTS, spoil, write_folders

CAP = "--method cap --model labelwright/digits-clip"
FAST = ["--epochs", "1", "--size", "8", "--device", "cpu", "--evaluations", "0", "--set", "batch_size=8"]


pytestmark = pytest.mark.usefixtures("own_cache")


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
    assert "fit would run: cross_validated (on features of descriptor, colours and edges)\n" in told


def test_inspect__one_class_is_one(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "names.txt").write_text("ant\n", encoding="utf-8")
    assert cli.run(["inspect", str(photos / "ant"), "--classes", str(photos.parent / "names.txt")]) == 2
    assert "1 class\n" in capsys.readouterr().out


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


def test_inspect__candidates_and_how_they_would_be_learned_from(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [[str(photos / name / f"{i}.png"), f"{name}|ant"] for name, n in COUNTS.items() for i in range(n)]
    table = write_csv(tmp_path / "t.csv", [["image", "candidates"], *rows])
    monkeypatch.setitem(METHODS, "coreg", from_candidates.method()[0])  # type: ignore[arg-type]
    assert cli.run(["inspect", str(table)]) == 0
    told = capsys.readouterr().out
    assert "situation: candidates: 20 of 20 images have candidate labels" in told
    assert "(on features of descriptor, colours and edges)" in told
    monkeypatch.setattr(descriptor, "FEW_IMAGES", 0)
    assert cli.run(["inspect", str(table)]) == 0
    told = capsys.readouterr().out
    assert "fit would run: coreg (on the candidates there are, a small network from scratch; --model " in told


def test_fit__tells_of_annotator_and_questions(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "guessed", from_candidates.method()[0])  # type: ignore[arg-type]
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(digits.rglob("*.png"))[::4]:
        (few / path.name).write_bytes(path.read_bytes())
    (tmp_path / "names.txt").write_text("\n".join(DIGITS.values()), encoding="utf-8")
    words = ["fit", str(few), "--classes", str(tmp_path / "names.txt"), "--method", "guessed", *FAST]
    with ChatStub("five") as stub:
        asked = ["--annotator", "m", "--chat-url", stub.url, "--phrasings", "2", "--out", str(tmp_path / "chat")]
        assert cli.run([*words[:-2], *asked, *words[-2:]]) == 0
        assert len(stub.seen) == 40
    told = capsys.readouterr()
    assert "to be asked of the chat model: 40 questions: roughly " in told.err
    assert "candidates from m: 20 images, 1.00 candidates each on average, at most 1\n" in told.out
    assert "40 questions asked, 40 answers\n" in told.out
    matched = [
        "--annotator",
        "labelwright/digits-clip",
        "--rule",
        "top_k",
        "--top-k",
        "2",
        "--out",
        str(tmp_path / "clip"),
    ]
    assert cli.run([*words[:-2], *matched, *words[-2:]]) == 0
    assert "candidates from labelwright/digits-clip: 20 images, 2.00 candidates each" in capsys.readouterr().out


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
    assert sorted(problem["kind"] for problem in told["notices"]) == ["empty_class", *["unsupported_file"] * 2]
    assert told["splits"] == {"train": 16, "test": 4}  # of 12, 6 and 2 good images 2, 1 and 1
    shown = capsys.readouterr().out
    assert "left out: 3 rows" in shown
    assert "notices: 3" in shown
    assert "  hollow: no image of class 'hollow' in its folder: .psd files are not read" in shown


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
        ("--size 4", "size=4 is not possible"),
        ("--size 0", "size=0 is not possible"),
        ("--seed -1", "seed=-1 is not possible"),
        ("--test-frac 1", "test_frac=1.0 is not possible"),
        ("--novel many", "novel='many' is not possible"),
        ("--novel 2", "simgcd finds classes in unlabelled images, and there are none"),
        ("--novel 5-2", "novel='5-2' is an empty range"),
        ("--novel 2 --method ce", "ce learns the named classes only"),
        ("--vocabulary nowhere.txt", "a vocabulary names discovered classes"),
        ("--group track", "has no column 'track' to group by"),
        ("--freeze nothing.*", "'nothing.*' matches no parameter"),
        ("--freeze *", "leaves nothing to train"),
        ("--test nowhere", "no such file or folder: nowhere"),
        ("--classes nowhere.txt", "cannot read the class names in nowhere.txt"),
        ("--method cap", "no model is named that can"),
        ("--views embeddings --model resnet32", "embeddings need a pretrained encoder"),
        ("--method ce --annotator labelwright/digits-clip", "ce asks no annotator"),
        (f"{CAP} --descriptions nowhere.json", "descriptions in nowhere.json: No such file or directory"),
        (f"{CAP} --templates nowhere.txt", "nowhere.txt"),
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


@pytest.mark.parametrize(
    "words",
    [
        *("fit photos", "fit photos --out run --bogus 1", ""),
        *("annotate photos --model m", "annotate photos --out c.parquet", "describe photos", "fit p --out r --views x"),
    ],
)
def test_run__words_that_do_not_parse(words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(shlex.split(words))
    assert stopped.value.code == 2


@pytest.mark.parametrize("words", ["train photos", "inspct --help", "tra --version", "--epochs 3"])
def test_run__a_verb_that_there_is_not(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(shlex.split(words)) == 2
    assert "there is no verb" in capsys.readouterr().err


def test_inspect__names_with_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    names = ("gull [juvenile]", "[/b]", "[bold red]x", ":smile:")
    lines = [f"0.png,{name},{i}\n" for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("image,label,id\n" + "".join(lines))
    assert cli.run(["inspect", str(tmp_path / "t.csv"), "--no-check-images"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in names)


def test_inspect__refuses_what_fit_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text("image,label\n0.png,cat\n")
    said = []
    for words in (["inspect", "--no-check-images"], ["fit", "--out", str(tmp_path / "run")]):
        assert cli.run([words[0], str(tmp_path / "t.csv"), *words[1:]]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "only one class found" in said[0]


@pytest.mark.parametrize("verb", ["fit", "pretrain"])
def test_out__inside_the_data_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folders(tmp_path / "photos", {"ant": 2, "bee": 2})
    for out in (root / "run", root / "ant" / "run"):
        assert cli.run([verb, str(root), "--out", str(out)]) == 2
        assert "lies in the data" in capsys.readouterr().err
        assert not out.exists()


def test_help__no_escapes_where_colour_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with pytest.raises(SystemExit):
        cli.run(["--help"])
    assert os.environ["TERM"] == "dumb"


def test_help__the_verbs_by_what_people_do_and_examples_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stopped:
            cli.run(words)
        assert stopped.value.code == code
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 80
        assert all(f"\n  {name} " in shown for name in VERBS)
    with pytest.raises(SystemExit):
        cli.run(["label", "--help"])
    assert "\n  labelwright label run new-photos/ --out labels.csv\n" in capsys.readouterr().out


def test_flags__a_wrong_one_is_held_against_those_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(["label", "run", "photos", "--ot", "x.csv"])
    said = capsys.readouterr()
    assert (stopped.value.code, "--annotator" in said.out + said.err, "--out" in said.out + said.err) == (
        2,
        False,
        True,
    )


def test_fit__no_labels_one_class_or_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    one = write_folders(tmp_path / "one", {"ant": 3})
    (one / "t.csv").write_text("image,label\nant/0.png,Ants\n", encoding="utf-8")
    flat, names, out = str(photos / "ant"), ["--classes", str(tmp_path / "names.txt")], ["--out", str(tmp_path / "run")]
    for words, said in (
        ([flat, *names], "this method reads class names, and no model is named that can"),
        ([flat, *names, "--method", "ce"], "method ce needs labels, and no training image has one"),
        ([flat], "no class found"),
        ([str(one)], "only one class found"),
        ([str(tmp_path / "empty")], "no images found"),
        ([str(tmp_path / "nowhere")], "no such file or folder"),
        ([str(photos), "--test", flat], f"no image of {flat} has a label\n"),
        ([str(photos), "--test", str(one / "t.csv")], "has a label that is a class of the training images"),
        ([str(photos), "--test", str(one / "t.csv")], "t.csv line 2  label 'Ants' is not one of the"),
    ):
        assert cli.run(["fit", *words, *out]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_paths__too_long_for_a_file_or_not_to_be_opened(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * 300
    for words in (["inspect", name], ["label", name, str(photos)], ["report", name], ["verify", name]):
        assert cli.run(words) == 2
        said = capsys.readouterr().err
        assert "is no path: a name in it has 300 bytes" in said
        assert "\n  fix: " in said
    with pytest.raises(DataError, match="a name in it has 300 bytes"):
        lw.load(name)
    denied = PermissionError(errno.EACCES, "Permission denied", "/root/photos")
    monkeypatch.setattr(lw, "inspect", Mock(side_effect=denied))
    assert cli.run(["inspect", "/root/photos"]) == 2
    assert "error: /root/photos cannot be opened: Permission denied" in capsys.readouterr().err


def test_output__that_nobody_reads_to_its_end_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            cli.main(["settings", "ce"])
    assert ended.value.code == 0


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
    command = [sys.executable, "-m", "labelwright.cli", "inspect", "nobody/nothing-here:main"]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert found.returncode == 2
    assert found.stderr.startswith(
        "error: nobody/nothing-here:main is neither a file or folder here nor a data set in the local cache"
    )
    assert "fix: check the name and the network" in found.stderr
    assert "Traceback" not in found.stderr


# ---- class names, candidates, descriptions --------------------------------------------------------------------------

DIGITS = {0: "zero", 2: "two", 5: "five", 6: "six"}  # the model knows all of them by name but zero


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 of scikit-learn's digits, in class folders named by words."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    for i in np.flatnonzero(np.isin(found.target, list(DIGITS)))[:80]:
        folder = root / DIGITS[found.target[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray((found.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def unlabelled(digits: Path, tmp_path: Path) -> Path:
    """The same in one folder, and names.txt beside it."""
    root = tmp_path / "flat"
    root.mkdir()
    for path in digits.rglob("*.png"):
        (root / path.name).write_bytes(path.read_bytes())
    (tmp_path / "names.txt").write_text("\n".join(DIGITS.values()), encoding="utf-8")
    return root


def test_annotate__counts_are_those_of_the_table(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.parquet"
    words = ["annotate", str(digits), "--model", "labelwright/digits-clip", "--out", str(out)]
    assert cli.run(words) == 0
    told = capsys.readouterr().out
    rows = pq.read_table(out).to_pylist()
    sizes = [len(row["candidates"]) for row in rows]
    inside = sum(row["label"] in row["candidates"] for row in rows) / len(rows)
    assert 1 < np.mean(sizes) < 4
    assert f"80 images, {np.mean(sizes):.2f} candidates each on average, at most {max(sizes)}\n" in told
    assert f"truth inside the candidates: {inside:.4f} of 80 images" in told
    assert told.endswith(f"candidates: {out}\n")
    assert cli.run(words) == 2
    assert "c.parquet exists\n  fix: " in capsys.readouterr().err


def test_annotate__asks_nothing_unless_told_to(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.parquet"
    with ChatStub("five") as stub:
        words = ["annotate", str(digits), "--model", "m", "--chat-url", stub.url, "--out", str(out), "--phrasings", "2"]
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal: its yes does not count
        assert cli.run(words) == 2
        told = capsys.readouterr().err
        assert "160 questions: roughly " in told
        assert "this is no terminal, so nobody can say yes to that\n  fix: add --yes" in told
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        for answer in ("n\n", "", "whatever\n"):
            monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer)
            assert cli.run(words) == 2
            told = capsys.readouterr().err
            assert "ask? [y/N]" in told
            assert "stopped before anything was asked" in told
        assert stub.seen == []
        assert not out.exists()
        monkeypatch.setattr(sys.stdin, "readline", lambda: "Y\n")
        assert cli.run(words) == 0
        assert len(stub.seen) == 160
    assert "160 questions asked, 160 answers\n" in capsys.readouterr().out
    assert {tuple(row["candidates"]) for row in pq.read_table(out).to_pylist()} == {("five",)}


def test_annotate__stopped_and_repeated(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.parquet"

    def answer(seen: Seen) -> str:
        return "no idea" if len(stub.seen) == 70 else "a two"

    with ChatStub(answer, script=["a two"] * 30 + [Fail(401, "no key")]) as stub:
        words = ["annotate", str(digits), "--model", "m", "--chat-url", stub.url, "--out", str(out), "--phrasings", "1"]
        words += ["--n-workers", "1", "--yes"]
        assert cli.run(words) == 2
        assert "set OPENAI_API_KEY" in capsys.readouterr().err
        assert not out.exists()
        assert cli.run(words) == 0
        assert 81 <= len(stub.seen) <= 82  # the refused one, and perhaps one that was under way by then
    told = capsys.readouterr()
    assert "to be asked of the chat model: 50 questions" in told.err
    assert (
        "50 questions asked, 30 kept from before, 80 answers; 1 answer names no class, such as 'no idea' to "
        in told.out
    )
    assert "80 images, 1.00 candidates each on average, at most 1; 1 without any\n" in told.out
    n_twos = len(list((digits / "two").iterdir()))
    assert abs(n_twos / 80 - float(told.out.split("truth inside the candidates: ")[1].split()[0])) < 1.5 / 80


def test_describe__evidence_and_no_file(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = [
        "describe",
        str(unlabelled),
        "--classes",
        str(tmp_path / "names.txt"),
        "--model",
        "labelwright/digits-clip",
    ]
    assert cli.run(words) == 0
    told = capsys.readouterr().out
    found = api.describe(unlabelled, classes=tmp_path / "names.txt", model="labelwright/digits-clip")
    assert found.mismatched == ["zero"]
    assert "1 of 4 class names fits no image\n" in told
    shown = dict(line.split() for line in told.splitlines()[2:-1])
    assert shown == {"zero": f"{found.mismatch.evidence[0]:.2f}"}
    assert "--chat MODEL --out FILE.json" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_describe__asks_writes_and_keeps(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = tmp_path / "looks.json"
    words = [
        "describe",
        str(unlabelled),
        "--classes",
        str(tmp_path / "names.txt"),
        "--model",
        "labelwright/digits-clip",
    ]

    def answer(seen: Seen) -> str:
        return "- a plain ring\n- an empty oval" if 'how "zero" looks' in seen.prompt else "I'm sorry, I cannot."

    with ChatStub(answer) as stub:
        words += ["--chat", "m", "--chat-url", stub.url, "--out", str(looks), "--every", "--context", "ink", "--n", "2"]
        assert cli.run(words) == 2
        assert "fix: add --yes" in capsys.readouterr().err
        assert stub.seen == []
        assert not looks.exists()
        assert cli.run([*words, "--yes"]) == 0
        assert len(stub.seen) == 4
        assert all("The images are of: ink." in seen.prompt and seen.image is None for seen in stub.seen)
        told = capsys.readouterr().out
        assert json.loads(looks.read_text(encoding="utf-8")) == {"zero": ["a plain ring", "an empty oval"]}
        assert "zero: a plain ring; an empty oval\n" in told
        assert "no usable answer about: " in told
        assert f"--descriptions {looks}\n" in told
        assert cli.run([*words, "--yes"]) == 0
        assert len(stub.seen) == 7  # zero is known


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("annotate DATA --model labelwright/digits-clip --out c.csv", "c.csv is not a .parquet file"),
        ("annotate nowhere --model labelwright/digits-clip --out c.parquet", "no such file or folder: nowhere"),
        ("annotate DATA --model nobody/nothing --out c.parquet", "nobody/nothing is not on this machine"),
        ("annotate DATA --model labelwright/digits-clip --out c.parquet --top-k 0", "top_k=0 is not possible"),
        ("annotate DATA --model m --chat-url http://localhost:9 --out c.parquet --phrasings 0", "phrasings=0"),
        ("annotate DATA --model labelwright/digits-clip --out c.parquet --templates x.txt", "x.txt"),
        (
            "annotate DATA --model labelwright/digits-clip --out c.parquet --descriptions looks.json",
            "descriptions in looks.json: No such file or directory",
        ),
        (
            "annotate DATA --model m --chat-url http://localhost:9 --out c.parquet --descriptions looks.json",
            "m is asked by the names of the classes and reads no descriptions",
        ),
        ("describe nowhere --model labelwright/digits-clip", "no such file or folder: nowhere"),
        ("describe DATA --model nobody/nothing", "nobody/nothing is not on this machine"),
        ("describe DATA --model labelwright/digits-clip --chat m", "go together\n  fix: give both --chat and --out"),
        (
            "describe DATA --model labelwright/digits-clip --out l.json",
            "go together\n  fix: give both --chat and --out",
        ),
        (
            "describe DATA --model labelwright/digits-clip --chat m --chat-url http://localhost:9 --out l.txt --every "
            "--yes",
            "l.txt\n  fix: give a name ending in .json",
        ),
    ],
)
def test_annotate_and_describe__what_cannot_be(
    words: str,
    said: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.run(shlex.split(words.replace("DATA", str(digits)))) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "\n  fix: " in told
    assert list(tmp_path.iterdir()) == []


def test_fit__tells_what_names_and_descriptions_did(
    unlabelled: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = {
        "zero": ["a round ring with nothing inside", "the end of all things"],
        "two": "a hook standing on a flat base",
    }
    (tmp_path / "looks.json").write_text(json.dumps(looks), encoding="utf-8")
    words = ["fit", str(unlabelled), "--classes", str(tmp_path / "names.txt"), "--test", str(digits), "--n-views", "1"]
    words += [
        "--descriptions",
        str(tmp_path / "looks.json"),
        "--model",
        "labelwright/digits-clip",
        "--templates",
        "one",
    ]
    words += [
        "--views",
        "embeddings",
        "--device",
        "cpu",
        "--evaluations",
        "0",
        "--set",
        "epochs=1",
        "steps_per_epoch=2",
    ]
    assert cli.run([*words, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert "cap on 80 images, 0 labelled, of 4 classes (no_labels)" in told
    before, after = summary["zero_shot"]["accuracy"], summary["test"]["accuracy"]
    assert f"zero-shot -> adapted accuracy: {before:.4f} -> {after:.4f} on 80 test images" in told
    assert "pseudolabels, largest class over smallest: " in told
    assert "'a round ring with nothing inside'" in told
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["n_views"] == 1


def test_fit__asks_a_chat_model_only_when_told_to(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", str(unlabelled), "--classes", str(tmp_path / "names.txt"), "--model", "labelwright/digits-clip"]
    words += ["--n-views", "1", "--device", "cpu", "--set", "epochs=1", "steps_per_epoch=1"]
    with ChatStub("- a round ring with nothing inside\n- the end of all things") as stub:
        words += ["--chat-url", stub.url]
        assert cli.run([*words, "--out", str(tmp_path / "quiet")]) == 0
        assert stub.seen == []
        assert cli.run([*words, "--describe-with", "m", "--out", str(tmp_path / "asked")]) == 0
        assert {seen.model for seen in stub.seen} == {"m"}
    begin = json.loads((tmp_path / "asked" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    told = json.loads((tmp_path / "asked" / "descriptions.json").read_text(encoding="utf-8"))
    assert begin["mismatched"] == ["zero"]
    assert told == {"zero": ["a round ring with nothing inside", "the end of all things"]}
    assert len(stub.seen) == 1
    shown = capsys.readouterr().out.split("cap on 80 images")
    assert "'zero': not repaired" in shown[1]
    assert "'zero': described as 'a round ring with nothing inside'" in shown[2]
    assert not (tmp_path / "quiet" / "descriptions.json").exists()


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    labels = np.array(["ant", "bee", "cow", ""] * 10)
    feats = draws.normal(size=(40, 8)).astype(np.float32)
    np.savez(tmp_path / "e.npz", embeddings=feats, labels=labels, class_names=np.array(["ant", "bee", "cow"]))
    feats[7, 3] = np.nan
    np.savez(tmp_path / "bad.npz", embeddings=feats, labels=labels)
    return tmp_path


def test_inspect__embeddings(embeddings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(embeddings / "e.npz")]) == 0
    told = capsys.readouterr().out
    assert "40 embeddings, 30 labelled, 3 classes\n" in told
    assert "situation: few_labels" in told
    assert "fit would run: beliefs\n" in told  # no class_embeddings, so nothing reads the names
    assert cli.run(["inspect", str(embeddings / "bad.npz")]) == 2
    assert "1 bad_embedding" in capsys.readouterr().out
    assert cli.run(["describe", str(embeddings / "e.npz"), "--model", "labelwright/digits-clip"]) == 2
    assert "the data are embeddings" in capsys.readouterr().err


def test_fit__embeddings(embeddings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(embeddings / "e.npz"), "--device", "cpu", "--out", str(embeddings / "run")]
    assert cli.run([*words, "--method", "ce", "--views", "pixels"]) == 2
    assert "--views pixels has nothing to work on" in capsys.readouterr().err
    assert cli.run([*words, "--method", "cap"]) == 2
    assert "class_embeddings" in capsys.readouterr().err
    assert cli.run(words) == 0  # few labels and no text model
    assert capsys.readouterr().out.startswith("beliefs on ")
    words[-1] += "-ce"
    assert cli.run([*words, "--method", "ce", "--epochs", "1"]) == 0
    told = capsys.readouterr().out
    assert "zero-shot" not in told
    assert "class names" not in told


# ---- label, evaluate, report ----------------------------------------------------------------------------------------


def test_fit__prints_scores_and_writes_the_run_folder(finished: Path) -> None:
    written = {path.name for path in finished.iterdir()}
    assert written == {
        *("checksums.json", ".lock", "config.yaml", "environment.json", "data.json", "metrics.jsonl", "summary.json"),
        *("labels.parquet", "report.html", "gallery.json", "checkpoints", "model", "tensorboard"),
    }


def test_label__csv_parquet_and_folder_agree(finished: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "sorted"):
        assert cli.run(["label", str(finished), str(photos), "--out", str(tmp_path / name)]) == 0
    rows = pq.read_table(tmp_path / "a.parquet")
    assert tuple(rows.schema.names) == (*LABEL_COLUMNS, "image")  # where the images are, to be read again
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert [row["id"] for row in told] == rows["id"].to_pylist()
    assert [row["label"] for row in told] == rows["label"].to_pylist()
    assert np.allclose([float(row["trust"]) for row in told], rows["trust"].to_pylist(), atol=1e-6)
    copies = {path.relative_to(tmp_path / "sorted"): path.read_bytes() for path in (tmp_path / "sorted").rglob("*.png")}
    assert len(copies) == 20
    for row in rows.to_pylist():
        folder = "unknown" if row["decision"] == "unknown" else row["label"]
        copy = copies[Path(folder) / row["id"].replace("/", "-")]
        assert copy == (photos / row["id"]).read_bytes()


def test_label__what_it_writes_is_data_again(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.parquet", "sorted"):
        assert cli.run(["label", str(finished), str(photos), "--out", name]) == 0
    labels = pq.read_table("b.parquet")["label"].to_pylist()
    for name in ("a.csv", "b.parquet", "sorted", str(finished / "labels.parquet")):
        table = lw.load(name, on_bad="report")
        assert not [p for p in table.problems if p.kind not in NOTICES]
        assert table.image(3).size == (10, 10)
        if name in ("a.csv", "b.parquet"):
            assert [table.class_names[c] for c in table.labels] == labels
    assert sorted(lw.load("sorted").class_names) == sorted(set(labels))
    assert cli.run(["label", str(finished), str(photos), "--out", str(photos / "in")]) == 2
    assert "lies in the data" in capsys.readouterr().err


def test_label__one_file_or_several(finished: Path, photos: Path, tmp_path: Path) -> None:
    files = sorted(str(path) for path in photos.rglob("*.png"))[:3]
    whole = {row["id"]: row for row in lw.label(finished, photos, device="cpu").to_pylist()}
    for n in (1, 3):
        out = tmp_path / f"{n}.csv"
        assert cli.run(["label", str(finished), *files[:n], "--out", str(out)]) == 0
        with out.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == files[:n]
        for row in rows:
            assert row["label"] == whole[str(Path(row["id"]).relative_to(photos))]["label"]
    assert cli.run(["label", str(finished), "--out", str(tmp_path / "none.csv")]) == 2


def test_load_model__images_in_any_form(finished: Path, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))[:3]
    model = lw.load_model(finished, device="cpu")
    wanted = [row["softmax"] for row in lw.label(finished, files, device="cpu").to_pylist()]
    pictures = [Image.open(path).convert("RGB") for path in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for given in (
        files,
        [str(path) for path in files],
        pictures,
        arrays,
        np.stack(arrays),
        tensors,
        [files[0], *arrays[1:]],
    ):
        rows = model.predict(given)
        assert rows["softmax"].to_pylist() == pytest.approx(wanted, abs=1e-6)
        assert set(rows["label"].to_pylist()) <= set(model.class_names)
    assert model.predict(pictures[0]).num_rows == model.predict(files[0]).num_rows == 1
    with pytest.raises(DataError, match="no model in"):
        lw.load_model(photos)


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
    assert "on 20 images" in told
    assert f"{scores['balanced_accuracy']:.4f}" in told
    assert "notice: the run learned from 20 of these 20 labels: the scores are too good" in told


def test_evaluate__unknown_classes_and_no_labels(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folders(tmp_path / "other", {"ant": 2, "yak": 3})
    assert cli.run(["evaluate", str(finished), str(other)]) == 2
    assert capsys.readouterr().err.count("label 'yak' is not one of the 3 classes") == 3
    assert cli.run(["evaluate", str(finished), str(other), "--on-bad", "skip"]) == 0
    told = capsys.readouterr()
    assert "on 2 images" in told.out
    assert "too good" not in told.out
    assert "3 images left out" in told.err
    assert cli.run(["evaluate", str(finished), str(photos / "ant")]) == 2
    assert "has a label" in capsys.readouterr().err


def test_report__writes_it_anew(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "report.html").write_text("old", encoding="utf-8")
    assert cli.run(["report", str(finished)]) == 0
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err


def test_run__interrupted(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*data: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    for verb in ("fit", "inspect"):
        monkeypatch.setattr(lw, verb, interrupt)
    assert cli.run(["fit", str(photos), "--out", "run"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert cli.run(["inspect", str(photos)]) == 130
    assert "--resume" not in capsys.readouterr().err


def test_end__does_not_wait_for_a_thread_that_computes_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, still = list[int](), threading.Event()
    monkeypatch.setattr("os._exit", ended.append)
    thread = threading.Thread(target=still.wait, name=launch.AHEAD, daemon=True)
    thread.start()
    with pytest.raises(SystemExit):
        launch.end(0)
    still.set()
    thread.join()
    with pytest.raises(SystemExit):
        launch.end(0)
    assert ended == [0]
