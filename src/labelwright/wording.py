"""Numbers as a reader of a report wants them, and texts without secrets."""

from __future__ import annotations

import re
from typing import Any


def percent(value: float | None) -> str:
    """A share from 0 to 1 as a percentage, a dash for none.

    Example:
      >>> percent(0.1234), percent(None)
      ('12.3%', '–')
    """
    return "–" if value is None else f"{value * 100:.1f}%"


def points(before: float | None, after: float | None) -> str:
    """The change of a share in percentage points, with its sign; a dash if one of them is not known.

    Example:
      >>> points(0.52, 0.86), points(0.5, 0.25), points(None, 0.5)
      ('+34.0', '-25.0', '–')
    """
    return "–" if before is None or after is None else f"{(after - before) * 100:+.1f}"


def number(value: Any) -> str:
    """An integer with commas, a float in three digits, anything else as it prints; a dash for None.

    Example:
      >>> number(12345), number(0.123456), number("auto")
      ('12,345', '0.123', 'auto')
    """
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
      >>> duration(12.34), duration(125), duration(7260)
      ('12 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number of things.

    Example:
      >>> counted(1, "image"), counted(1200, "image"), counted(2, "class", "classes")
      ('1 image', '1,200 images', '2 classes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def redacted(text: str) -> str:
    """A text without the passwords of its URLs and without what follows Bearer, Basic or ``key=``.

    Example:
      >>> redacted("http://ann:s3cret@host/v1?api_key=abc answered: Authorization: Bearer sk-12345678")
      'http://***@host/v1?api_key=*** answered: Authorization: Bearer ***'
    """
    text = re.sub(r"(?<=://)[^/\s@]*@", "***@", text)
    text = re.sub(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+", r"\1 ***", text)
    return re.sub(r"(?i)([\w-]*(?:key|token|secret|password)=)[^&\s\"']+", r"\1***", text)
