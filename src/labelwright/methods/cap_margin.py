"""The margin scale of CAP chosen without labels: short pilot runs, judged by agreement with clusters and by balance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from labelwright.methods import cap
from labelwright.parsing import json_of
from labelwright.run_folder import write_text_atomically
from labelwright.train.loop import LoopOptions, train
from labelwright.types import BuildNet, Recipe, Task, ViewSource

SCALES = (0.0, 6.0, 9.0, 12.0, 14.0)  # tried; the paper's sweep is 9 to 14 (Fig. 8)
PILOT_EPOCHS = 10


def with_chosen_margin(
    cfg: cap.Config,
    task: Task,
    views: ViewSource,
    build_net: BuildNet,
    *,
    options: LoopOptions,
    folder: Path | None = None,
) -> cap.Config:
    """The settings with ``margin_scale="auto"`` replaced by the best of SCALES; any others as they are.

    Every scale is tried in a run of PILOT_EPOCHS epochs. The best has the highest agreement of pseudolabels with
    k-means clusters of the images, times the evenness of the pseudolabels against the expected shares (1 - total
    variation). No label of an unlabelled image is looked at.

    Args:
      cfg, task, views, build_net, options: as for train.loop.train.
      folder: where the choice is kept (margin_scale.json), so that a resumed run does not choose again.

    Source: our answer to open question 3 of arXiv 2505.02056.
    """
    if cfg.margin_scale != "auto":
        return cfg
    kept = None if folder is None else folder / "margin_scale.json"
    if kept is not None and kept.exists():
        return dataclasses.replace(cfg, margin_scale=json_of(kept.read_text(encoding="utf-8"))["chosen"])
    scores: dict[float, float] = {}
    quiet = dataclasses.replace(options, n_evaluations=0, show_progress=False)
    for scale in SCALES:
        pilot = dataclasses.replace(cfg, margin_scale=scale, epochs=min(PILOT_EPOCHS, cfg.epochs), patience_epochs=0)
        found = train(cast(Recipe, cap), pilot, task, views, build_net, options=quiet).state.memory["last"]
        scores[scale] = _score(found)
    chosen = max(scores, key=lambda scale: (round(scores[scale], 4), -scale))
    if kept is not None:
        facts = {"chosen": chosen, "scores": {str(scale): round(score, 5) for scale, score in scores.items()}}
        write_text_atomically(kept, json.dumps(facts, indent=2) + "\n")
    return dataclasses.replace(cfg, margin_scale=chosen)


def _score(last: Mapping[str, Any]) -> float:
    """Agreement times evenness of a pilot's last epoch.

    Example:
      >>> import torch
      >>> _score({"agreement": 0.8, "counts": torch.tensor([5.0, 5.0]), "expected": torch.tensor([10.0, 0.0])})
      0.4
    """
    counts, expected = last["counts"].double(), last["expected"].double()
    apart = 0.5 * float((counts / counts.sum().clamp(min=1) - expected / expected.sum().clamp(min=1e-9)).abs().sum())
    score = float(last["agreement"]) * (1 - apart)
    return score if math.isfinite(score) else 0.0
