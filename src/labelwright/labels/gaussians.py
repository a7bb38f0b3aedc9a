"""A classifier in closed form: one Gaussian per class, all of one covariance, by EM with the evidence as its prior."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.chunks import chunks_of, slices_of
from labelwright.train.scaling import principal_axes

LEAST_COUNT = 1e-3  # images of a class that has none: its mean and the log of its share stay finite
LEAST_SPREAD = 0.01  # of the total variance, if the rows of each class are alike: the covariance is not singular
LEAST_SHARE = 1e-6  # of a class in a known prior
WHOLE_STEPS = 2  # the last E-steps, made on all rows where a sample serves for those before

Evidence = Callable[[Tensor], Tensor]
"""Rows [B] int64 -> [B, C] float: log-evidence of each class, up to a constant per row, known before the features."""


class Read(Protocol):
    """Features [N, D] that are read block by block."""

    n_features: int
    device: torch.device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """[B, D] float of rows [B] int64."""


@dataclass(frozen=True)
class Beliefs:
    """What the features add to the evidence: softmax(evidence + strength * (weight z + bias) + offset)."""

    weight: Tensor  # [C, D] float32 and
    # [C] float32: log densities of the classes, with their log shares where these were estimated and count with
    # ``strength``; centred over the classes
    bias: Tensor
    # [C] float32 that brings the mean probabilities to the known prior, or the log shares that count in full
    # (``n_prior``); else zero
    offset: Tensor
    prior: Tensor  # [C] float32, share of each class, sums to 1; a labelled row counts once
    strength: float  # of weight and bias, >= 0

    @property
    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] of what is added to the evidence."""
        return self.strength * self.weight, self.strength * self.bias + self.offset

    def probs(self, feats: Tensor, evidence: Tensor) -> Tensor:
        """Probabilities [B, C] float32 of feats [B, D] with evidence [B, C]; nothing larger is ever held."""
        return (evidence.float() + F.linear(feats.float(), *self.linear)).softmax(1)


