"""What speaks for or against the labels of a run, beside its classifier: pixels, and that an image is of no class.

See `trust.pixel_votes` and `labels.unlike`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from labelwright.data.cache import StreamedPixels
from labelwright.data.prepare import Source
from labelwright.data.stored import CHUNK as CHUNK_ROWS
from labelwright.data.stored import EmbeddingViews
from labelwright.data.views import ViewSettings
from labelwright.labels.chunks import evenly_spread
from labelwright.pipeline.job import Job
from labelwright.pipeline.novel import units_of
from labelwright.pipeline.references import LeftOut
from labelwright.train.predict import Answers
from labelwright.trust.calibration import LEAST_ROWS, Calibration, cross_fitted, with_evidence
from labelwright.trust.pixel_votes import REFERENCES, PixelVotes, fit_votes
from labelwright.trust.strangers import small_pixels

CHUNK = 2_048


def votes_of(job: Job, own: Answers) -> PixelVotes | None:
    """What votes on the labels of a run; None where pixels say too little, or there are none, or classes are new."""
    source, view = job.prepared.train, job.prepared.view
    is_decoded = source.pixels is not None and not isinstance(source.pixels, StreamedPixels)  # not decoded once more
    if not is_decoded or not job.prepared.size_px or job.task.n_novel:
        return None
    rows = evenly_spread(torch.arange(len(source.table)), REFERENCES)
    groups = source.table.groups
    return fit_votes(
        _pixels(source, view, rows),
        torch.where(own.given >= 0, own.given, own.predicted)[rows],
        n_classes=job.task.n_classes,
        groups=None if groups is None else torch.from_numpy(groups)[rows],
    )


def with_votes(votes: PixelVotes | None, source: Source, view: ViewSettings, answers: Answers) -> Answers:
    """Answers with what pixels add to the log-odds of the predicted classes.

    Args:
      votes: None: the answers as they are.
      source, view: the N images, and how they are seen.
    """
    if votes is None:
        return answers
    rows = torch.arange(len(answers.predicted))
    return dataclasses.replace(answers, odds=with_votes_on(votes, source, view, rows, answers.predicted, answers.odds))


def with_votes_on(
    votes: PixelVotes, source: Source, view: ViewSettings, rows: Tensor, predicted: Tensor, odds: Tensor
) -> Tensor:
    """Log-odds [n, T + 1] of the classes [n] that are predicted for rows [n] of a source, from those without votes."""
    parts = zip(torch.split(rows, CHUNK), torch.split(predicted, CHUNK), strict=True)
    found = [votes.evidence(_pixels(source, view, some), labels) for some, labels in parts]
    return with_evidence(odds, torch.cat([*found, torch.zeros(0)]))


def weighed(votes: PixelVotes, job: Job, left_out: LeftOut, rows: Tensor) -> tuple[PixelVotes, LeftOut]:
    """Votes that count as labels that were left out ask for, and their log-odds with votes.

    Each of these labels is voted on by images under the labels that the fit gives them which did not see it: what
    follows from a label would speak for it.

    Args:
      rows: [n] of the training table, whose labels were left out.
    """
    source, view = job.prepared.train, job.prepared.view
    predicted = left_out.predicted.clamp(min=0)
    if left_out.fits:
        odds = with_evidence(left_out.odds, torch.zeros(len(rows)))
    else:
        odds = with_votes_on(votes, source, view, rows, predicted, left_out.odds)
    for fit in left_out.fits:
        some, asked = evenly_spread(torch.arange(len(fit.rows)), REFERENCES), fit.asked
        references = _pixels(source, view, fit.rows[some]).half()
        by = dataclasses.replace(votes, references=references, classes=fit.classes[some])
        odds[asked] = with_votes_on(by, source, view, rows[asked], predicted[asked], left_out.odds[asked])
    asked = left_out.predicted >= 0
    right = left_out.predicted[asked] == job.task.labels.cpu()[rows[asked]]
    if len(right) >= LEAST_ROWS:
        chances = cross_fitted(left_out.odds[asked], right, n_classes=job.task.n_classes)
        votes = votes.weighed(chances, odds[asked, -1], right)
        odds[:, -1] *= votes.weight
    return votes, dataclasses.replace(left_out, odds=odds)


def with_likeness(job: Job, answers: Answers, calibration: Calibration) -> Answers:
    """Answers on the training images, with what speaks against their being of any class that labels name.

    The chances of unlabelled images become those of ``calibration`` times the chance that they are of such a class;
    where nearly none looks so, they stay: another place is likelier than that nothing is of any class.
    """
    likeness, source = job.unlike.likeness, job.prepared.train
    if likeness is None or source.stored is None or job.unlike.is_elsewhere:
        return answers
    rows = (answers.given < 0).nonzero().flatten()
    units = units_of(source.table)[rows]
    feats = EmbeddingViews(source.stored, rows=source.rows).feats(rows)
    named = torch.cat([likeness.chance(*some) for some in zip(feats, torch.split(units, CHUNK_ROWS), strict=True)])
    before = (calibration.chance(answers.odds[rows]).double() / calibration.most).clamp(1e-6, 1 - 1e-6)
    evidence = torch.zeros(len(answers.odds), dtype=torch.float64)
    evidence[rows] = (before * named).logit() - before.logit()
    return dataclasses.replace(answers, odds=with_evidence(answers.odds, evidence))


def _pixels(source: Source, view: ViewSettings, rows: Tensor) -> Tensor:
    views, cpu = source.pixel_views(view), torch.device("cpu")
    parts = torch.split(rows, CHUNK // 8)  # of large images a view takes megabytes
    return torch.cat([small_pixels(views.batch(some, "clean", seed=0, device=cpu)) for some in parts])
