"""Candidate label sets of many images, stored sparsely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Candidate label sets of N images, stored as compressed sparse rows.

    Attributes:
      offsets: [N+1] int64; the set of row i is ``classes[offsets[i]:offsets[i+1]]``; empty = nothing known.
      classes: [nnz] int32 class indices, ascending inside a row.
      weights: [nnz] float32 (rows sum to 1), or None for sets without weights.

    Example:
      >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
      >>> sets.of(0).tolist(), sets.of(1).tolist()
      ([0, 3], [])
    """

    offsets: Tensor
    classes: Tensor
    weights: Tensor | None = None

    def of(self, row: int) -> Tensor:
        """Class indices of one row, [k] int32."""
        return self.classes[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __len__(self) -> int:
        return int(self.offsets.numel()) - 1

    def mask(self, rows: Tensor, n_classes: int) -> Tensor:
        """The sets of some rows, dense: for one batch at a time.

        Args:
          rows: [B] int64, 0 to N - 1, in any order.
          n_classes: C, above every class of the sets.

        Returns: [B, C] bool on the device of ``rows``; all False where a set is empty.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> sets.mask(torch.tensor([1, 0]), 4).int().tolist()
          [[0, 0, 0, 0], [1, 0, 0, 1]]
        """
        _, own, at = self._entries(rows)
        mask = torch.zeros(len(rows), n_classes, dtype=torch.bool, device=rows.device)
        mask[own.to(rows.device), self.classes[at].to(rows.device, torch.int64)] = True
        return mask

    def shares(self, rows: Tensor, n_classes: int) -> Tensor:
        """The weights of some rows, dense; without weights the members of a set share evenly.

        Args:
          rows: [B] int64, 0 to N - 1.
          n_classes: C, above every class of the sets.

        Returns: [B, C] float32 on the device of ``rows``; rows sum to 1, to 0 where a set is empty or weighs nothing.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> sets.shares(torch.tensor([0, 1]), 4).tolist()
          [[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]]
        """
        _, own, at = self._entries(rows)
        shares = torch.zeros(len(rows), n_classes, device=rows.device)
        weights = 1.0 if self.weights is None else self.weights[at].to(shares)
        shares[own.to(rows.device), self.classes[at].to(rows.device, torch.int64)] = weights
        return shares / shares.sum(1, keepdim=True).clamp(min=1e-12)

    def take(self, rows: Tensor) -> Candidates:
        """The sets of some rows, in their order.

        Args:
          rows: [n] int64, 0 to N - 1; a row may come twice.

        Returns: n sets, on the device of these.

        Example:
          >>> sets = Candidates(torch.tensor([0, 2, 2]), torch.tensor([0, 3], dtype=torch.int32))
          >>> taken = sets.take(torch.tensor([1, 0]))
          >>> taken.of(0).tolist(), taken.of(1).tolist()
          ([], [0, 3])
        """
        offsets, _, at = self._entries(rows)
        return Candidates(offsets, self.classes[at], None if self.weights is None else self.weights[at])

    def to(self, device: torch.device | str) -> Candidates:
        """The same sets on another device.

        Example:
          >>> sets = Candidates(torch.tensor([0, 1]), torch.tensor([2], dtype=torch.int32))
          >>> sets.to("cpu").of(0).tolist()
          [2]
        """
        weights = None if self.weights is None else self.weights.to(device)
        return Candidates(self.offsets.to(device), self.classes.to(device), weights)

    def _entries(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of some rows [n]: their own offsets [n+1], and of each member of their sets the place of its row in ``rows``
        and its own place in ``classes``, [nnz] int64 both.
        """
        rows = rows.to(self.offsets.device)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        own = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
        at = (starts - offsets[:-1])[own] + torch.arange(len(own), device=rows.device)
        return offsets, own, at
