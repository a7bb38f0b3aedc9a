"""Beliefs: against a slow loop in float64, what each kind of evidence does, what is refused, from file to label."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import clip_folders
import labelwright as lw
import tiny
from labelwright.errors import ConfigError, DataError
from labelwright.labels.gaussians import principal
from labelwright.methods import beliefs
from labelwright.methods.recipe import as_chosen
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.pipeline.saved_model import load_model
from labelwright.train import cross_validation
from labelwright.train.loop import Trained, train
from labelwright.types import Concepts, Task
from pictures import write_folders

COUNTS = (40, 30, 20)
TRUTH = torch.tensor(tiny.classes_of(COUNTS))
NAMES = ("cat", "dog", "owl")
QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "evaluations": 0}
Array = npt.NDArray[np.float64]


def labels_of(per_class: int) -> Tensor:
    """The first images of each class are labelled."""
    labels = torch.full_like(TRUTH, -1)
    for c in range(len(COUNTS)):
        rows = (c == TRUTH).nonzero().flatten()[:per_class]
        labels[rows] = c
    return labels


class Scaled(tiny.TinyFeats):
    """Features moved and made longer."""

    def __init__(self, scale: float) -> None:
        super().__init__(TRUTH.tolist(), noise=0.3)
        self.x = scale * (self.x + 0.5)

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        return self.x[rows]


def run(task: Task, views: Any = None, **settings: object) -> Trained:
    cfg = resolve_config(METHODS["beliefs"], settings)
    views = tiny.TinyFeats(TRUTH.tolist(), noise=0.3) if views is None else views
    return train(METHODS["beliefs"].recipe, cfg, task, views, tiny.BuildHead(task.concepts), options=tiny.options_of())


def logits_of(trained: Trained, views: Any = None) -> Tensor:
    x = (tiny.TinyFeats(TRUTH.tolist(), noise=0.3) if views is None else views).x
    with torch.no_grad():
        return beliefs.RECIPE.predict(beliefs.Config(), trained.state, x).logits


def accuracy(logits: Tensor) -> float:
    return float((logits.argmax(1) == TRUTH).float().mean())


# ---- the equations --------------------------------------------------------------------------------------------------


def slow_logits(x: Array, labels: list[int], *, n_dims: int, prior: list[float] | None) -> Array:
    """Line by line of the recipe's header, image by image; logits are centred over the classes."""
    n, n_classes, s, weight_of_label = len(x), len(COUNTS), 0.3, 10.0
    shrinkage = 2 / (2 + sum(label >= 0 for label in labels) / n_classes)
    class_means = [np.mean([x[i] for i in range(n) if labels[i] == c], 0) for c in range(n_classes)]
    off = np.mean(class_means, 0) - x.mean(0)
    axes = np.linalg.svd(np.array(class_means) - np.mean(class_means, 0), full_matrices=False)[2][: n_classes - 1]
    off, n_labels = axes @ off, sum(label >= 0 for label in labels)
    by_chance = ((x - x.mean(0)) @ axes.T).var(0).sum() / n_labels
    centre = x.mean(0) + max(0, 1 - 0.5 * by_chance / (off @ off)) * off @ axes
    u = (x - centre) @ np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:n_dims].T
    u = np.column_stack([u / np.sqrt((u**2).mean()), np.ones(n)])
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    known = np.array(labels) >= 0
    found = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-9, max_iter=5000)
    evidence = found.fit(u[known], np.array(labels)[known]).decision_function(u)
    log_joint, push = np.zeros((n, n_classes)), np.zeros(n_classes)
    for _ in range(20):
        q, mass = np.zeros((n, n_classes)), np.ones(n)
        for i in range(n):
            if labels[i] >= 0:
                q[i, labels[i]], mass[i] = 1.0, weight_of_label
            else:
                f = evidence[i] + s * log_joint[i] + push
                q[i] = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
        counts = mass @ q
        means = [(mass * q[:, c]) @ u / counts[c] for c in range(n_classes)]
        within = np.zeros((n_dims + 1, n_dims + 1))
        for i in range(n):
            for c in range(n_classes):
                within += mass[i] * q[i, c] * np.outer(u[i] - means[c], u[i] - means[c]) / counts.sum()
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / (n_dims + 1) * np.eye(n_dims + 1)
        inverse = np.linalg.inv(within)
        for i in range(n):
            for c in range(n_classes):
                gap = u[i] - means[c]
                log_joint[i, c] = -0.5 * gap @ inverse @ gap + (0 if prior else np.log(counts[c]))
        if prior:
            push = push + np.log(np.array(prior) * counts.sum() / counts)
    logits = evidence + s * log_joint + push
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("prior", ["estimated", "even"])
def test_run__matches_a_slow_loop(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beliefs, "PENALTIES", (0.1,))
    labels = labels_of(3)
    views = Scaled(1.0)
    found = logits_of(run(Task(labels, NAMES), views, n_dims=6, prior=prior), views).double()
    known_prior = [1 / 3] * 3 if prior == "even" else None
    expected = slow_logits(views.x.double().numpy(), labels.tolist(), n_dims=6, prior=known_prior)
    found = found - found.mean(1, keepdim=True)
    # float32 through twenty solutions of a linear system
    assert found.numpy() == pytest.approx(expected, rel=5e-3, abs=2e-2)
    assert np.abs(expected).max() > 3


