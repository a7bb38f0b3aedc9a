"""The page's own web server: this machine alone, one random token, answers as JSON.

Every address begins with the token. A request is refused if it comes from another site, names another host (a name
that was made to point here), or lacks the token; what it may name is a row, an order or a class, by its number.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from labelwright.errors import LabelwrightError
from labelwright.launch import AHEAD
from labelwright.parsing import json_of
from labelwright.reviewing.answers import OF_CLASSES
from labelwright.reviewing.board import Board
from labelwright.reviewing.pictures import Pictures

HOST = "127.0.0.1"
MAX_BODY = 4 << 20  # bytes of a request: half a million rows
FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass
class Work:
    """Something long that a page asked for, in a thread of its own: one at a time."""

    state: str = "idle"  # "idle", "running", "done" or "failed"
    says: str = ""  # what came of it
    name: str = ""  # of what runs or ran
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def begin(self, name: str, task: Callable[[], str]) -> bool:
        """Start; False if something runs already."""
        with self._lock:
            if self.state == "running":
                return False
            self.state, self.says, self.name = "running", "", name

        def work() -> None:
            try:
                self.says = task()
                self.state = "done"
            except Exception as error:  # shown on the page, whatever it is
                self.says = str(error) or type(error).__name__
                self.state = "failed"

        self._thread = threading.Thread(target=work, name=AHEAD, daemon=True)
        self._thread.start()
        return True

    def join(self) -> None:
        """Wait for what runs."""
        if self._thread is not None:
            self._thread.join()


@dataclass
class Desk:
    """What the page works with."""

    board: Board  # this and the next: of the run
    pictures: Pictures
    # renames (OLD, NEW) or merges (KEPT, OTHER, ...) classes; returns what was done
    edit: Callable[[str, Sequence[str], str], str]
    undo_edit: Callable[[int, str], str]  # takes the edit of that number back
    apply: Callable[[], str]  # fits anew with the corrections; returns what came of it
    work: Work = field(default_factory=Work)


class ReviewServer(ThreadingHTTPServer):
    """Serves a desk until it is shut down.

    Args:
      port: 0 = any that is free.   token: None = a new one.

    Raises: OSError if the port is taken.
    """

    daemon_threads = True

    def __init__(self, desk: Desk, *, port: int = 0, token: str | None = None) -> None:
        super().__init__((HOST, port), _Handler)
        self.desk, self.token = desk, token or secrets.token_urlsafe(24)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but for a page that was closed while it waited."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def origin(self) -> str:
        """Where it is, without the token."""
        return f"http://{HOST}:{self.server_address[1]}"

    @property
    def address(self) -> str:
        """Of the page."""
        return f"{self.origin}/{self.token}/"


class _RefusedError(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "labelwright", ""
    timeout = 60  # seconds that an idle connection is kept
    disable_nagle_algorithm, wbufsize = True, -1  # an answer leaves in one piece and at once: else each takes 40 ms
    server: ReviewServer

    def do_GET(self) -> None:
        """A file of the page, a picture or something as JSON."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Something to do."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for people."""

    def _answer(self, make: Callable[[str], tuple[bytes, str]]) -> None:
        try:
            status, (body, kind) = 200, make(self._checked_path())
        except _RefusedError as refused:
            self.close_connection = True  # a body that was not read would be taken for the next request
            status, (body, kind) = refused.status, _json({"error": str(refused)})
        except LabelwrightError as error:
            status, (body, kind) = 400, _json({"error": str(error)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            status, (body, kind) = 500, _json({"error": f"not saved: {error}"})
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "private, max-age=86400" if kind == "image/webp" else "no-store")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _checked_path(self) -> str:
        """What stands after the token, with its query."""
        origin, hosts = self.headers.get("Origin"), {self.server.origin[7:], f"localhost:{self.server.server_port}"}
        if self.headers.get("Host") not in hosts:
            raise _RefusedError(403, "another host")
        if origin is not None and origin.removeprefix("http://") not in hosts:
            raise _RefusedError(403, "another origin")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _RefusedError(403, "another site")
        token, slash, rest = self.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusedError(404, "the token is missing or of another start of labelwright review")
        return rest

    def _get(self, target: str) -> tuple[bytes, str]:
        desk, url = self.server.desk, urlsplit(target)
        asked = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path in FILES:
            name, kind = FILES[url.path]
            return (resources.files("labelwright.reviewing") / name).read_bytes(), kind
        if found := re.fullmatch(r"(small|large)/(\d{1,12})", url.path):
            row = int(found[2])
            make = desk.pictures.small if found[1] == "small" else desk.pictures.large
            picture = make(row) if row < desk.board.n_rows else None
            if picture is None:
                raise _RefusedError(404, "no picture")
            return picture, "image/webp"
        if url.path == "api/state":
            work = {"state": desk.work.state, "says": desk.work.says, "name": desk.work.name}
            return _json(desk.board.state() | {"work": work, "no_pictures": desk.pictures.problem})
        if url.path == "api/order":
            label = int(asked["label"]) if asked.get("label") else None
            return _json(desk.board.order(asked.get("view", ""), label=label, is_open=asked.get("open") == "1"))
        if url.path == "api/page":
            order, first, n = (int(asked[key]) for key in ("order", "first", "n"))
            return _json({"items": desk.board.page(order, first, n)})
        raise _RefusedError(404, "no such page")

    def _post(self, target: str) -> tuple[bytes, str]:
        desk, content = self.server.desk, self._content()
        key = str(content.get("key", ""))
        if target == "api/answer":
            rows, label = content.get("rows"), content.get("label")
            if not isinstance(rows, list) or not all(type(row) is int for row in rows):
                raise _RefusedError(400, "rows are whole numbers")
            if not (label is None or type(label) is int):
                raise _RefusedError(400, "a class is given by its number")
            kind, seen, version = content.get("kind"), content.get("seen"), content.get("version")
            if seen is not None and not (isinstance(seen, list) and all(type(c) is int for c in seen)):
                raise _RefusedError(400, "classes are given by their numbers")
            return _json(desk.board.answer(kind, rows, label, key, seen=seen, version=version))  # type: ignore[arg-type]
        if target == "api/undo":
            number = content.get("number")
            answers = desk.board.log.answers
            if type(number) is not int or not 0 <= number < len(answers):
                raise _RefusedError(400, "there is no such answer")
            if answers[number].kind in OF_CLASSES:
                return self._begin("undo", lambda: desk.undo_edit(number, key))
            return _json(desk.board.undo(number, key))
        if target == "api/classes":
            action, names = content.get("action"), content.get("names")
            is_known = action in ("rename", "merge")
            if not is_known or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _RefusedError(400, "classes are renamed or merged, by their names")
            return self._begin("classes", lambda: desk.edit(str(action), names, key))
        if target == "api/apply":
            return self._begin("apply", desk.apply)
        raise _RefusedError(404, "no such page")

    def _begin(self, name: str, task: Callable[[], str]) -> tuple[bytes, str]:
        if not self.server.desk.work.begin(name, task):
            raise _RefusedError(409, "something is running already: wait for it")
        return _json({})

    def _content(self) -> dict[str, Any]:
        """The JSON object that was sent. Its type is one that no form of another site can send."""
        if self.headers.get("Content-Type", "").split(";")[0].strip() != "application/json":
            raise _RefusedError(415, "send JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise _RefusedError(413, f"at most {MAX_BODY} bytes")
        try:
            content = json_of(self.rfile.read(int(length)))
        except ValueError as error:
            raise _RefusedError(400, "this is no JSON") from error
        if not isinstance(content, dict):
            raise _RefusedError(400, "send an object")
        return content


def _json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"
