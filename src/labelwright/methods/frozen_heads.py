"""Losses for labelled images on frozen features, where each is a convex problem: solved, nothing left to a schedule.

 1  z = (f - m) / s: the features centred, one scale for all, so that neither shift nor scale of embeddings matters
 2  penalty: the one under which labelled rows that were left out are most likely, all classes counted alike
 3  head = argmin of the cross-entropy with the method's adjustment and class weights, + penalty     (train/convex.py)
 4  predict with the head's own logits: adjustments act in the loss only

Deferred re-weighting weights classes late in training; a convex problem forgets what came before, so that on features
it is the weighted problem.

Symbols: f feats, m mean, s scale.
Source: ours. The losses are those of the recipe that learns from pixels, in the same file.
Measured: docs/benchmarks.md, "Long tails on stored features". The penalties that are tried, and that they are judged by
the loss of all classes alike, were chosen on CIFAR-10 and GTSRB (features of a small CLIP's image tower).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from labelwright.adjust import fixed, named
from labelwright.encoders.heads import CentredHead, put_in
from labelwright.methods.recipe import (
    CHOSEN,
    Begun,
    check_is_pretrained,
    feats_of,
    no_step,
    no_steps,
    nothing_after,
    plain_logits,
)
from labelwright.train.convex import Linear, Problem, solve
from labelwright.train.cross_validation import PENALTIES, CrossValidated, cross_validate, folds_of, has_others
from labelwright.train.predict import odds_of
from labelwright.train.scaling import scaled
from labelwright.train.settings import Positive, TrainSettings
from labelwright.types import BuildNet, Passes, State, Task

USUAL_PENALTY = 30.0  # where too few images are labelled to leave any out
ProblemOf = Callable[[Tensor], Problem]
LEFT_OUT = "left_out"
"""In the memory of a state: rows of the table [n], and what heads that did not see them say."""
FOLD_HEADS = "fold_heads"
"""In the memory of a state: rows of the table [n], the fold [n] of each, and by fold the heads that did not see it,
weight [folds, C, D] and bias [folds, C]."""
GROUP_HEADS = "group_heads"
"""The same of folds that hold whole groups, where those of `FOLD_HEADS` do not."""
PACE_ROUNDS = 5  # of solving anew with what the last head predicts, for an adjustment that looks at it


@dataclass(frozen=True, kw_only=True)
class FrozenSettings(TrainSettings):
    """What all of them read."""

    takes_steps: ClassVar[bool] = False
    epochs: int = 1  # everything is done before the first
    penalty: Positive | None = None  # L2 of the weights, summed over centred images; None = by cross-validation
    adjust: named.Names | None = None  # adjustments added to the method's own, e.g. pace+la: names of adjust.named


@dataclass(frozen=True)
class Labelled:
    """Labelled images as every method sees them."""

    z: Tensor  # [N, R] float32, of `train.scaling.scaled`
    labels: Tensor  # [N] int64
    n_classes: int  # C
    rows: Tensor  # this and the next: of `train.cross_validation.folds_of`; empty where nothing can be left out
    fold: Tensor
    adjust: str | None  # names of adjustments that are added to every problem, or None
    penalties: tuple[float, ...] = PENALTIES  # to be tried, strongest first
    start: tuple[Linear, ...] = ()  # by fold, heads of another problem, where the search for a penalty begins

    def cross_validate(self, problem_of: ProblemOf, penalties: Sequence[float]) -> CrossValidated | None:
        """`train.cross_validation.cross_validate`; None where nothing can be left out."""
        if not len(self.rows):
            return None
        return cross_validate(
            self.z,
            self.labels,
            lambda counts: self._adjusted(problem_of(counts), counts, counts),
            n_classes=self.n_classes,
            rows=self.rows,
            fold=self.fold,
            penalties=penalties,
            start=self.start,
        )

    def solve(self, problem_of: ProblemOf, penalty: float, start: Linear | None = None) -> Linear:
        """`train.convex.solve` on all rows; a few times where an adjustment looks at what the head predicts."""
        counts, head = torch.bincount(self.labels, minlength=self.n_classes), start
        predicted = counts
        for _ in range(PACE_ROUNDS if "pace" in named.names_of(self.adjust) else 1):
            problem = self._adjusted(problem_of(counts), counts, predicted)
            head = solve(self.z, self.labels, problem, n_classes=self.n_classes, penalty=penalty, start=head)
            predicted = head(self.z).softmax(1).sum(0)
        assert head is not None, "there is a round"
        return head

    def _adjusted(self, problem: Problem, counts: Tensor, predicted: Tensor) -> Problem:
        """The problem with the adjustments of ``adjust``, for predictions that sum to ``predicted`` [C]."""
        if not self.adjust:
            return problem
        state = named.update(named.init(counts, fixed.prior(counts)), predicted=predicted.float(), decay=0.0)
        return Problem(problem.adjustment + named.adjustment(self.adjust, state), problem.class_weight)


@dataclass(frozen=True)
class Fit:
    """A problem with its penalty chosen, not yet solved on all rows."""

    problem_of: ProblemOf  # counts [C] of the rows that are fitted -> the problem
    penalty: float  # of it
    validated: CrossValidated | None  # how it did on rows that were left out; None where none could be
    logs: Mapping[str, Any] = field(default_factory=dict)  # what else to say of it, JSON-ready
    # settings that were chosen beside the penalty, see `methods.recipe.as_chosen`
    chosen: Mapping[str, int] = field(default_factory=dict)


def fit_of(problem_of: Callable[[Any, Tensor], Problem]) -> Callable[[Any, Labelled], Fit]:
    """`FrozenRecipe.fit` of a loss that the counts decide: (cfg, counts [C]) -> problem."""
    return lambda cfg, data: fitted(lambda counts: problem_of(cfg, counts), cfg.penalty, data)


def fitted(problem_of: ProblemOf, penalty: float | None, data: Labelled) -> Fit:
    """Line 2, of one problem; a penalty that is given is the only one tried."""
    validated = data.cross_validate(problem_of, data.penalties if penalty is None else (penalty,))
    chosen = USUAL_PENALTY if validated is None else validated.penalty
    return Fit(problem_of, penalty or chosen, validated)


@dataclass(frozen=True)
class FrozenRecipe:
    """A `types.Recipe` of what sets a loss apart on features."""

    Config: type[FrozenSettings]  # its settings
    fit: Callable[[Any, Labelled], Fit]  # (cfg, data) -> `Fit`
    has_own_inputs: ClassVar[bool] = False  # made of the labelled rows, those that cross-validation leaves out, too
    plan = staticmethod(no_steps)
    step = staticmethod(no_step)
    end_epoch = staticmethod(nothing_after)
    predict = staticmethod(plain_logits)

    def labels_of(self, task: Task) -> Tensor:
        """[N] int64 what to learn from, -1 = nothing."""
        return task.labels

    def rows_of(self, labels: Tensor) -> Tensor:
        """[n] int64, ascending, the rows that are learned from; labels [N] of `labels_of`."""
        return (labels >= 0).nonzero().flatten()

    def inputs(self, state: State, feats: Tensor) -> tuple[Tensor, Callable[[Linear], Linear]]:
        """Line 1, and what makes of a head on z one on what the network's last layer sees.

        Args:
          state: whose head learns how to make z.
          feats: [N, D] float.

        Returns: z [N, R] float32 of `train.scaling.scaled`, and the function.
        """
        head: CentredHead = cast(Any, state.nets["main"]).head
        given = scaled(feats)
        head.mean.copy_(given.mean)
        head.scale.copy_(given.scale)
        return given.z, given.plain

    def setup(self, cfg: FrozenSettings, task: Task, build_net: BuildNet) -> State:
        """A linear head on centred features, still to be found."""
        check_is_pretrained(build_net)
        return State(nets={"main": build_net(task.n_classes, head="centred")})

    @torch.no_grad()
    def begin(self, cfg: FrozenSettings, task: Task, state: State, passes: Passes) -> Begun:
        """Lines 1 to 3."""
        labels = self.labels_of(task)
        known = self.rows_of(labels)
        z, as_given = self.inputs(state, feats_of(passes, known))  # 1
        labels, groups = labels[known], None if task.groups is None else task.groups[known.to(task.groups.device)]
        rows, fold = folds_of(labels, groups, seed=0)
        data = Labelled(z, labels, task.n_classes, rows, fold, cfg.adjust)
        found = self.fit(cfg, data)  # 2
        start = None if found.validated is None else found.validated.head
        solved = as_given(data.solve(found.problem_of, found.penalty, start))  # 3
        put_in(state.nets["main"], solved.weight, solved.bias)
        state = replace(state, memory={CHOSEN: {"penalty": found.penalty, **found.chosen}})
        logs: dict[str, Any] = {"penalty": found.penalty, **found.logs}
        if found.validated is not None:
            probs = found.validated.logits.softmax(1)
            is_asked = has_others(labels[found.validated.rows], found.validated.fold)
            predicted = torch.where(is_asked, probs.argmax(1), -1)
            left_out = {"rows": known[found.validated.rows], "predicted": predicted, "odds": odds_of(probs)}
            kept: dict[str, Any] = {LEFT_OUT: {key: value.cpu() for key, value in left_out.items()}}
            if not self.has_own_inputs:
                heads = [as_given(head) for head in found.validated.heads]
                kept |= fold_heads(left_out["rows"], found.validated.fold, heads)
            state = replace(state, memory={**state.memory, **kept})
            logs["left_out_loss"] = round(found.validated.loss, 5)
            logs["left_out_balanced_accuracy"] = round(balanced_accuracy(found.validated, labels), 5)
        return state, logs


def fold_heads(
    rows: Tensor, fold: Tensor, heads: Sequence[Linear], *, key: str = FOLD_HEADS
) -> dict[str, dict[str, Tensor]]:
    """What `FOLD_HEADS` holds, by that key, or by another.

    Args: rows, fold: [n] int64.   heads: by fold, as the network's last layer takes them.
    """
    weight, bias = torch.stack([head.weight for head in heads]), torch.stack([head.bias for head in heads])
    return {key: {"rows": rows.cpu(), "fold": fold.cpu(), "weight": weight.cpu(), "bias": bias.cpu()}}


def balanced_accuracy(found: CrossValidated, labels: Tensor) -> float:
    """Mean over the classes of the share of left-out rows that were right.

    Args:
      labels: [N] int64, of all rows.

    Example: both rows of class 0, none of class 1.
      >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
      >>> found = CrossValidated(1.0, 0.0, torch.arange(3), torch.arange(3), logits, heads=())
      >>> balanced_accuracy(found, torch.tensor([0, 0, 1]))
      0.5
    """
    truth = labels[found.rows]
    right = (found.logits.argmax(1) == truth).float()
    counts = torch.bincount(truth)
    return float((torch.zeros_like(counts, dtype=right.dtype).index_add_(0, truth, right) / counts)[counts > 0].mean())
