"""Shared by all tests: the module `tiny` can be imported, and torch keeps to one thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from labelwright.encoders import at_hand

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_model_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is on this machine decides nothing here."""
    monkeypatch.setattr(at_hand, "at_hand", lambda: None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """From the start: sums of runs that a module shares would differ in their last bits from those of its tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
