"""Which process of a launcher, such as `accelerate launch`, this is: the first one alone writes and prints."""

from __future__ import annotations

import os

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """0 for the main process, and without a launcher.

    Example:
      >>> rank()
      0
    """
    return int(os.environ.get("RANK") or 0)


def is_shared() -> bool:
    """Whether there are other processes.

    Example:
      >>> is_shared()
      False
    """
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def leave() -> None:
    """Forget the launcher: no other process is waited for."""
    for name in LAUNCHED:
        os.environ.pop(name, None)
