"""The verbs: inspect, fit, label, evaluate, report. The command line calls these and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from evenkeel import __version__, results
from evenkeel.data.images import OnBad, check_images, resolve_problems
from evenkeel.data.situation import Situation, detect
from evenkeel.data.table import LabelTable
from evenkeel.encoders import backbones
from evenkeel.encoders.pretrained import image_stats
from evenkeel.encoders.resnets import OWN
from evenkeel.errors import ConfigError, DataError, EvenkeelError, Problem
from evenkeel.methods.registry import METHODS, Method, method_named, resolve_config
from evenkeel.model import SavedModel, load_model, save_model
from evenkeel.predict import Answers, answer
from evenkeel.prepare import Flip, Prepared, describe_data, listed, open_source, prepare, read, resolved_path
from evenkeel.reporting.render import render
from evenkeel.train.loop import LoopOptions, Trained, train
from evenkeel.train.processes import accelerator_for
from evenkeel.train.seeds import derive_seed
from evenkeel.train.track import RunFolder, environment
from evenkeel.types import BuildNet

Data = str | Path | Sequence[str] | Any

CPU_IMAGES = 300_000
"""Images that a run without ``epochs`` passes through the network on a CPU: 5 minutes for a ResNet-32 on 2 cores."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      table: the images and what is known of them.
      situation: which situation the rows that can be used are in, and why.
      problems: everything wrong with the data; notices among them.
      runs: the method that ``fit --method auto`` would run, None if this version has none for the situation.
    """

    table: LabelTable
    situation: Situation
    problems: tuple[Problem, ...]
    runs: str | None


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return RunFolder(self.path, resume=True).read_json("summary.json")

    @cached_property
    def labels(self) -> pa.Table:
        """labels.parquet: one row per training image."""
        return pq.read_table(self.path / "labels.parquet")

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def predict(self, data: Data, *, on_bad: OnBad = "stop", device: str = "auto") -> pa.Table:
        """Labels for any images, with trust; see `label`."""
        return label(self.path, data, on_bad=on_bad, device=device)


def inspect(
    data: Data,
    *,
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    check_pixels: bool = True,
) -> Inspection:
    """Read data, say which situation it is and why, and find everything wrong with it; writes nothing.

    Args:
      data: a folder, table, Parquet file, hub data set: see data.read.load.
      classes: class names or a file of them, fixing names and order.
      novel: K or "auto" when classes outside the list may be present.
      group: column whose rows belong together.
      check_pixels: decode every image in full.

    Raises: DataError if there is nothing to read at all.
    """
    table = read(data, classes=classes, group=group)
    problems = tuple(dict.fromkeys([*table.problems, *(check_images(table) if check_pixels else ())]))
    situation = detect(_usable(table, problems), novel=novel)
    return Inspection(table, situation, problems, situation.method if situation.method in METHODS else None)


def fit(
    data: Data,
    *,
    out: str | Path,
    method: str = "auto",
    model: str = "auto",
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    test: Data = None,
    test_frac: float = 0.2,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    size_px: int | None = None,
    flip: Flip = "auto",
    pretrained: bool = True,
    freeze: Sequence[str] = (),
    resume: bool = False,
    on_bad: Literal["stop", "skip"] = "stop",
    checkpoint_minutes: float = 5.0,
    evaluations: int = 10,
    cache_limit_gb: float = 16.0,
    settings: Mapping[str, object] | None = None,
) -> Run:
    """Train a classifier and write a run folder: model, labels with trust, scores, report.

    Args:
      data: training images, labelled or not; see data.read.load.
      out: run folder; must not exist or be empty, unless ``resume``.
      method: a name of methods.registry.METHODS; "auto" asks `inspect`.
      model: resnet32, resnet18, preact_resnet18, or a transformers vision model by id or path; "auto" is resnet32 for
        images up to 40 px and resnet18 above.
      classes, novel, group: see `inspect`.
      test: images to score on; without it a stratified, group-safe share ``test_frac`` is held out.
      epochs: passes over the training images; None = the method's default (the published 200) on a GPU, and on a CPU
        as many of them as make up `CPU_IMAGES` images, at least 5.
      seed: of everything random.
      device: auto, cpu or cuda.   precision: auto, bf16 or fp32.
      size_px: side of the square images the network sees.
      flip: whether mirrored images keep their class: auto, on or off.
      pretrained: load the weights of a transformers model; False starts it from random ones.
      freeze: parameter-name patterns that stay as they are, e.g. ``backbone.*``.
      resume: continue the run in ``out`` where it stopped, or begin it if there is none; needs the same data and
        settings. A finished run is left as it is.
      on_bad: what to do with unusable rows: stop with a report of all of them, or skip and list them.
      checkpoint_minutes: at most this much work is lost to a kill.
      evaluations: times the test images are scored while training, for the curves; never used to choose anything.
      settings: fields of the method's Config, values or their text.

    Returns: the finished run.

    Raises: EvenkeelError subclasses, with nothing written, for data or settings that cannot work.
    """
    began = time.monotonic()
    run = RunFolder(out, resume=resume)
    if resume and run.path.exists() and not (run.path / "config.yaml").exists() and any(run.path.iterdir()):
        raise ConfigError(f"{run.path} is not the folder of a run", fix="choose another --out")
    if method != "auto":  # mistakes in settings should not wait for the data to be read
        resolve_config(method_named(method), _overrides(settings, epochs))
    # Our own networks take the size and statistics of the data; a checkpoint wants the pixels it was trained on.
    own = model == "auto" or model in OWN
    stats = image_stats(model) if pretrained and not own else None
    prepared = prepare(
        data,
        test=test,
        classes=classes,
        novel=novel,
        group=group,
        test_frac=test_frac,
        size_px=stats.size_px if stats and size_px is None else size_px,
        stats=(stats.mean, stats.std) if stats else None,
        flip=flip,
        on_bad=on_bad,
        seed=seed,
        cache_limit_gb=cache_limit_gb,
    )
    name, chosen = _choose(method, prepared)
    if model == "auto":
        model = "resnet32" if prepared.size_px <= 40 else "resnet18"
    accelerator = accelerator_for(device)
    overrides = _overrides(settings, epochs)
    cfg = resolve_config(chosen, overrides)
    if accelerator.device.type == "cpu" and "epochs" not in overrides:
        affordable = max(5, round(CPU_IMAGES / max(1, int((prepared.train.table.labels >= 0).sum()))))
        cfg = dataclasses.replace(cfg, epochs=min(cfg.epochs, affordable))
    build = _builder(model, prepared.size_px, pretrained=pretrained, freeze=tuple(freeze), seed=seed)
    described = describe_data(prepared)
    config = {
        "data": resolved_path(data),
        "test": None if test is None else resolved_path(test),
        "test_frac": test_frac,
        "classes": list(prepared.train.table.class_names) if classes is not None else None,
        "novel": novel,
        "group": group,
        "method": name,
        "model": model,
        "pretrained": pretrained,
        "freeze": list(freeze),
        "size_px": prepared.size_px,
        "flip": prepared.view.flip,
        "seed": seed,
        "device": accelerator.device.type,
        "precision": precision,
        "on_bad": on_bad,
        "settings": json.loads(json.dumps(dataclasses.asdict(cfg))),  # as read back: tuples become lists
    }
    if accelerator.is_main_process:
        results.start_folder(run, config, described, environment(accelerator.device, precision), resume=resume)
    if resume and (run.path / "summary.json").exists():  # finished, but perhaps for the report
        if accelerator.is_main_process and not (run.path / "report.html").exists():
            render(run.path)
        return Run(run.path)
    read_s = time.monotonic() - began

    options = LoopOptions(
        seed=seed,
        device=device,
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        n_evaluations=evaluations if prepared.test else 0,
    )
    try:
        trained = train(
            chosen.recipe,
            cfg,
            prepared.train.table.task(),
            prepared.train.views(prepared.view),
            build,
            options=options,
            run=run,
            evaluate=results.evaluator(chosen.recipe, cfg, prepared, accelerator.device, precision),
        )
    except EvenkeelError as error:
        run.close()
        if error.exit_code == 2 and not resume and accelerator.is_main_process and not run.checkpoint.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # a setting that only the network could refuse
        raise
    if accelerator.is_main_process:
        _finish(run, prepared, chosen, cfg, trained, config, described, accelerator.device, precision, read_s)
    run.close()
    return Run(run.path)


def label(
    run: str | Path,
    data: Data,
    *,
    out: str | Path | None = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
) -> pa.Table:
    """Label any images with the model of a run, each with its probability, its runner-up and how far to trust it.

    Args:
      run: a finished run folder.
      data: images; labels they may have are ignored.
      out: .csv, .parquet, or a folder: a copy of every image under its label, and ``labels.parquet``;
        None writes nothing.
      on_bad: stop, or skip unusable images.

    Returns: Arrow table with the columns of results.LABEL_COLUMNS; its schema metadata holds under ``left_out`` the
      images that ``on_bad="skip"`` left out, as JSON.

    Raises: DataError or ConfigError, with nothing written.
    """
    target = None if out is None else results.checked_target(Path(out))
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    table, answers = _ask(saved, data, on_bad=on_bad, device=device, precision=precision, classes=None)
    rows = results.label_rows(table, answers, saved.class_names, keep_given=False)
    rows = rows.replace_schema_metadata({"left_out": json.dumps(listed(table.quarantined))})
    if target is not None:
        results.write_labels(rows, table, target)
    return rows


def evaluate(
    run: str | Path, data: Data, *, on_bad: OnBad = "stop", device: str = "auto", precision: str = "auto"
) -> dict[str, Any]:
    """Score the model of a run on labelled images: accuracy, balanced accuracy, groups, calibration.

    Args:
      run: a finished run folder.
      data: images with labels of the run's classes; unlabelled rows are not scored.

    Returns: see metrics.classification.score, plus ``confusions``, and ``left_out``: what ``on_bad="skip"`` left out.

    Raises: DataError if no image has a label.
    """
    saved = load_model(Path(run) / "model", device=accelerator_for(device).device)
    table, answers = _ask(saved, data, on_bad=on_bad, device=device, precision=precision, classes=saved.class_names)
    if not (table.labels >= 0).any():
        raise DataError(f"no image of {resolved_path(data)} has a label", fix="evaluate needs labelled images")
    counts = torch.tensor(RunFolder(run, resume=True).read_json("data.json")["train_counts"]).numpy()
    scores = results.scores_of(answers, table.labels, counts)
    confusions = results.confusions(answers, table.labels, saved.class_names)
    return {**scores, "confusions": confusions, "left_out": listed(table.quarantined)}


def report(run: str | Path) -> Path:
    """Write report.html of a finished run anew; returns its path."""
    RunFolder(run, resume=True).read_json("summary.json")
    return render(Path(run))


def _usable(table: LabelTable, problems: Sequence[Problem]) -> LabelTable:
    """The rows that ``--on-bad skip`` would keep; the whole table when it would keep none."""
    try:
        return resolve_problems(table, problems, "skip")
    except DataError:
        return table


# ---- phases of fit --------------------------------------------------------------------------------------------------


def _overrides(settings: Mapping[str, object] | None, epochs: int | None) -> dict[str, object]:
    return {**(settings or {}), **({} if epochs is None else {"epochs": epochs})}


def _choose(method: str, prepared: Prepared) -> tuple[str, Method]:
    situation = prepared.situation
    if method == "auto" and situation.method not in METHODS:
        raise ConfigError(
            f"this is the situation {situation.name} ({situation.reason}); its method {situation.method} is not in "
            f"evenkeel {__version__}",
            fix=f"choose a --method that trains on the labels there are: {', '.join(METHODS)}",
        )
    name = situation.method if method == "auto" else method
    chosen = method_named(name)
    if chosen.needs == "labels" and not (prepared.train.table.labels >= 0).any():
        raise DataError(f"method {name} needs labels, and no training image has one", fix="label some images first")
    return name, chosen


def _builder(model: str, size_px: int, *, pretrained: bool, freeze: tuple[str, ...], seed: int) -> BuildNet:
    built = 0

    def build(n_outputs: int, *, head: Literal["linear", "cosine"] = "linear") -> nn.Module:
        nonlocal built
        built += 1  # two networks of one recipe start from different weights
        net = backbones.build(
            model,
            n_outputs,
            pretrained=pretrained,
            head=head,
            image_size_px=size_px,
            freeze=freeze,
            seed=derive_seed(seed, "net", built),
        )
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ConfigError(f"--freeze {' '.join(freeze)} leaves nothing to train", fix="leave head.* free")
        return net

    return build


def _finish(
    run: RunFolder,
    prepared: Prepared,
    chosen: Method,
    cfg: Any,
    trained: Trained,
    config: Mapping[str, Any],
    described: Mapping[str, Any],
    device: torch.device,
    precision: str,
    read_s: float,
) -> None:
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
        "seconds": {
            "read": round(read_s, 2),
            "train": round(trained.seconds, 2),
            "label": round(time.monotonic() - began, 2),
        },
        "input_frac": round(trained.input_frac, 4),
        "images_per_second": round(trained.images_per_second, 1),
        "peak_memory_mb": results.peak_memory_mb(),
        "warnings": list(trained.warnings),
    }
    save_model(
        run.path / "model",
        cast(backbones.Classifier, trained.state.nets["main"]),
        class_names=table.class_names,
        size_px=prepared.size_px,
        view=prepared.view,
        info={"method": config["method"], "evenkeel": __version__, "fingerprint": described["fingerprint"]},
        card=results.model_card(summary, table.class_names, __version__),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished but for the report
    run.close()
    render(run.path)


# ---- phases of label and evaluate -----------------------------------------------------------------------------------


def _ask(
    saved: SavedModel, data: Data, *, on_bad: OnBad, device: str, precision: str, classes: Sequence[str] | None
) -> tuple[LabelTable, Answers]:
    source = open_source(data, classes=classes, size_px=saved.size_px, on_bad=on_bad)
    views = source.views(saved.view)
    answers = answer(
        saved.probs,
        views,
        torch.arange(views.n_rows),
        device=accelerator_for(device).device,
        precision=precision,
        description="labelling",
    )
    return source.table, answers
