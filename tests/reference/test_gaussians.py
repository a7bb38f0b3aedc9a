"""The numbers of gaussians.json: what the starts of CAP and of Co-Reg came to before one function made both.

The file was written by labels.shape.fit_shape and labels.guess_shape._fit of commit 019621e.
"""

import json
from pathlib import Path

import pytest
import torch

from labelwright.labels import candidate_beliefs
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
def test_candidate_evidence(case, monkeypatch):
    for name in ("strength", "shrinkage"):
        monkeypatch.setattr(candidate_beliefs, name.upper(), case[name])
    monkeypatch.setattr(candidate_beliefs, "N_ITER", case["n_iterations"] + 1)  # the first E-step was not counted
    sets = Candidates(*(torch.tensor(case[key]) for key in ("offsets", "classes", "weights")))
    rows = torch.tensor(case["rows"])
    feats, labels = torch.tensor(case["feats"])[rows], torch.tensor(case["labels"])[rows]
    task = Task(labels, ("a", "b", "c"), sets.take(rows))
    if case["known_prior"] is None:
        found = candidate_beliefs.candidate_beliefs(feats, task)
        beliefs, miss = found.beliefs, found.miss
    else:
        beliefs, miss = candidate_beliefs.fitted(feats, task, torch.tensor(case["known_prior"]))
    close(beliefs.weight, case["weight"])
    close(beliefs.bias, case["bias"])
    close(beliefs.prior, case["prior"])
    close(miss, case["miss"])
