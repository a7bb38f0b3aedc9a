"""Which images a person should look at, and why: one list for the pictures of a run and for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

TABS: Mapping[str, tuple[str, str]] = {
    "doubt": ("Most doubtful", "one of the least certain labels"),
    "suspect": ("Suspected wrong labels", "the given label does not look right"),
    "changed": ("Changed from the first guess", "its first guess was another class"),
    "outside": ("Outside their candidates", "the label, or what the image alone says, is none of its candidates"),
    "stranger": ("Strangers", "it looks like none of the classes"),
    "copy": ("Duplicates", "another image is its copy"),
    "mistake": ("Test mistakes", "its known label and the answer differ"),
}
"""Key of a reason to look -> (heading of its tab, what it says of an image)."""

PER_TAB = 20
WANTED = ("id", "label", "trust", "runner_up", "source", "decision", "candidates", "outside_candidates")


def to_check(
    labels: pa.Table | None,
    summary: Mapping[str, Any],
    *,
    changed: Mapping[str, str] | None = None,
    mistakes: Sequence[str] = (),
    per_tab: int = PER_TAB,
) -> dict[str, list[str]]:
    """Ids of the images to look at by reason, keys of `TABS`, the most urgent first; no empty lists.

    Args:
      labels: labels.parquet.
      summary: summary.json, of which ``audit`` and ``strangers`` are used where there are any.
      changed: id -> the first guess, of images whose label is another one now.
      mistakes: ids of test images that were got wrong, the worst first.

    Example:
      >>> rows = {"id": ["1", "2", "3"], "label": ["a", "b", "a"], "trust": [0.4, 0.9, 0.2], "runner_up": ["b"] * 3}
      >>> to_check(pa.table(rows | {"source": ["predicted", "predicted", "given"]}), {}, changed={"2": "a"})
      {'doubt': ['1', '2'], 'suspect': ['3'], 'changed': ['2']}
    """
    rows = [] if labels is None else row_dicts(labels)
    by_trust = sorted(rows, key=lambda row: 1.0 if row["trust"] is None else row["trust"])
    audit, strangers = summary.get("audit") or {}, summary.get("strangers") or {}
    suspected = [str(row["id"]) for row in audit.get("suspected") or []]
    given = [row["id"] for row in by_trust if row["source"] == "given" and (row["trust"] or 0) < 0.5]
    known = {row["id"] for row in rows}
    found = {
        "doubt": [row["id"] for row in by_trust if row["source"] != "given" and row["decision"] != "unknown"],
        "suspect": suspected or given,
        "changed": [row["id"] for row in by_trust if row["id"] in (changed or {})],
        "outside": outside(rows),
        "stranger": [str(key) for key in strangers.get("rows") or [] if str(key) in known],
        "copy": list(dict.fromkeys(str(key) for pair in audit.get("duplicates") or [] for key in pair[:2])),
        "mistake": list(mistakes),
    }
    return {tab: ids[:per_tab] for tab, ids in found.items() if ids}


def row_dicts(labels: pa.Table) -> list[dict[str, Any]]:
    """Rows of labels.parquet with the columns `WANTED`, None where the table has no such column.

    Example:
      >>> row_dicts(pa.table({"id": ["1"], "label": ["a"]}))[0]["trust"] is None
      True
    """
    columns = {name: labels[name].to_pylist() for name in WANTED if name in labels.column_names}
    none = [None] * labels.num_rows
    return [
        dict(zip(WANTED, values, strict=True))
        for values in zip(*(columns.get(name, none) for name in WANTED), strict=True)
    ]


def outside(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of predicted labels that are none of their candidates, then of those whose candidates overruled the model.

    Of each the surest first.

    Example:
      >>> keys = ("id", "label", "trust", "source", "candidates", "outside_candidates")
      >>> rows = [("1", "a", 0.9, "predicted", "a|b", False), ("2", "b", 0.6, "predicted", "b|c", True)]
      >>> rows += [("3", "a", 0.8, "predicted", "b", True)]
      >>> outside([dict(zip(keys, row)) for row in rows])
      ['3', '2']
    """
    rank = []
    for row in rows:
        named = row.get("candidates")
        is_out = named is not None and row["label"] not in named.split("|")
        if row["source"] != "given" and (is_out or row.get("outside_candidates")):
            rank.append((not is_out, -(row["trust"] or 0), row["id"]))
    return [key for *_, key in sorted(rank)]
