"""The first five steps of CAP under plain SGD, against a float64 loop that shares no line with the package.

48 features, three adapters with 40 weights each, one step an epoch. The oracle spells main set, margins and the three
losses after methods/cap.py's numbered lines, and takes its gradient by central differences. It holds pseudolabels fixed
within a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from labelwright.encoders.towers import EmbeddedTowers
from labelwright.methods import cap
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.train.seeds import derive_seed
from labelwright.types import Concepts, State, Task

COUNTS = [30, 12, 6]
N, C, D, SCALE = 48, 3, 4, 12.0
SHARE, TAU, M, START = 0.3, 0.5, {"beliefs": 500.0, "uniform": 30.0}, 4  # margins of some tenths either way
SETTINGS = {
    "epochs": 5,
    "steps_per_epoch": 1,
    "batch_size": N,
    "lr": 0.2,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "residual_weight": SHARE,
    "alignment": "none",
    "shape_strength": 0.0,
    "start_size": START,
    "confidence": TAU,
    "patience_epochs": 0,
}

Array = npt.NDArray[Any]
Weights = dict[str, list[Array]]  # of each adapter: down weight and bias, up weight and bias


class Pool:
    """Features whose "strong" view is another table, the same at each step."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(2)
        centres = torch.randn(C, D, generator=g)
        x = centres[torch.tensor(tiny.classes_of(COUNTS))] + 0.8 * torch.randn(N, D, generator=g)
        self.x = {"clean": F.normalize(x, dim=1)}
        self.x["strong"] = F.normalize(self.x["clean"] + 0.1 * torch.randn(N, D, generator=g), dim=1)
        self.texts = F.normalize(centres + 0.5 * torch.randn(C, D, generator=g), dim=1)

    @property
    def n_rows(self) -> int:
        return N

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        return self.x[view][rows].to(device)

    def prefetch(self, rows: Tensor) -> None:
        return


POOL = Pool()
LABELS = torch.tensor([c if i % 8 == 0 else -1 for i, c in enumerate(tiny.classes_of(COUNTS))])
TASK = Task(LABELS, ("a", "b", "c"), concepts=Concepts(POOL.texts, SCALE))


class Build:
    def __call__(self, n_outputs: int, *, head: str = "linear") -> nn.Module:
        raise AssertionError("CAP is built on towers")

    def towers(self, tune: str = "none") -> Any:
        return EmbeddedTowers(POOL.texts, logit_scale=SCALE)


def weights_of(state: State) -> Weights:
    main: Any = state.nets["main"]
    adapters = {"visual": main.visual, "textual": main.textual} | {k: v for k, v in state.nets.items() if k != "main"}
    return {name: [p.detach().double().numpy().copy() for p in net.parameters()] for name, net in adapters.items()}


# ---- the oracle -----------------------------------------------------------------------------------------------------

Z, STRONG, T0 = (x.double().numpy() for x in (POOL.x["clean"], POOL.x["strong"], POOL.texts))
Y = LABELS.numpy()
KNOWN, OPEN = np.flatnonzero(Y >= 0), np.flatnonzero(Y < 0)


def unit(x: Array) -> Array:
    length = np.sqrt((x**2).sum(1, keepdims=True))
    return x / np.where(length == 0, 1.0, length)


def adapted(p: list[Array], z: Array) -> Array:
    hidden = np.maximum(z @ p[0].T + p[1], 0)
    return unit(z + SHARE * np.maximum(hidden @ p[2].T + p[3], 0))


