"""How many answers of an open world are right, by what was left out and what is called new."""

from __future__ import annotations

import pytest
import torch

from labelwright.trust.new_classes import Rates, right_shares, share_new


@pytest.mark.parametrize("found", [0.9, 0.5, 0.2])
def test_right_shares__are_those_of_images_of_which_fewer_are_found_than_hidden_ones_were(found: float) -> None:
    """Six in ten of 100,000 images are of new classes, a share of which is called new; of hidden ones 0.9 were."""
    draw = torch.Generator().manual_seed(0)
    is_new, chance = torch.arange(100_000) % 10 < 6, torch.rand(100_000, generator=draw)
    called_new = torch.where(is_new, chance < found, chance < 0.1)
    right = torch.where(is_new, chance < 0.8 * found, chance > 0.3)  # of those called new four in five
    rates = Rates(named_right=0.7, named_new=0.1, hidden_right=0.72, hidden_new=0.9)
    shares = right_shares(rates, new=0.6, called_new=float(called_new.float().mean()))
    for share, some in zip(shares, (~called_new, called_new), strict=True):
        assert share == pytest.approx(float(right[some].float().mean()), abs=0.02)


def test_right_shares__are_shares_of_any_rates() -> None:
    draw = torch.Generator().manual_seed(1)
    for rates in torch.rand(200, 6, generator=draw).tolist():
        new = share_new(rates[4], rates[5], Rates(*rates[:4]))
        assert 0 < new < 1
        assert all(0 <= share <= 1 for share in right_shares(Rates(*rates[:4]), new=new, called_new=rates[5]))
    for rates in (Rates(0, 0, 0, 0), Rates(1, 1, 1, 1), Rates(0, 1, 1, 0)):
        for called_new in (0.0, 1.0):
            assert all(0 <= share <= 1 for share in right_shares(rates, new=0.5, called_new=called_new))


def test_share_new__what_is_called_new_beyond_named_classes_is_the_least() -> None:
    rates = Rates(named_right=0.8, named_new=0.1, hidden_right=0.5, hidden_new=0.6)
    assert share_new(0.0, 0.46, rates) == pytest.approx(0.4)
    assert share_new(0.55, 0.46, rates) == 0.55
    assert share_new(0.0, 0.05, rates) == 0.01
