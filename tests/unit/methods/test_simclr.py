"""SimCLR: its steps against a loop in float64, what it never looks at, and when it says it collapsed."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from labelwright.errors import ConfigError
from labelwright.methods import simclr
from labelwright.train.loop import Trained, train
from labelwright.train.seeds import generator
from labelwright.train.settings import apply_overrides
from labelwright.types import Batch, Clock, Recipe, State, Task

RECIPE = cast(Recipe, simclr)
CLASSES = tiny.classes_of((6, 4, 2))
N, D, T, LR = len(CLASSES), 2, 0.5, 0.3
PLAIN_SGD: dict[str, object] = {
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "lr": LR,
}


def config(**changed: object) -> simclr.Config:
    return apply_overrides(simclr.Config(), {"epochs": 3, "batch_size": 6, **changed})


def task_of(labels: list[int]) -> Task:
    return Task(torch.tensor(labels), ())


def run(cfg: simclr.Config, task: Task | None = None, *, seed: int = 0) -> Trained:
    views, build = tiny.TinyViews(CLASSES), tiny.BuildTiny()
    return train(RECIPE, cfg, task or task_of([-1] * N), views, build, options=tiny.options_of(seed))


class Linear(nn.Module):
    """Projections that are linear in three pixels of the view."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, D, generator=generator(0, "w")))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1, 0, 0], F.normalize(x[:, :, 0, 0] @ self.weight, dim=1)


class Watched(tiny.Recorded):
    """SimCLR on `Linear`, which notes the pixels that it saw."""

    def __init__(self) -> None:
        super().__init__(RECIPE)
        self.seen: list[list[list[list[float]]]] = []  # step, view, row, pixel

    def setup(self, *args: Any) -> State:
        return State({"main": Linear()}, memory={"tally": torch.zeros(3), "alignment": 0.0, "cosine": 1.0})

    def step(self, cfg: Any, task: Task, state: State, batches: Any, clock: Clock) -> Any:
        self.seen.append([view[:, :, 0, 0].double().tolist() for view in batches["train"].views])
        return super().step(cfg, task, state, batches, clock)


def loss_of(w: list[float], views: list[list[list[float]]]) -> float:
    """Eq. (1), pair by pair."""
    z = []
    for x in [*views[0], *views[1]]:
        raw = [sum(x[i] * w[i * D + d] for i in range(3)) for d in range(D)]
        length = math.sqrt(sum(v * v for v in raw))
        z.append([v / length for v in raw])
    n, total = len(views[0]), 0.0
    for i in range(2 * n):
        sims = [math.exp(sum(a * b for a, b in zip(z[i], z[k], strict=True)) / T) for k in range(2 * n)]
        total -= math.log(sims[(i + n) % (2 * n)] / sum(s for k, s in enumerate(sims) if k != i))
    return total / (2 * n)


def test_trace__five_steps_of_sgd() -> None:
    recipe = Watched()
    cfg = config(**PLAIN_SGD, epochs=5, batch_size=N, temperature=T)
    state = train(
        recipe, cfg, task_of([-1] * N), tiny.TinyViews(CLASSES), tiny.BuildTiny(), options=tiny.options_of()
    ).state
    w, expected, h = Linear().weight.detach().double().flatten().tolist(), [], 1e-6
    for views in recipe.seen:
        expected.append(loss_of(w, views))
        sides = [[loss_of([v + s * (i == j) for j, v in enumerate(w)], views) for s in (h, -h)] for i in range(len(w))]
        w = [v - LR * (up - down) / (2 * h) for v, (up, down) in zip(w, sides, strict=True)]
    # float32 against float64: 1e-5 is some 80 roundings
    assert recipe.losses == pytest.approx(expected, rel=1e-5)
    assert state.nets["main"].get_parameter("weight").flatten().tolist() == pytest.approx(w, rel=1e-4, abs=1e-5)
    assert abs(expected[0] - expected[-1]) > 1e-2 * expected[0]  # the trace went somewhere
    assert recipe.seen[0][0] != recipe.seen[0][1]  # two views, each with its own draws


