import pytest
import torch

from labelwright.errors import ConfigError
from labelwright.labels.purify import (
    init_history,
    lifted,
    mean_of,
    push_history,
    reliable_targets,
    sharpen,
)


def rows(n, n_classes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_classes, generator=draw, dtype=torch.float64).softmax(dim=1)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 4.0])
def test_sharpen__equals_loops(temperature):
    probs = rows(6, 5)
    powers = [[v ** (1 / temperature) for v in row] for row in probs.tolist()]
    expected = [[v / sum(row) for v in row] for row in powers]
    torch.testing.assert_close(sharpen(probs, temperature=temperature), torch.tensor(expected, dtype=torch.float64))


def test_sharpen__limits():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(sharpen(probs, temperature=1.0), probs)
    onehot = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    assert torch.equal(sharpen(probs, temperature=1e-4), onehot)
    flat = sharpen(probs, temperature=1e6)
    torch.testing.assert_close(flat, torch.tensor([[1 / 3] * 3, [0.0, 1.0, 0.0]]), atol=1e-5, rtol=0)


def test_sharpen__probabilities_whose_powers_underflow():
    many = torch.full((1, 100_000), 1e-5)  # to the tenth power: 1e-50, below float32
    torch.testing.assert_close(sharpen(many, temperature=0.1), many)


@pytest.mark.parametrize("temperature", [0.0, -0.5])
def test_sharpen__temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match=f"temperature={temperature} is not positive"):
        sharpen(rows(1, 2), temperature=temperature)


def test_sharpen__half_precision():
    got = sharpen(torch.tensor([[0.75, 0.25]]).half(), temperature=0.5)
    assert got.dtype == torch.float32
    assert got.tolist()[0] == pytest.approx([0.9, 0.1], rel=1e-6)


@pytest.mark.parametrize("n_batches", [0, 1, 3, 4, 5, 11])
def test_history__mean_of_the_last_batches(n_batches):
    history, seen = init_history(3, 4), []
    for seed in range(n_batches):
        probs = rows(2 + seed % 3, 3, seed=seed)
        seen.append([sum(column) / len(probs) for column in zip(*probs.tolist(), strict=True)])
        history = push_history(history, probs)
    last = seen[-4:] or [[1 / 3] * 3]
    expected = [sum(column) / len(last) for column in zip(*last, strict=True)]
    assert mean_of(history).tolist() == pytest.approx(expected, rel=1e-6)


def test_history__a_batch_counts_once_whatever_its_size():
    history = push_history(init_history(2, 5), torch.tensor([[1.0, 0.0]] * 9))
    history = push_history(history, torch.tensor([[0.0, 1.0]]))
    assert mean_of(history).tolist() == [0.5, 0.5]
    assert push_history(history, torch.zeros(0, 2))["n_pushed"].item() == 2


def test_history__pushing_leaves_the_old_one_and_keeps_no_gradient():
    old = init_history(2, 3)
    probs = torch.tensor([[0.25, 0.75]], dtype=torch.float16, requires_grad=True)
    new = push_history(old, probs)
    assert (old["means"].abs().sum().item(), old["n_pushed"].item()) == (0, 0)
    assert not new["means"].requires_grad
    assert new["means"].dtype == torch.float32
    assert mean_of(new).tolist() == [0.25, 0.75]


def test_history__comes_back_from_a_checkpoint(tmp_path):
    history = init_history(3, 4)
    for seed in range(6):
        history = push_history(history, rows(5, 3, seed=seed))
    torch.save(history, tmp_path / "state.pt")
    back = torch.load(tmp_path / "state.pt", weights_only=True)
    more = rows(5, 3, seed=9)
    assert torch.equal(mean_of(push_history(back, more)), mean_of(push_history(history, more)))


def test_history__of_losses_by_epoch():
    epochs = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    history = init_history(9, 5)
    for losses in epochs:
        history = push_history(history, losses[None])
    expected = [sum(column) / 5 for column in zip(*epochs[-5:].tolist(), strict=True)]
    assert mean_of(history).tolist() == pytest.approx(expected, rel=1e-6)


def test_lifted__equals_loops():
    probs, factor = rows(6, 4), rows(1, 4, seed=1)[0]
    scaled = [[p * f for p, f in zip(row, factor.tolist(), strict=True)] for row in probs.tolist()]
    expected = [[v / sum(row) for v in row] for row in scaled]
    torch.testing.assert_close(lifted(probs, factor), torch.tensor(expected, dtype=torch.float64))


def test_lifted__a_row_on_ruled_out_classes_stays():
    probs = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    assert lifted(probs, torch.tensor([3.0, 1.0, 0.0])).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]


def test_reliable_targets__trust_moves_from_own_to_other():
    own, other = rows(3, 4), rows(3, 4, seed=1)
    got = reliable_targets(own, other, torch.tensor([0.0, 1.0, 0.25]), temperature=0.5)
    torch.testing.assert_close(got[0], sharpen(own, temperature=0.5)[0])
    torch.testing.assert_close(got[1], sharpen(other, temperature=0.5)[1])
    mixed = [(0.25 * b + 0.75 * a) ** 2 for a, b in zip(own[2].tolist(), other[2].tolist(), strict=True)]
    assert got[2].tolist() == pytest.approx([v / sum(mixed) for v in mixed], rel=1e-6)
