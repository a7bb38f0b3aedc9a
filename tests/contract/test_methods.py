"""What every registered method keeps to, whatever its equations."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from evenkeel.errors import ConfigError
from evenkeel.methods.registry import METHODS, method_named, resolve_config
from evenkeel.train.loop import train
from evenkeel.train.track import RunFolder
from evenkeel.types import Task

COUNTS = (14, 8, 4)
SETTINGS = {"epochs": 3, "batch_size": 8, "lr": 0.05}
ALL = pytest.mark.parametrize("name", METHODS)


@ALL
def test_run__three_epochs(name: str) -> None:
    trained, losses = tiny.run_method(name, COUNTS, settings=SETTINGS)
    assert len(losses) == 3 * 3  # 26 rows in eights (23 without the held-out slice): three steps an epoch
    assert torch.tensor(losses).isfinite().all()
    assert trained.images_per_second > 0
    state, recipe, cfg = trained.state, METHODS[name].recipe, resolve_config(METHODS[name], SETTINGS)
    for net in state.nets.values():
        net.eval()
    with torch.no_grad():
        found = recipe.predict(cfg, state, torch.randn(5, 3, 8, 8))
    assert found.logits.shape == (5, 3)
    assert torch.allclose(found.probs.sum(1), torch.ones(5), atol=1e-5)


@ALL
def test_run__learns(name: str) -> None:
    # Images whose class shows, and enough steps: far above one half, what guessing the largest class would give.
    settings = {"epochs": 24, "batch_size": 8, "lr": 0.2, "warmup_epochs": 0.0}
    trained, _ = tiny.run_method(name, COUNTS, settings=settings)
    cfg = resolve_config(METHODS[name], settings)
    for net in trained.state.nets.values():
        net.eval()
    with torch.no_grad():
        x = tiny.TinyViews(tiny.classes_of(COUNTS)).x
        predicted = METHODS[name].recipe.predict(cfg, trained.state, x).logits.argmax(1)
    accuracy = (predicted == torch.tensor(tiny.classes_of(COUNTS))).float().mean()
    assert accuracy > 0.75


@ALL
def test_run__same_seed_same_trace_and_another_seed_another(name: str) -> None:
    (first, trace), (again, same), (_, other) = (
        tiny.run_method(name, COUNTS, settings=SETTINGS, seed=seed) for seed in (0, 0, 1)
    )
    assert trace == same
    assert tiny.differing(first.state, again.state) == []
    assert all(a != b for a, b in zip(trace, other, strict=True))


@ALL
def test_run__one_class(name: str) -> None:
    trained, losses = tiny.run_method(name, (9,), settings=SETTINGS)
    assert max(map(abs, losses)) < 1e-6  # there is nothing to get wrong
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())


@ALL
@pytest.mark.parametrize("counts", [(9, 0, 6), (0, 9, 6), (5, 1, 1), (1, 1, 1)], ids=str)
def test_run__a_class_without_images_or_with_one(name: str, counts: tuple[int, ...]) -> None:
    trained, losses = tiny.run_method(name, counts, settings=SETTINGS)
    assert torch.tensor(losses).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in tiny.tensors_of(trained.state).values())
    assert trained.state.nets["main"](torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@ALL
def test_run__all_labels_unknown_is_refused(name: str) -> None:
    cfg = resolve_config(METHODS[name], SETTINGS)
    task = Task(torch.full((6,), -1), ("a", "b"))
    views = tiny.TinyViews([0, 1, 0, 1, 0, 1])
    with pytest.raises(ConfigError, match="no images to train on"):
        train(METHODS[name].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())


@ALL
def test_config__unknown_key_lists_the_valid_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'epoch'") as caught:
        resolve_config(METHODS[name], {"epoch": 3})
    assert "did you mean epochs?" in caught.value.fix
    assert "weight_decay" in caught.value.fix
    cfg = resolve_config(METHODS[name], {"epochs": "3"})
    assert cfg.epochs == 3
    assert all(getattr(cfg, key) == value for key, value in METHODS[name].preset.items())


class CrashError(Exception):
    """Stands for a kill."""


@ALL
def test_checkpoint__is_plain_data_and_resumes_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "epochs": 5}  # the phases of every method are within
    whole, trace = tiny.run_method(name, COUNTS, settings=settings)
    step, calls = tiny.Recorded.step, []

    def crashing(self: tiny.Recorded, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise CrashError
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(tiny.Recorded, "step", crashing)
        with pytest.raises(CrashError):
            tiny.run_method(name, COUNTS, settings=settings, run=RunFolder(tmp_path), checkpoint_minutes=0.0)
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert set(saved) >= {"nets", "adjust", "memory", "optimizer", "epoch", "step", "plan"}
    run = RunFolder(tmp_path, resume=True)
    resumed, rest = tiny.run_method(name, COUNTS, settings=settings, run=run)
    run.close()
    assert tiny.differing(whole.state, resumed.state) == []
    assert trace[7:] == rest


def test_method_named__unknown() -> None:
    with pytest.raises(ConfigError, match="method 'cvss' is not known") as caught:
        method_named("cvss")
    assert "did you mean cvs?" in caught.value.fix
