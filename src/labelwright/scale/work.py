"""One pure function over many shards: one whole output file each, here one after the other or as tasks of Ray.

What is there already is not done again, so that a run that was killed, driver or worker, goes on where it was and ends
with the same bytes.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from labelwright import __version__, launch
from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.layouts import SHARD_PLAN
from labelwright.errors import ConfigError, DataError, LabelwrightError
from labelwright.parsing import json_of
from labelwright.replacing import check_output
from labelwright.scale.places import file_system, is_url, reading, writing
from labelwright.scale.repeats import repeated_ids
from labelwright.scale.shards import Input, Shard, listed_once
from labelwright.train.progress import counter, quiet

Engine = Literal["local", "ray"]
Make = Callable[[Shard], pa.Table]
"""What is made of a shard; the same table whenever and wherever it is asked. Pickled by Ray: a frozen dataclass with
`__call__`, or a function of a module."""

Look = Callable[[Sequence[Shard]], dict[str, Any]]
"""What some of the shards show of all of them, JSON-ready: found once, before the first is worked on."""

LOOK = "_look.json"  # what `Look` found
LOOKED_AT = 32  # shards that it sees, evenly spread
RETRIES = 5  # of a shard whose worker died
SECONDS_TO_ANSWER = 5.0  # that a cluster has
LEFT_OUT, COUNTS = b"left_out", b"counts"  # schema metadata of an output file: rows that could not be used; numbers


@dataclass(frozen=True)
class Done:
    """An output file that is there."""

    n_rows: int  # in it
    left_out: tuple[Mapping[str, str], ...]  # rows of its shard that could not be used
    counts: Mapping[str, float]  # of its rows


@dataclass(frozen=True)
class Sharded:
    """Output of work over shards."""

    path: str  # folder or URL; its files ``part-00000.parquet`` and so on belong to the shards in their order
    n_images: int  # this and the next: in all of it
    n_shards: int
    n_before: int  # shards that were there already
    left_out: list[Mapping[str, str]]  # rows that could not be used
    counts: Mapping[str, float]  # of all rows
    found: Mapping[str, Any] = field(default_factory=dict)  # by `Look`
    notices: tuple[str, ...] = ()  # what a person should know of all rows


def is_sharded(data: Any, *, engine: str, shard_rows: int | None) -> bool:
    """Whether work is done shard by shard: as asked, or since the data can be read in no other way.

    Raises: ConfigError for an engine that there is not.

    Example:
      >>> is_sharded("photos", engine="local", shard_rows=None), is_sharded("s3://a/b", engine="local", shard_rows=None)
      (False, True)
    """
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine={engine} is not possible", fix="local or ray")
    many = data if isinstance(data, (list, tuple)) else [data]
    are_far = any(isinstance(each, (str, Path)) and (is_url(each) or _is_tar(str(each))) for each in many)
    return engine == "ray" or shard_rows is not None or are_far


def _is_tar(place: str) -> bool:
    """Whether this is a tar, a pattern of tars or a folder of nothing but tars and notes about them."""
    path = Path(place).expanduser()
    if not path.is_dir():
        return place.endswith(".tar")
    if next(path.glob("*.tar"), None) is None:
        return False
    return not any(each.is_dir() or each.suffix.lower() in IMAGE_SUFFIXES for each in path.glob("[!.]*"))


def over_shards(
    data: Any,
    out: str | Path,
    make: Callable[..., pa.Table],
    *,
    what: Mapping[str, Any],
    engine: str,
    shard_rows: int | None,
    doing: str,
    part: str = "part",
    look: Look | None = None,
    may_repeat: bool = False,
) -> Sharded:
    """Make a Parquet file of every shard of the data.

    Args:
      data, shard_rows: see `shards.find_shards`; or an `Input`.   out: folder or URL.   make: see `Make`.
      what: everything that the output depends on besides the data, JSON-ready.
      engine: "local", in this process; "ray", on the cluster that RAY_ADDRESS names, or one of this machine's cores.
      doing: words beside the progress.   part: what the names of the files begin with.
      look: what ``make`` gets as ``found``, too; None: nothing.
      may_repeat: ids may stand in several rows; else a notice says if they do.

    Raises: ConfigError if the folder belongs to other work, or the engine is not installed; DataError of a shard.
    """
    run = _ENGINES[engine]()
    if engine == "ray" and str(out).startswith("memory:"):
        raise ConfigError(f"{out} is the memory of one process", fix="give a folder or URL that all workers reach")
    out, shards, n_before = begin(data, out, what=what, shard_rows=shard_rows, part=part)
    paths = [f"{out}/{part}-{i:05d}.parquet" for i in range(len(shards))]
    there = _names_in(out)
    todo = [i for i, path in enumerate(paths) if path.rpartition("/")[2] not in there]
    seen = _looked(run, look, shards, out) if look is not None and (todo or LOOK in there) else {}
    make = make if look is None else functools.partial(make, found=seen)
    with counter(doing, len(shards)) as progress:
        n_done = len(shards) - len(todo)
        for _ in run(functools.partial(_make_one, make), [(shards[i], paths[i]) for i in todo]):
            n_done += 1
            progress(n_done)
    found = [_done(path) for path in paths]
    _complete(paths, found)
    left_out = [row for each in found for row in each.left_out]
    counts = dict[str, float]()
    for each in found:
        for key, n in each.counts.items():
            counts[key] = counts.get(key, 0) + n
    n_rows = sum(each.n_rows for each in found)
    repeats = "" if may_repeat else repeated_ids(paths, list(map(str, shards)), n_rows)
    notices = (repeats,) if repeats else ()
    return Sharded(out, n_rows, len(shards), n_before, left_out, counts, seen, notices)


def folder_of(out: str | Path) -> str:
    """Where shards are written: a URL as it is, a folder by its whole path, as workers may run in another one."""
    return str(out) if is_url(str(out)) else str(Path(out).expanduser().absolute())


def begin(
    data: Any, out: str | Path, *, what: Mapping[str, Any], shard_rows: int | None, part: str = "part"
) -> tuple[str, Sequence[Shard], int]:
    """The folder or URL with the plan of the work in it, the shards, and how many are done; see `over_shards`.

    Raises: ConfigError if the folder belongs to other work.
    """
    if launch.is_shared():
        raise ConfigError(
            "shards are not shared out by a launcher", fix="start one process, with --engine ray for many"
        )
    out = folder_of(out)
    if not is_url(out):
        if Path(out).suffix:
            raise ConfigError(
                f"{out} is one file, and shards are written to a folder", fix="give --out without a suffix"
            )
        if Path(out).is_file():
            raise ConfigError(f"{out} exists, and is a file", fix="choose another --out, or remove it first")
        check_output(Path(out), data.data if isinstance(data, Input) else data)
    found = listed_once(data, n_rows=shard_rows)
    plan = {"format": 1, "labelwright": __version__, **what, "shards": found.digest, "n_shards": len(found.shards)}
    return out, found.shards, _begin(out, plan, part)


def noted(parts: Sequence[pa.Table], schema: pa.Schema, left_out: Sequence[Any], **counts: float) -> pa.Table:
    """The table of a shard, of its batches, with what was left out and counts in its metadata.

    Example:
      >>> noted([pa.table({"id": ["a"]})], pa.schema([("id", pa.string())]), [], n_known=1).schema.metadata
      {b'left_out': b'[]', b'counts': b'{"n_known": 1}'}
    """
    table = pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()
    notes = {LEFT_OUT: json.dumps(list(left_out)), COUNTS: json.dumps(counts)}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **notes})


def _begin(out: str, plan: dict[str, Any], part: str) -> int:
    """Write what is to be done, or see that it is what was begun; how many files are there already."""
    there, place = _names_in(out), f"{out}/{SHARD_PLAN}"
    if SHARD_PLAN in there:
        with reading(place) as file:
            before = json_of(file.read() or b"{}")
        differing = [key for key in plan if before.get(key) != plan[key]]
        is_same = not differing or (differing == ["on_bad"] and plan["on_bad"] == "skip")  # no bad row in what is there
        if not is_same:
            raise ConfigError(
                f"{out} was begun with other settings or data ({', '.join(differing)})",
                fix="choose another --out, or remove that folder first",
            )
    elif any(not name.startswith("_") for name in there):
        raise ConfigError(f"{out} exists", fix="choose another --out, or remove it first")
    else:
        differing = list(plan)
    if differing:
        with writing(place) as file:
            file.write((json.dumps(plan, indent=1) + "\n").encode())
    system, path = file_system(out)
    for name in there:
        if name.startswith(f".{part}-") and name.endswith(".tmp"):  # of a worker that was killed
            system.rm_file(f"{path}/{name}")
    return sum(name.startswith(f"{part}-") for name in there)


def _names_in(out: str) -> set[str]:
    system, path = file_system(out)
    if not system.isdir(path):
        return set()
    system.invalidate_cache(path)
    return {str(each).rstrip("/").rpartition("/")[2] for each in system.ls(path, detail=False)}


def _looked(run: Run, look: Look, shards: Sequence[Shard], out: str) -> dict[str, Any]:
    """What a look at some of the shards finds, or found before a kill."""
    place, n = f"{out}/{LOOK}", min(len(shards), LOOKED_AT)
    if LOOK not in _names_in(out):
        some = [shards[i * len(shards) // n] for i in range(n)]
        for _ in run(functools.partial(_look_at, look, some), [(some[0], place)]):
            pass
    with reading(place) as file:
        return dict(json_of(file.read()))


def _look_at(look: Look, some: Sequence[Shard], shard: Shard, path: str) -> None:
    found = json.dumps(look(some))
    with writing(path) as file:
        file.write(found.encode())


def _make_one(make: Make, shard: Shard, path: str) -> None:
    table = make(shard)
    with writing(path) as file:
        pq.write_table(table, file)


def _done(path: str) -> Done:
    with reading(path) as file, pq.ParquetFile(file) as table:
        notes = table.schema_arrow.metadata or {}
        left_out, counts = json_of(notes.get(LEFT_OUT, b"[]")), json_of(notes.get(COUNTS, b"{}"))
        return Done(table.metadata.num_rows, tuple(left_out), counts)


def _complete(paths: Sequence[str], found: Sequence[Done]) -> None:
    """Give files without a row the columns of the others, so that all of them can be read as one table."""
    some = next((path for path, each in zip(paths, found, strict=True) if each.n_rows), None)
    empty = [path for path, each in zip(paths, found, strict=True) if not each.n_rows]
    if some is None or not empty:
        return
    schema = _schema_of(some)
    for path in empty:
        own = _schema_of(path)
        if own.names != schema.names:
            notes = {**(schema.metadata or {}), **(own.metadata or {})}
            with writing(path) as file:
                pq.write_table(schema.empty_table().replace_schema_metadata(notes), file)


def _schema_of(path: str) -> pa.Schema:
    with reading(path) as file, pq.ParquetFile(file) as table:
        return table.schema_arrow


# ---- engines --------------------------------------------------------------------------------------------------------


Job = tuple[Shard, str]
Run = Callable[[Callable[[Shard, str], None], Sequence[Job]], Iterator[None]]


def _local() -> Run:
    def run(one: Callable[[Shard, str], None], jobs: Sequence[Job]) -> Iterator[None]:
        for shard, path in jobs:
            with quiet():
                one(shard, path)
            yield

    return run


def _ray() -> Run:
    """Tasks of Ray, twice as many as its cores at a time: what a task makes it writes itself, and nothing waits."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Ray, which is not installed", fix="pip install 'labelwright[scale]'"
        ) from error

    def run(one: Callable[[Shard, str], None], jobs: Sequence[Job]) -> Iterator[None]:
        if not jobs:
            return
        is_ours = not ray.is_initialized()
        if is_ours:
            _check_answers(os.environ.get("RAY_ADDRESS", ""))
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            resources = ray.cluster_resources()
            n_gpus = resources.get("GPU", 0.0)
            n_workers = int(n_gpus or resources.get("CPU", 1))
            task = ray.remote(num_cpus=1, num_gpus=1 if n_gpus else 0, max_retries=RETRIES, max_calls=0)(_caught)
            waiting, going = iter(jobs), dict[Any, Job]()
            while True:
                for job in waiting:
                    going[task.remote(one, *job)] = job
                    if len(going) >= 2 * n_workers:
                        break
                if not going:
                    return
                for ready in ray.wait(list(going), num_returns=1)[0]:
                    _result(ray, ready, going.pop(ready)[0])
                    yield
        finally:
            if is_ours:
                ray.shutdown()

    return run


