"""Semi-supervised k-means against a slow float64 loop; the number of novel classes on blobs; central rows by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from labelwright.errors import ConfigError, DataError
from labelwright.labels import chunks
from labelwright.labels import kmeans as semi_kmeans
from labelwright.labels import n_novel as discover
from labelwright.labels.kmeans import lloyd, semi_supervised_kmeans, starts


def describe_clusters(feats: Tensor, assigned: Tensor, **how: int) -> list[SimpleNamespace]:
    found = discover.describe_clusters(feats, assigned, **how)  # type: ignore[arg-type]
    return [SimpleNamespace(rows=rows, size=size, tightness=tightness) for rows, size, tightness in found]


def estimate_n_novel(feats: Tensor, labels: Tensor, **how: int) -> SimpleNamespace:
    return SimpleNamespace(**discover.estimate_n_novel(feats, labels, **how))  # type: ignore[arg-type]


def blobs(sizes: list[int], *, noise: float = 0.15, n_feats: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around centres of unit norm, nearly orthogonal, and the true classes."""
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(len(sizes), n_feats, generator=draw), dim=1)
    truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    truth = truth[torch.randperm(len(truth), generator=draw)]
    return centres[truth] + noise * torch.randn(len(truth), n_feats, generator=draw), truth


def hide(truth: Tensor, n_seen: int, *, frac: float = 0.5, seed: int = 0) -> Tensor:
    """Labels of about a share of the seen classes' rows."""
    draw = torch.Generator().manual_seed(seed)
    is_kept = (truth < n_seen) & (torch.rand(len(truth), generator=draw) < frac)
    return torch.where(is_kept, truth, -1)


def slow_lloyd(feats: Tensor, labels: list[int], centroids: Tensor, n_iter: int) -> tuple[list[int], float]:
    """The same by loops, in float64, without empty clusters or an early stop."""
    z = [[x / math.hypot(*row) for x in row] for row in feats.double().tolist()]
    centres = centroids.double().tolist()

    def gap(row: list[float], centre: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(row, centre, strict=True))

    def assign() -> list[int]:
        nearest = (min(range(len(centres)), key=lambda k: gap(row, centres[k])) for row in z)
        return [label if label >= 0 else near for label, near in zip(labels, nearest, strict=True)]

    for _ in range(n_iter):
        assigned = assign()
        for k in range(len(centres)):
            own = [row for row, cluster in zip(z, assigned, strict=True) if cluster == k]
            centres[k] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    assigned = assign()
    return assigned, sum(gap(row, centres[k]) for row, k in zip(z, assigned, strict=True))


def test_kmeans__a_worked_example() -> None:
    feats = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0], [0.8, 0.6]])
    found = semi_supervised_kmeans(feats, torch.tensor([0, 0, -1, -1]), n_classes=2, n_seen=1)
    # row 1 is not moved, whatever lies nearer
    assert found.assigned.tolist() == [0, 0, 1, 0]
    expected = [[(1 + 0.6 + 0.8) / 3, (0 + 0.8 + 0.6) / 3], [0.0, 1.0]]
    torch.testing.assert_close(found.centroids, torch.tensor(expected))
    spread = 3 - 3 * (expected[0][0] ** 2 + expected[0][1] ** 2)  # of unit vectors about their mean
    assert found.inertia == pytest.approx(spread, abs=1e-5)  # float32
    assert found.sizes.tolist() == [3, 1]


@pytest.mark.parametrize("seed", range(3))
def test_lloyd__as_a_slow_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 64)  # several chunks
    monkeypatch.setattr(semi_kmeans, "CONVERGED", -1.0)  # as many steps as the loop, unless nothing moves
    feats, truth = blobs([30, 20, 25, 15], noise=0.4, seed=seed)
    labels = hide(truth, 2, frac=0.3)
    z = F.normalize(feats, dim=1)
    first = starts(z, n_classes=4, draw=torch.Generator().manual_seed(seed))
    found = lloyd(z, labels, first, n_iter=4)
    assigned, inertia = slow_lloyd(feats, labels.tolist(), first, 4)
    assert found.assigned.tolist() == assigned
    assert found.inertia == pytest.approx(inertia, rel=1e-5)  # float32


def test_kmeans__all_labelled_gives_the_class_means() -> None:
    feats, truth = blobs([10, 20, 5])
    found = semi_supervised_kmeans(feats, truth, n_classes=3, n_seen=3)
    assert torch.equal(found.assigned, truth)
    means = torch.stack([F.normalize(feats[truth == k], dim=1).mean(0) for k in range(3)])
    torch.testing.assert_close(found.centroids, means)


