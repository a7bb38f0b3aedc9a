"""Co-Reg on frozen features: its start, its step, when it stops, what it keeps, and that it resumes anywhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from labelwright.errors import ConfigError
from labelwright.labels.candidate_beliefs import candidate_beliefs
from labelwright.labels.codivide import read_beliefs
from labelwright.methods import coreg_frozen
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.agreement import Watch
from labelwright.run_folder import Run
from labelwright.train.loop import Trained, train
from labelwright.types import Batch, Clock, Concepts, State, Task

COUNTS = (14, 8, 4)
N = sum(COUNTS)
MOVING: dict[str, object] = {"epochs": 5, "batch_size": 8, "lr": 0.3}  # the answers move until the end


def config(**changed: object) -> Any:
    return resolve_config(METHODS["coreg_frozen"], {**MOVING, **changed})


def run(
    task: Task | None = None, views: tiny.TinyFeats | None = None, **changed: object
) -> tuple[Trained, dict[Any, Mapping[str, Any]]]:
    """Train on the tiny candidate task or another; what came out, and the logs of the start and of each epoch."""
    given, own_views, build = tiny.inputs_of("coreg_frozen", COUNTS)
    logs: dict[Any, Mapping[str, Any]] = {}

    class Watched(tiny.Recorded):
        def begin(self, *args: Any) -> Any:
            state, logs["begin"] = coreg_frozen.begin(*args)
            return state, logs["begin"]

        def end_epoch(self, *args: Any) -> Any:
            state, logs[args[-1]] = coreg_frozen.end_epoch(*args)
            return state, logs[args[-1]]

    recipe = Watched(METHODS["coreg_frozen"].recipe)
    options = tiny.options_of()
    return train(recipe, config(**changed), task or given, views or own_views, build, options=options), logs


def finite(state: State) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tiny.tensors_of(state).values())


# ---- start and step -------------------------------------------------------------------------------------------------


def test_setup__a_backbone_that_is_trained_is_refused() -> None:
    task = tiny.candidate_task_of(COUNTS)
    with pytest.raises(ConfigError, match="this backbone is trained") as caught:
        coreg_frozen.setup(config(), task, tiny.BuildTiny())
    assert "--method coreg" in caught.value.fix


def test_begin__the_head_is_the_linear_part_of_the_gaussians() -> None:
    trained, logs = run(epochs=1, lr=1e-12)
    task, views, _ = tiny.inputs_of("coreg_frozen", COUNTS)
    x = views.batch(torch.arange(N), "clean", seed=0, device=tiny.CPU)
    whole = candidate_beliefs(x.half(), task)
    with torch.no_grad():
        found = trained.state.nets["main"](x)
    expected = coreg_frozen.START_STRENGTH * (x @ whole.beliefs.weight.T + whole.beliefs.bias)
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(trained.state.memory["miss"], whole.miss)
    assert sum(logs["begin"]["prior"]) == pytest.approx(1, abs=1e-4)
    assert sum(logs["begin"]["guessed_frac"]) == pytest.approx(1, abs=1e-4)
    assert {"reliable_frac", "in_set_frac", "annotator_agreement", "miss", "class_names"} <= logs["begin"].keys()


def test_step__by_hand() -> None:
    task, views, _ = tiny.inputs_of("coreg_frozen", COUNTS)
    cfg = config()
    state = run(epochs=2)[0].state
    division = state.memory["division"]
    is_reliable = division["clean"] > 0.5
    assert 0 < int(is_reliable.sum()) < N
    rows = torch.arange(N)
    batch = Batch(rows, (views.batch(rows, "clean", seed=0, device=tiny.CPU),), task.labels)
    result = coreg_frozen.step(cfg, task, state, {"train": batch}, Clock(2, 5, 0, 1, 0))
    beliefs = read_beliefs(division["beliefs"], rows, 3).double().tolist()
    with torch.no_grad():
        logits = state.nets["main"](batch.x).double()
    on_p, on_u = [], []
    for p, a, w in zip(logits.softmax(1).tolist(), beliefs, division["clean"].double().tolist(), strict=True):
        mixed = [w * theirs + (1 - w) * own for theirs, own in zip(a, p, strict=True)] if w > 0.5 else p
        target = [value**2 / sum(v**2 for v in mixed) for value in mixed]
        if w > 0.5:
            on_p.append(-sum(t * math.log(own) for t, own in zip(target, p, strict=True)))
        else:
            on_u.append(sum((own - t) ** 2 for t, own in zip(target, p, strict=True)) / 3)
    expected = sum(on_p) / len(on_p) + sum(on_u) / len(on_u)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in state.nets["main"].parameters())


def test_run__without_alignment_nothing_is_scaled() -> None:
    assert run(use_alignment=False)[0].state.memory["division"]["ratio"].tolist() == [1.0] * 3
    assert run()[0].state.memory["division"]["ratio"].tolist() != [1.0] * 3


# ---- classes that the guesses hardly ever name ----------------------------------------------------------------------


def guessed_as(counts: tuple[int, ...], rename: dict[int, int]) -> tuple[Task, tiny.TinyFeats]:
    """One guess an image, the truth but for classes that are taken for others."""
    truth = torch.tensor(tiny.classes_of(counts))
    guessed = torch.tensor([rename.get(c, c) for c in truth.tolist()])
    names = tuple(f"class {c}" for c in range(len(counts)))
    task = Task(torch.full_like(truth, -1), names, tiny.sets_of(F.one_hot(guessed, len(counts)).bool()))
    return task, tiny.TinyFeats(truth.tolist(), noise=0.1)


def fitted_on(task: Task, views: tiny.TinyFeats) -> tuple[Trained, Tensor, Tensor]:
    """The run, its answers, and the classes that the features were made of."""
    trained, _ = run(task, views, epochs=8, batch_size=16, lr=0.05)
    with torch.no_grad():
        predicted = coreg_frozen.predict(config(), trained.state, views.x).logits.argmax(1)
    return trained, predicted, (views.x @ tiny.centres_of(task.n_classes).T).argmax(1)


def test_run__a_class_that_is_never_guessed_gets_its_images() -> None:
    trained, predicted, nearest = fitted_on(*guessed_as((30, 30, 30, 30), {3: 0}))
    assert trained.state.memory["prior"].tolist() == [0.25] * 4
    assert trained.state.memory["is_prior_known"]
    (reported,) = [w for w in trained.warnings if "hardly ever name" in w]
    assert "class 3: they are given the images that fit no other class" in reported
    # Two groups of images are guessed to be class 0; which of them is class 3, no guess can say.
    if int(predicted[nearest == 0].mode().values) == 3:
        predicted = torch.tensor([3, 1, 2, 0])[predicted]
    assert (predicted == nearest).float().mean() > 0.95


def test_run__a_rare_class_is_not() -> None:
    trained, predicted, nearest = fitted_on(*guessed_as((80, 40, 15, 2), {}))
    assert not trained.state.memory["is_prior_known"]
    assert trained.state.memory["prior"].tolist() == pytest.approx([80 / 137, 40 / 137, 15 / 137, 2 / 137], abs=0.02)
    (reported,) = [w for w in trained.warnings if "hardly ever name" in w]
    assert "class 3: which images are theirs, if there are any, cannot be known" in reported
    assert (predicted == nearest).float().mean() > 0.95


def test_run__guesses_that_are_right_give_no_such_warning() -> None:
    trained, predicted, nearest = fitted_on(*guessed_as((30, 30, 30), {}))
    assert not [w for w in trained.warnings if "hardly ever name" in w or "worse than its annotator" in w]
    assert (predicted == nearest).float().mean() > 0.95


# ---- when it stops --------------------------------------------------------------------------------------------------


def test_run__stops_when_the_answers_stand_still() -> None:
    trained, logs = run(epochs=6, lr=1e-9, schedule="constant")
    assert [(epoch, logs[epoch]["moved_frac"], logs[epoch]["stop"]) for epoch in logs if epoch != "begin"] == [
        (0, 0.0, False),
        (1, 0.0, True),  # and there is no third epoch
    ]
    assert logs[1]["deployed"] == "one"
    short, _ = run(epochs=2, lr=1e-9, schedule="constant")
    assert tiny.differing(trained.state, short.state) == []


def test_run__warns_with_settings_that_it_has() -> None:
    truth = torch.tensor(tiny.classes_of(COUNTS))
    task = Task(torch.full((N,), -1), ("a", "b", "c"), tiny.sets_of(F.one_hot(truth, 3).bool()))
    trained, _ = run(task, tiny.TinyFeats(truth.tolist(), noise=0.0))
    said = [warning for warning in trained.warnings if "label collapse" in warning]
    assert said
    assert all("guess_strength" in warning and "partial_epochs" not in warning for warning in said)


def test_run__goes_on_while_they_move() -> None:
    _, logs = run()
    assert all(logs[epoch]["moved_frac"] >= coreg_frozen.MOVED_FRAC for epoch in range(3))
    assert ["deployed" in logs[epoch] for epoch in range(5)] == [False] * 4 + [True]
    assert not any(logs[epoch]["stop"] for epoch in range(5))


# ---- what it keeps --------------------------------------------------------------------------------------------------

TRUTH = torch.tensor(tiny.classes_of((20, 20, 20)))
X = tiny.TinyFeats(TRUTH.tolist()).x
CONCEPTS = Concepts(tiny.centres_of(3), tiny.LOGIT_SCALE)
RIGHT, MERGED = [0, 1, 2], [0, 0, 2]


def a_task(*, concepts: Concepts | None = None, n_novel: int = 0) -> Task:
    sets = tiny.sets_of(F.one_hot(TRUTH, 3).bool())
    return Task(torch.full((60,), -1), ("a", "b", "c")[: 3 - n_novel], sets, n_novel, concepts=concepts)


def ended(task: Task, answers: list[int], of_guesses: float) -> tuple[State, dict[str, Any]]:
    """The last epoch of a head that says ``answers[c]`` for class c; the guesses agreed so with the clusters."""
    cfg = config(epochs=1)
    state = coreg_frozen.setup(cfg, task, tiny.BuildHead())
    weight = torch.zeros(3, tiny.N_FEATURES).index_add_(0, torch.tensor(answers), 10 * tiny.centres_of(3))
    coreg_frozen.put_in(state.nets["main"], weight, torch.zeros(3))
    clusters = Watch.start(X, 3, TRUTH)
    watch = Watch(clusters.rows, clusters.clusters, of_guesses).to_dict()
    own = {"watch": watch, "prior": torch.full((3,), 1 / 3), "miss": torch.full((3,), 0.1), "is_prior_known": True}
    state = State(state.nets, memory={**state.memory, **own})

    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            for some in rows.split(13):
                yield some, state.nets[net](X[some])

    state, logs = coreg_frozen.end_epoch(cfg, task, state, passes, 0)
    return state, dict(logs)


@pytest.mark.parametrize("of_guesses", [0.5, 1.0])
def test_end__a_head_that_agrees_as_much_is_kept(of_guesses: float) -> None:
    _, logs = ended(a_task(concepts=CONCEPTS), RIGHT, of_guesses)
    assert logs["score_deployed"] == pytest.approx(1.0)
    assert (logs["deployed"], logs["score_guesses"], logs["warnings"]) == ("one", of_guesses, [])


def test_end__the_annotator_comes_back_where_the_head_agrees_less() -> None:
    state, logs = ended(a_task(concepts=CONCEPTS), MERGED, 0.999)
    assert logs["deployed"] == "annotator"
    (reported,) = logs["warnings"]
    assert "the annotator's own classifier is kept instead" in reported
    assert f"({logs['score_deployed']:.3f}) than the guesses it learned from (0.999)" in reported
    net: Any = state.nets["main"]
    with torch.no_grad():
        assert torch.allclose(net(X), tiny.LOGIT_SCALE * X @ tiny.centres_of(3).T, atol=1e-5)
        assert torch.equal(net(X), net.exported()(X))


@pytest.mark.parametrize("case", ["no words", "novel classes"])
def test_end__says_so_where_it_cannot(case: str) -> None:
    concepts = None if case == "no words" else Concepts(tiny.centres_of(3)[:2], tiny.LOGIT_SCALE)
    state, logs = ended(a_task(concepts=concepts, n_novel=int(case == "novel classes")), MERGED, 0.999)
    assert logs["deployed"] == "one"
    assert "compare before you use it" in logs["warnings"][0]
    with torch.no_grad():
        assert set(state.nets["main"](X).argmax(1).tolist()) == {0, 2}


def test_end__says_which_first_guesses_the_head_contradicts() -> None:
    _, logs = ended(a_task(), MERGED, 0.0)
    assert logs["overturned_frac"] == pytest.approx(1 / 3)
    (reported,) = logs["warnings"]
    assert "33% of the images, most where it was b (20 guesses, 0 answers), most where it becomes a (" in reported


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_run__verified_labels_never_move() -> None:
    task, word = tiny.candidate_task_of(COUNTS), run()[0].state.memory["division"]
    known = task.labels >= 0
    beliefs = read_beliefs(word["beliefs"], torch.arange(N), 3)
    assert torch.equal(beliefs[known], F.one_hot(task.labels[known], 3).float())
    assert (word["clean"][known] == 1).all()
    assert (word["clean"][~known] < 1).any()


@pytest.mark.parametrize("case", ["all verified", "a class that no set has", "all sets full", "empty but for one"])
def test_run__sets_at_their_limits(case: str) -> None:
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
    trained, _ = run(Task(labels, ("a", "b", "c"), tiny.sets_of(mask)))
    assert finite(trained.state)
    word = trained.state.memory["division"]
    if case == "all verified":
        assert (word["clean"] == 1).all()
        assert not [said for said in trained.warnings if "label collapse" in said]
    if case in ("all sets full", "empty but for one"):
        assert word["clean"].gt(0).sum() == (3 if case == "all sets full" else 1)


@pytest.mark.parametrize("counts", [(9,), (1, 0, 1, 0, 0), (1, 1)], ids=str)
def test_run__one_class_or_fewer_images_than_classes(counts: tuple[int, ...]) -> None:
    trained, losses = tiny.run_method("coreg_frozen", counts, settings=MOVING)
    assert torch.tensor(losses).isfinite().all()
    assert finite(trained.state)


def test_config__refused() -> None:
    with pytest.raises(ConfigError, match=r"guess_strength=-1\.0 is not possible"):
        config(guess_strength=-1.0)


# ---- resuming -------------------------------------------------------------------------------------------------------


class CrashError(Exception):
    """Stands for a kill."""


CRASHES = {"before anything": ("begin", 1), "first steps": ("step", 2), "later": ("step", 8), "end": ("end_epoch", 5)}


@functools.cache
def uninterrupted(lr: float) -> tuple[Trained, list[float]]:
    return tiny.run_method("coreg_frozen", COUNTS, settings={**MOVING, "lr": lr})


@pytest.mark.parametrize("lr", [0.3, 1e-9], ids=["moves", "stands still"])
@pytest.mark.parametrize("crash", CRASHES)
def test_resume__bit_for_bit(crash: str, lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, trace = uninterrupted(lr)
    if crash == "later" and lr < 0.1:
        pytest.skip("it has stopped by then")
    where, at = CRASHES[crash]
    at = 2 if crash == "end" and lr < 0.1 else at
    recipe, calls = cast(ModuleType, METHODS["coreg_frozen"].recipe), []
    inner = getattr(recipe, where)

    def crashing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise CrashError
        return inner(*args)

    again = {"settings": {**MOVING, "lr": lr}, "checkpoint_minutes": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(recipe, where, crashing)
        with pytest.raises(CrashError):
            tiny.run_method("coreg_frozen", COUNTS, run=Run.create(tmp_path), **again)  # type: ignore[arg-type]
    folder = Run(tmp_path)
    resumed, rest = tiny.run_method("coreg_frozen", COUNTS, run=folder, **again)  # type: ignore[arg-type]
    folder.close()
    assert tiny.differing(whole.state, resumed.state) == []
    assert trace[len(trace) - len(rest) :] == rest


def test_memory__is_plain_and_in_its_types() -> None:
    def walk(tree: Any) -> None:
        if isinstance(tree, Mapping):
            assert all(isinstance(key, str) for key in tree)
            for value in tree.values():
                walk(value)
        else:
            assert isinstance(tree, (Tensor, int, float, bool))
            assert not (isinstance(tree, Tensor) and (tree.requires_grad or tree.dtype == torch.float64))

    walk(run()[0].state.memory)
