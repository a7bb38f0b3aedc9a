"""Settings outside their range are refused before anything is trained, by the name of the setting."""

from __future__ import annotations

import math

import pytest

from labelwright.errors import ConfigError
from labelwright.methods.registry import METHODS, resolve_config

REFUSED: dict[str, dict[str, tuple[object, ...]]] = {
    "ce": {
        "epochs": (0,),
        "lr": (0.0, math.nan),
        "warmup_epochs": (-1.0, math.nan),
        "max_grad_norm": (-0.5,),
        "sam_radius_late": (-0.1,),
        "sam_late_from_frac": (1.1,),
        "step_at_frac": ((0.5, 1.5), (-0.1,)),
        "layer_decay": (0.0, 1.5),
        "drw_from_frac": (-0.1, 1.1),
    },
    "class_balanced": {"effective_beta": (1.0, -0.1)},
    "focal": {"focal_gamma": (-1.0, math.nan)},
    "la": {"tau": (-1.0,)},
    "vs": {"gamma": (-0.1,), "tau": (-1.0,)},
    "ldam": {"max_margin": (-0.5,), "scale": (0.0, -30.0)},
    "ib": {"ib_from_frac": (-0.1, 1.5)},
    "cc": {"head_width": (0,)},
    "pico": {"queue_size": (0,), "phi_last": (1.5,), "temperature": (0.0,)},
    "dividemix": {"ramp_epochs": (-1.0,), "threshold": (1.0,), "sharpen_temperature": (0.0,)},
    "fpl": {"k": (0,)},
    "fixmatch_text": {"confidence": (1.0,), "steps_per_epoch": (0,)},
    "fixmatch_clusters": {"confidence": (1.5,), "n_init": (0,)},
    "orca": {"pair_weight": (-1.0,), "prior_weight": (-1.0,)},
    "simgcd": {"supervised_weight": (1.5,)},
}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, value) for name, keys in REFUSED.items() for key, values in keys.items() for value in values],
)
def test_settings__out_of_range(name: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(METHODS[name], {key: value})
    assert f"{key}={value} is not possible" in str(caught.value)
    assert f"{key} must be" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("cvs", "gamma", -0.1),
        ("cvs", "kappa_shrink", -1.0),
        ("cvs", "kappa_clamp", (3.0, 0.3)),
        ("cvs", "kappa_clamp", (0.0, 1.0)),
        ("ce", "penalty", 0.0),
        ("ce", "drw_from_frac", 1.1),
        ("class_balanced", "effective_beta", 1.0),
    ],
)
def test_settings__out_of_range_on_features(name: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(METHODS[name].on_features(), {key: value})
    assert f"{key}={value} is not possible" in str(caught.value)
    assert f"{key} must be" in caught.value.fix


def test_settings__the_ends_of_the_ranges_are_inside() -> None:
    resolve_config(METHODS["ib"], {"ib_from_frac": 0.0, "drw_from_frac": 1.0, "warmup_epochs": 0.0})
    resolve_config(METHODS["ldam"], {"max_margin": 0.0, "effective_beta": 0.0, "sam_radius_late": None})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cvs", "kappa_fit"),
        ("cvs", "kappa_against"),
        ("cvs", "samples_per_class"),
        ("cvs", "plain_frac"),
        ("coreg", "rule"),
        ("lps", "self_training_rounds"),
    ],
)
def test_settings__those_of_before_are_unknown(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'") as caught:
        resolve_config(METHODS[name], {key: "1"})
    assert "valid settings: " in caught.value.fix
