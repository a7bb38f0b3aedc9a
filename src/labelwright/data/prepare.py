"""From what the user points at to tables, pixels and a situation: everything checked before anything is written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from labelwright.data import splits
from labelwright.data.cache import PixelCache, PixelSource, StreamedPixels, decoded, open_pixels
from labelwright.data.checks import OnBad, check_images, resolve_problems
from labelwright.data.class_names import checked_names, read_names
from labelwright.data.columns import Named
from labelwright.data.corrections import corrected
from labelwright.data.embedding_tables import files_of
from labelwright.data.embeddings import UserEmbeddings, load_embeddings
from labelwright.data.images import Decoding
from labelwright.data.looks import THUMB_PX, grey_thumbs, numbered
from labelwright.data.read import read_as
from labelwright.data.situation import Situation, detect, novel_range, where_classes_are
from labelwright.data.stored import EmbeddingViews, StoredFeats
from labelwright.data.table import HOW_READ, LabelTable
from labelwright.data.vectors_in_memory import numbers_of, vectors_of
from labelwright.data.views import PixelViews, ViewSettings, channel_stats
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.paths import from_anywhere
from labelwright.types import ViewSource

Flip = Literal["auto", "on", "off"]

SIZE_PX_MAX = 4096
"""Largest side of images that a network is given."""

_SIDED = re.compile(r"\b(left|right)\b|speed limit|\bb\s+vs\s+d\b", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A table and where the pixels or features of its rows are."""

    table: LabelTable  # N images
    pixels: PixelSource | None  # decoded images, those of the table among them; None if only embeddings were given
    rows: torch.Tensor  # [N] int64 position of each row in ``stored``, if there is that, else in ``pixels``
    stored: StoredFeats | None = None  # features, to be seen instead of pixels
    pixel_rows: torch.Tensor | None = None  # [N] int64 position of each row in ``pixels``; None: that of ``rows``

    @property
    def in_pixels(self) -> torch.Tensor:
        """Position [N] int64 of each row in ``pixels``."""
        return self.rows if self.pixel_rows is None else self.pixel_rows

    def pixel_views(self, view: ViewSettings) -> PixelViews:
        """Views of the pixels of every row of the table."""
        assert self.pixels is not None, "embeddings have no pixels"
        return PixelViews(self.pixels, view, rows=self.in_pixels)

    def views(self, view: ViewSettings) -> ViewSource:
        """Views of every row of the table: stored features if there are any, else pixels."""
        return self.pixel_views(view) if self.stored is None else EmbeddingViews(self.stored, rows=self.rows)

    def take(self, rows: NDArray[np.int64]) -> Source:
        """The source of some rows, in that order."""
        some = torch.from_numpy(rows)
        behind = None if self.pixel_rows is None else self.pixel_rows[some]
        return replace(self, table=self.table.subset(rows), rows=self.rows[some], pixel_rows=behind)


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs of the data."""

    train: Source  # images to learn from, labelled or not
    test: Source | None  # images to score on
    test_is: str  # "given" (--test), "split" (the data says so), "held out" (we drew it) or "none"
    situation: Situation  # what `detect` found in the training images
    size_px: int  # side of the square images; 0 for embeddings
    view: ViewSettings  # augmentation and normalisation
    flip_reason: str  # why horizontal flips are on or off
    n_copies_in_test: int = 0  # training images of which an exact copy is among the images to score on
    n_tested_on_copies: int = 0  # labelled images to score on that are exact copies of labelled training images
    class_feats: tuple[torch.Tensor, float] | None = None  # text features that came with embeddings, see types.Concepts
    content: NDArray[np.int64] | None = None  # see `contents`, of training and then test rows; None if nobody asked


def prepare(
    data: Any,
    *,
    test: Any = None,
    classes: Any = None,
    novel: int | str | None = None,
    group: str | None = None,
    annotators: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    test_frac: float = 0.2,
    size_px: int | None = None,
    stats: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None,
    flip: Flip = "auto",
    on_bad: OnBad = "stop",
    seed: int = 0,
    cache_limit_gb: float = 16.0,
    corrections: Any = (),
    decoding: Decoding | None = None,
    same_picture: Callable[[Source, NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> Prepared:
    """Read, check, split and decode the user's data.

    Args:
      data, test: anything `data.read.load` takes.   classes, novel, group, flip, seed, cache_limit_gb: see `fit`.
      annotators: columns of ``data`` that hold one annotator's answers each.
      columns: role -> column, where it is called otherwise; ``test`` may lack it.
      test_frac: share of the labelled images to hold out when no test images are given, 0 = none; none either where
        that is less than an image a class on average.
      size_px: side of the square images; None = 32 when the images are at most 40 px, else 64.
      stats: (mean, std) per channel that a pretrained model wants; None = those of the training images.
      on_bad: "stop" raises one DataError with every problem; "skip" quarantines the rows.
      corrections: labels that replace those of ``data``, see `data.corrections.corrected`.
      decoding: how the images are decoded, see data.images.
      same_picture: numbers of a source's rows, the same for those that a hold-out keeps on one side, from their
        `contents`; None: for those of one content.

    Raises: DataError with all problems of all sources together; ConfigError for impossible settings.
    """
    if not 0 <= test_frac < 1:
        raise ConfigError(f"test_frac={test_frac} is not possible", fix="give a share in [0, 1)")
    check_numbers(size_px=size_px, seed=seed)
    is_open = novel_range(novel) is not None
    may_add = is_open and classes is None
    class_feats = None
    if is_embeddings(data):
        found = read_embeddings(
            data, classes=classes, group=group, annotators=annotators, columns=columns, on_bad=on_bad
        )
        source, given_test = embedded(found), None
        source = replace(source, table=corrected(source.table, corrections, may_add=may_add))
        if test is not None:
            given_test = embeddings_to_score(test, found, is_open=is_open, on_bad=on_bad)
        if found.class_feats is not None:
            unit = torch.nn.functional.normalize(torch.from_numpy(np.asarray(found.class_feats)).float(), dim=1)
            class_feats = (unit, found.logit_scale or 100.0)
    else:
        table = read(data, classes=classes, group=group, annotators=annotators, columns=columns, decoding=decoding)
        table = corrected(table, corrections, may_add=may_add)
        size_px = native_size(table) if size_px is None else size_px
        tables = [table] if test is None else [table, images_to_score(test, table, is_open=is_open, columns=columns)]
        sources = _resolve([_open(t, size_px, cache_limit_gb) for t in tables], on_bad)
        source, given_test = sources[0], None if test is None else sources[1]
    train, test_source, test_is, seen = _split(
        source, given_test, test_frac=test_frac, seed=seed, same_picture=same_picture
    )
    n_copies = n_tested_on_copies = 0
    if test_source is not None and test_is != "held out":  # those that we drew have none
        seen = contents([train, test_source])
        own, others = np.split(seen, [len(train.table)])
        n_copies = int(np.isin(own, others).sum())
        is_copy = np.isin(others, own[train.table.labels >= 0])
        n_tested_on_copies = int((is_copy & (test_source.table.labels >= 0)).sum())
    check_n_classes(train.table, is_open=is_open)
    if train.pixels is None:
        view, reason = ViewSettings(flip=False), "embeddings are not flipped"
    else:
        flips, reason = may_flip(flip, train.table.class_names)
        mean, std = stats or channel_stats(train.pixels, rows=train.rows)
        view = ViewSettings(flip=flips, mean=mean, std=std, crop="pad" if train.pixels.size_px <= 64 else "resized")
    return Prepared(
        train=train,
        test=test_source,
        test_is=test_is,
        situation=detect(train.table, novel=novel),
        size_px=0 if train.pixels is None else train.pixels.size_px,
        view=view,
        flip_reason=reason,
        n_copies_in_test=n_copies,
        n_tested_on_copies=n_tested_on_copies,
        class_feats=class_feats,
        content=seen,
    )


def images_to_score(test: Any, table: LabelTable, *, is_open: bool, columns: Mapping[str, str] | None) -> LabelTable:
    """The table of the images to score on, its labels among the classes of the training table.

    Raises: DataError if not one has a label.
    """
    names = None if is_open else table.class_names
    decoding = table.images.decoding  # the scale of the images that are learned from
    found = for_scoring(read(test, classes=names, columns=columns, like=table, decoding=decoding))
    if not (found.labels >= 0).any():
        unknown = [problem for problem in found.problems if problem.kind == "unknown_label"]
        which = " that is a class of the training images" if unknown else ""
        fix = "mend them, or the labels of the training images" if unknown else "give a --test with labels, or none"
        raise DataError(f"no image of {resolved_path(test)} has a label{which}", problems=unknown, fix=fix)
    return beyond(found, table.class_names) if is_open else found


def embeddings_to_score(test: Any, train: UserEmbeddings, *, is_open: bool, on_bad: OnBad) -> Source:
    """The embeddings to score on, its labels among the classes of the training table.

    Raises: DataError if they have another number of features.
    """
    names = train.table.class_names
    found = open_embeddings(test, classes=None if is_open else names, on_bad=on_bad)
    if found.stored is None or found.stored.n_features != train.stored.n_features:
        raise DataError(
            f"{resolved_path(test)} does not hold embeddings of {train.stored.n_features} features",
            fix="embed test and training data with the same model",
        )
    return replace(found, table=beyond(found.table, names)) if is_open else found


def read_embeddings(
    data: Any,
    *,
    classes: Any,
    group: str | None,
    annotators: Sequence[str],
    columns: Mapping[str, str] | None,
    on_bad: OnBad,
) -> UserEmbeddings:
    """Embeddings of the user's, as `read` reads images.

    Raises: DataError as `load_embeddings`, or if there is nothing to tell the groups by.
    """
    named = dict(columns or {}) | ({} if group is None else {"group": group})
    found = load_embeddings(data, classes=class_list(classes), annotators=annotators, columns=named, on_bad=on_bad)
    check_groups(found.table, group, data)
    return found


def embedded(found: UserEmbeddings) -> Source:
    """Embeddings of the user's as a source."""
    return Source(found.table, None, torch.arange(len(found.table)), found.stored)


