"""Blocks of memory that are kept: pages are cleared once, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from labelwright.train.processes import device_for
assert device_for("cpu").type == "cpu"
n = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16_000_000)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - n)
"""
A_BLOCK = 64_000_000 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
@pytest.mark.parametrize(("environment", "is_kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_keep_blocks__of_twenty_blocks_few_are_cleared(environment: dict[str, str], is_kept: bool) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=plain | environment, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 10 * A_BLOCK) == is_kept
