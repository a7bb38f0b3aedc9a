"""Checkpoints: one file, written atomically, loadable with weights_only; the one before it is kept."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labelwright.errors import DataError
from labelwright.replacing import disk_errors, replacing
from labelwright.run_folder import CHECKPOINTS
from labelwright.train import fsdp, progress
from labelwright.types import State

FORMAT = 2


def save_atomically(payload: Mapping[str, Any], path: Path) -> None:
    """Write what ``torch.load(weights_only=True)`` reads back so that a whole file, old or new, is always there.

    One process writes at a time. The file that was there stays as ``previous.pt``, which alone is there for a moment:
    see `newest`.

    Raises: DiskError if it cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a process killed while it wrote; there is one writer
            stale.unlink(missing_ok=True)
    with replacing(path, durable=True) as temporary:
        with temporary.open("wb") as file:  # of which a full disk is an OSError; of a path it is an odd position
            torch.save(dict(payload), file)
        if path.exists():
            path.replace(path.with_name(CHECKPOINTS[1]))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises: DataError if the file is not a checkpoint of this format, or was altered: a sum in it does not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes the sums and does not look at them
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"its part {bad} was altered")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a checkpoint ({error})", fix="start again in a new folder"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise DataError(f"{path} is not a checkpoint of format {FORMAT}", fix="resume with the version that wrote it")
    return payload


def newest(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or if that is missing or broken the one before it; None if there is neither.

    Raises: DataError as `load`, if both cannot be read.
    """
    faults = []
    for each in (path, path.with_name(CHECKPOINTS[1])):
        if each.exists():
            try:
                found = load(each)
            except DataError as error:
                faults.append(error)
                continue
            if faults:
                progress.say(f"{faults[0].message}; going on from {each.name}, the one before it")
            return found
    if faults:
        raise faults[0]
    return None


def state_dict(state: State) -> dict[str, Any]:
    """A recipe's State as nested dicts of tensors and numbers."""
    return {
        "nets": {name: fsdp.whole(net.state_dict()) for name, net in state.nets.items()},
        "adjust": dict(state.adjust),
        "memory": dict(state.memory),
    }


def load_state(state: State, payload: Mapping[str, Any], device: torch.device) -> State:
    """The State as it was saved: networks are filled in place, the rest is replaced."""
    for name, net in state.nets.items():
        there, saved = net.state_dict(), payload["nets"][name]
        net.load_state_dict({key: fsdp.like(value, there.get(key)) for key, value in saved.items()})
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