def _check_answers(address: str) -> None:
    """Refuse an address, host:port, where nothing answers: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}", fix="check RAY_ADDRESS, or unset it") from error


def _caught(one: Callable[[Shard, str], None], shard: Shard, path: str) -> tuple[str, str, str] | None:
    """In a worker: the kind, words and fix of what the user has to change; None if there is nothing."""
    try:
        one(shard, path)
    except LabelwrightError as error:
        return type(error).__name__, error.message, error.fix
    return None


def _result(ray: Any, ready: Any, shard: Shard) -> None:
    try:
        error = ray.get(ready)
    except ray.exceptions.WorkerCrashedError as crashed:
        raise DataError(
            f"{shard}: {RETRIES + 1} workers died of it", fix="look at its files, or make shards smaller (--shard-rows)"
        ) from crashed
    except ray.exceptions.RayError as failed:  # of memory, of a worker's disk, of code that is not ours
        raise DataError(
            f"{shard}: a worker failed ({str(failed).strip().splitlines()[-1]})",
            fix="what is done stays: mend it, and give the same command again",
        ) from failed
    if error is not None:
        kind, message, fix = error
        raise (ConfigError if kind == "ConfigError" else DataError)(message, fix=fix)


_ENGINES: Mapping[str, Callable[[], Run]] = {"local": _local, "ray": _ray}
