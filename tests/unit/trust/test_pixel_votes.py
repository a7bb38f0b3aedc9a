"""What pixels say of labels: where they agree with them, and where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.trust.pixel_votes import LEAST_ROWS, PixelVotes, fit_votes, from_tensors

N_CLASSES, N_PIXELS = 4, 12


def drawn(n: int, seed: int, *, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Pixels [n, D] about an axis of their class, and the classes [n]."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % N_CLASSES
    return F.one_hot(classes, N_PIXELS) + spread * torch.randn(n, N_PIXELS, generator=draw) / N_PIXELS**0.5, classes


def test_evidence__against_a_slow_loop() -> None:
    (pixels, labels), (references, classes) = drawn(6, 0), drawn(9, 1)
    references = F.normalize(references, dim=1).half()
    prior, numbers = torch.tensor([0.4, 0.3, 0.2, 0.1]), (20.0, 0.05, 0.7, 1.5)
    exclude = torch.zeros(6, 9, dtype=torch.bool)
    exclude[2, :4] = True
    votes = PixelVotes(references, classes, prior, torch.tensor(numbers))
    found = votes.evidence(3 * pixels, labels, exclude=exclude)
    for i, value in enumerate(found.tolist()):
        weights = [
            0.0
            if exclude[i, r]
            else float(np.exp(20 * (float(F.cosine_similarity(pixels[i], each.float(), dim=0)) - 1)))
            for r, each in enumerate(references)
        ]
        vote = sum(w for w, c in zip(weights, classes, strict=True) if c == labels[i]) / sum(weights)
        chance, p = 0.95 * vote + 0.05 * float(prior[labels[i]]), float(prior[labels[i]])
        expected = 0.7 * (np.log(chance / (1 - chance)) - np.log(p / (1 - p)) - 1.5)
        assert value == pytest.approx(expected, abs=2e-3)  # references are in half precision


def test_fit_votes__wrong_labels_are_told_and_labels_alone_say_so() -> None:
    pixels, truth = drawn(600, 0)
    labels = torch.where(torch.arange(600) % 10 == 0, (truth + 1) % N_CLASSES, truth)  # a tenth is wrong
    votes = fit_votes(pixels, labels, n_classes=N_CLASSES)
    assert votes is not None
    evidence = votes.evidence(pixels, labels)  # no image has a vote on itself
    assert evidence[labels != truth].max() < 0 < evidence[labels == truth].median()
    assert abs(float(evidence.mean())) < 0.05  # it moves chances about their mean
    perfect = fit_votes(pixels, truth, n_classes=N_CLASSES)
    assert perfect is not None
    assert 0.05 - 1e-9 <= float(perfect.numbers[1]) < float(votes.numbers[1]) < 0.5  # how much they are doubted


def test_weighed__by_labels_that_were_left_out() -> None:
    """All that they say beyond the classifier: none of it where this says the same, or votes say nothing."""
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(400, generator=draw) < 0.7
    said = torch.where(right, 1.5, -1.5) + torch.randn(400, generator=draw)
    votes = PixelVotes(torch.eye(2).half(), torch.arange(2), torch.full((2,), 0.5), torch.tensor([16.0, 0.1, 1.0, 0.0]))
    alone = votes.weighed(torch.full((400,), 0.7), said, right)
    twice = votes.weighed((3 * said + 0.8).sigmoid(), said, right)
    noise = votes.weighed(torch.full((400,), 0.7), 4 * torch.randn(400, generator=draw), right)
    assert alone.weight == pytest.approx(1.0)
    assert twice.weight < 0.1
    assert noise.weight < 0.1
    few = votes.weighed(torch.full((10,), 0.7), 4 * torch.randn(10, generator=draw), right[:10])
    assert noise.weight < few.weight  # few labels move it less


def test_fit_votes__labels_that_pixels_do_not_tell_are_left_alone() -> None:
    pixels, truth = drawn(600, 0)
    shuffled = truth[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert fit_votes(pixels, shuffled, n_classes=N_CLASSES) is None
    half = torch.where(torch.arange(600) % 5 < 3, shuffled, truth)  # told a little: kappa is about 0.2
    assert fit_votes(pixels, half, n_classes=N_CLASSES) is None
    assert fit_votes(pixels[: LEAST_ROWS - 1], truth[: LEAST_ROWS - 1], n_classes=N_CLASSES) is None
    assert fit_votes(pixels, torch.zeros(600, dtype=torch.int64), n_classes=1) is None


def test_fit_votes__frames_of_a_track_have_no_vote_on_each_other() -> None:
    """Tracks of 20 frames that are alike, under labels that have nothing to do with how they look."""
    draw = torch.Generator().manual_seed(0)
    tracks = torch.arange(400) // 20
    pixels = torch.randn(20, N_PIXELS, generator=draw)[tracks] + 0.1 * torch.randn(400, N_PIXELS, generator=draw)
    labels = tracks % N_CLASSES
    assert fit_votes(pixels, labels, n_classes=N_CLASSES) is not None
    assert fit_votes(pixels, labels, n_classes=N_CLASSES, groups=tracks) is None


def test_evidence__copies_and_images_alone_in_their_group() -> None:
    pixels, truth = drawn(200, 0)
    votes = fit_votes(pixels, truth, n_classes=N_CLASSES)
    assert votes is not None
    alone = votes.evidence(pixels[:1], truth[:1], exclude=torch.arange(200)[None] == 0)
    assert torch.allclose(votes.evidence(pixels[:1], truth[:1]), alone, atol=1e-5)
    assert votes.evidence(pixels[:1], truth[:1], exclude=torch.ones(1, 200, dtype=torch.bool)).isfinite().all()


def test_tensors__read_back() -> None:
    pixels, truth = drawn(200, 0)
    votes = fit_votes(pixels, truth, n_classes=N_CLASSES)
    assert votes is not None
    again = from_tensors({**votes.tensors(), "bars": torch.ones(1)})
    assert again is not None
    assert torch.equal(again.evidence(pixels, truth), votes.evidence(pixels, truth))
    assert from_tensors({"bars": torch.ones(1)}) is None
