"""The obvious answers beside a run's own: held against each other, the best one kept.

1  contenders: what was trained, what it started from, and whichever obvious methods apply on the same views
   (`obvious_names`); beside a network from random weights what `fit --model descriptor` answers
2  where there are labels: balanced accuracy on labelled images, each answered by a fit that did not see its label, or
   beside a network from random weights on the images that were held out (given test images only show)
3  what was trained stands unless another is better by more than one standard error of the difference, or where texts or
   candidates tell of classes that have no label: the others may never name these
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import put_in
from labelwright.labels.chunks import evenly_spread
from labelwright.methods.cluster_start import CENTROIDS
from labelwright.methods.frozen_heads import FOLD_HEADS, LEFT_OUT
from labelwright.methods.method import Images
from labelwright.methods.recipe import as_chosen
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.choice import Choice, choose
from labelwright.metrics.open_world import open_match
from labelwright.pipeline.evaluate import answers_of
from labelwright.pipeline.job import Job, prepare_job
from labelwright.pipeline.resolve import Plan, on_colours
from labelwright.train import progress
from labelwright.train.convex import folds_of
from labelwright.train.loop import train
from labelwright.train.predict import TEMPERATURES, Adapt, Answers, joined
from labelwright.train.settings import TrainSettings
from labelwright.types import Recipe, State, Task
from labelwright.wording import counted

TITLES = {"class_balanced": "Balanced logistic regression", "ss_kmeans": "k-means"}
"""What the obvious ones are called where a reader need not know the paper."""

LEAST_TO_BEND = 10  # labelled images of every class, from which a border between classes may bend
FOLD_ROWS = 5000  # images that one fold of an open world's start is fitted to
COMPARED_ROWS = 2000  # unlabelled images on which fits are compared
MANY_HIDDEN = 40  # named classes, from which every second of them, hidden, says enough of clusters
MANY_NUMBERS = 1_000_000  # images x classes, from which one fold is answered and not all


@dataclass(frozen=True)
class Contender:
    """A classifier that may be a run's answer."""

    name: str  # of its method; "start" for what the run's method began with
    title: str  # for readers
    plan: Plan  # this and the next: how it sees images, and what it learned from
    job: Job
    recipe: Recipe  # this and the next two: the classifier
    cfg: TrainSettings
    state: State
    seconds: float  # that it took, what is left out included
    # answers to the rows of the criterion, of fits that did not see their labels; None where nothing could be left out
    left_out: LeftOut | None = None

    def answers(
        self,
        images: Images,
        *,
        given: Tensor | None = None,
        rows: Tensor | None = None,
        adapt: Adapt | None = None,
    ) -> Answers:
        """What it says of the training or of the test images; see `evaluate.answers_of`."""
        prepared = self.job.prepared
        source = prepared.train if images == "train" else prepared.test
        assert source is not None
        views = source.views(prepared.view)
        return answers_of(self.plan, self.recipe, self.cfg, self.state, views, given=given, rows=rows, adapt=adapt)

    def remembered(self, key: str) -> dict[str, Tensor]:
        """What the state's memory holds under this key, on the CPU: a resumed run has it on its device."""
        return {name: value.cpu() for name, value in self.state.memory[key].items()}

    @contextmanager
    def of_fold(self, k: int) -> Iterator[None]:
        """With the head in its network that did not see fold k, see `FOLD_HEADS`; -1: its own."""
        net = cast(Any, self.state.nets["main"])
        head = net.head
        try:
            if k >= 0:
                net.head, of = copy.deepcopy(head), self.state.memory[FOLD_HEADS]
                with torch.no_grad():
                    put_in(net, of["weight"][k], of["bias"][k])
            yield
        finally:
            net.head = head

    def left_out_answers(
        self, *, given: Tensor | None = None, rows: Tensor | None = None, adapt: Adapt | None = None
    ) -> Answers:
        """`answers` to the training images, each by a head that did not see it where there is one."""
        if FOLD_HEADS not in self.state.memory:
            return self.answers("train", given=given, rows=rows, adapt=adapt)
        of, parts, places = self.remembered(FOLD_HEADS), list[Answers](), list[Tensor]()
        fold = torch.full((len(self.job.task.labels),), -1)
        fold[of["rows"]] = of["fold"]
        rows = torch.arange(len(fold)) if rows is None else rows
        for k in range(-1, len(of["weight"])):
            at = (fold[rows] == k).nonzero().flatten()
            if not len(at):
                continue
            places.append(at)
            with self.of_fold(k):
                parts.append(
                    self.answers("train", given=None if given is None else given[at], rows=rows[at], adapt=adapt)
                )
        return joined(parts, torch.cat(places).argsort()) if parts else self.answers("train", rows=rows, adapt=adapt)

    @cached_property
    def tested(self) -> Answers | None:
        """What it says of the test images, in an open world of those of its classes alone; None without any."""
        test, n_classes = self.job.prepared.test, self.job.task.n_classes
        if test is None:
            return None
        given = torch.from_numpy(test.table.labels).long()
        return self.answers("test", given=torch.where(given < n_classes, given, -1))


