"""The numbers of lps.json: targets, mask, distribution, margins, every loss of a step, and the clustering accuracy."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from labelwright.adjust.pace import class_distribution, divergence, pace_margin
from labelwright.losses.candidates import negative_entropy_of_mean
from labelwright.losses.contrastive import nt_xent, pseudolabel_contrastive
from labelwright.methods import lps
from labelwright.metrics.open_world import cluster_match

REFERENCE = json.loads(Path(__file__).with_name("lps.json").read_text())
CASES = pytest.mark.parametrize("case", REFERENCE["cases"])


@CASES
def test_step(case):
    """The recipe's own terms, from the logits of the three views."""
    expected = case["expected"]
    logits = [torch.tensor(case[name]) for name in ("logits_view1", "logits_weak", "logits_strong")]
    n_labelled, n_classes = case["num_labelled"], case["num_classes"]
    n_rows = len(logits[0])
    labels = torch.cat([torch.tensor(case["labels"]), torch.full((n_rows - n_labelled,), -1)])
    probs = logits[1].softmax(1)
    targets, is_sure = lps.confident(
        probs,
        labels,
        n_seen=case["num_seen"],
        seen_confidence=0.95,
        novel_confidence=lps.novel_confidence(lps.Config(), case["epoch"] / case["epochs"]),
    )
    assert targets.tolist() == expected["targets"]
    assert is_sure.float().tolist() == expected["mask"]
    estimate = class_distribution(probs, where=is_sure)
    prior = torch.full((n_classes,), 1 / n_classes)
    assert estimate.tolist() == pytest.approx(expected["class_distribution"], rel=1e-5, abs=5e-8)
    assert divergence(estimate, prior).item() == pytest.approx(expected["kl_uniform_to_estimate"], rel=1e-5)
    adjustment = pace_margin(estimate, prior, scale=10.0)
    assert adjustment.target_margin.tolist() == pytest.approx(expected["margins"], rel=1e-5)
    terms = lps.terms(lps.Config(), logits, targets, is_sure, labels, adjustment)
    assert terms["loss_labelled"].item() == pytest.approx(expected["margin_loss_labelled"], rel=1e-5)
    assert terms["loss_unlabelled"].item() == pytest.approx(expected["margin_loss_unlabelled"], rel=1e-5)
    assert terms["loss_clustering"].item() == pytest.approx(expected["clustering_loss"], rel=1e-5)
    assert terms["loss_contrastive"].item() == pytest.approx(expected["contrastive_loss"], rel=1e-5)
    assert terms["loss_entropy"].item() == pytest.approx(expected["entropy_loss"], rel=1e-5)
    assert sum(terms.values()).item() == pytest.approx(expected["total"], rel=1e-5)


@CASES
def test_pieces(case):
    """The losses by themselves, without the recipe."""
    expected = case["expected"]
    first, weak, strong = (torch.tensor(case[name]) for name in ("logits_view1", "logits_weak", "logits_strong"))
    targets, is_sure = torch.tensor(expected["targets"]), torch.tensor(expected["mask"]).bool()
    z2, z3 = F.normalize(weak, dim=1), F.normalize(strong, dim=1)
    clustering = pseudolabel_contrastive(
        torch.cat([z2, z3]), targets.repeat(2), temperature=0.4, where=is_sure.repeat(2)
    )
    assert clustering.item() == pytest.approx(expected["clustering_loss"], rel=1e-5)
    contrastive = nt_xent(z2, z3, temperature=0.4, where=~is_sure, reduce="sum") / len(z2)
    assert contrastive.item() == pytest.approx(expected["contrastive_loss"], rel=1e-5)
    assert negative_entropy_of_mean(first).item() == pytest.approx(expected["entropy_loss"], rel=1e-5)


@pytest.mark.parametrize("case", REFERENCE["clustering_accuracy"])
def test_clustering_accuracy(case):
    predicted, truth = torch.tensor(case["predictions"]), torch.tensor(case["targets"])
    found = (cluster_match(predicted, truth)[predicted] == truth).float().mean().item()
    assert found == pytest.approx(case["expected"], rel=1e-6)
