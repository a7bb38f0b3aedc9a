"""labels/audit.py: wrong labels, copies, classes that look like one, outliers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict

from labelwright.data.looks import thumb
from labelwright.labels import audit
from labelwright.labels.audit import Neighbours, alike_of, far_out, joined, judge_labels, like_one, near_pairs, nearest


def clumps(n: int, n_classes: int, *, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, 16] around a centre per class, and the classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    centres = torch.randn(n_classes, 16, generator=draw)
    return centres[labels] + spread * torch.randn(n, 16, generator=draw), labels


def scenes(n: int, seed: int = 0) -> list[Image.Image]:
    """Smooth pictures of 64 px with edges, each another."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        grey = gaussian_filter(draw.normal(size=(64, 64)), 4)
        grey = (grey - grey.min()) / np.ptp(grey)
        grey[draw.integers(5, 30) : 40, draw.integers(5, 30) : 50] *= 0.5
        made.append(Image.fromarray((grey * 255).astype(np.uint8)).convert("RGB"))
    return made


def saved(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def test_nearest__all_pairs_by_hand() -> None:
    z = F.normalize(torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    sims = z @ z.T
    sims.fill_diagonal_(-2)
    wanted = sims.topk(3, 1)
    found = nearest(z, k=3)
    assert torch.equal(found.rows, wanted.indices)
    assert torch.allclose(found.sims, wanted.values, atol=1e-6)


def test_nearest__cells_find_nearly_all_and_every_equal_row(monkeypatch: pytest.MonkeyPatch) -> None:
    feats, _ = clumps(1500, 12, spread=0.6)
    feats[1000:1100] = feats[:100]
    z = F.normalize(feats, dim=1)
    every = nearest(z, k=5)
    monkeypatch.setattr(audit, "ALL_PAIRS_ROWS", 500)
    found = nearest(z, k=5)
    assert (found.rows >= 0).all()
    assert (found.rows != torch.arange(1500)[:, None]).all()
    shared = (found.rows[:, :, None] == every.rows[:, None]).any(2).float().mean()
    assert shared > 0.95
    assert (found.sims[:100, 0] > 1 - 1e-6).all()
    assert torch.equal(found.rows[:100, 0], torch.arange(1000, 1100))


def test_nearest__fewer_rows_than_asked_for() -> None:
    assert nearest(torch.eye(2), k=10).rows.tolist() == [[1], [0]]
    assert nearest(torch.ones(1, 1), k=3).rows.tolist() == [[-1]]


@pytest.mark.parametrize("kind", ["even", "one way"])
def test_judge_labels__finds_flipped_ones(kind: str) -> None:
    feats, truth = clumps(1200, 4, spread=1.0)
    draw = np.random.default_rng(0)
    flipped = torch.from_numpy(draw.random(1200) < 0.1)
    shift = torch.from_numpy(draw.integers(1, 4, 1200)) if kind == "even" else 1
    labels = torch.where(flipped, (truth + shift) % 4, truth)
    judged = judge_labels(feats, labels, nearest(F.normalize(feats), k=10), n_classes=4)
    assert judged is not None
    worst = judged.score.argsort()[: int(flipped.sum())]
    assert flipped[worst].float().mean() > 0.9
    assert (judged.suggested[worst] == truth[worst]).float().mean() > 0.9
    assert flipped[judged.is_suspected].float().mean() > 0.9
    assert judged.is_suspected.sum() > 0.7 * flipped.sum()
    assert judged.wrong_frac == pytest.approx(flipped.float().mean().item(), abs=0.02)


def test_judge_labels__a_fifth_of_few_labels_wrong_one_way() -> None:
    feats, truth = clumps(480, 8, spread=1.0)
    is_wrong = torch.from_numpy(np.random.default_rng(3).random(480) < 0.2)
    labels = torch.where(is_wrong, (truth + 1) % 8, truth)
    judged = judge_labels(feats, labels, nearest(F.normalize(feats), k=10), n_classes=8)
    assert judged is not None
    assert judged.wrong_frac == pytest.approx(float(is_wrong.double().mean()), abs=0.05)
    assert is_wrong[judged.is_suspected].double().mean() > 0.8
    assert judged.is_suspected[is_wrong].double().mean() > 0.7


def test_judge_labels__finds_what_cleanlab_finds() -> None:
    """The oracle has probabilities of the same kind: a linear model that did not see the label."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    feats, truth = clumps(900, 4, spread=1.2)
    draw = np.random.default_rng(1)
    flipped = draw.random(900) < 0.1
    labels = np.where(flipped, (truth.numpy() + draw.integers(1, 4, 900)) % 4, truth.numpy())
    probs = cross_val_predict(LogisticRegression(), feats.numpy(), labels, cv=5, method="predict_proba")
    judged = judge_labels(feats, torch.from_numpy(labels), nearest(F.normalize(feats), k=10), n_classes=4)
    assert judged is not None
    issues = find_label_issues(labels, probs, n_jobs=1)
    ours = judged.is_suspected.numpy()
    assert (ours & issues).sum() > 0.8 * (ours | issues).sum()
    scores = get_label_quality_scores(labels, probs, method="self_confidence")
    theirs = average_precision_score(flipped, -scores)
    assert average_precision_score(flipped, -judged.score.numpy()) > theirs - 0.02


def test_judge_labels__clean_labels_are_left_alone_and_unlabelled_rows_have_no_score() -> None:
    feats, labels = clumps(600, 4, spread=1.0)
    labels[::5] = -1
    judged = judge_labels(feats, labels, nearest(F.normalize(feats), k=10), n_classes=4)
    assert judged is not None
    assert torch.equal(judged.score.isnan(), labels < 0)
    assert torch.equal(judged.suggested < 0, labels < 0)
    assert judged.is_suspected.float().mean() < 0.02
    assert judged.wrong_frac < 0.03


def test_judge_labels__every_row_is_scored_beyond_the_tried_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelwright.train.cross_validation.MAX_TRIED_ROWS", 100)
    feats, labels = clumps(500, 3, spread=1.0)
    judged = judge_labels(feats, labels, nearest(F.normalize(feats), k=5), n_classes=3)
    assert judged is not None
    assert not judged.score.isnan().any()


def test_judge_labels__no_answer_where_each_class_is_one_group() -> None:
    feats, labels = clumps(40, 4, spread=0.3)
    near = nearest(F.normalize(feats, dim=1), k=5)
    assert judge_labels(feats, labels, near, n_classes=4, groups=labels) is None
    assert judge_labels(feats, labels, near, n_classes=4, groups=labels + 4 * (torch.arange(40) % 3)) is not None


def test_judge_labels__a_class_of_one_row_has_no_score_and_one_class_no_answer() -> None:
    feats, labels = clumps(60, 2, spread=0.5)
    labels[7] = 2
    near = nearest(F.normalize(feats), k=5)
    judged = judge_labels(feats, labels, near, n_classes=3)
    assert judged is not None
    assert judged.score.isnan().nonzero().flatten().tolist() == [7]
    assert judge_labels(feats, torch.zeros(60, dtype=torch.int64), near, n_classes=1) is None
    assert judge_labels(feats, labels, near, n_classes=3, groups=torch.zeros(60, dtype=torch.int64)) is None


def test_like_one__a_class_cut_in_two_and_no_other() -> None:
    feats, labels = clumps(900, 3, spread=1.0)
    half = torch.rand(900, generator=torch.Generator().manual_seed(1)) < 0.5
    labels = torch.where((labels == 2) & half, 3, labels)
    judged = judge_labels(feats, labels, nearest(F.normalize(feats), k=10), n_classes=4)
    assert judged is not None
    assert [pair[:2] for pair in like_one(judged.alike)] == [(2, 3)]


def test_alike_of__few_rows_and_weak_classifiers_say_nothing() -> None:
    y = torch.arange(3).repeat_interleave(20)
    sure = torch.tensor([[0.5, 0.4, 0.1], [0.4, 0.5, 0.1], [0.0, 0.0, 1.0]])
    assert [pair[:2] for pair in like_one(alike_of(sure[y], y))] == [(0, 1)]
    assert like_one(alike_of(sure[y][12:], y[12:])) == []  # eight rows of class 0
    weak = torch.tensor([[0.36, 0.34, 0.3], [0.34, 0.36, 0.3], [0.1, 0.1, 0.8]])
    assert like_one(alike_of(weak[y], y)) == []  # for the third class either is taken nearly as often


def test_near_pairs__saved_resized_and_cropped_copies_and_no_others() -> None:
    originals = scenes(80)
    copies = [
        *(saved(image, 60) for image in originals[:20]),
        *(image.resize((32, 32)) for image in originals[20:40]),
        *(image.crop((3, 2, 63, 62)) for image in originals[40:60]),
    ]
    thumbs = np.stack([thumb(image) for image in [*originals, *copies]])
    first, second = near_pairs(thumbs, [nearest(audit.grey_feats(thumbs), k=5)])
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == {(i, 80 + i) for i in range(60)}


def test_near_pairs__a_darker_picture_is_another() -> None:
    one = thumb(scenes(1)[0])
    thumbs = np.stack([one, one // 2])
    first, _ = near_pairs(thumbs, [Neighbours(torch.tensor([[1], [0]]), torch.ones(2, 1))])
    assert len(first) == 0


def test_joined__chains_are_one_group() -> None:
    assert joined(6, torch.tensor([4, 1, 3]), torch.tensor([1, 0, 5])).tolist() == [0, 0, -1, 1, 0, 1]
    assert joined(2, torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)).tolist() == [-1, -1]


def test_far_out__both_ends_and_nothing() -> None:
    values = np.array([-50.0, *range(10), 50.0])
    assert far_out(values).nonzero()[0].tolist() == [11]
    assert far_out(values, low=True).nonzero()[0].tolist() == [0]
    assert not far_out(np.ones(5)).any()
    assert far_out(np.zeros(0)).shape == (0,)


def test_far_out__values_that_are_missing_hide_no_others() -> None:
    values = np.array([1.0, 2, 3, 4, np.nan, 5, 6, 7, 30])
    assert far_out(values).nonzero()[0].tolist() == [8]
    assert not far_out(np.full(3, np.nan)).any()
