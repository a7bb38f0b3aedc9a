"""kd, top1, cc, proden and crdpll: their losses against loops in float64, and what they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from labelwright.labels.first_guess import first_guess
from labelwright.methods.baselines.candidate_sets import even_targets, read_targets
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.train.seeds import generator
from labelwright.types import Batch, Clock, State, Task

N, C = 9, 4
NAMES = ("a", "b", "c", "d")
ALL = pytest.mark.parametrize("name", ["kd", "top1", "cc", "proden", "crdpll"])


def a_task() -> Task:
    """Labels, sets of several sizes, a set of every class, an empty one; weights."""
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]).bool()
    mask = torch.cat([mask, mask[:3]])
    labels = torch.full((N,), -1)
    labels[5], labels[8] = 1, 3
    return Task(labels, NAMES, tiny.sets_of(mask, torch.rand(N, C, generator=generator(0, "weights")) + 0.1))


def sets_and_shares(task: Task) -> tuple[list[set[int]], list[list[float]]]:
    """Of every image what it may be, and the annotator's shares: read off the sparse rows one by one."""
    sets, shares = [], []
    assert task.candidates is not None
    assert task.candidates.weights is not None
    for row in range(N):
        weights = dict.fromkeys(range(C), 0.0)
        if task.labels[row] >= 0:
            weights[int(task.labels[row])] = 1.0
        else:
            for place in range(int(task.candidates.offsets[row]), int(task.candidates.offsets[row + 1])):
                weights[int(task.candidates.classes[place])] = float(task.candidates.weights[place])
        sets.append({c for c in range(C) if weights[c] > 0})
        total = sum(weights.values()) or 1.0
        shares.append([weights[c] / total for c in range(C)])
    return sets, shares


def clock(epoch: int = 0) -> Clock:
    return Clock(epoch=epoch, n_epochs=10, step=0, steps_per_epoch=1, seed=0)


def stepped(name: str, rows: Tensor, *, epoch: int = 0, state: State | None = None) -> Any:
    task = a_task()
    cfg = resolve_config(METHODS[name], {"epochs": 10})
    n_views = 3 if name == "crdpll" else 1
    if state is None:
        memory: dict[str, Any] = {"is_frozen": False}
        if name in ("proden", "crdpll"):
            memory["targets"] = even_targets(task)
        state = State({"main": tiny.Told(n_views * N, C)}, memory=memory)
    views = tuple((rows + v * N).float() for v in range(n_views))
    return METHODS[name].recipe.step(cfg, task, state, {"train": Batch(rows, views, task.labels[rows])}, clock(epoch))


def expected(name: str, net: tiny.Told, rows: list[int], targets: list[list[float]] | None, weight: float) -> float:
    """The loss of a batch, from the header of the recipe."""
    sets, shares = sets_and_shares(a_task())
    losses = []
    for row in rows:
        p = net.probs(row)
        if name == "kd":
            if not sets[row]:
                continue
            losses.append(-sum(shares[row][c] * math.log(p[c]) for c in range(C)))
        elif name == "top1":
            if not sets[row]:
                continue
            losses.append(-math.log(p[shares[row].index(max(shares[row]))]))
        elif len(sets[row]) in (0, C):
            continue
        elif name == "cc":
            losses.append(-math.log(sum(p[c] for c in sets[row])))
        else:
            t = targets[row] if targets else [1 / len(sets[row]) if c in sets[row] else 0.0 for c in range(C)]
            if name == "proden":
                losses.append(-sum(t[c] * math.log(p[c]) for c in range(C)))
            else:
                outside = -sum(math.log(1 - p[c]) for c in range(C) if c not in sets[row])
                apart = 0.0
                for v in range(3):
                    q = net.probs(row + v * N)
                    apart += sum(t[c] * math.log(t[c] / q[c]) for c in range(C) if t[c] > 0)
                losses.append(outside + weight * apart)
    return sum(losses) / len(losses)


ROWS = [4, 0, 8, 3, 1, 5, 2]


@ALL
def test_step__against_a_loop(name: str) -> None:
    result = stepped(name, torch.tensor(ROWS), epoch=2)
    net = result.state.nets["main"]
    assert float(result.loss.detach()) == pytest.approx(expected(name, net, ROWS, None, weight=2 / 5), rel=1e-5)
    assert result.n_kept == (6 if name in ("kd", "top1") else 5)  # the empty set; and the set of every class


