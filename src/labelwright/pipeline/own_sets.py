"""Labels of training images that have candidates: what the model sees and what its annotations say, together."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from labelwright.data.table import LabelTable
from labelwright.labels.annotations import AnnotationModel, Annotations, fit_annotations
from labelwright.labels.chunks import evenly_spread
from labelwright.pipeline.references import Contender
from labelwright.train.predict import Answers

FITTED_ROWS = 20_000  # training images from which it is estimated what annotations are worth
LEAST = 1e-12  # of a probability, so that its logarithm is finite


def own_answers(kept: Contender, given: Tensor) -> tuple[Answers, dict[str, Any]]:
    """Answers on the training images, and what summary.json says of how their candidates were used.

    Args:
      kept: the classifier that it answers with.
      given: [N] int64 verified labels, -1 = none; their images are judged by the model alone.

    Returns: answers, ``alone`` being the model's own; and, where there are candidates, under ``own_sets``: rule (yes,
      no, auto, see `FitSettings.outside_candidates`), truth_inside (estimated share of images whose class is among
      their candidates; auto only), outside_frac (of the model's own answers) and label_outside_frac (of the labels),
      over images with candidates and no verified label; and one_guess where an image has about one.
    """
    task, annotations = kept.job.task, Annotations(kept.job.task)
    if annotations.kind is None or task.n_novel:
        return kept.answers("train", given=given), {}
    rule = kept.plan.settings.outside_candidates
    fitted = _annotation_model(kept, annotations) if rule == "auto" else None
    if rule == "auto" and fitted is None:
        return kept.answers("train", given=given), {}

    def adapt(rows: Tensor, probs: Tensor) -> Tensor:
        open_rows = (annotations.is_annotated(rows) & (task.labels[rows] < 0)).to(probs.device)
        if rule == "yes":
            return probs
        new = (
            within(probs.cpu(), annotations.named(rows))
            if fitted is None
            else annotations.posterior(fitted, probs.cpu().clamp(min=LEAST).log(), rows)
        )
        return torch.where(open_rows[:, None], new.to(probs), probs)

    answers = kept.left_out_answers(given=given, adapt=adapt)
    facts: dict[str, Any] = {"rule": rule} | ({"one_guess": True} if annotations.has_one_guess else {})
    for key, classes in (("outside_frac", answers.alone), ("label_outside_frac", answers.predicted)):
        assert classes is not None
        facts[key] = round(outside_frac(annotations, classes), 4)
    if fitted is not None:
        facts["truth_inside"] = round(fitted.inside, 4)
    return answers, {"own_sets": facts}


def right_within(contender: Contender, truth: Tensor) -> float | None:
    """Share of the unlabelled images with candidates that are right where a contender chooses among these.

    By heads that did not see an image where there are such. None without candidates or truth, or with new classes.

    Args: truth [N] int64, -1 = not known.
    """
    task, annotations = contender.job.task, Annotations(contender.job.task)
    if annotations.kind is None or task.n_novel:
        return None
    rows = torch.arange(len(truth))
    annotated = torch.cat([annotations.is_annotated(some) for some in torch.split(rows, 8192)])
    known = (truth >= 0) & (task.labels.cpu() < 0) & annotated.cpu()
    if not known.any():
        return None

    def adapt(some: Tensor, probs: Tensor) -> Tensor:
        return within(probs.cpu(), annotations.named(some).cpu()).to(probs)

    chosen = contender.left_out_answers(adapt=adapt).predicted
    return float((chosen == truth)[known].double().mean())


def _annotation_model(kept: Contender, annotations: Annotations) -> AnnotationModel | None:
    """What the sets are worth; None where none of them says anything, as all hold every class."""
    rows = torch.arange(len(kept.job.task.labels))
    rows = rows[torch.cat([annotations.is_annotated(some) for some in torch.split(rows, 8192)])]
    if not len(rows):
        return None
    seen, logits = list[Tensor](), list[Tensor]()

    def collect(some: Tensor, probs: Tensor) -> Tensor:
        seen.append(some)
        logits.append(probs.clamp(min=LEAST).log().cpu())
        return probs

    kept.left_out_answers(rows=evenly_spread(rows, FITTED_ROWS), adapt=collect)
    return fit_annotations(annotations, torch.cat(logits), torch.cat(seen))


def within(probs: Tensor, possible: Tensor) -> Tensor:
    """Probabilities [B, C] of the classes that an image may have, [B, C] bool, alone.

    Example:
      >>> within(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[False, True, True]])).tolist()
      [[0.0, 0.5, 0.5]]
    """
    kept = probs.clamp(min=LEAST) * possible
    return kept / kept.sum(1, keepdim=True)


def is_outside(annotations: Annotations, classes: Tensor) -> Tensor:
    """[N] bool: the class [N] of an image is none of those named for it."""
    rows = torch.arange(len(classes))
    inside = [annotations.named(some).gather(1, classes[some][:, None])[:, 0] for some in torch.split(rows, 8192)]
    return ~torch.cat(inside) if inside else torch.zeros(0, dtype=torch.bool)


def outside_frac(annotations: Annotations, classes: Tensor) -> float:
    """Share of the images with candidates and no verified label whose class [N] is none of those named for them."""
    labels, rows = annotations.task.labels, torch.arange(len(classes))
    counts = torch.cat([annotations.is_annotated(some) & (labels[some] < 0) for some in torch.split(rows, 8192)])
    return float((is_outside(annotations, classes) & counts).sum()) / max(1, int(counts.sum()))


def with_candidates(rows: pa.Table, table: LabelTable, answers: Answers) -> pa.Table:
    """Labels with the columns ``candidates`` (names with | between, as tables have them) and ``outside_candidates``.

    The second says of the model's own answer, from the image alone, that it is none of the candidates; null where the
    image has none. Without candidates the table is as it was.
    """
    if table.candidates is None or answers.alone is None:
        return rows
    annotations = Annotations(table.task())
    sizes = table.candidates.offsets.diff()
    names = pa.array(table.class_names, pa.string()).take(pa.array(table.candidates.classes.numpy()))
    lists = pa.ListArray.from_arrays(pa.array(table.candidates.offsets.int().numpy()), names)
    text = pc.binary_join(lists, "|")
    text = pc.if_else(pa.array((sizes > 0).numpy()), text, pa.scalar(None, pa.string()))
    outside = pa.array(is_outside(annotations, answers.alone).numpy(), mask=(sizes == 0).numpy())
    return rows.append_column("candidates", text).append_column("outside_candidates", outside)
