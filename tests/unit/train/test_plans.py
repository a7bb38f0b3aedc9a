"""Rows of a step: fresh permutations on end, decided by seed, epoch, step and name, and shared evenly by processes."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from labelwright.train.plans import rows_of_step
from labelwright.train.processes import shard
from labelwright.types import Stream


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (10, 10), (4, 9), (1, 1), (7, 2)])
def test_rows_of_step__each_row_once_per_cycle(n: int, batch_size: int) -> None:
    stream = Stream(100 + torch.arange(n), batch_size)
    size = min(n, batch_size)
    steps = [rows_of_step("a", stream, 0, 2, s) for s in range(3 * n)]
    assert {len(rows) for rows in steps} == {size}
    cycles = torch.cat(steps)[: 3 * size * n // n * n].view(-1, n)
    assert len(cycles) == 3 * size
    assert (cycles.sort(dim=1).values == stream.rows).all()
    if n > 4:
        assert len({tuple(cycle.tolist()) for cycle in cycles}) == len(cycles)  # each cycle in its own order


def test_rows_of_step__hangs_on_seed_epoch_and_name() -> None:
    stream = Stream(torch.arange(50), 50)
    first = rows_of_step("a", stream, 0, 0, 0)
    assert torch.equal(first, rows_of_step("a", stream, 0, 0, 0))
    for name, seed, epoch, step in (("b", 0, 0, 0), ("a", 1, 0, 0), ("a", 0, 1, 0), ("a", 0, 0, 1)):
        assert not torch.equal(first, rows_of_step(name, stream, seed, epoch, step))


def test_rows_of_step__as_listed_without_shuffle_and_twice_where_listed_twice() -> None:
    stream = Stream(torch.tensor([5, 2, 2, 9]), 3, shuffle=False)
    assert [rows_of_step("a", stream, 0, 0, s).tolist() for s in range(3)] == [[5, 2, 2], [9, 5, 2], [2, 9, 5]]
    shuffled = dataclasses.replace(stream, shuffle=True, batch_size=4)
    assert sorted(rows_of_step("a", shuffled, 0, 0, 0).tolist()) == [2, 2, 5, 9]


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (7, 7), (1, 3)])
def test_rows_of_step__two_processes_share_one_batch(n: int, batch_size: int) -> None:
    stream = Stream(torch.arange(n), batch_size)
    halves = [cast(Any, SimpleNamespace(process_index=i, num_processes=2)) for i in range(2)]
    for step in range(5):
        whole = rows_of_step("a", stream, 0, 0, step, multiple_of=2)
        shares = [shard(whole, half) for half in halves]
        assert len(shares[0]) == len(shares[1]) == max(min(n, batch_size) // 2, 1)
        assert sorted(torch.cat(shares).tolist()) == sorted(whole.tolist())
        if min(n, batch_size) % 2 == 0:
            assert torch.equal(whole, rows_of_step("a", stream, 0, 0, step))
