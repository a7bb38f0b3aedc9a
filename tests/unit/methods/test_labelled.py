"""The baselines on labelled images: which settings each has, and when classes are weighted."""

from __future__ import annotations

import pytest

import tiny
from labelwright.adjust import fixed
from labelwright.errors import ConfigError
from labelwright.methods.baselines.labelled import LabelledRecipe
from labelwright.methods.registry import METHODS, resolve_config

COUNTS = (14, 8, 4)
SETTINGS = {"epochs": 4, "batch_size": 8, "lr": 0.05}
NAMES = [name for name, method in METHODS.items() if isinstance(method.recipe, LabelledRecipe)]


def trace(name: str, **settings: object) -> list[float]:
    return tiny.run_method(name, COUNTS, settings={**SETTINGS, **settings})[1]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("tau", {"la", "vs"}),
        ("gamma", {"vs"}),
        ("focal_gamma", {"focal"}),
        ("max_margin", {"ldam", "ldam_drw"}),
        ("scale", {"ldam", "ldam_drw"}),
        ("ib_from_frac", {"ib"}),
        ("drw_from_frac", set(NAMES) - {"class_balanced"}),
        ("loss", set()),
    ],
)
def test_config__a_setting_that_a_loss_does_not_read_is_unknown(key: str, names: set[str]) -> None:
    for name in NAMES:
        if name in names:
            assert getattr(resolve_config(METHODS[name], {key: 0.25}), key) == 0.25
        else:
            with pytest.raises(ConfigError, match=f"unknown setting '{key}'"):
                resolve_config(METHODS[name], {key: 0.25})


def test_step__deferred_weights_come_with_their_epoch() -> None:
    never, late, always = trace("ce"), trace("ce", drw_from_frac=0.5), trace("ce", drw_from_frac=0.0)
    n_early = len(never) // 2
    assert late[:n_early] == never[:n_early]
    assert late[n_early] != never[n_early]
    assert always == trace("class_balanced")


def test_step__influence_comes_with_its_epoch_and_class_weights_at_the_earlier_one() -> None:
    n_early = len(trace("ce")) // 2
    assert trace("ib")[:n_early] == trace("ce")[:n_early]
    assert trace("ib", drw_from_frac=0.0)[:n_early] == trace("class_balanced")[:n_early]


def test_step__balanced_softmax_is_logit_adjustment_of_strength_1() -> None:
    assert trace("balanced_softmax") == trace("la") == trace("vs", gamma=0.0)
    assert trace("la", tau=0.0) == pytest.approx(trace("ce"), rel=1e-6)


@pytest.mark.parametrize("name", ["la", "vs", "ldam_drw"])
def test_setup__class_counts_are_read_once_and_not_by_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them would wait for a GPU."""
    n_read, filled = list[int](), fixed._filled
    monkeypatch.setattr(fixed, "_filled", lambda counts: n_read.append(1) or filled(counts))
    trace(name, epochs=1)
    n_once = len(n_read)
    trace(name, epochs=3)
    assert 1 <= n_once == len(n_read) - n_once
