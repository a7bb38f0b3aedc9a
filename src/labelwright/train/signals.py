"""Ending a run in good order: Ctrl-C or a termination request becomes an event that the loop looks at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a termination request sets; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no signal handlers, the event is never set. The handlers that were
    there before are put back at the end.

    Example:
      >>> with stop_on_signal() as stop:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     stop.is_set()
      True
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
