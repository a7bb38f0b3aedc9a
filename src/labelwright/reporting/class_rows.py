"""One row per class, as tables and charts of a report show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labelwright.run_folder import Run


def class_rows(run: Run) -> list[dict[str, Any]]:
    """Per class: name, training images, recall, precision; most training images first.

    Returns: C rows with the keys name, count, recall, precision and zero_shot (recall by class names alone), shares 0
      to 1, None where the run does not say; no rows without recalls for all named classes.

    Example:
      >>> test = {"per_class": [1.0, 0.5], "precision": [0.75, None]}
      >>> run = Run("run", summary={"test": test}, data={"class_names": ["a", "b"], "train_counts": [1, 9]})
      >>> [(row["name"], row["count"], row["recall"]) for row in class_rows(run)]
      [('b', 9, 0.5), ('a', 1, 1.0)]
    """
    recall, names, counts = run.test.get("per_class") or [], run.class_names, run.counts
    if not recall or len(names) != len(recall):
        return []
    precision = run.test.get("precision") or [None] * len(recall)
    is_counted = len(counts) == len(names) and (any(counts) or "zero_shot" not in run.summary)
    known: Sequence[int | None] = counts if is_counted else [None] * len(names)
    before = run.zero_shot.get("per_class") or [None] * len(recall)
    rows = [
        {"name": n, "count": c, "recall": r, "precision": p, "zero_shot": z}
        for n, c, r, p, z in zip(names, known, recall, precision, before, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row["count"] or 0))
