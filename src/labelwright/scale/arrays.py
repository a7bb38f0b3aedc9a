"""Arrays of .npy and .npz files read in blocks, here or behind a URL."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from labelwright.data.embeddings import header_of, start_of
from labelwright.errors import DataError
from labelwright.scale.places import reading


@contextmanager
def errors_of(place: str) -> Iterator[None]:
    """What libraries raise of a file that cannot be read, as a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place} cannot be read: {words}", fix="write the file anew") from error


@contextmanager
def array(place: str, key: str = "embeddings") -> Iterator[tuple[tuple[int, ...], np.dtype[Any], Any, int]]:
    """Shape, type, open file and offset of the numbers of an .npy, or of an array of an .npz that is not compressed."""
    with reading(place) as file:
        with errors_of(place):
            if place.lower().endswith(".npz"):
                with zipfile.ZipFile(file) as archive:
                    info = archive.getinfo(f"{key}.npy")
                if info.compress_type != zipfile.ZIP_STORED:
                    raise DataError(
                        f"{place} is compressed, and cannot be read in blocks", fix="write it by numpy.savez"
                    )
                file.seek(start_of(file, info))
            shape, is_fortran, dtype = header_of(file)
        if is_fortran or dtype.hasobject:
            raise DataError(f"{place}: {key} is not stored row by row", fix="save a C-ordered array of numbers")
        yield shape, dtype, file, file.tell()


def read_rows(place: str, key: str, first: int, stop: int) -> npt.NDArray[Any]:
    """Rows of an .npy, or of one array of an .npz; nothing else of the file is read."""
    with array(place, key) as (shape, dtype, file, start):
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        file.seek(start + first * size)
        found = np.frombuffer(file.read((stop - first) * size), dtype)
    return found.reshape(stop - first, *shape[1:])
