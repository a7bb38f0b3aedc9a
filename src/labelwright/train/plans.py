"""Plans of an epoch: which rows a stream gives each step, how many steps there are, and how a checkpoint keeps them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.train.seeds import generator
from labelwright.types import EpochPlan, Stream


def rows_of_step(name: str, stream: Stream, seed: int, epoch: int, step: int, *, multiple_of: int = 1) -> Tensor:
    """Rows that a stream gives a step: consecutive places in an endless row of fresh permutations.

    Returns: [min(batch_size, n)] int64 rows, rounded down to a multiple of ``multiple_of`` (the number of processes:
      each must get equally many), which is also the least.

    Example: five rows in steps of two; the third step takes one row of the next permutation.
      >>> stream = Stream(torch.arange(5), batch_size=2)
      >>> first = torch.cat([rows_of_step("a", stream, 0, 0, s) for s in range(3)])
      >>> sorted(first[:5].tolist()), len(first)
      ([0, 1, 2, 3, 4], 6)
    """
    n = len(stream.rows)
    size = max(min(stream.batch_size, n) // multiple_of, 1) * multiple_of
    positions = torch.arange(step * size, (step + 1) * size)
    parts = []
    for cycle in range(int(positions[0]) // n, int(positions[-1]) // n + 1):
        inside = positions[positions.div(n, rounding_mode="floor") == cycle] - cycle * n
        parts.append(stream.rows[_order(n, seed, epoch, name, cycle)[inside] if stream.shuffle else inside])
    return torch.cat(parts)


@functools.lru_cache(maxsize=16)
def _order(n: int, seed: int, epoch: int, name: str, cycle: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, "order", epoch, name, cycle))


def steps_for(n_rows: int, batch_size: int) -> int:
    """Steps that visit ``n_rows`` about once: rounded, at least 1; the last batch borrows from the next permutation.

    Example:
      >>> steps_for(1000, 128), steps_for(10, 128)
      (8, 1)
    """
    return max(1, round(n_rows / batch_size))


def check_plan(plan: EpochPlan, n_rows: int) -> None:
    """Refuse a plan whose streams are empty; that they stay within the ``n_rows`` of the table is asserted.

    Example:
      >>> check_plan(EpochPlan({"train": Stream(torch.arange(0), batch_size=2)}, n_steps=2), 5)
      Traceback (most recent call last):
      labelwright.errors.ConfigError: stream 'train' has no images to train on
        fix: give the data at least one usable image
    """
    for name, stream in plan.streams.items():
        if len(stream.rows) == 0:
            raise ConfigError(
                f"stream {name!r} has no images to train on", fix="give the data at least one usable image"
            )
        assert int(stream.rows.min()) >= 0, f"stream {name!r} has a negative row"
        assert int(stream.rows.max()) < n_rows, f"stream {name!r} leaves the table"


def plan_from_dict(saved: Mapping[str, Any]) -> EpochPlan:
    """The plan that a checkpoint holds as `dataclasses.asdict` gives it.

    Example:
      >>> import dataclasses
      >>> plan = EpochPlan({"train": Stream(torch.arange(2), batch_size=2, views=("weak", "strong"))}, n_steps=1)
      >>> plan_from_dict(dataclasses.asdict(plan)).streams["train"].views
      ('weak', 'strong')
    """
    streams = {name: Stream(**{**s, "views": tuple(s["views"])}) for name, s in saved["streams"].items()}
    return EpochPlan(streams=streams, n_steps=saved["n_steps"])
