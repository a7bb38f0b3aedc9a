"""The obvious answers beside a run's own: held against each other, the best one kept.

1  contenders: what was trained, what it started from, and whichever obvious methods apply on the same views
   (`obvious_names`); beside a network from random weights what `fit --model descriptor` answers
2  where there are labels: balanced accuracy on labelled images, each answered by a fit that did not see its label, or
   beside a network from random weights on the images that were held out (given test images only show); where there may
   be new classes, by fits that did not see some labels, or some of the named classes
3  what was trained stands unless another is better by more than one standard error of the difference, or where texts or
   candidates tell of classes that have no label: the others may never name these
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from labelwright.encoders.heads import put_in
from labelwright.labels.chunks import evenly_spread
from labelwright.methods.cluster_start import BELIEFS, CENTROIDS
from labelwright.methods.frozen_heads import FOLD_HEADS, GROUP_HEADS, LEFT_OUT
from labelwright.methods.method import Images
from labelwright.methods.recipe import as_chosen
from labelwright.methods.registry import METHODS, resolve_config
from labelwright.metrics.choice import Choice, choose
from labelwright.metrics.open_world import open_match
from labelwright.pipeline.evaluate import answers_of
from labelwright.pipeline.job import Job, prepare_job
from labelwright.pipeline.resolve import Plan, on_colours
from labelwright.train import progress
from labelwright.train.cross_validation import folds_of
from labelwright.train.loop import train
from labelwright.train.predict import TEMPERATURES, Adapt, Answers, joined
from labelwright.train.settings import TrainSettings
from labelwright.trust.new_classes import Rates, share_new
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
    def of_fold(self, k: int, key: str = FOLD_HEADS) -> Iterator[None]:
        """With the head in its network that did not see fold k, see `FOLD_HEADS`; -1: its own."""
        net = cast(Any, self.state.nets["main"])
        head = net.head
        try:
            if k >= 0:
                net.head, of = copy.deepcopy(head), self.state.memory[key]
                with torch.no_grad():
                    put_in(net, of["weight"][k], of["bias"][k])
            yield
        finally:
            net.head = head

    def left_out_answers(
        self,
        *,
        given: Tensor | None = None,
        rows: Tensor | None = None,
        adapt: Adapt | None = None,
        as_new: bool = False,
    ) -> Answers:
        """`answers` to the training images, each by a head that did not see it where there is one.

        Args: as_new: nor any of its group, as images that are still to come.
        """
        key = GROUP_HEADS if as_new and GROUP_HEADS in self.state.memory else FOLD_HEADS
        if key not in self.state.memory:
            return self.answers("train", given=given, rows=rows, adapt=adapt)
        of, parts, places = self.remembered(key), list[Answers](), list[Tensor]()
        fold = torch.full((len(self.job.task.labels),), -1)
        fold[of["rows"]] = of["fold"]
        rows = torch.arange(len(fold)) if rows is None else rows
        for k in range(-1, len(of["weight"])):
            at = (fold[rows] == k).nonzero().flatten()
            if not len(at):
                continue
            places.append(at)
            with self.of_fold(k, key):
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
    of_hidden: Tensor | None = None  # [n] bool, rows of named classes that the fit knew nothing of
    rates: Rates | None = None  # in an open world, of all rows that were asked

    @property
    def is_of_hidden(self) -> Tensor:
        """[n] bool, whether the fit knew nothing of a row's class."""
        return torch.zeros(len(self.predicted), dtype=torch.bool) if self.of_hidden is None else self.of_hidden


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
        if task.n_novel and own.left_out is not None:  # an image of a class that was hidden is found with all of it
            alone = torch.arange(len(rows)) if groups is None else groups
            groups = torch.where(own.left_out.is_of_hidden, -1 - truth, alone)
        choice = choose(own.name, titles, answers, truth, groups=groups)
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
    if plan.method.has_start and plan.views == "embeddings" and job.task.n_novel:
        found = _beside_new_classes(own, rows, fold)
    elif plan.method.has_start and plan.views == "embeddings":
        found.append(_judged(_fitted(plan, job, "start"), rows, fold))
        # Training continues the start; what is left out says as much of the one as of the other.
        found[0] = dataclasses.replace(found[0], left_out=found[1].left_out)
    behind = {each.name: each for each in _left_behind(own)} if job.task.n_novel else {}
    has_feats = job.build.is_frozen or job.build.is_pretrained
    for name in obvious_names(job.task, has_feats=has_feats, is_stored=plan.views == "embeddings"):
        if name == "class_balanced" and _weighs_nothing(own):
            found.append(dataclasses.replace(found[0], name=name, title=TITLES[name], seconds=0.0))
        elif name not in {each.name for each in found}:
            each = behind.get(name) or _fitted(plan, job, name)
            found.append(each if job.task.n_novel else _judged(each, rows, fold))
    return Contest(tuple(found), rows)


