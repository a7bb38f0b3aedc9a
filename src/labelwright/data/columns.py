"""Tables on the disk as a stream of batches: which column is what, every value as text, bad rows named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelwright.errors import ConfigError, DataError, Problem
from labelwright.spreadsheet import unescaped

ROLES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "file_name", "filename", "file", "path", "filepath", "image_path", "images"),
    "label": ("label", "labels", "class", "category", "target"),
    "candidates": ("candidates", "candidate_labels", "partial_labels"),
    "weights": ("weights", "candidate_weights"),
    "split": ("split", "subset"),
    "id": ("id", "image_id"),
    "truth": ("truth", "ground_truth", "true_label"),
    "group": ("group", "track"),
}
"""What a column is -> the names it may have, first found wins; upper and lower case are the same."""

ANSWER = "answer of "
"""What the role of an annotator's column begins with; its name follows."""

METADATA_KEY = b"labelwright"
"""Schema metadata of Parquet files that we wrote: JSON; its ``class_names`` fix the classes and their order."""

BATCH_ROWS = 65_536
_BLOCK_BYTES = 4 << 20


@dataclass
class Columns:
    """A table that can be read in batches; a column missing from a batch is all null."""

    names: tuple[str, ...]  # the columns present
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]  # column names wanted -> batches holding them
    features: Mapping[str, Any] = field(default_factory=dict)  # column -> its Hugging Face feature as a dict, if known
    malformed: list[Problem] = field(default_factory=list)  # rows that could not be read, filled as batches are
    embedded: frozenset[str] = frozenset()  # columns of images themselves; only their ``path`` is given in a batch

    def class_labels(self, roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Of the columns with class indices: role -> what the integers stand for.

        Args:
          roles: as `find_roles` gives them.
        """
        names = {}
        for role in ("label", "truth", "candidates", *(role for role in roles if role.startswith(ANSWER))):
            feature = self.features.get(roles.get(role, ""), {})
            feature = feature.get("feature", feature) if isinstance(feature, dict) else {}  # or a list of ClassLabel
            if feature.get("_type") == "ClassLabel":
                names[role] = tuple(feature["names"])
        return names


def find_roles(
    names: Sequence[str], where: str, *, group: str | None = None, annotators: Sequence[str] = ()
) -> dict[str, str]:
    """Which column is what: role -> column name, for the roles present; an annotator's is `ANSWER` and the name.

    Raises: DataError (kind missing_column) listing the columns if there is not an image column, no ``group`` one, or
      not one of the ``annotators``; ConfigError where a column ``candidates`` says the same in another way.

    Example:
      >>> find_roles(["Img", "category", "notes"], "pets.csv")
      {'image': 'Img', 'label': 'category'}
    """
    folded = {name.strip().lower(): name for name in reversed(names)}
    roles = {}
    for role, synonyms in ROLES.items():
        found = next((folded[name] for name in synonyms if name in folded), None)
        if found is not None:
            roles[role] = found
    if group is not None:
        roles["group"] = group
    if annotators and "candidates" in roles:
        raise ConfigError(
            f"{where}: the column {roles['candidates']!r} holds candidates, and annotators' columns make others",
            fix="leave --annotator-columns out, or remove that column",
        )
    roles |= {ANSWER + name: name for name in annotators}
    missing = [] if "image" in roles else [f"no image column (one of {', '.join(ROLES['image'])})"]
    missing += [f"no column {name!r} of an annotator" for name in annotators if name not in names]
    if group is not None and group not in names:
        missing.append(f"no column {group!r} to group by")
    if missing:
        problems = [Problem(where, "missing_column", detail) for detail in missing]
        raise DataError(
            f"{where}: {'; '.join(missing)}; columns found: {', '.join(map(str, names)) or 'none'}",
            problems=problems,
            fix="name the columns image, label, candidates, weights, split, id, truth, group",
        )
    return roles


def open_columns(path: Path) -> Columns:
    """The columns of a .csv, .tsv, .jsonl or .parquet file.

    Raises: DataError if the file is not of that format at all, or empty.
    """
    openers = {".csv": _open_csv, ".tsv": _open_csv, ".jsonl": _open_jsonl, ".ndjson": _open_jsonl}
    try:
        return openers.get(path.suffix.lower(), _open_parquet)(path)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if path.stat().st_size == 0:
        problem = Problem(str(path), "empty_table", "the file is empty (0 bytes)")
        return DataError(f"{path} is empty", problems=[problem], fix="give a table with a row per image")
    detail = f"not a readable {path.suffix[1:]} file: {str(error).splitlines()[0]}"
    problem = Problem(str(path), "malformed_row", detail)
    return DataError(f"{path}: {detail}", problems=[problem], fix="write the file anew, in UTF-8")


# ---------------------------------------------------------------- CSV


def _open_csv(path: Path) -> Columns:
    parse = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)  # threads would lose row numbers
    parse.invalid_row_handler = lambda row: "skip"
    names = tuple(pyarrow.csv.open_csv(path, read_options=read, parse_options=parse).schema.names)
    malformed: list[Problem] = []

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        skipped: list[int] = []

        def skip(row: Any) -> str:
            detail = f"{row.actual_columns} values for {row.expected_columns} columns"
            malformed.append(Problem(f"{path} line {row.number}", "malformed_row", detail))
            skipped.append(row.number)
            return "skip"

        convert = pyarrow.csv.ConvertOptions(
            column_types={name: pa.binary() for name in names},  # bytes first: each row's text is checked below
            include_columns=list(columns),
            null_values=[""],
            strings_can_be_null=True,
        )
        parse.invalid_row_handler = skip
        n_rows = 0
        try:
            with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as reader:
                for batch in reader:
                    good = _utf8_rows(batch)
                    for row in np.flatnonzero(~good):
                        where = f"{path} line {_line_number(n_rows + int(row), skipped)}"
                        malformed.append(Problem(where, "malformed_row", "the text is not UTF-8"))
                    n_rows += batch.num_rows
                    batch = batch if good.all() else batch.filter(pa.array(good))
                    yield pa.record_batch(
                        [unescaped(column.cast(pa.string())) for column in batch.columns], batch.schema.names
                    )
        except pa.ArrowInvalid as error:
            raise _unreadable(path, error) from error

    return Columns(names, batches, malformed=malformed)


def _utf8_rows(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[rows] bool: every value of the row is UTF-8 text."""
    good = np.ones(batch.num_rows, dtype=bool)
    for column in batch.columns:
        try:
            column.cast(pa.string())
        except pa.ArrowInvalid:
            for row, value in enumerate(column.to_pylist()):  # only ever this one batch
                try:
                    (value or b"").decode()
                except UnicodeDecodeError:
                    good[row] = False
    return good


def _line_number(row: int, skipped: Sequence[int]) -> int:
    """Line of the file of the ``row``-th row read, given the lines that were skipped (the header is line 1)."""
    line = row + 2
    for number in sorted(skipped):
        line += number <= line
    return line


# ---------------------------------------------------------------- JSON lines


def _open_jsonl(path: Path) -> Columns:
    malformed: list[Problem] = []
    with path.open("rb") as file:
        first = _json_block(file.readlines(_BLOCK_BYTES), path, 1, [])
    if path.stat().st_size == 0:
        raise pa.ArrowInvalid("empty file")

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        n_lines = 0
        with path.open("rb") as file:
            while lines := file.readlines(_BLOCK_BYTES):
                table = _json_block(lines, path, n_lines + 1, malformed)
                n_lines += len(lines)
                yield from table.select([name for name in columns if name in table.column_names]).to_batches()

    return Columns(tuple(first.column_names), batches, malformed=malformed)


def _json_block(lines: list[bytes], path: Path, first_line: int, malformed: list[Problem]) -> pa.Table:
    """A block of lines as a table: at Arrow's speed if they are all in order, else line by line."""
    block = b"".join(lines)
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        block.decode()
        table = pyarrow.json.read_json(pa.BufferReader(block), read_options=read)
        temporal = [f.name for f in table.schema if pa.types.is_temporal(f.type)]
        if temporal:  # Arrow takes text like 2024-01-01 for a date; here it is a name
            wanted = pyarrow.json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in temporal]))
            table = pyarrow.json.read_json(pa.BufferReader(block), read_options=read, parse_options=wanted)
        if table.num_rows == sum(not line.isspace() for line in lines):
            return table
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=first_line):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object {...}")
            rows.append({name: _json_text(value) for name, value in row.items()})
        except ValueError as error:
            malformed.append(Problem(f"{path} line {number}", "malformed_row", f"not a JSON object: {error}"))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array(_same_kind([row.get(name) for row in rows])) for name in names})


