"""The one reader of values: a column of any type as names, as sets of names or as weights; what cannot be is marked."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MISSING = frozenset({"nan", "NaN", "NAN", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "None", "null", "NULL"})
"""Texts that programs write where there is no value; ``none`` is not among them, and is a name."""

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ARRAY = re.compile(r"(?s)array\((.*?)(?:, dtype=[^)]*)?\)")
_LIST = re.compile(r"(?s)[\[({](.*)[\])}]")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_BETWEEN = re.compile(r"(?:\s|,|np\.str_\(|\))*")
_LIST_TEXT = r"^\s*(array\()?[\[({]\s*(np\.str_\()?['\"]"  # what a list of names looks like in a cell

Flags = NDArray[np.bool_]


def as_text(column: Any, *, names: Sequence[str] | None = None, is_path: bool = False) -> tuple[Any, Flags]:
    """A column of names or numbers as Arrow strings [n], and which rows hold what cannot be one, [n] bool.

    Null, NaN and empty text are null; so are rows that cannot be read. A list of one name is that name.

    Args:
      column: [n] Arrow array of any type.
      names: what the integers of a ClassLabel column stand for; -1 is no label, others stay numbers.
      is_path: blanks at the ends belong to it.

    Example:
      >>> as_text(pa.array([0, 1, -1, 7]), names=("cat", "dog"))[0].to_pylist()
      ['cat', 'dog', None, '7']
      >>> as_text(pa.array([2.0, None]))[0].to_pylist(), as_text(pa.array([" a", ""]))[0].to_pylist()
      (['2', None], ['a', None])
      >>> [found.tolist() for found in as_text(pa.array([["cat"], ["cat", "dog"], None]))]
      [['cat', None, None], [False, True, False]]
    """
    column, odd = _plain(column)
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column.cast(pa.float64()))
        whole = pc.all(pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))).as_py()
        column = column.cast(pa.int64()) if whole is not False else column
    if names is not None and pa.types.is_integer(column.type):
        column = column.cast(pa.int64(), safe=False)
        known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
        named = pa.array(names, pa.string()).take(pc.if_else(known, column, None))
        number = pc.if_else(pc.equal(column, -1), None, column).cast(pa.string())
        return pc.if_else(known, named, number), odd
    text, unfit = _as_strings(column)
    odd |= unfit
    if not is_path:
        text = pc.utf8_trim_whitespace(text)
        if pc.any(pc.match_substring_regex(text, _LIST_TEXT)).as_py():
            cells = [(value, listed(value)) for value in text.to_pylist()]
            odd |= np.array([found is not None and len(found) > 1 for _, found in cells], dtype=bool)
            one = [value if found is None else found[0] if len(found) == 1 else None for value, found in cells]
            text = pa.array(one, pa.string())
    return pc.if_else(pc.equal(text, ""), None, text), odd


def as_lists(
    column: Any, *, names: Sequence[str] | None = None, known: Collection[str] = ()
) -> tuple[NDArray[np.int64], Any, Flags, str]:
    """A column of sets, as lists or as text like ``cat|dog``, ``cat,dog`` or ``['cat', 'dog']``.

    Commas and semicolons separate where what they separate is ``known``, or comes again in other cells.

    Returns: lengths [n], members as Arrow strings, rows that hold what cannot be a set [n] bool, and the sign other
      than ``|`` that was found between names ("" if none was).

    Example:
      >>> lengths, members, odd, sign = as_lists(pa.array(["cat|dog", None, "owl", "['cat', 'owl']"]))
      >>> lengths.tolist(), members.to_pylist(), sign
      ([2, 0, 1, 2], ['cat', 'dog', 'owl', 'cat', 'owl'], '[')
    """
    column, odd, sign = _split(column, known)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    members, unfit = as_text(pc.list_flatten(column), names=names)
    odd |= np.bincount(np.repeat(np.arange(len(lengths)), lengths), unfit, minlength=len(lengths)) > 0
    return lengths, members, odd, sign


def as_weights(column: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A column of weights, as lists or as text like ``0.7|0.3``: (lengths [n], values); NaN where it is not a number.

    Example:
      >>> lengths, values = as_weights(pa.array(["0.75|0.25", None, "much", "[1, 3]"]))
      >>> lengths.tolist(), values.tolist()
      ([2, -1, 1, 2], [0.75, 0.25, nan, 1.0, 3.0])
    """
    column, odd, _ = _split(column, known=None)
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    lengths[odd] = 0
    values = pc.list_flatten(column)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64())
    else:
        numbers = pa.array([_number(value) for value in as_text(values)[0].to_pylist()], pa.float64())
    return lengths, numbers.to_numpy(zero_copy_only=False).astype(np.float64)


