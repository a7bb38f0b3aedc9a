"""Embeddings that are in memory: data frames, tables, mappings and series of vectors, as what a file of them holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from labelwright.data.columns import ROLES
from labelwright.data.embedding_tables import EMBEDDING_COLUMN
from labelwright.errors import DataError

NPZ_KEY = "embeddings"

_TAKEN = frozenset(name for names in ROLES.values() for name in names)


def is_frame(source: Any) -> bool:
    """Whether this is a data frame, pandas' or of another library with its ways."""
    return hasattr(source, "columns") and hasattr(source, "to_dict")


def is_series(source: Any) -> bool:
    """Whether this is one column of a data frame."""
    return hasattr(source, "to_dict") and hasattr(source, "index") and not hasattr(source, "columns")


def columns_of_frame(frame: Any) -> dict[str, Any]:
    """The columns of a data frame by name; of its index, too, where that has the name of a column that is read."""
    found = {str(name): frame[name] for name in frame.columns}
    index: Any = getattr(frame, "index", None)
    for level, name in enumerate(getattr(index, "names", ())):
        if str(name).lower() in _TAKEN and str(name) not in found:
            found[str(name)] = index.get_level_values(level)
    return found


def vectors_of(source: Any) -> pa.Table | dict[str, Any] | None:
    """Embeddings in memory: a table with a column ``embedding``, or arrays by key as of an .npz; None of anything else.

    Args:
      source: a data frame, an Arrow table or a mapping of columns, one of them ``embedding`` and none of images; a data
        frame of numbers whose index names its rows; a mapping or series {name: vector}; or a mapping of what an .npz
        holds.

    Raises: DataError where columns differ in length, or one is of no single kind.

    Example:
      >>> vectors_of({"a.png": [0.0, 1.0], "b.png": [1.0, 0.0]}).column_names, vectors_of({"image": ["a.png"]})
      (['id', 'embedding'], None)
    """
    if type(source).__module__.startswith("datasets."):
        return None
    if is_series(source):
        values = list(source)
        return _table(_named(source) | {EMBEDDING_COLUMN: values}) if values and is_vector(values[0]) else None
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return source if EMBEDDING_COLUMN in source.column_names and "image" not in source.column_names else None
    if is_frame(source):
        return _of_frame(source)
    if not isinstance(source, Mapping) or not source:
        return None
    names = {str(name) for name in source}
    if NPZ_KEY in names:
        return {str(key): _plain(_array(value, str(key)), str(key)) for key, value in source.items()}
    if EMBEDDING_COLUMN in names:
        return _table({str(name): column for name, column in source.items()}) if not _has_images(source) else None
    if not {name.lower() for name in names} & _TAKEN and is_vector(next(iter(source.values()))):
        return _table({"id": list(map(str, source)), EMBEDDING_COLUMN: list(source.values())})
    return None


def numbers_of(source: Any) -> dict[str, Any] | None:
    """Numbers [n, D], or [D] of one item, of an array, a tensor or a list, as of an .npz; None of anything else.

    Raises: DataError where a list holds rows of several lengths.

    Example:
      >>> numbers_of([0.0, 1.0])["embeddings"].shape, numbers_of(["a.png"])
      ((1, 2), None)
    """
    if isinstance(source, (list, tuple)):
        if not source or not (is_vector(source) or all(map(is_vector, source))):
            return None
    elif not hasattr(source, "__array__") or is_frame(source) or is_series(source):
        return None
    array = _array(source, NPZ_KEY)
    return {NPZ_KEY: array[None] if array.ndim == 1 else array}


def is_vector(value: Any) -> bool:
    """Whether this is one row of numbers.

    Example:
      >>> is_vector([0, 1.5]), is_vector(np.zeros(2)), is_vector("a.png"), is_vector([["a"]]), is_vector([])
      (True, True, False, False, False)
    """
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(each, (int, float, np.number)) for each in value)
    if not hasattr(value, "__array__") or is_frame(value):
        return False
    array = _array(value, "")
    return array.ndim == 1 and len(array) > 0 and array.dtype.kind in "fiu"


