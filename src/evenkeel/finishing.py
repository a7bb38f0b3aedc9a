"""The end of `fit`: labels, scores and the model of a trained state, written into the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from evenkeel import __version__, results
from evenkeel.annotators import Guesses, truth_of
from evenkeel.data.table import LabelTable
from evenkeel.encoders import backbones
from evenkeel.encoding import EncoderNets
from evenkeel.guessing import Guesser, summary_of
from evenkeel.labels.annotate import describe_candidates
from evenkeel.methods.registry import Method
from evenkeel.model import save_model
from evenkeel.prepare import Prepared
from evenkeel.reporting.render import render
from evenkeel.train.loop import Trained
from evenkeel.train.track import RunFolder
from evenkeel.types import BuildNet, Task


def finish(
    run: RunFolder,
    prepared: Prepared,
    chosen: Method,
    cfg: Any,
    trained: Trained,
    config: Mapping[str, Any],
    described: Mapping[str, Any],
    device: torch.device,
    precision: str,
    seconds: dict[str, float],
    task: Task,
    build: BuildNet,
    *,
    guesser: Guesser | None = None,
    guesses: Guesses | None = None,
) -> None:
    """Label, score and save: labels.parquet, model/, summary.json, report.html.

    Args:
      run: the run folder.
      prepared, chosen, cfg, trained: what was trained, on what, how.
      config, described: what config.yaml and data.json hold.
      device, precision: where and how to compute.
      seconds: spent so far, by phase; labelling is added.
      task, build: as training had them.
      guesser, guesses: who guessed the candidates of the training images before training, and what; None if nobody did.
    """
    began = time.monotonic()
    table = prepared.train.table
    scores = None
    if prepared.test is not None:
        views = prepared.test.views(prepared.view)
        answers = results.answers_of(chosen.recipe, cfg, trained.state, views, device, precision)
        truth = prepared.test.table.labels
        scores = results.scores_of(answers, truth, table.counts())
        scores["confusions"] = results.confusions(answers, truth, table.class_names)
    given = torch.from_numpy(table.labels).long()
    views = prepared.train.views(prepared.view)
    own = results.answers_of(chosen.recipe, cfg, trained.state, views, device, precision, given)
    results.write_parquet_atomically(
        results.label_rows(table, own, table.class_names, keep_given=True), run.path / "labels.parquet"
    )
    summary: dict[str, Any] = {
        "situation": prepared.situation.name,
        "method": config["method"],
        "encoder": config["model"],
        "n_images": described["n_images"],
        "n_labelled": described["n_labelled"],
        "n_classes": described["n_classes"],
        "seed": config["seed"],
        "test": scores,
    }
    if chosen.needs == "candidates":
        summary |= _about_candidates(table, guesses)
    ask = None
    if guesser is not None and guesses is not None and not guesser.annotator.is_chat:
        ask = guesser.asker(guesses, table.class_names)
    elif task.concepts is not None:
        ask = results.asker_of_names(prepared, build, device, precision)
    if ask is not None or chosen.needs == "candidates":
        summary |= results.zero_shot_scores(prepared, ask, own)
    if scores is not None and 0 < (table.counts() == 0).sum() < len(table.class_names):
        for each in (scores, summary.get("zero_shot")):
            if each is not None:
                each |= results.seen_unseen(each, table.counts())
    seconds["label"] = time.monotonic() - began
    summary |= {
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "input_frac": round(trained.input_frac, 4),
        "images_per_second": round(trained.images_per_second, 1),
        "peak_memory_mb": results.peak_memory_mb(),
        "warnings": list(trained.warnings),
    }
    trained_net: Any = trained.state.nets["main"]
    net: backbones.Classifier = trained_net.exported(**_export_options(cfg))
    if isinstance(build, EncoderNets):
        net = build.deployable(net)
    save_model(
        run.path / "model",
        net,
        class_names=table.class_names,
        size_px=prepared.size_px,
        view=prepared.view,
        info={"method": config["method"], "evenkeel": __version__, "fingerprint": described["fingerprint"]},
        card=results.model_card(summary, table.class_names, __version__),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished but for the report
    run.close()
    render(run.path)


def _about_candidates(table: LabelTable, guesses: Guesses | None) -> dict[str, Any]:
    """What the training images may be, and who said so; against their labels or truth, which nobody learned from."""
    assert table.candidates is not None
    told = describe_candidates(table.candidates, n_classes=len(table.class_names), truth=truth_of(table))
    return {"candidates": told, "annotator": None if guesses is None else summary_of(guesses)}


def _export_options(cfg: Any) -> dict[str, bool]:
    """What the recipe's own prediction leaves out, the saved model leaves out too."""
    return {"use_visual": False} if getattr(cfg, "predict_with", "main") == "base" else {}
