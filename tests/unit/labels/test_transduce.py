"""Transduction against slow float64 loops of its equations; the choice of confident images against a greedy one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.labels import chunks, transduce
from labelwright.labels.transduce import fpl_pseudolabels, log_odds, nearest_neighbours, top_confident

SCALE = 12.0


def clusters(
    n_images: int, n_classes: int, n_feats: int, *, noise: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features around C unit centres, texts a little off the centres, and the true classes."""
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(n_classes, n_feats, generator=draw), dim=1)
    truth = torch.randint(0, n_classes, (n_images,), generator=draw)
    feats = F.normalize(centres[truth] + noise * torch.randn(n_images, n_feats, generator=draw), dim=1)
    text = F.normalize(centres + 0.2 * torch.randn(n_classes, n_feats, generator=draw), dim=1)
    return feats, text, truth


class Slow:
    """The equations, one image, class and neighbour at a time, in float64."""

    def __init__(
        self,
        feats: Tensor,
        text: Tensor,
        labels: list[int],
        *,
        k: int,
        lam: float,
        n: int,
        temperature: float,
        anchor: float = 0.0,
    ):
        self.f, self.t = feats.double().tolist(), text.double().tolist()
        self.N, self.C, self.D = len(self.f), len(self.t), len(self.f[0])
        self.lam, self.temperature = lam, temperature
        self.w = self.affinity(k)
        self.y = [softmax([SCALE * dot(f, t) for t in self.t]) for f in self.f]
        n_known = sum(label >= 0 for label in labels)
        mass = max(1.0, 0.2 * (self.N - n_known) / max(n_known, 1))
        self.mass = [mass if label >= 0 else 1.0 for label in labels]
        self.z = [one_hot(label, self.C) if label >= 0 else y for label, y in zip(labels, self.y, strict=True)]
        self.mu = [self.first_mean(c, labels) for c in range(self.C)]
        self.var = [1 / self.D] * self.D
        self.anchor, self.around = anchor, [0.0] * self.D
        if anchor:
            self.mu = [list(t) for t in self.t]
            self.around = self.var = self.spread([[self.mass[i] * z for z in self.z[i]] for i in range(self.N)])
        for _ in range(n):
            for _ in range(5):
                self.z = [
                    one_hot(label, self.C) if label >= 0 else softmax([self.pull(i, c) for c in range(self.C)])
                    for i, label in enumerate(labels)
                ]
            self.fit()

    def affinity(self, k: int) -> list[list[float]]:
        w = [[0.0] * self.N for _ in range(self.N)]
        for i in range(self.N):
            near = sorted((j for j in range(self.N) if j != i), key=lambda j: -dot(self.f[i], self.f[j]))[:k]
            for j in near:
                w[i][j] += max(0.0, dot(self.f[i], self.f[j])) / 2
                w[j][i] += max(0.0, dot(self.f[i], self.f[j])) / 2
        return w

    def first_mean(self, c: int, labels: list[int]) -> list[float]:
        own = [i for i, label in enumerate(labels) if label == c]
        rows = own or sorted(range(self.N), key=lambda i: -self.y[i][c])[:8]
        return [sum(self.f[i][d] for i in rows) / len(rows) for d in range(self.D)]

    def log_density(self, i: int, c: int) -> float:
        gaps = ((self.f[i][d] - self.mu[c][d]) ** 2 / self.var[d] + math.log(self.var[d]) for d in range(self.D))
        return -0.5 * sum(gaps)

    def pull(self, i: int, c: int) -> float:
        near = sum(self.w[i][j] * self.z[j][c] for j in range(self.N))
        return self.lam * math.log(self.y[i][c]) + self.log_density(i, c) / self.temperature + near

    def fit(self) -> None:
        weights = [[self.mass[i] * z for z in self.z[i]] for i in range(self.N)]
        for c in range(self.C):
            size, a = sum(row[c] for row in weights), self.anchor
            self.mu[c] = [
                (sum(weights[i][c] * self.f[i][d] for i in range(self.N)) + a * self.t[c][d]) / (size + a)
                for d in range(self.D)
            ]
        self.var = self.spread(weights)

    def spread(self, weights: list[list[float]]) -> list[float]:
        """Of the images around the means, and of the Gaussians of the texts, each as so many images."""
        total = sum(map(sum, weights)) + (self.anchor * self.C if any(self.around) else 0)
        found = []
        for d in range(self.D):
            pairs = [(i, c) for i in range(self.N) for c in range(self.C)]
            own = sum(weights[i][c] * (self.f[i][d] - self.mu[c][d]) ** 2 for i, c in pairs)
            gaps = sum(self.around[d] + (self.t[c][d] - self.mu[c][d]) ** 2 for c in range(self.C))
            found.append((own + (self.anchor * gaps if any(self.around) else 0)) / total)
        return found


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def one_hot(label: int, n: int) -> list[float]:
    return [float(c == label) for c in range(n)]


