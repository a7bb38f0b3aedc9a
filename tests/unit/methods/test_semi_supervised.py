"""FixMatch and SoftMatch: each term by hand, alignment, the average that answers, what is said when it goes wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from labelwright.methods import semi_supervised
from labelwright.methods.baselines import fixmatch, softmatch
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.types import Batch, Clock, State, Task

CLOCK = Clock(0, 2, 0, 3, 0)
TASK = Task(torch.tensor([0, 1, 1, -1, -1, -1]), ("cat", "dog"))
# The network is a table of logits: images 0 and 1 are labelled views, 2 and 3 weak ones, 4 and 5 strong ones.
LOGITS = torch.tensor([[1.0, 0.0], [0.5, 0.0], [4.0, 0.0], [0.0, 1.0], [0.2, 0.0], [0.0, 0.3]])


class Table(nn.Module):
    """Logits by place."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(LOGITS.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x.long()]


def state_of(**memory: Any) -> State:
    even = torch.tensor([0.5, 0.5])
    return State(nets={"student": Table()}, memory={"prior": even, "mean_answer": even.clone(), **memory})


def batches_of() -> dict[str, Batch]:
    labelled = Batch(torch.tensor([0, 1]), (torch.tensor([0, 1]),), torch.tensor([0, 1]))
    views = (torch.tensor([2, 3]), torch.tensor([4, 5]))
    return {"labelled": labelled, "unlabelled": Batch(torch.tensor([2, 3]), views, torch.tensor([1, -1]))}


def nll(a: float, b: float) -> float:
    """-log softmax of the first of two logits."""
    return math.log(1 + math.exp(b - a))


SUPERVISED = (nll(1.0, 0.0) + nll(0.0, 0.5)) / 2


def test_fixmatch__loss_by_hand() -> None:
    cfg = fixmatch.Config(align=False, confidence=0.9, unlabelled_weight=2.0)
    result = fixmatch.step(cfg, TASK, state_of(), batches_of(), CLOCK)
    # Only the first weak view is sure (0.982 and 0.731); the mean is over both images, as published.
    assert float(result.loss.detach()) == pytest.approx(SUPERVISED + 2.0 * nll(0.2, 0.0) / 2, rel=1e-6)
    assert result.logs["taught_frac"] == 0.5
    assert result.n_kept == 4
    result.loss.backward()  # type: ignore[no-untyped-call]
    grad: Any = result.state.nets["student"].logits.grad  # type: ignore[union-attr]
    assert grad[2:4].abs().max() == 0  # weak views teach and do not learn
    assert grad[4].abs().max() > 0


def test_fixmatch__labels_of_the_unlabelled_stream_are_not_looked_at() -> None:
    cfg, other = fixmatch.Config(), batches_of()
    other["unlabelled"] = Batch(torch.tensor([2, 3]), other["unlabelled"].views, torch.tensor([0, 0]))
    losses = [float(fixmatch.step(cfg, TASK, state_of(), b, CLOCK).loss.detach()) for b in (batches_of(), other)]
    assert losses[0] == losses[1]


def test_alignment__moves_answers_towards_the_labelled_shares() -> None:
    state = state_of(prior=torch.tensor([0.1, 0.9]), mean_answer=torch.tensor([0.5, 0.5]))
    cfg = fixmatch.Config(confidence=0.8, align_decay=0.5)
    result = fixmatch.step(cfg, TASK, state, batches_of(), CLOCK)
    answers = LOGITS[2:4].softmax(1)
    mean = 0.5 * torch.tensor([0.5, 0.5]) + 0.5 * answers.mean(0)
    assert torch.allclose(result.state.memory["mean_answer"], mean)
    ratio = answers * (torch.tensor([0.1, 0.9]) / mean)
    aligned = ratio / ratio.sum(1, keepdim=True)
    assert (aligned.max(1).values >= 0.8).tolist() == [True, True]  # the second was at 0.73 before
    expected = SUPERVISED + (nll(0.2, 0.0) + nll(0.3, 0.0)) / 2
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_softmatch__loss_by_hand() -> None:
    state = state_of(confidence_mean=torch.tensor(0.9), confidence_variance=torch.tensor(0.02))
    cfg = softmatch.Config(align=False, confidence_decay=0.5)
    result = softmatch.step(cfg, TASK, state, batches_of(), CLOCK)
    sure = [1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-1))]
    mean = 0.5 * 0.9 + 0.5 * sum(sure) / 2
    variance = 0.5 * 0.02 + 0.5 * (sure[0] - sure[1]) ** 2 / 2
    weights = [1.0, math.exp(-((sure[1] - mean) ** 2) / (2 * variance / 4))]
    expected = SUPERVISED + (weights[0] * nll(0.2, 0.0) + weights[1] * nll(0.3, 0.0)) / 2
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(result.state.memory["confidence_mean"]) == pytest.approx(mean, rel=1e-6)
    assert float(result.state.memory["confidence_variance"]) == pytest.approx(variance, rel=1e-5)


def test_setup__a_short_run_averages_over_a_twentieth_of_its_steps() -> None:
    decays = []
    for epochs in (10, 100_000):
        cfg = fixmatch.Config(epochs=epochs, batch_size=1, unlabelled_ratio=1)
        state = METHODS["fixmatch"].recipe.setup(cfg, TASK, tiny.BuildTiny())
        decays.append(state.averages["main"].decay)
    assert decays == [pytest.approx(1 - 1 / 3), 0.999]  # six steps an epoch


def test_plan__every_image_unlabelled_and_the_labelled_ones_beside_them() -> None:
    cfg = fixmatch.Config(batch_size=2, unlabelled_ratio=1)
    plan = METHODS["fixmatch"].recipe.plan(cfg, TASK, state_of(), 0)
    assert plan.streams["labelled"].rows.tolist() == [0, 1, 2]
    assert plan.streams["unlabelled"].rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.streams["unlabelled"].views == ("weak", "strong")
    assert plan.n_steps == 3


@pytest.mark.parametrize(("share", "warns"), [(0.9, True), (0.4, False)])
def test_end_epoch__says_when_a_class_takes_over(share: float, warns: bool) -> None:
    prior = torch.tensor([0.25, 0.75])
    state = state_of(prior=prior, mean_answer=torch.tensor([share, 1 - share]))
    cfg = fixmatch.Config(epochs=2)
    early = semi_supervised.end_epoch(cfg, TASK, state, None, 0)  # type: ignore[arg-type]
    late = semi_supervised.end_epoch(cfg, TASK, state, None, 1)  # type: ignore[arg-type]
    assert early[1] == {}
    assert ("warnings" in late[1]) == warns


def test_fixmatch__unlabelled_images_help() -> None:
    """Of three labels a class and 60 images: more are right than by the labels alone, in as many steps."""
    truth = torch.tensor(tiny.classes_of((60, 60, 60)))
    first = torch.cat([torch.arange(60) < 3] * 3)
    task = Task(torch.where(first, truth, -1), ("a", "b", "c"))
    views, rights = tiny.TinyViews(truth.tolist()), []
    for weight in (0.0, 1.0):
        settings = {"epochs": 30, "batch_size": 9, "unlabelled_weight": weight, "confidence": 0.8, "lr": 0.05}
        cfg = resolve_config(METHODS["fixmatch"], settings)
        trained = tiny.train(METHODS["fixmatch"].recipe, cfg, task, views, tiny.BuildTiny(), options=tiny.options_of())
        net = trained.state.nets["main"].eval()
        with torch.no_grad():
            rights.append(float((net(views.x).argmax(1) == truth).float().mean()))
    assert rights[1] > rights[0] + 0.02, rights
