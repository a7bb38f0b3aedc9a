"""What every loss on logits promises: its value, its gradient, and that a row left out is not there at all."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from labelwright.adjust.adjustment import Adjustment
from labelwright.errors import ConfigError, DataError
from labelwright.losses import candidates, soft_targets
from labelwright.losses import classification as losses

B, C, D = 6, 4, 5
COUNTS = (50.0, 20.0, 8.0, 2.0)


def case(seed=0, dtype=torch.float64, rows=B):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, C, generator=draw, dtype=torch.float64).to(dtype)
    labels = torch.randint(C, (rows,), generator=draw)
    return logits, labels


def feats_of(rows=B):
    return torch.linspace(-1, 2, rows * D, dtype=torch.float64).reshape(rows, D)


def targets_of(labels):
    """[B, C] rows of 0.7 on the label and 0.1 elsewhere: rows sum to 1 for C = 4; -1 gives a row of NaN."""
    targets = torch.full((len(labels), C), 0.1, dtype=torch.float64)
    known = labels >= 0
    targets[known, labels[known]] = 0.7
    targets[~known] = torch.nan
    return targets


def on_targets(loss):
    """A loss on soft targets as one on labels, so that one contract serves all."""

    def on_labels(logits, labels, *, where=None, **rest):
        known = labels >= 0
        where = known if where is None else known & where
        return loss(
            logits, targets_of(labels).to(torch.promote_types(logits.dtype, torch.float32)), where=where, **rest
        )

    return on_labels


def set_of(labels):
    """[B, C] the label and the class two further on; -1 gives an empty set, which a loss on sets leaves out itself."""
    classes = torch.arange(C)
    return (labels[:, None] >= 0) & ((classes == labels[:, None]) | (classes == (labels[:, None] + 2) % C))


def on_sets(loss, **knobs):
    return lambda logits, labels, **rest: loss(logits, set_of(labels), **knobs, **rest)


def negative_entropy(logits, labels, *, where=None, **rest):
    known = labels >= 0
    return candidates.negative_entropy(logits, where=known if where is None else known & where, **rest)


def influence(logits, labels, *, feats=None, **rest):
    feats = feats_of(len(logits)) if feats is None else feats
    return losses.influence_balanced(logits, labels, feats=feats.to(logits.dtype), scale=2.0, **rest)


PRIOR = [n / sum(COUNTS) for n in COUNTS]
MARGINS = torch.tensor([0.1, 0.2, 0.3, 0.5], dtype=torch.float64)
MULTIPLIER = torch.tensor([1.0, 0.9, 0.8, 0.5], dtype=torch.float64)
OFFSET = torch.tensor(PRIOR, dtype=torch.float64).log()
PAIRS = torch.tensor([[0.0, 0.3, -0.2, 0.1], [1.0, 0.0, 0.5, 0.2], [0.1, 0.2, 0.0, 0.3], [0.4, 0.6, 0.8, 0.0]]).double()

LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "adjusted_cross_entropy": partial(
        losses.adjusted_cross_entropy, adjustment=Adjustment(MULTIPLIER, OFFSET, -MARGINS, PAIRS)
    ),
    "soft_cross_entropy": on_targets(losses.soft_cross_entropy),
    "focal": partial(losses.focal, power=1.5),
    "influence_balanced": influence,
    "partial_cross_entropy": on_sets(candidates.partial_cross_entropy, eps=0.01),
    "complementary_loss": on_sets(candidates.complementary_loss, eps=0.01),
    "negative_entropy": negative_entropy,
    "squared_error_of_probs": on_targets(soft_targets.squared_error_of_probs),
}
# The same without the `where` that an adapter adds; those not here have none.
AS_CALLED = {
    "soft_cross_entropy": lambda f, y, **rest: losses.soft_cross_entropy(f, targets_of(y), **rest),
    "negative_entropy": lambda f, y, **rest: candidates.negative_entropy(f, **rest),
    "squared_error_of_probs": lambda f, y, **rest: soft_targets.squared_error_of_probs(f, targets_of(y), **rest),
}


def softmax_list(row):
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    return [e / sum(exps) for e in exps]


def oracle(name, row, label, feats):
    """One row's loss by plain floats, from probabilities rather than log-probabilities."""
    p = softmax_list(row)
    if name == "soft_cross_entropy":
        return sum(-(0.7 if k == label else 0.1) * math.log(p[k]) for k in range(C))
    inside = {label, (label + 2) % C}
    if name == "partial_cross_entropy":
        return -math.log(0.01 + sum(p[k] for k in inside))
    if name == "complementary_loss":
        return -sum(math.log(1 - p[k] + 0.01) for k in range(C) if k not in inside)
    if name == "negative_entropy":
        return sum(v * math.log(v) for v in p)
    if name == "squared_error_of_probs":
        return sum((p[k] - (0.7 if k == label else 0.1)) ** 2 for k in range(C)) / C
    if name == "focal":
        return -((1 - p[label]) ** 1.5) * math.log(p[label])
    if name == "adjusted_cross_entropy":
        row = [
            v * MULTIPLIER[k].item() + math.log(PRIOR[k]) + PAIRS[label][k].item() - MARGINS[k].item() * (k == label)
            for k, v in enumerate(row)
        ]
    value = -math.log(softmax_list(row)[label])
    if name == "influence_balanced":
        gap = sum(abs(p[k] - (k == label)) for k in range(C))
        value *= 2 / (gap * sum(abs(h) for h in feats) + 1e-3)
    return value


