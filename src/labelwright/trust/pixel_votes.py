"""A second opinion on labels that no network has a part in: what images that look alike in 8 x 8 pixels are labelled.

    vote(c)  = sum of softmax(sharpness z . r) over the references r of class c
    chance   = (1 - doubt) vote(y) + doubt prior(y), y the label of the image
    evidence = weight (log-odds of chance - log-odds of prior(y) - its mean)

References are training images under the labels that a run gives them. Doubt is 1 - kappa, the mean vote for the label
beyond what chance would give, each image voted on by the others: how often votes and labels agree. Where that is half
of the time or less, pixels are not heard. The sharpness is the one under which the labels are likeliest. The weight is
1, and where labels were left out what they ask for: images under predicted labels share mistakes with what predicted
them. Pixels tell handwriting apart nearly as well as a network does, which makes other mistakes. They do not tell
photographs apart: those that look alike have the same background.

benchmarks/trust.py compares the trust that comes of it with other scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

REFERENCES = 2_000  # training images that vote
LEAST_ROWS = 100  # of fewer training images none votes
SHARPNESS = (16.0, 32.0, 64.0, 128.0)  # that are tried
MOST_KAPPA = 0.95  # that is believed
WEIGHT, WEIGHT_SPREAD = 1.0, 0.5  # without labels that were left out, and how far they easily move it
SAME = 1 - 1e-4  # cosine from which on two images are one and the same, which has no vote on itself
PREFIX = "votes."  # of names in a file


@dataclass(frozen=True)
class PixelVotes:
    """What votes, and how much it counts.

    Attributes:
      references: [R, D] float16, `strangers.small_pixels` of training images.
      classes: [R] int64 label of each.
      prior: [C] float32 share of each class, above 0.
      numbers: [4] float64: sharpness, doubt, weight, and the mean of the log-odds over training images.
    """

    references: Tensor
    classes: Tensor
    prior: Tensor
    numbers: Tensor

    @property
    def weight(self) -> float:
        """How much they count, 0 to 1."""
        return float(self.numbers[2])

    def evidence(self, pixels: Tensor, labels: Tensor, *, exclude: Tensor | None = None) -> Tensor:
        """What pixels add to the log-odds [B] float32 that labels are right.

        Args:
          pixels: [B, D] float, `strangers.small_pixels` of the images.
          labels: [B] int64, 0 to C - 1.
          exclude: [B, R] bool, references that have no vote on an image; one that looks the same never has.

        Example:
          >>> references, classes = torch.eye(2).half(), torch.tensor([0, 1])
          >>> votes = PixelVotes(references, classes, torch.full((2,), 0.5), torch.tensor([16.0, 0.1, 1.0, 0.0]))
          >>> votes.evidence(torch.tensor([[1.0, 0.2], [1.0, 0.2]]), torch.tensor([0, 1])).round().tolist()
          [3.0, -3.0]
        """
        sharpness, doubt, weight, mean = self.numbers.float().to(pixels.device)
        sims = _sims(pixels, self.references, exclude)
        of_label = self.classes.to(pixels.device) == labels[:, None]
        prior = self.prior.to(pixels.device)[labels]
        chance = (1 - doubt) * ((sharpness * sims).softmax(1) * of_label).sum(1) + doubt * prior
        found: Tensor = weight * (chance.clamp(1e-6, 1 - 1e-6).logit() - prior.logit() - mean)
        return found

    def weighed(self, chances: Tensor, evidence: Tensor, right: Tensor) -> PixelVotes:
        """The same with the weight that labels ask for which were left out, 0 to 1, by maximum a posteriori.

        Args:
          chances: [n] float, that these labels are right without votes.   evidence: [n] float, `evidence` on them.
          right: [n] bool.

        Example: votes that speak against right labels and for wrong ones.
          >>> votes = PixelVotes(torch.eye(2).half(), torch.arange(2), torch.full((2,), 0.5), torch.ones(4))
          >>> right = torch.arange(100) % 2 == 0
          >>> votes.weighed(torch.full((100,), 0.5), torch.where(right, -2.0, 2.0), right).weight
          0.0
        """
        logits = chances.double().clamp(1e-6, 1 - 1e-6).logit().numpy()
        spoken, wanted = (evidence - evidence.mean()).double().numpy(), right.numpy()

        def loss(at: Any) -> float:
            logit = logits + at[0] * spoken + at[1]
            misfit = (np.logaddexp(0, logit) - wanted * logit).sum()
            return float(misfit + ((at[0] - WEIGHT) / WEIGHT_SPREAD) ** 2 / 2)

        found = minimize(loss, np.array([WEIGHT, 0.0]), bounds=[(0.0, 1.0), (None, None)])
        numbers = self.numbers.clone()
        numbers[2] *= float(found.x[0])
        return dataclasses.replace(self, numbers=numbers)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; `from_tensors` reads them."""
        keys = ("references", "classes", "prior", "numbers")
        return {PREFIX + key: getattr(self, key) for key in keys}


