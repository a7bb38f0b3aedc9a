"""The failure signs of Co-Reg and of novel classes: each is said when it is there, and not a step before."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from labelwright.labels.codivide import CoDivision, describe_divisions
from labelwright.metrics.diagnostics import division_warnings, pace_warnings

FINE = {"reliable_frac": 0.7, "in_set_frac": 0.8, "prototype_cosine": 0.1}


def division(predicted: list[int], **changed: Any) -> CoDivision:
    kept = {"n_divided": 4, "reliable_frac": 0.5, "in_set_frac": 0.75, "means": (0.25, 0.75), **changed}
    nothing = torch.zeros(0)
    return CoDivision(beliefs={}, clean=nothing, ratio=nothing, history={}, predicted=torch.tensor(predicted), **kept)


def test_told__means_over_both_networks() -> None:
    first = division([0, 0, 1, 2])
    second = division([0, 1, 1, 2], reliable_frac=1.0, in_set_frac=0.25, means=(0.0, 1.0))
    assert describe_divisions([first, second], collapse=0.3) == {
        "reliable_frac": 0.75,
        "in_set_frac": 0.5,
        "network_agreement": 0.75,
        "division_gap": 0.75,
        "prototype_cosine": 0.3,
        "largest_class_frac": 0.5,
    }


def test_told__one_network_agrees_with_itself() -> None:
    told = describe_divisions([division([1, 1, 1, 0])], collapse=0.0)
    assert (told["network_agreement"], told["reliable_frac"], told["largest_class_frac"]) == (1.0, 0.5, 0.75)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prototype_cosine": 0.96}, "prototype collapse: .* 0.96 in epoch 4.*prototype_weight=0"),
        ({"reliable_frac": 0.004}, "label collapse: none of the guesses are trusted in epoch 4 .0.4%"),
        ({"reliable_frac": 0.996}, "label collapse: all of the guesses are trusted in epoch 4 .99.6%"),
        ({"in_set_frac": 0.74}, "leave the candidate sets .80% inside after the first division, 74% now"),
    ],
)
def test_signs__each(changed: dict[str, float], words: str) -> None:
    (said,) = division_warnings({**FINE, **changed}, FINE, epoch=3)
    assert re.search(words, said)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prototype_cosine": 0.94},
        {"prototype_cosine": -0.96},
        {"reliable_frac": 0.006},
        {"reliable_frac": 0.994},
        {"in_set_frac": 0.76},
        {"in_set_frac": 1.0},
    ],
    ids=str,
)
def test_signs__none(changed: dict[str, float]) -> None:
    assert division_warnings({**FINE, **changed}, FINE, epoch=3) == []


def test_signs__no_label_collapse_where_there_is_nothing_to_divide() -> None:
    for share in (0.0, 1.0):
        logs = {**FINE, "reliable_frac": share}
        assert division_warnings(logs, logs, epoch=0, has_guesses=False) == []
        assert len(division_warnings(logs, logs, epoch=0)) == 1


def test_signs__the_remedy_is_one_of_the_method() -> None:
    (said,) = division_warnings({**FINE, "reliable_frac": 0.0}, FINE, epoch=0, remedy="change guess_strength")
    assert said.endswith("change guess_strength")


def test_signs__all_at_once() -> None:
    logs = {"reliable_frac": 0.0, "in_set_frac": 0.1, "prototype_cosine": 1.0}
    assert [said.split(":")[0].split(" (")[0] for said in division_warnings(logs, FINE, epoch=0)] == [
        "prototype collapse",
        "label collapse",
        "the answers leave the candidate sets",
    ]


@pytest.mark.parametrize(
    ("divergences", "words"),
    [
        (
            [0.12, 0.2],
            ["class sizes did not move towards the expected ones (0.12 away from them at first, 0.20 at the end"],
        ),
        ([0.12, 0.1], []),  # it moved
        ([0.01, 0.04], []),  # too near to matter
    ],
)
def test_pace__class_sizes_that_stay_away(divergences: list[float], words: list[str]) -> None:
    facts = {"novel_frac": 0.6, "novel_expected": 0.6, "class_frac": [0.5, 0.5]}
    facts |= {"confidence_seen": 0.9, "confidence_novel": 0.9}
    found = pace_warnings(facts, divergences, epoch=1, n_epochs=2, n_named=1)
    assert [each.split(";")[0] for each in found] == words
    assert pace_warnings(facts, divergences, epoch=0, n_epochs=2, n_named=1) == []
