"""Shared by all tests: the module `tiny` can be imported, torch keeps to one thread, and nobody goes online."""

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labelwright.encoders import at_hand

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def no_model_at_hand() -> Iterator[None]:
    """What else is on this machine decides nothing here, nor in what tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_hand, "at_hand", lambda: None)
        yield


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the module's own, for modules that ask for it by ``pytestmark``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """From the start: sums of runs that a module shares would differ in their last bits from those of its tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where a shell started the tests in the background and had it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection to anywhere but this machine fails the test that opens it."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        is_local = self.family == socket.AF_UNIX or str(address[0]) in ("127.0.0.1", "::1", "localhost")
        assert is_local, f"a test connects to {address}"
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield
