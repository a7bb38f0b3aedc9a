"""Crowd: a convex head on frozen features, and how often each annotator is wrong, each estimated from the other.

 1  z = (f - m) / s: the features centred, one scale for all
 2  q = Dawid and Skene's probabilities of the classes, from the answers alone; of sets the shares of the candidates
 3  penalty: the one under which the likeliest classes of q are most likely where they were left out
 4  head = argmin of the cross-entropy with q, classes weighted evenly, + penalty                    (train/convex.py)
 5  v = logits of the images, each by a head that did not see it (folds; images of its group were seen)
 6  q = softmax(T v + log prior + log-likelihood of the annotations), with confusion matrices, prior and
    temperature T by EM; what an answer is worth is counted without the image's own; a verified label stays
                                                                                                (labels/annotations.py)
 7  columns of q change names where the answers speak clearly for others               (labels/dawid_skene.py)
 8  lines 4 to 7 until they move nothing, for `n_rounds` rounds at most, and again from the majority vote, or from what
    left-out heads say where an image has one guess, unless that comes to the same labels: that q is kept under which
    the annotations are likelier, given v
 9  where images have several answers, the penalty once more, for the likeliest classes of q, which are mostly right by
    now; lines 4 to 6 with it, once: weaker, it would learn its own mistakes in further rounds
10  the head of all images, times T, is the classifier; with groups T is that of heads that did not see an image's
    group, as it will be used; labels of the images themselves are by v

Of sets without a name for who named what, all answers are taken as one annotator's.

Symbols: f feats, m mean, s scale, T temperature.
Source: Raykar et al. 2010, "Learning from crowds" (JMLR 11). Differs: more than two classes, a cross-validated
penalty, a temperature, line 5, without which a head that has learned its own labels by heart confirms them, and in
line 6 the same for answers.
Command: labelwright fit feats.parquet --annotator-columns ann,bob,cyd --method crowd --out RUN
Measured: docs/methods/crowd.md, by benchmarks/crowds.py. The smoothing of the confusion matrices was chosen on CIFAR-10
and GTSRB (features of a small CLIP's image tower, three made-up voters), what is clear in line 7 on made-up classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import CentredHead, put_in
from labelwright.labels.annotations import AnnotationModel, Annotations, fit_annotations, temperature_of
from labelwright.labels.dawid_skene import better_names, dawid_skene, majority
from labelwright.labels.first_guess import first_guess
from labelwright.methods.baselines.candidate_sets import check_task
from labelwright.methods.frozen_heads import FOLD_HEADS, GROUP_HEADS, fold_heads
from labelwright.methods.recipe import CHOSEN, Begun, Recipe, check_is_pretrained, feats_of
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.cross_validation import PENALTIES, TRIED_GRADIENT, cross_validate, folds_of
from labelwright.train.scaling import scaled
from labelwright.train.seeds import generator
from labelwright.train.settings import Count, Positive, TrainSettings
from labelwright.types import BuildNet, Passes, State, Task

USUAL_PENALTY = 100.0  # where nothing can be left out
LARGE, HUGE = 2500, 10_000  # images from which three folds, and two, say as much as five
MOVED_FRAC = 0.002  # of the classes, below which a round has changed nothing
KNOWN_FRAC = 0.01  # of the classes, below which another start leads to what is known
ROUGH_GRADIENT = 1e-3  # where a round's head is solved, until a round changes nothing


@dataclass(frozen=True, kw_only=True)
class Config(TrainSettings):
    """Settings of Crowd."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # everything is done before the first
    n_rounds: Count = 12  # of head and confusions in turn, at most
    penalty: Positive | None = None  # L2 of the weights, summed over centred images; None = by cross-validation
    first_penalty: Positive | None = None  # the same while labels are found; None = ``penalty``, or by cross-validation


def setup(cfg: Config, task: Task, build_net: BuildNet) -> State:
    """A linear head on centred features, still to be found."""
    check_task(task, "crowd")
    check_is_pretrained(build_net)
    return State(nets={"main": build_net(task.n_classes, head="centred")})


