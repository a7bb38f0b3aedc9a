"""`adjust=NAME+NAME` on every method that has the setting."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from labelwright.adjust.named import adjustment
from labelwright.errors import ConfigError
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.run_folder import Run

COUNTS = (14, 8, 4)
LABELLED = ["ce", "class_balanced", "focal", "balanced_softmax", "ldam", "ldam_drw", "la", "vs", "ib"]
NAMES = [
    name
    for name in METHODS
    if name not in tiny.FROZEN and "adjust" in {field.name for field in dataclasses.fields(METHODS[name].recipe.Config)}
]
ADJUSTABLE = pytest.mark.parametrize("name", NAMES)


def run(name: str, **settings: object) -> tuple[Any, list[float]]:
    steps = {"steps_per_epoch": 3} if tiny.family_of(name) == "text" else {}
    kept = {key: settings.pop(key) for key in ("run", "checkpoint_minutes") if key in settings}
    given = {"epochs": 4, "batch_size": 8, "lr": 0.05, **steps, **settings}
    trained, losses = tiny.run_method(name, COUNTS, settings=given, **kept)  # type: ignore[arg-type]
    return trained.state, losses


def test_who_has_the_setting() -> None:
    assert {"cvs", "cap", "lps", "pseudo_probe", "fpl", "fixmatch_text", "top1", *LABELLED} == set(NAMES)


@ADJUSTABLE
def test_adjust__every_name_on_every_method(name: str) -> None:
    plain, without = run(name)
    state, losses = run(name, adjust="pace+la")
    assert torch.tensor(losses).isfinite().all()
    assert losses != without
    found = state.adjust["named"]
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert found["predicted"].sum() > 0
    assert found["prior"].sum() == pytest.approx(1.0, rel=1e-5)
    assert "named" not in plain.adjust
    assert set(state.adjust) - {"named"} == set(plain.adjust)
    for other in ("vs", "ldam"):
        assert run(name, adjust=other)[1] != without


@ADJUSTABLE
def test_adjust__an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="adjustment 'pase' is not known") as caught:
        resolve_config(METHODS[name], {"adjust": "pase+la"})
    assert "la, vs, ldam, pace" in caught.value.fix


@ADJUSTABLE
def test_predict__applies_no_adjustment(name: str) -> None:
    state, _ = run(name, adjust="pace+la")
    for net in state.nets.values():
        net.eval()
    x = torch.randn(5, tiny.N_FEATURES) if tiny.family_of(name) == "text" else torch.randn(5, 3, 8, 8)
    found = []
    with torch.no_grad():
        for adjust in (None, "pace+la"):
            cfg = resolve_config(METHODS[name], {"adjust": adjust})
            found.append(METHODS[name].recipe.predict(cfg, state, x).logits)
    assert torch.equal(*found)


class CrashError(Exception):
    """Stands for a kill."""


@ADJUSTABLE
def test_checkpoint__the_state_survives_a_resume(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, trace = run(name, adjust="pace+la")
    calls = []

    def crashing(recorded: tiny.Recorded, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise CrashError
        return recorded.recipe.step(*args)

    with monkeypatch.context() as patched:
        patched.setattr(tiny.Recorded, "step", crashing)
        with pytest.raises(CrashError):
            run(name, adjust="pace+la", run=Run.create(tmp_path), checkpoint_minutes=0.0)
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert set(saved["adjust"]["named"]) == {"counts", "predicted", "prior"}
    assert saved["adjust"]["named"]["predicted"].sum() > 0
    kept = Run(tmp_path)
    resumed, rest = run(name, adjust="pace+la", run=kept)
    kept.close()
    assert tiny.differing(whole, resumed) == []
    assert trace[5:] == rest


@pytest.mark.parametrize("name", ["la", "vs"])
def test_adjust__on_cross_entropy_is_the_method_itself(name: str) -> None:
    (state, losses), (own, expected) = run("ce", adjust=name), run(name)
    assert losses == expected
    for mine, theirs in zip(state.nets["main"].parameters(), own.nets["main"].parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["la", "pace", "ldam"])
def test_adjust__on_lps_without_its_margin_is_its_margin(name: str) -> None:
    _, losses = run("lps", margin="none", adjust=name)
    _, expected = run("lps", margin=name)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses != pytest.approx(run("lps", margin="none")[1], rel=1e-3)


def test_adjust__on_cap_counts_labels_and_pseudolabels_of_all_images() -> None:
    state, _ = run("cap", adjust="pace+la")
    task = tiny.text_task_of(COUNTS)
    found = state.adjust["named"]
    assert found["counts"].sum() == sum(COUNTS)
    assert (found["counts"] >= task.counts).all()
    assert torch.equal(found["predicted"], found["counts"])
    expected = state.adjust["prior"] * (task.labels < 0).sum() + task.counts
    torch.testing.assert_close(found["prior"], expected / expected.sum())


def test_adjust__pace_on_labels_gives_way_once_predictions_have_the_shares_of_the_labels() -> None:
    early, late = (run("ce", adjust="pace", epochs=epochs, lr=0.2)[0].adjust["named"] for epochs in (1, 30))
    margins = [float(adjustment("pace", state).target_margin.max()) for state in (early, late)]  # type: ignore[union-attr]
    assert margins[1] < 0.1 * margins[0]


@pytest.mark.parametrize("name", ["top1", "fpl", "pseudo_probe"])
def test_adjust__labels_made_once_are_counted_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    module = importlib.import_module(f"labelwright.methods.baselines.{'top1' if name == 'top1' else 'probe'}")
    inner = module.adjusted_cross_entropy

    def spying(logits: torch.Tensor, labels: torch.Tensor, *rest: Any, **how: Any) -> torch.Tensor:
        seen.append(labels[how.get("where", labels >= 0)])
        found: torch.Tensor = inner(logits, labels, *rest, **how)
        return found

    monkeypatch.setattr(module, "adjusted_cross_entropy", spying)
    one_step = {"epochs": 1, "batch_size": sum(COUNTS), **({} if name == "top1" else {"steps_per_epoch": 1})}
    state, _ = run(name, adjust="la", **one_step)
    assert len(seen) == 1
    assert state.adjust["named"]["counts"].tolist() == torch.bincount(seen[0], minlength=3).tolist()
