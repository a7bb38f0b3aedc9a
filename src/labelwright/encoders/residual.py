"""Residual adapters on unit features: a small correction that starts close to nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualAdapter(nn.Module):
    """z -> unit norm of z + weight * relu(up(relu(down(z)))), two linear layers with a narrow middle.

    Args:
      n_hidden: width of the middle; None = D / 4, at least 4 (512 -> 128 in the paper).
      weight: share of the correction, > 0; 0.01 in the paper, for features whose cosines are multiplied by 100.

    Source: arXiv 2505.02056, Section 3.3 (methods of CAP); Gao et al. 2021 (arXiv 2110.04544), Eq. (3) and (5).
      Differs: the input keeps its full share.

    Example: with the second layer at zero nothing is added.
      >>> adapter = ResidualAdapter(4, weight=0.5)
      >>> _ = torch.nn.init.zeros_(adapter.up.weight), torch.nn.init.zeros_(adapter.up.bias)
      >>> adapter(torch.tensor([[0.0, 3.0, 0.0, 4.0]])).tolist()
      [[0.0, 0.6000000238418579, 0.0, 0.800000011920929]]
    """

    def __init__(self, n_features: int, *, n_hidden: int | None = None, weight: float = 0.01) -> None:
        super().__init__()
        n_hidden = max(4, n_features // 4) if n_hidden is None else n_hidden
        self.down = nn.Linear(n_features, n_hidden)
        self.up = nn.Linear(n_hidden, n_features)
        self.weight = weight

    def forward(self, z: Tensor) -> Tensor:
        """Map features [B, D] to unit features [B, D] float32."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            return F.normalize(z + self.weight * F.relu(self.up(F.relu(self.down(z)))), dim=1)
