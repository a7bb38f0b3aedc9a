"""The rows of a shard as tables and sources, which everything else works on: decoded once, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from labelwright.data.build import TableBuilder
from labelwright.data.checks import OnBad, check_images, resolve_problems
from labelwright.data.columns import find_roles
from labelwright.data.embeddings import of_rows
from labelwright.data.images import Decoding
from labelwright.data.in_memory import EncodedImages
from labelwright.data.prepare import Source, embedded, in_memory, listed
from labelwright.data.table import SPLITS
from labelwright.data.values import as_text
from labelwright.errors import DataError
from labelwright.scale.rows import Rows, rows_of
from labelwright.scale.shards import Shard
from labelwright.train import progress

_NOT_OF_A_PART = ("empty_class", "absent_class", "unseen_class", "odd_class", "read_as", "ignored_column")
"""Problems that a part of the rows has and the whole need not have."""


@dataclass(frozen=True)
class Reading:
    """How shards are read."""

    columns: tuple[tuple[str, str], ...] = ()  # (role, column) pairs, where a column is called otherwise
    only_images: bool = False  # labels and all else are not looked at
    classes: tuple[str, ...] | None = None  # names in order, or None: those that the file fixes, else those seen
    on_bad: OnBad = "stop"  # stop, or skip rows that cannot be used
    decoding: Decoding | None = None  # how images are decoded

    def roles_of(self, names: Sequence[str], where: str) -> dict[str, str]:
        """Role -> column, of those that are read."""
        roles = find_roles(names, where, named=dict(self.columns))
        roles = {role: name for role, name in roles.items() if role not in ("candidates", "weights")}
        return {role: name for role, name in roles.items() if role in ("image", "id")} if self.only_images else roles


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard, ready to be worked on."""

    source: Source | None  # the usable ones; None where there is none
    left_out: list[dict[str, str]]  # the others
    groups: Any = None  # [n] Arrow string, of the usable ones; None where there is no column of groups
    roles: tuple[str, ...] = ()  # what columns the file has


def batches(shard: Shard, how: Reading, *, size_px: int = 0) -> Iterator[Batch]:
    """The rows of a shard as sources, batch by batch.

    Args:
      size_px: side at which images are decoded; 0: they are decoded in full to see that they can be, and not kept.

    Raises: DataError naming the rows that cannot be used, on "stop", or a table that has the labels of a folder.
    """
    if shard.table and not how.only_images:
        raise DataError(
            f"{shard.place} has its labels in {shard.table}, which is not read shard by shard",
            fix="leave --shard-rows and --engine out, or give Parquet files of images and labels",
        )
    for rows in rows_of(shard, roles_of=how.roles_of):
        with progress.quiet():
            try:
                source = _source(rows, how, size_px)
            except DataError as error:
                if how.on_bad != "skip" or not error.problems:
                    raise
                yield Batch(None, listed(error.problems))
                continue
        groups = rows.columns.get("group")
        if groups is not None:
            bad = {p.row for p in source.table.quarantined if p.row is not None}
            groups = as_text(groups)[0].take(pa.array([row for row in range(len(rows.ids)) if row not in bad]))
        yield Batch(source, listed(source.table.quarantined), groups, tuple(rows.columns))


def some_of(shards: Sequence[Shard], how: Reading, *, n_rows: int, size_px: int) -> Iterator[Source]:
    """About so many images of some shards, those of a batch evenly spread; ones that cannot be used are left out."""
    how = replace(how, only_images=True, on_bad="skip")
    for i, shard in enumerate(shards):
        n_left = (i + 1) * n_rows // len(shards) - i * n_rows // len(shards)
        if shard.kind == "files":
            shard = replace(shard, files=tuple(shard.files[j] for j in _spread(len(shard.files), n_left)))
        for rows in rows_of(shard, roles_of=how.roles_of):
            chosen = _spread(len(rows.ids), n_left)
            n_left -= len(chosen)
            with progress.quiet(), suppress(DataError):
                yield _source(_taken(rows, chosen), how, size_px)
            if n_left <= 0:
                break


def _spread(n: int, n_wanted: int) -> list[int]:
    return list(range(n)) if n <= n_wanted else [i * n // n_wanted for i in range(n_wanted)]


def _taken(rows: Rows, chosen: Sequence[int]) -> Rows:
    """Some of the rows of images."""
    columns = {role: column.take(pa.array(chosen, pa.int64())) for role, column in rows.columns.items()}
    cells = None if rows.cells is None else tuple(rows.cells[i] for i in chosen)
    places = tuple(rows.places[i] for i in chosen) if rows.places else ()
    return replace(rows, ids=[rows.ids[i] for i in chosen], columns=columns, cells=cells, places=places)


def _source(rows: Rows, how: Reading, size_px: int) -> Source:
    builder = TableBuilder(rows.where)
    builder.declared, builder.known = rows.class_names, frozenset(how.classes or ())
    builder.are_values = not rows.root
    n = len(rows.ids)
    columns: Mapping[str, Any] = {"id": pa.array(rows.ids, pa.large_string())} | {
        role: column for role, column in rows.columns.items() if role == "image" or not how.only_images
    }
    numbers = pa.array(range(rows.first_row + 1, rows.first_row + n + 1))
    builder.add(columns, n, file=rows.where, lines=numbers)
    if rows.vectors is not None:
        found = of_rows(
            builder,
            rows.vectors,
            rows.problems,
            classes=how.classes,
            only_rows=how.only_images,
            on_bad=how.on_bad,
            first_row=rows.first_row,
            leave=_NOT_OF_A_PART,
        )
        return embedded(found)
    dataset = None if rows.cells is None else EncodedImages(rows.cells, rows.places or tuple(rows.ids))
    table = builder.finish(classes=how.classes, root=rows.root, dataset=dataset)
    unseen = (*_NOT_OF_A_PART, "duplicate_id") if how.only_images else _NOT_OF_A_PART
    wrong = () if how.only_images else rows.problems
    kept = (*wrong, *(p for p in table.problems if p.kind not in unseen))
    table = replace(table, problems=kept, images=replace(table.images, decoding=how.decoding))
    if size_px:
        return in_memory(table, size_px=size_px, on_bad=how.on_bad)
    checked = resolve_problems(table, [*table.problems, *check_images(table)], how.on_bad)
    return Source(checked, None, torch.arange(len(checked)))


def known_of(batch: Batch) -> dict[str, Any]:
    """What is known of the rows besides their labels' candidates, as columns: id, path, label, split, group, truth.

    Labels are names, and groups what the file calls them: the same in every shard.
    """
    assert batch.source is not None, "asked of usable rows"
    table = batch.source.table
    columns: dict[str, Any] = {"id": table.ids}
    if table.images.paths is not None:
        columns["path"] = pa.array(list(map(str, table.images.sources(np.arange(len(table))))), pa.string())
    columns["label"] = _named(table.labels, table.class_names)
    if "split" in batch.roles:
        split = np.zeros(len(table), np.int8) if table.split is None else table.split
        columns["split"] = _named(split, SPLITS)
    if batch.groups is not None:
        columns["group"] = batch.groups.cast(pa.string())
    if "truth" in batch.roles:
        truth = np.full(len(table), -1) if table.truth is None else table.truth
        columns["truth"] = _named(truth, table.truth_names)
    return columns


def _named(numbers: Any, names: Sequence[str]) -> Any:
    return pa.array(names, pa.string()).take(pa.array(numbers.astype(np.int64), mask=numbers < 0))
