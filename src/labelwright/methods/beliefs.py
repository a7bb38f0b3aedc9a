"""Beliefs: a classifier on frozen features from a few labels and all images at once, in closed form.

Nothing is trained by gradient steps: the start of CAP and of Co-Reg, with labels as its evidence, is the whole method.

 1  u = (p, 1) / |(p, 1)|, p = P (f - m) / r: the largest `n_dims` principal components of the features f on the unit
    sphere of one dimension more, so that how far an image is from m is not lost. m is the mean, moved between the
    classes where images of one are many: by what the mean of the classes' means is off from it in the directions in
    which classes differ, times (1 - v / (2 n d^2))+, d its length, v the variance there, n the labels
 2  evidence E of each class: logits of a logistic regression on the labelled images, classes weighted evenly, its
    penalty chosen by cross-validation where two classes have two labels each                   (train/convex.py)
 3  or, with the class texts of a vision-language model, of a head that starts at logit_scale t and pays for leaving it,
    the price by cross-validation: without labels zero-shot; of a regression, as in (2), if left-out labels are likelier
    under it by more than a standard error; then u is z, the unit features that the texts belong to
 4     + log-likelihood of the candidate sets, for images that have one
 5  one Gaussian per class, all of one covariance, by EM: q = softmax(E + s (log density + log share)), labelled images
    one-hot and counted `label_weight` times; where texts are all that is known of a class q = softmax(E + s log
    density + log share), the shares first estimated from E alone: no image may show that class  (labels/gaussians.py)
 6  predict softmax(W u + b): what of E is linear in u (lines 2 and 3), and the terms of line 5

Symbols: f feats, P projection, m centre, r root mean square of the numbers of P (f - m), s strength.
Source: ours; the parts are those of linear discriminant analysis fitted by EM, see labels/gaussians.py.
Command: labelwright fit feats.npz --method beliefs --out RUN
Measured: balanced accuracy on the test images with five labels a class of the training images and the others unlabelled
(features of an ImageNet network, seeds 0, 1, 2, one thread of an AMD EPYC): docs/benchmarks.md, "Few labels without a
text model". `strength`, `label_weight` and `prior` were chosen on CIFAR-10 and GTSRB (features of a small CLIP's image
tower, 1 to 20 labels a class), `n_dims` and `shrinkage` on clothes, digits, letters, emoji and characters (features of
an ImageNet network; fewer components of few images with flowers12 in sight), how far m is moved on CIFAR-10, GTSRB,
clothes and digits with flowers12 in sight, those for texts on pools of CIFAR-10 and GTSRB that show 2 to 43 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.adjust import fixed
from labelwright.encoders.heads import ProjectedHead, put_in
from labelwright.errors import ConfigError
from labelwright.labels.candidate_beliefs import MISS, candidate_evidence
from labelwright.labels.gaussians import gaussian_beliefs, principal_of, sampled
from labelwright.methods.recipe import CHOSEN, Begun, Recipe, check_is_pretrained
from labelwright.methods.shots import Shots
from labelwright.train.convex import Problem, solve
from labelwright.train.cross_validation import cross_validate, folds_of
from labelwright.train.settings import AtLeast0, Count, Positive, Share, TrainSettings
from labelwright.types import BuildNet, Passes, State, Task

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # of the logistic regression, tried by cross-validation
USUAL_PENALTY = 0.1  # where there are too few labels to try
N_ITER = 20  # of EM: from 10 to 50 nothing changed
USUAL_PRICE = 100.0  # of leaving the texts, where no label can be left out to choose it
MOST_ROWS, ROWS_PER_CLASS = 50_000, 100  # of more rows, and so many a class, lines 1 and 5 see a sample until the end
DIMS, ROWS_PER_DIM = (128, 512), 5  # principal components kept: one per so many images, but not fewer or more
LEAST_SIZE = 1e-4  # of the largest singular value of class means
CHANCE = 0.5  # of how far the mean of the classes' means is off by chance, squared
STRENGTH, SHRINKAGE = 0.3, 0.5
USUAL_LABELS = 2  # a class, with which the covariance is half the identity; the more labels, the less of it
LEAST_SHRINKAGE = 0.05
TEXT_STRENGTH, TEXT_SHRINKAGE, TEXT_N_PRIOR = 0.2, 0.1, 15  # where texts are all that is known of a class


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of Beliefs."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # everything is done before the first
    n_dims: Count | None = None  # principal components kept; None = a fifth of the images, 128 to 512
    strength: AtLeast0 | None = None  # s, of the Gaussians; None = 0.3, or 0.2 where a class has its text alone
    # of the covariance towards the identity, 0 to 1; None = 2 / (2 + labels a class), 0.05 to 0.5, or 0.1 there
    shrinkage: Share | None = None
    penalty: Positive | None = None  # of the regression in line 2; None = by cross-validation
    label_weight: Positive = 10.0  # how many images a labelled one counts for in the Gaussians
    prior: Literal["estimated", "even"] = "estimated"  # shares of the classes among all images


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """A linear classifier on projected features, still to be found."""
    check_is_pretrained(build_net)
    if task.n_novel:
        raise ConfigError(
            f"beliefs needs the names of all classes, {task.n_novel} are unknown",
            fix="list every class with --classes, and leave --novel out",
        )
    _check_evidence(task)
    if task.concepts is not None:
        net = build_net(task.n_classes, head="projected", hidden=task.concepts.feats.shape[1])
    else:
        n_images = len(task.labels)
        usual = min(max(DIMS[0], n_images // ROWS_PER_DIM), DIMS[1])
        n_dims = min(cfg.n_dims or usual, max(1, n_images - 1))  # centred images span no more
        net = build_net(task.n_classes, head="lifted", hidden=n_dims)
    return State(nets={"main": net})


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Lines 1 to 6: the network's own logits are the answer."""
    head: ProjectedHead = cast(Any, state.nets["main"]).head

    def read(rows: Tensor) -> Iterator[Tensor]:
        return (z for _, z in passes("main", rows, output="feats"))

    sample = sampled(task.labels, max(MOST_ROWS, ROWS_PER_CLASS * task.n_classes))
    seen = torch.arange(len(task.labels)) if sample is None else sample
    if task.concepts is None:
        mean, directions = principal_of(lambda: read(seen), len(head.projection))
        if (task.counts > 0).all():
            mean = _between_classes(read, task, seen, mean)
        head.mean.copy_(mean)
        squares = sum(float(((z.float() - mean) @ directions.T).double().square().sum()) for z in read(seen))
        head.projection.copy_(directions / ((squares / len(seen) / len(directions)) ** 0.5 or 1.0))
    u = Projected(head, read, seen)  # 1
    known = (task.labels >= 0).nonzero().flatten()
    if task.concepts is None:
        groups = None if task.groups is None else task.groups[known.to(task.groups.device)]
        weight, bias, penalty = regression(
            u[known], task.labels[known], task.n_classes, groups=groups, penalty=cfg.penalty
        )  # 2
        logs, state = {"penalty": penalty}, replace(state, memory={CHOSEN: {"penalty": penalty}})
    else:
        weight, price = from_texts(u[known], task)  # 3
        bias, logs = torch.zeros_like(weight[:, 0]), {"price": price}
    miss = torch.full((task.n_classes,), MISS, device=u.device)

    def evidence(rows: Tensor) -> Tensor:
        return candidate_evidence(task.guesses(rows), miss)  # 4

    even = torch.full((task.n_classes,), 1 / task.n_classes)
    per_class = float(task.counts.float().mean())
    shrinkage = min(SHRINKAGE, max(LEAST_SHRINKAGE, USUAL_LABELS / (USUAL_LABELS + per_class)))
    usual = (STRENGTH, shrinkage, 0) if _has_every_label(task) else (TEXT_STRENGTH, TEXT_SHRINKAGE, TEXT_N_PRIOR)
    found = gaussian_beliefs(
        u,
        None if task.candidates is None else evidence,
        task.labels,
        linear=(weight, bias),
        sample=sample,
        strength=usual[0] if cfg.strength is None else cfg.strength,
        shrinkage=usual[1] if cfg.shrinkage is None else cfg.shrinkage,
        n_iter=N_ITER,
        n_prior=usual[2] if cfg.prior == "estimated" else 0,
        prior=even if cfg.prior == "even" else None,
        label_weight=cfg.label_weight,
    )  # 5
    added_weight, added_bias = found.linear
    put_in(state.nets["main"], weight + added_weight, bias + added_bias)  # 6
    return state, {"class_shares": [round(float(p), 5) for p in found.prior], **logs}


