"""`evaluate`, and every score that a run writes: answers of a classifier held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from labelwright.arguments import check_arguments
from labelwright.data.checks import OnBad
from labelwright.data.columns import named_columns
from labelwright.data.prepare import Prepared, Source, beyond, listed, resolved_path
from labelwright.data.table import HOW_READ, LabelTable
from labelwright.encoders.aligned import AlignedNet
from labelwright.errors import DataError
from labelwright.metrics.classification import calibration_error
from labelwright.metrics.scores import confusions, open_scores, scores_of, truth_beyond
from labelwright.pipeline.job import Job
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.saved_model import answers_for, load_model
from labelwright.pipeline.settings import check_values, is_in_memory
from labelwright.run_folder import Run
from labelwright.train.predict import Adapt, Answers, answer
from labelwright.train.processes import accelerator_for
from labelwright.train.settings import TrainSettings
from labelwright.types import BuildNet, Recipe, State, ViewSource


@check_arguments
def evaluate(
    run: str | Path,
    data: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Score the model of a run on labelled images: accuracy, balanced accuracy, groups, calibration.

    Args:
      run: a finished run folder.
      data: images with labels of the run's classes; unlabelled rows are not scored.
      image_column, label_column: columns of a table that are called otherwise.

    Returns: see metrics.classification.score, plus ``trust_ece``, the calibration error of trust, ``confusions``,
      ``left_out``: what ``on_bad="skip"`` left out, and ``notices``: how the data were read.
    Raises: DataError if no image has a label.
    """
    check_values(image_column=image_column, label_column=label_column, device=device, precision=precision)
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    n_seen = saved.info.get("n_seen")
    known = saved.class_names if n_seen is None else None  # discovered classes: any labels will do
    table, answers, _ = answers_for(
        saved,
        data,
        on_bad=on_bad,
        device=device,
        precision=precision,
        classes=known,
        columns=named_columns(image=image_column, label=label_column),
        answered_by=Run(run).answered_by,
        first_number=Run(run).data.get("first_number") or None,  # of 0 nobody knows: the run may have had names
    )
    if not (table.labels >= 0).any():
        raise DataError(
            f"no image of {resolved_path(data)} has a label",
            problems=[problem for problem in table.problems if problem.kind in HOW_READ],
            fix="sort them into a folder per class, or give a table with a column of labels (--label-column)",
        )
    about = {"left_out": listed(table.quarantined), "notices": [*table.how_read, *_learned_from(Run(run), data, table)]}
    if n_seen is not None:
        truth, names = truth_beyond(beyond(table, saved.class_names[:n_seen]), n_seen)
        return {**open_scores(answers, truth, names, n_seen=n_seen), **about}
    counts = torch.tensor(Run(run).read("data.json")["train_counts"]).numpy()
    scores = scores_of(answers, table.labels, counts)
    pairs = confusions(answers, table.labels, saved.class_names)
    scored = torch.from_numpy(np.flatnonzero(table.labels >= 0))
    right = answers.predicted[scored] == torch.from_numpy(table.labels).long()[scored]
    off = calibration_error(saved.calibration.chance(answers.odds[scored]), right)
    return {**scores, "trust_ece": off, "confusions": pairs, **about}


def _learned_from(run: Run, data: Any, table: LabelTable) -> list[str]:
    """That labelled images are those of the run itself, by the same path and ids."""
    if run.labels is None or is_in_memory(data) or str(resolved_path(data)) != str(run.config.get("data")):
        return []
    given = run.labels.filter(pc.equal(run.labels["source"], "given"))["id"]
    known = np.asarray(pc.is_in(table.ids.cast(pa.string()), value_set=given.cast(pa.string())))
    n, n_scored = int((known & (table.labels >= 0)).sum()), int((table.labels >= 0).sum())
    return [f"the run learned from {n:,} of these {n_scored:,} labels: the scores are too good"] if n else []


