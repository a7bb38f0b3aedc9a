"""Every number of cap.json, reached through the public functions the way the recipe drives them."""

import json
from pathlib import Path

import pytest
import torch

from labelwright.adjust.confusion import confusion_margin, pace, rescaled_similarity
from labelwright.labels import main_set
from labelwright.losses.classification import adjusted_cross_entropy

REFERENCE = json.loads(Path(__file__).with_name("cap.json").read_text())
MARGINS = pytest.mark.parametrize("case", REFERENCE["margins"])


def paces_of(case):
    """The paper expects as many of every class, and compares with those that have only labelled images too."""
    counts = torch.tensor(case["pseudo_label_counts"])
    seen = torch.isin(torch.arange(len(counts)), torch.tensor(case["seen_classes"], dtype=torch.int64))
    return pace(counts, torch.ones(len(counts)), labelled_only=seen)


def margin_of(case):
    similarity = rescaled_similarity(torch.tensor(case["text_features"]), torch.tensor(case["visual_prototypes"]))
    return confusion_margin(similarity, paces_of(case), scale=case["margin_scale"])


@MARGINS
def test_similarity(case):
    found = rescaled_similarity(torch.tensor(case["text_features"]), torch.tensor(case["visual_prototypes"]))
    torch.testing.assert_close(found, torch.tensor(case["expected"]["similarity"]), rtol=1e-5, atol=1e-5)


@MARGINS
def test_margin(case):
    found, expected = margin_of(case).pair_margin, torch.tensor(case["expected"]["margin"])
    others = ~torch.eye(len(expected), dtype=torch.bool)
    torch.testing.assert_close(found[others], expected[others], rtol=1e-5, atol=1e-5)
    assert found.diagonal().tolist() == [0.0] * len(expected)
    assert expected.diagonal().abs().max() == case["margin_scale"]  # there the reference is not zero: it is unused


@MARGINS
def test_loss(case):
    labels = torch.tensor(case["labels"])
    loss = adjusted_cross_entropy(torch.tensor(case["logits"]), labels, margin_of(case))
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)


@pytest.mark.parametrize("largest", [0, 1000])
def test_labelled_only_classes_keep_pace_and_are_compared_with(largest):
    """As published: over the largest count of all classes, then 1 for labelled-only ones."""
    case = dict(REFERENCE["margins"][1])
    counts = [*case["pseudo_label_counts"][:4], largest, *case["pseudo_label_counts"][5:]]
    case["pseudo_label_counts"] = counts
    assert case["seen_classes"] == [0, 4]
    assert max(counts) == (largest or 369)
    want = [1.0 if c in case["seen_classes"] else count / max(counts) for c, count in enumerate(counts)]
    assert paces_of(case).tolist() == pytest.approx(want, rel=1e-6)
    assert margin_of(case).pair_margin[case["seen_classes"]].abs().max() == 0


@pytest.mark.parametrize("case", REFERENCE["main_set_size"])
def test_main_set_size(case, monkeypatch):
    monkeypatch.setattr(main_set, "MAX_RATIO", case["max_ratio"])
    of = torch.tensor([float(case["unlabelled_per_class"])])
    knobs = {"n_epochs": case["epochs"], "start": case["start"]}
    got = {
        epoch: main_set.main_set_size(int(epoch), unlabelled_per_class=of, **knobs).item() for epoch in case["expected"]
    }
    assert got == case["expected"]


def test_cases_are_all_here():
    assert (len(REFERENCE["margins"]), len(REFERENCE["main_set_size"])) == (2, 3)
    assert all(len(case["expected"]) == 10 for case in REFERENCE["main_set_size"])
