"""FixMatch with distribution alignment: labels, and strong views taught by what the network is sure of on weak ones.

 1  q = softmax f(weak view), no gradient                                                  Sec. 2.2
 2  q' = normalised q * p(y) / mean q                   distribution alignment, Berthelot 2020, Sec. 3.1
 3  L = CE(f(weak view of a labelled image), its label)                                      Eq. (3)
 4    + weight * mean over unlabelled of [max q' >= confidence] CE(f(strong view), argmax q')   Eq. (4)
 5  answers by the moving average of the weights                                             Sec. 4

Source: Sohn et al. 2020 (arXiv 2001.07685); alignment: Berthelot et al. 2020 (arXiv 1911.09785), as Sohn 2020, App. D.
Departures: smaller steps (32 labelled and 96 other images for 64 and 448) and a moving average that reaches back over
a twentieth of the training at most, for runs of minutes; weak views go through the network on their own.
Command: labelwright fit photos/ --method fixmatch --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labelwright.losses.classification import cross_entropy
from labelwright.methods import semi_supervised
from labelwright.methods.recipe import Recipe
from labelwright.train.settings import ShareBelow1
from labelwright.types import Batch, Clock, State, StepResult, Task


@dataclass(frozen=True, kw_only=True)
class Config(semi_supervised.SemiSupervisedSettings):
    """Settings of fixmatch."""

    confidence: ShareBelow1 = 0.95  # probability from which an answer teaches (Sohn 2020)


def step(cfg: Config, task: Task, state: State, batches: Mapping[str, Batch], clock: Clock) -> StepResult:
    """Lines 1 to 4."""
    supervised, seen, state, logs = semi_supervised.both(cfg, state, batches)  # 1, 2, 3
    sure, best = seen.aligned.max(1)
    is_sure = sure >= cfg.confidence
    taught = cross_entropy(seen.strong, best, where=is_sure, reduce="sum") / len(best)  # 4
    return semi_supervised.added_up(
        cfg, batches, supervised, taught, state, {**logs, "taught_frac": is_sure.float().mean()}
    )


RECIPE = Recipe(
    Config=Config,
    setup=semi_supervised.setup,
    begin=semi_supervised.begin,
    plan=semi_supervised.plan,
    step=step,
    end_epoch=semi_supervised.end_epoch,
)
