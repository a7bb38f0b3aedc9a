"""The numbers of gaussians.json: what the starts of CAP and of Co-Reg came to before one function made both.

The file was written by labels.shape.fit_shape and labels.guess_shape._fit of commit 019621e.
"""

import json
from pathlib import Path

import pytest
import torch

from labelwright.labels.candidate_beliefs import candidate_beliefs
from labelwright.labels.gaussians import gaussian_beliefs
from labelwright.types import Candidates, Task

REFERENCE = json.loads(Path(__file__).with_name("gaussians.json").read_text())


def close(found, expected):
    """To 1e-5, of the largest number if that is above 1: float32, and EM repeats what rounding differs by."""
    expected = torch.tensor(expected)
    scale = max(1.0, float(expected.abs().max()))
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-5, abs=1e-5 * scale)


@pytest.mark.parametrize("case", REFERENCE["text"])
def test_text_evidence(case):
    z, labels = torch.tensor(case["feats"]), torch.tensor(case["labels"])
    text = z @ torch.tensor(case["text_weight"]).T
    found = gaussian_beliefs(
        z,
        lambda rows: text[rows],
        labels,
        strength=case["strength"],
        shrinkage=case["shrinkage"],
        n_iter=case["n_iterations"],
    )
    close(case["strength"] * found.weight, case["weight"])
    close(case["strength"] * found.bias, case["bias"])
    probs = found.probs(z, text)
    probs[labels >= 0] = torch.eye(len(case["bias"]))[labels[labels >= 0]]
    close(probs.mean(0), case["prior"])


@pytest.mark.parametrize("case", REFERENCE["candidates"])
def test_candidate_evidence(case):
    sets = Candidates(*(torch.tensor(case[key]) for key in ("offsets", "classes", "weights")))
    prior = None if case["known_prior"] is None else torch.tensor(case["known_prior"])
    rows = torch.tensor(case["rows"])
    found = candidate_beliefs(
        torch.tensor(case["feats"])[rows],
        Task(torch.tensor(case["labels"])[rows], ("a", "b", "c"), sets.take(rows)),
        strength=case["strength"],
        shrinkage=case["shrinkage"],
        n_iter=case["n_iterations"] + 1,  # the first E-step was not counted
        prior=prior,
    )
    close(found.beliefs.weight, case["weight"])
    close(found.beliefs.bias, case["bias"])
    close(found.beliefs.prior, case["prior"])
    close(found.miss, case["miss"])
