"""Which situation a table is in."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from labelwright.data.situation import METHODS, detect, gini
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError, DataError
from labelwright.types import Candidates


def make_table(labels: list[int], sets: list[list[int]] | None = None, split: list[int] | None = None) -> LabelTable:
    names = pa.array([f"{i}.png" for i in range(len(labels))], pa.large_string())
    candidates = None
    if sets is not None:
        offsets = torch.tensor([0, *np.cumsum([len(s) for s in sets])])
        candidates = Candidates(offsets, torch.tensor([c for s in sets for c in s], dtype=torch.int32))
    codes = None if split is None else np.array(split, np.int8)
    classes = ("cat", "dog", "owl")
    return LabelTable(Images(names), names, np.array(labels, np.int32), classes, candidates, codes)


@pytest.mark.parametrize(
    ("labels", "sets", "novel", "name"),
    [
        ([-1, -1, -1], None, None, "no_labels"),
        ([0, 1, 2, -1], None, None, "few_labels"),
        ([0, 1, 2, *[-1] * 60], None, None, "few_labels"),
        ([0, 1, 1, -1], None, None, "some_classes"),
        ([-1, -1, -1], [[0, 1], [2], []], None, "candidates"),
        ([0, -1, -1], [[], [2], [1]], None, "candidates"),
        ([0, 1, 2], [[0, 1], [1], [2]], None, "balanced"),
        ([0, 1, 1, 1, 2], None, None, "long_tailed"),
        ([0, 0, 1, 1, 1, 1, 1, 2, 2], None, None, "balanced"),
        ([0, 1, -1], None, 2, "open_world"),
        ([0, 1, -1], None, "auto", "open_world"),
        ([0, 1, -1], None, "3", "open_world"),
        ([0, 1, -1], None, 0, "some_classes"),
    ],
)
def test_detect__name_and_method(labels, sets, novel, name) -> None:
    found = detect(make_table(labels, sets), novel=novel)
    assert (found.name, found.method()) == (name, METHODS[name])


def test_detect__a_few_missing_labels_change_nothing() -> None:
    most = [0] * 3000 + [1] * 1000 + [2] * 500
    for missing in (1, 200):  # up to 5%
        found = detect(make_table(most + [-1] * missing))
        assert found.name == "long_tailed"
        assert f"4,500 of {4500 + missing:,} images are labelled" in found.reason
    assert detect(make_table(most + [-1] * 300)).name == "few_labels"
    assert "has no label and will never be predicted: owl" in detect(make_table([0] * 30 + [1] * 30 + [-1])).reason


def test_detect__candidates_are_never_ignored_without_a_word() -> None:
    few = detect(make_table([0, 1, 2] * 40 + [-1], [[]] * 120 + [[0, 1]]))
    assert few.name == "balanced"
    assert "the candidate labels of 1 images are not used (--method coreg uses them)" in few.reason
    labelled = detect(make_table([0, 1, 2], [[0, 1], [1], [2]]))
    assert "candidate labels of 3 images are not used" in labelled.reason
    assert detect(make_table([0, 1, 2] * 30 + [-1] * 10, [[]] * 90 + [[0, 1]] * 10)).name == "candidates"
    assert ("candidate labels", "10 images, 2.00 each") in detect(make_table([-1] * 10, [[0, 1]] * 10)).facets


def test_detect__numbers() -> None:
    found = detect(make_table([0, 0, 0, 1, -1, -1], [[], [], [], [], [1, 2], []]))
    assert (found.n_images, found.n_labelled, found.n_classes, found.n_candidate_rows) == (6, 4, 3, 1)
    assert found.candidates_per_row == 2.0
    assert found.imbalance_ratio == 3.0
    assert found.unlabelled_frac == pytest.approx(1 / 3)
    assert found.classes_without_labels == ("owl",)
    assert found.gini == pytest.approx(12 / (2 * 3**2 * 4 / 3))  # |a - b| over ordered pairs: 2 (2 + 3 + 1) = 12


def test_detect__reason_says_the_numbers() -> None:
    reason = detect(make_table([0] * 9 + [1, 2])).reason
    assert "11 images" in reason
    assert "1 to 9 per class" in reason
    assert "ratio 9" in reason
    assert "1 of 3 classes has no label" in detect(make_table([0, 1, -1])).reason


def test_detect__only_training_rows_count() -> None:
    table = make_table([0, 1, 2, 0, 0, 0, 0], split=[0, 0, 0, 1, 1, 1, 1])
    assert (detect(table).name, detect(table).n_images) == ("balanced", 3)


def test_gini__pairs_oracle() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 12)
    oracle = sum(abs(int(a) - int(b)) for a in counts for b in counts) / (2 * len(counts) ** 2 * counts.mean())
    assert gini(counts) == pytest.approx(oracle, rel=1e-12)
    assert gini(np.array([0, 0])) == 0.0


def test_detect__bad_arguments() -> None:
    for novel in (-1, "many"):
        with pytest.raises(ConfigError, match="novel="):
            detect(make_table([0]), novel=novel)
    names = pa.array(["a"], pa.large_string())
    with pytest.raises(DataError, match="nothing says what the classes are"):
        detect(LabelTable(Images(names), names, np.array([-1], np.int32), ()))
