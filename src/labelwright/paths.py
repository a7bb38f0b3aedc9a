"""Paths that the operating system can take, checked where a verb begins."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from labelwright.errors import ConfigError, DataError

LONGEST_NAME = 255  # bytes that a file's name may have

PATHS = frozenset({"run", "first", "second", "path", "out", "export", "verified", "config"})
"""Arguments of verbs that are a path."""

OUTPUTS = frozenset({"out", "export", "csv"})

POSITIONAL = frozenset({"run", "first", "second", "path", "data", "source"})
"""Arguments that have no flag of their name."""

MAYBE_PATHS = frozenset({"data", "source", "test", "classes", "corrections", "descriptions", "model", "csv"})
"""Arguments that may be a path, a list of which may be paths, or another thing altogether."""


def absolute(place: str) -> str:
    """What lies on this machine by its whole path, for workers that may run in another folder; others as they are.

    Example:
      >>> absolute("google/siglip"), absolute("/tmp")
      ('google/siglip', '/tmp')
    """
    path = Path(place).expanduser()
    return str(path.absolute()) if path.exists() else place


def check_path(name: str, value: Any, *, is_path: bool = True) -> None:
    """Refuse what cannot be a path: bytes, numbers, an empty text, a NUL, half a character, a name above 255 bytes.

    Args:
      name: of the argument.   value: of it.   is_path: False where it may be something else than a path.

    Raises: ConfigError where something is written, DataError otherwise.

    Example:
      >>> check_path("run", b"run")
      Traceback (most recent call last):
      labelwright.errors.DataError: run=b'run' is not a path
        fix: give a text or a pathlib.Path
    """
    kind = ConfigError if name in OUTPUTS else DataError
    if not isinstance(value, (str, Path)):
        if is_path:
            raise kind(f"{name}={repr(value)[:80]} is not a path", fix="give a text or a pathlib.Path")
        return
    text = str(value)
    shown = repr(text if len(text) < 100 else f"{text[:60]}...{text[-20:]}")
    try:
        longest = 0 if "://" in text else max(map(len, text.encode().split(b"/")))  # addresses may be longer
        text.encode()
        Path(text).expanduser()
    except UnicodeEncodeError as error:
        shown = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) & 255:02x}", text)  # its bytes
        raise kind(
            f"{name}='{shown}': the name of the path is not UTF-8 text", fix="rename it, as convmv does"
        ) from error
    except RuntimeError as error:  # ~nobody
        raise kind(f"{name}={shown}: there is no such user", fix="write the path without ~") from error
    if not text or "\0" in text or longest > LONGEST_NAME:
        long = f"a name in it has {longest} bytes"
        reason = "it is empty" if not text else "a NUL is in it" if "\0" in text else long
        fix = "check the path" if name in POSITIONAL else f"give --{name} another path"
        raise kind(f"{name}={shown} is no path: {reason}", fix=fix)


def from_anywhere(text: str) -> str:
    """A path, or a pattern of paths, as it reads from any working folder; what leads to no file stays as it is.

    Example:
      >>> from_anywhere("/usr/../usr"), from_anywhere("owner/name"), from_anywhere("s3://bucket/*.parquet")
      ('/usr', 'owner/name', 's3://bucket/*.parquet')
    """
    path = Path(text).expanduser()
    if "://" in text:
        return text
    if path.exists():
        return str(path.resolve())
    return str(path.absolute()) if glob.has_magic(text) and glob.glob(str(path), recursive=True) else text  # noqa: PTH207