def answers_of(
    plan: Plan,
    recipe: Recipe,
    cfg: TrainSettings,
    state: State,
    views: ViewSource,
    *,
    given: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    adapt: Adapt | None = None,
) -> Answers:
    """What a state of a recipe says of rows of the views (None: all), in evaluation mode; see predict.answer."""
    training = {name: net.training for name, net in state.nets.items()}
    for net in state.nets.values():
        net.eval()
    answers = answer(
        lambda x: recipe.predict(cfg, state, x).probs,
        views,
        torch.arange(views.n_rows) if rows is None else rows,
        device=plan.accelerator.device,
        precision=plan.settings.precision,
        given=given,
        adapt=adapt,
    )
    for name, net in state.nets.items():
        net.train(training[name])
    return answers


def evaluator(plan: Plan, job: Job) -> Callable[[State], Mapping[str, Any]] | None:
    """What the loop calls to score a state on the test images, for the curves; None where there is nothing to score."""
    prepared = job.prepared
    if job.task.n_novel:
        return _open_evaluator(plan, job)
    if prepared.test is None:
        return None
    views, truth = prepared.test.views(prepared.view), prepared.test.table.labels
    counts, recipe = prepared.train.table.counts(), plan.method.recipe

    def evaluate_state(state: State) -> Mapping[str, Any]:
        scores = scores_of(answers_of(plan, recipe, job.cfg, state, views), truth, counts)
        return {key: scores[key] for key in ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece")}

    return evaluate_state


PACE_KEYS = ("seen", "novel", "all", "confidence_seen", "confidence_novel")
PACE_ROWS = 5_000  # training images whose pace is followed


def _open_evaluator(plan: Plan, job: Job) -> Callable[[State], Mapping[str, Any]] | None:
    """The pace of seen and novel classes: on test images; ``pool_...`` on unlabelled ones whose truth is known."""
    prepared, n_seen = job.prepared, len(job.task.class_names)
    looked_at: dict[str, tuple[ViewSource, torch.Tensor, NDArray[np.int64], tuple[str, ...]]] = {}
    if prepared.test is not None:
        truth, names = truth_beyond(prepared.test.table, n_seen)
        looked_at[""] = (prepared.test.views(prepared.view), torch.from_numpy(np.flatnonzero(truth >= 0)), truth, names)
    table = prepared.train.table
    truth, names = truth_beyond(table, n_seen)
    hidden = np.flatnonzero((table.labels < 0) & (truth >= 0))
    if len(hidden):
        some = hidden[np.linspace(0, len(hidden) - 1, min(len(hidden), PACE_ROWS)).round().astype(np.int64)]
        looked_at["pool_"] = (prepared.train.views(prepared.view), torch.from_numpy(some), truth, names)
    if not looked_at:
        return None

    def evaluate_state(state: State) -> Mapping[str, Any]:
        facts: dict[str, Any] = {}
        for prefix, (views, rows, known, class_names) in looked_at.items():
            answers = answers_of(plan, plan.method.recipe, job.cfg, state, views, rows=rows)
            scores = open_scores(answers, known[rows.numpy()], class_names, n_seen=n_seen)
            facts |= {f"{prefix}{key}": scores[key] for key in PACE_KEYS}
            if not prefix:
                facts |= {key: scores[key] for key in ("accuracy", "balanced_accuracy", "ece")}
        return facts

    return evaluate_state


def asker_of_names(
    prepared: Prepared, build: BuildNet, device: torch.device, precision: str
) -> Callable[[Source], Answers]:
    """What the class names alone answer on any images, in the views of a run."""
    net = AlignedNet(build.towers()).to(device).eval()

    def probs(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = net(x)
        return logits.float().softmax(1)

    def ask(source: Source) -> Answers:
        views = source.views(prepared.view)
        return answer(probs, views, torch.arange(views.n_rows), device=device, precision=precision)

    return ask
