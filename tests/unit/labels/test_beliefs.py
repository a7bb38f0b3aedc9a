"""The sparse table of beliefs: what it keeps, what it gives back, what it costs and what it leaves alone."""

import io

import pytest
import torch

from labelwright.labels.codivide import init_beliefs, read_beliefs, write_beliefs

ROUNDING = 1e-6  # float32 sums of up to 50 numbers below 1


def peaked(n_rows, n_classes, seed=0, scale=2.0):
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n_rows, n_classes, generator=draw)).softmax(1)


def filled(probs, keep):
    beliefs = init_beliefs(*probs.shape, keep=keep)
    write_beliefs(beliefs, torch.arange(len(probs)), probs)
    return beliefs


def kept_and_spread(row, keep):
    """One row by the definition, in float64: the largest stay, the others share what is left."""
    row = row.double()
    order = sorted(range(len(row)), key=lambda c: -float(row[c]))
    rest = sum(float(row[c]) for c in order[keep:]) / (len(row) - keep)
    return [float(row[c]) if c in order[:keep] else rest for c in range(len(row))]


@pytest.mark.parametrize("keep", [1, 5, 49])
def test_read_beliefs__largest_kept_the_rest_spread(keep):
    probs = peaked(40, 50)
    rows = torch.tensor([39, 0, 7, 7])  # any order, a row twice
    read = read_beliefs(filled(probs, keep), rows, 50)
    assert read.dtype == torch.float32
    want = torch.tensor([kept_and_spread(probs[r], keep) for r in rows])
    torch.testing.assert_close(read, want, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(read.sum(1), torch.ones(4), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("keep", [50, 51, 1000])
def test_read_beliefs__exact_when_every_class_is_kept(keep):
    probs = peaked(40, 50)
    beliefs = filled(probs, keep)
    assert set(beliefs) == {"probs"}
    torch.testing.assert_close(read_beliefs(beliefs, torch.arange(40), 50), probs, atol=0, rtol=ROUNDING)


def test_read_beliefs__classes_that_were_not_kept_stay_below_those_that_were():
    probs = peaked(30, 50, seed=1)
    read = read_beliefs(filled(probs, 6), torch.arange(30), 50)
    sixth, seventh = read.sort(1, descending=True).values[:, 5:7].T
    assert bool((seventh < sixth).all())
    assert torch.equal(read.topk(6).indices, probs.topk(6).indices)


def test_read_beliefs__a_certain_row_leaves_nothing():
    read = read_beliefs(filled(torch.eye(40)[[7]], 4), torch.tensor([0]), 40)
    assert read[0].tolist() == [0.0] * 7 + [1.0] + [0.0] * 32


def test_read_beliefs__rounding_makes_nothing_negative():
    probs = torch.cat([peaked(500, 8, seed=5), torch.zeros(500, 32)], dim=1)
    beliefs = filled(probs, 8)
    assert beliefs["probs"].sum(1).max() > 1, "a row adds up to more than 1"
    read = read_beliefs(beliefs, torch.arange(500), 40)
    assert 0 <= read[:, 8:].min() <= read[:, 8:].max() < 1e-7


@pytest.mark.parametrize(("n_classes", "keep"), [(10, 32), (100, 32), (3, 1), (1, 4)])
def test_init_beliefs__uniform(n_classes, keep):
    read = read_beliefs(init_beliefs(4, n_classes, keep=keep), torch.arange(4), n_classes)
    torch.testing.assert_close(read, torch.full((4, n_classes), 1 / n_classes), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("n_classes", "dtype"), [(32767, torch.int16), (32768, torch.int32)])
def test_write_beliefs__the_last_of_many_classes_is_found_again(n_classes, dtype):
    probs = torch.full((1, n_classes), 0.5 / (n_classes - 1))
    probs[0, -1] = 0.5
    beliefs = filled(probs, 2)
    assert beliefs["classes"].dtype == dtype
    read = read_beliefs(beliefs, torch.tensor([0]), n_classes)
    torch.testing.assert_close(read, probs, atol=1e-8, rtol=1e-4)  # the sum of 32,767 float32


@pytest.mark.parametrize("keep", [3, 20])
def test_write_beliefs__other_rows_stay_and_the_last_write_counts(keep):
    first, second = peaked(10, 20, seed=2), peaked(2, 20, seed=3)
    beliefs = filled(first, keep)
    before = {name: t.clone() for name, t in beliefs.items()}
    rows = torch.tensor([8, 3])
    write_beliefs(beliefs, rows, second)
    others = torch.tensor([r for r in range(10) if r not in (3, 8)])
    for name, t in beliefs.items():
        assert torch.equal(t[others], before[name][others])
    assert torch.equal(read_beliefs(beliefs, rows, 20), read_beliefs(filled(second, keep), torch.arange(2), 20))


def test_write_beliefs__into_the_tensors_given():
    beliefs = init_beliefs(3, 9, keep=2)
    places = {name: t.data_ptr() for name, t in beliefs.items()}
    write_beliefs(beliefs, torch.tensor([1]), peaked(1, 9))
    assert {name: t.data_ptr() for name, t in beliefs.items()} == places


@pytest.mark.parametrize("keep", [4, 12])
def test_write_beliefs__half_precision_and_gradients(keep):
    probs = peaked(5, 12).bfloat16().requires_grad_()  # rows sum to 1 within 1%
    beliefs = filled(probs, keep)
    assert not any(t.requires_grad for t in beliefs.values())
    read = read_beliefs(beliefs, torch.arange(5), 12)
    torch.testing.assert_close(read.sum(1), torch.ones(5), atol=ROUNDING, rtol=0)
    assert torch.equal(read.argmax(1), probs.float().argmax(1))


@pytest.mark.parametrize("keep", [3, 30])
def test_beliefs__through_a_checkpoint(keep):
    beliefs = filled(peaked(8, 30), keep)
    file = io.BytesIO()
    torch.save({"memory": {"beliefs": beliefs}}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["memory"]["beliefs"]
    rows = torch.arange(8)
    assert torch.equal(read_beliefs(loaded, rows, 30), read_beliefs(beliefs, rows, 30))


def test_init_beliefs__size_grows_with_what_is_kept_not_with_the_classes():
    def n_bytes(n_classes):
        return sum(t.nbytes for t in init_beliefs(1000, n_classes, keep=8).values())

    assert n_bytes(100) == n_bytes(30_000) == 1000 * 8 * (4 + 2)
    assert n_bytes(5) == 1000 * 5 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("keep", [4, 12])
def test_beliefs__table_and_batch_on_either_device(keep):
    probs, rows = peaked(5, 12), torch.tensor([4, 0, 2, 1, 3])
    want = init_beliefs(5, 12, keep=keep)
    write_beliefs(want, rows, probs)
    for table, batch in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        beliefs = init_beliefs(5, 12, keep=keep, device=table)
        write_beliefs(beliefs, rows.to(batch), probs.to(batch))
        read = read_beliefs(beliefs, rows.to(batch), 12)
        assert {t.device.type for t in beliefs.values()} == {table}
        assert read.device.type == batch
        torch.testing.assert_close(read.cpu(), read_beliefs(want, rows, 12), atol=ROUNDING, rtol=0)
