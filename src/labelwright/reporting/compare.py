"""`compare`: two runs side by side: what differs in settings, scores and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelwright.arguments import check_arguments
from labelwright.errors import DataError
from labelwright.run_folder import Run

SCORES = ("accuracy", "balanced_accuracy", "seen", "novel", "unseen", "harmonic", "trust_ece")
IGNORED = ("resolved", "settings", "set", "found", "images_per_second")


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
      names: of the two folders.
      settings: setting -> its two values, of those that differ.
      scores: score -> its two values, None where a run has none.
      n_common, n_changed: images that both labelled, and those of them that got another label.
      changed: rows of the latter (id, the two labels, the two trusts), those first that both are surest of.
      pairs: (label in the first, label in the second, images), most frequent first.
      notes: what to bear in mind, as that the test images differ.
    """

    names: tuple[str, str]
    settings: Mapping[str, tuple[Any, Any]]
    scores: Mapping[str, tuple[float | None, float | None]]
    n_common: int
    n_changed: int
    changed: tuple[tuple[str, str, str, float | None, float | None], ...]
    pairs: tuple[tuple[str, str, int], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return asdict(self)


@check_arguments
def compare(first: str | Path, second: str | Path) -> Comparison:
    """What differs between two finished runs.

    Args: first, second: run folders.
    Raises: DataError if one has not finished, or is one of `pretrain`.

    Example:
      >>> import tempfile; folders = [Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())]
      >>> for folder, score in zip(folders, (0.5, 0.75)):
      ...     Run(folder).write_json("summary.json", {"n_classes": 2, "test": {"accuracy": score}})
      >>> compare(*folders).scores
      {'accuracy': (0.5, 0.75)}
    """
    runs = Run(first), Run(second)
    for run in runs:
        if "n_classes" not in run.summary:
            raise DataError(f"{run.path} holds a pretrained backbone, which has no labels", fix="give runs of fit")
    flat = [_flat(run.config) for run in runs]
    settings = {key: tuple(f.get(key) for f in flat) for key in {**flat[0], **flat[1]}}
    scores = {key: tuple(run.scores.get(key) for run in runs) for key in SCORES}
    estimated = tuple((run.summary.get("trust") or {}).get("estimated") for run in runs)
    scores |= {"labels right, estimated": estimated}
    notes = []
    if runs[0].data.get("test_fingerprint") != runs[1].data.get("test_fingerprint"):
        notes.append("the test images differ, so scores on them are not of the same images")
    if runs[0].data.get("fingerprint") != runs[1].data.get("fingerprint"):
        notes.append("the training images or their labels differ")
    was, now = _labels_of(runs[0]), _labels_of(runs[1])
    common = [key for key in was if key in now]
    moved = [key for key in common if was[key][0] != now[key][0]]
    rows = [(key, was[key][0], now[key][0], was[key][1], now[key][1]) for key in moved]
    rows.sort(key=lambda row: -min(row[3] or 0.0, row[4] or 0.0))
    pairs = Counter((row[1], row[2]) for row in rows).most_common()
    return Comparison(
        names=(str(first), str(second)),
        settings={key: (a, b) for key, (a, b) in sorted(settings.items()) if a != b},
        scores={key: (a, b) for key, (a, b) in scores.items() if a is not None or b is not None},
        n_common=len(common),
        n_changed=len(moved),
        changed=tuple(rows),
        pairs=tuple((a, b, n) for (a, b), n in pairs),
        notes=tuple(notes),
    )


def _labels_of(run: Run) -> dict[str, tuple[str, float | None]]:
    """Id -> label and trust."""
    if run.labels is None:
        return {}
    columns = (run.labels[name].to_pylist() for name in ("id", "label", "trust"))
    return {key: (str(label), trust) for key, label, trust in zip(*columns, strict=True)}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as given, those that were resolved and those of the method in their place."""
    resolved = config.get("resolved") or {}
    own = resolved.get("settings") or {}
    found = {**config, **resolved, **own}
    return {key: value for key, value in found.items() if key not in IGNORED}