@dataclass(frozen=True)
class LeftOut:
    """Answers to n rows of fits that did not see their labels."""

    predicted: Tensor  # [n] int64 classes, -1 = not asked
    odds: Tensor  # [n, T] log-odds, see `Answers`
    moved: float = 0.0  # share of the unlabelled images that these fits answer unlike the fit on all labels, 0 to 1
    fits: tuple[Fit, ...] = ()  # those that answer unlabelled images anew


class Fit(NamedTuple):
    """What a fit took for the labels of training images."""

    asked: Tensor  # [n] bool, of the rows whose labels are left out, those that it did not see
    rows: Tensor  # [m] of the training table: those with labels that it saw, and some without
    classes: Tensor  # [m] as given, or as it predicts them


@dataclass(frozen=True)
class Contest:
    """Contenders, the run's own first, and the rows [n] of the training table whose labels were left out.

    They are compared on these rows, but where there are new classes, and chosen by them where they speak for all.
    """

    contenders: tuple[Contender, ...]
    rows: Tensor

    def named(self, name: str) -> Contender:
        """The contender of this name."""
        return next(each for each in self.contenders if each.name == name)

    @property
    def by_held_out(self) -> bool:
        """Whether the images that were held out choose, not labels left out: a network would have to learn anew."""
        own = self.contenders[0]
        return self.contenders[-1].plan is not own.plan and own.job.prepared.test_is == "held out"

    @property
    def kept(self) -> Contender:
        """The answer of the run."""
        own = self.contenders[0]
        return self.named(self.choice.name) if own.plan.answer == "best" else own

    @cached_property
    def choice(self) -> Choice:
        """Lines 2 and 3."""
        own, titles = self.contenders[0], {each.name: each.title for each in self.contenders}
        answers = {each.name: each.left_out.predicted for each in self.contenders if each.left_out is not None}
        task, test, rows = own.job.task, own.job.prepared.test, self.rows
        truth, groups = task.labels[rows], None if task.groups is None else task.groups.cpu()[rows]
        if self.by_held_out:
            held_out = {each.name: each.tested for each in self.contenders if each.tested is not None}
            answers, truth = {name: each.predicted for name, each in held_out.items()}, held_out[own.name].given
            groups = None if test is None or test.table.groups is None else torch.from_numpy(test.table.groups)
        choice = choose(own.name, titles, {} if task.n_novel else answers, truth, groups=groups)
        is_described = task.concepts is not None or task.candidates is not None
        n_silent = int((task.counts == 0).sum()) if is_described else 0
        if not n_silent or not choice.scores:
            return choice
        classes, them = counted(n_silent, "class has", "classes have"), "it" if n_silent == 1 else "them"
        why = f"{own.title} stands: {classes} no label, and the others may know nothing of {them}"
        return Choice(own.name, why, choice.scores)


