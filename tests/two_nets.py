"""A recipe that no paper has, with all that the four methods ask of the loop.

Two networks, each trained on streams that the *other* one chose by a pass over the training set (Co-Reg); a momentum
copy of each; a FIFO queue of keys; a sparse table of pseudolabels; a main set that grows (CAP); labelled and unlabelled
streams of other lengths and views (LPS); draws from the global generator in step, plan and end_epoch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labelwright.train.settings import TrainSettings
from labelwright.types import (
    Average,
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Passes,
    Prediction,
    State,
    StepResult,
    Stream,
    Task,
)

QUEUE = 12
OTHER = {"a": "b", "b": "a"}


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    warmup_passes: int = 1  # epochs on the labelled images alone
    decay: float = 0.9  # of the momentum copies
    grow_by: int = 6  # rows that join the main set each epoch


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    nets, averages = {}, {}
    for name in OTHER:
        nets[name] = build_net(task.n_classes)
        nets[f"{name}_copy"] = copy.deepcopy(nets[name])
        averages[f"{name}_copy"] = Average(name, cfg.decay)
    N, C = len(task.labels), task.n_classes
    labelled = torch.nonzero(task.labels >= 0).flatten()
    memory = {
        "queue": torch.zeros(QUEUE, C),
        "n_pushed": 0,
        "pseudo": {"label": task.labels.clone(), "trust": (task.labels >= 0).float()},
        "main_set": labelled,
        "reliable": {name: torch.ones(N, dtype=torch.bool) for name in OTHER},  # of a network's stream
    }
    return State(nets=nets, memory=memory, averages=averages)


def begin(cfg: Config, task: Task, state: State, passes: Passes) -> tuple[State, Mapping[str, Any]]:
    return state, {}


def plan(cfg: Config, task: Task, state: State, epoch: int) -> EpochPlan:
    memory = state.memory
    if epoch < cfg.warmup_passes:
        rows = torch.nonzero(task.labels >= 0).flatten()
        return EpochPlan({"labelled": Stream(rows, 6)}, n_steps=3)
    streams = {}
    for name in OTHER:
        reliable = memory["reliable"][name]
        main = memory["main_set"]
        streams[f"{name}_reliable"] = Stream(main[reliable[main]], 5, ("weak", "strong"))
        streams[f"{name}_rest"] = Stream(torch.nonzero(~reliable).flatten(), 8, ("weak", "weak"))
    in_order = torch.randperm(len(task.labels))[:9]  # the global generator
    streams["in_order"] = Stream(in_order, 2, ("clean",), shuffle=False)
    return EpochPlan(streams, n_steps=4 + epoch)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    nets, memory, labels = state.nets, state.memory, state.memory["pseudo"]["label"]
    if clock.epoch < cfg.warmup_passes:
        batch = batches["labelled"]
        terms = [torch.nn.functional.cross_entropy(nets[name](batch.x), batch.labels) for name in OTHER]
        return StepResult(torch.stack(terms).sum(), len(batch.rows), state)
    loss = torch.zeros(())
    for name in OTHER:
        good, rest = batches[f"{name}_reliable"], batches[f"{name}_rest"]
        logits = nets[name](good.views[1])
        loss = loss + torch.nn.functional.cross_entropy(logits, labels[good.rows])
        first, second = (nets[name](x).softmax(1) for x in rest.views)
        loss = loss + (first - second.detach()).square().mean()
    with torch.no_grad():
        keys = nets["a_copy"](batches["in_order"].x)
        loss = loss * (0.9 + 0.2 * torch.rand(()))  # the global generator
    places = (memory["n_pushed"] + torch.arange(len(keys))) % QUEUE
    queue = memory["queue"].clone()
    queue[places] = keys
    loss = loss + 0.1 * (nets["b"](batches["in_order"].x) @ queue.T).softmax(1).square().mean()
    new = {**memory, "queue": queue, "n_pushed": memory["n_pushed"] + len(keys)}
    return StepResult(loss, len(keys), dataclasses.replace(state, memory=new), {"pushed": float(new["n_pushed"])})


def end_epoch(cfg: Config, task: Task, state: State, passes: Passes, epoch: int) -> tuple[State, Mapping[str, Any]]:
    memory, N = state.memory, len(task.labels)
    reliable: dict[str, Tensor] = {}
    confident, label = torch.zeros(N), torch.zeros(N, dtype=torch.int64)
    for name, other in OTHER.items():
        for rows, logits in passes(other, torch.arange(N)):
            best, predicted = logits.softmax(1).max(1)
            confident[rows] += best
            label[rows] = predicted
        doubt = confident + 1e-3 * torch.rand(N)  # the global generator
        reliable[name] = (doubt >= doubt.median()) & (torch.arange(N) > 0)  # row 0 never: no stream is empty
        reliable[name][memory["main_set"][1:3]] = True
    for _, logits in passes("b_copy", torch.arange(2), "weak"):
        confident[:2] += logits.softmax(1).max(1).values
    outside = torch.ones(N, dtype=torch.bool)
    outside[memory["main_set"]] = False
    joining = (confident * outside).argsort(descending=True, stable=True)[: cfg.grow_by]
    main_set = torch.cat([memory["main_set"], joining[outside[joining]]])
    known = task.labels >= 0
    pseudo = {"label": torch.where(known, task.labels, label), "trust": torch.where(known, 1.0, confident / 3)}
    new = {**memory, "reliable": reliable, "main_set": main_set, "pseudo": pseudo}
    return dataclasses.replace(state, memory=new), {"n_main": len(main_set), "warnings": ["it is only a test"]}


def predict(cfg: Config, state: State, x: Tensor) -> Prediction:
    return Prediction(state.nets["a"](x) + state.nets["b"](x))