@ALL
def test_step__images_that_say_nothing_have_no_gradient(name: str) -> None:
    result = stepped(name, torch.tensor(ROWS), epoch=2)
    result.loss.backward()
    moved = (result.state.nets["main"].table.grad.abs().sum(1) > 0).nonzero().flatten().tolist()
    told = {row for row in ROWS if row != 4 and not (row == 3 and name not in ("kd", "top1"))}
    assert {place % N for place in moved} == told
    nothing = stepped(name, torch.tensor([4]))
    nothing.loss.backward()
    assert float(nothing.loss.detach()) == 0
    assert nothing.n_kept == 0
    assert nothing.state.nets["main"].table.grad.abs().max() == 0


def renewed(name: str, net: tiny.Told) -> list[list[float]]:
    """Targets after every image was visited: geometric mean over views inside the set."""
    sets, n_views = sets_and_shares(a_task())[0], 3 if name == "crdpll" else 1
    table = []
    for row in range(N):
        means = [math.prod(net.probs(row + v * N)[c] for v in range(n_views)) ** (1 / n_views) for c in range(C)]
        inside = [means[c] if c in sets[row] else 0.0 for c in range(C)]
        table.append([value / (sum(inside) or 1.0) for value in inside])
    return table


@pytest.mark.parametrize("name", ["proden", "crdpll"])
def test_step__targets_of_the_last_visit(name: str) -> None:
    first = stepped(name, torch.arange(N))
    net = first.state.nets["main"]
    table = renewed(name, net)
    found = read_targets(a_task(), first.state.memory["targets"], torch.arange(N))
    for row in range(N):
        if row != 4:  # nothing known
            assert found[row].tolist() == pytest.approx(table[row], abs=1e-6)
    with torch.no_grad():
        net.table += torch.randn(net.table.shape, generator=generator(1, "moved"))
    second = stepped(name, torch.tensor(ROWS), epoch=9, state=first.state)
    assert float(second.loss.detach()) == pytest.approx(expected(name, net, ROWS, table, weight=1.0), rel=1e-5)


def test_crdpll__ramp() -> None:
    rows, net = torch.tensor(ROWS), tiny.Told(3 * N, C)
    for epoch, weight in ((0, 0.0), (1, 0.2), (5, 1.0), (9, 1.0)):
        found = float(stepped("crdpll", rows, epoch=epoch).loss.detach())
        assert found == pytest.approx(expected("crdpll", net, ROWS, None, weight), rel=1e-5)


# ---- learning --------------------------------------------------------------------------------------------------------


def fresh_accuracy(name: str, *, stored: bool) -> tuple[float, float]:
    """Accuracy on as many images again that training does not see, and that of the most probable candidates."""
    counts = (60, 50, 40)
    classes = tiny.classes_of(counts)
    task, n = tiny.candidate_task_of(counts), len(classes)
    views = tiny.TinyFeats([*classes, *classes], noise=0.35) if stored else tiny.TinyViews([*classes, *classes])
    build = tiny.BuildHead() if stored else tiny.BuildTiny()
    cfg = resolve_config(METHODS[name], {"epochs": 16, "batch_size": 16, "lr": 0.1})
    trained = train(METHODS[name].recipe, cfg, task, views, build, options=tiny.options_of())
    trained.state.nets["main"].eval()
    with torch.no_grad():
        predicted = METHODS[name].recipe.predict(cfg, trained.state, views.x[n:]).logits.argmax(1)
    guesses, truth = task.guesses(torch.arange(n)), torch.tensor(classes)
    top1 = first_guess(guesses, torch.arange(n))
    return float((predicted == truth).float().mean()), float((top1 == truth).float().mean())


@pytest.mark.parametrize("stored", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("name", ["cc", "proden", "crdpll", "pico", "dividemix"])
def test_learns__more_than_the_most_probable_candidates_say(name: str, stored: bool) -> None:
    accuracy, top1 = fresh_accuracy(name, stored=stored)
    assert top1 < 0.75
    assert accuracy > top1 + 0.05