def obvious_names(task: Task, *, has_feats: bool, is_stored: bool) -> tuple[str, ...]:
    """What a careful user would try first: names of methods.

    Args:
      has_feats: whether the views go through a network that has learned something before.
      is_stored: whether the views are its features.

    Example:
      >>> obvious_names(Task(torch.tensor([0, 1, -1]), ("cat", "dog")), has_feats=True, is_stored=True)
      ('class_balanced', 'nearest_mean')
      >>> labels = torch.arange(2).repeat(LEAST_TO_BEND)
      >>> obvious_names(Task(labels, ("cat", "dog")), has_feats=True, is_stored=True)
      ('class_balanced', 'nearest_mean', 'kernel')
      >>> obvious_names(Task(torch.tensor([0, -1, -1]), ("cat",), n_novel=2), has_feats=True, is_stored=True)
      ('ss_kmeans',)
      >>> obvious_names(Task(torch.tensor([0, 1, -1]), ("cat", "dog", "owl")), has_feats=True, is_stored=False)
      ('class_balanced',)
    """
    if task.n_novel:
        return ("ss_kmeans",) if has_feats else ()
    names = ["zero_shot"] if task.concepts is not None else []
    n_labelled = int((task.counts > 0).sum())
    is_labelled = n_labelled == task.n_classes or n_labelled >= max(2, task.n_classes / 2)
    if has_feats and is_labelled:
        can_bend = int(task.counts.min()) >= LEAST_TO_BEND
        names += ["class_balanced", *(["nearest_mean", *(["kernel"] if can_bend else [])] if is_stored else [])]
    if has_feats and task.candidates is not None and bool((task.labels < 0).any()):
        names += ["majority"]
    return tuple(names)


def contest(own: Contender) -> Contest:
    """Fit whatever the trained classifier has to be held against.

    Every process takes part.
    """
    plan, job = own.plan, own.job
    rows, fold = _left_out_rows(job.task)
    found = [_judged(own, rows, fold)]
    if (plain := on_colours(plan)) is not None:
        title = f"{own.title} ({plan.model} from random weights)"
        return Contest((dataclasses.replace(own, title=title), _colours(plain)), rows)
    # With new classes nothing judges a start (novel_beliefs is it); one fold of the whole says how often labels of
    # named classes are found again, and a fit without some names how often classes are.
    if plan.method.has_start and plan.views == "embeddings" and job.task.n_novel:
        tried = _judged(dataclasses.replace(own, name="start"), rows, fold)
        if tried.left_out is not None:
            left_out = _with_hidden_classes(tried.left_out, own, rows, fold)
            found[0] = dataclasses.replace(found[0], left_out=left_out)
    elif plan.method.has_start and plan.views == "embeddings":
        found.append(_judged(_fitted(plan, job, "start"), rows, fold))
        # Training continues the start; what is left out says as much of the one as of the other.
        found[0] = dataclasses.replace(found[0], left_out=found[1].left_out)
    has_feats = job.build.is_frozen or job.build.is_pretrained
    for name in obvious_names(job.task, has_feats=has_feats, is_stored=plan.views == "embeddings"):
        if name != plan.name:
            each = (_centroids(own) if name == "ss_kmeans" else None) or _fitted(plan, job, name)
            found.append(each if job.task.n_novel else _judged(each, rows, fold))
    return Contest(tuple(found), rows)


def _colours(plan: Plan) -> Contender:
    """The answer of the run on colours and edges."""
    began = time.monotonic()
    if plan.accelerator.is_main_process:
        progress.say("held against colours and edges")
    kept = contest(_fitted(plan, prepare_job(plan, {}, None), plan.name)).kept
    seconds = time.monotonic() - began
    return dataclasses.replace(kept, name=plan.model, title=f"{kept.title} on colours and edges", seconds=seconds)


