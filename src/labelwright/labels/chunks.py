"""Rows in runs that keep dense tables small, and evenly spread samples of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 18  # of rows x classes, or of rows x features, held at a time: 1 MiB of float32, a core's cache
BLOCK = 64  # numbers of which one maximum is taken
RANKED = 1_000_000  # rows that a sample of each class is drawn from
MORE_ELSEWHERE = 16  # times as many on a GPU, where each step costs the same time

CPU = torch.device("cpu")


def chunks_of(rows: Tensor, width: int) -> Iterator[Tensor]:
    """Rows [n] in runs, so that a dense table of a run, ``width`` numbers a row, stays small.

    Example:
      >>> [len(some) for some in chunks_of(torch.arange(10), CHUNK_NUMBERS // 4)]
      [4, 4, 2]
    """
    yield from torch.split(rows, _size(width, rows.device))


def slices_of(n_rows: int, width: int, device: torch.device = CPU) -> Iterator[slice]:
    """The same runs of the rows 0 to n_rows - 1, as slices, for tables that are held on ``device``.

    Example:
      >>> [(some.start, some.stop) for some in slices_of(10, CHUNK_NUMBERS // 4)]
      [(0, 4), (4, 8), (8, 10)]
    """
    size = _size(width, device)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def largest(table: Tensor, k: int) -> Tensor:
    """The k largest numbers of each row, [B, k] in descending order, of [B, M]; all M where these are fewer.

    They are `topk`'s, in less time where M is thousands: they lie in the k blocks whose maxima are the largest.

    Example:
      >>> largest(torch.tensor([[3.0, 1.0, 2.0]]), 2).tolist()
      [[3.0, 2.0]]
    """
    n_blocks = table.shape[1] // BLOCK
    if n_blocks < 4 * k:
        return table.topk(min(k, table.shape[1]), dim=1).values
    blocks = table[:, : n_blocks * BLOCK].view(-1, n_blocks, BLOCK)
    at = blocks.amax(2).topk(k, dim=1).indices
    found = blocks.gather(1, at[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return torch.cat([found, table[:, n_blocks * BLOCK :]], 1).topk(k, dim=1).values


def _size(width: int, device: torch.device) -> int:
    return max(1, CHUNK_NUMBERS * (1 if device.type == "cpu" else MORE_ELSEWHERE) // max(width, 1))


def evenly_spread(rows: Tensor, n: int) -> Tensor:
    """At most ``n`` of the rows [N, ...], evenly spread from the first to the last.

    Example:
      >>> evenly_spread(torch.arange(10), 4).tolist(), evenly_spread(torch.arange(2), 4).tolist()
      ([0, 3, 6, 9], [0, 1])
    """
    if len(rows) <= n:
        return rows
    return rows[torch.arange(n, device=rows.device) * (len(rows) - 1) // max(n - 1, 1)]  # exact for any number of rows


def known_and_unknown(labels: Tensor, n: int) -> Tensor:
    """At most ``n`` rows with a label, then at most ``n`` without one, each evenly spread; labels [N], -1 = unknown.

    Example:
      >>> known_and_unknown(torch.tensor([-1, 0, 1, 0]), 2).tolist()
      [1, 3, 0]
    """
    return torch.cat([evenly_spread(part.nonzero().flatten(), n) for part in (labels >= 0, labels < 0)])


def each_class_alike(classes: Tensor, rows: Tensor, n: int, *, seed: int) -> Tensor:
    """At most ``n`` of the rows [M] int64, ascending: of each class [N] as many, or all there are of it.

    Of more than `RANKED` rows so many are drawn from.

    Example:
      >>> classes = torch.tensor([0, 0, 0, 1, 0, 0, 1])
      >>> rows = each_class_alike(classes, torch.arange(7), 4, seed=0)
      >>> torch.bincount(classes[rows]).tolist(), bool((rows.diff() > 0).all())
      ([2, 2], True)
    """
    draw = torch.Generator().manual_seed(seed)
    if len(rows) > RANKED:
        rows = rows[torch.randperm(len(rows), generator=draw)[:RANKED].to(rows.device)]
        draw.manual_seed(seed)
    if len(rows) <= n:
        return rows.sort().values
    values = torch.rand(len(rows), generator=draw).to(rows.device)
    return rows[rank_in_class(classes[rows], values).argsort(stable=True)[:n]].sort().values


def rank_in_class(classes: Tensor, values: Tensor) -> Tensor:
    """Place [N] int64 of each row among those of its class, by ascending value, from 0.

    Example:
      >>> rank_in_class(torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.5, 0.1])).tolist()
      [1, 0, 0]
    """
    order = values.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    ordered, ranks = classes[order], torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return ranks
