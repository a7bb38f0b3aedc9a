"""Embeddings that the user brings, of any modality, read into the same table as images: .npy, .npz or Parquet."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from labelwright.data.augment import RowGenerator
from labelwright.data.build import TableBuilder
from labelwright.data.checks import OnBad, resolve_problems
from labelwright.data.columns import ROLES
from labelwright.data.embedding_tables import files_of, read_parquet, read_table, rows_beside
from labelwright.data.table import Images, LabelTable
from labelwright.data.vectors_in_memory import vectors_of
from labelwright.errors import ConfigError, DataError, Problem

SUFFIXES = (".npy", ".npz", ".parquet")
NPZ_KEYS: Mapping[str, str] = {
    "embeddings": "[N, D] numbers, one row per item",
    "labels": "[N] names or class indices; -1 or empty = unknown",
    "class_names": "[C] names, in class order",
    "ids": "[N] unique names of the rows",
    "paths": "[N] file paths; used as ids where there are none",
    "groups": "[N] rows with the same value belong together",
    "split": "[N] train, test or validation",
    "truth": "[N] names or class indices, for scoring only",
    "class_embeddings": "[C, D] text features of the classes, in class order",
    "logit_scale": "one positive number: the scale of the similarities with class_embeddings",
    "weak": "[V, N, D] embeddings of weakly augmented views",
    "strong": "[V, N, D] embeddings of strongly augmented views",
}
"""Keys of an .npz -> what they hold; only ``embeddings`` must be there."""

_ROLES = {"labels": "label", "ids": "id", "groups": "group", "split": "split", "truth": "truth"}
_ROWS_AT_ONCE = 65_536
_VALUE_MAX = 1e37  # sums of a few larger ones are beyond float32
_ANEW = "write it anew with numpy.save or savez"
_MAPPED_BYTES_MIN = 256 << 20  # of an .npz; smaller ones may be written anew while they are used
_UNPACKED_BYTES_MAX = 256 << 20  # an array above this that was packed ...
_UNPACKED_TIMES_MAX = 100  # ... into a hundredth of its size or less is no embeddings
_HASHED_BYTES_MAX = 4 << 30  # vectors above this are fingerprinted by a sample, as embedded images are
_DROPPED_FRAC = 0.1  # of the features, in a strong view made up
_NOISE_FRAC = 0.1  # of the row's norm, in a strong view made up
_N_MADE_UP = 1 << 24  # strong views made up of one row: as many as RowGenerator's numbers tell apart

Floats = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class NoImages(Images):
    """Stands where a table keeps its images when there are embeddings instead; decoding one is a DataError.

    Example:
      >>> none = NoImages(vectors=np.zeros((3, 2), np.float32)).take(np.array([2, 0]))
      >>> len(none), none.rows.tolist(), none.where(1)
      (2, [2, 0], 'row 2')
    """

    vectors: Any = None  # [M, D] floats
    rows: Any = None  # [N] int64 rows of them that are the table's; None for all

    def __len__(self) -> int:
        return len(self.vectors if self.rows is None else self.rows)

    def sources(self, rows: npt.NDArray[np.int64]) -> list[bytes | str]:
        """Refused: there are none.

        Raises: DataError naming the first row asked for.
        """
        where = self.where(int(rows[0])) if len(rows) else "no row"
        problem = Problem(where, "missing_image", "the data holds embeddings and no images", None)
        raise DataError(
            f"{where}: {problem.detail}", problems=[problem], fix="train on the embeddings, or point at the images"
        )

    def take(self, rows: npt.NDArray[np.int64]) -> NoImages:
        """The same of rows [n], in that order; the vectors are not copied."""
        return dataclasses.replace(self, rows=rows if self.rows is None else self.rows[rows])

    def where(self, row: int) -> str:
        """Where the user finds an item."""
        return f"row {row + 1}"

    def update_digest(self, digest: Any) -> None:
        """Feed the vectors to a hash; above 4 GiB, of every few rows only."""
        rows = np.arange(len(self.vectors)) if self.rows is None else self.rows
        n_bytes = self.vectors.itemsize * self.vectors.shape[1] * len(rows)
        digest.update(f"{self.vectors.shape[1]} {self.vectors.dtype} {len(rows)}\n".encode())
        rows = rows[:: max(1, -(-n_bytes // _HASHED_BYTES_MAX))]
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            digest.update(np.ascontiguousarray(self.vectors[rows[first : first + _ROWS_AT_ONCE]]))


class GivenFeats:
    """The user's vectors as `encoders.store.StoredFeats`, as given or with columns divided: clean, weak and strong.

    Without views of the user's own, a weak view is the vector itself; a strong one is the vector with 10% of its
    features set to zero and Gaussian noise of 10% of the row's norm (sd: norm / (10 sqrt(D))) on the others, both
    drawn from (index, row) alone.

    Args:
      feats: [N, D] floats, in memory or mapped.
      weak, strong: [V, N, D] floats, or None.
      scales: [D] float32 that columns are divided by, see train.column_scales.column_scales; None: by nothing.

    Example:
      >>> given = GivenFeats(np.ones((2, 100), np.float32))
      >>> x = given.read(torch.tensor([1]), "strong", torch.tensor([5]))
      >>> list(x.shape), given.n_views("weak"), bool((x == 0).any())
      ([1, 100], 1, True)
    """

    def __init__(
        self, feats: Floats, *, weak: Floats | None = None, strong: Floats | None = None, scales: Tensor | None = None
    ) -> None:
        assert feats.ndim == 2, feats.shape
        assert all(extra is None or extra.shape[1:] == feats.shape for extra in (weak, strong)), "views of these rows"
        self._feats = np.asarray(feats)  # a memory map without numpy's slower indexing of its own class
        self._extra = {"weak": weak, "strong": strong}
        self.n_rows, self.n_features = self._feats.shape
        self._scales = scales

    def divided(self, scales: Tensor) -> GivenFeats:
        """The same vectors with their columns divided by scales [D]."""
        return GivenFeats(self._feats, weak=self._extra["weak"], strong=self._extra["strong"], scales=scales)

    def n_views(self, view: str) -> int:
        """How many different vectors a row has under a view: 1, V, or 2^24 where strong views are made up."""
        extra = self._extra.get(view)
        if extra is not None:
            return len(extra)
        return _N_MADE_UP if view == "strong" else 1

    def read(self, rows: Tensor, view: str, index: Tensor) -> Tensor:
        """[B, D] float32 on the CPU: for rows [B] int64, the index-th (index [B] int64) of their views."""
        extra = self._extra.get(view)
        found = self._feats[rows.numpy()] if extra is None else extra[index.numpy(), rows.numpy()]
        x = torch.from_numpy(found.astype(np.float32, copy=False))
        x = x if self._scales is None else x / self._scales
        if view != "strong" or extra is not None:
            return x
        u = RowGenerator(rows * _N_MADE_UP + index, seed=0).uniform(self.n_features)  # [B, D]
        kept = (u - _DROPPED_FRAC) / (1 - _DROPPED_FRAC)  # uniform in 0 to 1 where not dropped: one draw serves both
        noise = math.sqrt(2) * torch.erfinv((2 * kept - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        sd = _NOISE_FRAC * x.norm(dim=1, keepdim=True) / math.sqrt(self.n_features)
        return torch.where(u < _DROPPED_FRAC, 0.0, x + sd * noise)


@dataclass(frozen=True, eq=False)
class UserEmbeddings:
    """What `load_embeddings` found, row by row of one table."""

    table: LabelTable  # N rows; its ``images`` are a `NoImages`
    feats: Floats  # [N, D] as in the file: float32 in memory, or mapped from an .npy of any floating type
    class_feats: npt.NDArray[np.float32] | None = None  # [C, D] text features in the order of ``table.class_names``
    logit_scale: float | None = None  # of the similarities with class_feats
    weak: Floats | None = None  # [V, N, D] float32 views
    strong: Floats | None = None

    @property
    def stored(self) -> GivenFeats:
        """The vectors for `encoders.store.EmbeddingViews`."""
        return GivenFeats(self.feats, weak=self.weak, strong=self.strong)


def load_embeddings(
    source: Any,
    *,
    classes: Sequence[str] | None = None,
    annotators: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    only_rows: bool = False,
    on_bad: OnBad = "stop",
) -> UserEmbeddings:
    """Read embeddings with whatever is known of their labels, and check every value.

    Args:
      source: an .npy of shape [N, D], memory-mapped, with a .csv, .tsv or .jsonl of the same name beside it for what is
        known of its rows; an .npz with the keys of NPZ_KEYS; a .parquet, or several, with a column ``embedding``
        of lists, and label, candidates, split, id, truth and group columns as for images; or embeddings in memory, see
        vectors_in_memory.vectors_of.
      classes: the class names in order; None = as the file has them, else the labels seen are the classes.
      annotators: columns of a .parquet that hold one annotator's answers each.
      columns: role (label, split, group, ...) -> column of a table, where it is called otherwise.
      only_rows: labels and all else are not looked at, and ids may repeat.
      on_bad: as for `data.read.load`; "skip" leaves rows out, and copies the others if they were mapped;
        "report" keeps bad embeddings as they are, those of another length as zeros.

    Raises: DataError naming the file and the key or row: not such a file, a wrong shape or length, an unknown key,
      Python objects, values that are not finite, labels that are not classes. ConfigError for impossible ``classes``.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "pets.npz"
      >>> np.savez(path, embeddings=np.eye(3), labels=["cat", "", "dog"])
      >>> found = load_embeddings(path)
      >>> found.table.class_names, found.table.labels.tolist(), found.feats.shape
      (('cat', 'dog'), [0, -1, 1], (3, 3))
    """
    held = vectors_of(source)
    several = files_of(source) if held is None else None
    is_one = held is None and not isinstance(source, (list, tuple))
    path = Path(source).expanduser() if is_one else several[0][0].parent if several else Path("the data")
    suffix, how = path.suffix.lower(), dict[str, Any](classes=classes, only_rows=only_rows)
    if held is None and several is None and suffix not in SUFFIXES:
        raise DataError(f"not a file of embeddings: {path}", fix=f"one of {' '.join(SUFFIXES)}")
    if held is None and several is None and not path.is_file():
        raise DataError(f"no such file: {path}", fix="check the path")
    if several or suffix == ".parquet" or isinstance(held, pa.Table):
        if isinstance(held, pa.Table):
            feats, builder, problems = read_table(held, str(path), annotators, columns or {}, **how)
        else:
            files, splits = several or ([path], [None])
            feats, builder, problems = read_parquet(files, splits, str(path), annotators, columns or {}, **how)
        return _finish(path, UserEmbeddings(_table(builder, feats, classes, only_rows), feats), problems, on_bad)
    arrays, beside = _read_arrays(path) if held is None else _checked_keys(path, held), None
    feats = _vectors(path, "embeddings", arrays["embeddings"])
    if suffix == ".npy":
        beside = rows_beside(path, len(feats), annotators, columns or {}, classes=classes, only_rows=only_rows)
    if beside is not None:
        return _finish(path, UserEmbeddings(_table(beside, feats, classes, only_rows), feats), [], on_bad)
    named = dict(columns or {})
    if "groups" in arrays and (name := named.pop("group", "groups")) not in ("groups", *ROLES["group"]):
        raise ConfigError(
            f"{path} has no column {name!r} for --group, but the key groups", fix="leave --group out: that key is read"
        )
    if named:
        role, name = next(iter(named.items()))
        flag = "--group" if role == "group" else f"--{role}-column"
        raise ConfigError(f"{path} has no column {name!r} for {flag}", fix="write the embeddings as .parquet")
    if annotators:
        raise ConfigError(
            f"{path} has no columns: --annotator-columns needs a table", fix="write the embeddings as .parquet"
        )
    builder = TableBuilder(str(path))
    builder.declared = _declared(path, arrays)
    found_in = {key: arrays[key] for key in ("paths", *_ROLES) if key in arrays}
    if only_rows:
        found_in = {key: some for key, some in found_in.items() if key in ("paths", "ids")}
    given: dict[str, Any] = {
        _ROLES.get(key, "id"): _column(path, key, some, len(feats)) for key, some in found_in.items()
    }
    names = dict.fromkeys(("label", "truth"), builder.declared) if builder.declared else {}
    if _counts_from_one(arrays, len(builder.declared)):
        for role in {"label", "truth"} & set(given):
            column = given[role]
            given[role] = pc.if_else(pc.greater(column, 0), pc.subtract(column, 1), column)
        first, last = builder.declared[0], builder.declared[-1]
        detail = f"the numbers of the classes count from 1: 1 is {first!r}, {len(builder.declared)} {last!r}"
        builder.problems.append(Problem(str(path), "read_as", detail))
    # In parts, whose texts are gone before the next come; numbers with fractions are read by all of their column.
    is_whole = any(pa.types.is_floating(column.type) for column in given.values())
    for start in range(0, len(feats), len(feats) if is_whole else _ROWS_AT_ONCE):
        n = len(feats) if is_whole else min(_ROWS_AT_ONCE, len(feats) - start)
        builder.add({role: each.slice(start, n) for role, each in given.items()}, n, names=names, file=str(path))
    found = UserEmbeddings(
        table=_table(builder, feats, classes, only_rows),
        feats=feats,
        logit_scale=_logit_scale(path, arrays),
        weak=_views(path, "weak", arrays, feats),
        strong=_views(path, "strong", arrays, feats),
    )
    if "class_embeddings" in arrays:
        class_feats = _class_feats(path, arrays["class_embeddings"], builder.declared, found)
        found = dataclasses.replace(found, class_feats=class_feats)
    return _finish(path, found, [], on_bad)


def _table(builder: TableBuilder, feats: Floats, classes: Sequence[str] | None, only_rows: bool) -> LabelTable:
    rows = pa.table({"image": pa.nulls(len(feats))})  # has the length, which is all that is looked at
    table = builder.finish(classes=classes, dataset=rows)
    problems = tuple(p for p in table.problems if not (only_rows and p.kind == "duplicate_id"))
    return dataclasses.replace(table, images=NoImages(vectors=feats), problems=problems)


def of_rows(
    builder: TableBuilder,
    feats: Floats,
    problems: Sequence[Problem],
    *,
    classes: Sequence[str] | None,
    only_rows: bool,
    on_bad: OnBad,
    first_row: int,
    leave: Sequence[str] = (),
) -> UserEmbeddings:
    """Embeddings that were read in blocks: every value checked, as by `load_embeddings`.

    Args:
      builder: holds the other columns of these rows.   feats: [n, D] floats.   first_row: number of the first of them.
      problems: rows that hold no vector, or one of another length.
      leave: kinds of problems that a block may have and the whole need not.
    """
    table = _table(builder, feats, classes, only_rows)
    table = dataclasses.replace(table, problems=tuple(p for p in table.problems if p.kind not in leave))
    found = UserEmbeddings(table, feats)
    return _finish(Path(builder.where), found, problems, on_bad, first_row)


def _finish(
    path: Path, found: UserEmbeddings, problems: Sequence[Problem], on_bad: OnBad, first_row: int = 0
) -> UserEmbeddings:
    """Find the rows that are not finite, and decide on all problems; the vectors follow the rows kept."""
    bad = np.zeros(len(found.feats), dtype=bool)
    for vectors in (found.feats[None], found.weak, found.strong):
        for plane in () if vectors is None else vectors:
            for first in range(0, len(bad), _ROWS_AT_ONCE):
                with np.errstate(over="ignore"):  # a double beyond float32 counts as infinite
                    some = plane[first : first + _ROWS_AT_ONCE].astype(np.float32, copy=False)
                bad[first : first + _ROWS_AT_ONCE] |= ~(np.abs(some) <= _VALUE_MAX).all(axis=1)
    detail = f"the embedding holds a value that is not a finite number, or is beyond {_VALUE_MAX:g}"
    infinite = [
        Problem(f"{path} row {first_row + row + 1}", "bad_embedding", detail, row)
        for row in np.flatnonzero(bad).tolist()
    ]
    table = resolve_problems(found.table, [*found.table.problems, *problems, *infinite], on_bad)
    assert isinstance(table.images, NoImages)
    kept = table.images.rows
    if kept is None:
        return dataclasses.replace(found, table=table)
    feats = found.feats[kept]
    return dataclasses.replace(
        found,
        table=dataclasses.replace(table, images=NoImages(vectors=feats)),
        feats=feats,
        weak=None if found.weak is None else found.weak[:, kept],
        strong=None if found.strong is None else found.strong[:, kept],
    )


# ------------------------------------------------------------------------------------------------------- .npy and .npz


def _read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by key; an .npy has its one under ``embeddings``, memory-mapped."""
    key = ""
    try:
        if path.suffix.lower() == ".npy":
            return {"embeddings": np.lib.format.open_memmap(path, mode="r")}
        with path.open("rb") as raw, np.lib.npyio.NpzFile(raw) as file:  # numpy.load leaves a damaged file open
            _checked_keys(path, dict.fromkeys(file.files))
            members = {each.filename: each for each in (file.zip.infolist() if file.zip is not None else ())}
            for packed in members.values():
                _check_packed(path, packed)
            mapped = _mapped(path, members["embeddings.npy"])
            others = {}
            for key in file.files if mapped is None else [each for each in file.files if each != "embeddings"]:
                others[key] = file[key]
            return others | ({} if mapped is None else {"embeddings": mapped})
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: there is not enough memory for what it says it holds", fix=_ANEW) from error
    except Exception as error:  # a damaged header or archive: whatever the readers trip over
        if any(word in str(error).lower() for word in ("pickle", "object")):
            detail = f"{key or 'it'} holds Python objects, which are never unpickled"
            kind = "float" if key in ("", "embeddings") else "str"
            fix = f"save plain numbers or texts: {key or 'array'}.astype({kind})"
        else:
            what = (str(error) or type(error).__name__).splitlines()[0][:200]
            detail, fix = f"not a readable {path.suffix} file ({what})", _ANEW
        raise DataError(f"{path}: {detail}", fix=fix) from error


