"""A first classifier out of guesses alone: Gaussians in the space of frozen features, fitted to candidate sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.types import Task

CHUNK_NUMBERS = 1 << 22  # of rows x classes held at a time
MISS = 0.1  # probability that a guess says nothing of the image, where nothing better is known
MISS_MAX = 0.99
VERIFIED_FRAC = 0.3  # of an even class, that the verified images count for of a class that is never guessed
STARVED = 0.1  # share of an even class below which a class is hardly ever guessed
REVIVED_FRAC = 0.1  # of the classes: more starved ones than this leave open which images are whose
EVEN_SPREAD = 0.5  # standard deviation over mean of the other classes' shares, below which these are even


@dataclass(frozen=True)
class GuessShape:
    """What the guesses and the shape of the features say together, for C classes.

    Attributes:
      weight: [C, D] float32 and
      bias: [C] float32: log densities as a linear classifier, up to a constant of the image.
      prior: [C] float32, share of each class, sums to 1.
      miss: [C] float32, 0 to 1: how often guesses leave a class out where it is thought to be; see `evidence`.
      starved: classes that the guesses hardly ever name.
      has_revived: whether they were given the images that fit no other class, by keeping all classes equally large.
    """

    weight: Tensor
    bias: Tensor
    prior: Tensor
    miss: Tensor
    starved: tuple[int, ...]
    has_revived: bool


def evidence(guesses: Tensor, miss: Tensor) -> Tensor:
    """What guesses say of each class, as a log-likelihood: log((1 - miss_c) g_c + miss_c / C).

    Args:
      guesses: [B, C] float >= 0, rows sum to 1 (types.Task.guesses).
      miss: [C] float, above 0, at most 1.

    Returns: [B, C] float32, at most 0.

    Example: a class that is missed half of the time loses less by not being named.
      >>> evidence(torch.tensor([[1.0, 0.0]]), torch.tensor([0.1, 0.5])).exp().tolist()
      [[0.949999988079071, 0.25]]
    """
    return ((1 - miss) * guesses.float() + miss / guesses.shape[1]).log()


def estimate_prior(shares: Tensor) -> tuple[Tensor, tuple[int, ...], bool]:
    """The shares that classes should have, given those that guesses lead to.

    Where a few classes get next to nothing and all others are about even, guessing has failed the few: all classes are
    taken to be equally large, so that the images that fit nowhere else become theirs. Where many get nothing, which
    images are whose would be anyone's guess, and where the others are uneven, the few may be rare: the shares stay.

    Args:
      shares: [C] float >= 0.

    Returns: prior [C], sums to 1; the starved classes; whether they are to be revived.

    Example:
      >>> prior, starved, has_revived = estimate_prior(torch.tensor([0.5, 0.499, 0.001]))
      >>> starved, has_revived, [round(p, 3) for p in prior.tolist()]
      ((2,), True, [0.333, 0.333, 0.333])
      >>> estimate_prior(torch.tensor([0.9, 0.099, 0.001]))[1:]
      ((2,), False)
    """
    n = len(shares)
    prior = shares.float() / shares.sum().clamp(min=1e-12)
    is_starved = prior < STARVED / n
    others = prior[~is_starved]
    is_even = len(others) > 0 and float(others.std(correction=0) / others.mean()) < EVEN_SPREAD
    starved = tuple(is_starved.nonzero().flatten().tolist())
    has_revived = is_even and 0 < len(starved) <= max(1.0, REVIVED_FRAC * n)
    return (torch.full_like(prior, 1 / n) if has_revived else prior), starved, has_revived


def fit_guess_shape(
    feats: Tensor,
    task: Task,
    *,
    rows: Tensor | None = None,
    strength: float = 0.4,
    shrinkage: float = 0.5,
    n_iterations: int = 25,
    prior: Tensor | None = None,
) -> GuessShape:
    """Fit one Gaussian per class, all of one covariance, by expectation-maximisation that starts from the guesses.

    E-step: posterior = softmax(evidence of the guesses + strength * (log density + log prior)); verified labels stay.
    M-step: means and the shared covariance. Without ``prior`` the shares are estimated along; if that starves a few
    classes (`estimate_prior`), the fit is made again with equal shares, kept by rescaling the posteriors.

    Args:
      feats: [N, D] float, unit norm.
      task: labels and guesses of the N images.
      rows: [n] int64 rows to fit on, a row may come twice (a bootstrap); None = all.
      strength: share of the log density against the guesses, > 0.
      shrinkage: of the covariance towards a multiple of the identity, 0 to 1.
      n_iterations: of expectation and maximisation.
      prior: [C] float, known shares; None = estimate them.

    Returns: see `GuessShape`.

    Source: linear discriminant analysis fitted by EM, as labels.shape; the guesses take the place of the texts.

    Example: two clumps; the guess for the fourth image is wrong, the shape of the features knows better.
      >>> angles = torch.tensor([0.0, 4, 8, 12, 70, 74, 78, 82]).deg2rad()
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> guessed = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
      >>> from labelwright.types import Candidates
      >>> task = Task(torch.full((8,), -1), ("cat", "dog"), Candidates(torch.arange(9), guessed.int()))
      >>> found = fit_guess_shape(z, task)
      >>> (z @ found.weight.T + found.bias).argmax(1).tolist()
      [0, 0, 0, 0, 1, 1, 1, 1]
    """
    rows = torch.arange(len(feats), device=feats.device) if rows is None else rows.to(feats.device)
    if prior is not None:
        return _fit(feats, task, rows, strength, shrinkage, n_iterations, prior)
    # What the guesses lead to shows without the verified images, which would feed a starved class themselves.
    guessed = dataclasses.replace(task, labels=torch.full_like(task.labels, -1))
    found = _fit(feats, guessed, rows, strength, shrinkage, n_iterations, None)
    wanted, starved, has_revived = estimate_prior(found.prior)
    if has_revived or bool((task.labels >= 0).any()):
        kept = wanted.to(feats.device) if has_revived else None
        found = _fit(feats, task, rows, strength, shrinkage, n_iterations, kept)
    return GuessShape(found.weight, found.bias, found.prior, found.miss, starved, has_revived)


def _fit(
    feats: Tensor,
    task: Task,
    rows: Tensor,
    strength: float,
    shrinkage: float,
    n_iterations: int,
    prior: Tensor | None,
) -> GuessShape:
    n_classes, device = task.n_classes, feats.device
    eye = torch.eye(feats.shape[1], device=device)
    miss, verified_weight = _of_verified(task, rows)
    total, n = _second_moment(feats, task, rows, verified_weight)
    weight, bias = (
        feats.new_zeros(n_classes, feats.shape[1], dtype=torch.float32),
        torch.zeros(n_classes, device=device),
    )
    scale, ratio = 0.0, torch.ones(n_classes, device=device)  # the first posteriors are the guesses
    for _ in range(n_iterations + 1):
        counts, sums, named, plain = _moments(
            feats, task, rows, scale * weight, scale * bias, miss, ratio, verified_weight
        )
        if prior is not None:  # as much as rescaling once does; the next iterations do the rest
            ratio = ratio * prior * n / counts.clamp(min=1e-6 * n)
            ratio = ratio / ratio.mean()
        means = sums / counts.clamp(min=1e-3)[:, None]
        within = total - (means.T * (counts / counts.sum())) @ means
        spread = within.diagonal().mean().clamp(min=0.01 * total.diagonal().mean())
        within = (1 - shrinkage) * within + shrinkage * spread * eye
        weight = torch.linalg.solve(within, means.T).T
        bias = -0.5 * (weight * means).sum(1)
        if prior is None:
            bias = bias + counts.clamp(min=1e-3).log()
        scale = strength
    trusted = (named + 1) / (counts + 2)
    miss = (1 - trusted / trusted.max()).clamp(MISS, MISS_MAX).maximum(miss)
    shares = plain / plain.sum() if prior is None else prior
    return GuessShape(weight - weight.mean(0), bias - bias.mean(), shares, miss, (), False)


def _of_verified(task: Task, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What verified images tell: how often guesses miss each class [C], and how many images one stands for [C]."""
    n_classes, device = task.n_classes, rows.device
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
    needed = (
        VERIFIED_FRAC * (miss - MISS) / (1 - MISS)
    )  # where guesses find a class, a few images say less than they do
    return miss, (needed * len(rows) / n_classes / counts.clamp(min=1)).clamp(min=1.0)


