"""Heads of classifiers: what turns backbone features into logits."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.residual import ResidualAdapter


class CosineHead(nn.Module):
    """Linear head without bias on unit feats and unit weights: logits are cosines, -1 to 1, times a scale.

    The scale is a buffer, 1 at first; LDAM's loss has one of its own. Computed in float32 even under autocast, since a
    scale of 30 would turn bfloat16's rounding into errors of 0.1.

    Source: Cao et al. 2019 (arXiv 1906.07413), section 3.2 (normalised last layer).

    Example:
      >>> head = CosineHead(2, 1)
      >>> _ = torch.nn.init.constant_(head.weight, 5.0)
      >>> [round(v, 4) for v in head(torch.tensor([[3.0, 3.0], [1.0, 0.0]])).flatten().tolist()]
      [1.0, 0.7071]
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))
        self.weight = nn.Parameter(torch.randn(n_outputs, n_features))

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to scaled cosines [B, C] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            return self.scale * F.linear(F.normalize(feats.float(), dim=1), F.normalize(self.weight.float(), dim=1))


class TextHead(nn.Module):
    """Linear head on unit feats, put through a residual adapter first; float32 even under autocast.

    Args:
      weight: [C, D] class features times the logit scale, and whatever is added to them.   bias: [C].
      visual: adapter of the feats, or None.

    Example:
      >>> TextHead(torch.tensor([[2.0, 0.0]]), torch.tensor([1.0]))(torch.tensor([[0.5, 0.5]])).tolist()
      [[2.0]]
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, visual: ResidualAdapter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.bias = nn.Parameter(bias.detach().clone().float())
        self.visual = visual

    def forward(self, feats: Tensor) -> Tensor:
        """Map unit feats [B, D] to logits [B, C] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            z = feats.float() if self.visual is None else self.visual(feats)
            return F.linear(z, self.weight, self.bias)