def check_n_classes(table: LabelTable, *, is_open: bool) -> None:
    """Refuse data of too few classes: DataError, with what was not read of them."""
    n_classes = len(table.class_names)
    if n_classes < (1 if is_open else 2):
        raise DataError(
            f"{'only one class' if n_classes else 'no class'} found; a classifier needs two",
            problems=[problem for problem in table.problems if problem.kind in HOW_READ],
            fix="point at the folder above the class folders, or name the classes with --classes"
            if n_classes
            else where_classes_are(table),
        )


def check_numbers(*, size_px: int | None, seed: int) -> None:
    """Refuse a size of images or a seed that cannot be: ConfigError."""
    if seed < 0:
        raise ConfigError(f"seed={seed} is not possible", fix="give a whole number from 0 on")
    if size_px is not None and not 8 <= size_px <= SIZE_PX_MAX:
        raise ConfigError(
            f"images of {size_px:,} px are too {'small' if size_px < 8 else 'large'}",
            fix=f"give a --size of 8 to {SIZE_PX_MAX:,}",
        )


def beyond(table: LabelTable, class_names: Sequence[str]) -> LabelTable:
    """The table with labels among ``class_names`` only; its other classes become a truth numbered after them."""
    others = [name for name in table.class_names if name not in class_names]
    number = {name: i for i, name in enumerate([*class_names, *others])}
    # One more entry for -1, unknown, which is the last.
    at = np.array([*(number[name] for name in table.class_names), -1], dtype=np.int32)
    truth = at[table.labels]
    labels = np.where(truth < len(class_names), truth, -1).astype(np.int32)
    return replace(
        table, labels=labels, class_names=tuple(class_names), truth=truth, truth_names=(*class_names, *others)
    )


