"""What single losses add to tests/contract/test_losses.py."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from labelwright.adjust import fixed
from labelwright.errors import ConfigError, DataError
from labelwright.losses.classification import (
    adjusted_cross_entropy,
    cross_entropy,
    focal,
    influence_balanced,
    soft_cross_entropy,
)

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 0.0], [-1.0, 0.3, 0.9]])
LABELS = torch.tensor([0, 2, 1, 2])


def test_cross_entropy__class_weight_is_torchs():
    weight = torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(LOGITS, LABELS, weight=weight).item()
    assert cross_entropy(LOGITS, LABELS, class_weight=weight).item() == pytest.approx(expected, rel=1e-6)
    assert focal(LOGITS, LABELS, power=0.0, class_weight=weight).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy__class_weight_times_row_weight():
    weight, rows = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([1.0, 0.0, 3.0, 1.0])
    each = F.cross_entropy(LOGITS, LABELS, reduction="none").tolist()
    both = [0.5 * 1, 4.0 * 0, 1.0 * 3, 4.0 * 1]
    expected = sum(w * v for w, v in zip(both, each, strict=True)) / sum(both)
    assert cross_entropy(LOGITS, LABELS, class_weight=weight, weights=rows).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy__int32_labels():
    assert cross_entropy(LOGITS, LABELS.int()).item() == cross_entropy(LOGITS, LABELS).item()


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        partial(adjusted_cross_entropy, adjustment=fixed.ldam([9, 4, 1], scale=10.0)),
        partial(focal, power=1.0),
        partial(influence_balanced, feats=LOGITS),
    ],
)
def test_labels__beyond_the_classes_are_named_unless_left_out(loss):
    labels = torch.tensor([0, 3, 1, 2])
    with pytest.raises(DataError, match="labels hold 3, and the logits have 3 classes: 0 to 2"):
        loss(LOGITS, labels)
    assert loss(LOGITS, labels, where=labels < 3).item() == loss(LOGITS, torch.tensor([0, -1, 1, 2])).item()


def test_soft_cross_entropy__temperature_divides():
    targets = LOGITS.softmax(1)
    expected = F.cross_entropy(LOGITS / 0.5, targets).item()
    assert soft_cross_entropy(LOGITS, targets, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_soft_cross_entropy__temperature_divides_in_float32(dtype):
    logits = torch.tensor([[5000.0, 0.0], [30.1, 29.9]]).to(dtype)  # 5000 / 0.07 is beyond float16
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = soft_cross_entropy(logits.float(), targets, temperature=0.07).item()
    assert soft_cross_entropy(logits, targets, temperature=0.07).item() == expected


def test_soft_cross_entropy__class_ruled_out():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist() == [pytest.approx([-0.5, 0.5, 0.0])]


def test_soft_cross_entropy__integer_labels_are_refused():
    with pytest.raises(DataError, match=r"targets have shape \[4\], logits \[4, 3\]"):
        soft_cross_entropy(LOGITS, LABELS)


def test_focal__power_below_one_keeps_gradients_finite():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), power=0.5).backward()
    assert torch.equal(logits.grad, torch.zeros(1, 2))


def test_influence_balanced__gradient_flows_through_the_divisor():
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    feats = torch.full((1, 1), 2.0, dtype=torch.float64, requires_grad=True)
    influence_balanced(logits, torch.tensor([0]), feats=feats).backward()
    p = 1 / (1 + math.exp(-1))
    divisor = 2 * (1 - p) * 2 + 1e-3
    # d/dp of -log p / divisor, times dp/df = p (1 - p)
    slope = (-1 / p / divisor - math.log(p) * 4 / divisor**2) * p * (1 - p)
    assert logits.grad[0, 0].item() == pytest.approx(slope, rel=1e-9)
    assert feats.grad.item() == pytest.approx(math.log(p) * 2 * (1 - p) / divisor**2, rel=1e-9)


def test_cross_entropy__error_names_the_class_weight():
    with pytest.raises(DataError, match=r"class_weight has shape \[2\] for 3 classes"):
        cross_entropy(LOGITS, LABELS, class_weight=torch.ones(2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: focal(LOGITS, LABELS, power=-1.0), "power=-1.0 is negative"),
        (lambda: influence_balanced(LOGITS, LABELS, feats=LOGITS, scale=-2.0), "scale=-2.0 is not positive"),
        (lambda: soft_cross_entropy(LOGITS, LOGITS, temperature=0.0), "temperature=0.0 is not positive"),
    ],
)
def test_knobs__out_of_range(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


def test_logits__not_a_matrix():
    with pytest.raises(DataError, match=r"logits have shape \[3\], not \[B, C\]"):
        cross_entropy(LOGITS[0], LABELS)
