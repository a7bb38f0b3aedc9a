"""Time and peak memory of reading a large label table, in a process of its own.

    python benchmarks/table_memory.py [--rows 5000000] [--classes 1000] [--format parquet|csv]

The table has a unique id, an image path, a label and three candidates per row; it is written in pieces to a temporary
folder, then read with `labelwright.data.read.load` (duplicate ids and unknown labels are checked, files are not).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIECE_ROWS = 250_000


def write(path: Path, n_rows: int, n_classes: int) -> None:
    """Write the table in pieces, so that the parent too stays small."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = pa.array([f"class_{c:04d}" for c in range(n_classes)])
    names_schema = pa.schema([(name, pa.string()) for name in ("id", "image", "label", "candidates")])
    open_writer = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
    with open_writer(path, names_schema) as writer:
        for first in range(0, n_rows, PIECE_ROWS):
            n = min(PIECE_ROWS, n_rows - first)
            number = pa.array(np.arange(first, first + n)).cast(pa.string())
            number = pc.utf8_lpad(number, 9, "0")
            label, other, third = (names.take(pa.array(rng.integers(0, n_classes, n))) for _ in range(3))
            columns = [
                pc.binary_join_element_wise("img", number, "_"),
                pc.binary_join_element_wise("train", label, pc.binary_join_element_wise(number, "jpg", "."), "/"),
                label,
                pc.binary_join_element_wise(label, other, third, "|"),
            ]
            writer.write_table(pa.table(columns, schema=names_schema))


def read(path: Path) -> None:
    """Load the table and print what it took; run in a fresh process."""
    from labelwright.data.read import load

    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    table = load(path, on_bad="report")  # the images are not there
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert table.candidates is not None, "the candidates were read"
    print(
        f"{path.suffix[1:]}: {len(table):,} rows, {len(table.class_names):,} classes,"
        f" {table.candidates.classes.numel():,} candidates, {len(table.problems)} problems:"
        f" {seconds:.1f} s, peak {peak_mb:,.0f} MB (imports alone {before_mb:,.0f} MB)"
    )


def main() -> None:
    """Write, then read in a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table.{args.format}"
        write(path, args.rows, args.classes)
        print(f"wrote {path.stat().st_size / 2**20:,.0f} MB")
        subprocess.run([sys.executable, __file__, "--read", str(path)], check=True)


if __name__ == "__main__":
    main()