def _between_classes(read: Callable[[Tensor], Iterator[Tensor]], task: Task, seen: Tensor, mean: Tensor) -> Tensor:
    """m [D] of line 1, from labelled images of every class and the mean [D] of the rows that are seen."""
    labels, counts = task.labels[task.labels >= 0].to(mean.device), task.counts.to(mean.device)
    means, first = mean.new_zeros(task.n_classes, len(mean)), 0
    for z in read((task.labels >= 0).nonzero().flatten()):
        means.index_add_(0, labels[first : first + len(z)], z.float() - mean)
        first += len(z)
    means /= counts[:, None]
    off = means.mean(0)
    _, sizes, axes = torch.linalg.svd(means - off, full_matrices=False)
    axes = axes[sizes > LEAST_SIZE * sizes[0]]  # [R, D], R < C: the directions in which the classes differ
    off = axes @ off
    variance = sum(float(((z.float() - mean) @ axes.T).square().sum()) for z in read(seen)) / len(seen)
    by_chance = variance * float((1 / counts).sum()) / task.n_classes**2
    clear = float(off.square().sum())
    return mean + max(0.0, 1 - CHANCE * by_chance / clear) * (off @ axes) if clear else mean


class Projected:
    """Line 1: u [N, D] float32, held of some rows, made of the others when they are asked for.

    Args:
      head: projects.
      read: features [b, D] of rows, block by block.
      held: [n] int64, ascending, n >= 1.
    """

    def __init__(self, head: ProjectedHead, read: Callable[[Tensor], Iterator[Tensor]], held: Tensor) -> None:
        self.head, self.read, self.device = head, read, head.projection.device
        self.held, self.n_features = held.to(self.device), head.linear.in_features
        self.kept, first = torch.empty(len(held), self.n_features, device=self.device), 0
        for z in read(held):
            self.kept[first : first + len(z)] = head.project(z)
            first += len(z)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """[B, D] of rows [B] int64."""
        at = torch.searchsorted(self.held, rows).clamp(max=len(self.held) - 1)
        if torch.equal(self.held[at], rows):
            return self.kept[at]
        return torch.cat([self.head.project(z) for z in self.read(rows)])