@pytest.mark.parametrize(("n_images", "n_dims"), [(40, 39), (700, 140), (9000, 512)])
def test_setup__keeps_as_many_components_as_there_are_images_for(n_images: int, n_dims: int) -> None:
    labels = torch.full((n_images,), -1)
    labels[:3] = torch.arange(3)
    state = beliefs.setup(beliefs.Config(), Task(labels, NAMES), tiny.BuildHead(n_features=1000))
    assert cast(Any, state.nets["main"]).head.projection.shape == (n_dims, 1000)


def test_run__a_factor_on_all_features_changes_nothing() -> None:
    task = Task(labels_of(3), NAMES)
    plain, large = (logits_of(run(task, Scaled(scale)), Scaled(scale)) for scale in (1.0, 1000.0))
    assert torch.allclose(plain, large, rtol=1e-3, atol=1e-3)


def test_run__unlabelled_images_help() -> None:
    """Two labels a class: what regression makes of them alone, and with the other 84 images."""
    gains = []
    for first in range(0, 12, 2):
        labels = torch.full_like(TRUTH, -1)
        for c in range(3):
            rows = (c == TRUTH).nonzero().flatten()[first : first + 2]
            labels[rows] = c
        task = Task(labels, NAMES)
        gains.append(accuracy(logits_of(run(task))) - accuracy(logits_of(run(task, strength=0.0))))
    assert sum(gains) / len(gains) > 0.02
    assert min(gains) > -0.02


def test_run__strength_zero_is_the_regression() -> None:
    labels = labels_of(4)
    trained = run(Task(labels, NAMES), strength=0.0)
    head = cast(Any, trained.state.nets["main"]).head
    x = tiny.TinyFeats(TRUTH.tolist(), noise=0.3).x
    weight, bias, _ = beliefs.regression(head.project(x)[labels >= 0], labels[labels >= 0], 3)
    assert torch.allclose(head.linear.weight, weight, atol=1e-3)
    assert torch.allclose(head.linear.bias, bias, atol=1e-3)


def test_run__fits_that_leave_labels_out_keep_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(labels_of(4), NAMES)
    whole = run(task)
    again = as_chosen(resolve_config(METHODS["beliefs"], {}), whole.state)
    assert again.penalty in beliefs.PENALTIES
    monkeypatch.setattr(beliefs, "cross_validate", None)  # nothing is searched again
    assert torch.equal(logits_of(run(task, penalty=again.penalty)).argmax(1), logits_of(whole).argmax(1))


def test_run__tells_a_class_at_the_mean_from_those_around_it() -> None:
    """On a line, the middle one of three classes: it has no direction of its own."""
    draw = torch.Generator().manual_seed(0)
    views = Scaled(1.0)
    views.x = torch.zeros(len(TRUTH), views.x.shape[1])
    views.x[:, 0] = (TRUTH - 1).float() + 0.1 * torch.randn(len(TRUTH), generator=draw)
    trained = run(Task(labels_of(1), NAMES), views)
    assert accuracy(logits_of(trained, views)) > 0.95