def softmax(f: Array) -> Array:
    e = np.exp(f - f.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(f: Array, y: Array) -> float:
    return float(np.mean([-np.log(softmax(f)[i, k]) for i, k in enumerate(y)])) if len(y) else 0.0


def surest(probs: Array, sizes: list[int], barred: set[int]) -> dict[int, int]:
    """Row -> class of the surest open rows of each predicted class."""
    chosen: dict[int, int] = {}
    for c, size in enumerate(sizes):
        rows = [i for i in OPEN if probs[i].argmax() == c and i not in barred]
        chosen |= {int(i): c for i in sorted(rows, key=lambda i: -probs[i, c])[:size]}
    return chosen


def competed(probs: Array, k: int) -> dict[int, int]:
    """Row -> class: the surest pair of an open row and a class first, then the next that is free on both sides."""
    chosen: dict[int, int] = {}
    for i, c in sorted(((i, c) for i in OPEN for c in range(C)), key=lambda pair: -probs[pair]):
        if i not in chosen and list(chosen.values()).count(c) < k:
            chosen[int(i)] = c
    return chosen


def size_at(epoch: int, expected: Array) -> list[int]:
    target = np.minimum(0.8 * expected, 1000.0)
    first = np.minimum(target, START)
    return [int(np.floor(v + 1e-9)) for v in first + (target - first) * min(1.0, epoch / (0.7 * 5))]


def margin_of(probs: Array, expected: Array, t: Array, prototypes: Array, *, m: float) -> Array:
    r = np.bincount(probs[OPEN].argmax(1), minlength=C) / expected
    r = r / r.max()
    S = np.maximum(t @ t.T, prototypes @ prototypes.T)
    margin = np.zeros((C, C))
    for i in range(C):
        low, high = S[i].min(), S[i].max()
        for j in range(C):
            scaled = low + (S[i, j] - low) * (1 - low) / (high - low)
            margin[i, j] = (1 - r[i]) / (1 + r[i]) * (r.max() - r.min()) * m * SCALE / 100 * scaled * (i != j)
    return margin


def follow(w: Weights, *, is_shared: bool, shares: str) -> tuple[list[float], Weights, list[Array], list[int]]:
    """Loss of each step, the weights afterwards, the margin of each epoch, the sizes of the main set."""
    zero_shot = softmax(SCALE * Z @ T0.T)
    expected = (zero_shot[OPEN].mean(0) if shares == "beliefs" else np.full(C, 1 / C)) * len(OPEN)
    first = surest(zero_shot, size_at(0, expected), set()) if shares == "beliefs" else competed(zero_shot, START)
    main_set = first
    margin, trace, margins, sizes = np.zeros((C, C)), [], [], []
    for epoch in range(5):
        margins.append(margin)
        sizes.append(len(main_set))
        probs = softmax(SCALE * adapted(w["visual"], Z[OPEN]) @ adapted(w["textual"], T0).T)
        sure, guess = probs.max(1) > TAU, probs.argmax(1)
        rows = np.array(list(main_set))

        def loss(
            w: Weights,
            rows: Array = rows,
            margin: Array = margin,
            sure: Array = sure,
            guess: Array = guess,
            main_set: dict[int, int] = main_set,
        ) -> float:
            t = adapted(w["textual"], T0)
            total = 0.0
            for some, y in ((rows, np.array([main_set[i] for i in rows])), (KNOWN, Y[KNOWN])):
                f = SCALE * adapted(w["visual"], Z[some]) @ t.T
                total += cross_entropy(f + margin[y], y)  # lines 6 and 7
            g = SCALE * adapted(w["visual" if is_shared else "pseudo"], STRONG[OPEN]) @ t.T
            return total + cross_entropy((g + margin[guess])[sure], guess[sure])  # line 8

        trace.append(loss(w))
        w = descended(w, loss)
        t, z = adapted(w["textual"], T0), adapted(w["visual"], Z)
        now = softmax(SCALE * z @ t.T)
        prototypes = unit(np.stack([sum((z[i] for i, c in main_set.items() if c == k), np.zeros(D)) for k in range(C)]))
        margin = margin_of(now, expected, t, prototypes, m=M[shares])  # lines 10 and 11
        if epoch in (1, 3):  # line 12
            counts = np.bincount(list(first.values()), minlength=C)
            wanted = [max(0, size - n) for size, n in zip(size_at(epoch + 1, expected), counts.tolist(), strict=True)]
            main_set = first | surest(now, wanted, set(first))
    return trace, w, [*margins, margin], sizes


def descended(w: Weights, loss: Callable[[Weights], float], h: float = 1e-6) -> Weights:
    new = {name: [p.copy() for p in parts] for name, parts in w.items()}
    for name, parts in w.items():
        for part, p in enumerate(parts):
            for i in np.ndindex(p.shape):
                kept = p[i]
                p[i] = kept + h
                up = loss(w)
                p[i] = kept - h
                down = loss(w)
                p[i] = kept
                new[name][part][i] -= SETTINGS["lr"] * (up - down) / (2 * h)
    return new


# ---- the package ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_shared", "shares"),
    [(False, "beliefs"), (False, "uniform"), (True, "uniform")],
    ids=["as it comes", "equal shares", "shared adapter, equal shares"],
)
def test_trace__cap(is_shared: bool, shares: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cap, "GROW_EVERY_EPOCHS", 2)
    recorded = tiny.Recorded(METHODS["cap"].recipe)
    own = {"shared_adapter": is_shared, "share_from": shares, "margin_scale": M[shares]}
    cfg: Any = resolve_config(METHODS["cap"], {**SETTINGS, **own})
    torch.manual_seed(derive_seed(0, "setup"))
    start = weights_of(cap.setup(cfg, TASK, Build()))
    assert set(start) == {"visual", "textual"} | ({"pseudo"} if not is_shared else set())
    copied = {k: [p.copy() for p in v] for k, v in start.items()}
    expected, end, margins, sizes = follow(copied, is_shared=is_shared, shares=shares)
    state = train(recorded, cfg, TASK, POOL, Build(), options=tiny.options_of()).state
    # float32 against float64: 1e-5 is some 80 roundings
    assert recorded.losses == pytest.approx(expected, rel=1e-5)
    for name, parts in weights_of(state).items():
        for mine, theirs in zip(parts, end[name], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5), name
    assert state.adjust["margin"].numpy() == pytest.approx(margins[-1], rel=1e-4, abs=1e-5)
    # What the trace depends on did take part: margins after the first epoch, a growing main set, every adapter moved.
    assert margins[0].max() == 0
    assert min(m.max() for m in margins[1:]) > 0.01
    assert sizes[0] < sizes[2] < sizes[4]
    assert all(any(abs(a - b).max() > 1e-3 for a, b in zip(start[k], end[k], strict=True)) for k in start)
