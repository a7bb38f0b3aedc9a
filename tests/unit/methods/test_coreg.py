"""Co-Reg: its phases, its starts, what it never touches, and that it resumes in every phase."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import labelwright as lw
import tiny
from labelwright.errors import ConfigError
from labelwright.labels.candidate_beliefs import candidate_beliefs
from labelwright.labels.codivide import read_beliefs
from labelwright.methods import coreg
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.run_folder import Run
from labelwright.train.loop import Trained, train
from labelwright.train.settings import apply_overrides
from labelwright.types import State, Task
from pictures import write_folders

COUNTS = (14, 8, 4)
N = sum(COUNTS)
STORED = pytest.mark.parametrize("stored", [False, True], ids=["pixels", "features"])


def settings_of(**changed: object) -> dict[str, object]:
    return {"epochs": 5, "batch_size": 8, "lr": 0.05, "queue_size": 32, **changed}


def config(**changed: object) -> Any:
    return resolve_config(METHODS["coreg"], changed)


def run(*, stored: bool, task: Task | None = None, seed: int = 0, **changed: object) -> tuple[Trained, Any]:
    """Train on the tiny candidate task or another of its images; what came out, and each epoch's logs."""
    given, views, build = tiny.inputs_of("coreg", COUNTS, stored=stored)
    logs: dict[Any, Mapping[str, Any]] = {}

    class Watched(tiny.Recorded):
        def begin(self, *args: Any) -> Any:
            state, logs["begin"] = coreg.begin(*args)
            return state, logs["begin"]

        def end_epoch(self, *args: Any) -> Any:
            state, logs[args[-1]] = coreg.end_epoch(*args)
            return state, logs[args[-1]]

    cfg = config(**settings_of(**changed))
    recipe = Watched(METHODS["coreg"].recipe)
    return train(recipe, cfg, task or given, views, build, options=tiny.options_of(seed)), logs


def finite(state: State) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tiny.tensors_of(state).values())


# ---- phases ---------------------------------------------------------------------------------------------------------


def state_with(*, is_frozen: bool = False, has_teacher: bool = True) -> State:
    return State({"teacher": torch.nn.Identity()} if has_teacher else {}, memory={"is_frozen": is_frozen})


@pytest.mark.parametrize(
    ("changed", "is_frozen", "expected"),
    [
        ({"epochs": 800}, False, (50, 10, 640)),
        ({"epochs": 30}, False, (10, 5, 24)),
        ({"epochs": 30}, True, (0, 7, 24)),
        ({"epochs": 30, "start": "none"}, True, (10, 5, 24)),
        ({"epochs": 30, "start": "shape"}, False, (0, 7, 24)),
        ({"epochs": 30, "partial_epochs": 6}, True, (6, 6, 24)),
        ({"epochs": 30, "partial_epochs": 99}, False, (30, 0, 24)),
        ({"epochs": 1}, False, (1, 0, 1)),
        ({"epochs": 5, "distil_frac": 0.95}, True, (0, 1, 1)),
    ],
    ids=str,
)
def test_phases(changed: dict[str, object], is_frozen: bool, expected: tuple[int, int, int]) -> None:
    cfg, state = config(**changed), state_with(is_frozen=is_frozen)
    phases = (coreg.partial_epochs, coreg.representation_epoch, coreg.distil_epoch)
    assert tuple(of(cfg, state) for of in phases) == expected
    assert coreg.distil_epoch(cfg, state_with(has_teacher=False)) == cfg.epochs


@STORED
def test_plan__views_of_each_phase(stored: bool) -> None:
    task, _, build = tiny.inputs_of("coreg", COUNTS, stored=stored)
    cfg = config(epochs=10)
    state = coreg.setup(cfg, task, build)
    seen = [coreg.plan(cfg, task, state, epoch).streams["train"].views for epoch in (0, 3, 7, 8)]
    both = ("weak", "weak", "strong", "strong")
    assert seen == ([("clean",)] * 4 if stored else [("weak",), both, both, ("weak",)])
    cfg = config(epochs=10, view="weak", strong_view="clean", partial_epochs=0)
    assert coreg.plan(cfg, task, state, 0).streams["train"].views == ("weak", "weak", "clean")


