"""Losses on frozen features: what is solved, what is chosen, and that neither scale nor shift matters."""

import dataclasses

import pytest
import torch

import tiny
from labelwright.adjust import fixed
from labelwright.errors import ConfigError
from labelwright.methods import cross_validated, cvs_frozen
from labelwright.methods.baselines import ce, class_balanced, la, ldam
from labelwright.methods.frozen_heads import USUAL_PENALTY, Labelled, balanced_accuracy
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.convex import Linear, solve
from labelwright.train.cross_validation import folds_of
from labelwright.train.scaling import centre_and_scale
from labelwright.types import Task


def some_data(counts=(40, 16, 6), adjust=None, spread=1.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    feats = torch.randn(len(counts), 8, generator=g)[labels] + spread * torch.randn(len(labels), 8, generator=g)
    mean, scale = centre_and_scale(feats)
    return Labelled((feats - mean) / scale, labels, len(counts), *folds_of(labels, None, seed=0), adjust)


def begun(name, feats, labels, **settings):
    """The state of a method after its begin, on features [N, D]."""
    method = METHODS[name].on_features()
    cfg = resolve_config(method, settings)
    task = Task(labels, tuple("abc"))
    state = method.recipe.setup(cfg, task, tiny.BuildHead(n_features=feats.shape[1]))
    return method.recipe.begin(cfg, task, state, tiny.passes_of(state, feats))


@pytest.mark.parametrize(
    ("recipe", "cfg", "weighted"),
    [
        (ce.FROZEN, ce.FROZEN.Config(), False),
        (ce.FROZEN, ce.FROZEN.Config(drw_from_frac=0.8), True),
        (class_balanced.FROZEN, class_balanced.FROZEN.Config(), True),
        (ldam.FROZEN, ldam.FrozenConfig(), False),
    ],
)
def test_problem__classes_are_weighted_or_not(recipe, cfg, weighted):
    counts = torch.tensor([40, 16, 6])
    problem = recipe.fit(cfg, some_data()).problem_of(counts)
    assert (problem.class_weight is not None) == weighted
    if weighted:
        assert torch.equal(problem.class_weight, fixed.effective_number_weights(counts, beta=0.9999))


def test_problem__of_logit_adjustment():
    counts = torch.tensor([40, 16, 6])
    problem = la.FROZEN.fit(la.FrozenConfig(tau=0.5), some_data()).problem_of(counts)
    assert problem.adjustment.offset.tolist() == pytest.approx((0.5 * (counts / 62).log()).tolist())


def test_fit__a_penalty_that_is_given_is_the_one_that_is_used_and_scored():
    data = some_data()
    found = la.FROZEN.fit(la.FrozenConfig(penalty=7.0), data)
    assert found.penalty == found.validated.penalty == 7.0


def test_fit__without_anything_to_leave_out():
    data = some_data((1, 1, 1))
    for recipe, cfg in ((la.FROZEN, la.FrozenConfig()), (cvs_frozen.RECIPE, cvs_frozen.Config())):
        found = recipe.fit(cfg, data)
        assert (found.penalty, found.validated) == (USUAL_PENALTY, None)


@pytest.mark.parametrize("name", ["la", "cvs", "cross_validated"])
@pytest.mark.parametrize("factor", [0.03, 37.0])
def test_begin__scale_and_shift_of_embeddings_change_nothing(name, factor):
    data = some_data()
    (plain, _), (moved, _) = (begun(name, x, data.labels) for x in (data.z, factor * data.z + 2))
    a, b = plain.nets["main"](data.z).softmax(1), moved.nets["main"](factor * data.z + 2).softmax(1)
    assert a.detach().numpy() == pytest.approx(b.detach().numpy(), abs=1e-3)


def test_begin__unlabelled_rows_play_no_part():
    data = some_data()
    other = torch.cat([data.z, 50 + torch.randn(9, 8)])
    labels = torch.cat([data.labels, torch.full((9,), -1)])
    (few, _), (more, _) = begun("la", data.z, data.labels), begun("la", other, labels)
    assert torch.equal(few.nets["main"](data.z), more.nets["main"](data.z))


def test_begin__says_the_penalty_and_how_rows_left_out_were_answered():
    data = some_data()
    _, logs = begun("la", data.z, data.labels)
    assert 0.4 < logs["left_out_balanced_accuracy"] <= 1
    assert logs["penalty"] in (1, 3, 10, 30, 100, 300, 1000)


def test_solve__pace_pulls_predictions_towards_the_counts():
    problem_of = la.FROZEN.fit(la.FrozenConfig(), some_data()).problem_of
    shares = []
    for adjust in (None, "pace"):
        data = some_data(adjust=adjust)
        head = data.solve(problem_of, 30.0)
        shares.append(head(data.z).softmax(1).mean(0))
    expected = torch.tensor([40, 16, 6]) / 62
    gaps = [float((share - expected).abs().sum()) for share in shares]
    assert gaps[0] > 0.1  # logit adjustment alone predicts rare classes more often than they come
    assert gaps[1] != pytest.approx(gaps[0], abs=0.01)


def test_cvs__slopes_come_from_rows_left_out_of_the_first_phase_and_act_in_the_second():
    data = some_data()
    with_slopes, without = (cvs_frozen.fit(cvs_frozen.Config(kappa_from=which), data) for which in ("heldout", "none"))
    assert without.logs["kappa"] == [1, 1, 1]
    kappa = torch.tensor(with_slopes.logs["kappa"])
    assert not torch.equal(kappa, torch.ones(3))
    counts = torch.tensor([40, 16, 6])
    expected = fixed.additive_adjustment(fixed.prior(counts), kappa, strength=0.9)
    problem = with_slopes.problem_of(counts)
    assert problem.adjustment.offset.tolist() == pytest.approx(expected.offset.tolist(), abs=1e-3)
    assert torch.equal(problem.class_weight, fixed.inverse_prior_weights(counts, power=0.15))


def test_cross_validated__takes_the_best_on_rows_left_out():
    data = some_data()
    found = cross_validated.fit(cross_validated.Config(), data)
    scores = found.logs["left_out_scores"]
    assert set(scores) == set(cross_validated.Config().family)
    assert scores[found.logs["chosen"]] == max(scores.values())
    for name, score in scores.items():
        recipe, cfg = cross_validated.FAMILY[name]()
        alone = recipe.fit(cfg, data).validated
        assert score == pytest.approx(balanced_accuracy(alone, data.labels), abs=1e-4)


def test_cross_validated__of_one_is_that_one():
    data = some_data()
    found = cross_validated.fit(cross_validated.Config(family=("ce",), penalty=10.0), data)
    expected = ce.FROZEN.fit(dataclasses.replace(ce.FROZEN.Config(), penalty=10.0), data)
    assert found.logs["chosen"] == "ce"
    assert torch.equal(found.validated.logits, expected.validated.logits)


@pytest.mark.parametrize("family", ["", "la,cap"])
def test_cross_validated__an_unknown_member_is_refused(family):
    with pytest.raises(ConfigError, match="family=") as caught:
        resolve_config(METHODS["cross_validated"], {"family": family})
    assert "la, vs, cvs" in caught.value.fix


def test_beats__plain_cross_entropy_on_balanced_accuracy_where_classes_are_uneven():
    train = some_data((200, 40, 8), spread=2.5, seed=1)
    fresh = train.z + 0.7 * torch.randn(train.z.shape, generator=torch.Generator().manual_seed(9))
    scores = {}
    for name, recipe, cfg in (("ce", ce.FROZEN, ce.FROZEN.Config()), ("la", la.FROZEN, la.FrozenConfig())):
        found = recipe.fit(cfg, train)
        head: Linear = train.solve(found.problem_of, found.penalty)
        right = (head(fresh).argmax(1) == train.labels).float()
        scores[name] = float(torch.stack([right[train.labels == c].mean() for c in range(3)]).mean())
    assert scores["la"] > scores["ce"] + 0.05


def test_settings_about_steps_are_refused_on_features():
    with pytest.raises(ConfigError, match="lr is about training steps"):
        resolve_config(METHODS["la"].on_features(), {"lr": 0.1})
    assert resolve_config(METHODS["la"], {"lr": 0.1}).lr == 0.1


def test_solve__matches_the_pieces():
    data = some_data()
    found = la.FROZEN.fit(la.FrozenConfig(penalty=5.0), data)
    counts = torch.bincount(data.labels)
    expected = solve(data.z, data.labels, found.problem_of(counts), n_classes=3, penalty=5.0)
    assert torch.equal(data.solve(found.problem_of, 5.0).weight, expected.weight)
