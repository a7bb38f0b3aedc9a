"""Nearest class mean: how sharp its probabilities are, and that fits which leave labels out are as sharp."""

import numpy as np
import torch

import tiny
from labelwright.methods.baselines.nearest_mean import RECIPE, Config, nearest_mean
from labelwright.methods.recipe import as_chosen
from labelwright.types import Task


def clumps(n_per_class: int, n_classes: int, *, seed: int, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    draw, truth = np.random.default_rng(seed), np.repeat(np.arange(n_classes), n_per_class)
    middles = np.random.default_rng(0).standard_normal((n_classes, 64))
    return (middles[truth] + noise * draw.standard_normal((len(truth), 64))).astype(np.float32), truth


def test_nearest_mean__one_image_a_class_is_as_sharp_as_it_was_chosen() -> None:
    feats, truth = clumps(3, 8, seed=1)
    z, labels = torch.from_numpy(feats - feats.mean(0)), torch.from_numpy(truth)
    *_, chosen = nearest_mean(z, labels, 8)
    weight, _, kept = nearest_mean(z[::3], labels[::3], 8, sharpness=chosen)
    assert kept == chosen
    assert torch.allclose(weight, 2 * chosen * z[::3])


def test_nearest_mean__a_class_without_images_is_never_likely() -> None:
    feats, truth = clumps(3, 4, seed=1)
    z, labels = torch.from_numpy(feats - feats.mean(0)), torch.from_numpy(truth)
    weight, bias, _ = nearest_mean(z, labels, 5)
    probs = (z @ weight.T + bias).softmax(1)
    assert float(probs[:, 4].max()) < 1e-6


def test_recipe__fits_that_leave_labels_out_are_given_the_sharpness() -> None:
    feats, truth = clumps(3, 4, seed=1)
    task = Task(torch.from_numpy(truth), tuple("abcd"))
    state = RECIPE.setup(Config(), task, tiny.BuildHead(n_features=feats.shape[1]))
    state, logs = RECIPE.begin(Config(), task, state, tiny.passes_of(state, torch.from_numpy(feats)))
    assert as_chosen(Config(), state).sharpness == logs["sharpness"] > 0
