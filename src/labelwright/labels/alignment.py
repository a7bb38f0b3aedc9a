"""Concept alignment from start to end: which names fit no image, what repairs them, and what to believe afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from labelwright.labels.concepts import (
    CHUNK,
    KNOWN_FROM,
    LEAST_FOUND,
    RARE,
    choose_descriptions,
    detect_by_clustering,
    detect_mismatched,
    found_by_name,
    knowledge,
    log_presence,
)
from labelwright.labels.gaussians import gaussian_beliefs
from labelwright.labels.leftovers import last_class, leftover_concepts
from labelwright.train.convex import Linear
from labelwright.train.text_start import text_and_labels
from labelwright.types import Task

Alignment = Literal["evidence", "clustering", "none"]
"""How names are aligned with images: by evidence (ours), by Algorithm 1 (published), or not at all."""

SHRINKAGE, N_ITER = 0.1, 20  # of the Gaussians
NEVER = -1e4  # logit of a class that an image cannot have
USUAL_STRENGTH, LABEL_WEIGHT = (
    0.2,
    10.0,
)  # theirs where half of the classes have labelled images; what one counts for if all have
CONFIRMED, CONTRADICTED = 0.5, 0.005
"""Mean probability of a class on its own labelled images, above which its text fits and below which it does not."""


@dataclass(frozen=True)
class Aligned:
    """What `align` found, for N images and C classes."""

    class_feats: Tensor  # [C, D] float32 unit norm
    weight: Tensor  # [C, D] float32 and
    bias: Tensor  # [C] float32: linear term to add to the logits (labels.gaussians); zero if it was not asked for
    prior: Tensor  # [C] float32, estimated share of each class among the unlabelled images, sums to 1
    zero_shot: Tensor  # [N] int64 most probable class of each image by the names alone
    predicted: Tensor  # [N] int64 most probable class of each image; of unlabelled ones among the classes they may have
    confidence: Tensor  # [N] float32, its probability
    # class -> [D] float32 unit norm, the description that chooses its first images in place of its name; of alignment
    # "clustering" alone, which leaves the classes of the model as they are
    described: Mapping[int, Tensor] = field(default_factory=dict)


def align(
    feats: Tensor,
    task: Task,
    name_feats: Tensor,
    *,
    logit_scale: float,
    alignment: Alignment = "evidence",
    use_leftovers: bool = True,
    shape_strength: float | None = None,
    allowed: Tensor | None = None,
    seed: int = 0,
) -> tuple[Aligned, dict[str, Any]]:
    """Detect mismatched classes, repair them by description, labelled images or leftovers, and form beliefs.

    With "evidence", labels are weighed against texts where every class has some, and without labels classes that hardly
    any image shows become less probable.

    Args:
      feats: [N, D] float, unit norm, of all images.
      task: labels, names and descriptions.
      name_feats: [C, D] float, unit norm, of the class names.
      alignment: "evidence", the repairs above; "clustering", detection by the paper's Algorithm 1 and the first
        description of each class that it finds, see `Aligned.described`; "none" leaves the names as they are.
      use_leftovers: of "evidence", see labels.concepts.leftover_concepts.
      shape_strength: strength of labels.gaussians.gaussian_beliefs; 0 leaves the texts alone; None is 0.2 where half
        of the classes have labelled images, else 0: from texts alone the shapes repeat their mistakes.
      allowed: [C] bool, classes that unlabelled images may have; None = all.
      seed: of the clustering that leftovers come from.

    Returns: the alignment, and what to log: names of mismatched and guessed classes, evidence, descriptions, counts
      of zero-shot and of aligned pseudolabels.

    Source: arXiv 2505.02056, Section 3.1; see the parts for what differs.

    Example:
      >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0]]), dim=1)
      >>> task = Task(torch.full((4,), -1), ("cat", "dog"))
      >>> names = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [-1.0, -0.9]]), dim=1)
      >>> aligned, logs = align(z, task, names, logit_scale=10.0, shape_strength=0.0)
      >>> logs["mismatched"], aligned.predicted.tolist()
      (['dog'], [0, 0, 1, 1])
    """
    z, device = feats.float(), feats.device
    t = name_feats.float().to(device)
    labels = task.labels.to(device)
    names = task.class_names
    allowed = torch.ones(len(t), dtype=torch.bool, device=device) if allowed is None else allowed.to(device)
    pool = z[labels < 0] if (labels < 0).any() else z
    zero_shot, _ = _answers(z, logit_scale * t, torch.zeros(len(t), device=device), labels, allowed)
    logs: dict[str, Any] = {"zero_shot_counts": _counts(zero_shot, labels, len(t)), "warnings": []}
    described: Mapping[int, Tensor] = {}
    if alignment == "clustering":
        described = _described(pool, t, task, logs, allowed, logit_scale=logit_scale, seed=seed)
    if alignment == "evidence":
        t = _repaired(z, pool, t, task, labels, logs, logit_scale=logit_scale, use_leftovers=use_leftovers, seed=seed)
    text, bias = logit_scale * t, t.new_zeros(len(t))
    has_labels = torch.bincount(labels[labels >= 0], minlength=len(t)) > 0
    is_labelled = bool(has_labels.all())
    if alignment == "evidence" and is_labelled:
        head, logs["text_penalty"] = text_and_labels(z, labels, Linear(text, bias))
        text, bias = head.weight, head.bias
    elif alignment == "evidence":
        bias = log_presence(pool, t, logit_scale=logit_scale, where=allowed & ~has_labels)
    strength = (USUAL_STRENGTH if 2 * has_labels.sum() >= len(t) else 0.0) if shape_strength is None else shape_strength
    weight = text - logit_scale * t
    if strength > 0 and not logs.get("is_hopeless"):
        # Where no class of the unlabelled images has labels, iterating would only repeat the texts' mistakes.
        added_weight, added_bias = gaussian_beliefs(
            z,
            lambda rows: (z[rows] @ text.T + bias).masked_fill(~allowed & (labels[rows] < 0)[:, None], NEVER),
            labels,
            strength=strength,
            shrinkage=SHRINKAGE,
            n_iter=N_ITER if (allowed & has_labels).any() else 1,
            label_weight=LABEL_WEIGHT if is_labelled else 1.0,
        ).linear
        weight, bias = weight + added_weight, bias + added_bias
    text = logit_scale * t
    predicted, confidence = _answers(z, text + weight, bias, labels, allowed)
    prior = _prior(z, text + weight, bias, labels, allowed)
    logs["aligned_counts"] = _counts(predicted, labels, len(t))
    logs["prior"] = [round(float(p), 5) for p in prior]
    logs["class_names"] = list(names)
    return Aligned(t, weight, bias, prior, zero_shot, predicted, confidence, described), logs


def _described(
    pool: Tensor, t: Tensor, task: Task, logs: dict[str, Any], allowed: Tensor, *, logit_scale: float, seed: int
) -> dict[int, Tensor]:
    """Description of each class that Algorithm 1 leaves over, where there is one; what was found goes into the logs."""
    names, concepts = task.class_names, task.concepts
    classes = allowed.nonzero().flatten()
    left = detect_by_clustering(pool, t[classes], logit_scale=logit_scale, seed=seed)
    mismatched = classes[left.to(classes.device)].tolist()
    found: dict[int, Tensor] = {}
    logs["mismatched"], logs["descriptions"], logs["rejected"] = [names[c] for c in mismatched], {}, {}
    if concepts is not None and concepts.descriptions:
        found = {c: concepts.description_feats[c][0].float().to(t) for c in mismatched if concepts.descriptions[c]}
        logs["descriptions"] = {names[c]: concepts.descriptions[c][0] for c in found}
    logs["unrepaired"] = [names[c] for c in mismatched if c not in found]
    return found


def _repaired(
    z: Tensor,
    pool: Tensor,
    t: Tensor,
    task: Task,
    labels: Tensor,
    logs: dict[str, Any],
    *,
    logit_scale: float,
    use_leftovers: bool,
    seed: int,
) -> Tensor:
    """Class features after repair; what was found goes into the logs."""
    names, concepts = task.class_names, task.concepts
    has_labels = torch.bincount(labels[labels >= 0], minlength=len(t)) > 0
    by_name = detect_mismatched(pool, t, logit_scale=logit_scale)

    def mismatched(t: Tensor) -> Tensor:
        """Without labels, a name that finds no image; with them, one that the model is sure of nowhere."""
        unsure = detect_mismatched(pool, t, logit_scale=logit_scale).is_mismatched
        return torch.where(has_labels, unsure, found_by_name(pool, t) <= LEAST_FOUND)

    still = mismatched(t)
    before = still
    logs["mismatched"] = [names[c] for c in still.nonzero().flatten().tolist()]
    logs["evidence"] = [round(float(e), 4) for e in by_name.evidence]
    logs["descriptions"], logs["rejected"] = {}, {}
    has_text = refused = torch.zeros_like(still)
    if concepts is not None and any(concepts.descriptions):
        chosen = choose_descriptions(pool, t, concepts.description_feats, is_mismatched=by_name.is_mismatched | before)
        t = chosen.class_feats.to(t.device)
        for c, texts in enumerate(concepts.descriptions):
            pick = int(chosen.chosen[c])
            if pick >= 0:
                logs["descriptions"][names[c]] = texts[pick]
            useless = [text for text, gain in zip(texts, chosen.gains[c], strict=True) if gain <= 1]
            if useless and (pick >= 0 or before[c]):
                logs["rejected"][names[c]] = useless
        has_text = (chosen.chosen >= 0).to(t.device)
        # A class whose descriptions were all refused keeps its name: it may be rare or absent, and what is left over
        # is then another's.
        is_described = torch.tensor([bool(texts) for texts in concepts.descriptions], device=t.device)
        still = mismatched(t) & ~is_described
        refused = before & is_described & ~has_text
    own = _own_probability(z, t, labels, logit_scale=logit_scale)
    is_contradicted = (own < CONTRADICTED) & ~has_text
    still = (still & ~(own > CONFIRMED)) | is_contradicted
    logs["contradicted"] = [names[c] for c in is_contradicted.nonzero().flatten().tolist()]
    by_labels = still & has_labels & use_leftovers
    logs["guessed"], logs["placed"] = [], [names[c] for c in by_labels.nonzero().flatten().tolist()]
    if refused.sum() > 1:  # one class alone is in the summary and needs no warning
        logs["warnings"].append(
            f"neither names nor descriptions of {_listed(names, refused)} fit the images; the names are kept: "
            "describe how these classes look in other words, or label an image of each"
        )
    lost = still & ~has_labels
    logs["knowledge"] = ratio = round(min(knowledge(pool, t, seed=seed), 99.0), 3)
    is_unknown = not has_labels.any() and ratio < KNOWN_FROM
    logs["is_hopeless"] = is_unknown or int(lost.sum()) >= max(2, len(names) / 2)
    if by_labels.any():
        t = leftover_concepts(z, t, logit_scale=logit_scale, is_mismatched=by_labels, labels=labels, seed=seed)
    elif use_leftovers and lost.sum() == 1 and not logs["is_hopeless"]:
        which = int(lost.nonzero())
        others = log_presence(pool, t, logit_scale=logit_scale, where=~lost & ~has_labels, least=RARE)
        is_last = bool((others == 0).all())
        text = last_class(pool, t, logit_scale=logit_scale, which=which, seed=seed) if is_last else None
        if text is not None:
            t = t.clone()
            t[which] = text
            logs["guessed"] = [names[which]]
    logs["unrepaired"] = [names[c] for c in (still | refused).nonzero().flatten().tolist()]
    if lost.sum() > 1 and not is_unknown:
        logs["warnings"].append(
            f"{int(lost.sum())} of {len(names)} class names find no image ({_listed(names, lost)}): absent, or unknown "
            "to the model; no images are given them: describe how they look (--descriptions), or label an image of each"
        )
    return t


def _listed(names: Sequence[str], which: Tensor) -> str:
    """The first five names of classes [C] bool."""
    some = [names[c] for c in which.nonzero().flatten().tolist()]
    return f"{', '.join(some[:5])}{', …' if len(some) > 5 else ''}"


def _own_probability(z: Tensor, t: Tensor, labels: Tensor, *, logit_scale: float) -> Tensor:
    """Mean probability [C] that a class's text gives to the class's labelled images; nan where it has none."""
    rows = (labels >= 0).nonzero().flatten()
    own = (logit_scale * z[rows] @ t.T).softmax(1).gather(1, labels[rows][:, None])[:, 0]
    sums = torch.zeros(len(t), device=z.device).index_add_(0, labels[rows], own)
    counts = torch.bincount(labels[rows], minlength=len(t))
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)


def most_probable(chunks: Iterable[tuple[Tensor, Tensor]], labels: Tensor, *, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable class of every row and its probability; labelled rows keep to any class.

    Args:
      chunks: rows [B] int64 and their logits [B, C], all N rows in order.
      labels: [N] int64, -1 = unknown.
      allowed: [C] bool, classes that unlabelled rows may have.

    Returns: classes [N] int64 and probabilities [N] float.

    Example:
      >>> logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
      >>> only_second = torch.tensor([False, True])
      >>> most_probable([(torch.arange(2), logits)], torch.tensor([0, -1]), allowed=only_second)[0].tolist()
      [0, 1]
    """
    predicted, confidence = [], []
    for rows, logits in chunks:
        sure, best = logits.masked_fill(~allowed & (labels[rows] < 0)[:, None], -torch.inf).softmax(1).max(1)
        predicted.append(best)
        confidence.append(sure)
    return torch.cat(predicted), torch.cat(confidence)


def _answers(z: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """`most_probable` of linear logits."""
    pieces = torch.split(torch.arange(len(z), device=z.device), CHUNK)
    return most_probable(((rows, z[rows] @ weight.T + bias) for rows in pieces), labels, allowed=allowed)


def _prior(z: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, allowed: Tensor) -> Tensor:
    """Mean probabilities [C] of the unlabelled images."""
    total = torch.zeros_like(bias)
    for some in torch.split(z[labels < 0] if (labels < 0).any() else z, CHUNK):
        total += (some @ weight.T + bias).masked_fill(~allowed, -torch.inf).softmax(1).sum(0)
    return total / total.sum()


def _counts(predicted: Tensor, labels: Tensor, n_classes: int) -> list[int]:
    return torch.bincount(predicted[labels < 0], minlength=n_classes).tolist()
