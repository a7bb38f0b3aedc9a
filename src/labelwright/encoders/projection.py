"""A classifier with a second output: projections on the unit sphere, for contrastive losses and prototypes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.backbones import Classifier, Ensemble
from labelwright.errors import ConfigError
from labelwright.types import Network


class ProjectedNet(nn.Module):
    """A network and a two-layer projector beside its last layer, both on what that layer sees.

    It is a `types.Network` itself, and answers as the classifier alone. The projector serves training only: `exported`
    leaves it out. Its weights are drawn from the global generator.

    Args:
      classifier: a `types.Network` that is a module; trained along.   n_dims: >= 1, width of the projections.

    Attributes:
      summed_with: networks whose logits are added to those of this one in what is exported; trained on their own, and
        not part of this module.

    Raises: ConfigError: n_dims < 1.

    Source: Chen et al. 2020 (arXiv 2002.05709), section 4.2 (two layers, 128 dimensions).

    Example:
      >>> import torch
      >>> from labelwright.encoders.backbones import build
      >>> net = ProjectedNet(build("resnet32", 10, seed=0), n_dims=4)
      >>> logits, z = net.both(torch.randn(2, 3, 32, 32))
      >>> tuple(logits.shape), tuple(z.shape), [round(v, 4) for v in z.norm(dim=1).tolist()]
      ((2, 10), (2, 4), [1.0, 1.0])
    """

    def __init__(self, classifier: Network, *, n_dims: int = 128) -> None:
        super().__init__()
        if n_dims < 1:
            raise ConfigError(f"n_dims is {n_dims}", fix="projections need at least one dimension; 128 is usual")
        self.classifier = classifier
        self.summed_with: tuple[ProjectedNet, ...] = ()
        self.n_features = width = classifier.n_features
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_dims))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and projections [B, n_dims] float32 of unit norm, from one pass over views."""
        h = self.penultimate(x)
        z = F.normalize(self.projector(h).float(), dim=1)
        return self.from_penultimate(h), z

    def features(self, x: Tensor) -> Tensor:
        """Backbone features [B, D] of views."""
        return self.classifier.features(x)

    def head_logits(self, feats: Tensor) -> Tensor:
        """Logits [B, C] of features."""
        return self.classifier.head_logits(feats)

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer and the projector see of views, [B, D]."""
        return self.classifier.penultimate(x)

    def from_penultimate(self, h: Tensor) -> Tensor:
        """Logits [B, C] of what `penultimate` gives."""
        return self.classifier.from_penultimate(h)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of views."""
        return self.classifier(x)

    def exported(self) -> Classifier | Ensemble:
        """What a saved model holds: the classifier without the projector, or all that are summed."""
        members: list[Any] = [net.classifier for net in (self, *self.summed_with)]
        made: list[Classifier] = [member.exported() for member in members]
        return made[0] if len(made) == 1 else Ensemble(made)
