"""Charts of a report, drawn as SVG: bars, lines, dots with intervals, a matrix.

Every chart has a title, a description that says what it shows, and a finding: one sentence computed from its numbers.
Colours are classes of style.css, so that a chart follows light, dark and print; sizes suit a screen of 390 px.
"""

from __future__ import annotations

import html
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labelwright.reporting.words import plain
from labelwright.wording import number, percent

WIDTH = 360  # px of a chart as drawn; it is shown at up to one and a half times that
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 12, 34  # px around the plot
ROW = 20  # px of a bar
LABEL_CHARS = 20  # of a name beside a bar


@dataclass(frozen=True)
class Chart:
    """One chart: heading, what follows from it, and the drawing; ``is_wide`` takes the width of the page."""

    title: str
    finding: str
    svg: str
    is_wide: bool = False


Point = tuple[float, float, float, float, str]
"""x, y, lower and upper end of y, what it is."""


def bars(title: str, finding: str, rows: Sequence[tuple[str, float, str]], *, most: float | None = None) -> Chart:
    """Lying bars, one for each (name, value, what to write at its end).

    Args:
      most: value of a bar of full length; None: the largest.

    Example:
      >>> chart = bars("Sizes", "a is largest.", [("a", 4.0, "4"), ("<b>", 1.0, "1")])
      >>> chart.svg.count("<rect"), "&lt;b&gt;" in chart.svg, "<b>" in chart.svg
      (2, True, False)
    """
    left = 14 + 6.2 * max((min(len(name), LABEL_CHARS) for name, *_ in rows), default=1)
    room = WIDTH - left - 58
    full = most or max((value for _, value, _ in rows), default=1) or 1
    parts = []
    for i, (name, value, words) in enumerate(rows):
        y, length = TOP + i * ROW, max(1.0, room * min(1.0, value / full))
        parts.append(
            f"<g><title>{_text(name)}: {_text(words)}</title>"
            f'<text x="{left - 6:.0f}" y="{y + 13}" class="t end">{_text(_short(name))}</text>'
            f'<rect x="{left:.0f}" y="{y + 3}" width="{length:.1f}" height="{ROW - 7}" rx="2" class="s0"/>'
            f'<text x="{left + length + 5:.1f}" y="{y + 13}" class="t">{_text(words)}</text></g>'
        )
    return _chart(title, finding, "".join(parts), TOP + len(rows) * ROW + 4, words=f"Bar chart of {len(rows)}.")