def transclip(
    feats: Tensor,
    text: Tensor,
    *,
    logit_scale: float,
    labels: Tensor | None = None,
    lam: float = 1.0,
    anchor: float = 0.0,
    **constants: float,
) -> SimpleNamespace:
    """With other constants of the file, by their names in small letters."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in constants.items():
            patched.setattr(transduce, name.upper(), value)
        found = transduce.transclip(feats, text, logit_scale=logit_scale, labels=labels, lam=lam, anchor=anchor)
    return SimpleNamespace(labels=found[0], weight=found[1], bias=found[2])


def linear(means: Tensor, variances: Tensor, text: Tensor, *, lam: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of Gaussians and text together."""
    precision = 1 / (variances * temperature)
    return lam * SCALE * text + means * precision, -0.5 * (means.square() * precision).sum(1)


def logits_of(found: SimpleNamespace, feats: Tensor) -> Tensor:
    return feats.float() @ found.weight.T + found.bias


@pytest.mark.parametrize(
    ("known", "k", "lam", "n", "temperature"),
    [(0, 3, 1.0, 3, 50.0), (0, 3, 0.5, 2, 1.0), (0, 0, 1.0, 2, 10.0), (4, 2, 0.5, 3, 20.0), (30, 3, 1.0, 2, 50.0)],
)
def test_transclip__equals_loops(known: int, k: int, lam: float, n: int, temperature: float) -> None:
    feats, text, truth = clusters(40, 5, 6, noise=0.35)
    labels = torch.where(torch.arange(40) < known, truth, -1)
    found = transclip(
        feats, text, logit_scale=SCALE, labels=labels, n_neighbours=k, lam=lam, n_iterations=n, temperature=temperature
    )
    slow = Slow(feats, text, labels.tolist(), k=k, lam=lam, n=n, temperature=temperature)
    weight, bias = linear(torch.tensor(slow.mu), torch.tensor(slow.var), text, lam=lam, temperature=temperature)
    torch.testing.assert_close(found.weight, weight, atol=2e-3, rtol=2e-3)  # float32
    torch.testing.assert_close(found.bias, bias, atol=2e-3, rtol=2e-3)
    assert torch.equal(found.labels, torch.tensor(slow.z).argmax(dim=1))


@pytest.mark.parametrize(("known", "anchor"), [(0, 1.0), (0, 8.0), (6, 2.0)])
def test_transclip__anchored_equals_loops(known: int, anchor: float) -> None:
    feats, text, truth = clusters(30, 4, 5, noise=0.35)
    labels = torch.where(torch.arange(30) < known, truth, -1)
    found = transclip(feats, text, logit_scale=SCALE, labels=labels, anchor=anchor, n_iterations=3)
    slow = Slow(feats, text, labels.tolist(), k=3, lam=1.0, n=3, temperature=50.0, anchor=anchor)
    weight, bias = linear(torch.tensor(slow.mu), torch.tensor(slow.var), text, lam=1.0, temperature=50.0)
    torch.testing.assert_close(found.weight, weight, atol=2e-3, rtol=2e-3)  # float32
    torch.testing.assert_close(found.bias, bias, atol=2e-3, rtol=2e-3)
    assert torch.equal(found.labels, torch.tensor(slow.z).argmax(dim=1))


def test_transclip__a_strong_anchor_keeps_the_means_at_the_texts() -> None:
    feats, text, _ = clusters(200, 4, 6, noise=0.2)
    strong = transclip(feats, text, logit_scale=SCALE, anchor=1e6)
    added = strong.weight - SCALE * text  # means over variances that all classes share
    torch.testing.assert_close(added * text[0], added[0] * text, atol=1e-2, rtol=1e-2)
    free = transclip(feats, text, logit_scale=SCALE)
    assert (free.weight - strong.weight).abs().max() > 0.1


