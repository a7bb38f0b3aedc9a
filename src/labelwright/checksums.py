"""Checksums of files that are read again: altered content is found when a file is opened, and all of it by `verify`.

A finished run keeps those of its files in checksums.json; stored features and decoded images keep theirs in the notes
beside them. Checkpoints are archives that hold their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelwright.errors import DataError
from labelwright.parsing import json_of

NAME = "checksums.json"
BLOCK = 1 << 22  # bytes that a checksum is of
SAMPLED = 64  # blocks looked at when a file is opened; of a larger file the first, the last and others by chance

Sums = Mapping[str, Any]


def sums_of(path: Path) -> dict[str, Any]:
    """Size of a file in bytes, and a checksum of each of its blocks: JSON-ready.

    Example:
      >>> import tempfile; path = Path(tempfile.mkdtemp(), "a"); _ = path.write_bytes(b"abc")
      >>> sums_of(path)
      {'size': 3, 'blocks': ['d8bb14d833d59559']}
    """
    with path.open("rb") as file:
        blocks = [hashlib.blake2b(block, digest_size=8).hexdigest() for block in iter(lambda: file.read(BLOCK), b"")]
    return {"size": path.stat().st_size, "blocks": blocks}


def of_place(place: str) -> dict[str, list[str]]:
    """Checksums of the blocks of a file, or of the files in a folder, by name; nothing where neither is here.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp()); _ = (folder / "a").write_bytes(b"abc")
      >>> of_place(str(folder)), of_place("google/siglip")
      ({'a': ['d8bb14d833d59559']}, {})
    """
    path = Path(place).expanduser()
    files = sorted(path.iterdir()) if place and path.is_dir() else [path]
    return {file.name: sums_of(file)["blocks"] for file in files if file.is_file()}


def fault(path: Path, sums: Any, *, sampled: bool = True) -> str | None:
    """What of a file is not as it was when its checksums were taken, in words; None if it is.

    Args:
      path: of the file.   sums: of `sums_of`, as read back.   sampled: look at `SAMPLED` blocks at most.

    Example:
      >>> import tempfile; path = Path(tempfile.mkdtemp(), "a"); _ = path.write_bytes(b"abc"); sums = sums_of(path)
      >>> fault(path, sums), path.write_bytes(b"abd") and fault(path, sums), path.unlink() or fault(path, sums)
      (None, 'has other content', 'is missing')
    """
    try:
        size, blocks = int(sums["size"]), list(sums["blocks"])
        with path.open("rb") as file:
            if (found := os.fstat(file.fileno()).st_size) != size:
                return f"has {found:,} bytes and had {size:,}"
            which: Sequence[int] = range(len(blocks))
            if sampled and len(blocks) > SAMPLED:
                others = random.SystemRandom().sample(range(1, len(blocks) - 1), SAMPLED - 2)
                which = [0, *sorted(others), len(blocks) - 1]
            for k in which:
                file.seek(k * BLOCK)
                if hashlib.blake2b(file.read(BLOCK), digest_size=8).hexdigest() != blocks[k]:
                    if len(blocks) == 1:
                        return "has other content"
                    return f"has other content in bytes {k * BLOCK:,} to {min(size, (k + 1) * BLOCK):,}"
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be compared with its checksum ({type(error).__name__}: {error})"
    return None


# ---- of a folder ----------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Sums]:
    """File, by its path from the folder -> checksums; empty where the folder keeps none.

    Raises: DataError if they cannot be read.
    """
    path = folder / NAME
    try:
        content = json_of(path.read_text(encoding="utf-8"))
        return {str(name): dict(sums) for name, sums in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            fix="restore it, or remove it to go on without checks of this folder",
        ) from error


def keep(folder: Path, names: Sequence[str]) -> None:
    """Take the checksums of files of a folder and write them into it.

    Example:
      >>> import tempfile; folder = Path(tempfile.mkdtemp()); _ = (folder / "a").write_bytes(b"abc")
      >>> keep(folder, ["a"]); check(folder / "a"); read(folder)["a"]["size"]
      3
    """
    _write(folder, {name: sums_of(folder / name) for name in sorted(names)})


def check(path: Path) -> None:
    """Refuse a file that is not as its folder, or the one above, has its checksum; one that has none passes.

    Raises: DataError.
    """
    folder, name = _keeper(path)
    if folder is not None and (sums := read(folder).get(name)) and (what := fault(path, sums)):
        raise DataError(
            f"{path} {what}: it was altered after labelwright wrote it",
            fix=f"restore it from a copy; `labelwright verify {folder}` looks at all files of the folder",
        )


@contextmanager
def renewed(path: Path) -> Iterator[None]:
    """The block replaces a file: its checksum is taken anew, if one was kept. A kill in between leaves it without."""
    folder, name = _keeper(path)
    sums = {} if folder is None else read(folder)
    if folder is not None:
        _write(folder, {key: value for key, value in sums.items() if key != name})
    yield
    if folder is not None:
        _write(folder, {**sums, name: sums_of(path)})


def _keeper(path: Path) -> tuple[Path | None, str]:
    """The folder that keeps the checksum of a file, if one does, and the file's name there."""
    if path.name != NAME:
        for folder, name in ((path.parent, path.name), (path.parent.parent, f"{path.parent.name}/{path.name}")):
            if (folder / NAME).is_file():
                return folder, name
    return None, ""


def _write(folder: Path, sums: Mapping[str, Sums]) -> None:
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(sums) + "\n", encoding="utf-8")
        temporary.replace(folder / NAME)
    finally:
        temporary.unlink(missing_ok=True)
