"""Candidate sets from a two-tower model's features, what they are worth, and the table they are written to.

Images come in chunks, prompts one by one: memory grows with images x kept candidates, never images x classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from labelwright.data.columns import METADATA_KEY
from labelwright.data.layouts import path_from
from labelwright.data.table import SPLITS, LabelTable
from labelwright.errors import ConfigError
from labelwright.replacing import disk_errors, replacing
from labelwright.types import Candidates

Rule = Literal["union", "top_k", "ratio", "mean"]
"""union: the top class of every prompt; top_k, ratio, mean: of the mean probability over prompts, see `pick`."""

_ENTRIES_AT_ONCE = 1 << 24  # of a chunk x classes table; 64 MB in float32
_FILE_ROWS = 65_536  # rows of a row group when the images are files
_EMBEDDED_ROWS = 512  # rows of a row group, and in memory at once, when they are embedded


def candidates_from_feats(
    chunks: Iterable[Tensor],
    prompt_feats: Tensor,
    *,
    logit_scale: float,
    rule: Rule = "union",
    top_k: int = 3,
    ratio: float = 0.5,
) -> Candidates:
    """Candidate sets of images out of their features and those of the classes under several prompts.

    Args:
      chunks: [b, D] float unit-norm image features, in row order; N rows in all.
      prompt_feats: [P, C, D] float unit-norm text features of C classes under P prompts.
      logit_scale: > 0, multiplies cosines.   rule, top_k, ratio: see `pick`.

    Returns: the sets of N rows, on the CPU, weighted by the mean probability over prompts restricted to the set.
    Raises: ConfigError if the features differ in length, or as `check_rule`.
    Source: the union of top-1 over prompts is that of Co-Reg's annotators; "ratio" and "mean" are its variants.

    Example: two prompts disagree about the first image and agree about the second.
      >>> prompts = torch.eye(3)[torch.tensor([[0, 1, 2], [1, 0, 2]])]
      >>> sets = candidates_from_feats([torch.eye(3)[[0, 2]]], prompts, logit_scale=4.0)
      >>> sets.of(0).tolist(), sets.of(1).tolist(), sets.weights.tolist()
      ([0, 1], [2], [0.5, 0.5, 1.0])
    """
    check_rule(rule, top_k=top_k, ratio=ratio)
    n_classes = prompt_feats.shape[1]
    sizes, classes, weights = [], [], []
    for chunk in chunks:
        if chunk.shape[1] != prompt_feats.shape[2]:
            raise ConfigError(
                f"image features of length {chunk.shape[1]}, text features of length {prompt_feats.shape[2]}",
                fix="both must come from one model",
            )
        for z in torch.split(chunk, max(1, _ENTRIES_AT_ONCE // n_classes)):
            mean, tops = mean_probs(z, prompt_feats, logit_scale)
            where = pick(mean, tops, rule=rule, top_k=top_k, ratio=ratio)
            sizes.append(where.sum(1).cpu())
            classes.append(where.nonzero()[:, 1].int().cpu())  # row by row, ascending
            kept = mean * where
            weights.append((kept / kept.sum(1, keepdim=True))[where].cpu())
    none = torch.zeros(0)
    offsets = F.pad(torch.cat([none.long(), *sizes]).cumsum(0), (1, 0))
    return Candidates(offsets, torch.cat([none.int(), *classes]), torch.cat([none, *weights]))


def check_rule(rule: str, *, top_k: int, ratio: float) -> None:
    """Refuse what `pick` cannot do: ConfigError naming the setting."""
    if rule not in get_args(Rule):
        raise ConfigError(f"no such rule: {rule!r}", fix=f"one of {', '.join(get_args(Rule))}")
    if top_k < 1:
        raise ConfigError(f"top_k={top_k} is not possible", fix="keep at least 1 class")
    if not 0 < ratio <= 1:
        raise ConfigError(
            f"ratio={ratio} is not possible", fix="give a share of the highest probability, above 0 and at most 1"
        )


def mean_probs(z: Tensor, prompt_feats: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """Probabilities of classes averaged over prompts [B, C] float32, rows sum to 1; and each prompt's top class [B, P].

    Args:
      z: [B, D] float, unit norm.   prompt_feats: [P, C, D] float, unit norm.   logit_scale: > 0, multiplies cosines.

    Example:
      >>> prompts = torch.eye(2)[torch.tensor([[0, 1], [1, 0]])]
      >>> [found.tolist() for found in mean_probs(torch.eye(2)[:1], prompts, 5.0)]
      [[[0.5, 0.5]], [[0, 1]]]
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(prompt_feats)
        mean = torch.zeros(len(z), prompt_feats.shape[1], device=z.device)
        tops = []
        for text in prompt_feats:
            probs = (logit_scale * (z @ text.T)).float().softmax(1)  # [B, C]
            mean += probs
            tops.append(probs.argmax(1))
        return mean / len(prompt_feats), torch.stack(tops, 1)


