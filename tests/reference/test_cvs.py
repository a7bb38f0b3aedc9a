"""Every number of cvs.json, reached through the public functions the way a recipe drives them."""

import json
from pathlib import Path

import pytest
import torch

from labelwright.adjust import fixed
from labelwright.adjust import slopes as calibration
from labelwright.losses.classification import focal, ldam, vector_scaled_cross_entropy

REFERENCE = json.loads(Path(__file__).with_name("cvs.json").read_text())
BATCH = 64  # the reference run's


def losses_of(case):
    logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
    counts, class_weight = torch.tensor(case["counts"]), torch.tensor(case["class_weight"])
    prior = fixed.prior(counts)
    multiplier = fixed.mla_multiplier(prior, torch.tensor(case["kappa_multiplicative"]), power=case["gamma"])
    cla = fixed.cla_offset(prior, torch.tensor(case["kappa_additive"]), strength=case["tau"])
    alpha = fixed.inverse_prior_weights(counts, power=case["rho"])
    la = fixed.la_offset(counts, strength=case["tau"])
    vs = fixed.vs_multiplier(counts, power=case["gamma"])
    margins = fixed.ldam_margins(counts, max_margin=0.5)
    family = vector_scaled_cross_entropy
    return {
        "cvs_multiplicative": family(logits, labels, multiplier=multiplier),
        "cvs_additive": family(logits, labels, offset=cla),
        "cvs_additive_reweighted": family(logits, labels, offset=cla, class_weight=alpha),
        "cvs_full": family(logits, labels, multiplier=multiplier, offset=cla, class_weight=alpha),
        "vector_scaling": family(logits, labels, multiplier=vs, offset=la),
        "logit_adjustment": family(logits, labels, offset=la),
        "ldam": ldam(logits, labels, margins=margins, scale=30.0),
        "ldam_weighted": ldam(logits, labels, margins=margins, scale=30.0, class_weight=class_weight),
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
        memory = calibration.push(memory, logits[start : start + BATCH], labels[start : start + BATCH])
    kappa = calibration.slopes(memory, n_bins=case["bins"], clamp=tuple(case["clamp"]))
    after = calibration.ema(torch.ones(len(counts)), kappa, decay=case["momentum"])

    expected = case["expected"]
    assert kappa.tolist() == pytest.approx(expected["kappa"], rel=1e-5)
    assert after.tolist() == pytest.approx(expected["kappa_multiplicative_after_one_update"], rel=1e-5)
    assert after.tolist() == pytest.approx(expected["kappa_additive_after_one_update"], rel=1e-5)


def test_cases_are_all_here():
    assert (len(REFERENCE["losses"]), len(REFERENCE["slopes"])) == (2, 2)
    assert all(len(case["expected"]) == 9 for case in REFERENCE["losses"])
