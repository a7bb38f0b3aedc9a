"""A linear head on frozen features as what it is, a convex problem: solved to convergence, its penalty cross-validated.

The loss is cross-entropy with any `Adjustment` and class weights; the L2 penalty of the weights is summed over rows, so
that one number suits a hundred images and a million.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from labelwright.adjust.adjustment import Adjustment, adjusted_logits
from labelwright.train.newton import Local, minimise
from labelwright.train.processes import autocast_dtype

PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""What is tried; from the strongest on, each starts where the last one ended."""

MAX_FOLDS = 5
MAX_TRIED_ROWS = 5000  # images that take part in the cross-validation; of a rare class at least `LEAST_TRIED`
LEAST_TRIED = 20
CHUNK_NUMBERS = 1 << 18  # of rows x classes, or of rows x features, held at a time: a core's cache; more on a GPU
KEPT_NUMBERS = 1 << 25  # of rows x classes, up to which probabilities are kept between products with the Hessian
QUICK_NUMBERS = 1 << 27  # rows x features x classes, from which products with the Hessian are made in half precision
MAX_AXES = 2048
FEW_COLUMNS = 0.1  # of the features: if no more carry the variance, the others have no say on one scale
LEAST_COLUMNS = 1.1  # that carry it, of few features
SCALED_ROWS = 5000  # labelled, and unlabelled ones, by which columns are judged
WEIGHED_ROWS = 1000  # labelled rows on which one scale is held against one of each column
FEWER_ROWS, FEWER_CLASSES = 300, 50  # the same where many columns carry the variance, and a clear word is asked for
EVEN_SCALES = 3.0  # the largest deviation of a column, times the least: below it nothing is weighed
CHANCE = 3.0  # times 1 / N: squared correlations of columns that are not correlated
LEAST_GRADIENT = 1e-5  # largest entry of the gradient of the mean loss at which it has converged
SAMPLED_FROM, SAMPLED_EVERY = 8192, 4  # rows from which a head begins at that of a sample, and one row of how many
SAMPLED_GRADIENT = 3e-3  # the same there
TRIED_GRADIENT = 1e-4  # the same in cross-validation, where heads serve only to be compared


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


@dataclass(frozen=True)
class CrossValidated:
    """What cross-validation found."""

    penalty: float  # the one under which rows left out are most likely, all classes counted alike
    loss: float  # that mean -log p, in nats: the mean over the classes of the mean over their rows
    rows: Tensor  # [n] int64, the rows that took part
    fold: Tensor  # [n] int64, the fold of each
    logits: Tensor  # [n, C] float32 of these rows, each by a head that did not see it, at that penalty
    heads: tuple[Linear, ...]  # by fold, the heads that did not see it

    @property
    def head(self) -> Linear:
        """Mean of the heads, a start for the one on all rows."""
        weight, bias = (
            torch.stack(parts).mean(0) for parts in zip(*((h.weight, h.bias) for h in self.heads), strict=True)
        )
        return Linear(weight, bias)


