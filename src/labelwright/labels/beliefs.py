"""What a network believes of every image: the K most probable classes and their probabilities, never N x C.

    beliefs = init_beliefs(n_rows, n_classes, keep=32)
    write_beliefs(beliefs, rows, probs)                 # each batch of a pass over the training set
    probs = read_beliefs(beliefs, rows, n_classes)      # each step: [B, C]
    labels, confidence = top_of(beliefs)                # for the report

A table is a dict of tensors: "probs" [N, K] float32 and "classes" [N, K] int16 (int32 from 32,768 classes on), most
probable first, K = keep. With C <= keep classes it is exact: "probs" [N, C] in class order, without "classes".
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelwright.errors import ConfigError

INT16_CLASSES = 2**15  # classes 0..32767 fit into int16

Beliefs = dict[str, Tensor]


def init_beliefs(n_rows: int, n_classes: int, *, keep: int, device: torch.device | str = "cpu") -> Beliefs:
    """A table in which every class is as probable as any other.

    Args:
      n_rows: N.   n_classes: C.
      keep: >= 1, probabilities kept per row; with C or more the table is exact.
      device: where the table lives.

    Returns: the table: 6 bytes x keep per row (8 from 32,768 classes on), or 4 bytes x C if it is exact.

    Raises:
      ConfigError: keep < 1.

    Example:
      >>> {name: (list(t.shape), t.dtype) for name, t in init_beliefs(10, 100, keep=8).items()}
      {'probs': ([10, 8], torch.float32), 'classes': ([10, 8], torch.int16)}
      >>> list(init_beliefs(10, 5, keep=8))
      ['probs']
    """
    if keep < 1:
        raise ConfigError(f"keep={keep} keeps no class of an image", fix="use 1 or more; 32 is usual")
    n_kept = min(keep, n_classes)
    beliefs = {"probs": torch.full((n_rows, n_kept), 1 / n_classes, device=device)}
    if n_kept < n_classes:
        dtype = torch.int16 if n_classes < INT16_CLASSES else torch.int32
        beliefs["classes"] = torch.arange(n_kept, dtype=dtype, device=device).repeat(n_rows, 1)
    return beliefs


def write_beliefs(beliefs: Beliefs, rows: Tensor, probs: Tensor) -> None:
    """Write rows INTO the table given: copying it for each batch would cost N x K per batch.

    A recipe so writes only into a table that no one else holds: one that it has just made with `init_beliefs`.

    Args:
      beliefs: of `init_beliefs`, changed in place.
      rows: [B] int64 rows of the table, none twice.
      probs: [B, C] float, rows sum to 1 (written as float32 after division by their sum); on any device.

    Raises:
      ValueError: ``probs`` is not [B, C] for the B rows and the C classes of the table.

    Example: the two largest of four are kept; the rest is spread over the other two.
      >>> beliefs = init_beliefs(3, 4, keep=2)
      >>> write_beliefs(beliefs, torch.tensor([2]), torch.tensor([[0.125, 0.5, 0.0, 0.375]]))
      >>> read_beliefs(beliefs, torch.tensor([2, 0]), 4).tolist()
      [[0.0625, 0.5, 0.0625, 0.375], [0.25, 0.25, 0.25, 0.25]]
    """
    if probs.dim() != 2 or rows.shape != probs.shape[:1]:
        raise ValueError(f"probs {list(probs.shape)} are not [B, C] for rows {list(rows.shape)}")
    _check_classes(beliefs, probs.shape[1])
    table = beliefs["probs"]
    rows = rows.to(table.device)
    kept = probs.detach().float()
    kept = kept / kept.sum(dim=1, keepdim=True)
    if "classes" in beliefs:
        kept, classes = kept.topk(table.shape[1], dim=1)
        beliefs["classes"][rows] = classes.to(table.device, beliefs["classes"].dtype)
    table[rows] = kept.to(table.device)


def read_beliefs(beliefs: Beliefs, rows: Tensor, n_classes: int) -> Tensor:
    """Probabilities of some rows; what was not kept of a row is spread evenly over its other classes.

    Args:
      beliefs: of `init_beliefs`.
      rows: [B] int64 rows of the table.
      n_classes: C, as the table was made for.

    Returns: [B, C] float32 on the device of ``rows``, rows sum to 1.

    Raises:
      ValueError: the table is not one of C classes.

    Example: see `write_beliefs`.
      >>> read_beliefs(init_beliefs(2, 4, keep=3), torch.tensor([1]), 4).tolist()
      [[0.25, 0.25, 0.25, 0.25]]
    """
    _check_classes(beliefs, n_classes)
    at = rows.to(beliefs["probs"].device)
    kept = beliefs["probs"][at].to(rows.device)
    if "classes" not in beliefs:
        return kept
    classes = beliefs["classes"][at].to(rows.device, torch.int64)
    rest = (1 - kept.sum(dim=1, keepdim=True)).clamp(min=0)  # rounding alone makes it negative
    return (rest / (n_classes - kept.shape[1])).repeat(1, n_classes).scatter_(1, classes, kept)


def top_of(beliefs: Beliefs) -> tuple[Tensor, Tensor]:
    """The most probable class of every row and its probability; adds nothing that grows with N x K.

    Args:
      beliefs: of `init_beliefs`.

    Returns: labels [N] int64 and their probabilities [N] float32; a row never written has a class of no meaning, with
      probability 1 / C.

    Example:
      >>> beliefs = init_beliefs(1, 4, keep=2)
      >>> write_beliefs(beliefs, torch.tensor([0]), torch.tensor([[0.125, 0.5, 0.0, 0.375]]))
      >>> labels, confidence = top_of(beliefs)
      >>> labels.tolist(), confidence.tolist()
      ([1], [0.5])
    """
    if "classes" in beliefs:  # most probable first
        return beliefs["classes"][:, 0].long(), beliefs["probs"][:, 0].clone()
    confidence, labels = beliefs["probs"].max(dim=1)
    return labels, confidence


def _check_classes(beliefs: Beliefs, n_classes: int) -> None:
    """Refuse a number of classes that the table cannot be for."""
    n_kept = beliefs["probs"].shape[1]
    if "classes" in beliefs and n_classes <= n_kept:
        raise ValueError(f"{n_classes} classes for a table that keeps {n_kept} of more")
    if "classes" not in beliefs and n_classes != n_kept:
        raise ValueError(f"{n_classes} classes for a table of {n_kept}")
