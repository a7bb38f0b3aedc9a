"""A classifier fitted to answers: what labelled rows count, and what it ends on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels import self_training as module
from labelwright.labels.self_training import self_train


def made(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two overlapping classes of 40 rows; the first ten rows of the first one are labelled."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[1.0, 0.0, 0.3], [0.2, 1.0, 0.3]])
    feats = F.normalize(centres.repeat_interleave(40, 0) + 0.4 * torch.randn(80, 3, generator=draw), dim=1)
    labels = torch.full((80,), -1)
    labels[:10] = 0
    return feats, labels, centres


def trained(feats: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    weight, bias = self_train(feats, labels, 4 * centres, torch.zeros(2), balanced=lambda logits: torch.zeros(2))
    return torch.cat([weight, bias[:, None]], dim=1)


def test_self_train__a_labelled_row_counts_as_often_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, labels, centres = made(0)
    monkeypatch.setattr(module, "LABELLED_WEIGHTS", (2.0, 2.0))
    twice = trained(feats, labels, centres)
    monkeypatch.setattr(module, "LABELLED_WEIGHTS", (1.0, 1.0))
    known = labels >= 0
    in_two = trained(torch.cat([feats, feats[known]]), torch.cat([labels, labels[known]]), centres)
    once = trained(feats, labels, centres)
    probs = [(F.pad(feats, (0, 1), value=1.0) @ both.T).softmax(1) for both in (twice, in_two, once)]
    assert torch.allclose(probs[0], probs[1], atol=2e-3)
    assert (probs[0] - probs[2]).abs().max() > 0.02


def test_self_train__learns_the_answers_as_they_were_balanced() -> None:
    feats, labels, centres = made(2)
    shares = []
    for push in (0.0, 5.0):
        offset = torch.tensor([0.0, push])
        weight, bias = self_train(feats, labels, 4 * centres, torch.zeros(2), balanced=lambda _, o=offset: o)
        shares.append((feats[labels < 0] @ weight.T + bias).softmax(1)[:, 1].mean())
    answers = (4 * feats[labels < 0] @ centres.T + torch.tensor([0.0, 5.0])).softmax(1)[:, 1].mean()
    assert shares[0] < 0.7 < shares[1] < answers
