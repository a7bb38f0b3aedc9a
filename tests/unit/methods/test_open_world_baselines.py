"""Baselines for classes that nobody named: their losses by hand, their starts, and the clusters that they find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from labelwright.encoders.backbones import Classifier, UnitBackbone, build, classifier_config, from_config
from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.contrastive import nt_xent
from labelwright.methods.baselines import fixmatch_clusters, orca, protogcd, simgcd, ss_kmeans
from labelwright.methods.baselines.cosines import SCALE, divergence_of_mean
from labelwright.methods.cluster_start import START_SCALE
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.open_world import seen_novel_all
from labelwright.train.loop import train
from labelwright.train.seeds import generator
from labelwright.types import Batch, Clock, State, Task

STEPPING = ["orca", "simgcd", "protogcd", "fixmatch_clusters"]
ALL = pytest.mark.parametrize("name", ["ss_kmeans", "novel_beliefs", *STEPPING])
COUNTS = (24, 20, 20, 16)  # classes 0 and 1 are seen, and every other image of them is labelled
TRUTH = torch.tensor(tiny.classes_of(COUNTS))
FEATS = tiny.TinyFeats(TRUTH.tolist()).x
CLOCK = Clock(epoch=0, n_epochs=10, step=0, steps_per_epoch=1, seed=0)
B, C = 6, 3


class Told(nn.Module):
    """Outputs that are its only parameter, but for a scale, one row per image and view; x holds the place."""

    def __init__(self, outputs: Tensor, feats: Tensor, scale: float) -> None:
        super().__init__()
        self.table = nn.Parameter(outputs.clone())
        self.feats, self.scale = feats, scale

    def penultimate(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, None].float(), self.feats[x.long()]], dim=1)

    def from_penultimate(self, h: Tensor) -> Tensor:
        return self.scale * self.table[h[:, 0].long()]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.table[x.long()]


def open_task(n_seen: int = 2, truth: Tensor = TRUTH) -> Task:
    """Every other image of the seen classes has its label."""
    is_known = (truth < n_seen) & (torch.arange(len(truth)) % 2 == 0)
    names = tuple(f"class {c}" for c in range(n_seen))
    return Task(torch.where(is_known, truth, -1), names, n_novel=int(truth.max()) + 1 - n_seen)


def config_of(name: str, **settings: object) -> Any:
    return resolve_config(METHODS[name], settings)


def fitted(name: str, *, task: Task | None = None, epochs: int = 20) -> State:
    """A baseline trained on blobs of unit features."""
    cfg = config_of(name, epochs=epochs, n_init=3, **({"batch_size": 16} if name in STEPPING else {}))
    task, views = open_task() if task is None else task, tiny.TinyFeats(TRUTH.tolist())
    return train(METHODS[name].recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of()).state


@torch.no_grad()
def answers(name: str, state: State) -> Tensor:
    state.nets["main"].eval()
    return METHODS[name].recipe.predict(config_of(name), state, FEATS).logits.argmax(1)


# ---- what they find --------------------------------------------------------------------------------------------------


@ALL
def test_train__finds_the_seen_and_the_hidden_classes(name: str) -> None:
    hidden = open_task().labels < 0
    scores = seen_novel_all(answers(name, fitted(name))[hidden], TRUTH[hidden], n_seen=2)
    is_unsure = name == "fixmatch_clusters"  # of seen images too: it has to learn from 22 which ones it knows
    assert scores["seen"] > {"fixmatch_clusters": 0.65, "novel_beliefs": 0.8}.get(name, 0.9)
    assert scores["novel"] > 0.85  # one cluster alone would give 20 of 36
    assert scores["all"] > (0.8 if is_unsure else 0.9)
    assert scores["n_clusters_used"] == 2


@ALL
def test_train__without_a_novel_class(name: str) -> None:
    task = open_task(n_seen=4)
    state = fitted(name, task=task)
    assert (answers(name, state) == TRUTH).float().mean() > 0.9
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(state).values())


@ALL
def test_train__more_outputs_than_classes_stays_finite(name: str) -> None:
    task = Task(open_task().labels, ("a", "b"), n_novel=9)
    state = fitted(name, task=task, epochs=3)
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(state).values())
    assert answers(name, state).max() < 11


@pytest.mark.parametrize("name", STEPPING)
def test_train__on_pixels_with_a_backbone_that_learns(name: str) -> None:
    cfg = config_of(name, epochs=3, batch_size=16, lr=0.05)
    recorded, views = tiny.Recorded(METHODS[name].recipe), tiny.TinyViews(TRUTH.tolist())
    trained = train(recorded, cfg, open_task(), views, tiny.BuildTiny(), options=tiny.options_of())
    assert len(recorded.losses) == 3 * 5
    assert torch.tensor(recorded.losses).isfinite().all()
    net: Any = trained.state.nets["main"]
    assert isinstance(net, ProjectedNet) == (name == "simgcd")  # line 3 needs a projector, which is not saved
    assert net.exported()(torch.randn(5, 3, 8, 8)).shape == (5, 4)


def test_ss_kmeans__is_the_nearest_centroid() -> None:
    net: Any = fitted("ss_kmeans", epochs=1).nets["main"]
    centroids, labels = net.head.weight / START_SCALE, open_task().labels
    assert torch.equal(net(FEATS).argmax(1), torch.cdist(FEATS, centroids).argmin(1))
    assigned = torch.where(labels >= 0, labels, net(FEATS).argmax(1))
    means = torch.stack([FEATS[assigned == c].mean(0) for c in range(4)])
    assert torch.allclose(centroids, means, atol=1e-5)  # settled: each is the mean of its images


def test_ss_kmeans__scales_the_features_of_a_backbone() -> None:
    class BuildResnet(tiny.BuildTiny):
        def __call__(self, n_outputs: int, **asked: Any) -> nn.Module:
            return build("resnet32", n_outputs, seed=0)

    net = ss_kmeans.setup(ss_kmeans.Config(), open_task(), BuildResnet()).nets["main"].eval()
    assert isinstance(net, Classifier)
    assert isinstance(net.backbone, UnitBackbone)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(net.features(x).norm(dim=1), torch.ones(3), atol=1e-5)
    again = from_config(classifier_config(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net(x))


def test_fixmatch_clusters__novel_outputs_come_at_the_end() -> None:
    name, task, cfg = "fixmatch_clusters", open_task(), fixmatch_clusters.Config(epochs=2)
    state = fixmatch_clusters.setup(cfg, task, tiny.BuildHead())
    assert (answers(name, state) < 2).all()
    passes = tiny.passes_of(state, FEATS)
    fixmatch_clusters.end_epoch(cfg, task, state, passes, 0)
    assert (answers(name, state) < 2).all()
    _, logs = fixmatch_clusters.end_epoch(cfg, task, state, passes, 1)
    assert (answers(name, state) >= 2).any()
    assert logs["fitted_frac"] > 0.8  # the clusters are of an untrained classifier: no line parts them wholly


# ---- losses by hand --------------------------------------------------------------------------------------------------


def told_state(scale: float = SCALE, **memory: object) -> tuple[State, Tensor, Tensor]:
    """A state of which the outputs are given, these before they are scaled [2, B, C], and features [B, 2]."""
    draw = generator(0, "open world told")
    outputs = torch.rand(2, B, C, generator=draw) * 2 - 1
    feats = torch.randn(B, 2, generator=draw)
    net = Told(outputs.view(2 * B, C), feats.repeat(2, 1), scale)
    prior = torch.tensor([0.5, 0.3, 0.2])
    return State(nets={"main": net}, memory={"is_frozen": False, "prior": prior, **memory}), outputs, feats


def batches_of(labels: Tensor, n_labelled: int, views: tuple[int, int] = (2, 2)) -> Mapping[str, Batch]:
    """Rows 0..n_labelled-1 are labelled; view v of row i is place v B + i."""
    rows = torch.arange(B)
    sides = {"labelled": (rows[:n_labelled], views[0]), "unlabelled": (rows[n_labelled:], views[1])}
    return {
        side: Batch(of, tuple((of + v * B).float() for v in range(n)), labels[of]) for side, (of, n) in sides.items()
    }


def test_orca__loss_by_hand() -> None:
    state, outputs, feats = told_state(uncertainty=torch.tensor(0.3))
    labels = torch.tensor([0, 0, 1, -1, -1, -1])  # 0 and 1 pair with each other, 2 with itself
    cfg = orca.Config(prior_weight=0.7, pair_weight=2.0)
    result = orca.step(cfg, three_class_task(labels), state, batches_of(labels, 3), CLOCK)
    p1, p2 = (10 * outputs).double().softmax(2)
    supervised = 0.0
    for i in range(3):
        s = [10 * float(v) for v in outputs[0, i]]
        s[int(labels[i])] += 10 * 0.3
        supervised += (math.log(sum(math.exp(v) for v in s)) - s[int(labels[i])]) / 3
    partner = [1, 0, 2]
    # what stands for the features in Told is the place and the features, told apart by angle
    h = F.normalize(torch.cat([torch.arange(B)[:, None].float(), feats], 1), dim=1)
    for i in range(3, 6):
        sims = [float(h[i] @ h[j]) if j != i else -2.0 for j in range(B)]
        partner.append(sims.index(max(sims)))
    pairs = sum(-math.log(float(p1[i] @ p2[j]) + 1e-7) for i, j in enumerate(partner)) / B
    mean, prior = p1.mean(0).tolist(), [0.5, 0.3, 0.2]
    apart = sum(m * math.log(m / q) for m, q in zip(mean, prior, strict=True))
    assert result.loss.item() == pytest.approx(supervised + 2.0 * pairs + 0.7 * apart, rel=1e-5)
    assert float(result.logs["loss_prior"]) == pytest.approx(apart, rel=1e-4)
    assert result.n_kept == B


def test_simgcd__loss_by_hand() -> None:
    state, outputs, _ = told_state()
    labels = torch.tensor([0, 2, -1, -1, -1, -1])
    clock = Clock(epoch=5, n_epochs=10, step=0, steps_per_epoch=1, seed=0)  # the teacher is as cool as it gets
    result = simgcd.step(simgcd.Config(), three_class_task(labels), state, batches_of(labels, 2), clock)
    cos = outputs.double()
    log_p, q = (cos / 0.1).log_softmax(2), (cos / 0.04).softmax(2)
    distilled = sum(float(-(q[1 - v, i] * log_p[v, i]).sum()) for v in range(2) for i in range(B)) / (2 * B)
    supervised = -sum(float(log_p[v, i, int(labels[i])]) for v in range(2) for i in range(2)) / 4
    mean, prior = log_p.exp().mean((0, 1)).tolist(), [0.5, 0.3, 0.2]
    apart = sum(m * math.log(m / r) for m, r in zip(mean, prior, strict=True))
    assert result.loss.item() == pytest.approx(0.65 * (distilled + 2.0 * apart) + 0.35 * supervised, rel=1e-5)


def test_protogcd__loss_by_hand() -> None:
    state, outputs, _ = told_state()
    net: Any = state.nets["main"]
    net.head = nn.Linear(2, C, bias=False)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))
    labels = torch.tensor([0, 2, -1, -1, -1, -1])
    cfg = protogcd.Config(sure_frac=0.5)
    clock = Clock(epoch=5, n_epochs=10, step=0, steps_per_epoch=1, seed=0)
    result = protogcd.step(cfg, three_class_task(labels), state, batches_of(labels, 2), clock)
    cos = outputs.double()
    log_p, q = (cos / 0.1).log_softmax(2), (cos / 0.04).softmax(2)
    taught = 0.0
    for v in range(2):
        surest = sorted(range(2, B), key=lambda i: -float(q[1 - v, i].max()))[:2]
        for i in range(B):
            best = int(q[1 - v, i].argmax())
            each = log_p[v, i, best] if i in surest else (q[1 - v, i] * log_p[v, i]).sum()
            taught -= float(each) / (2 * B)
    supervised = -sum(float(log_p[v, i, int(labels[i])]) for v in range(2) for i in range(2)) / 4
    mean, prior = log_p.exp().mean((0, 1)).tolist(), [0.5, 0.3, 0.2]
    spread = sum(m * math.log(m / r) for m, r in zip(mean, prior, strict=True))
    apart = math.log((2 * math.exp(10) + 4) / 6)  # prototypes 0 and 2 point the same way
    assert result.loss.item() == pytest.approx(0.65 * taught + 0.35 * supervised + 2.0 * spread + 0.1 * apart, rel=1e-5)


def test_dual_targets__none_and_all() -> None:
    probs, hidden = torch.tensor([[0.6, 0.4], [0.2, 0.8]]), torch.tensor([True, True])
    assert torch.equal(protogcd.dual_targets(probs, hidden, sure_frac=0.0), probs)
    assert torch.equal(protogcd.dual_targets(probs, hidden, sure_frac=1.0), torch.eye(2))


@pytest.mark.parametrize("name", ["orca", "simgcd", "protogcd"])
def test_begin__answers_as_the_beliefs_do(name: str) -> None:
    cfg, task, views = config_of(name, epochs=1, n_init=3, lr=1e-9), open_task(), tiny.TinyFeats(TRUTH.tolist())
    begun = train(METHODS[name].recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of()).state
    alike = answers(name, begun) == answers("novel_beliefs", fitted("novel_beliefs", epochs=1))
    assert alike.float().mean() > 0.95


def test_simgcd__the_teacher_has_no_gradient() -> None:
    state, outputs, _ = told_state()
    labels = torch.full((B,), -1)
    cfg = simgcd.Config(prior_weight=0.0, supervised_weight=0.0)
    result = simgcd.step(cfg, three_class_task(labels), state, batches_of(labels, 2), CLOCK)
    net: Any = state.nets["main"]
    (found,) = torch.autograd.grad(result.loss, net.table)
    p, q = (outputs / 0.1).softmax(2), (outputs / 0.07).softmax(2)
    expected = (p - q.flip(0)) / 0.1 / (2 * B)  # of -sum q log p, q from the other view
    assert torch.allclose(found.view(2, B, C), expected, atol=1e-5)


def test_fixmatch__loss_by_hand() -> None:
    state, outputs, _ = told_state(scale=1.0)
    labels = torch.tensor([1, 0, -1, -1, -1, -1])
    cfg = fixmatch_clusters.Config(confidence=0.6)
    task = Task(labels, ("a", "b"), n_novel=1)  # the third output takes no part
    result = fixmatch_clusters.step(cfg, task, state, batches_of(labels, 2, views=(1, 2)), CLOCK)
    log_p = outputs.double()[:, :, :2].log_softmax(2)
    supervised = -sum(float(log_p[0, i, int(labels[i])]) for i in range(2)) / 2
    taught, n_sure = 0.0, 0
    for i in range(2, B):
        best = int(log_p[0, i].argmax())
        if math.exp(float(log_p[0, i, best])) >= 0.6:
            taught, n_sure = taught - float(log_p[1, i, best]) / 4, n_sure + 1
    assert 0 < n_sure < 4
    assert result.loss.item() == pytest.approx(supervised + taught, rel=1e-5)
    assert float(result.logs["sure_frac"]) == pytest.approx(n_sure / 4)
    net: Any = state.nets["main"]
    (found,) = torch.autograd.grad(result.loss, net.table)
    assert (found[:, 2] == 0).all()


def three_class_task(labels: Tensor) -> Task:
    return Task(labels, ("a", "b", "c"))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_partners__labelled_rows_pair_within_their_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, -1, -1])
    feats = torch.eye(6) + 0.01
    feats[4] = feats[3]  # the nearest of an unlabelled row may be labelled
    drawn = torch.stack([orca.partners(feats, labels) for _ in range(40)])
    for i in range(3):
        assert drawn[:, i].unique().tolist() == [j for j in range(3) if j != i]
    assert (drawn[:, 3] == 3).all()
    assert (drawn[:, 4] == 3).all()


def test_partners__one_row() -> None:
    for label in (0, -1):
        assert orca.partners(torch.ones(1, 2), torch.tensor([label])).tolist() == [0]


def test_divergence_of_mean__is_zero_at_the_prior_and_finite_at_a_share_of_zero() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1])
    assert float(divergence_of_mean(prior.log().expand(4, 3), prior)) == pytest.approx(0.0, abs=1e-6)
    assert divergence_of_mean(torch.zeros(4, 3), torch.tensor([0.5, 0.5, 0.0])).isfinite()


def test_supervised_contrastive__loop_oracle() -> None:
    draw = generator(0, "supcon")
    z = F.normalize(torch.randn(2, 4, 3, generator=draw, dtype=torch.float64), dim=2)
    labels = torch.tensor([0, 0, 1, -1])
    rows, owner = z[:, :3].reshape(6, 3), [0, 1, 2, 0, 1, 2]
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        log_sum = math.log(sum(math.exp(float(rows[i] @ rows[j]) / 0.5) for j in others))
        positives = [j for j in others if labels[owner[j]] == labels[owner[i]]]
        total -= sum(float(rows[i] @ rows[j]) / 0.5 - log_sum for j in positives) / len(positives) / 6
    found = simgcd.supervised_contrastive(z[0], z[1], labels, temperature=0.5)
    assert float(found) == pytest.approx(total, rel=1e-6)
    alone = torch.arange(4)
    same = nt_xent(z[0], z[1], temperature=0.5)
    assert torch.allclose(simgcd.supervised_contrastive(z[0], z[1], alone, temperature=0.5), same)


def test_teacher_temperature__falls_then_stays() -> None:
    found = [simgcd.teacher_temperature(Clock(e, 200, 0, 1, 0)) for e in (0, 15, 30, 199)]
    assert found == pytest.approx([0.07, 0.055, 0.04, 0.04])


def test_orca__uncertainty_is_remembered_and_capped() -> None:
    task, cfg = open_task(), orca.Config(start="none")
    state = orca.setup(cfg, task, tiny.BuildHead())
    state, logs = orca.begin(cfg, task, state, tiny.passes_of(state, FEATS))
    with torch.no_grad():
        sure = state.nets["main"](FEATS[task.labels < 0]).softmax(1).amax(1)
    assert logs["uncertainty"] == pytest.approx(min(float(1 - sure.mean()), 0.5), abs=1e-4)
    net: Any = state.nets["main"]
    assert net.head.scale == SCALE
    net.head.scale.fill_(1e-6)
    assert orca.begin(cfg, task, state, tiny.passes_of(state, FEATS))[1]["uncertainty"] == 0.5


@ALL
def test_begin__logs_the_pace(name: str) -> None:
    task, cfg, recipe = open_task(), config_of(name, n_init=2), METHODS[name].recipe
    state = recipe.setup(cfg, task, tiny.BuildHead())
    _, logs = recipe.end_epoch(cfg, task, state, tiny.passes_of(state, FEATS), 7)
    assert logs["novel_expected"] == pytest.approx(
        40 / 58, abs=1e-4
    )  # even: 20 images each, 12 and 10 of them labelled
    assert len(logs["class_frac"]) == 4
