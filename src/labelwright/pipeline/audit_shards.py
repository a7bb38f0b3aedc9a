"""`audit` over shards: facts of each shard, one look at all facts and at a sample, then the rows of each shard.

 1  a shard -> its facts: id, label, fold, a hash of the content, and of images their features and how they look
 2  all facts -> groups of equal content; a sample of rows -> what judges labels and distances (labels/judge.py)
 3  a shard and what (2) found -> its rows, with the columns of `audit`

Steps 1 and 3 are work over shards; step 2 is done once, in this process, in memory that grows by about 50 bytes a row.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from labelwright import checksums
from labelwright.data.cache import PixelCache
from labelwright.data.looks import grey_thumbs
from labelwright.data.prepare import Source
from labelwright.data.stored import EmbeddingViews
from labelwright.data.views import ViewSettings
from labelwright.encoders.embed import Encoder, load_encoder
from labelwright.errors import DataError
from labelwright.labels import audit as pieces
from labelwright.labels.judge import N_FOLDS, Judge, learn, of_arrays
from labelwright.paths import absolute
from labelwright.scale.places import file_system, reading, writing
from labelwright.scale.shards import Input, Shard
from labelwright.scale.tables import Reading, batches, known_of
from labelwright.scale.work import Sharded, begin, noted, over_shards
from labelwright.train.processes import accelerator_for

SAMPLED_ROWS, SAMPLED_NUMBERS = 100_000, 1 << 24  # labelled rows that heads learn from; rows x classes or features
LEAST_SAMPLED = 20  # of a class
REFERENCE_ROWS = 4096  # rows that distances are measured to
ROWS_AT_ONCE = 50_000_000  # whose hashes are compared at once: 0.8 GB
LOOKS_PX = 64  # side of images that no model looks at
_KNOWN = ("id", "path", "label", "split")
_EMPTY = pa.schema(
    [("label", pa.string()), ("order", pa.uint64()), ("fold", pa.int8()), ("digest", pa.binary(12))]
).empty_table()
FACTS, FOUND = "_facts", "_found.npz"


@dataclass(frozen=True)
class FactsShard:
    """Step 1."""

    how: Reading  # how shards are read
    model: str  # whose features are compared; "none" for embeddings, and where nothing is
    device: str  # this and the next: see `audit`
    precision: str

    def __call__(self, shard: Shard) -> pa.Table:
        """A row per usable image, in the order of the shard."""
        parts, left_out = list[pa.Table](), list[Any]()
        encoder = None if self.model == "none" else _encoder(self.model, self.device, self.precision)
        size_px, width = LOOKS_PX if encoder is None else encoder.stats.size_px, 0
        for batch in batches(shard, self.how, size_px=size_px):
            left_out += batch.left_out
            if (source := batch.source) is None:
                continue
            known = known_of(batch)
            columns: dict[str, Any] = {name: known[name] for name in _KNOWN if name in known}
            key = known["id"] if "group" not in known else pc.coalesce(known["group"], known["id"].cast(pa.string()))
            columns["fold"] = pa.array([_hash(name) % N_FOLDS for name in key.to_pylist()], pa.int8())
            columns["order"] = pa.array([_hash(name, b"order") for name in known["id"].to_pylist()], pa.uint64())
            if source.stored is not None:
                content = np.ascontiguousarray(_feats_of(source) + 0.0)  # no negative zero
                width = width or content.shape[1]
                if content.shape[1] != width:
                    raise DataError(
                        f"{shard}: embeddings of {content.shape[1]} features where rows before have {width}",
                        fix="embed all images with one model, or leave those rows out",
                    )
            else:
                assert isinstance(source.pixels, PixelCache)
                content = source.pixels.pixels[source.rows.numpy()]
                columns |= _looks(content)
                if encoder is not None:
                    feats = _encoded(encoder, source, self.device)
                    columns["feats"] = pa.FixedSizeListArray.from_arrays(pa.array(feats.reshape(-1)), feats.shape[1])
            digests = [hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in content]
            columns["digest"] = pa.array(digests, pa.binary(12))
            parts.append(pa.table(columns))
        return noted(parts, pa.schema([("id", pa.large_string())]), left_out)


def _hash(text: str, salt: bytes = b"") -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest(), "little")


def _feats_of(source: Source) -> npt.NDArray[np.float32]:
    assert source.stored is not None
    return torch.cat(list(EmbeddingViews(source.stored, rows=source.rows).feats())).numpy()


def _encoded(encoder: Encoder, source: Source, device: str) -> npt.NDArray[np.float16]:
    view = ViewSettings(mean=encoder.stats.mean, std=encoder.stats.std)
    where = accelerator_for(device).device
    x = source.pixel_views(view).batch(torch.arange(len(source.table)), "clean", seed=0, device=where)
    with torch.inference_mode():
        return encoder.encode(x).half().cpu().numpy()


def _looks(pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Flags of images that show little, by small grey pictures."""
    flat = grey_thumbs(torch.from_numpy(pixels)).reshape(len(pixels), -1)
    return {
        "dark": pa.array(np.quantile(flat, 0.95, axis=1) < pieces.DARK_GREY),
        "blank": pa.array(flat.std(axis=1) < pieces.BLANK_SPREAD),
    }


