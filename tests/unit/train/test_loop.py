import copy
import dataclasses
import itertools
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import tiny
import two_nets
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.methods import cvs
from labelwright.methods.recipe import Recipe as PlainRecipe
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.run_folder import Run
from labelwright.train import checkpoint, loop
from labelwright.train.loop import Trained, TrainingError, train
from labelwright.train.plans import rows_of_step
from labelwright.train.settings import TrainSettings
from labelwright.types import Recipe, State, StepResult, Stream, Task

COUNTS = (12, 8, 4)
N_UNLABELLED = 16
CFG = two_nets.Config(epochs=4, lr=0.05, sam_radius=0.05, warmup_epochs=0.0)


class CrashError(Exception):
    """Stands for a kill: nothing after it runs."""


@dataclasses.dataclass
class Watched:
    """two_nets, crashing before a given call of step or end_epoch, and noting nets as each step finds them."""

    crash_at: tuple[str, int] | None = None
    seen: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    calls: dict[str, int] = dataclasses.field(default_factory=lambda: {"step": 0, "end_epoch": 0})

    def __getattr__(self, name: str) -> Any:
        return getattr(two_nets, name)

    def count(self, name: str) -> None:
        if self.crash_at == (name, self.calls[name]):
            raise CrashError
        self.calls[name] += 1

    def step(self, cfg: Any, task: Task, state: State, *rest: Any) -> StepResult:
        self.count("step")
        weights = {f"{n}.{k}": v.clone() for n, net in state.nets.items() for k, v in net.state_dict().items()}
        self.seen.append(weights)
        return two_nets.step(cfg, task, state, *rest)

    def end_epoch(self, *args: Any) -> Any:
        self.count("end_epoch")
        return two_nets.end_epoch(*args)