def _of_frame(frame: Any) -> pa.Table | None:
    columns = {str(name): frame[name] for name in frame.columns}
    if EMBEDDING_COLUMN in columns:
        return None if _has_images(columns) else _table({**_named(frame, columns), **columns})
    numbers = [name for name in columns if name.lower() not in _TAKEN]
    others = {name: column for name, column in columns.items() if name.lower() in _TAKEN}
    named = _named(frame, others)
    is_all = len(numbers) > 1 and all(getattr(columns[name].dtype, "kind", "") in "fiu" for name in numbers)
    if not is_all or {name.lower() for name in others} & set(ROLES["image"]) or not len(frame):
        return None
    return _table({**named, **others, EMBEDDING_COLUMN: np.stack([np.asarray(columns[n]) for n in numbers], axis=1)})


def _named(source: Any, columns: Iterable[str] = ()) -> dict[str, Any]:
    """The index of a frame or series as ids, where it names its rows and no column does."""
    index = getattr(source, "index", None)
    if index is None or not len(index) or {name.lower() for name in columns} & set(ROLES["id"]):
        return {}
    is_named = str(getattr(index, "name", None)).lower() in (*ROLES["id"], *ROLES["image"])
    return {"id": [str(each) for each in index]} if is_named or isinstance(index[0], str) else {}


def _has_images(columns: Mapping[Any, Any]) -> bool:
    """Whether one of the columns is ``image``, or holds images."""
    if "image" in columns:
        return True
    for name, column in columns.items():
        first: Any = next(iter(column), None) if str(name) != EMBEDDING_COLUMN else None
        if isinstance(first, bytes) or (hasattr(first, "shape") and len(first.shape) > 1) or hasattr(first, "getbands"):
            return True
    return False


def _table(columns: Mapping[str, Any]) -> pa.Table:
    arrays = dict[str, Any]()
    for name, column in columns.items():
        try:
            if name == EMBEDDING_COLUMN:
                arrays[name] = _lists(column)
            else:
                values = [str(each) if isinstance(each, Path) else each for each in column]
                made = pa.array(values, from_pandas=True)
                arrays[name] = made.dictionary_decode() if isinstance(made, pa.DictionaryArray) else made
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"the column {name!r} cannot be read: {str(error).splitlines()[0]}", fix="give values of one kind"
            ) from error
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns have {lengths} rows", fix="give one value per embedding in each")
    return pa.table(arrays)


def _lists(column: Any) -> Any:
    """Vectors as an Arrow array of lists; those of one length are not copied one by one."""
    if not hasattr(column, "ndim") or column.ndim != 2:
        rows = [np.zeros(0) if each is None else np.ravel(_array(each, EMBEDDING_COLUMN)) for each in column]
        if len({len(row) for row in rows}) != 1:
            return pa.array([row.astype(np.float32) for row in rows], pa.list_(pa.float32()))
        column = np.stack(rows)
    array = np.ascontiguousarray(_array(column, EMBEDDING_COLUMN))
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _plain(array: Any, name: str) -> Any:
    """An array of Python objects as what an .npz can hold: rows of vectors stacked, texts with "" and numbers with NaN
    where there is none; any other array as it is.
    """
    if array.dtype.kind != "O":
        return array
    if array.ndim == 1 and len(array) and all(map(is_vector, array)):
        return _array([_array(row, name) for row in array], name)
    try:
        values = pa.array([str(each) if isinstance(each, Path) else each for each in array.tolist()], from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: {str(error).splitlines()[0]}", fix="give values of one kind") from error
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    if pa.types.is_string(values.type):
        return np.array(values.fill_null("").to_pylist(), dtype=str)
    return values.to_numpy(zero_copy_only=False) if pa.types.is_primitive(values.type) else array


def _array(value: Any, name: str) -> Any:
    """A value as NumPy's array, of a tensor too."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        return np.asarray(value.float() if str(getattr(value, "dtype", "")) == "torch.bfloat16" else value)
    except ValueError as error:
        raise DataError(f"{name}: the rows differ in length", fix="give as many numbers for each") from error
