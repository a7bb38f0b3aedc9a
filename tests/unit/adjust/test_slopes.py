import importlib.util
import math
from collections import deque
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar

from labelwright.adjust import slopes as calibration
from labelwright.adjust.slopes import (
    ema,
    init_memory,
    push,
    rows_of,
    score_rows,
    slopes_from_rows,
)
from labelwright.errors import ConfigError, DataError

_spec = importlib.util.spec_from_file_location(
    "slopes_benchmark", Path(__file__).parents[3] / "benchmarks" / "slopes.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

WIDE = (1e-3, 1e3)


def made_up(seed, n, n_classes, *, batch):
    """Long-tailed batches of (labels, predicted, confidence, logit)."""
    return benchmark.make_batches(n_images=n, n_classes=n_classes, batch_size=batch, seed=seed)


def filled(counts, batches, *, samples_per_class=1000):
    memory = init_memory(torch.tensor(counts), samples_per_class=samples_per_class)
    for labels, predicted, confidence, logit in batches:
        memory = push(memory, labels, predicted, confidence, logit)
    return memory


def kappa_of(memory, *, against="confidence", **knobs):
    rows = rows_of(memory)
    n_classes = len(memory["capacity"])
    return slopes_from_rows(
        rows["predicted"], rows[against], rows["correct"], n_classes=n_classes, against=against, **knobs
    )


def rows_with_slopes(true_slopes, n_rows, *, seed):
    """Rows of which class c is right with probability slope_c * confidence."""
    draw = torch.Generator().manual_seed(seed)
    predicted = torch.repeat_interleave(torch.arange(len(true_slopes)), torch.tensor(n_rows))
    score = 0.2 + 0.8 * torch.rand(len(predicted), generator=draw)
    correct = torch.rand(len(predicted), generator=draw) < torch.tensor(true_slopes)[predicted] * score
    return predicted, score, correct


# ---- memory ----


@pytest.mark.parametrize("pending_rows", [1, 12, 64, 8192])
@pytest.mark.parametrize("batch", [1, 13, 200])
def test_push__keeps_the_newest_of_each_true_class(monkeypatch, batch, pending_rows):
    monkeypatch.setattr(calibration, "PENDING_ROWS", pending_rows)
    counts, batches = made_up(0, 300, 7, batch=batch)
    queues = [deque(maxlen=min(12, n)) for n in counts]
    memory = init_memory(torch.tensor(counts), samples_per_class=12)
    for labels, predicted, confidence, logit in batches + batches[:3]:
        memory = push(memory, labels, predicted, confidence, logit)
        for row in zip(*(c.tolist() for c in (labels, predicted, confidence, logit)), strict=True):
            queues[row[0]].append(row)
    rows = rows_of(memory)
    kept = zip(*(rows[name].tolist() for name in ("labels", "predicted", "confidence", "logit")), strict=True)
    assert sorted(kept) == sorted(row for queue in queues for row in queue)
    assert torch.equal(rows["correct"], rows["labels"] == rows["predicted"])


def test_push__unknown_labels_and_empty_classes_keep_nothing():
    memory = init_memory(torch.tensor([3, 0, 2]), samples_per_class=5)
    memory = push(memory, torch.tensor([-1, 1, 2, 0]), *score_rows(torch.eye(3)[[0, 1, 2, 2]]))
    rows = rows_of(memory)
    assert sorted(zip(rows["labels"].tolist(), rows["predicted"].tolist(), strict=True)) == [(0, 2), (2, 2)]


@pytest.mark.parametrize("pending_rows", [1, 8192])
def test_push__leaves_the_memory_given_as_it_was(monkeypatch, pending_rows):
    monkeypatch.setattr(calibration, "PENDING_ROWS", pending_rows)
    counts, batches = made_up(1, 100, 4, batch=50)
    one = filled(counts, batches[:1])
    before = rows_of(one)
    labels, predicted, confidence, logit = batches[1]
    push(one, labels, predicted, confidence, logit)
    after = rows_of(one)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # ... so two pushes from the same memory do not see each other, as a two-pass optimizer needs.
    left = push(one, labels, predicted, confidence, logit)
    right = push(one, labels, predicted, 0 * confidence, logit)
    assert (rows_of(right)["confidence"] == 0).sum() == len(labels)
    assert torch.equal(rows_of(left)["confidence"], rows_of(filled(counts, batches[:2]))["confidence"])


def test_memory__survives_a_checkpoint(tmp_path):
    counts, batches = made_up(2, 400, 5, batch=32)
    memory = filled(counts, batches[:4], samples_per_class=20)
    torch.save(memory, tmp_path / "memory.pt")
    resumed = torch.load(tmp_path / "memory.pt", weights_only=True)
    for labels, predicted, confidence, logit in batches[4:]:
        resumed = push(resumed, labels, predicted, confidence, logit)
    straight = rows_of(filled(counts, batches, samples_per_class=20))
    assert all(torch.equal(value, straight[name]) for name, value in rows_of(resumed).items())


def test_memory__size_is_rows_not_rows_by_classes():
    memory = init_memory(torch.full((1000,), 2000), samples_per_class=100)
    n_bytes = sum(column.numel() * column.element_size() for column in memory["rows"].values())
    assert n_bytes == 12 * 100 * 1000


def test_score_rows__is_the_softmax():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 5
    predicted, confidence, logit = score_rows(logits)
    expected = logits.double().softmax(1).max(1)
    assert torch.equal(predicted, expected.indices)
    torch.testing.assert_close(confidence.double(), expected.values, rtol=1e-6, atol=0)
    assert torch.equal(logit, logits.max(1).values)


def test_push__does_not_keep_gradients():
    logits = torch.eye(3, requires_grad=True)
    memory = push(init_memory(torch.tensor([1, 1, 1]), samples_per_class=2), torch.arange(3), *score_rows(logits))
    assert not memory["pending"]["confidence"].requires_grad


# ---- slopes ----


@pytest.mark.parametrize("seed", range(3))
def test_slopes__equal_the_loop_over_samples(seed):
    counts, batches = made_up(seed, 6000, 12, batch=128)
    loop = benchmark.Loop(counts, samples_per_class=300)
    for labels, predicted, confidence, _ in batches:
        loop.push_rows(labels, predicted, confidence)
    expected = loop.slopes(n_bins=20, clamp=(0.05, 5.0)).tolist()
    got = kappa_of(filled(counts, batches, samples_per_class=300), clamp=(0.05, 5.0)).tolist()
    assert got == pytest.approx(expected, rel=1e-5)
    assert len(set(got)) == 12


def test_slopes__too_few_rows_or_bins():
    def kappa(scores, n_bins=20):
        score = torch.tensor(scores)
        zeros = torch.zeros(len(scores), dtype=torch.int64)
        return slopes_from_rows(
            zeros, score, torch.ones(len(scores), dtype=torch.bool), n_classes=1, clamp=(0.05, 0.2), n_bins=n_bins
        ).item()

    assert kappa([0.9] * 5 + [0.8] * 4) == 1.0  # nine rows; the clamp does not reach a slope that was not fitted
    assert kappa([0.9] * 5 + [0.8] * 5) == pytest.approx(0.2)
    assert kappa([0.9] * 10) == 1.0  # one bin


def table_of(predicted, score, correct, n_classes, n_bins):
    """Class by class (rows, mean score, accuracy) of the bins (lower, upper] that hold any, in plain floats."""
    table = [[] for _ in range(n_classes)]
    for c in range(n_classes):
        for b in range(n_bins):
            inside = [
                (s, float(r))
                for p, s, r in zip(predicted.tolist(), score.tolist(), correct.tolist(), strict=True)
                if p == c and b / n_bins < s <= (b + 1) / n_bins
            ]
            if inside:
                n = len(inside)
                table[c].append((n, sum(s for s, _ in inside) / n, sum(r for _, r in inside) / n))
    return table


def test_slopes_from_rows__bins_include_their_upper_edge():
    score = torch.tensor([0.25, 0.2501, 0.5, 1.0, 0.75] * 4)
    zeros = torch.zeros(20, dtype=torch.int64)
    correct = torch.tensor([True, False, True, False, True] * 4)
    (bins,) = table_of(zeros, score, correct, 1, 4)
    assert [n for n, _, _ in bins] == [4, 8, 4, 4]
    slope = sum(n * x * y for n, x, y in bins) / sum(n * x * x for n, x, _ in bins)
    found = slopes_from_rows(zeros, score, correct, n_classes=1, clamp=WIDE, n_bins=4)
    assert found.item() == pytest.approx(1 / slope, rel=1e-5)


def test_slopes_from_rows__is_least_squares_over_bins():
    predicted, score, correct = rows_with_slopes([0.9, 0.5], [400, 100], seed=0)
    found = slopes_from_rows(predicted, score, correct, n_classes=3, clamp=WIDE, n_bins=5)
    for c, bins in enumerate(table_of(predicted, score, correct, 2, 5)):
        slope = sum(n * x * y for n, x, y in bins) / sum(n * x * x for n, x, _ in bins)
        assert found[c].item() == pytest.approx(1 / slope, rel=1e-5)
    assert found[2] == 1


@pytest.mark.parametrize("against", ["confidence", "logit"])
@pytest.mark.parametrize("shrink", [None, 1.0])
def test_slopes__a_row_that_is_not_finite_is_left_out(against, shrink):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=draw)
    logits = torch.randn(80, 2, generator=draw) + 2 * torch.eye(2)[labels]
    without = [labels[2:], *score_rows(logits[2:])]
    logits[0], logits[1, 1] = math.nan, math.inf
    given = [labels, *score_rows(logits)]
    found, expected = (
        kappa_of(filled([50, 50], [batch]), against=against, shrink=shrink, clamp=WIDE) for batch in (given, without)
    )
    assert torch.equal(found, expected)


