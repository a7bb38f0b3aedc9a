"""Tables, class files and Parquet: any cells, any separators, any damage; every row given is read or reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import fuzzed, read_or_refused
from PIL import Image

from labelwright.data.class_names import read_names
from labelwright.data.read import load

CELLS = [
    *("cat", "dog", " cat ", "CAT", "", "nan", "NA", "None", "null", "-1", "-1.0", "1.0", "1", "0", "7", "1e400"),
    *("['cat', 'dog']", '["cat"]', "cat;dog", "cat,dog", "{'cat': 0.5}", "[0.2, 0.8]", "=1+1", "-cat", "'=x"),
    *(
        "caf\u00e9",
        "cafe\u0301",
        "\u202ecat",
        "\ud83d\ude00",
        "a\nb",
        'say "cat"',
        '"cat',
        "x" * 300,
        "\x00",
        "\ufeffcat",
    ),
    *("a.png", "b.png", "gone.png", "../a.png", "/etc/passwd", "a\\b.png", "train", "test", "validation"),
]
COLUMNS = [
    "image",
    "file_name",
    "label",
    "species",
    "candidates",
    "weights",
    "split",
    "id",
    "truth",
    "group",
    "image",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images beside the tables."""
    root = tmp_path_factory.mktemp("tables")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(root / name)
    return root


def read(path: Path) -> None:
    """Read it whole; each row given is kept or reported."""
    table = read_or_refused(lambda: load(path, on_bad="report"), path.name)
    if table is not None:
        n_given, n_kept, n_lost = table.accounted
        assert n_given == n_kept + n_lost, f"{n_given} rows given, {n_kept} kept and {n_lost} reported"
        assert len(table.labels) == len(table.ids) == len(table.images) == n_kept


names = st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5)
cells = st.one_of(st.sampled_from(CELLS), st.text(max_size=6))


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    """Columns and rows written with any separator and quoting, some with a cell too few or many, then damaged."""
    columns, sign = draw(names), draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    lines = [sign.join(columns)]
    for _ in range(draw(st.integers(0, 6))):
        n = len(columns) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
        row = draw(st.lists(cells, min_size=max(n, 0), max_size=max(n, 0)))
        quoted = draw(st.booleans())
        lines.append(sign.join('"' + cell.replace('"', '""') + '"' if quoted else cell for cell in row))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(lines) + draw(st.sampled_from(["", end]))
    encoded = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"])), "surrogatepass")
    return damaged(draw, encoded)


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes as they are, cut, or with some of them changed."""
    kind = draw(st.sampled_from(["as it is", "as it is", "cut", "changed"]))
    if kind == "as it is" or not content:
        return content
    at = draw(st.integers(0, len(content) - 1))
    return content[:at] if kind == "cut" else content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=True), cells),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def jsonl_files(draw: st.DrawFn) -> bytes:
    """Lines of objects, and of what is none."""
    rows = draw(st.lists(st.one_of(st.dictionaries(st.sampled_from(COLUMNS), values, max_size=4), values), max_size=6))
    lines = [json.dumps(row) for row in rows]
    lines += draw(st.lists(st.sampled_from(["", "null", "{", "[" * 5000, '{"image": "a.png"} x', "NaN"]), max_size=2))
    return damaged(draw, "\n".join(lines).encode("utf-8", "surrogatepass"))


@fuzzed(70)
@given(content=csv_files())
@example(content=b"image,label\n")
@example(content=b"")
@example(content=b'image,label\na.png,"cat\nb.png,dog\n')
@example(content=b"image;label\na.png;cat\n")
def test_csv(folder: Path, content: bytes) -> None:
    for suffix in (".csv", ".tsv"):
        path = folder / f"table{suffix}"
        path.write_bytes(content)
        read(path)


@fuzzed(70)
@given(content=jsonl_files())
@example(content=b"null\n")
@example(content=b'{"image": "a.png", "label": ["cat"]}\n{"image": "b.png", "late": 1}\n')
@example(content=b"\xff\xfe")
def test_json(folder: Path, content: bytes) -> None:
    for suffix in (".jsonl", ".json"):
        path = folder / f"table{suffix}"
        path.write_bytes(content)
        read(path)


KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), cells),
    (pa.large_string(), cells),
    (pa.int64(), st.integers(-2, 5)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.binary(), st.binary(max_size=6)),
    (pa.list_(pa.string()), st.lists(st.one_of(st.none(), cells), max_size=3)),
    (pa.list_(pa.float32()), st.lists(st.floats(width=32), max_size=3)),
    (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), st.just({"bytes": b"", "path": "a.png"})),
    (pa.timestamp("s"), st.just(None)),
    (pa.null(), st.none()),
]


def encodable(value: Any) -> Any:
    """Without the lone surrogates that Parquet cannot hold."""
    if isinstance(value, list):
        return [encodable(each) for each in value]
    return value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value


@st.composite
def parquet_tables(draw: st.DrawFn) -> tuple[pa.Table, dict[str, str], bool]:
    """Columns of any type, nulls among them, with any metadata; and whether bytes of the file are changed."""
    n, columns = draw(st.integers(0, 4)), draw(names)
    arrays = []
    for _ in columns:
        kind, cell = draw(st.sampled_from(KINDS))
        found = draw(st.lists(st.one_of(st.none(), cell), min_size=n, max_size=n))
        safe = [v.encode("utf-8", "ignore").decode() if isinstance(v, str) else v for v in found]
        safe = [
            [w.encode("utf-8", "ignore").decode() if isinstance(w, str) else w for w in v] if isinstance(v, list) else v
            for v in safe
        ]
        arrays.append(pa.array(safe, kind))
    about = draw(st.sampled_from([{}, {"huggingface": "{"}, {"huggingface": "[]"}, {"huggingface": '{"info": 3}'}]))
    return pa.Table.from_arrays(arrays, names=columns), about, draw(st.booleans())


@fuzzed(70)
@given(made=parquet_tables(), at=st.floats(0, 1), byte=st.binary(min_size=1, max_size=2))
def test_parquet(folder: Path, made: tuple[pa.Table, dict[str, str], bool], at: float, byte: bytes) -> None:
    table, about, is_damaged = made
    path = folder / "table.parquet"
    pq.write_table(table.replace_schema_metadata(about), path)
    if is_damaged:
        content = path.read_bytes()
        place = int(at * (len(content) - 1))
        path.write_bytes(content[:place] + byte + content[place + len(byte) :])
    read(path)


@fuzzed(40)
@given(
    content=st.one_of(
        st.binary(max_size=40), st.lists(cells, max_size=5).map(lambda c: "\n".join(c).encode("utf-8", "surrogatepass"))
    )
)
@example(content=b"")
@example(content=b"cat\ncat\n")
def test_class_files(folder: Path, content: bytes) -> None:
    path = folder / "names.txt"
    path.write_bytes(content)
    found = read_or_refused(lambda: read_names(path), path.name)
    if found is not None:
        assert all(name and name == name.strip() and "\n" not in name for name in found)
