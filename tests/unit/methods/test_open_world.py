"""What LPS and its baselines share: which shares the classes are expected, and when training has moved enough."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tiny
from labelwright.methods import lps
from labelwright.methods.cluster_start import beliefs_from
from labelwright.methods.open_world import OpenWorldSettings, prior_of
from labelwright.run_folder import Run
from labelwright.types import Task

EVEN = [0.25] * 4


def shares(labelled: tuple[int, int], sizes: tuple[int, ...], **settings: object) -> list[float]:
    labels = [0] * labelled[0] + [1] * labelled[1] + [-1] * (sum(sizes) - sum(labelled))
    task = Task(torch.tensor(labels), ("cat", "dog"), n_novel=2)
    return prior_of(OpenWorldSettings(**settings), task, torch.tensor(sizes)).tolist()


@pytest.mark.parametrize(
    ("labelled", "sizes", "expected"),
    [
        ((5, 5), (10, 10, 10, 10), EVEN),
        ((5, 5), (20, 10, 10, 5), EVEN),  # clusters are always somewhat uneven
        ((5, 5), (20, 10, 6, 4), [0.5, 0.25, 0.15, 0.1]),  # five to one
        ((6, 2), (16, 8, 8, 8), [0.4, 0.2, 0.2, 0.2]),  # labelled images three to one
        ((5, 5), (20, 10, 10, 0), [20 / 41, 10 / 41, 10 / 41, 1 / 41]),  # no share is 0
    ],
)
def test_prior_of__even_unless_clusters_or_labels_are_not(
    labelled: tuple[int, int], sizes: tuple[int, ...], expected: list[float]
) -> None:
    assert shares(labelled, sizes) == pytest.approx(expected)


def test_prior_of__what_the_user_says_comes_first() -> None:
    assert shares((5, 5), (20, 10, 6, 4), prior="even") == pytest.approx(EVEN)
    assert shares((5, 5), (20, 10, 6, 4), prior_shares=(1, 1, 1, 2)) == pytest.approx([0.2, 0.2, 0.2, 0.4])


@pytest.mark.parametrize(
    ("changed", "n_epochs"),
    [
        ({}, 2),  # neither moves an answer of the start
        ({"start": "none", "use_balance": "off"}, 6),  # far from its end: all of them
    ],
)
def test_lps__ends_once_its_answers_stand_still(changed: dict[str, object], n_epochs: int, tmp_path: Path) -> None:
    settings = {"epochs": 6, "batch_size": 16, "lr": 1e-9, **changed}
    run = Run.create(tmp_path / "run")
    tiny.run_method("lps", [20, 8, 8], settings=settings, run=run, stored=True)
    records = [record for record in run.records if record["kind"] == "epoch"]
    assert [record["stop"] for record in records] == [False] * (n_epochs - 1) + [n_epochs == 2]


def test_lps__a_run_that_ends_early_gives_its_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[int, int]] = []

    def watched(*args: object, epoch: int, n_epochs: int, n_named: int) -> list[str]:
        judged.append((epoch, n_epochs))
        return []

    monkeypatch.setattr(lps, "pace_warnings", watched)
    tiny.run_method("lps", [20, 8, 8], settings={"epochs": 6, "batch_size": 16, "lr": 1e-9}, stored=True)
    assert judged == [(0, 6), (1, 2)]


def test_beliefs_from__clusters_that_split_a_class_unevenly_are_put_right_by_its_shape() -> None:
    """Two long classes side by side: clusters cut off their ends, Gaussians of one covariance follow their length."""
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(400) % 2
    x = torch.stack([3.0 * torch.randn(400, generator=g), truth + 0.15 * torch.randn(400, generator=g)], dim=1)
    feats = F.normalize(torch.cat([x, torch.full((400, 1), 10.0)], dim=1), dim=1)
    assigned = torch.where(x[:, 0] > 2.5, 1 - truth, truth)  # a fifth is wrong
    labels = torch.where(torch.arange(400) < 20, truth, -1)
    task = Task(labels, ("one",), n_novel=1)
    task = dataclasses.replace(task, labels=torch.where(truth == 0, labels, -1))
    weight, bias = beliefs_from(feats, task, assigned, torch.tensor([0.5, 0.5]))
    predicted = (feats @ weight.T + bias).argmax(1)
    hidden = task.labels < 0
    before = float((assigned == truth)[hidden].float().mean())
    after = float((predicted == truth)[hidden].float().mean())
    assert before < 0.85
    assert after > 0.95
    sure = (feats @ weight.T + bias).softmax(1).amax(1).mean()
    assert float(sure) < 0.999
