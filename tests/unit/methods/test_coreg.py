"""Co-Reg: its phases, its starts, what it never touches, and that it resumes in every phase."""

from __future__ import annotations

import dataclasses
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
from labelwright.labels import purify
from labelwright.labels.codivide import read_beliefs
from labelwright.methods import coreg, coreg_settings
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.agreement import Watch
from labelwright.run_folder import Run
from labelwright.train.loop import Trained, train
from labelwright.train.settings import apply_overrides
from labelwright.types import State, Task
from pictures import write_folders

COUNTS = (14, 8, 4)
N = sum(COUNTS)
STORED = pytest.mark.parametrize("stored", [False, True], ids=["pixels", "features"])


def settings_of(**changed: object) -> dict[str, object]:
    return {"epochs": 5, "batch_size": 8, "lr": 0.05, "queue_size": 32, "partial_epochs": 2, **changed}


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


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"epochs": 800}, (50, 60, 16)),
        ({"epochs": 40}, (28, 31, 3)),
        ({"epochs": 30, "partial_epochs": 6}, (6, 12, 6)),
        ({"epochs": 30, "partial_epochs": 0}, (0, 7, 7)),
        ({"epochs": 30, "partial_epochs": 99}, (30, 30, 0)),
        ({"epochs": 1}, (1, 1, 0)),
    ],
    ids=str,
)
def test_phases(changed: dict[str, object], expected: tuple[int, int, int]) -> None:
    phases = (coreg_settings.partial_epochs, coreg_settings.representation_epoch, coreg_settings.ramp_epochs)
    assert tuple(of(config(**changed)) for of in phases) == expected


def test_preset_of_the_paper() -> None:
    cfg = config(**coreg.PRESETS["paper"])
    assert (cfg.epochs, cfg.batch_size, cfg.lr, cfg.weight_decay, cfg.partial_epochs) == (800, 256, 0.01, 5e-4, 50)
    assert (cfg.mixup_alpha, cfg.strong_view, cfg.prior, cfg.entropy_weight) == (4.0, "strong", "uniform", 1.0)
    assert (cfg.temperature, cfg.threshold, cfg.queue_size, cfg.contrastive_rule) == (0.5, 0.5, 8192, "cautious")


@STORED
@pytest.mark.parametrize("strong", ["auto", "strong", "clean"])
def test_plan__views_of_each_phase(stored: bool, strong: str) -> None:
    trained, _ = run(stored=stored)
    task, cfg = tiny.candidate_task_of(COUNTS), config(epochs=10, partial_epochs=3, strong_view=strong)
    warm, divided = (coreg.plan(cfg, task, trained.state, epoch) for epoch in (2, 3))
    weak = ("clean",) if stored else ("weak",) * 2
    learned_on = {"auto": weak, "strong": ("strong",) * 2, "clean": ("clean",)}[strong]
    assert warm.streams["train"].views == weak[:1]
    expected = weak if weak == learned_on == ("clean",) else (*weak, *learned_on)
    assert {stream.views for stream in divided.streams.values()} == {expected}


def test_plan__each_network_visits_what_the_other_trusts_and_what_it_does_not_apart() -> None:
    trained, _ = run(stored=True)
    task, cfg = tiny.candidate_task_of(COUNTS), config(**settings_of())
    streams = coreg.plan(cfg, task, trained.state, 4).streams
    assert set(streams) == {"main_p", "main_u", "peer_p", "peer_u"}
    for name, partner in (("main", "peer"), ("peer", "main")):
        trusted = trained.state.memory["divisions"][partner]["clean"] > 0.5
        assert streams[f"{name}_p"].rows.tolist() == trusted.nonzero().flatten().tolist()
        assert streams[f"{name}_u"].rows.tolist() == (~trusted).nonzero().flatten().tolist()
    assert {stream.batch_size for stream in streams.values()} == {4}
    divisions = {name: {**word, "clean": torch.ones(N)} for name, word in trained.state.memory["divisions"].items()}
    all_trusted = State(trained.state.nets, memory={**trained.state.memory, "divisions": divisions})
    whole = coreg.plan(cfg, task, all_trusted, 4).streams
    assert {name: stream.batch_size for name, stream in whole.items()} == {"main_p": 8, "peer_p": 8}


