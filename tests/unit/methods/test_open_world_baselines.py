"""ss_kmeans, orca, simgcd and fixmatch_clusters: their losses by hand, and the clusters that nobody named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from labelwright.encoders.backbones import Classifier, UnitBackbone, build, classifier_config, from_config
from labelwright.encoders.projection import ProjectedNet
from labelwright.errors import ConfigError
from labelwright.losses.contrastive import nt_xent
from labelwright.methods.baselines import open_world as ow
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.open_world import seen_novel_all
from labelwright.run_folder import Run
from labelwright.train.loop import Trained, train
from labelwright.train.seeds import generator
from labelwright.train.settings import apply_overrides
from labelwright.types import Batch, Clock, State, Task

ALL = pytest.mark.parametrize("name", ow.PRESETS)
TRAINED = pytest.mark.parametrize("name", [name for name in ow.PRESETS if name != "ss_kmeans"])
COUNTS = (24, 20, 20, 16)  # classes 0 and 1 are seen, and every other image of them is labelled
TRUTH = torch.tensor(tiny.classes_of(COUNTS))
CLOCK = Clock(epoch=0, n_epochs=10, step=0, steps_per_epoch=1, seed=0)
B, C = 6, 3


class BuildPixels(tiny.BuildTiny):
    """Tiny networks of which the backbone learns."""

    is_pretrained = False


class Told(nn.Module):
    """Outputs that are its only parameter, one row per image and view; x holds the place, features are fixed."""

    def __init__(self, outputs: Tensor, feats: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(outputs.clone())
        self.feats = feats

    def penultimate(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, None].float(), self.feats[x.long()]], dim=1)

    def from_penultimate(self, h: Tensor) -> Tensor:
        return self.table[h[:, 0].long()]

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long()]


def open_task(n_seen: int = 2, truth: Tensor = TRUTH) -> Task:
    """Every other image of the seen classes has its label."""
    is_known = (truth < n_seen) & (torch.arange(len(truth)) % 2 == 0)
    names = tuple(f"class {c}" for c in range(n_seen))
    return Task(torch.where(is_known, truth, -1), names, n_novel=int(truth.max()) + 1 - n_seen)


def fitted(name: str, *, task: Task | None = None, recipe: Any = ow, run: Any = None, **changed: object) -> Trained:
    """A baseline trained on blobs of unit features."""
    task = open_task() if task is None else task
    settings = {"epochs": 20, "batch_size": 16, "n_init": 3, **changed}
    cfg = resolve_config(METHODS[name], settings)
    views = tiny.TinyFeats(TRUTH.tolist())
    return train(recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of(), run=run)


def answers(name: str, trained: Trained) -> Tensor:
    cfg = resolve_config(METHODS[name], {})
    trained.state.nets["main"].eval()
    with torch.no_grad():
        return ow.predict(cfg, trained.state, tiny.TinyFeats(TRUTH.tolist()).x).logits.argmax(1)


# ---- what they find --------------------------------------------------------------------------------------------------


@ALL
def test_train__finds_the_seen_and_the_hidden_classes(name: str) -> None:
    hidden = open_task().labels < 0
    scores = seen_novel_all(answers(name, fitted(name))[hidden], TRUTH[hidden], n_seen=2)
    is_unsure = name == "fixmatch_clusters"  # of seen images too: it has to learn from 22 which ones it knows
    assert scores["seen"] > (0.65 if is_unsure else 0.9)
    assert scores["novel"] > 0.85  # one cluster alone would give 20 of 36
    assert scores["all"] > (0.8 if is_unsure else 0.9)
    assert scores["n_clusters_used"] == 2


@ALL
def test_train__without_a_novel_class(name: str) -> None:
    task = open_task(n_seen=4)
    trained = fitted(name, task=task)
    assert (answers(name, trained) == TRUTH).float().mean() > 0.9
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())


@ALL
def test_train__more_outputs_than_classes_stays_finite(name: str) -> None:
    task = Task(open_task().labels, ("a", "b"), n_novel=9)
    trained = fitted(name, task=task, epochs=3)
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())
    assert answers(name, trained).max() < 11


@TRAINED
def test_train__on_pixels_with_a_backbone_that_learns(name: str) -> None:
    settings = {"epochs": 3, "batch_size": 16, "lr": 0.05}
    cfg = resolve_config(METHODS[name], settings)
    recorded = tiny.Recorded(METHODS[name].recipe)
    views = tiny.TinyViews(TRUTH.tolist())
    trained = train(recorded, cfg, open_task(), views, BuildPixels(), options=tiny.options_of())
    assert len(recorded.losses) == 3 * 5
    assert torch.tensor(recorded.losses).isfinite().all()
    net = trained.state.nets["main"]
    assert isinstance(net, ProjectedNet) == (name == "simgcd")  # line 9 needs a projector, which is not saved
    exported: Any = net
    assert exported.exported()(torch.randn(5, 3, 8, 8)).shape == (5, 4)


def test_ss_kmeans__takes_no_step_and_is_the_nearest_centroid() -> None:
    recorded: Any = tiny.Recorded(METHODS["ss_kmeans"].recipe)
    trained = fitted("ss_kmeans", recipe=recorded, epochs=1)
    assert recorded.losses == []
    net: Any = trained.state.nets["main"]
    z, centroids = tiny.TinyFeats(TRUTH.tolist()).x, net.head.weight / ow.Config().start_scale
    assert torch.equal(net(z).argmax(1), torch.cdist(z, centroids).argmin(1))
    labels = open_task().labels
    assigned = torch.where(labels >= 0, labels, net(z).argmax(1))
    means = torch.stack([z[assigned == c].mean(0) for c in range(4)])
    assert torch.allclose(centroids, means, atol=1e-5)  # settled: each is the mean of its images


def test_ss_kmeans__scales_the_features_of_a_backbone() -> None:
    class BuildResnet(BuildPixels):
        def __call__(self, n_outputs: int, **asked: Any) -> nn.Module:
            return build("resnet32", n_outputs, seed=0)

    cfg = resolve_config(METHODS["ss_kmeans"], {})
    net = ow.setup(cfg, open_task(), BuildResnet()).nets["main"].eval()
    assert isinstance(net, Classifier)
    assert isinstance(net.backbone, UnitBackbone)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(net.features(x).norm(dim=1), torch.ones(3), atol=1e-5)
    again = from_config(classifier_config(net))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net(x))


def test_fixmatch_clusters__novel_outputs_come_at_the_end() -> None:
    task = open_task()
    cfg = resolve_config(METHODS["fixmatch_clusters"], {"epochs": 2, "batch_size": 16})
    state = ow.setup(cfg, task, tiny.BuildHead())
    x = tiny.TinyFeats(TRUTH.tolist()).x
    assert (ow.predict(cfg, state, x).logits.argmax(1) < 2).all()
    passes = passes_of(state, x)
    ow.end_epoch(cfg, task, state, passes, 0)
    assert (ow.predict(cfg, state, x).logits.argmax(1) < 2).all()
    _, logs = ow.end_epoch(cfg, task, state, passes, 1)
    assert (ow.predict(cfg, state, x).logits.argmax(1) >= 2).any()
    assert logs["fitted_frac"] > 0.8  # the clusters are of an untrained classifier: no line parts them wholly


def test_fixmatch_clusters__of_given_confidence() -> None:
    task = open_task()
    hidden = task.labels < 0
    none, all_of_them = (
        answers("fixmatch_clusters", fitted("fixmatch_clusters", epochs=2, novel_below=below)) for below in (0.0, 1.0)
    )
    assert (none[hidden] >= 2).sum() <= 4  # as few as there must be for two clusters, and what lies beside them
    assert (all_of_them[hidden] >= 2).float().mean() > 0.5


def passes_of(state: State, x: Tensor) -> Any:
    """types.Passes over features."""

    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Any:
        with torch.no_grad():
            yield rows, x[rows] if output == "feats" else state.nets[net](x[rows])

    return passes


# ---- losses by hand --------------------------------------------------------------------------------------------------


def told_state(name: str, **memory: object) -> tuple[State, Tensor, Tensor]:
    """A state of which the outputs are given, the outputs [2, B, C] and features [B, 2]."""
    draw = generator(0, "open world told")
    outputs = torch.rand(2, B, C, generator=draw) * 2 - 1
    feats = torch.randn(B, 2, generator=draw)
    net = Told(outputs.view(2 * B, C), feats.repeat(2, 1))
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
    state, outputs, feats = told_state("orca", uncertainty=torch.tensor(0.3))
    labels = torch.tensor([0, 0, 1, -1, -1, -1])  # 0 and 1 pair with each other, 2 with itself
    cfg = apply_overrides(ow.Config(), {"baseline": "orca", "prior_weight": 0.7, "pair_weight": 2.0})
    result = ow.step(cfg, three_class_task(labels), state, batches_of(labels, 3), CLOCK)
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
    state, outputs, _ = told_state("simgcd")
    labels = torch.tensor([0, 2, -1, -1, -1, -1])
    cfg = apply_overrides(ow.Config(), {"baseline": "simgcd"})
    clock = Clock(epoch=5, n_epochs=10, step=0, steps_per_epoch=1, seed=0)  # the teacher is as cool as it gets
    result = ow.step(cfg, three_class_task(labels), state, batches_of(labels, 2), clock)
    cos = outputs.double()
    log_p, q = (cos / 0.1).log_softmax(2), (cos / 0.04).softmax(2)
    distilled = sum(float(-(q[1 - v, i] * log_p[v, i]).sum()) for v in range(2) for i in range(B)) / (2 * B)
    supervised = -sum(float(log_p[v, i, int(labels[i])]) for v in range(2) for i in range(2)) / 4
    mean, prior = log_p.exp().mean((0, 1)).tolist(), [0.5, 0.3, 0.2]
    apart = sum(m * math.log(m / r) for m, r in zip(mean, prior, strict=True))
    assert result.loss.item() == pytest.approx(0.65 * (distilled + 2.0 * apart) + 0.35 * supervised, rel=1e-5)


def test_simgcd__the_teacher_has_no_gradient() -> None:
    state, outputs, _ = told_state("simgcd")
    labels = torch.full((B,), -1)
    cfg = apply_overrides(ow.Config(), {"baseline": "simgcd", "prior_weight": 0.0, "supervised_weight": 0.0})
    result = ow.step(cfg, three_class_task(labels), state, batches_of(labels, 2), CLOCK)
    net: Any = state.nets["main"]
    (found,) = torch.autograd.grad(result.loss, net.table)
    p, q = (outputs / 0.1).softmax(2), (outputs / 0.07).softmax(2)
    expected = (p - q.flip(0)) / 0.1 / (2 * B)  # of -sum q log p, q from the other view
    assert torch.allclose(found.view(2, B, C), expected, atol=1e-5)


def test_fixmatch__loss_by_hand() -> None:
    state, outputs, _ = told_state("fixmatch_clusters")
    labels = torch.tensor([1, 0, -1, -1, -1, -1])
    cfg = apply_overrides(ow.Config(), {"baseline": "fixmatch_clusters", "confidence": 0.6})
    task = Task(labels, ("a", "b"), n_novel=1)  # the third output takes no part
    result = ow.step(cfg, task, state, batches_of(labels, 2, views=(1, 2)), CLOCK)
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
    drawn = torch.stack([ow.partners(feats, labels) for _ in range(40)])
    for i in range(3):
        assert drawn[:, i].unique().tolist() == [j for j in range(3) if j != i]
    assert (drawn[:, 3] == 3).all()
    assert (drawn[:, 4] == 3).all()


def test_partners__one_row() -> None:
    for label in (0, -1):
        assert ow.partners(torch.ones(1, 2), torch.tensor([label])).tolist() == [0]


def test_divergence_of_mean__is_zero_at_the_prior_and_finite_at_a_share_of_zero() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1])
    assert float(ow.divergence_of_mean(prior.log().expand(4, 3), prior)) == pytest.approx(0.0, abs=1e-6)
    assert ow.divergence_of_mean(torch.zeros(4, 3), torch.tensor([0.5, 0.5, 0.0])).isfinite()


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
    found = ow.supervised_contrastive(z[0], z[1], labels, temperature=0.5)
    assert float(found) == pytest.approx(total, rel=1e-6)
    alone = torch.arange(4)
    same = nt_xent(z[0], z[1], temperature=0.5)
    assert torch.allclose(ow.supervised_contrastive(z[0], z[1], alone, temperature=0.5), same)


def test_teacher_temperature__falls_then_stays() -> None:
    cfg = ow.Config(teacher_ramp_frac=0.5)
    found = [ow.teacher_temperature(cfg, Clock(e, 20, 0, 1, 0)) for e in (0, 5, 10, 19)]
    assert found == pytest.approx([0.07, 0.055, 0.04, 0.04])


def test_orca__uncertainty_is_remembered_and_capped() -> None:
    task = open_task()
    cfg = resolve_config(METHODS["orca"], {"start": "none"})
    state = ow.setup(cfg, task, tiny.BuildHead())
    x = tiny.TinyFeats(TRUTH.tolist()).x
    state, logs = ow.begin(cfg, task, state, passes_of(state, x))
    hidden = task.labels < 0
    with torch.no_grad():
        sure = (10 * state.nets["main"](x[hidden])).softmax(1).amax(1)
    assert logs["uncertainty"] == pytest.approx(min(float(1 - sure.mean()), 0.5), abs=1e-4)
    flat = resolve_config(METHODS["orca"], {"start": "none", "scale": 1e-6})
    assert ow.begin(flat, task, state, passes_of(state, x))[1]["uncertainty"] == 0.5


@ALL
def test_begin__logs_the_pace(name: str) -> None:
    task = open_task()
    cfg = resolve_config(METHODS[name], {"n_init": 2})
    state = ow.setup(cfg, task, tiny.BuildHead())
    _, logs = ow.end_epoch(cfg, task, state, passes_of(state, tiny.TinyFeats(TRUTH.tolist()).x), 7)
    assert logs["novel_due"] == pytest.approx(40 / 58, abs=1e-4)  # even: 20 images each, 12 and 10 of them labelled
    assert len(logs["class_frac"]) == 4


# ---- settings, restarts ----------------------------------------------------------------------------------------------


@ALL
def test_setup__refuses_a_class_that_no_image_shows(name: str) -> None:
    cfg = resolve_config(METHODS[name], {})
    with pytest.raises(ConfigError, match="no image is labelled 'b'"):
        ow.setup(cfg, Task(torch.tensor([0, -1, -1]), ("a", "b"), n_novel=1), tiny.BuildHead())
    with pytest.raises(ConfigError, match=f"{name} finds classes in unlabelled images"):
        ow.setup(cfg, Task(torch.tensor([0, 1]), ("a", "b"), n_novel=1), tiny.BuildHead())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", 0.0),
        ("pair_weight", -1.0),
        ("prior_weight", -1.0),
        ("confidence", 1.5),
        ("supervised_weight", 2.0),
        ("novel_below", -0.1),
        ("teacher_temperatures", (0.07, 0.0)),
        ("student_temperature", 0.0),
    ],
)
def test_config__refuses(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        apply_overrides(ow.Config(), {key: value})


class CrashError(Exception):
    """Stands for a kill."""


@ALL
def test_resume__equals_an_uninterrupted_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(name, epochs=3)
    at, n_calls = ("end_epoch", 2) if name == "ss_kmeans" else ("step", 12)  # of five steps an epoch
    inner, calls = getattr(ow, at), []

    def crashing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == n_calls:
            raise CrashError
        return inner(*args)

    with monkeypatch.context() as patched:
        patched.setattr(ow, at, crashing)
        with pytest.raises(CrashError):
            fitted(name, epochs=3, run=Run.create(tmp_path))
    run = Run(tmp_path)
    resumed = fitted(name, epochs=3, run=run)
    run.close()
    assert tiny.differing(whole.state, resumed.state) == []
