"""Live progress on a terminal; silence anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ItemT = TypeVar("ItemT")


class Bar(Protocol):
    """Where the loop reports after each step."""

    def update(self, epoch: int, n_epochs: int, step: int, n_steps: int, means: Mapping[str, float]) -> None:
        """Show the place in training and the means of the epoch so far."""
        ...


class _Silent:
    def update(self, epoch: int, n_epochs: int, step: int, n_steps: int, means: Mapping[str, float]) -> None:
        return


class _Live:
    def __init__(self, shown: Progress) -> None:
        self.shown = shown
        self.task = shown.add_task("training", total=None, detail="")

    def update(self, epoch: int, n_epochs: int, step: int, n_steps: int, means: Mapping[str, float]) -> None:
        detail = "  ".join(f"{key} {value:.3f}" for key, value in list(means.items())[:4])
        self.shown.update(
            self.task,
            total=n_epochs * n_steps,
            completed=epoch * n_steps + step,
            description=f"epoch {epoch + 1}/{n_epochs}",
            detail=detail,
        )


@contextmanager
def bar(show: bool) -> Iterator[Bar]:
    """A progress bar for training, silent unless ``show`` and standard error is a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield _Silent()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        yield _Live(shown)


def track(items: Iterable[ItemT], description: str, total: int | None = None) -> Iterator[ItemT]:
    """Pass items through, with a bar when standard error is a terminal.

    Example:
      >>> list(track([1, 2], "reading"))
      [1, 2]
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as shown:
        yield from shown.track(items, description=description, total=total)


@contextmanager
def counter(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of things done so far; a bar appears with the first call, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
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
