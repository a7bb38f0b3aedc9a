"""A classifier as others serve it: from raw pixels, or embeddings, to probabilities that are calibrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labelwright.trust.strangers import Strangers, small_pixels

OUTPUTS = ("probabilities", "label", "trust", "strangeness")
"""[B, C] softmax; [B] int64 position of the class; [B] chance that this class is right; [B] 0 to 1, how unlike the
training images (`trust.strangers`), which models that cannot tell leave out."""


class Served(nn.Module):
    """Normalisation, network, classes of its outputs and calibration in one module, to run without labelwright.

    Takes images [B, 3, H, W] in grey levels 0 to 255 (uint8 or float), or with ``mean=None`` embeddings [B, D].
    Returns the tensors of OUTPUTS.

    Args:
      net: maps normalised images, or embeddings, to logits [B, K], in evaluation mode.
      outputs: class of each of the K outputs, -1 = none; empty: output k is class k.
      trust_of: maps probabilities [B, C], and the normalised images or embeddings that they are of, to the chance [B]
        that the most probable class is right.
      strangers: what tells images of no class, whose trust falls with their strangeness; None: there is nothing.
      mean, std: three numbers each, of RGB in 0 to 1; None for embeddings.

    Example:
      >>> served = Served(nn.Identity(), 2, outputs=(1, 1, 0), trust_of=lambda p, x: p.amax(1) / 2)
      >>> probabilities, label, trust = served(torch.zeros(1, 3))
      >>> probabilities.tolist(), label.tolist(), trust.tolist()
      ([[0.3333333432674408, 0.6666666865348816]], [1], [0.3333333432674408])
    """

    into: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        n_classes: int,
        *,
        outputs: Sequence[int] = (),
        trust_of: Callable[[Tensor, Tensor], Tensor],
        strangers: Strangers | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.trust_of = trust_of
        self.strangers, self.feats = strangers, list[Tensor]()
        self.strange_from = 1.0 if strangers is None else strangers.threshold
        self.takes_pixels = mean is not None and std is not None
        if strangers is not None:
            backbone: Any = net.backbone
            backbone.register_forward_hook(lambda _, x, feats: self.feats.append(feats))
        self.kept = [place for place, of in enumerate(outputs) if of >= 0]
        into = torch.zeros(len(self.kept), n_classes)  # [kept outputs, C]: which class each is
        for row, place in enumerate(self.kept):
            into[row, outputs[place]] = 1
        self.register_buffer("into", into)
        if mean is not None and std is not None:
            self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which of OUTPUTS there are."""
        return OUTPUTS if self.strangers is not None else OUTPUTS[:-1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tensors of `outputs` for images or embeddings."""
        self.feats.clear()
        x = (x.float() / 255 - self.mean) / self.std if self.takes_pixels else x.float()
        logits: Tensor = self.net(x).float()
        if self.kept:
            probs = logits[:, self.kept].softmax(dim=1) @ self.into
        else:
            probs = logits.softmax(dim=1)
        trust = self.trust_of(probs, x)
        if self.strangers is None:
            return probs, probs.argmax(dim=1), trust
        looks = (self.feats[0].float(), *([small_pixels(x)] if self.takes_pixels else []))
        strangeness = self.strangers.placed(self.strangers.score(looks))
        strange = trust * (1 - strangeness) / (1 - self.strange_from)
        trust = torch.where(strangeness > self.strange_from, strange, trust)
        return probs, probs.argmax(dim=1), trust, strangeness
