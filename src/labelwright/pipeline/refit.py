"""The answer of a run once more, on all images: those that were held out to score it are learned from as well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from labelwright.methods.recipe import as_chosen
from labelwright.pipeline.references import Contender
from labelwright.train.loop import train
from labelwright.train.predict import Answers
from labelwright.types import Candidates, Task, ViewSource


@dataclass(frozen=True)
class JoinedViews:
    """Views of the rows of one source and then of another's."""

    first: ViewSource
    second: ViewSource

    @property
    def n_rows(self) -> int:
        """Of both."""
        return self.first.n_rows + self.second.n_rows

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        """See types.ViewSource."""
        is_second = rows >= self.first.n_rows
        parts = [
            self.first.batch(rows[~is_second], view, seed=seed, device=device),
            self.second.batch(rows[is_second] - self.first.n_rows, view, seed=seed, device=device),
        ]
        order = torch.cat([(~is_second).nonzero().flatten(), is_second.nonzero().flatten()]).argsort()
        return torch.cat(parts)[order.to(device)]

    def prefetch(self, rows: Tensor) -> None:
        """Nothing: features are at hand."""


def joined_task(first: Task, second: Task) -> Task:
    """The images of one task and then of another of the same classes; what only the first has stays.

    Example:
      >>> both = joined_task(Task(torch.tensor([0, -1]), ("cat", "dog")), Task(torch.tensor([1]), ("cat", "dog")))
      >>> both.labels.tolist()
      [0, -1, 1]
    """
    n = len(second.labels)
    labels = torch.cat([first.labels, second.labels.to(first.labels.device)])
    candidates, groups, clusters = first.candidates, first.groups, first.clusters
    if candidates is not None:
        more = second.candidates or Candidates(torch.zeros(n + 1, dtype=torch.int64), candidates.classes[:0])
        weights = candidates.weights
        if weights is not None:
            even = torch.ones(len(more.classes)) / more.offsets.diff().clamp(min=1).repeat_interleave(
                more.offsets.diff()
            )
            weights = torch.cat([weights, even if more.weights is None else more.weights])
        candidates = dataclasses.replace(
            candidates,
            offsets=torch.cat([candidates.offsets, more.offsets[1:] + candidates.offsets[-1]]),
            classes=torch.cat([candidates.classes, more.classes]),
            weights=weights,
        )
    if groups is not None:
        others = torch.arange(n) + groups.max() + 1 if second.groups is None else second.groups
        groups = torch.cat([groups, others.to(groups)])
    if clusters is not None:
        clusters = torch.cat([clusters, torch.full_like(clusters[:1], -1).expand(n)])
    votes = first.votes
    if votes is not None:
        votes = torch.cat([votes, votes.new_full((n, votes.shape[1]), -1) if second.votes is None else second.votes])
    return dataclasses.replace(
        first, labels=labels, candidates=candidates, groups=groups, clusters=clusters, votes=votes
    )


def is_refitted(kept: Contender) -> bool:
    """Whether images were held out that the saved model may learn from, and learning anew takes about as long as once.

    Networks that learn from pixels are kept as they were scored, and so are discovered classes, which would change
    places.
    """
    plan, job = kept.plan, kept.job
    is_held_out = job.prepared.test is not None and job.prepared.test_is == "held out"
    return plan.settings.refit and is_held_out and plan.views == "embeddings" and not job.task.n_novel


def refitted(kept: Contender) -> Contender:
    """The same answer, fitted on the training images and those held out.

    Every process takes part.
    """
    plan, job, prepared = kept.plan, kept.job, kept.job.prepared
    assert prepared.test is not None
    trained = train(
        kept.recipe,
        as_chosen(kept.cfg, kept.state),  # what was scored, not chosen again
        joined_task(job.task, prepared.test.table.task()),
        JoinedViews(prepared.train.views(prepared.view), prepared.test.views(prepared.view)),
        job.build,
        options=dataclasses.replace(plan.options, trains=kept.name == plan.name, n_evaluations=0),
    )
    return dataclasses.replace(kept, state=trained.state, seconds=trained.seconds)


def with_refitted(own: Answers, saved: Contender) -> Answers:
    """Answers on the training images: of those without a label by the classifier that was fitted on more of them.

    Args: own, of the one that was scored, `given` among it.
    """
    rows = (own.given < 0).nonzero().flatten()
    if not len(rows):
        return own
    new = saved.answers("train", rows=rows)
    names = ("predicted", "probability", "runner_up", "runner_up_probability", "odds")
    changed = {name: getattr(own, name).index_copy(0, rows, getattr(new, name)) for name in names}
    return dataclasses.replace(own, **changed)