class _Found(NamedTuple):
    """What head and confusions, each from the other, lead to."""

    q: Tensor  # [n, C] float64
    fitted: AnnotationModel
    heads: list[Linear | None]  # by fold
    moved_frac: list[float]  # by round


@torch.no_grad()
def begin(cfg: Config, task: Task, state: State, passes: Passes) -> Begun:
    """Lines 1 to 10."""
    head: CentredHead = cast(Any, state.nets["main"]).head
    annotations = Annotations(task)
    is_annotated = torch.cat(
        [annotations.is_annotated(some) for some in torch.split(torch.arange(len(task.labels)), 8192)]
    )
    rows = is_annotated.nonzero().flatten()
    given = scaled(feats_of(passes, rows))  # 1
    head.mean.copy_(given.mean)
    head.scale.copy_(given.scale)
    z = given.z
    starts = [q.to(z.device) for q in _starts(task, rows)]  # 2
    groups = None if task.groups is None else task.groups.cpu()[rows]
    first = cfg.first_penalty or cfg.penalty
    if first is None:  # 3
        guessed = first_guess(starts[0].float(), rows.to(z.device))
        first = _penalty(z, guessed, groups, task.n_classes) or USUAL_PENALTY
    penalty = first
    fold = _folds(len(rows))

    def left_out_logits(
        q: Tensor, fold: Tensor, heads: list[Linear | None], least_gradient: float = TRIED_GRADIENT
    ) -> Tensor:
        """[n, C] of heads that did not see the fold [n] of a row, begun at ``heads``, which they replace; 4 and 5."""
        logits = torch.zeros(len(rows), task.n_classes, device=z.device)
        for k in range(int(fold.max()) + 1):
            left_out = (fold == k).to(z.device)
            share = 1 - float(left_out.float().mean())
            heads[k] = each = _solved(z[~left_out], q[~left_out], share * penalty, heads[k], least_gradient)
            logits[left_out] = each(z[left_out])
        return logits

    def in_turn(q: Tensor, heads: list[Linear | None], known: Tensor | None) -> _Found | None:
        """Lines 4 to 7 from probabilities [n, C] and heads on; None once labels are about those of ``known`` [n, C]."""
        moved_frac: list[float] = []
        least_gradient = ROUGH_GRADIENT
        while True:
            is_last = len(moved_frac) + 1 == cfg.n_rounds
            logits = left_out_logits(q, fold, heads, TRIED_GRADIENT if is_last else least_gradient)
            fitted = fit_annotations(annotations, logits, rows)
            new = annotations.posterior(fitted, logits, rows)  # 6
            moved_frac.append(_moved(q, new))
            q = new
            if known is not None and _moved(q, known) < KNOWN_FRAC:
                return None
            if is_last:
                return _Found(q, fitted, heads, moved_frac)
            order = None if task.votes is None else better_names(q, task.votes[rows], task.labels[rows])  # 7
            if order is not None:
                q, heads = annotations.with_labels(q[:, order], rows), [None] * len(heads)
            elif moved_frac[-1] < MOVED_FRAC:
                if least_gradient == TRIED_GRADIENT:
                    return _Found(q, fitted, heads, moved_frac)
                least_gradient = TRIED_GRADIENT

    n_folds = int(fold.max()) + 1
    heads: list[Linear | None] = [None] * n_folds
    if annotations.has_one_guess:
        starts.append(left_out_logits(starts[0], fold, heads, ROUGH_GRADIENT).double().softmax(1))
    found = in_turn(starts[0], heads, None)  # 8
    assert found is not None, "nothing is known yet"
    for q in starts[1:]:
        other = in_turn(q, [None] * n_folds, found.q)
        if other is not None and other.fitted.likelihood > found.fitted.likelihood:
            found = other
    last = cfg.penalty  # 9
    if last is None and not annotations.has_one_guess:
        last = _penalty(z, found.q.argmax(1), groups, task.n_classes)
    if last is not None and last != first:
        penalty = last
        logits = left_out_logits(found.q, fold, found.heads)
        fitted = fit_annotations(annotations, logits, rows)
        found = found._replace(q=annotations.posterior(fitted, logits, rows), fitted=fitted)
    q, fitted, heads = found.q, found.fitted, found.heads
    head_of_all, temperature = given.plain(_solved(z, q, penalty, heads[0])), fitted.temperature
    memory: dict[str, Any] = {CHOSEN: {"penalty": penalty, "first_penalty": first}}

    def remember(fold: Tensor, heads: Sequence[Linear | None], temperature: float, key: str) -> None:
        if not annotations.has_one_guess:  # else how often guesses are repeated is asked of the classifier itself
            left_out = [given.plain(head) for head in heads if head is not None]
            left_out = [Linear(temperature * head.weight, temperature * head.bias) for head in left_out]
            memory.update(fold_heads(rows, fold, left_out, key=key))

    remember(fold, heads, temperature, FOLD_HEADS)
    if groups is not None and int(groups.max()) > int(groups.min()):
        by_group = _folds(len(rows), groups)
        heads = [None] * (int(by_group.max()) + 1)
        temperature = temperature_of(annotations, fitted, left_out_logits(q, by_group, heads), rows)
        remember(by_group, heads, temperature, GROUP_HEADS)
    put_in(state.nets["main"], temperature * head_of_all.weight, temperature * head_of_all.bias)
    logs = (
        {"penalty": penalty, "moved_frac": found.moved_frac} | describe(fitted) | {"temperature": round(temperature, 3)}
    )
    return replace(state, memory=memory), logs


