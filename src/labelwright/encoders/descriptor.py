"""Colours and edges as features: what is known of images without any network that has learned something before.

1. orientations of edges in 4 x 4 and 8 x 8 fields, eight of them, without regard to sign or contrast
2. how frequent values of brightness and of two opponent colours are, in the image, its quarters and its sixteenths
3. the mean colours of 8 x 8 fields

Each part has a norm of about 1. Nothing in it is learned: a head on it is fitted in seconds, and of hundreds of
images knows more than a network that starts from random weights (benchmarks/descriptor.py).

Source: 1 Dalal & Triggs 2005 (CVPR), histograms of oriented gradients. Differs: the share of an orientation is the
  fourth power of its cosine to the gradient, in operations that can be exported. 2 Swain & Ballard 1991
  (IJCV 7), with square roots and linear interpolation between the bins.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "descriptor"
SIZE_PX = 64
MEAN, STD = 0.5, 0.25  # of pixels in 0 to 1, as they come in
ORIENTATIONS, BINS = 8, 8
EDGE_FIELDS, COLOUR_FIELDS, MEAN_FIELDS = (4, 8), (1, 2, 4), 8  # per side
FLAT = 0.02  # contrast below which there is no edge
FEW_IMAGES, FEW_LABELLED = 2000, 500
"""Up to so many images, up to so many of them labelled, no network from random weights is trained; of more both are,
and compared. Chosen on GTSRB, see benchmarks/descriptor.py."""


class Descriptor(nn.Module):
    """Images [B, 3, H, W] (sides a multiple of 8) to feats [B, D]; no weights.

    Attributes:
      n_features: D.

    Example:
      >>> net = Descriptor()
      >>> feats = net(torch.zeros(2, 3, 64, 64))
      >>> net.n_features, tuple(feats.shape), sum(p.numel() for p in net.parameters())
      (1336, (2, 1336), 0)
    """

    n_features = (
        sum(ORIENTATIONS * side**2 for side in EDGE_FIELDS)
        + sum(3 * BINS * side**2 for side in COLOUR_FIELDS)
        + 3 * MEAN_FIELDS**2
    )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images to feats."""
        x = x.float() * STD + MEAN
        edges, values = _edges(x.mean(1)), _values(x)
        found = []
        for side in EDGE_FIELDS:
            fields = F.adaptive_avg_pool2d(edges, side)
            found.append(fields / (fields.square().sum(1, keepdim=True).sqrt() + FLAT))
        found += [F.adaptive_avg_pool2d(values, side).sqrt() for side in COLOUR_FIELDS]
        found.append(F.adaptive_avg_pool2d(x, MEAN_FIELDS) - MEAN)
        return torch.cat([part.flatten(1) / math.sqrt(part[0].numel()) for part in found], 1)


def _edges(grey: Tensor) -> Tensor:
    """Gradients of [B, H, W] by orientation: [B, ORIENTATIONS, H, W]."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx, dy = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    length = (dx.square() + dy.square()).clamp(min=1e-12).sqrt()  # a small number added would be lost in ONNX
    angles = [math.pi * i / ORIENTATIONS for i in range(ORIENTATIONS)]
    along = torch.stack([dx * math.cos(angle) + dy * math.sin(angle) for angle in angles], 1)
    return along.square().square() / length.pow(3)[:, None]


def _values(x: Tensor) -> Tensor:
    """Brightness and two opponent colours of [B, 3, H, W], each shared out among two bins: [B, 3 * BINS, H, W]."""
    red, green, blue = x.unbind(1)
    seen = torch.stack([x.mean(1), (red - green + 1) / 2, (blue - (red + green) / 2 + 1) / 2], 1)
    bins = torch.linspace(0, 1, BINS, device=x.device)[:, None, None]
    return (1 - (seen[:, :, None] - bins).abs() * (BINS - 1)).clamp(min=0).flatten(1, 2)
