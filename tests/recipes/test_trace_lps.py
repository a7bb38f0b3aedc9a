"""The first five steps of LPS under plain SGD, against a float64 loop that shares no line with the package.

40 features, a linear layer of 20 numbers, all images in every step. The oracle spells targets, margins and the five
terms after methods/lps.py's numbered lines, image by image, and takes its gradient by central differences; targets,
sureness and margins are held fixed within a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import tiny
from labelwright.encoders.backbones import Classifier, Stored
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.types import Task

N, C, D, N_SEEN, N_LABELLED = 40, 4, 4, 2, 12
SETTINGS = {
    "epochs": 5,
    "batch_size": N,
    "lr": 0.2,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "start": "none",
    "use_balance": "off",
    "seen_confidence": 0.6,
    "novel_confidence": (0.3, 0.6),
    "margin_scale": 3.0,
}
Array = npt.NDArray[np.float64]


class Pool:
    """Features whose views are other tables, the same at each step."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(4)
        centres = 2 * torch.randn(C, D, generator=g)
        x = centres[torch.arange(N) % C] + 0.6 * torch.randn(N, D, generator=g)
        noise = {view: size * torch.randn(N, D, generator=g) for view, size in (("weak", 0.2), ("strong", 0.5))}
        self.x = {"clean": x, **{view: x + each for view, each in noise.items()}}

    @property
    def n_rows(self) -> int:
        return N

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        return self.x[view][rows]

    def prefetch(self, rows: Tensor) -> None:
        pass


class Build:
    is_frozen = True
    is_pretrained = True

    def __call__(self, n_outputs: int, **_: Any) -> Classifier:
        return Classifier(
            Stored(),
            name="stored",
            n_features=D,
            n_outputs=n_outputs,
            head="linear",
            hidden=1,
            image_size_px=0,
            freeze=(),
        )

    def towers(self, tune: str = "none") -> Any:
        raise AssertionError("this network reads no words")


def labels_of() -> list[int]:
    """Images of the two named classes come first to be labelled; -1 is unknown."""
    labels = [-1] * N
    for i in range(N):
        if i % C < N_SEEN and sum(y >= 0 for y in labels) < N_LABELLED:
            labels[i] = i % C
    return labels


def log_softmax(f: Array) -> Array:
    out: Array = f - f.max() - np.log(np.exp(f - f.max()).sum())
    return out


def loss_of(flat: Array, x: dict[str, Array], targets: list[int], sure: list[bool], margin: list[float]) -> float:
    y = labels_of()
    w, b = flat[: C * D].reshape(C, D), flat[C * D :]
    weak, strong = [w @ v + b for v in x["weak"]], [w @ v + b for v in x["strong"]]

    def hinged(f: Array, k: int) -> float:
        shifted = f.copy()
        shifted[k] += margin[k]
        return -float(log_softmax(shifted)[k])

    labelled = [i for i in range(N) if y[i] >= 0]
    hidden = [i for i in range(N) if y[i] < 0]
    total = sum(hinged(weak[i], y[i]) for i in labelled) / len(labelled)
    total += sum(hinged(strong[i], targets[i]) for i in hidden if sure[i]) / len(hidden)
    both = [*weak, *strong]
    z = [f / np.linalg.norm(f) for f in both]
    sims = [[float(a @ c) / 0.4 for c in z] for a in z]
    rows = [i for i in range(2 * N) if sure[i % N]]
    near = 0.0
    for i in rows:
        others = [j for j in rows if j != i]
        alike = [j for j in others if targets[j % N] == targets[i % N]]
        top = sum(np.exp(sims[i][j]) for j in alike) / len(alike)
        near -= np.log(top / sum(np.exp(sims[i][j]) for j in others))
    total += near / len(rows)
    apart_loss = 0.0
    for i in range(2 * N):
        if not sure[i % N]:
            all_others = sum(np.exp(sims[i][j]) for j in range(2 * N) if j != i)
            apart_loss -= np.log(np.exp(sims[i][(i + N) % (2 * N)]) / all_others)
    total += apart_loss / (2 * N)
    mean = sum(np.exp(log_softmax(f)) for f in weak) / N
    return float(total + (mean * np.log(mean)).sum())


def oracle(pool: Pool, weight: Array, bias: Array) -> tuple[list[float], Array]:
    x = {view: each.double().numpy() for view, each in pool.x.items()}
    y = labels_of()
    flat = np.concatenate([weight.ravel(), bias])
    trace = []
    for epoch in range(5):
        w, b = flat[: C * D].reshape(C, D), flat[C * D :]
        probs = np.stack([np.exp(log_softmax(w @ v + b)) for v in x["weak"]])
        targets = [y[i] if y[i] >= 0 else int(probs[i].argmax()) for i in range(N)]
        bar = 0.3 + 0.3 * epoch / 5
        sure = [y[i] >= 0 or probs[i].max() >= (0.6 if targets[i] < N_SEEN else bar) for i in range(N)]
        share = sum(probs[i] for i in range(N) if sure[i])
        share = share / share.sum()
        apart = sum(1 / C * np.log(1 / C / share[k]) for k in range(C))
        margin = [apart * 3.0 * share[k] / share.max() for k in range(C)]

        fixed = (x, targets, sure, margin)
        trace.append(loss_of(flat, *fixed))
        gradient = np.array(
            [(loss_of(flat + h, *fixed) - loss_of(flat - h, *fixed)) / 2e-6 for h in 1e-6 * np.eye(len(flat))]
        )
        flat = flat - 0.2 * gradient
    return trace, flat


def test_trace__lps() -> None:
    names = tuple(f"class{c}" for c in range(N_SEEN))
    task = Task(torch.tensor(labels_of()), names, n_novel=C - N_SEEN)
    pool = Pool()
    recorded = tiny.Recorded(METHODS["lps"].recipe)
    began: list[dict[str, Tensor]] = []
    setup = METHODS["lps"].recipe.setup

    class Noted(tiny.Recorded):
        def __getattr__(self, name: str) -> Any:
            if name != "setup":
                return getattr(self.recipe, name)

            def noting(*args: Any) -> Any:
                state = setup(*args)
                began.append({k: v.clone() for k, v in state.nets["main"].state_dict().items()})
                return state

            return noting

    recorded = Noted(METHODS["lps"].recipe)
    trained = train(recorded, resolve_config(METHODS["lps"], SETTINGS), task, pool, Build(), options=tiny.options_of())
    start = [began[0][f"head.{part}"].double().numpy() for part in ("weight", "bias")]
    expected, flat = oracle(pool, *start)
    # float32 against float64: 1e-5 is some 80 roundings
    assert recorded.losses == pytest.approx(expected, rel=1e-5)
    head = trained.state.nets["main"].state_dict()
    ended = np.concatenate([head["head.weight"].numpy().ravel(), head["head.bias"].numpy()])
    assert ended == pytest.approx(flat, rel=1e-4, abs=1e-5)
    assert abs(expected[0] - expected[-1]) > 1e-2 * abs(expected[0])
