"""What a run leaves besides the network: the classifier's answers, scores, labels, the model card."""

from __future__ import annotations

import io
import re
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from labelwright.adapters.aligned import AlignedNet
from labelwright.data.read import IMAGE_SUFFIXES
from labelwright.data.table import LabelTable
from labelwright.discovering import open_scores, truth_beyond
from labelwright.errors import ConfigError, DataError
from labelwright.metrics.classification import imbalance, score, top_confusions
from labelwright.predict import Answers, answer, trust
from labelwright.prepare import Prepared, Source
from labelwright.train.track import RunFolder
from labelwright.types import BuildNet, Recipe, State, ViewSource

ANNOTATIONS = ("candidates.parquet", "candidates.answers.jsonl")  # what a run folder keeps of an annotator
LABEL_COLUMNS = ("id", "label", "probability", "runner_up", "source", "trust")


def start_folder(
    run: RunFolder,
    config: Mapping[str, Any],
    described: Mapping[str, Any],
    machine: Mapping[str, Any],
    *,
    resume: bool,
) -> None:
    """Write config.yaml, environment.json and data.json; of a run that has begun, check that they still hold.

    Raises: DataError if the images changed; ConfigError naming the setting that did.
    """
    begun = run.checkpoint.exists() or (run.path / "summary.json").exists()
    annotating = any((run.path / name).exists() for name in ANNOTATIONS)
    if resume and (begun or annotating) and (run.path / "data.json").exists():
        was, now = run.read_json("data.json"), described
        told = {"fingerprint": "training images", "test_fingerprint": "test images"}
        for key, what in (told | {"candidates_fingerprint": "candidates"}).items():
            if was.get(key) != now.get(key):
                raise DataError(
                    f"the {what} changed since this run began", fix="resume with the same data, or start anew"
                )
    if resume and begun and (run.path / "data.json").exists():
        before = run.read_yaml("config.yaml")
        old, new = ({**each, **each["settings"], "settings": None} for each in (before, config))
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{key} was {old.get(key)!r} when this run began and is {new[key]!r} now",
                fix="resume with the settings of config.yaml, or start anew in another --out",
            )
        return
    run.write_yaml("config.yaml", config)
    run.write_json("environment.json", machine)
    run.write_json("data.json", described)


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


def evaluator(
    recipe: Recipe, cfg: Any, prepared: Prepared, device: torch.device, precision: str, *, n_novel: int = 0
) -> Callable[[State], Mapping[str, Any]] | None:
    """What the loop calls to score a state on the test images, for the curves; None without test images."""
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


def label_rows(table: LabelTable, answers: Answers, class_names: tuple[str, ...], *, keep_given: bool) -> pa.Table:
    """One row per image: which label, how probable, what else it could be, where from, how far to trust it.

    Args:
      table: N images.
      answers: of the classifier, with ``given`` = the labels the table holds.
      class_names: C names the answers refer to.
      keep_given: a given label stays ("given"); False puts the classifier's own answer everywhere ("predicted").

    Returns: Arrow table of LABEL_COLUMNS; ``probability`` is that of ``label``; ``trust`` is the normalised margin of
      `predict.trust`: 1 sure, 0.5 a tie, under 0.5 the classifier prefers another class (a given label to look at).
    """
    known = (answers.given >= 0) & keep_given
    label = torch.where(known, answers.given, answers.predicted)
    probability = torch.where(known, answers.given_probability, answers.probability)
    other = torch.where(known, answers.best_other_probability, answers.runner_up_probability)
    # The best class that is not the label: the prediction itself where a given label disagrees with it.
    runner_up = torch.where(label == answers.predicted, answers.runner_up, answers.predicted)
    names = pa.array(class_names, pa.string())
    return pa.table(
        {
            "id": table.ids,
            "label": names.take(pa.array(label.numpy())),
            "probability": pa.array(probability.float().numpy()),
            "runner_up": names.take(pa.array(runner_up.numpy())),
            "source": pa.array(np.where(known.numpy(), "given", "predicted")),
            "trust": pa.array(trust(probability, other).float().numpy()),
        }
    )


