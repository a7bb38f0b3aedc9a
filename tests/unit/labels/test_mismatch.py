"""Evidence and the classes without any: against a full sort, every cut tried by hand, a real model, and at scale."""

import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from labelwright.labels import concepts as mismatch
from labelwright.labels.concepts import detect_by_clustering, detect_mismatched, evidence


def clumps(n_per_class, n_classes, n_features, *, noise=0.15, seed=0):
    """Unit feats [N, D] around random centres [C, D], and their classes."""
    draw = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(n_classes, n_features, generator=draw), dim=1)
    sizes = torch.as_tensor(n_per_class).expand(n_classes)
    truth = torch.arange(n_classes).repeat_interleave(sizes)
    noisy = centres[truth] + noise * torch.randn(len(truth), n_features, generator=draw)
    return F.normalize(noisy, dim=1), centres, truth


def away_from(centres, count, *, seed=1):
    """Unit vectors far from every centre, as alike as words without meaning: names of nothing that is there."""
    draw = torch.Generator().manual_seed(seed)
    tried = F.normalize(torch.randn(20_000, centres.shape[1], generator=draw), dim=1)
    far = tried[(tried @ centres.T).amax(1).argmin()]
    return F.normalize(far + 0.02 * torch.randn(count, centres.shape[1], generator=draw), dim=1)


def slow_evidence(feats, class_feats, *, logit_scale, top_frac):
    """By a full sort in float64."""
    logits = logit_scale * feats.double().numpy() @ class_feats.double().numpy().T
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    n_best = max(1, int(top_frac * len(feats) / len(class_feats)))
    return [float(np.sort(column)[::-1][:n_best].mean()) for column in probs.T]


@pytest.mark.parametrize(("n", "n_classes", "top_frac"), [(500, 7, 0.1), (500, 7, 1.0), (60, 20, 0.1), (3, 8, 0.5)])
def test_evidence__by_full_sort(n, n_classes, top_frac, monkeypatch):
    z, _, _ = clumps(n, 1, 6, noise=1.0)
    names = clumps(1, n_classes, 6, seed=5)[1]
    want = slow_evidence(z, names, logit_scale=12.0, top_frac=top_frac)
    monkeypatch.setattr(mismatch, "TOP_FRAC", top_frac)
    for chunk in (8192, 64, 1):
        monkeypatch.setattr(mismatch, "CHUNK", chunk)
        got = evidence(z, names, logit_scale=12.0)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx(want, rel=1e-5), chunk


def test_evidence__half_precision_feats():
    z, names, _ = clumps(20, 4, 8)
    got = evidence(z.half(), names, logit_scale=10.0)
    torch.testing.assert_close(got, evidence(z, names, logit_scale=10.0), rtol=5e-3, atol=5e-3)


def otsu_by_hand(values):
    """(share of the spread that lies between the two groups, values below) for the best of all cuts."""
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered)
    tried = []
    for cut in range(1, len(ordered)):
        low, high = ordered[:cut], ordered[cut:]
        between = sum(len(g) * (sum(g) / len(g) - mean) ** 2 for g in (low, high))
        tried.append((between, low, high))
    return max(tried, key=lambda one: one[0])


@pytest.mark.parametrize("seed", range(4))
def test_detect_mismatched__cut_by_hand(seed):
    z, centres, _ = clumps(30, 12, 8, seed=seed)
    names = centres.clone()
    names[:4] = away_from(centres, 4, seed=seed)
    found = detect_mismatched(z, names, logit_scale=15.0)
    _, low, high = otsu_by_hand(found.evidence.double().tolist())
    assert sum(low) / len(low) < 0.5 * sum(high) / len(high)
    assert found.threshold == pytest.approx((max(low) + min(high)) / 2, rel=1e-6)
    assert sorted(found.evidence[found.is_mismatched].double().tolist()) == low


@pytest.mark.parametrize("n_bad", [1, 6, 15, 19])
def test_detect_mismatched__any_number_of_classes(n_bad):
    z, centres, _ = clumps(40, 20, 16)
    names = centres.clone()
    names[20 - n_bad :] = away_from(centres, n_bad)
    found = detect_mismatched(z, names, logit_scale=30.0)
    assert found.is_mismatched.nonzero().flatten().tolist() == list(range(20 - n_bad, 20))
    assert found.evidence[:-n_bad].min() > found.threshold > found.evidence[-n_bad:].max()


def test_detect_mismatched__none():
    z, centres, _ = clumps(40, 20, 16)
    found = detect_mismatched(z, centres, logit_scale=30.0)
    assert not found.is_mismatched.any()
    assert found.threshold == 0.0
    assert found.evidence.min() > 0.9


