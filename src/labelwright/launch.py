"""Which process of a launcher, such as `accelerate launch`, this is: the first one alone writes and prints."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers, and those of MPI, say how many processes there are."""
_FSDP = "LABELWRIGHT_FSDP"
AHEAD = "labelwright-ahead"
"""Name of a thread that computes beside the main one, and that nobody waits for at the end."""


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


def is_left_alone() -> bool:
    """Whether accelerate was asked for several processes and started this one alone, as it does without several GPUs.

    Example:
      >>> is_left_alone()
      False
    """
    from_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return from_accelerate and not any(name in os.environ for name in SIZES)


def end(code: int | str | None) -> NoReturn:
    """End this process; at once where torch may abort the usual end, for which a launcher would end the others.

    That is so beside a thread called `AHEAD` that still computes, and of one process of several, for each of which the
    threads that exchange are still there.
    """
    is_ahead = any(thread.name == AHEAD for thread in threading.enumerate())
    if (code is None or isinstance(code, int)) and (is_ahead or is_shared()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)


def asks_for_fsdp() -> bool:
    """Whether `accelerate launch --use_fsdp`, or a configuration of accelerate, started this process.

    From the first call on only we see it: accelerate refuses FSDP on a CPU, and transformers would load the weights of
    a model in the first process alone.

    Example:
      >>> asks_for_fsdp()
      False
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        os.environ[_FSDP] = "1"
    return _FSDP in os.environ


def leave() -> None:
    """Forget the launcher: no other process is waited for."""
    for name in LAUNCHED:
        os.environ.pop(name, None)
