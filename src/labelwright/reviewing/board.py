"""The images of a run as the page shows them: orders to go through them in, and what is known of each."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from labelwright.errors import ConfigError, DataError
from labelwright.reviewing.answers import ANSWERS_FILE, NO_CLASS, AnswerLog, Kind
from labelwright.run_folder import Run

VIEWS: Mapping[str, tuple[str, str]] = {
    "next": ("Suggested", "what teaches most first: doubtful, typical of many others, spread over the classes"),
    "class": ("By class", "class by class, the least certain label first"),
    "group": ("Look-alikes", "groups of images that look alike, the largest first"),
    "doubt": ("Doubtful", "predicted labels, the least certain first"),
    "suspect": ("Suspected", "given labels that the classifier disagrees with, the least likely first"),
    "stranger": ("Strangers", "images that look like none of the classes, the strangest first"),
    "answered": ("Answered", "what you answered, the newest first"),
}
"""Key of an order -> (its name, what comes first)."""

MAX_ORDERS = 32  # orders kept for pages of them that are still to come
MAX_ITEMS = 1000  # images described at once

Rows = npt.NDArray[np.int64]


class Board:
    """A finished run under review. Methods may be called from several threads.

    Raises: DataError if it is not finished, or a file of it cannot be read.
    """

    def __init__(self, run: Path) -> None:
        self.path = run
        self.log = AnswerLog(run / ANSWERS_FILE)
        self._lock = threading.RLock()
        self._orders: OrderedDict[int, Rows] = OrderedDict()
        self._numbers = itertools.count(1)
        self.suggested: Rows | None = None  # every row, what teaches most first; None until it is known
        self.is_reading = False  # whether that is under way
        self.groups: Rows | None = None  # [N] number of the group of look-alikes of each row
        self._is_held = False
        self.load()

    def load(self) -> None:
        """Read the run again: after its classes changed."""
        run = Run(self.path)
        self._read = self._on_disk()
        self.summary, rows = run.summary, run.labels
        if rows is None:
            raise DataError(f"{self.path} has no labels.parquet", fix="give the run folder of a finished fit")
        model = run.read("model/config.json")
        with self._lock:
            self.class_names: list[str] = [str(name) for name in model["class_names"]]
            self.n_seen = int(model.get("n_seen", len(self.class_names)))  # classes that labels name; then discovered
            self._place = {name: c for c, name in enumerate(self.class_names)}
            self.ids = rows["id"].combine_chunks()
            self.label, self.runner_up = (self._codes(rows[key]) for key in ("label", "runner_up"))
            self.trust = np.nan_to_num(_floats(rows["trust"]))
            self.is_given = np.asarray(
                pc.equal(rows["source"], "given").combine_chunks().to_numpy(zero_copy_only=False)
            )
            self.strangeness = _floats(rows["strangeness"]) if "strangeness" in rows.column_names else None
            self.decision = np.array(rows["decision"].to_pylist()) if "decision" in rows.column_names else None
            self._row_of: dict[str, int] | None = None
            self._orders.clear()
            if self.suggested is not None and len(self.suggested) != self.n_rows:  # another run in its place
                self.suggested = self.groups = None
            digest = hashlib.blake2b(json.dumps(self.class_names).encode(), digest_size=8)
            digest.update(self.label.tobytes())
            self.version = digest.hexdigest()  # of classes and labels: what a page has to show for its answers to count

    def _on_disk(self) -> list[tuple[int, int, int]]:
        files = [self.path / name for name in ("labels.parquet", "model/config.json")]
        found = [file.stat() for file in files if file.exists()]
        return [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stay as it is while the block changes the run, and read it again after that."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self.catch_up()

    def catch_up(self) -> None:
        """Read what was added to the answers since, and the run, if another command changed its classes."""
        with self._lock:
            self.log.catch_up()
            if not self._is_held and self._on_disk() != self._read:
                self.load()

    def _codes(self, column: Any) -> npt.NDArray[np.int32]:
        """Class of each row, -1 = none of them."""
        found = column.combine_chunks().dictionary_encode()
        at = np.array([*(self._place.get(name, -1) for name in found.dictionary.to_pylist()), -1], np.int32)
        codes: npt.NDArray[np.int32] = at[np.asarray(found.indices.fill_null(-1))]
        return codes

    @property
    def n_rows(self) -> int:
        """N images."""
        return len(self.ids)

    def row_of(self, key: str) -> int | None:
        """Row of an id; None if there is no such image."""
        with self._lock:
            if self._row_of is None:
                self._row_of = {key: row for row, key in enumerate(self.ids.to_pylist())}
            return self._row_of.get(key)

    # ---- what a person answered --------------------------------------------------------------------------------------

    def answer(
        self,
        kind: Kind,
        rows: Sequence[int],
        label: int | None,
        key: str,
        *,
        seen: Sequence[int] | None = None,
        version: str | None = None,
    ) -> dict[str, Any]:
        """Write down an answer about some rows.

        Args:
          kind: "assign" gives them the class ``label``, "confirm" the label that was seen, "stranger" none.
          rows: of the run.   label: class, for assign alone.   key: see `Answer`.
          seen: class of each row as it was shown, -1 = none; None = as it is now, answers of others included.
          version: of the board as it was shown; None = as it is.

        Raises: ConfigError for rows, classes or kinds that are not there, and where the classes or labels have changed
          since they were shown: the answer was about others.
        """
        with self._lock:
            self.catch_up()
            if version not in (None, self.version):
                if key and (same := [answer for answer in self.log.answers if answer.key == key]):
                    return {"number": same[0].number, **self.progress()}
                raise ConfigError(
                    "the classes changed after this page showed them, so the last answer was not taken",
                    fix="the page shows them anew: answer again",
                )
            if not rows or not all(0 <= row < self.n_rows for row in rows):
                raise ConfigError(f"rows are 0 to {self.n_rows - 1}", fix="load the page again")
            if kind not in ("assign", "confirm", "stranger"):
                raise ConfigError(f"{kind!r} is no answer about images", fix="assign, confirm or stranger")
            if kind == "assign" and (label is None or not 0 <= label < len(self.class_names)):
                raise ConfigError(f"there is no class {label}", fix="load the page again")
            if seen is not None and not (len(seen) == len(rows) and all(-1 <= c < len(self.class_names) for c in seen)):
                raise ConfigError("seen is a class for each row, or -1", fix="load the page again")
            names = [*self.class_names, NO_CLASS]
            one = -1 if label is None or kind == "stranger" else label
            given = [one] * len(rows) if kind != "confirm" else self._current(rows) if seen is None else seen
            keys = self.ids.take(pa.array(rows)).to_pylist()
            labels = {key: names[code] for key, code in zip(keys, given, strict=True)}
            written = self.log.append(kind, labels=labels, key=key)
            return {"number": written.number, **self.progress()}

    def undo(self, number: int, key: str) -> dict[str, Any]:
        """Take an answer about images back; returns the rows that it was about.

        Raises: ConfigError if it is not there, or was taken back.
        """
        with self._lock:
            self.log.append("undo", undoes=number, key=key)
            keys = self.log.answers[number].labels
            rows = [row for row in map(self.row_of, keys) if row is not None]
            return {"items": self.items(np.array(rows[:MAX_ITEMS], np.int64)), **self.progress()}

    def progress(self) -> dict[str, Any]:
        """How many images are answered, and which answers can be taken back."""
        labels = self.log.labels
        return {"n_answered": len(labels), "n_answers": len(self.log.answers), "undoable": self.log.undoable[-200:]}

    def _current(self, rows: Sequence[int]) -> list[int]:
        """Class of rows: as answered, else as the run has it; -1 for none."""
        keys = self.ids.take(pa.array(rows, pa.int64())).to_pylist()
        answers = self.log.labels
        return [
            self._place.get(answers[key], -1) if key in answers else int(self.label[row])
            for key, row in zip(keys, rows, strict=True)
        ]

    # ---- what the page asks for --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The run, its classes and their sizes, the orders there are, and how far the answers are."""
        with self._lock:
            self.catch_up()
            counts = np.bincount(self.label[self.label >= 0], minlength=len(self.class_names))
            classes = [
                {"name": name, "n": int(n), "discovered": c >= self.n_seen}
                for c, (name, n) in enumerate(zip(self.class_names, counts, strict=True))
            ]
            views = [
                {"key": key, "title": title, "says": says, "missing": self._missing(key)}
                for key, (title, says) in VIEWS.items()
            ]
            return {
                "run": self.path.resolve().name,
                "version": self.version,
                "n": self.n_rows,
                "classes": classes,
                "views": views,
            } | self.progress()

    def _missing(self, view: str) -> str:
        """Why there is no such order; empty if there is."""
        if view == "group" and self.groups is None:
            return "the features are not read yet" if self.is_reading else "this run has no stored features"
        if view == "suspect" and not len(self._suspected()):
            return "no given label is suspected"
        if view == "stranger" and not len(self._strangers()):
            return "this run looked for no strangers, or found none"
        return ""

    def _suspected(self) -> Rows:
        listed = [str(row["id"]) for row in (self.summary.get("audit") or {}).get("suspected") or []]
        first = [row for row in map(self.row_of, listed) if row is not None] if listed else []
        rows = np.flatnonzero(self.is_given & (self.trust < 0.5))
        rest = rows[np.argsort(self.trust[rows], kind="stable")]
        return np.concatenate([np.array(first, np.int64), rest[~np.isin(rest, first)]])

    def _strangers(self) -> Rows:
        if self.strangeness is not None:
            rows = np.flatnonzero(np.isfinite(self.strangeness))
            return rows[np.argsort(-self.strangeness[rows], kind="stable")]
        listed = [str(key) for key in (self.summary.get("strangers") or {}).get("rows") or []]
        found = [row for row in map(self.row_of, listed) if row is not None] if listed else []
        unknown = [] if self.decision is None else np.flatnonzero(self.decision == "unknown").tolist()
        return np.array(list(dict.fromkeys([*found, *unknown])), np.int64)

    def order(self, view: str, *, label: int | None = None, is_open: bool = False) -> dict[str, Any]:
        """Begin to go through an order: its number, for `page`, and how many images it has.

        It stays as it is while answers come in.

        Args:
          view: of VIEWS.   label: this class alone; None: all.   is_open: leave out what is answered.

        Raises: ConfigError for an order or class that is not there.
        """
        with self._lock:
            self.catch_up()
            if view not in VIEWS or not (label is None or 0 <= label < len(self.class_names)):
                raise ConfigError(f"there is no order {view!r} of class {label}", fix=f"one of {', '.join(VIEWS)}")
            rows, code = self._ordered(view), self.label.copy()
            answers = {row: name for key, name in self.log.labels.items() if (row := self.row_of(key)) is not None}
            answered = np.fromiter(answers, np.int64, len(answers))
            code[answered] = [self._place.get(name, -1) for name in answers.values()]
            if view == "answered":
                rows = answered[::-1].copy()
            if label is not None:
                rows = rows[code[rows] == label]
            if is_open and view != "answered":
                rows = rows[~np.isin(rows, answered)]
            number = next(self._numbers)
            self._orders[number] = rows
            while len(self._orders) > MAX_ORDERS:
                self._orders.popitem(last=False)
            is_coming = view == "next" and self.is_reading and self.suggested is None
            return {"order": number, "n": len(rows), "coming": is_coming, "version": self.version}

    def _ordered(self, view: str) -> Rows:
        if view == "next" and self.suggested is not None:
            return self.suggested
        if view == "class":
            return np.lexsort((self.trust, np.where(self.label < 0, len(self.class_names), self.label)))
        if view == "group" and self.groups is not None:
            sizes = np.bincount(self.groups)
            return np.lexsort((self.trust, self.groups, -sizes[self.groups]))
        if view == "suspect":
            return self._suspected()
        if view == "stranger":
            return self._strangers()
        by_doubt = np.lexsort((self.trust, self.is_given))  # given labels last
        return by_doubt if view == "next" else by_doubt[: int((~self.is_given).sum())]

    def page(self, order: int, first: int, n: int) -> list[dict[str, Any]]:
        """What is known of the images at places first .. first + n - 1 of an order.

        Raises: ConfigError for an order that is no longer kept.
        """
        with self._lock:
            if order not in self._orders:
                raise ConfigError("this order is no longer kept", fix="load the page again")
            first = max(0, first)
            return self.items(self._orders[order][first : first + min(max(0, n), MAX_ITEMS)])

    def items(self, rows: Rows) -> list[dict[str, Any]]:
        """What is known of some images."""
        with self._lock:
            keys = self.ids.take(pa.array(rows)).to_pylist()
            answers = self.log.labels
            return [
                {
                    "row": row,
                    "id": key,
                    "label": int(self.label[row]),
                    "trust": round(float(self.trust[row]), 4),
                    "rather": int(self.runner_up[row]),
                    "given": bool(self.is_given[row]),
                    "answer": None if key not in answers else self._place.get(answers[key], -1),
                }
                for row, key in zip(rows.tolist(), keys, strict=True)
            ]


def _floats(column: Any) -> npt.NDArray[np.float64]:
    return np.asarray(column.combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False))