def pick(mean: Tensor, tops: Tensor, *, rule: Rule, top_k: int, ratio: float) -> Tensor:
    """Which classes are candidates: [B, C] bool, at least one in each row.

    Args:
      mean: [B, C] float, probabilities averaged over prompts.
      tops: [B, P] int64, the top class of each prompt.
      rule: "union": every class that is some prompt's top; "top_k": the ``top_k`` highest of ``mean``, at most
        half of the classes, rounded up (a set of all would say nothing); "ratio": all with mean >= ``ratio`` x the
        row's highest; "mean": the highest alone (knowledge distillation, hard).

    Example:
      >>> mean, tops = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0, 2]])
      >>> [pick(mean, tops, rule=rule, top_k=1, ratio=0.6)[0].tolist() for rule in ("union", "top_k", "ratio")]
      [[True, False, True], [True, False, False], [True, True, False]]
    """
    if rule == "ratio":
        return mean >= ratio * mean.amax(1, keepdim=True)
    if rule != "union":
        k = min(top_k, (mean.shape[1] + 1) // 2) if rule == "top_k" else 1
        tops = mean.topk(k, dim=1).indices
    return torch.zeros_like(mean, dtype=torch.bool).scatter_(1, tops, True)


def describe_candidates(
    candidates: Candidates, *, n_classes: int, truth: NDArray[np.integer[Any]] | None = None
) -> dict[str, Any]:
    """Sizes of candidate sets and, against a truth, how often they hold it: JSON-ready.

    Args:
      candidates: sets of N rows.   n_classes: C.
      truth: [N] class indices, -1 = unknown, C and above = no class of the list: in no set; None = no truth.

    Returns: n_images, has_weights, mean_set_size (over the sets that are not empty), largest_set, n_empty, n_single,
      n_classes_never_named; with a truth also n_scored, truth_inside (share of the scored rows) and top1_accuracy (the
      most probable candidate is the truth; the first one where there are no weights).

    Example:
      >>> sets = Candidates(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]), torch.tensor([0.4, 0.6, 1.0]))
      >>> facts = describe_candidates(sets, n_classes=3, truth=np.array([0, 1]))
      >>> facts["mean_set_size"], facts["truth_inside"], facts["top1_accuracy"], facts["n_classes_never_named"]
      (1.5, 1.0, 0.5, 1)
    """
    n_rows, sizes = len(candidates), candidates.offsets.diff()
    named = torch.bincount(candidates.classes.long(), minlength=n_classes)
    n_empty = int((sizes == 0).sum())
    facts: dict[str, Any] = {
        "n_images": n_rows,
        "has_weights": candidates.weights is not None,
        "mean_set_size": round(len(candidates.classes) / max(1, n_rows - n_empty), 4),
        "largest_set": int(sizes.max()) if n_rows else 0,
        "n_empty": n_empty,
        "n_single": int((sizes == 1).sum()),
        "n_classes_never_named": int((named == 0).sum()),
    }
    if truth is None or not (truth >= 0).any():
        return facts
    known = torch.from_numpy(np.asarray(truth, dtype=np.int64))
    rows = torch.repeat_interleave(torch.arange(n_rows), sizes)
    is_true = candidates.classes.long() == known[rows]
    inside = torch.zeros(n_rows, dtype=torch.bool)
    inside[rows[is_true]] = True
    weights = torch.zeros(len(rows)) if candidates.weights is None else candidates.weights
    largest = torch.zeros(n_rows).scatter_reduce_(0, rows, weights, "amax")
    leads = (weights == largest[rows]).nonzero()[:, 0]
    first = torch.full((n_rows,), len(rows)).scatter_reduce_(0, rows[leads], leads, "amin")  # of those that tie
    right = torch.cat([is_true, torch.zeros(1, dtype=torch.bool)])[first]
    scored = known >= 0
    facts["n_scored"] = int(scored.sum())
    facts["truth_inside"] = round(float(inside[scored].double().mean()), 4)
    facts["top1_accuracy"] = round(float(right[scored].double().mean()), 4)
    return facts


# ---- the table of candidates ----------------------------------------------------------------------------------------


def write_candidates(
    path: Path, table: LabelTable, candidates: Candidates, class_names: Sequence[str], info: Mapping[str, Any]
) -> None:
    """Write candidate sets as a Parquet table that stands for its images: `data.read.load` reads it back.

    Columns: id; image (path, relative to the file's folder where it lies below it, else absolute; or the embedded
    image itself); label (the given one or null); candidates and weights (lists, order of weight not implied); and
    split, group and truth where the table has them. The file appears whole or not at all.

    Args:
      path: must not exist, else ConfigError.
      candidates: sets of its N rows, of classes 0..C-1.
      class_names: C names; they go into the schema metadata with ``info`` and fix the classes when the file is read.
      info: where the sets come from, JSON-ready: model, templates, rule, counts.
    """
    if path.exists():
        raise ConfigError(f"{path} exists", fix="choose another --out, or remove it first")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"class_names": list(class_names), "annotator": dict(info)}, ensure_ascii=False)
    n_rows_at_once = _FILE_ROWS if table.images.dataset is None else _EMBEDDED_ROWS
    folder = path.parent.resolve()
    schema = pa.table(dict(_columns(table, candidates, class_names, range(0), folder))).schema
    schema = schema.with_metadata({METADATA_KEY: described.encode()})
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(table), n_rows_at_once):
            rows = range(first, min(first + n_rows_at_once, len(table)))
            columns = dict(_columns(table, candidates, class_names, rows, folder))
            writer.write_table(pa.table(columns, schema=schema))


