"""EM of Gaussians with one covariance: against plain loops in float64, its limits, and at scale."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.utils._python_dispatch import TorchDispatchMode

from labelwright.labels import chunks
from labelwright.labels.concepts import choose_descriptions, detect_mismatched
from labelwright.labels.gaussians import gaussian_beliefs

UNKNOWN = torch.full((60,), -1)


def pool(sizes=(30, 20, 10), n_features=5, *, noise=0.35, tilt=0.6, seed=0):
    """Unit feats [N, D] in elongated clumps, texts [C, D] off their centres, truth [N]."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = F.normalize(torch.randn(len(sizes), n_features, generator=draw), dim=1)
    stretch = torch.linspace(0.2, 2.0, n_features)
    z = F.normalize(centres[truth] + noise * stretch * torch.randn(len(truth), n_features, generator=draw), dim=1)
    text = F.normalize(centres + tilt * torch.randn(len(sizes), n_features, generator=draw) / n_features**0.5, dim=1)
    return z, text, truth


def slow_beliefs(z, text_weight, labels, *, strength, shrinkage, n_iter, n_prior=0):
    """Image by image and class by class, log densities from the definition."""
    z, text_weight, labels = z.double().numpy(), text_weight.double().numpy(), labels.tolist()
    n, n_classes, n_features = len(z), len(text_weight), z.shape[1]
    hidden = [i for i in range(n) if labels[i] < 0]
    log_share = [0.0] * n_classes  # in full

    def e_step(log_joint):
        probs = np.zeros((n, n_classes))
        for i in range(n):
            if labels[i] >= 0:
                probs[i, labels[i]] = 1
                continue
            row = [z[i] @ text_weight[c] + strength * log_joint(z[i], c) + log_share[c] for c in range(n_classes)]
            top = max(row)
            total = sum(math.exp(v - top) for v in row)
            probs[i] = [math.exp(v - top) / total for v in row]
        return probs

    def shares(probs):
        open_rows = e_step(lambda _z, _c: 0.0)[hidden] if probs is None else probs[hidden]
        return [math.log(max(1e-3, share)) for share in open_rows.sum(0)]

    probs = e_step(lambda _z, _c: 0.0)
    for _ in range(n_prior):
        log_share = shares(probs)
        probs = e_step(lambda _z, _c: 0.0)
    for _ in range(n_iter):
        log_share = shares(probs) if n_prior else log_share
        counts = probs.sum(0)
        means = [sum(probs[i, c] * z[i] for i in range(n)) / counts[c] for c in range(n_classes)]
        within = np.zeros((n_features, n_features))
        for i in range(n):
            for c in range(n_classes):
                within += probs[i, c] * np.outer(z[i] - means[c], z[i] - means[c]) / n
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / n_features * np.eye(n_features)
        inverse, half_log_det = np.linalg.inv(within), 0.5 * np.linalg.slogdet(within)[1]

        def log_joint(x, c, means=means, inverse=inverse, counts=counts, half_log_det=half_log_det):
            off = x - means[c]
            own = 0.0 if n_prior else math.log(counts[c] / counts.sum())
            return own - 0.5 * off @ inverse @ off - half_log_det

        probs = e_step(log_joint)
    added = np.array([[strength * log_joint(z[i], c) + log_share[c] for c in range(n_classes)] for i in range(n)])
    return added - added.mean(1, keepdims=True), counts / counts.sum()


def of_text(z, text_weight, labels, **knobs):
    """Beliefs with the logits of the texts as their evidence."""
    knobs = {"strength": 0.2, "shrinkage": 0.1, "n_iter": 20} | knobs
    return gaussian_beliefs(z, lambda rows: z[rows].float() @ text_weight.float().T, labels, **knobs)


def added_by(found, z):
    """What the linear term adds to each image's logits, up to a constant per image."""
    weight, bias = found.linear
    added = z @ weight.T + bias
    return (added - added.mean(1, keepdim=True)).double()


@pytest.mark.parametrize("n_prior", [0, 3])
@pytest.mark.parametrize("n_labelled", [0, 9])
@pytest.mark.parametrize(("strength", "shrinkage", "n_iter"), [(0.2, 0.1, 20), (1.0, 0.5, 5), (0.7, 0.01, 1)])
def test_gaussian_beliefs__by_loops(strength, shrinkage, n_iter, n_labelled, n_prior):
    z, text, truth = pool()
    labels = UNKNOWN.clone()
    labels[::7][:n_labelled] = truth[::7][:n_labelled]
    knobs = {"strength": strength, "shrinkage": shrinkage, "n_iter": n_iter, "n_prior": n_prior}
    added, prior = slow_beliefs(z, 6 * text, labels, **knobs)
    found = of_text(z, 6 * text, labels, **knobs)
    torch.testing.assert_close(added_by(found, z), torch.from_numpy(added), rtol=2e-3, atol=2e-3)
    assert found.prior.tolist() == pytest.approx(prior.tolist(), rel=1e-3)
    assert np.abs(added).max() > 0.05
    assert float(found.weight.mean(0).abs().max()) < 1e-5, "centred over the classes"


