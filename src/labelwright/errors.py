"""What labelwright raises when the user, not the code, has to change something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the user's data: where it is, what it is, what to do about it.

    Attributes:
      where: path of a file, ``row 17``, or a class name: what the user can go and look at.
      kind: short machine-readable name, one of data.table.PROBLEM_KINDS.
      detail: one sentence: what is wrong.
      row: position of the image in the table as read, or None if the problem is not one row's.
    """

    where: str
    kind: str
    detail: str
    row: int | None = None


class LabelwrightError(Exception):
    """Base of every error a user can cause; the command line prints it and exits with ``exit_code``.

    Example:
      >>> LabelwrightError("no such folder: photos", fix="check the path").fix
      'check the path'
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class ConfigError(LabelwrightError):
    """A setting that does not exist or cannot have this value."""


class DataError(LabelwrightError):
    """Data that cannot be used as it is; carries every problem found, not only the first."""

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.problems = tuple(problems)


class OfflineError(LabelwrightError):
    """A model or data set asked for by name is neither on this machine nor within reach."""


class TrainingError(LabelwrightError):
    """Training or answering cannot go on: a loss, a weight or an answer is no longer a number."""

    exit_code = 1


class DiskError(LabelwrightError):
    """A file could not be written: the disk is full or read-only, or the folder is gone.

    Attributes:
      reason: in the words of the operating system.
    """

    exit_code = 1

    def __init__(self, message: str, *, reason: str, fix: str) -> None:
        super().__init__(message, fix=fix)
        self.reason = reason
