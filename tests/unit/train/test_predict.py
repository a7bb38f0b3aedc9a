import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tiny
from labelwright.train import predict
from labelwright.train.predict import MOST_ODDS, TEMPERATURES, answer, odds_of

N = 25


def table_of(n_classes: int) -> Tensor:
    return torch.randn(N, n_classes, generator=torch.Generator().manual_seed(0)).softmax(1)


class RowViews(tiny.TinyViews):
    """The "image" of a row is its number."""

    def __init__(self) -> None:
        self.x = torch.arange(N, dtype=torch.float32)[:, None]


def looked_up(table: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: table[x[:, 0].long()]


@pytest.mark.parametrize("n_classes", [1, 2, 5])
@pytest.mark.parametrize("batch", [4, 512])
def test_answer__against_a_loop(n_classes: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "BATCH", batch)
    table = table_of(n_classes)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    given = (torch.arange(N) % (n_classes + 1)) - 1
    found = answer(looked_up(table), RowViews(), rows, device=tiny.CPU, precision="fp32", given=given)
    for i, row in enumerate(rows.tolist()):
        probs = table[row].tolist()
        ranked = sorted(range(n_classes), key=lambda k: -probs[k])
        second = ranked[min(1, n_classes - 1)]
        assert (found.predicted[i], found.runner_up[i]) == (ranked[0], second)
        assert (float(found.probability[i]), float(found.runner_up_probability[i])) == (probs[ranked[0]], probs[second])
        label = int(given[i])
        assert found.given[i] == label
        if label < 0:
            assert math.isnan(found.given_probability[i])
        else:
            assert float(found.given_probability[i]) == probs[label]


def test_answer__without_labels_and_without_rows() -> None:
    found = answer(looked_up(table_of(3)), RowViews(), torch.arange(N), device=tiny.CPU, precision="fp32")
    assert (found.given == -1).all()
    assert found.given_probability.isnan().all()
    none = answer(looked_up(table_of(3)), RowViews(), torch.arange(0), device=tiny.CPU, precision="fp32")
    columns = vars(none).values()
    assert all(len(column) == 0 for column in columns)
    assert {k: v.dtype for k, v in vars(none).items()} == {k: v.dtype for k, v in vars(found).items()}


def test_answer__keeps_no_graph_and_no_table_of_classes() -> None:
    net = tiny.TinyNet(7, head="linear", norm=False)
    views = tiny.TinyViews(tiny.classes_of((5, 5)))
    found = answer(lambda x: net(x).softmax(1), views, torch.arange(10), device=tiny.CPU, precision="fp32")
    assert found.odds.shape == (10, len(TEMPERATURES))
    assert all(column.shape == (10,) for name, column in vars(found).items() if name != "odds")
    assert not any(column.requires_grad for column in vars(found).values())


def test_answer__precision_reaches_the_classifier() -> None:
    seen = []

    def probs_of(x: Tensor) -> Tensor:
        seen.append((x @ torch.ones(1, 2)).dtype)
        return torch.full((len(x), 2), 0.5)

    for precision in ("fp32", "bf16"):
        answer(probs_of, RowViews(), torch.arange(2), device=tiny.CPU, precision=precision)
    assert seen == [torch.float32, torch.bfloat16]


def test_odds_of__against_softmax_at_each_temperature() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = odds_of(logits.softmax(1))
    for column, temperature in zip(found.T, TEMPERATURES, strict=True):
        best = (logits / temperature).softmax(1).amax(1)
        assert torch.allclose(column, best.logit())


def test_odds_of__near_certainty_still_differs_and_one_class_is_finite() -> None:
    found = odds_of(torch.tensor([[1.0, 1e-12], [1.0, 1e-25]]))
    assert (found[1] > 1.5 * found[0]).all()
    assert (odds_of(torch.ones(2, 1)) == MOST_ODDS).all()
