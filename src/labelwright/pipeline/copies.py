"""Which images are copies of one another: equal, re-saved, resized or slightly cropped."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from labelwright.data.prepare import Source, thumbs_of
from labelwright.labels import audit as pieces

EQUAL_FEATS = 0.9999  # cosine from which on embeddings are taken for those of one image, but for rounding
CANDIDATES = 5  # nearest images that are compared with each
NEAR_COPY_ROWS = 200_000  # images among which a hold-out looks for copies that are not exact


def near_pairs(
    thumbs: npt.NDArray[np.uint8] | None, near: pieces.Neighbours | None, *, cuts: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are copies of one another but for saving, size and a slight crop; of embeddings but for rounding."""
    if thumbs is None:
        assert near is not None, "data without looks are embeddings"
        first, column = (near.sims >= EQUAL_FEATS).nonzero(as_tuple=True)
        return first, near.rows[first, column]
    candidates = [pieces.nearest(pieces.grey_feats(thumbs), k=CANDIDATES)]
    if near is not None:
        candidates.append(pieces.Neighbours(near.rows[:, :CANDIDATES], near.sims[:, :CANDIDATES]))
    return pieces.near_pairs(thumbs, candidates, cuts=cuts)


def copies_of(content: npt.NDArray[np.int64], pairs: tuple[torch.Tensor, torch.Tensor]) -> npt.NDArray[np.int64]:
    """Groups [N] of rows of one content and of rows that pairs join: a number from 0; -1 for rows without a copy."""
    n, leaders = len(content), np.unique(content, return_index=True)[1]
    of_one = torch.from_numpy(leaders[content])
    return pieces.joined(n, torch.cat([pairs[0], torch.arange(n)]), torch.cat([pairs[1], of_one]))


def same_picture(source: Source, content: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of a source's rows, the same for exact copies and for those that were re-saved or resized: the first row.

    The latter are looked for among decoded images that are kept, up to `NEAR_COPY_ROWS`.

    Args:
      content: [N] numbers from 0 on, the same for equal images.
    """
    thumbs = thumbs_of(source) if len(content) <= NEAR_COPY_ROWS else None
    if thumbs is None:
        return content
    copies = copies_of(content, near_pairs(thumbs, None, cuts=False))
    own = np.where(copies >= 0, copies, copies.max(initial=-1) + 1 + np.arange(len(copies)))
    _, first, which = np.unique(own, return_index=True, return_inverse=True)
    return first[which]


def has_two_labels(copies: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[N] bool: a copy of the image has another label."""
    known = (copies >= 0) & (labels >= 0)
    pairs = np.unique(np.stack([copies[known], labels[known]]), axis=1)
    groups, n_labels = np.unique(pairs[0], return_counts=True)
    return np.isin(copies, groups[n_labels > 1])