def test_gaussian_beliefs__chunks_do_not_show(monkeypatch):
    z, text, _ = pool()
    whole = of_text(z, 6 * text, UNKNOWN)
    monkeypatch.setattr(chunks, "CHUNK_NUMBERS", 7 * 5)  # of the 5 features
    parts = of_text(z, 6 * text, UNKNOWN)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.prior, whole.prior, rtol=1e-4, atol=1e-6)


def test_gaussian_beliefs__all_labelled_is_discriminant_analysis():
    z, text, truth = pool()
    found = of_text(z, torch.zeros_like(text), truth, strength=1.0, shrinkage=1e-6)
    judge = LinearDiscriminantAnalysis(solver="lsqr").fit(z.double().numpy(), truth.numpy())
    want = torch.from_numpy(judge.decision_function(z.double().numpy()))
    want = want - want.mean(1, keepdim=True)
    torch.testing.assert_close(added_by(found, z), want, rtol=5e-3, atol=5e-3)
    assert found.prior.tolist() == pytest.approx([0.5, 1 / 3, 1 / 6])


def test_gaussian_beliefs__labels_override_texts_that_are_wrong():
    z, text, truth = pool(noise=0.2)
    wrong = 6 * text[[1, 2, 0]]
    lost = ((z @ wrong.T).argmax(1) == truth).float().mean()
    found = of_text(z, wrong, truth, strength=1.0)
    right = (found.probs(z, z @ wrong.T).argmax(1) == truth).float().mean()
    assert lost < 0.1 < 0.9 < right


def test_gaussian_beliefs__better_than_texts_that_are_off():
    gains = []
    for seed in range(5):
        z, text, truth = pool((60, 60, 60, 60), 12, noise=0.15, tilt=1.6, seed=seed)
        text = 8 * text
        found = of_text(z, text, torch.full((240,), -1), strength=0.5)
        before = ((z @ text.T).argmax(1) == truth).double().mean()
        after = (found.probs(z, z @ text.T).argmax(1) == truth).double().mean()
        gains.append(float(after - before))
    assert min(gains) >= 0
    assert sum(gains) / 5 > 0.03


def test_gaussian_beliefs__strength_zero_leaves_the_texts_alone_and_estimates_shares():
    z, text, _ = pool()
    found = of_text(z, 6 * text, UNKNOWN, strength=0.0)
    assert [float(part.abs().max()) for part in found.linear] == [0, 0]
    torch.testing.assert_close(found.prior, (6 * z @ text.T).softmax(1).mean(0))


def test_gaussian_beliefs__a_lopsided_pool_has_a_lopsided_prior():
    z, text, truth = pool((80, 15, 5), 8, noise=0.1, tilt=0.2)
    found = of_text(z, 10 * text, torch.full((100,), -1))
    want = torch.bincount(truth) / 100
    torch.testing.assert_close(found.prior, want, rtol=0, atol=0.05)
    assert float(found.prior.sum()) == pytest.approx(1)


def test_gaussian_beliefs__classes_that_no_image_shows_take_none():
    """Two of eight classes are there, and texts that are off give a quarter of the images to others."""
    lost = []
    for seed in range(4):
        z, text, _ = pool((1,) * 8, 12, noise=0.0, tilt=1.2, seed=seed)
        centres, draw = z[:2], torch.Generator().manual_seed(seed)
        truth = torch.arange(200) % 2
        z = F.normalize(centres[truth] + 0.25 * torch.randn(200, 12, generator=draw), dim=1)
        logits, labels = 6 * z @ text.T, torch.full((200,), -1)
        before, late, first = (
            float((answers.argmax(1) == truth).float().mean())
            for answers in (
                logits,
                of_text(z, 6 * text, labels).probs(z, logits),
                of_text(z, 6 * text, labels, n_prior=15).probs(z, logits),
            )
        )
        lost.append((before, late, first))
    before, late, first = (sum(scores) / 4 for scores in zip(*lost, strict=True))
    assert first > before + 0.03
    assert first > late + 0.03


