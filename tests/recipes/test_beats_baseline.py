"""On real images with a long tail, a method must beat plain cross-entropy on a balanced test set."""

from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tiny
from evenkeel.data import splits
from evenkeel.data.cache import PixelCache
from evenkeel.data.views import PixelViews, ViewSettings
from evenkeel.encoders.backbones import CosineHead
from evenkeel.methods.registry import METHODS, resolve_config
from evenkeel.predict import answer
from evenkeel.train.loop import train
from evenkeel.types import Task

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
    trained = train(
        METHODS[name].recipe, cfg, task, views.take(torch.from_numpy(kept)), build_small, options=tiny.options_of(seed)
    )
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
