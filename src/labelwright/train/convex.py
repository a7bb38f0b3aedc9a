"""A linear head on frozen features as what it is, a convex problem: solved to convergence.

The loss is cross-entropy with any `Adjustment` and class weights; the L2 penalty of the weights is summed over rows, so
that one number suits a hundred images and a million.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment, adjusted_logits
from labelwright.train.newton import Local, minimise
from labelwright.train.processes import autocast_dtype

CHUNK_NUMBERS = 1 << 18  # of rows x classes, or of rows x features, held at a time: a core's cache; more on a GPU
KEPT_NUMBERS = 1 << 25  # of rows x classes, up to which probabilities are kept between products with the Hessian
QUICK_NUMBERS = 1 << 22  # rows x features x classes, from which products with the Hessian are made in half precision
QUICK_CHUNKS = 4  # times the numbers that are held at a time there
LEAST_GRADIENT = 1e-5  # largest entry of the gradient of the mean loss at which it has converged
SAMPLED_FROM, SAMPLED_EVERY = 8192, 4  # rows from which a head begins at that of a sample, and one row of how many
SAMPLED_GRADIENT = 3e-3  # the same there


@dataclass(frozen=True)
class Problem:
    """What to fit a linear head to."""

    # of the logits in the loss; the head's own logits are plain
    adjustment: Adjustment = field(default_factory=Adjustment)
    class_weight: Tensor | None = None  # [C] float >= 0, or None for 1
    # weights [C, D] -> what of them the penalty is on, linear in them but for a constant; None: all of them
    deviation: Callable[[Tensor], Tensor] | None = None
    has_bias: bool = True  # False keeps the bias at zero


@dataclass(frozen=True)
class Linear:
    """Logits z weight^T + bias of features z [B, D]."""

    weight: Tensor  # [C, D] float32
    bias: Tensor  # [C] float32

    def __call__(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return torch.nn.functional.linear(z, self.weight, self.bias)


def solve(
    z: Tensor,
    labels: Tensor,
    problem: Problem,
    *,
    n_classes: int,
    penalty: float,
    start: Linear | None = None,
    towards: Linear | None = None,
    least_gradient: float = LEAST_GRADIENT,
) -> Linear:
    """The head that minimises the weighted mean of the adjusted cross-entropy + penalty / (2 N) |weight|^2.

    In place of the weight the penalty may be on its ``deviation`` from something, see `Problem`.

    Args:
      z: [N, D] float32, centred and of unit scale (`scaled`), N >= 1.
      labels: [N] int64, 0 to C-1, no unknown ones; or [N, C] float probabilities of the classes, without adjustment.
      problem: the loss.
      penalty: >= 0; 0 does not converge where classes are separable.
      start: where to begin; the end does not depend on it.
      towards: a head that the penalty draws weight and bias to, in place of a weight of 0 and a free bias.
      least_gradient: largest entry of the gradient of the mean loss at which it ends.

    Source: Newton's method with preconditioned conjugate gradients (train/newton.py).

    Example: two classes on a line; the border lies halfway.
      >>> z = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]])
      >>> head = solve(z, torch.tensor([0, 0, 1, 1]), Problem(), n_classes=2, penalty=1.0)
      >>> head(z).argmax(1).tolist(), round(head(torch.zeros(1, 1)).diff().abs().item(), 3)
      ([0, 0, 1, 1], 0.0)
    """
    n, n_features = z.shape
    if start is None and towards is None and n >= SAMPLED_FROM:  # most of the way from nowhere is on a sample
        some = slice(None, None, SAMPLED_EVERY)
        start = solve(
            *(z[some], labels[some], problem),
            n_classes=n_classes,
            penalty=penalty / SAMPLED_EVERY,
            least_gradient=SAMPLED_GRADIENT,
        )
    start = start or towards or Linear(z.new_zeros(n_classes, n_features), z.new_zeros(n_classes))
    losses = _Losses(z, labels, problem, n_classes)
    point = torch.cat([start.weight, start.bias[:, None]], 1) if problem.has_bias else start.weight
    pull = _pull(problem, towards, penalty / n, point)
    point = minimise(lambda x: losses.at(x) + pull(x), point.float(), least_gradient=least_gradient)
    bias = point[:, n_features] if problem.has_bias else start.bias
    return Linear(point[:, :n_features].contiguous(), bias.clone())


class _Losses:
    """The weighted mean of the adjusted cross-entropy, at a point [C, D + 1]: weight and bias; [C, D] without bias."""

    def __init__(self, z: Tensor, labels: Tensor, problem: Problem, n_classes: int) -> None:
        self.z, self.labels, self.problem = z, labels, problem
        weights, self.targets = z.new_ones(len(z)), None
        if labels.is_floating_point():
            assert not any(part is not None for part in vars(problem.adjustment).values()), "of labels only"
            self.targets = labels.float() if problem.class_weight is None else labels * problem.class_weight
            weights = self.targets.sum(1)
        elif problem.class_weight is not None:
            weights = problem.class_weight[labels].to(z.dtype)
        total = float(weights.sum())
        self.weights = weights / total  # of the rows, 1 in all
        self.targets = None if self.targets is None else self.targets / total
        # A direction to search in need not be exact; value and gradient are, and they say where it ends.
        dtype = autocast_dtype(z.device, "auto") if z.numel() * n_classes >= QUICK_NUMBERS else None
        self.quick = z if dtype is None else z.to(dtype)
        held = CHUNK_NUMBERS * (16 if z.is_cuda else 1 if dtype is None else QUICK_CHUNKS)
        size = max(1, held // max(n_classes, z.shape[1]))
        self.chunks = [slice(k, k + size) for k in range(0, len(z), size)]
        self.keeps = len(z) * n_classes <= KEPT_NUMBERS
        square = z.new_zeros(z.shape[1])
        for some in self.chunks:
            square += self.weights[some] @ z[some].square()
        self.square = torch.cat([square, square.new_ones(1)]) if problem.has_bias else square  # [D + 1], of the inputs

    def out(self, point: Tensor, z: Tensor) -> Tensor:
        """Logits [b, C] float32 of rows [b, D], not yet adjusted but for the multiplier: linear in the point."""
        multiplier, point = self.problem.adjustment.multiplier, point.to(z.dtype)
        logits = torch.addmm(point[:, -1], z, point[:, :-1].T) if self.problem.has_bias else z @ point.T
        return logits.float() if multiplier is None else logits.float() * multiplier

    def back(self, errors: Tensor, z: Tensor) -> Tensor:
        """The transpose of `out`."""
        multiplier = self.problem.adjustment.multiplier
        errors = errors if multiplier is None else errors * multiplier
        weight = (errors.to(z.dtype).T @ z).float()
        return torch.cat([weight, errors.sum(0)[:, None]], 1) if self.problem.has_bias else weight

    def log_probs(self, point: Tensor, some: slice) -> Tensor:
        """[b, C], of the adjusted logits."""
        logits = self.out(point, self.z[some])
        if self.targets is None:
            rest = replace(self.problem.adjustment, multiplier=None)
            logits = adjusted_logits(logits, self.labels[some], rest)
        return logits.log_softmax(1)

    def at(self, point: Tensor) -> Local:
        """Value, gradient and Hessian, whose diagonal is a product: the mean class's times the inputs' squares."""
        value, gradient, spread = 0.0, torch.zeros_like(point), point.new_zeros(len(point))
        kept: list[Tensor] = []
        for some in self.chunks:
            log_probs, weights = self.log_probs(point, some), self.weights[some][:, None]
            probs = log_probs.exp()
            errors = weights * probs
            spread += errors.sum(0) - (errors * probs).sum(0)
            if self.targets is None:
                own = self.labels[some][:, None]
                value -= float((log_probs.gather(1, own) * weights).sum())
                errors.scatter_add_(1, own, -weights)
            else:
                value -= float((self.targets[some] * log_probs).sum())
                errors -= self.targets[some]
            gradient += self.back(errors, self.z[some])
            if self.keeps:
                kept.append(probs)

        def product(v: Tensor) -> Tensor:
            found = torch.zeros_like(v)
            for i, some in enumerate(self.chunks):
                probs = kept[i] if kept else self.log_probs(point, some).exp()
                moved = probs * self.out(v, self.quick[some])
                moved.addcmul_(probs, moved.sum(1, keepdim=True), value=-1)
                found += self.back(moved.mul_(self.weights[some][:, None]), self.quick[some])
            return found

        multiplier = self.problem.adjustment.multiplier
        spread = spread if multiplier is None else spread * multiplier.square()
        return Local(value, gradient, product, (spread.mean() * self.square).expand_as(point))


def _pull(problem: Problem, towards: Linear | None, ridge: float, start: Tensor) -> Callable[[Tensor], Local]:
    """ridge / 2 |x|^2 of what the penalty is on, at points such as ``start``, as `_Losses` takes them."""
    centre = None if towards is None else torch.cat([towards.weight, towards.bias[:, None]], 1)
    n_weights = start.shape[1] - problem.has_bias

    def found_at(point: Tensor) -> tuple[float, Tensor]:
        if centre is not None:
            off = point - centre
            return 0.5 * ridge * float(off.square().sum()), ridge * off
        weight, gradient = point[:, :n_weights], torch.zeros_like(point)
        if problem.deviation is None:
            gradient[:, :n_weights] = ridge * weight
            return 0.5 * ridge * float(weight.square().sum()), gradient
        with torch.enable_grad():
            weight = weight.detach().requires_grad_()
            value = 0.5 * ridge * problem.deviation(weight).square().sum()
            gradient[:, :n_weights] = torch.autograd.grad(value, weight)[0]
        return float(value.detach()), gradient

    constant = found_at(torch.zeros_like(start))[1]
    diagonal = (found_at(torch.ones_like(start))[1] - constant).abs()
    if problem.deviation is not None:  # which may mix the features: what it does to all of a class, shared out
        diagonal[:, :n_weights] = diagonal[:, :n_weights].mean(1, keepdim=True)

    def at(point: Tensor) -> Local:
        value, gradient = found_at(point)
        return Local(value, gradient, lambda v: found_at(v)[1] - constant, diagonal)

    return at