def _checked_keys(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(arrays) - set(NPZ_KEYS))
    if unknown or "embeddings" not in arrays:
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no key embeddings"
        fix = f"keys are {', '.join(NPZ_KEYS)}; only embeddings must be there"
        if "embeddings" not in arrays:
            what += "" if not unknown else ", and no embeddings"
            fix = f"numpy.savez({path.name!r}, embeddings=[rows, features], labels=[rows]); {fix}"
        raise DataError(f"{path}: {what}", fix=fix)
    return arrays


def _mapped(path: Path, member: zipfile.ZipInfo) -> Any:
    """A large array of an .npz, memory-mapped; None where it is small or compressed."""
    if member.file_size < _MAPPED_BYTES_MIN or member.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(start_of(file, member))
        shape, is_fortran, dtype = header_of(file)
        if dtype.hasobject:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")


def start_of(file: Any, member: zipfile.ZipInfo) -> int:
    """Where the content of a member that is not compressed begins in its archive."""
    file.seek(member.header_offset)
    head = file.read(30)  # of the local header; the lengths of name and extra field are its last numbers
    behind = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return int(member.header_offset + len(head) + behind)


def header_of(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether by columns, and type of the .npy that begins here; its numbers come next."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    return shape, is_fortran, dtype


def _check_packed(path: Path, packed: zipfile.ZipInfo) -> None:
    """Refuse an array that is far larger than the file it comes in, before it is unpacked."""
    if packed.file_size > _UNPACKED_BYTES_MAX and packed.file_size > _UNPACKED_TIMES_MAX * packed.compress_size:
        raise DataError(
            f"{path}: {packed.filename} would unpack from {packed.compress_size:,} to {packed.file_size:,} bytes",
            fix="embeddings never shrink that much: write the file anew, with numpy.savez if it is meant so",
        )


def _vectors(path: Path, key: str, found: Any) -> Floats:
    """[n, D] as floats; raises DataError if it is anything else."""
    if found.ndim != 2 or 0 in found.shape:
        raise DataError(
            f"{path}: {key} has shape {list(found.shape)}, which is not [rows, features]", fix="one row per item"
        )
    if not (np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer)):
        raise DataError(f"{path}: {key} holds {found.dtype}, not numbers", fix="save it as float32 or float16")
    if isinstance(found, np.memmap) and np.issubdtype(found.dtype, np.floating):
        return found
    with np.errstate(over="ignore"):
        vectors: Floats = np.asarray(found).astype(np.float32, copy=False)
    return vectors


