"""The first five steps of every method under plain SGD, against float64 loops that share no line with the package.

A linear classifier on 48 embeddings, one batch an epoch, so that the five steps pass through every phase of a method.
The oracle spells each loss row by row and takes its gradient by central differences. AdamW would hide a wrong scale of
the gradient; plain SGD shows it one step later.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import tiny
from labelwright.encoders.heads import CosineHead
from labelwright.methods import cvs
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train

COUNTS = [30, 12, 6]
N, C, D = 48, 3, 4
LR = 0.5
PLAIN_SGD = {
    "epochs": 5,
    "batch_size": N,
    "lr": LR,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
}

Rows = list[list[float]]
Weights = list[float]  # [C*D] of the head, then [C] of its bias (none on a cosine head)


class Embeddings:
    """N embeddings of D numbers whose views are all the same."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        centres = torch.randn(C, D, generator=g)
        self.x = centres[torch.tensor(tiny.classes_of(COUNTS))] + torch.randn(N, D, generator=g)

    @property
    def n_rows(self) -> int:
        return N

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        return self.x[rows].to(device)

    def prefetch(self, rows: Tensor) -> None:
        return


class Linear(nn.Module):
    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = nn.Linear(D, C) if head == "linear" else CosineHead(D, C)
        g = torch.Generator().manual_seed(1)
        for p in self.head.parameters():
            p.data = torch.randn(p.shape, generator=g)

    def features(self, x: Tensor) -> Tensor:
        return x

    def head_logits(self, feats: Tensor) -> Tensor:
        logits: Tensor = self.head(feats)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.head_logits(self.features(x))


@tiny.from_random_weights
def build_linear(n_outputs: int, *, head: Literal["linear", "cosine"] = "linear") -> nn.Module:
    return Linear(head)


# ---- the oracle -----------------------------------------------------------------------------------------------------

X: Rows = Embeddings().x.double().tolist()
Y = tiny.classes_of(COUNTS)
PRIOR = [n / N for n in COUNTS]


def start_of(head: str) -> Weights:
    return [v for p in Linear(head).parameters() for v in p.detach().double().flatten().tolist()]


def linear(w: Weights, x: list[float]) -> list[float]:
    return [sum(w[k * D + d] * x[d] for d in range(D)) + w[C * D + k] for k in range(C)]


def cosine(w: Weights, x: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in x))
    heads = [w[k * D : (k + 1) * D] for k in range(C)]
    return [sum(a * b for a, b in zip(h, x, strict=True)) / length / math.sqrt(sum(a * a for a in h)) for h in heads]


def prob(scores: list[float], k: int) -> float:
    return math.exp(scores[k]) / sum(math.exp(s) for s in scores)