@STORED
def test_run__terms_come_in_when_they_should(stored: bool) -> None:
    recorded: list[set[str]] = []
    _, views, build = tiny.inputs_of("coreg", COUNTS, stored=stored)

    class Watched(tiny.Recorded):
        def step(self, *args: Any) -> Any:
            result = coreg.step(*args)
            recorded.append({key.removesuffix("_main").removesuffix("_peer") for key in result.logs})
            return result

    cfg = config(**settings_of(epochs=9, representation_after_epochs=1, distil_frac=0.12))
    train(
        Watched(METHODS["coreg"].recipe), cfg, tiny.candidate_task_of(COUNTS), views, build, options=tiny.options_of()
    )
    divided = {"loss_p", "loss_u", "reliable_frac"}
    late = divided | {"loss_prototypes", "loss_contrastive"}
    start = [] if stored else [{"partial_loss"}] * 3
    expected = [*start, divided, *[late] * (8 - len(start) - 1), {"distillation"}]
    assert recorded[::3] == recorded[1::3] == recorded[2::3] == expected


def test_run__ablations_leave_their_terms_out() -> None:
    trained, logs = run(stored=True, prototype_weight=0.0, contrastive_weight=0.0)
    assert set(trained.state.nets) == {"main", "peer", "teacher"}
    assert "queues" not in trained.state.memory
    assert trained.state.averages == {}
    assert logs[0]["prototype_cosine"] == 0.0
    unaligned, _ = run(stored=True, use_alignment=False)
    for word in unaligned.state.memory["divisions"].values():
        assert word["ratio"].tolist() == [1.0] * 3


def test_warm_up__a_step_by_hand() -> None:
    task, views, build = tiny.inputs_of("coreg", COUNTS, stored=False)
    cfg = config(**settings_of(entropy_weight=0.25))
    state = coreg.setup(cfg, task, build)
    rows = torch.arange(N)
    batch = coreg.Batch(rows, (views.batch(rows, "clean", seed=0, device=tiny.CPU),), task.labels)
    result = coreg.step(cfg, task, state, {"train": batch}, coreg.Clock(0, 5, 0, 1, 0))
    expected = 0.0
    for name in ("main", "peer"):
        told, entropy = [], []
        for p, possible in zip(
            state.nets[name](batch.x).double().softmax(1).tolist(), task.possible(rows), strict=True
        ):
            if not possible.all():
                told.append(-math.log(sum(v for v, is_in in zip(p, possible, strict=True) if is_in) + 1e-5))
            entropy.append(sum(v * math.log(v) for v in p))
        expected += sum(told) / len(told) + 0.25 * sum(entropy) / N
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("decay", [0.75, 1.0])
def test_step__targets_are_scaled_by_a_mean_that_moves_with_each_batch(decay: float) -> None:
    trained, _ = run(stored=True)
    task, views, _ = tiny.inputs_of("coreg", COUNTS, stored=True)
    rows = torch.arange(12)
    batch = coreg.Batch(rows, (views.batch(rows, "clean", seed=0, device=tiny.CPU),), task.labels[rows])
    cfg = config(**settings_of(mean_decay=decay))
    before = trained.state.memory["divisions"]
    after = coreg.step(cfg, task, trained.state, {"train": batch}, coreg.Clock(1, 5, 0, 1, 0)).state.memory["divisions"]
    for name in ("main", "peer"):
        with torch.no_grad():
            seen = trained.state.nets[name](batch.x).softmax(1).mean(0)
        assert torch.allclose(after[name]["mean"], decay * before[name]["mean"] + (1 - decay) * seen, atol=1e-6)
        assert float((seen - before[name]["mean"]).abs().max()) > 0.01  # there was somewhere to move to
    assert float(before["main"]["mean"].sum()) == pytest.approx(1.0)


# ---- resuming -------------------------------------------------------------------------------------------------------


class CrashError(Exception):
    """Stands for a kill."""


