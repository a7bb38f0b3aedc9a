"""StatA, ZLaP, Tip-Adapter, LP++, CLAP and beliefs on texts: against slow loops and SciPy, and what is saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

import labelwright as lw
import tiny
from labelwright.encoders.backbones import classifier_config, from_config
from labelwright.errors import DataError
from labelwright.labels.transduce import transclip
from labelwright.methods import beliefs
from labelwright.methods.baselines import clap, lp_pp, tip_adapter
from labelwright.methods.baselines.zlap import propagated
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.cross_validation import folds_of
from labelwright.train.loop import Trained, train
from labelwright.train.seeds import generator
from labelwright.types import Concepts, Task

C, D, SCALE, PER_CLASS = 3, 8, 10.0, 12
TRUTH = torch.arange(C).repeat_interleave(PER_CLASS)
FEW = ["tip_adapter", "lp_pp", "clap"]
Array = np.ndarray[Any, Any]


def pool() -> tuple[Tensor, Tensor]:
    """Feats [36, D] in clusters, and texts [C, D] off their centres."""
    g = generator(0, "text baselines")
    centres = F.normalize(torch.randn(C, D, generator=g), dim=1)
    z = F.normalize(centres[TRUTH] + 0.25 * torch.randn(len(TRUTH), D, generator=g), dim=1)
    return z, F.normalize(centres + 0.5 * torch.randn(C, D, generator=g), dim=1)


Z, TEXT = pool()


class PoolViews(tiny.TinyFeats):
    """The pool as stored features."""

    def __init__(self) -> None:
        self.x = Z


def labels_of(per_class: int) -> Tensor:
    """The first images of each class keep their label."""
    return torch.where(torch.arange(len(TRUTH)) % PER_CLASS < per_class, TRUTH, -1)


def run(name: str, labels: Tensor, **settings: object) -> Trained:
    concepts = Concepts(TEXT, SCALE)
    build: Any = tiny.BuildHead(concepts) if name == "beliefs" else tiny.BuildTowers(concepts)
    if name == "beliefs":
        build.n_features = D
    cfg, task = resolve_config(METHODS[name], settings), Task(labels, tuple("abc"), concepts=concepts)
    trained = train(METHODS[name].recipe, cfg, task, PoolViews(), build, options=tiny.options_of())
    trained.state.nets["main"].eval()
    return trained


@torch.no_grad()
def logits_of(trained: Trained) -> Tensor:
    logits: Tensor = trained.state.nets["main"](Z)
    return logits


def accuracy(logits: Tensor) -> float:
    return float((logits.argmax(1) == TRUTH).float().mean())


# ---- without training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [0, 2])
def test_stata__is_transclip_with_an_anchor(per_class: int) -> None:
    labels = labels_of(per_class)
    lam = 0.5 if per_class else 1.0
    _, weight, bias = transclip(Z.half(), TEXT, logit_scale=SCALE, labels=labels, lam=lam, anchor=3.0)
    found = logits_of(run("stata", labels, anchor=3.0))
    torch.testing.assert_close(found, Z @ weight.T + bias, atol=1e-4, rtol=1e-4)
    assert (found - logits_of(run("transclip", labels))).abs().max() > 0.05


@pytest.mark.parametrize("per_class", [0, 2])
def test_propagated__solves_the_dense_system(per_class: int) -> None:
    labels, k, gamma, alpha = labels_of(per_class), 4, 3.0, 0.6
    nodes = [t.double().numpy() for t in TEXT] + [z.double().numpy() for z in Z]
    size = len(nodes)
    a = np.zeros((size, size))
    for i in range(C, size):
        images = sorted((j for j in range(C, size) if j != i), key=lambda j: -nodes[i] @ nodes[j])[:k]
        for j in [*images, *range(C)]:  # fewer texts than k
            a[i, j] = max(0.0, nodes[i] @ nodes[j]) ** gamma
    a = a + a.T
    root = np.diag(1 / np.sqrt(a.sum(1)))
    seeds = np.zeros((size, C))
    seeds[:C] = np.eye(C)
    for i, label in enumerate(labels.tolist()):
        if label >= 0:
            seeds[C + i, label] = 1
    expected = np.linalg.solve(np.eye(size) - alpha * root @ a @ root, seeds)[C:]
    found = propagated(Z, TEXT, labels, k=k, gamma=gamma, alpha=alpha)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_zlap__the_head_gives_the_answers_of_the_graph() -> None:
    scores = propagated(Z.half(), TEXT, labels_of(1), k=5, gamma=5.0, alpha=0.3)
    found = logits_of(run("zlap", labels_of(1))).argmax(1)
    answers = torch.where(labels_of(1) >= 0, labels_of(1), scores.argmax(1))
    assert (found == answers).float().mean() > 0.95
    assert accuracy(scores) > accuracy(Z @ TEXT.T)


@pytest.mark.parametrize("per_class", [1, 4])
def test_tip_adapter__by_loops(per_class: int) -> None:
    labels = labels_of(per_class)
    trained = run("tip_adapter", labels, alpha=2.0, beta=3.0)
    shots = [(i, c) for i, c in enumerate(labels.tolist()) if c >= 0]
    expected = [
        [
            SCALE * float(z @ TEXT[c]) + 2 * sum(math.exp(-3 * (1 - float(z @ Z[i]))) for i, own in shots if own == c)
            for c in range(C)
        ]
        for z in Z
    ]
    torch.testing.assert_close(logits_of(trained), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_tip_adapter__weighs_the_cache_by_images_left_out_of_it() -> None:
    head = run("tip_adapter", labels_of(1)).state.nets["main"].head
    assert (head.alpha.item(), head.beta.item()) == (tip_adapter.ALPHA, tip_adapter.BETA)  # none can be left out
    labels = labels_of(4)
    head = run("tip_adapter", labels).state.nets["main"].head
    rows, fold = folds_of(labels[labels >= 0], None, seed=0)
    tried = {
        (a, b): tip_adapter.left_out_loss(head, rows, fold, a, b) for a in tip_adapter.ALPHAS for b in tip_adapter.BETAS
    }
    assert (head.alpha.item(), head.beta.item()) == pytest.approx(min(tried, key=lambda key: tried[key]))


def test_tip_adapter__what_is_saved_says_what_is_predicted() -> None:
    trained = run("tip_adapter", labels_of(3))
    net: Any = trained.state.nets["main"]
    saved = net.exported()
    again = from_config(json.loads(json.dumps(classifier_config(saved))))
    again.load_state_dict(saved.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(Z), logits_of(trained), atol=1e-5, rtol=1e-5)
    assert saved.head_kind == "cache"


# ---- convex ---------------------------------------------------------------------------------------------------------


def mean_loss(weight: Array, labels: Tensor) -> float:
    known = labels >= 0
    g, y = Z[known].double().numpy() @ weight.T, labels[known].numpy()
    return float((np.logaddexp.reduce(g, axis=1) - g[np.arange(len(y)), y]).mean())


def test_clap__is_the_minimum_of_its_objective() -> None:
    labels, t = labels_of(3), TEXT.double().numpy()
    probs = (SCALE * Z.double() @ TEXT.double().T).softmax(1)
    held = np.array([float(probs[labels == c, c].mean()) for c in range(C)])

    def objective(flat: Array) -> float:
        w = flat.reshape(C, D)
        return mean_loss(SCALE * w, labels) + float((held * ((w - t) ** 2).sum(1)).sum())

    best = minimize(objective, t.ravel(), tol=1e-12, options={"maxiter": 10_000})
    found = logits_of(run("clap", labels))
    expected = SCALE * Z.double().numpy() @ best.x.reshape(C, D).T
    assert found.numpy() == pytest.approx(expected, abs=0.02)
    assert (found - SCALE * Z @ TEXT.T).abs().max() > 0.3


def test_clap__a_class_is_held_as_far_as_its_text_is_right() -> None:
    labels, concepts = torch.where(labels_of(3) == 2, -1, labels_of(3)), Concepts(TEXT, SCALE)
    task, recipe = Task(labels, tuple("abc"), concepts=concepts), clap.RECIPE
    state = recipe.setup(clap.Config(), task, tiny.BuildTowers(concepts))
    _, logs = recipe.begin(clap.Config(), task, state, tiny.passes_of(state, Z))
    probs = (SCALE * Z @ TEXT.T).softmax(1)
    own = [float(probs[labels == c, c].mean()) for c in range(2)]
    assert logs["lambda"] == pytest.approx([*own, 1.0], abs=1e-4)  # of the third nothing is known against its text


def test_lp_pp__is_the_minimum_over_weights_and_multipliers() -> None:
    labels, t, penalty = labels_of(3), TEXT.double().numpy(), 2.0
    n = int((labels >= 0).sum())

    def objective(flat: Array) -> float:  # w and alpha by themselves, as in the recipe's header
        w, alpha = flat[: C * D].reshape(C, D), flat[C * D :]
        free = (w**2).sum() + lp_pp.ALPHA_WEIGHT * ((alpha - SCALE) ** 2).sum()
        return mean_loss(w + alpha[:, None] * t, labels) + penalty / (2 * n * D) * float(free)

    def projected(flat: Array) -> float:  # what w is along t could as well be in alpha, which costs less
        w = flat[: C * D].reshape(C, D)
        w = w - (w * t).sum(1, keepdims=True) * t
        return objective(np.concatenate([w.ravel(), flat[C * D :]]))

    best = minimize(projected, np.concatenate([np.zeros(C * D), np.full(C, SCALE)]), tol=1e-12)
    w, alpha = best.x[: C * D].reshape(C, D), best.x[C * D :]
    w = w - (w * t).sum(1, keepdims=True) * t
    found = logits_of(run("lp_pp", labels, penalty=penalty))
    assert found.numpy() == pytest.approx(Z.double().numpy() @ (w + alpha[:, None] * t).T, abs=0.03)


@pytest.mark.parametrize("name", FEW)
def test_few_shots__labels_help(name: str) -> None:
    wrong = TEXT[[1, 2, 0]]  # texts that name other classes
    before = accuracy(SCALE * Z @ wrong.T)
    concepts = Concepts(wrong, SCALE)
    task = Task(labels_of(6), tuple("abc"), concepts=concepts)
    cfg = resolve_config(METHODS[name], {})
    trained = train(METHODS[name].recipe, cfg, task, PoolViews(), tiny.BuildTowers(concepts), options=tiny.options_of())
    assert before < 0.3 < 0.8 < accuracy(logits_of(trained))


# ---- beliefs on texts -----------------------------------------------------------------------------------------------


def test_beliefs__on_texts_alone() -> None:
    found = logits_of(run("beliefs", labels_of(0)))
    assert accuracy(found) >= accuracy(Z @ TEXT.T)
    only = logits_of(run("beliefs", labels_of(0), strength=0.0))
    shares = found.softmax(1).mean(0)
    assert (only - SCALE * Z @ TEXT.T).std(0).max() < 1e-4  # the same shift of every image: the class shares
    assert shares.min() > 0.1


def test_beliefs__labels_move_the_texts_by_a_price_that_is_cross_validated() -> None:
    concepts = Concepts(TEXT[[1, 2, 0]], SCALE)
    known = labels_of(4)
    task = Task(known, tuple("abc"), concepts=concepts)
    weight, price = beliefs.from_texts(Z[known >= 0], task)
    assert accuracy(Z @ weight.T) > 0.8 > 0.3 > accuracy(Z @ concepts.feats.T)
    assert price == 0  # labels alone are better than with these
    weight, price = beliefs.from_texts(Z[known >= 0], Task(known, tuple("abc"), concepts=Concepts(TEXT, SCALE)))
    assert price > 0
    _, price = beliefs.from_texts(Z[labels_of(1) >= 0], Task(labels_of(1), tuple("abc"), concepts=concepts))
    assert price == beliefs.USUAL_PRICE
    weight, price = beliefs.from_texts(Z[:0], Task(labels_of(0), tuple("abc"), concepts=concepts))
    assert price == 0
    assert torch.equal(weight, SCALE * concepts.feats)


# ---- from file to label ---------------------------------------------------------------------------------------------


def write(path: Path, labels: Tensor, *, with_text: bool = True) -> Path:
    text = {"class_embeddings": TEXT.numpy(), "logit_scale": SCALE} if with_text else {}
    np.savez(path, embeddings=Z.numpy(), labels=labels.numpy(), class_names=["ant", "bee", "cat"], **text)
    return path


@pytest.mark.parametrize("name", ["stata", "zlap", *FEW, "beliefs"])
def test_fit__from_file_to_label(name: str, tmp_path: Path) -> None:
    data = write(tmp_path / "pool.npz", labels_of(3))
    result = lw.fit(data, out=tmp_path / "run", method=name, test_frac=0, device="cpu", evaluations=0)
    assert result.summary["zero_shot"] is None
    labels = lw.label(tmp_path / "run", data, out=tmp_path / "labels.csv", device="cpu")
    assert labels is not None
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", FEW)
def test_fit__few_shot_methods_need_labels(name: str, tmp_path: Path) -> None:
    data = write(tmp_path / "pool.npz", labels_of(0))
    with pytest.raises(DataError, match=f"method {name} needs labels, and no training image has one") as caught:
        lw.fit(data, out=tmp_path / "run", method=name)
    assert "or choose a method that reads class names alone: cap, " in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_fit__beliefs_need_labels_or_texts(tmp_path: Path) -> None:
    data = write(tmp_path / "pool.npz", labels_of(0))
    result = lw.fit(data, out=tmp_path / "run", method="beliefs", test_frac=0, device="cpu", evaluations=0)
    assert sum(result.summary["pseudolabels"]["counts"]) == len(TRUTH)
    bare = write(tmp_path / "bare.npz", labels_of(0), with_text=False)
    with pytest.raises(DataError, match="method beliefs needs labels") as caught:
        lw.fit(bare, out=tmp_path / "other", method="beliefs")
    assert caught.value.fix == "label some images first"
