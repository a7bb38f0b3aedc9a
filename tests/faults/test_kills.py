"""Runs and verbs that are killed at moments nobody chose, then go on: the same result, byte for byte."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    faults = importlib.import_module("faults")
    with faults.one_thread():
        yield faults.Undisturbed(tmp_path_factory.mktemp("faults") / "work")
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coreg_frozen", "report"])
def test_kill__what_goes_on_ends_as_if_nothing_had_been(whole: Any, name: str) -> None:
    moments = [random.Random(name).uniform(0.1, 0.9)]  # `make faults` kills more, and everything
    assert whole.after_kills(name, moments, f"killed {name}") == ""
