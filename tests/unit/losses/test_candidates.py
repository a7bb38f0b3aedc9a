"""What only losses on candidate sets have; the rest of their promises is in contract/test_losses.py."""

import math

import pytest
import torch

from labelwright.errors import ConfigError, DataError
from labelwright.losses.candidates import (
    candidate_targets,
    complementary_loss,
    informative_rows,
    negative_entropy,
    partial_cross_entropy,
)
from labelwright.losses.classification import cross_entropy

ON_SETS = pytest.mark.parametrize("loss", [partial_cross_entropy, complementary_loss])


def case(rows=7, n_classes=5, seed=0):
    """Float64 logits and sets; row 2 is empty, row 4 holds every class, the others neither."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, n_classes, generator=draw, dtype=torch.float64)
    candidates = torch.rand(rows, n_classes, generator=draw) < 0.5
    candidates[:, 0], candidates[:, 1] = True, False
    candidates[2], candidates[4] = False, True
    return logits, candidates


def softmax_rows(logits):
    exps = [[math.exp(v) for v in row] for row in logits.tolist()]
    return [[v / sum(row) for v in row] for row in exps]


def test_informative_rows__neither_empty_nor_full_nor_excluded():
    _, candidates = case()
    assert informative_rows(candidates).tolist() == [True, True, False, True, False, True, True]
    where = torch.arange(7) > 2
    assert informative_rows(candidates, where).tolist() == [False, False, False, True, False, True, True]


@ON_SETS
def test_sets_that_say_nothing_are_left_out(loss):
    logits, candidates = case()
    per_row = []
    for p, inside in zip(softmax_rows(logits), candidates.tolist(), strict=True):
        if all(inside) or not any(inside):
            continue
        if loss is partial_cross_entropy:
            per_row.append(-math.log(1e-5 + sum(v for v, is_in in zip(p, inside, strict=True) if is_in)))
        else:
            per_row.append(sum(-math.log(1 - v + 1e-7) for v, is_in in zip(p, inside, strict=True) if not is_in))
    assert len(per_row) == 5
    assert loss(logits, candidates).item() == pytest.approx(sum(per_row) / 5, rel=1e-10)
    assert loss(logits, candidates, reduce="none")[[2, 4]].tolist() == [0, 0]
    logits[2], logits[4] = torch.nan, torch.inf
    logits.requires_grad_()
    poisoned = loss(logits, candidates)
    poisoned.backward()
    assert poisoned.item() == pytest.approx(sum(per_row) / 5, rel=1e-10)
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False, True, False, True, True]


@ON_SETS
def test_only_sets_that_say_nothing(loss):
    logits = torch.randn(3, 4, requires_grad=True)
    candidates = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
    knobs = {"eps": 0} if loss is partial_cross_entropy else {}
    value = loss(logits, candidates, **knobs)
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_partial_cross_entropy__eps_bounds_loss_and_pull():
    candidates = torch.tensor([[False, True, False]])
    logits = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    bounded = partial_cross_entropy(logits, candidates)
    bounded.backward()
    assert bounded.item() == pytest.approx(-math.log(1e-5), rel=1e-5)
    assert logits.grad.abs().max() < 1e-6  # e^-30 / 1e-5
    logits.grad = None
    free = partial_cross_entropy(logits, candidates, eps=0)
    free.backward()
    assert free.item() == pytest.approx(30, rel=1e-6)
    assert logits.grad.tolist()[0] == pytest.approx([1, -1, 0], abs=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_partial_cross_entropy__far_beyond_exp(eps):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    candidates = torch.tensor([[True, False, True], [False, True, False]])
    loss = partial_cross_entropy(logits, candidates, eps=eps, reduce="none")
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-math.log1p(eps), 2e4 if eps == 0 else -math.log(eps)], abs=1e-6, rel=1e-6)
    assert logits.grad.isfinite().all()


def test_partial_cross_entropy__pulls_towards_the_whole_set():
    """The gradient is p_j minus the share of j inside the set: candidates rise as they are probable, others fall."""
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    partial_cross_entropy(logits, torch.tensor([[True, False, True, False]]), eps=0).backward()
    p = softmax_rows(logits)[0]
    mass = p[0] + p[2]
    expected = [p[0] - p[0] / mass, p[1], p[2] - p[2] / mass, p[3]]
    assert logits.grad[0].tolist() == pytest.approx(expected, rel=1e-10)


def test_complementary_loss__two_classes_are_cross_entropy():
    logits = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    loss = complementary_loss(logits, torch.nn.functional.one_hot(labels, 2).bool(), eps=1e-12)
    assert loss.item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-9)


def test_complementary_loss__certain_of_a_class_outside():
    loss = complementary_loss(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[False, True, True]]))
    assert loss.item() == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_negative_entropy__range():
    logits = torch.tensor([[0.0] * 8, [200.0] + [0.0] * 7, [1.0] * 2 + [-math.inf] * 6], requires_grad=True)
    loss = negative_entropy(logits, reduce="none")
    assert loss.tolist() == pytest.approx([-math.log(8), 0, -math.log(2)], rel=1e-6)
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_candidate_targets__equals_loops():
    logits, candidates = case()
    probs = logits.softmax(dim=1)
    expected = []
    for p, inside in zip(softmax_rows(logits), candidates.tolist(), strict=True):
        some = [v if is_in or not any(inside) else 0 for v, is_in in zip(p, inside, strict=True)]
        expected.append([v / sum(some) for v in some])
    torch.testing.assert_close(candidate_targets(probs, candidates), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(candidate_targets(probs, candidates)[[2, 4]], probs[[2, 4]])


def test_candidate_targets__no_or_hardly_any_mass():
    probs = torch.tensor([[1.0, 0.0, 0.0], [1.0, 4e-40, 1.2e-39]])
    inside = torch.tensor([[False, True, True]]).expand(2, 3)
    got = candidate_targets(probs, inside)
    assert got[0].tolist() == [0, 0.5, 0.5]
    assert got[1].sum().item() == pytest.approx(1, rel=1e-6)
    assert got[1, 0] == 0


def test_candidate_targets__half_precision_comes_back_as_float32():
    got = candidate_targets(torch.tensor([[0.5, 0.25, 0.25]]).bfloat16(), torch.tensor([[True, True, False]]))
    assert got.dtype == torch.float32
    assert got.tolist()[0] == pytest.approx([2 / 3, 1 / 3, 0], rel=1e-6)


@pytest.mark.parametrize("function", [partial_cross_entropy, complementary_loss, candidate_targets])
def test_candidates_that_do_not_fit(function):
    for candidates, words in (
        (torch.ones(2, 3), r"candidates are float32 \[2, 3\], logits \[2, 3\]"),
        (torch.ones(2, 4, dtype=torch.bool), r"candidates are bool \[2, 4\], logits \[2, 3\]"),
        (torch.ones(3, 3, dtype=torch.bool), r"candidates are bool \[3, 3\], logits \[2, 3\]"),
    ):
        with pytest.raises(DataError, match=words):
            function(torch.zeros(2, 3), candidates)


def test_eps_out_of_range():
    logits, candidates = case()
    for loss in (partial_cross_entropy, complementary_loss):
        with pytest.raises(ConfigError, match="eps=-1 is negative"):
            loss(logits, candidates, eps=-1)
    with pytest.raises(ConfigError, match="eps=0 leaves the loss unbounded"):
        complementary_loss(logits, candidates, eps=0)