def is_embeddings(data: Any) -> bool:
    """Whether these are embeddings: .npy, .npz, Parquet with a column ``embedding`` and no images; or such in memory.

    Several Parquet files, a folder or a pattern of them, are one data set.

    Example:
      >>> is_embeddings("feats.npy"), is_embeddings("photos/"), is_embeddings({"a.png": [0.0, 1.0]})
      (True, False, True)
    """
    if not isinstance(data, (str, Path)):
        return files_of(data) is not None or vectors_of(data) is not None
    return Path(data).suffix.lower() in (".npy", ".npz") or files_of(data) is not None


def open_embeddings(
    data: Any,
    *,
    classes: Any,
    on_bad: OnBad = "stop",
    columns: Mapping[str, str] | None = None,
    only_images: bool = False,
) -> Source:
    """Embeddings for prediction or scoring, bare numbers too; errors as for data.embeddings.load_embeddings."""
    if not is_embeddings(data) and (numbers := numbers_of(data)) is not None:
        data = numbers
    if not is_embeddings(data):
        raise DataError(
            f"{resolved_path(data)} holds no embeddings",
            fix="this model was trained on embeddings: give .npy, .npz or Parquet with a column `embedding`, or in "
            "Python {name: vector}, numbers [n, D] or a data frame with that column",
        )
    names = class_list(classes)
    found = load_embeddings(data, classes=names, columns=columns, only_rows=only_images, on_bad="report")
    return _resolve([embedded(replace(found, table=for_scoring(found.table)))], on_bad)[0]


