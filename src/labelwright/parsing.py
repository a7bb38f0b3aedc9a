"""JSON and YAML of files that anybody may have written: whatever is wrong with them is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_of(text: str | bytes, **how: Any) -> Any:
    """The content of a JSON text.

    Raises: ValueError if it is none, or is nested so deeply that Python cannot follow.

    Example:
      >>> json_of('{"lr": 0.1}')
      {'lr': 0.1}
      >>> json_of("[" * 100_000)
      Traceback (most recent call last):
      ValueError: it is nested too deeply
    """
    try:
        return json.loads(text, **how)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def yaml_of(text: str) -> Any:
    """The content of a YAML text, of plain types alone.

    Raises: ValueError if it is none, or is nested so deeply that Python cannot follow.

    Example:
      >>> yaml_of("lr: 0.1")
      {'lr': 0.1}
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def as_kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.yaml: how to fit what the run kept, where that is not what its settings ask for.

    Example:
      >>> as_kept({"model": "auto", "minutes": 5, "seed": 0, "kept": {"model": "descriptor", "minutes": None}})
      {'model': 'descriptor', 'minutes': None, 'seed': 0}
    """
    kept = config.get("kept")
    if not isinstance(kept, Mapping):
        return dict(config)
    return {key: value for key, value in {**config, **kept}.items() if key != "kept"}


def text_of(path: Path) -> str:
    """The text of a file, which has to be one: a pipe may never end.

    Raises: OSError; ValueError if it is no file, or no UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder" if path.is_dir() else "it is not a file")
    return path.read_text(encoding="utf-8-sig")