def _json_text(value: Any) -> Any:
    if isinstance(value, list):
        return [str(item) for item in value if item is not None]
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _same_kind(values: list[Any]) -> list[Any]:
    """Lists and "a|b" texts mixed in one column all become lists."""
    if not any(isinstance(value, list) for value in values):
        return values
    return [value.split("|") if isinstance(value, str) else value for value in values]


# ---------------------------------------------------------------- Parquet


def _open_parquet(path: Path) -> Columns:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    facts = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = facts.get("info", {}).get("features", {})
    ours = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if ours.get("class_names"):
        features = {**features, "label": {"_type": "ClassLabel", "names": ours["class_names"]}}
    embedded = frozenset(
        f.name
        for f in schema
        if (features.get(f.name, {}).get("_type") == "Image" and not pa.types.is_string(f.type))
        or pa.types.is_binary(f.type)
        or pa.types.is_large_binary(f.type)
        or (pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0)
    )

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        plain = [name for name in columns if name not in embedded]
        structs = [n for n in columns if n in embedded and pa.types.is_struct(schema.field(n).type)]
        with pq.ParquetFile(path) as file:
            if not plain and not structs:  # no column to read, yet the rows count
                yield pa.record_batch([pa.nulls(file.metadata.num_rows)], ["image"])
                return
            wanted = plain + [f"{name}.path" for name in structs]  # never the bytes
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                arrays = [batch.column(name) for name in plain] + [batch.column(n).field("path") for n in structs]
                yield pa.record_batch(arrays, [*plain, *structs])

    return Columns(tuple(schema.names), batches, features, embedded=embedded)


