"""Tables on the disk as a stream of batches: which column is what, and where each row stands in its file."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from labelwright.data import exports
from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.values import listed
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.parsing import json_of
from labelwright.spreadsheet import unescaped

ROLES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "file_name", "filename", "file", "path", "filepath", "image_path", "images"),
    "label": ("label", "labels", "class", "category", "target", "choice"),
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

LINE = "line of the file"
"""Column of a batch that a text file gives: the line that each row begins on, from 1."""

METADATA_KEY = b"labelwright"
"""Schema metadata of Parquet files that we wrote: JSON; its ``class_names`` fix the classes and their order."""

BATCH_ROWS, CONTENTS_ROWS = 65_536, 256  # in memory at once: of texts and numbers; of images
_BLOCK_BYTES = 4 << 20
_RECORD_LINES = 500  # a record of more lines is one with a quote that was never closed


@dataclass
class Columns:
    """A table that can be read in batches; a column missing from a batch is all null."""

    path: Path | None  # None: in memory
    names: tuple[str, ...]  # the columns present
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]  # column names wanted -> batches holding them
    features: Mapping[str, Any] = field(default_factory=dict)  # column -> its Hugging Face feature as a dict, if known
    problems: list[Problem] = field(default_factory=list)  # rows that could not be read, filled as batches are; notices
    embedded: frozenset[str] = frozenset()  # columns of images themselves; only their ``path`` is given in a batch
    n_given: int = 0  # rows that the file holds, readable or not; of text files filled as batches are
    knowledge: float = math.inf  # of `types.Candidates`, of those that `annotate` wrote
    # column of images -> a name of the content of each row, see `content_names`; of embeddings, None names them
    contents: Callable[[str | None], Iterator[str]] | None = None

    def class_labels(self, roles: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Of the columns with class indices: role -> what the integers stand for.

        Args:
          roles: as `find_roles` gives them.
        """
        names = {}
        for role in ("label", "truth", "candidates", *(role for role in roles if role.startswith(ANSWER))):
            feature = self.features.get(roles.get(role, ""), {})
            feature = feature.get("feature", feature) if isinstance(feature, dict) else {}  # or a list of ClassLabel
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                given = feature.get("names")
                names[role] = tuple(map(str, given)) if isinstance(given, list) else ()
                for i, name in enumerate(given if isinstance(given, list) else ()):
                    if isinstance(name, (dict, list)) or name is None or not str(name).strip():
                        raise DataError(
                            f"{self.path or 'the data set'}: its metadata call class {i} {name!r}, which is not a name",
                            fix=f"name every class of the column {roles[role]!r} there",
                        )
                for twice in sorted({name for name in names[role] if names[role].count(name) > 1}):
                    detail = f"its metadata name several classes {twice!r}: their numbers are read as one class"
                    self.problems.append(Problem(str(self.path or ""), "read_as", detail))
        return {role: found for role, found in names.items() if found}

    def lose(self, where: str, detail: str) -> None:
        """Note a row that is left out."""
        self.problems.append(Problem(where, "malformed_row", detail))


def named_columns(**columns: str | None) -> dict[str, str]:
    """Role -> column, of those that the user names.

    Example:
      >>> named_columns(image="photo", label=None)
      {'image': 'photo'}
    """
    return {role: name for role, name in columns.items() if name is not None}