def class_list(classes: Any) -> list[str] | None:
    """Class names from a list or a file of them."""
    if classes is None:
        return None
    return read_names(Path(classes)) if isinstance(classes, (str, Path)) else list(checked_names(classes))


def open_source(
    data: Any,
    *,
    classes: Any,
    size_px: int,
    on_bad: OnBad = "stop",
    cache_limit_gb: float = 16.0,
    columns: Mapping[str, str] | None = None,
    only_images: bool = False,
    answered_by: str | None = None,
    first_number: int | None = None,
    decoding: Decoding | None = None,
) -> Source:
    """Read, check and decode images for prediction; parameters and errors as for `prepare`, or `read`.

    ``only_images``: labels, splits and repeats are not looked at.
    """
    how: dict[str, Any] = {"columns": columns, "only_images": only_images, "first_number": first_number}
    table = for_scoring(read(data, classes=classes, answered_by=answered_by, decoding=decoding, **how))
    return _resolve([_open(table, size_px, cache_limit_gb)], on_bad)[0]


def for_scoring(table: LabelTable) -> LabelTable:
    """The table without the problem that a class has no image: a test set need not hold every class."""
    return replace(table, problems=tuple(p for p in table.problems if p.kind not in ("empty_class", "absent_class")))


def read(
    data: Any,
    *,
    classes: Any = None,
    group: str | None = None,
    annotators: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    only_images: bool = False,
    answered_by: str | None = None,
    like: LabelTable | None = None,
    first_number: int | None = None,
    decoding: Decoding | None = None,
) -> LabelTable:
    """A table with its problems listed and none of them resolved; a `LabelTable` comes back as it is.

    Args:
      columns: role -> column, where it is called otherwise.
      only_images: nothing but images and ids is looked at, and an image may come twice.
      answered_by: column of who answered, of a run: where a table has it, an image that comes again is one row.
      like: the table that this one is scored beside: its columns may be missing here, and its numbers mean the same.
      first_number: of the classes, where a run says so.

    Raises: DataError if there is nothing to read, or nothing to tell the groups by.
    """
    if isinstance(data, LabelTable):
        table = data
    else:
        named = Named(
            columns=dict(columns or {}) | ({} if group is None else {"group": group}),
            annotators=tuple(annotators),
            only_images=only_images,
            answered_by=answered_by,
            first_number=first_number if like is None or classes is None else like.first_number,
            optional=like is not None,
        )
        table = read_as(data, named, classes=classes, on_bad="report", decoding=decoding)
    if only_images:
        table = replace(table, problems=tuple(p for p in table.problems if p.kind != "duplicate_id"))
    check_groups(table, group, data)
    return table


