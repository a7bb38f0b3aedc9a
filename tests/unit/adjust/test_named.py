"""Adjustments by name: what a setting may say, what the state keeps, and that each name is the published piece."""

import pytest
import torch

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.adjust.named import ADJUSTERS, adjustment, init, names_of, update
from labelwright.adjust.pace import pace_margin
from labelwright.errors import ConfigError

COUNTS = torch.tensor([8, 4, 1])
EVEN = torch.full((3,), 1 / 3)
FIELDS = ("multiplier", "offset", "target_margin", "pair_margin")


def same(a: Adjustment, b: Adjustment) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all(x is y or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("text", ["la+pase", "LA", "la+", "+", "la,pace"])
def test_names_of__an_unknown_name_lists_the_valid_ones(text: str) -> None:
    with pytest.raises(ConfigError, match="is not known") as caught:
        names_of(text)
    assert caught.value.fix.endswith("la, vs, ldam, pace")
    assert list(ADJUSTERS) == ["la", "vs", "ldam", "pace"]


def test_names_of__a_name_twice_is_refused_and_blanks_are_not() -> None:
    assert names_of("la + pace") == ("la", "pace")
    with pytest.raises(ConfigError, match="adjust=la\\+la has a name twice"):
        names_of("la+la")


def test_adjustment__each_name_is_the_published_piece() -> None:
    state = update(init(COUNTS, EVEN), predicted=torch.tensor([3.0, 2.0, 1.0]))
    assert same(adjustment("la", state), fixed.logit_adjustment(COUNTS))
    assert same(adjustment("vs", state), fixed.vector_scaling(COUNTS, power=0.05))
    assert same(adjustment("ldam", state), fixed.ldam(COUNTS, scale=1.0))
    assert same(adjustment("pace", state), pace_margin(torch.tensor([3.0, 2.0, 1.0]) / 6, EVEN, scale=10.0))


def test_adjustment__names_add_in_any_order_and_none_is_neutral() -> None:
    state = update(init(COUNTS, EVEN), predicted=torch.tensor([3.0, 2.0, 1.0]))
    assert same(adjustment("pace+la", state), adjustment("pace", state) + adjustment("la", state))
    assert same(adjustment("pace+la", state), adjustment("la+pace", state))
    assert same(adjustment("", state), Adjustment())


def test_adjustment__at_the_start_with_nothing_known_no_class_is_singled_out() -> None:
    found = adjustment("+".join(ADJUSTERS), init(torch.ones(3), EVEN))
    for name in FIELDS[:3]:
        values = getattr(found, name)
        assert torch.equal(values, values[:1].expand(3))


def test_update__older_steps_count_less_and_the_old_state_stays() -> None:
    first = init(torch.ones(2), torch.tensor([0.5, 0.5]))
    state, want = first, [0.0, 0.0]
    for step in ([6.0, 2.0], [1.0, 3.0], [0.0, 4.0]):
        state = update(state, predicted=torch.tensor(step), decay=0.5)
        want = [0.5 * old + new for old, new in zip(want, step, strict=True)]
    assert state["predicted"].tolist() == want
    assert first["predicted"].tolist() == [0.0, 0.0]
    assert state["counts"].tolist() == [1.0, 1.0]


def test_update__pseudolabels_and_the_prior_are_renewed_and_a_step_without_any_changes_no_count() -> None:
    state = update(
        init(torch.ones(2), torch.tensor([0.5, 0.5])),
        predicted=torch.ones(2),
        counts=torch.tensor([3, 0]),
        prior=torch.tensor([0.75, 0.25]),
        decay=0.5,
    )
    assert state["counts"].tolist() == [3.5, 0.5]
    assert state["prior"].tolist() == [0.75, 0.25]
    again = update(state, predicted=torch.zeros(2), counts=torch.zeros(2), decay=0.0)
    assert again["counts"].tolist() == [3.5, 0.5]
    assert again["prior"].tolist() == [0.75, 0.25]
    assert same(adjustment("la", again), fixed.logit_adjustment(torch.tensor([3.5, 0.5])))