def weighted_mean(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def family(w: Weights, beta: list[float], delta: list[float], alpha: list[float]) -> float:
    """-alpha_y log softmax(beta * f + delta)_y, the weighted mean over all rows."""
    values = []
    for x, y in zip(X, Y, strict=True):
        f = linear(w, x)
        values.append(-math.log(prob([beta[k] * f[k] + delta[k] for k in range(C)], y)))
    return weighted_mean(values, [alpha[y] for y in Y])


ONE, ZERO = [1.0] * C, [0.0] * C
LOG_PRIOR = [math.log(p) for p in PRIOR]
EFFECTIVE = [(1 - 0.9) / (1 - 0.9**n) for n in COUNTS]  # beta = 0.9


def ldam(w: Weights, alpha: list[float]) -> float:
    margin = [0.5 * (6 / n) ** 0.25 for n in COUNTS]
    values = []
    for x, y in zip(X, Y, strict=True):
        f = cosine(w, x)
        values.append(-math.log(prob([30 * (f[k] - (margin[k] if k == y else 0.0)) for k in range(C)], y)))
    return weighted_mean(values, [alpha[y] for y in Y])


def focal(w: Weights, power: float) -> float:
    ps = [prob(linear(w, x), y) for x, y in zip(X, Y, strict=True)]
    return sum(-((1 - p) ** power) * math.log(p) for p in ps) / N


def influence_balanced(w: Weights) -> float:
    values = []
    for x, y in zip(X, Y, strict=True):
        f = linear(w, x)
        gap = sum(abs(prob(f, k) - (k == y)) for k in range(C))
        values.append(-math.log(prob(f, y)) / (gap * sum(abs(v) for v in x) + 1e-3))
    return weighted_mean(values, [EFFECTIVE[y] for y in Y])


def kappa_of(w: Weights, clamp: tuple[float, float]) -> list[float]:
    """Inverse slope of accuracy on confidence, of all rows as the weights predict them."""
    kappa = []
    for c in range(C):
        bins: dict[int, list[tuple[float, float]]] = {}
        for x, y in zip(X, Y, strict=True):
            f = linear(w, x)
            if max(range(C), key=f.__getitem__) == c:
                confidence = prob(f, c)
                bins.setdefault(math.ceil(20 * confidence), []).append((confidence, float(y == c)))
        if sum(map(len, bins.values())) < 10 or len(bins) < 2:
            kappa.append(1.0)
            continue
        points = [(len(b), sum(p for p, _ in b) / len(b), sum(a for _, a in b) / len(b)) for b in bins.values()]
        slope = sum(n * p * a for n, p, a in points) / sum(n * p * p for n, p, _ in points)
        kappa.append(min(max(1 / (slope + 1e-6), clamp[0]), clamp[1]))
    return kappa


def descend(start: Weights, losses: list[Callable[[Weights], float]], lr: float) -> tuple[list[float], list[Weights]]:
    """Loss of each step, and the weights that it saw."""
    w, trace, seen, h = list(start), [], [], 1e-6
    for loss in losses:
        trace.append(loss(w))
        seen.append(list(w))
        gradient = []
        for i in range(len(w)):
            up, down = list(w), list(w)
            up[i], down[i] = up[i] + h, down[i] - h
            gradient.append((loss(up) - loss(down)) / (2 * h))
        w = [v - lr * g for v, g in zip(w, gradient, strict=True)]
    return trace, [*seen, w]


# ---- the package ----------------------------------------------------------------------------------------------------


def run(name: str, settings: dict[str, Any]) -> tuple[list[float], Weights, dict[str, Any]]:
    recorded = tiny.Recorded(METHODS[name].recipe)
    cfg = resolve_config(METHODS[name], {**PLAIN_SGD, **settings})
    state = train(recorded, cfg, tiny.task_of(COUNTS), Embeddings(), build_linear, options=tiny.options_of()).state
    w = [v for p in state.nets["main"].parameters() for v in p.detach().double().flatten().tolist()]
    return recorded.losses, w, dict(state.adjust)


CE = [lambda w: family(w, ONE, ZERO, ONE)] * 5
VS_BETA = [(n / 30) ** 0.3 for n in COUNTS]
CASES: dict[str, tuple[dict[str, Any], list[Callable[[Weights], float]]]] = {
    "ce": ({}, CE),
    "class_balanced": ({"effective_beta": 0.9}, [lambda w: family(w, ONE, ZERO, EFFECTIVE)] * 5),
    "focal": ({"focal_gamma": 1.5}, [lambda w: focal(w, 1.5)] * 5),
    "balanced_softmax": ({}, [lambda w: family(w, ONE, LOG_PRIOR, ONE)] * 5),
    "la": ({"tau": 0.7}, [lambda w: family(w, ONE, [0.7 * p for p in LOG_PRIOR], ONE)] * 5),
    "vs": (
        {"tau": 0.7, "gamma": 0.3},
        [lambda w: family(w, VS_BETA, [0.7 * p for p in LOG_PRIOR], ONE)] * 5,
    ),
    "ib": ({"effective_beta": 0.9}, [*CE[:3], *[influence_balanced] * 2]),  # the first half is cross-entropy
    "ldam": ({"lr": 0.01}, [lambda w: ldam(w, ONE)] * 5),
    "ldam_drw": ({"lr": 0.01, "effective_beta": 0.9}, [*[lambda w: ldam(w, ONE)] * 4, lambda w: ldam(w, EFFECTIVE)]),
}


def test_traces__cover_every_method() -> None:
    elsewhere = {"cap", "coreg", "lps"}  # test_trace_cap.py, test_trace_coreg.py, test_trace_lps.py
    single_steps = {"pseudo_probe", "fpl", "fixmatch_text"}  # tests/unit/methods/test_vision_language.py
    single_steps |= {"zero_shot", "transclip"}  # have no steps
    single_steps |= {
        "stata",
        "zlap",
        "tip_adapter",
        "lp_pp",
        "clap",
    }  # neither; tests/unit/methods/test_text_baselines.py
    single_steps |= {"kd", "top1", "cc", "proden", "crdpll"}  # tests/unit/methods/test_candidate_labels.py
    single_steps |= {
        "ss_kmeans",
        "novel_beliefs",
        "orca",
        "simgcd",
        "protogcd",
        "fixmatch_clusters",
    }  # .../test_open_world_baselines.py
    single_steps |= {"pico", "dividemix", "coreg_frozen"}  # tests/unit/methods/test_pico.py, test_dividemix.py
    single_steps |= {"fixmatch", "softmatch"}  # tests/unit/methods/test_semi_supervised.py
    stepless = {
        "beliefs",
        "cross_validated",
        "kernel",
        "nearest_mean",
        "majority",
        "crowd",
    }  # tests/unit/methods/test_beliefs.py, test_frozen_heads.py
    assert CASES.keys() | {"cvs"} | elsewhere | single_steps | stepless == METHODS.keys()


@pytest.mark.parametrize("name", CASES)
def test_trace__baselines(name: str) -> None:
    settings, losses = CASES[name]
    head = "cosine" if name.startswith("ldam") else "linear"
    expected, seen = descend(start_of(head), losses, settings.get("lr", LR))
    trace, w, _ = run(name, settings)
    # float32 against float64: 1e-5 is some 80 roundings
    assert trace == pytest.approx(expected, rel=1e-5)
    assert w == pytest.approx(seen[-1], rel=1e-4, abs=1e-5)
    assert abs(expected[0] - expected[-1]) > 1e-3 * expected[0]  # the trace went somewhere


CVS = {"gamma": 0.3, "tau": 0.8, "rho": 0.5, "switch_frac": 0.6, "kappa_shrink": None}


def cvs_losses(kappas: list[list[float]]) -> list[Callable[[Weights], float]]:
    """Cross-entropy, two steps of MLA, two of CLA with weights; ``kappas``: of each step."""

    def mla(kappa: list[float]) -> Callable[[Weights], float]:
        return lambda w: family(w, [PRIOR[k] ** 0.3 / kappa[k] for k in range(C)], ZERO, ONE)

    def cla(kappa: list[float]) -> Callable[[Weights], float]:
        delta = [0.8 * math.log(PRIOR[k] / kappa[k]) for k in range(C)]
        return lambda w: family(w, ONE, delta, [p**-0.5 for p in PRIOR])

    return [CE[0], mla(kappas[1]), mla(kappas[2]), cla(kappas[3]), cla(kappas[4])]


@pytest.fixture
def plain_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvs, "PLAIN_FRAC", 0.2)