def run_two_nets(recipe: object = two_nets, *, run: Run | None = None, seed: int = 0) -> Trained:
    views = tiny.TinyViews([*tiny.classes_of(COUNTS), *[0, 1, 2, 1] * (N_UNLABELLED // 4)])
    task = tiny.task_of(COUNTS, n_unlabelled=N_UNLABELLED)
    options = tiny.options_of(seed, checkpoint_minutes=0.0)
    return train(cast(Recipe, recipe), CFG, task, views, tiny.BuildTiny(), options=options, run=run)


def epoch_records(run: Run) -> list[dict[str, Any]]:
    """What metrics.jsonl says of the epochs, but for how fast they went."""
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records if r["kind"] == "epoch"]


# ---- a recipe with everything the methods need ----------------------------------------------------------------------


def test_two_nets__memories_are_what_the_recipe_says(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    state = run_two_nets(run=run).state
    run.close()
    assert [r["n_main"] for r in epoch_records(run)] == [30, 36, 40, 40]  # 24 labelled, 6 more each epoch, of 40
    assert sorted(state.memory["main_set"].tolist()) == list(range(40))
    n_pushed = 2 * (5 + 6 + 7)  # two keys a step once warm-up is over
    assert state.memory["n_pushed"] == n_pushed
    assert (state.memory["queue"].abs().sum(1) > 0).all()
    labelled = torch.arange(40) < 24
    assert torch.equal(state.memory["pseudo"]["label"][labelled], torch.tensor(tiny.classes_of(COUNTS)))
    assert (state.memory["pseudo"]["trust"][~labelled] < 1).all()
    weights = [torch.cat([p.flatten() for p in state.nets[n].parameters()]) for n in ("a", "b")]
    assert not torch.allclose(*weights)


@pytest.mark.parametrize("crash_at", [("step", 3), ("step", 7), ("end_epoch", 0), ("step", 3 + 5), ("end_epoch", 3)])
def test_two_nets__resumes_bit_for_bit(tmp_path: Path, crash_at: tuple[str, int]) -> None:
    # Calls of step count both forwards of a sharpness-aware step: 6 in warm-up, 10, 12, 14 later.
    whole_run, run = Run.create(tmp_path / "whole"), Run.create(tmp_path / "cut")
    whole = run_two_nets(run=whole_run)
    with pytest.raises(CrashError):
        run_two_nets(Watched(crash_at), run=run)
    run.close()
    resumed_run = Run(tmp_path / "cut")
    watched = Watched()
    resumed = run_two_nets(watched, run=resumed_run)
    assert 0 < watched.calls["step"] + watched.calls["end_epoch"] < 42 + 4  # it did not start over
    assert tiny.differing(whole.state, resumed.state) == []
    assert epoch_records(whole_run) == epoch_records(resumed_run)
    assert whole.warnings == resumed.warnings == ("it is only a test",)
    saved = [checkpoint.load(r.checkpoint)["optimizer"]["state"] for r in (whole_run, resumed_run)]
    assert len(saved[0]) > 0
    assert all(torch.equal(saved[0][k]["momentum_buffer"], saved[1][k]["momentum_buffer"]) for k in saved[0])
    for r in (whole_run, resumed_run):
        r.close()


def test_accumulate__a_run_in_parts_goes_on_with_other_parts(tmp_path: Path) -> None:
    def go(accumulate: int, run: Run | None = None, crash_at: int | None = None) -> Trained:
        recorded = tiny.Recorded(METHODS["cvs"].recipe)
        step = recorded.step

        def crashing(*args: Any) -> StepResult:
            if len(recorded.losses) == crash_at:
                raise CrashError
            return cast(StepResult, step(*args))

        recorded.step = crashing  # type: ignore[method-assign]
        task, views, build = tiny.inputs_of("cvs", COUNTS, norm=False)
        cfg = resolve_config(METHODS["cvs"], {"epochs": 3, "batch_size": 8})
        options = tiny.options_of(accumulate=accumulate, checkpoint_minutes=0.0)
        return train(cast(Recipe, recorded), cfg, task, views, build, options=options, run=run)

    whole, run = go(1), Run.create(tmp_path)
    with pytest.raises(CrashError):
        go(4, run, crash_at=4)
    resumed = tiny.tensors_of(go(2, run).state)
    run.close()
    for path, tensor in tiny.tensors_of(whole.state).items():
        torch.testing.assert_close(resumed[path], tensor, rtol=0, atol=1e-6)


def test_step__reads_nothing_off_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def watched(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def unread(*args: Any, **how: Any) -> Any:
            with tiny.nothing_read():
                return whole(*args, **how)

        monkeypatch.setattr(owner, name, unread)

    watched(loop, "optimizer_step")  # the recipe's step is in it
    for name in ("add_logs", "follow_averages"):
        watched(loop._Loop, name)
    run = Run.create(tmp_path)
    run_two_nets(run=run)
    run.close()
    assert all(isinstance(record["loss"], float) for record in epoch_records(run))


def test_resume__drops_records_of_what_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_run, run = Run.create(tmp_path / "whole"), Run.create(tmp_path / "cut")
    whole = run_two_nets(run=whole_run)
    save = checkpoint.save_atomically

    def crashing(payload: Mapping[str, Any], path: Path) -> None:
        if (payload["epoch"], payload["step"]) == (2, 0):  # epoch 1 is in metrics.jsonl, but not in a checkpoint
            raise CrashError
        save(payload, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_atomically", crashing)
        with pytest.raises(CrashError):
            run_two_nets(run=run)
    run.close()
    assert [record["epoch"] for record in epoch_records(run)] == [0, 1]
    resumed_run = Run(tmp_path / "cut")
    resumed = run_two_nets(run=resumed_run)
    assert tiny.differing(whole.state, resumed.state) == []
    assert epoch_records(whole_run) == epoch_records(resumed_run)
    for r in (whole_run, resumed_run):
        r.close()


def test_two_nets__another_seed_ends_elsewhere() -> None:
    first, again, other = (run_two_nets(seed=seed).state for seed in (0, 0, 1))
    assert tiny.differing(first, again) == []
    changed = tiny.differing(first, other)
    assert {"nets.a.head.weight", "nets.b_copy.head.weight", "memory.queue"} <= set(changed)


def test_averages__follow_exactly() -> None:
    watched = Watched()
    state = run_two_nets(watched).state
    watched.seen.append({f"{n}.{k}": v for n, net in state.nets.items() for k, v in net.state_dict().items()})
    after = watched.seen[::2]  # the first forward of each step sees the weights that the step before left
    assert len(after) == 3 + 5 + 6 + 7 + 1
    for name in ("a", "b"):
        for key in state.nets[name].state_dict():
            slow = after[0][f"{name}_copy.{key}"].double()
            assert torch.equal(after[0][f"{name}.{key}"].double(), slow)
            for before, now in itertools.pairwise(after):
                held, source = now[f"{name}_copy.{key}"], now[f"{name}.{key}"]
                if not held.is_floating_point():
                    assert torch.equal(held, source)  # a counter
                    slow = source.double()
                    continue
                assert torch.equal(held, torch.lerp(before[f"{name}_copy.{key}"], source, 1.0 - 0.9))
                slow = 0.9 * slow + 0.1 * source.double()
            assert torch.allclose(after[-1][f"{name}_copy.{key}"].double(), slow, atol=1e-6)
            assert key == "norm.num_batches_tracked" or not torch.equal(
                after[-1][f"{name}_copy.{key}"], after[-1][f"{name}.{key}"]
            )


def test_averages__are_not_trained_and_rest_in_eval_mode() -> None:
    modes = []

    class Looking(Watched):
        def step(self, cfg: Any, task: Task, state: State, *rest: Any) -> StepResult:
            modes.append({name: net.training for name, net in state.nets.items()})
            return super().step(cfg, task, state, *rest)

    state = run_two_nets(Looking()).state
    assert all(mode == {"a": True, "a_copy": False, "b": True, "b_copy": False} for mode in modes)
    assert not any(p.requires_grad for n in ("a_copy", "b_copy") for p in state.nets[n].parameters())
    assert all(p.requires_grad for n in ("a", "b") for p in state.nets[n].parameters())


# ---- what must not influence training -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cvs", "la"])
def test_evaluate__never_influences_training(name: str) -> None:
    calls = []

    def careless(state: State) -> Mapping[str, Any]:
        for net in state.nets.values():
            net.eval()  # and left so
        with torch.no_grad():
            calls.append(float(state.nets["main"](torch.randn(4, 3, 8, 8)).sum()))  # draws from the global generator
        torch.rand(len(calls))
        return {"accuracy": 0.5}

    views, task = tiny.TinyViews(tiny.classes_of(COUNTS)), tiny.task_of(COUNTS)
    cfg = resolve_config(METHODS[name], {"epochs": 4, "batch_size": 8})
    states = []
    for evaluate, n_evaluations in ((None, 10), (careless, 10), (careless, 2), (careless, 0)):
        options = tiny.options_of(n_evaluations=n_evaluations)
        trained = train(METHODS[name].recipe, cfg, task, views, tiny.BuildTiny(), options=options, evaluate=evaluate)
        states.append(trained.state)
    assert len(calls) == 4 + 2
    assert all(tiny.differing(states[0], state) == [] for state in states[1:])


@pytest.mark.parametrize("n_epochs", [1, 2, 3, 5, 7, 10, 15, 50])
def test_evaluate__as_often_as_asked_and_after_the_last_epoch(n_epochs: int, tmp_path: Path) -> None:
    recipe = PlainRecipe(Config=TrainSettings, setup=lambda cfg, task, build_net: State({}))
    for n in (0, 1, 2, 3, 4, 7, 10, 60):
        run = Run(tmp_path / str(n))
        options = tiny.options_of(n_evaluations=n)
        views, task = tiny.TinyViews((0, 1)), tiny.task_of((1, 1))
        cfg = TrainSettings(epochs=n_epochs)
        train(recipe, cfg, task, views, tiny.BuildTiny(), options=options, run=run, evaluate=lambda state: {"n": 1})
        scored = [record["epoch"] for record in run.epochs if "test" in record]
        assert len(scored) == min(n, n_epochs)
        assert not scored or scored[-1] == n_epochs - 1
        gaps = np.diff([-1, *scored])
        assert not scored or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("kappa_from", ["heldout", "batches"])
def test_truth__of_unlabelled_rows_cannot_be_read(kappa_from: str) -> None:
    classes = tiny.classes_of((16, 8, 6))
    labels = np.array(classes, np.int32)
    hidden = np.arange(30) % 3 == 1
    labels[hidden] = -1
    truth = np.array(classes, np.int32)
    shuffled = truth.copy()
    shuffled[hidden] = np.random.default_rng(0).permutation(truth[hidden])
    assert (truth != shuffled).any()

    def run_with(truth: Any, labels: Any) -> State:
        names = pa.array([f"{i}.png" for i in range(30)], pa.large_string())
        table = LabelTable(
            Images(paths=names), names, labels, ("a", "b", "c"), truth=truth, truth_names=("a", "b", "c")
        )
        cfg = cvs.Config(epochs=5, batch_size=6, kappa_from=kappa_from, heldout_frac=0.3, heldout_min_rows=0)  # type: ignore[arg-type]
        views = tiny.TinyViews(classes)
        recipe = METHODS["cvs"].recipe
        return train(recipe, cfg, table.task(), views, tiny.BuildTiny(), options=tiny.options_of()).state

    given = run_with(truth, labels)
    assert tiny.differing(given, run_with(shuffled, labels)) == []
    assert tiny.differing(given, run_with(None, labels)) == []
    assert "nets.main.head.weight" in tiny.differing(given, run_with(truth, truth))  # a label does matter
    assert "truth" not in {field.name for field in dataclasses.fields(Task)}


# ---- a recipe that ends early ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Ending(Watched):
    """two_nets, ending itself after an epoch."""

    last: int = 1

    def end_epoch(self, *args: Any) -> Any:
        state, logs = super().end_epoch(*args)
        return state, {**logs, "stop": args[-1] == self.last}


def test_stop__ends_training_after_the_epoch_that_asks_for_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    ended = run_two_nets(Ending(), run=run)
    assert [(r["epoch"], r["stop"]) for r in epoch_records(run)] == [(0, False), (1, True)]
    again = Ending()
    resumed = run_two_nets(again, run=Run(tmp_path))  # a checkpoint of a run that has ended: nothing is left to do
    assert again.calls == {"step": 0, "end_epoch": 0}
    assert tiny.differing(ended.state, resumed.state) == []
    assert ended.warnings == resumed.warnings
    run.close()


@pytest.mark.parametrize("crash_at", [("step", 5), ("end_epoch", 1)])
def test_stop__resumes_bit_for_bit(tmp_path: Path, crash_at: tuple[str, int]) -> None:
    whole = run_two_nets(Ending())
    with pytest.raises(CrashError):
        run_two_nets(Ending(crash_at), run=Run.create(tmp_path))
    run = Run(tmp_path)
    resumed = run_two_nets(Ending(), run=run)
    assert tiny.differing(whole.state, resumed.state) == []
    assert [r["epoch"] for r in epoch_records(run)] == [0, 1]
    assert checkpoint.load(run.checkpoint)["is_over"] is True
    run.close()


# ---- records, warnings, errors --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scripted:
    """Cross-entropy whose StepResult is rewritten by a function of the step's number."""

    rewrite: Any
    n: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(METHODS["ce"].recipe, name)

    def step(self, *args: Any) -> StepResult:
        result = METHODS["ce"].recipe.step(*args)
        self.n += 1
        return cast(StepResult, self.rewrite(result, self.n - 1))


def run_scripted(rewrite: Any, run: Run, *, sam_radius: float = 0.0) -> Trained:
    views, task = tiny.TinyViews(tiny.classes_of(COUNTS)), tiny.task_of(COUNTS)
    cfg = resolve_config(METHODS["ce"], {"epochs": 2, "batch_size": 12, "sam_radius": sam_radius})
    recipe = cast(Recipe, Scripted(rewrite))
    return train(recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of(), run=run)


def test_records__means_weigh_rows(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    trained = run_scripted(lambda r, i: dataclasses.replace(r, n_kept=[1, 3][i % 2], logs={"odd": i % 2}), run)
    run.close()
    records = epoch_records(run)
    assert [r["odd"] for r in records] == [0.75, 0.75]
    assert [r["epoch"] for r in records] == [0, 1]
    assert trained.seconds > 0
    assert 0 < trained.input_frac < 1
    assert trained.images_per_second * trained.seconds >= 24 * 2  # 24 images twice, and not only steps take time


def test_records__and_state_are_of_the_unperturbed_forward(tmp_path: Path) -> None:
    def rewrite(result: StepResult, i: int) -> StepResult:
        before = result.state.memory
        seen = {"forwards": before.get("forwards", 0) + 1, "last": i}
        state = dataclasses.replace(result.state, memory={**before, **seen})
        return dataclasses.replace(result, state=state, logs={"is_second": i % 2})

    run = Run.create(tmp_path)
    trained = run_scripted(rewrite, run, sam_radius=0.1)
    run.close()
    assert [r["is_second"] for r in epoch_records(run)] == [0.0, 0.0]
    memory = trained.state.memory
    assert (memory["forwards"], memory["last"]) == (4, 6)  # of eight forwards, the first of each step


def test_loss__that_is_no_number_stops_at_the_epochs_end_and_spares_the_checkpoint(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1") as caught:
        run_scripted(lambda r, i: dataclasses.replace(r, loss=r.loss * (float("nan") if i == 3 else 1.0)), run)
    run.close()
    assert caught.value.exit_code == 1
    saved = checkpoint.load(run.checkpoint)
    assert saved["epoch"] == 1
    assert all(v.isfinite().all() for v in saved["nets"]["main"].values())


def test_loss__that_is_no_number_stops_at_the_50th_step(tmp_path: Path) -> None:
    run, counts = Run.create(tmp_path), (60,)
    cfg = resolve_config(METHODS["ce"], {"epochs": 1, "batch_size": 1})
    recipe = cast(Recipe, Scripted(lambda r, i: dataclasses.replace(r, loss=r.loss + (float("inf") if i >= 40 else 0))))
    views, task = tiny.TinyViews(tiny.classes_of(counts)), tiny.task_of(counts)
    with pytest.raises(TrainingError, match="the loss became inf in epoch 0, step 50"):
        train(recipe, cfg, task, views, tiny.BuildTiny(norm=False), options=tiny.options_of(), run=run)
    run.close()


def test_restore__another_network(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    tiny.run_method("ce", COUNTS, settings={"epochs": 1}, run=run)
    with pytest.raises(DataError, match="the checkpoint is not of this method and model"):
        tiny.run_method("ce", (12, 12), settings={"epochs": 1}, run=Run(tmp_path))
    with pytest.raises(DataError, match="the checkpoint is not of this method and model"):
        tiny.run_method("cvs", COUNTS, settings={"epochs": 1}, run=Run(tmp_path))
    run.close()


def test_train__nothing_to_train_on() -> None:
    views, task = tiny.TinyViews([0, 1]), Task(torch.tensor([-1, -1]), ("a", "b"))
    cfg = resolve_config(METHODS["ce"], {"epochs": 1})
    with pytest.raises(ConfigError, match="stream 'train' has no images"):
        train(METHODS["ce"].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())


def test_train__hints_at_the_rows_of_the_next_step() -> None:
    views, task = tiny.TinyViews(tiny.classes_of(COUNTS)), tiny.task_of(COUNTS)
    cfg = resolve_config(METHODS["ce"], {"epochs": 1, "batch_size": 8})
    train(METHODS["ce"].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())
    stream = Stream(torch.arange(24), 8)
    expected = [rows_of_step("train", stream, 0, 0, step) for step in (1, 2)]
    assert [rows.tolist() for rows in views.prefetched] == [rows.tolist() for rows in expected]


def test_train__leaves_the_task_as_it_was() -> None:
    task = tiny.task_of(COUNTS)
    before = copy.deepcopy(task)
    train(
        METHODS["cvs"].recipe,
        resolve_config(METHODS["cvs"], {"epochs": 2}),
        task,
        tiny.TinyViews(tiny.classes_of(COUNTS)),
        tiny.BuildTiny(),
        options=tiny.options_of(),
    )
    assert torch.equal(task.labels, before.labels)


def test_begin__ctrl_c_ends_it_at_once() -> None:
    """A solver may take minutes; before its end there is nothing to keep."""
    reached: list[str] = []

    def begin(*_: Any) -> Any:
        reached.append("asked")
        signal.raise_signal(signal.SIGINT)
        reached.append("went on")
        return State({}), {}

    recipe = PlainRecipe(Config=TrainSettings, setup=lambda cfg, task, build_net: State({}), begin=begin)
    views, task = tiny.TinyViews((0, 1)), tiny.task_of((1, 1))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, TrainSettings(epochs=1), task, views, tiny.BuildTiny(), options=tiny.options_of())
    assert reached == ["asked"]