def test_gaussian_beliefs__a_known_prior_is_kept():
    z, text, _ = pool((60, 30, 10), noise=0.3)
    labels = torch.full((100,), -1)
    wanted = torch.tensor([0.2, 0.3, 0.5])
    free, held = (of_text(z, 6 * text, labels, prior=prior, n_iter=60) for prior in (None, wanted))
    assert held.prior.tolist() == pytest.approx(wanted.tolist())
    assert held.probs(z, 6 * z @ text.T).mean(0).tolist() == pytest.approx(wanted.tolist(), abs=1e-3)
    assert (free.probs(z, 6 * z @ text.T).mean(0) - wanted).abs().max() > 0.1
    assert torch.equal(free.offset, torch.zeros(3))


def test_gaussian_beliefs__a_class_of_no_share_in_a_known_prior():
    z, text, _ = pool()
    found = of_text(z, 6 * text, UNKNOWN, prior=torch.tensor([0.5, 0.5, 0.0]))
    assert torch.isfinite(torch.cat([found.weight.flatten(), found.bias, found.offset])).all()
    assert found.probs(z, 6 * z @ text.T).mean(0)[2] < 1e-4


@pytest.mark.parametrize("prior", [None, torch.tensor([0.4, 0.3, 0.3])])
def test_gaussian_beliefs__a_label_of_weight_three_is_three_rows(prior):
    z, text, truth = pool()
    labels = torch.where(torch.arange(60) % 6 == 0, truth, -1)
    known = (labels >= 0).nonzero().flatten()
    rows = torch.cat([torch.arange(60), known, known])
    heavy = of_text(z, 6 * text, labels, prior=prior, label_weight=3.0)
    by_class = of_text(z, 6 * text, labels, prior=prior, label_weight=torch.full((3,), 3.0))
    thrice = of_text(z[rows], 6 * text, labels[rows], prior=prior)
    once = of_text(z, 6 * text, labels, prior=prior)
    for found in (by_class, thrice):
        torch.testing.assert_close(found.weight, heavy.weight, rtol=1e-3, atol=1e-4)
    assert (heavy.weight - once.weight).abs().max() > 0.1
    if prior is None:
        q = once.probs(z, 6 * z @ text.T)
        q[known] = torch.eye(3)[labels[known]]
        torch.testing.assert_close(once.prior, q.mean(0), rtol=1e-3, atol=1e-4)
        assert float(heavy.prior.sum()) == pytest.approx(1)


def test_gaussian_beliefs__watch_sees_the_last_beliefs_of_every_row():
    z, text, truth = pool()
    labels = torch.where(torch.arange(60) % 6 == 0, truth, -1)
    seen = []
    of_text(z, 6 * text, labels, n_iter=3, label_weight=2.0, watch=lambda rows, q: seen.append((rows, q.clone())))
    ((rows, q),) = seen
    before = of_text(z, 6 * text, labels, n_iter=2, label_weight=2.0)
    expected = before.probs(z, 6 * z @ text.T)
    expected[labels >= 0] = 2.0 * torch.eye(3)[labels[labels >= 0]]
    assert torch.equal(rows, torch.arange(60))
    torch.testing.assert_close(q, expected)


def test_gaussian_beliefs__one_class_adds_nothing():
    z, text, _ = pool()
    found = of_text(z, 6 * text[:1], UNKNOWN)
    assert (found.weight.tolist(), found.bias.tolist(), found.prior.tolist()) == ([[0.0] * 5], [0.0], [1.0])


def test_gaussian_beliefs__a_class_without_image():
    z, text, truth = pool(noise=0.1, tilt=0.2)
    text = 40 * torch.cat([text, F.normalize(-z.mean(0, keepdim=True), dim=1)])
    found = of_text(z, text, UNKNOWN)
    assert torch.isfinite(found.weight).all()
    assert torch.isfinite(found.bias).all()
    assert found.prior[3] < 1e-3
    assert torch.equal(found.probs(z, z @ text.T).argmax(1), truth)


@pytest.mark.parametrize("copies", [1, 4])
def test_gaussian_beliefs__one_image_per_class_and_copies_of_one(copies):
    """Nothing varies inside a class: the covariance is zero but for its floor."""
    z, text, _ = pool((1, 1, 1), 4)
    z, labels = z.repeat(copies, 1), torch.arange(3).repeat(copies)
    found = of_text(z, 3 * text[[1, 2, 0]], labels, strength=1.0)
    assert found.weight.abs().max() < 1e5
    assert torch.equal(found.probs(z, z @ (3 * text[[1, 2, 0]]).T).argmax(1), labels)


@pytest.mark.parametrize("n", [1, 2])
def test_gaussian_beliefs__fewer_images_than_classes(n):
    z, text, _ = pool((1, 1, 1, 1, 1, 1), 4)
    found = of_text(z[:n], 20 * text, torch.full((n,), -1))
    assert torch.isfinite(found.weight).all()
    assert found.weight.abs().max() < 1e5
    assert float(found.prior.sum()) == pytest.approx(1)