def test_detect_mismatched__all_cannot_be_told():
    z, _, _ = clumps(30, 1, 6, noise=0.05)
    names = F.normalize(-z.mean(0) + 0.05 * clumps(1, 5, 6, seed=3)[1], dim=1)
    assert (z @ names.T).amax() < 0
    found = detect_mismatched(z, names, logit_scale=10.0)
    assert not found.is_mismatched.any()


def test_detect_mismatched__one_class_and_fewer_images_than_classes():
    z, centres, _ = clumps(3, 1, 6)
    one = detect_mismatched(z, centres, logit_scale=10.0)
    assert (one.is_mismatched.tolist(), one.evidence.tolist(), one.threshold) == ([False], [1.0], 0.0)
    many = clumps(1, 40, 6, seed=2)[1]
    few = detect_mismatched(z, many, logit_scale=10.0)
    assert few.evidence.tolist() == pytest.approx(slow_evidence(z, many, logit_scale=10.0, top_frac=0.1), rel=1e-5)
    own = (z @ many.T).argmax(1).unique()
    assert not few.is_mismatched[own].any()
    assert few.is_mismatched.sum() >= 30


def test_detect_mismatched__a_rare_class_is_not_mismatched(monkeypatch):
    monkeypatch.setattr(mismatch, "TOP_FRAC", 0.01)
    z, centres, _ = clumps([300, 300, 300, 300, 4], 5, 16)
    names = centres.clone()
    names[1] = away_from(centres, 1)[0]
    found = detect_mismatched(z, names, logit_scale=30.0)
    assert found.is_mismatched.tolist() == [False, True, False, False, False]


def test_detect_mismatched__order_of_classes_and_images_is_nothing():
    z, centres, _ = clumps(40, 9, 16)
    names = centres.clone()
    names[[2, 5]] = away_from(centres, 2)
    found = detect_mismatched(z, names, logit_scale=30.0)
    draw = torch.Generator().manual_seed(3)
    order, shuffle = torch.randperm(9, generator=draw), torch.randperm(len(z), generator=draw)
    again = detect_mismatched(z[shuffle], names[order], logit_scale=30.0)
    assert torch.equal(again.is_mismatched, found.is_mismatched[order])
    torch.testing.assert_close(again.evidence, found.evidence[order])


def test_detect_by_clustering__leaves_the_worst():
    z, centres, _ = clumps(25, 10, 16)
    names = centres.clone()
    names[:1] = away_from(centres, 1)
    left = detect_by_clustering(z, names, logit_scale=30.0)
    assert left.nonzero().flatten().tolist() == [0]


def test_detect_by_clustering__a_tenth_by_default_and_one_class():
    z, centres, _ = clumps(8, 24, 16)
    assert detect_by_clustering(z, centres, logit_scale=30.0).sum() == 2
    assert detect_by_clustering(z, centres[:1], logit_scale=30.0).tolist() == [True]


def test_detect_mismatched__of_a_real_model(signs):
    """14 of 43 classes are under 5%; only a name that fits other signs ("No vehicles") has evidence."""
    found = detect_mismatched(signs.z, signs.concepts.feats, logit_scale=signs.concepts.logit_scale)
    recall = signs.recall(signs.concepts.feats)
    lost, good = recall < 0.05, recall > 0.65
    assert (int(lost.sum()), int(good.sum())) == (14, 19)
    assert (lost & ~found.is_mismatched).nonzero().flatten().tolist() == [signs.at("No vehicles")]
    assert not found.is_mismatched[good].any()
    assert 14 <= found.is_mismatched.sum() <= 16


def test_detect_mismatched__of_a_real_model_is_better_than_the_published_way(signs):
    scale = signs.concepts.logit_scale
    recall = signs.recall(signs.concepts.feats)
    some = slice(0, 1000)
    ours = detect_mismatched(signs.z[some], signs.concepts.feats, logit_scale=scale).is_mismatched
    theirs = detect_by_clustering(signs.z[some], signs.concepts.feats, logit_scale=scale)
    assert theirs.sum() == 4
    assert (ours & (recall < 0.05)).sum() >= 12 > 4 >= (theirs & (recall < 0.05)).sum()


class Largest(TorchDispatchMode):
    """The most numbers in any tensor made meanwhile."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in itertools.chain([out], out if isinstance(out, list | tuple) else []):
            if isinstance(one, torch.Tensor) and not any(one is arg for arg in args) and one._base is None:
                self.numel = max(self.numel, one.numel())
        return out


def test_evidence__scale():
    draw = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(50_000, 64, generator=draw), dim=1)
    names = F.normalize(torch.randn(200, 64, generator=draw), dim=1)
    began = time.process_time()
    with Largest() as largest:
        detect_mismatched(z, names, logit_scale=20.0)
    assert time.process_time() - began < 5  # 0.1 s on one core
    assert 8192 * 200 <= largest.numel <= 2 * 8192 * 200  # of 10 million in a table of images x classes
