"""`pretrain`: a backbone from images alone, in a run folder that `fit --model` starts from."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from labelwright import __version__
from labelwright.arguments import check_arguments
from labelwright.data.images import Decoding
from labelwright.data.prepare import (
    Flip,
    is_embeddings,
    listed,
    may_flip,
    native_size,
    open_source,
    read,
    resolved_path,
)
from labelwright.data.table import SPLITS, LabelTable
from labelwright.data.views import ViewSettings, channel_stats
from labelwright.encoders import descriptor
from labelwright.encoders.nets import OwnNets
from labelwright.encoders.pretrained import image_stats, is_from_transformers
from labelwright.encoders.resnets import OWN, own_network
from labelwright.errors import ConfigError, DataError
from labelwright.methods import simclr
from labelwright.methods.families.labels import EPOCHS_MIN
from labelwright.methods.method import Budget, in_time
from labelwright.pipeline.saved_model import save_model
from labelwright.pipeline.settings import check_values, parse_assignments
from labelwright.pipeline.time_budget import clocked
from labelwright.run_folder import SUMMARY_VERSION, Run
from labelwright.train import fsdp, progress
from labelwright.train.environment import environment, peak_memory_mb
from labelwright.train.loop import LoopOptions, Trained, train
from labelwright.train.processes import accelerator_for
from labelwright.train.settings import apply_overrides
from labelwright.types import Recipe, Task

OF_LABELS = frozenset({"unknown_label", "unknown_candidate", "empty_class", "absent_class", "unseen_class"})
"""Problems that images alone do not have."""


@check_arguments
def pretrain(
    data: Any,
    *,
    out: str | Path,
    model: str = "auto",
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    size: int | None = None,
    flip: Flip = "auto",
    resume: bool = False,
    on_bad: Literal["stop", "skip"] = "stop",
    accumulate: int = 1,
    checkpoint_minutes: float = 5.0,
    cache_limit_gb: float = 16.0,
    largest_image: float = 179.0,
    exact_decoding: bool = False,
    set: Mapping[str, object] | Sequence[str] = (),
) -> Path:
    """Train a backbone on images without looking at labels (SimCLR), for ``fit(..., model=RUN)`` to start from.

    Args:
      data: images, labelled or not, with class names or without; see data.read.load. Of data with splits, those called
        train.
      out: run folder; must not exist or be empty, unless ``resume``.
      model: resnet32, resnet18, preact_resnet18; or a transformers vision model by id or path, or an earlier run, to go
        on from; "auto" is resnet32 for images up to 40 px and resnet18 above.
      epochs: passes over the images, two views of each; None = as many as ``minutes`` allows, at least 5, at most 200.
      minutes: time to train, measured on three steps before it starts; None = 20 on a CPU, 120 on a GPU.
      seed, device, precision, size, flip, on_bad, accumulate, checkpoint_minutes, cache_limit_gb: see `fit`.
      largest_image, exact_decoding: see `fit`.
      resume: continue the run in ``out`` where it stopped, or begin it if there is none; needs the same images and
        settings. A finished run is left as it is.
      set: settings of methods.simclr.Config: a mapping, or KEY=VALUE texts.

    Returns: the run folder.

    Raises: LabelwrightError subclasses, with nothing written, for data or settings that cannot work; KeyboardInterrupt
      after Ctrl-C, with a folder that can be resumed.
    """
    check_values(
        **{"out": out, "model": model, "epochs": epochs, "minutes": minutes, "seed": seed, "device": device},
        **{"precision": precision, "size": size, "flip": flip, "resume": resume, "set": set},
        **{"accumulate": accumulate, "checkpoint_minutes": checkpoint_minutes, "cache_limit_gb": cache_limit_gb},
    )
    with Run.create(out, resume=resume, data=(data,)).held() as run:
        began = time.monotonic()
        overrides = parse_assignments(set) | ({} if epochs is None else {"epochs": epochs})
        cfg = apply_overrides(simclr.Config(), overrides)
        if model == descriptor.NAME:
            raise ConfigError(f"{model} has no weights to train", fix="name a network: resnet32, resnet18, ...")
        stats = None if model == "auto" or model in OWN else image_stats(model)
        if is_embeddings(data):
            raise ConfigError("the data are embeddings: there are no images to learn from", fix="give the images")
        decoding = Decoding.chosen(largest_image=largest_image, exact_decoding=exact_decoding)
        table = read(data, decoding=decoding)
        flips, reason = may_flip(flip, table.class_names)
        images = _images_alone(table)
        size_px = size or (native_size(images) if stats is None else stats.size_px)
        source = open_source(images, classes=None, size_px=size_px, on_bad=on_bad, cache_limit_gb=cache_limit_gb)
        n_images = len(source.table)
        if n_images < 2:
            raise DataError(
                f"there is one image in {resolved_path(data)}; it has no others to be compared with",
                fix="give more images",
            )
        assert source.pixels is not None
        found = channel_stats(source.pixels, rows=source.rows) if stats is None else (stats.mean, stats.std)
        # Random parts of any size, RandAugment, nothing cut out; see methods.simclr, departure 1.
        view = ViewSettings(flip=flips, mean=found[0], std=found[1], crop="resized", cutout_frac=0.0)
        accelerator = accelerator_for(device)
        if model == "auto":
            model = own_network(size_px)
        fsdp.check_tunes(is_from_transformers(model))
        announcement, before = "", run.config if run.has_begun else {}
        if before and "epochs" not in overrides:
            cfg = dataclasses.replace(cfg, epochs=before["settings"]["epochs"])
        elif "epochs" not in overrides:
            nets = OwnNets(model, size_px, pretrained=True, freeze=(), seed=seed)
            clock = clocked(
                lambda: nets(1),
                source.views(view),
                batch_size=cfg.batch_size,
                device=accelerator.device,
                precision=precision,
                minutes=minutes,
                n_processes=accelerator.num_processes,
                accumulate=accumulate,
            )
            most, budget = cfg.epochs, Budget(n_images, 0, is_stored=False, is_cpu=True, n_passes=clock.n_passes)
            cfg = in_time(cfg, budget, 2 * n_images, least=EPOCHS_MIN)
            announcement = f"simclr, {model}: {clock.words(cfg, 2 * n_images, most=most)}"
        config = {
            "data": resolved_path(data),
            "method": "simclr",
            "model": model,
            "size": size_px,
            "flip": flips,
            "seed": seed,
            "device": accelerator.device.type,
            "precision": precision,
            "on_bad": on_bad,
            "minutes": minutes,
            "settings": dataclasses.asdict(cfg),
        }
        config = json.loads(json.dumps(config))  # as read back: tuples become lists
        described = {
            "fingerprint": source.table.fingerprint,
            "n_images": n_images,
            "size_px": size_px,
            "flip": flips,
            "flip_reason": reason,
            "quarantined": listed(source.table.quarantined),
            "notices": listed(source.table.problems),
        }
        if accelerator.is_main_process:
            run.write_head(config, described, environment(accelerator.device, precision), resume=resume)
        if resume and (run.path / "summary.json").exists():
            return run.path
        if accelerator.is_main_process:
            run.unseal()
            if announcement:
                progress.say(announcement)
        options = LoopOptions(
            seed=seed,
            device=device,
            precision=precision,
            accumulate=accumulate,
            checkpoint_minutes=checkpoint_minutes,
            n_evaluations=0,
        )
        seconds = {"read": time.monotonic() - began}
        trained = train(
            cast(Recipe, simclr),
            cfg,
            Task(torch.full((n_images,), -1), ()),
            source.views(view),
            OwnNets(model, size_px, pretrained=True, freeze=(), seed=seed),
            options=options,
            run=run,
        )
        if accelerator.is_main_process:
            seconds["train"] = trained.seconds
            _finish(run, cfg, trained, view, config, described, seconds)
        return run.path


# ---- phases of pretrain ---------------------------------------------------------------------------------------------


def _images_alone(table: LabelTable) -> LabelTable:
    """The training images without anything that is known of them; rows of no known split stay, to be reported."""
    bare = dataclasses.replace(
        table,
        labels=np.full(len(table), -1, dtype=np.int32),
        class_names=(),
        candidates=None,
        groups=None,
        truth=None,
        truth_names=(),
        problems=tuple(problem for problem in table.problems if problem.kind not in OF_LABELS),
    )
    if table.split is None:
        return bare
    rows = np.flatnonzero((table.split == SPLITS.index("train")) | (table.split < 0))
    if not len(rows):
        raise DataError("no image is in the split train", fix="give the images to learn from")
    return bare.subset(rows)


def _finish(
    run: Run,
    cfg: simclr.Config,
    trained: Trained,
    view: ViewSettings,
    config: Mapping[str, Any],
    described: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> None:
    """Save: model/ and, last, summary.json."""
    summary = {
        "schema_version": SUMMARY_VERSION,
        "method": "simclr",
        "encoder": config["model"],
        "n_images": described["n_images"],
        "epochs": cfg.epochs,
        "size_px": config["size"],
        "seed": config["seed"],
        "cosine_of_others": round(float(trained.state.memory["cosine"]), 4),
        "alignment": round(float(trained.state.memory["alignment"]), 4),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "input_frac": round(trained.input_frac, 4),
        "images_per_second": round(trained.images_per_second, 1),
        "peak_memory_mb": peak_memory_mb(),
        "warnings": list(trained.warnings),
    }
    net: Any = trained.state.nets["main"]
    save_model(
        run.path / "model",
        net.exported(),
        class_names=(),
        size_px=config["size"],
        view=view,
        info={"method": "simclr", "labelwright": __version__, "fingerprint": described["fingerprint"]},
        card=_card(summary),
    )
    run.write_json("summary.json", summary)  # a folder that has one is finished
    run.seal()


def _card(summary: Mapping[str, Any]) -> str:
    """README.md of the saved model, in the hub's model-card format."""
    return "\n".join(
        [
            "---",
            "library_name: labelwright",
            "pipeline_tag: image-feature-extraction",
            "---",
            "# Image backbone",
            "",
            f"Pretrained by labelwright {__version__} with SimCLR on {summary['n_images']:,} images of "
            f"{summary['size_px']} px without labels, {summary['epochs']} epochs, backbone `{summary['encoder']}`, "
            f"seed {summary['seed']}. It tells no classes apart: its last layer has learnt nothing.",
            "",
            "Start from it:",
            "",
            "```sh",
            "labelwright fit DATA --model RUN --out NEW  # RUN: the folder above this one",
            "```",
            "",
        ]
    )