def check_groups(table: LabelTable, group: str | None, data: Any) -> None:
    """Refuse a column to group by without values in it: DataError."""
    if group is not None and table.groups is None:
        raise DataError(
            f"{resolved_path(data)} has no column {group!r} to group by",
            fix="--group needs a table with that column, and values in it",
        )


def native_size(table: LabelTable) -> int:
    """Side in px to work at when the user names none: 32 if the images are at most 40 px, else 64.

    Args:
      table: images, of which 64, evenly spread, are looked at; unreadable ones are skipped.
    """
    sides = []
    for row in np.linspace(0, max(len(table) - 1, 0), min(64, len(table)), dtype=np.int64):
        with contextlib.suppress(DataError):
            sides.append(min(table.image(int(row)).size))
    return 32 if not sides or np.median(sides) <= 40 else 64


def _open(table: LabelTable, size_px: int, limit_gb: float) -> Source:
    table = replace(table, images=table.images.with_hashes())
    pixels = open_pixels(table, size_px=size_px, limit_gb=limit_gb)
    # A streamed source has not looked at its images yet; better now than in the middle of an epoch.
    found = check_images(table) if isinstance(pixels, StreamedPixels) else pixels.problems
    return Source(replace(table, problems=(*table.problems, *found)), pixels, torch.arange(len(table)))


def in_memory(table: LabelTable, *, size_px: int, on_bad: OnBad) -> Source:
    """The images of a small table, decoded once and into memory; errors as for `prepare`."""
    pixels = decoded(table, size_px=size_px)
    whole = replace(table, problems=(*table.problems, *pixels.problems))
    return _resolve([Source(whole, pixels, torch.arange(len(table)))], on_bad)[0]


def _resolve(sources: list[Source], on_bad: OnBad) -> list[Source]:
    """The sources without the rows concerned, or one report of all problems of all of them."""
    if on_bad == "stop":
        everything = [problem for source in sources for problem in source.table.problems]
        resolve_problems(sources[0].table, everything, "stop")
    kept = []
    for source in sources:
        whole = replace(source.table, problems=())
        resolved = resolve_problems(whole, source.table.problems, on_bad)
        if len(resolved) < len(whole):
            bad = {p.row for p in resolved.quarantined if p.row is not None}
            rows = np.setdiff1d(np.arange(len(whole)), np.fromiter(bad, np.int64, len(bad)))
            source = replace(source, rows=source.rows[torch.from_numpy(rows)])
        kept.append(replace(source, table=resolved))
    return kept


def _split(
    train: Source,
    test: Source | None,
    *,
    test_frac: float,
    seed: int,
    same_picture: Callable[[Source, NDArray[np.int64]], NDArray[np.int64]] | None,
) -> tuple[Source, Source | None, str, NDArray[np.int64] | None]:
    """Training and test images, what the latter are, and the `contents` of both where that took them."""
    table, held = train.table, train.table.where("test")
    rest = np.setdiff1d(np.arange(len(table)), held)
    if test is not None:
        return train.take(rest), test, "given", None
    if len(held):
        return train.take(rest), train.take(held), "split", None
    counts = table.counts()
    if counts.sum() * test_frac < (counts > 0).sum() or not counts.any():
        return train, None, "none", None
    content = contents([train])
    groups = splits.with_copies(table.groups, content if same_picture is None else same_picture(train, content))
    keep, held = splits.holdout(table.labels, frac=test_frac, seed=seed, groups=groups)
    if not len(held):  # every class is one group, or one picture
        return train, None, "none", content
    return train.take(keep), train.take(held), "held out", content[np.concatenate([keep, held])]


