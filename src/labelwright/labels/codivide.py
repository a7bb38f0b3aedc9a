"""What one network of two has to say of all images: aligned probabilities, and which guesses to trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.candidate_beliefs import candidate_evidence
from labelwright.labels.chunks import chunks_of
from labelwright.labels.purify import divide, division_losses, lifted, mean_of, min_max, push_history
from labelwright.types import Passes, Task


@dataclass(frozen=True)
class CoDivision:
    """One network's word on N images."""

    beliefs: dict[str, Tensor]  # sparse table of its aligned probabilities (`read_beliefs`)
    # [N] float32, 0 to 1: how probably the guesses hold the truth; 1 where verified, 0 where there are none
    clean: Tensor
    ratio: Tensor  # [C] float32, what its probabilities are multiplied by to have the prior as their mean
    history: dict[str, Tensor]  # of its division losses (labels.purify)
    predicted: Tensor  # [N] int64 most probable class without the guesses
    n_divided: int  # images with guesses that were divided: not verified, and not all classes alike
    reliable_frac: float  # share of these whose guesses are trusted; 0 if there are none
    in_set_frac: float  # share of these whose predicted class is one of their guesses
    means: tuple[float, float]  # mean losses of the two groups


def aligned_division(
    net: str,
    task: Task,
    passes: Passes,
    history: Mapping[str, Tensor],
    *,
    prior: Tensor,
    miss: Tensor | None = None,
    guess_strength: float = 0.0,
    ratio: Tensor | None = None,
    use_alignment: bool = True,
    n_rounds: int = 3,
    threshold: float = 0.5,
    keep: int = 64,
    seed: int = 0,
) -> CoDivision:
    """Pass all images through a network once, align what it says with the prior, and divide the guesses.

    Args:
      net: name of the network.
      passes: streams the network's logits.
      history: of its division losses, from labels.purify.
      prior: [C] float, shares the classes should have.
      miss: [C] float, see labels.candidate_beliefs.candidate_evidence; None only where the guesses do not weigh.
      guess_strength: >= 0, how much the guesses weigh in its probabilities; 0 = its softmax alone (paper).
      ratio: [C] where the scaling starts from. That of the epoch before brings the mean ever closer to the prior, as a
        prior that is known deserves; None = afresh, as is enough for one that these very networks estimated.
      use_alignment: False takes the probabilities as they are.
      n_rounds: of scaling; 0 = by ``ratio`` as it is, as with the running mean of the paper.
      threshold: probability above which the guesses of an image are trusted.
      keep: classes of each image that the table holds.
      seed: of the mixture.

    Returns: see `CoDivision`. Verified labels count as they are, whatever the network says.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2.
    """
    n, n_classes, device = len(task.labels), task.n_classes, task.labels.device
    table = init_beliefs(n, n_classes, keep=keep, device=device)
    predicted = torch.zeros(n, dtype=torch.int64, device=device)
    n_inside = n_divided = 0
    is_divided = torch.zeros(n, dtype=torch.bool, device=device)
    for rows, logits in passes(net, torch.arange(n)):
        guesses, logits = task.guesses(rows), logits.float()
        predicted[rows] = logits.argmax(1)
        is_divided[rows] = (task.labels[rows] < 0) & (guesses == 0).any(1)
        inside = (guesses > 0).gather(1, predicted[rows][:, None])[:, 0]
        n_inside += int(inside[is_divided[rows]].sum())
        n_divided += int(is_divided[rows].sum())
        weighed = logits
        if guess_strength > 0:
            assert miss is not None
            weighed = logits + guess_strength * candidate_evidence(guesses, miss)
        write_beliefs(table, rows, _verified(task, rows, weighed.softmax(1)))
    prior = prior.to(device)
    found = torch.ones(n_classes, device=device)
    if use_alignment:
        found = _scaled(table, task, found if ratio is None else ratio.to(device), prior, n_rounds)
    losses = torch.zeros(n, device=device)
    for rows in chunks_of(torch.arange(n, device=device), n_classes):
        aligned = read_beliefs(table, rows, n_classes)
        if use_alignment:
            aligned = _verified(task, rows, lifted(aligned, found))
            write_beliefs(table, rows, aligned)
        losses[rows] = division_losses(aligned, task.possible(rows))
    history = push_history(history, min_max(losses, where=is_divided)[None])
    clean, means = divide(mean_of(history), seed=seed, where=is_divided)
    return CoDivision(
        beliefs=table,
        clean=clean.masked_fill(task.labels >= 0, 1.0),
        ratio=found,
        history=history,
        predicted=predicted,
        n_divided=n_divided,
        reliable_frac=int((clean > threshold).sum()) / max(n_divided, 1),
        in_set_frac=n_inside / max(n_divided, 1),
        means=means,
    )


def _scaled(table: dict[str, Tensor], task: Task, ratio: Tensor, prior: Tensor, n_rounds: int) -> Tensor:
    """Factors [C] that bring the mean of a table's probabilities to the prior, by rounds of rescaling."""
    n, n_classes = len(task.labels), task.n_classes
    for _ in range(n_rounds):
        total = torch.zeros_like(ratio)
        for rows in chunks_of(torch.arange(n, device=ratio.device), n_classes):
            total += lifted(read_beliefs(table, rows, n_classes), ratio).sum(0)
        ratio = ratio * prior * n / total.clamp(min=1e-6 * n)
        ratio = ratio / ratio.mean()
    return ratio