def test_kmeans__finds_blobs_and_keeps_labels() -> None:
    feats, truth = blobs([60, 50, 40, 30, 20])
    labels = hide(truth, 3)
    labels[(truth != 0).nonzero()[0]] = 0  # a wrong label stays too
    found = semi_supervised_kmeans(feats, labels, n_classes=5, n_seen=3)
    assert torch.equal(found.assigned[labels >= 0], labels[labels >= 0])
    assert adjusted_rand_score(found.assigned, truth) > 0.97
    assert found.sizes.sum() == len(feats)


def test_kmeans__a_seen_class_without_labels_and_no_seen_class() -> None:
    feats, truth = blobs([30, 30, 30])
    labels = torch.where(truth == 2, hide(truth, 3), -1)
    for n_seen, given in ((3, labels), (0, torch.full_like(labels, -1))):
        found = semi_supervised_kmeans(feats, given, n_classes=3, n_seen=n_seen)
        assert adjusted_rand_score(found.assigned, truth) == 1


def test_kmeans__same_seed_same_result_and_any_scale() -> None:
    feats, truth = blobs([30, 30, 30, 30], noise=0.5)
    labels = hide(truth, 2)
    one, two = (semi_supervised_kmeans(feats, labels, n_classes=6, n_seen=2, seed=3) for _ in range(2))
    assert torch.equal(one.centroids, two.centroids)
    scaled = feats * torch.linspace(0.5, 2, len(feats))[:, None]
    scaled = semi_supervised_kmeans(scaled, labels, n_classes=6, n_seen=2, seed=3).assigned
    assert torch.equal(one.assigned, scaled)


def test_kmeans__more_starts_are_no_worse() -> None:
    feats, truth = blobs([20] * 8, noise=0.4)
    none = torch.full_like(truth, -1)
    inertias = [
        semi_supervised_kmeans(feats, none, n_classes=8, n_seen=0, n_init=n, seed=1).inertia for n in (1, 3, 10)
    ]
    assert inertias == sorted(inertias, reverse=True)


def test_kmeans__starts_are_tried_on_some_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, truth = blobs([60, 60, 60, 60], noise=0.2)
    labels = hide(truth, 2)
    whole = semi_supervised_kmeans(feats, labels, n_classes=4, n_seen=2)
    sizes: list[int] = []

    def counted(z: Tensor, *args: Tensor, n_iter: int) -> semi_kmeans.KMeans:
        sizes.append(len(z))
        return lloyd(z, *args, n_iter=n_iter)

    monkeypatch.setattr(semi_kmeans, "lloyd", counted)
    monkeypatch.setattr(semi_kmeans, "TRIED_ROWS", 40)
    monkeypatch.setattr(semi_kmeans, "TRIED_ROWS_PER", 1)
    found = semi_supervised_kmeans(feats, labels, n_classes=4, n_seen=2)
    share = 40 / int((labels < 0).sum())
    assert sizes == [40 + round(share * int((labels >= 0).sum()))] * 3 + [240]
    assert adjusted_rand_score(found.assigned, whole.assigned) == 1
    assert torch.equal(found.assigned[labels >= 0], labels[labels >= 0])
    assert found.inertia == pytest.approx(whole.inertia, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_estimate__classes_of_several_parts_with_few_labels_are_no_new_ones(seed: int) -> None:
    feats, part = blobs([60] * 20, noise=0.1, seed=seed)
    truth = part % 5  # four parts each
    labels = torch.full_like(truth, -1)
    for c in range(5):
        labels[(truth == c).nonzero().flatten()[:2]] = c  # of a part at most
    few = estimate_n_novel(feats, labels, n_seen=5, seed=seed)
    assert few.n_novel <= 3  # 12 parts of 20 have no label
    hidden = estimate_n_novel(feats, torch.where((truth < 4) & (part < 19), truth, -1), n_seen=4, seed=seed)
    assert hidden.n_novel >= 3  # four parts, one with hardly any label beside


def test_lloyd__empty_cluster_moves_to_the_farthest_row() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    centroids = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = lloyd(z, torch.full((4,), -1), centroids, n_iter=10)
    assert found.assigned.tolist() == [0, 0, 0, 1]


def test_kmeans__identical_features_leave_clusters_empty() -> None:
    found = semi_supervised_kmeans(torch.ones(20, 3), torch.full((20,), -1), n_classes=4, n_seen=0)
    assert sorted(found.sizes.tolist()) == [0, 0, 0, 20]
    assert found.inertia == pytest.approx(0, abs=1e-4)
    assert not found.centroids.isnan().any()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"n_classes": 9}, ConfigError, "7 of 9 clusters have no labelled image, and there are 4 .*\n.* at most 6"),
        (
            {"labels": torch.tensor([0, 1, 5, -1, -1, -1])},
            DataError,
            "row 2 has label 5, and the seen classes are 0",
        ),
        ({"labels": torch.tensor([0, 1])}, DataError, "are not"),
        ({"feats": torch.zeros(6, 0)}, DataError, "are not"),
    ],
)
def test_kmeans__errors(change: dict[str, object], error: type[Exception], text: str) -> None:
    given: dict[str, object] = {"feats": torch.eye(6), "labels": torch.tensor([0, 1, -1, -1, -1, -1])}
    given |= {"n_classes": 3, "n_seen": 2, **change}
    with pytest.raises(error, match=text):
        semi_supervised_kmeans(given.pop("feats"), given.pop("labels"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "what"), [(math.nan, "not finite"), (math.inf, "not finite"), (0.0, "all zeros")])
