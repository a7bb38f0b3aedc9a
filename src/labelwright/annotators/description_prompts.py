"""How a chat model is asked for the looks of a class, and what of its answer is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from labelwright.parsing import json_of

LONGEST_WORDS = 30  # a longer text is not a caption; text towers of CLIP read 77 tokens
OTHERS_SHOWN = 30  # other classes named in a question, which tell a crane that flies from one that lifts


def description_prompt(class_names: Sequence[str], c: int, *, n: int = 4, context: str | None = None) -> str:
    """The question how one class looks.

    Args:
      class_names: the C classes; the nearest in the list are named too, so that a word of two meanings has one.
      c: index of the class.   n: how many descriptions.   context: the user's hint, such as "traffic signs", or None.

    Example:
      >>> print(description_prompt(["crane", "heron"], 0, n=2, context="water birds"))
      The images are of: water birds.
      Write 2 different short descriptions of how "crane" looks in a photo, to find its photos among those of other classes (heron).
      Each description on a line of its own, in at most 15 words, complete without the others.
      Only what the eye sees: shape, colours, parts, pattern, posture or surroundings.
      Nothing that is heard, smelled, felt or known, and no use, origin, feeling or comparison with another class.
      Do not repeat the class name. No introduction, no numbers, nothing but the descriptions.
    """  # noqa: E501
    start = max(0, min(c - OTHERS_SHOWN // 2, len(class_names) - OTHERS_SHOWN - 1))
    others = [name for i, name in enumerate(class_names) if start <= i <= start + OTHERS_SHOWN and i != c]
    named = f" ({', '.join(others)})" if others else ""
    lines = [f"The images are of: {context.strip()}."] if context and context.strip() else []
    lines += [
        f'Write {n} different short descriptions of how "{class_names[c]}" looks in a photo, to find its photos among '
        f"those of other classes{named}.",
        "Each description on a line of its own, in at most 15 words, complete without the others.",
        "Only what the eye sees: shape, colours, parts, pattern, posture or surroundings.",
        "Nothing that is heard, smelled, felt or known, and no use, origin, feeling or comparison with another class.",
        "Do not repeat the class name. No introduction, no numbers, nothing but the descriptions.",
    ]
    return "\n".join(lines)


_THINKING = re.compile(r"<think(ing)?>.*?(</think(ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*•–—·+>#]+\s+|\(?(?:\d{1,2}|[a-zA-Z])[.):]\s+|\[\d{1,2}\]\s*)+")
_QUOTES = "\"'“”‘’„«»`"
_REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i am sorry|^sorry|i apologi[sz]e|i (?:can(?:no|['’])t|am unable|['’]m unable|do not|don['’]t)"
    r"|i['’]m (?:unable|not)|as an? (?:ai|language model)|unable to (?:help|assist|provide)|no information)\b",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|here (?:are|is)|here['’]s|below (?:are|is)|i hope|let me know"
    r"|feel free|descriptions?)\b",
    re.IGNORECASE,
)


def parse_descriptions(answer: str, *, n: int = 4) -> tuple[str, ...]:
    """The descriptions in a model's answer: lines, a numbered or bulleted list, or a JSON list.

    Dropped are refusals, small talk, headings, single words, more than 30 words, and what was written before.

    Args:
      answer: as the model gave it.   n: at most so many are kept.

    Example:
      >>> parse_descriptions("Sure! Here they are:\\n1. **a red octagon**\\n2) A red octagon.\\n- white letters on red")
      ('a red octagon', 'white letters on red')
    """
    texts: list[str] = []
    seen: set[str] = set()
    for line in _lines(_FENCE.sub("", _THINKING.sub("", answer)).strip()):
        text = " ".join(_BULLET.sub("", line).replace("**", "").replace("__", "").split())
        text = text.strip(" ,;").removesuffix(".")
        if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:  # around the whole, not around a word in it
            text = text[1:-1].strip().removesuffix(".")
        if not text:
            continue
        key = re.sub(r"\W+", " ", text).strip().lower()
        n_words = len(key.split())
        is_talk = _REFUSAL.search(text) or _CHATTER.match(text) or text.endswith((":", "?"))
        if not is_talk and 2 <= n_words <= LONGEST_WORDS and key not in seen:
            seen.add(key)
            texts.append(text)
    return tuple(texts[:n])


def _lines(answer: str) -> list[str]:
    """An answer's items: of a JSON list (maybe inside an object), else its lines, else its sentences."""
    if answer.startswith(("[", "{")):
        try:
            value = json_of(answer)
        except ValueError:
            value = None
        if isinstance(value, dict):
            value = next((entry for entry in value.values() if isinstance(entry, list)), list(value.values()))
        if isinstance(value, list):
            return [entry for entry in value if isinstance(entry, str)]
    lines = answer.splitlines()
    if len(lines) == 1 and len(answer.split()) > LONGEST_WORDS:
        return re.split(r"(?<=[.;])\s+", answer)
    return lines
