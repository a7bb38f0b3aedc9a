"""The end of `fit`: labels, scores and the model of a trained state, written into the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelwright import __version__
from labelwright.annotators.annotator import Guesses, truth_of
from labelwright.annotators.candidate_rules import describe_candidates
from labelwright.annotators.training_candidates import summary_of
from labelwright.data.prepare import Prepared
from labelwright.data.table import LabelTable
from labelwright.encoders import backbones
from labelwright.encoders.nets import EncoderNets
from labelwright.pipeline.evaluate import (
    answers_of,
    asker_of_names,
    confusions,
    open_scores,
    scores_of,
    seen_unseen,
    truth_beyond,
    zero_shot_scores,
)
from labelwright.pipeline.job import Job
from labelwright.pipeline.label import label_rows
from labelwright.pipeline.novel import about_clusters, feats_of
from labelwright.pipeline.report import report
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.saved_model import model_card, save_model
from labelwright.reporting.thumbnails import write_thumbnails
from labelwright.run_folder import write_parquet_atomically
from labelwright.train.environment import peak_memory_mb
from labelwright.train.loop import Trained
from labelwright.train.predict import Answers
from labelwright.types import Candidates, Task


def finish(plan: Plan, job: Job, trained: Trained, seconds: dict[str, float]) -> None:
    """Label, score and save: labels.parquet, model/, summary.json, report.html.

    Args:
      plan, job, trained: what was trained, on what, how.
      seconds: spent so far, by phase; labelling is added.
    """
    run, prepared, chosen, cfg, task, build = plan.run, job.prepared, plan.method, job.cfg, job.task, job.build
    device, precision, described = plan.accelerator.device, plan.settings.precision, plan.described
    guesser, guesses = job.guesser, job.guesses
    began = time.monotonic()
    table = prepared.train.table
    scores, n_seen = None, len(task.class_names)
    if prepared.test is not None:
        views = prepared.test.views(prepared.view)
        answers = answers_of(chosen.recipe, cfg, trained.state, views, device, precision)
        truth = prepared.test.table.labels
        if task.n_novel:
            scores = open_scores(answers, *truth_beyond(prepared.test.table, n_seen), n_seen=n_seen)
        else:
            scores = scores_of(answers, truth, table.counts())
            scores["confusions"] = confusions(answers, truth, table.class_names)
    given = torch.from_numpy(table.labels).long()
    views = prepared.train.views(prepared.view)
    own = answers_of(chosen.recipe, cfg, trained.state, views, device, precision, given)
    write_parquet_atomically(label_rows(table, own, table.class_names, keep_given=True), run.path / "labels.parquet")
    summary: dict[str, Any] = {
        "situation": prepared.situation.name,
        "method": plan.name,
        "encoder": plan.model,
        "n_images": described["n_images"],
        "n_labelled": described["n_labelled"],
        "n_classes": described["n_classes"],
        "seed": plan.settings.seed,
        "test": scores,
    }
    if chosen.needs == "candidates":
        summary |= _about_candidates(table, guesses)
    if chosen.needs == "open_world":
        feats = feats_of(trained.state.nets["main"], prepared, device, precision)
        summary |= _about_novel(prepared, own, task, job.evidence, feats, plan.words)
        if prepared.train.pixels is not None:
            central = [row for cluster in summary["novel"]["clusters"] for row in cluster["central_rows"]]
            write_thumbnails(run.path, table, central)
    ask = None
    if guesser is not None and guesses is not None and not guesser.annotator.is_chat:
        ask = guesser.asker(guesses, table.class_names)
    elif task.concepts is not None and chosen.needs != "open_world":
        ask = asker_of_names(prepared, build, device, precision)
    if ask is not None or chosen.needs == "candidates":
        summary |= zero_shot_scores(prepared, ask, own)
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
        "warnings": list(trained.warnings),
    }
    trained_net: Any = trained.state.nets["main"]
    net: backbones.Classifier | backbones.Ensemble = trained_net.exported(**_export_options(cfg))
    if isinstance(build, EncoderNets):
        net = build.deployable(net)
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
    run.close()
    report(run.path)


def _about_novel(
    prepared: Prepared,
    own: Answers,
    task: Task,
    evidence: Mapping[str, Any] | None,
    feats: torch.Tensor,
    words: Mapping[str, torch.Tensor] | None,
) -> dict[str, Any]:
    """Discovered classes, how their number came about, and the scores of unlabelled images whose truth is known."""
    table, n_seen = prepared.train.table, len(task.class_names)
    clusters = about_clusters(table, own, feats, n_seen=n_seen, words=words)
    found: dict[str, Any] = {
        "n_seen": n_seen,
        "n_novel": task.n_novel,
        "novel": {"evidence": evidence, "clusters": clusters},
        "pseudolabels": None,
    }
    truth, names = truth_beyond(table, n_seen)
    truth = np.where(table.labels < 0, truth, -1)
    if (truth >= 0).any():
        found["pseudolabels"] = open_scores(own, truth, names, n_seen=n_seen)
    return found


def _about_candidates(table: LabelTable, guesses: Guesses | None) -> dict[str, Any]:
    """What the training images may be, and who said so; against their labels or truth, which nobody learned from."""
    assert table.candidates is not None
    told = describe_candidates(table.candidates, n_classes=len(table.class_names), truth=truth_of(table))
    about = {"candidates": told, "annotator": None if guesses is None else summary_of(guesses)}
    hidden = None if table.truth is None else np.where(table.labels < 0, table.truth, -1)
    return about | {"guesses": guess_counts(table.candidates, n_classes=len(table.class_names), truth=hidden)}


def guess_counts(
    candidates: Candidates, *, n_classes: int, truth: NDArray[np.integer[Any]] | None = None
) -> dict[str, Any]:
    """Class by class, how often candidate sets hold it and how often it is their first guess: JSON-ready.

    The first guess is the heaviest candidate; k that tie count 1/k each, so that no class gains by being listed first.

    Args:
      candidates: sets of N rows.
      n_classes: C.
      truth: [N] class indices, -1 = unknown, C and above = no class of the list; None = no truth. For scoring only.

    Returns: named [C] (sets that hold the class with a weight above 0), first [C], is_ranked (some set has a candidate
      that weighs less than another), sizes (sets with 0, 1, 2, ... candidates); with a truth also n_scored, accuracy of
      the first guess and per_class, its recall (None: no images).

    Example: the second image has two candidates that tie.
      >>> sets = Candidates(torch.tensor([0, 2, 4]), torch.tensor([0, 1, 1, 2]), torch.tensor([0.9, 0.1, 0.5, 0.5]))
      >>> told = guess_counts(sets, n_classes=3, truth=np.array([0, 2]))
      >>> told["named"], told["first"], told["sizes"], told["accuracy"], told["per_class"]
      ([1, 2, 1], [1.0, 0.5, 0.5], [0, 0, 2], 0.75, [1.0, None, 0.5])
    """
    n_rows = len(candidates)
    weights = torch.ones(len(candidates.classes)) if candidates.weights is None else candidates.weights.float()
    rows = torch.repeat_interleave(torch.arange(n_rows), candidates.offsets.diff())
    counted = weights > 0
    rows, weights, classes = rows[counted], weights[counted], candidates.classes.long()[counted]
    is_first = weights == torch.zeros(n_rows).scatter_reduce_(0, rows, weights, "amax")[rows]
    n_tied = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, rows, is_first.double())
    share = is_first / n_tied[rows]
    told: dict[str, Any] = {
        "named": torch.bincount(classes, minlength=n_classes).tolist(),
        "first": [round(n, 4) for n in torch.bincount(classes, share, minlength=n_classes).tolist()],
        "is_ranked": not bool(is_first.all()),
        "sizes": torch.bincount(torch.bincount(rows, minlength=n_rows)).tolist(),
    }
    known = None if truth is None else torch.from_numpy(np.asarray(truth, dtype=np.int64))
    if known is None or not (known >= 0).any():
        return told
    right = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, rows, share * (classes == known[rows]))
    listed = (known >= 0) & (known < n_classes)
    of_class = torch.bincount(known[listed], minlength=n_classes)
    found = torch.bincount(known[listed], right[listed], minlength=n_classes)
    per_class = [round(r / n, 4) if n else None for r, n in zip(found.tolist(), of_class.tolist(), strict=True)]
    scored = {"n_scored": int(listed.sum()), "per_class": per_class}
    return told | scored | {"accuracy": round(float(right[listed].mean()), 4) if listed.any() else None}


def _export_options(cfg: Any) -> dict[str, bool]:
    """What the recipe's own prediction leaves out, the saved model leaves out too."""
    return {"use_visual": False} if getattr(cfg, "predict_with", "main") == "base" else {}