def test_features_that_cannot_be_scaled__name_the_row(value: float, what: str) -> None:
    feats = torch.eye(6)
    feats[[4, 5]] = value
    labels = torch.tensor([0, 1, -1, -1, -1, -1])
    text = rf"row 4 are {what} \(2 such rows\)"
    with pytest.raises(DataError, match=text):
        semi_supervised_kmeans(feats, labels, n_classes=3, n_seen=2)
    with pytest.raises(DataError, match=text):
        estimate_n_novel(feats, labels, n_seen=2)
    with pytest.raises(DataError, match=text):
        describe_clusters(feats, labels, n_clusters=2)


@pytest.mark.parametrize(("n_seen", "n_novel"), [(1, 0), (1, 3), (2, 0), (3, 0), (3, 4), (4, 1)])
def test_estimate__blobs(n_seen: int, n_novel: int) -> None:
    feats, truth = blobs([60] * (n_seen + n_novel), n_feats=24, seed=n_seen)
    found = estimate_n_novel(feats, hide(truth, n_seen), n_seen=n_seen, most=8)
    assert found.n_novel == n_novel
    assert found.plausible[0] <= n_novel <= found.plausible[1]
    assert not found.is_edge
    assert found.reason.startswith("no novel class" if n_novel == 0 else f"{n_novel} novel class")


def test_estimate__same_seed_same_evidence_and_json() -> None:
    feats, truth = blobs([40] * 5, noise=0.3)
    labels = hide(truth, 3)
    one, two = (discover.estimate_n_novel(feats, labels, n_seen=3, most=6, seed=2) for _ in range(2))
    assert json.loads(json.dumps(one)) == one == two
    numbers = [row["n_novel"] for row in one["curve"]]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert sum(row["score"] for row in one["curve"]) == pytest.approx(1, abs=1e-3)


def test_estimate__says_when_the_range_may_be_too_narrow() -> None:
    feats, truth = blobs([60] * 6, n_feats=24)
    labels = hide(truth, 2)
    low = estimate_n_novel(feats, labels, n_seen=2, most=2)
    assert (low.n_novel, low.is_edge) == (2, True)
    assert "upper end of the range: there may be more; raise most" in low.reason
    high = estimate_n_novel(feats, labels, n_seen=2, fewest=6, most=9)
    assert high.is_edge
    assert "lower end of the range: there may be fewer; lower fewest" in high.reason


@pytest.mark.parametrize("scale", [0.03, 37.0])
def test_estimate__a_class_of_most_images_is_not_cut_up(scale: float) -> None:
    feats, truth = blobs([100, 100, 700, 60, 40], n_feats=24, noise=0.2)
    labels = hide(truth, 2)
    found = estimate_n_novel(scale * feats, labels, n_seen=2)
    assert (found.n_novel, found.plausible) == (3, [3, 3])


def test_estimate__a_handful_of_odd_images_is_no_class() -> None:
    feats, truth = blobs([100, 100, 100, discover.HANDFUL - 1], n_feats=24)
    assert estimate_n_novel(feats, hide(truth, 2), n_seen=2).n_novel == 1


def test_estimate__pieces_with_labels_are_seen_classes_however_far_apart() -> None:
    feats, truth = blobs([60] * 6, n_feats=24)
    classes = torch.tensor([0, 0, 1, 1, 2, 3])[truth]  # two seen classes of two blobs each
    assert estimate_n_novel(feats, hide(classes, 2), n_seen=2).n_novel == 2


