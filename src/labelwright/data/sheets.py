"""Small tables that a person filled in: ids of images, and something about each; any row that cannot be read stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from labelwright.data.columns import LINE, open_columns
from labelwright.data.layouts import TABLE_SUFFIXES
from labelwright.data.values import as_text
from labelwright.errors import DataError

Row = tuple[str, dict[str, str | None]]
"""Where a row stands, and role -> text."""


def read_sheet(path: Path, wanted: Mapping[str, Sequence[str]], *, fix: str, optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a .csv, .tsv, .jsonl, .json or .parquet file.

    Args:
      wanted: role -> the names that its column may have, the first found wins; an ``id`` keeps its blanks and breaks.
      fix: what to do where the file is not such a table.   optional: roles that may be missing.

    Raises: DataError for a file that cannot be read, a column that is missing or there twice, and rows that cannot be
      read, each named.

    Example:
      >>> import tempfile; path = Path(tempfile.mkdtemp(), "a.csv")
      >>> _ = path.write_text("ID,label\\n1.png,cat\\n2.png,\\n")
      >>> [texts for _, texts in read_sheet(path, {"id": ["id"], "label": ["label"]}, fix="")]
      [{'id': '1.png', 'label': 'cat'}, {'id': '2.png', 'label': None}]
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", fix=fix)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path} is not a table", fix=f"one of {' '.join(sorted(TABLE_SUFFIXES))}; {fix}")
    columns = open_columns(path, may_break=True)
    folded = {name.strip().lower(): name for name in reversed(columns.names)}
    used = {role: next((folded[name] for name in names if name in folded), None) for role, names in wanted.items()}
    for role, name in used.items():
        if name is None and role not in optional:
            found = ", ".join(columns.names[:20]) or "none"
            raise DataError(f"{path} has no column {wanted[role][0]!r}; columns found: {found}", fix=fix)
        if name is not None and columns.names.count(name) > 1:
            raise DataError(f"{path} has {columns.names.count(name)} columns called {name!r}", fix="keep one of them")
    present = {role: name for role, name in used.items() if name is not None}
    rows, n_read = list[Row](), 0
    for batch in columns.batches(list(dict.fromkeys(present.values()))):
        lines = batch.column(LINE).to_pylist() if LINE in batch.schema.names else None
        noun = "row" if lines is None or path.suffix.lower() == ".json" else "line"
        texts = {}
        for role, name in present.items():
            found, odd = as_text(batch.column(name), is_path=role == "id")
            if odd.any():
                at = int(odd.argmax())
                at = n_read + at + 1 if lines is None else lines[at]
                raise DataError(f"{path} {noun} {at}: the {name} is not one text", fix="write one text there")
            texts[role] = found.to_pylist()
        first = n_read + 1
        for i in range(len(batch)):
            if not any(column[i] for column in texts.values()):  # as spreadsheets leave them at the end
                continue
            where = f"{path} {noun} {first + i if lines is None else lines[i]}"
            rows.append((where, {role: column[i] for role, column in texts.items()}))
        n_read += len(batch)
    lost = [problem for problem in columns.problems if problem.kind == "malformed_row"]
    if lost:
        raise DataError(f"{lost[0].where}: {lost[0].detail}", problems=lost, fix="correct these rows")
    return rows
