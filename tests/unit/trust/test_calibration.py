"""The chance that a label is right."""

import dataclasses

import numpy as np
import pytest
import torch

from labelwright.errors import DataError
from labelwright.reporting.words import is_doubted
from labelwright.train.predict import TEMPERATURES, odds_of
from labelwright.trust.calibration import (
    LEAST_SLOPE,
    MIDDLE,
    USUAL,
    Calibration,
    cross_fitted,
    expected_accuracy,
    from_confidence,
    from_left_out,
    from_verified,
    levelled,
    slope_to_mean,
    unjudged,
    with_evidence,
)


def drawn(n: int, slope: float, offset: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds of two classes, and whether the prediction is right, by a calibration of this slope and offset."""
    draw = np.random.default_rng(seed)
    odds = torch.from_numpy(np.abs(draw.normal(2.0, 2.0, n)))
    right = torch.from_numpy(draw.random(n)) < torch.sigmoid(slope * odds + offset)
    return torch.stack([odds / t for t in TEMPERATURES], 1), right


def test_from_left_out__finds_what_was_drawn() -> None:
    odds, right = drawn(50_000, 0.4, -0.5)
    found = from_left_out(odds, right)
    assert found.slope / found.temperature == pytest.approx(0.4, abs=0.02)
    assert found.offset == pytest.approx(-0.5, abs=0.05)
    assert (found.source, found.n) == ("left-out labels", 50_000)


def test_from_left_out__takes_the_temperature_that_tells_right_from_wrong() -> None:
    """Right by the classes behind the second: of three classes, the nearer the last two the surer."""
    draw = np.random.default_rng(0)
    behind = torch.from_numpy(draw.normal(0, 6, 4000)).abs()
    logits = torch.stack([torch.zeros(4000), torch.full((4000,), -8.0), -8 - behind], 1).double()
    right = torch.from_numpy(draw.random(4000)) < torch.sigmoid(behind - 3)
    assert from_left_out(odds_of(logits.softmax(1)), right, n_classes=3).temperature == max(TEMPERATURES)


def test_from_left_out__few_labels_move_little_and_too_few_nothing() -> None:
    odds, right = drawn(40, 0.1, 3.0)
    found = from_left_out(odds, right)
    usual = USUAL[TEMPERATURES.index(found.temperature)]
    assert abs(found.offset - usual[1]) < 3.0 - usual[1]
    few = from_left_out(odds[:9], right[:9])
    assert few == Calibration(*USUAL[MIDDLE], "none", 0, 2, TEMPERATURES[MIDDLE])
    assert from_left_out(odds[:0], right[:0]).source == "none"


def with_wrong(right: torch.Tensor, share: float, n_classes: int, seed: int = 1) -> torch.Tensor:
    """Whether predictions agree with labels of which a share is wrong: any other class as often."""
    draw = np.random.default_rng(seed)
    is_wrong = torch.from_numpy(draw.random(len(right)) < share)
    by_chance = torch.from_numpy(draw.random(len(right)) < 1 / (n_classes - 1))
    return torch.where(is_wrong, ~right & by_chance, right)


@pytest.mark.parametrize("n_classes", [2, 10])
def test_from_left_out__wrong_labels_do_not_lower_trust(n_classes: int) -> None:
    odds, right = drawn(4_000, 0.9, -0.5)
    clean, seen = from_left_out(odds, right), with_wrong(right, 0.1, n_classes)
    blind = from_left_out(odds, seen, n_classes=n_classes)
    found = from_left_out(odds, seen, n_classes=n_classes, most_wrong=0.15)
    assert found.wrong == pytest.approx(0.1, abs=0.04)
    mean, lowered, expected = (float(each.chance(odds).mean()) for each in (found, blind, clean))
    assert mean == pytest.approx(expected, abs=0.025)
    assert lowered < expected - 0.05
    agree = found.agreement(found.chance(odds))
    assert float(agree.mean()) == pytest.approx(float(seen.double().mean()), abs=0.01)
    assert float(cross_fitted(odds, seen, n_classes=n_classes, most_wrong=0.15).mean()) == pytest.approx(
        float(agree.mean()), abs=0.02
    )


def test_from_left_out__right_labels_are_hardly_taken_for_wrong() -> None:
    raised = []
    for seed in range(10):
        odds, right = drawn(400, 0.9, -0.5, seed)
        plain = from_left_out(odds, right, n_classes=5)
        found = from_left_out(odds, right, n_classes=5, most_wrong=0.1)
        raised.append(float((found.chance(odds) - plain.chance(odds)).mean()))
    assert -0.005 < np.mean(raised) < 0.02
    assert from_left_out(odds, right, n_classes=5, most_wrong=0.0) == plain


def test_from_left_out__where_an_audit_finds_many_wrong_labels_some_are() -> None:
    off = []
    for seed in range(10):
        odds, right = drawn(600, 0.8, -0.5, seed)
        found = from_left_out(odds, with_wrong(right, 0.4, 10, seed), n_classes=10, most_wrong=0.42)
        off.append(float(found.chance(odds).mean()) - float(right.double().mean()))
    assert np.mean(np.abs(off)) < 0.03


def test_expected_accuracy__wider_by_half_of_the_wrong_labels() -> None:
    trust = torch.full((100,), 0.8)
    plain, other = (Calibration(1.0, 0.0, "left-out labels", 400, wrong=share) for share in (0.0, 0.1))
    (mean, low, high), wider = expected_accuracy(trust, plain), expected_accuracy(trust, other)
    assert wider == pytest.approx((mean, low - 0.05, high + 0.05))


def test_from_confidence__votes_are_ordered_as_they_are() -> None:
    odds, _ = drawn(200, 1.0, 0.0)
    alone = from_confidence(odds, 0.8, "candidates")
    voted = from_confidence(odds, 0.8, "candidates", is_voted=True)
    assert (alone.temperature, voted.temperature) == (2.0, 1.0)
    assert float(voted.chance(odds).mean()) == pytest.approx(0.8, abs=1e-3)
    assert torch.equal(voted.chance(odds).argsort(stable=True), odds[:, 0].argsort(stable=True))
    same = from_confidence(odds, float(odds[:, 0].sigmoid().mean()), "candidates", is_voted=True)
    assert torch.allclose(same.chance(odds), odds[:, 0].sigmoid().float(), atol=1e-4)


def test_unjudged__is_far_less_sure_than_the_softmax() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.97, 0.02, 0.01], [1 - 1e-6, 5e-7, 5e-7]])
    chances = unjudged(3).chance(odds_of(probs))
    assert (chances.diff() > 0).all()
    assert chances[1] < 0.85
    assert chances[2] > 0.9
    assert unjudged(200).chance(odds_of(torch.eye(200)[:1])).item() < 0.95  # certain of one of many
    assert unjudged(3).source == "none"


def test_cross_fitted__the_labels_of_a_row_have_no_part_in_its_chance() -> None:
    odds, right = drawn(40, 0.4, -0.5)
    chances = cross_fitted(odds, right)
    for i in range(0, 40, 7):
        other = right.clone()
        other[i] = ~other[i]
        assert cross_fitted(odds, other)[i] == chances[i]
    assert not torch.equal(cross_fitted(odds, ~right), chances)
    assert len(cross_fitted(odds[:0], right[:0])) == 0
    assert cross_fitted(odds[:1], right[:1]) == Calibration(USUAL[MIDDLE][0], USUAL[MIDDLE][1], temperature=2).chance(
        odds[:1]
    )


def test_cross_fitted__evidence_moves_chances_about_their_mean() -> None:
    odds, right = drawn(2_000, 0.4, -0.5)
    plain, moved = cross_fitted(odds, right), cross_fitted(with_evidence(odds, 4 * right.double() - 2), right)
    assert float(moved.mean()) == pytest.approx(float(plain.mean()), abs=1e-3)
    assert (moved > plain)[right].all()
    assert (moved < plain)[~right].all()


def test_from_left_out__never_infinite_where_all_are_right() -> None:
    odds = odds_of(torch.tensor([[0.99, 0.01]]).expand(200, 2))
    found = from_left_out(odds, torch.ones(200, dtype=torch.bool))
    assert 0 < found.slope < 10
    assert 0.97 < found.chance(odds[:1]).item() < 1


def test_from_left_out__like_scales_the_odds_of_another_classifier() -> None:
    odds, right = drawn(5_000, 0.5, 0.0)
    plain, scaled = from_left_out(odds, right), from_left_out(odds, right, like=(0.5, 0.5, 0.5))
    assert torch.allclose(scaled.chance(2 * odds), plain.chance(odds), atol=1e-6)


def test_slope_to_mean__meets_the_mean_and_stays_within() -> None:
    odds = drawn(1_000, 1.0, 0.0)[0][:, 0]
    for mean in (0.55, 0.65, 0.75):
        assert Calibration(slope_to_mean(odds, mean)).at(odds).mean().item() == pytest.approx(mean, abs=1e-4)
    assert slope_to_mean(odds, 0.999) == 1.0
    assert slope_to_mean(odds, 0.1) == LEAST_SLOPE


def test_from_confidence__an_overconfident_answer_is_brought_down_and_none_up() -> None:
    odds = odds_of(torch.tensor([[0.99, 0.01]]).expand(100, 2))
    assert from_confidence(odds, 0.7, "text model").chance(odds).mean().item() == pytest.approx(0.7, abs=1e-4)
    assert from_confidence(odds, 0.999, "candidates").chance(odds).mean().item() == pytest.approx(0.99, abs=1e-4)


@pytest.mark.parametrize("is_voted", [False, True])
def test_from_confidence__others_who_rather_do_not_know_the_classes_are_right_by_chance(is_voted) -> None:
    odds = odds_of(torch.randn(400, 10, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1))
    found = from_confidence(odds, 0.7, "text model", n_classes=10, is_voted=is_voted, known=0.25)
    trust = found.chance(odds)
    assert found.lowered == pytest.approx(0.75 * 0.6)
    assert float(trust.mean()) == pytest.approx(0.25, abs=0.02)
    mean, low, high = expected_accuracy(trust, found)
    assert (mean, low) == (pytest.approx(0.25, abs=0.02), 0.0)
    assert high == pytest.approx(0.85, abs=0.02), "as if the names were known"
    assert is_doubted(found.to_dict() | {"estimated": mean})
    assert not is_doubted(Calibration().to_dict() | {"estimated": None})


def test_from_confidence__a_saturated_softmax_is_brought_down_to_the_chance_of_a_guess() -> None:
    odds = torch.tensor([[86.0, 43.0, 20.0], [80.0, 40.0, 18.0]], dtype=torch.float64)
    found = from_confidence(odds, 0.5, "text model", n_classes=6, known=0.07)
    assert float(found.chance(odds).mean()) == pytest.approx(1 / 6 + 0.07 * (0.5 - 1 / 6), abs=0.01)


def test_calibration__keeps_the_order_and_certainty_finite() -> None:
    p = torch.tensor([0.5, 0.6, 0.9, 1.0])
    odds = odds_of(torch.stack([p, 1 - p], 1))
    trust = Calibration(0.7, 0.1).chance(odds)
    assert (trust.diff() > 0).all()
    assert torch.isfinite(trust).all()
    assert Calibration().chance(odds).tolist() == pytest.approx(p.tolist())


def test_expected_accuracy__says_nothing_without_a_source() -> None:
    assert expected_accuracy(torch.tensor([0.8]), Calibration())[1:] == (0.0, 1.0)
    for source in ("text model", "candidates"):
        mean, low, high = expected_accuracy(torch.full((9,), 0.7), Calibration(source=source))
        assert (mean, low, high) == (pytest.approx(0.7), pytest.approx(0.35), pytest.approx(0.85))
    doubted = Calibration(source="candidates", moved=0.2)
    assert expected_accuracy(torch.full((9,), 0.7), doubted)[1:] == (pytest.approx(0.15), pytest.approx(0.85))


def test_expected_accuracy__is_wider_by_half_of_what_moved() -> None:
    trust, still = torch.full((50,), 0.7), Calibration(source="left-out labels", n=200)
    mean, low, high = expected_accuracy(trust, still)
    moved = expected_accuracy(trust, dataclasses.replace(still, moved=0.2))
    assert moved == (pytest.approx(mean), pytest.approx(low - 0.1), pytest.approx(high + 0.1))


def test_levelled__evidence_moves_chances_and_not_their_mean() -> None:
    odds = drawn(2_000, 0.5, 0.0)[0]
    evidence = torch.from_numpy(np.random.default_rng(1).normal(3.0, 2.0, 2_000))
    plain = Calibration(0.6, -0.2, "left-out labels", 50, 2, 2.0)
    both = with_evidence(odds, evidence)
    found = levelled(plain, both)
    before, after = plain.chance(odds).double(), found.chance(both).double()
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-5)
    moved = after.logit() - before.logit() - evidence
    assert (moved - moved.mean()).abs().max() < 1e-2  # float32 near 1
    assert levelled(plain, odds) == plain


def test_from_verified__left_out_labels_help_where_they_agree_and_are_left_behind_where_they_do_not() -> None:
    odds, right = drawn(4_000, 0.4, -0.2, seed=2)
    error: dict[str, list[float]] = {"both": [], "verified alone": [], "misled": []}
    misled = Calibration(1.0, 4.0, "left-out labels", 300, 2, 1.0)  # of images of another kind
    for seed in range(12):
        draw = np.random.default_rng(seed)
        left_out, rows = (torch.from_numpy(draw.choice(4_000, 60, replace=False)) for _ in range(2))
        before = from_left_out(odds[left_out], right[left_out])
        alone = from_left_out(odds[rows], right[rows])
        found = {"both": before, "verified alone": Calibration(n_classes=2), "misled": misled}
        for key, known in found.items():
            mean = from_verified(known, odds, rows, right[rows]).chance(odds).mean() - right.double().mean()
            error[key].append(float(mean.abs()))
        same = from_verified(Calibration(n_classes=2), odds, rows, right[rows])
        assert same.chance(odds).tolist() == pytest.approx(alone.chance(odds).tolist(), abs=1e-4)
    means = {key: float(np.mean(values)) for key, values in error.items()}
    assert means["both"] < 0.9 * means["verified alone"]  # as of 120 labels: 0.71
    assert means["misled"] < 1.5 * means["verified alone"]
    assert from_verified(misled, odds, rows[:9], right[rows[:9]]) is misled


@pytest.mark.parametrize("source", ["text model", "candidates"])
def test_from_verified__a_map_without_left_out_labels_helps_as_long_as_verified_ones_may_agree(source: str) -> None:
    """With a hundred verified labels alone the chances are those of three numbers fitted to so few."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=g)
    odds = odds_of(logits.softmax(1))
    true = Calibration(0.5, 0.0, source, 0, 5, 2.0)
    off = {"as it is": true, "nothing": Calibration(n_classes=5), "too sure": Calibration(3.0, 1.0, source, 0, 5, 2.0)}
    errors = {name: [] for name in off}
    for _ in range(20):
        right = torch.rand(4000, generator=g) < true.chance(odds)
        rows = torch.randperm(4000, generator=g)[:100]
        for name, known in off.items():
            found = from_verified(known, odds, rows, right[rows])
            assert (found.source, found.n) == ("left-out labels", 100)
            errors[name].append((found.chance(odds) - true.chance(odds)).abs().mean().item())
    mean = {name: sum(each) / len(each) for name, each in errors.items()}
    assert mean["as it is"] < 0.75 * mean["nothing"]
    assert mean["too sure"] < 1.5 * mean["nothing"]


def test_from_left_out__log_odds_that_are_not_finite_are_refused() -> None:
    odds, right = drawn(500, 0.4, -0.2, seed=2)
    odds[3] = torch.nan
    with pytest.raises(DataError, match="log-odds are not finite"):
        from_left_out(odds, right)
