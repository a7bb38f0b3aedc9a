"""CSV files that spreadsheets may open: texts that they would compute are escaped, and read back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from labelwright.replacing import replacing

FORMULA = "'*[=+\\-@\t\r]"
"""How a text begins that a spreadsheet takes for a formula, or one that was escaped."""


def write_csv(table: pa.Table, path: Path) -> None:
    r"""Write a CSV file that is always whole. Texts that begin with ``=``, ``+``, ``-`` or ``@`` get a ``'`` in front.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "a.csv")
      >>> write_csv(pa.table({"id": ["=1+1", "a-b"], "trust": [-0.5, 0.5]}), path)
      >>> path.read_text().split()
      ['"id","trust"', '"\'=1+1",-0.5', '"a-b",0.5']
    """
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            safe = pc.replace_substring_regex(table.column(i), f"^({FORMULA})", r"'\1")
            table = table.set_column(i, field.name, safe)
    with replacing(path) as temporary:
        pa_csv.write_csv(table, temporary)


def unescaped(column: Any) -> Any:
    """Texts of a CSV file as they were before `write_csv` escaped them.

    Example:
      >>> unescaped(pa.array(["'=1+1", "a-b", "'tis", None])).to_pylist()
      ['=1+1', 'a-b', "'tis", None]
    """
    return pc.replace_substring_regex(column, f"^'({FORMULA})", r"\1")