# Three steps an epoch. From pixels the sets last two epochs; from features there is a division before the first step.
CRASHES = {
    "before anything": ("begin", 1),
    "first steps": ("step", 2),
    "first division from pixels": ("end_epoch", 2),
    "divided": ("step", 8),
    "last division": ("end_epoch", 4),
    "distilling": ("step", 14),
    "at the very end": ("end_epoch", 5),
}


@functools.cache
def uninterrupted(stored: bool) -> tuple[Trained, list[float]]:
    return tiny.run_method("coreg", COUNTS, settings=settings_of(), stored=stored)


@STORED
@pytest.mark.parametrize("crash", CRASHES)
def test_resume__bit_for_bit(crash: str, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, trace = uninterrupted(stored)
    where, at = CRASHES[crash]
    recipe, calls = cast(ModuleType, METHODS["coreg"].recipe), []
    inner = getattr(recipe, where)

    def crashing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise CrashError
        return inner(*args)

    again = {"settings": settings_of(), "stored": stored, "checkpoint_minutes": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(recipe, where, crashing)
        with pytest.raises(CrashError):
            tiny.run_method("coreg", COUNTS, run=Run.create(tmp_path), **again)  # type: ignore[arg-type]
    folder = Run(tmp_path)
    resumed, rest = tiny.run_method("coreg", COUNTS, run=folder, **again)  # type: ignore[arg-type]
    folder.close()
    assert tiny.differing(whole.state, resumed.state) == []
    assert trace[len(trace) - len(rest) :] == rest
    assert len(rest) == {"begin": 15, "step": 16 - at, "end_epoch": 15 - 3 * at}[where]


@STORED
def test_memory__is_plain_and_in_its_types(stored: bool) -> None:
    trained, _ = run(stored=stored)

    def walk(tree: Any) -> None:
        if isinstance(tree, Mapping):
            assert all(isinstance(key, str) for key in tree)
            for value in tree.values():
                walk(value)
        else:
            assert isinstance(tree, (Tensor, int, float, bool))
            assert not (isinstance(tree, Tensor) and (tree.requires_grad or tree.dtype == torch.float64))

    walk(trained.state.memory)
    memory = trained.state.memory
    assert ("watch" in memory) == stored
    for word in memory["divisions"].values():
        assert set(word) == {"beliefs", "clean", "ratio", "mean", "history"}
        assert word["clean"].dtype == word["beliefs"]["probs"].dtype == torch.float32
        assert word["history"]["losses"].shape == (N, 5)


# ---- starts ---------------------------------------------------------------------------------------------------------


def test_begin__networks_start_from_gaussians_of_their_own() -> None:
    task, views, build = tiny.inputs_of("coreg", COUNTS, stored=True)
    cfg: Any = config(**settings_of(start_strength=0.3))
    state = coreg.setup(cfg, task, build)

    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Any:
        x = views.batch(rows, "clean", seed=0, device=tiny.CPU)
        with torch.no_grad():
            yield rows, x if output == "feats" else state.nets[net](x)

    state, logs = coreg.begin(cfg, task, state, passes)
    heads = {name: cast(Any, state.nets[name]).classifier.head.linear for name in ("main", "peer")}
    assert not torch.equal(heads["main"].weight, heads["peer"].weight)
    x = views.batch(torch.arange(N), "clean", seed=0, device=tiny.CPU)
    whole = candidate_beliefs(x.half(), task)
    expected = 0.3 * (x @ whole.beliefs.weight.T + whole.beliefs.bias)
    for head in heads.values():
        assert torch.nn.functional.cosine_similarity(head(x).flatten(), expected.flatten(), dim=0) > 0.9
    assert torch.allclose(state.memory["prior"], whole.beliefs.prior, atol=1e-5)
    assert torch.equal(state.memory["miss"], whole.miss)
    assert logs["class_names"] == ["class 0", "class 1", "class 2"]
    assert sum(logs["prior"]) == pytest.approx(1, abs=1e-4)
    assert {"reliable_frac", "in_set_frac", "annotator_agreement", "miss", "guessed_frac"} <= logs.keys()
    assert set(state.memory["divisions"]) == {"main", "peer"}
    assert "beliefs" in state.memory["divisions"]["peer"]


def test_begin__one_network_is_fitted_to_all_images() -> None:
    fitted, _ = run(stored=True, n_networks=1, epochs=1, lr=1e-12)
    task, views, _ = tiny.inputs_of("coreg", COUNTS, stored=True)
    whole = candidate_beliefs(views.batch(torch.arange(N), "clean", seed=0, device=tiny.CPU).half(), task)
    weight = cast(Any, fitted.state.nets["main"]).classifier.head.linear.weight
    assert torch.allclose(weight, 0.15 * whole.beliefs.weight, atol=1e-4)


def test_begin__shape_from_pixels() -> None:
    trained, logs = run(stored=False, start="shape")
    assert finite(trained.state)
    assert logs["begin"]["reliable_frac"] > 0
    assert "watch" in trained.state.memory


@pytest.mark.parametrize(("prior", "expected"), [("uniform", [1 / 3] * 3), ("auto", None)])
def test_begin__prior_from_pixels(prior: str, expected: list[float] | None) -> None:
    trained, logs = run(stored=False, prior=prior)
    shares = tiny.candidate_task_of(COUNTS).guesses(torch.arange(N)).mean(0).tolist()
    assert trained.state.memory["prior"].tolist() == pytest.approx(expected or shares, abs=1e-5)
    assert trained.state.memory["is_prior_known"] == (prior == "uniform")
    assert logs["begin"]["guessed_frac"] == pytest.approx(shares, abs=1e-5)
    assert logs["begin"]["warnings"] == []


def task_guessed_as(counts: tuple[int, ...], rename: dict[int, int]) -> tuple[Task, tiny.TinyFeats]:
    """One guess an image, the truth but for classes that are taken for others."""
    truth = torch.tensor(tiny.classes_of(counts))
    guessed = torch.tensor([rename.get(c, c) for c in truth.tolist()])
    names = tuple(f"class {c}" for c in range(len(counts)))
    task = Task(torch.full_like(truth, -1), names, tiny.sets_of(F.one_hot(guessed, len(counts)).bool()))
    return task, tiny.TinyFeats(truth.tolist(), noise=0.1)


def fitted_on(task: Task, views: Any, **changed: object) -> tuple[Trained, float]:
    """The run, and how often it answers the class that the features were made of."""
    cfg = config(**settings_of(epochs=8, batch_size=16, **changed))
    trained = train(METHODS["coreg"].recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of())
    with torch.no_grad():
        predicted = coreg.predict(cfg, trained.state, views.x).logits.argmax(1)
    nearest = (views.x @ tiny.centres_of(task.n_classes).T).argmax(1)
    return trained, float((predicted == nearest).float().mean())


def test_run__a_class_that_is_never_guessed_gets_its_images() -> None:
    task, views = task_guessed_as((30, 30, 30, 30), {3: 0})
    trained, accuracy = fitted_on(task, views)
    assert trained.state.memory["prior"].tolist() == [0.25] * 4
    assert trained.state.memory["is_prior_known"]
    (said,) = [w for w in trained.warnings if "hardly ever name" in w]
    assert "class 3: they are given the images that fit no other class" in said
    assert accuracy > 0.95  # the guesses are right on three quarters


def test_run__a_rare_class_is_not() -> None:
    task, views = task_guessed_as((80, 40, 15, 2), {})
    trained, accuracy = fitted_on(task, views)
    assert not trained.state.memory["is_prior_known"]
    assert trained.state.memory["prior"].tolist() == pytest.approx([80 / 137, 40 / 137, 15 / 137, 2 / 137], abs=0.02)
    (said,) = [w for w in trained.warnings if "hardly ever name" in w]
    assert "class 3: which images are theirs, if there are any, cannot be known" in said
    assert accuracy > 0.95


def test_run__guesses_that_are_right_give_no_such_warning() -> None:
    task, views = task_guessed_as((30, 30, 30), {})
    trained, accuracy = fitted_on(task, views)
    assert not [w for w in trained.warnings if "hardly ever name" in w or "worse than their annotator" in w]
    assert accuracy > 0.95


# ---- what it never touches ------------------------------------------------------------------------------------------


@STORED
def test_run__verified_labels_never_move(stored: bool) -> None:
    trained, _ = run(stored=stored)
    task = tiny.candidate_task_of(COUNTS)
    known = task.labels >= 0
    for word in trained.state.memory["divisions"].values():
        beliefs = read_beliefs(word["beliefs"], torch.arange(N), 3)
        assert torch.equal(beliefs[known], F.one_hot(task.labels[known], 3).float())
        assert (word["clean"][known] == 1).all()
        assert (word["clean"][~known] < 1).any()


def test_fit__verified_labels_stand_in_the_label_table(tmp_path: Path) -> None:
    # Every third image has a label that is wrong, and outside of its set.
    rows = ["image,label,candidates"]
    names = ["ant", "bee", "cow"]
    for folder in names:
        write_folders(tmp_path / "photos", {folder: 8}, seed=names.index(folder))
        for i in range(8):
            label = names[names.index(folder) - 1] if i % 3 == 0 else ""
            rows.append(f"{tmp_path / 'photos' / folder / f'{i}.png'},{label},{folder}")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    how: dict[str, Any] = {"device": "cpu", "precision": "fp32", "evaluations": 0, "test_frac": 0.0, "size": 8}
    done = lw.fit(table, out=tmp_path / "run", method="coreg", classes=names, epochs=3, **how)
    found = {row["id"]: row for row in done.labels.to_pylist()}
    for line in rows[1:]:
        path, label, _ = line.split(",")
        (row,) = [row for key, row in found.items() if path.endswith(key)]
        assert (row["source"] == "given") == bool(label)
        assert not label or row["label"] == label
    assert len(found) == 24


@STORED
@pytest.mark.parametrize("case", ["all verified", "a class that no set has", "all sets full", "empty but for one"])
def test_run__sets_at_their_limits(case: str, stored: bool) -> None:
    truth = torch.tensor(tiny.classes_of(COUNTS))
    mask, labels = F.one_hot(truth, 3).bool(), torch.full((N,), -1)
    if case == "all verified":
        labels = truth
    elif case == "a class that no set has":
        mask[truth == 2] = torch.tensor([True, True, False])
    elif case == "all sets full":
        mask[:], labels[::9] = True, truth[::9]
    else:
        mask[1:] = False
    task = Task(labels, ("a", "b", "c"), tiny.sets_of(mask))
    trained, _ = run(stored=stored, task=task)
    assert finite(trained.state)
    word = trained.state.memory["divisions"]["main"]
    if case == "all verified":
        assert (word["clean"] == 1).all()
        assert not [said for said in trained.warnings if "label collapse" in said]
    if case in ("all sets full", "empty but for one"):
        assert word["clean"].gt(0).sum() == (3 if case == "all sets full" else 1)


@STORED
@pytest.mark.parametrize("counts", [(9,), (1, 0, 1, 0, 0), (1, 1)], ids=str)
def test_run__one_class_or_fewer_images_than_classes(counts: tuple[int, ...], stored: bool) -> None:
    trained, losses = tiny.run_method("coreg", counts, settings=settings_of(), stored=stored)
    assert torch.tensor(losses).isfinite().all()
    assert finite(trained.state)


# ---- networks -------------------------------------------------------------------------------------------------------


@STORED
@pytest.mark.parametrize(
    "changed",
    [
        {"n_networks": 1},
        {"use_co_labels": False},
        {"deploy": "better"},
        {"deploy": "average"},
        {"deploy": "distil"},
        {"keep": 2},
        {"rule": "unsupervised"},
        {"epochs": 1},
        {"partial_epochs": 5},
    ],
    ids=str,
)
def test_run__what_is_saved_says_what_is_predicted(changed: dict[str, object], stored: bool) -> None:
    if not stored and changed.get("deploy") == "average":  # networks that start apart have no average
        with pytest.raises(ConfigError, match="deploy=average is not possible"):
            run(stored=stored, **changed)
        return
    trained, logs = run(stored=stored, **changed)
    assert finite(trained.state)
    net: Any = trained.state.nets["main"].eval()
    x = torch.randn(5, tiny.N_FEATURES) if stored else torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        found = coreg.predict(config(), trained.state, x)
        assert torch.equal(net.exported()(x), found.logits)
    last = logs[cast(int, changed.get("epochs", 5)) - 1]
    nothing_distilled = changed.get("epochs") == 1 or changed.get("partial_epochs") == 5
    wanted = changed.get("deploy", "better" if "n_networks" in changed or nothing_distilled else "distil")
    assert last["deployed"] == wanted
    assert 0 <= last["score_deployed"] <= 1


def test_run__one_network_is_one() -> None:
    trained, again = (run(stored=True, n_networks=1)[0] for _ in range(2))
    assert tiny.differing(trained.state, again.state) == []
    assert set(trained.state.nets) == {"main", "main_key"}
    assert set(trained.state.memory["divisions"]) == set(trained.state.memory["queues"]) == {"main"}


def test_run__co_labels_make_a_difference() -> None:
    for stored in (False, True):
        together, apart = (run(stored=stored, use_co_labels=on)[0].state for on in (True, False))
        assert tiny.differing(together, apart)


@pytest.mark.parametrize("partial_epochs", [0, 4])
def test_run__teacher_is_the_trained_network(partial_epochs: int) -> None:
    # With a fifth of ten epochs for it, and line 1 until epoch 4 or 9.
    mains: dict[int, dict[str, Tensor]] = {}
    _, views, build = tiny.inputs_of("coreg", COUNTS, stored=True)

    class Watched(tiny.Recorded):
        def end_epoch(self, *args: Any) -> Any:
            result = coreg.end_epoch(*args)
            mains[args[-1]] = {key: value.clone() for key, value in result[0].nets["main"].state_dict().items()}
            return result

    for own, begins in ((partial_epochs, 8), (9, 9)):
        cfg = config(**settings_of(epochs=10, partial_epochs=own))
        recipe = Watched(METHODS["coreg"].recipe)
        task = tiny.candidate_task_of(COUNTS)
        state = train(recipe, cfg, task, views, build, options=tiny.options_of()).state
        teacher = state.nets["teacher"].state_dict()
        assert all(torch.equal(value, mains[begins - 1][key]) for key, value in teacher.items())
        assert any(not torch.equal(value, mains[9][key]) for key, value in teacher.items())
        assert not any(p.requires_grad for p in state.nets["teacher"].parameters())


def test_run__keys_start_each_epoch_from_the_queries() -> None:
    gaps: list[float] = []
    _, views, build = tiny.inputs_of("coreg", COUNTS, stored=True)

    class Watched(tiny.Recorded):
        def step(self, *args: Any) -> Any:
            nets = args[2].nets
            pairs = zip(nets["peer"].parameters(), nets["peer_key"].parameters(), strict=True)
            gaps.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
            return coreg.step(*args)

    cfg = config(**settings_of(epochs=5, partial_epochs=0))
    task = tiny.candidate_task_of(COUNTS)
    train(Watched(METHODS["coreg"].recipe), cfg, task, views, build, options=tiny.options_of())
    assert [gap == 0 for gap in gaps[3:12:3]] == [True] * 3
    assert min(gaps[4], gaps[5], gaps[7], gaps[8]) > 1e-5


def test_config__refused() -> None:
    for key, value in {
        "threshold": 1.0,
        "temperature": 0.0,
        "queue_size": 0,
        "keep": 0,
        "n_networks": 3,
        "distil_frac": 1.0,
        "key_decay": 1.1,
        "partial_epochs": -1,
        "mixup_alpha": -0.5,
        "unlabelled_weight": -1.0,
    }.items():
        with pytest.raises(ConfigError, match=f"{key}={value} is not possible"):
            apply_overrides(coreg.Config(), {key: value})
    assert apply_overrides(coreg.Config(), {"n_networks": "1"}).n_networks == 1  # as a command line gives it
    for by in ("average", "distil"):
        with pytest.raises(ConfigError, match=f"deploy={by} is not possible"):
            apply_overrides(coreg.Config(), {"n_networks": 1, "deploy": by})
