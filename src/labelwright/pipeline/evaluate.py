"""`evaluate`, and every score that a run writes: answers of a classifier held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelwright.data.checks import OnBad
from labelwright.data.prepare import (
    Prepared,
    Source,
    beyond,
    listed,
    resolved_path,
)
from labelwright.data.table import LabelTable
from labelwright.encoders.aligned import AlignedNet
from labelwright.errors import DataError
from labelwright.metrics.classification import imbalance, score, top_confusions
from labelwright.metrics.open_world import cluster_match, seen_novel_all
from labelwright.pipeline.job import Job
from labelwright.pipeline.resolve import Plan
from labelwright.pipeline.saved_model import answers_for, load_model
from labelwright.run_folder import Run
from labelwright.train.predict import Answers, answer
from labelwright.train.processes import accelerator_for
from labelwright.types import BuildNet, Recipe, State, ViewSource


def evaluate(
    run: str | Path, data: Any, *, on_bad: OnBad = "stop", device: str = "auto", precision: str = "auto"
) -> dict[str, Any]:
    """Score the model of a run on labelled images: accuracy, balanced accuracy, groups, calibration.

    Args:
      run: a finished run folder.
      data: images with labels of the run's classes; unlabelled rows are not scored.

    Returns: see metrics.classification.score, plus ``confusions``, and ``left_out``: what ``on_bad="skip"`` left out.

    Raises: DataError if no image has a label.
    """
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    n_seen = saved.info.get("n_seen")
    known = saved.class_names if n_seen is None else None  # discovered classes: any labels will do
    table, answers = answers_for(saved, data, on_bad=on_bad, device=device, precision=precision, classes=known)
    if not (table.labels >= 0).any():
        raise DataError(f"no image of {resolved_path(data)} has a label", fix="evaluate needs labelled images")
    if n_seen is not None:
        truth, names = truth_beyond(beyond(table, saved.class_names[:n_seen]), n_seen)
        return {**open_scores(answers, truth, names, n_seen=n_seen), "left_out": listed(table.quarantined)}
    counts = torch.tensor(Run(run).read_json("data.json")["train_counts"]).numpy()
    scores = scores_of(answers, table.labels, counts)
    pairs = confusions(answers, table.labels, saved.class_names)
    return {**scores, "confusions": pairs, "left_out": listed(table.quarantined)}


def answers_of(
    recipe: Recipe,
    cfg: Any,
    state: State,
    views: ViewSource,
    device: torch.device,
    precision: str,
    given: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
) -> Answers:
    """What a recipe's state says of rows of the views (None: all), in evaluation mode; see predict.answer."""
    training = {name: net.training for name, net in state.nets.items()}
    for net in state.nets.values():
        net.eval()
    answers = answer(
        lambda x: recipe.predict(cfg, state, x).probs,
        views,
        torch.arange(views.n_rows) if rows is None else rows,
        device=device,
        precision=precision,
        given=given,
    )
    for name, net in state.nets.items():
        net.train(training[name])
    return answers