def test_slopes_from_rows__recovers_the_slope():
    predicted, score, correct = rows_with_slopes([0.9, 0.5], [20000, 20000], seed=1)
    for fit in ("least_squares", "huber"):
        kappa = slopes_from_rows(predicted, score, correct, n_classes=2, clamp=WIDE, fit=fit)
        # standard error of a slope here: 0.5 / sqrt(20000 * 0.41) = 0.0055
        assert (1 / kappa).tolist() == pytest.approx([0.9, 0.5], abs=4 * 0.0055)


def test_slopes_from_rows__against_logit_uses_the_range_of_logits():
    logit = torch.tensor([2.0, 4.0, 6.0, 10.0] * 5)
    correct = torch.tensor([False, False, True, True] * 5)
    zeros = torch.zeros(20, dtype=torch.int64)
    found = slopes_from_rows(zeros, logit, correct, n_classes=1, clamp=WIDE, n_bins=4, against="logit")
    # 10, 5, 0 and 5 rows: edges 2, 4, 6, 8, 10; the smallest logit is in the first bin
    slope = (10 * 3 * 0 + 5 * 6 * 1 + 5 * 10 * 1) / (10 * 3**2 + 5 * 6**2 + 5 * 10**2)
    assert found.item() == pytest.approx(1 / slope, rel=1e-5)


