import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import adjusted_logits
from labelwright.errors import ConfigError, DataError
from labelwright.losses.classification import adjusted_cross_entropy

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


def test_ldam__by_hand():
    got = fixed.ldam(torch.tensor([*COUNTS, 0]), max_margin=0.4, scale=20.0)
    assert got.target_margin.tolist() == pytest.approx([-8 * (n / 5) ** -0.25 for n in COUNTS] + [-8], rel=1e-6)
    assert got.multiplier.tolist() == [20.0] * 4


def test_ldam__class_without_margin_is_scaled_cross_entropy():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    values = [fixed.ldam(torch.tensor(COUNTS), max_margin=margin) for margin in (0, 3)]
    found = [adjusted_cross_entropy(logits, torch.tensor([0]), each) for each in values]
    expected = F.cross_entropy(30 * logits, torch.tensor([0])).item()
    assert found[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert found[1].item() > 1e3 * expected


def test_vector_scaling__by_hand():
    got = fixed.vector_scaling(torch.tensor(COUNTS), power=0.15, strength=0.7)
    assert got.multiplier.tolist() == pytest.approx([(n / 500) ** 0.15 for n in COUNTS], rel=1e-6)
    assert got.offset.tolist() == pytest.approx([0.7 * math.log(n / 565) for n in COUNTS], rel=1e-6)


def test_vector_scaling__power_0_is_logit_adjustment_and_strength_0_is_scaling_alone():
    counts = torch.tensor(COUNTS)
    assert fixed.vector_scaling(counts, power=0.0).multiplier.tolist() == [1.0] * 3
    assert torch.equal(fixed.vector_scaling(counts, power=0.0).offset, fixed.logit_adjustment(counts).offset)
    assert fixed.vector_scaling(counts, power=0.3, strength=0.0).offset.abs().max() == 0


def test_logit_adjustment__is_balanced_softmax():
    logits, labels = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]]), [2, 0]
    expected = [
        -math.log(COUNTS[y] * math.exp(row[y]) / sum(n * math.exp(f) for n, f in zip(COUNTS, row, strict=True)))
        for row, y in zip(logits.tolist(), labels, strict=True)
    ]
    adjustment = fixed.logit_adjustment(torch.tensor(COUNTS))
    found = adjusted_cross_entropy(logits, torch.tensor(labels), adjustment, reduce="none")
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_subtract_log_prior__undoes_logit_adjustment():
    logits, counts = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor(COUNTS)
    adjusted = adjusted_logits(logits, torch.tensor([0]), fixed.logit_adjustment(counts, strength=0.7))
    back = fixed.subtract_log_prior(adjusted, fixed.log_prior(counts), strength=0.7)
    torch.testing.assert_close(back, logits)


def test_subtract_log_prior__bayes_rule():
    likelihood = [0.2, 0.5, 0.3]
    joint = torch.tensor([[q * n for q, n in zip(likelihood, COUNTS, strict=True)]])
    balanced = fixed.subtract_log_prior(joint.log(), fixed.log_prior(torch.tensor(COUNTS))).softmax(1)
    assert balanced[0].tolist() == pytest.approx(likelihood, rel=1e-5)


def test_additive_adjustment__slope_one_is_logit_adjustment():
    counts = torch.tensor(COUNTS)
    cla = fixed.additive_adjustment(fixed.prior(counts), torch.ones(3), strength=0.9)
    torch.testing.assert_close(cla.offset, fixed.logit_adjustment(counts, strength=0.9).offset)


def test_multiplicative_adjustment__steeper_slope_means_smaller_multiplier():
    got = fixed.multiplicative_adjustment(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 2.0]), power=0.0)
    assert got.multiplier.tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (torch.zeros(2), "every class has count 0"),
        (torch.tensor([1, -3]), "class 1 has count -3"),
        (torch.tensor([1.0, math.nan]), "class 1 has count nan"),
        (torch.tensor([math.inf, 1.0]), "class 0 has count inf"),
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
        (lambda n: fixed.vector_scaling(n, power=-1.0), r"power=-1\.0 is negative"),
        (lambda n: fixed.multiplicative_adjustment(n, n, power=-1.0), r"power=-1\.0 is negative"),
        (lambda n: fixed.ldam(n, max_margin=-1.0), r"max_margin=-1\.0 is negative"),
        (lambda n: fixed.ldam(n, scale=0.0), r"scale=0\.0 is not positive"),
    ],
)
def test_knobs__out_of_range(call, text):
    with pytest.raises(ConfigError, match=text):
        call(torch.tensor([1.0, 2.0]))


def test_counts__may_be_a_list_or_an_array() -> None:
    counts = torch.tensor([8, 2, 0])
    for given in ([8, 2, 0], np.array([8, 2, 0])):
        assert torch.equal(fixed.ldam(given).target_margin, fixed.ldam(counts).target_margin)
        assert torch.equal(fixed.logit_adjustment(given).offset, fixed.logit_adjustment(counts).offset)
        weights = fixed.effective_number_weights(counts, beta=0.9)
        assert torch.equal(fixed.effective_number_weights(given, beta=0.9), weights)