def _fitted(
    plan: Plan,
    job: Job,
    name: str,
    *,
    cfg: TrainSettings | None = None,
    labels: Tensor | None = None,
    rows: Tensor | None = None,
    task: Task | None = None,
) -> Contender:
    """A method as it stands before its first step, on all labels or on those given.

    In an open world the plan's own is trained as in the run, if on fewer rows for as many steps.

    Args:
      name: of a method; "start" is that of the plan.
      cfg: its settings; None: as it runs by default, or as the plan has them.
      task: in place of the run's with these labels.
    """
    began = time.monotonic()
    is_own = name in ("start", plan.name)
    method = plan.method if is_own else METHODS[name].on_features()
    cfg = cfg or (job.cfg if is_own else resolve_config(method, {}))
    task = task or (job.task if labels is None else dataclasses.replace(job.task, labels=labels))
    views = job.prepared.train.views(job.prepared.view)
    if rows is not None:
        groups = None if task.groups is None else task.groups[rows.to(task.groups.device)]
        task = dataclasses.replace(task, labels=task.labels[rows.to(task.labels.device)], groups=groups)
        views = job.prepared.train.take(rows.numpy()).views(job.prepared.view)
    trains = is_own and job.task.n_novel > 0
    if trains and rows is not None:
        cfg = dataclasses.replace(cfg, epochs=round(cfg.epochs * len(job.task.labels) / len(rows)))
    options = dataclasses.replace(plan.options, trains=trains, show_progress=False)
    trained = train(method.recipe, cfg, task, views, job.build, options=options)
    title = f"{method.title}, as it starts" if name == "start" else TITLES.get(name, method.title)
    return Contender(name, title, plan, job, method.recipe, cfg, trained.state, time.monotonic() - began)


def _centroids(own: Contender) -> Contender | None:
    """The k-means that training began with, of as many starts: it is not searched for twice; None if it did not."""
    method, given = METHODS["ss_kmeans"].on_features(), cast(Any, own.cfg)
    cfg = cast(Any, resolve_config(method, {}))
    if CENTROIDS not in own.state.memory or given.n_init < cfg.n_init:
        return None
    alone = method.recipe.setup(cfg, own.job.task, own.job.build)
    net, layer = alone.nets["main"].to(own.plan.accelerator.device), own.state.memory[CENTROIDS]
    put_in(net, layer["weight"], layer["bias"])
    return Contender("ss_kmeans", TITLES["ss_kmeans"], own.plan, own.job, method.recipe, cfg, alone, 0.0)


def _left_out_rows(task: Task) -> tuple[Tensor, Tensor]:
    """Rows of the table whose labels are left out, and the fold of each; none where classes have no two labels."""
    labels = task.labels.cpu()
    known = (labels >= 0).nonzero().flatten()
    groups = None if task.groups is None else task.groups.cpu()[known]
    rows, fold = folds_of(labels[known], groups, seed=0)
    return known[rows], fold


