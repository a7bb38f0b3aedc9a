"""Which candidate sets to trust: two groups of images by how well a network has come to agree with their sets.

Each epoch: `division_losses`, `min_max`, `push_history`; then `divide` on `mean_of` the history.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from labelwright.errors import ConfigError
from labelwright.labels.chunks import evenly_spread

PROB_MIN = 1e-8  # below it a probability counts as this: one hopeless image must not squeeze all others together
ROWS_MAX = 100_000  # images that the mixture is fitted on; more are thinned out evenly
VARIANCE_ADDED = 5e-4  # to both Gaussians of the mixture, reg_covar
GAP_MIN = VARIANCE_ADDED**0.5  # groups closer together than this are one: with that variance both look the same


def division_losses(probs: Tensor, candidates: Tensor) -> Tensor:
    """How far a network is from any class of the candidate set, -log max_{j in S} p_j, in nats.

    Args:
      probs: [B, C] float, rows sum to 1, aligned; half precision is computed in float32.
      candidates: [B, C] bool.

    Returns: [B] float, 0 to -log 1e-8 = 18.4, which is also the loss of an empty set; better leave those out of
      `divide`, as many of them would make a group of their own.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2. Differs: bounded.

    Example: the most probable class is no candidate; log 4.
      >>> loss = division_losses(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[False, True, True]]))
      >>> round(loss.item(), 4)
      1.3863
    """
    return -_at_least_float32(probs).masked_fill(~candidates, 0).amax(dim=1).clamp(PROB_MIN, 1).log()  # [B, C] -> [B]


def min_max(losses: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Losses stretched to 0..1, so that those of different epochs can be averaged.

    Args:
      losses: [N] float; excluded rows may hold anything.
      where: [N] bool, False = left out; None = every row.

    Returns: [N] float, 0 to 1 in kept rows, 0 in excluded ones; all 0 where all losses are equal.

    Example:
      >>> min_max(torch.tensor([1.0, 3.0, 2.0])).tolist()
      [0.0, 1.0, 0.5]
    """
    kept = _kept(losses, where)
    if not kept.any():
        return torch.zeros_like(losses)
    low, high = losses[kept].aminmax()
    spread = torch.where(high > low, high - low, torch.ones_like(low))
    return ((losses - low) / spread).masked_fill(~kept, 0)


def divide(losses: Tensor, *, seed: int = 0, where: Tensor | None = None) -> tuple[Tensor, tuple[float, float]]:
    """Divide images in those with low and those with high losses, by a mixture of two Gaussians.

    Args:
      losses: [N] float, 0 to 1 (`min_max`, `mean_of`). A loss that is not finite counts as left out.
      seed: of the start of the mixture.
      where: [N] bool, False = left out (no candidates at all, or a verified label): not fitted.

    Returns: how probably each image belongs to the group with the lower losses [N] float32, 0 for images left out, and
      the mean loss of the lower group and of the higher one. Fewer than two losses, losses that are all equal, and a
      mixture with one group empty or with means less than 0.022 apart make one group, all of it at probability 1:
      nothing sets any image apart.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2; the mixture's settings are those of Li et al. 2020
    (DivideMix, arXiv 2002.07394). Differs: a loss below the lower mean is at least as probably clean as that mean, one
    above the higher mean at most as probably. Of two Gaussians the wider one wins far out on both sides: without this
    the images with the very lowest losses would be the unreliable ones.

    Memory: a few float64 numbers per image. The order of the images does not matter.

    Example:
      >>> clean, means = divide(torch.tensor([0.0, 0.05, 0.1, 0.9, 1.0]))
      >>> (clean > 0.5).tolist(), [round(mean, 2) for mean in means]
      ([True, True, True, False, False], [0.05, 0.95])
    """
    kept = _kept(losses, where)
    values = losses.detach()[kept].double()
    clean = torch.zeros(len(losses), device=losses.device)
    mixture = _fit(values, seed=seed) if len(values) >= 2 else None
    if mixture is None:
        mean = values.mean().item() if len(values) else 0.0
        clean[kept] = 1
        means = mean, mean
    else:
        clean[kept] = _probability_of_first(values, *mixture).float()
        means = mixture[0][0].item(), mixture[0][1].item()
    return clean, means


def _kept(losses: Tensor, where: Tensor | None) -> Tensor:
    finite = losses.detach().isfinite()
    return finite if where is None else finite & where


def _fit(values: Tensor, *, seed: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Means, variances and weights [2] of the mixture, the lower mean first; None where there are no two groups."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    ordered = evenly_spread(values.sort().values, ROWS_MAX).cpu().numpy()
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=VARIANCE_ADDED, random_state=seed)
    with warnings.catch_warnings():
        # No news: ten rounds, the method's choice, may not converge, and equal losses make one group.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(ordered[:, None])
    if mixture.weights_.min() * len(ordered) < 0.5 or np.ptp(mixture.means_) < GAP_MIN:
        return None
    order = mixture.means_[:, 0].argsort()
    found = (mixture.means_[:, 0], mixture.covariances_[:, 0, 0], mixture.weights_)
    means, variances, weights = (torch.from_numpy(part[order]).to(values) for part in found)
    return means, variances, weights