def test_transclip__sixteen_classes_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, text, _ = clusters(400, 40, 24, noise=0.15)
    some = transclip(feats, text, logit_scale=SCALE)
    monkeypatch.setattr(transduce, "KEPT_CLASSES", 40)
    every = transclip(feats, text, logit_scale=SCALE)
    assert torch.equal(some.labels, every.labels)
    gap = (logits_of(some, feats).softmax(1) - logits_of(every, feats).softmax(1)).abs().max()
    assert 0 < gap < 0.05


def test_transclip__chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, text, truth = clusters(150, 6, 8, noise=0.3)
    labels = torch.where(torch.arange(150) % 25 == 0, truth, -1)
    whole = transclip(feats, text, logit_scale=SCALE, labels=labels)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 300)
    parts = transclip(feats, text, logit_scale=SCALE, labels=labels)
    assert torch.equal(parts.labels, whole.labels)
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-4, rtol=1e-4)


def test_transclip__a_dense_table_and_sparse_sums_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, text, _ = clusters(150, 20, 8, noise=0.3)  # more classes than are kept
    dense = transclip(feats, text, logit_scale=SCALE)
    monkeypatch.setattr(transduce, "DENSE_NUMBERS", 0)
    sparse = transclip(feats, text, logit_scale=SCALE)
    assert torch.equal(dense.labels, sparse.labels)
    torch.testing.assert_close(dense.weight, sparse.weight, atol=1e-4, rtol=1e-4)


def test_transclip__corrects_texts_that_point_elsewhere() -> None:
    feats, text, truth = clusters(600, 8, 16, noise=0.12, seed=3)
    text = F.normalize(text + 0.3 * torch.randn(text.shape, generator=torch.Generator().manual_seed(1)), dim=1)
    zero_shot = ((feats @ text.T).argmax(dim=1) == truth).float().mean()
    found = transclip(feats, text, logit_scale=SCALE)
    assert zero_shot < 0.97
    assert (found.labels == truth).float().mean() > zero_shot + 0.01


def test_transclip__known_labels_stay_and_pull() -> None:
    feats, text, truth = clusters(200, 4, 8, noise=0.2)
    turned = text.roll(1, dims=0)  # every text names the wrong class
    labels = torch.where(torch.arange(200) < 20, truth, -1)
    lost = transclip(feats, turned, logit_scale=1.0)
    found = transclip(feats, turned, logit_scale=1.0, labels=labels, lam=0.0, temperature=1.0)
    assert (lost.labels == truth).float().mean() < 0.2
    assert torch.equal(found.labels[:20], truth[:20])
    assert (found.labels == truth).float().mean() > 0.95


def test_transclip__all_known() -> None:
    feats, text, truth = clusters(60, 3, 8, noise=0.2)
    found = transclip(feats, text, logit_scale=SCALE, labels=truth, n_iterations=1)
    assert torch.equal(found.labels, truth)
    means = torch.stack([feats[truth == c].mean(dim=0) for c in range(3)])
    variances = (feats - means[truth]).square().mean(dim=0)
    weight, bias = linear(means, variances, text, lam=1.0, temperature=50.0)
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias, bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_transduced__is_the_fixed_point_without_neighbours(lam: float) -> None:
    feats, text, _ = clusters(120, 5, 8, noise=0.2)
    found = transclip(feats, text, logit_scale=SCALE, n_neighbours=0, n_iterations=60, lam=lam)
    assert torch.equal(logits_of(found, feats).argmax(dim=1), found.labels)
    shares = logits_of(found, feats).softmax(dim=1)
    counted = transduce._moments(feats, torch.arange(5).repeat(120, 1), shares, torch.ones(120), 5)
    means, variances = transduce._gaussians(counted, text)
    weight, bias = linear(means, variances, text, lam=lam, temperature=50.0)
    torch.testing.assert_close(found.weight, weight, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(found.bias, bias, atol=1e-2, rtol=1e-3)
    with_neighbours = transclip(feats, text, logit_scale=SCALE, n_neighbours=3, n_iterations=60, lam=lam)
    assert (with_neighbours.weight - found.weight).abs().max() > 0.03


def test_transclip__without_text_and_neighbours_is_the_usual_mixture() -> None:
    feats, text, truth = clusters(300, 3, 4, noise=0.1, seed=2)
    found = transclip(feats, text, logit_scale=SCALE, n_neighbours=0, lam=0.0, temperature=1.0)
    assert torch.equal(found.labels, truth)
    assert torch.equal(logits_of(found, feats).argmax(dim=1), truth)


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_transclip__fewer_images_than_neighbours(n_images: int) -> None:
    feats, text, _ = clusters(n_images, 5, 6, noise=0.1)
    found = transclip(feats, text, logit_scale=SCALE)
    assert torch.equal(found.labels, (feats @ text.T).argmax(dim=1))
    assert logits_of(found, feats).isfinite().all()


def test_transclip__one_class_and_equal_images() -> None:
    feats = F.normalize(torch.ones(5, 4), dim=1)
    found = transclip(feats, feats[:1], logit_scale=SCALE)
    assert found.labels.tolist() == [0] * 5
    counted = transduce._moments(feats, torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1), torch.ones(5), 1)
    _, variances = transduce._gaussians(counted, feats[:1])
    assert variances.tolist() == pytest.approx([transduce.VARIANCE_MIN] * 4)  # not zero
    assert logits_of(found, feats).isfinite().all()


