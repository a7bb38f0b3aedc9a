"""What glibc does with large blocks of memory that are freed: it keeps them, for the next batch of images.

Else each is given back to the system and every page of the next one has to be cleared again, which costs a frozen
network more than half of its time (docs/results, allocator.py).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST, KEPT = 1 << 30, 2**31 - 1  # bytes of a block that is kept, and of all that is free


@functools.cache
def keep_blocks() -> bool:
    """Have freed blocks kept from now on, and say whether they are: by glibc alone, and unless the environment differs.

    Example:
      >>> keep_blocks() in (True, False)
      True
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if is_set or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
