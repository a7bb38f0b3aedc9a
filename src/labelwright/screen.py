"""Where text for people is printed: broken between words on a terminal, a line each elsewhere."""

from __future__ import annotations

from rich.console import Console

from labelwright.launch import rank


def screen(*, is_error: bool = False) -> Console:
    """Standard output, or standard error; texts are printed as they are, without markup, and by the main process.

    Example:
      >>> screen().print("[bold] stays as it is")
      [bold] stays as it is
    """
    found = Console(stderr=is_error, highlight=False, markup=False, emoji=False, quiet=bool(rank()))
    found.soft_wrap = not found.is_terminal
    return found