def _column(path: Path, key: str, found: Any, n_rows: int) -> Any:
    """[n_rows] names or numbers as an Arrow array."""
    if found.shape != (n_rows,):
        raise DataError(
            f"{path}: {key} has shape {list(found.shape)} for {n_rows} embeddings", fix=f"one value per row in {key}"
        )
    if found.dtype.kind not in "biufSUM":
        raise DataError(f"{path}: {key} holds {found.dtype}, not names or numbers", fix=f"save {key} as texts")
    wanted = {"S": str, "f": np.float64}.get(found.dtype.kind, found.dtype)
    try:
        return pa.array(found.astype(wanted))
    except (ValueError, pa.ArrowException) as error:  # bytes that are no text, half a character
        raise DataError(f"{path}: {key} cannot be read ({error})", fix=f"save {key} as texts") from error


def _counts_from_one(arrays: Mapping[str, Any], n_classes: int) -> bool:
    """Whether labels and truth are numbers from 1 to C, none of them 0."""
    given = [np.ravel(arrays[key]) for key in ("labels", "truth") if key in arrays]
    if not n_classes or not given or any(each.dtype.kind not in "iuf" for each in given):
        return False
    numbers = np.concatenate([each[each >= 0] for each in given])
    return bool(len(numbers)) and int(numbers.min()) == 1 and int(numbers.max()) == n_classes