def test_run__of_a_rare_class_and_a_common_one_the_border_lies_between() -> None:
    """Three labels each, 12 images of one beside 400 of the other: the mean of all is not the place to look from."""
    truth = torch.tensor(tiny.classes_of((400, 12)))
    scores = []
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        views, labels = Scaled(1.0), torch.full_like(truth, -1)
        views.x = torch.randn(len(truth), 16, generator=draw) + 0.95 * (truth[:, None] - 0.5)
        labels[:3], labels[400:403] = 0, 1
        found = logits_of(run(Task(labels, NAMES[:2]), views), views).argmax(1)
        scores.append(float(torch.stack([(found[truth == c] == c).float().mean() for c in (0, 1)]).mean()))
    assert sum(scores) / len(scores) > 0.9


# ---- evidence -------------------------------------------------------------------------------------------------------


def pulled(concepts: Concepts | None, labels: Tensor, candidates: Any = None) -> float:
    return accuracy(logits_of(run(Task(labels, NAMES, candidates, concepts=concepts))))


def test_run__texts_stand_in_for_classes_without_a_label() -> None:
    two = labels_of(3).masked_fill(TRUTH == 2, -1)
    assert pulled(tiny.concepts_of(3), two) > 0.9
    assert pulled(tiny.concepts_of(3), torch.full_like(TRUTH, -1)) > 0.9


def test_run__texts_beside_labels_of_every_class_help_and_wrong_ones_are_left() -> None:
    good = tiny.concepts_of(3)
    wrong = Concepts(good.feats[[1, 2, 0]], good.logit_scale)
    hard = tiny.TinyFeats(TRUTH.tolist(), noise=0.4)
    alone, beside = (
        accuracy(logits_of(run(Task(labels_of(1), NAMES, concepts=concepts), hard), hard)) for concepts in (None, good)
    )
    assert beside > alone + 0.01
    assert pulled(wrong, torch.full_like(TRUTH, -1)) < 0.2
    assert pulled(wrong, labels_of(5)) > 0.9


def test_run__candidates_stand_in_for_classes_without_a_label() -> None:
    two = labels_of(3).masked_fill(TRUTH == 2, -1)
    guessed = torch.where(torch.arange(len(TRUTH)) % 5 == 0, (TRUTH + 1) % 3, TRUTH)
    sets = tiny.sets_of(F.one_hot(guessed, 3).bool())
    assert pulled(None, two, sets) > 0.9
    assert pulled(None, torch.full_like(TRUTH, -1), sets) > 0.9


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(labels_of(3).masked_fill(TRUTH == 2, -1), NAMES), "no image is labelled 'owl', and there is neither"),
        (Task(torch.full_like(TRUTH, -1), NAMES), r"no image is labelled 'cat' \(nor 2 more\), and there is neither"),
        (Task(labels_of(3), NAMES, n_novel=2), "needs the names of all classes, 2 are unknown"),
    ],
    ids=["a class", "no label at all", "novel classes"],
)
def test_setup__is_refused(task: Task, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        beliefs.setup(beliefs.Config(), task, tiny.BuildHead())
    assert caught.value.fix


def test_setup__random_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="random weights") as caught:
        beliefs.setup(beliefs.Config(), Task(labels_of(3), NAMES), tiny.BuildTiny())
    assert "--model" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"), [("n_dims", 0), ("strength", -1.0), ("shrinkage", 1.5), ("label_weight", 0.0)]
)
def test_config__refuses(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        resolve_config(METHODS["beliefs"], {key: value})


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_principal__against_singular_values() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 8.0) + 3
    mean, directions = principal(x.half(), 3)
    expected = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False).Vh[:3]
    assert torch.allclose(mean, x.mean(0), atol=1e-2)
    cosines = (directions.double() * expected).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(3, dtype=torch.float64), atol=1e-3)


