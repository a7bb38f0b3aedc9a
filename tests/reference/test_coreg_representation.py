"""The prototypes and contrastive sections of coreg.json, reached through the public functions."""

import json
from pathlib import Path

import pytest
import torch

from labelwright.losses.contrastive import init_queue, noisy_contrastive, push_queue
from labelwright.losses.prototypes import prototype_loss, update_prototypes

CASES = json.loads(Path(__file__).with_name("coreg.json").read_text())["cases"]
EACH = pytest.mark.parametrize("case", CASES)
RULES = {
    "cautious": "cautious",
    "high_confidence_positive": "high_confidence",
    "supervised": "supervised",
    "unsupervised": "unsupervised",
}


def filled_queue(given, *, n_empty=0):
    """The queue of the reference, in slots of which the last ``n_empty`` were never filled."""
    keys = torch.tensor(given["queue"])
    labels = torch.tensor(given["queue_probabilities"]).argmax(dim=1)
    empty = init_queue(len(keys) + n_empty, keys.shape[1])
    return push_queue(empty, keys, labels, torch.tensor(given["queue_reliable"]).bool())


def contrastive(given, rule, queue):
    return noisy_contrastive(
        torch.tensor(given["query"]),
        torch.tensor(given["key"]),
        labels=torch.tensor(given["batch_probabilities"]).argmax(dim=1),
        is_reliable=torch.tensor(given["batch_reliable"]).bool(),
        queue=queue,
        rule=rule,
        temperature=given["temperature"],
    ).item()


@pytest.mark.parametrize("name", RULES)
@EACH
def test_contrastive(case, name):
    given = case["contrastive"]
    assert set(given["expected"]) == set(RULES)
    got = contrastive(given, RULES[name], filled_queue(given))
    assert got == pytest.approx(given["expected"][name], rel=1e-6)
    assert contrastive(given, RULES[name], filled_queue(given, n_empty=5)) == pytest.approx(got, rel=1e-6)


@EACH
def test_prototypes_after_the_update(case):
    given = case["prototypes"]
    before, feats = torch.tensor(given["before"]), torch.tensor(given["features"])
    after = update_prototypes(before, feats, torch.tensor(given["labels"]), decay=given["momentum"])
    # the file has seven decimals; one update moves a prototype by up to 1e-3
    torch.testing.assert_close(after, torch.tensor(given["after"]), rtol=0, atol=2e-7)


@EACH
def test_prototype_loss(case):
    given, mixing, targets = case["prototypes"], case["self_training"], case["pseudo_labels"]["expected"]
    reliable, unreliable = torch.tensor(targets["reliable"]), torch.tensor(targets["unreliable"])
    loss = prototype_loss(
        torch.tensor(given["batch_features"]),
        torch.tensor(given["after"]),
        torch.cat([reliable, reliable, unreliable, unreliable]),
        is_reliable=torch.arange(20) < 2 * len(reliable),
        permutation=torch.tensor(mixing["permutation"]),
        lam=mixing["mixup_lambda"],
        temperature=given["temperature"],
    )
    assert loss.item() == pytest.approx(given["expected_loss"], rel=1e-6)
