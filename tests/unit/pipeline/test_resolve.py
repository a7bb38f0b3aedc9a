"""The schedule of a run that sets none."""

from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from labelwright.methods.registry import method_named, resolve_config
from labelwright.pipeline.resolve import OPEN_STEPS, SETTLED_LR, affordable


@pytest.mark.parametrize(
    ("name", "sees", "given", "lr"),
    [
        ("lps", "embeddings", {}, SETTLED_LR),
        ("lps", "embeddings", {"epochs": 3}, SETTLED_LR),
        ("lps", "embeddings", {"lr": 0.2}, 0.2),
        ("lps", "embeddings", {"start": "none"}, 0.1),
        ("lps", "embeddings", {"settle_rounds": 0}, 0.1),
        ("lps", "pixels", {}, 0.1),
        ("orca", "embeddings", {}, 0.1),
    ],
)
def test_affordable__lr_of_a_head_that_starts_settled(
    name: str, sees: str, given: dict[str, object], lr: float
) -> None:
    prepared: Any = SimpleNamespace(train=SimpleNamespace(table=range(51_200)))
    cfg = affordable(
        resolve_config(method_named(name), given), method_named(name), prepared, sees, tiny.CPU, given=given
    )
    assert cfg.lr == lr
    if sees == "embeddings":
        assert cfg.epochs == given.get("epochs", max(10, OPEN_STEPS // 100))