def test_gaussian_beliefs__more_features_than_images():
    z, text, truth = pool((5, 5), 64, noise=0.05, tilt=0.3)
    found = of_text(z, 10 * text, torch.full((10,), -1), strength=1.0)
    assert torch.equal(found.probs(z, z @ (10 * text).T).argmax(1), truth)


def test_gaussian_beliefs__half_precision_feats_and_inputs_untouched():
    z, text, _ = pool()
    given = z.half(), (6 * text).half(), UNKNOWN.clone()
    kept = [one.clone() for one in given]
    found = of_text(given[0], given[1], given[2])
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    assert {found.weight.dtype, found.bias.dtype, found.prior.dtype} == {torch.float32}
    torch.testing.assert_close(found.prior, of_text(z, 6 * text, UNKNOWN).prior, rtol=0.02, atol=2e-3)


def test_gaussian_beliefs__of_a_real_model(signs):
    """It helps where every class has a text that fits; with a third of the names mismatched it costs accuracy."""

    def gain_over(class_feats):
        text = signs.concepts.logit_scale * class_feats
        found = of_text(signs.z, text, torch.full((3000,), -1))
        before = ((signs.z @ text.T).argmax(1) == signs.truth).double().mean()
        after = (found.probs(signs.z, signs.z @ text.T).argmax(1) == signs.truth).double().mean()
        return float(after - before)

    concepts = signs.concepts
    bad = detect_mismatched(signs.z, concepts.feats, logit_scale=concepts.logit_scale).is_mismatched
    repaired = choose_descriptions(signs.z, concepts.feats, concepts.description_feats, is_mismatched=bad).class_feats
    assert 0.008 < gain_over(repaired) < 0.03  # 0.848 to 0.865
    assert -0.03 < gain_over(concepts.feats) < 0  # 0.507 to 0.488


class Largest(TorchDispatchMode):
    """The most numbers in any tensor made meanwhile."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in itertools.chain([out], out if isinstance(out, list | tuple) else []):
            if isinstance(one, torch.Tensor) and not any(one is arg for arg in args) and one._base is None:
                self.numel = max(self.numel, one.numel())
        return out


def test_gaussian_beliefs__scale():
    draw = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(50_000, 64, generator=draw), dim=1)
    text = 20 * F.normalize(torch.randn(200, 64, generator=draw), dim=1)
    began = time.process_time()
    with Largest() as largest:
        found = of_text(z, text, torch.full((50_000,), -1))
    assert time.process_time() - began < 10  # 1.3 s on one core
    assert largest.numel == chunks.CHUNK_NUMBERS  # of 10 million in a table of images x classes
    assert float(found.prior.sum()) == pytest.approx(1, rel=1e-4)


def test_gaussian_beliefs__a_sample_serves_until_the_last_steps():
    """Every row three times: a third says what all do; the last steps see all rows; a sample is not the whole."""
    z, text, truth = pool()
    labels = torch.where(torch.arange(60) % 6 == 0, truth, -1)
    knobs = {"n_prior": 2, "label_weight": 3.0}
    every = of_text(z.repeat(3, 1), 6 * text, labels.repeat(3), **knobs)
    third = of_text(z.repeat(3, 1), 6 * text, labels.repeat(3), sample=torch.arange(60, 120), **knobs)
    torch.testing.assert_close(third.weight, every.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(third.prior, every.prior, rtol=1e-4, atol=1e-6)
    short = {"n_iter": 2, "label_weight": 3.0}
    assert torch.equal(
        of_text(z, 6 * text, labels, sample=torch.arange(9), **short).weight,
        of_text(z, 6 * text, labels, **short).weight,
    )
    assert (of_text(z, 6 * text, labels, sample=torch.arange(30), **knobs).weight - every.weight).abs().max() > 1e-4


@pytest.mark.parametrize("n_labelled", [0, 9])
def test_gaussian_beliefs__linear_evidence_is_evidence(n_labelled):
    z, text, truth = pool()
    labels = torch.where(torch.arange(60) < n_labelled, truth, -1)
    asked = gaussian_beliefs(z, lambda rows: 3 * z[rows] @ text.T + 1, labels, strength=0.5, shrinkage=0.1, n_iter=9)
    both = gaussian_beliefs(
        z,
        lambda rows: z[rows] @ text.T,
        labels,
        linear=(2 * text, torch.ones(3)),
        strength=0.5,
        shrinkage=0.1,
        n_iter=9,
    )
    torch.testing.assert_close(both.weight, asked.weight, rtol=1e-4, atol=1e-4)
