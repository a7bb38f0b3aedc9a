"""Models that labelwright saved, to start another run from: the backbone of a finished `pretrain` or `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwright.errors import ConfigError
from labelwright.parsing import json_of

FORMAT = 1
"""Of config.json beside the weights; see pipeline.saved_model.save_model."""


@dataclass(frozen=True)
class SavedBackbone:
    """The backbone in a model folder, not loaded yet."""

    folder: Path  # with model.safetensors and config.json
    classifier: Mapping[str, Any]  # what encoders.backbones.from_config takes, nothing frozen
    size_px: int  # this and the next two: the pixels it was trained on, see encoders.pretrained.ImageStats
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def network(self) -> str:
        """The network by the name that a saved classifier knows it by."""
        return str(self.classifier["name"])


def saved_backbone(name: str) -> SavedBackbone | None:
    """The backbone that a run of labelwright left.

    Args:
      name: a run folder of `pretrain` or `fit`, or its folder ``model``; or any other name of a model.

    Returns: what is in the folder; None if it is not one of labelwright.

    Raises: ConfigError: the run has not finished, its model is broken or of another format, or it was trained on
      embeddings, which leave no backbone.

    Example:
      >>> saved_backbone("resnet32"), saved_backbone("openai/clip-vit-base-patch32")
      (None, None)
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    is_run = (folder / "config.yaml").is_file() and (folder / "data.json").is_file()
    if is_run and not (folder / "summary.json").is_file():
        raise ConfigError(
            f"{name} is a run that has not finished", fix="finish it first: the same command again, with --resume"
        )
    folder = folder / "model" if is_run else folder
    try:
        config = json_of((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if not is_run:  # whoever else might take it says better what is wrong with it
            return None
        raise ConfigError(f"the run {name} holds no model that can be read ({error})", fix="name another") from error
    if not isinstance(config, dict) or not {"format", "classifier", "view", "size_px"} <= config.keys():
        return None
    if config["format"] != FORMAT:
        raise ConfigError(f"{folder}/config.json has format {config['format']}", fix="use the version that wrote it")
    if config["classifier"]["name"] == "stored":
        raise ConfigError(
            f"the run {name} learned from embeddings, and its model has no backbone",
            fix="name a model that sees pixels",
        )
    (r, g, b), (dr, dg, db) = config["view"]["mean"], config["view"]["std"]
    classifier = {**config["classifier"], "freeze": []}
    return SavedBackbone(folder, classifier, int(config["size_px"]), (r, g, b), (dr, dg, db))


def network_of(name: str) -> str:
    """What a saved classifier calls its backbone: the name itself, or of a run of labelwright the network in it.

    Example:
      >>> network_of("resnet32")
      'resnet32'
    """
    saved = saved_backbone(name)
    return name if saved is None else saved.network
