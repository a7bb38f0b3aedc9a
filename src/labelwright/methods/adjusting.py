"""How a recipe adds the adjustments of its setting ``adjust`` to its own, step by step."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from labelwright.adjust import named
from labelwright.adjust.adjustment import Adjustment
from labelwright.train.processes import gather_rows
from labelwright.types import State


def added(
    names: str | None,
    state: State,
    probs: Tensor,
    *,
    labels: Tensor | None = None,
) -> tuple[Adjustment, State]:
    """What the named adjustments add in this step, and the state that has seen its rows.

    Args:
      names: of the setting; None adds nothing and leaves the state as it is.
      state: whose ``adjust["named"]`` is of `adjust.named.init`.
      probs: [n, C] float, predictions of this process's rows that count.
      labels: [n] int64 pseudolabels of these rows; None where the labels of all steps are known.

    Example: what is predicted of one row goes into the state.
      >>> even = torch.tensor([0.5, 0.5])
      >>> state = State({}, adjust={"named": named.init(torch.tensor([3, 1]), even)})
      >>> adjustment, state = added("la", state, torch.tensor([[0.75, 0.25]]))
      >>> [round(v, 4) for v in adjustment.offset.tolist()], state.adjust["named"]["predicted"].tolist()
      ([-0.2877, -1.3863], [0.75, 0.25])
    """
    if not names:
        return Adjustment(), state
    predicted = gather_rows(probs.detach().float().sum(0)[None]).sum(0)
    counts = None
    if labels is not None:
        counts = gather_rows(torch.bincount(labels, minlength=len(predicted))[None]).sum(0)
    found = named.update(state.adjust["named"], predicted=predicted, counts=counts)
    return named.adjustment(names, found), dataclasses.replace(state, adjust={**state.adjust, "named": found})
