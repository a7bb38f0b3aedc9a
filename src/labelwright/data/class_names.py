"""Class names: numbered as they are first seen, compared in one form, and what is odd about them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelwright.data.layouts import SPLITS
from labelwright.data.values import INTEGER, canonical, listed
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.parsing import text_of
from labelwright.types import Candidates

NO_CLASSES = frozenset(
    {"?", "??", "???", "misc", "not sure", "temp", "tmp", "to sort", "unassigned", "uncategorized", "unclassified"}
    | {"undefined", "unknown", "unsorted", "unsure"}
)
_NAMED = 5  # classes that one message lists
_JOINED_MIN, _JOINED_FRAC = (
    3,
    0.2,
)  # class names that are others joined, from which they are candidates by the look of it
_SIGNS = "/|;,"  # between such names
_LONG = re.compile(r"[^\W\d_]{4,}")  # words in which a slip of a letter shows; "grade a" and "grade b" are two


class Vocabulary:
    """Strings numbered in the order first seen.

    Example:
      >>> import pyarrow as pa; words = Vocabulary()
      >>> words.encode(pa.array(["b", None, "a", "b"])).tolist(), words.names
      ([0, -1, 1, 0], ['b', 'a'])
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The strings, in the order of their codes."""
        return list(self._codes)

    def encode(self, strings: Any) -> NDArray[np.int32]:
        """[n] int32 codes of Arrow strings [n], -1 where null."""
        encoded = strings.dictionary_encode()
        known = [self._codes.setdefault(name, len(self._codes)) for name in encoded.dictionary.to_pylist()]
        codes = np.array([*known, -1], dtype=np.int32)  # the last one serves index -1
        indices: NDArray[np.int32] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes[indices]

    def finished(self, kept: frozenset[str], *, are_values: bool) -> tuple[NDArray[np.int32], list[str]]:
        """Bring the strings into the form that they are compared in, and forget those that mean that there is none.

        Args:
          kept: stay as they are.
          are_values: False for names of folders, where 1.0 and NA are names.

        Returns: old code -> new code or -1, the last entry serving -1; and the strings that were forgotten.
        """
        old = self.names
        composed = [unicodedata.normalize("NFC", name) for name in old]
        free = [name for name in composed if name not in kept] if are_values else []
        new = dict(zip(free, canonical(free), strict=True))
        self._codes, codes = {}, []
        for name in composed:
            found = new.get(name, name)
            codes.append(-1 if found is None else self._codes.setdefault(found, len(self._codes)))
        return np.array([*codes, -1], dtype=np.int32), [name for name in old if new.get(name, "") is None]


def checked_names(classes: Any) -> tuple[str, ...]:
    """Class names as given: numbers as text, blanks at the ends gone, accents composed.

    Raises: ConfigError if they are not names, or one is empty or repeated.

    Example:
      >>> checked_names(["cat ", 7])
      ('cat', '7')
    """
    try:
        given = list(classes)
    except TypeError:
        given = [[classes]]
    odd = [name for name in given if isinstance(name, bool) or not isinstance(name, (str, int, np.integer, np.str_))]
    odd += [name for name in given if isinstance(name, str) and not name.isascii() and not _is_unicode(name)]
    if odd:
        raise ConfigError(f"classes: {odd[0]!r} is not a name", fix="give a list of texts, one per class")
    names = tuple(unicodedata.normalize("NFC", str(name)).strip() for name in given)
    if not names or "" in names or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        detail = f"named twice: {', '.join(twice)}" if twice else "an empty name" if names else "none given"
        raise ConfigError(f"classes: {detail}", fix="give every class one name, each once")
    return names


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one per line.

    Raises: DataError if it cannot be read.
    """
    try:
        lines = text_of(path.expanduser()).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the class names in {path}: {error}", fix="one name per line, UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def index_of(class_names: Sequence[str]) -> dict[str, int]:
    """Name -> number of its class; true and false in each way that tables, spreadsheets and Python write them.

    Example:
      >>> index_of(["cat", "True"])
      {'cat': 0, 'True': 1, 'true': 1, 'TRUE': 1}
    """
    index = {name: c for c, name in enumerate(class_names)}
    for word in ("true", "false"):
        spelled = [name for name in index if name.casefold() == word]
        if len(spelled) == 1:
            index |= dict.fromkeys((spelled[0], word, word.title(), word.upper()), index[spelled[0]])
    return index


