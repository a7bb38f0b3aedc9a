"""What `fit` makes of its settings before anything is written: the method, what it sees, how long it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any, Literal

import torch

from labelwright.data.prepare import Prepared, is_embeddings
from labelwright.encoders.embed import Encoder, is_two_tower
from labelwright.encoders.resnets import OWN
from labelwright.errors import ConfigError, DataError
from labelwright.methods.registry import METHODS, Method, method_named
from labelwright.train.plans import steps_for
from labelwright.train.settings import TrainSettings

CPU_IMAGES = 300_000
"""Images that a run without ``epochs`` passes through the network on a CPU: 5 minutes for a ResNet-32 on 2 cores."""

CPU_FEATURES = 3_000_000
"""The same of stored features: a minute for a linear head."""

HEAD_STEPS = 1_500
"""Steps of a run without ``epochs`` that learns a head on stored features from candidates, and at least 20 epochs."""

OPEN_STEPS = 500
"""The same of a head that starts from clusters and learns seen and novel classes, and at least 10 epochs."""

SETTLED_LR = 0.001
"""Learning rate of a run without ``lr`` whose last layer starts from labels.settle: near where it ends."""

CPU_EPOCHS_MIN = {"labels": 5, "candidates": 15, "open_world": 10}
"""What a method needs -> epochs of a run without ``epochs`` on a CPU, however many images there are."""

Views = Literal["auto", "pixels", "embeddings"]


def overrides_of(settings: Mapping[str, object] | None, epochs: int | None) -> dict[str, object]:
    """Fields of the method's Config that the user set.

    Example:
      >>> overrides_of({"lr": 0.1}, 3)
      {'lr': 0.1, 'epochs': 3}
    """
    return {**(settings or {}), **({} if epochs is None else {"epochs": epochs})}


def choose_method(method: str, prepared: Prepared) -> tuple[str, Method]:
    """The method asked for, or the one that fits the situation.

    Raises: ConfigError if it knows named classes only and there are others; DataError if it needs labels and there are
      none.
    """
    situation = prepared.situation
    name = situation.method if method == "auto" else method
    chosen = method_named(name)
    if situation.n_novel is not None and chosen.needs != "open_world":
        others = [key for key, each in METHODS.items() if each.needs == "open_world"]
        raise ConfigError(
            f"{name} learns the named classes only, and --novel says there are others",
            fix=f"leave --novel out, or choose one of {', '.join(others)}",
        )
    if chosen.needs in ("labels", "open_world") and not (prepared.train.table.labels >= 0).any():
        raise DataError(f"method {name} needs labels, and no training image has one", fix="label some images first")
    return name, chosen


def choose_views(
    views: Views, chosen: Method, cfg: TrainSettings, *, data: Any, model: str, pretrained: bool
) -> Literal["pixels", "embeddings"]:
    """What the method sees.

    Raises: ConfigError for what cannot be.
    """
    if is_embeddings(data):
        if views == "pixels" or model != "auto":
            what = "--views pixels" if views == "pixels" else f"--model {model}"
            raise ConfigError(f"the data are embeddings: {what} has nothing to work on", fix=f"leave {what} out")
        return "embeddings"
    is_own = model == "auto" or model in OWN
    if chosen.needs == "text" and is_own:
        said = "no model is named that can" if model == "auto" else f"{model} cannot"
        raise ConfigError(
            f"this method reads class names, and {said}",
            fix="name a vision-language model: --model openai/clip-vit-base-patch32, or a folder with one "
            "(labelwright/digits-clip is inside the package and knows digits only)",
        )
    if chosen.needs == "text" and not pretrained:
        raise ConfigError("random weights know no class names", fix="leave --no-pretrained out")
    if views == "auto":
        if chosen.needs in ("candidates", "open_world"):
            return "embeddings" if not is_own and pretrained and is_two_tower(model) else "pixels"
        tunes = getattr(cfg, "tune", "adapters") != "adapters"
        return "embeddings" if chosen.needs == "text" and not tunes else "pixels"
    if views == "embeddings" and (is_own or not pretrained):
        raise ConfigError(
            "embeddings need a pretrained encoder", fix="name one with --model, e.g. openai/clip-vit-base-patch32"
        )
    return views


def check_words(chosen: Method, encoder: Encoder | None, prepared: Prepared, name: str) -> None:
    """Refuse a method that reads class names where nothing can read them.

    Raises: ConfigError.
    """
    if chosen.needs != "text":
        return
    if encoder is None and prepared.train.stored is None:
        raise ConfigError(
            f"the model has no text side, and {name} reads class names",
            fix="name a vision-language model: CLIP, SigLIP, ... (openai/clip-vit-base-patch32)",
        )
    if encoder is not None and encoder.tower is None:
        raise ConfigError(
            f"{encoder.name} has no text side, and {name} reads class names",
            fix="name a vision-language model: CLIP, SigLIP, ... (openai/clip-vit-base-patch32)",
        )
    if encoder is None and prepared.class_feats is None:
        raise ConfigError(
            f"{name} reads class names, and these embeddings hold no text features of them",
            fix="add class_embeddings [C, D] (and logit_scale) of the same model to the .npz",
        )


def affordable(
    cfg: TrainSettings, chosen: Method, prepared: Prepared, sees: str, device: torch.device, *, given: Container[str]
) -> TrainSettings:
    """The schedule that suits the run where the user set none: fewer epochs where a CPU would take too long or a head
    needs no more, and a lower learning rate for a head that starts settled.

    Args:
      sees: "pixels" or "embeddings".
      device: where the run computes.
      given: settings that the user set.
    """
    table = prepared.train.table
    if "lr" not in given and getattr(cfg, "settle_rounds", 0) > 0:
        start = getattr(cfg, "start", "none")
        is_settled = start == "clusters" or (start == "auto" and sees == "embeddings")
        cfg = dataclasses.replace(cfg, lr=SETTLED_LR) if is_settled else cfg
    if "epochs" in given:
        return cfg
    if chosen.needs == "candidates" and sees == "embeddings":
        n_epochs = max(20, round(HEAD_STEPS / steps_for(len(table), cfg.batch_size)))
        return dataclasses.replace(cfg, epochs=min(cfg.epochs, n_epochs))
    if chosen.needs == "open_world" and sees == "embeddings":
        n_epochs = max(10, round(OPEN_STEPS / steps_for(len(table), cfg.batch_size)))
        return dataclasses.replace(cfg, epochs=min(cfg.epochs, n_epochs))
    if device.type != "cpu":
        return cfg
    if chosen.needs == "labels":
        n_labelled = max(1, int((table.labels >= 0).sum()))
        n_epochs = round((CPU_FEATURES if sees == "embeddings" else CPU_IMAGES) / n_labelled)
    elif chosen.needs == "candidates":
        n_epochs = round(2 * CPU_IMAGES / (2 * 4 * max(1, len(table))))  # two networks see four views of each image
    elif chosen.needs == "open_world":
        n_epochs = round(CPU_IMAGES / (3 * max(1, len(table))))  # three views of each image
    else:
        return cfg
    return dataclasses.replace(cfg, epochs=min(cfg.epochs, max(CPU_EPOCHS_MIN[chosen.needs], n_epochs)))
