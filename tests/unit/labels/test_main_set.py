"""Sizes of the main set by the paper's formula, and the surest rows by a plain loop."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelwright.labels.alignment import main_set_size, surest_rows


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    st.integers(0, 120),
    st.sampled_from([1, 10, 50, 100]),
    st.integers(1, 40),
    st.sampled_from(["1/2", "3/4", "1"]),
)
def test_main_set_size__in_fractions(images, epoch, n_epochs, start, ratio):
    growth = Fraction(1, 2)
    want = []
    for n in images:
        target = min(Fraction(ratio) * n, 1000)
        first = min(target, Fraction(start))
        grown = min(Fraction(1), epoch / (growth * n_epochs))
        want.append(int(first + (target - first) * grown))
    got = main_set_size(
        epoch,
        n_epochs=n_epochs,
        unlabelled_per_class=torch.tensor([float(n) for n in images]),
        start=start,
        max_ratio=float(Fraction(ratio)),
        growth_frac=0.5,
    )
    assert got.dtype == torch.int64
    assert got.tolist() == want


def test_main_set_size__grows_to_its_end_and_no_further():
    of = torch.tensor([3000.0, 400.0, 30.0, 0.0])
    sizes = torch.stack([main_set_size(e, n_epochs=40, unlabelled_per_class=of, growth_frac=0.75) for e in range(45)])
    assert (sizes.diff(dim=0) >= 0).all()
    assert sizes[0].tolist() == [16, 16, 16, 0]
    assert sizes[29, 0] < 1000
    assert sizes[30:].unique(dim=0).tolist() == [[1000, 320, 24, 0]]


def test_main_set_size__a_rare_class_never_exceeds_its_share():
    of = torch.tensor([5.0, 12.0])
    for epoch in (0, 20, 50):
        assert main_set_size(epoch, n_epochs=50, unlabelled_per_class=of).tolist() == [4, 9]


def slow_surest(predicted, confidence, sizes, where):
    rows, classes = [], []
    for c, size in enumerate(sizes):
        own = [i for i in range(len(predicted)) if where[i] and predicted[i] == c]
        own.sort(key=lambda i: (-confidence[i], i))
        rows += own[:size]
        classes += [c] * len(own[:size])
    return rows, classes


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.booleans()), max_size=60),
    st.lists(st.integers(0, 12), min_size=5, max_size=5),
)
def test_surest_rows__by_loop(images, sizes):
    predicted, tenths, where = (list(column) for column in zip(*images, strict=True)) if images else ([], [], [])
    rows, classes = surest_rows(
        torch.tensor(predicted, dtype=torch.int64),
        torch.tensor([v / 10 for v in tenths]),
        torch.tensor(sizes),
        where=torch.tensor(where, dtype=torch.bool),
    )
    assert (rows.tolist(), classes.tolist()) == slow_surest(predicted, tenths, sizes, where)


@pytest.mark.parametrize(("sizes", "n"), [([0, 0, 0], 0), ([9, 9, 9], 6), ([1, 0, 5], 3)])
def test_surest_rows__sizes(sizes, n):
    predicted, confidence = torch.tensor([0, 0, 0, 1, 2, 2]), torch.linspace(0, 1, 6)
    rows, classes = surest_rows(predicted, confidence, torch.tensor(sizes), where=torch.ones(6, dtype=torch.bool))
    assert len(rows) == n
    assert torch.equal(predicted[rows], classes)


def test_surest_rows__nothing_may_be_taken():
    rows, classes = surest_rows(
        torch.zeros(3, dtype=torch.int64), torch.rand(3), torch.ones(2), where=torch.zeros(3, dtype=torch.bool)
    )
    assert (rows.tolist(), classes.tolist()) == ([], [])