def class_of(word: str, index: Mapping[str, int]) -> int | None:
    """The number of the class that a text names, with accents composed or not, 1.0 for 1; None if it is none.

    Args: index as of `index_of`.

    Example:
      >>> class_of("cafe\u0301", {"caf\u00e9": 0, "1": 1}), class_of("1.0", {"1": 1}), class_of("2", {"1": 1})
      (0, 1, None)
    """
    return index[word] if word in index else index.get(canonical([word])[0] or "")


def close_name(word: str, class_names: Sequence[str]) -> str | None:
    """The class that is probably meant by a name that is none; None for numbers, and where none is like it.

    Example:
      >>> close_name("Pansie", ["iris", "pansy"]), close_name("sunflower", ["iris", "pansy"])
      ('pansy', None)
    """
    folded = {name.casefold(): name for name in class_names}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return folded[close[0]] if close and not INTEGER.fullmatch(word) else None


def unknown_words(word: str, class_names: Sequence[str]) -> str:
    """The message about a label that is no class; it never advises to skip numbers: that shifts the others."""
    message = f"label {word!r} is not one of the {len(class_names)} classes"
    if (close := close_name(word, class_names)) is not None:
        return f"{message}; did you mean {close!r}?"
    if INTEGER.fullmatch(word):
        return (
            f"{message}, which are numbered 0 to {len(class_names) - 1}: name the classes in the order of the numbers"
        )
    return message


def odd_names(class_names: tuple[str, ...], labels: NDArray[np.int32], *, is_said: bool) -> list[str]:
    """Which names look like mistakes, a sentence each: lists, twins, misspellings, classes of a single image.

    Args:
      class_names: C names.   labels: [N] int32 class indices of labels and answers, -1 = unknown.
      is_said: the user, the source or another table has named the classes: then they are as they should be.

    Example:
      >>> odd_names(("cat", "CAT"), np.array([0, 1], np.int32), is_said=False)
      ["'cat' and 'CAT' differ in upper and lower case or blanks alone: if they are one class, write one name"]
      >>> odd_names(("forest", "forrest"), np.array([0, 0, 1], np.int32), is_said=False)
      ["'forrest' for 'forest' is perhaps misspelled: then mend it in the data"]
    """
    odd: list[str] = []
    sign, joined = ("", []) if is_said else _joined(class_names)
    if joined:
        odd.append(
            f"{len(joined):,} of the {len(class_names):,} class names, such as {joined[0]!r}, are others joined by "
            f"{sign!r}: where they are candidates, write {'|'.join(_parts(joined[0], sign))} in a column candidates"
        )
    lists = [] if is_said else [c for c in class_names if listed(c) or any(sign in c for sign in ",;|")]
    lists = [name for name in lists if name not in set(joined)]
    folded: dict[str, list[str]] = {}
    for name in class_names:
        folded.setdefault(" ".join(name.casefold().split()), []).append(name)
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    here = {name for name, n in zip(class_names, counts.tolist(), strict=True) if n}
    if is_said and here:  # the classes may be those of another table
        folded = {key: [name for name in names if name in here] for key, names in folded.items()}
    twins = [" and ".join(map(repr, names)) for names in folded.values() if len(names) > 1]
    slips = [] if is_said else [f"{rare!r} for {often!r}" for rare, often in _misspelled(class_names, counts)]
    unsorted = [] if is_said else [name for name in class_names if name.casefold() in NO_CLASSES]
    single = [class_names[c] for c in np.flatnonzero(counts == 1)] if counts.sum() > 2 * len(class_names) else []
    for found, detail in (
        (list(map(repr, lists)), f"look{'s' * (len(lists) == 1)} like several names in one"),
        (twins, "differ in upper and lower case or blanks alone: if they are one class, write one name"),
        (slips, f"{'is' if len(slips) == 1 else 'are'} perhaps misspelled: then mend it in the data"),
        (list(map(repr, single)), f"{'has' if len(single) == 1 else 'have'} a single labelled image"),
        (
            list(map(repr, unsorted)),
            f"{'is' if len(unsorted) == 1 else 'are'} read as a class; images without one go into a folder called "
            "unlabelled, or have an empty label in a table",
        ),
        (
            [repr(name) for name in class_names if is_said and name.startswith(("# ", "//"))],
            "read as a class, too: the file of the names knows no comments",
        ),
    ):
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            odd.append(f"{', '.join(found[:_NAMED])}{more} {detail}")
    return odd


