"""From batches of text to a `LabelTable`: names become codes as they stream by, then everything is checked once."""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from labelwright.data.class_names import Vocabulary, checked_names, index_of, odd_names, unknown_words, without_images
from labelwright.data.columns import ANSWER
from labelwright.data.layouts import SPLIT_NAMES, SPLITS, folder_inside, found_elsewhere
from labelwright.data.table import Images, LabelTable
from labelwright.data.values import INTEGER, as_lists, as_text, as_weights, has_line_break
from labelwright.errors import DataError, Problem
from labelwright.types import Candidates
from labelwright.wording import counted

_ROWS_AT_ONCE = 1 << 18  # candidate rows finished together, so that temporary arrays stay small
_HASHED_AT_ONCE = 1 << 16  # strings that are Python objects at once
_EXISTENCE_ROWS_MAX = 100_000  # above this, missing files are found when they are decoded, if some are there
_NAMED = 5  # classes, columns or files that one message lists
_WEIGHT_MIN = 1e-30  # rows whose largest weight is smaller, or larger than one over it, are brought to a largest of 1


class TableBuilder:
    """Collects batches of rows and makes the table of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []
        self.declared: tuple[str, ...] = ()  # class names that the source itself fixes, in order
        self.hollow: dict[str, tuple[str, tuple[Problem, ...]]] = {}  # class -> its folder without an image, why
        self.are_values = True  # False: names of folders, so that a class called "3" is a name
        self.known: frozenset[str] = frozenset()  # class names that the user gave
        self.knowledge = math.inf  # of the candidates, see `types.Candidates`
        self.first_number: int | None = None  # that a class is counted from, where another table says so
        self.n_rows = 0
        self.n_given = 0  # rows of the source; those that are not among ``n_rows`` are problems
        self._words = Vocabulary()  # labels, candidates and truth share one
        self._splits, self._groups = Vocabulary(), Vocabulary()
        self._codes: dict[str, list[NDArray[np.int32]]] = {
            key: [] for key in ("label", "members", "truth", "split", "group")
        }
        self._lengths: list[NDArray[np.int32]] = []
        self._weights: list[NDArray[np.float32]] = []  # of the members
        self._has_weights = False
        self._unfit: list[tuple[int, str]] = []  # row, what is wrong with a value of it
        self._places: list[tuple[int, str, Any]] = []  # first row of a batch, its file, and the lines or first number
        self._signs: set[str] = set()  # between candidates
        self._are_named = False  # labels came as numbers with names
        self._strings: dict[str, list[Any]] = {"image": [], "id": []}
        self._answers: dict[str, list[NDArray[np.int32]]] = {}  # annotator -> codes of the words answered

    def add(
        self,
        columns: Mapping[str, Any],
        n_rows: int,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        split: str | None = None,
        file: str = "",
        lines: Any = None,
    ) -> None:
        """Append a batch.

        Args:
          columns: role (see columns.ROLES) -> Arrow array [n_rows]; a role left out is null throughout.
          n_rows: rows of the batch.
          names: role -> what the integers of a ClassLabel column stand for.
          split: the split that all these rows belong to, where the source says so.
          file: the table that they come from.
          lines: [n_rows] Arrow integers, the line of the file that each begins on; None: rows are counted.
        """
        names = names or {}
        unknown = pa.nulls(n_rows, pa.string())
        none = np.broadcast_to(np.int32(-1), n_rows)  # takes no memory
        at = self._rows_of(file) + 1 if lines is None else np.asarray(lines)
        self._places.append((self.n_rows, file, at))
        self.n_rows += n_rows
        self._are_named |= "label" in names
        for role in ("label", "truth"):
            found = self._text(role, columns[role], n_rows, names.get(role)) if role in columns else None
            self._codes[role].append(none if found is None else self._words.encode(found))
        if "candidates" in columns:
            known = frozenset(self._words.names) | self.known
            lengths, members, odd, sign = as_lists(columns["candidates"], names=names.get("candidates"), known=known)
            self._note(odd, n_rows, "the candidates are no list of names")
            self._signs |= {sign} - {""}
            self._codes["members"].append(self._words.encode(members))
            self._weights.append(self._take_weights(columns.get("weights"), lengths, self.n_rows - n_rows))
            self._lengths.append(lengths.astype(np.int32))
        else:
            self._lengths.append(np.zeros(n_rows, dtype=np.int32))
        if "split" in columns or split is None:
            found = self._text("split", columns["split"], n_rows) if "split" in columns else None
            splits = none if found is None else self._splits.encode(found)
        else:
            splits = np.broadcast_to(self._splits.encode(pa.array([split])), n_rows)
        self._codes["split"].append(splits)
        found = self._text("group", columns["group"], n_rows) if "group" in columns else None
        self._codes["group"].append(none if found is None else self._groups.encode(found))
        for role in [role for role in columns if role.startswith(ANSWER)]:
            answers = self._answers.setdefault(role.removeprefix(ANSWER), [])
            missing = self.n_rows - n_rows - sum(map(len, answers))
            text = self._text(role, columns[role], n_rows, names.get(role))
            answers += [np.full(missing, -1, dtype=np.int32), self._words.encode(text)]
        for role, chunks in self._strings.items():
            text = self._text(role, columns[role], n_rows) if role in columns else unknown
            chunks.append(text.cast(pa.large_string()))

    def _text(self, role: str, column: Any, n_rows: int, names: Sequence[str] | None = None) -> Any:
        """A column of the batch just counted as strings; rows whose value is none are noted."""
        text, odd = as_text(column, names=names, is_path=role in self._strings)
        self._note(odd, n_rows, f"the {role.removeprefix(ANSWER)} is not one text")
        if self.are_values:
            broken = has_line_break(text)
            self._note(
                broken, n_rows, f"a line break in the {role.removeprefix(ANSWER)} (is a quote not closed?), or a NUL"
            )
            text = pc.if_else(pa.array(broken), None, text) if broken.any() else text
        return text

    def _note(self, odd: NDArray[np.bool_], n_rows: int, detail: str) -> None:
        first = self.n_rows - n_rows
        self._unfit += [(first + row, detail) for row in np.flatnonzero(odd).tolist()]

    def _rows_of(self, file: str) -> int:
        """Rows of a file that the batches before held."""
        ends = [*(first for first, _, _ in self._places[1:]), self.n_rows][: len(self._places)]
        return sum(end - first for (first, name, _), end in zip(self._places, ends, strict=True) if name == file)

    def place(self, row: int, *, short: bool = False) -> str:
        """Where the user finds a row: its line or row in the file, from 1; ``short``: without the folder."""
        first, file, at = self._places[bisect.bisect_right(self._places, row, key=lambda each: each[0]) - 1]
        file = os.path.basename(file) if short else file  # noqa: PTH119
        if isinstance(at, int):
            return f"{file} row {at + row - first}".strip()
        is_text = file.endswith((".csv", ".tsv", ".jsonl", ".ndjson"))
        return f"{file} {'line' if is_text else 'row'} {at[row - first]}"

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
            self._unfit.append((first_row + row, "weights must be numbers >= 0, one above 0"))
        for row in np.flatnonzero(~fits & (sizes >= 0)).tolist():
            self._unfit.append((first_row + row, f"{sizes[row]} weights for {lengths[row]} candidates"))
        top = np.zeros(len(lengths))
        np.maximum.at(top, rows, weights)
        is_far = ((top < _WEIGHT_MIN) | (top > 1 / _WEIGHT_MIN))[rows]  # such as likelihoods: beyond float32
        weights[is_far] /= top[rows[is_far]]
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
        assert self.n_given in (0, self.n_rows + self.n_lost), "rows read and rows reported are the rows given"
        images, ids = self._images_and_ids(root, dataset)
        pa.default_memory_pool().release_unused()  # what the batches left behind
        given = None if classes is None else checked_names(classes)
        self.known |= frozenset(given or ())
        kept = frozenset(self.declared if given is None else given)
        remap, forgotten = self._words.finished(kept, are_values=self.are_values)
        raw_labels, raw_truth = remap[self._take_codes("label")], remap[self._take_codes("truth")]
        members = remap[self._take_codes("members")]
        lengths = np.concatenate(self._lengths)
        answers = remap[self._take_answers()]
        class_names = self._class_names(given, raw_labels, np.concatenate([members, answers.ravel()]))
        lookup, is_blank, first_number = self._lookup(class_names, raw_labels, members, answers)
        if forgotten:
            shown = ", ".join(map(repr, sorted(forgotten)[:_NAMED]))
            self._say("read_as", f"{shown} is read as no label; where it is a class, list it with --classes")
        if self._signs:
            shown = " and ".join("[...]" if sign == "[" else repr(sign) for sign in sorted(self._signs))
            self._say("read_as", f"candidates are separated by {shown}")

        labels = lookup[raw_labels]
        unknown_rows = np.flatnonzero((labels < 0) & ~is_blank[raw_labels])
        unknown_codes, each = np.unique(raw_labels[unknown_rows], return_inverse=True)
        words = self._words.names
        unknown = [unknown_words(words[code], class_names) for code in unknown_codes.tolist()]
        self._report(images, unknown_rows, "unknown_label", [unknown[i] for i in each.tolist()])
        candidates = self._candidates(images, members, lengths, lookup, is_blank) if len(members) else None
        votes = self._votes(images, answers, lookup, is_blank) if answers.size else None
        candidates = candidates if votes is None else _named_by(votes)
        unfit = sorted(dict.fromkeys(self._unfit))
        self._report(
            images, np.array([row for row, _ in unfit], np.int64), "malformed_row", [text for _, text in unfit]
        )
        split = self._split(images)
        truth, truth_names = self._truth(raw_truth, lookup, is_blank, class_names)
        self._check_ids(images, ids, labels, class_names)
        images = self._check_files(images)
        self.problems += without_images(class_names, labels, candidates, split, unknown_rows)
        self.problems += self._without_classes(class_names)
        named = labels if votes is None else np.concatenate([labels, votes.ravel()])
        for detail in odd_names(class_names, named, is_said=bool(self.declared or self.known)):
            self._say("odd_class", detail)
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
            n_given=self.n_rows + self.n_lost,
            first_number=first_number,
        )

    @property
    def n_lost(self) -> int:
        """Rows of the source that could not be read; each is a problem without a row."""
        return sum(problem.kind == "malformed_row" and problem.row is None for problem in self.problems)

    def _say(self, kind: str, detail: str) -> None:
        self.problems.append(Problem(self.where, kind, detail))

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
        """Add problems of rows: where they stand in their table, or the path of an image where there is no table."""
        for row, detail in zip(rows.tolist(), details, strict=False):
            where = self.place(row) if self.are_values else str(images.sources(np.array([row]))[0])
            self.problems.append(Problem(where, kind, detail, row))

    def _images_and_ids(self, root: str, dataset: Any) -> tuple[Images, Any]:
        paths = pa.concat_arrays(self._strings.pop("image"))
        ids = pa.concat_arrays(self._strings.pop("id"))
        given = len(ids) - ids.null_count
        if dataset is None:
            blank = np.flatnonzero(paths.is_null().to_numpy(zero_copy_only=False))
            images = Images(paths.fill_null("") if len(blank) else paths, root)
            reported = {row for row, _ in self._unfit}
            self._report(
                images,
                np.array([row for row in blank.tolist() if row not in reported], np.int64),
                "missing_image",
                ["the row names no image"] * len(blank),
            )
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
        self, given: tuple[str, ...] | None, labels: NDArray[np.int32], members: NDArray[np.int32]
    ) -> tuple[str, ...]:
        """Those given or declared, else those seen: numbers are positions if they run from 0 without a gap."""
        if given is not None or self.declared:
            return self.declared if given is None else given
        words = self._words.names
        is_seen = np.zeros(len(words) + 1, dtype=bool)  # the last one serves code -1
        is_seen[labels] = is_seen[members] = True
        seen = {words[code] for code in np.flatnonzero(is_seen[:-1])}
        if (labels < 0).any():  # an image without a label may be of a class without images
            seen |= {_composed(name) for name in self.hollow}
        if self.are_values:
            seen.discard("-1")
        if not seen or not all(INTEGER.fullmatch(name) for name in seen):
            return tuple(sorted(seen))
        return tuple(sorted(seen, key=int))

    def _without_classes(self, class_names: tuple[str, ...]) -> list[Problem]:
        """Folders without an image where all images have labels: of no class; a problem if they hold other files."""
        found = []
        for name, (path, inside) in self.hollow.items():
            if _composed(name) in class_names:
                continue
            kind, detail = "absent_class", f"an empty folder: {name!r} is no class here, unless --classes names it"
            if inside:
                kind, detail = "empty_class", f"no image of class {name!r} in its folder: {inside[0].detail}"
            found.append(Problem(path, kind, detail))
        return found

    def _lookup(
        self, class_names: tuple[str, ...], *used: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
        """Word code -> class index or -1, and -> whether it stands for no label; the number of the first class.

        Numbers are positions in names that are no numbers: from 1 where they are 1 to C, from 0 otherwise.
        """
        index = index_of(class_names)
        words, first = self._words.names, 0
        if class_names and not any(INTEGER.fullmatch(name) for name in class_names):  # else "3" would be ambiguous
            is_used = np.zeros(len(words) + 1, dtype=bool)
            for codes in used:
                is_used[codes] = True
            numbers = {int(words[code]) for code in np.flatnonzero(is_used[:-1]) if INTEGER.fullmatch(words[code])}
            numbers -= {-1}
            if numbers and not self._are_named and self.are_values:
                n, shown = len(class_names), f"1 is {class_names[0]!r}"
                if self.first_number is not None:
                    first = self.first_number
                elif min(numbers) == 1 and max(numbers) == n:
                    first = 1
                    self._say("read_as", f"the numbers of the classes count from 1: {shown}, {n} {class_names[-1]!r}")
                elif min(numbers) > 0 and max(numbers) < n and len(numbers) > 1:
                    self._say(
                        "read_as",
                        f"the numbers of the classes count from 0 (there is no {n}): {min(numbers)} is "
                        f"{class_names[min(numbers)]!r}; if they count from 1, write names in their place",
                    )
            index.update({str(i + first): i for i in range(len(class_names)) if str(i + first) not in index})
        lookup = np.array([*(index.get(word, -1) for word in words), -1], dtype=np.int32)
        is_blank = np.array([*(word == "-1" and word not in index for word in words), True])
        return lookup, is_blank, first

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
        with_blank: list[int] = []
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
            with_blank += (first + np.unique(rows[~known & is_blank[raw]])).tolist()
            keys = rows[known] * n_classes + codes[known]  # (row, class) as one number
            keys, at = np.unique(keys, return_inverse=True)
            if weights is not None:
                given = weights[first_member - len(raw) : first_member][known]
                summed = np.bincount(at, given).astype(np.float64)  # of a class named twice in a row
                kept_weights.append(_shares(summed, keys // n_classes).astype(np.float32))
            kept_classes.append((keys % n_classes).astype(np.int32))
            kept_lengths.append(np.bincount(keys // n_classes, minlength=len(sizes)).astype(np.int32))
        if with_blank:
            n_rows, place = counted(len(with_blank), "row"), self.place(with_blank[0])
            self._say("read_as", f"empty values among the candidates are left out, in {n_rows} ({place} first)")
        offsets = np.pad(np.cumsum(np.concatenate(kept_lengths), dtype=np.int64), (1, 0))
        joined = None if weights is None else torch.from_numpy(np.concatenate(kept_weights))
        classes = torch.from_numpy(np.concatenate(kept_classes))
        return Candidates(torch.from_numpy(offsets), classes, joined, self.knowledge)

    def _split(self, images: Images) -> NDArray[np.int8] | None:
        names = self._splits.names
        if not names:
            return None
        remap, _ = self._splits.finished(frozenset(), are_values=True)
        names, raw = self._splits.names, remap[self._take_codes("split")]
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
        remap, _ = self._groups.finished(frozenset(), are_values=True)
        if not self._groups.names:
            return None
        codes = remap[self._take_codes("group")].astype(np.int64)
        alone = codes < 0  # an image without a group is one of its own
        codes[alone] = len(self._groups.names) + np.arange(int(alone.sum()))
        return codes

    def _check_ids(self, images: Images, ids: Any, labels: NDArray[np.int32], class_names: Sequence[str]) -> None:
        rows = _repeated(ids)
        if not len(rows):
            return
        names = ids.take(pa.array(rows))
        first = pc.index_in(names, value_set=ids).to_numpy()
        details = []
        for name, is_now, was in zip(names.to_pylist(), labels[rows].tolist(), labels[first].tolist(), strict=True):
            detail = f"id {name!r} was used before"
            if min(is_now, was) >= 0 and is_now != was:
                detail += (
                    f" as {class_names[was]!r}, and is {class_names[is_now]!r} here: with a column of who answered, "
                )
                detail += "--annotator-columns reads several answers per image"
            details.append(detail)
        self._report(images, rows, "duplicate_id", details)

    def _check_files(self, images: Images) -> Images:
        """The images, those found elsewhere where they are; the others that are not there are reported."""
        if images.dataset is not None:
            return images
        rows = np.flatnonzero(pc.not_equal(images.paths, "").to_numpy(zero_copy_only=False))  # the rest is reported
        if len(rows) > _EXISTENCE_ROWS_MAX:
            some = rows[:: len(rows) // 1000]
            gone = [i for i, path in enumerate(images.sources(some)) if not os.path.exists(path)]  # noqa: PTH110
            if not any(found_elsewhere(given, images.root) for _, given in _at(images.paths, some, gone[:5])):
                return images
        paths = images.sources(rows)
        missing = [i for i, path in enumerate(paths) if not os.path.exists(path)]  # noqa: PTH110
        inside = next((folder_inside(images.root, given) for _, given in _at(images.paths, rows, missing[:1])), None)
        found = {i: found_elsewhere(given, images.root, inside) for i, given in _at(images.paths, rows, missing)}
        moved = {int(rows[i]): place for i, place in found.items() if place is not None}
        lost = np.array([int(rows[i]) for i, place in found.items() if place is None], np.int64)
        for row in lost.tolist():
            detail = "there is no such file" + (f" ({self.place(row, short=True)})" if self.are_values else "")
            where = str(images.sources(np.array([row]))[0]).replace("\0", "\\0")
            self.problems.append(Problem(where, "missing_image", detail, row))
        if not moved:
            return images
        row, place = next(iter(moved.items()))
        given = images.paths[row].as_py()
        self._say("read_as", f"{len(moved)} paths are not there as written: {given!r} is read as {place}")
        new = images.paths.to_pylist()
        for row, place in moved.items():
            new[row] = place
        return dataclasses.replace(images, paths=pa.array(new, pa.large_string()))


def _composed(name: str) -> str:
    """The name of a folder as that of a class."""
    return unicodedata.normalize("NFC", name.strip())


def _at(paths: Any, rows: NDArray[np.int64], chosen: Sequence[int]) -> list[tuple[int, str]]:
    """(i, path) of some of the rows."""
    return list(
        zip(chosen, paths.take(pa.array(rows[list(chosen)] if chosen else [], pa.int64())).to_pylist(), strict=True)
    )


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