def checked_target(target: Path) -> Path:
    """The path to write labels to, if it can be one.

    Raises: ConfigError if it exists, or is neither .csv, .parquet nor without a suffix (a folder).
    """
    if target.exists():
        raise ConfigError(f"{target} exists", fix="choose another --out, or remove it first")
    if target.suffix not in ("", ".csv", ".parquet"):
        raise ConfigError(f"{target} is neither .csv, .parquet nor a folder", fix="end --out in .csv or .parquet")
    return target


def write_labels(rows: pa.Table, table: LabelTable, target: Path) -> None:
    """Write what `label_rows` returned for the table to a target that `checked_target` let pass."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".csv":
        temporary = target.with_name(f".{target.name}.tmp")
        pa_csv.write_csv(rows, temporary)
        temporary.replace(target)
    elif target.suffix == ".parquet":
        write_parquet_atomically(rows, target)
    else:
        write_class_folders(rows, table, target)


def write_parquet_atomically(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that is always whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def write_class_folders(rows: pa.Table, table: LabelTable, folder: Path) -> None:
    """Copy every image into ``folder/LABEL/``, with labels.parquet beside the class folders.

    Args:
      rows: what `label_rows` returned for ``table``.
      table: N images.
      folder: must not exist; it appears whole, once every image is in place.
    """
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    labels, ids = rows["label"].to_pylist(), rows["id"].to_pylist()
    for start in range(0, len(table), 1024):
        chunk = np.arange(start, min(start + 1024, len(table)))
        for row, source in zip(chunk.tolist(), table.images.sources(chunk), strict=True):
            target = building / _file_name(labels[row]) / _file_name(ids[row])
            target.parent.mkdir(exist_ok=True)
            if target.suffix.lower() not in IMAGE_SUFFIXES:
                suffix = _suffix_of(source) if isinstance(source, bytes) else Path(source).suffix
                target = target.with_name(target.name + suffix)
            if target.exists():  # ids a/b and a-b are one name here
                target = target.with_name(f"{target.stem}-row-{row}{target.suffix}")
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
    write_parquet_atomically(rows, building / "labels.parquet")
    building.replace(folder)


def _file_name(text: str) -> str:
    """Text as one name in a folder: separators become ``-``.

    Example:
      >>> _file_name("Speed limit (20km/h)"), _file_name("..")
      ('Speed limit (20km-h)', '-')
    """
    return re.sub(r"[/\\\0]", "-", text) if text.strip(". ") else "-"


def _suffix_of(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        return f".{(image.format or 'img').lower()}"


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def model_card(summary: Mapping[str, Any], class_names: tuple[str, ...], version: str) -> str:
    """README.md of a saved model, in the hub's model-card format."""
    test = summary.get("test") or {}
    lines = [
        "---",
        "library_name: labelwright",
        "pipeline_tag: image-classification",
        "---",
        f"# Image classifier, {len(class_names)} classes",
        "",
        f"Trained by labelwright {version} with method `{summary['method']}` on {summary['n_labelled']:,} labelled "
        f"images (situation: {summary['situation']}), backbone `{summary['encoder']}`, seed {summary['seed']}.",
        "",
    ]
    if test:
        lines += ["| score on the test images | value |", "|---|---|"]
        for key in ("accuracy", "balanced_accuracy", "many", "medium", "few", "ece"):
            if test.get(key) is not None:
                lines.append(f"| {key.replace('_', ' ')} | {test[key]:.4f} |")
        lines.append("")
    lines += [
        "Use it:",
        "",
        "```python",
        "import labelwright as lw",
        'labels = lw.label("RUN", "photos/")  # RUN: the folder above this one',
        "```",
        "",
        "Classes: " + ", ".join(class_names),
        "",
    ]
    return "\n".join(lines)
