"""CVS beyond what every method is tested for: phases, the held-out slice, the failure signs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import tiny
from labelwright.errors import ConfigError
from labelwright.methods import cvs
from labelwright.types import State, Task

LABELS = torch.repeat_interleave(torch.arange(3), torch.tensor([600, 200, 100]))


def task(groups: Tensor | None = None) -> Task:
    return Task(LABELS, ("a", "b", "c"), groups=groups)


@tiny.from_random_weights
def build(n_outputs: int, *, head: Literal["linear", "cosine"] = "linear") -> nn.Module:
    return nn.Linear(2, n_outputs)


def no_passes(net: str, rows: Tensor, view: str = "clean") -> Iterator[tuple[Tensor, Tensor]]:
    yield rows, torch.zeros(len(rows), 3)


def seen(cfg: cvs.Config, state: State, epoch: int, *, loss: float, rare_right: float) -> tuple[State, dict[str, Any]]:
    """The state after an epoch of 900 rows with this mean loss and this share of the 100 rare rows right."""
    tally = torch.tensor([900 * loss, 900.0, 100 * rare_right, 100.0])
    state = dataclasses.replace(state, memory={**state.memory, "tally": tally})
    state, logs = cvs.end_epoch(cfg, task(), state, no_passes, epoch)
    return state, dict(logs)


def test_plan__phase_one_leaves_the_held_out_slice_and_keeps_the_steps() -> None:
    cfg = cvs.Config(epochs=10, batch_size=9, kappa_from="heldout", heldout_frac=0.1)
    state = cvs.setup(cfg, task(), build)
    held = set(state.memory["heldout"].tolist())
    assert torch.bincount(LABELS[sorted(held)]).tolist() == [60, 20, 10]
    first, second = cvs.plan(cfg, task(), state, 0), cvs.plan(cfg, task(), state, 5)
    assert set(first.streams["train"].rows.tolist()) == set(range(900)) - held
    assert set(second.streams["train"].rows.tolist()) == set(range(900))
    assert first.n_steps == second.n_steps == 100


def test_setup__no_group_on_both_sides_of_the_slice() -> None:
    groups = torch.arange(900) // 5
    state = cvs.setup(cvs.Config(epochs=10, kappa_from="heldout"), task(groups), build)
    held = torch.zeros(900, dtype=torch.bool)
    held[state.memory["heldout"]] = True
    assert 0 < int(held.sum()) < 900
    assert all(held[groups == g].all() or not held[groups == g].any() for g in range(180))


def test_setup__a_class_with_two_groups_gives_none_of_them() -> None:
    groups = torch.cat([torch.arange(600) // 3, 300 + torch.arange(200) // 2, 500 + torch.arange(100) // 50])
    held = cvs.setup(cvs.Config(epochs=10, kappa_from="heldout"), task(groups), build).memory["heldout"]
    assert torch.bincount(LABELS[held], minlength=3).tolist() == [60, 20, 0]


def test_setup__a_slice_too_small_for_a_slope_is_not_held_out() -> None:
    few = Task(LABELS[::4], ("a", "b", "c"))
    assert len(cvs.setup(cvs.Config(epochs=10, kappa_from="heldout"), few, build).memory["heldout"]) == 0


def test_setup__average_spans_two_thirds_of_an_epoch_at_most() -> None:
    cfg = cvs.Config(epochs=10, kappa_from="heldout", batch_size=90)  # 10 steps an epoch
    assert cvs.setup(cfg, task(), build).averages["average"].decay == pytest.approx(1 - 1.5 / 10)
    cfg = cvs.Config(epochs=10, kappa_from="heldout", batch_size=1)
    assert cvs.setup(cfg, task(), build).averages["average"].decay == 0.99


def test_end_epoch__slopes_stay_when_the_slice_is_being_fitted() -> None:
    cfg = cvs.Config(epochs=10, kappa_from="heldout")
    state = cvs.setup(cfg, task(), build)
    moved, logs = cvs.end_epoch(cfg, task(), state, no_passes, 4)
    assert "kappa_additive" in logs
    assert not torch.equal(moved.adjust["kappa_additive"], state.adjust["kappa_additive"])
    kept, logs = cvs.end_epoch(cfg, task(), moved, no_passes, 5)
    assert "kappa_additive" not in logs
    assert torch.equal(kept.adjust["kappa_additive"], moved.adjust["kappa_additive"])


@pytest.mark.parametrize(("losses", "warned"), [((1.0, 1.1, 1.2), True), ((1.0, 1.1, 1.05), False)])
def test_end_epoch__says_that_the_loss_rises_in_phase_two(losses: tuple[float, ...], warned: bool) -> None:
    cfg = cvs.Config(epochs=6, kappa_from="none")
    state, logs = cvs.setup(cfg, task(), build), {"warnings": []}
    for epoch, loss in zip((3, 4, 5), losses, strict=True):
        state, logs = seen(cfg, state, epoch, loss=loss, rare_right=1.0)
    assert any("loss rises in phase 2" in text for text in logs["warnings"]) is warned


@pytest.mark.parametrize(("rare_right", "warned"), [(0.1, True), (0.6, False)])
def test_end_epoch__says_that_rare_classes_learnt_nothing(rare_right: float, warned: bool) -> None:
    cfg = cvs.Config(epochs=20, kappa_from="none")
    state = cvs.setup(cfg, task(), build)
    _, logs = seen(cfg, state, 9, loss=1.0, rare_right=rare_right)
    assert any("rarest third" in text for text in logs["warnings"]) is warned
    assert logs["rare_accuracy"] == pytest.approx(rare_right)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", -0.1),
        ("tau", -1.0),
        ("switch_frac", 1.5),
        ("heldout_frac", 0.0),
        ("kappa_net_decay", 1.0),
        ("kappa_clamp", (2.0, 1.0)),
        ("kappa_shrink", -1.0),
        ("heldout_min_rows", -1),
    ],
)
def test_config__names_the_setting_that_cannot_be(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}="):
        cvs.Config(**{key: value})  # type: ignore[arg-type]
