"""A pretrained network that learns starts with a head that is right for its features; others are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.types import State

COUNTS = (24, 8, 4)


def begun(name: str, *, is_pretrained: bool, norm: bool = False) -> tuple[State, State, dict[str, Any]]:
    """The state after setup, the same after begin, and what begin logs."""
    recipe, cfg, task = METHODS[name].recipe, resolve_config(METHODS[name], {"epochs": 5}), tiny.task_of(COUNTS)
    views = tiny.TinyViews(tiny.classes_of(COUNTS))
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(recipe.setup(cfg, task, tiny.BuildTiny(norm, is_pretrained=is_pretrained)))
    for net in states[1].nets.values():
        net.eval()
    after, logs = recipe.begin(cfg, task, states[1], tiny.passes_of(states[1], views.x))
    return states[0], after, dict(logs)


@pytest.mark.parametrize("name", ["ce", "la", "cvs", "fixmatch", "softmatch"])
def test_start__a_head_that_sees_every_class(name: str) -> None:
    before, after, logs = begun(name, is_pretrained=True)
    truth = torch.tensor(tiny.classes_of(COUNTS))
    views = tiny.TinyViews(truth.tolist())
    assert 0.3 < logs["start_left_out_balanced_accuracy"] <= 1
    for key, net in after.nets.items():
        old: Any = before.nets[key].eval()
        new: Any = net
        changed = [n for n, p in new.named_parameters() if not torch.equal(p, dict(old.named_parameters())[n])]
        assert changed == ["head.weight", "head.bias"]
        with torch.no_grad():
            right = [(each(views.x).argmax(1) == truth).float() for each in (old, new)]
        recalls = [[float(some[truth == c].mean()) for c in range(3)] for some in right]
        assert sum(recalls[1]) > sum(recalls[0])
        assert recalls[1][2] >= 0.5  # the rarest, of four images


@pytest.mark.parametrize("name", ["ce", "cvs", "fixmatch"])
def test_start__random_weights_stay_as_they_are(name: str) -> None:
    before, after, logs = begun(name, is_pretrained=False)
    assert tiny.differing(before, after) == []
    assert logs == {}


def test_start__heads_of_cosines_stay_as_they_are() -> None:
    before, after, _ = begun("ldam", is_pretrained=True)
    assert tiny.differing(before, after) == []