def lines(
    title: str,
    finding: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float | None]]],
    *,
    x_title: str,
    is_share: bool = False,
    mark: tuple[float, str] | None = None,
    band: tuple[float, float] | None = None,
) -> Chart:
    """A line per name -> (x, y); an y of None is a gap.

    Args:
      is_share: y is a share, shown in percent.
      mark: x of a dashed line and what it says.
      band: from and to which x the plot is shaded.

    Example:
      >>> chart = lines("Loss", "It fell.", {"loss": ([0, 1, 2], [3.0, None, 1.0])}, x_title="epoch")
      >>> chart.svg.count("<circle"), chart.svg.count("<polyline")
      (2, 2)
    """
    known = [y for _, ys in curves.values() for y in ys if y is not None]
    low, high = _span(known, from_zero=is_share or min(known, default=0) >= 0)
    high += 0.1 * (high - low) if mark else 0  # for its words
    xs = [x for x_of, _ in curves.values() for x in x_of]
    first, last = min(xs, default=0), max(xs, default=1)
    height = 190

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - first) / ((last - first) or 1)
        up = (y - low) / ((high - low) or 1)
        return LEFT + right * (WIDTH - LEFT - RIGHT), height - BOTTOM - up * (height - BOTTOM - TOP)

    parts = []
    if band is not None:
        (x0, y0), (x1, _) = at(band[0] - 0.4, low), at(band[1] + 0.4, low)
        x0, x1 = max(x0, LEFT), min(x1, WIDTH - RIGHT)
        parts.append(f'<rect x="{x0:.1f}" y="{TOP}" width="{x1 - x0:.1f}" height="{y0 - TOP:.1f}" class="band"/>')
    parts.append(_y_axis(low, high, height, is_share))
    parts.append(_x_axis([(x, at(x, low)[0], number(x)) for x in _ticks(first, last, whole=True)], height, x_title))
    if mark is not None:
        x, _ = at(mark[0], low)
        side = "end" if x > WIDTH / 2 else "start"
        shift = -4 if side == "end" else 4
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" class="mark"/>'
            f'<text x="{x + shift:.1f}" y="{TOP + 9}" class="t {side}">{_text(mark[1])}</text>'
        )
    for i, (name, (x_of, y_of)) in enumerate(curves.items()):
        for run in _unbroken(x_of, y_of):
            points = [at(x, y) for x, y in run]
            parts.append(
                f'<polyline class="l{i % 6}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}">'
                f"<title>{_text(name)}</title></polyline>"
            )
        for x, y in zip(x_of, y_of, strict=True):
            if y is not None and len(x_of) <= 40:
                cx, cy = at(x, y)
                words = f"{name}, {x_title} {number(x)}: {percent(y) if is_share else number(float(y))}"
                dot = f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.5" class="s{i % 6}">'
                parts.append(f"{dot}<title>{_text(words)}</title></circle>")
    if len(curves) > 1:
        parts.append(_legend(list(curves), height))
        height += 18 * -(-len(curves) // 2)
    return _chart(title, finding, "".join(parts), height, words=f"Line chart of {', '.join(curves)} over {x_title}.")


def dots(
    title: str,
    finding: str,
    points: Sequence[Point],
    *,
    x_title: str,
    y_title: str,
    is_log: bool = False,
    has_diagonal: bool = False,
    x_is_share: bool = False,
    counts: Sequence[int] = (),
) -> Chart:
    """Dots with an interval each; y is a share.

    Args:
      counts: a number of images for each dot, written at the foot of the chart below it.
      is_log: x is drawn as a power of ten, and must be above 0.
      has_diagonal: a dashed line where x and y are equal.
      x_is_share: x is a share as well.

    Example:
      >>> chart = dots("By size", "No trend.", [(10, 0.5, 0.4, 0.6, "owl")], x_title="images", y_title="right")
      >>> "owl: 50.0% (40.0% to 60.0%)" in chart.svg
      True
    """
    height = 220
    xs = [math.log10(x) if is_log else x for x, *_ in points]
    first, last = (0.0, 1.0) if x_is_share else (min(xs, default=0), max(xs, default=1))
    if not x_is_share:
        pad = 0.05 * (last - first) or 0.5
        first, last = first - pad, last + pad

    def at(x: float, y: float) -> tuple[float, float]:
        right = ((math.log10(x) if is_log else x) - first) / ((last - first) or 1)
        return LEFT + right * (WIDTH - LEFT - RIGHT), height - BOTTOM - y * (height - BOTTOM - TOP)

    parts = [_y_axis(0, 1, height, True)]
    if x_is_share:
        marks = [(x, at(x, 0)[0], percent(x).replace(".0", "")) for x in (0, 0.25, 0.5, 0.75, 1.0)]
    elif is_log:
        marks = [(x, at(x, 0)[0], number(round(x))) for x in _decades(first, last)]
    else:
        marks = [(x, at(x, 0)[0], number(x)) for x in _ticks(first, last)]
    parts.append(_x_axis(marks, height, x_title))
    if has_diagonal:
        (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
        parts.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="mark"/>')
    for x, y, low, high, name in points:
        (cx, cy), (_, top), (_, end) = at(x, y), at(x, high), at(x, low)
        words = f"{name}: {percent(y)} ({percent(low)} to {percent(high)})"
        parts.append(
            f'<g><title>{_text(words)}</title><line x1="{cx:.1f}" x2="{cx:.1f}" y1="{top:.1f}" y2="{end:.1f}" '
            f'class="whisker"/><circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" class="s0"/></g>'
        )
    for (x, *_), n in zip(points, counts, strict=False):
        parts.append(f'<text x="{at(x, 0)[0]:.1f}" y="{height - BOTTOM - 4}" class="t mid halo">{n:,}</text>')
    return _chart(title, finding, "".join(parts), height, words=f"{len(points)} dots: {y_title} against {x_title}.")


def matrix(title: str, finding: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Chart:
    """A table of counts as shades: row i, column j are images of class i that were taken for class j.

    Example:
      >>> chart = matrix("Confusions", "None.", ["a", "b"], [[3, 0], [1, 2]])
      >>> "b → a: 1 of 3" in chart.svg, chart.svg.count("<rect")
      (True, 3)
    """
    n = len(names)
    cell = 26 if n <= 12 else 18 if n <= 30 else 13
    left = 10 + 6.2 * max(min(len(name), LABEL_CHARS) for name in names)
    top = 14 + 5.8 * max(min(len(name), LABEL_CHARS) for name in names)
    parts = []
    for i, name in enumerate(names):
        y, total = top + i * cell, sum(counts[i]) or 1
        parts.append(f'<text x="{left - 5:.0f}" y="{y + cell * 0.7:.0f}" class="t end">{_text(_short(name))}</text>')
        x = left + i * cell + cell * 0.7
        parts.append(
            f'<text transform="translate({x:.0f} {top - 4:.0f}) rotate(-60)" class="t">{_text(_short(name))}</text>'
        )
        for j, value in enumerate(counts[i]):
            if not value:
                continue
            kind = "hit" if i == j else "miss"
            words = f"{_short(name)} → {_short(names[j])}: {value:,} of {total:,}"
            title_of = "" if i == j and n > 12 else f"<title>{_text(words)}</title>"
            x, shade = left + j * cell, 0.12 + 0.88 * value / total
            parts.append(
                f'<rect x="{x:.0f}" y="{y:.0f}" width="{cell - 1}" height="{cell - 1}" class="{kind}" '
                f'fill-opacity="{shade:.1f}">{title_of}</rect>'
            )
            if n <= 12:
                dark = " on" if shade > 0.55 else ""
                parts.append(f'<text x="{x + cell / 2:.0f}" y="{y + 16:.0f}" class="t mid{dark}">{value}</text>')
    words = f"Matrix of {n} classes: rows are the truth, columns what they were taken for."
    size = (round(left + n * cell + top * 0.6 + 8), round(top + n * cell + 8))
    return _chart(title, finding, "".join(parts), size[1], words=words, width=size[0], is_wide=True)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _chart(
    title: str, finding: str, inner: str, height: float, *, words: str, width: int = WIDTH, is_wide: bool = False
) -> Chart:
    key = f"c{zlib.crc32(repr((title, finding, inner)).encode()):08x}"  # the same page for the same run
    kind = ' class="wide"' if is_wide else ""
    svg = (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-labelledby="{key}t {key}d"{kind}><title id="{key}t">{_text(title)}</title>'
        f'<desc id="{key}d">{_text(f"{finding} {words}")}</desc>{inner}</svg>'
    )
    return Chart(title, finding, svg, is_wide)


def _text(text: Any) -> str:
    return html.escape(plain(str(text)), quote=True)


def _short(name: str) -> str:
    return name if len(name) <= LABEL_CHARS else name[: LABEL_CHARS - 1] + "…"


def _span(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low = 0.0
    room = 0.06 * (high - low) or 0.5
    return (low if from_zero else low - room), high + room


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About four round numbers between two.

    Example:
      >>> _ticks(0, 10), _ticks(0, 3, whole=True)
      ([0, 2, 4, 6, 8, 10], [0, 1, 2, 3])
    """
    raw = (high - low) / 4 or 1
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * 1.3)
    step = max(1, round(step)) if whole else step
    found = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [round(x) if abs(x - round(x)) < 1e-9 else x for x in found]


def _decades(low: float, high: float) -> list[float]:
    found = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    if len(found) < 2:
        found = [10.0 ** (low + (high - low) * share) for share in (0.08, 0.5, 0.92)]
    return found


def _y_axis(low: float, high: float, height: float, is_share: bool) -> str:
    parts = []
    for tick in _ticks(low, high):
        y = height - BOTTOM - (tick - low) / ((high - low) or 1) * (height - BOTTOM - TOP)
        words = f"{tick * 100:.0f}%" if is_share else number(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>'
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" class="t end">{words}</text>'
        )
    return "".join(parts)


def _x_axis(ticks: Sequence[tuple[float, float, str]], height: float, title: str) -> str:
    marks = "".join(
        f'<text x="{min(x, WIDTH - 4 * len(words)):.1f}" y="{height - BOTTOM + 14}" class="t mid">{words}</text>'
        for _, x, words in ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{marks}<text x="{middle:.0f}" y="{height - 5}" class="t mid">{_text(title)}</text>'


def _legend(names: Sequence[str], top: float) -> str:
    parts = []
    for i, name in enumerate(names):
        x, y = LEFT + (i % 2) * (WIDTH - LEFT) / 2, top + 8 + 18 * (i // 2)
        parts.append(
            f'<line x1="{x - 6:.0f}" x2="{x + 10:.0f}" y1="{y}" y2="{y}" class="l{i % 6}"/>'
            f'<text x="{x + 15:.0f}" y="{y + 4}" class="t">{_text(name[:28])}</text>'
        )
    return "".join(parts)


def _unbroken(xs: Sequence[float], ys: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [run for run in found if run]