def centre_and_scale(feats: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and one scale, the root mean square of all centred numbers: what makes a penalty mean the same anywhere.

    Args:
      feats: [N, D] float.

    Returns: mean [D] and scale [], float32; the scale is 1 where all rows are the same.

    Example:
      >>> mean, scale = centre_and_scale(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
      >>> mean.tolist(), round(scale.item(), 4)
      ([2.0, 5.0], 0.7071)
    """
    mean = feats.mean(0, dtype=torch.float64)
    total = sum(((some.double() - mean).square().sum() for some in torch.split(feats, 8192)), mean.new_zeros(()))
    scale = (total / max(1, feats.numel())).sqrt()
    return mean.float(), torch.where(scale > 0, scale, 1.0).float()


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
        size = max(1, CHUNK_NUMBERS * (16 if z.is_cuda else 1) // max(n_classes, z.shape[1]))
        self.chunks = [slice(k, k + size) for k in range(0, len(z), size)]
        self.keeps = len(z) * n_classes <= KEPT_NUMBERS
        # A direction to search in need not be exact; value and gradient are, and they say where it ends.
        dtype = autocast_dtype(z.device, "auto") if z.numel() * n_classes >= QUICK_NUMBERS else None
        self.quick = z if dtype is None else z.to(dtype)
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


def column_scales(feats: Tensor, labels: Tensor) -> Tensor | None:
    """What to divide columns by that were measured in units of their own; None where all are of one scale.

    Where a tenth of the columns carries the variance, the others have no say in distances, nor under a penalty; each is
    divided by its deviation then. Principal components are an exception: they are not correlated, and those that spread
    little say little. Labels decide against either if those left out are likelier by two standard errors; and for it
    by three where more columns carry the variance, as where features of two scales stand side by side. Deviations
    within a factor of three are one scale.

    Args:
      feats: [N, D] float.
      labels: [N] int64, -1 = unknown.

    Returns: [D] float32 > 0, 1 for a column that is constant; or None.

    Example: grams beside kilometres, and the same columns on one scale.
      >>> z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
      >>> z[:, 2] += z[:, 0]
      >>> scales = column_scales(z * torch.tensor([1000.0, 1.0, 1.0]), torch.full((100,), -1))
      >>> scales is not None and bool(scales[0] > 900), column_scales(z, torch.full((100,), -1))
      (True, None)
    """
    deviation = feats.double().std(0, correction=0)
    spreads = deviation > 1e-6 * deviation.max()
    variance = deviation[spreads].square()
    n_columns = len(variance)
    n_carrying = float(variance.sum().square() / variance.square().sum()) if n_columns else 0.0
    if n_columns < 2 or float(variance.max()) < EVEN_SCALES**2 * float(variance.min()):
        return None
    is_carried_by_few = n_carrying <= max(LEAST_COLUMNS, FEW_COLUMNS * n_columns)
    scales, mean = torch.where(spreads, deviation, 1.0).float(), feats.mean(0, dtype=torch.float64)
    known = (labels >= 0).nonzero().flatten()
    is_correlated = False  # which says something of few columns alone
    if is_carried_by_few:
        z = ((feats.double() - mean) / scales)[:, spreads]
        alike = (z.T @ z / len(z)).square().fill_diagonal_(0).sum() / (n_columns * (n_columns - 1))
        is_correlated = bool(alike > CHANCE / len(z))
    else:  # several of each class
        known, classes = known[labels[known].argsort(stable=True)], torch.unique(labels[known])
        known = known[torch.isin(labels[known], classes[:: len(classes) // FEWER_CLASSES + 1])]
        known = known[:: len(known) // FEWER_ROWS + 1]
    y = torch.unique(labels[known], return_inverse=True)[1]
    rows, fold = folds_of(y, None, seed=0, limit=WEIGHED_ROWS)
    if not len(rows) or int(fold.max()) < 1:
        return scales if is_correlated else None
    given = feats[known].double() - mean
    each = [_left_out_losses(some, y, rows, fold) for some in (given.float(), (given / scales)[:, spreads].float())]
    gain = each[0] - each[1]
    clear = float(gain.mean()) / max(1e-9, float(gain.std()) / len(gain) ** 0.5)
    return scales if clear > (2 if is_carried_by_few else 3) or (is_correlated and clear > -2) else None


def _left_out_losses(feats: Tensor, labels: Tensor, rows: Tensor, fold: Tensor) -> Tensor:
    """[n] -log p of the rows, each by a head that did not see it."""
    n_classes = int(labels.max()) + 1
    found = cross_validate(scaled(feats).z, labels, lambda counts: Problem(), n_classes=n_classes, rows=rows, fold=fold)
    return torch.nn.functional.cross_entropy(found.logits, labels[found.rows], reduction="none")


@dataclass(frozen=True)
class Scaled:
    """Features as `solve` takes them: centred, of unit scale, and along the directions in which they spread."""

    z: Tensor  # [N, R] float32, R the smaller of N and D, or D
    mean: Tensor  # this and the next: of `centre_and_scale`
    scale: Tensor
    axes: Tensor | None  # [D, R] orthonormal, so that z = (feats - mean) / scale @ axes; None: z has no such factor

    def plain(self, head: Linear) -> Linear:
        """The head on (feats - mean) / scale that a head on z is: weight [C, R] -> [C, D]."""
        return head if self.axes is None else Linear(head.weight @ self.axes.T, head.bias)


def scaled(feats: Tensor) -> Scaled:
    """What heads are fitted on: features of any shift and scale.

    Args:
      feats: [N, D] float.

    Example: rows on a line need one number each, but for rounding.
      >>> found = scaled(torch.tensor([[1.0, 5.0], [3.0, 7.0], [2.0, 6.0]]))
      >>> found.z.square().sum(0).round(decimals=4).tolist()
      [0.0, 6.0]
    """
    mean, scale = centre_and_scale(feats)

    def plain(some: slice) -> Tensor:
        return (feats[some].float() - mean) / scale

    n, n_features = feats.shape
    if n < n_features:
        z = plain(slice(None))
        axes = principal_axes(z)
        return Scaled(z if axes is None else z @ axes, mean, scale, axes)
    blocks = [slice(k, k + 8192) for k in range(0, n, 8192)]  # of many rows nothing is there twice
    axes = None
    if n_features <= MAX_AXES:
        axes = _eigenvectors(sum((plain(some).T @ plain(some) for some in blocks), mean.new_zeros(())))
    z = torch.empty(n, n_features, device=feats.device)
    for some in blocks:
        z[some] = plain(some) if axes is None else plain(some) @ axes
    return Scaled(z, mean, scale, axes)


def _eigenvectors(moment: Tensor) -> Tensor:
    return Tensor(torch.linalg.eigh(moment).eigenvectors)


def principal_axes(z: Tensor, *, complete: bool = False) -> Tensor | None:
    """Directions [D, R] in which rows [N, D] spread independently of one another: `solve` is quickest on z @ axes.

    R is the smaller of N and D, or D if ``complete``: z @ axes keeps all that z says of the rows. None where finding
    the axes would take longer than they save.

    Example: rows on a diagonal.
      >>> axes = principal_axes(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0]]))
      >>> [round(value, 4) for value in axes.abs()[:, -1].tolist()] if axes is not None else None
      [0.7071, 0.7071]
    """
    n, n_features = z.shape
    is_square = complete or n >= n_features
    if (n_features if is_square else n) > MAX_AXES:
        return None
    if is_square:
        return _eigenvectors(z.T @ z)
    basis, rest = torch.linalg.qr(z.T)  # [D, N], [N, N]
    return Tensor(basis @ _eigenvectors(rest @ rest.T))


def folds_of(labels: Tensor, groups: Tensor | None, *, seed: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows that take part in a cross-validation and the fold of each.

    Args:
      labels: [N] int64, 0 to C-1.
      groups: [N] int, rows of one group fall into one fold; or None.
      limit: how many rows take part, about; None = `MAX_TRIED_ROWS`.

    Returns: rows [n] int64, ascending, and their folds [n] int64: all rows, or of more than the limit a share of each
      class; empty where fewer than two classes have two rows, or two groups.

    Example:
      >>> rows, fold = folds_of(torch.tensor([0, 0, 0, 1, 1, 1]), None, seed=0)
      >>> rows.tolist(), torch.bincount(fold).tolist()
      ([0, 1, 2, 3, 4, 5], [2, 2, 2])
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    y, of_row = labels.cpu().numpy(), None if groups is None else groups.cpu().numpy()
    counts = np.bincount(y)
    apart = counts if of_row is None else np.bincount(np.unique(np.stack([y, of_row]), axis=1)[0])
    if (apart >= 2).sum() < 2:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    draw = np.random.default_rng(seed)
    share = min(1.0, (limit or MAX_TRIED_ROWS) / len(y))
    kept = [
        draw.permutation(np.flatnonzero(y == c))[: max(LEAST_TRIED, round(share * n))] for c, n in enumerate(counts)
    ]
    rows = np.sort(np.concatenate(kept)) if share < 1 else np.arange(len(y))
    # Folds of a large set are alike: three say as much as five.
    n_folds = int(min(MAX_FOLDS if len(rows) < MAX_TRIED_ROWS // 2 else 3, counts[counts >= 2].max()))
    fold = np.zeros(len(rows), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is missing from some
        if of_row is None:
            splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, y[rows])
        else:
            of = of_row[rows]
            n_folds = min(n_folds, len(np.unique(of)))
            if n_folds < 2:
                return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
            splits = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, y[rows], of)
        for k, (_, left_out) in enumerate(splits):
            fold[left_out] = k
    return torch.from_numpy(rows), torch.from_numpy(fold)


def cross_validate(
    z: Tensor,
    labels: Tensor,
    problem_of: Callable[[Tensor], Problem],
    *,
    n_classes: int,
    rows: Tensor,
    fold: Tensor,
    penalties: Sequence[float] = PENALTIES,
    start: Sequence[Linear] = (),
) -> CrossValidated:
    """Choose a penalty by the loss of rows that were left out.

    A row whose class no other fold has is not scored: nothing could have been learned of it. From the strongest penalty
    on, the search ends once two weaker ones in a row were no better.

    Args:
      z: [N, D] float32, as for `solve`.   labels: [N] int64.
      problem_of: counts [C] of the rows that are fitted -> the problem.
      rows, fold: of `folds_of`, at least two folds.
      penalties: to be tried, strongest first.
      start: by fold, heads to begin at, as of another problem on these folds; the end does not depend on them.

    Example: two classes far apart ask for a weak penalty.
      >>> labels = torch.arange(40) % 2
      >>> z = torch.where(labels[:, None] == 1, 1.0, -1.0) + 0.01 * torch.arange(40)[:, None] / 40
      >>> rows, fold = folds_of(labels, None, seed=0)
      >>> cross_validate(z, labels, lambda counts: Problem(), n_classes=2, rows=rows, fold=fold).penalty
      0.03
    """
    rows, fold = rows.to(z.device), fold.to(z.device)
    z, labels = z[rows], labels[rows]
    parts = [(fold != k, fold == k) for k in range(int(fold.max()) + 1)]
    counts = [torch.bincount(labels[fitted], minlength=n_classes) for fitted, _ in parts]
    scored = has_others(labels, fold)
    heads: list[Linear | None] = [*start] or [None] * len(parts)  # at the last penalty, where the next one starts
    best: CrossValidated | None = None
    n_worse = 0
    for penalty in penalties:
        logits = z.new_zeros(len(rows), n_classes)
        for k, (fitted, left_out) in enumerate(parts):
            share = float(fitted.sum()) / len(rows)
            head = solve(
                z[fitted],
                labels[fitted],
                problem_of(counts[k]),
                n_classes=n_classes,
                penalty=share * penalty,
                start=heads[k],
                least_gradient=TRIED_GRADIENT,
            )
            heads[k], logits[left_out] = head, head(z[left_out])
        loss = balanced_loss(logits[scored], labels[scored])
        n_worse = 0 if best is None or loss < best.loss else n_worse + 1
        if n_worse == 0:
            best = CrossValidated(penalty, loss, rows, fold, logits, tuple(head for head in heads if head))
        if n_worse == 2:
            break
    assert best is not None, "there are penalties"
    return best


def has_others(labels: Tensor, fold: Tensor) -> Tensor:
    """[n] bool: another fold has the class of the row, so that something is learned of it where the row is left out.

    Args:
      labels, fold: [n] int64.

    Example:
      >>> has_others(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 0, 1])).tolist()
      [True, True, False, False, False]
    """
    if not len(labels):
        return torch.zeros(0, dtype=torch.bool, device=labels.device)
    counts = labels.new_zeros(int(labels.max()) + 1, int(fold.max()) + 1)
    counts.index_put_((labels, fold), torch.ones_like(labels), accumulate=True)
    return counts.sum(1)[labels] > counts[labels, fold]


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


def balanced_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the mean -log softmax of their rows, in nats.

    Args:
      logits: [N, C] float.   labels: [N] int64.

    Example: log 2 for each of two classes, however many rows they have.
      >>> round(balanced_loss(torch.zeros(3, 2), torch.tensor([0, 0, 1])), 4)
      0.6931
    """
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    counts = torch.bincount(labels)
    sums = torch.zeros(len(counts), device=each.device).index_add_(0, labels, each)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
