"""The convex head against scikit-learn's and SciPy's minima, and what its cross-validation scores."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.losses.classification import adjusted_cross_entropy
from labelwright.train import column_scales as columns
from labelwright.train import convex, cross_validation, scaling
from labelwright.train.column_scales import column_scales
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.cross_validation import balanced_loss, cross_validate, folds_of
from labelwright.train.newton import minimise as newton
from labelwright.train.scaling import centre_and_scale, scaled
from labelwright.train.text_start import text_and_labels


def an_example(counts=(30, 12, 4), n_features=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.randn(len(counts), n_features, generator=g)
    return centres[labels] + 0.8 * torch.randn(len(labels), n_features, generator=g), labels


def test_solve__is_the_minimum_that_scikit_learn_finds():
    z, labels = an_example()
    head = solve(z, labels, Problem(), n_classes=3, penalty=2.0)
    # scikit-learn: C * sum of losses + |w|^2 / 2, so that C = 1 / penalty
    found = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(z.double().numpy(), labels.numpy())
    assert head.weight.numpy() == pytest.approx(found.coef_ - found.coef_.mean(0), abs=2e-3)
    logits = head(z) - head(z).mean(1, keepdim=True)
    expected = found.decision_function(z.double().numpy())
    assert logits.numpy() == pytest.approx(expected - expected.mean(1, keepdims=True), abs=5e-3)


def test_solve__adjusted_and_weighted_is_the_minimum_that_scipy_finds():
    z, labels = an_example()
    counts = torch.bincount(labels)
    weight = fixed.inverse_prior_weights(counts, power=0.5)
    problem = Problem(fixed.vector_scaling(counts, power=0.3), weight)
    head = solve(z, labels, problem, n_classes=3, penalty=3.0)
    x, y, w = z.double().numpy(), labels.numpy(), weight.double().numpy()[labels.numpy()]
    share = np.array([30, 12, 4]) / 46
    multiplier, offset = (np.array([30, 12, 4]) / 30) ** 0.3, np.log(share)

    def loss_of(flat):
        W, b = flat[:15].reshape(3, 5), flat[15:]
        g = (x @ W.T + b) * multiplier + offset
        nll = np.logaddexp.reduce(g, axis=1) - g[np.arange(len(y)), y]
        return (w * nll).sum() / w.sum() + 3.0 / (2 * len(y)) * (W**2).sum()

    best = minimize(loss_of, np.zeros(18), tol=1e-12, options={"maxiter": 10_000})
    ours = loss_of(np.concatenate([head.weight.double().numpy().ravel(), head.bias.double().numpy()]))
    assert ours == pytest.approx(best.fun, rel=1e-5)


def test_solve__does_not_depend_on_the_start_or_on_chunks(monkeypatch):
    z, labels = an_example()
    first = solve(z, labels, Problem(), n_classes=3, penalty=1.0)
    far = solve(z, labels, Problem(), n_classes=3, penalty=1.0, start=Linear(torch.ones(3, 5), torch.ones(3)))
    monkeypatch.setattr(convex, "CHUNK_NUMBERS", 35)  # seven rows at a time
    chunked = solve(z, labels, Problem(), n_classes=3, penalty=1.0)
    for other in (far, chunked):
        gap = (first(z) - other(z)) - (first(z) - other(z)).mean(1, keepdim=True)
        assert gap.abs().max() < 5e-3


def test_solve__half_precision_of_the_hessian_changes_the_way_and_not_the_end(monkeypatch):
    z, labels = an_example()
    exact = solve(z, labels, Problem(), n_classes=3, penalty=1.0)
    monkeypatch.setattr(convex, "autocast_dtype", lambda device, precision: torch.bfloat16)
    of_few_numbers = solve(z, labels, Problem(), n_classes=3, penalty=1.0)
    assert torch.equal(of_few_numbers.weight, exact.weight)
    monkeypatch.setattr(convex, "QUICK_NUMBERS", 1)
    quick = solve(z, labels, Problem(), n_classes=3, penalty=1.0)
    assert not torch.equal(quick.weight, exact.weight)
    assert (quick.weight - exact.weight).abs().max() < 5e-3


@pytest.mark.parametrize("factor", [0.03, 37.0])
def test_centre_and_scale__make_scale_and_shift_of_no_matter(factor):
    feats, _ = an_example()
    plain, moved = ((x - m) / s for x, (m, s) in ((x, centre_and_scale(x)) for x in (feats, factor * feats + 5)))
    assert plain.numpy() == pytest.approx(moved.numpy(), abs=1e-4)
    assert float(plain.square().mean()) == pytest.approx(1.0, rel=1e-5)


def test_centre_and_scale__of_rows_that_are_all_alike():
    mean, scale = centre_and_scale(torch.ones(4, 3))
    assert mean.tolist() == [1, 1, 1]
    assert scale.item() == 1


def test_folds_of__keep_groups_together_and_every_class_in_most_folds():
    labels = torch.arange(60) % 3
    groups = torch.arange(60) // 6
    rows, fold = folds_of(labels, groups, seed=0)
    assert rows.tolist() == list(range(60))
    assert all(len(set(fold[groups == g].tolist())) == 1 for g in range(10))
    assert len(set(fold.tolist())) == 5


@pytest.mark.parametrize("counts", [(300, 120, 40), (450, 8, 2)], ids=str)
def test_solve__begins_many_rows_on_a_sample_and_ends_where_it_would(monkeypatch, counts):
    z, labels = an_example(counts)
    wanted = solve(z, labels, Problem(), n_classes=3, penalty=2.0, least_gradient=1e-6)
    monkeypatch.setattr(convex, "SAMPLED_FROM", 400)
    steps = []
    monkeypatch.setattr(convex, "minimise", lambda at, x, **k: steps.append(k) or newton(at, x, **k))
    found = solve(z, labels, Problem(), n_classes=3, penalty=2.0, least_gradient=1e-6)
    assert [each["least_gradient"] for each in steps] == [convex.SAMPLED_GRADIENT, 1e-6]
    assert torch.allclose(found.weight, wanted.weight, atol=2e-3)
    assert torch.allclose(found(z), wanted(z), atol=1e-2)


def test_folds_of__nothing_is_left_out_where_each_class_is_one_group():
    labels = torch.arange(30) % 3
    assert not len(folds_of(labels, labels + 5, seed=0)[0])
    assert len(folds_of(labels, torch.where(labels == 2, 99, torch.arange(30) // 3), seed=0)[0]) == 30


def test_folds_of__a_large_set_is_thinned_but_for_its_rare_classes(monkeypatch):
    monkeypatch.setattr(cross_validation, "MAX_TRIED_ROWS", 100)
    labels = torch.tensor([0] * 950 + [1] * 50)
    rows, fold = folds_of(labels, None, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [95, 20]
    assert sorted(set(fold.tolist())) == [0, 1, 2]
    assert torch.equal(rows, folds_of(labels, None, seed=0)[0])


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1], [0, 0, 1]], ids=str)
def test_folds_of__nothing_where_nothing_can_be_left_out(labels):
    rows, fold = folds_of(torch.tensor(labels), None, seed=0)
    assert len(rows) == len(fold) == 0


def test_folds_of__nothing_where_one_group_holds_all():
    rows, _ = folds_of(torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64), seed=0)
    assert len(rows) == 0


def test_cross_validate__scores_rows_by_heads_that_did_not_see_them():
    z, labels = an_example()
    rows, fold = folds_of(labels, None, seed=0)
    found = cross_validate(z, labels, lambda counts: Problem(), n_classes=3, rows=rows, fold=fold, penalties=(10.0,))
    for k in range(int(fold.max()) + 1):
        fitted = fold != k
        head = solve(z[fitted], labels[fitted], Problem(), n_classes=3, penalty=10.0 * float(fitted.float().mean()))
        assert found.logits[~fitted].numpy() == pytest.approx(head(z[~fitted]).numpy(), abs=2e-2)
    each = F.cross_entropy(found.logits, labels, reduction="none")
    assert found.loss == pytest.approx(float(torch.stack([each[labels == c].mean() for c in range(3)]).mean()))


def test_cross_validate__features_that_say_nothing_get_the_strongest_penalty_and_plain_ones_a_weak_one():
    z, labels = an_example((40, 40), n_features=20)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    rows, fold = folds_of(labels, None, seed=0)
    of_noise, of_signal = (
        cross_validate(x, labels, lambda counts: Problem(), n_classes=2, rows=rows, fold=fold).penalty
        for x in (noise, z)
    )
    assert of_noise == max(cross_validation.PENALTIES)
    assert of_signal < of_noise


def test_cross_validate__a_class_of_one_row_is_not_scored():
    z, labels = an_example((20, 20, 1))
    rows, fold = folds_of(labels, None, seed=0)
    found = cross_validate(z, labels, lambda counts: Problem(), n_classes=3, rows=rows, fold=fold, penalties=(3.0,))
    each = F.cross_entropy(found.logits, labels, reduction="none")
    assert found.loss == pytest.approx(float((each[labels == 0].mean() + each[labels == 1].mean()) / 2))


def test_balanced_loss__counts_every_class_alike():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [float(np.log(3.0)), 0.0]])
    assert balanced_loss(logits, torch.tensor([0, 0, 1])) == pytest.approx((np.log(2) + np.log(4)) / 2)


def test_solve__deviation_and_no_bias_are_the_minimum_that_scipy_finds():
    z, labels = an_example()
    centre = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    price = torch.tensor([[0.5], [1.0], [2.0]])
    problem = Problem(deviation=lambda w: price * (w - centre), has_bias=False)
    head = solve(z, labels, problem, n_classes=3, penalty=3.0)
    x, y = z.double().numpy(), labels.numpy()

    def loss_of(flat):
        W = flat.reshape(3, 5)
        g = x @ W.T
        nll = np.logaddexp.reduce(g, axis=1) - g[np.arange(len(y)), y]
        return nll.mean() + 3.0 / (2 * len(y)) * ((price.numpy() * (W - centre.numpy())) ** 2).sum()

    best = minimize(loss_of, np.zeros(15), tol=1e-12, options={"maxiter": 10_000})
    assert head.weight.numpy().ravel() == pytest.approx(best.x, abs=2e-3)
    assert head.bias.tolist() == [0.0, 0.0, 0.0]
    held = solve(z, labels, problem, n_classes=3, penalty=1e6)
    torch.testing.assert_close(held.weight, centre, atol=1e-3, rtol=0)


def test_solve__drawn_to_a_head():
    z, labels = an_example()
    towards = Linear(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5, 0.0, -0.5]))
    near = solve(z, labels, Problem(), n_classes=3, penalty=1e6, towards=towards)
    torch.testing.assert_close(near.weight, towards.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(near.bias, towards.bias, atol=1e-3, rtol=0)
    head = solve(z, labels, Problem(), n_classes=3, penalty=4.0, towards=towards, least_gradient=1e-7)
    errors = (head(z).softmax(1) - F.one_hot(labels, 3)) / len(z)  # the gradient of the loss is that of the penalty
    pull = 4.0 / len(z)
    torch.testing.assert_close(errors.T @ z, -pull * (head.weight - towards.weight), atol=1e-4, rtol=0)
    torch.testing.assert_close(errors.sum(0), -pull * (head.bias - towards.bias), atol=1e-4, rtol=0)


@pytest.mark.parametrize("per_class", [1, 2, 8])
def test_text_and_labels__good_texts_stay_and_wrong_ones_give_way(per_class):
    z, truth = an_example(counts=(60, 60, 60), n_features=6)
    mean = torch.stack([z[truth == c].mean(0) for c in range(3)])
    good = Linear(mean, -0.5 * mean.square().sum(1))
    wrong = Linear(-mean, torch.zeros(3))
    labels = torch.full((180,), -1)
    for c in range(3):
        labels[(truth == c).nonzero().flatten()[:per_class]] = c
    rest = labels < 0

    def right(head):
        return float((head(z[rest]).argmax(1) == truth[rest]).double().mean())

    head, penalty = text_and_labels(z, labels, good)
    assert right(head) > right(good) - 0.02
    head, penalty = text_and_labels(z, labels, wrong)
    if per_class == 1:  # nothing can be left out
        assert (head, penalty) == (wrong, None)
    else:
        assert right(head) > right(wrong) + (0.3 if per_class == 8 else 0.1)
        assert penalty in cross_validation.PENALTIES


def test_text_and_labels__no_labels_and_order():
    z, truth = an_example()
    text = Linear(torch.zeros(3, 5), torch.zeros(3))
    assert text_and_labels(z, torch.full((46,), -1), text) == (text, None)
    head, _ = text_and_labels(z + 100, truth, text)
    again, _ = text_and_labels(z, truth, text)
    torch.testing.assert_close(head(z + 100).softmax(1), again(z).softmax(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_features", [5, 80], ids=["more rows", "more features"])
def test_scaled__the_same_head_on_fewer_numbers(n_features):
    feats, labels = an_example(n_features=n_features)
    given = scaled(3 * feats + 7)
    plain = (3 * feats + 7 - given.mean) / given.scale
    assert given.z.shape == (46, min(46, n_features))
    one, two = (solve(z, labels, Problem(), n_classes=3, penalty=2.0, least_gradient=1e-6) for z in (plain, given.z))
    torch.testing.assert_close(given.plain(two).weight, one.weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(given.plain(two)(plain), two(given.z), atol=1e-4, rtol=0)


def test_scaled__very_many_numbers_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(scaling, "MAX_AXES", 4)
    feats, _ = an_example()
    given = scaled(feats)
    head = Linear(torch.ones(3, 5), torch.zeros(3))
    assert given.axes is None
    assert given.plain(head) is head
    torch.testing.assert_close(given.z, (feats - given.mean) / given.scale)


@pytest.mark.parametrize("has_bias", [True, False])
def test_losses__gradient_and_hessian_are_those_of_autograd(monkeypatch, has_bias):
    z, labels = an_example()
    z, counts = z.double(), torch.bincount(labels)
    pairs = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double()
    adjustment = fixed.vector_scaling(counts, power=0.3) + Adjustment(pair_margin=pairs)
    problem = Problem(adjustment, fixed.inverse_prior_weights(counts, power=0.5).double(), has_bias=has_bias)
    point = torch.randn(3, 5 + has_bias, generator=torch.Generator().manual_seed(1)).double()

    def loss_of(x):
        logits = z @ x[:, :5].T + (x[:, 5] if has_bias else 0.0)
        weights = problem.class_weight[labels]
        return adjusted_cross_entropy(logits, labels, adjustment, weights=weights)

    v = torch.randn(point.shape, generator=torch.Generator().manual_seed(3)).double()
    value, image = torch.autograd.functional.hvp(loss_of, point, v)
    gradient = torch.autograd.functional.jacobian(loss_of, point)
    for kept in (1 << 20, 0):  # probabilities kept, and made anew; seven rows at a time
        monkeypatch.setattr(convex, "KEPT_NUMBERS", kept)
        monkeypatch.setattr(convex, "CHUNK_NUMBERS", 35)
        found = convex._Losses(z, labels, problem, 3).at(point)
        assert found.value == pytest.approx(float(value), rel=1e-6)
        torch.testing.assert_close(found.gradient, gradient, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.product(v), image, atol=1e-6, rtol=0)


def test_column_scales__principal_components_keep_theirs():
    """Of a network's features and of a few columns in units of their own, and where labels overrule either."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(300, 24, generator=g) @ torch.randn(24, 24, generator=g)
    none = torch.full((300,), -1)
    assert column_scales(z, none) is None
    units = torch.ones(24)
    units[[3, 7]] = torch.tensor([1000.0, 400.0])
    scales = column_scales(z * units, none)
    assert scales is not None
    assert torch.allclose(scales, (z * units).std(0, correction=0))
    spread = torch.cat([torch.tensor([100.0, 60.0]), torch.ones(22)])
    components = torch.linalg.qr(z - z.mean(0)).Q * spread
    assert column_scales(components, none) is None
    of_small = (components[:, 5] > 0).long()
    assert column_scales(components, of_small) is not None
    of_large = (components[:, 0] > 0).long()
    mixed = z * units
    mixed[:, 8:] = z[:, :1] + 0.01 * torch.randn(300, 16, generator=g)  # correlated, and say nothing of the labels
    assert column_scales(mixed, (mixed[:, 3] > 0).long()) is None
    assert column_scales(components, of_large) is None
    assert column_scales(torch.ones(20, 3), torch.full((20,), -1)) is None


def test_column_scales__deviations_within_a_factor_of_three_are_one_scale(monkeypatch):
    """No head is fitted to find that out."""
    z = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    z = (z - z.mean(0)) / z.std(0) * torch.linspace(1.0, 2.9, 16)
    monkeypatch.setattr(columns, "cross_validate", None)
    assert column_scales(z, torch.arange(300) % 3) is None
    with pytest.raises(TypeError):
        column_scales(z * torch.linspace(1.0, 1.1, 16), torch.arange(300) % 3)


def test_column_scales__features_of_two_scales():
    """Half of the columns are large and say nothing: only labels can tell, and of many classes some do."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60).repeat(5)
    small = torch.randn(60, 16, generator=g)[labels] + 0.1 * torch.randn(300, 16, generator=g)
    beside = torch.cat([small, 50.0 * torch.randn(300, 16, generator=g)], 1)
    scales = column_scales(beside, labels)
    assert scales is not None
    assert torch.allclose(scales, beside.std(0, correction=0))
    assert column_scales(beside, torch.full((300,), -1)) is None
    assert column_scales(torch.cat([50.0 * small, beside[:, 16:] / 50.0], 1), labels) is None  # the large ones say it
