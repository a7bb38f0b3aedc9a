"""A second opinion on labels that no network has a part in: what images that look alike in 8 x 8 pixels are labelled.

    vote(c)  = sum of softmax(sharpness z . r) over the references r of class c
    chance   = (1 - doubt) vote(y) + doubt prior(y), y the label of the image
    evidence = weight (log-odds of chance - log-odds of prior(y) - its mean)

References are training images under the labels that a run gives them. Sharpness and doubt are the likeliest for these
labels, each image voted on by the others. The weight is that of a voter in the best weighted vote, the log-odds of
kappa, and 0 from one half down; kappa is the mean vote for the label beyond what chance would give: how often votes and
labels agree. Pixels tell handwriting apart nearly as well as a network does, which makes other mistakes. They do not
tell photographs apart: those that look alike have the same background and share mistakes with the network, and the
weight is 0.

benchmarks/trust.py compares the trust that comes of it with other scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

REFERENCES = 2_000  # training images that vote
LEAST_ROWS = 100  # of fewer training images none votes
SHARPNESS = (16.0, 32.0, 64.0, 128.0)  # that are tried
MOST_KAPPA = 0.95  # that is believed
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

    Source: kappa of Cohen 1960, of probabilities in place of labels; weights of Nitzan and Paroush 1982 (International
      Economic Review 23), for voters who are right as often as kappa says.

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

    def tried(sharpness: float) -> tuple[float, float, Tensor]:
        """Misfit, doubt and vote [R] for the label."""
        vote = ((sharpness * sims).softmax(1) * of_label).sum(1).double()

        def misfit(doubt: float) -> float:
            return -float(((1 - doubt) * vote + doubt * prior[labels]).log().mean())

        found = minimize_scalar(misfit, bounds=(1e-3, 1.0), method="bounded", options={"xatol": 1e-4})
        return float(found.fun), float(found.x), vote

    misfits = {sharpness: tried(sharpness) for sharpness in SHARPNESS}
    sharpness = min(misfits, key=lambda each: misfits[each][0])
    _, doubt, vote = misfits[sharpness]
    by_chance = float(prior.square().sum())
    kappa = min((float(vote.mean()) - by_chance) / (1 - by_chance), MOST_KAPPA)
    if kappa <= 0.5:
        return None
    weight = math.log(kappa / (1 - kappa))
    plain = PixelVotes(references, labels, prior, torch.tensor([sharpness, doubt, 1.0, 0.0], dtype=torch.float64))
    mean = float(plain.evidence(pixels, labels, exclude=exclude).mean())
    return PixelVotes(references, labels, prior, torch.tensor([sharpness, doubt, weight, mean], dtype=torch.float64))


def _sims(pixels: Tensor, references: Tensor, exclude: Tensor | None) -> Tensor:
    """Cosines [B, R] float32, -1 for those without a vote."""
    others = F.normalize(references.to(pixels.device).float(), dim=1)
    sims = F.normalize(pixels.float(), dim=1) @ others.T
    out = sims > SAME
    return torch.where(out if exclude is None else out | exclude.to(pixels.device), -1.0, sims)