def contents(sources: Sequence[Source]) -> NDArray[np.int64]:
    """A number per row of all sources, one after the other: the same for equal pixels, embeddings or files.

    Files and embedded images count by their bytes where they are too many to be kept decoded.
    """

    def items() -> Iterator[bytes]:
        for source in sources:
            for rows in np.array_split(np.arange(len(source.table)), max(1, len(source.table) // 1024)):
                if source.stored is not None or isinstance(source.pixels, PixelCache):
                    behind = source.rows[torch.from_numpy(rows)]
                    if source.stored is not None:
                        values = source.stored.read(behind, "clean", torch.zeros_like(behind)).float() + 0.0
                    else:
                        assert source.pixels is not None
                        values = source.pixels.read(behind)
                    yield from (row.tobytes() for row in values.numpy())
                elif source.table.images.hashes is not None:
                    yield from (row.tobytes() for row in source.table.images.hashes[rows])
                else:
                    found = source.table.images.sources(rows)
                    yield from (each if isinstance(each, bytes) else Path(each).read_bytes() for each in found)

    return numbered(items())


def thumbs_of(source: Source) -> NDArray[np.uint8] | None:
    """Small grey pictures [N, 32, 32] uint8 of a source, see data.looks; None where no decoded images are kept."""
    if not isinstance(source.pixels, PixelCache):
        return None
    found = np.zeros((len(source.table), THUMB_PX, THUMB_PX), dtype=np.uint8)
    for rows in np.array_split(np.arange(len(found)), max(1, len(found) // 1024)):
        found[rows] = grey_thumbs(source.pixels.read(source.in_pixels[torch.from_numpy(rows)]))
    return found


def may_flip(flip: Flip, class_names: tuple[str, ...]) -> tuple[bool, str]:
    """Whether a mirrored image keeps its class, and why; "auto" looks at the names of the classes, if there are any.

    Example:
      >>> may_flip("auto", ("cat", "dog"))
      (True, 'no class name speaks against it')
      >>> may_flip("auto", ("Keep left", "Keep right"))[0], may_flip("auto", ("0", "1"))[0]
      (False, False)
      >>> may_flip("auto", ())[0]
      True
    """
    if flip != "auto":
        return flip == "on", "as asked"
    sided = [name for name in class_names if _SIDED.search(name)]
    if sided:
        return False, f"a mirrored {sided[0]!r} would be wrong"
    if class_names and all(len(name) == 1 or name.isdigit() for name in class_names):
        return False, "the classes look like digits or letters"
    return True, "no class name speaks against it"


def describe_data(prepared: Prepared) -> dict[str, Any]:
    """What data.json of a run holds: JSON-ready."""
    table = prepared.train.table
    tables = [table, *([prepared.test.table] if prepared.test else [])]  # two halves of one table share its lists
    return {
        "fingerprint": table.fingerprint,
        "n_images": len(table),
        "n_labelled": int((table.labels >= 0).sum()),
        "n_classes": len(table.class_names),
        "class_names": list(table.class_names),
        "first_number": table.first_number,
        "train_counts": table.counts().tolist(),
        "splits": {"train": len(table), "test": len(prepared.test.table) if prepared.test else 0},
        "test_is": prepared.test_is,
        "test_fingerprint": prepared.test.table.fingerprint if prepared.test else None,
        "situation": {"name": prepared.situation.name, "reason": prepared.situation.reason},
        "size_px": prepared.size_px,
        "decoding": None if table.images.decoding is None else table.images.decoding.as_dict(),
        "flip": prepared.view.flip,
        "flip_reason": prepared.flip_reason,
        "quarantined": listed([p for t in tables for p in t.quarantined]),
        "notices": listed([p for t in tables for p in t.problems]),
    }


def listed(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Problems as JSON: where, kind, detail; each once.

    Example:
      >>> hollow = Problem("owl", "empty_class", "no image of class 'owl'")
      >>> listed([hollow, hollow])
      [{'where': 'owl', 'kind': 'empty_class', 'detail': "no image of class 'owl'"}]
    """
    unique = dict.fromkeys((p.where, p.kind, p.detail) for p in problems)
    return [{"where": where, "kind": kind, "detail": detail} for where, kind, detail in unique]


def resolved_path(data: Any) -> str:
    """How a run's config.yaml names its data: an absolute path when it is one, else what was given."""
    return from_anywhere(str(data)) if isinstance(data, (str, Path)) else f"<{type(data).__name__} in memory>"