@STORED
def test_run__terms_come_in_when_they_should(stored: bool) -> None:
    recorded: list[set[str]] = []
    _, views, build = tiny.inputs_of("coreg", COUNTS, stored=stored)

    class Watched(tiny.Recorded):
        def step(self, *args: Any) -> Any:
            result = coreg.step(*args)
            recorded.append({key.removesuffix("_main").removesuffix("_peer") for key in result.logs})
            return result

    cfg = config(**settings_of(epochs=9, partial_epochs=3))
    train(
        Watched(METHODS["coreg"].recipe), cfg, tiny.candidate_task_of(COUNTS), views, build, options=tiny.options_of()
    )
    divided = {"loss_p", "loss_u"}
    late = divided | {"loss_prototypes", "loss_contrastive"}
    expected = [*[{"partial_loss"}] * 3, divided, *[late] * 5]
    assert recorded[::3] == recorded[1::3] == recorded[2::3] == expected


def test_run__ablations_leave_their_terms_out() -> None:
    trained, logs = run(stored=True, prototype_weight=0.0, contrastive_weight=0.0)
    assert set(trained.state.nets) == {"main", "peer"}
    assert "queues" not in trained.state.memory
    assert trained.state.averages == {}
    assert logs[1]["prototype_cosine"] == 0.0


def test_warm_up__a_step_by_hand() -> None:
    task, views, build = tiny.inputs_of("coreg", COUNTS, stored=False)
    cfg = config(**settings_of(entropy_weight=0.25))
    state = coreg.setup(cfg, task, build)
    rows = torch.arange(N)
    batch = coreg.Batch(rows, (views.batch(rows, "clean", seed=0, device=tiny.CPU),), task.labels)
    result = coreg.step(cfg, task, state, {"train": batch}, coreg.Clock(0, 5, 0, 1, 0))
    expected = 0.0
    for name in ("main", "peer"):
        informative, entropy = [], []
        for p, possible in zip(
            state.nets[name](batch.x).double().softmax(1).tolist(), task.possible(rows), strict=True
        ):
            if not possible.all():
                informative.append(-math.log(sum(v for v, is_in in zip(p, possible, strict=True) if is_in) + 1e-5))
            entropy.append(sum(v * math.log(v) for v in p))
        expected += sum(informative) / len(informative) + 0.25 * sum(entropy) / N
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_division__is_aligned_by_the_running_mean_of_batches() -> None:
    trained, _ = run(stored=True, epochs=2, partial_epochs=0, lr=1e-9)  # networks that stay as they are
    task, views, _ = tiny.inputs_of("coreg", COUNTS, stored=True)
    rows = torch.arange(N)
    x = views.batch(rows, "clean", seed=0, device=tiny.CPU)
    for name in ("main", "peer"):
        with torch.no_grad():
            probs = trained.state.nets[name](x).softmax(1)
        mean = purify.mean_of(trained.state.memory["recent"][name])
        found = read_beliefs(trained.state.memory["divisions"][name]["beliefs"], rows, 3)
        aligned = purify.lifted(probs, trained.state.memory["prior"] / mean.clamp(min=purify.RUNNING_MIN))
        unknown = task.labels < 0
        assert torch.allclose(found[unknown], aligned[unknown], atol=1e-5)
        assert float((mean - 1 / 3).abs().max()) > 0.01
    plain, _ = run(stored=True, epochs=2, partial_epochs=0, lr=1e-9, use_alignment=False)
    with torch.no_grad():
        probs = plain.state.nets["main"](x).softmax(1)
    found = read_beliefs(plain.state.memory["divisions"]["main"]["beliefs"], rows, 3)
    assert torch.allclose(found[task.labels < 0], probs[task.labels < 0], atol=1e-5)


# ---- resuming -------------------------------------------------------------------------------------------------------


class CrashError(Exception):
    """Stands for a kill."""