def test_separations__as_by_hand() -> None:
    z = torch.tensor([[0.0, 1.0], [2.0, 1.0], [9.0, 3.0], [11.0, 5.0], [4.0, 4.0]])
    groups, centres = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([[1.0, 1.0], [10.0, 4.0], [4.0, 4.0]])
    own = (z * centres[groups]).sum(1)
    line = centres[0] - centres[1]
    one, other = (z[groups == g].double() @ line.double() for g in (0, 1))
    gap = float((one.mean() - other.mean()).square())
    expected = gap / (gap + 4 * float(one.var(correction=0) + other.var(correction=0)) / 2)
    found = discover._separations(z, own, groups, centres, 0)
    assert float(found[1]) == pytest.approx(expected, rel=1e-5)
    assert float(found[2]) < 1e-4  # a single row: merged with what is nearest, before all others


def test_evidence__could_be_none_and_the_estimate_is_in_its_range() -> None:
    votes = [[2, 3, 4], [0, 1, 1], [0, 0, 0]]
    found = SimpleNamespace(**discover._evidence(votes, bar=0.75, n_seen=2, fewest=0, most=9))
    assert (found.n_novel, found.plausible, found.could_be_none) == (1, [0, 4], True)
    assert "There could be none." in found.reason
    assert found.curve[0] == {"n_novel": 0, "score": 0.4444}
    none = discover._evidence([[0, 0, 1]] * 3, bar=0.75, n_seen=2, fewest=0, most=9)
    assert (none["n_novel"], none["could_be_none"]) == (0, False)


def test_estimate__given_range_of_one_is_no_edge() -> None:
    feats, truth = blobs([30] * 3)
    found = estimate_n_novel(feats, hide(truth, 2), n_seen=2, fewest=1, most=1)
    assert (found.n_novel, found.is_edge, len(found.curve)) == (1, False, 1)


def test_estimate__range_by_default() -> None:
    feats, truth = blobs([60, 60])
    found = estimate_n_novel(feats, hide(truth, 2, frac=1 / 3), n_seen=2)
    n_unlabelled = int((hide(truth, 2, frac=1 / 3) < 0).sum())
    assert (found.fewest, found.most) == (0, n_unlabelled // 10)
    assert found.n_novel == 0


def test_estimate__identical_features() -> None:
    labels = torch.tensor([0, 1, -1, -1] * 10)
    assert estimate_n_novel(torch.ones(40, 4), labels, n_seen=2).n_novel == 0


@pytest.mark.parametrize("frac", [0.1, 0.9])
def test_estimate__few_rows(frac: float) -> None:
    feats, truth = blobs([12, 12, 12])
    labels = hide(truth, 2, frac=frac, seed=1)
    found = estimate_n_novel(feats, labels, n_seen=2)
    assert 0 <= found.n_novel <= found.most


@pytest.mark.parametrize(
    ("n_seen", "labels", "options", "error", "text"),
    [
        (0, [-1] * 6, {}, DataError, "0 seen classes and 0 labelled images: nothing says .*\n.*label a few"),
        (2, [-1] * 6, {}, DataError, "2 seen classes and 0 labelled images"),
        (2, [0, 1, -1, -1, -1, -1], {"fewest": 3, "most": 2}, ConfigError, "3..2, with 4 unlabelled"),
        (2, [0, 1, -1, -1, -1, -1], {"most": 5}, ConfigError, "0..5, with 4 unlabelled"),
        (2, [0, 1, -1, -1, -1, -1], {"fewest": -1}, ConfigError, "-1..0"),
    ],
)
def test_estimate__errors(
    n_seen: int, labels: list[int], options: dict[str, int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        estimate_n_novel(torch.eye(6), torch.tensor(labels), n_seen=n_seen, **options)  # type: ignore[arg-type]


def test_estimate__everything_labelled_is_no_novel_class() -> None:
    feats, truth = blobs([20, 20])
    assert estimate_n_novel(feats, truth, n_seen=2).n_novel == 0


def test_describe__as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 64)
    feats, truth = blobs([30, 8, 12])
    truth = torch.where(torch.arange(50) % 10 == 0, -1, truth)
    found = describe_clusters(feats, truth, n_clusters=4, n_central=9)
    for k, cluster in enumerate(found[:3]):
        rows = (truth == k).nonzero().flatten()
        z = F.normalize(feats[rows].double(), dim=1)
        sims = z @ F.normalize(z.mean(0), dim=0)
        assert cluster.rows == rows[sims.sort(descending=True).indices[:9]].tolist()
        assert cluster.size == len(rows)
        assert cluster.tightness == pytest.approx(float(sims.mean()), abs=1e-5)
    assert (found[3].rows, found[3].size, found[3].tightness) == ([], 0, 0)


def test_describe__nothing_assigned() -> None:
    (none,) = describe_clusters(torch.eye(3), torch.full((3,), -1), n_clusters=1)
    assert (none.rows, none.size, none.tightness) == ([], 0, 0)