def test_transclip__a_class_that_nothing_is_assigned_to_keeps_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transduce, "KEPT_CLASSES", 1)
    feats, text, _ = clusters(50, 3, 6, noise=0.05)
    text = torch.cat([text, F.normalize(-feats.mean(dim=0), dim=0)[None]])
    found = transclip(feats, text, logit_scale=100.0)
    assert 3 not in found.labels
    first = feats[(100 * feats.double() @ text.double().T).log_softmax(dim=1)[:, 3].topk(8).indices].mean(dim=0)
    starts = transduce._first_means(feats, torch.full((50,), -1), 100 * text)
    torch.testing.assert_close(starts[3], first)
    assigned = found.labels[:, None]
    means, _ = transduce._gaussians(transduce._moments(feats, assigned, torch.ones(50, 1), torch.ones(50), 4), starts)
    assert torch.equal(means[3], starts[3])


def test_transclip__half_precision_features() -> None:
    feats, text, _ = clusters(100, 4, 8, noise=0.2)
    found = transclip(feats.half(), text.half(), logit_scale=SCALE)
    whole = transclip(feats, text, logit_scale=SCALE)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    gap = logits_of(found, feats).softmax(1) - logits_of(whole, feats).softmax(1)
    assert gap.abs().max() < 0.02


@pytest.mark.parametrize(("n_images", "k"), [(30, 3), (5, 4), (4, 9), (2, 1)])
def test_nearest_neighbours__equals_whole_matrix(n_images: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    feats, _, _ = clusters(n_images, 3, 5, noise=0.5)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 40)
    monkeypatch.setattr(transduce, "KEY_BLOCK", 7)
    sims, rows = nearest_neighbours(feats, n_neighbours=k)
    whole = (feats @ feats.T).fill_diagonal_(-2).topk(min(k, n_images - 1), dim=1)
    torch.testing.assert_close(sims, whole.values)
    assert torch.equal(rows, whole.indices)


def test_nearest_neighbours__by_clusters_finds_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, _, _ = clusters(900, 30, 16, noise=0.12)
    whole = nearest_neighbours(feats, n_neighbours=3)
    monkeypatch.setattr(transduce, "EXACT_ROWS", 100)
    monkeypatch.setattr(transduce, "SEARCHED", 5)  # 150 of 900 rows
    sims, rows = nearest_neighbours(feats, n_neighbours=3)
    torch.testing.assert_close(sims, (feats[:, None] * feats[rows]).sum(dim=2))
    assert (rows != torch.arange(900)[:, None]).all()
    assert (sims >= whole[0] - 1e-6).float().mean() > 0.9
    assert (sims > whole[0] + 1e-6).sum() == 0
    again = nearest_neighbours(feats, n_neighbours=3)
    assert torch.equal(again[1], rows)


