"""What the trust of a run rests on: labels that were left out or held out, else those that it learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from labelwright.encoders.aligned import AlignedNet
from labelwright.labels.annotations import Annotations
from labelwright.labels.chunks import evenly_spread
from labelwright.labels.concepts import TRIED_ROWS, chance_known, knowledge
from labelwright.labels.dawid_skene import doubt_of_names
from labelwright.labels.unlike import Unlike
from labelwright.metrics.classification import calibration_error
from labelwright.pipeline.gallery import Checked, first_guesses, right_of
from labelwright.pipeline.job import Job
from labelwright.pipeline.novel import feats_of_views
from labelwright.pipeline.own_sets import outside_frac
from labelwright.pipeline.references import Contender, Contest
from labelwright.pipeline.votes import votes_of, weighed, with_votes
from labelwright.train.predict import TEMPERATURES, Answers
from labelwright.trust.calibration import (
    LEAST_ROWS,
    OF_HELD_OUT,
    Calibration,
    chance_of_repeated,
    cross_fitted,
    expected_accuracy,
    from_confidence,
    from_left_out,
    levelled,
    moved_to,
    slope_to_mean,
    unjudged,
    worth_of,
)
from labelwright.trust.class_shares import by_class
from labelwright.trust.new_classes import right_shares, share_new
from labelwright.trust.pixel_votes import PixelVotes


class Calibrations(NamedTuple):
    """What turns log-odds into chances: of the labels of training images, and of the model on others."""

    training: Calibration
    model: Calibration


def both(calibration: Calibration) -> Calibrations:
    """The same for all."""
    return Calibrations(calibration, calibration)


def calibrations_of(beside: Contest, own: Answers, most_wrong: float) -> Calibrations:
    """The calibrations of a run without held-out images that nothing else has judged.

    From left-out labels, else from how sure those were that it learned from. The two differ where a label is what the
    model sees and what its annotations say, together. Of the labels at most the share ``most_wrong`` is wrong.
    """
    contenders, kept = {each.name: each for each in beside.contenders}, beside.kept
    task, n_classes = kept.job.task, kept.job.task.n_classes
    if kept.left_out is not None:
        asked = kept.left_out.predicted >= 0
        truth = task.labels.cpu()[beside.rows[asked]]
        right = kept.left_out.predicted[asked] == truth
        # What was left out was left out of the start: log-odds of the trained classifier are brought to its spread.
        like = [1.0] * len(TEMPERATURES)
        if kept.name != "start" and "start" in contenders and kept.left_out is contenders["start"].left_out:
            start = contenders["start"].answers("train").odds
            like = [
                slope_to_mean(odds, float(mean), n_classes=n_classes)
                for odds, mean in zip(own.odds.T, start.sigmoid().mean(0), strict=True)
            ]
        odds = kept.left_out.odds[asked]
        found = from_left_out(odds, right, n_classes=n_classes, like=like, most_wrong=most_wrong)
        groups = None if task.groups is None else task.groups.cpu()[beside.rows[asked]]
        found = dataclasses.replace(_worth(found, right, truth, groups, kept.job), moved=kept.left_out.moved)
        return _of_open_world(found, kept, own)
    annotations = Annotations(task)
    if "zero_shot" in contenders and not _are_given(kept, annotations):
        before = contenders.get("start", contenders["zero_shot"])
        if not isinstance(before.state.nets["main"], AlignedNet):  # else it is what texts say, repaired ones too
            before = contenders["zero_shot"]
        mean, known = float(before.answers("train").probability.mean()), chance_known(_knowledge(before))
        return both(from_confidence(own.odds, mean, "text model", n_classes=n_classes, known=known))
    if annotations.kind is None or task.n_novel:
        return both(Calibration(n_classes=n_classes) if kept.cfg.takes_steps else unjudged(n_classes))
    alone = kept.left_out_answers(as_new=True)
    known = 1.0 if task.candidates is None else chance_known(task.candidates.knowledge)
    if annotations.kind == "shares":  # how sure an annotator was
        sure, guesses = annotations.confidence, first_guesses(kept.job, None)
        assert guesses is not None  # shares are weights
        means = [min(sure, _most_right(guesses, each.predicted, sure)) for each in (own, alone)]
    else:  # votes and sets are weighed by their likelihood: how probable the label is by that, and the model's own
        agreed = torch.where(alone.predicted == own.runner_up, own.runner_up_probability, 0.0)
        agreed = torch.where(alone.predicted == own.predicted, own.probability, agreed)
        means = [float(own.probability.mean()), float(agreed.mean())]
    answers = annotations.answers
    doubt = 0.0 if answers is None else doubt_of_names(own.predicted, answers.cpu(), task.labels.cpu(), n_classes)
    repeated = 1 - outside_frac(annotations, alone.predicted) if annotations.has_one_guess else 0.0
    own_map, model_map = (
        dataclasses.replace(
            from_confidence(
                each.odds,
                mean,
                "candidates",
                n_classes=n_classes,
                is_voted=each is own,
                known=known * chance_of_repeated(repeated),
            ),
            moved=doubt,
            repeated=repeated,
        )
        for each, mean in zip((own, alone), means, strict=True)
    )
    return Calibrations(own_map, model_map)


def _worth(found: Calibration, right: Tensor, classes: Tensor, groups: Tensor | None, job: Job) -> Calibration:
    """A calibration that counts as many labels as they say something by themselves.

    Classes without labels are others than theirs, and images of one group are right and wrong together. Where no group
    is without labels, new images are taken to come from as many others.

    Args: right [n] bool, classes, groups [n] int64: of the labels it is from.
    """
    if job.task.n_novel and found.n:
        found = dataclasses.replace(found, n=worth_of(right, classes, n_others=job.task.n_novel))
    if groups is not None and job.task.groups is not None and found.n:
        open_groups = torch.unique(job.task.groups[job.task.labels < 0])
        own = torch.unique(groups, return_inverse=True)[1]
        n = worth_of(right, own, n_others=len(open_groups) or int(own.max()) + 1)
        found = dataclasses.replace(found, n=min(found.n, n))
    return found


def _are_given(kept: Contender, annotations: Annotations) -> bool:
    """Whether a contender learned from annotations that no texts made in this run."""
    guesser = kept.job.guesser
    is_of_texts = guesser is not None and not guesser.annotator.is_chat
    return kept.plan.method.requires.candidates and annotations.kind is not None and not is_of_texts


def _most_right(guesses: Tensor, predicted: Tensor, confidence: float) -> float:
    """The largest share of labels [N] that can be right where this share of first guesses [N], -1 = none, is.

    They are right where they repeat right guesses, and elsewhere at most where the guesses are wrong.

    Example: a network that repeats one of ten guesses.
      >>> round(_most_right(torch.zeros(10).long(), torch.arange(10), 0.7), 3)
      0.4
    """
    return float(((guesses == predicted) | (guesses < 0)).double().mean()) + 1 - confidence


def _knowledge(named: Contender) -> float:
    """`knowledge` of the class texts that a contender compares images with."""
    net, plan, prepared = cast(AlignedNet, named.state.nets["main"]), named.plan, named.job.prepared
    views = prepared.train.views(prepared.view)
    rows = evenly_spread(torch.arange(views.n_rows), TRIED_ROWS)
    feats = feats_of_views(net, views, plan.accelerator.device, plan.settings.precision, rows=rows)
    return knowledge(feats, net.class_feats().detach().cpu())


def of_held_out(kept: Contender, tested: Answers | None) -> Calibration | None:
    """The calibration by the test images, where the run held them out and no other labels were left out."""
    job = kept.job
    if tested is None or job.prepared.test_is != "held out" or kept.left_out is not None:
        return None
    known = tested.given >= 0
    if Annotations(job.task).kind is not None or int(known.sum()) < LEAST_ROWS:
        return None
    right = tested.predicted[known] == tested.given[known]
    found = from_left_out(tested.odds[known], right, n_classes=job.task.n_classes, temperatures=OF_HELD_OUT)
    test = job.prepared.test
    groups = None if test is None or test.table.groups is None else torch.from_numpy(test.table.groups)[known]
    return _worth(found, right, tested.given[known], groups, job)


def voted_on(
    kept: Contender, rows: Tensor, own: Answers, calibrations: Calibrations
) -> tuple[PixelVotes | None, Answers, Calibrations, Contender]:
    """What pixels say, with answers, calibrations and left-out labels as they are by that, too."""
    votes = votes_of(kept.job, own)
    if votes is None:
        return None, own, calibrations, kept
    if kept.left_out is not None:
        votes, left_out = weighed(votes, kept.job, kept.left_out, rows)
        kept = dataclasses.replace(kept, left_out=left_out)
    own = with_votes(votes, kept.job.prepared.train, kept.job.prepared.view, own)
    unknown = own.given < 0
    odds = own.odds[unknown] if unknown.any() else own.odds
    found = both(levelled(calibrations.training, odds))
    if calibrations.model is not calibrations.training:
        found = Calibrations(found.training, levelled(calibrations.model, odds))
    return votes, own, found, kept


def class_shift(kept: Contender, rows: Tensor, own: Answers, calibration: Calibration) -> Tensor | None:
    """What the shares of the predicted classes say for or against labels of unlabelled images, by class [C]; or None.

    Where these look unlike the labelled ones, how often a class is predicted says nothing of how common it is.

    Args: rows of the training table whose labels were left out, of which the calibration is.
    """
    task, unknown = kept.job.task, own.given < 0
    if kept.left_out is None or calibration.source != "left-out labels" or task.n_novel or kept.job.unlike.share:
        return None
    asked = kept.left_out.predicted >= 0
    truth = task.labels.cpu()[rows[asked]]
    shift = by_class(
        *(truth, kept.left_out.predicted[asked], own.predicted[unknown]),
        n_classes=task.n_classes,
        worth=min(1.0, calibration.n / max(1, len(truth))),
    )
    return shift if shift.any() else None


class _Open(NamedTuple):
    """Images of an open world: how many are called new, and how many are right."""

    called_new: float
    right: float


def _open(kept: Contender, own: Answers) -> tuple[_Open, _Open] | None:
    """The unlabelled images, and new ones, which are taken to be like all of the run; None if nothing was left out."""
    unknown = own.given < 0
    if kept.left_out is None or kept.left_out.rates is None or not unknown.any():
        return None
    rates, found, share = kept.left_out.rates, list[_Open](), float(unknown.double().mean())
    called_new = float((own.predicted[unknown] >= len(kept.job.task.class_names)).double().mean())
    new = share_new(kept.job.new_share, called_new, rates)
    for unlabelled in (1.0, share):  # the others are of named classes
        of_them = unlabelled * called_new + (1 - unlabelled) * rates.named_new
        named_right, new_right = right_shares(rates, new=unlabelled * new, called_new=of_them)
        found.append(_Open(of_them, (1 - of_them) * named_right + of_them * new_right))
    return found[0], found[1]


def _of_open_world(found: Calibration, kept: Contender, own: Answers) -> Calibrations:
    """A map with the means of trust that unlabelled images and new ones should have; as it is where there are none."""
    shares = _open(kept, own)
    if shares is None:
        return both(found)
    unknown, (here, there) = own.given < 0, shares
    odds, is_new = own.odds[unknown], own.predicted[unknown] >= len(kept.job.task.class_names)
    as_new = there.called_new / max(here.called_new, 1e-6)
    as_named = (1 - there.called_new) / max(1 - here.called_new, 1e-6)
    counts = torch.where(is_new, as_new, as_named)
    return Calibrations(moved_to(found, odds, here.right), moved_to(found, odds, there.right, counts=counts))


def checked_on(
    kept: Contender,
    rows: Tensor,
    calibration: Calibration,
    tested: Answers | None,
    scores: Mapping[str, Any] | None,
    most_wrong: float,
    *,
    is_fitted: bool,
) -> Checked | None:
    """Trust beside what was right, of test images, else of labels that were left out; None where there are neither.

    Of labels that the calibration was fitted to, it is what one fitted to others of them says. Labels that come from
    where the training labels do are as often wrong, and trust is lowered as much.
    """
    job, left_out = kept.job, kept.left_out
    n_classes = job.task.n_classes
    if tested is not None:
        known, right = right_of(job, tested, scores)
        odds, trust = tested.odds[known], calibration.chance(tested.odds[known])
        is_alike = job.prepared.test_is == "held out"
        if is_fitted:
            trust = cross_fitted(odds, right, n_classes=n_classes, temperatures=OF_HELD_OUT)
        elif is_alike:
            trust = calibration.agreement(trust)
        return Checked(trust, right, "test images", is_fitted, calibration.wrong if is_alike else 0.0)
    if left_out is None:
        return None
    asked = left_out.predicted >= 0
    right = left_out.predicted[asked] == job.task.labels.cpu()[rows[asked]]
    trust = cross_fitted(left_out.odds[asked], right, n_classes=n_classes, most_wrong=most_wrong)
    return Checked(trust, right, "labels that were left out", True, calibration.wrong)


def trust_facts(
    calibrations: Calibrations,
    own: Answers,
    tested: Checked | None,
    near: float,
    *,
    bare: Answers | None,
    unlike: Unlike,
) -> dict[str, Any]:
    """What `trust` rests on, how many labels it says are right, and how far that was off on test images.

    The share ``near`` of the unlabelled images may all be right: they are in a group with labels, and those were left
    out in whole groups. Those ``unlike`` every labelled image are of no class, as many more than estimated as there may
    be fewer; or of another place, and as often right as the answers ``bare`` of that knowledge say (None: labels were
    verified).
    """
    found: dict[str, Any] = calibrations.training.to_dict()
    open_rows = own.given < 0
    if open_rows.any():
        mean, low, high = expected_accuracy(calibrations.training.chance(own.odds)[open_rows], calibrations.training)
        high = high if calibrations.training.source != "left-out labels" else high + near * (1 - high)
        if unlike.share and bare is not None:
            chances = calibrations.training.chance(bare.odds[open_rows])
            of_named, _, highest = expected_accuracy(chances, calibrations.training)
            unsure = unlike.share - (0.0 if unlike.is_elsewhere else unlike.least)  # what trust is not lowered by
            low, high = max(0.0, low - unsure * of_named), max(high, highest)
        found |= {"estimated": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}
        found |= {"unlike": unlike.share} if unlike.share else {}
    if tested is not None and len(tested.right):
        found["ece"] = calibration_error(tested.trust, tested.right)
    return found


def near_labels(job: Job) -> float:
    """Share of the unlabelled images that are of a group with labelled ones."""
    groups, known = job.task.groups, job.task.labels.cpu() >= 0
    if groups is None or bool(known.all()):
        return 0.0
    return float(torch.isin(groups.cpu()[~known], groups.cpu()[known]).double().mean())
