"""DivideMix: both kinds of step against a loop in float64, and the division of wrong labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from labelwright.errors import ConfigError
from labelwright.methods.baselines import dividemix
from labelwright.train.seeds import generator
from labelwright.train.settings import apply_overrides
from labelwright.types import Batch, Clock, State, Task

N, C = 7, 3
ROWS = [4, 0, 6, 1, 3]
Floats = list[list[float]]


HEAVIEST: list[int | None] = [0, 2, 1, 2, 1, 0, None]  # row 1 by its label, row 6 has nothing


def a_task() -> Task:
    weights = torch.full((N, C), 0.2)
    mask = torch.ones(N, C, dtype=torch.bool)
    for row, c in enumerate(HEAVIEST):
        if c is None:
            mask[row] = False
        else:
            weights[row, c] = 0.6
    weights[1] = torch.tensor([0.6, 0.2, 0.2])
    labels = torch.full((N,), -1)
    labels[1] = 2
    return Task(labels, ("a", "b", "c"), tiny.sets_of(mask, weights))


def told_nets() -> dict[str, nn.Module]:
    return {"main": tiny.Told(2 * N, C), "peer": tiny.Told(2 * N, C, 1)}


def a_state(main: float, peer: float) -> State:
    """What each network makes of every label: the same for all that there are."""
    there = torch.tensor([c is not None for c in HEAVIEST]).float()
    clean = {"main": main * there, "peer": peer * there}
    return State(told_nets(), memory={"is_frozen": False, "clean": clean})


def stepped(state: State, *, epoch: int, **changed: object) -> Any:
    task, rows = a_task(), torch.tensor(ROWS)
    cfg = apply_overrides(dividemix.Config(), {"epochs": 20, "mixup_alpha": 0.0, **changed})  # 2 plain epochs
    views = (rows.float(), rows.float() + N)
    clock = Clock(epoch=epoch, n_epochs=20, step=0, steps_per_epoch=1, seed=0)
    return dividemix.step(cfg, task, state, {"train": Batch(rows, views, task.labels[rows])}, clock)


def sharpened(p: list[float], temperature: float = 0.5) -> list[float]:
    powers = [v ** (1 / temperature) for v in p]
    return [v / sum(powers) for v in powers]


def mean(parts: Floats) -> list[float]:
    return [sum(column) / len(parts) for column in zip(*parts, strict=True)]


def crossed(t: list[float], p: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(t, p, strict=True))


def divided_loss(own: tiny.Told, other: tiny.Told, clean_by_other: float, weight: float) -> float:
    """Lines 6, 7 and 9 of the header, without mixup."""
    trusted, guessed, every = [], [], []
    for row in ROWS:
        label, w = HEAVIEST[row], clean_by_other if HEAVIEST[row] is not None else 0.0
        views = [own.probs(row), own.probs(row + N)]
        if w > 0.5:
            target = sharpened([w * (c == label) + (1 - w) * v for c, v in enumerate(mean(views))])
        else:
            target = sharpened(mean([*views, other.probs(row), other.probs(row + N)]))
        for p in views:
            every.append(p)
            if w > 0.5:
                trusted.append(crossed(target, p))
            else:
                guessed.append(sum((a - b) ** 2 for a, b in zip(p, target, strict=True)) / C)
    lean = sum(math.log(1 / C / v) for v in mean(every)) / C
    return sum(trusted) / max(len(trusted), 1) + weight * sum(guessed) / max(len(guessed), 1) + lean


@pytest.mark.parametrize("entropy_weight", [1.0, 0.25, 0.0])
def test_step__plain_epoch(entropy_weight: float) -> None:
    state = a_state(0.0, 0.0)
    result = stepped(state, epoch=1, entropy_weight=entropy_weight)
    expected = 0.0
    for net in state.nets.values():
        losses = []
        for row in ROWS:
            label = HEAVIEST[row]
            if label is not None:
                p = net.probs(row)  # type: ignore[operator]
                losses.append(-math.log(p[label]) + entropy_weight * sum(v * math.log(v) for v in p))
        expected += sum(losses) / len(losses)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert result.n_kept == 4


@pytest.mark.parametrize(("main", "peer"), [(0.9, 0.2), (0.2, 0.9), (0.7, 0.8), (0.0, 0.5)])
def test_step__each_network_learns_by_the_others_division(main: float, peer: float) -> None:
    state = a_state(main, peer)
    nets: Any = state.nets
    weight = 25 * (6 - 2) / 16
    expected = divided_loss(nets["main"], nets["peer"], peer, weight)
    expected += divided_loss(nets["peer"], nets["main"], main, weight)
    result = stepped(state, epoch=6)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(result.logs["trusted_frac_main"]) == pytest.approx(0.8 * (peer > 0.5))
    assert float(result.logs["trusted_frac_peer"]) == pytest.approx(0.8 * (main > 0.5))


def test_step__mixes() -> None:
    plain, mixed, again = (
        float(stepped(a_state(0.9, 0.9), epoch=6, mixup_alpha=alpha).loss.detach()) for alpha in (0.0, 4.0, 4.0)
    )
    assert mixed == again
    assert abs(mixed - plain) > 1e-3


def passes_of(tables: dict[str, Tensor]) -> Any:
    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        assert (view, output) == ("clean", "logits")
        for some in rows.split(9):
            yield some, tables[net][some]

    return passes


def test_end_epoch__divides_right_from_wrong_labels() -> None:
    """The main network knows the truth, the peer nothing."""
    n = 60
    truth = torch.arange(n) % C
    is_wrong, is_empty, is_known = torch.arange(n) % 4 == 1, torch.arange(n) % 10 == 0, torch.arange(n) % 7 == 0
    given = torch.where(is_wrong, (truth + 1) % C, truth)
    mask = nn.functional.one_hot(given, C).bool() & ~is_empty[:, None]
    task = Task(torch.where(is_known, truth, -1), ("a", "b", "c"), tiny.sets_of(mask))
    sure = 4 * nn.functional.one_hot(truth, C) + 0.3 * torch.randn(n, C, generator=generator(0, "sure"))
    sure[is_empty | is_known] *= 100  # far off, and not to be measured by
    state = State(told_nets(), memory={"is_frozen": False, "clean": {}})
    cfg = dividemix.Config(epochs=20)
    passes = passes_of({"main": sure, "peer": torch.zeros(n, C)})
    clean = dividemix.end_epoch(cfg, task, state, passes, 5)[0].memory["clean"]
    guessed = ~is_empty & ~is_known
    assert clean["main"][guessed & ~is_wrong].min() > 0.9
    assert clean["main"][guessed & is_wrong].max() < 0.1
    for found in clean.values():
        assert (found[is_known] == 1).all()
        assert (found[is_empty & ~is_known] == 0).all()
    assert (clean["peer"][guessed] == 1).all()  # nothing sets any label apart


def test_end_epoch__divides_from_the_last_plain_epoch_to_the_last_but_one() -> None:
    state, passes = a_state(0.0, 0.0), passes_of({name: torch.randn(N, C) for name in ("main", "peer")})
    cfg = dividemix.Config(epochs=20)
    renewed = [epoch for epoch in range(20) if dividemix.end_epoch(cfg, a_task(), state, passes, epoch)[0] is not state]
    assert renewed == list(range(1, 19))


def test_setup__two_networks_of_different_weights() -> None:
    task, _, build = tiny.inputs_of("dividemix", (14, 8, 4))
    nets = dividemix.setup(dividemix.Config(), task, build).nets
    main, peer = (net.get_parameter("backbone.weight") for net in (nets["main"], nets["peer"]))
    assert not torch.equal(main, peer)


def test_plan__two_views_after_the_division() -> None:
    task, cfg = a_task(), dividemix.Config(epochs=20)
    n_views = [len(dividemix.plan(cfg, task, a_state(0, 0), epoch).streams["train"].views) for epoch in (0, 1, 2, 19)]
    assert n_views == [1, 1, 2, 2]


def test_predict__with_the_first_network() -> None:
    state, x = a_state(0.0, 0.0), torch.arange(N).float()
    found = dividemix.RECIPE.predict(dividemix.Config(), state, x).logits
    assert torch.equal(found, state.nets["main"](x))
    assert not torch.equal(found, state.nets["peer"](x))


@pytest.mark.parametrize(("key", "value"), [("threshold", 1.0), ("sharpen_temperature", 0.0), ("ramp_epochs", -1.0)])
def test_config__refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value} is not possible"):
        apply_overrides(dividemix.Config(), {key: value})
