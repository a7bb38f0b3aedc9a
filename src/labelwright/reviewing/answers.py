"""What a person answered about the images of a run: one line each in a file that only grows.

A line is on the disk before its answer counts as given. The state is what the lines say, read in order, so several
pages and several processes may answer at once, and a kill loses nothing that was acknowledged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
from filelock import FileLock

from labelwright.errors import ConfigError, DataError
from labelwright.parsing import json_of
from labelwright.spreadsheet import write_csv

ANSWERS_FILE = "answers.jsonl"  # of a run folder
NO_CLASS = ""  # label of an image that belongs to no class

Kind = Literal["assign", "confirm", "stranger", "rename", "merge", "drop", "undo"]
OF_CLASSES = ("rename", "merge", "drop")
"""Kinds that are about classes and not about images."""


@dataclass(frozen=True)
class Answer:
    """One line."""

    number: int  # of the line, from 0
    kind: Kind  # what was done; assign, confirm and stranger differ in how the labels came about only
    # id -> label of each image it is about; `NO_CLASS` for an image of no class
    labels: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # of rename OLD NEW [OLD NEW ...], merge KEPT OTHER ... or drop NAME ...
    undoes: int | None = None  # number of the answer that an undo takes back
    key: str = ""  # any text that tells the same answer, sent once more, from another one
    at: str = ""  # time, UTC


class AnswerLog:
    """The file of answers of a run, which need not exist, and what they come to.

    Raises: DataError naming a line that cannot be read.

    Example:
      >>> import tempfile
      >>> log = AnswerLog(Path(tempfile.mkdtemp()) / ANSWERS_FILE)
      >>> first = log.append("assign", labels={"a.png": "cat", "b.png": "cat"})
      >>> _ = log.append("stranger", labels={"b.png": NO_CLASS})
      >>> log.labels, log.undoable
      ({'a.png': 'cat', 'b.png': ''}, [0, 1])
      >>> _ = log.append("undo", undoes=0)
      >>> AnswerLog(log.path).labels
      {'b.png': ''}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[Answer] = []
        self.labels: dict[str, str] = {}
        self._read_to = 0  # bytes
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self.catch_up()

    @property
    def undoable(self) -> list[int]:
        """Numbers of the answers that can be taken back, in order."""
        gone = {answer.undoes for answer in self.answers}
        return [answer.number for answer in self.answers if answer.kind != "undo" and answer.number not in gone]

    def catch_up(self) -> None:
        """Read the lines that were added since."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < self._read_to:  # somebody removed the file, or lines of it
            self.answers, self.labels, self._read_to = [], {}, 0
        if not size:
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a last line cut short by a kill was never acknowledged
        for line in whole.splitlines():
            self._take(_parsed(line, len(self.answers), self.path))
        self._read_to += len(whole)

    def append(
        self,
        kind: Kind,
        *,
        labels: Mapping[str, str] | None = None,
        names: Sequence[str] = (),
        undoes: int | None = None,
        key: str = "",
    ) -> Answer:
        """Write an answer; it is on the disk when this returns. One whose key is known already is not written again.

        Raises: ConfigError if it takes back what is not there; OSError if it cannot be written.
        """
        with self._lock:
            self.catch_up()
            if key and (same := [answer for answer in self.answers if answer.key == key]):
                return same[0]
            if kind == "undo" and undoes not in self.undoable:
                raise ConfigError(f"there is no answer {undoes} to take back", fix="load the page again")
            at = datetime.now(UTC).isoformat(timespec="seconds")
            answer = Answer(len(self.answers), kind, dict(labels or {}), tuple(names), undoes, key, at)
            content = {
                name: value for name, value in vars(answer).items() if name != "number" and value not in ({}, (), None)
            }
            _append(self.path, json.dumps(content, ensure_ascii=False).encode() + b"\n", self._read_to)
            self.catch_up()
            return answer

    def _take(self, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.kind in ("undo", *OF_CLASSES):
            self.labels = _labels_after(self.answers)
        else:
            self.labels.update(answer.labels)


def _append(path: Path, line: bytes, size: int) -> None:
    """Add a line after the first ``size`` bytes, which are all whole lines, and wait for the disk."""
    is_new = not path.exists()
    with path.open("ab") as file:
        if file.tell() > size:
            file.truncate(size)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new and hasattr(os, "O_DIRECTORY"):  # the name of a new file reaches the disk with its folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _parsed(line: bytes, number: int, path: Path) -> Answer:
    try:
        found = json_of(line)
        answer = Answer(number, **{**found, "names": tuple(found.get("names", ()))})
        assert answer.kind in get_args(Kind)
        assert all(isinstance(text, str) for pair in answer.labels.items() for text in pair)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(f"{path} line {number + 1} is no answer", fix="remove that line, or the file") from error
    return answer


def _labels_after(answers: Sequence[Answer]) -> dict[str, str]:
    """id -> label after all answers.

    A class that is renamed keeps its answers under the new name, and gets them back when that is undone; what was
    answered between a merge and its undo stays with the class that was kept. Answers of a class that is dropped go.
    """
    gone, found = {answer.undoes for answer in answers}, dict[str, str]()
    for answer in answers:
        new: dict[str, str] = {}
        if answer.kind == "rename":
            new = dict(zip(answer.names[::2], answer.names[1::2], strict=True))
        elif answer.kind == "drop" and answer.number not in gone:
            found = {key: label for key, label in found.items() if label not in answer.names}
        elif answer.kind == "merge" and answer.number not in gone:
            new = dict.fromkeys(answer.names[1:], answer.names[0])
        elif answer.undoes is not None and answers[answer.undoes].kind == "rename":
            old = answers[answer.undoes].names
            new = dict(zip(old[1::2], old[::2], strict=True))
        elif answer.number not in gone:
            found |= answer.labels
        if new:
            found = {key: new.get(label, label) for key, label in found.items()}
    return found


def write_corrections(labels: Mapping[str, str], path: Path) -> None:
    """Write id -> label as a CSV file with the columns id and label, which is empty for an image of no class.

    Example:
      >>> import tempfile; path = Path(tempfile.mkdtemp()) / "corrections.csv"
      >>> write_corrections({"a.png": "cat", "b.png": NO_CLASS}, path); path.read_text().splitlines()
      ['"id","label"', '"a.png","cat"', '"b.png",""']
    """
    table = pa.table({"id": pa.array(labels.keys(), pa.string()), "label": pa.array(labels.values(), pa.string())})
    write_csv(table, path)
