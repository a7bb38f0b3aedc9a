"""PiCO: one step against a loop in float64, and what it remembers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from labelwright.errors import ConfigError
from labelwright.losses.contrastive import init_queue, push_queue
from labelwright.methods.baselines import pico
from labelwright.methods.baselines.candidate_sets import even_targets, read_targets
from labelwright.train.seeds import generator
from labelwright.train.settings import apply_overrides
from labelwright.types import Batch, Clock, State, Task

N, C, D = 7, 3, 5
ROWS = [4, 0, 6, 1, 3]
Floats = list[list[float]]


class Told(nn.Module):
    """Logits and projections that are its parameters, one row per image; x holds the row."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(2 * torch.randn(N, C, generator=generator(seed, "logits")))
        self.z = nn.Parameter(torch.randn(N, D, generator=generator(seed, "z")))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits[x.long()], F.normalize(self.z[x.long()], dim=1)


def a_task() -> Task:
    """Row 6 has nothing, row 3 every class, row 1 a label outside of its set."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    labels = torch.full((N,), -1)
    labels[1] = 2
    return Task(labels, ("a", "b", "c"), tiny.sets_of(mask))


SETS = [{0, 1}, {2}, {1, 2}, {0, 1, 2}, {1, 2}, {0, 2}, {0, 1, 2}]


def a_state(*, queued: int = 4) -> State:
    queue = init_queue(6, D)
    if queued:
        keys = F.normalize(torch.randn(queued, D, generator=generator(0, "keys")), dim=1)
        queue = push_queue(queue, keys, torch.arange(queued) % C, torch.ones(queued, dtype=torch.bool))
    prototypes = F.normalize(torch.randn(C, D, generator=generator(0, "mu")), dim=1)
    prototypes[1] = 0  # not seen yet
    memory = {"is_frozen": False, "targets": even_targets(a_task()), "prototypes": prototypes, "queue": queue}
    return State({"main": Told(0), "key": Told(1).requires_grad_(False)}, memory=memory)


def stepped(state: State, *, epoch: int, **changed: object) -> Any:
    task, rows = a_task(), torch.tensor(ROWS)
    cfg = apply_overrides(pico.Config(), {"epochs": 10, **changed})
    views = (rows.float(), rows.float())
    clock = Clock(epoch=epoch, n_epochs=10, step=0, steps_per_epoch=1, seed=0)
    return pico.step(cfg, task, state, {"train": Batch(rows, views, task.labels[rows])}, clock)


def unit(rows: Tensor) -> Floats:
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows.double().tolist()]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def probs_of(logits: list[float]) -> list[float]:
    exps = [math.exp(v) for v in logits]
    return [e / sum(exps) for e in exps]


def predicted(net: Told) -> list[int]:
    """Most probable class inside the set, of each row of the batch."""
    return [max(SETS[row], key=lambda c: float(net.logits.detach()[row, c])) for row in ROWS]


def contrastive(state: State, *, by_label: bool, temperature: float = 0.07) -> float:
    """Eq. of the header, 3 and 4, pair by pair."""
    net, key_net, queue = state.nets["main"], state.nets["key"], state.memory["queue"]
    q, k = unit(net.z.detach()[ROWS]), unit(key_net.z.detach()[ROWS])  # type: ignore[union-attr,index]
    labels = predicted(net)  # type: ignore[arg-type]
    n = len(ROWS)
    queued = [(unit(queue["keys"][i : i + 1])[0], int(queue["labels"][i])) for i in range(6) if queue["labels"][i] >= 0]
    losses = []
    for i in range(n):
        if by_label:
            others = [(q[j], labels[j] == labels[i]) for j in range(n) if j != i]
            others += [(k[j], labels[j] == labels[i]) for j in range(n)]
            others += [(z, c == labels[i]) for z, c in queued]
        else:
            others = [(k[i], True)] + [(z, False) for z, _ in queued]
        total = sum(math.exp(dot(q[i], z) / temperature) for z, _ in others)
        logs = [dot(q[i], z) / temperature - math.log(total) for z, is_positive in others if is_positive]
        losses.append(-sum(logs) / len(logs))
    return sum(losses) / n


def classification(net: Told, targets: Floats) -> float:
    losses = []
    for place, row in enumerate(ROWS):
        if len(SETS[row]) < C:
            p = probs_of(net.logits.detach()[row].tolist())
            losses.append(-sum(t * math.log(v) for t, v in zip(targets[place], p, strict=True)))
    return sum(losses) / len(losses)


def uniform() -> Floats:
    return [[1 / len(SETS[row]) if c in SETS[row] else 0.0 for c in range(C)] for row in ROWS]


def test_step__plain_epoch() -> None:
    state = a_state()
    result = stepped(state, epoch=0)
    net: Any = state.nets["main"]
    expected = classification(net, uniform()) + 0.5 * contrastive(state, by_label=False)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert result.n_kept == len(ROWS)
    assert torch.equal(result.state.memory["targets"], state.memory["targets"])


@pytest.mark.parametrize("epoch", [1, 6])
def test_step__targets_move_to_the_nearest_prototype(epoch: int) -> None:
    state = a_state()
    net: Any = state.nets["main"]
    mu, q = state.memory["prototypes"].tolist(), unit(net.z.detach()[ROWS])
    phi = 0.95 - 0.15 * epoch / 10
    targets = uniform()
    for place, row in enumerate(ROWS):
        seen = [c for c in SETS[row] if c != 1] or [1]
        nearest = max(seen, key=lambda c: dot(q[place], mu[c]))
        targets[place] = [phi * t + (1 - phi) * (c == nearest) for c, t in enumerate(targets[place])]
    result = stepped(state, epoch=epoch, contrastive_weight=0.3)
    expected = classification(net, targets) + 0.3 * contrastive(state, by_label=True)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    found = read_targets(a_task(), result.state.memory["targets"], torch.tensor(ROWS))
    for place, row in enumerate(ROWS):
        if row != 6:  # nothing is kept of an image without candidates
            assert found[place].tolist() == pytest.approx(targets[place], abs=1e-6)
    assert torch.equal(state.memory["targets"], even_targets(a_task()))  # the old state stays


def test_step__prototypes_and_queue() -> None:
    state = a_state()
    net: Any = state.nets["main"]
    key_net: Any = state.nets["key"]
    q, labels = unit(net.z.detach()[ROWS]), predicted(net)
    mu = state.memory["prototypes"].double().tolist()
    for z, c in zip(q, labels, strict=True):
        mu[c] = [0.9 * old + 0.1 * new for old, new in zip(mu[c], z, strict=True)]
    expected = F.normalize(torch.tensor(mu), dim=1)
    memory = stepped(state, epoch=1, prototype_decay=0.9).state.memory
    assert torch.allclose(memory["prototypes"], expected, atol=1e-6)
    assert not memory["prototypes"].requires_grad
    assert int(memory["queue"]["place"]) == (4 + 5) % 6
    newest = [(4 + i) % 6 for i in range(5)]
    assert torch.allclose(memory["queue"]["keys"][newest], torch.tensor(unit(key_net.z[ROWS])), atol=1e-6)
    assert memory["queue"]["labels"][newest].tolist() == labels


def test_step__gradient_reaches_queries_and_no_key() -> None:
    state = a_state()
    stepped(state, epoch=1).loss.backward()
    net: Any = state.nets["main"]
    assert (net.z.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == sorted(ROWS)
    assert (net.logits.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [0, 1, 4]  # of those that say something
    assert all(p.grad is None for p in state.nets["key"].parameters())


def test_run__momentum_network_follows() -> None:
    settings = {"epochs": 2, "batch_size": 8, "lr": 0.1, "queue_size": 16}
    still, _ = tiny.run_method("pico", (14, 8, 4), settings={**settings, "key_decay": 1.0})
    along, _ = tiny.run_method("pico", (14, 8, 4), settings={**settings, "key_decay": 0.0})
    gap = [
        (
            t.state.nets["key"].get_parameter("projector.0.weight")
            - t.state.nets["main"].get_parameter("projector.0.weight")
        )
        .abs()
        .max()
        for t in (still, along)
    ]
    assert gap[0] > 1e-3
    assert gap[1] == 0
    assert int(still.state.memory["queue"]["place"]) == 2 * 3 * 8 % 16


@pytest.mark.parametrize(("spread", "is_said"), [(1.0, False), (0.01, True)])
def test_end_epoch__says_when_prototypes_collapse(spread: float, is_said: bool) -> None:
    prototypes = F.normalize(torch.ones(C, D) + spread * 3 * torch.randn(C, D, generator=generator(0, "mu")), dim=1)
    state = State({}, memory={"prototypes": prototypes})
    _, logs = pico.end_epoch(pico.Config(), a_task(), state, None, 4)  # type: ignore[arg-type]
    assert ("warnings" in logs) == is_said
    assert -1 <= logs["prototype_cosine"] <= 1
    if is_said:
        assert "after epoch 5" in logs["warnings"][0]


@pytest.mark.parametrize(("key", "value"), [("phi_last", 1.5), ("temperature", 0.0), ("queue_size", 0)])
def test_config__refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value} is not possible"):
        apply_overrides(pico.Config(), {key: value})
