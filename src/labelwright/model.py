"""A trained classifier on disk: model.safetensors, config.json and a model card, rebuilt without the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.encoders.saved import FORMAT as FORMAT
from labelwright.errors import DataError
from labelwright.train.track import write_text_atomically


@dataclass(frozen=True)
class SavedModel:
    """A classifier ready to predict.

    Attributes:
      net: the network, in evaluation mode.
      class_names: C names, in class order.
      size_px: side of the square images it takes.
      view: how pixels are normalised (the augmentation fields play no part in prediction).
      info: everything else in config.json.
    """

    net: nn.Module
    class_names: tuple[str, ...]
    size_px: int
    view: ViewSettings
    info: Mapping[str, Any]

    def probs(self, x: Tensor) -> Tensor:
        """Probabilities [B, C] of clean views [B, 3, size_px, size_px]."""
        probs: Tensor = self.net(x).float().softmax(dim=1)
        return probs


def save_model(
    folder: Path,
    net: backbones.Classifier,
    *,
    class_names: tuple[str, ...],
    size_px: int,
    view: ViewSettings,
    info: Mapping[str, Any],
    card: str,
) -> None:
    """Write a classifier as ``model.safetensors``, ``config.json`` and ``README.md`` (the model card).

    Args:
      folder: made if absent.
      net: a Classifier of encoders.backbones.
      class_names, size_px, view: see `SavedModel`.
      info: what else a reader should know: method, data fingerprint, scores; JSON-ready.
      card: text of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    temporary = folder / ".model.safetensors.tmp"
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    config = {
        "format": FORMAT,
        "classifier": backbones.classifier_config(net),
        "class_names": list(class_names),
        "size_px": size_px,
        "view": asdict(view),
        **info,
    }
    write_text_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text_atomically(folder / "README.md", card)


def rename_classes(folder: Path, change: Callable[[Sequence[str]], tuple[str, ...]]) -> tuple[str, ...]:
    """Change the class names of a saved model; returns the new ones.

    Args:
      folder: as written by `save_model`.
      change: C names -> C names; what it raises leaves the model as it was.

    Raises: DataError if there is no model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"no model in {folder} ({error})", fix="give the run folder of a finished fit") from error
    names = change(config["class_names"])
    config["class_names"] = list(names)
    write_text_atomically(path, json.dumps(config, indent=2) + "\n")
    return names


def load_model(folder: Path, *, device: torch.device) -> SavedModel:
    """Read a classifier written by `save_model`; needs no network and none of the training data.

    Raises: DataError if a file is missing or of another format, or if the model tells no classes apart.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(str(folder / "model.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"no model in {folder} ({error})", fix="give the run folder of a finished fit") from error
    if config.get("format") != FORMAT:
        raise DataError(f"{folder}/config.json has format {config.get('format')}", fix="use the version that wrote it")
    if not config["class_names"]:
        raise DataError(
            f"the model in {folder} is a pretrained backbone and knows no classes",
            fix=f"train it to know some: labelwright fit DATA --model {folder.parent} --out RUN",
        )
    net = backbones.from_config(config.pop("classifier"))
    net.load_state_dict(tensors)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.eval()
    view: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.pop("view").items()
    }
    return SavedModel(
        net=net,
        class_names=tuple(config.pop("class_names")),
        size_px=int(config.pop("size_px")),
        view=ViewSettings(**view),
        info=config,
    )
