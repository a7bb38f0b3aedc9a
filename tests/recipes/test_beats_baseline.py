"""A method must beat the plain way: cross-entropy on uneven labels, class names alone, guesses learned as they are."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tiny
from labelwright.data import splits
from labelwright.data.cache import PixelCache
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders.heads import CosineHead
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.train.loop import train
from labelwright.train.predict import answer
from labelwright.types import Concepts, Task

SEEDS = (0, 1, 2)


class SmallConv(nn.Module):
    def __init__(self, n_outputs: int, head: str) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(512, n_outputs) if head == "linear" else CosineHead(512, n_outputs)

    def features(self, x: Tensor) -> Tensor:
        feats: Tensor = self.backbone(x)
        return feats

    def head_logits(self, feats: Tensor) -> Tensor:
        logits: Tensor = self.head(feats)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.head_logits(self.features(x))


@tiny.from_random_weights
def build_small(n_outputs: int, *, head: Literal["linear", "cosine"] = "linear") -> nn.Module:
    return SmallConv(n_outputs, head)


def balanced_accuracy(name: str, seed: int) -> float:
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rest, test = splits.holdout(labels, frac=0.4, seed=seed)
    order = np.random.default_rng(seed).permutation(10)
    kept = rest[splits.long_tail(labels[rest], n_classes=10, ratio=50, seed=seed, class_order=order.tolist())]
    pixels = PixelCache((digits.images * 255 / 16).astype(np.uint8)[..., None].repeat(3, axis=3))
    views = PixelViews(pixels, ViewSettings(flip=False, pad_px=1, mean=(0.3, 0.3, 0.3), std=(0.37, 0.37, 0.37)))
    cfg = resolve_config(METHODS[name], {"epochs": 40, "batch_size": 32, "lr": 0.05})
    task = Task(torch.from_numpy(labels[kept]), tuple("0123456789"))
    seen = PixelViews(pixels, views.settings, rows=torch.from_numpy(kept))
    trained = train(METHODS[name].recipe, cfg, task, seen, build_small, options=tiny.options_of(seed))
    for net in trained.state.nets.values():
        net.eval()
    answers = answer(
        lambda x: METHODS[name].recipe.predict(cfg, trained.state, x).probs,
        views,
        torch.from_numpy(test),
        device=tiny.CPU,
        precision="fp32",
    )
    right = answers.predicted.numpy() == labels[test]
    return float(np.mean([right[labels[test] == c].mean() for c in range(10)]))


@pytest.mark.slow
def test_cvs__beats_cross_entropy_on_long_tailed_digits() -> None:
    plain = [balanced_accuracy("ce", seed) for seed in SEEDS]
    ours = [balanced_accuracy("cvs", seed) for seed in SEEDS]
    gains = np.array(ours) - np.array(plain)
    # Measured on a CPU: 0.879 against 0.904, gains 0.029, 0.022, 0.024. The bound is far from both 0 and the mean.
    assert min(plain) > 0.8  # the baseline is no straw man
    assert gains.min() > 0
    assert gains.mean() > 0.01


def cap_accuracies(seed: int) -> tuple[float, float]:
    """Of CAP, and of the class names alone, on an unlabelled long-tailed pool of which one name fits no image."""
    truth = torch.tensor(tiny.classes_of((60, 40, 25, 25, 15, 10)))
    g = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(tiny.N_FEATURES, 6, generator=g)).Q.T
    views = tiny.TinyFeats(truth.tolist())
    views.x = F.normalize(centres[truth] + 0.1 * torch.randn(len(truth), tiny.N_FEATURES, generator=g), dim=1)
    texts = centres + 0.25 * torch.randn(6, tiny.N_FEATURES, generator=g)
    texts[seed % 6] = -centres.sum(0) + 0.1 * torch.randn(tiny.N_FEATURES, generator=g)
    concepts = Concepts(F.normalize(texts, dim=1), tiny.LOGIT_SCALE)
    task = Task(torch.full((len(truth),), -1), tuple("abcdef"), concepts=concepts)
    recipe, cfg = METHODS["cap"].recipe, resolve_config(METHODS["cap"], {"epochs": 10, "steps_per_epoch": 10})
    state = train(recipe, cfg, task, views, tiny.BuildTowers(concepts), options=tiny.options_of(seed)).state
    with torch.no_grad():
        found = recipe.predict(cfg, state, views.x).logits.argmax(1)
    names = (views.x @ concepts.feats.T).argmax(1)
    ours, theirs = (float((predicted == truth).float().mean()) for predicted in (found, names))
    return ours, theirs


def test_cap__beats_the_class_names_where_one_of_them_fits_no_image() -> None:
    ours, names = np.array([cap_accuracies(seed) for seed in SEEDS]).T
    # Measured on a CPU: 1.000 three times, against 0.657, 0.771 and 0.851. The clusters lie apart, so that what is lost
    # is the unknown class: a repair gives it back whole or not at all.
    assert names.min() > 0.5
    assert names.max() < 0.9  # the unknown class is lost to the names
    assert ours.min() > 0.95


def candidate_accuracies(seed: int) -> dict[str, float]:
    """Of Co-Reg on frozen features and two baselines, where guesses are biased: one class is often taken for another,
    a second for any, and the weights say so with confidence.
    """
    truth = torch.tensor(tiny.classes_of((50, 50, 50, 50, 50)))
    n, n_classes, g = len(truth), 5, torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(tiny.N_FEATURES, n_classes, generator=g)).Q.T
    views = tiny.TinyFeats(truth.tolist())
    views.x = F.normalize(centres[truth] + 0.2 * torch.randn(n, tiny.N_FEATURES, generator=g), dim=1)
    chance = torch.rand(n, generator=g)
    first = torch.where((truth == 0) & (chance < 0.45), 1, truth)
    first = torch.where((truth == 2) & (chance < 0.45), torch.randint(n_classes, (n,), generator=g), first)
    first = torch.where(chance > 0.9, torch.randint(n_classes, (n,), generator=g), first)
    second = torch.randint(n_classes, (n,), generator=g)
    weights = 0.7 * F.one_hot(first, n_classes) + 0.3 * F.one_hot(second, n_classes)
    task = Task(torch.full((n,), -1), tuple("abcde"), tiny.sets_of(weights > 0, weights))
    found = {"guesses": float((first == truth).float().mean())}
    for name in ("top1", "kd", "coreg_frozen"):
        recipe, settings = METHODS[name].recipe, {"epochs": 20, "batch_size": 32, "lr": 0.05}
        cfg = resolve_config(METHODS[name], settings)
        state = train(recipe, cfg, task, views, tiny.BuildHead(), options=tiny.options_of(seed)).state
        with torch.no_grad():
            predicted = recipe.predict(cfg, state, views.x).logits.argmax(1)
        found[name] = float((predicted == truth).float().mean())
    return found


@pytest.mark.slow
def test_coreg_frozen__beats_the_guesses_and_what_learns_them_as_they_are() -> None:
    found = [candidate_accuracies(seed) for seed in SEEDS]
    gains = np.array([run["coreg_frozen"] - max(run["top1"], run["kd"]) for run in found])
    # Measured on a CPU: 0.916, 1.000 and 1.000; top1 0.792, 0.924 and 0.908, kd 0.784, 0.948 and 0.932.
    assert min(run["guesses"] for run in found) > 0.7
    assert min(run["top1"] for run in found) > 0.75  # the baselines are no straw men: better than the guesses
    assert min(run["kd"] for run in found) > 0.75
    assert gains.min() > 0.02
    assert gains.mean() > 0.05
