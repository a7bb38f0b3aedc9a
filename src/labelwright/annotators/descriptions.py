"""How classes look, in words: read from a file that the user keeps, or asked of a chat model.

The file is JSON or YAML, {class: text or list of texts}; what a model answered is written in the same form, so that it
can be read, corrected and used again without asking.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwright.annotators.chat import ChatModel, Question, ask_many
from labelwright.annotators.description_prompts import description_prompt, parse_descriptions
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.parsing import json_of, text_of, yaml_of
from labelwright.replacing import check_output
from labelwright.run_folder import write_text_atomically

log = logging.getLogger(__name__)


def read_descriptions(path: str | Path, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Descriptions of some classes from a file of the user's.

    Args:
      path: JSON (.json) or YAML (.yaml, .yml): {class: text or list of texts}.

    Returns: class name -> its descriptions, in the order of the file; classes that the file leaves out are left out.

    Raises:
      ConfigError: no such file, or one of another kind.
      DataError: it cannot be parsed, or some entries are not classes, empty or not text: all of them, with their keys.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "looks.yaml")
      >>> _ = path.write_text("stop: a red octagon\\nyield: [a red triangle on its tip, a white triangle]")
      >>> read_descriptions(path, ["stop", "yield", "no entry"])
      {'stop': ('a red octagon',), 'yield': ('a red triangle on its tip', 'a white triangle')}
    """
    path = Path(path)
    entries = _parsed(path)
    known = set(class_names)
    problems: list[Problem] = []
    found: dict[str, tuple[str, ...]] = {}
    nested = [key for key, value in entries.items() if isinstance(value, Mapping)]
    if nested and len(nested) == len(entries):
        raise DataError(
            f"{path} holds classes one level down, under {' and '.join(repr(key) for key in nested[:3])}",
            fix=f"put what is under one of these into a file of its own: {{class: texts}} at the top of {path.name}",
        )
    for key, value in entries.items():
        detail = ""
        if not isinstance(key, str):
            detail = f"is read as {type(key).__name__}; put the class name in quotes"
        elif key not in known:
            close = difflib.get_close_matches(key, class_names, n=1)
            detail = "is not a class" + (f"; did you mean {close[0]!r}?" if close else "")
        else:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                detail = f"has {_kind(texts)} where a text or a list of texts belongs"
            elif not texts or not all(text.strip() for text in texts):
                detail = "has an empty description"
            else:
                found[key] = tuple(dict.fromkeys(" ".join(text.split()) for text in texts))
        if detail:
            kind = "unknown_label" if detail.startswith("is not a class") else "malformed_row"
            problems.append(Problem(f"{path}: {key!r}", kind, detail))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(
            f"{problems[0].where} {problems[0].detail}{more}",
            problems=problems,
            fix=f"correct {path.name}; the classes are {', '.join(class_names[:5])}{', ...' * (len(class_names) > 5)}",
        )
    if not found:
        raise DataError(f"{path} describes no class", fix="give {class: text or list of texts}")
    return found


def _parsed(path: Path) -> Mapping[Any, Any]:
    """The entries at the top of a JSON or YAML file."""
    import yaml

    form = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(path.suffix.lower())
    if form is None:
        raise ConfigError(f"descriptions in {path}: a kind of file that is not read", fix="give .json or .yaml")
    try:
        text = text_of(path)
    except OSError as error:
        raise ConfigError(f"descriptions in {path}: {error.strerror}", fix="check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", fix="save it as UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"descriptions in {path}: {error}", fix="check the path") from error
    try:
        if form == "JSON":
            entries = json_of(text, object_pairs_hook=_without_repeats)
        else:
            entries = yaml_of(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            if isinstance(node, yaml.MappingNode):
                _without_repeats([(key.value, None) for key, _ in node.value])
    except ValueError as error:
        raise DataError(
            f"{path} is not valid {form}: {' '.join(str(error).split())}", fix="correct it there"
        ) from error
    if not isinstance(entries, Mapping):
        raise DataError(f"{path} holds {_kind(entries)} at its top", fix="give {class: text or list of texts}")
    return entries


def _without_repeats(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The mapping of key-value pairs; of a key given twice one would vanish silently."""
    keys = [str(key) for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} is there twice")
    return dict(pairs)


def _kind(value: object) -> str:
    """What a JSON or YAML value is, for a message."""
    if isinstance(value, list):
        odd = next((entry for entry in value if not isinstance(entry, str)), None)
        return "a list" if odd is None and None not in value else f"a list with {_kind(odd)}"
    names = {dict: "a mapping", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def write_descriptions(path: str | Path, descriptions: Mapping[str, Sequence[str]]) -> None:
    """Write descriptions as JSON that `read_descriptions` reads and a person can edit; replaces the file at once.

    Args:
      path: of the file, .json.   descriptions: class -> texts; classes without any are left out.

    Raises: ConfigError: another ending; DiskError: the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "looks.json")
      >>> write_descriptions(path, {"stop": ["a red octagon"], "yield": []})
      >>> read_descriptions(path, ["stop", "yield"])
      {'stop': ('a red octagon',)}
    """
    path = _json_path(path)
    kept = {name: list(texts) for name, texts in descriptions.items() if texts}
    write_text_atomically(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def _json_path(path: str | Path) -> Path:
    if Path(path).suffix.lower() != ".json":
        raise ConfigError(f"descriptions are written as JSON, not to {path}", fix="give a name ending in .json")
    return Path(path)


def describe_classes(
    chat: ChatModel,
    class_names: Sequence[str],
    path: str | Path,
    *,
    which: Sequence[int],
    n: int = 4,
    context: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Ask how some classes look that a file does not describe yet, and add them to it as the answers come.

    What is in the file stays as it is, edited by hand or not; so an interrupted call goes on where it stopped. What
    does not parse is dropped; classes that got no description are reported in a logged warning.

    Args:
      path: JSON file; may exist.   which: indices of the classes wanted.
      n: descriptions per class, at most.   context: one line on what the images are, such as "traffic signs".

    Returns: what the file holds now: class name -> descriptions, in the order of the classes.

    Raises: ConfigError if n < 1; as `read_descriptions` and `write_descriptions`: the file is looked at before asking;
      as `ask_many`: the model cannot be asked at all.

    Example:
      >>> import tempfile
      >>> class Poet:
      ...     name = "poet"
      ...     def ask(self, prompt, image=None):
      ...         return "1. a red octagon\\n2. white letters" if '"stop"' in prompt else "I cannot help with that."
      >>> describe_classes(Poet(), ["stop", "yield"], Path(tempfile.mkdtemp(), "looks.json"), which=[0])
      {'stop': ('a red octagon', 'white letters')}
    """
    if n < 1:
        raise ConfigError(f"n={n} descriptions per class", fix="ask for at least 1")
    path = Path(path)
    have = read_descriptions(path, class_names) if path.exists() else {}
    if not path.exists():
        check_output(_json_path(path))  # says now, not after the first answer, that it cannot be written
    wanted = [class_names[c] for c in which if class_names[c] not in have]

    def keep(position: int, answer: str | None) -> None:
        if texts := parse_descriptions(answer or "", n=n):
            have[wanted[position]] = texts
            write_descriptions(path, {name: have[name] for name in class_names if name in have})

    questions = (description_prompt(class_names, class_names.index(name), n=n, context=context) for name in wanted)
    ask_many(chat, map(Question, questions), on_answer=keep)
    without = [name for name in wanted if name not in have]
    if without:
        shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        log.warning("%s: no usable description of %d of %d classes: %s", chat.name, len(without), len(wanted), shown)
    return {name: have[name] for name in class_names if name in have}
