"""The end of `fit`: labels, scores and the model of a trained state, written into the run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from labelwright import __version__
from labelwright.encoders import backbones, descriptor
from labelwright.encoders.nets import EncoderNets
from labelwright.labels.concepts import UNKNOWN
from labelwright.methods.method import Images, Outcome
from labelwright.metrics.choice import CRITERION
from labelwright.metrics.scores import confusions, few_scores, open_scores, scores_of, seen_unseen, truth_beyond
from labelwright.pipeline.calibrate import (
    Calibrations,
    both,
    calibrations_of,
    checked_on,
    class_shift,
    near_labels,
    of_held_out,
    trust_facts,
    voted_on,
)
from labelwright.pipeline.evaluate import asker_of_names
from labelwright.pipeline.gallery import first_guesses, gallery_of
from labelwright.pipeline.job import Job
from labelwright.pipeline.label_rows import label_rows
from labelwright.pipeline.novel import feats_of
from labelwright.pipeline.own_sets import own_answers, right_within, with_candidates
from labelwright.pipeline.promises import (
    assumes,
    by_held_out,
    by_place,
    decided,
    facts,
    promised_by,
    read_verified,
    recalibrated,
    truths,
)
from labelwright.pipeline.references import Contender, Contest
from labelwright.pipeline.refit import with_refitted
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.run_audit import audit_of_run
from labelwright.pipeline.saved_model import add_to_model, model_card, save_model
from labelwright.pipeline.strange import facts_of, strangers_of
from labelwright.pipeline.votes import with_likeness, with_votes
from labelwright.reporting.gallery import write_gallery
from labelwright.reporting.verdict import better_answer
from labelwright.reporting.words import is_doubted, listed
from labelwright.run_folder import SUMMARY_VERSION, Run, write_parquet_atomically
from labelwright.train.environment import peak_memory_mb
from labelwright.train.loop import Trained
from labelwright.train.predict import Answers
from labelwright.trust.calibration import Calibration, with_evidence
from labelwright.trust.guarantee import Promise

FEW_CALLED_NEW = 0.15  # share by which fewer images are called new than look so, from which a run says so


def finish(beside: Contest, saved: Contender, trained: Trained, seconds: dict[str, float]) -> None:
    """Label, score and save: labels.parquet, model/, summary.json.

    Args:
      saved: the classifier for the model folder: the kept one, or the same fitted on more images, which then labels
        those without a label, too.
      seconds: spent so far, by phase; labelling is added.
    """
    kept, choice = beside.kept, beside.choice
    plan, job = kept.plan, kept.job
    run, prepared, task, described = plan.run, job.prepared, job.task, plan.described
    device, precision = plan.accelerator.device, plan.settings.precision
    began = time.monotonic()
    table = prepared.train.table
    tests = {each.name: _scored(each) for each in beside.contenders}
    held_out, scores = tests[kept.name]
    if scores is not None and prepared.n_tested_on_copies:
        scores = scores | {"n_copied": prepared.n_tested_on_copies}
    own, of_sets = own_answers(kept, task.labels.cpu())
    scored = own
    rests_on_held_out = plan.settings.error is not None and plan.settings.verified is None  # then they are one model's
    labelling = kept if of_sets or rests_on_held_out else saved
    if labelling is not kept:
        own = with_refitted(own, labelling)
    audit_began = time.monotonic()
    audited = audit_of_run(job, held_out, seed=plan.settings.seed)
    seconds["audit"] = time.monotonic() - audit_began
    most_wrong = 0.0 if task.n_novel else audited.facts["estimated_wrong"] or 0.0
    fitted = of_held_out(kept, held_out)
    calibrations = both(fitted) if fitted is not None else calibrations_of(beside, own, most_wrong)
    votes, own, calibrations, voted = voted_on(kept, beside.rows, own, calibrations)
    if held_out is not None and prepared.test is not None:
        held_out = with_votes(votes, prepared.test, prepared.view, held_out)
    shift = None if rests_on_held_out else class_shift(voted, beside.rows, own, calibrations.training)
    if shift is not None:
        of_class = torch.where(own.given < 0, shift[own.predicted], 0.0)
        own = dataclasses.replace(own, odds=with_evidence(own.odds, of_class))
    bare, own = own, with_likeness(job, own, calibrations.training)
    if held_out is not None and held_out.odds.shape[1] < own.odds.shape[1]:
        held_out = dataclasses.replace(held_out, odds=with_evidence(held_out.odds, torch.zeros(len(held_out.odds))))
    n_fitted = len(table) + (0 if saved is kept or prepared.test is None else len(prepared.test.table))
    run.check_there()
    net = _save(saved, calibrations.model, n_fitted)  # before what describes it, which may go wrong
    found = strangers_of(plan, job, net, own)
    strangers, *scores_of_images = (None, None, None) if found is None else found
    threshold = None if strangers is None else strangers.threshold
    in_train, in_test = (
        None if strangers is None or each is None else strangers.strangeness(each) for each in scores_of_images
    )
    order = None  # of the images, those held out among them, as the user gave them
    if prepared.test is not None and held_out is not None and prepared.test_is != "given":
        assert plan.prepared.test is not None
        order = torch.cat([plan.prepared.train.rows, plan.prepared.test.rows]).argsort()

    def of_training(calibration: Calibration) -> pa.Table:
        rows = label_rows(
            *(table, own, table.class_names, calibration),
            keep_given=True,
            given_chance=audited.chances[0],
            strangeness=in_train,
            threshold=threshold,
        )
        return with_candidates(rows, table, own)

    def labelled(calibrations: Calibrations) -> pa.Table:
        rows = of_training(calibrations.training)
        if order is None:
            return rows
        assert prepared.test is not None
        assert held_out is not None
        more = label_rows(
            *(prepared.test.table, held_out, table.class_names, calibrations.model),
            keep_given=True,
            given_chance=audited.chances[1],
            strangeness=in_test,
            threshold=threshold,
        )
        return pa.concat_tables([rows, more], promote_options="default").take(pa.array(order.numpy()))

    rows = labelled(calibrations)
    odds = own.odds if order is None or held_out is None else torch.cat([own.odds, held_out.odds])[order]
    rows, calibrations, promised = _promised(plan, job, rows, odds, labelled, calibrations, held_out)
    is_fitted = fitted is not None
    checked = checked_on(voted, beside.rows, calibrations.model, held_out, scores, most_wrong, is_fitted=is_fitted)
    write_parquet_atomically(rows, run.path / "labels.parquet")
    summary: dict[str, Any] = {
        "schema_version": SUMMARY_VERSION,
        "situation": prepared.situation.name,
        "method": plan.name,
        "encoder": plan.model,
        "n_images": described["n_images"],
        "n_labelled": described["n_labelled"],
        "n_classes": described["n_classes"],
        "class_names": list(table.class_names),
        "seed": plan.settings.seed,
        "test": scores,
        "n_fitted": n_fitted,
        "trust": trust_facts(
            *(calibrations, own, None if held_out is None else checked, near_labels(job)),
            bare=None if plan.settings.verified is not None else bare,
            unlike=job.unlike,
        ),
        "audit": audited.facts,
        **_names(plan, audited.facts["alike"]),
        "strangers": facts_of(rows, threshold),
        "answer": {
            "name": kept.name,
            "title": kept.title,
            "best": choice.name,
            "why": choice.why,
            "criterion": CRITERION if choice.scores else None,
        },
        "reference": {
            each.name: {
                "title": each.title,
                "model": each.plan.model,
                "left_out": None if beside.by_held_out else choice.scores.get(each.name),
                "test": few_scores(tests[each.name][1]),
                "unlabelled": _unlabelled_score(each, scored if each is kept else None),
                "within_sets": right_within(each, _truth_of_unlabelled(each)),
                "seconds": round(each.seconds, 2),
            }
            for each in beside.contenders
        },
        **({} if promised is None else {"promise": promised}),
        **of_sets,
    }
    ask = _text_model(plan, job)
    summary |= plan.method.summarise(
        Outcome(
            task=task,
            train=table,
            test=None if prepared.test is None else prepared.test.table,
            own=own,
            ask=ask,
            guesses=job.guesses,
            feats=lambda: feats_of(kept.state.nets["main"], prepared, device, precision),
            evidence=job.evidence,
            words=plan.words,
        )
    )
    shown = gallery_of(
        [voted, *(each for each in beside.contenders if each is not kept)],
        labelling=labelling,
        rows=rows,
        summary=summary,
        own=own,
        first=first_guesses(job, None if ask is None else ask("train")),
        tested=held_out,
        checked=checked,
    )
    write_gallery(run.path, shown)
    if scores is not None and not task.n_novel and 0 < (table.counts() == 0).sum() < len(table.class_names):
        for each in (scores, summary.get("zero_shot")):
            if each is not None:
                each |= seen_unseen(each, table.counts())
    seconds["label"] = time.monotonic() - began - seconds["audit"]
    doubt = [UNKNOWN] if is_doubted(summary["trust"]) else []
    summary |= {
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "input_frac": round(trained.input_frac, 4),
        "images_per_second": round(trained.images_per_second, 1),
        "peak_memory_mb": peak_memory_mb(),
        "warnings": [*job.notices, *trained.warnings, *doubt, *_few_called_new(job, own), *_warnings(plan, summary)],
    }
    add_to_model(
        run.path / "model",
        card=model_card(summary, table.class_names, __version__),
        strangers=strangers,
        votes=votes,
        calibration=calibrations.model.to_dict(),
        is_verified=plan.settings.verified is not None,
        **({} if shift is None else {"class_shift": [round(v, 6) for v in shift.tolist()]}),
        **({} if promised is None else {"promise": by_place(promised, table.class_names)}),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished but for the report


def _save(saved: Contender, calibration: Calibration, n_fitted: int) -> backbones.Classifier | backbones.Ensemble:
    """Write the model folder, but for its card and what tells images of no class; the network in it."""
    plan, job = saved.plan, saved.job
    saved_net: Any = saved.state.nets["main"]
    net: backbones.Classifier | backbones.Ensemble = saved_net.exported()
    if isinstance(job.build, EncoderNets):
        net = job.build.deployable(net)
    save_model(
        plan.run.path / "model",
        net,
        class_names=job.prepared.train.table.class_names,
        size_px=job.prepared.size_px,
        view=job.prepared.view,
        info={
            "method": plan.name,
            "answer": saved.name,
            "n_fitted": n_fitted,
            "calibration": calibration.to_dict(),
            "labelwright": __version__,
            "fingerprint": plan.described["fingerprint"],
            **({"decoding": plan.described["decoding"]} if plan.described.get("decoding") else {}),
            **({"n_seen": len(job.task.class_names)} if job.task.n_novel else {}),
        },
    )
    return net


def _promised(
    plan: Plan,
    job: Job,
    rows: pa.Table,
    odds: torch.Tensor,
    labelled: Callable[[Calibrations], pa.Table],
    calibrations: Calibrations,
    held_out: Answers | None,
) -> tuple[pa.Table, Calibrations, dict[str, Any] | None]:
    """Labels with their decisions, the calibrations, by verified labels if there are more of them, and the promise."""
    settings, names, test = plan.settings, job.prepared.train.table.class_names, job.prepared.test
    shares = None if settings.error is None else {"error": settings.error, "confidence": settings.confidence}
    if settings.verified is not None:
        verified = read_verified(settings.verified, names)
        truth = truths(rows, verified)
        # Where annotations have a part in labels, what was verified says nothing of the model alone.
        is_one = calibrations.training is calibrations.model or job.task.n_novel > 0
        of_labels = recalibrated(calibrations.training, odds, rows, truth, names)
        calibrations = Calibrations(of_labels, of_labels if is_one else calibrations.model)
        rows, promised = promised_by(verified, rows, labelled(calibrations), truth, names, shares)
        return rows, calibrations, promised
    if shares is None:
        return decided(rows, np.zeros(len(rows), bool), None, names), calibrations, None
    found: Promise | str = f"no label was verified; labelwright verify-sample {plan.run.path} draws images to look at"
    n_wrong, is_alone = 0, job.task.candidates is None and job.task.votes is None and job.task.groups is None
    if job.unlike.share:
        found = "labelled images do not speak for those that look unlike all of them: verify some of these"
    elif held_out is not None and test is not None and is_alone and (held_out.given >= 0).any():
        known = (held_out.given >= 0).numpy()
        held = label_rows(test.table, held_out, names, calibrations.model, keep_given=False).filter(pa.array(known))
        truth = held_out.given.numpy()[known]
        n_wrong = int((held_out.predicted.numpy()[known] != truth).sum())
        found = by_held_out(rows, held, truth, names, **shares)
    block = facts(found, rows, names, basis="held-out labels", n_wrong=n_wrong, seen=None, **shares)
    block = block if isinstance(found, str) else assumes(block, None, 0)
    accepted = np.zeros(len(rows), bool) if isinstance(found, str) else found.accepted
    return decided(rows, accepted, None, names), calibrations, block


def _scored(contender: Contender) -> tuple[Answers | None, dict[str, Any] | None]:
    """What a contender says of the test images, and how right that is; None without such."""
    prepared, task, answers = contender.job.prepared, contender.job.task, contender.tested
    if prepared.test is None or answers is None:
        return None, None
    n_seen, truth, table = len(task.class_names), prepared.test.table.labels, prepared.train.table
    if task.n_novel:
        return answers, open_scores(answers, *truth_beyond(prepared.test.table, n_seen), n_seen=n_seen)
    scores = scores_of(answers, truth, table.counts())
    return answers, scores | {"confusions": confusions(answers, truth, table.class_names)}


def _truth_of_unlabelled(contender: Contender) -> torch.Tensor:
    """[N] int64 true classes of the training images that have no label, -1 = not known, or there is a label."""
    table = contender.job.prepared.train.table
    truth, _ = truth_beyond(table, len(contender.job.task.class_names))
    return torch.from_numpy(np.where(table.labels < 0, truth, -1)).long()


def _unlabelled_score(contender: Contender, answers: Answers | None) -> float | None:
    """Share of the unlabelled training images that are right; None where no truth is known of them.

    Of the classifier alone, for every contender alike: the annotations of an image itself are left out.
    """
    table, task = contender.job.prepared.train.table, contender.job.task
    n_seen, names = len(task.class_names), truth_beyond(table, len(task.class_names))[1]
    truth = _truth_of_unlabelled(contender).numpy()
    if not (truth >= 0).any():
        return None
    answers = contender.answers("train") if answers is None else answers
    if task.n_novel:
        found: float | None = open_scores(answers, truth, names, n_seen=n_seen)["all"]
        return found
    known, alone = truth >= 0, answers.predicted if answers.alone is None else answers.alone
    return float((alone.numpy()[known] == truth[known]).mean())


def _names(plan: Plan, alike: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """What looks like a mistake in the names of the classes, as the block ``names``: empty where nothing does."""
    # of training and test images alike
    odd = list(dict.fromkeys(str(each["detail"]) for each in plan.described["notices"] if each["kind"] == "odd_class"))
    unfit = [str(name) for name in Run(plan.run.path).begun.get("mismatched") or ()]
    words = list(odd)
    if unfit:
        words.append(f"no image fits the name{'' if len(unfit) == 1 else 's'} {listed(unfit, 5)}")
    words += [
        f"images do not tell {' and '.join(each['classes'])} apart: if they are one class, write one name"
        for each in (alike or ())[:3]
    ]
    return {"names": {"odd": odd, "unfit": unfit, "says": f"Names of classes: {'; '.join(words)}."}} if words else {}


def _few_called_new(job: Job, own: Answers) -> list[str]:
    """Where images of new classes seem to be called named ones: a line."""
    is_new = own.predicted[own.given < 0] >= len(job.task.class_names)
    called_new = float(is_new.double().mean()) if len(is_new) else 0.0
    if job.new_share - called_new < FEW_CALLED_NEW:
        return []
    return [
        f"{job.new_share:.0%} of the unlabelled images look unlike every labelled one, and {called_new:.0%} are called "
        f"new: images of new classes seem to be called named ones, and trust is lowered; perhaps more than "
        f"{job.task.n_novel} {'class is' if job.task.n_novel == 1 else 'classes are'} new (--novel N)"
    ]


def _warnings(plan: Plan, summary: Mapping[str, Any]) -> list[str]:
    """Where something obvious is better than the answer, by what the run knows: a line."""
    answer, beside = summary["answer"], summary["reference"]
    if summary.get("n_novel") and not any(each["n_images"] for each in summary["novel"]["clusters"]):
        return [
            "every image went to a named class and the new ones are empty: leave --novel out, or try another number"
        ]
    if better := better_answer(summary):
        return [f"{better}; --answer best keeps it"]
    if answer["criterion"] is not None or not summary["test"]:
        return []
    n, own = summary["test"]["n_scored"], summary["test"]["balanced_accuracy"]
    best = max((name for name in beside if name != "start"), key=lambda name: beside[name]["test"]["balanced_accuracy"])
    least = 2 * (own * (1 - own) / max(1, n)) ** 0.5  # two standard errors
    if beside[best]["test"]["balanced_accuracy"] <= own + least:
        return []
    how = f"--model {best}" if best == descriptor.NAME else f"--method {best}"
    return [
        f"{beside[best]['title']} is right on {beside[best]['test']['balanced_accuracy']:.1%} of the test images, as a "
        f"mean over the classes, {plan.method.title} on {own:.1%}: {how} makes it the answer"
    ]


def _text_model(plan: Plan, job: Job) -> Callable[[Images], Answers] | None:
    """What the model that reads the class names answers alone; None if there is none."""
    table, device, precision = job.prepared.train.table, plan.accelerator.device, plan.settings.precision
    if job.guesser is not None and job.guesses is not None and not job.guesser.annotator.is_chat:
        ask = job.guesser.asker(job.guesses, table.class_names)
    elif job.task.concepts is not None:
        ask = asker_of_names(job.prepared, job.build, device, precision)
    else:
        return None

    def answers(images: Images) -> Answers:
        source = job.prepared.test if images == "test" else job.prepared.train
        assert source is not None
        return ask(source)

    return functools.cache(answers)