@pytest.mark.usefixtures("plain_epoch")
def test_trace__cvs_without_slopes() -> None:
    expected, seen = descend(start_of("linear"), cvs_losses([ONE] * 5), LR)
    trace, w, adjust = run("cvs", {**CVS, "kappa_from": "none"})
    assert trace == pytest.approx(expected, rel=1e-5)
    assert w == pytest.approx(seen[-1], rel=1e-4, abs=1e-5)
    assert adjust["kappa_additive"].tolist() == ONE


@pytest.mark.usefixtures("plain_epoch")
@pytest.mark.parametrize("kappa_is", ["slope", "inverse_slope"])
def test_trace__cvs_with_slopes_of_the_batches(kappa_is: str) -> None:
    # 0.99 per 1/200 of the training is 0.99 ** 40 per epoch of 5.
    decay, clamp = 0.99**40, (0.2, 5.0)
    kappas = [ONE]
    for step in range(5):  # the slopes after a step come from the weights that the step saw
        _, seen = descend(start_of("linear"), cvs_losses([*kappas, *[ONE] * 5])[: step + 1], LR)
        fitted = [k if kappa_is == "inverse_slope" else 1 / k for k in kappa_of(seen[step], clamp)]
        kappas.append([decay * old + (1 - decay) * new for old, new in zip(kappas[-1], fitted, strict=True)])
    expected, seen = descend(start_of("linear"), cvs_losses(kappas), LR)
    slopes = {"kappa_from": "batches", "kappa_is": kappa_is, "kappa_decay": 0.99, "kappa_clamp": "0.2,5"}
    trace, w, adjust = run("cvs", {**CVS, **slopes})
    assert trace == pytest.approx(expected, rel=1e-5)
    assert w == pytest.approx(seen[-1], rel=1e-4, abs=1e-5)
    assert adjust["kappa_additive"].tolist() == pytest.approx(kappas[5], rel=1e-4)
    assert adjust["kappa_multiplicative"].tolist() == pytest.approx(kappas[5], rel=1e-4)
    assert max(abs(k - 1) for k in kappas[3]) > 0.05  # the slopes are not all 1: the losses above depend on them


@pytest.mark.usefixtures("plain_epoch")
def test_trace__cvs_holds_rows_out_of_phase_1_only() -> None:
    trace, _, _ = run(
        "cvs", {**CVS, "kappa_from": "heldout", "heldout_frac": 0.25, "heldout_min_rows": 0, "kappa_clamp": "1,1"}
    )
    everything, _, _ = run("cvs", {**CVS, "kappa_from": "none"})
    assert all(abs(a - b) > 1e-4 for a, b in zip(trace[:3], everything[:3], strict=True))
    stream_sizes = []
    recipe, cfg = (
        METHODS["cvs"].recipe,
        resolve_config(METHODS["cvs"], {**PLAIN_SGD, **CVS, "heldout_frac": 1 / 6, "heldout_min_rows": 0}),
    )
    state = recipe.setup(cfg, tiny.task_of(COUNTS), build_linear)
    for epoch in range(5):
        rows = recipe.plan(cfg, tiny.task_of(COUNTS), state, epoch).streams["train"].rows
        stream_sizes.append(len(rows))
    assert stream_sizes == [40, 40, 40, 48, 48]  # a sixth of 30, 12 and 6 held out, and back again