def test_slopes_from_rows__negative_slope_is_the_upper_clamp():
    logit = torch.tensor([-4.0, -2.0, -1.0, -0.5] * 5)
    zeros = torch.zeros(20, dtype=torch.int64)
    found = slopes_from_rows(zeros, logit, zeros == 0, n_classes=1, clamp=(0.3, 3.0), against="logit")
    assert found.tolist() == [3.0]


def test_slopes__against_the_logit_have_its_unit():
    counts, batches = made_up(4, 2000, 5, batch=128)
    memory = filled(counts, batches)
    ratio = kappa_of(memory, clamp=WIDE, against="logit") / kappa_of(memory, clamp=WIDE)
    assert ratio.tolist() == pytest.approx([10.0] * 5, rel=0.02)  # these logits are 10 times the confidence


# ---- Huber ----


def test_huber__is_the_minimum_of_the_huber_loss():
    predicted, score, correct = rows_with_slopes([0.9, 0.6, 0.3], [300, 80, 40], seed=3)
    correct[(score > 0.9) & (predicted == 0)] = False
    found = slopes_from_rows(predicted, score, correct, n_classes=3, clamp=WIDE, n_bins=12, fit="huber")
    table = table_of(predicted, score, correct, 3, 12)
    for c in range(3):
        points = table[c]
        slope = 1 / found[c].item() - 1e-6
        sizes = sorted(math.sqrt(n) * abs(y - slope * x) for n, x, y in points)
        middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
        delta = 1.345 * 1.4826 * middle

        def objective(b, points=points, delta=delta):
            total = 0.0
            for n, x, y in points:
                u = math.sqrt(n) * abs(y - b * x)
                total += u * u / 2 if u <= delta else delta * (u - delta / 2)
            return total

        best = minimize_scalar(objective, bounds=(0.01, 2), method="bounded", options={"xatol": 1e-9}).x
        assert slope == pytest.approx(best, rel=1e-3)
        if c == 0:
            assert max(sizes) > 2 * delta  # the bins broken above are down-weighed: this is not least squares


