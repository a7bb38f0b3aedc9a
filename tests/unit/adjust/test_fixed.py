import math

import pytest
import torch

from labelwright.adjust import fixed
from labelwright.errors import ConfigError, DataError

COUNTS = [500, 60, 5]


def test_prior__counts_all_positive_is_plain_share():
    assert fixed.prior(torch.tensor(COUNTS)).tolist() == pytest.approx([n / 565 for n in COUNTS], rel=1e-6)


def test_prior__empty_class_ranks_below_one_image():
    got = fixed.prior(torch.tensor([8, 1, 0])).tolist()
    assert got == pytest.approx([8 / 9.5, 1 / 9.5, 0.5 / 9.5], rel=1e-6)


def test_prior__keeps_float64():
    assert fixed.prior(torch.tensor([1.0, 2.0], dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_effective_number_weights__by_hand(beta):
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    expected = [v * 3 / sum(raw) for v in raw]
    got = fixed.effective_number_weights(torch.tensor(COUNTS), beta=beta).tolist()
    assert got == pytest.approx(expected, rel=1e-5)


def test_effective_number_weights__limits():
    counts = torch.tensor(COUNTS)
    assert fixed.effective_number_weights(counts, beta=0.0).tolist() == [1, 1, 1]
    inverse = [1 / n for n in COUNTS]
    expected = [v * 3 / sum(inverse) for v in inverse]
    assert fixed.effective_number_weights(counts, beta=1 - 1e-9).tolist() == pytest.approx(expected, rel=1e-5)


def test_effective_number_weights__empty_class_does_not_move_the_others():
    full = fixed.effective_number_weights(torch.tensor(COUNTS), beta=0.99).tolist()
    assert fixed.effective_number_weights(torch.tensor([*COUNTS, 0]), beta=0.99).tolist() == [*full, 1.0]


def test_inverse_prior_weights__by_hand():
    got = fixed.inverse_prior_weights(torch.tensor(COUNTS), power=0.15).tolist()
    assert got == pytest.approx([(n / 565) ** -0.15 for n in COUNTS], rel=1e-6)


def test_ldam_margins__by_hand():
    got = fixed.ldam_margins(torch.tensor([*COUNTS, 0]), max_margin=0.4).tolist()
    assert got == pytest.approx([0.4 * (n / 5) ** -0.25 for n in COUNTS] + [0.4], rel=1e-6)


def test_vs_multiplier__by_hand():
    got = fixed.vs_multiplier(torch.tensor(COUNTS), power=0.15).tolist()
    assert got == pytest.approx([(n / 500) ** 0.15 for n in COUNTS], rel=1e-6)


def test_add_then_subtract_log_prior__is_nothing():
    logits, log_prior = torch.tensor([[1.0, 2.0, 3.0]]), fixed.log_prior(torch.tensor(COUNTS))
    back = fixed.subtract_log_prior(fixed.add_log_prior(logits, log_prior, strength=0.7), log_prior, strength=0.7)
    torch.testing.assert_close(back, logits)


def test_subtract_log_prior__bayes_rule():
    likelihood = [0.2, 0.5, 0.3]
    joint = torch.tensor([[q * n for q, n in zip(likelihood, COUNTS, strict=True)]])
    balanced = fixed.subtract_log_prior(joint.log(), fixed.log_prior(torch.tensor(COUNTS))).softmax(1)
    assert balanced[0].tolist() == pytest.approx(likelihood, rel=1e-5)


def test_cla_offset__slope_one_is_logit_adjustment():
    counts = torch.tensor(COUNTS)
    cla = fixed.cla_offset(fixed.prior(counts), torch.ones(3), strength=0.9)
    torch.testing.assert_close(cla, fixed.la_offset(counts, strength=0.9))


def test_mla_multiplier__steeper_slope_means_smaller_multiplier():
    got = fixed.mla_multiplier(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 2.0]), power=0.0)
    assert got.tolist() == [2.0, 0.5]


def test_deferred__weights_from_the_start():
    weights = torch.tensor([0.5, 2.0])
    assert fixed.deferred(weights, epoch=0, start_epoch=0) is weights


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (torch.zeros(2), "every class has count 0"),
        (torch.tensor([1, -3]), "class 1 has count -3"),
        (torch.tensor([1.0, math.nan]), "class 1 has count nan"),
        (torch.ones(2, 2), r"counts have shape \[2, 2\], not \[C\]"),
    ],
)
def test_prior__refuses(counts, text):
    with pytest.raises(DataError, match=text):
        fixed.prior(counts)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda n: fixed.effective_number_weights(n, beta=1.0), r"beta=1\.0 is outside \[0, 1\)"),
        (lambda n: fixed.inverse_prior_weights(n, power=-1.0), r"power=-1\.0 is negative"),
        (lambda n: fixed.vs_multiplier(n, power=-1.0), r"power=-1\.0 is negative"),
        (lambda n: fixed.mla_multiplier(n, n, power=-1.0), r"power=-1\.0 is negative"),
        (lambda n: fixed.ldam_margins(n, max_margin=-1.0), r"max_margin=-1\.0 is negative"),
    ],
)
def test_knobs__out_of_range(call, text):
    with pytest.raises(ConfigError, match=text):
        call(torch.tensor([1.0, 2.0]))
