"""benchmarks/review_order.py: the known orders that the tool's own is held against."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

KNOWN = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "review_order.py"))
badge, by_chance, by_margin, typiclust = (KNOWN[name] for name in ("badge", "by_chance", "by_margin", "typiclust"))


def test_badge__gradients_written_out() -> None:
    """The first is the longest gradient, the second is not the row whose gradient is the same."""
    z = F.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.2], [0.1, 1.0], [0.5, 0.5]]), dim=1)
    probs = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.8, 0.2]])
    gap = probs - F.one_hot(probs.argmax(1), 2)
    grads = (gap[:, :, None] * z[:, None, :]).flatten(1)
    found = badge(z, probs, torch.zeros(4, dtype=torch.bool), n=2, seed=1).tolist()
    assert found[0] == int(grads.norm(dim=1).argmax())
    assert found[1] in (2, 3)


def test_typiclust__clusters_without_a_known_row_first_and_their_densest_row() -> None:
    of = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 20, 10]))
    z = F.normalize(torch.eye(8)[of] + 0.1 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    known = torch.zeros(60, dtype=torch.bool)
    known[0] = True  # of the largest
    found = typiclust(z, known, n=2, seed=0)
    assert of[found].tolist() == [1, 2]


@pytest.mark.parametrize("n", [3, 100])
def test_by_chance_and_margin__never_known_rows(n: int) -> None:
    known = torch.arange(10) < 4
    probs = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    for found in (by_chance(known, n=n, seed=0), by_margin(probs, known, n=n)):
        assert len(found) == min(n, 6)
        assert bool((found >= 4).all())
