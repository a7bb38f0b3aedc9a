"""The first ten steps of Co-Reg under plain SGD, against a float64 loop that shares no line with the package.

24 embeddings, two linear classifiers with projectors, two steps an epoch: one epoch on the sets, one that divides,
three with prototypes and the contrastive loss. The oracle spells division, batches, targets and losses after
methods/coreg.py's numbered lines, and takes its gradient by central differences; targets, prototypes and keys are fixed
within a step. Given to it are what chance decides (order, noise of the views, partners of the mixing), and the fit of
the mixture by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import tiny
from labelwright.labels import purify
from labelwright.losses.mixup import mixup
from labelwright.methods import coreg, coreg_losses
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.train.plans import rows_of_step
from labelwright.train.seeds import derive_seed, generator
from labelwright.types import State, Stream, Task

COUNTS = [10, 8, 6]
N, C, D, M, B = 24, 3, 4, 3, 12
LR, T, T_PROTO, T_CON, DECAY, KEY_DECAY, QUEUE, ENTROPY = 0.2, 0.5, 0.3, 0.5, 0.8, 0.9, 20, 0.5
REMEMBERED = 3  # batches of the running mean
W_PROTO, W_CON, W_U = 0.3, 0.2, 3.0
SETTINGS = {
    "epochs": 5,
    "batch_size": B,
    "lr": LR,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "entropy_weight": ENTROPY,
    "temperature": T,
    "unlabelled_weight": W_U,
    "prototype_weight": W_PROTO,
    "contrastive_weight": W_CON,
    "queue_size": QUEUE,
}

Array = npt.NDArray[Any]
Weights = list[Array]  # of the last layer and of the projector's two, weight and bias each


class Pool:
    """Embeddings whose "weak" and "strong" views add noise that depends on the seed."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(3)
        centres = torch.randn(C, D, generator=g)
        self.x = centres[torch.tensor(tiny.classes_of(COUNTS))] + 0.7 * torch.randn(N, D, generator=g)

    @property
    def n_rows(self) -> int:
        return N

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        noise = torch.randn(N, D, generator=generator(seed, view))
        return (self.x + {"clean": 0.0, "weak": 0.1, "strong": 0.4}[view] * noise)[rows].to(device)

    def prefetch(self, rows: Tensor) -> None:
        return


class Linear(nn.Module):
    """A `types.Network` whose features are what it is given."""

    n_features = D

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, C)

    def penultimate(self, x: Tensor) -> Tensor:
        return x

    features = penultimate

    def from_penultimate(self, h: Tensor) -> Tensor:
        logits: Tensor = self.head(h)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.from_penultimate(x)


@dataclass
class Build:
    is_frozen: bool

    def __call__(self, n_outputs: int, *, head: str = "linear", hidden: int = 256) -> nn.Module:
        return Linear()

    def towers(self, tune: str = "none") -> Any:
        raise AssertionError("no words are read")


POOL = Pool()
TRUTH = torch.tensor(tiny.classes_of(COUNTS))


def a_task() -> Task:
    """Weighted sets; every third misses the truth, one is empty, one full; four labels, one of them not in its set."""
    rows = torch.arange(N)
    mask = torch.zeros(N, C, dtype=torch.bool)
    mask[rows, torch.where(rows % 3 == 1, (TRUTH + 1) % C, TRUTH)] = True
    mask[rows[rows % 4 == 2], (TRUTH[rows % 4 == 2] + 2) % C] = True
    mask[5], mask[12] = False, True
    weights = torch.rand(N, C, generator=generator(0, "weights")) + 0.2
    weights[12] = 1.0
    return Task(torch.where(rows % 6 == 1, TRUTH, -1), tuple("abc"), tiny.sets_of(mask, weights))


TASK = a_task()


def weights_of(state: State) -> dict[str, Weights]:
    return {
        name: [p.detach().double().numpy().copy() for p in state.nets[name].parameters()] for name in ("main", "peer")
    }


# ---- the oracle -----------------------------------------------------------------------------------------------------

CLEAN, Y = POOL.x.double().numpy(), TASK.labels.numpy()
GUESSES = TASK.guesses(torch.arange(N)).double().numpy()
DIVIDED = (Y < 0) & (GUESSES == 0).any(1)


@dataclass
class Word:
    """What one network says of all images."""

    beliefs: Array = field(default_factory=lambda: np.zeros((N, C)))
    clean: Array = field(default_factory=lambda: np.zeros(N))
    means: list[Array] = field(default_factory=list)  # mean predictions of the last batches
    losses: list[Array] = field(default_factory=list)


