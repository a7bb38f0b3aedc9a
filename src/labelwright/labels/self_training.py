"""A linear classifier on frozen features from another's answers: softmax regression on labels and balanced answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LABELLED_SHARE = 0.35  # of the weight in the fit that labelled rows have together, as in GCD (arXiv 2201.02609)
LABELLED_WEIGHTS = (2.0, 20.0)  # least and most that a labelled row counts over one that is answered for
WEIGHT_PENALTY = 3e-6  # of the squared weights: keeps the fit finite where classes are separable
FIT_STEPS = 60  # of L-BFGS


def self_train(
    feats: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, *, balanced: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Answer for the unlabelled rows, balanced; fit a linear classifier to these answers and the labels.

    In the fit labelled rows have `LABELLED_SHARE` of the weight, within `LABELLED_WEIGHTS`. Its logits follow how often
    the targets are right, as those of clusters or of Gaussians do not.

    Args:
      feats: [N, D] float, unit norm.
      labels: [N] int64, -1 = unknown.
      weight: [C, D], bias: [C], of the classifier that answers first.
      balanced: logits [n, C] of the unlabelled rows -> what to add to them [C].

    Returns: weight and bias of the fit.

    Example: two clusters, one image of the first is labelled.
      >>> feats = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0]]), dim=1)
      >>> weight, bias = self_train(
      ...     feats,
      ...     torch.tensor([0, -1, -1, -1]),
      ...     4 * torch.eye(2),
      ...     torch.zeros(2),
      ...     balanced=lambda logits: torch.zeros(2),
      ... )
      >>> (feats @ weight.T + bias).argmax(1).tolist()
      [0, 0, 1, 1]
    """
    n_classes, hidden = len(weight), labels < 0
    targets = F.one_hot(labels.clamp(min=0), n_classes).float()
    weights = torch.where(hidden, 1.0, labelled_weight(int((~hidden).sum()), int(hidden.sum())))
    logits = feats[hidden] @ weight.T + bias
    targets[hidden] = (logits + balanced(logits)).softmax(1)
    zeros = torch.zeros_like(weight), torch.zeros_like(bias)
    return _fitted(feats, targets, weights / weights.sum(), *zeros)


def labelled_weight(n_labelled: int, n_unlabelled: int) -> float:
    """How often a labelled row counts in the fit.

    Example: a tenth, a quarter and nine tenths of the rows are labelled.
      >>> [round(labelled_weight(n, 100 - n), 2) for n in (10, 25, 90)]
      [4.85, 2.0, 2.0]
    """
    even = LABELLED_SHARE / (1 - LABELLED_SHARE) * n_unlabelled / max(n_labelled, 1)
    return min(max(even, LABELLED_WEIGHTS[0]), LABELLED_WEIGHTS[1])


def _fitted(feats: Tensor, targets: Tensor, row_weights: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=FIT_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss_of() -> Tensor:
        solver.zero_grad()
        each = F.cross_entropy(feats @ weight.T + bias, targets, reduction="none")
        loss = row_weights @ each + WEIGHT_PENALTY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(loss_of)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
