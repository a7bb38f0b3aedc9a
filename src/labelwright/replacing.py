"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, beside ``path`` and renamed to it at the end of the block; removed if that fails.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "a.txt")
      >>> with replacing(path) as temporary:
      ...     _ = temporary.write_text("hello")
      >>> path.read_text(), [p.name for p in path.parent.iterdir()]
      ('hello', ['a.txt'])
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
