"""The end of `fit`: labels, scores and the model of a trained state, written into the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from labelwright import __version__
from labelwright.encoders import backbones
from labelwright.encoders.nets import EncoderNets
from labelwright.methods.method import Images, Outcome
from labelwright.metrics.scores import confusions, open_scores, scores_of, seen_unseen, truth_beyond
from labelwright.pipeline.evaluate import answers_of, asker_of_names
from labelwright.pipeline.job import Job
from labelwright.pipeline.label import label_rows
from labelwright.pipeline.novel import feats_of
from labelwright.pipeline.own_sets import own_answers, with_candidates
from labelwright.pipeline.report import report
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.saved_model import model_card, save_model
from labelwright.reporting.candidates import overruled
from labelwright.reporting.thumbnails import write_thumbnails
from labelwright.run_folder import write_parquet_atomically
from labelwright.train.environment import peak_memory_mb
from labelwright.train.loop import Trained
from labelwright.train.predict import Answers


def finish(plan: Plan, job: Job, trained: Trained, seconds: dict[str, float]) -> None:
    """Label, score and save: labels.parquet, model/, summary.json, report.html.

    Args:
      plan, job, trained: what was trained, on what, how.
      seconds: spent so far, by phase; labelling is added.
    """
    run, prepared, task, described = plan.run, job.prepared, job.task, plan.described
    device, precision = plan.accelerator.device, plan.settings.precision
    began = time.monotonic()
    table = prepared.train.table
    scores, n_seen = None, len(task.class_names)
    if prepared.test is not None:
        answers = answers_of(plan, job, trained.state, prepared.test.views(prepared.view))
        truth = prepared.test.table.labels
        if task.n_novel:
            scores = open_scores(answers, *truth_beyond(prepared.test.table, n_seen), n_seen=n_seen)
        else:
            scores = scores_of(answers, truth, table.counts())
            scores["confusions"] = confusions(answers, truth, table.class_names)
    given = torch.from_numpy(table.labels).long()
    own, of_sets = own_answers(plan, job, trained.state, given)
    rows = label_rows(table, own, table.class_names, keep_given=True)
    rows = with_candidates(rows, table, own)
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
            feats=lambda: feats_of(trained.state.nets["main"], prepared, device, precision),
            evidence=job.evidence,
            words=plan.words,
        )
    )
    clusters = (summary.get("novel") or {}).get("clusters", [])
    if (shown := overruled(rows)) and prepared.train.pixels is not None:
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
        "warnings": [*job.notices, *trained.warnings],
    }
    trained_net: Any = trained.state.nets["main"]
    net: backbones.Classifier | backbones.Ensemble = trained_net.exported()
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
            "labelwright": __version__,
            "fingerprint": described["fingerprint"],
            **({"n_seen": n_seen} if task.n_novel else {}),
        },
        card=model_card(summary, table.class_names, __version__),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished but for the report
    report(run.path)


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
