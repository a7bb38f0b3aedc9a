"""Adjustments add in any order, and do to logits what a loop over rows and classes does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment, adjusted_logits
from labelwright.errors import DataError
from labelwright.losses.classification import adjusted_cross_entropy, cross_entropy

C = 3
LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 0.0], [-1.0, 0.3, 0.9]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 2])
FIELDS = ("multiplier", "offset", "target_margin", "pair_margin")


def drawn(seed: int) -> Adjustment:
    draw = torch.Generator().manual_seed(seed)
    vectors = [torch.rand(C, generator=draw, dtype=torch.float64) for _ in range(3)]
    return Adjustment(*vectors, pair_margin=torch.rand(C, C, generator=draw, dtype=torch.float64))


def fields_of(adjustment: Adjustment) -> list[Tensor | None]:
    return [getattr(adjustment, name) for name in FIELDS]


def test_adjusted_logits__by_loops() -> None:
    a = drawn(0)
    beta, delta, target, pair = (tensor.tolist() for tensor in fields_of(a))  # type: ignore[union-attr]
    want = [
        [f * beta[k] + delta[k] + target[k] * (k == y) + pair[y][k] for k, f in enumerate(row)]
        for row, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    found = adjusted_logits(LOGITS, LABELS, a)
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_adjusted_logits__no_adjustment_is_the_logits_themselves() -> None:
    assert adjusted_logits(LOGITS, LABELS, Adjustment()) is LOGITS
    assert adjusted_cross_entropy(LOGITS, LABELS, Adjustment()).item() == cross_entropy(LOGITS, LABELS).item()


def test_add__multipliers_multiply_and_the_others_sum() -> None:
    a, b = drawn(1), drawn(2)
    for name in FIELDS:
        mine, other, found = getattr(a, name), getattr(b, name), getattr(a + b, name)
        assert torch.equal(found, mine * other if name == "multiplier" else mine + other)


def test_add__in_any_order_and_grouping() -> None:
    a, b, c = drawn(1), Adjustment(offset=torch.ones(C)), drawn(3)
    for left, right in ((a + b, b + a), ((a + b) + c, a + (b + c))):
        found = [adjusted_logits(LOGITS, LABELS, each) for each in (left, right)]
        torch.testing.assert_close(*found, rtol=1e-14, atol=1e-14)


def test_add__the_neutral_value_changes_nothing_and_sum_works() -> None:
    a = drawn(4)
    for found in (a + Adjustment(), Adjustment() + a, sum([a], Adjustment())):
        assert all(x is y for x, y in zip(fields_of(found), fields_of(a), strict=True))
    assert fields_of(Adjustment() + Adjustment()) == [None] * 4


@pytest.mark.parametrize("name", FIELDS)
def test_adjusted_logits__error_names_the_tensor(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} has shape \[2\] for 3 classes"):
        adjusted_cross_entropy(LOGITS, LABELS, Adjustment(**{name: torch.ones(2)}))


@pytest.mark.parametrize("value", [[0.0, 1.0, 2.0], np.zeros(3)])
def test_adjustment__what_is_no_tensor_is_named(value: object) -> None:
    with pytest.raises(DataError, match=f"offset is a {type(value).__name__}, no tensor"):
        Adjustment(offset=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_adjusted_logits__labels_of_few_bits(dtype: torch.dtype) -> None:
    assert torch.equal(adjusted_logits(LOGITS, LABELS.to(dtype), drawn(6)), adjusted_logits(LOGITS, LABELS, drawn(6)))


def test_adjusted_cross_entropy__a_row_left_out_may_hold_anything() -> None:
    logits = LOGITS.clone()
    logits[1] = torch.nan
    labels = torch.tensor([0, -1, 1, 2])
    kept = [0, 2, 3]
    found = adjusted_cross_entropy(logits, labels, drawn(5)).item()
    assert found == pytest.approx(adjusted_cross_entropy(LOGITS[kept], LABELS[kept], drawn(5)).item(), rel=1e-14)


def test_adjusted_logits__another_device_is_named() -> None:
    with pytest.raises(DataError, match="offset of the adjustment is on cpu, the logits on meta"):
        adjusted_logits(
            torch.zeros(1, 2, device="meta"),
            torch.zeros(1, dtype=torch.long, device="meta"),
            Adjustment(offset=torch.zeros(2)),
        )