def find_roles(
    names: Sequence[str],
    where: str,
    *,
    named: Mapping[str, str] | None = None,
    annotators: Sequence[str] = (),
    needs_image: bool = True,
) -> dict[str, str]:
    """Which column is what: role -> column name, for the roles present; an annotator's is `ANSWER` and the name.

    Args:
      named: role -> column, where the user says so.
      annotators: columns of one annotator's answers each.
      needs_image: False where the rows are something else, as embeddings.

    Raises: DataError (kind missing_column) listing the columns if there is not an image column, or not one that the
      user names, or two of one name; ConfigError where a column ``candidates`` says what annotators say, too.

    Example:
      >>> find_roles(["Img", "category", "notes"], "pets.csv"), find_roles(["a", "b"], "t.csv", named={"image": "b"})
      ({'image': 'Img', 'label': 'category'}, {'image': 'b'})
    """
    named = named or {}
    folded = {name.strip().lower(): name for name in reversed(names) if name not in annotators}
    roles = {}
    for role, synonyms in ROLES.items():
        free = (folded[name] for name in synonyms if name in folded and folded[name] not in named.values())
        found = named.get(role, next(free, None))
        if found is not None and (role != "image" or needs_image):
            roles[role] = found
    if annotators and "candidates" in roles:
        raise ConfigError(
            f"{where}: the column {roles['candidates']!r} holds candidates, and annotators' columns make others",
            fix="leave --annotator-columns out, or remove that column",
        )
    roles |= {ANSWER + name: name for name in annotators}
    missing = []
    if needs_image and "image" not in roles:
        missing.append(f"no image column (one of {', '.join(ROLES['image'])}, or the one that --image-column names)")
    missing += [f"no column {name!r} of an annotator" for name in annotators if name not in names]
    missing += [
        f"no column {name!r}{' to group by' if role == 'group' else f', named by --{role}-column'}"
        for role, name in named.items()
        if name not in names and (role != "image" or needs_image)
    ]
    missing += [f"{names.count(n)} columns called {n!r}" for n in dict.fromkeys(roles.values()) if names.count(n) > 1]
    if missing:
        problems = [Problem(where, "missing_column", detail) for detail in missing]
        raise DataError(
            f"{where}: {'; '.join(missing)}; columns found: {', '.join(map(str, names[:20])) or 'none'}"
            + (f" and {len(names) - 20} more" if len(names) > 20 else ""),
            problems=problems,
            fix=_fix_of(names, [*named.values(), *annotators], "image" in roles or not needs_image),
        )
    return roles


@dataclass(frozen=True)
class Named:
    """Columns that the user has named, and how they are read."""

    columns: Mapping[str, str] = field(default_factory=dict)  # role -> column
    annotators: tuple[str, ...] = ()  # columns of one annotator's answers each
    only_images: bool = False  # labels and all else are not looked at
    first_number: int | None = None  # of the classes, where another table says what numbers they have
    answered_by: str | None = None  # column of a run's annotators: where a table has it, images that come again are one
    optional: bool = False  # roles whose column a table may lack, as test images do

    @property
    def are_answers(self) -> bool:
        """Whether a table may hold an answer a row."""
        return self.answered_by is not None or len(self.annotators) == 1

    def roles(self, columns: Columns, where: str) -> dict[str, str]:
        """Which column is what; those that are not read are noted."""
        named = {role: name for role, name in self.columns.items() if not (self.optional and name not in columns.names)}
        roles = find_roles(columns.names, where, named=named, annotators=self.annotators)
        if self.only_images:
            return {role: name for role, name in roles.items() if role in ("image", "id")}
        return roles


def _fix_of(names: Sequence[str], wanted: Sequence[str], has_image: bool) -> str:
    """What to do about columns that are not there, or there twice."""
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return "its first line holds no names of columns: write one above it, such as image,label"
    absent = [name for name in wanted if name not in names]
    for name in absent:
        if close := difflib.get_close_matches(name, names, n=1):
            return f"did you mean {close[0]!r}?"
    if not has_image:
        return (
            "name the column of the images with --image-column; features go into an .npz or a column embedding of "
            "Parquet (docs/data.md)"
        )
    if absent:
        return f"give a column that is there in place of {absent[0]!r}"
    return "name the columns image, label, candidates, weights, split, id, truth, group, each once"


