"""The margin scale chosen without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from labelwright.methods import cap_margin as margin_pilot
from labelwright.methods.cap import Config
from labelwright.methods.cap_margin import SCALES, with_chosen_margin
from labelwright.types import State

CFG = Config(epochs=30, steps_per_epoch=2, batch_size=8, start_size=2, margin_scale="auto")


class Found:
    """What a pilot leaves behind."""

    def __init__(self, agreement: float, counts: list[float]) -> None:
        last = {"agreement": agreement, "counts": torch.tensor(counts), "expected": torch.tensor([2.0, 1.0, 1.0])}
        self.state = State(nets={}, memory={"last": last})


def choose(cfg: Config = CFG, *, seed: int = 0, folder: Path | None = None) -> Any:
    task, views, build = tiny.inputs_of("cap", (16, 8, 8))
    options = tiny.options_of(seed)
    return with_chosen_margin(cfg, task, views, build, options=options, folder=folder)


def pretend(monkeypatch: pytest.MonkeyPatch, found: dict[float, Found]) -> list[Config]:
    """Pilots that end as told; the settings that each was started with."""
    started: list[Config] = []

    def pilot(recipe: Any, cfg: Config, *args: Any, **kwargs: Any) -> Found:
        started.append(cfg)
        return found[float(cfg.margin_scale)]

    monkeypatch.setattr(margin_pilot, "train", pilot)
    return started


EVEN = [2.0, 1.0, 1.0]


def test_choice__highest_agreement_times_evenness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uneven = [4.0, 0.0, 0.0]  # half of them are not where they are expected
    ends = [Found(0.5, EVEN), Found(0.9, uneven), Found(0.6, EVEN), Found(0.4, EVEN), Found(0.55, EVEN)]
    started = pretend(monkeypatch, dict(zip(SCALES, ends, strict=True)))
    chosen = choose(folder=tmp_path)
    assert chosen.margin_scale == SCALES[2]
    assert [cfg.margin_scale for cfg in started] == list(SCALES)
    assert {(cfg.epochs, cfg.patience_epochs) for cfg in started} == {(margin_pilot.PILOT_EPOCHS, 0)}
    told = json.loads((tmp_path / "margin_scale.json").read_text(encoding="utf-8"))
    assert told["chosen"] == SCALES[2]
    assert list(told["scores"].values()) == pytest.approx([0.5, 0.45, 0.6, 0.4, 0.55])


def test_choice__a_tie_goes_to_the_smaller_margin_and_nan_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {scale: Found(0.5, EVEN) for scale in SCALES} | {SCALES[0]: Found(float("nan"), EVEN)})
    assert choose().margin_scale == SCALES[1]


def test_choice__is_kept_and_a_number_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = pretend(monkeypatch, {})
    assert choose(Config(margin_scale=7.0)).margin_scale == 7.0
    (tmp_path / "margin_scale.json").write_text('{"chosen": 9.0, "scores": {}}', encoding="utf-8")
    assert choose(folder=tmp_path).margin_scale == 9.0
    assert started == []


def test_choice__real_pilots_leave_no_trace_but_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin_pilot, "PILOT_EPOCHS", 2)
    chosen = choose(folder=tmp_path)
    assert chosen.margin_scale in SCALES
    assert (chosen.epochs, chosen.patience_epochs) == (30, CFG.patience_epochs)
    assert [path.name for path in tmp_path.iterdir()] == ["margin_scale.json"]
    scores = json.loads((tmp_path / "margin_scale.json").read_text(encoding="utf-8"))["scores"]
    assert all(0.5 < score <= 1 for score in scores.values())  # of a pool that class names nearly solve