def _verified(task: Task, rows: Tensor, probs: Tensor) -> Tensor:
    """Probabilities [B, C] with those of verified images put on their label."""
    labels = task.labels[rows]
    onehot = F.one_hot(labels.clamp(min=0), probs.shape[1]).to(probs.dtype)
    return torch.where((labels >= 0)[:, None], onehot, probs)


INT16_CLASSES = 2**15  # classes 0..32767 fit into int16

Beliefs = dict[str, Tensor]


def init_beliefs(n_rows: int, n_classes: int, *, keep: int, device: torch.device | str = "cpu") -> Beliefs:
    """A table in which every class is as probable as any other.

    Args:
      n_rows: N.   n_classes: C.   keep: >= 1, probabilities kept per row; with C or more the table is exact.

    Returns: the table: 6 bytes x keep per row (8 from 32,768 classes on), or 4 bytes x C if it is exact.

    Example:
      >>> {name: (list(t.shape), t.dtype) for name, t in init_beliefs(10, 100, keep=8).items()}
      {'probs': ([10, 8], torch.float32), 'classes': ([10, 8], torch.int16)}
      >>> list(init_beliefs(10, 5, keep=8))
      ['probs']
    """
    n_kept = min(keep, n_classes)
    beliefs = {"probs": torch.full((n_rows, n_kept), 1 / n_classes, device=device)}
    if n_kept < n_classes:
        dtype = torch.int16 if n_classes < INT16_CLASSES else torch.int32
        beliefs["classes"] = torch.arange(n_kept, dtype=dtype, device=device).repeat(n_rows, 1)
    return beliefs


def write_beliefs(beliefs: Beliefs, rows: Tensor, probs: Tensor) -> None:
    """Write rows INTO the table given, one just made with `init_beliefs`: copying it would cost N x K per batch.

    Args:
      beliefs: of `init_beliefs`, changed in place.
      rows: [B] int64 rows of the table, none twice.
      probs: [B, C] float, rows sum to 1 (written as float32 after division by their sum); on any device.

    Example: the two largest of four are kept; the rest is spread over the other two.
      >>> beliefs = init_beliefs(3, 4, keep=2)
      >>> write_beliefs(beliefs, torch.tensor([2]), torch.tensor([[0.125, 0.5, 0.0, 0.375]]))
      >>> read_beliefs(beliefs, torch.tensor([2, 0]), 4).tolist()
      [[0.0625, 0.5, 0.0625, 0.375], [0.25, 0.25, 0.25, 0.25]]
    """
    table = beliefs["probs"]
    rows = rows.to(table.device)
    kept = probs.detach().float()
    kept = kept / kept.sum(dim=1, keepdim=True)
    if "classes" in beliefs:
        kept, classes = kept.topk(table.shape[1], dim=1)
        beliefs["classes"][rows] = classes.to(table.device, beliefs["classes"].dtype)
    table[rows] = kept.to(table.device)


def read_beliefs(beliefs: Beliefs, rows: Tensor, n_classes: int) -> Tensor:
    """Probabilities of some rows; what was not kept of a row is spread evenly over its other classes.

    Args:
      beliefs: of `init_beliefs`.   rows: [B] int64 rows of the table.   n_classes: C, as the table was made for.

    Returns: [B, C] float32 on the device of ``rows``, rows sum to 1.

    Example: see `write_beliefs`.
    """
    at = rows.to(beliefs["probs"].device)
    kept = beliefs["probs"][at].to(rows.device)
    if "classes" not in beliefs:
        return kept
    classes = beliefs["classes"][at].to(rows.device, torch.int64)
    rest = (1 - kept.sum(dim=1, keepdim=True)).clamp(min=0)  # rounding alone makes it negative
    return (rest / (n_classes - kept.shape[1])).repeat(1, n_classes).scatter_(1, classes, kept)


def describe_divisions(divisions: Sequence[CoDivision], *, collapse: float) -> dict[str, Any]:
    """What to log of an epoch's divisions, one per network.

    Args:
      divisions: of the networks.
      collapse: mean cosine of the prototypes (losses.prototypes.prototype_collapse).

    Returns: reliable_frac, in_set_frac, network_agreement, division_gap, prototype_cosine and largest_class_frac,
      means over the networks where there are two.
    """
    n = len(divisions)
    first = divisions[0].predicted
    counts = first.bincount()
    return {
        "reliable_frac": sum(d.reliable_frac for d in divisions) / n,
        "in_set_frac": sum(d.in_set_frac for d in divisions) / n,
        "network_agreement": float((first == divisions[-1].predicted).float().mean()),
        "division_gap": sum(d.means[1] - d.means[0] for d in divisions) / n,
        "prototype_cosine": collapse,
        "largest_class_frac": float(counts.max() / counts.sum()),
    }