def test_regression__two_classes_a_class_without_labels_and_one_alone() -> None:
    u = F.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.tensor([0, 2] * 6)
    weight, bias, chosen = beliefs.regression(u, labels, 3)
    # of two classes scikit-learn penalises the difference of both rows: half as much for the same classifier
    judge = LogisticRegression(C=2 / chosen, class_weight="balanced", tol=1e-9).fit(u.double().numpy(), labels.numpy())
    logits = u @ weight.T + bias
    assert (logits[:, 2] - logits[:, 0]).numpy() == pytest.approx(judge.decision_function(u.double().numpy()), abs=1e-3)
    assert np.abs(judge.decision_function(u.double().numpy())).max() > 0.1
    assert torch.equal(logits[:, 1], torch.zeros(12))
    weight, bias, chosen = beliefs.regression(u, torch.ones(12, dtype=torch.int64), 3)
    assert (float(weight.abs().max()), float(bias.abs().max()), chosen) == (0.0, 0.0, beliefs.USUAL_PENALTY)


def test_regression__penalty_by_cross_validation_where_there_is_something_to_leave_out() -> None:
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(3).repeat_interleave(20)
    noise = F.normalize(torch.randn(60, 8, generator=draw), dim=1)
    clear = F.normalize(torch.eye(8)[labels] + 0.01 * torch.randn(60, 8, generator=draw), dim=1)
    assert beliefs.regression(noise, labels, 3)[2] == beliefs.PENALTIES[0]
    assert beliefs.regression(clear, labels, 3)[2] == beliefs.PENALTIES[-1]
    single = torch.tensor([0, 20, 40])  # one of each: nothing to leave out
    assert beliefs.regression(noise[single], labels[single], 3)[2] == beliefs.USUAL_PENALTY


def test_regression__many_rows_are_tried_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(3).repeat(40)
    clear = F.normalize(torch.eye(8)[labels] + 0.01 * torch.randn(120, 8, generator=draw), dim=1)
    monkeypatch.setattr(cross_validation, "MAX_TRIED_ROWS", 12)
    assert beliefs.regression(clear, labels, 3)[2] == beliefs.PENALTIES[-1]


# ---- from file to label ---------------------------------------------------------------------------------------------


