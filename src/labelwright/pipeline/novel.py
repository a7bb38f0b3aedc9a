"""Classes beyond the named ones in a run: how many, what they are called until they are named, how they look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelwright.data.prepare import Prepared
from labelwright.data.situation import novel_range
from labelwright.data.table import LabelTable
from labelwright.errors import ConfigError
from labelwright.labels.chunks import each_class_alike, evenly_spread
from labelwright.labels.n_novel import estimate_n_novel
from labelwright.labels.unlike import Unlike, unlike_labelled
from labelwright.run_folder import Run
from labelwright.train.predict import BATCH
from labelwright.train.processes import autocast_dtype
from labelwright.train.progress import track
from labelwright.types import ViewSource

NOTICED_ROWS = 50_000  # labelled and unlabelled images, each, by which it is judged whether many are of no class
EVIDENCE_FILE = "novel.json"  # of a run folder: the estimate, so that a resumed run does not make it again


def count_novel(
    run: Run,
    table: LabelTable,
    asked: int | str | None,
    feats: Callable[[], Tensor],
    *,
    seed: int,
    writes: bool = True,
) -> tuple[int, dict[str, Any] | None]:
    """How many novel classes a run learns, and the evidence: None where the user gave the number.

    Args:
      run: its folder; an estimate is kept there, and read from there by a run that goes on.
      asked: a number, "auto", a range such as "3-12", or None.
      feats: makes the features [N, D] of the training images; called only where there is something to estimate.
      seed: of the estimate.
      writes: whether this process writes the file.

    Raises: DataError, ConfigError: see labels.n_novel.estimate_n_novel.
    """
    found = novel_range(asked)
    if found is None or found[0] == found[1]:
        return (0 if found is None else found[0]), None
    path = run.path / EVIDENCE_FILE
    if path.exists():
        facts = run.read(EVIDENCE_FILE)
        return int(facts["n_novel"]), facts
    labels = torch.from_numpy(table.labels.astype(np.int64))
    seen = len(table.class_names)
    facts = estimate_n_novel(feats(), labels, n_seen=seen, fewest=found[0], most=found[1], seed=seed)
    if writes:
        run.write_json(EVIDENCE_FILE, facts)
    return int(facts["n_novel"]), facts


def units_of(table: LabelTable) -> Tensor:
    """[N] int64: images of one number are not independent: of one group; else each has its own."""
    return torch.arange(len(table)) if table.groups is None else torch.from_numpy(table.groups)


def unlike_of(table: LabelTable, feats: Callable[[Tensor], Tensor]) -> Unlike:
    """Images of a table that look unlike the labelled ones; nothing where a class is named that has no label.

    Those of such a class look unlike all labelled ones as well.

    Args: feats: reads features [n, D] of rows [n] int64.
    """
    labels, units = torch.from_numpy(table.labels).long(), units_of(table)
    if not (table.counts() > 0).all() or bool((labels >= 0).all()):
        return Unlike()
    known, others = (some.nonzero().flatten() for some in (labels >= 0, labels < 0))
    known = each_class_alike(labels, known, max(NOTICED_ROWS, 2 * len(table.class_names)), seed=0)
    rows = torch.cat([known, evenly_spread(others, NOTICED_ROWS)])
    return unlike_labelled(feats(rows), labels[rows], groups=units[rows])


def novel_notice(unlike: Unlike, *, none_found: bool = False) -> list[str]:
    """What to say where unlabelled images look unlike every labelled one; empty where they do not.

    Args: none_found: whether new classes were looked for.

    Example:
      >>> novel_notice(Unlike(0.4, 0.25))[0][:72]
      'about 40% of the unlabelled images (25% at least) look unlike every labe'
      >>> novel_notice(Unlike())
      []
    """
    if not unlike.share:
        return []
    least = f" ({unlike.least:.0%} at least)" if unlike.least else ""
    if unlike.is_elsewhere:
        return [
            f"about {unlike.share:.0%} of the unlabelled images{least} look unlike every labelled one, as of another "
            "place or camera: their trust is that of images like the labelled ones, and may be far too high; label or "
            "verify some of them (labelwright verify-sample)"
        ]
    if none_found:
        return [
            f"no new class was found, but about {unlike.share:.0%} of the unlabelled images{least} look unlike every "
            "labelled one, and their trust is lowered: give about how many classes are new with --novel N"
        ]
    return [
        f"about {unlike.share:.0%} of the unlabelled images{least} look unlike every labelled one, and their trust is "
        "lowered: --novel auto looks for new classes; if labels are of other places or series, --group COLUMN"
    ]


def with_novel(prepared: Prepared, n_novel: int) -> Prepared:
    """The same images with ``n_novel`` more classes in their tables, which no label has."""
    named, new = prepared.train.table.class_names, [f"novel-{i + 1}" for i in range(n_novel)]
    if clash := set(new) & set(named):
        raise ConfigError(f"a class is named {min(clash)!r}, as discovered ones will be", fix="rename that class")
    names = (*named, *new)
    sources = (prepared.train, prepared.test)
    train, test = (s and replace(s, table=replace(s.table, class_names=names)) for s in sources)
    assert train is not None
    return replace(prepared, train=train, test=test)


def feats_of(net: Any, prepared: Prepared, device: torch.device, precision: str) -> Tensor:
    """Backbone features [N, D] float32 of the training images, un-augmented, on the CPU."""
    return feats_of_views(net, prepared.train.views(prepared.view), device, precision)


def feats_of_views(
    net: Any, views: ViewSource, device: torch.device, precision: str, *, rows: Tensor | None = None
) -> Tensor:
    """The same of rows of any views; None: all."""
    net = net.to(device).eval()
    dtype, found = autocast_dtype(device, precision), []
    for some in track(torch.split(torch.arange(views.n_rows) if rows is None else rows, BATCH), "features"):
        x = views.batch(some, "clean", seed=0, device=device)
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            found.append(net.features(x).float().cpu())
    return torch.cat(found)