def candidate_rows(
    table: LabelTable, candidates: Candidates, class_names: Sequence[str], folder: Path | None, *, groups: Any = None
) -> pa.Table:
    """The table that `write_candidates` writes, of images that fit into memory.

    Args:
      folder: that it will lie in; None: paths are absolute.   groups: [N] Arrow strings in place of the table's own.
    """
    columns = dict(_columns(table, candidates, class_names, range(len(table)), folder))
    return pa.table(columns | ({} if groups is None else {"group": groups.cast(pa.string())}))


def _columns(
    table: LabelTable, candidates: Candidates, class_names: Sequence[str], rows: range, folder: Path | None
) -> Iterator[tuple[str, Any]]:
    """The columns of consecutive rows, or of none."""
    first, last = rows.start, rows.stop
    names = pa.array(class_names, pa.string())
    yield "id", table.ids.slice(first, len(rows)).cast(pa.string())
    if table.images.dataset is None:
        sources = table.images.sources(np.arange(first, last))
        paths = [str(source) if folder is None else path_from(folder, str(source)) for source in sources]
        yield "image", pa.array(paths, pa.string())
    else:
        cells = table.images.dataset[list(rows)]["image"] if rows else []
        yield "image", pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    yield "label", _named(names, table.labels[first:last])
    offsets = candidates.offsets[first : last + 1]
    members = slice(int(offsets[0]), int(offsets[-1]))
    bounds = pa.array((offsets - offsets[0]).int().numpy())
    classes, weights = candidates.classes[members], candidates.weights
    if weights is None:
        sizes = offsets.diff()
        weights = torch.repeat_interleave(1 / sizes, sizes)
    else:
        weights = weights[members]
    yield "candidates", pa.ListArray.from_arrays(bounds, names.take(pa.array(classes.numpy())))
    yield "weights", pa.ListArray.from_arrays(bounds, pa.array(weights.float().numpy()))
    if table.split is not None:
        yield "split", _named(pa.array(SPLITS), table.split[first:last])
    if table.groups is not None:
        yield "group", pa.array(table.groups[first:last])
    if table.truth is not None:
        yield "truth", _named(pa.array(table.truth_names, pa.string()), table.truth[first:last])


def _named(names: Any, codes: NDArray[Any]) -> Any:
    return names.take(pa.array(codes.astype(np.int64), mask=codes < 0))
