"""Files of embeddings: .npy and .npz with damaged bytes, made-up headers, and any arrays under any key."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from outcomes import fuzzed, read_or_refused

from labelwright.data.embeddings import NPZ_KEYS, load_embeddings

VECTORS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
DTYPES = ("<f4", ">f8", "<f2", "i8", "u1", "?", "c8", "U3", "S2", "M8[D]", "O", "V4", "<f16", "f4,i4")


def npy(header: bytes, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


shapes = st.one_of(
    st.lists(st.sampled_from([0, 1, 3, 6, -1, 2**31, 2**62, 10**30]), max_size=4).map(tuple),
    st.sampled_from([7, None, "x", (3, "y"), [6, 3], (True, 3), (6.0, 3)]),
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """An .npy file whose header says what it likes."""
    header = {
        "descr": draw(st.sampled_from([*DTYPES, 3, None, [("a", "<f4")], "nonsense"])),
        "fortran_order": draw(st.sampled_from([True, False, "no", None])),
        "shape": draw(shapes),
    }
    for key in draw(st.lists(st.sampled_from(sorted(header)), max_size=1)):
        del header[key]
    text = draw(st.sampled_from([repr(header), repr(header)[:-2], repr([header]), "(" * 3000, ""])).encode()
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"]))
    return npy(text + b"\n", draw(st.sampled_from([b"", VECTORS.tobytes(), b"\xff" * 50])), version)


def flipped(data: bytes) -> st.SearchStrategy[bytes]:
    """The same with a few bytes changed, or cut."""

    def change(places: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for at, value in places:
            changed[at] = value
        return bytes(changed)

    places = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)
    return st.one_of(places.map(change), st.integers(0, len(data)).map(lambda end: data[:end]))


values = arrays_of.arrays(
    dtype=st.sampled_from(["<f4", "<f8", "i8", "u1", "?", "U3", "S2", "c8", "M8[D]"]),
    shape=st.sampled_from([(), (6,), (6, 3), (2, 6, 3), (0,), (5,), (2, 3), (6, 0), (1, 1, 1, 1)]),
    elements=None,
)


def read(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    found = read_or_refused(lambda: load_embeddings(folder / name, on_bad="report"), name, "row")
    if found is not None:
        assert len(found.table) == len(found.feats)
        assert found.feats.ndim == 2
        kept = read_or_refused(lambda: load_embeddings(folder / name, on_bad="skip"), name, "row")
        rows = {problem.row for problem in found.table.problems if problem.row is not None}
        assert (0 if kept is None else len(kept.table)) + len(rows) == len(found.table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@fuzzed(80)
@given(data=st.one_of(headers(), flipped(saved(VECTORS)), st.binary(max_size=80)))
@example(data=npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 100000), }", b""))
def test_npy__is_read_or_refused_by_name(folder: Path, data: bytes) -> None:
    read(folder, "x.npy", data)


@fuzzed(80)
@given(data=flipped(zipped(embeddings=VECTORS, labels=["cat", "dog", "", "cat", "dog", "cat"], ids=np.arange(6))))
def test_npz__with_damaged_bytes_is_read_or_refused_by_name(folder: Path, data: bytes) -> None:
    read(folder, "x.npz", data)


@fuzzed(60)
@given(keys=st.dictionaries(st.sampled_from([*NPZ_KEYS, "other", ""]), values, max_size=3), whole=st.booleans())
@example(keys={"labels": np.zeros(6, np.complex64)}, whole=True)
@example(keys={"labels": np.zeros(6, np.longdouble), "ids": np.full(6, b"\xff")}, whole=True)
@example(keys={"truth": np.zeros(6, [("a", "i4")]), "group": np.zeros(6, "m8[s]")}, whole=True)
def test_npz__with_any_arrays_under_any_key_is_read_or_refused_by_name(
    folder: Path, keys: dict[str, Any], whole: bool
) -> None:
    read(folder, "x.npz", zipped(**(keys | {"embeddings": VECTORS} if whole else keys)))


@fuzzed(30)
@given(data=headers())
def test_npz__with_made_up_headers_inside_is_read_or_refused_by_name(folder: Path, data: bytes) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("embeddings.npy", data)
    read(folder, "x.npz", file.getvalue())