def canonical(words: Sequence[str]) -> list[str | None]:
    """Names as they are compared: composed Unicode, 1.0 as 1 unless some number has a fraction, None if missing.

    Example:
      >>> canonical(["1.0", "-1.0", "nan", "cafe\\u0301"]) == ["1", "-1", None, "caf\\u00e9"]
      True
      >>> canonical(["1.0", "1.5"])
      ['1.0', '1.5']
    """
    composed = [unicodedata.normalize("NFC", word) for word in words]
    numbers = [word for word in composed if _NUMBER.fullmatch(word) and "." in word]
    is_whole = all(_WHOLE_FLOAT.fullmatch(word) for word in numbers)
    shown = [_WHOLE_FLOAT.sub(r"\1", word) if is_whole and _WHOLE_FLOAT.fullmatch(word) else word for word in composed]
    return [None if word in MISSING else "0" if word == "-0" else word for word in shown]


def listed(text: str | None) -> list[str] | None:
    """The names in a text that a program wrote of a list: Python's, NumPy's or JSON; None if it is no such text.

    Example:
      >>> listed("['cat', 'dog']"), listed('["a, b"]'), listed("[juvenile]"), listed("[]")
      (['cat', 'dog'], ['a, b'], None, [])
    """
    found = _LIST.fullmatch(_ARRAY.sub(r"\1", text.strip())) if text else None
    if found is None:
        return None
    inner = found[1].strip()
    if not inner:
        return []
    if _QUOTED.search(inner) is None or not _BETWEEN.fullmatch(_QUOTED.sub("", inner)):
        return None
    return [_unquoted(each[0]) for each in _QUOTED.finditer(inner)]


def has_line_break(text: Any) -> Flags:
    """[n] bool: the strings that run over more than one line, as after a quote that was never closed, or hold a NUL."""
    return np.asarray(pc.match_substring_regex(text, r"[\r\n\x00]").fill_null(False).to_numpy(zero_copy_only=False))


def _unquoted(text: str) -> str:
    try:
        found = str(json.loads(text) if text[0] == '"' else ast.literal_eval(text))
        found.encode()  # half a character cannot be kept
    except (ValueError, SyntaxError):
        return text[1:-1]
    return found


def _plain(column: Any) -> tuple[Any, Flags]:
    """The column without dictionaries, and with the one member of lists that have one; other lists are odd."""
    odd = np.zeros(len(column), dtype=bool)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    while is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        odd |= lengths > 1
        starts = np.where(lengths == 1, np.cumsum(lengths) - lengths, -1)
        column = pc.list_flatten(column).take(pa.array(starts, mask=starts < 0))
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column, odd


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in checks)


def _as_strings(column: Any) -> tuple[Any, Flags]:
    """Arrow strings, null where a value has no text form or is not UTF-8, and where that is."""
    odd = np.zeros(len(column), dtype=bool)
    try:
        text = column.cast(pa.string())
        text.validate(full=True)  # Parquet and JSON do not promise UTF-8
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = column.type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        if not (is_text or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
            return pa.nulls(len(column), pa.string()), np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
        raw = column.cast(pa.large_binary()).to_pylist()
        decoded = [_decoded(value) for value in raw]
        odd = np.array([a is not None and b is None for a, b in zip(raw, decoded, strict=True)], dtype=bool)
        text = pa.array(decoded, pa.string())
    return text, odd


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _split(column: Any, known: Collection[str] | None) -> tuple[Any, Flags, str]:
    """A column of lists; of texts, split at what separates them. ``known`` None: numbers, which hold no commas."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type):
        return column.cast(pa.large_list(column.type.value_type)), np.zeros(len(column), dtype=bool), ""
    text, odd = _as_strings(column)
    cells = pc.utf8_trim_whitespace(text).to_pylist()
    none = MISSING - set(known or ())
    cells = [None if not cell or cell in none else cell for cell in cells]
    lists = [None if cell is None else _bracketed(cell, is_number=known is None) for cell in cells]
    plain = [cell for cell, found in zip(cells, lists, strict=True) if cell is not None and found is None]
    sign = "," if known is None else _separator(plain, known)
    split = [
        None
        if cell is None
        else found
        if found is not None
        else _pieces(cell, "|" if "|" in cell else "" if known and cell in known else sign)
        for cell, found in zip(cells, lists, strict=True)
    ]
    noted = sign or ("[" if any(found is not None for found in lists) else "")
    return pa.array(split, pa.large_list(pa.string())), odd, noted


def _bracketed(cell: str, *, is_number: bool) -> list[str] | None:
    if not is_number:
        return listed(cell)
    found = _LIST.fullmatch(cell)
    return None if found is None else found[1].replace(",", " ").split()


def _pieces(cell: str, sign: str) -> list[str]:
    return [piece for piece in (each.strip() for each in (cell.split(sign) if sign else [cell])) if piece]


def _separator(cells: Iterable[str], known: Collection[str]) -> str:
    """The sign between names where no cell has a ``|``: a comma or semicolon, if it does not belong to the names."""
    words = set(cells)
    if any("|" in word for word in words):
        return ""
    for sign in ",;":
        several = [set(_pieces(word, sign)) for word in words if sign in word and word not in known]
        if not several:
            continue
        alone = {word for word in words if sign not in word} | set(known)
        pieces = set().union(*several)
        if pieces <= alone or 4 * len(pieces) <= 3 * sum(map(len, several)):
            return sign
    return ""


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
