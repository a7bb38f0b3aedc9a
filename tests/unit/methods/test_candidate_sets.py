"""What the baselines on candidate sets share, against loops over rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import tiny
from labelwright.errors import ConfigError
from labelwright.methods.baselines import candidate_sets as cs
from labelwright.train.seeds import generator
from labelwright.types import Candidates, State, Task

NAMES = ("a", "b", "c", "d")


def a_task(*, weighted: bool) -> Task:
    """Twelve rows: sets of 0 to 4 classes, one candidate of weight 0, labels inside and outside of their sets."""
    g = generator(0, "sets")
    mask = torch.rand(12, 4, generator=g) < 0.5
    mask[3], mask[5] = False, True
    weights = torch.rand(12, 4, generator=g) + 0.1 if weighted else None
    if weights is not None:
        mask[7] = torch.tensor([True, True, False, False])
        weights[7, 1] = 0.0
    labels = torch.full((12,), -1)
    labels[0], labels[5], labels[9] = 2, 1, 3
    mask[9, 3] = False
    return Task(labels, NAMES, tiny.sets_of(mask, weights))


@pytest.mark.parametrize("weighted", [False, True])
def test_even_targets__share_what_has_weight(weighted: bool) -> None:
    task = a_task(weighted=weighted)
    assert task.candidates is not None
    targets = cs.even_targets(task)
    assert targets.shape == task.candidates.classes.shape  # one number per candidate
    found = cs.read_targets(task, targets, torch.arange(12))
    for row in range(12):
        if task.labels[row] >= 0:
            expected = {int(task.labels[row]): 1.0}
        else:
            there = task.possible(torch.tensor([row]))[0].nonzero().flatten().tolist()
            expected = {c: 1 / len(there) for c in there}
        assert found[row].tolist() == pytest.approx([expected.get(c, 0.0) for c in range(4)], abs=1e-7)
    if weighted:
        assert found[7].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("weighted", [False, True])
def test_write_targets__against_a_loop(weighted: bool) -> None:
    task = a_task(weighted=weighted)
    sets = task.candidates
    assert sets is not None
    before = cs.even_targets(task)
    rows = torch.tensor([11, 2, 7, 2, 0, 3, 8])  # row 2 twice: the last counts
    new = torch.rand(7, 4, generator=generator(1, "new")) + 0.01
    after = cs.write_targets(task, before, rows, new)
    expected = before.clone()
    for row, values in zip(rows.tolist(), new, strict=True):
        for place in range(int(sets.offsets[row]), int(sets.offsets[row + 1])):
            expected[place] = values[int(sets.classes[place])]
    assert torch.equal(after, expected)
    assert torch.equal(before, cs.even_targets(task))  # what was given stays
    assert not torch.equal(after, before)
    found = cs.read_targets(task, after, torch.arange(12))
    assert torch.allclose(found.sum(1), torch.ones(12))
    assert found[0].tolist() == [0, 0, 1, 0]  # a verified label is not moved


def test_targets__without_candidates() -> None:
    task = Task(torch.tensor([1, -1]), NAMES)
    targets = cs.write_targets(task, cs.even_targets(task), torch.tensor([0, 1]), torch.rand(2, 4))
    assert cs.read_targets(task, targets, torch.tensor([1, 0])).tolist() == [[0.25] * 4, [0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(("view", "is_frozen", "found"), [("auto", True, "clean"), ("auto", False, "weak")])
def test_first_view(view: str, is_frozen: bool, found: str) -> None:
    assert cs.first_view(cs.CandidateSettings(), State({}, memory={"is_frozen": is_frozen})) == found


def test_check_task__a_label_or_a_candidate_is_enough() -> None:
    no_set = Candidates(torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    cs.check_task(Task(torch.tensor([-1, 2]), NAMES, no_set), "kd")
    cs.check_task(a_task(weighted=False), "kd")
    with pytest.raises(ConfigError, match="kd learns from candidate labels"):
        cs.check_task(Task(torch.tensor([-1, -1]), NAMES, no_set), "kd")


def test_new_net__is_as_wide_as_asked_where_features_are_frozen() -> None:
    task = a_task(weighted=False)
    for width in (7, 256):
        net = cs.new_net(cs.CandidateSettings(head_width=width), task, tiny.BuildHead())
        assert net.head.to_hidden.out_features == width  # type: ignore[union-attr]
    net = cs.new_net(cs.CandidateSettings(head_width=7), task, tiny.BuildTiny())
    assert {p.shape[0] for p in net.head.parameters()} == {4}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="head_width=0"):
        cs.CandidateSettings(head_width=0)


def test_put_annotator_in__networks_together_say_what_the_names_say() -> None:
    torch.manual_seed(0)
    concepts = tiny.concepts_of(3)
    task = Task(torch.full((4,), -1), ("a", "b", "c"), concepts=concepts)
    nets: list[Any] = [tiny.BuildHead()(3, head="mlp", hidden=8) for _ in range(2)]
    for net in nets:
        torch.nn.init.normal_(net.head.from_hidden.weight)
    x = torch.nn.functional.normalize(torch.randn(5, tiny.N_FEATURES), dim=1)
    before = [net(x).detach() for net in nets]
    assert not cs.put_annotator_in(nets, dataclasses.replace(task, concepts=None))
    assert all(torch.equal(net(x), old) for net, old in zip(nets, before, strict=True))
    assert cs.put_annotator_in(nets, task)
    expected = concepts.logit_scale * x @ concepts.feats.T
    assert torch.allclose(nets[0](x) + nets[1](x), expected, atol=1e-5)
