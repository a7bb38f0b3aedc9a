"""Every number of cvs.json, reached through the public functions the way a recipe drives them."""

import json
from pathlib import Path

import pytest
import torch

from labelwright.adjust import fixed
from labelwright.adjust import slopes as calibration
from labelwright.losses.classification import adjusted_cross_entropy, focal

REFERENCE = json.loads(Path(__file__).with_name("cvs.json").read_text())
BATCH = 64  # the reference run's


def losses_of(case):
    logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
    counts, class_weight = torch.tensor(case["counts"]), torch.tensor(case["class_weight"])
    prior = fixed.prior(counts)
    mla = fixed.multiplicative_adjustment(prior, torch.tensor(case["kappa_multiplicative"]), power=case["gamma"])
    cla = fixed.additive_adjustment(prior, torch.tensor(case["kappa_additive"]), strength=case["tau"])
    alpha = fixed.inverse_prior_weights(counts, power=case["rho"])
    la = fixed.logit_adjustment(counts, strength=case["tau"])
    vs = fixed.vector_scaling(counts, power=case["gamma"], strength=case["tau"])
    margins = fixed.ldam(counts, max_margin=0.5, scale=30.0)
    return {
        "cvs_multiplicative": adjusted_cross_entropy(logits, labels, mla),
        "cvs_additive": adjusted_cross_entropy(logits, labels, cla),
        "cvs_additive_reweighted": adjusted_cross_entropy(logits, labels, cla, class_weight=alpha),
        "cvs_full": adjusted_cross_entropy(logits, labels, mla + cla, class_weight=alpha),
        "vector_scaling": adjusted_cross_entropy(logits, labels, vs),
        "logit_adjustment": adjusted_cross_entropy(logits, labels, la),
        "ldam": adjusted_cross_entropy(logits, labels, margins),
        "ldam_weighted": adjusted_cross_entropy(logits, labels, margins, class_weight=class_weight),
        "focal_gamma1": focal(logits, labels, power=1.0),
    }


@pytest.mark.parametrize("index", range(len(REFERENCE["losses"])))
def test_losses(index):
    case = REFERENCE["losses"][index]
    got = losses_of(case)
    assert got.keys() == case["expected"].keys()
    for name, expected in case["expected"].items():
        assert got[name].item() == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("index", range(len(REFERENCE["slopes"])))
def test_slopes(index):
    case = REFERENCE["slopes"][index]
    logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
    counts = torch.tensor(case["counts"])
    memory = calibration.init_memory(counts, samples_per_class=case["samples_per_class"])
    for start in range(0, len(labels), BATCH):
        memory = calibration.push(
            memory, labels[start : start + BATCH], *calibration.score_rows(logits[start : start + BATCH])
        )
    rows = calibration.rows_of(memory)
    kappa = calibration.slopes_from_rows(
        rows["predicted"],
        rows["confidence"],
        rows["correct"],
        n_classes=len(counts),
        n_bins=case["bins"],
        clamp=tuple(case["clamp"]),
    )
    after = calibration.ema(torch.ones(len(counts)), kappa, decay=case["momentum"])

    expected = case["expected"]
    assert kappa.tolist() == pytest.approx(expected["kappa"], rel=1e-5)
    assert after.tolist() == pytest.approx(expected["kappa_multiplicative_after_one_update"], rel=1e-5)
    assert after.tolist() == pytest.approx(expected["kappa_additive_after_one_update"], rel=1e-5)


def test_cases_are_all_here():
    assert (len(REFERENCE["losses"]), len(REFERENCE["slopes"])) == (2, 2)
    assert all(len(case["expected"]) == 9 for case in REFERENCE["losses"])
