"""What a folder holds: its images and folders, and by name whatever is passed over."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from labelwright.data.images import IMAGE_SUFFIXES
from labelwright.data.layouts import LABELS_FILE, LEFT_BEHIND, TABLE_SUFFIXES
from labelwright.errors import Problem

_SILENT_NAMES = frozenset({"thumbs.db", "desktop.ini"})  # in every folder of some systems; never data


def entries(folder: str | Path, problems: list[Problem]) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, but for what is passed over; that is added to ``problems``, each with its reason.

    Passed over are folders that programs leave behind, hidden folders and images, links that lead back to a folder
    above them, and names that are not UTF-8. A folder that may not be listed is empty, and a problem.
    """
    try:
        with os.scandir(folder) as found:
            listed = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(Problem(shown(folder), "unreadable_folder", f"{error.strerror}: what it holds is not seen"))
        return []
    kept = []
    for entry in listed:
        if entry.name.lower() in _SILENT_NAMES:
            continue
        kind, reason = _passed_over(entry, folder)
        if reason:
            problems.append(Problem(shown(entry.path), kind, reason))
        elif not entry.name.startswith("."):
            kept.append(entry)
    return kept


def _passed_over(entry: os.DirEntry[str], folder: str | Path) -> tuple[str, str]:
    """Why an entry is not looked at: kind of problem and sentence; both empty if it is, or needs no word."""
    if not entry.name.isascii() and shown(entry.name) != entry.name:
        return "unreadable_name", "the name is not UTF-8 text: rename it, as convmv does"
    if entry.is_symlink():
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            return "skipped_folder", "a link to itself" if error.errno == errno.ELOOP else ""
        if stat.S_ISDIR(mode):
            above = Path(folder).absolute()
            if os.path.realpath(entry.path) in {os.path.realpath(each) for each in (above, *above.parents)}:
                return "skipped_folder", "a link to a folder above it"
    is_folder = entry.is_dir()
    if is_folder and entry.name.lower() in LEFT_BEHIND:
        return "skipped_folder", f"left behind by {LEFT_BEHIND[entry.name.lower()]}"
    if entry.name.startswith(".") and (is_folder or _suffix(entry.name) in IMAGE_SUFFIXES):
        return "skipped_folder", f"a hidden {'folder' if is_folder else 'file'}: its name begins with a dot"
    return "", ""


def is_image_file(entry: os.DirEntry[str], problems: list[Problem]) -> bool:
    """Whether a file has the name of an image; others, and what is no file, are added to ``problems``."""
    suffix = _suffix(entry.name)
    detail = f"{suffix} files are not read" if suffix else "a file without a suffix"
    if entry.name == LABELS_FILE:
        detail = "the folders say what the labels are; give its path to read it"
    elif suffix in TABLE_SUFFIXES:
        detail = "a table beside images is not read; give its path to read it"
    if suffix in IMAGE_SUFFIXES:
        try:
            if entry.is_file() or stat.S_ISREG(entry.stat().st_mode):
                return True
            detail = "a pipe, a device or something else that is not a file"
        except OSError:  # a link that leads nowhere: a missing image
            return True
    problems.append(Problem(entry.path, "unsupported_file", detail))
    return False


def shown(path: str | Path) -> str:
    r"""A path as text: bytes that are not UTF-8 as escapes.

    Example:
      >>> shown("caf\udce9.png")
      'caf\\xe9.png'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (Path is slow)
