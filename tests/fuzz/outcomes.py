"""What every fuzz test states: any input is read, or refused in one sentence that says where, and soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from labelwright.errors import DataError, LabelwrightError

ResultT = TypeVar("ResultT")

CPU_SECONDS_MAX = 5.0  # for one input
SECONDS_MAX = 60.0  # a hang, and not a busy machine

N_EXAMPLES = int(os.environ.get("LABELWRIGHT_FUZZ", "0"))
"""Inputs per test; 0: as many as the test says, which is what the suite takes time for."""


def fuzzed(n_examples: int) -> Callable[[Any], Any]:
    """A fuzz test of so many inputs, or of LABELWRIGHT_FUZZ; the suite tries the same ones every time."""
    return settings(
        max_examples=N_EXAMPLES or n_examples,
        derandomize=not N_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def read_or_refused(call: Callable[[], ResultT], *names: str) -> ResultT | None:
    """What a call returns, or None where it raises a LabelwrightError, the only kind of error that is right.

    Args:
      call: reads an input.
      names: an error has to say one of these: the file, the row, the key.
    """
    began, began_cpu = time.monotonic(), time.process_time()
    result = refused = None
    try:
        result = call()
    except LabelwrightError as error:
        refused = error
    took, took_cpu = time.monotonic() - began, time.process_time() - began_cpu
    if refused is not None:
        problems = refused.problems if isinstance(refused, DataError) else ()
        said = "\n".join([str(refused), *(f"{problem.where} {problem.detail}" for problem in problems)])
        assert any(name in said for name in names), f"the error names none of {names}: {said}"
        assert refused.message.strip(), "an error without a word"
        assert refused.fix.strip(), "an error without a fix"
        assert "Traceback" not in said
    assert took < SECONDS_MAX, f"{took:.1f} s for one input"
    assert took_cpu < CPU_SECONDS_MAX, f"{took_cpu:.1f} s of computing for one input"
    return result