def _declared(path: Path, arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that the file itself fixes, in order; empty if it does not."""
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) < len(names):
            raise DataError(f"{path}: class_names must be [C] different strings", fix="give every class one name")
        if not all(name.strip() for name in names.tolist()):
            raise DataError(f"{path}: class_names holds an empty name", fix="give every class one name")
        return tuple(names.astype(str).tolist())
    if "class_embeddings" not in arrays:
        return ()
    if "labels" in arrays and arrays["labels"].dtype.kind in "US":
        raise DataError(
            f"{path}: class_embeddings without class_names beside labels that are names", fix="add class_names"
        )
    return tuple(str(c) for c in range(len(np.atleast_1d(arrays["class_embeddings"]))))


def _class_feats(path: Path, raw: Any, declared: tuple[str, ...], found: UserEmbeddings) -> npt.NDArray[np.float32]:
    """[C, D] in the order of the table's classes."""
    vectors = _vectors(path, "class_embeddings", raw)
    D = found.feats.shape[1]
    if vectors.shape != (len(declared), D):
        raise DataError(
            f"{path}: class_embeddings has shape {list(vectors.shape)} for {len(declared)} classes of {D} features",
            fix="one row per class name, in the space of the embeddings",
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: class_embeddings of {declared[bad[0]]!r} is not finite", fix="compute its text feature anew"
        )
    place = {name: c for c, name in enumerate(declared)}
    missing = [name for name in found.table.class_names if name not in place]
    if missing:
        raise DataError(
            f"{path}: no class_embeddings of {', '.join(map(repr, missing[:5]))}", fix="add them, with class_names"
        )
    chosen: npt.NDArray[np.float32] = vectors[[place[name] for name in found.table.class_names]]
    return chosen


def _logit_scale(path: Path, arrays: Mapping[str, Any]) -> float | None:
    if "logit_scale" not in arrays:
        return None
    raw = arrays["logit_scale"]
    if raw.size != 1 or raw.dtype.kind not in "fiu" or not 0 < float(raw.reshape(())) < math.inf:
        raise DataError(f"{path}: logit_scale must be one positive number", fix="CLIP's is about 100")
    return float(raw.reshape(()))


def _views(path: Path, key: str, arrays: Mapping[str, Any], feats: Floats) -> Floats | None:
    if key not in arrays:
        return None
    raw = arrays[key]
    if raw.ndim != 3 or not len(raw) or raw.shape[1:] != feats.shape or raw.dtype.kind not in "fiu":
        N, D = feats.shape
        raise DataError(
            f"{path}: {key} has shape {list(raw.shape)} of {raw.dtype}, not [V, {N}, {D}] of numbers",
            fix="one embedding of every row per view",
        )
    with np.errstate(over="ignore"):
        vectors: Floats = raw.astype(np.float32, copy=False)
    return vectors
