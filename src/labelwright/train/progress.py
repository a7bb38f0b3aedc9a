"""Live progress on a terminal; elsewhere, as in the log of a job, a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event, Thread
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from labelwright.screen import screen
from labelwright.wording import duration

REDRAWN_EVERY_S = 0.1  # on a terminal
LINE_EVERY_S = 60.0  # of work that is not shown on a terminal
KEPT_S = 5.0  # on a terminal a line stays of work that took longer
WORDS_WIDTH = 66  # characters beside the bar

ItemT = TypeVar("ItemT")

_IS_QUIET = ContextVar("is_quiet", default=False)


Means = Callable[[], Mapping[str, float]]

Show = Callable[[int, int | None, str, Means], None]
"""What to call with how much is done, of how much, words before it and what gives the numbers after it."""


@contextmanager
def quiet() -> Iterator[None]:
    """No `counter` and no `track` shows anything in the block: what is around it does."""
    token = _IS_QUIET.set(True)
    try:
        yield
    finally:
        _IS_QUIET.reset(token)


def say(text: str) -> None:
    """A line on standard error, before what it tells of begins."""
    screen(is_error=True).print(text)


@contextmanager
def heartbeat(doing: str, *, show: bool) -> Iterator[None]:
    """Where nothing counts what is done in the block: a line a minute of how long it has taken; none on a terminal."""
    if not show or _IS_QUIET.get() or screen(is_error=True).is_terminal:
        yield
        return
    began_s, is_over = time.monotonic(), Event()

    def beat() -> None:
        while not is_over.wait(LINE_EVERY_S):
            say(f"{doing}, {duration(time.monotonic() - began_s)} so far")

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@dataclass(frozen=True)
class Bar:
    """Where the loop reports after each step."""

    show: Show

    def update(self, epoch: int, n_epochs: int, step: int, n_steps: int, means: Means) -> None:
        """Show the place in training and the means of the epoch so far, asked for only when they are shown."""
        self.show(epoch * n_steps + step, n_epochs * n_steps, f"epoch {epoch + 1}/{n_epochs}, step", means)


class _Shown:
    """How far work is, and how long it takes: live on a terminal, else a line now and then, none for short work."""

    def __init__(self, description: str) -> None:
        self.console = screen(is_error=True)
        self.began_s = self.printed_s = time.monotonic()
        self.first: tuple[float, int] | None = None  # when and where it began: a resumed run does not begin at nothing
        self.last = ""
        self.live: Progress | None = None
        if self.console.is_terminal:
            self.bar_width = min(30, max(6, self.console.width - WORDS_WIDTH))
            columns = (BarColumn(self.bar_width), TextColumn("{task.description}", table_column=Column(no_wrap=True)))
            self.live = Progress(*columns, console=self.console, transient=True)
            self.task = self.live.add_task(description, total=None)

    def __enter__(self) -> Show:
        if self.live is not None:
            self.live.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        if self.live is None:
            return
        self.live.stop()
        taken_s = time.monotonic() - self.began_s
        if taken_s > KEPT_S and self.last:
            self.console.print(f"{self.last}  {duration(taken_s)}")

    def show(self, n_done: int, n_total: int | None, words: str, means: Means) -> None:
        now_s = time.monotonic()
        if self.first is None:
            self.first = now_s, n_done
        self.last = f"{words} {n_done:,}" + ("" if n_total is None else f"/{n_total:,}")
        if self.live is None and (now_s - self.printed_s < LINE_EVERY_S or n_done == n_total):
            return
        if self.live is not None and now_s - self.printed_s < REDRAWN_EVERY_S and n_done != n_total:
            return
        text, n_here = self.last, n_done - self.first[1]
        if n_total is not None and n_here > 0 and n_done < n_total:
            text += f"  about {duration((now_s - self.first[0]) / n_here * (n_total - n_done))} left"
        numbers = means()
        loss = f"  loss {numbers['loss']:.3f}" if "loss" in numbers else ""
        text += loss if self.live is None or len(text + loss) < self.console.width - self.bar_width else ""
        self.printed_s = now_s
        if self.live is not None:
            self.live.update(self.task, completed=n_done, total=n_total, description=text)
        else:
            self.console.print(text)


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """Progress of training on standard error, none unless ``show``."""
    if not show:
        yield Bar(lambda *_: None)
        return
    with _Shown("training") as shown:
        yield Bar(shown)


def track(items: Iterable[ItemT], description: str, total: int | None = None) -> Iterator[ItemT]:
    """Pass items through and show on standard error how many there have been.

    Example:
      >>> list(track([1, 2], "reading"))
      [1, 2]
    """
    if _IS_QUIET.get():
        yield from items
        return
    with _Shown(description) as shown:
        for n_done, item in enumerate(items, start=1):
            yield item
            shown(n_done, total, description, dict)


@contextmanager
def counter(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of things done so far."""
    if _IS_QUIET.get():
        yield lambda n_done: None
        return
    with _Shown(description) as shown:
        yield lambda n_done: shown(n_done, total, description, dict)