@functools.lru_cache(maxsize=1)
def _encoder(model: str, device: str, precision: str) -> Encoder:
    return load_encoder(model, device=accelerator_for(device).device, precision=precision)


# ---- all of them ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Step 2."""

    judge: Judge | None  # of labels and distances; None without features
    class_names: tuple[str, ...]  # C names
    first: npt.NDArray[np.int64]  # [S + 1] int64, number of the first row of each shard, over all
    copies: npt.NDArray[np.int64]  # [n] int64 numbers of rows whose content is there twice, ascending, and
    group: npt.NDArray[np.int64]  # [n] int64 of each: which content
    # this and the next: [n] bool: under two labels; a training row with a copy among the test rows
    two_labels: npt.NDArray[np.bool_]
    in_test: npt.NDArray[np.bool_]
    alike: npt.NDArray[np.float32]


def _find(shards: Sequence[Shard], facts: str, how: Reading, classes: Sequence[str] | None) -> Found:
    """Step 2."""
    words, names = dict[str, int](), list(classes or ())
    words.update({name: i for i, name in enumerate(names)})
    codes, is_test, order, fold = list[Any](), list[Any](), list[Any](), list[Any]()
    for table in _each(facts, len(shards), ["label", "order", "fold"], optional=["split"]):
        encoded = table["label"].combine_chunks().dictionary_encode()
        at = [words.setdefault(name, len(words)) for name in encoded.dictionary.to_pylist()]
        codes.append(np.array([*at, -1], np.int32)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)])
        is_test.append(_is_test(table))
        order.append(table["order"].to_numpy())
        fold.append(table["fold"].to_numpy())
    first = np.cumsum([0, *(len(each) for each in codes)])
    seen = sorted(words) if classes is None else names  # by name, whatever shard showed it first
    if classes is not None and len(words) > len(names):
        odd = list(words)[len(names)]
        raise DataError(
            f"label {odd!r} is not one of the {len(names)} classes", fix="correct it, or add it to --classes"
        )
    at_seen = {name: i for i, name in enumerate(seen)}
    place = np.array([*(at_seen[word] for word in words), -1], np.int64)
    labels, test = place[np.concatenate(codes)], np.concatenate(is_test)
    copies, group = _equal(facts, len(shards), int(first[-1]))
    two, beside = _of_groups(group, labels[copies], test[copies])
    judge, alike = None, np.eye(len(seen), dtype=np.float32)
    draw, folds = np.concatenate(order), np.concatenate(fold)
    width = _width(shards, facts, how)
    if width:
        labelled, some = _drawn(labels, draw, len(seen), width)
        both = np.union1d(labelled, some)
        feats = _rows(shards, facts, how, first, both, width)
        judge, found = learn(
            feats[torch.from_numpy(np.searchsorted(both, labelled))],
            torch.from_numpy(labels[labelled]),
            torch.from_numpy(folds[labelled].astype(np.int64)),
            feats[torch.from_numpy(np.searchsorted(both, some))],
            n_classes=len(seen),
        )
        alike = found.numpy()
    return Found(judge, tuple(seen), first, copies, group, two, beside & ~test[copies], alike)


