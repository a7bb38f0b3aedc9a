"""What every registered method keeps to, whatever its equations."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from labelwright.errors import ConfigError
from labelwright.methods.registry import method_named, resolve_config
from labelwright.run_folder import Run
from labelwright.train.loop import train
from labelwright.train.settings import TrainSettings, setting_names
from labelwright.types import Candidates, Task

METHODS = tiny.EVERY
COUNTS = (14, 8, 4)
ALL = pytest.mark.parametrize("name", METHODS)
LABELS = pytest.mark.parametrize(
    "name", [name for name in METHODS if tiny.family_of(name) == "labels" and name not in tiny.FROZEN]
)
TEXT = pytest.mark.parametrize("name", [name for name in METHODS if tiny.family_of(name) == "text"])
CANDIDATES = pytest.mark.parametrize("name", [name for name in METHODS if tiny.family_of(name) == "candidates"])
OPEN = [name for name in METHODS if tiny.family_of(name) == "open_world"]
OPTIONAL = {"cap", "lps"}  # some of their settings matter with others only
SHOTS = {"tip_adapter", "lp_pp", "clap"}  # need labels beside class names
STEPLESS = {  # all is said before the first epoch
    *("zero_shot", "transclip", "stata", "zlap", "ss_kmeans", "novel_beliefs", "crowd"),
    *SHOTS,
    *tiny.FROZEN,
}
STOPPING = {"coreg_frozen"}  # once answers stand still, after two epochs at the least


def settings_of(name: str, **changed: object) -> dict[str, object]:
    """Three steps an epoch: of 26 rows in eights (23 without a held-out slice), or as many as are asked for."""
    steps = {"steps_per_epoch": 3} if tiny.family_of(name) == "text" else {}
    steps |= {"patience_epochs": 3} if name == "cap" else {}  # which else ends earlier
    steps |= {"unlabelled_ratio": 1} if name in tiny.SEMI_SUPERVISED else {}
    return of_steps(name, {"epochs": 3, "batch_size": 8, "lr": 0.05, **steps, **changed})


def of_steps(name: str, settings: dict[str, object]) -> dict[str, object]:
    """Settings without those that are about steps, for methods that take none."""
    return settings if name not in STEPLESS else {"epochs": settings["epochs"]}


@ALL
def test_run__three_epochs__the_same_seed_the_same_trace_and_another_seed_another(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(name)
    with monkeypatch.context() as patched:
        patched.setattr(tiny.Recorded, "around", staticmethod(tiny.nothing_read))
        trained, losses = tiny.run_method(name, COUNTS, settings=settings)
    assert len(losses) in ({0} if name in STEPLESS else {6, 9} if name in STOPPING else {9})
    assert torch.tensor(losses).isfinite().all()
    assert (trained.images_per_second > 0) == (name not in STEPLESS)
    state, recipe, cfg = trained.state, METHODS[name].recipe, resolve_config(METHODS[name], settings)
    for net in state.nets.values():
        net.eval()
    with torch.no_grad():
        found = recipe.predict(cfg, state, some_views(name))
    assert found.logits.shape == (5, 3)
    assert torch.allclose(found.probs.sum(1), torch.ones(5), atol=1e-5)
    (again, same), (_, other) = (tiny.run_method(name, COUNTS, settings=settings, seed=seed) for seed in (0, 1))
    assert losses == same
    assert tiny.differing(trained.state, again.state) == []
    assert (losses != other) == (name not in STEPLESS)


@ALL
def test_run__learns(name: str) -> None:
    # Images whose class shows, and enough steps: far above one half, what guessing the largest class would give.
    # Of candidate sets a quarter is wrong or empty: more of them, and images that show more.
    ways = {"labels": {"lr": 0.2}, "text": {"steps_per_epoch": 5}, "candidates": {"lr": 0.05}}
    own = ways.get(tiny.family_of(name), {})
    short = {"queue_size": 128} if name == "pico" else {}
    short |= {"unlabelled_ratio": 1, "average_decay": 0.9} if name in tiny.SEMI_SUPERVISED else {}
    settings = of_steps(name, {"epochs": 24, "batch_size": 8, "warmup_epochs": 0.0, **own, **short})
    stored = tiny.family_of(name) in ("candidates", "open_world")
    counts = [4 * n for n in COUNTS] if stored else COUNTS
    trained, _ = tiny.run_method(name, counts, settings=settings, stored=stored)
    cfg = resolve_config(METHODS[name], settings)
    for net in trained.state.nets.values():
        net.eval()
    _, views, _ = tiny.inputs_of(name, counts, stored=stored)
    with torch.no_grad():
        x = views.batch(torch.arange(views.n_rows), "clean", seed=0, device=tiny.CPU)
        predicted = METHODS[name].recipe.predict(cfg, trained.state, x).logits.argmax(1)
    accuracy = (predicted == torch.tensor(tiny.classes_of(counts))).float().mean()
    assert accuracy > 0.75


@ALL
def test_run__one_class(name: str) -> None:
    own = {"contrastive_weight": 0.0} if name in ("pico", "coreg") else {}  # one image is still told from another
    trained, losses = tiny.run_method(name, (9,), settings=settings_of(name, **own))
    # There is nothing to get wrong; the contrastive terms of an open world have a constant.
    assert max(map(abs, losses), default=0.0) < (1e-6 if name not in OPEN else 20)
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())


@ALL
@pytest.mark.parametrize("counts", [(9, 0, 6), (0, 9, 6), (5, 1, 1), (1, 1, 1)], ids=str)
def test_run__a_class_without_images_or_with_one(name: str, counts: tuple[int, ...]) -> None:
    if (name in OPEN and (0 in counts or max(counts) == 1)) or (name == "beliefs" and 0 in counts):
        with pytest.raises(ConfigError, match=r"no image is labelled|there are none|finds classes in"):
            tiny.run_method(name, counts, settings=settings_of(name))
        return
    trained, losses = tiny.run_method(name, counts, settings=settings_of(name))
    assert torch.tensor(losses).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())
    assert trained.state.nets["main"](some_views(name)).shape == (5, 3)


def some_views(name: str) -> torch.Tensor:
    """Five views of nothing in particular."""
    on_features = tiny.family_of(name) == "text" or name in (*tiny.FROZEN, *tiny.ON_FEATURES)
    return torch.randn(5, tiny.N_FEATURES) if on_features else torch.randn(5, 3, 8, 8)


@LABELS
def test_run__all_labels_unknown_is_refused(name: str) -> None:
    cfg = resolve_config(METHODS[name], settings_of(name))
    task = Task(torch.full((6,), -1), ("a", "b"))
    views = tiny.TinyViews([0, 1, 0, 1, 0, 1])
    with pytest.raises(ConfigError, match="no images to train on"):
        train(METHODS[name].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())


@CANDIDATES
def test_run__no_label_and_no_candidate_is_refused(name: str) -> None:
    cfg, views = resolve_config(METHODS[name], settings_of(name)), tiny.TinyViews([0, 1, 0, 1])
    nothing = Candidates(torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    for candidates in (None, nothing):
        task = Task(torch.full((4,), -1), ("a", "b"), candidates)
        with pytest.raises(ConfigError, match=f"{name} learns from candidate labels, and no image has any") as caught:
            train(METHODS[name].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())
        assert "labelwright annotate" in caught.value.fix


@CANDIDATES
@pytest.mark.parametrize("has_sets", [False, True], ids=["labels only", "every set holds every class"])
def test_run__candidates_that_say_nothing(name: str, has_sets: bool) -> None:
    truth = torch.tensor(tiny.classes_of(COUNTS))
    sets = tiny.sets_of(torch.ones(len(truth), 3, dtype=torch.bool)) if has_sets else None
    task = Task(torch.where(torch.arange(len(truth)) % 3 == 0, truth, -1), ("a", "b", "c"), sets)
    cfg = resolve_config(METHODS[name], settings_of(name, epochs=20))
    views = tiny.TinyFeats(truth.tolist())
    trained = train(METHODS[name].recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of())
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())
    with torch.no_grad():
        predicted = METHODS[name].recipe.predict(cfg, trained.state, views.x).logits.argmax(1)
    assert (predicted == truth).float().mean() > 0.6  # of nine labels; the largest class has 0.54


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        pytest.param(name, stored, id=f"{name}-{'features' if stored else 'pixels'}")
        for name in METHODS
        for stored in (False, True)
        if tiny.family_of(name) == "candidates" and name not in tiny.FROZEN and (stored or name not in tiny.ON_FEATURES)
    ],
)
def test_run__what_is_saved_says_what_is_predicted(name: str, stored: bool) -> None:
    settings = settings_of(name)
    trained, losses = tiny.run_method(name, COUNTS, settings=settings, stored=stored)
    assert torch.tensor(losses).isfinite().all()
    assert len(losses) in ({0} if name in STEPLESS else {6, 9} if name in STOPPING else {9})
    net: Any = trained.state.nets["main"].eval()
    x = torch.randn(5, tiny.N_FEATURES) if stored else torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        found = METHODS[name].recipe.predict(resolve_config(METHODS[name], settings), trained.state, x).logits
        saved = net.exported()
        assert torch.equal(saved(x), found)
    assert found.std() > 0
    if stored and name not in STEPLESS:
        for member in getattr(saved, "members", [saved]):
            assert member.head_kind == "mlp"
            assert member.head.from_hidden.weight.abs().max() > 0  # the layer between learns


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        pytest.param(name, stored, id=f"{name}-{'features' if stored else 'pixels'}")
        for name in METHODS
        for stored in (False, True)
        if tiny.family_of(name) == "candidates" and (stored or name not in tiny.ON_FEATURES) and name not in STEPLESS
    ],
)
def test_plan__first_view(name: str, stored: bool) -> None:
    recipe = METHODS[name].recipe
    task, _, build = tiny.inputs_of(name, COUNTS, stored=stored)
    for wanted, view in (("auto", "clean" if stored else "weak"), ("clean", "clean"), ("weak", "weak")):
        cfg = resolve_config(METHODS[name], settings_of(name, view=wanted))
        plan = recipe.plan(cfg, task, recipe.setup(cfg, task, build), 0)
        assert plan.streams["train"].views[0] == view
        assert plan.streams["train"].rows.tolist() == list(range(26))
        assert plan.n_steps == 3


@TEXT
@pytest.mark.parametrize("every", [0, 1], ids=["no label at all", "every image labelled"])
def test_run__with_class_names_any_labels_will_do(name: str, every: int) -> None:
    cfg = resolve_config(METHODS[name], settings_of(name))
    task, views = tiny.text_task_of(COUNTS, every=every), tiny.TinyFeats(tiny.classes_of(COUNTS))
    assert task.concepts is not None
    build = tiny.BuildTowers(task.concepts)
    if name in SHOTS and not every:
        with pytest.raises(ConfigError, match=f"{name} learns from labelled images .*, and no image has a") as caught:
            METHODS[name].recipe.setup(cfg, task, build)
        assert "label one image of each class or more, or choose --method" in caught.value.fix
        return
    trained = train(METHODS[name].recipe, cfg, task, views, build, options=tiny.options_of())
    with torch.no_grad():
        predicted = METHODS[name].recipe.predict(cfg, trained.state, views.x).logits.argmax(1)
    assert (predicted == torch.tensor(tiny.classes_of(COUNTS))).float().mean() > 0.75


@TEXT
def test_setup__without_a_vision_language_model_is_refused(name: str) -> None:
    cfg, build = resolve_config(METHODS[name], {}), tiny.BuildTowers(tiny.concepts_of(3))
    with pytest.raises(ConfigError, match="needs a vision-language model") as caught:
        METHODS[name].recipe.setup(cfg, tiny.task_of(COUNTS), build)
    assert "--model" in caught.value.fix
    unnamed = dataclasses.replace(tiny.text_task_of(COUNTS), n_novel=2)
    with pytest.raises(ConfigError, match=f"{name} needs the names of all classes, 2 are unknown"):
        METHODS[name].recipe.setup(cfg, unnamed, build)


@ALL
def test_config__unknown_key_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'epoch'") as caught:
        resolve_config(METHODS[name], {"epoch": 3})
    assert "did you mean epochs?" in caught.value.fix
    assert ("weight_decay" in caught.value.fix) == METHODS[name].recipe.Config.takes_steps
    cfg = resolve_config(METHODS[name], {"epochs": "3"})
    assert cfg.epochs == 3
    preset = {
        key: value for key, value in METHODS[name].presets.get("practical", {}).items() if key != "epochs"
    }  # which we have set
    assert all(getattr(cfg, key) == value for key, value in preset.items())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pseudo_probe", "steps_per_epoch", 0),
        ("fpl", "k", 0),
        ("fixmatch_text", "confidence", 1.0),
        ("stata", "anchor", 0.0),
        ("zlap", "k", 0),
        ("zlap", "alpha", 1.0),
        ("tip_adapter", "beta", -1.0),
        ("lp_pp", "penalty", 0.0),
        ("clap", "constraint", 0.0),
        ("orca", "pair_weight", -1.0),
        ("orca", "prior_weight", -1.0),
        ("simgcd", "supervised_weight", 2.0),
        ("fixmatch_clusters", "confidence", 1.5),
    ],
)
def test_config__impossible_values(name: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value}"):
        resolve_config(METHODS[name], {key: value})


@pytest.mark.parametrize(
    "name", [name for name in METHODS if tiny.family_of(name) != "labels" and name not in OPTIONAL]
)
def test_config__every_setting_is_read(name: str) -> None:
    read = set()
    config: Any = METHODS[name].recipe.Config

    class Noted(config):  # type: ignore[misc]
        def __getattribute__(self, key: str) -> Any:
            read.add(key)
            return super().__getattribute__(key)

    cfg = Noted(**dataclasses.asdict(resolve_config(METHODS[name], settings_of(name, epochs=5))))
    read.clear()  # what was checked is not yet read
    for stored in (False, True):
        task, views, build = tiny.inputs_of(name, COUNTS, stored=stored)
        train(METHODS[name].recipe, cfg, task, views, build, options=tiny.options_of())
    assert set(setting_names(config)) - set(setting_names(TrainSettings)) - read == set()


class CrashError(Exception):
    """Stands for a kill."""


@ALL
def test_checkpoint__is_plain_data_and_resumes_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(name, epochs=5)  # the phases of every method are within
    whole, trace = tiny.run_method(name, COUNTS, settings=settings)
    crashes_in = "end_epoch" if name in STEPLESS else "step"
    calls = []

    def crashing(recorded: tiny.Recorded, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == (4 if name in STEPLESS else 8):
            raise CrashError
        return getattr(recorded.recipe, crashes_in)(*args)

    with monkeypatch.context() as patched:
        patched.setattr(tiny.Recorded, crashes_in, crashing, raising=False)
        with pytest.raises(CrashError):
            tiny.run_method(name, COUNTS, settings=settings, run=Run.create(tmp_path), checkpoint_minutes=0.0)
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert set(saved) >= {"nets", "adjust", "memory", "optimizer", "epoch", "step", "plan"}

    def begin_again(*args: Any) -> Any:
        raise AssertionError("the checkpoint holds what begin made")

    monkeypatch.setattr(tiny.Recorded, "begin", begin_again, raising=False)
    run = Run(tmp_path)
    resumed, rest = tiny.run_method(name, COUNTS, settings=settings, run=run)
    run.close()
    assert tiny.differing(whole.state, resumed.state) == []
    assert trace[7:] == rest


@pytest.mark.parametrize("name", ["cvs", "fixmatch", "dividemix", "pico", "coreg", "lps", "simclr"])
def test_accumulate__parts_of_a_batch_teach_what_the_whole_does(name: str) -> None:
    own = {"queue_size": 16} if name in ("pico", "coreg") else {"sam_radius": 0.05} if name == "cvs" else {}
    settings = {"epochs": 2, "batch_size": 8, "lr": 0.05, **own}
    settings |= {"unlabelled_ratio": 1} if name in tiny.SEMI_SUPERVISED else {}
    (whole, trace), (parts, same) = (
        tiny.run_method(name, COUNTS, settings=settings, norm=False, accumulate=n) for n in (1, 3)
    )
    assert same == pytest.approx(trace, abs=1e-5)
    first, second = tiny.tensors_of(whole.state), tiny.tensors_of(parts.state)
    for path, tensor in first.items():
        torch.testing.assert_close(
            second[path], tensor, rtol=0, atol=1e-5, msg=lambda text, path=path: f"{path}: {text}"
        )


def test_method_named__unknown() -> None:
    with pytest.raises(ConfigError, match="method 'cvss' is not known") as caught:
        method_named("cvss")
    assert "did you mean cvs?" in caught.value.fix
