"""What every adjustment from class counts promises, and the slopes under relabelling of classes."""

import inspect
from functools import partial

import pytest
import torch

from labelwright.adjust import confusion, fixed
from labelwright.adjust import slopes as calibration

COUNTS = torch.tensor([400, 100, 25, 4])


def field(name, function, **knobs):
    """One tensor of the adjustment that a function of counts makes."""
    return lambda counts: getattr(function(counts, **knobs), name)


def from_prior(function, **knobs):
    return lambda counts: function(fixed.prior(counts), torch.ones(len(counts)), **knobs)


# name -> (function of counts, +1 if it grows with the count or -1)
ADJUSTMENTS = {
    "prior": (fixed.prior, 1),
    "log_prior": (fixed.log_prior, 1),
    "effective_number_weights": (partial(fixed.effective_number_weights, beta=0.99), -1),
    "inverse_prior_weights": (partial(fixed.inverse_prior_weights, power=0.5), -1),
    "logit_adjustment": (field("offset", fixed.logit_adjustment, strength=0.9), 1),
    "vector_scaling": (field("multiplier", fixed.vector_scaling, power=0.15), 1),
    "ldam": (field("target_margin", fixed.ldam), 1),
    "multiplicative_adjustment": (field("multiplier", from_prior(fixed.multiplicative_adjustment, power=0.15)), 1),
    "additive_adjustment": (field("offset", from_prior(fixed.additive_adjustment, strength=0.9)), 1),
}
OF_LOGITS = {"subtract_log_prior"}  # tested in tests/unit/adjust/test_fixed.py
OF_CONFUSION = {"rescaled_similarity", "pace", "confusion_margin"}  # contract at the end of this file
NAMED_PAIRS = {"largest_margins"}  # pairs by name for the page: its example tests it


def public_of(module):
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def test_every_public_adjustment_is_here():
    assert public_of(fixed) == set(ADJUSTMENTS) | OF_LOGITS
    assert public_of(confusion) == OF_CONFUSION | NAMED_PAIRS


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_one_float_per_class_ordered_by_count(name):
    function, sign = ADJUSTMENTS[name]
    values = function(COUNTS)
    assert values.shape == COUNTS.shape
    assert values.dtype == torch.float32
    assert (sign * values.diff() < 0).all()
    assert function(COUNTS.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_equal_counts_single_out_no_class(name):
    values = ADJUSTMENTS[name][0](torch.full((4,), 7))
    assert torch.equal(values, values[:1].expand(4))


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_classes_may_come_in_any_order(name):
    order = torch.tensor([2, 0, 3, 1])
    function = ADJUSTMENTS[name][0]
    torch.testing.assert_close(function(COUNTS[order]), function(COUNTS)[order])


@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_empty_class_is_finite_and_leaves_the_input(name):
    counts = torch.tensor([400, 100, 0])
    values = ADJUSTMENTS[name][0](counts)
    assert torch.isfinite(values).all()
    assert counts.tolist() == [400, 100, 0]


@pytest.mark.parametrize("shrink", [None, 1.0])
@pytest.mark.parametrize("fit", ["least_squares", "huber"])
@pytest.mark.parametrize("against", ["confidence", "logit"])
def test_slopes_follow_a_relabelling_of_classes(against, fit, shrink):
    draw = torch.Generator().manual_seed(0)
    predicted = torch.randint(5, (900,), generator=draw)
    score = torch.rand(900, generator=draw)
    correct = torch.rand(900, generator=draw) < score * (0.3 + 0.15 * predicted)
    found = partial(calibration.slopes_from_rows, n_classes=5, clamp=(1e-3, 1e3), against=against, fit=fit)
    order = torch.tensor([3, 1, 4, 0, 2])
    kappa = found(predicted, score, correct, shrink=shrink)
    torch.testing.assert_close(found(order[predicted], score, correct, shrink=shrink)[order], kappa)
    shuffle = torch.randperm(900, generator=draw)
    again = found(predicted[shuffle], score[shuffle], correct[shuffle], shrink=shrink)
    torch.testing.assert_close(again, kappa)
    assert len(set(kappa.tolist())) == 5


def confusion_of(order, dtype=torch.float32):
    """Each function of adjust.confusion on five classes, listed in some order."""
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    text = unit(torch.randn(5, 8, generator=draw, dtype=torch.float64), dim=1)[order].to(dtype)
    images = unit(torch.randn(5, 8, generator=draw, dtype=torch.float64), dim=1)[order].to(dtype)
    paces = confusion.pace(torch.tensor([400, 0, 25, 4, 90])[order], torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2])[order])
    similarity = confusion.rescaled_similarity(text, images)
    margin = confusion.confusion_margin(similarity, paces.to(dtype), scale=12.0).pair_margin
    return {"pace": paces, "rescaled_similarity": similarity, "confusion_margin": margin}


@pytest.mark.parametrize("name", sorted(OF_CONFUSION))
def test_confusion_follows_a_relabelling_of_classes(name):
    order = torch.tensor([3, 1, 4, 0, 2])
    plain, moved = confusion_of(torch.arange(5))[name], confusion_of(order)[name]
    torch.testing.assert_close(moved, plain[order] if plain.dim() == 1 else plain[order][:, order])
    assert not torch.allclose(moved, plain)


@pytest.mark.parametrize("name", sorted(OF_CONFUSION))
def test_confusion_is_finite_in_the_precision_given(name):
    single, double = confusion_of(torch.arange(5))[name], confusion_of(torch.arange(5), torch.float64)[name]
    assert torch.isfinite(single).all()
    torch.testing.assert_close(single.double(), double.double(), rtol=1e-5, atol=1e-5)
    if name != "pace":
        assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
