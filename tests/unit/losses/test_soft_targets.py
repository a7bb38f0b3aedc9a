"""The ramp, and what the squared error promises beyond contract/test_losses.py."""

import pytest
import torch

from labelwright.errors import ConfigError, DataError
from labelwright.losses.soft_targets import linear_ramp, squared_error_of_probs


@pytest.mark.parametrize("n_classes", [2, 5, 100])
def test_squared_error_of_probs__zero_when_met_and_two_over_c_at_worst(n_classes):
    logits = torch.randn(3, n_classes, dtype=torch.float64, requires_grad=True)
    met = squared_error_of_probs(logits, logits.detach().softmax(dim=1))
    met.backward()
    assert met.item() == 0
    assert not logits.grad.any()
    certain = torch.full((1, n_classes), -1e4).index_fill(1, torch.tensor([0]), 1e4)
    other = torch.eye(n_classes)[1:2]
    assert squared_error_of_probs(certain, other).item() == pytest.approx(2 / n_classes, rel=1e-6)


def test_squared_error_of_probs__is_the_mean_over_rows_and_classes():
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(4, 6, generator=draw), torch.rand(4, 6, generator=draw)
    expected = torch.nn.functional.mse_loss(logits.softmax(dim=1), targets)
    assert squared_error_of_probs(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_squared_error_of_probs__targets_of_excluded_rows_may_hold_anything():
    logits, targets = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [torch.nan, torch.inf]])
    assert squared_error_of_probs(logits, targets, where=torch.tensor([True, False])).item() == 0.25


def test_squared_error_of_probs__refuses_other_shapes():
    with pytest.raises(DataError, match=r"targets have shape \[2, 4\], logits \[2, 3\]"):
        squared_error_of_probs(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(DataError, match=r"targets have shape \[2\], logits \[2, 3\]"):
        squared_error_of_probs(torch.zeros(2, 3), torch.zeros(2))


def test_linear_ramp__straight_and_clipped():
    assert [linear_ramp(e, length_epochs=8) for e in (-5, 0, 1, 2.5, 8, 9)] == [0, 0, 0.125, 0.3125, 1, 1]
    assert isinstance(linear_ramp(3, length_epochs=2), float)


def test_linear_ramp__no_length_is_a_step():
    assert [linear_ramp(e, length_epochs=0) for e in (-0.1, 0, 1)] == [0, 1, 1]
    with pytest.raises(ConfigError, match="length_epochs=-1 is negative"):
        linear_ramp(0, length_epochs=-1)