def open_columns(path: Path, *, may_break: bool = False) -> Columns:
    """The columns of a .csv, .tsv, .jsonl, .json or .parquet file.

    Args:
      may_break: a cell of a .csv may run over several lines, as names of files do that hold a line break.

    Raises: DataError if the file is not of that format at all, or empty.
    """
    openers: dict[str, Callable[[Path], Columns]] = {
        ".csv": lambda path: _open_csv(path, may_break),
        ".tsv": lambda path: _open_csv(path, may_break),
        ".jsonl": _open_jsonl,
        ".ndjson": _open_jsonl,
        ".json": _open_json,
    }
    try:
        if path.stat().st_size == 0:
            raise pa.ArrowInvalid("empty file")
        return openers.get(path.suffix.lower(), _open_parquet)(path)
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if path.is_file() and path.stat().st_size == 0:
        problem = Problem(str(path), "empty_table", "the file is empty (0 bytes)")
        return DataError(f"{path} is empty", problems=[problem], fix="give a table with a row per image")
    reason = (str(error).splitlines() or ["?"])[0]
    detail = f"not a readable {path.suffix[1:]} file: {reason}"
    problem = Problem(str(path), "malformed_row", detail)
    return DataError(f"{path}: {detail}", problems=[problem], fix="write the file anew, in UTF-8")


# ---------------------------------------------------------------- CSV


def _open_csv(path: Path, may_break: bool) -> Columns:
    lines = _text_lines(path)
    number, first = next(lines, (1, ""))
    sign = "\t" if path.suffix.lower() == ".tsv" else None
    if first is not None and first.lower().startswith("sep=") and len(first.strip()) == 5:  # a line of Excel's
        sign, (number, first) = first[4], next(lines, (2, ""))
    if first is None or not first.strip():
        raise ValueError("its first line holds no column names" if first is not None else "the text is not UTF-8")
    sign = sign or max(",;\t|", key=lambda s: len(_cells([first], s)))
    names = tuple(name.strip() for name in _cells([first], sign))
    columns = Columns(path, names, lambda wanted: iter(()))
    if sign not in (",", "\t"):
        columns.problems.append(Problem(str(path), "read_as", f"its columns are separated by {sign!r}"))

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        places = [names.index(name) for name in wanted]
        found: list[list[str]] = []
        at: list[int] = []
        for line, cells in _records(path, number, sign, columns, names, [] if may_break else places):
            found.append(cells)
            at.append(line)
            if len(at) == BATCH_ROWS:
                yield _cells_batch(found, at, wanted, places)
                found, at = [], []
        if at:
            yield _cells_batch(found, at, wanted, places)

    columns.batches = batches
    return columns


def _cells_batch(found: list[list[str]], at: list[int], wanted: Sequence[str], places: list[int]) -> pa.RecordBatch:
    arrays = []
    for place in places:
        cells = (row[place] or None for row in found)
        arrays.append(unescaped(pa.array(cells, pa.string())))
    return pa.record_batch([*arrays, pa.array(at, pa.int64())], [*wanted, LINE])


def _cells(lines: Sequence[str], sign: str) -> list[str]:
    return next(csv.reader(lines, delimiter=sign), [])


