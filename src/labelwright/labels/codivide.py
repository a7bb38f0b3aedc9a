"""What one network of two has to say of all images: aligned probabilities, and which guesses to trust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.labels.beliefs import init_beliefs, read_beliefs, write_beliefs
from labelwright.labels.guess_shape import chunks_of, evidence
from labelwright.labels.purify import divide, division_losses, mean_loss_history, min_max, push_loss_history
from labelwright.labels.refine import lifted
from labelwright.types import Passes, Task


@dataclass(frozen=True)
class CoDivision:
    """One network's word on N images.

    Attributes:
      beliefs: sparse table of its aligned probabilities (labels.beliefs).
      clean: [N] float32, 0 to 1: how probably the guesses hold the truth; 1 where verified, 0 where there are none.
      ratio: [C] float32, what its probabilities are multiplied by to have the prior as their mean.
      mean: [C] float32, mean of its probabilities without the guesses.
      history: of its division losses (labels.purify).
      predicted: [N] int64 most probable class without the guesses.
      n_divided: images with guesses that were divided: not verified, and not all classes alike.
      reliable_frac: share of these whose guesses are trusted; 0 if there are none.
      in_set_frac: share of these whose predicted class is one of their guesses.
      means: mean losses of the two groups.
    """

    beliefs: dict[str, Tensor]
    clean: Tensor
    ratio: Tensor
    mean: Tensor
    history: dict[str, Tensor]
    predicted: Tensor
    n_divided: int
    reliable_frac: float
    in_set_frac: float
    means: tuple[float, float]


def aligned_division(
    net: str,
    task: Task,
    passes: Passes,
    history: Mapping[str, Tensor],
    *,
    prior: Tensor,
    miss: Tensor,
    guess_strength: float,
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
      task: labels and guesses of the N images.
      passes: streams the network's logits.
      history: of its division losses, from labels.purify.
      prior: [C] float, shares the classes should have.
      miss: [C] float, see labels.guess_shape.evidence.
      guess_strength: >= 0, how much the guesses weigh in its probabilities; 0 = its softmax alone (paper).
      ratio: [C] where the scaling starts from. That of the epoch before brings the mean ever closer to the prior, as a
        prior that is known deserves; None = afresh, as is enough for one that these very networks estimated.
      use_alignment: False takes the probabilities as they are.
      n_rounds: of scaling.
      threshold: of `purify.divide`.
      keep: classes of each image that the table holds.
      seed: of the mixture.

    Returns: see `CoDivision`. Verified labels count as they are, whatever the network says.

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.2.
    """
    n, n_classes, device = len(task.labels), task.n_classes, task.labels.device
    table = init_beliefs(n, n_classes, keep=keep, device=device)
    plain = torch.zeros(n_classes, device=device)
    predicted = torch.zeros(n, dtype=torch.int64, device=device)
    n_inside = n_divided = 0
    is_divided = torch.zeros(n, dtype=torch.bool, device=device)
    for rows, logits in passes(net, torch.arange(n)):
        guesses, logits = task.guesses(rows), logits.float()
        plain += logits.softmax(1).sum(0)
        predicted[rows] = logits.argmax(1)
        is_divided[rows] = (task.labels[rows] < 0) & (guesses == 0).any(1)
        inside = (guesses > 0).gather(1, predicted[rows][:, None])[:, 0]
        n_inside += int(inside[is_divided[rows]].sum())
        n_divided += int(is_divided[rows].sum())
        weighed = logits if guess_strength == 0 else logits + guess_strength * evidence(guesses, miss)
        write_beliefs(table, rows, _verified(task, rows, weighed.softmax(1)))
    prior = prior.to(device)
    found = torch.ones_like(plain)
    if use_alignment:
        found = _scaled(table, task, found if ratio is None else ratio.to(device), prior, n_rounds)
    losses = torch.zeros(n, device=device)
    for rows in chunks_of(torch.arange(n, device=device), n_classes):
        aligned = read_beliefs(table, rows, n_classes)
        if use_alignment:
            aligned = _verified(task, rows, lifted(aligned, found))
            write_beliefs(table, rows, aligned)
        losses[rows] = division_losses(aligned, task.possible(rows))
    history = push_loss_history(history, min_max(losses, where=is_divided))
    division = divide(mean_loss_history(history), threshold=threshold, seed=seed, where=is_divided)
    return CoDivision(
        beliefs=table,
        clean=division.clean_probability.masked_fill(task.labels >= 0, 1.0),
        ratio=found,
        mean=plain / n,
        history=history,
        predicted=predicted,
        n_divided=n_divided,
        reliable_frac=int(division.is_reliable.sum()) / max(n_divided, 1),
        in_set_frac=n_inside / max(n_divided, 1),
        means=division.means,
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
