"""Chat models behind an OpenAI-compatible endpoint: what is sent, and what is done about each kind of fault."""

from __future__ import annotations

import base64
import io
import itertools
import logging
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from labelwright.errors import ConfigError, DataError, LabelwrightError, OfflineError
from labelwright.wording import redacted

IMAGE_EDGE_PX = 512  # longer edges are scaled down to it before an image is sent
LOSSLESS_EDGE_PX = 128  # images no larger are sent as PNG: JPEG would blur what little they show
FIRST_WAIT_S = 0.5  # before the first repetition; doubled each time
LONGEST_WAIT_S = 30.0
ANSWER_TOKENS_MAX = 300
ANSWER_BYTES_MAX = 1 << 20  # of an answer with all that the endpoint wraps it in
REDIRECTS_MAX = 3
LONGEST_ASKED_WAIT_S = 300.0  # an endpoint that asks (Retry-After) for more has failed

log = logging.getLogger(__name__)


def data_url(image: Image.Image) -> str:
    """The image as it is sent: RGB, edges of at most 512 px, PNG if small and JPEG otherwise, base64 in a data URL.

    Example:
      >>> data_url(Image.new("L", (2, 2)))[:22], data_url(Image.new("RGB", (900, 300)))[:23]
      ('data:image/png;base64,', 'data:image/jpeg;base64,')
    """
    sent = image.convert("RGB")
    sent.thumbnail((IMAGE_EDGE_PX, IMAGE_EDGE_PX), Image.Resampling.BICUBIC)
    kind = "png" if max(sent.size) <= LOSSLESS_EDGE_PX else "jpeg"
    buffer = io.BytesIO()
    sent.save(buffer, format=kind, **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class _PassingError(Exception):
    """A fault that may be gone next time; ``wait_s`` if the endpoint names a time to come back."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _is_url(text: str) -> bool:
    """Whether it says over http or https where an endpoint is."""
    with suppress(ValueError):  # a port that is none, a bracket that is not closed
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    return False


class OpenAIChat:
    """A model behind an OpenAI-compatible endpoint: OpenAI's own, or one you run (vLLM, llama.cpp, Ollama, ...).

    Nothing is sent before the first question. Waits before a repetition are logged as warnings. Threads may share it.

    Args:
      name: of the model there.
      base_url: of the endpoint, usually ending in /v1; None = OPENAI_BASE_URL if set, else OpenAI's.
      timeout_s: until a request counts as lost.   retries: repetitions of a question whose fault may pass.
      max_in_flight: requests under way at once, at most.
      sleep: what waits; for tests.

    Attributes:
      endpoint: the base URL asked, without a password.

    Redirects to another host are refused, and answers of more than ANSWER_BYTES_MAX; keys and passwords are in no
    message.

    Raises: ConfigError: the openai package is missing, an invalid URL, or no key (OPENAI_API_KEY) for OpenAI's own
      endpoint; others may need none.

    Example:
      >>> chat = OpenAIChat("llava", base_url="http://localhost:8000/v1")
      >>> chat.name, chat.endpoint
      ('llava', 'http://localhost:8000/v1')
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 6,
        max_in_flight: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "asking a chat endpoint needs the openai package", fix="pip install 'labelwright[llm]'"
            ) from error
        url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if not _is_url(url):
            shown = redacted(f"***@{url.rpartition('@')[2]}" if "@" in url else url)
            raise ConfigError(
                f"the base URL {shown!r} is not a URL",
                fix="give it as http://host:8000/v1 or https://...; in a password / is %2F, : is %3A and @ is %40",
            )
        if "//***@" in url:
            raise ConfigError(
                f"{url} was read from a config.yaml, which keeps no password", fix="give --chat-url with it again"
            )
        key = os.environ.get("OPENAI_API_KEY")
        if not key and "//api.openai.com" in url:
            raise ConfigError(
                f"no key for {url}", fix="set OPENAI_API_KEY, or give the base URL of an endpoint that needs none"
            )
        self.name = name
        self.endpoint = redacted(url.rstrip("/"))
        self._secrets = [word for word in (key, *re.findall(r"//([^/@]*)@", url)) if word]
        self.max_in_flight = max_in_flight
        self._client = openai.OpenAI(
            api_key=key or "none",
            base_url=url,
            timeout=timeout_s,
            max_retries=0,
            http_client=_guarded(openai, timeout_s),
        )
        self._settings: dict[str, float] = {"max_tokens": ANSWER_TOKENS_MAX, "temperature": 0.0}  # the likeliest answer
        self._timeout_s = timeout_s
        self._retries = retries
        self._room = threading.BoundedSemaphore(max_in_flight)
        self._sleep = sleep
        self._draws = random.Random()  # its own: Python's and torch's stay as seeded
        self._hang_up = weakref.finalize(self, self._client.close)  # else left to chance: the client refers to itself

    def close(self) -> None:
        """Hang up: connections to the endpoint that are kept open between questions; done too when this is dropped."""
        self._hang_up()

    def ask(self, prompt: str, image: Image.Image | None = None) -> str:
        """The answer to one question, after as many repetitions as its faults call for.

        Raises:
          ConfigError: every question would be refused like this one: key, model name, quota.
          DataError: the endpoint refuses this one, or the answer did not fit into ANSWER_TOKENS_MAX.
          OfflineError: no answer after the last repetition.
        """
        content: Any = prompt
        if image is not None:
            shown = {"type": "image_url", "image_url": {"url": data_url(image)}}
            content = [{"type": "text", "text": prompt}, shown]
        for attempt in itertools.count():
            try:
                with self._room:
                    return self._once(content)
            except _PassingError as fault:
                asked_s = fault.wait_s
                if attempt == self._retries or (asked_s is not None and asked_s > LONGEST_ASKED_WAIT_S):
                    later = "" if asked_s is None else f"; it asks to wait {asked_s:g} s"
                    raise OfflineError(
                        f"{self.endpoint} gave no answer in {attempt + 1} attempts: {fault}{later}",
                        fix="check that it runs and can be reached from here, then start again",
                    ) from fault
                doubled_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt)
                wait_s = (asked_s or 0.0) + doubled_s * self._draws.uniform(0.5, 1.0)
                log.warning("%s: %s; asking again in %.1f s", self.endpoint, fault, wait_s)
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _once(self, content: Any) -> str:
        import openai

        settings = self._settings
        messages = [{"role": "user", "content": content}]
        try:
            done = self._client.chat.completions.create(model=self.name, messages=messages, **settings)
        except openai.APITimeoutError as error:
            raise _PassingError(f"no answer within {self._timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, (LabelwrightError, _PassingError)):  # of `_guarded`
                raise error.__cause__ from error
            raise _PassingError(self._said(f"no connection ({error.__cause__ or error})")) from error
        except openai.APIStatusError as error:
            if error.code in ("unsupported_parameter", "unsupported_value") and error.param in settings:
                kept = {key: value for key, value in settings.items() if key != error.param}
                if error.param == "max_tokens":  # which newer models of OpenAI know by another name
                    kept["max_completion_tokens"] = settings["max_tokens"]
                self._settings = kept
                return self._once(content)
            raise self._verdict(error) from error
        except ValueError as error:
            raise _PassingError("the answer is not JSON") from error
        try:
            choice = done.choices[0]
            text = choice.message.content or getattr(choice.message, "refusal", None) or ""
        except (AttributeError, IndexError, TypeError) as error:
            raise _PassingError(
                "the answer is not a chat completion (is the base URL right? most end in /v1)"
            ) from error
        if not text and choice.finish_reason == "length":
            raise DataError(
                f"{self.name} used up the tokens of its answer before it answered",
                fix="name a model that reasons less, or turn its reasoning off at the endpoint",
            )
        return str(text)

    def _said(self, text: str) -> str:
        """What an endpoint or a library says, without keys and passwords."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return redacted(text)

    def _verdict(self, error: Any) -> Exception:
        """What an HTTP status other than success means."""
        status, detail = error.status_code, self._said(_detail(error))
        if error.code == "insufficient_quota":
            return ConfigError(f"{self.endpoint}: the quota of this key is used up: {detail}", fix="see to its billing")
        if status in (408, 409, 429) or status >= 500:
            return _PassingError(f"HTTP {status}: {detail}", _retry_after_s(error.response.headers.get("retry-after")))
        if status in (401, 403):
            return ConfigError(
                f"{self.endpoint} does not accept the key (HTTP {status}): {detail}",
                fix="set OPENAI_API_KEY to a key of that endpoint that may use this model",
            )
        if status == 404 or error.code == "model_not_found":
            return ConfigError(
                f"{self.endpoint} has no model {self.name!r} (HTTP {status}): {detail}",
                fix="check the model name, and that the base URL is right (most end in /v1)",
            )
        return DataError(
            f"{self.endpoint} refuses the question (HTTP {status}): {detail}",
            fix="check that this model takes images, and questions of this length",
        )


def _guarded(openai: Any, timeout_s: float) -> Any:
    """The library's client for HTTP, which follows no redirect to another host and reads no answer without end."""

    class Guarded(openai.DefaultHttpxClient):  # type: ignore[misc]
        def send(self, request: Any, **how: Any) -> Any:
            began, asked = time.monotonic(), request.url
            for _ in range(REDIRECTS_MAX + 1):
                response = super().send(request, **{**how, "stream": True, "follow_redirects": False})
                try:
                    if response.next_request is None:
                        return _read(response, began)
                    request = response.next_request
                    if (request.url.scheme, request.url.host, request.url.port) != (
                        asked.scheme,
                        asked.host,
                        asked.port,
                    ):
                        raise ConfigError(
                            f"{asked.host} sends the question on to {request.url.host}, which nobody named",
                            fix="if that is right, give its address as the base URL",
                        )
                finally:
                    response.close()
            raise ConfigError(f"{asked.host} sends the question in a circle", fix="check the base URL")

    def _read(response: Any, began: float) -> Any:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise DataError(
                    f"{response.request.url.host} answers with more than {ANSWER_BYTES_MAX:,} bytes",
                    fix="check that the base URL is that of a chat endpoint (most end in /v1)",
                )
            if time.monotonic() - began > timeout_s:
                raise _PassingError(f"no whole answer within {timeout_s:g} s")
        headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _OF_TRANSPORT]
        return type(response)(response.status_code, headers=headers, content=bytes(body), request=response.request)

    return Guarded(timeout=timeout_s)


_OF_TRANSPORT = ("content-encoding", "content-length", "transfer-encoding")


def _detail(error: Any) -> str:
    """The endpoint's own words, on one line."""
    words = error.body.get("message") if isinstance(error.body, Mapping) else None
    return " ".join(str(words or error.message).split())[:200]


def _retry_after_s(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a number of them, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
