"""A trained classifier on disk: model.safetensors, config.json and a model card, rebuilt without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labelwright.data.checks import OnBad
from labelwright.data.images import Decoding
from labelwright.data.prepare import is_embeddings, open_embeddings, open_source, resolved_path
from labelwright.data.table import LabelTable
from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones
from labelwright.encoders.saved import FORMAT
from labelwright.errors import ConfigError, DataError
from labelwright.replacing import replacing
from labelwright.run_folder import write_text_atomically
from labelwright.train.predict import Answers, answer
from labelwright.train.processes import accelerator_for
from labelwright.trust.calibration import Calibration


@dataclass(frozen=True)
class SavedModel:
    """A classifier ready to predict.

    Attributes:
      net: the network, in evaluation mode.
      class_names: C names, in class order.
      size_px: side of the square images it takes.
      view: how pixels are normalised (the augmentation fields play no part in prediction).
      info: everything else in config.json.
      outputs: class of each output of ``net``, -1 = none (dropped); empty: they are the classes.
    """

    net: nn.Module
    class_names: tuple[str, ...]
    size_px: int
    view: ViewSettings
    info: Mapping[str, Any]
    outputs: tuple[int, ...] = ()

    @property
    def calibration(self) -> Calibration:
        """What turns its probabilities into the chance of being right; of a model without one, nothing does."""
        return Calibration(**self.info.get("calibration", {}))

    def probs(self, x: Tensor) -> Tensor:
        """Probabilities [B, C] of clean views [B, 3, size_px, size_px]."""
        logits: Tensor = self.net(x).float()
        if not self.outputs:
            return logits.softmax(dim=1)
        of = torch.tensor(self.outputs, device=logits.device)
        kept = of >= 0
        probs = logits[:, kept].softmax(dim=1)
        return probs.new_zeros(len(x), len(self.class_names)).index_add_(1, of[kept], probs)


def save_model(
    folder: Path,
    net: backbones.Classifier | backbones.Ensemble,
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
      net: a Classifier of encoders.backbones, or an Ensemble of some.
      class_names, size_px, view: see `SavedModel`.
      info: what else a reader should know: method, data fingerprint, scores; JSON-ready.
      card: text of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
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


def change_classes(folder: Path, class_names: Sequence[str], outputs: Sequence[int] = ()) -> None:
    """Give the C classes of a saved model, which `load_model` has read, other names, and its outputs other classes.

    Args:
      outputs: as in `SavedModel`; empty: they stay as they are.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"class_names": list(class_names)}
    if outputs:
        config["outputs"] = list(outputs)
    write_text_atomically(path, json.dumps(config, indent=2) + "\n")


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
        outputs=tuple(config.pop("outputs", ())),
        info=config,
    )


def renamed(class_names: Sequence[str], renames: Mapping[str, str]) -> tuple[str, ...]:
    """Class names with some of them changed.

    Raises: ConfigError for a name that is not there, or one that would be there twice.

    Example:
      >>> renamed(["cat", "novel-1"], {"novel-1": "okapi"})
      ('cat', 'okapi')
    """
    for old in renames:
        if old not in class_names:
            raise ConfigError(
                f"the model has no class {old!r} to rename", fix=f"its classes: {', '.join(class_names[-12:])}"
            )
    names = tuple(renames.get(name, name) for name in class_names)
    twice = sorted({name for name in names if names.count(name) > 1 or not name.strip()})
    if twice:
        raise ConfigError(f"two classes would be named {twice[0]!r}", fix="give each class a name of its own")
    return names


def answers_for(
    saved: SavedModel, data: Any, *, on_bad: OnBad, device: str, precision: str, classes: Sequence[str] | None
) -> tuple[LabelTable, Answers]:
    """What a saved model says of any images, or of embeddings if it was trained on such; and their table."""
    if saved.size_px == 0:
        source = open_embeddings(data, classes=classes, on_bad=on_bad)
        net: Any = saved.net
        n_features = getattr(net, "first", net).n_features
        if source.stored is not None and source.stored.n_features != n_features:
            raise DataError(
                f"{resolved_path(data)} holds embeddings of {source.stored.n_features} features; the model was trained "
                f"on {n_features}",
                fix="embed these images with the model that embedded the training images",
            )
    elif is_embeddings(data):
        raise DataError(
            f"{resolved_path(data)} holds embeddings, and the model was trained on images", fix="give the images"
        )
    else:
        decoding = Decoding(**saved.info.get("decoding", {}))
        source = open_source(data, classes=classes, size_px=saved.size_px, on_bad=on_bad, decoding=decoding)
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
    answer = summary.get("answer") or {"name": summary["method"]}
    if answer["name"] != summary["method"]:
        lines += [f"It is the answer of {answer['title']}: {answer['why']}.", ""]
    if summary.get("n_fitted", 0) > summary["n_images"]:
        n_more = summary["n_fitted"] - summary["n_images"]
        lines += [f"Once scored, it was fitted anew with the {n_more:,} images that had been held out.", ""]
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
