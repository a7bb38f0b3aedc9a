"""Arrays of .npy and .npz files read in blocks, here or behind a URL."""

from __future__ import annotations

import tarfile
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from labelwright.data.embeddings import header_of, start_of
from labelwright.errors import DataError
from labelwright.scale.places import reading


class errors_of:  # noqa: N801 (a context manager)
    """What libraries raise of a file that cannot be read, as a DataError that names it."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, tarfile.TarError, zipfile.BadZipFile, ValueError, EOFError, KeyError)):
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.place} cannot be read: {words}", fix="write the file anew") from error


class array:  # noqa: N801 (a context manager)
    """Shape, type, open file and offset of the numbers of an .npy, or of an array of an .npz that is not compressed."""

    def __init__(self, place: str, key: str = "embeddings") -> None:
        self.place, self.key = place, key

    def __enter__(self) -> tuple[tuple[int, ...], np.dtype[Any], Any, int]:
        self.opened = reading(self.place)
        file = self.opened.__enter__()
        with errors_of(self.place):
            if self.place.lower().endswith(".npz"):
                file.seek(self._start(file))
            shape, is_fortran, dtype = header_of(file)
        if is_fortran or dtype.hasobject:
            raise DataError(
                f"{self.place}: {self.key} is not stored row by row", fix="save a C-ordered array of numbers"
            )
        return shape, dtype, file, file.tell()

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)

    def _start(self, file: Any) -> int:
        """Where a member of the archive begins."""
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{self.key}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{self.place} is compressed, and cannot be read in blocks", fix="write it by numpy.savez")
        return start_of(file, info)


def read_rows(place: str, key: str, first: int, stop: int) -> npt.NDArray[Any]:
    """Rows of an .npy, or of one array of an .npz; nothing else of the file is read."""
    with array(place, key) as (shape, dtype, file, start):
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        file.seek(start + first * size)
        found = np.frombuffer(file.read((stop - first) * size), dtype)
    return found.reshape(stop - first, *shape[1:])