def test_run__labels_play_no_part() -> None:
    cfg = config()
    runs = [run(cfg, task_of(labels)).state for labels in ([-1] * N, CLASSES, CLASSES[::-1])]
    assert tiny.differing(runs[0], runs[1]) == tiny.differing(runs[0], runs[2]) == []
    assert tiny.differing(runs[0], run(cfg, seed=1).state) != []


def test_run__all_but_the_last_layer_learns() -> None:
    done = run(config()).state.nets["main"]
    start = run(config(lr=1e-30)).state.nets["main"]
    same = {name for name, value in done.named_parameters() if torch.equal(value, start.get_parameter(name))}
    assert same == {"classifier.head.weight", "classifier.head.bias"}


def test_run__loss_falls() -> None:
    recorded = tiny.Recorded(RECIPE)
    cfg = config(epochs=30, batch_size=N, lr=0.5, warmup_epochs=0.0)
    train(recorded, cfg, task_of([-1] * N), tiny.TinyViews(CLASSES), tiny.BuildTiny(), options=tiny.options_of())
    assert sum(recorded.losses[-3:]) < 0.8 * sum(recorded.losses[:3])


def test_plan__each_image_once_in_two_views() -> None:
    task, cfg = task_of([0, -1, 0, -1, -1]), config(batch_size=2, view="weak")
    plan = simclr.plan(cfg, task, simclr.setup(cfg, task, tiny.BuildTiny()), 0)
    stream = plan.streams["train"]
    assert (stream.rows.tolist(), stream.views, plan.n_steps) == ([0, 1, 2, 3, 4], ("weak", "weak"), 2)


# ---- collapse -------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = F.normalize(z, dim=1)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.z


@pytest.mark.parametrize(
    ("spread", "before", "epoch", "is_said"),
    [(0.01, 0.99, 4, True), (0.01, 1.0, 4, False), (0.01, 0.99, 0, False), (3.0, 0.0, 4, False)],
    ids=["alike", "alike, but less so", "alike at the start", "different"],
)
def test_end_epoch__says_when_projections_collapse(spread: float, before: float, epoch: int, is_said: bool) -> None:
    z = torch.ones(8, 5) + spread * torch.randn(8, 5, generator=generator(0, "z"))
    state = State({"main": Told(z)}, memory={"tally": torch.zeros(3), "alignment": 0.0, "cosine": before})
    batch = Batch(torch.arange(4), (torch.zeros(4, 1), torch.zeros(4, 1)), torch.full((4,), -1))
    clock = Clock(epoch=epoch, n_epochs=9, step=0, steps_per_epoch=1, seed=0)
    result = simclr.step(config(), task_of([-1] * 4), state, {"train": batch}, clock)
    unit = F.normalize(z.double(), dim=1)
    sims = unit @ unit.T
    own = [float(sims[i, i + 4]) for i in range(4)]
    others = [float(sims[i, j]) for i in range(8) for j in range(8) if i % 4 != j % 4]
    assert float(result.logs["alignment"]) == pytest.approx(sum(own) / 4, abs=1e-6)
    assert float(result.logs["cosine_of_others"]) == pytest.approx(sum(others) / len(others), abs=1e-6)
    state, logs = simclr.end_epoch(config(), task_of([-1] * 4), result.state, cast(Any, None), epoch)
    assert ("warnings" in logs) == is_said
    assert state.memory["cosine"] == pytest.approx(sum(others) / len(others), abs=1e-6)
    assert state.memory["alignment"] == pytest.approx(sum(own) / 4, abs=1e-6)
    assert state.memory["tally"].tolist() == [0.0, 0.0, 0.0]
    if is_said:
        assert f"after epoch {epoch + 1}" in logs["warnings"][0]


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("batch_size", 1), ("n_dims", 0), ("view", "clean")])
def test_config__refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value} is not possible"):
        config(**{key: value})
