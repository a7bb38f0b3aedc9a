"""Class names in what a model says in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from labelwright.errors import ConfigError

_ARTICLES = frozenset({"a", "an", "the", "i"})
_NEGATIONS = frozenset({"not", "no", "isnt", "neither", "nor", "never"})
_STOP = re.compile(r"[.!?;,:\n]")
_TOKEN = re.compile(r"\d+|[^\W\d_]+|[+#]")  # 20km/h and 20 km/h are alike; C and C++ are not
_NUMBERING = re.compile(r"^\s*(?:[-*•]+|\(?\d{1,3}[.):])\s+(?=\S)", re.MULTILINE)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)


class AnswerParser:
    """Finds class names in what a model answers.

    Case, accents' encoding, punctuation, numbering, articles and plurals do not matter. A name inside a longer one
    does not count ("car" in "car wheel"); a name that is denied ("not a dog") does not either. All others that occur
    count. An answer that names every class says nothing and names none.

    Raises: ConfigError if two names differ only in case or punctuation, or one has no letter or digit.

    Example:
      >>> parse = AnswerParser(["car", "car wheel", "dog"])
      >>> parse("It is a car wheel."), parse("1. Dogs\\n2. Cars"), parse("hard to say")
      ((1,), (0, 2), ())
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._exact: dict[tuple[str, ...], int] = {}
        stems: dict[tuple[str, ...], list[int]] = {}
        for c, name in enumerate(class_names):
            tokens = tuple(_TOKEN.findall(_folded(name)))
            if not tokens:
                raise ConfigError(f"class {name!r} has no letter or digit to know it by", fix="give it a name in words")
            if tokens in self._exact:
                raise ConfigError(
                    f"classes {class_names[self._exact[tokens]]!r} and {name!r} cannot be distinguished in an answer",
                    fix="give them names that differ in more than case and punctuation",
                )
            self._exact[tokens] = c
            stems.setdefault(tuple(map(_stem, tokens)), []).append(c)
        self._stems = {tokens: owners[0] for tokens, owners in stems.items() if len(owners) == 1}
        self._lengths = sorted({len(tokens) for tokens in self._exact}, reverse=True)

    def __call__(self, answer: str) -> tuple[int, ...]:
        """Class indices named in an answer, ascending; empty if there is none to be found."""
        text = _folded(_NUMBERING.sub("", _THOUGHT.sub("", answer)))
        spans = list(_TOKEN.finditer(text))
        tokens = [span.group() for span in spans]
        starts = [span.end() for span in spans[:-1]]
        is_last = [bool(_STOP.search(text, a, b.start())) for a, b in zip(starts, spans[1:], strict=True)] + [True]
        found: set[int] = set()
        at = 0
        while at < len(tokens):
            named, n_used = self._longest(tokens, at, is_last)
            if named is not None and not self._is_denied(tokens, at, is_last):
                found.add(named)
            at += n_used
        is_everything = len(found) == len(self._exact) > 1
        return () if is_everything else tuple(sorted(found))

    def _longest(self, tokens: Sequence[str], at: int, is_last: Sequence[bool]) -> tuple[int | None, int]:
        """The class with the longest name that begins at a token, and how many tokens that takes."""
        for n in self._lengths:
            words = tuple(tokens[at : at + n])
            if len(words) < n or (n == 1 and words[0] in _ARTICLES and not is_last[at]):
                continue  # an article is a class called "A" only where its sentence ends
            named = self._exact.get(words)
            named = self._stems.get(tuple(map(_stem, words))) if named is None else named
            if named is not None:
                return named, n
        return None, 1

    def _is_denied(self, tokens: Sequence[str], at: int, is_last: Sequence[bool]) -> bool:
        """Whether "not", "no" or their like stand right before a name, in its sentence."""
        before = at - 1
        while before >= 0 and tokens[before] in _ARTICLES and not is_last[before]:
            before -= 1
        return before >= 0 and tokens[before] in _NEGATIONS and not is_last[before]


def _folded(text: str) -> str:
    """Text without case, apostrophes and variants of the same letter: "It Isn’t" becomes "it isnt"."""
    return re.sub(r"['’`´]", "", unicodedata.normalize("NFKC", text).casefold())


def _stem(word: str) -> str:
    """A word without its plural ending."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes", "uses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
