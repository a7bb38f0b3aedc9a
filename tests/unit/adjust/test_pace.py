"""adjust/pace.py: worked numbers, limits and refusals. The numbers of lps.json are in tests/reference."""

import math

import pytest
import torch

from labelwright.adjust.pace import class_distribution, divergence, normalised, pace_margin
from labelwright.errors import ConfigError, DataError

EVEN = torch.full((4,), 0.25)


def test_class_distribution__rows_left_out_are_not_there():
    probs = torch.tensor([[0.5, 0.5], [float("nan"), 1.0], [1.0, 0.0]])
    found = class_distribution(probs, where=torch.tensor([True, False, True]))
    assert found.tolist() == [0.75, 0.25]


def test_class_distribution__nobody_is_trusted():
    assert class_distribution(torch.rand(3, 4), where=torch.zeros(3, dtype=torch.bool)).tolist() == [0.25] * 4


def test_normalised__nothing_at_all():
    assert normalised(torch.zeros(4)).tolist() == [0.25] * 4


@pytest.mark.parametrize("direction", ["prior_to_estimate", "estimate_to_prior"])
def test_divergence__nothing_between_equals_and_something_between_others(direction):
    assert divergence(EVEN, EVEN, direction=direction).item() == 0
    uneven = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert divergence(uneven, EVEN, direction=direction).item() > 0.05


def test_divergence__a_class_that_nobody_predicts_stays_finite():
    gone = torch.tensor([0.5, 0.5, 0.0, 0.0])
    # 1/2 log(1/4 / 1/2) + 1/2 log(1/4 / 1e-6)
    expected = 0.5 * math.log(0.5) + 0.5 * math.log(0.25e6)
    assert divergence(gone, EVEN).item() == pytest.approx(expected, rel=1e-5)
    assert divergence(gone, EVEN, direction="estimate_to_prior").item() == pytest.approx(math.log(2), rel=1e-5)


def test_pace_margin__largest_for_the_class_ahead_and_none_at_scale_0():
    uneven = torch.tensor([0.4, 0.3, 0.2, 0.1])
    margin = pace_margin(uneven, EVEN, scale=10.0).target_margin
    assert (margin.diff() < 0).all()
    assert margin[0].item() == pytest.approx(10 * divergence(uneven, EVEN).item(), rel=1e-6)
    assert pace_margin(uneven, EVEN, scale=0.0).target_margin.tolist() == [0.0] * 4


def test_refusals():
    with pytest.raises(ConfigError, match="scale=-1 is negative"):
        pace_margin(EVEN, EVEN, scale=-1)
    with pytest.raises(ConfigError, match="direction='both' is unknown"):
        divergence(EVEN, EVEN, direction="both")
    with pytest.raises(DataError, match=r"estimate \[4\], prior \[2\]"):
        divergence(EVEN, EVEN[:2])
    with pytest.raises(DataError, match=r"probabilities \[3, 4\], where \[2\]"):
        class_distribution(torch.rand(3, 4), where=torch.ones(2, dtype=torch.bool))
