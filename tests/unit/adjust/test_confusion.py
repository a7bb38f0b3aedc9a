"""Confusion margins: each factor by plain loops in float64, and where they must vanish."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from labelwright.adjust.confusion import confusion_margin, pace, rescaled_similarity
from labelwright.errors import ConfigError
from labelwright.losses.classification import adjusted_cross_entropy, cross_entropy


def unit(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw, dtype=torch.float64), dim=-1).to(dtype)


def slow_similarity(text, prototypes):
    rows = []
    for i in range(len(text)):
        row = []
        for j in range(len(text)):
            by_text = math.fsum(a * b for a, b in zip(text[i], text[j], strict=True))
            by_image = math.fsum(a * b for a, b in zip(prototypes[i], prototypes[j], strict=True))
            row.append(max(by_text, by_image))
        low, high = min(row), max(row)
        rows.append([low + (v - low) * (1 - low) / (high - low) for v in row])
    return rows


def slow_margin(similarity, paces, scale):
    spread = max(paces) - min(paces)
    return [
        [0.0 if i == j else (1 - r) / (1 + r) * spread * scale * similarity[i][j] for j in range(len(paces))]
        for i, r in enumerate(paces)
    ]


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 3), (7, 4), (20, 64)])
def test_rescaled_similarity__by_loops(n_classes, n_features):
    text, prototypes = unit(n_classes, n_features, seed=1), 0.9 * unit(n_classes, n_features, seed=2)
    want = torch.tensor(slow_similarity(text.tolist(), prototypes.tolist()), dtype=torch.float64)
    torch.testing.assert_close(rescaled_similarity(text, prototypes), want, rtol=1e-12, atol=1e-12)
    got = rescaled_similarity(text.float(), prototypes.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_rescaled_similarity__rows_reach_one_and_keep_their_least_value():
    text, prototypes = unit(9, 5, seed=3), 0.5 * unit(9, 5, seed=4)
    raw = torch.maximum(text @ text.T, prototypes @ prototypes.T)
    found = rescaled_similarity(text, prototypes)
    torch.testing.assert_close(found.amax(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(found.amin(1), raw.amin(1))


def test_rescaled_similarity__the_more_alike_of_text_and_image():
    names = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    look_alike = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    assert rescaled_similarity(names, look_alike)[0].tolist() == pytest.approx([1.0, 0.8, 0.0])
    assert rescaled_similarity(look_alike, names)[0].tolist() == pytest.approx([1.0, 0.8, 0.0])


def test_rescaled_similarity__a_class_without_prototype_goes_by_its_name():
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    prototypes = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(rescaled_similarity(text, prototypes), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))


def test_rescaled_similarity__one_class_and_classes_all_alike():
    assert rescaled_similarity(torch.ones(1, 1), torch.ones(1, 1)).tolist() == [[1.0]]
    same = torch.tensor([[0.6, 0.8]]).repeat(3, 1)
    assert torch.isfinite(rescaled_similarity(same, same)).all()
    torch.testing.assert_close(rescaled_similarity(same, same), torch.ones(3, 3))


def test_rescaled_similarity__half_precision_is_computed_in_float32():
    same, other = torch.tensor([[0.6, 0.8]]).repeat(3, 1).half(), unit(3, 2, dtype=torch.float16)
    for text, images in ((same, same), (other, 0 * other)):
        assert torch.equal(rescaled_similarity(text, images), rescaled_similarity(text.float(), images.float()))


def test_pace__share_of_the_furthest():
    assert pace(torch.tensor([50, 25, 0]), torch.ones(3)).tolist() == [1.0, 0.5, 0.0]
    assert pace(torch.tensor([50, 25, 0]), torch.tensor([0.4, 0.1, 0.2])).tolist() == [0.5, 1.0, 0.0]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(1e-4, 1.0)), min_size=1, max_size=12), st.floats(0.01, 1e4))
def test_pace__by_loops_in_any_unit(classes, unit_of):
    counts = [count for count, _ in classes]
    ratios = [count / share for count, share in classes]
    top = max(ratios)
    want = [ratio / top if top else 0.0 for ratio in ratios]
    expected = torch.tensor([share for _, share in classes], dtype=torch.float64) * unit_of
    got = pace(torch.tensor(counts), expected)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_pace__a_rare_class_on_its_way_keeps_pace():
    counts = torch.tensor([1000, 10])
    against_share, against_uniform = pace(counts, torch.tensor([0.99, 0.01])), pace(counts, torch.ones(2))
    assert against_share.tolist() == pytest.approx([1.0, 0.99], abs=1e-4)
    assert against_uniform.tolist() == pytest.approx([1.0, 0.01], abs=1e-6)


def test_pace__nothing_expected_and_nothing_predicted():
    assert pace(torch.tensor([8, 0, 4]), torch.tensor([1.0, 0.0, 1.0])).tolist() == [1.0, 1.0, 0.5]
    assert pace(torch.zeros(3), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert pace(torch.zeros(2), torch.zeros(2)).tolist() == [1.0, 1.0]


def test_pace__a_class_of_which_none_is_expected_sets_no_pace():
    got = pace(torch.tensor([10_000, 8, 4]), torch.tensor([0.0, 1.0, 1.0]))
    assert got.tolist() == [1.0, 1.0, 0.5]


def test_pace__labelled_only_classes_are_compared_with_and_keep_pace():
    counts, seen = torch.tensor([400, 80, 40]), torch.tensor([True, False, False])
    assert pace(counts, torch.ones(3), labelled_only=seen).tolist() == pytest.approx([1.0, 0.2, 0.1])  # over 400
    without = pace(counts, torch.tensor([0.0, 1.0, 1.0]))  # over 80: as if the labelled-only class were not there
    assert without.tolist() == [1.0, 1.0, 0.5]
    few = pace(torch.tensor([4, 80, 40]), torch.ones(3), labelled_only=seen)
    assert few.tolist() == [1.0, 1.0, 0.5]  # too few labelled images to be the largest, and yet 1


def test_pace__labelled_only_classes_against_expected_counts():
    counts, expected = torch.tensor([30, 45, 10]), torch.tensor([10.0, 30.0, 10.0])
    found = pace(counts, expected, labelled_only=torch.tensor([True, False, False]))
    assert found.tolist() == pytest.approx([1.0, 1.5 / 3, 1 / 3])


@pytest.mark.parametrize("scale", [0.0, 1.9, 12.0])
def test_confusion_margin__by_loops(scale):
    similarity = rescaled_similarity(unit(6, 4, seed=5), unit(6, 4, seed=6))
    paces = [1.0, 0.02, 0.5, 0.8, 0.99, 0.31]
    want = torch.tensor(slow_margin(similarity.tolist(), paces, scale), dtype=torch.float64)
    got = confusion_margin(similarity, torch.tensor(paces, dtype=torch.float64), scale=scale).pair_margin
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_confusion_margin__equal_pace_or_one_class_gives_none():
    similarity = rescaled_similarity(unit(5, 4), unit(5, 4, seed=9))
    assert confusion_margin(similarity, torch.full((5,), 0.3), scale=12.0).pair_margin.abs().max() == 0
    assert confusion_margin(torch.ones(1, 1), torch.ones(1), scale=12.0).pair_margin.tolist() == [[0.0]]


def test_confusion_margin__refuses_a_negative_scale():
    with pytest.raises(ConfigError, match=r"scale=-1\.0 is negative"):
        confusion_margin(torch.ones(2, 2), torch.ones(2), scale=-1.0)


def test_confusion_margin__the_rarer_guessed_the_larger_and_the_leader_has_none():
    similarity = torch.full((4, 4), 0.5)
    margin = confusion_margin(similarity, torch.tensor([1.0, 0.6, 0.3, 0.0]), scale=10.0).pair_margin
    assert margin[0].tolist() == [0.0] * 4
    largest = margin.amax(1)
    assert (largest.diff() > 0).all()
    assert largest[3] == pytest.approx(10.0 * 0.5)  # (1 - 0) / (1 + 0) x (1 - 0) x 10 x 0.5


def test_confusion_margin__a_rarely_guessed_class_is_pulled_up_in_training():
    """The margin makes the loss of its samples larger, and the gradient of its own logit with it."""
    logits = torch.zeros(1, 3, requires_grad=True)
    margin = confusion_margin(torch.full((3, 3), 0.9), torch.tensor([1.0, 1.0, 0.1]), scale=4.0)
    label = torch.tensor([2])
    plain = torch.autograd.grad(cross_entropy(logits, label), logits)[0]
    pulled = torch.autograd.grad(adjusted_cross_entropy(logits, label, margin), logits)[0]
    assert plain[0, 2] == pytest.approx(-2 / 3)
    assert pulled[0, 2] < -0.85
