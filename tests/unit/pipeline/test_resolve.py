"""What a run makes of its settings: the schedule that suits it, and what a preset brings along."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import labelwright as lw
from labelwright import cli
from labelwright.encoders import at_hand, descriptor, efficientnet
from labelwright.errors import ConfigError
from labelwright.methods.families import candidates, labels, novel
from labelwright.methods.lps import START_LR
from labelwright.methods.method import Budget
from labelwright.methods.registry import METHODS, method_named, resolve_config
from labelwright.pipeline import time_budget
from labelwright.pipeline.resolve import resolve
from labelwright.pipeline.settings import FitSettings
from pictures import write_folders

FEATURES = Budget(n_images=51_200, n_labelled=51_200, is_stored=True, is_cpu=True)
PIXELS = Budget(n_images=51_200, n_labelled=51_200, is_stored=False, is_cpu=True, n_passes=1_024_000)
ENDLESS = Budget(n_images=51_200, n_labelled=51_200, is_stored=False, is_cpu=False)


def scheduled(name: str, budget: Budget, given: dict[str, object]) -> Any:
    method = method_named(name)
    return method.schedule(resolve_config(method, given), budget, given)


@pytest.mark.parametrize(
    ("name", "budget", "given", "lr"),
    [
        ("lps", FEATURES, {}, START_LR),
        ("lps", FEATURES, {"epochs": 3}, START_LR),
        ("lps", FEATURES, {"lr": 0.2}, 0.2),
        ("lps", FEATURES, {"start": "none"}, 0.1),
        ("lps", PIXELS, {}, 0.1),
        ("orca", FEATURES, {}, 0.1),
    ],
)
def test_schedule__rate_of_a_head_that_starts_near_its_end(
    name: str, budget: Budget, given: dict[str, object], lr: float
) -> None:
    cfg = scheduled(name, budget, given)
    assert cfg.lr == lr
    if budget.is_stored:
        assert cfg.epochs == given.get("epochs", max(novel.EPOCHS_MIN, novel.HEAD_STEPS // 100))


def test_schedule__epochs_by_family() -> None:
    assert scheduled("ce", PIXELS, {}).epochs == 20
    assert scheduled("ce", PIXELS, {"sam_radius": 0.1}).epochs == 10  # two passes a step
    assert scheduled("ce", dataclasses.replace(PIXELS, n_passes=1.0), {}).epochs == labels.EPOCHS_MIN
    assert scheduled("fixmatch", PIXELS, {}).epochs == 12  # 5/3 passes an image
    assert scheduled("fixmatch", FEATURES, {}).epochs == labels.EPOCHS_MIN
    assert scheduled("ce", FEATURES, {}).epochs == round(labels.CPU_FEATURES / 51_200)
    assert scheduled("ce", ENDLESS, {}).epochs == 200
    assert scheduled("proden", FEATURES, {}).epochs == candidates.HEAD_EPOCHS_MIN
    assert scheduled("coreg", PIXELS, {}).epochs == candidates.PIXEL_EPOCHS_MIN
    assert scheduled("proden", PIXELS, {}).epochs == 20  # one network sees one view
    for name in ("ce", "proden", "lps"):
        assert scheduled(name, PIXELS, {"epochs": 7}).epochs == 7


def test_preset__unknown_and_without_a_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no preset 'paper'"):
        resolve_config(METHODS["ce"], {}, preset="paper")
    photos = write_folders(tmp_path / "photos")
    with pytest.raises(ConfigError, match="the recipe of one paper"):
        lw.fit(photos, out=tmp_path / "run", preset="paper")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_settings__every_setting_of_every_method_is_explained(name: str) -> None:
    found = lw.settings(name)
    assert [each.name for each in found if not each.text] == []
    assert len({each.name for each in found}) == len(found)


def test_settings__printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["settings", "ldam_drw"]) == 0
    shown = capsys.readouterr().out
    assert "drw_from_frac" in shown
    assert "* set by the preset practical" in shown
    assert cli.run(["settings", "ldam_drw", "--json"]) == 0
    assert '"drw_from_frac": {"value": 0.8' in capsys.readouterr().out
    assert cli.run(["settings", "lda"]) == 2
    assert "did you mean ldam?" in capsys.readouterr().err


PAPER = [name for name in METHODS if "paper" in METHODS[name].presets]


def test_preset__the_four_papers_have_one() -> None:
    assert set(PAPER) == {"cvs", "cap", "coreg", "lps"}


@pytest.mark.parametrize("name", PAPER)
def test_preset__paper_is_run_as_published_and_refused_on_embeddings(name: str, tmp_path: Path) -> None:
    method = method_named(name)
    cfg = resolve_config(method, {}, preset="paper")
    fixed = method.presets["paper"]
    assert all(getattr(cfg, key) == value for key, value in fixed.items())
    assert cfg != resolve_config(method, {})
    assert method.schedule(cfg, PIXELS, fixed).epochs == cfg.epochs, "no shorter on a CPU"
    np.savez(tmp_path / "e.npz", embeddings=np.eye(4, dtype=np.float32), labels=np.array(["a", "b", "a", "b"]))
    with pytest.raises(ConfigError, match=f"--preset paper of {name} trains the network"):
        lw.fit(tmp_path / "e.npz", out=tmp_path / "run", method=name, preset="paper")
    assert not (tmp_path / "run").exists()


def test_preset__reaches_the_run_and_its_report(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos")
    words = ["fit", str(photos), "--method", "cvs", "--preset", "paper", "--size", "8", "--evaluations", "0"]
    assert (
        cli.run([*words, "--set", "epochs=2", "batch_size=8", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    )
    run = lw.Run(tmp_path / "run")
    kept = run.config["resolved"]["settings"]
    assert (kept["kappa_is"], kept["schedule"], kept["epochs"], run.config["preset"]) == (
        "inverse_slope",
        "step",
        2,
        "paper",
    )
    assert "--preset paper" in run.report.read_text(encoding="utf-8")


@pytest.fixture
def lite0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretrained network that is at hand."""
    net = efficientnet.EfficientNetLite()
    monkeypatch.setattr(efficientnet, "load_pretrained", lambda: copy.deepcopy(net))
    found = at_hand.AtHand(efficientnet.NAME, efficientnet.NAME, "with ImageNet weights that are installed")
    monkeypatch.setattr(at_hand, "at_hand", lambda: found)
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 1.0)
    monkeypatch.setenv("LABELWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("lite0")
def test_model_at_hand__gives_features_on_a_cpu(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos")
    plan = resolve(FitSettings(data=str(photos), out=str(tmp_path / "run"), device="cpu", size=32))
    assert (plan.model, plan.views, plan.clock) == (efficientnet.NAME, "embeddings", None)
    assert not plan.cfg.takes_steps  # solved, not trained
    assert "model: efficientnet_lite0, with ImageNet weights that are installed, gives features" in plan.announcement
    assert plan.config["resolved"]["found"]["model"] == efficientnet.NAME


@pytest.mark.usefixtures("lite0")
def test_model_named__gives_features_on_a_cpu_unless_training_is_asked_for(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos")
    given: dict[str, Any] = {"data": str(photos), "model": efficientnet.NAME, "device": "cpu", "size": 32}
    plan = resolve(FitSettings(**given, out=str(tmp_path / "run")))
    assert (plan.views, plan.clock) == ("embeddings", None)
    assert "model: efficientnet_lite0 gives features" in plan.announcement
    for more in ({"views": "pixels"}, {"minutes": 3.0}, {"set": ("epochs=2",)}):
        assert resolve(FitSettings(**given, **more, out=str(tmp_path / "run"))).views == "pixels"


@pytest.mark.usefixtures("lite0")
@pytest.mark.parametrize("views", ["pixels", "random", "frozen"])
def test_model_at_hand__what_the_user_says_comes_first(tmp_path: Path, views: str) -> None:
    photos = write_folders(tmp_path / "photos")
    own: dict[str, Any] = {
        "pixels": {"views": "pixels", "set": ("lr=0.002",)},
        "random": {"model": "resnet32"},
        "frozen": {"model": efficientnet.NAME, "freeze": ("backbone.*",), "views": "pixels"},
    }[views]
    plan = resolve(FitSettings(data=str(photos), out=str(tmp_path / "run"), device="cpu", size=32, method="ce", **own))
    assert plan.views == "pixels"
    tuned = (plan.cfg.optimizer, plan.cfg.layer_decay)
    assert tuned == (("adamw", 0.75) if views == "pixels" else ("sgd", 1.0))
    assert plan.cfg.lr == (0.002 if views == "pixels" else 0.1)
    assert (plan.model == "resnet32") == (views == "random")
    assert "of training on this machine" in plan.announcement


@pytest.mark.parametrize(("n_few", "n_labelled"), [(20, 20), (19, 20), (20, 19)])
def test_model__none_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_few: int, n_labelled: int) -> None:
    """Of few images colours and edges, of more, or more labels, a network; both say what would help."""
    monkeypatch.setattr(descriptor, "FEW_LABELLED", n_labelled)
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 100.0)
    monkeypatch.setattr(descriptor, "FEW_IMAGES", n_few)
    given: dict[str, Any] = {
        "data": str(write_folders(tmp_path / "photos")),
        "out": str(tmp_path / "run"),
        "device": "cpu",
    }
    plan = resolve(FitSettings(**given))
    is_few = (n_few, n_labelled) == (20, 20)
    assert (plan.model, plan.views) == (("descriptor", "embeddings") if is_few else ("resnet32", "pixels"))
    begins = "descriptor, colours and edges, as no network is at hand" if is_few else "resnet32, random weights: no pr"
    assert plan.announcement.startswith(f"model: {begins}")
    assert "labelwright[imagenet]" in plan.announcement
    named = resolve(FitSettings(**given, model="resnet32"))
    assert named.model == "resnet32"
    assert "random weights" not in named.announcement
    assert resolve(FitSettings(**given, model="resnet32", epochs=3)).announcement.endswith(
        "resnet32: 3 epochs on 16 images; the time left is shown while it trains"
    )


@pytest.mark.parametrize("how", [{"minutes": 1.0}, {"epochs": 2}, {"views": "pixels"}, {"method": "ce"}])
def test_model__none_at_hand_and_training_asked_for(tmp_path: Path, how: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(time_budget, "images_per_second", lambda *args, **how: 100.0)
    photos = write_folders(tmp_path / "photos")
    plan = resolve(FitSettings(data=str(photos), out=str(tmp_path / "run"), device="cpu", **how))
    assert (plan.model, plan.views, plan.found) == ("resnet32", "pixels", None)


def test_model__none_at_hand_and_nothing_to_learn_from_but_names(tmp_path: Path) -> None:
    photos = write_folders(tmp_path / "photos") / "ant"
    (tmp_path / "names.txt").write_text("ant\nbee\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="this method reads class names, and no model is named that can"):
        resolve(FitSettings(data=str(photos), classes=str(tmp_path / "names.txt"), out=str(tmp_path / "run")))


@pytest.mark.usefixtures("lite0")
def test_inspect__names_the_model_at_hand_and_how_long_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folders(tmp_path / "photos")
    found = lw.inspect(photos)
    assert found.needs == "on features of efficientnet_lite0, with ImageNet weights that are installed"
    assert found.time == ""
    monkeypatch.setattr(at_hand, "at_hand", lambda: None)
    few = lw.inspect(photos)
    assert (few.needs, few.time) == ("on features of descriptor, colours and edges", "")
    assert [each for each in few.notices if "labelwright[imagenet]" in each]
    monkeypatch.setattr(descriptor, "FEW_IMAGES", 19)
    bare = lw.inspect(photos)
    assert bare.time.startswith(f"{bare.runs}, resnet32: about ")
    assert "of training on this machine" in bare.time
    assert lw.inspect(photos, check_images=False).time == ""


def test_inspect__rows_that_fit_would_leave_out_do_not_choose_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_folders(tmp_path / "photos")
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(photos.glob("*/*"))]
    rows = "".join(f"{name},{name.split('/')[1]}\n" for name in names)
    (tmp_path / "t.csv").write_text("image,label\n" + 2 * rows, encoding="utf-8")  # every image twice
    monkeypatch.setattr(at_hand, "at_hand", lambda: None)
    monkeypatch.setattr(descriptor, "FEW_IMAGES", len(names))
    found = lw.inspect(tmp_path / "t.csv")
    assert found.needs == "on features of descriptor, colours and edges"
    assert "copies" not in [problem.kind for problem in found.problems]  # of the same file