# Three steps an epoch, the first two epochs on the sets alone.
CRASHES = {
    "before anything": ("begin", 1),
    "first steps": ("step", 2),
    "first division": ("end_epoch", 2),
    "divided": ("step", 8),
    "last division": ("end_epoch", 4),
    "late": ("step", 14),
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
    for word in memory["divisions"].values():
        assert set(word) == {"beliefs", "clean", "history"}
        assert word["clean"].dtype == word["beliefs"]["probs"].dtype == torch.float32
        assert word["history"]["means"].shape == (5, N)


# ---- start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prior", "expected"), [("uniform", [1 / 3] * 3), ("auto", None)])
def test_begin__prior(prior: str, expected: list[float] | None) -> None:
    trained, logs = run(stored=False, prior=prior)
    shares = tiny.candidate_task_of(COUNTS).guesses(torch.arange(N)).mean(0).tolist()
    assert trained.state.memory["prior"].tolist() == pytest.approx(expected or shares, abs=1e-5)
    assert logs["begin"]["guessed_frac"] == pytest.approx(shares, abs=1e-5)
    assert logs["begin"]["warnings"] == []


def test_begin__divides_where_there_is_no_warm_up() -> None:
    _, logs = run(stored=False, partial_epochs=0)
    assert {"reliable_frac", "in_set_frac"} <= logs["begin"].keys()
    assert "reliable_frac" not in run(stored=False)[1]["begin"]


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
        {},
        {"networks": "one"},
        {"networks": "apart"},
        {"contrastive_rule": "unsupervised"},
        {"epochs": 1},
        {"partial_epochs": 5},
    ],
    ids=str,
)
def test_run__what_is_saved_says_what_is_predicted(changed: dict[str, object], stored: bool) -> None:
    trained, logs = run(stored=stored, **changed)
    assert finite(trained.state)
    for each in trained.state.nets.values():
        each.eval()
    net: Any = trained.state.nets["main"]
    x = torch.randn(5, tiny.N_FEATURES) if stored else torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        found = coreg.predict(config(**changed), trained.state, x).logits
        assert torch.equal(net.exported()(x), found)
        names = ("main",) if changed.get("networks") == "one" else ("main", "peer")
        assert torch.allclose(found, torch.stack([trained.state.nets[name](x) for name in names]).sum(0))
    last = logs[cast(int, changed.get("epochs", 5)) - 1]
    assert last["deployed"] == ("one" if len(names) == 1 else "sum")
    assert 0 <= last["score_deployed"] <= 1


def test_end__answers_of_both_are_held_against_clusters_where_there_are_any() -> None:
    task = tiny.candidate_task_of(COUNTS)
    truth = torch.tensor(tiny.classes_of(COUNTS))
    trained, logs = run(stored=True, task=dataclasses.replace(task, clusters=truth))
    assert logs["begin"]["annotator_agreement"] == logs[4]["score_guesses"]
    _, views, _ = tiny.inputs_of("coreg", COUNTS, stored=True)
    with torch.no_grad():
        x = views.batch(torch.arange(N), "clean", seed=0, device=tiny.CPU)
        answers = coreg.predict(config(), trained.state, x).logits.argmax(1)
    assert logs[4]["score_deployed"] == pytest.approx(Watch.of_clusters(truth, answers).zero_shot_agreement)
    is_behind = logs[4]["score_deployed"] < logs[4]["score_guesses"]
    assert is_behind == any("worse than its annotator; compare" in said for said in trained.warnings)


def test_run__one_network_is_one() -> None:
    trained, again = (run(stored=True, networks="one")[0] for _ in range(2))
    assert tiny.differing(trained.state, again.state) == []
    assert set(trained.state.nets) == {"main", "main_key"}
    assert set(trained.state.memory["divisions"]) == set(trained.state.memory["queues"]) == {"main"}


def test_run__co_labels_make_a_difference() -> None:
    for stored in (False, True):
        together, apart = (run(stored=stored, networks=how)[0].state for how in ("together", "apart"))
        assert tiny.differing(together, apart)


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
        "networks": "three",
        "partial_epochs": -1,
        "mixup_alpha": -0.5,
        "unlabelled_weight": -1.0,
    }.items():
        with pytest.raises(ConfigError, match=f"{key}={value} is not possible"):
            apply_overrides(coreg.Config(), {key: value})
