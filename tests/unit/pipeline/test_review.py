"""pipeline/review.py: the page in a browser, answers as corrections, classes renamed and merged from the page."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labelwright as lw
from labelwright import cli, launch
from labelwright.errors import ConfigError, DataError
from labelwright.pipeline.review import _finish, _started, corrections_of, desk_of, suggest
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog
from labelwright.reviewing.server import Work
from reviewed import CLASSES, HOSTILE, write_run

NAMES = ("ant", "bee", "cow", "dog")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open-world run on embeddings of four blobs of which two have labels."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("found")
    truth = np.arange(160) % 4
    feats = 3 * np.eye(4, 8)[truth] + 0.4 * draw.normal(size=(160, 8))
    labels = np.where((truth < 2) & (np.arange(160) % 8 >= 4), np.array(NAMES)[truth], "")
    np.savez(folder / "train.npz", embeddings=feats.astype(np.float32), labels=labels)
    lw.fit(folder / "train.npz", out=folder / "run", novel=2, method="ss_kmeans", device="cpu", classes=NAMES[:2])
    return folder / "run"


@pytest.fixture
def run(found: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(found, tmp_path / "run"))


def wait(work: Work) -> str:
    until = time.monotonic() + 60
    while work.state == "running" and time.monotonic() < until:
        time.sleep(0.02)
    assert work.state == "done", work.says
    return work.says


def test_classes__renamed_merged_and_undone(run: Path) -> None:
    desk = desk_of(run)
    board, before = desk.board, {p: (run / p).read_bytes() for p in ("labels.parquet", "model/config.json")}
    row = int(np.flatnonzero(board.label == board.class_names.index("novel-1"))[0])
    board.answer("confirm", [row], None, "1")
    assert desk.edit("rename", ("novel-1", "okapi"), "2") == "novel-1 is called okapi now"
    assert board.class_names == ["ant", "bee", "okapi", "novel-2"]
    assert list(AnswerLog(run / ANSWERS_FILE).labels.values()) == ["okapi"]
    desk.edit("merge", ("okapi", "novel-2"), "3")
    assert board.class_names == ["ant", "bee", "okapi"]
    assert "novel-2" not in set(lw.Run(run).labels["label"].to_pylist())
    with pytest.raises(ConfigError, match="changed again since novel-1 and okapi"):
        desk.undo_edit(1, "4")
    assert desk.undo_edit(2, "5") == "undone: okapi and novel-2"
    desk.undo_edit(1, "6")
    assert board.class_names == ["ant", "bee", "novel-1", "novel-2"]
    assert {p: (run / p).read_bytes() for p in before} == before
    assert list(AnswerLog(run / ANSWERS_FILE).labels.values()) == ["novel-1"]
    with pytest.raises(ConfigError, match="is a class that your labels name"):
        desk.edit("rename", ("ant", "wasp"), "7")
    assert len(AnswerLog(run / ANSWERS_FILE).answers) == 5
    assert {path.name for path in (run / "review").iterdir()} == {"before-1", "before-2"}


def test_classes__changed_by_the_command_answers_follow(run: Path, tmp_path: Path) -> None:
    board = desk_of(run).board
    rows = [int(np.flatnonzero(board.label == board.class_names.index(f"novel-{i}"))[0]) for i in (1, 2)]
    board.answer("confirm", rows, None, "1")
    lw.classes(run, "rename", ("novel-1", "okapi"))
    assert board.state()["classes"][2]["name"] == "okapi", "a page that is open sees it"
    assert sorted(corrections_of(run).values()) == ["novel-2", "okapi"]
    assert [item["answer"] for item in board.items(np.array(rows))] == [2, 3]
    lw.classes(run, "drop", ("novel-2",))
    assert list(corrections_of(run).values()) == ["okapi"], "no class is left for the other answer"
    desk = desk_of(run)
    assert desk.undo_edit(2, "2") == "undone: novel-2"
    assert desk.board.class_names == ["ant", "bee", "okapi", "novel-2"]
    assert sorted(corrections_of(run).values()) == ["novel-2", "okapi"]
    swap = {"okapi": "novel-2", "novel-2": "okapi"}
    lw.label(run, lw.Run(run).config["data"], rename=swap)
    assert [corrections_of(run)[str(row)] for row in rows] == ["novel-2", "okapi"]


def test_answers__of_a_page_that_shows_other_classes_are_refused(run: Path) -> None:
    desk = desk_of(run)
    board, row = desk.board, 3
    before, seen = board.version, int(board.label[row])
    board.answer("assign", [row], 3, "1", version=before)
    desk.edit("merge", ("ant", "novel-1"), "2")  # what was class 3 is class 2 now
    with pytest.raises(ConfigError, match=r"the classes changed after this page showed them[\s\S]*answer again"):
        board.answer("assign", [row + 1], 2, "3", version=before)
    assert board.answer("assign", [row], 3, "1", version=before)["n_answered"] == 1, "sent once more"
    board.answer("confirm", [row], None, "4", seen=[1], version=board.version)  # another page had assigned something
    assert corrections_of(run) == {str(row): "bee"}
    desk.undo_edit(1, "5")
    assert (board.version, board.label[row]) == (before, seen)


def test_suggest__from_the_features_of_the_run(run: Path) -> None:
    board = desk_of(run).board
    board.is_reading = True
    assert board.order("next")["coming"] is True
    suggest(board)
    assert board.suggested is not None
    assert sorted(board.suggested.tolist()) == list(range(160))
    found = board.order("next")
    assert found["coming"] is False
    first = board.page(found["order"], 0, 20)
    assert not any(item["given"] for item in first)
    assert {item["label"] for item in first} == {0, 1, 2, 3}, "spread over the classes"
    assert board.order("group")["n"] == 160


def test_suggest__the_order_is_there_before_the_groups(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, seen = desk_of(run).board, list[bool]()

    def groups_of(z: torch.Tensor) -> torch.Tensor:
        seen.append(board.suggested is not None)
        return torch.zeros(len(z), dtype=torch.int64)

    monkeypatch.setattr("labelwright.reviewing.order.groups_of", groups_of)
    suggest(board)
    assert seen == [True]


def test_pictures__of_embeddings_that_know_their_files(run: Path, tmp_path: Path) -> None:
    assert desk_of(run).pictures.small(0) is None
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (300, 200), (80 * i, 0, 0)).save(photos / f"{i}.png")
    feats = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "more.npz", embeddings=feats, ids=["2", "1", "9"], paths=[f"photos/{i}.png" for i in (2, 1, 0)])
    for data in (photos, tmp_path / "more.npz"):
        shown = desk_of(run, data).pictures
        if data == photos:  # whose ids are the names of the files
            assert shown.small(2) is None
            continue
        picture = shown.small(2)
        assert picture is not None
        with Image.open(io.BytesIO(picture)) as opened:
            assert opened.size == (192, 128)
            assert abs(opened.convert("RGB").getpixel((9, 9))[0] - 160) < 12
        assert shown.small(0) is None


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "corrections.csv"
    with pytest.raises(ConfigError, match="nothing was answered"):
        lw.review(run, export=target)
    board = desk_of(run).board
    board.answer("assign", [0, 1], 1, "1")
    board.answer("stranger", [1], None, "2")
    with pytest.raises(ConfigError, match=r"does not end in .csv"):
        lw.review(run, export=tmp_path / "corrections.txt")
    assert cli.run(["review", str(run), "--export", str(target)]) == 0
    with target.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "label"], ["0", "bee"], ["1", ""]]
    assert f"corrections: {target}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="exists"):
        lw.review(run, export=target)
    with pytest.raises(DataError, match=r"no summary.json"):
        lw.review(tmp_path, export=tmp_path / "other.csv")


def test_apply__answers_are_given_labels_of_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, truth = np.random.default_rng(0), np.arange(120) % 3
    feats = 2 * np.eye(3, 8)[truth] + 0.6 * draw.normal(size=(120, 8))
    labels = np.where(np.arange(120) < 18, np.array(NAMES)[truth], "")
    labels[0], labels[1] = "bee", "ant"  # two wrong ones
    np.savez(tmp_path / "train.npz", embeddings=feats.astype(np.float32), labels=labels)
    run = tmp_path / "run"
    lw.fit(tmp_path / "train.npz", out=run, method="beliefs", device="cpu", test_frac=0.0)
    with pytest.raises(ConfigError, match="nothing was answered"):
        lw.review(run, apply=True)
    board = desk_of(run).board
    board.answer("assign", [0, 60], 0, "1")
    board.answer("stranger", [1], None, "2")
    assert cli.run(["review", str(run), "--apply"]) == 0
    assert re.search(r"3 answers learned from, \d+ labels? changed: .*run-2", capsys.readouterr().out)
    after = lw.Run(tmp_path / "run-2").labels
    assert after is not None
    facts = {row["id"]: (row["label"], row["source"]) for row in after.to_pylist()}
    assert facts["0"] == facts["60"] == ("ant", "given")
    assert facts["1"][1] == "predicted"
    assert facts["2"] == ("cow", "given")
    again = tmp_path / "run-2"  # what was answered about the first run is learned from as well
    desk_of(again).board.answer("assign", [4, 60], 2, "3")
    assert corrections_of(again) == {"0": "ant", "1": "", "4": "cow", "60": "cow"}


def test_apply__a_discovered_class_with_a_name_and_images_is_a_class(run: Path) -> None:
    desk = desk_of(run)
    rows = np.flatnonzero(desk.board.label == desk.board.class_names.index("novel-1"))[:6].tolist()
    desk.board.answer("confirm", rows, None, "1")
    with pytest.raises(ConfigError, match="novel-1 has images and no name yet"):
        desk.apply()
    desk.edit("rename", ("novel-1", "okapi"), "2")
    assert "6 answers learned from" in desk.apply()
    again = lw.Run(run.with_name("run-2"))
    assert again.class_names == ["ant", "bee", "okapi"]
    assert again.labels is not None
    assert [again.labels["label"][row].as_py() for row in rows] == ["okapi"] * 6
    assert "novel-1" in again.labels["label"].to_pylist()


def test_apply__a_discovered_class_with_a_name_stays_without_answers(run: Path) -> None:
    desk = desk_of(run)
    of_it = np.flatnonzero(desk.board.label == desk.board.class_names.index("novel-1"))
    unnamed = {name for name in desk.board.class_names if name.startswith("novel-")} - {"novel-1"}
    desk.edit("rename", ("novel-1", "okapi"), "1")
    desk.board.answer("confirm", [0], None, "2")
    says = desk.apply()
    again = lw.Run(run.with_name("run-2"))
    assert again.labels is not None
    assert again.class_names[:3] == ["ant", "bee", "okapi"]
    labels = np.array(again.labels["label"].to_pylist())
    assert np.mean(labels[of_it] == "okapi") > 0.8
    sources = np.array(again.labels["source"].to_pylist())
    assert np.sum((labels == "okapi") & (sources == "given")) == 10
    assert "1 answer learned from" in says
    assert "Up to 10 of the likeliest images each count as given labels of okapi" in says
    assert ("Found anew" in says) is bool(unnamed)


def test_apply__says_which_merges_are_lost_and_counts_no_new_numbers(run: Path) -> None:
    desk = desk_of(run)
    others = [name for name in desk.board.class_names if name.startswith("novel-")]
    desk.edit("merge", ("bee", others[0]), "1")
    desk.board.answer("confirm", [0], None, "2")
    says = desk.apply()
    assert f". Not kept, as only names are: merged into bee: {others[0]}" in says


def test_apply__a_run_on_pixels_is_left_to_a_command(tmp_path: Path) -> None:
    run = write_run(tmp_path, n=4)
    desk_of(run).board.answer("confirm", [0], None, "1")
    with pytest.raises(
        ConfigError, match=r"learned from pixels[\s\S]*--corrections .*corrections-\w+.csv --out .*run-2"
    ):
        lw.review(run, apply=True)


def test_address__kept_for_the_next_start_and_for_nobody_else(tmp_path: Path) -> None:
    run = write_run(tmp_path, n=4)
    desk = desk_of(run)
    first = _started(desk, run, 0)
    beside = _started(desk, run, 0)  # while the first runs
    assert beside.server_port != first.server_port
    assert beside.token != first.token
    for server in (first, beside):
        server.server_close()
    path = run / "review" / "address.json"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(json.dumps({"port": first.server_port, "token": first.token}), encoding="utf-8")
    again = _started(desk, run, 0)
    again.server_close()
    assert again.address == first.address
    path.write_text("broken", encoding="utf-8")
    _started(desk, run, 0).server_close()
    shutil.rmtree(run / "review")
    (run / "review").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        _started(desk, run, 0)


def test_end__a_change_of_classes_is_made_whole(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, goes_on = Work(), threading.Event()

    def edit() -> str:
        goes_on.wait(10)
        return "merged into okapi"

    work.begin("classes", edit)
    threading.Timer(0.2, goes_on.set).start()
    _finish(work, run)
    assert work.state == "done"
    assert "merged into okapi" in capsys.readouterr().err
    goes_on.clear()
    work.begin("apply", edit)
    _finish(work, run)
    assert f"labelwright review {run} --apply" in capsys.readouterr().err
    ended = list[int]()
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(SystemExit):
        launch.end(0)
    assert ended == [0], "torch in another thread would abort the usual end"
    goes_on.set()


# ---- in a browser ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(run: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`labelwright review` in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "labelwright.cli", "review", str(run), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not tried in a browser")
def test_two_hundred_answers_by_keyboard_with_a_kill_in_between(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: the page is not tried in a browser")
    run, wrong = write_run(tmp_path, n=260), []
    expected: dict[str, str] = {}
    rows = lw.Run(run).labels
    assert rows is not None
    order = [row for row in range(260) if row % 4 != 1] + [row for row in range(260) if row % 4 == 1]
    ids, labels = rows["id"].to_pylist(), rows["label"].to_pylist()

    def give(page: object, places: range) -> None:
        """Of three images one is confirmed, one gets a class by its number, one is a stranger or is looked up."""
        for place in places:
            row = order[place]
            if place % 3 == 0:
                page.keyboard.press("Enter")  # type: ignore[attr-defined]
                expected[ids[row]] = labels[row]
            elif place % 3 == 1:
                page.keyboard.press("2")  # type: ignore[attr-defined]
                expected[ids[row]] = "dog"
            elif place % 2:
                page.keyboard.press("x")  # type: ignore[attr-defined]
                expected[ids[row]] = ""
            else:
                for key in ("/", "i", "m", "g", "Enter"):
                    page.keyboard.press(key)  # type: ignore[attr-defined]
                expected[ids[row]] = HOSTILE

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        with serving(run) as (address, process):
            page.goto(address)
            page.wait_for_selector("#tile-0 img")
            give(page, range(100))
            page.wait_for_selector("#saved:has-text('100 of 260')")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert AnswerLog(run / ANSWERS_FILE).labels == expected
        give(page, range(100, 104))  # nobody listens
        page.wait_for_selector("#saved.bad")
        assert "4 not saved yet" in page.inner_text("#saved")
        with serving(run) as (again, _):
            assert again == address
            page.wait_for_selector("#saved:has-text('104 of 260')")
            give(page, range(104, 200))
            page.keyboard.press("u")
            del expected[ids[order[199]]]
            page.wait_for_selector("#saved:has-text('199 of 260')")
            other = browser.new_page()
            other.goto(address)
            other.wait_for_selector("#tile-0 img")
            assert "199 of 260" in other.inner_text("#saved")
            assert other.get_attribute("#tile-0", "aria-label").endswith(ids[order[199]])
            other.keyboard.press("Shift+ArrowRight")
            other.keyboard.press("1")
            other.wait_for_selector("#saved:has-text('201 of 260')")
            expected |= dict.fromkeys((ids[order[199]], ids[order[200]]), CLASSES[0])
            assert page.evaluate("window.hurt") is None
            assert HOSTILE in page.inner_text("#choices")
        browser.close()
    assert AnswerLog(run / ANSWERS_FILE).labels == expected
    assert wrong == []