def test_nearest_neighbours__by_clusters_of_equal_rows_and_of_many_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transduce, "EXACT_ROWS", 10)
    monkeypatch.setattr(transduce, "SEARCHED", 1)
    sims, rows = nearest_neighbours(F.normalize(torch.ones(40, 4), dim=1), n_neighbours=2)
    assert torch.allclose(sims, torch.ones(40, 2))
    assert (rows != torch.arange(40)[:, None]).all()
    sims, rows = nearest_neighbours(clusters(30, 3, 5, noise=0.5)[0], n_neighbours=29)
    assert sims.isfinite().all()
    assert all(len(set(row)) == 29 for row in rows.tolist())


def exact_odds(logits: Tensor) -> list[list[float]]:
    """log p_c - log of the sum of all other p, one class at a time."""
    rows = logits.double().tolist()
    return [
        [-math.log(sum(math.exp(other - own) for j, other in enumerate(row) if j != c)) for c, own in enumerate(row)]
        for row in rows
    ]


def greedy(scores: Tensor, k: int) -> set[tuple[int, int]]:
    """Pairs (row, class), the highest score first, as long as the row is free and the class has room."""
    pairs = sorted(
        ((scores[i, c].item(), i, c) for i in range(len(scores)) for c in range(scores.shape[1])), reverse=True
    )
    owner: dict[int, int] = {}
    for score, i, c in pairs:
        if score > -math.inf and i not in owner and list(owner.values()).count(c) < k:
            owner[i] = c
    return set(owner.items())


@pytest.mark.parametrize(("n_images", "n_classes", "k"), [(60, 5, 4), (60, 5, 1), (12, 5, 4), (7, 3, 9), (40, 1, 3)])
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("slant", [0.0, 3.0])
def test_top_confident__equals_greedy(n_images: int, n_classes: int, k: int, size: int, slant: float) -> None:
    draw = torch.Generator().manual_seed(n_images + k)
    scores = torch.randn(n_images, n_classes, generator=draw) + slant * torch.arange(n_classes)  # later classes win
    scores[torch.rand(scores.shape, generator=draw) < 0.05] = -torch.inf
    rows, labels = top_confident(scores.split(size), k=k)
    assert set(zip(rows.tolist(), labels.tolist(), strict=True)) == greedy(scores, k)
    assert len(rows.unique()) == len(rows)
    assert labels.tolist() == sorted(labels.tolist())
    own = scores[rows, labels]
    assert all((own[labels == c].diff() <= 0).all() for c in range(n_classes))


def test_top_confident__every_class_gets_its_number_from_a_large_enough_pool() -> None:
    scores = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) - torch.tensor([0.0, 0, 0, 0, 0, 9])
    rows, labels = top_confident(scores.split(64), k=16)
    assert torch.bincount(labels).tolist() == [16] * 6
    assert not (scores.argmax(dim=1) == 5).any()  # although class 5 is nobody's best
    assert len(rows) == 96


def test_top_confident__equal_scores_end() -> None:
    rows, labels = top_confident(torch.zeros(10, 3).split(4), k=2)
    assert torch.bincount(labels).tolist() == [2, 2, 2]
    assert len(rows.unique()) == 6


def test_top_confident__an_empty_chunk_changes_nothing() -> None:
    scores = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    wanted = top_confident([scores], k=2)
    for found in (top_confident(scores.split(sizes), k=2) for sizes in ([0, 9], [4, 0, 5], [9, 0])):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert [len(found) for found in top_confident([scores[:0]], k=2)] == [0, 0]


def test_top_confident__needs_room_for_an_image() -> None:
    with pytest.raises(ConfigError, match="k=0 leaves no image to a class"):
        top_confident([torch.zeros(4, 2)], k=0)


@pytest.mark.parametrize("scale", [3.0, 100.0])  # at 100 most probabilities round to 1
def test_fpl_pseudolabels__ranks_by_probability(scale: float) -> None:
    feats, text, _ = clusters(80, 4, 6, noise=0.5)
    rows, labels = fpl_pseudolabels(feats.split(30), text, logit_scale=scale, k=5)
    odds = torch.tensor(exact_odds(scale * feats.double() @ text.double().T), dtype=torch.float64)
    assert set(zip(rows.tolist(), labels.tolist(), strict=True)) == greedy(odds, 5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_log_odds__equals_definition(scale: float) -> None:
    logits = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        log_odds(logits).double(), torch.tensor(exact_odds(logits)).double(), atol=1e-4, rtol=1e-5
    )
