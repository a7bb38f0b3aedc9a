"""reviewing/order.py: who is asked about first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.reviewing import order


def clumps(sizes: tuple[int, ...], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit features around far-apart centres, and the clump of each row."""
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = 0.1 * torch.randn(len(of), 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(8)[of] + noise, dim=1), of


def test_suggested__one_of_each_clump_the_heaviest_first_and_then_the_doubtful() -> None:
    z, of = clumps((40, 20, 10, 5))
    doubt = torch.where(of == 2, 0.5, 0.2)
    found = order.suggested(z, doubt, torch.zeros(75, dtype=torch.int64), batches=(4,))
    assert found.sort().values.tolist() == list(range(75))  # every row once
    assert of[found[:4]].tolist() == [0, 2, 1, 3]  # doubt x rows: 8, 5, 4, 1
    rest = doubt[found[4:]]
    assert bool((rest.diff() <= 0).all())


def test_suggested__known_rows_are_not_asked_about_and_cover_their_clump() -> None:
    z, of = clumps((40, 20))
    doubt = torch.full((60,), 0.5)
    known = (of == 0).nonzero().flatten()[:5]
    doubt[known] = 0
    found = order.suggested(z, doubt, of, batches=(1,))
    assert not set(found.tolist()) & set(known.tolist())
    assert int(of[found[0]]) == 1


def test_suggested__a_small_class_counts_as_much_as_a_large_one() -> None:
    z, of = clumps((60, 20))
    found = order.suggested(z, torch.full((80,), 0.5), of, batches=(40,))[:40]
    assert 10 <= int((of[found] == 1).sum()) <= 20  # by their sizes alone it would be 10; all rows of it at most


def test_suggested__same_seed_same_order_and_nothing_known_is_no_error() -> None:
    z, of = clumps((30, 30))
    doubt = torch.rand(60, generator=torch.Generator().manual_seed(1)) + 0.01
    first, second = (order.suggested(z, doubt, of, seed=3) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert order.suggested(z, torch.zeros(60), of).tolist() == []
    assert len(order.suggested(z[:1], doubt[:1], of[:1])) == 1


def test_groups__look_alikes_are_together() -> None:
    z, of = clumps((60, 30))
    found = order.groups_of(z)
    assert len(found.unique()) == 3
    assert all(len(of[found == group].unique()) == 1 for group in found.unique())


def test_components__what_all_rows_share_and_their_norms_change_no_order() -> None:
    z, of = clumps((60, 30))
    doubt = torch.rand(90, generator=torch.Generator().manual_seed(1)) + 0.01
    far = 50 * torch.ones(8) + 7 * z
    orders = [order.suggested(order.components(feats), doubt, of) for feats in (z, far)]
    assert orders[0].tolist() == orders[1].tolist()
    same = order.components(torch.ones(5, 3))  # rows without a direction
    assert torch.equal(same.square().sum(1), torch.ones(5))


def test_groups__of_more_rows_than_they_are_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    z, of = clumps((300, 150))
    monkeypatch.setattr(order, "MAX_ROWS", 100)
    found = order.groups_of(z)
    assert len(found) == 450
    assert all(len(of[found == group].unique()) == 1 for group in found.unique())
    assert bool((torch.bincount(found).diff() <= 0).all())  # numbered by size
