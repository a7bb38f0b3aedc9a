"""A classifier's answers about many images, one row each: never an images x classes table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from labelwright.errors import TrainingError
from labelwright.launch import rank
from labelwright.train.processes import autocast_dtype, n_processes
from labelwright.train.progress import track
from labelwright.types import ViewSource

BATCH = 512
TEMPERATURES = (1.0, 2.0, 4.0)
LEAST_PROB, MOST_ODDS = 1e-38, 88.0  # of a class, so that its logarithm is finite; of one that is alone

Adapt = Callable[[Tensor, Tensor], Tensor]
"""Rows [B] int64 on the CPU and a classifier's probabilities [B, C] -> the probabilities to answer with."""


@dataclass(frozen=True)
class Answers:
    """What the classifier says of N images, on the CPU: classes [N] int64, probabilities [N] float32."""

    predicted: Tensor  # most probable class
    probability: Tensor  # of it
    runner_up: Tensor  # second most probable class (the first again when there is one class)
    runner_up_probability: Tensor
    given: Tensor  # the labels asked about, -1 = none
    given_probability: Tensor  # of the given label; nan where none was given
    odds: Tensor  # [N, T] float64 log-odds of the predicted class at each of TEMPERATURES, see `odds_of`
    alone: Tensor | None = None  # most probable class before `Adapt`


def share_of(rows: Tensor) -> Tensor:
    """Rows that this process of a launcher answers for: whole batches, so that answers are those of one process.

    Example:
      >>> share_of(torch.arange(3)).tolist()
      [0, 1, 2]
    """
    batches = list(torch.split(rows, BATCH))
    first, last = (len(batches) * k // n_processes() for k in (rank(), rank() + 1))
    return torch.cat([rows[:0], *batches[first:last]])


def joined(parts: Sequence[Answers], order: Tensor | None = None) -> Answers:
    """The answers of several processes, or to parts of the rows, as one: of all of them in this order [N]."""
    columns = [[getattr(part, field.name) for part in parts] for field in fields(Answers)]
    found = [None if of[0] is None else torch.cat(of) for of in columns]
    return Answers(*(of if of is None or order is None else of[order] for of in found))  # type: ignore[arg-type]


def odds_of(probs: Tensor) -> Tensor:
    """Log-odds of the most probable class at each of `TEMPERATURES`, [B, T] float64, of probabilities [B, C].

    They are those of what is left to the other classes, so that 1 - 1e-20 and 1 - 1e-9 differ.

    Example:
      >>> odds_of(torch.tensor([[0.9, 0.1], [1.0, 1e-20]])).round().tolist()
      [[2.0, 1.0, 1.0], [46.0, 23.0, 12.0]]
    """
    probs = probs.double().clamp(min=LEAST_PROB)
    best, at = probs.max(1, keepdim=True)
    others, found = (probs / best).scatter(1, at, 0.0), list[Tensor]()
    for t, colder in zip(TEMPERATURES, (1.0, *TEMPERATURES), strict=False):
        others = others if t == colder else others.sqrt_()  # to the power of 1/t: each t is twice the one before
        found.append(-others.sum(1).log())
    return torch.stack(found, 1).clamp(max=MOST_ODDS)


def answer(
    probs_of: Callable[[Tensor], Tensor],
    views: ViewSource,
    rows: Tensor,
    *,
    device: torch.device,
    precision: str,
    given: Tensor | None = None,
    adapt: Adapt | None = None,
    description: str = "predicting",
) -> Answers:
    """Run a classifier over rows of a view source, un-augmented.

    Args:
      probs_of: maps clean views [B, ...] to probabilities [B, C] float32, rows sum to 1; in evaluation mode.
      views: where the images come from.
      rows: [N] int64 rows of the source.
      device, precision: of ``probs_of``, see train.processes.
      given: [N] int64 labels to ask about, -1 = none; None = none at all.
      adapt: changes the probabilities of rows; None = as they are.

    Returns: one answer per row, in the order of ``rows``.

    Raises: TrainingError if a probability is no number.
    """
    dtype, n = autocast_dtype(device, precision), len(rows)
    given = torch.full((n,), -1, dtype=torch.int64) if given is None else given.cpu()
    # Made once: small pieces kept from batch to batch would leave holes in memory, gigabytes of a million rows.
    classes = torch.empty(n, 2, dtype=torch.int64)
    alone = None if adapt is None else torch.empty(n, dtype=torch.int64)
    probs2, of_given = torch.empty(n, 2), torch.empty(n)
    odds = torch.empty(n, len(TEMPERATURES), dtype=torch.float64)
    for start in track(range(0, n, BATCH), description, total=-(-n // BATCH)):
        here = slice(start, start + BATCH)
        chunk = rows[here].cpu()
        x = views.batch(chunk, "clean", seed=0, device=device)
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            probs = probs_of(x).float()
        if adapt is not None and alone is not None:
            alone[here] = probs.argmax(1).cpu()
            probs = adapt(chunk, probs)
        odds[here] = odds_of(probs).cpu()
        best, at = probs.topk(min(2, probs.shape[1]), dim=1)
        if not bool(torch.isfinite(best).all()):
            raise TrainingError(
                f"the classifier's answer to image {int(chunk[(~torch.isfinite(best)).any(1).nonzero()[0].cpu()])} is "
                "no number",
                fix="train it anew with a lower rate (--set lr=...), or look for features that are far too large",
            )
        probs2[here], classes[here] = best[:, [0, -1]].cpu(), at[:, [0, -1]].cpu()
        labels = given[here].to(device)
        own = probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        of_given[here] = own.masked_fill(labels < 0, torch.nan).cpu()
    predicted = classes[:, 0].contiguous()
    return Answers(
        predicted=predicted,
        probability=probs2[:, 0].contiguous(),
        runner_up=classes[:, 1].contiguous(),
        runner_up_probability=probs2[:, 1].contiguous(),
        given=given,
        given_probability=of_given,
        odds=odds,
        alone=predicted if alone is None else alone,
    )
