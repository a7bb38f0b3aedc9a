"""An OpenAI-compatible chat endpoint on this machine that answers, and misbehaves, as a test tells it to."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Seen:
    """A request as it came in: the question's text, its image or None, and the rest (header names lower case)."""

    prompt: str
    image: Image.Image | None
    model: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    path: str


@dataclass(frozen=True)
class Fail:
    """Answer with an HTTP error; ``code`` and ``param`` as in OpenAI's error objects."""

    status: int = 500
    message: str = "out of order"
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class Raw:
    """Answer 200 with this body, whatever it is: not a chat completion, not even JSON."""

    body: str = '{"choices": [{"message": {"con'
    content_type: str = "application/json"


@dataclass(frozen=True)
class Stall:
    """Say nothing for so long, then hang up."""

    seconds: float


class Drop:
    """Hang up without a word."""


def rate_limit(seconds: float | str = 0) -> Fail:
    """HTTP 429 that asks to come back after so many seconds."""
    return Fail(429, "slow down", headers={"Retry-After": str(seconds)})


Behaviour = str | Fail | Raw | Stall | Drop
"""What a request gets; a str is answered in an ordinary completion."""

Answer = Behaviour | Callable[[Seen], Behaviour]
"""The same for every request, or made from the request."""


class ChatStub:
    """The endpoint: the first requests get the behaviours of ``script`` in turn, the later ones ``answer``.

    Used as ``with ChatStub(answer) as stub: OpenAIChat("m", base_url=stub.url)``; ``stub.seen`` holds the requests.
    """

    def __init__(self, answer: Answer = "yes", *, script: Iterable[Behaviour] = ()) -> None:
        self._answer = answer
        self._script = list(script)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._in_flight = 0
        self.most_in_flight = 0
        self.seen: list[Seen] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                stub._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ChatStub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(*_question(body), body["model"], body, headers, request.path)
        with self._lock:
            self.seen.append(seen)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            scripted = self._script.pop(0) if self._script else None
        try:
            if request.path != "/v1/chat/completions":
                _send(request, 404, json.dumps({"error": {"message": f"no such path {request.path}"}}))
            elif scripted is not None:
                self._behave(request, scripted, seen)
            else:
                self._behave(request, self._answer(seen) if callable(self._answer) else self._answer, seen)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _behave(self, request: BaseHTTPRequestHandler, behaviour: Behaviour, seen: Seen) -> None:
        if isinstance(behaviour, str):
            _send(request, 200, json.dumps(completion(behaviour, seen.model)))
        elif isinstance(behaviour, Raw):
            _send(request, 200, behaviour.body, content_type=behaviour.content_type)
        elif isinstance(behaviour, Fail):
            error = {"message": behaviour.message, "code": behaviour.code, "param": behaviour.param, "type": "error"}
            _send(request, behaviour.status, json.dumps({"error": error}), headers=behaviour.headers)
        else:
            if isinstance(behaviour, Stall):
                self._closing.wait(behaviour.seconds)
            request.close_connection = True


def completion(text: str | None, model: str = "stub", *, finish_reason: str = "stop") -> dict[str, Any]:
    """The JSON of an ordinary answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}


def _question(body: Mapping[str, Any]) -> tuple[str, Image.Image | None]:
    """Text and image of the last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, None
    image = None
    for part in content:
        if part["type"] == "image_url":
            encoded = part["image_url"]["url"].partition("base64,")[2]
            image = Image.open(io.BytesIO(base64.b64decode(encoded)))
            image.load()
    return "".join(part["text"] for part in content if part["type"] == "text"), image


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: str,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    encoded = body.encode()
    request.send_response(status)
    for name, value in {**(headers or {}), "Content-Type": content_type, "Content-Length": str(len(encoded))}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(encoded)
