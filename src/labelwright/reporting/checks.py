"""Which images a person should look at, and why: one list for the pictures of a run and for its report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

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
DOUBT = 0.995  # trust from which a label, shown as 100%, is not doubtful
WANTED = ("id", "label", "trust", "runner_up", "source", "decision", "candidates", "outside_candidates")


def to_check(
    labels: pa.Table | None,
    summary: Mapping[str, Any],
    *,
    changed: Collection[str] = (),
    mistakes: Sequence[str] = (),
    per_tab: int = PER_TAB,
) -> dict[str, list[str]]:
    """Ids of the images to look at by reason, keys of `TABS`, the most urgent first; no empty lists.

    Args:
      summary: summary.json, of which ``audit`` and ``strangers`` are used where there are any.
      changed: ids of images whose label is another class than first guessed.
      mistakes: ids of test images that were got wrong, the worst first.

    Example:
      >>> rows = {"id": ["1", "2", "3"], "label": ["a", "b", "a"], "trust": [0.4, 0.9, 0.2], "runner_up": ["b"] * 3}
      >>> to_check(pa.table(rows | {"source": ["predicted", "predicted", "given"]}), {}, changed={"2"})
      {'doubt': ['1', '2'], 'suspect': ['3'], 'changed': ['2']}
    """
    audit, strangers = summary.get("audit") or {}, summary.get("strangers") or {}
    found: dict[str, list[str]] = {
        "suspect": [str(row["id"]) for row in audit.get("suspected") or []],
        "stranger": [str(key) for key in strangers.get("rows") or []],
        "copy": list(dict.fromkeys(str(key) for pair in audit.get("duplicates") or [] for key in pair[:2])),
        "mistake": list(mistakes),
    }
    if labels is not None and {"trust", "source"} <= set(labels.column_names):
        trust = np.nan_to_num(labels["trust"].to_numpy().astype(float), nan=1.0)
        order = np.argsort(trust, kind="stable")
        given = is_given(labels)
        decided = labels["decision"] if "decision" in labels.column_names else None
        open_rows = ~given if decided is None else ~given & np.array(pc.not_equal(decided, "unknown"))
        is_changed = np.array(pc.is_in(labels["id"], pa.array(sorted(changed), labels["id"].type)))
        is_judged = audit.get("n_suspected", 0) is not None  # a network that learned the labels judges none
        doubtful = given & (trust < 0.5) & is_judged

        def ids(rows: NDArray[np.int64]) -> list[str]:
            return [str(each) for each in labels["id"].take(pa.array(rows[:per_tab])).to_pylist()]

        found["doubt"] = ids(order[(open_rows & (trust < DOUBT))[order]])
        found["suspect"] = found["suspect"] or ids(order[doubtful[order]])
        found["changed"] = ids(order[is_changed[order]])
        found["outside"] = ids(np.asarray(outside(labels, trust, given), np.int64))
    return {tab: found[tab][:per_tab] for tab in TABS if found.get(tab)}


def is_given(labels: pa.Table) -> NDArray[np.bool_]:
    """[N] bool: labels that came with the data, or that somebody looked at."""
    return np.array(pc.not_equal(labels["source"], "predicted"), dtype=bool)


def rows_of(labels: pa.Table, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Id -> the row of labels.parquet, of some images; the columns `WANTED`, None where the table has no such column.

    Example:
      >>> rows_of(pa.table({"id": ["1", "2"], "label": ["a", "b"]}), ["2"])["2"]["label"]
      'b'
    """
    some = labels.filter(pc.is_in(labels["id"], pa.array(ids, labels["id"].type)))
    return {row["id"]: {**dict.fromkeys(WANTED), **row} for row in some.to_pylist()}


def outside(labels: pa.Table, trust: NDArray[np.float64], given: NDArray[np.bool_]) -> list[int]:
    """Rows of predicted labels that are none of their candidates, then those whose candidates overruled the model.

    Args: labels.parquet, and of its N rows trust and whether the label was given.

    Returns: of each the surest first.

    Example:
      >>> table = {"label": ["a", "b", "a"], "candidates": ["a|b", "b|c", "b"], "outside_candidates": [0, 1, 1]}
      >>> outside(pa.table(table), np.array([0.9, 0.6, 0.8]), np.zeros(3, bool))
      [2, 1]
    """
    if "candidates" not in labels.column_names:
        return []
    columns = (labels[name].to_pylist() for name in ("label", "candidates", "outside_candidates"))
    rank = []
    for row, (label, named, is_outside) in enumerate(zip(*columns, strict=True)):
        is_out = named is not None and label not in named.split("|")
        if not given[row] and (is_out or is_outside):
            rank.append((not is_out, -trust[row], row))
    return [row for *_, row in sorted(rank)]