def _weighs_nothing(own: Contender) -> bool:
    """Whether balanced regression is the regression that the run has fitted: each class has as many labels."""
    counts = own.job.task.counts
    is_plain = own.name == "ce" and own.plan.views == "embeddings" and own.cfg == resolve_config(own.plan.method, {})
    return is_plain and bool((counts == counts[0]).all())


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

    In an open world the plan's own is trained as in the run: on fewer rows for as many steps, or as many as by default.

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
    if trains:
        n_rows = len(task.labels)
        usual = method.schedule(resolve_config(method, {}), dataclasses.replace(plan.budget, n_images=n_rows), ())
        as_many = round(cfg.epochs * len(job.task.labels) / n_rows)
        cfg = dataclasses.replace(cfg, epochs=min(as_many, usual.epochs))
    options = dataclasses.replace(plan.options, trains=trains, show_progress=False)
    trained = train(method.recipe, cfg, task, views, job.build, options=options)
    title = f"{method.title}, as it starts" if name == "start" else TITLES.get(name, method.title)
    return Contender(name, title, plan, job, method.recipe, cfg, trained.state, time.monotonic() - began)


def _left_behind(own: Contender) -> list[Contender]:
    """The beliefs that training began with, and the k-means before them, of as many starts as k-means alone."""
    found = list[Contender]()
    begun = f"{own.plan.method.title}, as it starts"
    for name, title, of, key in (
        ("start", begun, "novel_beliefs", BELIEFS),
        ("ss_kmeans", TITLES["ss_kmeans"], "ss_kmeans", CENTROIDS),
    ):
        method, cfg = METHODS[of].on_features(), cast(Any, resolve_config(METHODS[of], {}))
        if key not in own.state.memory or cast(Any, own.cfg).n_init < cfg.n_init:
            continue
        alone = method.recipe.setup(cfg, own.job.task, own.job.build)
        net, layer = alone.nets["main"].to(own.plan.accelerator.device), own.state.memory[key]
        put_in(net, layer["weight"], layer["bias"])
        found.append(Contender(name, title, own.plan, own.job, method.recipe, cfg, alone, 0.0))
    return found


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
    n_folds = 1 if len(job.task.labels) * job.task.n_classes > MANY_NUMBERS else int(fold.max()) + 1
    unlabelled, moved, fits = evenly_spread(open_rows, COMPARED_ROWS), list[float](), list[Fit]()
    whole = contender.answers("train", rows=unlabelled).predicted
    for k in range(n_folds):
        hidden = _may_hide(rows[fold == k], job.task, rows)
        if not len(hidden):
            continue
        labels = _without(hidden, job.task, rows)
        seen = (labels.cpu() >= 0).nonzero().flatten()
        anew = _fitted(plan, job, contender.name, cfg=as_chosen(contender.cfg, state), labels=labels)
        found = anew.answers("train", rows=hidden)
        asked = torch.isin(rows, hidden)
        answers[asked], odds[asked] = found.predicted, found.odds
        if len(unlabelled):
            others = anew.answers("train", rows=unlabelled).predicted
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


def _may_hide(hidden: Tensor, task: Task, rows: Tensor) -> Tensor:
    """Those of the hidden rows without which their class has a label left; of groups, those that leave each one."""
    left = torch.bincount(_without(hidden, task, rows) + 1, minlength=task.n_classes + 1)[1:]
    if task.groups is None:
        return hidden[left[task.labels[hidden]] > 0]
    groups, labels = task.groups[rows], task.labels[rows]
    for c in (left == 0).nonzero().flatten().tolist():
        of_class, of_hidden = groups[labels == c], task.groups[hidden]
        if len(of_class) and torch.isin(of_class, of_hidden).all():  # else one was put back for another class
            hidden = hidden[of_hidden != of_class[0]]
    return hidden


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


