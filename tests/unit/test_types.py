"""Candidate sets: gathered for a batch, taken in another order, moved; against a loop over rows."""

import pytest
import torch

from labelwright.types import Candidates

N, C = 200, 17


def sets_of(members, weights=None):
    lengths = torch.tensor([0, *map(len, members)])
    classes = torch.tensor([c for row in members for c in row], dtype=torch.int32)
    return Candidates(lengths.cumsum(0), classes, weights)


def drawn(seed=0):
    """Sets of 0 to 5 classes, and weights that are all different."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 6, (N,), generator=draw).tolist()
    members = [sorted(torch.randperm(C, generator=draw)[:size].tolist()) for size in sizes]
    return members, sets_of(members, torch.rand(sum(sizes), generator=draw))


def test_mask__against_a_loop():
    members, sets = drawn()
    rows = torch.randint(0, N, (300,), generator=torch.Generator().manual_seed(1))  # some rows twice, in any order
    mask = sets.mask(rows, C)
    assert mask.dtype == torch.bool
    assert mask.shape == (300, C)
    assert not all(members[r] for r in rows.tolist()), "an empty set is among them"
    for i, row in enumerate(rows.tolist()):
        assert mask[i].nonzero().flatten().tolist() == members[row]


def test_mask__empty_sets_at_both_ends():
    mask = sets_of([[], [0, 2], [], []]).mask(torch.arange(4), 3)
    assert mask.int().tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_mask__nothing_known_of_anyone():
    assert sets_of([[], []]).mask(torch.tensor([1, 0, 1]), 4).int().tolist() == [[0] * 4] * 3


def test_mask__no_rows():
    assert sets_of([[0], [1]]).mask(torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4)


def test_mask__a_class_beyond_the_last_is_no_other_class():
    sets = sets_of([[3], []])
    assert sets.mask(torch.tensor([0]), 4).int().tolist() == [[0, 0, 0, 1]]
    with pytest.raises(IndexError):
        sets.mask(torch.tensor([0]), 3)


def test_take__against_a_loop():
    members, sets = drawn(2)
    rows = torch.randint(0, N, (300,), generator=torch.Generator().manual_seed(3))
    taken = sets.take(rows)
    assert len(taken) == 300
    assert (taken.offsets.dtype, taken.classes.dtype, taken.weights.dtype) == (torch.int64, torch.int32, torch.float32)
    for i, row in enumerate(rows.tolist()):
        assert taken.of(i).tolist() == members[row]
        own = slice(int(sets.offsets[row]), int(sets.offsets[row + 1]))
        its = slice(int(taken.offsets[i]), int(taken.offsets[i + 1]))
        assert taken.weights[its].tolist() == sets.weights[own].tolist()


def test_take__all_rows_and_no_rows():
    _, sets = drawn(4)
    same, none = sets.take(torch.arange(N)), sets.take(torch.zeros(0, dtype=torch.int64))
    assert torch.equal(same.offsets, sets.offsets)
    assert torch.equal(same.classes, sets.classes)
    assert torch.equal(same.weights, sets.weights)
    assert (len(none), none.offsets.tolist(), none.classes.tolist(), none.weights.tolist()) == (0, [0], [], [])


def test_take__without_weights():
    taken = sets_of([[1], [0, 2]]).take(torch.tensor([1, 1]))
    assert taken.weights is None
    assert taken.mask(torch.arange(2), 3).int().tolist() == [[1, 0, 1], [1, 0, 1]]


def test_to__moves_every_tensor():
    _, sets = drawn(5)
    moved = sets.to("meta")
    assert {t.device.type for t in (moved.offsets, moved.classes, moved.weights)} == {"meta"}
    assert {t.device.type for t in (sets.offsets, sets.classes, sets.weights)} == {"cpu"}
    assert sets_of([[1]]).to("cpu").weights is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_candidates__rows_and_sets_on_either_device():
    _, sets = drawn(6)
    rows = torch.arange(N).flip(0)
    want = sets.mask(rows, C)
    for some, at in ((sets, rows.to("cuda")), (sets.to("cuda"), rows), (sets.to("cuda"), rows.to("cuda"))):
        mask, taken = some.mask(at, C), some.take(at)
        assert mask.device == at.device
        assert torch.equal(mask.cpu(), want)
        assert taken.classes.device == some.classes.device
        assert torch.equal(taken.classes.cpu(), sets.take(rows).classes)