def _parts(name: str, sign: str) -> list[str]:
    return [part.strip() for part in name.split(sign)]


def _joined(class_names: Sequence[str]) -> tuple[str, list[str]]:
    """A sign, and the names that are other names, or parts of others, with it between; none where they are few.

    Example:
      >>> _joined(["a", "a/b", "b / c", "c", "a/b/c"]), _joined(["animal/cat", "animal/dog", "plant/fern", "plant/ivy"])
      (('/', ['a/b', 'b / c', 'a/b/c']), ('', []))
    """
    for sign in _SIGNS:
        parts = {name: _parts(name, sign) for name in class_names if sign in name}
        uses = Counter(part for some in parts.values() for part in set(some))
        uses.update(set(class_names) - parts.keys())
        found = [name for name, some in parts.items() if all(part and uses[part] > 1 for part in some)]
        if len(found) >= max(_JOINED_MIN, _JOINED_FRAC * len(class_names)):
            return sign, found
    return "", []


def _misspelled(class_names: Sequence[str], counts: NDArray[np.int64]) -> list[tuple[str, str]]:
    """(name, name of a class at least twice as large) that differ by one letter, or two letters changing places."""
    near: dict[str, list[int]] = {}  # a name without one of its letters -> classes
    found: dict[str, str] = {}
    for c, name in enumerate(class_names):
        word = " ".join(name.casefold().split())
        inside = (i for part in _LONG.finditer(word) for i in range(*part.span()))
        for key in {word, *(word[:i] + word[i + 1 :] for i in inside)}:
            near.setdefault(key, []).append(c)
    for some in near.values():
        often = max(some, key=lambda c: int(counts[c]))
        for c in some:
            if counts[c] and 2 * counts[c] <= counts[often] and not _is_twin(class_names[c], class_names[often]):
                found.setdefault(class_names[c], class_names[often])
    return list(found.items())


def _is_twin(a: str, b: str) -> bool:
    return a.casefold().split() == b.casefold().split()


def without_images(
    class_names: tuple[str, ...],
    labels: NDArray[np.int32],
    candidates: Candidates | None,
    split: NDArray[np.int8] | None,
    unknown_rows: NDArray[np.int64],
) -> list[Problem]:
    """Classes without images: worth a word, and a problem where nothing but one class is left or test images show them.

    Args:
      class_names: C names.   labels: [N] int32 class indices, -1 = unknown.   candidates, split: of the N rows.
      unknown_rows: rows whose label is not a class.
    """
    is_test = np.zeros(len(labels), dtype=bool) if split is None else split == SPLITS.index("test")
    train = ~is_test if not is_test.all() else is_test
    known = labels[train & (labels >= 0)]
    seen = np.bincount(known, minlength=len(class_names)) > 0
    if candidates is not None:
        seen |= np.bincount(candidates.classes.numpy(), minlength=len(class_names)) > 0
    elif not len(known):
        return []
    is_full = len(known) + int(train[unknown_rows].sum()) == int(train.sum())
    is_tested = np.bincount(labels[is_test & (labels >= 0)], minlength=len(class_names)) > 0
    found = []
    for c in np.flatnonzero(~seen):
        kind, detail = "unseen_class", f"no label or candidate of class {class_names[c]!r}"
        if is_full:
            kind = "empty_class" if seen.sum() < 2 or is_tested[c] else "absent_class"
            detail = f"no image of class {class_names[c]!r}"
            detail += " to learn from, and test images are of it" if is_tested[c] else ""
        found.append(Problem(class_names[c], kind, detail))
    return found