def softmax(f: Array) -> Array:
    e = np.exp(f - f.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def rescaled(p: Array) -> Array:
    return p / p.sum(1, keepdims=True)


def sharpened(p: Array) -> Array:
    return rescaled(p ** (1 / T))


def logits(w: Weights, x: Array) -> Array:
    return x @ w[0].T + w[1]


def projected(w: Weights, x: Array) -> Array:
    z = np.maximum(x @ w[2].T + w[3], 0) @ w[4].T + w[5]
    return z / np.sqrt((z**2).sum(1, keepdims=True))


def crossed(f: Array, t: Array) -> Array:
    return -(t * np.log(softmax(f))).sum(1)


def mean_of(values: Array, where: Array) -> float:
    return float(values[where].sum() / where.sum()) if where.any() else 0.0


def warm_up(w: Weights, x: Array, rows: Array) -> float:
    p, possible = softmax(logits(w, x)), GUESSES[rows] > 0
    told = ~possible.all(1)
    return mean_of(-np.log((p * possible).sum(1) + 1e-5), told) + ENTROPY * float((p * np.log(p)).sum(1).mean())


def division(w: Weights, before: Word, prior: Array, seed: int) -> Word:
    """Lines 2 to 4."""
    mean = np.mean(before.means[-REMEMBERED:], 0) if before.means else np.ones(C) / C
    aligned = rescaled(softmax(logits(w, CLEAN)) * prior / mean)
    beliefs = np.where((Y >= 0)[:, None], np.eye(C)[np.maximum(Y, 0)], aligned)
    loss = -np.log(np.where(GUESSES > 0, beliefs, 0).max(1))
    low, high = loss[DIVIDED].min(), loss[DIVIDED].max()
    losses = [*before.losses, np.where(DIVIDED, (loss - low) / (high - low), 0)]
    average = np.mean(losses[-5:], 0)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    mixture.fit(np.sort(average[DIVIDED])[:, None])
    first = int(mixture.means_[:, 0].argmin())
    of_first = mixture.predict_proba(np.concatenate([average, np.sort(mixture.means_[:, 0])])[:, None])[:, first]
    at_low, at_high = of_first[N:]
    clean = np.where(average < mixture.means_.min(), np.maximum(of_first[:N], at_low), of_first[:N])
    clean = np.where(average > mixture.means_.max(), np.minimum(clean, at_high), clean)
    return Word(beliefs, np.where(Y >= 0, 1.0, np.where(DIVIDED, clean, 0.0)), before.means, losses)


def contrastive(q: Array, k: Array, queue: tuple[Array, Array, Array], labels: Array, trusted: Array) -> float:
    """Line 11, anchor by anchor."""
    n, values = len(q), []
    z = np.concatenate([q, k, queue[0]])
    label, trust = np.concatenate([labels, labels, queue[1]]), np.concatenate([trusted, trusted, queue[2]])
    for i in range(n):
        sims = z @ q[i] / T_CON
        same = label == labels[i]
        positive = same & trust & trusted[i]
        out = same & ~positive
        positive[i], out[i] = False, True
        positive[n + i], out[n + i] = True, False
        values.append(np.log(np.exp(sims[~out]).sum()) - sims[positive].mean())
    return float(np.mean(values))


def moved_prototypes(mu: Array, z: Array, labels: Array, trusted: Array) -> Array:
    mu = mu.copy()
    for row, c in zip(z[trusted], labels[trusted], strict=True):
        mu[c] = DECAY * mu[c] + (1 - DECAY) * row
    length = np.sqrt((mu**2).sum(1, keepdims=True))
    return mu / np.where(length == 0, 1, length)


def descended(w: Weights, loss: Callable[[Weights], float], h: float = 1e-6) -> Weights:
    new = [p.copy() for p in w]
    for part, p in enumerate(w):
        for i in np.ndindex(p.shape):
            kept = p[i]
            p[i] = kept + h
            up = loss(w)
            p[i] = kept - h
            down = loss(w)
            p[i] = kept
            new[part][i] -= LR * (up - down) / (2 * h)
    return new


@dataclass
class Oracle:
    nets: dict[str, Weights]
    is_frozen: bool
    is_shared: bool  # each network learns on the other's word
    prior: Array
    partial: int
    trace: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of all images in P, a divided step each
    late: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        self.words = {name: Word() for name in self.nets}
        self.keys = {name: [p.copy() for p in w] for name, w in self.nets.items()}
        self.queues = {name: (np.zeros((0, M)), np.zeros(0, dtype=int), np.zeros(0, dtype=bool)) for name in self.nets}
        self.mu = np.zeros((C, M))
        if self.partial == 0:
            self.divide(-1)
        for epoch in range(5):
            self.planned = {name: word.clean > 0.5 for name, word in self.words.items()}
            for step in range(2):
                self.step(epoch, step)
            if self.partial <= epoch + 1:
                self.divide(epoch)
                self.keys = {name: [p.copy() for p in w] for name, w in self.nets.items()}

    def divide(self, epoch: int) -> None:
        self.words = {name: division(w, self.words[name], self.prior, epoch + 1) for name, w in self.nets.items()}

    def batch(
        self, name: str, pool: Array, size: int, epoch: int, step: int, views: list[str]
    ) -> tuple[Array, list[Array]]:
        """Rows of a stream's step and their views."""
        rows = rows_of_step(name, Stream(torch.from_numpy(pool), size), 0, epoch, step)
        seeds = [derive_seed(0, "view", epoch, step, name, i) for i in range(len(views))]
        made = [POOL.batch(rows, view, seed=seed, device=tiny.CPU) for view, seed in zip(views, seeds, strict=True)]
        return rows.numpy(), [x.double().numpy() for x in made]

    def step(self, epoch: int, step: int) -> None:
        total, new = 0.0, dict(self.nets)
        if epoch < self.partial:
            view = "clean" if self.is_frozen else "weak"
            rows, (x,) = self.batch("train", np.arange(N), B, epoch, step, [view])
            losses = {name: lambda w: warm_up(w, x, rows) for name in self.nets}
            for name, w in self.nets.items():
                self.words[name].means.append(softmax(logits(w, x)).mean(0))
        else:
            losses = {name: self.divided(name, epoch, step) for name in self.nets}
        for name, loss in losses.items():
            total += loss(self.nets[name])
            new[name] = descended(self.nets[name], loss)
        self.nets = new
        self.trace.append(total)
        for name, w in new.items():
            self.keys[name] = [KEY_DECAY * k + (1 - KEY_DECAY) * p for k, p in zip(self.keys[name], w, strict=True)]

    def divided(self, name: str, epoch: int, step: int) -> Callable[[Weights], float]:
        """Lines 5 to 12 for one network; everything that no gradient flows through is made here."""
        other = {"main": "peer", "peer": "main"}[name] if self.is_shared else name
        word, is_p, views = self.words[other], self.planned[other], ["clean"]
        n_weak = 1 if self.is_frozen else 2
        if not self.is_frozen:
            views = ["weak", "weak", "strong", "strong"]
        assert 0 < is_p.sum() < N
        self.shares.append(float(is_p.mean()))
        on_p, x_p = self.batch(f"{name}_p", np.flatnonzero(is_p), B // 2, epoch, step, views)
        _, x_u = self.batch(f"{name}_u", np.flatnonzero(~is_p), B // 2, epoch, step, views)
        own_p, own_u = (np.mean([softmax(logits(self.nets[name], x)) for x in xs[:n_weak]], 0) for xs in (x_p, x_u))
        self.words[name].means.append(is_p.mean() * own_p.mean(0) + (1 - is_p.mean()) * own_u.mean(0))  # 2
        theirs = np.mean([softmax(logits(self.nets[other], x)) for x in x_u[:n_weak]], 0)
        w_clean = word.clean[on_p][:, None]
        t = np.concatenate(
            [sharpened(w_clean * word.beliefs[on_p] + (1 - w_clean) * own_p), sharpened((own_u + theirs) / 2)]
        )
        in_p = np.arange(len(t)) < len(on_p)
        strong = [np.concatenate(pair) for pair in zip(x_p[-n_weak:], x_u[-n_weak:], strict=True)]
        x, t2, p2 = np.concatenate(strong), np.tile(t, (len(strong), 1)), np.tile(in_p, len(strong))
        drawn = generator(0, "mixup", name, epoch, step)
        lot = mixup(torch.zeros(len(x), 1), torch.zeros(len(x), C), alpha=4.0, generator=drawn, at_least_half=True)
        lam, partner = (1.0, np.arange(len(x))) if self.is_frozen else (lot.lam, lot.permutation.numpy())
        xm, tm = lam * x + (1 - lam) * x[partner], lam * t2 + (1 - lam) * t2[partner]
        ramp = W_U * min(1.0, epoch + step / 2 - self.partial)  # a quarter of the four or five epochs: one
        is_late, labels, queue = epoch - self.partial >= 1, t.argmax(1), self.queues[name]
        if is_late:
            query = projected(self.nets[name], strong[0])
            self.mu = moved_prototypes(self.mu, query, labels, in_p)
            key = projected(self.keys[name], strong[-1])
            pushed = [np.concatenate(pair)[-QUEUE:] for pair in zip(queue, (key, labels, in_p), strict=True)]
            self.queues[name] = (pushed[0], pushed[1], pushed[2])
        mu = self.mu

        def loss(w: Weights) -> float:
            f = logits(w, xm)
            error = ((softmax(f) - tm) ** 2).mean(1)
            parts = {"p": mean_of(crossed(f, tm), p2), "u": ramp * mean_of(error, ~p2)}
            if is_late:
                s = softmax(projected(w, xm) @ mu.T / T_PROTO)
                near = np.zeros(len(x))
                for share, target in ((lam, t2), (1 - lam, t2[partner])):
                    kl = (target * np.log(np.maximum(target, 1e-300) / s)).sum(1)
                    near += share * np.where(p2, kl, ((s - target) ** 2).mean(1))
                parts["prototypes"] = W_PROTO * (mean_of(near, p2) + mean_of(near, ~p2))
                parts["contrastive"] = W_CON * contrastive(projected(w, strong[0]), key, queue, labels, in_p)
            self.parts = parts
            return sum(parts.values())

        if is_late:
            loss(self.nets[name])
            self.late.append(self.parts)
        return loss


# ---- the package ----------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "pixels": {"partial_epochs": 1, "prior": "uniform", "strong_view": "strong", "mixup_alpha": 4.0},
    "pixels, each network on its own word": {
        "partial_epochs": 1,
        "prior": "uniform",
        "strong_view": "strong",
        "mixup_alpha": 4.0,
        "networks": "apart",
    },
    "features": {"partial_epochs": 0},
}


@pytest.mark.filterwarnings("ignore:Best performing initialization did not converge")
@pytest.mark.parametrize("case", CASES)
def test_trace__coreg(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (coreg, "N_DIMS", M),
        (coreg, "ALIGNED_BATCHES", REMEMBERED),
        (coreg, "KEY_DECAY", KEY_DECAY),
        (coreg_losses, "PROTOTYPE_DECAY", DECAY),
        (coreg_losses, "CONTRASTIVE_TEMPERATURE", T_CON),
    ):
        monkeypatch.setattr(module, name, value)
    own, build = CASES[case], Build(is_frozen=case == "features")
    cfg: Any = resolve_config(METHODS["coreg"], {**SETTINGS, **own})
    torch.manual_seed(derive_seed(0, "setup"))
    start = weights_of(coreg.setup(cfg, TASK, build))
    is_uniform = own.get("prior") == "uniform"
    oracle = Oracle(
        {name: [p.copy() for p in w] for name, w in start.items()},
        is_frozen=build.is_frozen,
        is_shared="networks" not in own,
        prior=np.full(C, 1 / C) if is_uniform else GUESSES.mean(0),
        partial=own["partial_epochs"],
    )
    oracle.run()
    recorded = tiny.Recorded(METHODS["coreg"].recipe)
    state = train(recorded, cfg, TASK, POOL, build, options=tiny.options_of()).state
    # float32 against float64: 1e-5 is some 80 roundings; the mixture amplifies them
    assert recorded.losses == pytest.approx(oracle.trace, rel=5e-5)
    for name, parts in weights_of(state).items():
        for mine, theirs in zip(parts, oracle.nets[name], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4), name
    assert state.memory["prototypes"].numpy() == pytest.approx(oracle.mu, rel=1e-3, abs=1e-4)
    for name, word in oracle.words.items():
        found = state.memory["divisions"][name]
        assert found["clean"].numpy() == pytest.approx(word.clean, abs=1e-3)
        assert found["beliefs"]["probs"].numpy() == pytest.approx(word.beliefs, abs=1e-4)
        recent = purify.mean_of(state.memory["recent"][name]).numpy()
        assert recent == pytest.approx(np.mean(word.means[-REMEMBERED:], 0), rel=1e-4)
    with torch.no_grad():
        said = coreg.predict(cfg, state, POOL.x).logits.numpy()
    assert said == pytest.approx(sum(logits(w, CLEAN) for w in oracle.nets.values()), rel=1e-3, abs=1e-3)  # 13
    # What the trace depends on did take part.
    assert len(oracle.trace) == 10
    assert 0.2 < np.mean(oracle.shares) < 0.9
    for term in ("p", "u", "prototypes", "contrastive"):
        assert np.mean([parts[term] > 1e-3 for parts in oracle.late]) > 0.5, term
    assert all(any(abs(a - b).max() > 1e-2 for a, b in zip(start[k], oracle.nets[k], strict=True)) for k in start)