# ---------------------------------------------------------------- values as text


def as_text(column: Any, *, names: Sequence[str] | None = None) -> Any:
    """A column of names or numbers as Arrow strings; null, NaN and empty text are null.

    Args:
      column: [n] Arrow array of any plain type.
      names: what the integers of a ClassLabel column stand for; -1 is no label, others stay numbers.

    Raises: pa.ArrowInvalid if a value has no text form (a list, say).

    Example:
      >>> as_text(pa.array([0, 1, -1, 7]), names=("cat", "dog")).to_pylist()
      ['cat', 'dog', None, '7']
      >>> as_text(pa.array([2.0, None])).to_pylist(), as_text(pa.array([" a", ""])).to_pylist()
      (['2', None], ['a', None])
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        whole = pc.all(pc.equal(pc.floor(column), column)).as_py()
        column = column.cast(pa.int64()) if whole is not False else column
    if names is not None and pa.types.is_integer(column.type):
        known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
        named = pa.array(names, pa.string()).take(pc.if_else(known, column, None))
        number = pc.if_else(pc.equal(column, -1), None, column).cast(pa.string())
        return pc.if_else(known, named, number)
    text = column.cast(pa.string())
    text.validate(full=True)  # Parquet and JSON do not promise UTF-8
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, ""), None, text)


def as_lists(column: Any, *, names: Sequence[str] | None = None) -> tuple[Any, Any]:
    """A column of sets, as lists or as text like ``cat|dog``: (lengths [n] int64 NumPy, members Arrow strings).

    Example:
      >>> lengths, members = as_lists(pa.array(["cat|dog", None, "owl"]))
      >>> lengths.tolist(), members.to_pylist()
      ([2, 0, 1], ['cat', 'dog', 'owl'])
    """
    column = _split(column)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, as_text(pc.list_flatten(column), names=names)


def _split(column: Any) -> Any:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return column if is_list else pc.split_pattern(as_text(column), "|")


def as_weights(column: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A column of weights, as lists or as text like ``0.7|0.3``: (lengths [n], values); NaN where it is not a number.

    Example:
      >>> lengths, values = as_weights(pa.array(["0.75|0.25", None, "much"]))
      >>> lengths.tolist(), values.tolist()
      ([2, -1, 1], [0.75, 0.25, nan])
    """
    column = _split(column)
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(column)
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = pa.array([_number(value) for value in as_text(values).to_pylist()], pa.float64())
    return lengths, numbers.to_numpy(zero_copy_only=False).astype(np.float64)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