def _judged(contender: Contender, rows: Tensor, fold: Tensor) -> Contender:
    """With its answers to the rows, if it can be fitted anew in seconds."""
    began, state, plan, job = time.monotonic(), contender.state, contender.plan, contender.job
    if not len(rows):
        return contender
    open_rows = (job.task.labels.cpu() < 0).nonzero().flatten()
    # Convex heads have answered them on the way; how often they move is asked where most images are unlabelled.
    is_moving = 2 * len(open_rows) > len(job.task.labels)
    if LEFT_OUT in state.memory and (FOLD_HEADS in state.memory or not is_moving):
        left_out = _of_cross_validation(contender, rows, open_rows if is_moving else open_rows[:0])
        return dataclasses.replace(contender, left_out=left_out, seconds=contender.seconds + time.monotonic() - began)
    if contender.cfg.takes_steps and contender.name != "start":
        return contender
    answers, odds = _nothing(len(rows))
    is_large = job.task.n_novel or len(job.task.labels) * job.task.n_classes > MANY_NUMBERS
    n_folds = 1 if is_large else int(fold.max()) + 1
    unlabelled, moved, fits = evenly_spread(open_rows, COMPARED_ROWS), list[float](), list[Fit]()
    whole = contender.answers("train", rows=unlabelled).predicted
    for k in range(n_folds):
        hidden = rows[fold == k]
        left = torch.bincount(_without(hidden, job.task, rows) + 1, minlength=job.task.n_classes + 1)[1:]
        hidden = hidden[left[job.task.labels[hidden]] > 0]  # of a class that would have none left, none is hidden
        if not len(hidden):
            continue
        labels = _without(hidden, job.task, rows)
        seen = (labels.cpu() >= 0).nonzero().flatten()
        some = _some_rows(labels.cpu()) if job.task.n_novel else None
        cfg = as_chosen(contender.cfg, state)
        anew = _fitted(plan, job, contender.name, cfg=cfg, labels=labels, rows=some)
        found = anew.answers("train", rows=hidden)
        asked = torch.isin(rows, hidden)
        answers[asked], odds[asked] = found.predicted, found.odds
        if len(unlabelled):
            others = anew.answers("train", rows=unlabelled).predicted
            if job.task.n_novel:  # clusters are numbered anew by every fit
                others = open_match(others, whole, n_seen=len(job.task.class_names))[others]
            moved.append(float((others != whole).double().mean()))
            fits.append(Fit(asked, torch.cat([unlabelled, seen]), torch.cat([others, labels.cpu()[seen]])))
    left_out = LeftOut(answers, odds, sum(moved) / max(1, len(moved)), tuple(fits))
    return dataclasses.replace(contender, left_out=left_out, seconds=contender.seconds + time.monotonic() - began)


def _of_cross_validation(contender: Contender, rows: Tensor, open_rows: Tensor) -> LeftOut:
    """Of a convex head, whose cross-validation has fitted heads that did not see a fold, and answered the fold.

    Args:
      rows: whose labels are left out.   open_rows: unlabelled ones, some of which are answered anew by these heads.
    """
    given, left_out = contender.job.task.labels.cpu(), contender.remembered(LEFT_OUT)
    answers, odds = _nothing(len(given))
    answers[left_out["rows"]], odds[left_out["rows"]] = left_out["predicted"], left_out["odds"]
    if not len(open_rows):
        return LeftOut(answers[rows], odds[rows])
    of, unlabelled = contender.remembered(FOLD_HEADS), evenly_spread(open_rows, COMPARED_ROWS)
    moved, fits = list[float](), list[Fit]()
    whole = contender.answers("train", rows=unlabelled).predicted
    for k in range(len(of["weight"])):
        with contender.of_fold(k):
            others = contender.answers("train", rows=unlabelled).predicted
        seen, asked = of["rows"][of["fold"] != k], torch.isin(rows, of["rows"][of["fold"] == k])
        moved.append(float((others != whole).double().mean()))
        fits.append(Fit(asked, torch.cat([unlabelled, seen]), torch.cat([others, given[seen]])))
    return LeftOut(answers[rows], odds[rows], sum(moved) / len(moved), tuple(fits))


def _without(hidden: Tensor, task: Task, rows: Tensor) -> Tensor:
    """Labels [N] with those of the other rows alone, or in an open world all but the hidden ones and their groups'.

    A head of another fold is fitted to a sample, too: with more labels, some of them of the frames beside a hidden one,
    the others would seem better than they are.
    """
    is_given = torch.zeros_like(task.labels, dtype=torch.bool)
    is_given[slice(None) if task.n_novel else rows] = True
    is_given[hidden] = False
    if task.groups is not None:
        is_given &= ~torch.isin(task.groups, task.groups[hidden])
    return torch.where(is_given, task.labels, -1)


