"""reviewing/server.py and board.py: who may ask, for what, and what is kept of the answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelwright.pipeline.review import desk_of
from labelwright.reviewing.answers import ANSWERS_FILE, AnswerLog
from labelwright.reviewing.server import ReviewServer
from reviewed import CLASSES, HOSTILE, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture
def server(run: Path) -> Iterator[ReviewServer]:
    made = ReviewServer(desk_of(run))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(
    server: ReviewServer, path: str, content: Any = None, *, token: str | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a request; with content it is a POST of JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content)
    if content is not None:
        sent.setdefault("Content-Type", "application/json")
    target = f"/{server.token if token is None else token}/{path}"
    connection.request("GET" if content is None else "POST", target, body=body, headers=sent)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def told(server: ReviewServer, path: str, content: Any = None) -> dict[str, Any]:
    status, body, _ = ask(server, path, content)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


@pytest.mark.parametrize("content", [None, {"kind": "confirm", "rows": [0]}])
def test_strangers_are_refused(server: ReviewServer, run: Path, content: Any) -> None:
    path = "api/state" if content is None else "api/answer"
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert ask(server, path, content, token="guess")[0] == 404
    assert ask(server, path, content, token="")[0] == 404
    assert ask(server, path, content, Origin="https://evil.example")[0] == 403
    assert ask(server, path, content, Origin="null")[0] == 403
    assert ask(server, path, content, Host="evil.example")[0] == 403
    assert ask(server, path, content, Host=f"evil.example:{server.server_port}")[0] == 403
    assert ask(server, path, content, Sec_Fetch_Site="cross-site")[0] == 403
    assert not (run / ANSWERS_FILE).exists()
    assert ask(server, path, content, Origin=server.origin)[0] == 200


def test_forms_of_other_sites_cannot_answer(server: ReviewServer, run: Path) -> None:
    sent = {"kind": "confirm", "rows": [0]}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert ask(server, "api/answer", sent, Content_Type=kind)[0] == 415
    assert ask(server, "api/answer", b"{", Content_Type="application/json")[0] == 400
    assert ask(server, "api/answer", b"[]")[0] == 400
    assert ask(server, "api/answer", b"", Content_Length=str(1 << 40))[0] == 413
    assert not (run / ANSWERS_FILE).exists()


@pytest.mark.parametrize(
    "path",
    [
        "../config.yaml",
        "small/../../config.yaml",
        "small/..%2F..%2Fconfig.yaml",
        "small/-1",
        "small/40",
        "large/1.0",
        "server.py",
        "page.html/..",
        "//etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "small/" + "9" * 40,
        "api/",
    ],
)
def test_nothing_but_pictures_of_the_run_is_read(server: ReviewServer, path: str) -> None:
    status, body, headers = ask(server, path)
    assert status == 404
    assert set(json.loads(body)) == {"error"}
    assert headers["Content-Type"] == "application/json"


def test_page_and_pictures(server: ReviewServer, run: Path) -> None:
    status, page, headers = ask(server, "")
    assert status == 200
    assert b"<script src" in page
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name in ("page.js", "page.css"):
        assert ask(server, name)[0] == 200
    for size in ("small", "large"):
        status, picture, headers = ask(server, f"{size}/3")
        assert (status, picture[:4], picture[8:12], headers["Content-Type"]) == (200, b"RIFF", b"WEBP", "image/webp")
    (kept,) = (run / "review" / "pictures").rglob("*.webp")
    Path(kept).write_bytes(b"kept")
    assert ask(server, "small/3")[1] == b"kept"  # made once
    (run.parent / "photos" / "00000.png").write_bytes(b"broken")
    assert ask(server, "small/0")[0] == 404


def test_script_never_writes_html() -> None:
    """Names reach the page as text alone."""
    import labelwright.reviewing.server as module

    script = (Path(module.__file__).parent / "page.js").read_text(encoding="utf-8")
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(") if word in script
    ]


def test_answers_of_two_pages_and_a_new_start(server: ReviewServer, run: Path) -> None:
    first = told(server, "api/order?view=doubt")
    (item, *_) = told(server, f"api/page?order={first['order']}&first=0&n=5")["items"]
    assert (item["row"], item["id"], item["label"], item["answer"], item["given"]) == (0, "00000.png", 0, None, False)
    done = told(server, "api/answer", {"kind": "assign", "rows": [0, 3], "label": 2, "key": "1"})
    assert (done["n_answered"], done["undoable"]) == (2, [0])
    again = told(server, "api/answer", {"kind": "assign", "rows": [0, 3], "label": 2, "key": "1"})
    assert (again["number"], again["n_answers"]) == (0, 1)
    told(server, "api/answer", {"kind": "stranger", "rows": [3], "key": "2"})
    told(server, "api/answer", {"kind": "confirm", "rows": [1, 3], "key": "3"})
    other = ReviewServer(desk_of(run))  # another process
    other.desk.board.answer("assign", [8], 1, "4")
    other.server_close()
    assert told(server, "api/state")["n_answered"] == 4
    hostile_id = f"{HOSTILE.replace('/', '')}3.png"
    expected = {"00000.png": HOSTILE, hostile_id: "", "00001.png": "dog", "00008.png": "dog"}
    assert AnswerLog(run / ANSWERS_FILE).labels == expected
    assert told(server, f"api/page?order={first['order']}&first=0&n=1")["items"][0]["answer"] == 2
    back = told(server, "api/undo", {"number": 0, "key": "5"})
    assert [(i["row"], i["answer"]) for i in back["items"]] == [(0, None), (3, -1)]
    assert ask(server, "api/undo", {"number": 0, "key": "6"})[0] == 400


def test_orders(server: ReviewServer) -> None:
    def rows(query: str) -> list[int]:
        found = told(server, f"api/order?{query}")
        items = told(server, f"api/page?order={found['order']}&first=0&n=1000")["items"]
        assert len(items) == found["n"]
        return [item["row"] for item in items]

    given = [row for row in range(40) if row % 4 == 1]
    assert rows("view=doubt") == [row for row in range(40) if row not in given]
    assert rows("view=suspect") == [row for row in given if 0.2 + 0.7 * row / 40 < 0.5]
    assert rows("view=stranger") == [5]
    assert rows("view=class") == [row for c in range(4) for row in range(40) if row % 4 == c]
    assert rows("view=class&label=3") == list(range(3, 40, 4))
    assert rows("view=next") == [*rows("view=doubt"), *given]
    told(server, "api/answer", {"kind": "assign", "rows": [3, 2], "label": 0})
    assert rows("view=class&label=0") == [*range(0, 40, 4), 2, 3]
    assert 3 not in rows("view=class&open=1")
    assert rows("view=answered") == [2, 3]
    missing = {view["key"]: view["missing"] for view in told(server, "api/state")["views"]}
    assert missing["group"]
    assert not missing["suspect"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("api/answer", {"kind": "assign", "rows": [0], "label": 4}),
        ("api/answer", {"kind": "assign", "rows": [0], "label": "cat"}),
        ("api/answer", {"kind": "assign", "rows": [40], "label": 0}),
        ("api/answer", {"kind": "assign", "rows": [-1], "label": 0}),
        ("api/answer", {"kind": "assign", "rows": [True], "label": 0}),
        ("api/answer", {"kind": "assign", "rows": [], "label": 0}),
        ("api/answer", {"kind": "undo", "rows": [0]}),
        ("api/answer", {"kind": ["confirm"], "rows": [0]}),
        ("api/undo", {"number": 0}),
        ("api/undo", {"number": "0"}),
        ("api/classes", {"action": "drop", "names": ["cat"]}),
        ("api/classes", {"action": "rename", "names": "cat"}),
    ],
)
def test_impossible_answers_are_refused_and_not_kept(
    server: ReviewServer, run: Path, path: str, content: dict[str, Any]
) -> None:
    status, body, _ = ask(server, path, content)
    assert status == 400
    assert json.loads(body)["error"]
    assert not (run / ANSWERS_FILE).exists()


def test_a_full_disk_is_told(server: ReviewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelwright.reviewing.answers.os.fsync", fail)
    status, body, _ = ask(server, "api/answer", {"kind": "confirm", "rows": [0]})
    assert status == 500
    assert "No space left" in json.loads(body)["error"]


def test_long_work_is_one_at_a_time_and_told(server: ReviewServer) -> None:
    held, desk = threading.Event(), server.desk
    desk.apply = lambda: str(held.wait(10))
    assert told(server, "api/apply", {}) == {}
    assert told(server, "api/state")["work"] == {"state": "running", "says": "", "name": "apply"}
    assert ask(server, "api/classes", {"action": "rename", "names": ["cat", "lynx"]})[0] == 409
    held.set()
    assert finished(server) == {"state": "done", "says": "True", "name": "apply"}
    told(server, "api/classes", {"action": "rename", "names": ["cat", "lynx"]})
    failed = finished(server)  # this run discovered no classes
    assert failed["state"] == "failed"
    assert failed["says"]


def finished(server: ReviewServer) -> dict[str, str]:
    """What came of the work, once it is over."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        work: dict[str, str] = told(server, "api/state")["work"]
        if work["state"] != "running":
            return work
        time.sleep(0.01)
    raise AssertionError("it never ended")


def test_class_names_of_the_fixture_are_hostile() -> None:
    assert HOSTILE in CLASSES
