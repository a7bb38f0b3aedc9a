"""What a method adds to the report that every run has, and the pieces that it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelwright.reporting.svg import Chart, lines
from labelwright.reporting.words import finite
from labelwright.run_folder import Run
from labelwright.wording import number, percent

FLAT = 0.01  # a curve whose values differ by less decides nothing, and is not drawn


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; ``caption`` says what they are. Text is text, numbers come as text already."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Card:
    """A group of images: name, sentences, ids of pictures."""

    title: str
    words: Sequence[str]
    pictures: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One part of the page about the situation of a run; whatever is empty is not shown."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class Sections:
    """What a method shows."""

    panels: Sequence[Panel] = ()  # of the situation
    training: Sequence[Chart] = ()  # charts of how training went


def curve(
    run: Run, title: str, keys: Mapping[str, str], *, is_share: bool = False, meaning: str = "", kept: int | None = None
) -> list[Chart]:
    """A chart of numbers over epochs; none where there are fewer than three, or none of them moves.

    Args:
      keys: name of a line -> key of the epoch records, with dots between nested keys.
      is_share: they are shares 0 to 1.
      meaning: what the finding ends with.
      kept: epochs that the kept state had trained.

    Example:
      >>> epochs = [{"epoch": e, "loss": 3.0 - e} for e in range(3)]
      >>> run = Run("run", summary={}, data={}, epochs=epochs, begun={})
      >>> curve(run, "Loss", {"loss": "loss"})[0].finding
      'From 3 to 1 over 3 epochs.'
    """
    curves: dict[str, tuple[list[float], list[float | None]]] = {}
    for name, key in keys.items():
        found = [(float(record.get("epoch", i) + 1), finite(_at(record, key))) for i, record in enumerate(run.epochs)]
        start = finite(_at(run.begun, key))
        found = [(0.0, start), *found] if start is not None else found
        known = [(x, y) for x, y in found if y is not None]
        if len(known) >= 3:
            curves[name] = ([x for x, _ in known], [y for _, y in known])
    spans = [max(y) - min(y) for _, ys in curves.values() if (y := [v for v in ys if v is not None])]
    if not curves or max(spans) < FLAT:
        return []
    show = percent if is_share else number
    words = []
    for name, (_, ys) in curves.items():
        who = f"{name}: from" if len(curves) > 1 else "From"
        words.append(f"{who} {show(ys[0])} to {show(ys[-1])}")
    finding = f"{'; '.join(words)} over {len(run.epochs):,} epochs."
    mark = None if kept is None else (float(kept), "kept")
    return [
        lines(title, f"{finding} {meaning}".strip(), curves, x_title="epoch", is_share=is_share, mark=mark),
    ]


def _at(record: Mapping[str, Any], key: str) -> Any:
    found: Any = record
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
