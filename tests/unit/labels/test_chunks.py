"""Runs of rows and evenly spread samples of them."""

import pytest
import torch

from labelwright.labels import chunks


@pytest.mark.parametrize(("n_rows", "width"), [(0, 3), (1, 3), (10, 3), (12, 3), (10, 100), (5, 0)])
def test_runs__hold_every_row_once_and_agree(n_rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 12)
    rows = torch.arange(n_rows)
    runs = [some.tolist() for some in chunks.chunks_of(rows, width)]
    assert [row for run in runs for row in run] == rows.tolist()
    assert all(len(some) * width <= 12 or len(some) == 1 for some in runs)
    if n_rows:
        assert [rows[some].tolist() for some in chunks.slices_of(n_rows, width)] == runs


@pytest.mark.parametrize(("n_rows", "n"), [(10, 3), (10, 1), (10, 10), (3, 10), (0, 4), (1000, 999)])
def test_evenly_spread__from_first_to_last(n_rows: int, n: int) -> None:
    found = chunks.evenly_spread(torch.arange(n_rows), n).tolist()
    thinned = [i * (n_rows - 1) // max(n - 1, 1) for i in range(n)]
    assert found == (thinned if n < n_rows else list(range(n_rows)))
    assert len(set(found)) == min(n, n_rows)


def test_evenly_spread__is_exact_where_float32_is_not() -> None:
    n_rows = 2**24 + 3
    found = chunks.evenly_spread(torch.arange(n_rows), 2**23)
    assert int(found[-1]) == n_rows - 1
    assert bool((found.diff() > 0).all())


@pytest.mark.parametrize("width", [1, 5, 64 * 12, 64 * 12 + 7, 3000])
def test_largest__is_topk(width):
    draw = torch.Generator().manual_seed(width)
    table = torch.randint(-50, 50, (9, width), generator=draw).float()  # with ties
    table[0], table[1, ::2] = -torch.inf, -torch.inf
    for k in (1, 3, 6):
        assert torch.equal(chunks.largest(table, k), table.topk(min(k, width), dim=1).values)
