"""The start of Co-Reg: what candidate sets say of each class, and Gaussians with that as their evidence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labelwright.labels.chunks import chunks_of
from labelwright.labels.gaussians import Beliefs, gaussian_beliefs
from labelwright.types import Task

STRENGTH, SHRINKAGE, N_ITER = 0.4, 0.5, 26  # of labels.gaussians.gaussian_beliefs
MISS = 0.1  # probability that a guess says nothing of the image, where nothing better is known
MISS_MAX = 0.99
VERIFIED_FRAC = 0.3  # of an even class, that the verified images count for of a class that is never guessed
RARE = 0.1  # share of an even class below which a class is rarely guessed
REBALANCED_FRAC = 0.1  # of the classes: more rarely guessed ones than this leave open which images are whose
EVEN_SPREAD = 0.5  # standard deviation over mean of the other classes' shares, below which these are even


@dataclass(frozen=True)
class CandidateBeliefs:
    """What the guesses and the features say together, for C classes."""

    beliefs: Beliefs  # log densities as a linear classifier, and the share of each class
    # [C] float32, 0 to 1: how often guesses leave a class out where it is thought to be; see `candidate_evidence`
    miss: Tensor
    rarely_guessed: tuple[int, ...]  # classes that the guesses hardly ever name
    is_rebalanced: bool  # whether they got the images that fit no other class, by keeping all classes equally large


def candidate_evidence(guesses: Tensor, miss: Tensor) -> Tensor:
    """What guesses say of each class, as a log-likelihood: log((1 - miss_c) g_c + miss_c / C).

    Args:
      guesses: [B, C] float >= 0, rows sum to 1 (types.Task.guesses).
      miss: [C] float, above 0, at most 1.

    Returns: [B, C] float32, at most 0.

    Example: a class that is missed half of the time loses less by not being named.
      >>> candidate_evidence(torch.tensor([[1.0, 0.0]]), torch.tensor([0.1, 0.5])).exp().tolist()
      [[0.949999988079071, 0.25]]
    """
    return ((1 - miss) * guesses.float() + miss / guesses.shape[1]).log()


def guessed_shares(task: Task) -> Tensor:
    """How the guesses and labels of all images share out the classes: [C] float32, sums to 1.

    Example:
      >>> guessed_shares(Task(torch.tensor([0, 1, 1, -1]), ("cat", "dog"))).tolist()
      [0.375, 0.625]
    """
    shares = torch.zeros(task.n_classes, device=task.labels.device)
    for rows in chunks_of(torch.arange(len(task.labels), device=shares.device), task.n_classes):
        shares += task.guesses(rows).sum(0)
    return shares / shares.sum().clamp(min=1e-12)


def estimate_prior(shares: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
    """The shares that classes should have, given those that guesses lead to.

    Where a few classes get next to nothing and all others are about even, guessing has failed the few: all classes are
    taken to be equally large, so that the images that fit nowhere else become theirs. Where many get nothing, which
    images are whose would be anyone's guess, and where the others are uneven, the few may be rare: the shares stay.

    Args:
      shares: [C] float >= 0.

    Returns: prior [C], sums to 1; the rarely guessed classes; whether the prior was rebalanced.

    Example:
      >>> prior, rarely_guessed, is_rebalanced = estimate_prior(torch.tensor([0.5, 0.499, 0.001]))
      >>> rarely_guessed, is_rebalanced, [round(p, 3) for p in prior.tolist()]
      ((2,), True, [0.333, 0.333, 0.333])
      >>> estimate_prior(torch.tensor([0.9, 0.099, 0.001]))[1:]
      ((2,), False)
    """
    n = len(shares)
    prior = shares.float() / shares.sum().clamp(min=1e-12)
    is_rare = prior < RARE / n
    others = prior[~is_rare]
    is_even = len(others) > 0 and float(others.std(correction=0) / others.mean()) < EVEN_SPREAD
    rarely_guessed = tuple(is_rare.nonzero().flatten().tolist())
    is_rebalanced = is_even and 0 < len(rarely_guessed) <= max(1.0, REBALANCED_FRAC * n)
    return (torch.full_like(prior, 1 / n) if is_rebalanced else prior), rarely_guessed, is_rebalanced


def candidate_beliefs(feats: Tensor, task: Task) -> CandidateBeliefs:
    """Gaussians with the guesses as their evidence; verified labels stay.

    The shares of the classes are estimated along; if that leaves a few classes with next to nothing
    (`estimate_prior`), the fit is made again with equal shares.

    Args:
      feats: [N, D] float, unit norm.

    Example: two clumps; the guess for the fourth image is wrong, the features know better.
      >>> angles = torch.tensor([0.0, 4, 8, 12, 70, 74, 78, 82]).deg2rad()
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> guessed = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
      >>> from labelwright.types import Candidates
      >>> task = Task(torch.full((8,), -1), ("cat", "dog"), Candidates(torch.arange(9), guessed.int()))
      >>> found = candidate_beliefs(z, task).beliefs
      >>> (z @ found.weight.T + found.bias).argmax(1).tolist()
      [0, 0, 0, 0, 1, 1, 1, 1]
    """
    # What the guesses lead to shows without the verified images, which would feed a rarely guessed class themselves.
    found = fitted(feats, dataclasses.replace(task, labels=torch.full_like(task.labels, -1)))
    wanted, rarely_guessed, is_rebalanced = estimate_prior(found[0].prior)
    if is_rebalanced or bool((task.labels >= 0).any()):
        found = fitted(feats, task, wanted if is_rebalanced else None)
    return CandidateBeliefs(*found, rarely_guessed, is_rebalanced)


def fitted(feats: Tensor, task: Task, prior: Tensor | None = None) -> tuple[Beliefs, Tensor]:
    """Beliefs, and the miss rates [C] under them; ``prior`` [C] are known shares, None = estimate them."""
    miss, stands_for = _of_verified(task, feats.device)
    counts, named = torch.zeros_like(miss), torch.zeros_like(miss)

    def watch(some: Tensor, q: Tensor) -> None:
        counts.add_(q.sum(0))
        named.add_((q * task.guesses(some)).sum(0))

    beliefs = gaussian_beliefs(
        feats,
        lambda some: candidate_evidence(task.guesses(some), miss),
        task.labels,
        strength=STRENGTH,
        shrinkage=SHRINKAGE,
        n_iter=N_ITER,
        prior=prior,
        label_weight=stands_for,
        watch=watch,
    )
    trusted = (named + 1) / (counts + 2)
    return beliefs, (1 - trusted / trusted.max()).clamp(MISS, MISS_MAX).maximum(miss)


def _of_verified(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    """From verified images: how often guesses miss each class [C], and how many images one of them stands for [C]."""
    n_classes = task.n_classes
    miss = torch.full((n_classes,), MISS, device=device)
    labels = task.labels.to(device)
    known = (labels >= 0).nonzero().flatten()
    if len(known) == 0:
        return miss, torch.ones(n_classes, device=device)
    counts = torch.bincount(labels[known], minlength=n_classes)
    if task.candidates is not None:
        named = torch.zeros(n_classes, device=device)
        for some in chunks_of(known, n_classes):
            own = task.candidates.shares(some, n_classes).gather(1, labels[some][:, None])[:, 0]
            named.index_add_(0, labels[some], own)
        # Guesses that share themselves out among several classes are no worse for it: what counts is a class that gets
        # less of its own images than the others get of theirs.
        usual = named.sum() / counts.sum()
        missed = (1 - named / (usual * counts).clamp(min=1e-9)).clamp(min=0) * counts
        miss = ((missed + MISS) / (counts + 1)).clamp(MISS, MISS_MAX)
    # Where guesses find a class, a few images say less than they do.
    needed = VERIFIED_FRAC * (miss - MISS) / (1 - MISS)
    return miss, (needed * len(labels) / n_classes / counts.clamp(min=1)).clamp(min=1.0)


def information(task: Task) -> float:
    """How much of a label a candidate set holds on average: 1 - mean of log(size) / log(C), empty sets left out.

    Example: a set of one of four classes is a label, one of two is half of one.
      >>> from labelwright.types import Candidates
      >>> sets = Candidates(torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1], dtype=torch.int32))
      >>> information(Task(torch.tensor([-1, -1]), ("cat", "dog", "owl", "fox"), sets))
      0.75
    """
    if task.candidates is None or task.n_classes < 2:
        return 1.0
    sizes = task.candidates.offsets.diff()
    sizes = sizes[sizes > 0].double()
    return float(1 - sizes.log().mean() / math.log(task.n_classes)) if len(sizes) else 1.0


def describe_guesses(
    task: Task, prior: Tensor, rarely_guessed: Sequence[int], *, is_rebalanced: bool
) -> dict[str, Any]:
    """What to log of the guesses before training: shares, class prior, and a warning of classes that they hardly name.

    Example:
      >>> even, task = torch.tensor([0.5, 0.5]), Task(torch.tensor([0, 0]), ("cat", "dog"))
      >>> describe_guesses(task, even, [1], is_rebalanced=True)["warnings"][0][:70]
      'the guesses hardly ever name dog: they are given the images that fit n'
    """
    names, warnings = [task.class_names[c] for c in rarely_guessed], []
    if names:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        what = (
            "they are given the images that fit no other class; check some of them"
            if is_rebalanced
            else "which images are theirs, if there are any, cannot be known"
        )
        warnings.append(
            f"the guesses hardly ever name {shown}: {what}. Describe how the class looks (--descriptions), ask another "
            "annotator, or verify a few images of it"
        )
    return {
        "guessed_frac": [round(float(share), 5) for share in guessed_shares(task)],
        "prior": [round(float(share), 5) for share in prior],
        "class_names": list(task.class_names),
        "rarely_guessed": names,
        "warnings": warnings,
    }