def from_texts(z: Tensor, task: Task) -> tuple[Tensor, float]:
    """Line 3: weight [C, D] of the head on unit features, and the price of leaving the texts; 0 where there is none.

    Texts that labelled images contradict do harm: the price may be on the weights themselves, as in a regression.

    Args:
      z: [n, D] float, unit norm, of the labelled images.
      task: with texts.
    """
    assert task.concepts is not None
    text = task.concepts.logit_scale * task.concepts.feats.to(z.device)
    if not len(z):
        return text, 0.0
    shots = Shots.of(z, text, task)
    held, alone = shots.cross_validate(lambda weight: weight - shots.text), shots.cross_validate(lambda weight: weight)
    if held is None or alone is None:
        return shots.solve(lambda weight: weight - shots.text, penalty=USUAL_PRICE), USUAL_PRICE
    labels = shots.labels[shots.rows]
    gain = F.cross_entropy(held.logits, labels, reduction="none") - F.cross_entropy(
        alone.logits, labels, reduction="none"
    )
    if gain.mean() > gain.std() / len(gain) ** 0.5:  # by more than one standard error
        return shots.solve(lambda weight: weight, penalty=alone.penalty), 0.0
    return shots.solve(lambda weight: weight - shots.text, penalty=held.penalty), held.penalty


def regression(
    u: Tensor, labels: Tensor, n_classes: int, *, groups: Tensor | None = None, penalty: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """Logistic regression in which all classes have the same weight; one that has no label gets logits of 0.

    Args:
      u: [n, D] float, unit norm.
      labels: [n] int64, no unknown ones.
      groups: [n] int64, images of one group are left out together; or None.
      penalty: > 0, or None: one of `PENALTIES` by cross-validation, or the usual one where nothing can be left out.

    Returns: weight [C, D] and bias [C], with a mean of 0 over the labelled classes, and the penalty.

    Example:
      >>> u = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [-0.8, 0.6]])
      >>> weight, bias, penalty = regression(u, torch.tensor([0, 0, 1, 1]), 3)
      >>> (u @ weight.T + bias).argmax(1).tolist(), weight[2].tolist()
      ([0, 0, 1, 1], [0.0, 0.0])
    """
    weight, bias = u.new_zeros(n_classes, u.shape[1]), u.new_zeros(n_classes)
    classes, y = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return weight, bias, USUAL_PENALTY if penalty is None else penalty

    def problem_of(counts: Tensor) -> Problem:
        return Problem(class_weight=fixed.inverse_prior_weights(counts, power=1.0))

    start = None
    if penalty is None:
        penalty, (rows, fold) = USUAL_PENALTY, folds_of(y, groups, seed=0)
        if len(rows):
            found = cross_validate(u, y, problem_of, n_classes=len(classes), rows=rows, fold=fold, penalties=PENALTIES)
            penalty, start = found.penalty, found.head
    head = solve(u, y, problem_of(torch.bincount(y)), n_classes=len(classes), penalty=penalty, start=start)
    weight[classes], bias[classes] = head.weight, head.bias
    return weight, bias, penalty


def _has_every_label(task: Task) -> bool:
    """Whether something other than texts says how each class looks: then the class shares count like the features."""
    return task.concepts is None or bool((task.counts > 0).all())


def _check_evidence(task: Task) -> None:
    """Refuse a class of which nothing says how it looks.

    Raises: ConfigError naming the class.
    """
    is_known = task.counts > 0
    if task.candidates is not None:
        is_known[task.candidates.classes.to(is_known.device, torch.int64)] = True
    bare = [name for name, known in zip(task.class_names, is_known.tolist(), strict=True) if not known]
    if bare and task.concepts is None:
        more = f" (nor {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise ConfigError(
            f"no image is labelled {bare[0]!r}{more}, and there is neither a text model nor a candidate to say how it "
            "looks",
            fix="label an image of it, leave the class out, or name a vision-language model with --model",
        )


RECIPE = Recipe(Config=Config, setup=setup, begin=begin)
