"""Features of images as they were stored, and views drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelwright.data.augment import RowGenerator
from labelwright.data.views import VIEWS
from labelwright.errors import ConfigError

CHUNK = 8192  # rows read at once
Halves = npt.NDArray[np.float16]


class StoredFeats(Protocol):
    """Features [n_rows, n_features] of images, with V of each kind of augmented view, for `EmbeddingViews`."""

    n_rows: int
    n_features: int

    def n_views(self, view: str) -> int:
        """How many different features an image has under a view of VIEWS."""

    def read(self, rows: Tensor, view: str, index: Tensor) -> Tensor:
        """[B, D] float on the CPU: for rows [B] int64, the index-th (index [B] int64 within 0..V-1) of their views."""


class EmbeddingStore:
    """Stored features of one encoder: N images, each clean, in V weak and in V strong views.

    Attributes:
      feats: [1+2V, N, D] float16, in memory or mapped from the disk: clean, then weak, then strong.

    Example:
      >>> store = EmbeddingStore(np.arange(12, dtype=np.float16).reshape(3, 2, 2))
      >>> store.read(torch.tensor([1, 0]), "strong", torch.tensor([0, 0])).tolist()
      [[10.0, 11.0], [8.0, 9.0]]
    """

    def __init__(self, feats: Halves) -> None:
        assert feats.dtype == np.float16, feats.dtype
        assert feats.ndim == 3, feats.shape
        assert len(feats) % 2 == 1, "one clean plane, and as many strong as weak ones"
        self.feats = np.asarray(feats)  # a memory map without numpy's slower indexing of its own class
        _, self.n_rows, self.n_features = self.feats.shape
        self._flat: Halves = self.feats.reshape(-1, self.n_features)  # a view, not a copy

    def n_views(self, view: str) -> int:
        """How many stored features an image has under a view: 1 clean, V weak, V strong."""
        return 1 if view == "clean" else len(self.feats) // 2

    def read(self, rows: Tensor, view: str, index: Tensor) -> Tensor:
        """[B, D] float16 on the CPU: for rows [B] int64, the index-th (index [B] int64) of their views."""
        first = {"clean": 0, "weak": 1, "strong": 1 + self.n_views("weak")}[view]
        return torch.from_numpy(self._flat[((first + index) * self.n_rows + rows).numpy()])


class EmbeddingViews:
    """Views of stored features (a `types.ViewSource`), as they were stored: not normalised again.

    Which of the V views an image shows depends on (seed, view, its row in ``stored``) alone; the images of a batch show
    different ones, and one listed twice may show two.

    Args:
      stored: the features.   rows: [N] int64 rows of them that are rows 0..N-1 here; None = all.

    Example:
      >>> stored = EmbeddingStore(np.arange(12, dtype=np.float16).reshape(3, 2, 2))
      >>> views = EmbeddingViews(stored, rows=torch.tensor([1]))
      >>> views.batch(torch.tensor([0]), "weak", seed=0, device=torch.device("cpu")).tolist()
      [[6.0, 7.0]]
    """

    def __init__(self, stored: StoredFeats, *, rows: Tensor | None = None) -> None:
        self.stored = stored
        self._rows = rows

    @property
    def n_rows(self) -> int:
        """N images behind this source."""
        return self.stored.n_rows if self._rows is None else len(self._rows)

    @property
    def n_features(self) -> int:
        """D."""
        return self.stored.n_features

    def prefetch(self, rows: Tensor) -> None:
        """Nothing to do: reading is a copy from memory or the page cache."""

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        """One view [B, D] float32 of rows [B] int64, one of VIEWS; the same seed gives the same view.

        Raises: ConfigError for an unknown view, or one that was not stored.
        """
        if view not in VIEWS:
            raise ConfigError(f"no such view: {view!r}", fix=f"one of {', '.join(VIEWS)}")
        n_views = self.stored.n_views(view)
        if n_views < 1:
            raise ConfigError(f"no {view} views were stored", fix="store one or more augmented views of every image")
        behind = self._behind(rows.cpu())
        if n_views == 1:
            index = torch.zeros_like(behind)
        else:
            drawn = RowGenerator(behind, seed=seed, stream=VIEWS.index(view)).uniform(1)[:, 0]
            index = (drawn.double() * n_views).long()  # [B] in 0..V-1
        return self.stored.read(behind, view, index).to(device, non_blocking=True).float()

    def feats(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        """Clean features of many rows [n] int64 (None = all) in order, in chunks [b, D] float32 on the CPU."""
        for some in torch.split(torch.arange(self.n_rows) if rows is None else rows, CHUNK):
            yield self.batch(some, "clean", seed=0, device=torch.device("cpu"))

    def _behind(self, rows: Tensor) -> Tensor:
        return rows if self._rows is None else self._rows[rows]
