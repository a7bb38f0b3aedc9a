"""Files and folders on this machine or behind a URL that fsspec knows: listed, opened, written whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from labelwright.errors import ConfigError, DataError
from labelwright.replacing import disk_errors, replacing

_URL = re.compile(r"[a-z][a-z0-9+.-]+(::|://)")


def is_url(place: Any) -> bool:
    """Whether something is a URL, as fsspec takes them.

    Example:
      >>> is_url("s3://bucket/photos"), is_url("photos"), is_url("C:/photos")
      (True, False, False)
    """
    return isinstance(place, str) and _URL.match(place) is not None


def file_system(place: str) -> tuple[Any, str]:
    """The fsspec file system of a place, and the place as it is called there.

    Raises: ConfigError for a URL of a kind that is unknown or needs a package; DataError for an archive that is not
      there.

    Example:
      >>> file_system("memory://photos/a.png")[1]
      '/photos/a.png'
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(os.fspath(place))
    except ImportError as error:
        fix = "install the fsspec package of that kind of URL: s3fs, gcsfs, adlfs, ..."
        raise ConfigError(f"{place}: {error}", fix=fix) from error
    except ValueError as error:
        raise ConfigError(f"{place} is no URL that can be read: {error}", fix="check what stands before ://") from error
    except OSError as error:  # of an archive that is read as a folder
        raise DataError(f"{place} cannot be opened: {error.strerror or error}", fix="check the path") from error
    return system, str(path)


def whole(place: str, path: str) -> str:
    """A path of the file system of ``place``, as a place of its own.

    Example:
      >>> whole("memory://photos", "/photos/a.png"), whole("photos", "photos/a.png")
      ('memory:///photos/a.png', 'photos/a.png')
    """
    return file_system(place)[0].unstrip_protocol(path) if is_url(place) else path


def below(folder: str, names: Sequence[str]) -> list[tuple[Any, str]]:
    """File system and path of each file of a folder, by its path in it; folder "": names are places of their own.

    Example: a name is no pattern and no URL, whatever it looks like.
      >>> [path for _, path in below("memory://photos", ["a::b.png", "c[1].png"])]
      ['/photos/a::b.png', '/photos/c[1].png']
    """
    if not folder:
        return [file_system(name) for name in names]
    system, path = file_system(folder)
    return [(system, f"{path.rstrip('/')}/{name}") for name in names]


def contents(files: Sequence[tuple[Any, str]]) -> list[bytes | None]:
    """What some files hold, those of a file system fetched together; None of one that is not there.

    Args: files: see `below`.

    Raises: DataError if one cannot be read.
    """
    held: list[bytes | None] = [None] * len(files)
    for system in dict.fromkeys(own for own, _ in files):
        at = [i for i, (own, _) in enumerate(files) if own is system]
        paths = [files[i][1] for i in at]
        try:
            found = system.cat_ranges(paths, None, None, on_error="return")
        except OSError as error:
            found = [error] * len(at)
        for i, path, content in zip(at, paths, found, strict=True):
            if isinstance(content, bytes):
                held[i] = content
            elif not isinstance(content, FileNotFoundError):  # of a network, as a rule: no fault of the image
                raise DataError(
                    f"{system.unstrip_protocol(path)} cannot be read: {content or type(content).__name__}",
                    fix="what is done stays: give the same command again when it can be read",
                )
    return held


@contextmanager
def reading(place: str) -> Iterator[BinaryIO]:
    """A file opened for reading, here or behind a URL; only what is read of it is fetched.

    Raises: DataError if it cannot be opened.
    """
    system, path = file_system(place)
    try:
        file = system.open(path, "rb")
    except OSError as error:
        raise DataError(f"{place} cannot be opened: {error.strerror or error}", fix="check the path") from error
    with file:
        yield file


@contextmanager
def writing(place: str) -> Iterator[BinaryIO]:
    """A file to write that is there at the end of the block, or not at all; folders above it are made.

    Raises: DiskError if it cannot be written.

    Example:
      >>> with writing("memory://out/a.txt") as file:
      ...     _ = file.write(b"hello")
      >>> with reading("memory://out/a.txt") as file:
      ...     file.read()
      b'hello'
    """
    if not is_url(place):
        with disk_errors(Path(place)):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(place)) as temporary, temporary.open("wb") as local:
            yield local
        return
    system, path = file_system(place)
    folder, _, name = path.rpartition("/")
    temporary_path = f"{folder}/.{name}.{os.getpid()}.tmp"
    with disk_errors(Path(place)):
        system.makedirs(folder, exist_ok=True)
        with system.open(temporary_path, "wb") as file:
            yield file
        system.mv(temporary_path, path)