def write_npz(path: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {
        "embeddings": 7 * tiny.TinyFeats(TRUTH.tolist(), noise=0.15).x.numpy() + 2,
        "labels": labels_of(4).numpy(),
        "class_names": np.array(NAMES),
        **changed,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_embeddings__fit_label_evaluate(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "few.npz")
    everything = write_npz(tmp_path / "all.npz", labels=TRUTH.numpy())
    done = lw.fit(data, out=tmp_path / "run", test=everything, method="beliefs", **QUICK)
    assert (done.summary["method"], done.summary["situation"]) == ("beliefs", "few_labels")
    assert done.summary["test"]["accuracy"] > 0.95
    assert "beliefs" in done.report.read_text(encoding="utf-8")
    rows = done.labels.to_pylist()
    assert sum(row["source"] == "given" for row in rows) == 12
    again = lw.label(done.path, data, device="cpu", precision="fp32")
    predicted = [row["source"] == "predicted" for row in rows]
    pairs = [(a, b) for a, b, p in zip(rows, again.to_pylist(), predicted, strict=True) if p]
    assert len(pairs) == 78
    assert all(a["label"] == b["label"] for a, b in pairs)
    assert [a["softmax"] for a, _ in pairs] == pytest.approx([b["softmax"] for _, b in pairs], abs=1e-5)
    # of the run's images the shares of the classes count, too (trust/class_shares.py)
    assert [a["trust"] for a, _ in pairs] == pytest.approx([b["trust"] for _, b in pairs], abs=1e-2)
    scores = lw.evaluate(done.path, everything, device="cpu")
    assert scores["accuracy"] == pytest.approx(done.summary["test"]["accuracy"])
    saved = cast(Any, load_model(done.path / "model", device=tiny.CPU).net)
    assert (saved.head_kind, saved.head.project(torch.ones(1, 16)).shape) == ("lifted", (1, 17))


def test_embeddings__hidden_truth_plays_no_part(tmp_path: Path) -> None:
    """Bit for bit the same model and labels, whatever the column for scoring says."""
    folders = []
    for name, truth in (("right", TRUTH), ("shuffled", TRUTH.flip(0))):
        data = write_npz(tmp_path / "pool.npz", truth=truth.numpy())
        folders.append(lw.fit(data, out=tmp_path / name, method="beliefs", test_frac=0.0, **QUICK).path)
    for name in ("labels.parquet", "model/model.safetensors", "model/config.json", "config.yaml"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    lines = [json.loads((path / "metrics.jsonl").read_text().splitlines()[0]) for path in folders]
    assert lines[0]["class_shares"] == lines[1]["class_shares"]


def test_embeddings__no_label_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs labels"):
        lw.fit(write_npz(tmp_path / "none.npz", labels=None), out=tmp_path / "run", method="beliefs", **QUICK)
    few = write_npz(tmp_path / "few.npz", labels=labels_of(4).masked_fill(TRUTH == 2, -1).numpy())
    with pytest.raises(ConfigError, match="no image is labelled 'owl'"):
        lw.fit(few, out=tmp_path / "run", method="beliefs", **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("views", ["pixels", "embeddings"])
def test_photographs__through_a_pretrained_network(views: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(clip_folders.save_vision(tmp_path / "vit", size_px=16))
    data = write_folders(tmp_path / "data", {"cat": 10, "dog": 10}, size_px=20)
    write_folders(data, {"unlabeled": 6}, size_px=20, seed=3)
    how: Any = {"method": "beliefs", "model": model, "views": views, "refit": False, **QUICK}
    done = lw.fit(data, out=tmp_path / "run", **how)
    again = lw.label(done.path, data / "unlabeled", device="cpu", precision="fp32")
    rows = [row for row in done.labels.to_pylist() if row["source"] == "predicted"]
    assert [row["label"] for row in rows] == again["label"].to_pylist()
    # Trust may differ: in the run an image is compared with others alone, as a new one it is its own neighbour.
    assert np.allclose([row["softmax"] for row in rows], again["softmax"], atol=5e-3)
    with pytest.raises(ConfigError, match="random weights"):
        lw.fit(data, out=tmp_path / "other", method="beliefs", **QUICK)


# ---- the script of its figures --------------------------------------------------------------------------------------


def test_benchmark__runs_as_the_documentation_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    centres = 3 * np.eye(4, 6)
    for name in ("train", "test"):
        labels = np.arange(60) % 4
        np.savez(tmp_path / name, embeddings=centres[labels] + draw.normal(size=(60, 6)), labels=labels)
    arguments = [f"made={tmp_path / 'train.npz'},{tmp_path / 'test.npz'}", "--per-class", "3", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", ["beliefs.py", *arguments])
    runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "beliefs.py"), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| Logistic", "| Beliefs"))]
    assert len(rows) == 7
    assert all(float(row.split("|")[2].split()[0]) > 70 for row in rows)


def test_beliefs__of_many_rows_a_sample_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows beyond it are read twice, at the end; answers stay those of all rows."""
    task = Task(labels_of(3), NAMES)
    whole = run(task)
    monkeypatch.setattr(beliefs, "MOST_ROWS", 40)
    monkeypatch.setattr(beliefs, "ROWS_PER_CLASS", 5)
    held = list[int]()
    kept = beliefs.Projected.__init__

    def noted(self: Any, head: Any, feats_of: Any, rows: Tensor) -> None:
        held.append(len(rows))
        kept(self, head, feats_of, rows)

    monkeypatch.setattr(beliefs.Projected, "__init__", noted)
    part = run(task)
    assert held == [49]  # 40 of 81 unlabelled images, and nine labelled ones
    x = tiny.TinyFeats(TRUTH.tolist(), noise=0.3).batch(torch.arange(90), "clean", seed=0, device=torch.device("cpu"))
    answers = [one.state.nets["main"](x).argmax(1) for one in (whole, part)]
    assert (answers[0] == answers[1]).float().mean() > 0.95