def _records(
    path: Path, header: int, sign: str, columns: Columns, names: Sequence[str], places: Sequence[int]
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the records after the header; the others are noted.

    A record of several lines whose names or paths hold the line break has a quote that was never closed: its first
    line is lost, and the next one is read as a record of its own.
    """
    csv.field_size_limit(1 << 30)
    lines, ahead = _text_lines(path), deque[tuple[int, str | None]]()
    columns.n_given = 0
    while True:
        while len(ahead) < _RECORD_LINES and (more := next(lines, None)) is not None:
            ahead.append(more)
        if not ahead:
            return
        line, text = ahead.popleft()
        if line <= header or (text is not None and not text.strip()):
            continue
        columns.n_given += 1
        if text is None:
            columns.lose(f"{path} line {line}", "the text is not UTF-8")
            continue
        cells, n_more = _record(text, ahead, sign, names, places)
        if cells is None:
            columns.lose(f"{path} line {line}", "a quote that is not closed on this line, or a stray line break")
            continue
        for _ in range(n_more):
            ahead.popleft()
        if len(cells) != len(names):
            columns.lose(f"{path} line {line}", f"{len(cells)} values for {len(names)} columns")
        else:
            yield line, cells


def _record(
    text: str, ahead: Iterable[tuple[int, str | None]], sign: str, names: Sequence[str], places: Sequence[int]
) -> tuple[list[str] | None, int]:
    """The cells of a record and how many lines it has besides its first; None if its quotes are broken."""
    try:
        if text.count('"') % 2 == 0:
            return _cells([text], sign), 0
        after = [other or "" for _, other in ahead]
        reader = csv.reader([text, *after], delimiter=sign, strict=True)
        cells = next(reader)
        n_more = reader.line_num - 1
        inner = after[: n_more - 1]
        are_records = len(names) > 2 and 2 * sum(len(_cells([each], sign)) == len(names) for each in inner) > len(inner)
        if n_more and (are_records or len(cells) != len(names) or any("\n" in cells[place] for place in places)):
            return None, 0
        return cells, n_more
    except csv.Error:
        return None, 0


def _text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(number from 1, text with its line break) of the lines; None where it is not UTF-8."""
    with path.open("rb") as raw:
        start = raw.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Excel's "Unicode text"
            yield from enumerate(io.StringIO(path.read_text(encoding="utf-16"), newline=None), 1)
            return
        raw.seek(3 if start[:3] == b"\xef\xbb\xbf" else 0)
        number = 0
        while block := raw.readlines(_BLOCK_BYTES):
            if len(block) == 1 and b"\r" in block[0].rstrip(b"\r\n"):  # line breaks of an old Mac
                block = block[0].replace(b"\r\n", b"\n").replace(b"\r", b"\n").splitlines(keepends=True)
            for line in block:
                number += 1
                try:
                    yield number, line.decode()
                except UnicodeDecodeError:
                    yield number, None


# ---------------------------------------------------------------- JSON


def _open_jsonl(path: Path) -> Columns:
    return _of_rows(path, lambda: _json_rows(path), "line")


def _open_json(path: Path) -> Columns:
    rows, features = exports.rows_of(path)
    columns = _of_rows(path, lambda: ((number, row, "") for number, row in enumerate(rows, 1)), "row")
    columns.features = features
    return columns


def _of_rows(path: Path, rows: Callable[[], Iterator[tuple[int, Any, str]]], noun: str) -> Columns:
    """A table of objects: (number, object, what is wrong with it) each; its columns are the keys of all of them."""
    names = dict[str, None]()
    for _, row, _ in rows():
        names |= dict.fromkeys(row)
    columns = Columns(path, tuple(names), lambda wanted: iter(()))

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        columns.n_given = 0
        found: list[list[Any]] = []
        at: list[int] = []
        for number, row, wrong in rows():
            columns.n_given += 1
            try:
                values = [] if wrong else [_json_value(row.get(name)) for name in wanted]
            except ValueError as error:
                wrong = str(error)
            if wrong:
                columns.lose(f"{path} {noun} {number}", wrong)
                continue
            found.append(values)
            at.append(number)
            if len(at) == BATCH_ROWS:
                yield _json_batch(found, at, wanted)
                found, at = [], []
        if at:
            yield _json_batch(found, at, wanted)

    columns.batches = batches
    return columns


def _json_batch(found: list[list[Any]], at: list[int], wanted: Sequence[str]) -> pa.RecordBatch:
    arrays = []
    for place in range(len(wanted)):
        values = [row[place] for row in found]
        if any(isinstance(value, list) for value in values):  # beside texts like a|b
            values = [(listed(v) or v.split("|")) if isinstance(v, str) else v for v in values]
            arrays.append(pa.array(values, pa.large_list(pa.string())))
        else:
            arrays.append(pa.array(values, pa.string()))
    return pa.record_batch([*arrays, pa.array(at, pa.int64())], [*wanted, LINE])


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(line, object, "") of the lines; where it is none, an empty one and why."""
    for number, line in _text_lines(path):
        if line is not None and not line.strip():
            continue
        row = None
        try:
            row = exports.loads(line) if line is not None else None
            wrong = "the text is not UTF-8" if line is None else "" if isinstance(row, dict) else "not an object {...}"
            for text in row if isinstance(row, dict) else ():
                text.encode()
        except ValueError as error:
            wrong = _why(error)
        yield number, row if isinstance(row, dict) and not wrong else {}, wrong and f"not a JSON object: {wrong}"


def _json_value(value: Any) -> Any:
    """A text, a list of texts, or None.

    Raises: ValueError for what is neither.
    """
    if isinstance(value, dict) and isinstance(value.get("path"), str):  # an image as `datasets` writes it
        value = value["path"]
    if isinstance(value, list):
        return [None if item is None else _json_text(item) for item in value]
    return None if value is None else _json_text(value)


def _json_text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "lists in a list"
        raise ValueError(f"{kind} where a name is wanted")
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        text.encode()
    except ValueError as error:
        raise ValueError(_why(error)) from error
    return text


def _why(error: ValueError) -> str:
    return "half a character (a lone surrogate)" if isinstance(error, UnicodeError) else str(error)


# ---------------------------------------------------------------- Parquet


def _open_parquet(path: Path) -> Columns:
    with pq.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    columns = Columns(path, tuple(schema.names), lambda wanted: iter(()), n_given=n_rows)
    features = _facts(columns, schema, b"huggingface", "info", "features")
    ours = _facts(columns, schema, METADATA_KEY).get("class_names")
    if isinstance(ours, list) and ours:
        features = {**features, "label": {"_type": "ClassLabel", "names": ours}}
    columns.features = features
    known = _facts(columns, schema, METADATA_KEY, "annotator", "counts").get("knowledge")
    columns.knowledge = float(known) if isinstance(known, int | float) and known > 0 else math.inf
    columns.embedded = frozenset(f.name for f in schema if _holds_images(f, features.get(f.name)))

    def batches(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        plain = [name for name in wanted if name not in columns.embedded]
        structs = [
            name
            for name in wanted
            if name in columns.embedded
            and pa.types.is_struct(schema.field(name).type)
            and schema.field(name).type.get_field_index("path") >= 0
        ]
        try:
            with pq.ParquetFile(path) as file:
                if not plain and not structs:  # no column to read, yet the rows count
                    yield pa.record_batch([pa.nulls(n_rows)], ["image"])
                    return
                chosen = plain + [f"{name}.path" for name in structs]  # never the bytes
                for batch in file.iter_batches(BATCH_ROWS, columns=chosen):
                    arrays = [batch.column(name) for name in plain]
                    arrays += [pc.struct_field(batch.column(name), "path") for name in structs]
                    yield pa.record_batch(arrays, [*plain, *structs])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def contents(name: str | None) -> Iterator[str]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CONTENTS_ROWS, columns=[name]):
                yield from content_names(batch.column(0).to_pylist())

    columns.batches, columns.contents = batches, contents
    return columns


def content_names(images: Iterable[Any]) -> Iterator[str]:
    """A short name of each image as Parquet has it: of its bytes, or else its path.

    Example:
      >>> list(content_names([b"ab", {"bytes": b"ab", "path": "a.png"}, {"bytes": None, "path": "a.png"}]))
      ['0e52b5f187de1088', '0e52b5f187de1088', 'a.png']
    """
    for image in images:
        held = image if isinstance(image, dict) else {"bytes": image}
        data = held.get("bytes")
        yield str(held.get("path") or "") if data is None else hashlib.blake2b(data, digest_size=8).hexdigest()


def _holds_images(column: pa.Field, feature: Any) -> bool:
    kind = column.type
    is_image = isinstance(feature, dict) and feature.get("_type") == "Image" and not pa.types.is_string(kind)
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return is_image or is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _facts(columns: Columns, schema: pa.Schema, *keys: bytes | str) -> dict[str, Any]:
    """What the metadata of a schema hold under a key, and under keys in that; empty where they hold no such thing."""
    key, *inner = keys
    raw = (schema.metadata or {}).get(key)
    try:
        found = {} if raw is None else json_of(raw)
    except ValueError:
        columns.problems.append(Problem(str(columns.path), "read_as", f"its metadata {key!r} is no JSON: not read"))
        return {}
    for each in inner:
        found = found.get(each, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}