def test_huber__one_broken_bin_moves_it_less():
    score = torch.linspace(0.05, 0.95, 10).repeat_interleave(100)
    correct = (torch.arange(1000) % 100) < 80 * score  # accuracy = 0.8 * confidence in every bin
    correct[score > 0.9] = False
    zeros = torch.zeros(1000, dtype=torch.int64)
    slope = {
        fit: 1 / slopes_from_rows(zeros, score, correct, n_classes=1, clamp=WIDE, n_bins=10, fit=fit).item()
        for fit in ("least_squares", "huber")
    }
    assert 0.5 < slope["least_squares"] < 0.6
    assert slope["huber"] == pytest.approx(0.8, abs=0.03)


def test_huber__points_on_a_line_are_least_squares():
    score = torch.tensor([0.25, 0.5, 1.0]).repeat_interleave(8)
    correct = torch.tensor([True] * 2 + [False] * 6 + [True] * 4 + [False] * 4 + [True] * 8)
    predicted = torch.tensor([0, 1]).repeat_interleave(24)
    score, correct = score.repeat(2), torch.cat([correct, torch.zeros(24, dtype=torch.bool)])
    correct[[24, 32, 33, 40, 41, 42, 43]] = True  # half the slope of class 0
    for shrink in (None, 1.0):
        huber, squares = (
            slopes_from_rows(predicted, score, correct, n_classes=2, clamp=WIDE, fit=fit, shrink=shrink).tolist()
            for fit in ("huber", "least_squares")
        )
        assert huber == pytest.approx(squares, rel=1e-6)
        assert huber == pytest.approx([1.0, 2.0], rel=1e-5) if shrink is None else 1.0 < huber[0] < huber[1] < 2.0


# ---- shrinkage ----


def shrunk_by_loop(predicted, score, correct, n_classes, n_bins, strength):
    """The documented formula, class by class in plain floats; kappa before clamping."""
    table = table_of(predicted, score, correct, n_classes, n_bins)
    support = [sum(n * x * x for n, x, _ in bins) for bins in table]
    cross = [sum(n * x * y for n, x, y in bins) for bins in table]
    pooled = sum(cross) / sum(support)
    residual = [(float(r) - pooled * s) ** 2 for s, r in zip(score.tolist(), correct.tolist(), strict=True)]
    noise = sum(residual) / len(residual)
    seen = [c for c in range(n_classes) if support[c]]
    own = {c: cross[c] / support[c] for c in seen}
    variance = {c: noise / support[c] for c in seen}
    q = sum((own[c] - pooled) ** 2 / variance[c] for c in seen)
    w, w2 = sum(1 / variance[c] for c in seen), sum(1 / variance[c] ** 2 for c in seen)
    between = max(0.0, (q - (len(seen) - 1)) / (w - w2 / w))
    kappa = []
    for c in range(n_classes):
        slope = pooled
        if c in own:
            share = strength * variance[c] / (strength * variance[c] + between)
            slope = own[c] + share * (pooled - own[c])
        kappa.append(1 / (slope + 1e-6))
    return kappa


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_shrink__is_the_documented_formula(strength):
    predicted, score, correct = rows_with_slopes([0.95, 0.8, 0.5, 0.3, 0.6], [400, 150, 60, 20, 3], seed=5)
    got = slopes_from_rows(predicted, score, correct, n_classes=6, clamp=WIDE, n_bins=10, shrink=strength)
    expected = shrunk_by_loop(predicted, score, correct, 6, 10, strength)
    assert got.tolist() == pytest.approx(expected, rel=1e-4)
    assert len({round(v, 4) for v in expected}) == 6  # no class collapsed onto another


def test_shrink__zero_leaves_classes_with_rows_alone():
    predicted, score, correct = rows_with_slopes([0.9, 0.4], [300, 30], seed=6)
    plain = slopes_from_rows(predicted, score, correct, n_classes=2, clamp=WIDE)
    none = slopes_from_rows(predicted, score, correct, n_classes=3, clamp=WIDE, shrink=0.0)
    torch.testing.assert_close(none[:2], plain, rtol=1e-6, atol=0)
    together = slopes_from_rows(0 * predicted, score, correct, n_classes=1, clamp=WIDE)
    # One bin mean over both classes is not quite the two bin means apart: equal to the third digit only.
    assert none[2].item() == pytest.approx(together.item(), rel=5e-3)


