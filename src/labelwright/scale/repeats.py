"""Ids that several rows have, over all output files of work over shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from labelwright.scale.places import reading

ROWS_MAX = 100_000_000  # that are looked through: their hashes take 0.8 GB


def repeated_ids(paths: Sequence[str], names: Sequence[str], n_rows: int) -> str:
    """A sentence about ids that several rows have; empty if there are none, or more than `ROWS_MAX` rows.

    A hash of 8 bytes a row is held, and never the ids.

    Args:
      paths: output files, with a column id.   names: of the shard of each, for the sentence.   n_rows: of all of them.
    """
    if n_rows > ROWS_MAX:
        return ""
    keys, first = np.empty(n_rows, np.int64), 0
    for path in paths:
        for _, own in _hashed(path):
            keys[first : first + len(own)] = own
            first += len(own)
    keys.sort()
    again = keys[1:][keys[1:] == keys[:-1]]
    some, seen = again[:100], dict[str, str]()  # a few are looked for by name: hashes may be alike by chance
    for path, name in zip(paths, names, strict=True) if len(some) else ():
        for ids, own in _hashed(path):
            for row in np.flatnonzero(np.isin(own, some)).tolist():
                if (one := ids[row]) in seen:
                    n = f"{len(again):,} rows have" if len(again) > 1 else "a row has"
                    where = f"{seen[one]}, and {name}" if seen[one] != name else name
                    return f"{n} the id of another, as {one!r} ({where}): give each its own, else `fit` refuses them"
                seen[one] = name
    return ""


def _hashed(path: str) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
    """Ids and their hashes, which are those of this process alone, block by block."""
    with reading(path) as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(65_536, columns=["id"]):
            ids = batch.column(0).to_pylist()
            yield ids, np.fromiter(map(hash, ids), np.int64, len(ids))
