"""The chance that a label is right."""

import numpy as np
import pytest
import torch

from labelwright.trust.calibration import (
    USUAL_OFFSET,
    USUAL_SLOPE,
    Calibration,
    expected_accuracy,
    from_left_out,
    from_text_model,
    log_odds,
    slope_to_mean,
)


def drawn(n: int, slope: float, offset: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and whether the prediction is right, by a calibration of this slope and offset."""
    draw = np.random.default_rng(seed)
    odds = torch.from_numpy(draw.normal(2.0, 2.0, n))
    right = torch.from_numpy(draw.random(n)) < torch.sigmoid(slope * odds + offset)
    return torch.sigmoid(odds), right


def test_from_left_out__finds_what_was_drawn() -> None:
    found = from_left_out(*drawn(50_000, 0.4, -0.5))
    assert found.slope == pytest.approx(0.4, abs=0.02)
    assert found.offset == pytest.approx(-0.5, abs=0.05)
    assert (found.source, found.n) == ("left-out labels", 50_000)


def test_from_left_out__few_labels_move_little_and_too_few_nothing() -> None:
    probability, right = drawn(40, 0.1, 3.0)
    found = from_left_out(probability, right)
    assert abs(found.offset - USUAL_OFFSET) < 3.0 - USUAL_OFFSET
    assert from_left_out(probability[:9], right[:9]) == Calibration(USUAL_SLOPE, USUAL_OFFSET, "none", 0)
    assert from_left_out(torch.empty(0), torch.empty(0, dtype=torch.bool)).source == "none"


def test_from_left_out__never_infinite_where_all_are_right() -> None:
    found = from_left_out(torch.full((200,), 0.99), torch.ones(200, dtype=torch.bool))
    assert 0 < found.slope < 10
    assert 0.97 < found(torch.tensor([0.99])).item() < 1


def test_from_left_out__like_scales_the_odds_of_another_classifier() -> None:
    probability, right = drawn(5_000, 0.5, 0.0)
    is_moderate = log_odds(probability).abs() < 6  # twice as much is still below what float32 can tell from 1
    probability, right = probability[is_moderate], right[is_moderate]
    plain, scaled = from_left_out(probability, right), from_left_out(probability, right, like=0.5)
    twice = torch.sigmoid(2 * log_odds(probability))
    assert torch.allclose(scaled(twice), plain(probability), atol=1e-5)


def test_slope_to_mean__meets_the_mean_and_never_sharpens() -> None:
    probability, _ = drawn(1_000, 1.0, 0.0)
    for mean in (0.55, 0.6, 0.65):
        assert Calibration(slope_to_mean(probability, mean))(probability).mean().item() == pytest.approx(mean, abs=1e-4)
    assert slope_to_mean(probability, 0.999) == 1.0
    assert slope_to_mean(probability, 0.1) == 0.01


def test_from_text_model__an_overconfident_answer_is_brought_down() -> None:
    found = from_text_model(torch.full((100,), 0.99), 0.7)
    assert found(torch.full((1,), 0.99)).item() == pytest.approx(0.7, abs=1e-4)


def test_calibration__keeps_the_order_and_certainty_finite() -> None:
    p = torch.tensor([0.2, 0.5, 0.9, 1.0])
    trust = Calibration(0.7, 0.1)(p)
    assert (trust.diff() > 0).all()
    assert torch.isfinite(trust).all()
    assert Calibration()(p[:3]).tolist() == pytest.approx(p[:3].tolist())


def test_expected_accuracy__says_nothing_without_a_source() -> None:
    assert expected_accuracy(torch.tensor([0.8]), Calibration())[1:] == (0.0, 1.0)
    mean, low, high = expected_accuracy(torch.full((9,), 0.7), Calibration(source="text model"))
    assert (mean, low, high) == (pytest.approx(0.7), pytest.approx(0.35), pytest.approx(0.85))