def evaluator(plan: Plan, job: Job) -> Callable[[State], Mapping[str, Any]] | None:
    """What the loop calls to score a state on the test images, for the curves; None without test images."""
    recipe, cfg, prepared, n_novel = plan.method.recipe, job.cfg, job.prepared, job.task.n_novel
    device, precision = plan.accelerator.device, plan.settings.precision
    n_seen = len(prepared.train.table.class_names) - n_novel
    if n_novel or prepared.test is None:
        return _open_evaluator(recipe, cfg, prepared, device, precision, n_seen=n_seen) if n_novel else None
    views, truth = prepared.test.views(prepared.view), prepared.test.table.labels
    counts = prepared.train.table.counts()

    def evaluate_state(state: State) -> Mapping[str, Any]:
        scores = scores_of(answers_of(recipe, cfg, state, views, device, precision), truth, counts)
        return {key: scores[key] for key in ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece")}

    return evaluate_state


PACE_KEYS = ("seen", "novel", "all", "confidence_seen", "confidence_novel")


PACE_ROWS = 5_000  # training images whose pace is followed


def _open_evaluator(
    recipe: Recipe, cfg: Any, prepared: Prepared, device: torch.device, precision: str, *, n_seen: int
) -> Callable[[State], Mapping[str, Any]] | None:
    """The pace of seen and novel classes: on test images; ``pool_...`` on unlabelled ones whose truth is known."""
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
        told: dict[str, Any] = {}
        for prefix, (views, rows, known, class_names) in looked_at.items():
            answers = answers_of(recipe, cfg, state, views, device, precision, rows=rows)
            scores = open_scores(answers, known[rows.numpy()], class_names, n_seen=n_seen)
            told |= {f"{prefix}{key}": scores[key] for key in PACE_KEYS}
            if not prefix:
                told |= {key: scores[key] for key in ("accuracy", "balanced_accuracy", "ece")}
        return told

    return evaluate_state


def scores_of(answers: Answers, truth: NDArray[np.int32], train_counts: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of answers against the truth: JSON-ready, see metrics.classification.score."""
    return score(
        answers.predicted,
        answers.probability,
        torch.from_numpy(truth.astype(np.int64)),
        n_classes=len(train_counts),
        train_counts=torch.from_numpy(train_counts),
    )


def asker_of_names(
    prepared: Prepared, build: BuildNet, device: torch.device, precision: str
) -> Callable[[Source], Answers]:
    """What the class names alone answer on any images, in the views of a run.

    Args:
      prepared: says how images are seen.
      build: gives the towers.
      device, precision: where and how to compute.
    """
    net = AlignedNet(build.towers()).to(device).eval()

    def probs(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = net(x)
        return logits.float().softmax(1)

    def ask(source: Source) -> Answers:
        views = source.views(prepared.view)
        return answer(probs, views, torch.arange(views.n_rows), device=device, precision=precision)

    return ask


def zero_shot_scores(prepared: Prepared, ask: Callable[[Source], Answers] | None, own: Answers) -> dict[str, Any]:
    """What the model that reads the class names scores alone, and the pseudolabels before and after: for summary.json.

    Args:
      prepared: training images, perhaps test images; a truth of unlabelled training images is used here and only here.
      ask: what that model answers; None if there is none.
      own: answers of the trained classifier on the training images.

    Returns: ``zero_shot`` (as ``test``, None without test images or ``ask``) and ``pseudolabels``: ratio, Gini and
      counts of the unlabelled images, and where their truth is known accuracy and per_class, after and, with ``ask``,
      before (``zero_shot``).
    """
    table = prepared.train.table
    scores = None
    if prepared.test is not None and ask is not None:
        scores = scores_of(ask(prepared.test), prepared.test.table.labels, table.counts())
    found: dict[str, Any] = {"zero_shot": scores, "pseudolabels": None}
    hidden = torch.from_numpy(table.labels < 0)
    if hidden.any():
        before = {} if ask is None else {"zero_shot": _pseudolabels(ask(prepared.train), table, hidden)}
        found["pseudolabels"] = _pseudolabels(own, table, hidden) | before
    return found


def _pseudolabels(answers: Answers, table: LabelTable, hidden: torch.Tensor) -> dict[str, Any]:
    """How the answers on unlabelled images are spread, and how right they are where a truth was given for scoring."""
    n_classes = len(table.class_names)
    predicted = answers.predicted[hidden]
    counts = torch.bincount(predicted, minlength=n_classes)
    uneven = imbalance(counts)
    found: dict[str, Any] = {"imbalance_ratio": uneven["ratio"], "gini": uneven["gini"], "counts": counts.tolist()}
    if table.truth is not None:
        truth = torch.from_numpy(table.truth.astype(np.int64))[hidden]
        is_known = (truth >= 0) & (truth < n_classes)
        if is_known.any():
            scored = score(
                predicted[is_known], answers.probability[hidden][is_known], truth[is_known], n_classes=n_classes
            )
            found |= {"accuracy": scored["accuracy"], "per_class": scored["per_class"]}
    return found


def seen_unseen(scores: Mapping[str, Any], train_counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Mean recall over classes with labels (seen), without (unseen), and their harmonic mean.

    Example:
      >>> seen_unseen({"per_class": [1.0, 0.5, None]}, np.array([3, 0, 0]))
      {'seen': 1.0, 'unseen': 0.5, 'harmonic': 0.6666666666666666}
    """
    groups: dict[str, list[float]] = {"seen": [], "unseen": []}
    for recall, n in zip(scores["per_class"], train_counts.tolist(), strict=True):
        if recall is not None:
            groups["seen" if n else "unseen"].append(recall)
    seen, unseen = (sum(g) / len(g) if g else None for g in groups.values())
    both = None if seen is None or unseen is None else 2 * seen * unseen / max(seen + unseen, 1e-12)
    return {"seen": seen, "unseen": unseen, "harmonic": both}


def confusions(answers: Answers, truth: NDArray[np.int32], class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The ten pairs of classes most often taken for each other, by name: JSON-ready."""
    pairs = top_confusions(answers.predicted, torch.from_numpy(truth.astype(np.int64)), k=10)
    return [
        {**pair, "truth": class_names[pair["truth"]], "predicted": class_names[pair["predicted"]]} for pair in pairs
    ]


def truth_beyond(table: LabelTable, n_seen: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of every image as far as it is known, -1 else, those outside the named classes numbered after them.

    For scoring only.

    Args:
      table: N images, ``class_names`` beginning with the seen ones.
      n_seen: how many.

    Returns: [N] int64, and the names of its classes.
    """
    labels = np.where(table.labels < n_seen, table.labels, -1).astype(np.int64)
    if table.truth is None:
        return labels, table.class_names[:n_seen]
    truth = table.truth.astype(np.int64)
    return np.where(labels >= 0, labels, truth), table.truth_names


def open_scores(answers: Answers, truth: NDArray[np.int64], names: Sequence[str], *, n_seen: int) -> dict[str, Any]:
    """Scores of answers some of which are clusters: JSON-ready.

    Args:
      answers: of N images.
      truth: [N], names: of its classes, see `truth_beyond`.
      n_seen: named classes.

    Returns: as metrics.classification.score after discovered classes were given the true class they fit best (so that
      ``accuracy`` is that of all images), plus metrics.open_world.seen_novel_all, ``confidence_seen`` and
      ``confidence_novel`` (mean, of images that are so in truth), ``confusions``, ``class_names`` of per_class, and
      ``matched`` (true class of each output, None: none).
    """
    known = torch.from_numpy(truth >= 0)
    predicted, target = answers.predicted[known], torch.from_numpy(truth)[known]
    match = cluster_match(predicted, target)
    n_classes = len(names)
    mapped = match[predicted]
    mapped = torch.where(mapped < 0, n_classes, mapped)  # an output without a class is never right
    scores = score(mapped, answers.probability[known], target, n_classes=n_classes + 1)
    scores |= {key: scores[key][:n_classes] for key in ("per_class", "precision")}
    labels = [*names, "no class"]
    pairs = [
        {**pair, "truth": labels[pair["truth"]], "predicted": labels[pair["predicted"]]}
        for pair in top_confusions(mapped, target, k=10)
    ]
    is_novel = target >= n_seen
    sure = answers.probability[known]
    return (
        scores
        | seen_novel_all(predicted, target, n_seen=n_seen)
        | {
            "confidence_seen": float(sure[~is_novel].mean()) if (~is_novel).any() else None,
            "confidence_novel": float(sure[is_novel].mean()) if is_novel.any() else None,
            "confusions": pairs,
            "class_names": list(names),
            "matched": [names[m] if m >= 0 else None for m in match.tolist()],
        }
    )