def _second_moment(feats: Tensor, task: Task, rows: Tensor, verified_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of z z^T [D, D] over images, a verified one counted as often as it stands for; and how many these are."""
    total, n = torch.zeros(feats.shape[1], feats.shape[1], device=feats.device), verified_weight.new_zeros(())
    for some in torch.split(rows, 16_384):
        z, labels = feats[some].float(), task.labels.to(some.device)[some]
        weight = torch.where(labels >= 0, verified_weight[labels.clamp(min=0)], 1.0)[:, None]
        total += (weight * z).T @ z
        n = n + weight.sum()
    return total / n, n


def _moments(
    feats: Tensor,
    task: Task,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    miss: Tensor,
    ratio: Tensor,
    verified_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over images of the posteriors [C], of the features under them [C, D], of the guesses they agree with [C],
    and of the posteriors with each verified image counted once [C].
    """
    counts, sums = torch.zeros_like(bias), torch.zeros_like(weight)
    named, plain = torch.zeros_like(bias), torch.zeros_like(bias)
    for some in chunks_of(rows, task.n_classes):
        z, guesses = feats[some].float(), task.guesses(some)
        posterior = (evidence(guesses, miss) + F.linear(z, weight, bias)).softmax(1) * ratio
        posterior = posterior / posterior.sum(1, keepdim=True)
        is_verified = (task.labels.to(some.device)[some] >= 0)[:, None]
        plain += torch.where(is_verified, guesses, posterior).sum(0)
        posterior = torch.where(is_verified, guesses * verified_weight, posterior)
        counts += posterior.sum(0)
        sums += posterior.T @ z
        named += (posterior * guesses).sum(0)
    return counts, sums, named, plain


def bootstrap(task: Task) -> Tensor:
    """Rows [N] drawn with replacement, by the global generator; verified images are all among them, once.

    Example:
      >>> rows = bootstrap(Task(torch.tensor([-1, 1, -1, 0]), ("cat", "dog")))
      >>> rows[:2].tolist(), len(rows), set(rows[2:].tolist()) <= {0, 2}
      ([1, 3], 4, True)
    """
    verified, guessed = (where.nonzero().flatten() for where in (task.labels >= 0, task.labels < 0))
    return torch.cat([verified, guessed[torch.randint(max(len(guessed), 1), (len(guessed),), device=guessed.device)]])


def information(task: Task) -> float:
    """How much of a label the candidate sets tell on average: 1 - mean of log(size) / log(C), empty sets left out.

    Example: a set of one of four classes tells all, one of two half.
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


def starved_warning(class_names: Sequence[str], starved: Sequence[int], *, has_revived: bool) -> list[str]:
    """What to say of classes that the guesses hardly ever name, if there are any.

    Example:
      >>> starved_warning(["cat", "dog"], [1], has_revived=True)[0][:70]
      'the guesses hardly ever name dog: they are given the images that fit n'
    """
    if not starved:
        return []
    shown = ", ".join(class_names[c] for c in starved[:5]) + (", …" if len(starved) > 5 else "")
    what = (
        "they are given the images that fit no other class; check some of them"
        if has_revived
        else "which images are theirs, if there are any, cannot be told"
    )
    return [
        f"the guesses hardly ever name {shown}: {what}. Describe how the class looks (--descriptions), ask another "
        "annotator, or verify a few images of it"
    ]


def chunks_of(rows: Tensor, n_classes: int) -> Iterator[Tensor]:
    """Rows [n] in runs, so that a dense table of a run stays small.

    Example:
      >>> [len(some) for some in chunks_of(torch.arange(10), CHUNK_NUMBERS // 4)]
      [4, 4, 2]
    """
    yield from torch.split(rows, max(1, CHUNK_NUMBERS // n_classes))