def _each(facts: str, n_shards: int, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Some columns of the facts of every shard."""
    for i in range(n_shards):
        with reading(f"{facts}/part-{i:05d}.parquet") as file, pq.ParquetFile(file) as table:
            there = table.schema_arrow.names
            if not table.metadata.num_rows:  # all of its rows were left out
                yield _EMPTY.select(columns)
                continue
            yield table.read(columns=[*columns, *(name for name in optional if name in there)])


def _is_test(table: pa.Table) -> npt.NDArray[np.bool_]:
    if "split" not in table.column_names:
        return np.zeros(len(table), bool)
    return np.asarray(pc.fill_null(pc.equal(table["split"], "test"), False).to_numpy(zero_copy_only=False), bool)


def _equal(facts: str, n_shards: int, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the rows whose content is there twice, ascending, and which content each has, by its first row.

    Hashes are compared bucket by bucket, so that memory does not grow with the rows.
    """
    n_buckets, rows, leaders = -(-n // ROWS_AT_ONCE), list[Any](), list[Any]()
    for bucket in range(n_buckets):
        keys, at, start = list[Any](), list[Any](), 0
        for table in _each(facts, n_shards, ["digest"]):
            content = b"".join(table["digest"].to_pylist())
            found = np.frombuffer(content, np.dtype([("a", "<u8"), ("b", "<u4")]))
            own = np.flatnonzero(found["a"] % n_buckets == bucket)
            keys.append(found[own])
            at.append(start + own)
            start += len(table)
        key, row = np.concatenate(keys), np.concatenate(at)
        by = np.lexsort((row, key["b"], key["a"]))
        same = key[by][1:] == key[by][:-1]
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        sizes = np.diff([*starts, len(by)])
        leader = np.repeat(row[by][starts], sizes)
        twice = np.repeat(sizes > 1, sizes)
        rows.append(row[by][twice])
        leaders.append(leader[twice])
    row, leader = (np.concatenate(each).astype(np.int64) if each else np.zeros(0, np.int64) for each in (rows, leaders))
    by = np.argsort(row)
    return row[by], np.unique(leader[by], return_inverse=True)[1].astype(np.int64)


def _of_groups(
    group: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], test: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """[n] bool each: the group has two labels; it has a test row."""
    n = int(group.max(initial=-1)) + 1
    known = labels >= 0
    pairs = np.unique(np.stack([group[known], labels[known]]), axis=1)
    n_labels = np.bincount(pairs[0], minlength=n)
    has_test = np.bincount(group[test], minlength=n) > 0
    return (n_labels > 1)[group], has_test[group]


def _drawn(
    labels: npt.NDArray[np.int64], order: npt.NDArray[np.uint64], n_classes: int, width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the sample, of each class the first by a hash of their ids; and of the smaller one, of all rows."""
    known = np.flatnonzero(labels >= 0)
    known = known[np.lexsort((order[known], labels[known]))]
    counts = np.bincount(labels[known], minlength=max(n_classes, 1))
    most = max(LEAST_SAMPLED, min(SAMPLED_ROWS, SAMPLED_NUMBERS // max(width, n_classes)) // max(1, n_classes))
    rank = np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)
    n = min(REFERENCE_ROWS, len(order))
    some = np.argpartition(order, n - 1)[:n] if n else np.zeros(0, np.int64)
    return np.sort(known[rank < most]), np.sort(some)


def _width(shards: Sequence[Shard], facts: str, how: Reading) -> int:
    """Features of a row; 0: there are none."""
    width = 0
    for i, shard in enumerate(shards):
        for feats in _feats_in(shard, f"{facts}/part-{i:05d}.parquet", how):
            if width and feats.shape[1] != width:
                raise DataError(
                    f"{shard}: embeddings of {feats.shape[1]} features where {shards[0]} has {width}",
                    fix="embed all images with one model, or leave that file out",
                )
            width = int(feats.shape[1])
            break
    return width


def _feats_in(shard: Shard, facts: str, how: Reading) -> Iterator[npt.NDArray[np.float32]]:
    """[b, D] features of the rows of a shard, in the order of its facts; none of images that no model looked at."""
    if shard.kind in ("files", "tar") or not _has_vectors(shard, how):
        with reading(facts) as file, pq.ParquetFile(file) as table:
            if "feats" in table.schema_arrow.names:
                for batch in table.iter_batches(4096, columns=["feats"]):
                    lists = batch.column(0)
                    yield lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1).astype(np.float32)
        return
    for each in batches(shard, how):
        if each.source is not None:
            yield _feats_of(each.source)


def _has_vectors(shard: Shard, how: Reading) -> bool:
    if shard.kind != "parquet":
        return True
    with reading(shard.place) as file, pq.ParquetFile(file) as table:
        names = table.schema_arrow.names
    return "embedding" in names and "image" not in names


def _rows(
    shards: Sequence[Shard],
    facts: str,
    how: Reading,
    first: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    width: int,
) -> torch.Tensor:
    """[n, D] float32 features of some rows, by their numbers, ascending."""
    out, n_done = np.empty((len(rows), width), np.float32), 0
    for i, shard in enumerate(shards):
        own = rows[(rows >= first[i]) & (rows < first[i + 1])] - first[i]
        start = 0
        for feats in _feats_in(shard, f"{facts}/part-{i:05d}.parquet", how) if len(own) else ():
            here = own[(own >= start) & (own < start + len(feats))] - start
            out[n_done : n_done + len(here)] = feats[here]
            n_done, start = n_done + len(here), start + len(feats)
    return torch.from_numpy(out)


# ---- the rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditShard:
    """Step 3."""

    how: Reading  # how shards are read
    out: str  # folder that holds what the steps before found

    def __call__(self, shard: Shard) -> pa.Table:
        """A row per usable image, in the order of the shard."""
        found, facts = _found(self.out), f"{self.out}/{FACTS}/part-{shard.index:05d}.parquet"
        with reading(facts) as file, pq.ParquetFile(file) as table:
            there = [name for name in table.schema_arrow.names if name not in ("feats", "digest", "order")]
            own = table.read(columns=there)
        if not len(own):
            return noted([], own.schema, [])
        n, start = len(own), int(found.first[shard.index])
        at = {name: i for i, name in enumerate(found.class_names)}
        labels = np.array([at.get(name, -1) for name in own["label"].to_pylist()], np.int64)
        lo, hi = np.searchsorted(found.copies, [start, start + n])
        rows = found.copies[lo:hi] - start
        groups, two, beside = np.full(n, -1), np.zeros(n, bool), np.zeros(n, bool)
        groups[rows], two[rows], beside[rows] = found.group[lo:hi], found.two_labels[lo:hi], found.in_test[lo:hi]
        columns: dict[str, Any] = {name: own[name] for name in ("id", "path") if name in own.column_names}
        columns["split"] = np.where(_is_test(own), "test", "train")
        columns["label"] = own["label"]
        flags = {"exact_copy": groups >= 0, "two_labels": two, "copy_in_test": beside}
        sums: dict[str, float] = {"n_labelled": int((labels >= 0).sum()), "n_test": int(_is_test(own).sum())}
        if found.judge is not None:
            judged, wrong, far = _judged(found, shard, facts, self.how, labels, own["fold"].to_numpy())
            columns |= judged
            flags = {"wrong_label": wrong, **flags, "outlier": far}
            scores = judged["label_score"].drop_null().to_numpy(zero_copy_only=False)
            sums |= {"n_judged": len(scores), "sum_wrong": round(float((1 - scores.astype(np.float64)).sum()), 6)}
        columns["duplicate_group"] = pa.array(groups, mask=groups < 0)
        columns["is_copy_in_test"] = beside
        flags |= {name: own[name].to_numpy() for name in ("dark", "blank") if name in own.column_names}
        marks = zip(*(marked.tolist() for marked in flags.values()), strict=True)
        words = [",".join(name for name, marked in zip(flags, row, strict=True) if marked) for row in marks]
        columns["flags"] = pa.array(words, pa.string())
        counts = {flag: int(marked.sum()) for flag, marked in flags.items()}
        return noted([pa.table(columns)], pa.schema([]), [], **counts, **sums)


def _judged(
    found: Found, shard: Shard, facts: str, how: Reading, labels: npt.NDArray[np.int64], fold: npt.NDArray[np.int8]
) -> tuple[dict[str, Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Columns of labels and distances; which labels are suspected; which rows are outliers."""
    judge, start, scores, far = found.judge, 0, list[Any](), list[Any]()
    assert judge is not None, "asked where there is one"
    for feats in _feats_in(shard, facts, how):
        x, own = torch.from_numpy(feats), slice(start, start + len(feats))
        y, k = torch.from_numpy(labels[own]), torch.from_numpy(fold[own].astype(np.int64))
        scores.append(judge.scores(x, y, k))
        far.append(judge.distances(x))
        start += len(x)
    score, suggested, chance = (torch.cat(each).numpy() for each in zip(*scores, strict=True))
    apart = torch.cat(far).numpy()
    names = pa.array(found.class_names, pa.string())
    columns = {
        "label_score": pa.array(score, from_pandas=True),
        "suspected_label": names.take(pa.array(suggested, mask=suggested < 0)),
        "suspected_probability": pa.array(chance, from_pandas=True),
        "outlier_score": pa.array(apart),
    }
    return columns, chance > score, apart > float(judge.bar)


@functools.lru_cache(maxsize=1)
def _found(out: str) -> Found:
    with reading(f"{out}/{FOUND}") as file, np.load(file) as arrays:
        judge = of_arrays(arrays) if "reference" in arrays.files else None
        own = {name: arrays[name] for name in ("first", "copies", "group", "two_labels", "in_test", "alike")}
        return Found(judge=judge, class_names=tuple(arrays["class_names"].tolist()), **own)


def _write_found(found: Found, out: str) -> None:
    arrays = {name: value for name, value in vars(found).items() if name not in ("judge", "class_names")}
    arrays |= {} if found.judge is None else found.judge.arrays()
    with writing(f"{out}/{FOUND}") as file:
        np.savez(file, class_names=np.array(found.class_names, dtype=str), **arrays)


def audit_shards(
    data: Input,
    out: str,
    how: Reading,
    *,
    model: str,
    device: str,
    precision: str,
    engine: str,
) -> tuple[Sharded, Found, pa.Table]:
    """Audit rows shard by shard, see `audit` for the parameters and scale.work for what is written.

    Args:
      out: folder or URL.   model: pretrained model by id or path, or "none".

    Returns: what was written; what was found of all rows; the `audit.WORST_SHOWN` worst labels.
    """
    what = {
        "verb": "audit",
        "model": model,
        "content": checksums.of_place(model),
        "columns": list(map(list, how.columns)),
        "classes": None if how.classes is None else list(how.classes),
        "on_bad": how.on_bad,
        "precision": precision,
    }
    out, _, _ = begin(data, out, what=what, shard_rows=None)  # a folder of other work is refused by its own name
    facts = f"{out}/{FACTS}"
    make = FactsShard(how, absolute(model), device, precision)
    how_run: dict[str, Any] = {"what": what, "engine": engine, "shard_rows": None}
    before = over_shards(data, facts, make, doing="looking at shards", **how_run)
    system, path = file_system(f"{out}/{FOUND}")
    if not system.exists(path):
        _write_found(_find(data.shards, facts, how, how.classes), out)
    done = over_shards(data, out, AuditShard(how, out), doing="judging shards", may_repeat=True, **how_run)
    _found.cache_clear()
    done = Sharded(**{**vars(done), "left_out": before.left_out, "notices": before.notices})
    return done, _found(out), _worst(out, done.n_shards)


def _worst(out: str, n_shards: int, n: int = 20) -> pa.Table:
    """The rows whose labels are most probably wrong."""
    columns, kept = ["id", "label", "suspected_label", "label_score", "suspected_probability"], list[pa.Table]()
    for i in range(n_shards):
        with reading(f"{out}/part-{i:05d}.parquet") as file, pq.ParquetFile(file) as table:
            if "label_score" not in table.schema_arrow.names:
                continue
            own = table.read(columns=[*columns, "flags"])
        own = own.filter(pc.match_substring(own["flags"], "wrong_label")).select(columns)
        kept = [pa.concat_tables([*kept, own]).sort_by("label_score").slice(0, n)]
    return kept[0] if kept else pa.table({name: [] for name in columns})