def _starts(task: Task, rows: Tensor) -> list[Tensor]:
    """Line 2: each [n, C] float64."""
    if task.votes is None:
        return [task.guesses(rows).double()]
    votes, labels = task.votes[rows], task.labels[rows]
    found = dawid_skene(votes, task.n_classes, labels=labels)
    return [found.probs] if found.is_majority else [found.probs, majority(votes, task.n_classes, labels)]


def _moved(q: Tensor, new: Tensor) -> float:
    """The share of the rows whose likeliest class is another in ``new`` [n, C] than in ``q`` [n, C]."""
    return round(float((new.argmax(1) != q.argmax(1)).double().mean()), 5)


def _penalty(z: Tensor, labels: Tensor, groups: Tensor | None, n_classes: int) -> float | None:
    """Lines 3 and 9; None where nothing can be left out."""
    tried, fold = folds_of(labels, groups, seed=0)
    if not len(tried):
        return None

    def problem_of(counts: Tensor) -> Problem:
        return Problem(class_weight=_even(counts))

    return cross_validate(
        z, labels, problem_of, n_classes=n_classes, rows=tried, fold=fold, penalties=PENALTIES[:5]
    ).penalty


def _even(counts: Tensor) -> Tensor:
    """Weights [C] float32 under which all classes count alike, 0 for a class without images."""
    weights = torch.where(counts > 0, counts.sum() / counts.double().clamp(min=1e-3), 0.0)
    return (weights / (counts > 0).sum().clamp(min=1)).float()


def _solved(
    z: Tensor, q: Tensor, penalty: float, start: Linear | None, least_gradient: float = TRIED_GRADIENT
) -> Linear:
    problem = Problem(class_weight=_even(q.sum(0)))
    n_classes = q.shape[1]
    return solve(
        z, q.float(), problem, n_classes=n_classes, penalty=penalty, start=start, least_gradient=least_gradient
    )


def _folds(n: int, groups: Tensor | None = None) -> Tensor:
    """[n] int64 fold of each image; of few images at least two folds, images of a group in one."""
    of = torch.arange(n) if groups is None else torch.unique(groups, return_inverse=True)[1]
    n_units = int(of.max()) + 1 if n else 0
    n_folds = max(1, min(5 if n < LARGE else 3 if n < HUGE else 2, n_units))
    return (torch.randperm(n_units, generator=generator(0, "folds")) % n_folds)[of]


def describe(fitted: AnnotationModel) -> dict[str, Any]:
    """What to log of how the answers were taken."""
    return {
        "temperature": round(fitted.temperature, 3),
        "truth_inside": round(fitted.inside, 4),
        "class_shares": [round(float(p), 5) for p in fitted.log_prior.exp()],
    }


RECIPE = Recipe(Config=Config, setup=setup, begin=begin)