def from_tensors(tensors: Mapping[str, Tensor]) -> PixelVotes | None:
    """The inverse of `PixelVotes.tensors`; None where there are none."""
    own = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    return PixelVotes(**own) if own else None


def fit_votes(pixels: Tensor, labels: Tensor, *, n_classes: int, groups: Tensor | None = None) -> PixelVotes | None:
    """Find out what pixels say of labels, from these labels alone: no truth is looked at.

    Args:
      pixels: [R, D] float, `strangers.small_pixels` of training images.
      labels: [R] int64, 0 to C - 1, as given or predicted.
      n_classes: C.
      groups: [R] int64, images of one group have no vote on each other; or None.

    Returns: None where pixels say too little to be heard.

    Source: kappa of Cohen 1960, of probabilities in place of labels.

    Example: two kinds of pictures under two labels; labels that have nothing to do with the pictures.
      >>> kind = torch.arange(200) % 2
      >>> pixels = F.one_hot(kind, 8) + 0.1 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
      >>> fit_votes(pixels, kind, n_classes=2) is None, fit_votes(pixels, torch.arange(200) // 100, n_classes=2) is None
      (False, True)
    """
    if len(labels) < LEAST_ROWS or n_classes < 2:
        return None
    prior = (torch.bincount(labels, minlength=n_classes) + 1.0) / (len(labels) + n_classes)
    references = pixels.half()
    exclude = torch.eye(len(labels), dtype=torch.bool)
    exclude = exclude if groups is None else exclude | (groups[:, None] == groups)
    sims, of_label = _sims(pixels, references, exclude), labels == labels[:, None]

    by_chance = float(prior.square().sum())

    def tried(sharpness: float) -> tuple[float, float]:
        """Misfit and kappa."""
        vote = ((sharpness * sims).softmax(1) * of_label).sum(1).double()
        kappa = min((float(vote.mean()) - by_chance) / (1 - by_chance), MOST_KAPPA)
        return -float((kappa * vote + (1 - kappa) * prior[labels]).clamp(min=1e-12).log().mean()), kappa

    found = {sharpness: tried(sharpness) for sharpness in SHARPNESS}
    sharpness = min(found, key=lambda each: found[each][0])
    kappa = found[sharpness][1]
    if kappa <= 0.5:
        return None
    numbers = torch.tensor([sharpness, 1 - kappa, WEIGHT, 0.0], dtype=torch.float64)
    plain = PixelVotes(references, labels, prior, numbers)
    numbers[3] = plain.evidence(pixels, labels, exclude=exclude).mean()
    return plain


def _sims(pixels: Tensor, references: Tensor, exclude: Tensor | None) -> Tensor:
    """Cosines [B, R] float32, -1 for those without a vote."""
    others = F.normalize(references.to(pixels.device).float(), dim=1)
    sims = F.normalize(pixels.float(), dim=1) @ others.T
    out = sims > SAME
    return torch.where(out if exclude is None else out | exclude.to(pixels.device), -1.0, sims)