class CacheHead(nn.Module):
    """logits = z . w + alpha * sum over cached images of the class of exp(-beta (1 - z . key)); float32 throughout.

    Args:
      weight: [C, D] class features times the logit scale.
      labels: [n] int64, classes of the cached images; their features `keys` [n, D] are a buffer, zero at first, and so
        are `alpha` and `beta`.

    Source: Zhang et al. 2022 (arXiv 2207.09519), Eq. (6).

    Example: an image as the only cached one adds alpha to its class.
      >>> head = CacheHead(torch.eye(2), torch.tensor([1]))
      >>> _ = head.keys.copy_(torch.tensor([[1.0, 0.0]])), head.alpha.fill_(3.0)
      >>> head(torch.tensor([[1.0, 0.0]])).tolist()
      [[1.0, 3.0]]
    """

    def __init__(self, weight: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.labels: Tensor
        self.keys: Tensor
        self.alpha: Tensor
        self.beta: Tensor
        self.register_buffer("weight", weight.detach().clone().float())
        self.register_buffer("labels", labels.detach().clone())
        self.register_buffer("keys", weight.new_zeros(len(labels), weight.shape[1], dtype=torch.float32))
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("beta", torch.zeros(()))

    def forward(self, feats: Tensor) -> Tensor:
        """Map unit feats [B, D] to logits [B, C] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            z = feats.float()
            near = torch.exp(-self.beta * (1 - z @ self.keys.T))  # [B, n]
            return (z @ self.weight.T).index_add(1, self.labels, self.alpha * near)


class MlpHead(nn.Module):
    """A residual layer, then a linear one: something to learn on features that are frozen.

    trunk(f) = f + W2 relu(W1 f + b1) + b2, logits = W trunk(f) + b. W2 and b2 start at 0, so that the trunk hands the
    features on as they are until it has learned something.

    Source: He et al. 2016 (arXiv 1512.03385), Eq. (1); starting at the identity: Goyal et al. 2017 (arXiv 1706.02677),
      section 5.1, by its last scale.

    Example:
      >>> head = MlpHead(2, 3)
      >>> head.trunk(torch.tensor([[1.0, 2.0]])).tolist(), tuple(head(torch.zeros(5, 2)).shape)
      ([[1.0, 2.0]], (5, 3))
    """

    def __init__(self, n_features: int, n_outputs: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(n_features, hidden)
        self.from_hidden = nn.Linear(hidden, n_features)
        self.linear = nn.Linear(n_features, n_outputs)
        nn.init.zeros_(self.from_hidden.weight)
        nn.init.zeros_(self.from_hidden.bias)

    def trunk(self, feats: Tensor) -> Tensor:
        """What the linear layer sees, [B, D], of feats [B, D]."""
        moved: Tensor = self.from_hidden(torch.relu(self.to_hidden(feats)))
        return feats + moved

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C]."""
        logits: Tensor = self.linear(self.trunk(feats))
        return logits


class ProjectedHead(nn.Module):
    """Linear head on unit projections: logits = W u + b, u = P (f - m) / |P (f - m)|; float32 even under autocast.

    m and P are buffers, zero and the identity at first. Multiplying features and mean by a number changes nothing.

    Args:
      n_features: D.   n_outputs: C.   n_dims: width of u; D if that is less.

    Example:
      >>> head = ProjectedHead(3, 2, n_dims=2)
      >>> head.project(torch.tensor([[3.0, 4.0, 9.0]])).tolist(), tuple(head(torch.zeros(5, 3)).shape)
      ([[0.6000000238418579, 0.800000011920929]], (5, 2))
    """

    def __init__(self, n_features: int, n_outputs: int, *, n_dims: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.projection: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("projection", torch.eye(min(n_dims, n_features), n_features))
        self.linear = nn.Linear(len(self.projection), n_outputs)

    def project(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to unit projections [B, n_dims] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            return F.normalize((feats.float() - self.mean) @ self.projection.T, dim=1)

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C] float32."""
        u = self.project(feats)
        with torch.autocast(feats.device.type, enabled=False):
            logits: Tensor = self.linear(u)
        return logits


class LiftedHead(ProjectedHead):
    """`ProjectedHead` that keeps the length of projections: u = (p, 1) / |(p, 1)|, p = P (f - m).

    On the sphere of one dimension more nothing is lost: features near the mean, which have no direction, have a place
    of their own. P is to bring the numbers of p to about 1: of few columns the length says much, of many little.

    Example: the same direction, at three lengths.
      >>> head = LiftedHead(1, 2, n_dims=1)
      >>> [[round(v, 2) for v in row] for row in head.project(torch.tensor([[0.0], [1.0], [3.0]])).tolist()]
      [[0.0, 1.0], [0.71, 0.71], [0.95, 0.32]]
    """

    def __init__(self, n_features: int, n_outputs: int, *, n_dims: int) -> None:
        super().__init__(n_features, n_outputs, n_dims=n_dims)
        self.linear = nn.Linear(len(self.projection) + 1, n_outputs)

    def project(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to unit projections [B, n_dims + 1] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            return F.normalize(F.pad((feats.float() - self.mean) @ self.projection.T, (0, 1), value=1.0), dim=1)


class CentredHead(nn.Module):
    """Linear head on centred features of unit scale: logits = W (f - m) / s + b; float32 even under autocast.

    m and s are buffers, zero and one at first. Neither shifting nor scaling the features with m and s changes anything.

    Example:
      >>> head = CentredHead(2, 3)
      >>> tuple(head(torch.zeros(5, 2)).shape), head.scale.item()
      ((5, 3), 1.0)
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            logits: Tensor = self.linear((feats.float() - self.mean) / self.scale)
        return logits


class KernelHead(nn.Module):
    """Linear head on the nearness to images: logits = W k + b, k_j = exp(-|z - l_j|^2 / v), z = (f - m) / s; float32.

    The images l, m, s and v are buffers: zero, or one.

    Args:
      n_features: D.   n_outputs: C.   n_images: of l.

    Example: an image has a nearness of 1 to itself.
      >>> head = KernelHead(2, 3, n_images=4)
      >>> _ = head.images.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))
      >>> [round(v, 4) for v in head.near(torch.tensor([[0.0, 0.0]]))[0].tolist()]
      [1.0, 0.3679, 0.0183, 0.0001]
    """

    def __init__(self, n_features: int, n_outputs: int, *, n_images: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.images: Tensor
        self.width: Tensor
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("images", torch.zeros(n_images, n_features))
        self.register_buffer("width", torch.ones(()))
        self.linear = nn.Linear(n_images, n_outputs)

    def near(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to the nearness to each image, [B, n_images] float32, 0 to 1."""
        with torch.autocast(feats.device.type, enabled=False):
            z = (feats.float() - self.mean) / self.scale
            far = z.square().sum(1, keepdim=True) + self.images.square().sum(1) - 2 * z @ self.images.T
            return torch.exp(-far.clamp(min=0) / self.width)

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C] float32."""
        near = self.near(feats)
        with torch.autocast(feats.device.type, enabled=False):
            logits: Tensor = self.linear(near)
        return logits


@torch.no_grad()
def put_in(net: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Put a linear classifier into the last layer of a `types.Network`."""
    head: Any = cast(Any, net).head
    linear = getattr(head, "linear", head)  # behind a projection or a residual layer, or the head itself
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
