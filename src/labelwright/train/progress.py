"""Live progress on a terminal; elsewhere, as in the log of a job, a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labelwright.wording import duration

LINE_EVERY_S = 60.0

ItemT = TypeVar("ItemT")


Show = Callable[[int, int | None, str, Mapping[str, float]], None]
"""What to call with how much is done, of how much, words before it and numbers after it."""


def say(text: str) -> None:
    """A line on standard error, before what it tells of begins."""
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


@dataclass(frozen=True)
class Bar:
    """Where the loop reports after each step."""

    show: Show

    def update(self, epoch: int, n_epochs: int, step: int, n_steps: int, means: Mapping[str, float]) -> None:
        """Show the place in training and the means of the epoch so far."""
        self.show(epoch * n_steps + step, n_epochs * n_steps, f"epoch {epoch + 1}/{n_epochs}, step", means)


class _Lines:
    """A line now and then; work that is done sooner prints none."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began_s = self.printed_s = time.monotonic()
        self.n_before: int | None = None  # a resumed run does not begin at nothing

    def show(self, n_done: int, n_total: int | None, words: str, means: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        if self.n_before is None:
            self.began_s, self.n_before = now_s, n_done
        if now_s - self.printed_s < LINE_EVERY_S:
            return
        self.printed_s, detail = now_s, _in_words(means)
        n_here = n_done - self.n_before
        if n_total is not None and n_here > 0:
            left_s = (now_s - self.began_s) / n_here * (n_total - n_done)
            detail = f"about {duration(left_s)} left  {detail}"
        of = "" if n_total is None else f"/{n_total:,}"
        self.console.print(f"{words} {n_done:,}{of}  {detail}".rstrip(), soft_wrap=True, markup=False, highlight=False)


def _in_words(means: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.3f}" for key, value in list(means.items())[:4])


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """Progress of training on standard error, none unless ``show``."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield Bar(_Lines(console).show if show else lambda *_: None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("training", total=None, detail="")
        yield Bar(
            lambda n_done, n_total, words, means: shown.update(
                task, completed=n_done, total=n_total, description=words, detail=_in_words(means)
            )
        )


def track(items: Iterable[ItemT], description: str, total: int | None = None) -> Iterator[ItemT]:
    """Pass items through and show on standard error how many there have been.

    Example:
      >>> list(track([1, 2], "reading"))
      [1, 2]
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = _Lines(console)
        for n_before, item in enumerate(items):
            lines.show(n_before, total, description, {})
            yield item
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as shown:
        yield from shown.track(items, description=description, total=total)


@contextmanager
def counter(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of things done so far; a bar appears with the first call."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = _Lines(console)
        yield lambda n_done: lines.show(n_done, total, description, {})
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console)
    task = shown.add_task(description, total=total)

    def update(n_done: int) -> None:
        if not shown.live.is_started:
            shown.start()
        shown.update(task, completed=n_done)

    try:
        yield update
    finally:
        if shown.live.is_started:
            shown.stop()
