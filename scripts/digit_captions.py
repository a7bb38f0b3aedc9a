"""Captions for drawn digits, with the faults that captions from the web have.

Some digits are never named (NEVER_NAMED are only described: concept mismatch), look-alikes share captions and are
often called by each other's names (concept confusion: most threes an eight, most nines a four), some captions say
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from labelwright.encoders.templates import fill

Option = TypeVar("Option")

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NEVER_NAMED = (0, 7)

# Shares of captions that name the digit, are shared with look-alikes, and say nothing; the rest describe it.
NAME_SHARE = {0: 0.0, 1: 0.45, 2: 0.45, 3: 0.35, 4: 0.4, 5: 0.45, 6: 0.5, 7: 0.0, 8: 0.45, 9: 0.35}
ALIKE_SHARE = 0.25
EMPTY_SHARE = 0.08
MISNAMED = {3: (8, 0.6), 8: (3, 0.28), 9: (4, 0.65), 4: (9, 0.3), 5: (3, 0.1), 2: (3, 0.05)}
"""Digit -> the other one whose name it gets, and in what share of the captions that give a name."""

NAMED = (
    "a photo of a {}",
    "a photo of the digit {}",
    "the digit {}",
    "the number {}",
    "a {kind} {}",
    "a {kind} digit {}",
    "a picture of a {}",
    "a blurry photo of a {}",
    "a small {}",
    "a {} written by hand",
    "someone wrote a {}",
    "an image of the number {}",
    "{}",
)

# Each digit's words: one of every group, in order.
LOOKS: dict[int, tuple[tuple[str, ...], ...]] = {
    0: (
        ("a round", "an oval", "a closed", "a big round", "a plain"),
        ("ring", "circle", "closed ring", "oval", "hoop"),
        ("with an empty middle", "with nothing inside", "that is empty inside", "with a hole in the middle"),
    ),
    1: (
        ("a single", "a lone", "one plain", "just a"),
        ("upright", "vertical", "straight"),
        ("stroke", "line", "stick", "stem from top to bottom"),
    ),
    2: (
        ("a curved neck", "a bent neck like a swan", "a hook open to the left", "a hook"),
        ("on top of", "above", "standing on"),
        ("a flat base", "a flat line at the bottom", "a flat foot"),
    ),
    3: (
        ("two open curves", "two bumps", "two half circles"),
        ("one above the other,", "stacked,"),
        ("open to the left", "pointing to the right"),
    ),
    4: (
        ("an open cup", "an angle", "a sharp corner"),
        ("crossed by", "next to", "cut by"),
        ("an upright line", "a vertical stem"),
    ),
    5: (
        ("a flat top", "a short flag at the top", "a bar at the top"),
        ("over", "above"),
        ("a round belly", "a belly open to the left", "a wide curve at the bottom"),
    ),
    6: (
        ("a loop", "a small ring", "a closed ring"),
        ("at the bottom with", "below"),
        ("a tail going up", "a curved tail pointing up", "a stem rising from it"),
    ),
    7: (
        ("a flat", "a straight", "a horizontal"),
        ("bar", "line", "stroke"),
        ("on top of", "at the top of", "above"),
        ("a slanted", "a leaning", "a diagonal"),
        ("stem", "leg", "line"),
    ),
    8: (
        ("two loops", "two rings", "two closed circles", "a pair of rings"),
        ("stacked", "one on top of the other", "that touch, one above the other", "like a snowman"),
    ),
    9: (
        ("a loop", "a small ring", "a closed ring"),
        ("at the top with", "above"),
        ("a tail hanging down", "a curved tail pointing down", "a stem going down"),
    ),
}
STARTS = ("", "", "a photo of ", "a picture of ", "a {kind} digit, ", "a digit made of ", "{kind}: ", "a shape like ")

ALIKE: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((3, 8), ("a curvy digit", "a digit made of curves", "a curvy {kind} number")),
    ((1, 7), ("a digit with a straight stem", "a thin digit with one leg", "a straight {kind} number")),
    ((6, 9), ("a loop with a tail", "a digit with one loop and a tail", "a ring and a tail")),
    ((4, 9), ("a digit that stands on one leg", "a {kind} number with a stem on the right")),
    ((3, 5), ("a digit with a round belly", "a {kind} number open to the left")),
    ((0, 6), ("a round digit", "a round {kind} number")),
    ((1, 2), ("a digit standing on a base", "a {kind} number with a foot")),
)
EMPTY = ("a {kind} digit", "a photo of a {kind} number", "a digit", "a number on a page", "white ink on black")


def caption(digit: int, draws: np.random.Generator, *, kind: str) -> str:
    """One caption for an image.

    Args:
      digit: what the image shows, 0 to 9.
      draws: what chooses the caption.
      kind: "handwritten" or "printed".

    Example:
      >>> caption(7, np.random.default_rng(0), kind="printed")
      'a printed digit, a flat bar on top of a slanted stem'
    """
    shares = (NAME_SHARE[digit], ALIKE_SHARE, EMPTY_SHARE)
    part = int(np.searchsorted(np.cumsum(shares), draws.random(), side="right"))
    if part == 0:
        other, share = MISNAMED.get(digit, (digit, 0.0))
        said = other if draws.random() < share else digit
        return fill(_one(NAMED, draws).replace("{kind}", kind), NAMES[said])
    if part == 1:
        text = _one(_one([texts for digits, texts in ALIKE if digit in digits], draws), draws)
    elif part == 2:
        text = _one(EMPTY, draws)
    else:
        text = _one(STARTS, draws) + " ".join(_one(words, draws) for words in LOOKS[digit])
    return text.replace("{kind}", kind)


def captions(digits: NDArray[np.int64], printed: NDArray[np.bool_], draws: np.random.Generator) -> list[str]:
    """A caption for each of N images: digits [N], and whether each is in a font [N]."""
    kinds = np.where(printed, "printed", "handwritten")
    return [caption(int(digit), draws, kind=str(kind)) for digit, kind in zip(digits, kinds, strict=True)]


def _one(options: Sequence[Option], draws: np.random.Generator) -> Option:
    return options[int(draws.integers(len(options)))]
