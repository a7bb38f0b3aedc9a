import io
import re
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from labelwright.train import progress


class _Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Clock]:
    it = _Clock()
    monkeypatch.setattr(progress, "time", it)
    return it


def test_bar__without_a_terminal_a_line_a_minute(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(True) as live:
        for step in range(1, 8):  # ten of 20 s, resumed after the third epoch of 10 steps
            live.update(3, 20, step, 10, lambda: {"loss": 1.25})
            clock.now_s += 20
    assert capsys.readouterr().err.splitlines() == [
        "epoch 4/20, step 34/200  about 55 min 20 s left  loss 1.250",
        "epoch 4/20, step 37/200  about 54 min 20 s left  loss 1.250",
    ]


def test_bar__short_or_unwanted_work_prints_nothing(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(True) as live:
        live.update(0, 2, 1, 10, dict)
        clock.now_s += 59
        live.update(0, 2, 2, 10, dict)
    with progress.bar(False) as live:
        clock.now_s += 600
        live.update(0, 2, 1, 10, dict)
    assert capsys.readouterr() == ("", "")


def test_track__without_a_terminal(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for total in (4, None):
        for _ in progress.track("abcd", "reading [a]", total):
            clock.now_s += 50
    assert capsys.readouterr().err.splitlines() == [
        "reading [a] 2/4  about 1 min 40 s left",
        "reading [a] 2",
        "reading [a] 4",
    ]


def test_counter__without_a_terminal(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.counter("embedding with clip", 20_000) as told:
        for n_done in (1_000, 2_000, 3_000):  # the first is where a killed run had come to
            told(n_done)
            clock.now_s += 45
    assert capsys.readouterr().err.splitlines() == ["embedding with clip 3,000/20,000  about 12 min 45 s left"]


@pytest.mark.parametrize("width", [60, 80])
def test_bar__on_a_terminal_a_line_that_fits_and_one_that_stays_of_long_work(
    width: int, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, legacy_windows=False, _environ={})
    monkeypatch.setattr(progress, "screen", lambda is_error: console)
    with progress.bar(True) as live:
        for step in range(1, 11):
            live.update(11, 104, step, 10, lambda: {"loss": 1.25, "co_labels": 3.0})
            clock.now_s += 20
    *frames, kept = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()).strip().splitlines()
    assert kept == "epoch 12/104, step 120/1,040  3 min 20 s"
    last = [frame for frame in frames if frame][-1]
    assert re.match("[━╸╺]+ epoch 12/104, step 120/1,040  about 5 h 6 min left", last)
    assert last.endswith("loss 1.250" if width == 80 else "left")
    assert max(map(len, frames)) <= width


def test_track__short_work_leaves_no_line_on_a_terminal(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, legacy_windows=False, _environ={})
    monkeypatch.setattr(progress, "screen", lambda is_error: console)
    assert list(progress.track("ab", "predicting", 2)) == ["a", "b"]
    assert out.getvalue().endswith("\x1b[1A\x1b[2K")  # what was there is wiped


def test_heartbeat__a_line_now_and_then_of_work_that_nothing_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.02)
    for show in (True, False):
        with progress.heartbeat("solving", show=show):
            time.sleep(0.3)
        lines = capsys.readouterr().err.splitlines()
        assert (len(lines) >= 2) is show
        assert all(re.fullmatch(r"solving, .* so far", line) for line in lines)