def test_shrink__starved_class_moves_more():
    predicted, score, correct = rows_with_slopes([0.9, 0.9, 0.9, 0.3, 0.3], [2000, 2000, 2000, 2000, 12], seed=7)
    plain = 1 / slopes_from_rows(predicted, score, correct, n_classes=5, clamp=WIDE)
    drawn = 1 / slopes_from_rows(predicted, score, correct, n_classes=5, clamp=WIDE, shrink=1.0)
    moved = (drawn - plain).abs()
    assert moved[3] < 0.01
    assert moved[4] > 5 * moved[3]
    assert drawn[4] > plain[4]


@pytest.mark.parametrize("seed", range(3))
def test_shrink__is_nearer_the_truth_for_starved_classes(seed):
    draw = torch.Generator().manual_seed(seed)
    truth = (0.7 + 0.1 * torch.randn(60, generator=draw)).clamp(0.3, 1.0)
    predicted, score, correct = rows_with_slopes(truth.tolist(), [15] * 60, seed=100 + seed)

    def error(shrink):
        found = slopes_from_rows(predicted, score, correct, n_classes=60, clamp=WIDE, shrink=shrink)
        return (1 / found - truth).square().mean().sqrt().item()

    # sampling error 0.19 against a spread of 0.1: the best linear estimate has 0.1 * 0.19 / sqrt(0.1^2 + 0.19^2) = 0.09
    assert error(None) > 0.14
    assert 0.06 < error(1.0) < 0.12


def test_shrink__one_class_and_no_rows():
    predicted, score, correct = rows_with_slopes([0.8], [200], seed=8)
    plain = slopes_from_rows(predicted, score, correct, n_classes=1, clamp=WIDE)
    drawn = slopes_from_rows(predicted, score, correct, n_classes=1, clamp=WIDE, shrink=1.0)
    torch.testing.assert_close(drawn, plain, rtol=1e-6, atol=0)
    none = slopes_from_rows(predicted[:0], score[:0], correct[:0], n_classes=2, clamp=(0.05, 0.2), shrink=1.0)
    assert none.tolist() == [1.0, 1.0]


# ---- errors ----


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"clamp": (0.0, 1.0)}, r"clamp=\(0\.0, 1\.0\) is not 0 < smallest <= largest"),
        ({"clamp": (2.0, 1.0)}, r"clamp=\(2\.0, 1\.0\)"),
        ({"n_bins": 1}, "n_bins=1 is too few"),
        ({"against": "margin"}, "against='margin' is unknown"),
        ({"fit": "lasso"}, "fit='lasso' is unknown"),
        ({"shrink": -1.0}, r"shrink=-1\.0 is negative"),
    ],
)
def test_slopes__settings_out_of_range(knobs, text):
    one = torch.ones(1)
    with pytest.raises(ConfigError, match=text):
        slopes_from_rows(torch.tensor([0]), one, one > 0, n_classes=2, **{"clamp": (0.3, 3.0), **knobs})


def test_rows__that_do_not_fit():
    memory = init_memory(torch.tensor([1, 1]), samples_per_class=1)
    one = torch.ones(1)
    with pytest.raises(DataError, match=r"logit has shape \[2\] for labels \[1\]"):
        push(memory, torch.tensor([0]), torch.tensor([0]), one, torch.ones(2))
    with pytest.raises(DataError, match="labels hold 5, and the memory has 2 classes: 0 to 1"):
        rows_of(push(memory, torch.tensor([5]), torch.tensor([0]), one, one))
    with pytest.raises(DataError, match=r"have shapes \[1\], \[1\], \[2\]"):
        slopes_from_rows(torch.tensor([0]), one, torch.ones(2, dtype=torch.bool), n_classes=2, clamp=WIDE)
    with pytest.raises(DataError, match="predicted holds classes outside 0 to 1"):
        slopes_from_rows(torch.tensor([2]), one, one > 0, n_classes=2, clamp=WIDE)
    with pytest.raises(ConfigError, match="samples_per_class=0 keeps no row"):
        init_memory(torch.tensor([1]), samples_per_class=0)
    with pytest.raises(DataError, match=r"counts \[1, -1\]"):
        init_memory(torch.tensor([1, -1]), samples_per_class=1)
    with pytest.raises(ConfigError, match=r"decay=1\.5 is outside"):
        ema(torch.ones(1), torch.ones(1), decay=1.5)
