"""The answer of a run beside the obvious ones, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "left_out": "labelled images left out",
    "test": "test images",
    "unlabelled": "unlabelled images",
}
"""What an answer is scored on: balanced accuracy, of unlabelled images the share that is right."""


def beside_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """What there are scores of, keys of `COLUMNS`, and a row for each answer; no rows if there is nothing to compare.

    Returns: the keys, and dicts of title, is_answer and the keys.

    Example:
      >>> beside = {"la": {"title": "LA", "left_out": 0.9, "test": None, "unlabelled": None, "seconds": 1.0},
      ...           "ce": {"title": "CE", "left_out": 0.8, "test": None, "unlabelled": None, "seconds": 1.0}}
      >>> beside_rows({"reference": beside, "answer": {"name": "la"}})[1][0]
      {'title': 'LA', 'is_answer': True, 'left_out': 0.9}
    """
    found = summary.get("reference") or {}
    if len(found) < 2:
        return [], []
    values = {
        name: {**each, "test": None if each["test"] is None else each["test"].get("balanced_accuracy")}
        for name, each in found.items()
    }
    keys = [key for key in COLUMNS if any(each[key] is not None for each in values.values())]
    rows = [
        {
            "title": each["title"],
            "is_answer": name == summary["answer"]["name"],
            **{key: each[key] for key in keys},
        }
        for name, each in values.items()
    ]
    return (keys, rows) if keys else ([], [])