def test_every_public_loss_is_here():
    public = {
        name
        for module in (losses, candidates, soft_targets)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if "reduce" in inspect.signature(value).parameters
    }
    assert public == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_oracle(name):
    logits, labels = case()
    expected = [
        oracle(name, row, label, feats)
        for row, label, feats in zip(logits.tolist(), labels.tolist(), feats_of().tolist(), strict=True)
    ]
    got = LOSSES[name](logits, labels, reduce="none")
    assert got.tolist() == pytest.approx(expected, rel=1e-10)
    assert LOSSES[name](logits, labels).item() == pytest.approx(sum(expected) / B, rel=1e-10)
    assert LOSSES[name](logits, labels, reduce="sum").item() == pytest.approx(sum(expected), rel=1e-10)


# Two classes with logits [log 3, 0]: p = [3/4, 1/4]; label 1 unless said otherwise.
WORKED = {
    "cross_entropy": (losses.cross_entropy, math.log(4)),
    # 2 log 3 + log 2 + log 3 = log 54 against log 2 + log 5 = log 10: 1 + 5.4
    "adjusted_cross_entropy": (
        partial(
            losses.adjusted_cross_entropy,
            adjustment=Adjustment(
                multiplier=torch.tensor([2.0, 1.0]),
                offset=torch.tensor([math.log(2), 0.0]),
                target_margin=torch.tensor([99.0, math.log(2)]),
                pair_margin=torch.tensor([[99.0, 99.0], [math.log(3), math.log(5)]]),
            ),
        ),
        math.log(6.4),
    ),
    "soft_cross_entropy": (
        lambda f, y, **rest: losses.soft_cross_entropy(f, torch.tensor([[0.25, 0.75]]), temperature=1.0, **rest),
        0.25 * math.log(4 / 3) + 0.75 * math.log(4),
    ),
    "focal": (partial(losses.focal, power=2.0), (3 / 4) ** 2 * math.log(4)),
    # |p - onehot|_1 = 3/2, |h|_1 = 4
    "influence_balanced": (
        partial(losses.influence_balanced, feats=torch.tensor([[3.0, -1.0]]), scale=1.0),
        math.log(4) / (1.5 * 4 + 0.001),
    ),
    # the set of class 1 alone
    "partial_cross_entropy": (
        lambda f, y, **rest: candidates.partial_cross_entropy(f, torch.tensor([[False, True]]), eps=0.25, **rest),
        math.log(2),
    ),
    "complementary_loss": (
        lambda f, y, **rest: candidates.complementary_loss(f, torch.tensor([[False, True]]), eps=0.25, **rest),
        math.log(2),
    ),
    "negative_entropy": (negative_entropy, 3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)),
    "squared_error_of_probs": (
        lambda f, y, **rest: soft_targets.squared_error_of_probs(f, torch.tensor([[0.25, 0.75]]), **rest),
        (1 / 2) ** 2,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_worked_number(name):
    loss, expected = WORKED[name]
    assert loss(torch.tensor([[math.log(3), 0.0]]), torch.tensor([1])).item() == pytest.approx(expected, rel=1e-6)


LIMITS = {
    "cross_entropy": losses.cross_entropy,
    # one constant on all logits of a row
    "adjusted_cross_entropy": partial(
        losses.adjusted_cross_entropy,
        adjustment=Adjustment(
            torch.ones(C), torch.full((C,), 7.0), torch.zeros(C), pair_margin=torch.arange(C)[:, None].expand(C, C)
        ),
    ),
    "soft_cross_entropy": lambda f, y: losses.soft_cross_entropy(f, F.one_hot(y, C).double()),
    "focal": partial(losses.focal, power=0.0),
    # without features the divisor is its 0.001
    "influence_balanced": partial(losses.influence_balanced, feats=torch.zeros(B, D), scale=1e-3),
    "partial_cross_entropy": lambda f, y: candidates.partial_cross_entropy(f, F.one_hot(y, C).bool(), eps=0),
}


def test_what_has_no_limit():
    assert set(LOSSES) - set(LIMITS) == {"complementary_loss", "negative_entropy", "squared_error_of_probs"}


@pytest.mark.parametrize("name", LIMITS)
def test_limit_is_cross_entropy(name):
    logits, labels = case()
    assert LIMITS[name](logits, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    logits, labels = case()
    where = torch.tensor([True, True, False, True, True, True])
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: LOSSES[name](f, labels, weights=weights, where=where), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0])  # certainly right, certainly wrong
    loss = LOSSES[name](logits, labels, reduce="none")
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
    if name == "negative_entropy":  # which knows no right and wrong
        assert loss.tolist() == [0, 0]
        assert not logits.grad.any()
        return
    assert loss[1] > loss[0]
    assert logits.grad[1, 0] <= 0 <= logits.grad[1, 1]


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", LOSSES)
def test_poisoned_row_left_out(name, poison):
    logits, labels = case()
    kept = torch.tensor([0, 1, 3, 4, 5])
    where = torch.zeros(B, dtype=torch.bool)
    where[kept] = True
    bad = logits.clone()
    bad[2] = poison
    bad.requires_grad_()
    weights = torch.ones(B, dtype=torch.float64)
    weights[2] = math.nan
    extra = {}
    clean_extra = {}
    if name == "influence_balanced":
        extra["feats"] = feats_of().index_fill(0, torch.tensor([2]), poison)
        clean_extra["feats"] = feats_of()[kept]
    loss = LOSSES[name](bad, labels, where=where, weights=weights, **extra)
    loss.backward()
    clean = logits[kept].requires_grad_()
    expected = LOSSES[name](clean, labels[kept], **clean_extra)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(bad.grad[kept], clean.grad, rtol=1e-12, atol=0)
    assert bad.grad[2].abs().max() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_label_is_left_out(name):
    logits, labels = case()
    where = torch.arange(B) != 3
    unknown = labels.masked_fill(~where, -1)
    assert LOSSES[name](logits, unknown).item() == LOSSES[name](logits, labels, where=where).item()
    assert LOSSES[name](logits, unknown).item() != LOSSES[name](logits, labels).item()
    per_row = LOSSES[name](logits, unknown, reduce="none")
    assert per_row.shape == (B,)
    assert per_row[3] == 0


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_kept_is_zero(name, reduce):
    logits, labels = case()
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, where=torch.zeros(B, dtype=torch.bool), reduce=reduce)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(B, C, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_weight_two_is_row_twice(name):
    logits, labels = case()
    twice = torch.tensor([0, 1, 1, 2, 3, 4, 5])
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    extra = {"feats": feats_of()[twice]} if name == "influence_balanced" else {}
    expected = LOSSES[name](logits[twice], labels[twice], **extra).item()
    assert LOSSES[name](logits, labels, weights=weights).item() == pytest.approx(expected, rel=1e-12)
    assert LOSSES[name](logits, labels).item() != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name):
    logits, labels = case(dtype=torch.bfloat16)
    loss = LOSSES[name](logits, labels)
    assert loss.dtype in (torch.float32, torch.float64)
    # The inputs are the same numbers: only rounding of bfloat16 arithmetic, 4e-3, could tell them apart.
    assert loss.item() == pytest.approx(LOSSES[name](logits.double(), labels).item(), rel=1e-3)


BAD_ROWS = {"weights": torch.ones(B + 1), "where": torch.ones(B - 1, dtype=torch.bool)}


@pytest.mark.parametrize("key", BAD_ROWS)
@pytest.mark.parametrize("name", LOSSES)
def test_error_names_what_does_not_fit(name, key):
    loss = AS_CALLED.get(name, LOSSES[name])
    with pytest.raises(DataError, match=rf"{key} has shape \[{len(BAD_ROWS[key])}\] for logits \[6, 4\]"):
        loss(*case(), **{key: BAD_ROWS[key]})


@pytest.mark.parametrize("name", LOSSES)
def test_error_names_unknown_reduce(name):
    with pytest.raises(ConfigError, match="reduce='average' is unknown") as error:
        LOSSES[name](*case(), reduce="average")
    assert error.value.fix == 'use "mean", "sum" or "none"'
