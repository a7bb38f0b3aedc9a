"""Checkpoints: one file, written atomically, loadable with weights_only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labelwright.errors import DataError
from labelwright.types import State

FORMAT = 2


def save_atomically(payload: Mapping[str, Any], path: Path) -> None:
    """Write what ``torch.load(weights_only=True)`` reads back so that ``path`` always holds a whole file, old or new.

    One process writes at a time: a temporary file beside it is flushed to disk and renamed over it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a process killed while it wrote; there is one writer
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises: DataError if the file is not a checkpoint of this format.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a checkpoint ({error})", fix="start again in a new folder"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise DataError(f"{path} is not a checkpoint of format {FORMAT}", fix="resume with the version that wrote it")
    return payload


def state_dict(state: State) -> dict[str, Any]:
    """A recipe's State as nested dicts of tensors and numbers."""
    return {
        "nets": {name: net.state_dict() for name, net in state.nets.items()},
        "adjust": dict(state.adjust),
        "memory": dict(state.memory),
    }


def load_state(state: State, payload: Mapping[str, Any], device: torch.device) -> State:
    """The State as it was saved: networks are filled in place, the rest is replaced."""
    for name, net in state.nets.items():
        net.load_state_dict(payload["nets"][name])
    moved = _to(payload["adjust"], device), _to(payload["memory"], device)
    return dataclasses.replace(state, adjust=moved[0], memory=moved[1])


def _to(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _to(value, device) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_to(value, device) for value in tree]
    return tree