def _with_hidden_classes(left_out: LeftOut, own: Contender, rows: Tensor, fold: Tensor) -> LeftOut:
    """With answers on images of named classes that a fit knew nothing of: what a cluster is worth is seen on them.

    Every other class is hidden, and to be found as one more new one; of few classes then the others. So many of their
    images are asked that they are as many beside those of named classes as clusters have among the unlabelled images.
    """
    labels, n_seen = own.job.task.labels.cpu(), len(own.job.task.class_names)
    predicted, odds = left_out.predicted.clone(), left_out.odds.clone()
    hidden = torch.zeros(len(rows), dtype=torch.bool)
    for first in (1, 0) if n_seen < MANY_HIDDEN else (1,):
        asked = ((fold > 0) & (labels[rows] % 2 == first)).nonzero().flatten()
        if len(asked) and n_seen > 1:
            predicted[asked], odds[asked] = _found_anew(own, rows[asked], first)
            hidden[asked] = True
    if not hidden.any():
        return left_out
    open_rows = evenly_spread((labels < 0).nonzero().flatten(), COMPARED_ROWS)
    guessed = own.answers("train", rows=open_rows).predicted
    share = float((guessed >= n_seen).double().mean()) if len(open_rows) else 0.0
    n_named = int((left_out.predicted >= 0).sum())
    asked = hidden.nonzero().flatten()
    kept = asked[evenly_spread(torch.arange(len(asked)), round(n_named * share / max(1 - share, 1e-3)))]
    kept = torch.cat([kept, (left_out.predicted >= 0).nonzero().flatten()])
    of_none, no_odds = _nothing(len(rows))
    of_none[kept], no_odds[kept] = predicted[kept], odds[kept]
    return dataclasses.replace(left_out, predicted=of_none, odds=no_odds)


def _found_anew(own: Contender, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Classes and log-odds of rows by a fit for which their classes, every second from ``first`` on, are new ones.

    An image that is put into a cluster of no hidden class gets a class beyond all: it is wrong, whatever it is.
    """
    task = own.job.task
    labels, n_seen = task.labels.cpu(), len(task.class_names)
    number, named = torch.full((n_seen,), -1), torch.arange(1 - first, n_seen, 2)
    number[named] = torch.arange(len(named))
    hidden = (number < 0).nonzero().flatten()
    new = torch.where(labels >= 0, number[labels.clamp(min=0)], -1)
    order = torch.cat([named, hidden])  # [n_seen] classes as the new fit counts them
    names = tuple(task.class_names[c] for c in named.tolist())
    less = dataclasses.replace(
        task, labels=new.to(task.labels.device), class_names=names, n_novel=task.n_novel + len(hidden)
    )
    anew = _fitted(own.plan, own.job, "start", rows=_some_rows(new), task=less)
    found = anew.answers("train", rows=rows)
    truth = order.argsort()[labels[rows]]
    match = open_match(found.predicted, truth, n_seen=len(names))[found.predicted]
    return torch.where(match >= 0, order[match.clamp(min=0)], task.n_classes), found.odds


def _some_rows(labels: Tensor) -> Tensor | None:
    """Rows that say nearly as much as all, some of every labelled class among them; None: all, where they are few.

    Args: labels [N] int64, -1 = unknown.

    Example:
      >>> labels = torch.full((30_000,), -1)
      >>> labels[[5, 7]] = torch.tensor([1, 0])
      >>> rows = _some_rows(labels)
      >>> len(rows), labels[rows].unique().tolist(), _some_rows(labels[:100])
      (5002, [-1, 0, 1], None)
    """
    if len(labels) <= FOLD_ROWS:
        return None
    known = (labels >= 0).nonzero().flatten()
    by_class = known[labels[known].argsort(stable=True)]
    of_class = labels[by_class]
    first = by_class[torch.cat([torch.tensor([True]), of_class.diff() > 0])[: len(by_class)]]
    share = FOLD_ROWS / len(labels)
    some = [evenly_spread(by_class, max(1, round(share * len(by_class))))]
    some += [evenly_spread((labels < 0).nonzero().flatten(), round(share * (len(labels) - len(known))))]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat([first, *some])] = True
    return chosen.nonzero().flatten()


def _nothing(n: int) -> tuple[Tensor, Tensor]:
    """Predicted classes and log-odds of n rows that were not asked."""
    return torch.full((n,), -1), torch.zeros(n, len(TEMPERATURES), dtype=torch.float64)
