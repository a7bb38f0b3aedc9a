"""What a run keeps of its settings and how they come back: config.yaml, `--config`, the command that repeats it."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwright.arguments import of_python
from labelwright.errors import ConfigError, DataError
from labelwright.parsing import as_kept, text_of, yaml_of
from labelwright.paths import from_anywhere
from labelwright.pipeline.settings import (
    PER_CALL,
    REQUIRED,
    FitSettings,
    fields,
    in_memory,
    is_in_memory,
    parse_assignments,
)
from labelwright.wording import redacted


def to_config(settings: FitSettings) -> dict[str, Any]:
    """What config.yaml keeps of the settings, for `from_config`: paths absolute, all as YAML has it, no password."""
    kept = {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.name not in PER_CALL}
    for key in ("data", "test"):
        given: Any = getattr(settings, key)
        are_paths = isinstance(given, (list, tuple)) and all(isinstance(each, (str, Path)) for each in given)
        if isinstance(given, (list, tuple, Mapping)) and not are_paths:
            kept[key] = in_memory(given)
        elif isinstance(given, (str, Path)):
            kept[key] = from_anywhere(str(given))
    if settings.chat_url is not None:
        kept["chat_url"] = redacted(settings.chat_url)
    return kept | {"set": _plain(parse_assignments(settings.set))}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        is_path = isinstance(value, Path) or "/" in value or path.suffix != ""
        return str(path.resolve()) if is_path and path.exists() else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return in_memory(value)


def from_config(path: str | Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings kept in the config.yaml of a run, as keyword arguments of `FitSettings`.

    Where a run kept another classifier than the one that its settings ask for, they are those that fit it anew, unless
    time, epochs or another model are stated: then they are those that were asked for. Epochs that time decided come
    back as a number: a run that is repeated is the same on a slower machine. A stated time decides them anew.

    Args: stated: settings that the caller puts in place of these.

    Raises: DataError if it cannot be read; ConfigError for keys that are not settings.
    """
    try:
        content: Any = yaml_of(text_of(Path(path).expanduser()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", fix="give the config.yaml of a run") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no keys and values", fix="give the config.yaml of a run")
    stated = {key: value for key, value in (stated or {}).items() if value is not None}
    found = as_kept(content)
    is_of_network = not stated.keys().isdisjoint(("epochs", "minutes"))
    if is_of_network or stated.get("model", found.get("model")) != found.get("model"):
        found = {key: value for key, value in content.items() if key != "kept"}
    resolved = found.pop("resolved", None)
    if isinstance(resolved, dict) and resolved.get("images_per_second") and found.get("epochs") is None:
        chosen = resolved.get("settings")  # epochs found by the clock, and now the run's own
        found["epochs"] = chosen.get("epochs") if isinstance(chosen, dict) else None
    if "minutes" in stated:
        found["epochs"] = None
    if not isinstance(found.get("set", {}), dict):
        raise ConfigError(f"{path}: set={found['set']!r} is not possible", fix="write set: {lr: 0.1}")
    names = [field.name for field in dataclasses.fields(FitSettings)]
    for key, value in found.items():
        if key not in names:
            raise ConfigError(f"{path}: unknown setting {key!r}", fix=_closest(key, names))
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def settings_of(config: str | Path | None, given: Mapping[str, Any]) -> FitSettings:
    """The settings of a call: those given, on top of those of a config.yaml.

    Raises: ConfigError for an unknown or missing setting, with the closest valid names.

    Example:
      >>> settings_of(None, {"data": "photos", "out": "run", "epoch": 3})
      Traceback (most recent call last):
      labelwright.errors.ConfigError: unknown setting 'epoch'
        fix: did you mean epochs?
    """
    names = [field.name for field in dataclasses.fields(FitSettings)]
    for key in given:
        if key not in names:
            raise ConfigError(f"unknown setting {key!r}", fix=_closest(key, names))
    values = {**({} if config is None else from_config(config, given)), **given}
    for field in dataclasses.fields(FitSettings):
        if field.default is REQUIRED and field.name not in values:
            raise ConfigError(f"{field.name} is missing", fix=f"give it: {field.metadata['example']}")
    values = {key: tuple(value) if isinstance(value, list) else of_python(value) for key, value in values.items()}
    if hasattr(values.get("classes"), "tolist"):  # an array, or an index of pandas
        values["classes"] = tuple(values["classes"].tolist())
    return FitSettings(**values)


def _closest(key: str, names: Sequence[str]) -> str:
    if key in ("embeddings", "features"):
        return "they are data: give {name: vector}, or a data frame with labels and a column embedding, as data="
    close = difflib.get_close_matches(key, names, n=1)
    return (
        f"did you mean {close[0]}?" if close else f"settings of a method go into set; those of fit: {', '.join(names)}"
    )


def command_of(config: Mapping[str, Any], *, path: Path = Path("run")) -> str:
    """The command line that was typed for a run, or one that reads its config.yaml where Python gave what no flag can.

    Returns: "" where Python gave an object in memory: no command can give it again.

    Example:
      >>> command_of(to_config(FitSettings(data="photos", out="run", method="cap", set=("lr=0.1",), pretrained=False)))
      'labelwright fit photos --no-pretrained --method cap --set lr=0.1 --out run-again'
    """
    if not config.get("data") or any(map(is_in_memory, config.values())):
        return ""
    words, again = ["labelwright", "fit"], f"{path.resolve().name}-again"
    for field in fields():
        if field.name in PER_CALL or field.name not in config:
            continue
        value = config[field.name]
        if field.name == "epochs" and value is None and config.get("resolved", {}).get("images_per_second"):
            value = config["resolved"]["settings"]["epochs"]  # as time decided: the same on any machine
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if value == default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "set":
            value = assignments_of(value)
            if not value:
                continue
        if isinstance(value, list) and field.name in ("set", "freeze", "corrections"):
            words += [flag, *map(str, value)]
        elif not isinstance(value, (str, int, float)):
            return shlex.join(["labelwright", "fit", "--config", str(path / "config.yaml"), "--out", again])
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [str(value)] if field.name == "data" else [flag, str(value)]
    return shlex.join([*words, "--out", again])


def assignments_of(given: Mapping[str, Any]) -> list[str]:
    """Settings of a method as words after ``--set``.

    Example:
      >>> assignments_of({"lr": 0.1, "step_at_frac": (0.5, 0.75)})
      ['lr=0.1', 'step_at_frac=0.5,0.75']
    """
    return [
        f"{key}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for key, value in given.items()
    ]
