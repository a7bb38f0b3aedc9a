"""The end of `fit`: labels, scores and the model of a trained state, written into the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from labelwright import __version__
from labelwright.data.prepare import Source
from labelwright.encoders import backbones
from labelwright.encoders.nets import EncoderNets
from labelwright.methods.method import Images, Outcome
from labelwright.metrics.choice import CRITERION, Choice
from labelwright.metrics.classification import calibration_error
from labelwright.metrics.scores import confusions, open_scores, scores_of, seen_unseen, truth_beyond
from labelwright.pipeline.evaluate import answers_of, asker_of_names
from labelwright.pipeline.job import Job
from labelwright.pipeline.label import label_rows
from labelwright.pipeline.novel import feats_of
from labelwright.pipeline.own_sets import own_answers, with_candidates
from labelwright.pipeline.references import Contender
from labelwright.pipeline.report import report
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.saved_model import model_card, save_model
from labelwright.reporting.candidates import overruled
from labelwright.reporting.thumbnails import write_thumbnails
from labelwright.run_folder import write_parquet_atomically
from labelwright.train.environment import peak_memory_mb
from labelwright.train.loop import Trained
from labelwright.train.predict import Answers
from labelwright.trust.calibration import (
    Calibration,
    expected_accuracy,
    from_left_out,
    from_text_model,
    slope_to_mean,
)


@dataclass(frozen=True)
class Answer:
    """What a run answers with.

    Attributes:
      kept: the classifier that labels and scores are of.
      choice: why.
      contenders: all that it was held against, itself among them.
      rows: [n] rows of the training table whose labels were left out.
      saved: the classifier for the model folder: the kept one, or the same fitted on more images.
    """

    kept: Contender
    choice: Choice
    contenders: tuple[Contender, ...]
    rows: torch.Tensor
    saved: Contender


def finish(plan: Plan, job: Job, trained: Trained, answer: Answer, seconds: dict[str, float]) -> None:
    """Choose, label, score and save: labels.parquet, model/, summary.json, report.html.

    Args:
      plan, job, trained: what was trained, on what, how.
      answer: what was chosen to answer with.
      seconds: spent so far, by phase; labelling is added.
    """
    run, prepared, task, described = plan.run, job.prepared, job.task, plan.described
    device, precision = plan.accelerator.device, plan.settings.precision
    began = time.monotonic()
    table = prepared.train.table
    n_seen = len(task.class_names)
    kept, choice = answer.kept, answer.choice
    tests = {each.name: _scored(plan, job, each) for each in answer.contenders}
    scores = tests[kept.name][1]
    given = torch.from_numpy(table.labels).long()
    own, of_sets = own_answers(plan, job, kept, given)
    calibration = _calibration(plan, job, answer, own)
    rows = label_rows(table, own, table.class_names, calibration, keep_given=True)
    rows = with_candidates(rows, table, own)
    shown = overruled(rows)  # by place in the training table; held-out images have labels, which nothing overrules
    held_out = tests[kept.name][0]
    if prepared.test is not None and held_out is not None and prepared.test_is != "given":
        assert plan.prepared.test is not None
        more = label_rows(prepared.test.table, held_out, table.class_names, calibration, keep_given=True)
        order = torch.cat([plan.prepared.train.rows, plan.prepared.test.rows]).argsort()
        rows = pa.concat_tables([rows, more], promote_options="default").take(pa.array(order.numpy()))
    write_parquet_atomically(rows, run.path / "labels.parquet")
    summary: dict[str, Any] = {
        "situation": prepared.situation.name,
        "method": plan.name,
        "encoder": plan.model,
        "n_images": described["n_images"],
        "n_labelled": described["n_labelled"],
        "n_classes": described["n_classes"],
        "seed": plan.settings.seed,
        "test": scores,
        "n_fitted": len(table) + (0 if answer.saved is kept or prepared.test is None else len(prepared.test.table)),
        "trust": _trust(calibration, own, held_out, prepared.test),
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
                "left_out": choice.scores.get(each.name),
                "test": _few_scores(tests[each.name][1]),
                "unlabelled": _unlabelled_score(plan, job, each, own if each is kept else None),
                "seconds": round(each.seconds, 2),
            }
            for each in answer.contenders
        },
        **of_sets,
    }
    summary |= plan.method.summarise(
        Outcome(
            task=task,
            train=table,
            test=None if prepared.test is None else prepared.test.table,
            own=own,
            ask=_text_model(plan, job),
            guesses=job.guesses,
            feats=lambda: feats_of(kept.state.nets["main"], prepared, device, precision),
            evidence=job.evidence,
            words=plan.words,
        )
    )
    clusters = (summary.get("novel") or {}).get("clusters", [])
    if shown and prepared.train.pixels is not None:
        write_thumbnails(run.path, table, shown)
    if clusters and prepared.train.pixels is not None:
        write_thumbnails(run.path, table, [row for cluster in clusters for row in cluster["central_rows"]])
    if scores is not None and not task.n_novel and 0 < (table.counts() == 0).sum() < len(table.class_names):
        for each in (scores, summary.get("zero_shot")):
            if each is not None:
                each |= seen_unseen(each, table.counts())
    seconds["label"] = time.monotonic() - began
    summary |= {
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "input_frac": round(trained.input_frac, 4),
        "images_per_second": round(trained.images_per_second, 1),
        "peak_memory_mb": peak_memory_mb(),
        "warnings": [*job.notices, *trained.warnings, *_warnings(plan, summary)],
    }
    saved_net: Any = answer.saved.state.nets["main"]
    net: backbones.Classifier | backbones.Ensemble = saved_net.exported()
    if isinstance(job.build, EncoderNets):
        net = job.build.deployable(net)
    save_model(
        run.path / "model",
        net,
        class_names=table.class_names,
        size_px=prepared.size_px,
        view=prepared.view,
        info={
            "method": plan.name,
            "answer": kept.name,
            "n_fitted": summary["n_fitted"],
            "calibration": calibration.to_dict(),
            "labelwright": __version__,
            "fingerprint": described["fingerprint"],
            **({"decoding": described["decoding"]} if described.get("decoding") else {}),
            **({"n_seen": n_seen} if task.n_novel else {}),
        },
        card=model_card(summary, table.class_names, __version__),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished but for the report
    report(run.path)


def _calibration(plan: Plan, job: Job, answer: Answer, own: Answers) -> Calibration:
    """What turns the answer's probabilities into chances: left-out labels, else the text model's own confidence."""
    contenders = {each.name: each for each in answer.contenders}

    def sure(contender: Contender) -> torch.Tensor:
        views = job.prepared.train.views(job.prepared.view)
        return answers_of(plan, contender.recipe, contender.cfg, contender.state, views).probability

    kept, n_classes = answer.kept, job.task.n_classes
    if kept.left_out is not None:
        asked = kept.left_out.predicted >= 0
        truth = job.task.labels.cpu()[answer.rows[asked]]
        right = kept.left_out.predicted[asked] == truth
        # What was left out was left out of the start: log-odds of the trained classifier are brought to its spread.
        is_trained = kept.cfg.takes_steps and kept.name != "start" and "start" in contenders
        mean = float(sure(contenders["start"]).mean()) if is_trained else 1.0
        like = slope_to_mean(own.probability, mean, n_classes=n_classes)
        return from_left_out(kept.left_out.probability[asked], right, n_classes=n_classes, like=like)
    if "zero_shot" in contenders:  # a start without labels is what texts say, repaired ones in place of the names
        before = contenders.get("start", contenders["zero_shot"])
        return from_text_model(own.probability, float(sure(before).mean()), n_classes=n_classes)
    return Calibration(n_classes=n_classes)


def _trust(calibration: Calibration, own: Answers, tested: Answers | None, test: Source | None) -> dict[str, Any]:
    """What `trust` rests on, how many labels it says are right, and how far that was off on test images."""
    found: dict[str, Any] = calibration.to_dict()
    open_rows = own.given < 0
    if open_rows.any():
        mean, low, high = expected_accuracy(calibration(own.probability[open_rows]), calibration)
        found |= {"estimated": round(mean, 4), "interval": [round(low, 4), round(high, 4)]}
    if tested is not None and test is not None and tested.given.max() >= 0:
        known = tested.given >= 0
        right = tested.predicted[known] == tested.given[known]
        found["ece"] = calibration_error(calibration(tested.probability[known]), right)
    return found


FEW_SCORES = ("accuracy", "balanced_accuracy", "seen", "novel", "ece")  # of a contender


def _scored(plan: Plan, job: Job, contender: Contender) -> tuple[Answers | None, dict[str, Any] | None]:
    """What a contender says of the test images, and how right that is; None without such."""
    prepared, task = job.prepared, job.task
    if prepared.test is None:
        return None, None
    views, given = prepared.test.views(prepared.view), torch.from_numpy(prepared.test.table.labels).long()
    given = torch.where(given < task.n_classes, given, -1)  # in an open world there may be others
    answers = answers_of(plan, contender.recipe, contender.cfg, contender.state, views, given=given)
    n_seen, truth, table = len(task.class_names), prepared.test.table.labels, prepared.train.table
    if task.n_novel:
        return answers, open_scores(answers, *truth_beyond(prepared.test.table, n_seen), n_seen=n_seen)
    scores = scores_of(answers, truth, table.counts())
    return answers, scores | {"confusions": confusions(answers, truth, table.class_names)}


def _few_scores(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if scores is None else {key: scores[key] for key in FEW_SCORES if scores.get(key) is not None}


def _unlabelled_score(plan: Plan, job: Job, contender: Contender, answers: Answers | None) -> float | None:
    """Share of the unlabelled training images that are right; None where no truth is known of them.

    Of the classifier alone, for every contender alike: what was said of an image itself is left out.
    """
    table, n_seen = job.prepared.train.table, len(job.task.class_names)
    truth, names = truth_beyond(table, n_seen)
    truth = np.where(table.labels < 0, truth, -1)
    if not (truth >= 0).any():
        return None
    if answers is None:
        views = job.prepared.train.views(job.prepared.view)
        answers = answers_of(plan, contender.recipe, contender.cfg, contender.state, views)
    if job.task.n_novel:
        found: float | None = open_scores(answers, truth, names, n_seen=n_seen)["all"]
        return found
    known, alone = truth >= 0, answers.predicted if answers.alone is None else answers.alone
    return float((alone.numpy()[known] == truth[known]).mean())


def _warnings(plan: Plan, summary: Mapping[str, Any]) -> list[str]:
    """Where something obvious is better than the answer, by what the run knows: a line."""
    answer, beside = summary["answer"], summary["reference"]
    if answer["best"] != answer["name"]:
        return [f"{answer['why']}; --answer best keeps it"]
    if answer["criterion"] is not None or not summary["test"]:
        return []
    n, own = summary["test"]["n_scored"], summary["test"]["balanced_accuracy"]
    best = max((name for name in beside if name != "start"), key=lambda name: beside[name]["test"]["balanced_accuracy"])
    least = 2 * (own * (1 - own) / max(1, n)) ** 0.5  # two standard errors
    if beside[best]["test"]["balanced_accuracy"] <= own + least:
        return []
    return [
        f"{beside[best]['title']} is right on {beside[best]['test']['balanced_accuracy']:.1%} of the test images, as a "
        f"mean over the classes, {plan.method.title} on {own:.1%}: --method {best} makes it the answer"
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

    return answers
