import math

import numpy as np
import pytest
import torch

from labelwright.errors import DataError
from labelwright.losses._reduce import blank_rows, check_rows, kept_rows, reduce_loss


def test_blank_rows__any_shape_and_dtype():
    where = torch.tensor([True, False])
    assert blank_rows(where, torch.tensor([3, -1])).tolist() == [3, 0]
    assert blank_rows(where, torch.full((2, 2, 2), math.nan))[1].tolist() == [[0, 0], [0, 0]]
    assert blank_rows(where, torch.full((2, 1), math.nan))[0].isnan().all()
    values = torch.ones(2)
    assert blank_rows(None, values) is values


def test_blank_rows__gradient_of_kept_rows_survives_inf():
    values = torch.tensor([[1.0], [math.inf]], requires_grad=True)
    blank_rows(torch.tensor([True, False]), values).square().sum().backward()
    assert values.grad.tolist() == [[2.0], [0.0]]


def test_kept_rows__no_where():
    assert kept_rows(torch.tensor([0, -1, 4])).tolist() == [True, False, True]


@pytest.mark.parametrize(("reduce", "expected"), [("mean", (2 * 3 + 1 * 6) / 3), ("sum", 12.0), ("none", [6, 6, 0])])
def test_reduce_loss__weights_and_where(reduce, expected):
    loss, weights = torch.tensor([3.0, 6.0, 5.0]), torch.tensor([2.0, 1.0, math.nan])
    got = reduce_loss(loss, where=torch.tensor([True, True, False]), weights=weights, reduce=reduce)
    assert got.tolist() == expected


def test_reduce_loss__weights_all_zero():
    loss = torch.tensor([3.0, 6.0], requires_grad=True)
    mean = reduce_loss(loss, weights=torch.zeros(2))
    mean.backward()
    assert mean.item() == 0
    assert loss.grad.tolist() == [0, 0]


def test_reduce_loss__zero_loss_still_counts():
    assert reduce_loss(torch.tensor([0.0, 4.0])).item() == 2


def test_reduce_loss__empty_batch():
    assert reduce_loss(torch.zeros(0)).item() == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "labels is a list, no tensor"),
        (np.array([0, 1]), "labels is a ndarray, no tensor"),
        (torch.tensor([0.0, 1.0]), "labels are torch.float32, not whole numbers"),
        (torch.zeros(2, dtype=torch.long, device="meta"), "labels is on meta, logits on cpu"),
    ],
)
def test_check_rows__names_labels_of_another_kind_or_device(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_rows(torch.zeros(2, 3), labels=labels)
    check_rows(torch.zeros(2, 3), labels=torch.tensor([0, 1], dtype=torch.uint8))
