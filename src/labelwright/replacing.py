"""Output: paths are checked before any work, and files are there whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labelwright import checksums
from labelwright.errors import ConfigError, DiskError, LabelwrightError
from labelwright.launch import rank
from labelwright.paths import LONGEST_NAME, check_path

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # what safetensors says instead of raising an OSError
_PROBE = bytes(4096)


@contextmanager
def replacing(path: Path, *, durable: bool = False, is_private: bool = False) -> Iterator[Path]:
    """A temporary file to write, beside ``path`` and renamed to it at the end of the block; removed if that fails.

    Of a file whose checksum its folder keeps (see `checksums`), that is kept anew.

    Args:
      path: of the file; its folder is there.
      is_private: nobody but its owner may read it.
      durable: the content has reached the disk before the old file goes: a power cut loses neither.

    Raises: DiskError if it cannot be written; what was there before stays.

    Example:
      >>> path = Path(tempfile.mkdtemp(), "a.txt")
      >>> with replacing(path) as temporary:
      ...     _ = temporary.write_text("hello")
      >>> path.read_text(), [p.name for p in path.parent.iterdir()]
      ('hello', ['a.txt'])
    """
    temporary = path.with_name(f".{short_name(path.name, most=200)}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            temporary.touch()
            mode = 0o600 if is_private else temporary.stat().st_mode  # as the umask has it, whatever writes the file
            temporary.chmod(mode)
            yield temporary
            temporary.chmod(mode)
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            with checksums.renewed(path):
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is there under its name at the end of the block, or not at all.

    What a killed process left of an earlier try is removed.

    Raises: DiskError if it cannot be written.

    Example:
      >>> path = Path(tempfile.mkdtemp(), "sorted")
      >>> with whole_folder(path) as building:
      ...     _ = (building / "a.txt").write_text("hello")
      >>> [p.name for p in path.iterdir()], [p.name for p in path.parent.iterdir()]
      (['a.txt'], ['sorted'])
    """
    mine = f".{path.name[:40]}."
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{glob.escape(mine)}*.tmp"):
            with suppress(Timeout), FileLock(stale / ".lock", timeout=0):  # nobody is writing it
                shutil.rmtree(stale)
        with (
            tempfile.TemporaryDirectory(prefix=mine, suffix=".tmp", dir=path.parent) as temporary,
            FileLock(Path(temporary, ".lock")),
        ):
            building = Path(temporary, "whole")
            building.mkdir()
            yield building
            building.replace(path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn whatever a full, read-only or vanished disk makes libraries raise into a DiskError that names ``path``.

    Example:
      >>> with disk_errors(Path("run/a.txt")):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      labelwright.errors.DiskError: run/a.txt cannot be written: No space left on device
        fix: free some space or mend the disk; fit, pretrain and annotate then go on where they stopped, with --resume
    """
    try:
        yield
    except LabelwrightError:
        raise
    except Exception as error:
        if (reason := _disk_reason(error)) is None:
            raise
        raise DiskError(
            f"{path} cannot be written: {reason}",
            reason=reason,
            fix="free some space or mend the disk; fit, pretrain and annotate then go on where they stopped, "
            "with --resume",
        ) from error


def _disk_reason(error: BaseException | None) -> str | None:
    """The operating system's own error, behind whatever a library made of it; None without one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            what = f" ({error.filename})" if error.filename and not str(error.filename).endswith(".tmp") else ""
            return os.strerror(error.errno) + what
        if found := _OS_ERROR.search(str(error)):
            return os.strerror(int(found[1]))
        if isinstance(error, OSError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def check_output(path: Path, *data: Any) -> None:
    """Refuse an output that could not be written, before any work is done for it.

    Args:
      path: of a file or folder that need not be there; nor need the folders above it.
      data: what is read. Of folders: the output may not lie in one, as the next run would read it as images.

    Raises: ConfigError.

    Example:
      >>> check_output(Path("photos/run"), ".")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: photos/run lies in the data (.), and would be read as part of them next time
        fix: give --out a place outside the data
    """
    fix = "give --out a place that can be written"
    try:
        check_path("out", path)
        whole = path.expanduser().absolute()
        there = next(each for each in (whole, *whole.parents) if each.exists())
        folder = there.parent if there == whole and not there.is_dir() else there
        if not folder.is_dir():
            raise ConfigError(f"{path} cannot be written: {folder} is a file", fix=fix)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(_PROBE)
        for source in data:
            root = Path(source).expanduser() if isinstance(source, (str, Path)) else None
            if root is None or not root.is_dir() or root.resolve() not in whole.resolve().parents:
                continue
            below = whole.resolve().relative_to(root.resolve())
            if not any(part.startswith(".") for part in below.parts):  # hidden folders are not read
                raise ConfigError(
                    f"{path} lies in the data ({source}), and would be read as part of them next time",
                    fix="give --out a place outside the data",
                )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}", fix=fix) from error


def new_output(path: str | Path, *suffixes: str, data: Any = None) -> Path:
    """The path of a file to write, or of a folder (suffix ""), checked before any work is done for it.

    Args:
      suffixes: that it may have.   data: what is read; see `check_output`.

    Raises: ConfigError if it has another suffix, exists or cannot be written.

    Example:
      >>> new_output("labels.txt", ".csv", "")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: labels.txt is neither .csv nor a folder
        fix: end --out in .csv
    """
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        kinds = [suffix or "a folder" for suffix in suffixes]
        one = f"not a {kinds[0]} file" if any(suffixes) else "named like a file, and this is a folder"
        words = f"neither {', '.join(kinds[:-1])} nor {kinds[-1]}" if len(kinds) > 1 else one
        fix = f"end --out in {' or '.join(filter(None, suffixes))}" if any(suffixes) else "give --out without a suffix"
        raise ConfigError(f"{path} is {words}", fix=fix)
    if os.path.lexists(path) and not rank():  # which alone writes it, perhaps already
        raise ConfigError(f"{path} exists", fix="choose another --out, or remove it first")
    check_output(path, *([] if path.suffix else [data]))
    return path


def short_name(name: str, *, most: int = LONGEST_NAME) -> str:
    """A file's name, or the end of one that has more than ``most`` bytes, behind a hash of the whole.

    Example:
      >>> short_name("a.png"), short_name("a" * 300 + ".png", most=24)
      ('a.png', 'f0e62479-aaaaaaaaaaa.png')
    """
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    end = raw[-(most - 9) :].decode("utf-8", errors="ignore")
    return f"{hashlib.blake2b(raw, digest_size=4).hexdigest()}-{end}"
