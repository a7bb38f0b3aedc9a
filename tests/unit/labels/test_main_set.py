"""Sizes of the main set by the paper's formula, and the surest rows by a plain loop."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelwright.labels import main_set as module
from labelwright.labels.alignment import Aligned
from labelwright.labels.main_set import competing_rows, grown, main_set_size, prototypes, surest_rows


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
    of = torch.tensor([float(n) for n in images])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "MAX_RATIO", float(Fraction(ratio)))
        patched.setattr(module, "GROWTH_FRAC", 0.5)
        got = main_set_size(epoch, n_epochs=n_epochs, unlabelled_per_class=of, start=start)
    assert got.dtype == torch.int64
    assert got.tolist() == want


def test_main_set_size__grows_to_its_end_and_no_further(monkeypatch):
    monkeypatch.setattr(module, "GROWTH_FRAC", 0.75)
    of = torch.tensor([3000.0, 400.0, 30.0, 0.0])
    sizes = torch.stack([main_set_size(e, n_epochs=40, unlabelled_per_class=of) for e in range(45)])
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


def aligned_of(class_feats, described=None):
    """Class features alone: what `competing_rows` reads of an alignment."""
    none, nobody = torch.zeros_like(class_feats), torch.zeros(0, dtype=torch.int64)
    prior = torch.full((len(class_feats),), 1 / len(class_feats))
    return Aligned(class_feats, none, none[:, 0], prior, nobody, nobody, torch.zeros(0), described or {})


def slow_competition(scores, k, allowed):
    """Pairs of image and class by falling score, each taken if its image is free and its class has room."""
    pairs = [(scores[i, c].item(), i, c) for i in range(len(scores)) for c in range(scores.shape[1]) if allowed[c]]
    owner = {}
    for _, i, c in sorted(pairs, reverse=True):
        if i not in owner and list(owner.values()).count(c) < k:
            owner[i] = c
    return owner


@pytest.mark.parametrize(("k", "barred"), [(1, -1), (4, -1), (4, 0), (40, -1)])
def test_competing_rows__by_loop(k, barred):
    draw = torch.Generator().manual_seed(3)
    z = torch.nn.functional.normalize(torch.randn(60, 5, generator=draw), dim=1)
    t = torch.nn.functional.normalize(torch.randn(3, 5, generator=draw), dim=1)
    where, allowed = torch.arange(60) % 4 > 0, torch.arange(3) != barred
    rows, classes = competing_rows(z, aligned_of(t), k=k, logit_scale=10.0, where=where, allowed=allowed)
    own = where.nonzero().flatten()
    logits = (10.0 * z[own] @ t.T).masked_fill(~allowed, -torch.inf)
    want = {int(own[i]): c for i, c in slow_competition(logits.log_softmax(1), k, allowed).items()}
    assert dict(zip(rows.tolist(), classes.tolist(), strict=True)) == want
    assert len(rows) == min(k * int(allowed.sum()), 45)


def test_competing_rows__a_described_class_takes_its_nearest_images_first():
    z = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    text, names, every = z[7], torch.eye(4)[:3], torch.ones(30, dtype=torch.bool)
    found = aligned_of(names, {1: text})
    rows, classes = competing_rows(z, found, k=5, logit_scale=100.0, where=every, allowed=every[:3])
    assert rows[classes == 1].tolist() == (z @ text).topk(5).indices.tolist()
    assert torch.bincount(classes).tolist() == [5, 5, 5]
    assert len(set(rows.tolist())) == 15


def test_competing_rows__nothing_may_be_taken():
    none = torch.zeros(4, dtype=torch.bool)
    rows, classes = competing_rows(
        torch.eye(4), aligned_of(torch.eye(4)), k=2, logit_scale=1.0, where=none, allowed=~none
    )
    assert (rows.tolist(), classes.tolist()) == ([], [])


def test_grown__keeps_the_first_rows_and_never_takes_one_twice():
    first = torch.tensor([4, 0]), torch.tensor([1, 0])
    predicted, sure = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([0.9, 0.5, 0.8, 0.7, 0.9])
    where = torch.tensor([True, True, True, True, True])
    rows, classes = grown(first, predicted, sure, torch.tensor([2, 2]), where=where)
    assert (rows.tolist(), classes.tolist()) == ([4, 0, 2, 3], [1, 0, 0, 1])
    rows, classes = grown(first, predicted, sure, torch.tensor([0, 3]), where=where & (sure > 0.75))
    assert (rows.tolist(), classes.tolist()) == ([4, 0], [1, 0]), "3 is no candidate, and sizes take nothing away"


def test_prototypes__of_no_row():
    assert prototypes(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2).tolist() == [[0.0] * 3] * 2
