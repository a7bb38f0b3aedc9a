"""Arguments of verbs, checked where a verb begins: paths that the operating system can take, and types of values."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from labelwright.errors import ConfigError
from labelwright.paths import MAYBE_PATHS, PATHS, check_path

ArgumentsT = ParamSpec("ArgumentsT")
ResultT = TypeVar("ResultT")

_PLAIN = re.compile(r"(?:int|float|bool|str|None|tuple\[(?:int|float|str), \.\.\.\]|[ |])+")
_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "tuple": tuple}


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type that a setting may have.

    Example:
      >>> fits(1, float), fits(True, int), fits("a", Literal["a", "b"]), fits(None, int | None)
      (True, False, True, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(isinstance(value, type(arg)) and value == arg for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def words_of(hint: Any) -> str:
    """A type as a message names it.

    Example:
      >>> words_of(int | None), words_of(Literal["stop", "skip"]), words_of(tuple[str, ...])
      ('a whole number or none', 'stop or skip', 'a list of texts')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words_of(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple:
        return "a list of texts"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}[hint]


def check_arguments(verb: Callable[ArgumentsT, ResultT]) -> Callable[ArgumentsT, ResultT]:
    """A verb that refuses impossible arguments before it does anything: paths (see `check_path`) and wrong types.

    Types are checked of arguments that are numbers, texts, switches, lists of them, or None; NumPy's count as Python's.

    Example:
      >>> check_arguments(lambda data, out: out)(["a.png"], out="a\\0b")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: out='a\\x00b' is no path: a NUL is in it
        fix: give --out another path
    """
    signature = inspect.signature(verb)
    hints = {key: _hint(parameter.annotation) for key, parameter in signature.parameters.items()}

    @functools.wraps(verb)
    def checked(*args: ArgumentsT.args, **kwargs: ArgumentsT.kwargs) -> ResultT:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python says what is wrong with the call
            return verb(*args, **kwargs)
        for key, value in (given | kwargs).items():
            default = signature.parameters[key].default if key in signature.parameters else None
            if key in PATHS and not (value is None and default is None):
                check_path(key, value)
            elif key in MAYBE_PATHS:
                are_names = key == "classes" or not isinstance(value, (list, tuple))
                for each in [value] if are_names else value:
                    check_path(key, each, is_path=False)
            if (hint := hints.get(key)) is not None and not fits(_plain(value), hint):
                raise ConfigError(f"{key}={repr(value)[:80]} is not possible", fix=f"{key} must be {words_of(hint)}")
        return verb(*args, **kwargs)

    return checked


def _hint(annotation: Any) -> Any:
    """The type of an argument that is a number, a text or a switch; None for anything else."""
    if not isinstance(annotation, str) or not _PLAIN.fullmatch(annotation):
        return None
    return eval(annotation, {"__builtins__": _TYPES})


def _plain(value: Any) -> Any:
    """A value as it is compared with types: of NumPy's numbers Python's, of a path its text, of a list a tuple."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return of_python(value)


def of_python(value: Any) -> Any:
    """A number of NumPy as Python's; anything else as it is.

    Example:
      >>> import numpy as np
      >>> of_python(np.int64(3)), of_python("a")
      (3, 'a')
    """
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape else value
