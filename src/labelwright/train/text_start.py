"""A head that starts from texts and leaves them as far as labels say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labelwright.train.convex import LEAST_GRADIENT, Linear, Problem, solve
from labelwright.train.cross_validation import PENALTIES, TRIED_GRADIENT, folds_of
from labelwright.train.scaling import centre_and_scale, principal_axes


def text_and_labels(feats: Tensor, labels: Tensor, text: Linear) -> tuple[Linear, float | None]:
    """A head that starts from texts and leaves them as far as labels that were left out say: their logits, or better.

    The penalty draws the head to the texts; it is chosen by cross-validation. If the best head is not better than the
    texts by one standard error of the difference, or nothing can be left out, the texts stay.

    Args:
      feats: [N, D] float.
      labels: [N] int64, -1 = unknown.
      text: logits of the classes by text, weight [C, D] and bias [C].

    Returns: the head on ``feats``, and its penalty; None where the texts stayed.

    Source: ours; a head drawn to the text classifier is that of Silva-Rodriguez et al. 2024 (arXiv 2312.12730).
      Differs: convex, one penalty, by cross-validation.

    Example: texts that name the second class for the first, and ten labels each.
      >>> z = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), dim=1)
      >>> labels = (z[:, 0] > 0).long()
      >>> wrong = Linear(torch.tensor([[5.0, 0, 0, 0], [-5.0, 0, 0, 0]]), torch.zeros(2))
      >>> head, penalty = text_and_labels(z, labels, wrong)
      >>> (wrong(z).argmax(1) == labels).sum().item(), (head(z).argmax(1) == labels).sum().item() >= 18
      (0, True)
    """
    mean, scale = centre_and_scale(feats)
    z, y, n_classes = (feats[labels >= 0].float() - mean) / scale, labels[labels >= 0], len(text.bias)
    axes = principal_axes(z, complete=True)
    rows, fold = folds_of(y, None, seed=0)
    if not len(rows):
        return text, None
    rows, fold = rows.to(z.device), fold.to(z.device)
    here = Linear(scale * text.weight, text.bias + text.weight @ mean)
    if axes is not None:
        z, here = z @ axes, Linear(here.weight @ axes, here.bias)

    def solved(some: Tensor, penalty: float, least_gradient: float) -> Linear:
        share = len(some) / len(rows)
        return solve(
            z[some],
            y[some],
            Problem(),
            n_classes=n_classes,
            penalty=penalty * share,
            towards=here,
            least_gradient=least_gradient,
        )

    def losses_of(head_of: Callable[[Tensor], Linear]) -> Tensor:
        losses = torch.zeros(len(rows), device=z.device)
        for k in range(int(fold.max()) + 1):
            own = fold == k
            logits = head_of(rows[~own])(z[rows[own]])
            losses[own] = torch.nn.functional.cross_entropy(logits, y[rows[own]], reduction="none")
        return losses

    of_text, best, n_worse = losses_of(lambda _: here), (torch.full((1,), torch.inf, device=z.device), 0.0), 0
    for penalty in PENALTIES:
        losses = losses_of(lambda some, penalty=penalty: solved(some, penalty, TRIED_GRADIENT))  # type: ignore[misc]
        n_worse = 0 if losses.mean() < best[0].mean() else n_worse + 1
        if n_worse == 0:
            best = losses, penalty
        if n_worse == 2:
            break
    gain = of_text - best[0]
    if gain.mean() <= gain.std() / len(gain) ** 0.5:
        return text, None
    head = solved(torch.arange(len(y), device=z.device), best[1], LEAST_GRADIENT)
    weight = (head.weight if axes is None else head.weight @ axes.T) / scale
    return Linear(weight, head.bias - weight @ mean), best[1]