def _beside_new_classes(own: Contender, rows: Tensor, fold: Tensor) -> list[Contender]:
    """A method for new classes, what it began with and k-means, by fits that did not see some labels, or some classes.

    One fold says how often labels of named classes are found again; what a cluster is worth is seen on named classes
    that are hidden, and to be found as so many more new ones: every second, of few classes then the others. Of their
    images so many count that they are as many beside those of named classes as new ones are among the unlabelled ones.
    """
    began, task, contenders = time.monotonic(), own.job.task, [own, *_left_behind(own)]
    labels, n_seen = task.labels.cpu(), len(task.class_names)
    first = _may_hide(rows[fold == 0], task, rows)
    if not len(first):
        return contenders
    again = _fold_left_out(contenders, first, rows)
    of_hidden = torch.zeros(len(rows), dtype=torch.bool)
    answers = [(each.predicted.clone(), each.odds.clone(), each.predicted >= n_seen) for each in again]
    for parity in (1, 0) if n_seen < MANY_HIDDEN else (1,):
        asked = ((fold > 0) & (labels[rows] % 2 == parity)).nonzero().flatten()
        if len(asked) and n_seen > 1:
            of_hidden[asked] = True
            for each, found in zip(answers, _found_anew(own, rows[asked], parity), strict=True):
                for kept, of_asked in zip(each, found, strict=True):
                    kept[asked] = of_asked
    of_named, truth, asked = again[0].predicted >= 0, labels[rows], of_hidden.nonzero().flatten()
    rates = [_rates(predicted == truth, is_new, of_named, of_hidden) for predicted, _, is_new in answers]
    is_kept, open_rows = of_named.clone(), evenly_spread((labels < 0).nonzero().flatten(), COMPARED_ROWS)
    if len(asked):  # of all contenders as many as for the run's own
        called_new = float((own.answers("train", rows=open_rows).predicted >= n_seen).double().mean())
        new = share_new(own.job.new_share, called_new, rates[0])
        of_both, per_hidden = of_named.nonzero().flatten(), (1 - new) / new
        is_kept[evenly_spread(asked, round(len(of_both) / per_hidden))] = True
        is_kept[of_both] = False
        is_kept[evenly_spread(of_both, max(1, round(len(asked) * per_hidden)))] = True
    for k, (left_out, (predicted, odds, _)) in enumerate(zip(again, answers, strict=True)):
        predicted[~is_kept], odds[~is_kept] = -1, 0.0
        left_out = dataclasses.replace(
            left_out, predicted=predicted, odds=odds, of_hidden=of_hidden, rates=rates[k] if len(asked) else None
        )
        contenders[k] = dataclasses.replace(contenders[k], left_out=left_out)
    contenders[0] = dataclasses.replace(contenders[0], seconds=own.seconds + time.monotonic() - began)
    return contenders


def _rates(right: Tensor, is_new: Tensor, of_named: Tensor, of_hidden: Tensor) -> Rates:
    """How answers [n] to images of named classes and of hidden ones are, right and called new; a half of few."""

    def share(of: Tensor, among: Tensor) -> float:
        return (float((of & among).sum()) + 1) / (float(among.sum()) + 2)

    return Rates(share(right, of_named), share(is_new, of_named), share(right, of_hidden), share(is_new, of_hidden))


def _fold_left_out(contenders: Sequence[Contender], hidden: Tensor, rows: Tensor) -> list[LeftOut]:
    """Of a method for new classes and what it began with: answers to hidden rows by a fit without their labels."""
    own, task = contenders[0], contenders[0].job.task
    labels = _without(hidden, task, rows)
    seen, asked = (labels.cpu() >= 0).nonzero().flatten(), torch.isin(rows, hidden)
    unlabelled = evenly_spread((task.labels.cpu() < 0).nonzero().flatten(), COMPARED_ROWS)
    some, found = _some_rows(labels.cpu()), list[LeftOut]()
    anew = _fitted(own.plan, own.job, own.name, cfg=as_chosen(own.cfg, own.state), labels=labels, rows=some)
    for each, again in zip(contenders, [anew, *_left_behind(anew)], strict=True):
        (answers, odds), replies = _nothing(len(rows)), again.answers("train", rows=hidden)
        answers[asked], odds[asked] = replies.predicted, replies.odds
        whole = each.answers("train", rows=unlabelled).predicted
        others = again.answers("train", rows=unlabelled).predicted
        others = open_match(others, whole, n_seen=len(task.class_names))[others]  # clusters are numbered by every fit
        fit = Fit(asked, torch.cat([unlabelled, seen]), torch.cat([others, labels.cpu()[seen]]))
        found.append(LeftOut(answers, odds, float((others != whole).double().mean()), (fit,)))
    return found


def _found_anew(own: Contender, rows: Tensor, parity: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of rows, by a fit for which their classes, every second from ``parity`` on, are new: class, log-odds, is new.

    Of the method, and of what it began with. An image that is put into a cluster of no hidden class gets a class beyond
    all: it is wrong, whatever it is.
    """
    task, found = own.job.task, list[tuple[Tensor, Tensor, Tensor]]()
    labels, n_seen = task.labels.cpu(), len(task.class_names)
    number, named = torch.full((n_seen,), -1), torch.arange(1 - parity, n_seen, 2)
    number[named] = torch.arange(len(named))
    hidden = (number < 0).nonzero().flatten()
    new = torch.where(labels >= 0, number[labels.clamp(min=0)], -1)
    order = torch.cat([named, hidden])  # [n_seen] classes as the new fit counts them
    names = tuple(task.class_names[c] for c in named.tolist())
    less = dataclasses.replace(
        task, labels=new.to(task.labels.device), class_names=names, n_novel=task.n_novel + len(hidden)
    )
    truth = order.argsort()[labels[rows]]
    anew = _fitted(own.plan, own.job, own.name, rows=_some_rows(new), task=less)
    for each in (anew, *_left_behind(anew)):
        replies = each.answers("train", rows=rows)
        match = open_match(replies.predicted, truth, n_seen=len(names))[replies.predicted]
        classes = torch.where(match >= 0, order[match.clamp(min=0)], task.n_classes)
        found.append((classes, replies.odds, replies.predicted >= len(names)))
    return found


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