def _probability_of_first(values: Tensor, means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    def posterior(at: Tensor) -> Tensor:
        log_density = weights.log() - variances.log() / 2 - (at[:, None] - means).square() / (2 * variances)
        return (log_density[:, 0] - log_density[:, 1]).sigmoid()

    own, at_means = posterior(values), posterior(means)
    own = torch.where(values < means[0], own.maximum(at_means[0]), own)
    return torch.where(values > means[1], own.minimum(at_means[1]), own)


RUNNING_MIN = 1e-6  # mean probability that a class is taken to have had at least


def sharpen(probs: Tensor, *, temperature: float) -> Tensor:
    """Make the probable classes more probable: p^(1 / temperature), renormalised.

    Args:
      probs: [B, C] float >= 0, rows sum to 1, as do those that come back.
      temperature: > 0; 1 changes nothing, towards 0 all goes to the most probable class.

    Raises: ConfigError: temperature <= 0.

    Source: Berthelot et al. 2019 (MixMatch, arXiv 1905.02249), Eq. (7).

    Example: 0.75^2 : 0.25^2 = 9 : 1.
      >>> [round(v, 4) for v in sharpen(torch.tensor([[0.75, 0.25]]), temperature=0.5)[0].tolist()]
      [0.9, 0.1]
    """
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} is not positive", fix="use a value > 0; 1 changes nothing")
    probs = _at_least_float32(probs)
    powers = (probs / probs.amax(dim=1, keepdim=True)).pow(1 / temperature)  # the largest stays 1: no underflow
    return powers / powers.sum(dim=1, keepdim=True)


def lifted(probs: Tensor, lift: Tensor) -> Tensor:
    """Probabilities [B, C] times a factor >= 0 per class [C], renormalised; a row with nothing left stays as it was.

    Example:
      >>> lifted(torch.tensor([[0.75, 0.25]]), torch.tensor([1.0, 3.0])).tolist()
      [[0.5, 0.5]]
    """
    scaled = probs * lift
    total = scaled.sum(1, keepdim=True)
    return torch.where(total > 0, scaled / torch.where(total > 0, total, 1), probs)


def init_history(width: int, length: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """An empty history of mean predictions [C] by batch or of losses [N] by epoch, of which ``length`` are remembered.

    Returns: "means" [length, width] float32, a ring, and "n_pushed", int64 scalar: how often it was ever pushed.

    Example:
      >>> {name: list(value.shape) for name, value in init_history(10, 50).items()}
      {'means': [50, 10], 'n_pushed': []}
    """
    return {
        "means": torch.zeros(length, width, device=device),
        "n_pushed": torch.zeros((), dtype=torch.int64, device=device),
    }


def push_history(history: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """The history with the mean of values [B, width], without gradients, in place of the oldest; on their device.

    The one given stays as it is; an empty batch changes nothing.

    Example:
      >>> history = push_history(init_history(2, 50), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
      >>> history["means"][0].tolist(), history["n_pushed"].item()
      ([0.75, 0.25], 1)
    """
    means, n_pushed = history["means"].to(values.device), history["n_pushed"].to(values.device)
    if len(values) == 0:
        return {"means": means, "n_pushed": n_pushed}
    place = (n_pushed % len(means)).reshape(1)
    mean = values.detach().float().mean(dim=0, keepdim=True)
    return {"means": means.index_copy(0, place, mean), "n_pushed": n_pushed + 1}


def mean_of(history: Mapping[str, Tensor]) -> Tensor:
    """Mean [width] float32 of what is remembered; uniform with sum 1 as long as nothing was pushed.

    Example:
      >>> mean_of(init_history(4, 50)).tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    means, n_pushed = history["means"], history["n_pushed"]
    total = means.sum(dim=0) / n_pushed.clamp(min=1, max=len(means))  # places not filled yet hold 0
    return torch.where(n_pushed > 0, total, 1 / means.shape[1])


def reliable_targets(
    own_probs: Tensor, other_probs: Tensor, clean_probability: Tensor, *, temperature: float
) -> Tensor:
    """Targets of images whose candidates are trusted: the other network's word as far as it is trusted, sharpened.

    w * other + (1 - w) * own, where w is how probably the other network has the image right.

    Args:
      own_probs: [B, C] float, rows sum to 1: the learning network's mean over its weak views.
      other_probs: [B, C] float, rows sum to 1: the other network's, aligned.
      clean_probability: [B] float, 0 to 1, from the other network's division (purify.divide).
      temperature: > 0, see `sharpen`.

    Returns: [B, C] float, rows sum to 1.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2.

    Example: 0.5 * [1, 0] + 0.5 * [0.5, 0.5] = [0.75, 0.25].
      >>> own, other = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
      >>> targets = reliable_targets(own, other, torch.tensor([0.5]), temperature=0.5)
      >>> [round(v, 4) for v in targets[0].tolist()]
      [0.9, 0.1]
    """
    own_probs = _at_least_float32(own_probs)
    share = clean_probability.to(own_probs.dtype)[:, None]
    return sharpen(share * other_probs + (1 - share) * own_probs, temperature=temperature)


def _at_least_float32(probs: Tensor) -> Tensor:
    return probs.to(torch.promote_types(probs.dtype, torch.float32))


def confident(
    probs: Tensor, labels: Tensor, *, n_seen: int, seen_confidence: float, novel_confidence: float
) -> tuple[Tensor, Tensor]:
    """Lines 2 and 3 of LPS: targets [B] int64 and whether each is sure [B] bool.

    Args:
      probs: [B, C], of a weak view.
      labels: [B] int64, -1 = unknown.
      n_seen: classes with a name.
      seen_confidence, novel_confidence: probability from which a target counts, in [0, 1].

    Example: a novel class is sure enough at 0.6, a seen one is not.
      >>> probs = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]])
      >>> labels = torch.tensor([-1, -1, 0])
      >>> confident(probs, labels, n_seen=1, seen_confidence=0.95, novel_confidence=0.5)
      (tensor([0, 1, 0]), tensor([False,  True,  True]))
    """
    sure, best = probs.max(1)
    is_known = labels >= 0
    targets = torch.where(is_known, labels, best)
    bar = torch.where(targets < n_seen, seen_confidence, novel_confidence)
    return targets, is_known | (sure >= bar)
