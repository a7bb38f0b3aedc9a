"""From batches of text to a `LabelTable`: names become codes as they stream by, then everything is checked once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from labelwright.data.columns import ANSWER, as_lists, as_text, as_weights
from labelwright.data.table import SPLITS, Images, LabelTable
from labelwright.errors import ConfigError, DataError, Problem
from labelwright.types import Candidates

SPLIT_NAMES: Mapping[str, int] = {
    **{name: SPLITS.index("train") for name in ("train", "training")},
    **{name: SPLITS.index("test") for name in ("test", "testing")},
    **{name: SPLITS.index("validation") for name in ("validation", "valid", "val", "dev")},
}
"""What a split may be called -> its position in SPLITS."""

_ROWS_AT_ONCE = 1 << 18  # candidate rows finished together, so that temporary arrays stay small
_HASHED_AT_ONCE = 1 << 16  # strings that are Python objects at once
_EXISTENCE_ROWS_MAX = 100_000  # above this, missing files are found when they are decoded
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class Vocabulary:
    """Strings numbered in the order first seen.

    Example:
      >>> words = Vocabulary()
      >>> words.encode(pa.array(["b", None, "a", "b"])).tolist(), words.names
      ([0, -1, 1, 0], ['b', 'a'])
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The strings, in the order of their codes."""
        return list(self._codes)

    def encode(self, strings: Any) -> NDArray[np.int32]:
        """[n] int32 codes of Arrow strings [n], -1 where null."""
        encoded = strings.dictionary_encode()
        known = [self._codes.setdefault(name, len(self._codes)) for name in encoded.dictionary.to_pylist()]
        codes = np.array([*known, -1], dtype=np.int32)  # the last one serves index -1
        indices: NDArray[np.int32] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes[indices]


class TableBuilder:
    """Collects batches of rows and makes the table of them.

    Args:
      where: what the source is called in messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []
        self.declared: tuple[str, ...] = ()  # class names that the source itself fixes, in order
        self.extra_names: tuple[str, ...] = ()  # names that count as seen: empty class folders
        self.numbers_are_indices = True  # False: a class called "3" is a name (folders)
        self.n_rows = 0
        self._words = Vocabulary()  # labels, candidates and truth share one
        self._splits, self._groups = Vocabulary(), Vocabulary()
        self._codes: dict[str, list[NDArray[np.int32]]] = {
            key: [] for key in ("label", "members", "truth", "split", "group")
        }
        self._lengths: list[NDArray[np.int32]] = []
        self._weights: list[NDArray[np.float32]] = []  # of the members
        self._has_weights = False
        self._unfit_weights: list[tuple[int, str]] = []  # row, what is wrong
        self._strings: dict[str, list[Any]] = {"image": [], "id": []}
        self._answers: dict[str, list[NDArray[np.int32]]] = {}  # annotator -> codes of the words answered

    def add(
        self,
        columns: Mapping[str, Any],
        n_rows: int,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        split: str | None = None,
    ) -> None:
        """Append a batch.

        Args:
          columns: role (see columns.ROLES) -> Arrow array [n_rows]; a role left out is null throughout.
          n_rows: rows of the batch.
          names: role -> what the integers of a ClassLabel column stand for.
          split: the split that all these rows belong to, where the source says so.
        """
        names = names or {}
        unknown = pa.nulls(n_rows, pa.string())
        none = np.broadcast_to(np.int32(-1), n_rows)  # takes no memory
        self.n_rows += n_rows
        for role in ("label", "truth"):
            text = as_text(columns[role], names=names.get(role)) if role in columns else None
            self._codes[role].append(none if text is None else self._words.encode(text))
        if "candidates" in columns:
            lengths, members = as_lists(columns["candidates"], names=names.get("candidates"))
            self._codes["members"].append(self._words.encode(members))
            self._weights.append(self._take_weights(columns.get("weights"), lengths, self.n_rows - n_rows))
            self._lengths.append(lengths.astype(np.int32))
        else:
            self._lengths.append(np.zeros(n_rows, dtype=np.int32))
        if "split" in columns or split is None:
            splits = self._splits.encode(as_text(columns["split"])) if "split" in columns else none
        else:
            splits = np.broadcast_to(self._splits.encode(pa.array([split])), n_rows)
        self._codes["split"].append(splits)
        self._codes["group"].append(self._groups.encode(as_text(columns["group"])) if "group" in columns else none)
        for role in [role for role in columns if role.startswith(ANSWER)]:
            before = self._answers.setdefault(role.removeprefix(ANSWER), [])
            missing = self.n_rows - n_rows - sum(map(len, before))
            text = as_text(columns[role], names=names.get(role))
            before += [np.full(missing, -1, dtype=np.int32), self._words.encode(text)]
        for role, chunks in self._strings.items():
            text = as_text(columns[role]) if role in columns else unknown
            chunks.append(text.cast(pa.large_string()))

    def _take_weights(self, column: Any, lengths: NDArray[np.int64], first_row: int) -> NDArray[np.float32]:
        """Weights of the candidates of a batch, 1 where none are given; rows where they do not fit are noted."""
        if column is None:
            return np.broadcast_to(np.float32(1), int(lengths.sum()))  # takes no memory
        self._has_weights = True
        sizes, values = as_weights(column)
        fits = sizes == lengths
        rows = np.repeat(np.arange(len(lengths)), lengths)
        weights = np.ones(len(rows))
        weights[fits[rows]] = values[np.repeat(fits, np.maximum(sizes, 0))]
        is_number = np.isfinite(weights) & (weights >= 0)
        total = np.bincount(rows, np.where(is_number, weights, 0), minlength=len(lengths))
        odd = (np.bincount(rows, ~is_number, minlength=len(lengths)) > 0) | ((total <= 0) & (lengths > 0))
        weights[odd[rows]] = 1
        for row in np.flatnonzero(odd).tolist():
            self._unfit_weights.append((first_row + row, "weights must be numbers >= 0, one above 0"))
        for row in np.flatnonzero(~fits & (sizes >= 0)).tolist():
            self._unfit_weights.append((first_row + row, f"{sizes[row]} weights for {lengths[row]} candidates"))
        return weights.astype(np.float32)

    def finish(self, *, classes: Sequence[str] | None, root: str = "", dataset: Any = None) -> LabelTable:
        """The table, with every problem found listed in ``table.problems``.

        Args:
          classes: names and order of the classes; None = as declared by the source, else those seen.
          root: folder that relative image paths start from.
          dataset: embedded images, see `Images`; the image column then only serves as names.

        Raises: DataError (kind empty_table) if there are no rows; ConfigError if ``classes`` repeat or lack a name.
        """
        if self.n_rows == 0:
            problem = Problem(self.where, "empty_table", "there is not an image")
            raise DataError(
                f"{self.where}: no images found",
                problems=[*self.problems, problem],
                fix="give a folder of images, or a table with a row per image",
            )
        images, ids = self._images_and_ids(root, dataset)
        pa.default_memory_pool().release_unused()  # what the batches left behind
        raw_labels, raw_truth = self._take_codes("label"), self._take_codes("truth")
        members = self._take_codes("members")
        lengths = np.concatenate(self._lengths)
        answers = self._take_answers()
        class_names = self._class_names(classes, raw_labels, np.concatenate([members, answers.ravel()]))
        lookup, is_blank = self._lookup(class_names)

        labels = lookup[raw_labels]
        unknown_rows = np.flatnonzero((labels < 0) & ~is_blank[raw_labels])
        words = self._words.names
        self._report(
            images,
            unknown_rows,
            "unknown_label",
            [
                f"label {words[code]!r} is not one of the {len(class_names)} classes"
                for code in raw_labels[unknown_rows]
            ],
        )
        candidates = self._candidates(images, members, lengths, lookup, is_blank) if len(members) else None
        votes = self._votes(images, answers, lookup, is_blank) if answers.size else None
        candidates = candidates if votes is None else _named_by(votes)
        unfit_rows = np.array([row for row, _ in self._unfit_weights], dtype=np.int64)
        self._report(images, unfit_rows, "malformed_row", [detail for _, detail in self._unfit_weights])
        split = self._split(images)
        truth, truth_names = self._truth(raw_truth, lookup, is_blank, class_names)
        self._check_ids(images, ids)
        self._check_files(images)
        self._check_classes(class_names, labels, candidates, split, unknown_rows)
        return LabelTable(
            images=images,
            ids=ids,
            labels=labels,
            class_names=class_names,
            candidates=candidates,
            split=split,
            groups=self._group_codes(),
            truth=truth,
            truth_names=truth_names,
            votes=votes,
            annotators=tuple(self._answers) if votes is not None else (),
            problems=tuple(self.problems),
        )

    def _take_codes(self, key: str) -> NDArray[np.int32]:
        chunks, self._codes[key] = self._codes[key], []
        return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32)

    def _take_answers(self) -> NDArray[np.int32]:
        """[N, A] codes of the words that annotators answered; -1 = none."""
        columns = []
        for chunks in self._answers.values():
            chunks.append(np.full(self.n_rows - sum(map(len, chunks)), -1, dtype=np.int32))
            columns.append(np.concatenate(chunks))
        return np.stack(columns, axis=1) if columns else np.zeros((self.n_rows, 0), dtype=np.int32)

    def _votes(
        self, images: Images, answers: NDArray[np.int32], lookup: NDArray[np.int32], is_blank: NDArray[np.bool_]
    ) -> NDArray[np.int32]:
        """[N, A] classes that annotators answered; unknown ones are reported."""
        words = self._words.names
        for name, codes in zip(self._answers, answers.T, strict=True):
            strange = np.flatnonzero((lookup[codes] < 0) & ~is_blank[codes])
            details = [f"{name} answers {words[code]!r}, which is not a class" for code in codes[strange]]
            self._report(images, strange, "unknown_candidate", details)
        return lookup[answers]

    def _report(self, images: Images, rows: NDArray[np.int64], kind: str, details: Sequence[str]) -> None:
        if images.dataset is None:
            places = [str(source) for source in images.sources(rows)]
        else:
            places = [f"row {row}" for row in rows]
        for where, row, detail in zip(places, rows.tolist(), details, strict=True):
            self.problems.append(Problem(where, kind, detail, row))

    def _images_and_ids(self, root: str, dataset: Any) -> tuple[Images, Any]:
        paths = pa.concat_arrays(self._strings.pop("image"))
        ids = pa.concat_arrays(self._strings.pop("id"))
        given = len(ids) - ids.null_count
        if dataset is None:
            blank = np.flatnonzero(paths.is_null().to_numpy(zero_copy_only=False))
            images = Images(paths.fill_null("") if len(blank) else paths, root)
            for row in blank.tolist():
                self.problems.append(Problem(f"row {row}", "missing_image", "the row names no image", row))
        else:
            images = Images(root=root, dataset=dataset)
        is_named = paths.null_count == 0 and (dataset is None or len(_repeated(paths)) == 0)
        fallback = paths if is_named else pa.array(np.arange(self.n_rows)).cast(pa.large_string())
        if dataset is None and not is_named:
            fallback = pc.if_else(paths.is_null(), fallback, paths)
        if given == 0:
            return images, fallback
        return images, ids if given == len(ids) else pc.if_else(ids.is_null(), fallback, ids)

    def _class_names(
        self, classes: Sequence[str] | None, labels: NDArray[np.int32], members: NDArray[np.int32]
    ) -> tuple[str, ...]:
        if classes is not None:
            names = tuple(name.strip() for name in classes)
            if not names or "" in names or len(set(names)) < len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                detail = f"named twice: {', '.join(twice)}" if twice else "an empty name" if names else "none given"
                raise ConfigError(f"classes: {detail}", fix="give every class one name, each once")
            return names
        if self.declared:
            return self.declared
        words = self._words.names
        is_seen = np.zeros(len(words) + 1, dtype=bool)  # the last one serves code -1
        is_seen[labels] = is_seen[members] = True
        seen = {words[code] for code in np.flatnonzero(is_seen[:-1])} | set(self.extra_names)
        if self.numbers_are_indices:
            seen.discard("-1")
        if not seen or not all(_INTEGER.fullmatch(name) for name in seen):
            return tuple(sorted(seen))
        numbers = sorted(int(name) for name in seen)
        n_classes = numbers[-1] + 1
        if not self.numbers_are_indices or not 0 < n_classes <= max(1000, 10 * len(numbers)):
            return tuple(str(number) for number in numbers)  # names that happen to be numbers
        return tuple(str(number) for number in range(n_classes))

    def _lookup(self, class_names: tuple[str, ...]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Word code -> class index or -1, and -> whether it stands for no label; both answer code -1 too."""
        index = {name: i for i, name in enumerate(class_names)}
        if not any(_INTEGER.fullmatch(name) for name in class_names):  # else "3" would be ambiguous
            index.update({str(i): i for i in range(len(class_names))})
        words = self._words.names
        lookup = np.array([*(index.get(word, -1) for word in words), -1], dtype=np.int32)
        is_blank = np.array([*(word == "-1" and word not in index for word in words), True])
        return lookup, is_blank

    def _candidates(
        self,
        images: Images,
        members: NDArray[np.int32],
        lengths: NDArray[np.int32],
        lookup: NDArray[np.int32],
        is_blank: NDArray[np.bool_],
    ) -> Candidates:
        """Sorted sets without repeats; unknown classes are reported and left out, the other weights then sum to 1."""
        words, n_classes = self._words.names, int(lookup.max(initial=0)) + 1
        kept_classes, kept_lengths, kept_weights, first_member = [], [], [], 0
        weights = np.concatenate(self._weights) if self._has_weights else None
        for first in range(0, self.n_rows, _ROWS_AT_ONCE):
            sizes = lengths[first : first + _ROWS_AT_ONCE]
            raw = members[first_member : first_member + int(sizes.sum())]
            first_member += len(raw)
            rows = np.repeat(np.arange(len(sizes)), sizes)
            codes = lookup[raw]
            strange = np.flatnonzero((codes < 0) & ~is_blank[raw])
            details = [f"candidate {words[code]!r} is not a class" for code in raw[strange]]
            self._report(images, first + rows[strange], "unknown_candidate", details)
            known = codes >= 0
            keys = rows[known] * n_classes + codes[known]  # (row, class) as one number
            keys, place = np.unique(keys, return_inverse=True)
            if weights is not None:
                given = weights[first_member - len(raw) : first_member][known]
                summed = np.bincount(place, given).astype(np.float64)  # of a class named twice in a row
                kept_weights.append(_shares(summed, keys // n_classes).astype(np.float32))
            kept_classes.append((keys % n_classes).astype(np.int32))
            kept_lengths.append(np.bincount(keys // n_classes, minlength=len(sizes)).astype(np.int32))
        offsets = np.pad(np.cumsum(np.concatenate(kept_lengths), dtype=np.int64), (1, 0))
        joined = None if weights is None else torch.from_numpy(np.concatenate(kept_weights))
        return Candidates(torch.from_numpy(offsets), torch.from_numpy(np.concatenate(kept_classes)), joined)

    def _split(self, images: Images) -> NDArray[np.int8] | None:
        names = self._splits.names
        if not names:
            return None
        raw = self._take_codes("split")
        lookup = np.array([*(SPLIT_NAMES.get(name.lower(), -1) for name in names), 0], dtype=np.int8)  # blank: train
        split = lookup[raw]
        strange = np.flatnonzero(split < 0)
        details = [f"split {names[code]!r} is not one of {', '.join(SPLITS)}" for code in raw[strange]]
        self._report(images, strange, "unknown_split", details)
        return split

    def _truth(
        self,
        raw: NDArray[np.int32],
        lookup: NDArray[np.int32],
        is_blank: NDArray[np.bool_],
        class_names: tuple[str, ...],
    ) -> tuple[NDArray[np.int32] | None, tuple[str, ...]]:
        """The truth may hold classes that the task does not name: they get the indices from C on."""
        words = self._words.names
        is_used = np.zeros(len(words) + 1, dtype=bool)
        is_used[raw] = True
        used = np.flatnonzero(is_used & ~is_blank)
        if not len(used):
            return None, ()
        outside = sorted((words[code], int(code)) for code in used if lookup[code] < 0)
        lookup = lookup.copy()
        lookup[[code for _, code in outside]] = np.arange(len(class_names), len(class_names) + len(outside))
        return lookup[raw], (*class_names, *(name for name, _ in outside))

    def _group_codes(self) -> NDArray[np.int64] | None:
        if not self._groups.names:
            return None
        codes = self._take_codes("group").astype(np.int64)
        alone = codes < 0  # an image without a group is one of its own
        codes[alone] = len(self._groups.names) + np.arange(int(alone.sum()))
        return codes

    def _check_ids(self, images: Images, ids: Any) -> None:
        rows = _repeated(ids)
        names = ids.take(pa.array(rows)).to_pylist()
        self._report(images, rows, "duplicate_id", [f"id {name!r} was used before" for name in names])

    def _check_files(self, images: Images) -> None:
        if images.dataset is not None or len(images) > _EXISTENCE_ROWS_MAX:
            return
        sources = images.sources(np.arange(len(images)))
        named = pc.not_equal(images.paths, "").to_numpy(zero_copy_only=False)  # the others are reported already
        missing = np.array([row for row in np.flatnonzero(named) if not os.path.exists(sources[row])], np.int64)  # noqa: PTH110 (Path is slow)
        self._report(images, missing, "missing_image", ["there is no such file"] * len(missing))

    def _check_classes(
        self,
        class_names: tuple[str, ...],
        labels: NDArray[np.int32],
        candidates: Candidates | None,
        split: NDArray[np.int8] | None,
        unknown_rows: NDArray[np.int64],
    ) -> None:
        """A class without images is a problem among full labels, and only worth a word among partial ones."""
        train = np.ones(len(labels), dtype=bool) if split is None or not (split == 0).any() else split == 0
        known = labels[train & (labels >= 0)]
        seen = np.bincount(known, minlength=len(class_names)) > 0
        if candidates is not None:
            seen |= np.bincount(candidates.classes.numpy(), minlength=len(class_names)) > 0
        elif not len(known):
            return
        is_full = len(known) + int(train[unknown_rows].sum()) == int(train.sum())
        kind, detail = ("empty_class", "no image") if is_full else ("unseen_class", "no label or candidate")
        for c in np.flatnonzero(~seen):
            self.problems.append(Problem(class_names[c], kind, f"{detail} of class {class_names[c]!r}"))


def _named_by(votes: NDArray[np.int32]) -> Candidates:
    """The classes that annotators answered [N, A], weighted by the share of the answers that they got."""
    rows, _ = np.nonzero(votes >= 0)
    n_classes = int(votes.max(initial=0)) + 1
    keys, counts = np.unique(rows * n_classes + votes[votes >= 0], return_counts=True)
    sizes = np.bincount(keys // n_classes, minlength=len(votes))
    weights = _shares(counts.astype(np.float64), keys // n_classes).astype(np.float32)
    offsets = np.pad(np.cumsum(sizes, dtype=np.int64), (1, 0))
    classes = torch.from_numpy((keys % n_classes).astype(np.int32))
    return Candidates(torch.from_numpy(offsets), classes, torch.from_numpy(weights))


def _shares(weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [n] over the sum of their row's, rows [n]; equal shares where that sum is 0."""
    weights = np.where(np.bincount(rows, weights)[rows] > 0, weights, 1.0)
    return np.asarray(weights / np.bincount(rows, weights)[rows])


def _repeated(strings: Any) -> NDArray[np.int64]:
    """Rows [n] of Arrow large_strings that hold what an earlier row held.

    By 64-bit hashes, 8 bytes a row; rows whose hashes meet are then compared in full.
    """
    parts = [strings.slice(first, _HASHED_AT_ONCE) for first in range(0, len(strings), _HASHED_AT_ONCE)]
    hashes = np.concatenate([np.fromiter(map(hash, part.to_pylist()), np.int64, len(part)) for part in parts])
    ordered = np.sort(hashes)
    met = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    rows = np.flatnonzero(np.isin(hashes, met))
    codes = strings.take(pa.array(rows)).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first_rows = np.unique(codes, return_index=True)[1]
    return np.delete(rows, first_rows)
