"""Logit adjustments by name, added to those of any method that trains a classifier with cross-entropy.

A recipe keeps in its state what `init` gives, renews it by `update`, and adds `adjustment` to its own in the training
loss; at test time nothing is added. The state holds three tensors [C], whatever the names:

- counts: images of each class among the (pseudo-)labels that the loss is trained on.
- predicted: what the network predicts of the rows that count, probabilities summed over rows; older steps count less.
- prior: the shares that the classes should have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor

from labelwright.adjust import fixed
from labelwright.adjust.adjustment import Adjustment
from labelwright.adjust.pace import normalised, pace_margin
from labelwright.errors import ConfigError

DECAY = 0.9  # share of the earlier steps that an update keeps: some ten steps, a thousand rows at batch size 128

ADJUSTERS: Mapping[str, Callable[[Mapping[str, Tensor]], Adjustment]] = {
    "la": lambda state: fixed.logit_adjustment(state["counts"]),
    "vs": lambda state: fixed.vector_scaling(state["counts"], power=0.05),  # as the method vs
    "ldam": lambda state: fixed.ldam(state["counts"], scale=1.0),  # margins alone: other logits are not cosines
    "pace": lambda state: pace_margin(normalised(state["predicted"]), state["prior"], scale=10.0),  # as the method lps
}
"""Name -> what it makes of the state."""


def names_of(text: str | None) -> tuple[str, ...]:
    """The names in a setting such as ``pace+la``; None and an empty text have none.

    Raises: ConfigError listing the valid names.

    Example:
      >>> names_of("pace+la"), names_of(None)
      (('pace', 'la'), ())
    """
    names = tuple(name.strip() for name in text.split("+")) if text else ()
    for name in names:
        if name not in ADJUSTERS:
            raise ConfigError(
                f"adjustment {name!r} is not known", fix=f"valid adjustments, to be joined by +: {', '.join(ADJUSTERS)}"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"adjust={text} has a name twice", fix="give each name once")
    return names


Names = Annotated[str, names_of]
"""Type of a setting of a Config: adjustments, checked when it is made."""


def init(counts: Tensor, prior: Tensor) -> dict[str, Tensor]:
    """The state before any prediction.

    Args:
      counts: [C] int or float >= 0, labelled images per class; ones where labels are only guessed later.
      prior: [C] float, sums to 1: the shares that the classes should have.

    Example:
      >>> init(torch.tensor([3, 1]), torch.tensor([0.5, 0.5]))["counts"].tolist()
      [3.0, 1.0]
    """
    return {"counts": counts.float(), "predicted": torch.zeros_like(prior), "prior": prior}


def update(
    state: Mapping[str, Tensor],
    *,
    predicted: Tensor,
    counts: Tensor | None = None,
    prior: Tensor | None = None,
    decay: float = DECAY,
) -> dict[str, Tensor]:
    """The state after another step.

    Args:
      state: of `init` or `update`; stays as it is.
      predicted: [C] float >= 0, probabilities of the step's rows that count, summed over rows and processes.
      counts: [C] >= 0, the step's (pseudo-)labels per class; None where those of the state hold for all steps. All 0
        changes nothing.
      prior: [C] float, sums to 1; None = that of the state.
      decay: share of earlier steps kept, in [0, 1); 0 = this step alone, for sums over all images.

    Example:
      >>> first = update(init(torch.ones(2), torch.tensor([0.5, 0.5])), predicted=torch.tensor([6.0, 2.0]))
      >>> second = update(first, predicted=torch.tensor([0.0, 8.0]), decay=0.5)
      >>> second["predicted"].tolist(), second["counts"].tolist()
      ([3.0, 9.0], [1.0, 1.0])
    """
    kept = state["counts"]
    if counts is not None:
        kept = torch.where(counts.sum() > 0, decay * kept + counts, kept)
    return {
        "counts": kept,
        "predicted": decay * state["predicted"] + predicted,
        "prior": state["prior"] if prior is None else prior,
    }


def adjustment(text: str, state: Mapping[str, Tensor]) -> Adjustment:
    """The sum of the named adjustments.

    Args:
      text: names joined by +, see `names_of`.
      state: of `init` or `update`.

    Raises: ConfigError: an unknown name.

    Example: two classes of three images and one.
      >>> found = adjustment("la+ldam", init(torch.tensor([3, 1]), torch.tensor([0.5, 0.5])))
      >>> [[round(v, 4) for v in tensor.tolist()] for tensor in (found.offset, found.target_margin)]
      [[-0.2877, -1.3863], [-0.3799, -0.5]]
    """
    return sum((ADJUSTERS[name](state) for name in names_of(text)), Adjustment())
