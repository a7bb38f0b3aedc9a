"""Baselines of vision-language models on small unit features, against slow loops."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from labelwright.encoders.backbones import classifier_config, from_config
from labelwright.encoders.towers import EmbeddedTowers
from labelwright.labels.transduce import transclip
from labelwright.methods.baselines import fixmatch_text
from labelwright.methods.baselines.probe import Probe
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import Trained, train
from labelwright.train.seeds import generator
from labelwright.types import Batch, Clock, Concepts, State, Task

C, D, PER_CLASS, SCALE = 4, 12, 25, 12.0
N = C * PER_CLASS
TRUTH = torch.arange(C).repeat_interleave(PER_CLASS)
UNKNOWN = torch.full((N,), -1)
CLOCK = Clock(epoch=0, n_epochs=1, step=0, steps_per_epoch=1, seed=0)
STEPPING = ["pseudo_probe", "fpl", "fixmatch_text"]
ALL = pytest.mark.parametrize("name", ["zero_shot", "transclip", *STEPPING])


def pool() -> tuple[Tensor, Tensor]:
    """Feats [N, D] in C clusters, and text feats [C, D] that lie off their centres."""
    g = generator(0, "pool")
    centres = F.normalize(torch.randn(C, D, generator=g), dim=1)
    z = F.normalize(centres[TRUTH] + 0.2 * torch.randn(N, D, generator=g), dim=1)
    text = F.normalize(centres + 0.35 * torch.randn(C, D, generator=g), dim=1)
    return z, text


Z, TEXT = pool()
ZERO_SHOT = (Z @ TEXT.T).argmax(1)


class PoolViews(tiny.TinyFeats):
    """The pool as stored features."""

    def __init__(self) -> None:
        self.x = Z


BUILD = tiny.BuildTowers(Concepts(TEXT, SCALE))


def task_of(labels: Tensor = UNKNOWN) -> Task:
    return Task(labels, tuple("abcd"), concepts=Concepts(TEXT, SCALE))


def cfg_of(name: str, **changed: object) -> Any:
    return resolve_config(METHODS[name], changed)


def run(name: str, labels: Tensor = UNKNOWN, **changed: object) -> tuple[Trained, list[float]]:
    recorded = tiny.Recorded(METHODS[name].recipe)
    trained = train(recorded, cfg_of(name, **changed), task_of(labels), PoolViews(), BUILD, options=tiny.options_of())
    trained.state.nets["main"].eval()
    return trained, recorded.losses


@torch.no_grad()
def logits_of(name: str, trained: Trained, z: Tensor = Z) -> Tensor:
    return METHODS[name].recipe.predict(cfg_of(name), trained.state, z).logits


def begun(name: str, labels: Tensor = UNKNOWN, **changed: object) -> tuple[State, dict[str, Any]]:
    recipe, cfg, task = METHODS[name].recipe, cfg_of(name, **changed), task_of(labels)
    state = recipe.setup(cfg, task, BUILD)
    state, logs = recipe.begin(cfg, task, state, tiny.passes_of(state, Z))
    return state, dict(logs)


def some_labels(*classes: int, n: int = 3) -> Tensor:
    labels = UNKNOWN.clone()
    for c in classes:
        labels[c * PER_CLASS : c * PER_CLASS + n] = c
    return labels


def accuracy(logits: Tensor) -> float:
    return float((logits.argmax(1) == TRUTH).float().mean())


# ---- what every baseline keeps to ------------------------------------------------------------------------------------


@ALL
def test_exported__answers_alike_and_is_rebuilt_from_its_config(name: str) -> None:
    short = {"steps_per_epoch": 5, "batch_size": 16} if name in STEPPING else {}
    trained, _ = run(name, some_labels(0, 1), epochs=2, **short)
    exported = cast(Any, trained.state.nets["main"]).exported()
    again = from_config(json.loads(json.dumps(classifier_config(exported))))
    again.load_state_dict(exported.state_dict())
    with torch.no_grad():
        assert torch.allclose(again.eval()(Z), logits_of(name, trained), atol=1e-5)


# ---- zero_shot -------------------------------------------------------------------------------------------------------


def test_zero_shot__is_scaled_cosines_whatever_the_labels() -> None:
    trained, losses = run("zero_shot", TRUTH)
    z, t = (F.normalize(x.double(), dim=1) for x in (Z, TEXT))
    assert torch.allclose(logits_of("zero_shot", trained).double(), SCALE * z @ t.T, atol=1e-5)
    assert losses == []
    assert 0.7 < accuracy(logits_of("zero_shot", trained)) < 1  # the pool leaves something to gain


# ---- probes ----------------------------------------------------------------------------------------------------------


def test_probe__logits_gradients_and_frozen_features() -> None:
    net = Probe(EmbeddedTowers(TEXT, logit_scale=SCALE))
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["weight", "bias"]
    with torch.no_grad():
        net.weight.copy_(torch.randn(C, D, generator=generator(0, "w")))
        net.bias.copy_(torch.arange(C))
    x = (3 * Z[:5]).requires_grad_()
    want = SCALE * (Z[:5].double() @ net.weight.double().T) + torch.arange(C)
    assert torch.allclose(net(x).double(), want, atol=1e-5)
    assert torch.allclose(net.head_logits(net.features(x)), net(x))
    net(x).sum().backward()
    assert x.grad is None
    assert net.bias.grad is not None
    assert net.weight.grad is not None
    assert torch.allclose(net.bias.grad, torch.full((C,), 5.0))
    assert torch.allclose(net.weight.grad, SCALE * Z[:5].sum(0).expand(C, D), atol=1e-4)


def test_pseudo_probe__labels_stay_and_the_rest_are_zero_shot() -> None:
    labels = (ZERO_SHOT + 1) % C  # given labels that zero-shot would not give
    labels[10:] = -1
    state, logs = begun("pseudo_probe", labels)
    assert torch.equal(state.memory["pseudolabels"], torch.where(labels >= 0, labels, ZERO_SHOT))
    assert logs["pseudolabel_counts"] == torch.bincount(ZERO_SHOT[10:], minlength=C).tolist()


def test_pseudo_probe__learns_its_pseudolabels() -> None:
    trained, losses = run("pseudo_probe", epochs=6)
    assert float((logits_of("pseudo_probe", trained).argmax(1) == ZERO_SHOT).float().mean()) > 0.95
    assert losses[0] == pytest.approx(torch.tensor(float(C)).log().item(), abs=1e-5)  # a probe starts at zero
    assert losses[-1] < 0.2 * losses[0]


def greedy_top(probs: Tensor, *, k: int) -> dict[int, int]:
    """Row -> class: the surest pair first, then the next whose row is free and whose class has room."""
    chosen: dict[int, int] = {}
    rows, classes = probs.shape
    for i in probs.flatten().argsort(descending=True).tolist():
        row, c = divmod(i, classes)
        if row not in chosen and sum(v == c for v in chosen.values()) < k:
            chosen[row] = c
    assert len(chosen) <= rows
    return chosen


def test_fpl__takes_the_k_surest_of_each_class_beside_the_labels() -> None:
    labels = some_labels(1, n=4)
    state, logs = begun("fpl", labels, k=5)
    unlabelled = (labels < 0).nonzero().flatten()
    probs = (SCALE * Z[unlabelled].double() @ TEXT.double().T).softmax(1)
    want = labels.clone()
    for place, c in greedy_top(probs, k=5).items():
        want[unlabelled[place]] = c
    assert torch.equal(state.memory["pseudolabels"], want)
    assert logs["pseudolabel_counts"] == [5, 5, 5, 5]
    rows = METHODS["fpl"].recipe.plan(cfg_of("fpl"), task_of(labels), state, 0).streams["train"].rows
    assert torch.equal(rows, (want >= 0).nonzero().flatten())
    assert len(rows) == 4 + 20


def test_fpl__gains_on_zero_shot_where_text_lies_off_the_images() -> None:
    zero_shot, probed = (accuracy(logits_of(name, run(name)[0])) for name in ("zero_shot", "fpl"))
    assert probed > zero_shot + 0.02


@pytest.mark.parametrize("name", ["pseudo_probe", "fpl"])
def test_pool_unseen__unlabelled_images_take_unlabelled_classes_only(name: str) -> None:
    labels = some_labels(0, 2)
    for pool_of, wanted in (("unseen", {1, 3}), ("any", {0, 1, 2, 3})):
        state, _ = begun(name, labels, pool=pool_of)
        found = state.memory["pseudolabels"][labels < 0]
        assert set(found[found >= 0].tolist()) == wanted
    near = torch.tensor([1, 3])[(Z @ TEXT[[1, 3]].T).argmax(1)]
    state, _ = begun("pseudo_probe", labels, pool="unseen")
    assert torch.equal(state.memory["pseudolabels"][labels < 0], near[labels < 0])
    state, _ = begun(name, some_labels(0, 1, 2, 3), pool="unseen")  # no class is unseen: any
    assert set(state.memory["pseudolabels"].tolist()) - {-1} == {0, 1, 2, 3}


# ---- transclip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "lam"), [(UNKNOWN, 1.0), (some_labels(0, 3), 0.5)], ids=["unsupervised", "few labels"]
)
def test_transclip__logits_are_the_transduced_ones(labels: Tensor, lam: float) -> None:
    _, weight, bias = transclip(Z.half(), TEXT, logit_scale=SCALE, labels=labels, lam=lam)
    trained, losses = run("transclip", labels)
    assert losses == []
    assert torch.allclose(logits_of("transclip", trained), Z @ weight.T + bias, atol=1e-4)
    _, weight, bias = transclip(Z.half(), TEXT, logit_scale=SCALE, labels=labels, lam=lam + 0.4)
    assert not torch.allclose(logits_of("transclip", trained), Z @ weight.T + bias, atol=1e-1)


def test_transclip__counts_the_unlabelled_images_of_each_class() -> None:
    labels = some_labels(0)
    found, _, _ = transclip(Z.half(), TEXT, logit_scale=SCALE, labels=labels, lam=0.5)
    _, logs = begun("transclip", labels)
    assert logs["pseudolabel_counts"] == torch.bincount(found[labels < 0], minlength=C).tolist()
    assert sum(logs["pseudolabel_counts"]) == N - 3


# ---- fixmatch --------------------------------------------------------------------------------------------------------


def fixmatch_step(labels: Tensor, **changed: object) -> tuple[State, dict[str, Batch], Any]:
    """One step on two labelled and six unlabelled rows, adapters large enough to tell."""
    cfg, task = cfg_of("fixmatch_text", **changed), task_of(labels)
    torch.manual_seed(0)
    state = fixmatch_text.setup(cfg, task, BUILD)
    net: Any = state.nets["main"]
    net.visual.weight = net.textual.weight = 0.5
    rows = torch.tensor([3, 30, 55, 60, 80, 99])
    views = tuple(PoolViews().batch(rows, view, seed=1, device=tiny.CPU) for view in ("weak", "strong"))
    batches = {"unlabelled": Batch(rows, views, labels[rows])}
    known = (labels >= 0).nonzero().flatten()[:2]
    if len(known):
        batches["labelled"] = Batch(known, (Z[known],), labels[known])
    return state, batches, fixmatch_text.step(cfg, task, state, batches, CLOCK)


def slow_fixmatch(state: State, batches: dict[str, Batch], *, confidence: float, allowed: set[int]) -> float:
    """The loss in float64, a row at a time."""
    net: Any = state.nets["main"]
    visual, textual = net.visual, net.textual

    def adapt(adapter: Any, z: Tensor) -> Tensor:
        down = (adapter.down.weight.double() @ z + adapter.down.bias.double()).clamp(min=0)
        up = (adapter.up.weight.double() @ down + adapter.up.bias.double()).clamp(min=0)
        moved: Tensor = z + adapter.weight * up
        return moved / moved.norm()

    t = torch.stack([adapt(textual, row) for row in F.normalize(TEXT.double(), dim=1)])

    def logits(x: Tensor) -> Tensor:
        return SCALE * t @ adapt(visual, x.double() / x.double().norm())

    total = 0.0
    weak, strong = batches["unlabelled"].views
    for easy, hard in zip(weak, strong, strict=True):
        f = logits(easy)
        f = torch.stack([f[c] if c in allowed else f[c] - 1e9 for c in range(C)])
        p = f.exp() / f.exp().sum()
        if p.max() > confidence:
            g = logits(hard)
            total += float(g.exp().sum().log() - g[p.argmax()]) / len(weak)
    if "labelled" in batches:
        batch = batches["labelled"]
        for x, y in zip(batch.x, batch.labels.tolist(), strict=True):
            f = logits(x)
            total += float(f.exp().sum().log() - f[y]) / len(batch.rows)
    return total


@pytest.mark.parametrize("labels", [UNKNOWN, some_labels(0, 3, n=1)], ids=["unsupervised", "few labels"])
@pytest.mark.parametrize("pool_of", ["any", "unseen"])
def test_fixmatch__loss_is_the_slow_one(labels: Tensor, pool_of: str) -> None:
    seen = set(labels.tolist()) - {-1}
    allowed = set(range(C)) - (seen if pool_of == "unseen" else set())
    fractions = []
    with torch.no_grad():
        for confidence in (0.0, 0.85, 0.99):
            state, batches, result = fixmatch_step(labels, confidence=confidence, pool=pool_of)
            want = slow_fixmatch(state, batches, confidence=confidence, allowed=allowed)
            assert float(result.loss) == pytest.approx(want, abs=1e-5)
            assert result.n_kept == 6 + 2 * bool(seen)
            fractions.append(float(result.logs["confident_frac"]))
    assert fractions[0] == 1.0
    assert fractions[2] < 1.0  # the threshold does leave rows out


def test_fixmatch__both_adapters_learn_and_nothing_does_when_none_is_sure() -> None:
    for confidence, moves in ((0.0, True), (0.999999, False)):
        state, _, result = fixmatch_step(UNKNOWN, confidence=confidence)
        result.loss.backward()
        grads = [p.grad.abs().max() for p in state.nets["main"].parameters() if p.grad is not None]
        assert len(list(state.nets["main"].parameters())) == len(grads) == 8
        assert (max(grads) > 0) == moves
        assert bool(result.loss > 0) == moves


def test_fixmatch__plan_has_the_streams_there_are_images_for() -> None:
    for labels, streams in (
        (UNKNOWN, {"unlabelled"}),
        (some_labels(1), {"labelled", "unlabelled"}),
        (TRUTH, {"labelled"}),
    ):
        state, _ = begun("fixmatch_text", labels)
        plan = fixmatch_text.plan(cfg_of("fixmatch_text"), task_of(labels), state, 0)
        assert set(plan.streams) == streams
        rows = torch.cat([stream.rows for stream in plan.streams.values()])
        assert torch.equal(rows.sort().values, torch.arange(N))
    assert plan.streams["labelled"].views == ("weak",)


def test_fixmatch__says_when_a_class_takes_over() -> None:
    trained, _ = run("fixmatch_text", epochs=2, steps_per_epoch=5)
    assert trained.warnings == ()
    cfg, task = cfg_of("fixmatch_text", epochs=3), task_of()
    state, logs = begun("fixmatch_text")
    with torch.no_grad():
        answers = METHODS["fixmatch_text"].recipe.predict(cfg, state, Z).logits.argmax(1)
    assert logs["pseudolabel_counts"] == torch.bincount(answers, minlength=C).tolist()
    cast(Any, state.nets["main"]).linear_bias[2] = 100.0
    _, early = fixmatch_text.end_epoch(cfg, task, state, tiny.passes_of(state, Z), 1)
    assert early == {}
    _, last = fixmatch_text.end_epoch(cfg, task, state, tiny.passes_of(state, Z), 2)
    assert last["pseudolabel_counts"] == [0, 0, N, 0]
    assert "c has taken over: it is the answer to 100% of the unlabelled images" in last["warnings"][0]
