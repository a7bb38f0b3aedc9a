"""The numbers of coreg.json on candidates, targets and the division; the others are in test_coreg_representation.py."""

import json
from pathlib import Path

import pytest
import torch

from labelwright.labels.purify import (
    RUNNING_MIN,
    divide,
    division_losses,
    init_history,
    lifted,
    mean_of,
    min_max,
    push_history,
    reliable_targets,
    sharpen,
)
from labelwright.losses.candidates import negative_entropy, partial_cross_entropy
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.soft_targets import linear_ramp, squared_error_of_probs

REFERENCE = json.loads(Path(__file__).with_name("coreg.json").read_text())
CASES = pytest.mark.parametrize("case", REFERENCE["cases"])
DIVISIONS = pytest.mark.parametrize("case", REFERENCE["division"])


def targets_of(part):
    """Targets of the reliable and of the unreliable images, made the way the recipe makes them."""
    views = [torch.tensor(logits).softmax(dim=1) for logits in part["unreliable_logits"].values()]
    reliable = part["reliable"]
    own = [torch.tensor(reliable[name]).softmax(dim=1) for name in ("logits_view1", "logits_view2")]
    return (
        reliable_targets(
            (own[0] + own[1]) / 2,
            torch.tensor(reliable["other_network_probability"]),
            torch.tensor(reliable["clean_probability"]),
            temperature=part["temperature"],
        ),
        sharpen(torch.stack(views).mean(0), temperature=part["temperature"]),
    )


@CASES
def test_warmup(case):
    part = case["warmup"]
    logits, candidates = torch.tensor(part["logits"]), torch.tensor(part["candidates"]).bool()
    expected = part["expected"]
    assert candidates.all(dim=1).sum() == 1  # the row that is left out
    loss = partial_cross_entropy(logits, candidates)
    assert loss.item() == pytest.approx(expected["partial_cross_entropy"], rel=1e-5)
    assert negative_entropy(logits).item() == pytest.approx(expected["negative_entropy"], rel=1e-5)
    losses = division_losses(logits.softmax(dim=1), candidates)
    # given to seven places: half of the last one, on top of the relative tolerance
    assert losses.tolist() == pytest.approx(expected["division_loss"], rel=1e-5, abs=5e-8)


@CASES
def test_alignment(case):
    part = case["alignment"]
    history = init_history(case["shapes"]["classes"], len(part["history"]))
    for mean in part["history"]:
        history = push_history(history, torch.tensor([mean]))
    probs = torch.tensor(part["probabilities"])
    expected = torch.tensor(part["expected"])
    for prior in (torch.tensor(part["prior"]), None):
        aligned = lifted(probs, (1.0 if prior is None else prior) / mean_of(history).clamp(min=RUNNING_MIN))
        torch.testing.assert_close(aligned, expected, rtol=1e-5, atol=5e-7)


@CASES
def test_pseudo_labels(case):
    part = case["pseudo_labels"]
    for name, got in zip(("reliable", "unreliable"), targets_of(part), strict=True):
        torch.testing.assert_close(got, torch.tensor(part["expected"][name]), rtol=1e-5, atol=5e-7)


@CASES
def test_self_training(case):
    part, expected = case["self_training"], case["self_training"]["expected"]
    reliable, unreliable = targets_of(case["pseudo_labels"])
    targets = torch.cat([reliable, reliable, unreliable, unreliable])
    lam = part["mixup_lambda"]
    targets = lam * targets + (1 - lam) * targets[part["permutation"]]
    logits = torch.tensor(part["mixed_logits"])
    is_reliable = torch.arange(len(logits)) < 2 * case["shapes"]["reliable"]
    on_reliable = soft_cross_entropy(logits, targets, where=is_reliable)
    on_unreliable = squared_error_of_probs(logits, targets, where=~is_reliable)
    assert on_reliable.item() == pytest.approx(expected["reliable"], rel=1e-5)
    assert on_unreliable.item() == pytest.approx(expected["unreliable"], rel=1e-5)
    ramp = linear_ramp(16 * part["ramp"], length_epochs=16)
    total = on_reliable + ramp * part["lambda_u"] * on_unreliable
    assert total.item() == pytest.approx(expected["total"], rel=1e-5)


@DIVISIONS
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_division(case, seed):
    losses = torch.tensor(case["losses"])
    assert case["settings"] == {"n_components": 2, "max_iter": 10, "tol": 0.01, "reg_covar": 0.0005}
    clean, means = divide(min_max(losses), seed=seed)
    # one image lies near the threshold, where two correct mixtures may differ
    assert abs((clean > 0.5).sum().item() - case["expected"]["reliable_count"]) <= 1
    assert means == pytest.approx(case["expected"]["means"], rel=1e-3)


def test_cases_are_all_here():
    assert (len(REFERENCE["cases"]), len(REFERENCE["division"])) == (1, 1)