def gaussian_beliefs(
    feats: Tensor | Read,
    evidence: Evidence | None,
    labels: Tensor,
    *,
    linear: tuple[Tensor, Tensor] | None = None,
    sample: Tensor | None = None,
    strength: float,
    shrinkage: float,
    n_iter: int,
    prior: Tensor | None = None,
    n_prior: int = 0,
    label_weight: float | Tensor = 1.0,
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Beliefs:
    """Fit one Gaussian per class, all of one covariance, by expectation-maximisation that starts from the evidence.

    E-step: q = softmax(evidence + strength * (log density + log share)), labelled rows one-hot; the first q is the
    evidence alone. M-step: means, shares and the shared covariance under q. With a known prior the columns of q are
    rescaled towards it, once per E-step. The log density of Gaussians of one covariance is linear in the features, so
    what comes out is a linear term.

    Evidence from texts spreads over all classes, also those that no image shows, whose Gaussians then take images from
    others. With ``n_prior`` the shares come first: estimated from the evidence alone, and counted in full, as Bayes'
    rule has it, where they otherwise count ``strength`` times.

    Args:
      feats: [N, D] float, usually of unit norm; half precision will do.
      evidence: of some rows, see `Evidence`; asked for chunk by chunk, so that no [N, C] table is held. None: there is
        none but the linear one.
      labels: [N] int64, -1 = unknown.
      linear: weight [C, D] and bias [C] of evidence that is linear in the features; None: there is none.
      sample: [n] int64 rows by which all E-steps but the last `WHOLE_STEPS` are made, labelled and unlabelled ones
        each standing for all of their kind (`sampled`); None: all rows.
      strength: share of the log density against the evidence, >= 0.
      shrinkage: of the covariance towards a multiple of the identity, 0 to 1.
      n_iter: E-steps, each with its M-step, >= 1.
      prior: [C] float, known shares; None = estimate them.
      n_prior: E-steps for the shares alone, of unlabelled rows, before the Gaussians; 0 or more, of an estimated prior.
      label_weight: how many rows a labelled one counts for, > 0; or [C], by its class.
      watch: gets each chunk's rows [B] and their q [B, C], times the label weights, of the last E-step.

    Returns: the linear term of the last M-step.

    Source: linear discriminant analysis fitted by EM; Zanella et al. 2024 (arXiv 2406.01837) has text as the evidence,
      with diagonal covariances and neighbour smoothing. Differs: one full covariance, any evidence.

    Example: two clumps on a circle; the border halfway between the texts, at 45 degrees, cuts the second.
      >>> angles = torch.tensor([0.0, 4, 8, 12, 40, 50, 54, 58]).deg2rad()
      >>> z = torch.stack([angles.cos(), angles.sin()], dim=1)
      >>> text = 5 * z @ torch.eye(2)
      >>> found = gaussian_beliefs(
      ...     z, lambda rows: text[rows], torch.full((8,), -1), strength=1.0, shrinkage=0.1, n_iter=20
      ... )
      >>> text.argmax(1).tolist(), found.probs(z, text).argmax(1).tolist()
      ([0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    """
    device, n_features = feats.device, feats.shape[1] if isinstance(feats, Tensor) else feats.n_features
    labels, every = labels.to(device), torch.arange(len(labels), device=device)
    weight, bias = (torch.zeros((), device=device),) * 2 if linear is None else (linear[0].float(), linear[1].float())
    zeros = torch.zeros(len(bias) if evidence is None else evidence(every[:1]).shape[1], device=device)
    n_classes, given = len(zeros), torch.bincount(labels[labels >= 0], minlength=len(zeros))
    eye = torch.eye(n_features, device=device)
    found = Beliefs(zeros.new_zeros(n_classes, n_features), zeros, zeros, zeros, strength)
    n_whole = n_iter if sample is None else min(WHOLE_STEPS, n_iter)
    for i in range(-n_prior, n_iter):
        is_first = i in (-n_prior, n_iter - n_whole)
        if is_first:
            rows = every if sample is None or i >= n_iter - n_whole else sample.to(device)
            counts_for = _counts_for(labels, rows, zeros + label_weight)
            total = torch.zeros_like(eye)
        head = torch.cat([weight + found.linear[0], (bias + found.linear[1])[:, None]], 1)
        sums = zeros.new_zeros(n_classes, n_features + 2)
        for some, z, q in _believed(feats, evidence, labels, rows, head):
            own = counts_for[labels[some]][:, None]
            sums += q.T @ torch.cat([own * z, own, own * (labels[some] < 0)[:, None]], 1)
            if is_first:
                total += (own * z).T @ z
            if watch is not None and i == n_iter - 1:
                watch(some, q * own)
        sums, counts, open_counts = sums[:, :-2], sums[:, -2], sums[:, -1]
        plain = open_counts + given
        if n_prior:
            log_counts = (open_counts if open_counts.any() else counts).clamp(min=LEAST_COUNT).log()
            found = replace(found, offset=log_counts - log_counts.mean())
        if i < 0:
            continue
        shares, offset = counts / counts.sum(), found.offset
        means = sums / counts.clamp(min=LEAST_COUNT)[:, None]
        variance = total / counts.sum()
        within = variance - (means.T * shares) @ means
        spread = within.diagonal().mean().clamp(min=LEAST_SPREAD * variance.diagonal().mean())
        density = torch.linalg.solve((1 - shrinkage) * within + shrinkage * spread * eye, means.T).T
        constant = -0.5 * (density * means).sum(1)
        if prior is None and not n_prior:  # else they are in the offset
            constant = constant + counts.clamp(min=LEAST_COUNT).log()
        elif prior is not None:  # as much as rescaling once does; the next iterations do the rest
            wanted = prior.to(device).float().clamp(min=LEAST_SHARE)
            offset = offset + (wanted / shares.clamp(min=LEAST_SHARE)).log()
            offset = offset - offset.mean()
        found = Beliefs(
            density - density.mean(0),
            constant - constant.mean(),
            offset,
            plain / plain.sum() if prior is None else wanted / wanted.sum(),
            strength,
        )
    return found


def _believed(
    feats: Tensor | Read, evidence: Evidence | None, labels: Tensor, rows: Tensor, head: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows [B], their features [B, D] and q [B, C], chunk by chunk, under a head [C, D + 1]; labelled rows one-hot."""
    n_classes, n_features = len(head), head.shape[1] - 1
    for block in chunks_of(rows, n_features):
        block_feats = feats[block].float()
        for here in slices_of(len(block), max(n_classes, n_features), device=rows.device):
            some, z = block[here], block_feats[here]
            q = F.pad(z, (0, 1), value=1.0) @ head.T
            q = (q if evidence is None else q + evidence(some)).softmax(1)
            known = (labels[some] >= 0).nonzero().flatten()
            q[known] = F.one_hot(labels[some][known], n_classes).to(q.dtype)
            yield some, z, q


def _counts_for(labels: Tensor, rows: Tensor, label_weight: Tensor) -> Tensor:
    """How many rows one counts for, by its label [C + 1]; the last one, so that -1 leads to it, is of no label.

    Rows that are a sample count for all of their kind.
    """
    known, mine = labels >= 0, labels[rows] >= 0
    shares = [all_rows.sum() / some.sum().clamp(min=1) for all_rows, some in ((known, mine), (~known, ~mine))]
    return torch.cat([shares[0] * label_weight, shares[1][None]])


def sampled(labels: Tensor, n: int) -> Tensor | None:
    """Rows [m] int64, ascending, that stand for all: n unlabelled and n labelled ones at random, or all there are.

    Args: labels [N] int64, -1 = unknown.

    Returns: None if they are all rows.

    Example:
      >>> sampled(torch.tensor([-1, -1, 0, -1, 1]), 2).tolist(), sampled(torch.tensor([-1, -1, 0, -1, 1]), 3)
      ([0, 2, 3, 4], None)
    """
    draw, parts = torch.Generator().manual_seed(0), list[Tensor]()
    for rows in ((labels.cpu() < 0).nonzero().flatten(), (labels.cpu() >= 0).nonzero().flatten()):
        parts.append(rows[torch.randperm(len(rows), generator=draw)[:n]] if len(rows) > n else rows)
    rows = torch.cat(parts)
    return None if len(rows) == len(labels) else rows.sort().values


def principal(feats: Tensor, n_dims: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and the n_dims directions [n_dims, D] in which features [N, D] vary most, in float32.

    Example:
      >>> mean, directions = principal(torch.tensor([[1.0, 1.0], [3.0, 1.0], [5.0, 1.0]]), 1)
      >>> mean.tolist(), directions.abs().tolist()
      ([3.0, 1.0], [[1.0, 0.0]])
    """
    return principal_of(lambda: torch.split(feats, 8192), n_dims)


def principal_of(blocks: Callable[[], Iterable[Tensor]], n_dims: int) -> tuple[Tensor, Tensor]:
    """`principal` of features that come in blocks [b, D], twice, of which those of D rows and more are never held."""
    total, n = torch.zeros(()), 0
    for some in blocks():
        total, n = total.to(some.device) + some.sum(0, dtype=torch.float64), n + len(some)
    mean = total / n
    axes = None
    if n_dims <= n < len(mean):
        axes = principal_axes(torch.cat([some.double() - mean for some in blocks()]))
    if axes is None:
        moment = mean.new_zeros(len(mean), len(mean))
        for some in blocks():
            off = some.double() - mean
            moment += off.T @ off
        axes = torch.linalg.eigh(moment).eigenvectors
    return mean.float(), axes.flip(1)[:, :n_dims].T.float()  # they come by ascending eigenvalue
