"""Slopes kappa of localised calibration: per class, how accuracy grows with confidence among rows predicted as it.

Of the kept rows *predicted* as class c, n_i fall into bin i, with mean score x_i (the confidence in c, or its logit)
and accuracy y_i. The line through the origin has slope b_c = sum(n x y) / sum(n x^2), and kappa_c = 1 / (b_c + 1e-6),
clamped. A class with fewer than 10 rows, or fewer than 2 filled bins, has kappa_c = 1 (not clamped).
Source: arXiv 2310.04752, Sec. 4 and 6, with the numbers of its public reference run, which uses the confidence for
both slopes; the text has the multiplicative one against the logit.

Rows come from predictions at hand (`slopes_from_rows`) or from a memory of the newest rows of each *true* class:

    memory = init_memory(counts, samples_per_class=1000)
    memory = push(memory, labels, *score_rows(logits))            # each step
    rows = rows_of(memory)                                        # each epoch
    found = slopes_from_rows(rows["predicted"], rows["confidence"], rows["correct"], n_classes=C, clamp=(0.05, 0.2))
    kappa = ema(kappa, found, decay=0.9)

The memory holds 12 bytes per row (predicted class, confidence, logit), never N x C logits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from labelwright.errors import ConfigError, DataError

MIN_ROWS = 10  # rows predicted as a class, below which it has no slope of its own (reference run)
MIN_BINS = 2  # filled bins, likewise
PENDING_ROWS = 8192  # rows that wait unsorted before they are folded into the rings; any number gives the same rows
HUBER_DELTA = 1.345  # residuals beyond this many standard deviations count linearly: 95% efficient under normal noise
HUBER_ROUNDS = 30  # reweightings; slopes of 20 bins converge to 1e-6 well before

Memory = dict[str, Any]  # tensors, numbers and one nested dict of tensors: torch.load(weights_only=True) reads it back


def init_memory(counts: Tensor, *, samples_per_class: int) -> Memory:
    """An empty memory with room for the newest min(samples_per_class, n_k) rows of each true class.

    Args:
      counts: [C] int >= 0, images per class; the memory lives on its device. A class with count 0 keeps no row.
      samples_per_class: > 0.

    Returns: the memory; read it with `rows_of` only.

    Raises:
      ConfigError: samples_per_class < 1.
      DataError: counts are not [C] or negative.

    Example:
      >>> init_memory(torch.tensor([5, 2, 0]), samples_per_class=3)["capacity"].tolist()
      [3, 2, 0]
    """
    if samples_per_class < 1:
        raise ConfigError(f"samples_per_class={samples_per_class} keeps no row", fix="use 1 or more; 1000 in the paper")
    if counts.dim() != 1 or bool((counts < 0).any()):
        raise DataError(f"counts {counts.tolist()} are not [C] numbers >= 0", fix="pass images per class")
    capacity = counts.long().clamp_max(samples_per_class)
    return {
        "capacity": capacity,
        "written": torch.zeros_like(capacity),  # rows of the class ever folded in: the next slot is written % capacity
        "rows": _blank_columns(int(capacity.sum()), capacity.device),  # one ring per true class, in class order
        "pending": {
            "labels": torch.full((PENDING_ROWS,), -1, device=capacity.device),
            **_blank_columns(PENDING_ROWS, capacity.device),
        },
        "n_pending": 0,
    }


def score_rows(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the slopes need of each row: its predicted class, and the confidence and the logit of that class.

    Args:
      logits: [B, C] float.

    Returns: predicted [B] int64, confidence [B] float in (0, 1], logit [B] float.

    Example: softmax([log 3, 0]) = [3/4, 1/4].
      >>> predicted, confidence, _ = score_rows(torch.tensor([[3.0, 1.0]]).log())
      >>> predicted.item(), round(confidence.item(), 4)
      (0, 0.75)
    """
    logits = logits.detach().float()
    logit, predicted = logits.max(dim=1)
    return predicted, logits.softmax(dim=1).gather(1, predicted[:, None]).squeeze(1), logit


def push(memory: Memory, labels: Tensor, predicted: Tensor, confidence: Tensor, logit: Tensor) -> Memory:
    """A memory with the rows of a batch added, oldest rows of each true class dropped; the one given is unchanged.

    Under several processes, push the gathered batch on each, so that all keep the same memory. Rows wait in a small
    buffer and are sorted into the rings thousands at a time: a push costs a few copies of that buffer, whatever the
    number of classes.

    Args:
      memory: of `init_memory`.
      labels: [B] int true classes; rows with -1 are not kept.
      predicted, confidence, logit: [B] each, as from `score_rows`; gradients are not kept.

    Raises:
      DataError: the tensors differ in length; and when the rows are folded in, some pushes later or by `rows_of`, where
        a label is beyond C-1: looking at each push would make the host wait.

    Example: room for two rows of class 0; of three, the newest two stay.
      >>> memory = init_memory(torch.tensor([2, 2]), samples_per_class=1000)
      >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
      >>> memory = push(memory, torch.tensor([0, 0, 0]), *score_rows(logits))
      >>> sorted(rows_of(memory)["logit"].tolist())
      [1.0, 2.0]
    """
    batch = {"labels": labels, "predicted": predicted, "confidence": confidence, "logit": logit}
    for name, column in batch.items():
        if column.shape != labels.shape or column.dim() != 1:
            raise DataError(
                f"{name} has shape {list(column.shape)} for labels {list(labels.shape)}",
                fix=f"pass {name} with one entry per row",
            )
    n, n_pending = len(labels), memory["n_pending"]
    if n_pending + n > PENDING_ROWS:
        memory, n_pending = _fold(memory), 0
    if n > PENDING_ROWS:
        return _write(memory, batch)
    pending = {}
    for name, column in memory["pending"].items():
        pending[name] = column.clone()
        pending[name][n_pending : n_pending + n] = batch[name].detach()
    return {**memory, "pending": pending, "n_pending": n_pending + n}


def rows_of(memory: Memory) -> dict[str, Tensor]:
    """The rows that a memory holds, in no particular order.

    Args:
      memory: of `init_memory`.

    Returns: labels [R] int64, predicted [R] int64, confidence [R] float32, logit [R] float32, correct [R] bool.

    Example:
      >>> rows_of(init_memory(torch.tensor([2, 2]), samples_per_class=1000))["labels"].tolist()
      []
    """
    memory = _fold(memory)
    capacity = memory["capacity"]
    labels = torch.repeat_interleave(torch.arange(len(capacity), device=capacity.device), capacity)
    filled = memory["rows"]["predicted"] >= 0
    rows = {"labels": labels[filled], **{name: column[filled] for name, column in memory["rows"].items()}}
    rows["predicted"] = rows["predicted"].long()
    rows["correct"] = rows["predicted"] == rows["labels"]
    return rows


def slopes_from_rows(
    predicted: Tensor,
    score: Tensor,
    correct: Tensor,
    *,
    n_classes: int,
    clamp: tuple[float, float],
    n_bins: int = 20,
    against: Literal["confidence", "logit"] = "confidence",
    fit: Literal["least_squares", "huber"] = "least_squares",
    shrink: float | None = None,
) -> Tensor:
    """Slopes kappa of rows at hand.

    Bins are (lower, upper], of equal width: over (0, 1] for the confidence; for the logit, from the smallest to the
    largest in ``score``, over all classes, so that the bins of two classes can be compared. A slope below 0, possible
    for logits, counts as 0: kappa is then the upper clamp.

    fit="huber" down-weighs bins that lie off the line: iteratively reweighted least squares on u = sqrt(n) (y - b x),
    scaled by 1.4826 times the median of |u| over the filled bins of the class, with the usual delta of 1.345.

    ``shrink`` draws the slopes of classes with few rows toward the pooled one, as an empirical-Bayes estimate does:

        S_c = sum_i n_i x_i^2           what the rows of c say of its slope
        b_0 = sum_c S_c b_c / sum_c S_c       the slope of all rows together
        s2  = mean of (correct - b_0 * score)^2 over all rows,   v_c = s2 / S_c     the variance of b_c
        t2  = max(0, (Q - (C' - 1)) / (W - sum 1/v_c^2 / W)),  Q = sum (b_c - b_0)^2 / v_c,  W = sum 1/v_c
        b_c <- b_c + B_c (b_0 - b_c),   B_c = shrink v_c / (shrink v_c + t2)

    over the C' classes with rows; t2 is the variance of the true slopes between classes (DerSimonian and Laird 1986).
    shrink=1 is the estimate as it stands, 0.5 trusts the class twice as much. Then no class needs 10 rows: one without
    rows has b_0, and only if there are no rows at all is kappa 1.

    Args:
      predicted: [R] int, 0 to C-1.
      score: [R] float: confidence in (0, 1], or logit, of the predicted class; a row where it is not finite is left
        out, as one step with infinite logits would otherwise undo the slopes.
      correct: [R] bool, the predicted class is the true one.
      clamp: smallest and largest kappa, 0 < smallest <= largest; (0.05, 0.2) in the published command.
      n_bins: > 1.
      against: what ``score`` is.
      fit: "least_squares" or "huber".
      shrink: >= 0, or None to leave each class on its own.

    Returns: kappa [C] float32.

    Raises:
      ConfigError: a setting outside its range.
      DataError: the rows differ in length.

    Source: arXiv 2310.04752, Sec. 6; Huber and shrinkage answer its Appendix C.5 and are not in the reference run.

    Example: 20 rows at confidence 0.8, half of them right, and 20 at 0.4, a quarter right: (0.8 * 0.5 + 0.4 * 0.25) /
      (0.8^2 + 0.4^2) = 0.625, and kappa = 1 / 0.625.
      >>> score = torch.tensor([0.8] * 20 + [0.4] * 20)
      >>> correct = torch.tensor([True] * 10 + [False] * 10 + [True] * 5 + [False] * 15)
      >>> found = slopes_from_rows(torch.zeros(40, dtype=torch.int64), score, correct, n_classes=2, clamp=(0.3, 3.0))
      >>> [round(v, 4) for v in found.tolist()]
      [1.6, 1.0]
    """
    _check_settings(clamp, n_bins, against, fit, shrink)
    if not predicted.shape == score.shape == correct.shape or predicted.dim() != 1:
        shapes = [list(rows.shape) for rows in (predicted, score, correct)]
        raise DataError(
            "predicted, score, correct have shapes {}, {}, {}".format(*shapes), fix="pass one entry per row in each"
        )
    if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) < n_classes:
        raise DataError(f"predicted holds classes outside 0 to {n_classes - 1}", fix="pass the argmax of [B, C] logits")
    is_finite = score.isfinite()
    predicted, score, right = predicted[is_finite], score.detach()[is_finite].double(), correct[is_finite].double()
    low, high = (float(score.min()), float(score.max())) if against == "logit" and len(score) else (0.0, 1.0)
    # float32 edges, as scores are: 0.05 must fall on the edge of the first bin, not beyond it.
    edges = torch.linspace(low, high, n_bins + 1, dtype=torch.float32, device=score.device)
    cell = predicted.long() * n_bins + torch.bucketize(score, edges[1:-1].double())  # bins are (lower, upper]
    n = torch.bincount(cell, minlength=n_classes * n_bins).reshape(n_classes, n_bins)  # [R] -> [C, n_bins]
    per_row = n.clamp_min(1)
    x, y = (n.new_zeros(n.numel()).double().index_add_(0, cell, v).view_as(n) / per_row for v in (score, right))

    weight = _huber_weights(x, y, n) if fit == "huber" else n.double()
    slope, support = _through_origin(x, y, weight)
    has_slope = (n.sum(1) >= MIN_ROWS) & ((n > 0).sum(1) >= MIN_BINS)
    if shrink is not None:
        slope = _shrunk(slope, support, score, right, strength=shrink)
        has_slope = torch.full_like(has_slope, bool((support > 0).any()))
    kappa = (1 / (slope.clamp_min(0) + 1e-6)).clamp(*clamp)
    return torch.where(has_slope, kappa, 1.0).float()


def ema(old: Tensor, new: Tensor, *, decay: float) -> Tensor:
    """Exponential moving average, decay * old + (1 - decay) * new.

    Args:
      old: any shape, float.
      new: same shape.
      decay: share of the old value kept, 0 to 1; 0.9 per epoch in CVS.

    Returns: the average, on the device of ``old``.

    Raises:
      ConfigError: decay outside [0, 1].

    Example:
      >>> round(ema(torch.ones(()), torch.tensor(2.0), decay=0.9).item(), 4)
      1.1
    """
    if not 0 <= decay <= 1:
        raise ConfigError(f"decay={decay} is outside [0, 1]", fix="it is the share of the old value kept")
    return decay * old + (1 - decay) * new.to(old.device)


def _blank_columns(n: int, device: torch.device) -> dict[str, Tensor]:
    return {
        "predicted": torch.full((n,), -1, dtype=torch.int32, device=device),  # -1 = no row yet
        "confidence": torch.zeros(n, device=device),
        "logit": torch.zeros(n, device=device),
    }


def _fold(memory: Memory) -> Memory:
    """Moves the pending rows into the rings."""
    n = memory["n_pending"]
    if n == 0:
        return memory
    return {**_write(memory, {name: column[:n] for name, column in memory["pending"].items()}), "n_pending": 0}


def _write(memory: Memory, batch: dict[str, Tensor]) -> Memory:
    """Writes rows, oldest first, over the oldest of their class."""
    capacity, written = memory["capacity"], memory["written"]
    labels = batch["labels"].to(capacity.device).long()
    order = torch.argsort(labels, stable=True)
    order = order[int((labels < 0).sum()) :]  # unknown labels come first
    labels = labels[order]
    n_new = torch.bincount(labels, minlength=len(capacity))
    if len(n_new) > len(capacity):
        raise DataError(
            f"labels hold {len(n_new) - 1}, and the memory has {len(capacity)} classes: 0 to {len(capacity) - 1}",
            fix="count classes from 0, or make the memory from counts of every class",
        )
    rank = torch.arange(len(labels), device=labels.device) - (n_new.cumsum(0) - n_new)[labels]  # age within the class
    newest = rank >= (n_new - capacity)[labels]  # of more rows than a ring holds, only the last are written
    order, labels, rank = order[newest], labels[newest], rank[newest]
    slot = (capacity.cumsum(0) - capacity)[labels] + (written[labels] + rank) % capacity[labels]
    rows = {}
    for name, column in memory["rows"].items():
        rows[name] = column.clone()
        rows[name][slot] = batch[name].detach().to(column.device, column.dtype)[order]
    return {**memory, "rows": rows, "written": written + n_new}


def _through_origin(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Slope [C] and its support S = sum w x^2 [C], of [C, n_bins] points; slope 0 where there is no support."""
    support = (weight * x * x).sum(1)
    return (weight * x * y).sum(1) / support.masked_fill(support == 0, 1.0), support


def _huber_weights(x: Tensor, y: Tensor, n: Tensor) -> Tensor:
    """Weights [C, n_bins] with which least squares gives the Huber fit, for all classes at once."""
    weight, filled = n.double(), n > 0
    n_filled = filled.sum(1, keepdim=True)
    for _ in range(HUBER_ROUNDS):
        slope, _ = _through_origin(x, y, weight)
        residual = n.sqrt() * (y - slope[:, None] * x).abs()
        ranked = residual.masked_fill(~filled, torch.inf).sort(dim=1).values
        median = (ranked.gather(1, (n_filled - 1).clamp_min(0) // 2) + ranked.gather(1, n_filled // 2)) / 2
        bound = HUBER_DELTA * (1.4826 * median).clamp_min(1e-9)
        weight = n * (bound / residual.clamp_min(1e-12)).clamp_max(1.0)
    return weight


def _shrunk(slope: Tensor, support: Tensor, score: Tensor, right: Tensor, *, strength: float) -> Tensor:
    """Slopes [C] drawn toward the pooled one; the formula is in `slopes_from_rows`."""
    total = support.sum()
    if total == 0:
        return slope
    pooled = (support * slope).sum() / total
    noise = (right - pooled * score).square().mean()  # s2
    precision = support / noise.clamp_min(1e-12)  # 1 / v_c, 0 without rows
    spread = (precision * (slope - pooled).square()).sum()  # Q
    room = precision.sum() - precision.square().sum() / precision.sum()
    n_seen = (support > 0).sum()
    between = ((spread - (n_seen - 1)) / room.clamp_min(1e-12)).clamp_min(0) * (n_seen > 1)  # t2
    share = strength / (strength + between * precision).clamp_min(1e-12)  # B_c
    return slope + torch.where(support > 0, share, 1.0) * (pooled - slope)


def _check_settings(clamp: tuple[float, float], n_bins: int, against: str, fit: str, shrink: float | None) -> None:
    if not 0 < clamp[0] <= clamp[1]:
        raise ConfigError(f"clamp={tuple(clamp)} is not 0 < smallest <= largest", fix="use for example (0.3, 3.0)")
    if n_bins < MIN_BINS:
        raise ConfigError(f"n_bins={n_bins} is too few for a slope", fix="use 2 or more; 20 in the paper")
    if against not in ("confidence", "logit"):
        raise ConfigError(f"against={against!r} is unknown", fix='use "confidence" or "logit"')
    if fit not in ("least_squares", "huber"):
        raise ConfigError(f"fit={fit!r} is unknown", fix='use "least_squares" or "huber"')
    if shrink is not None and not shrink >= 0:
        raise ConfigError(f"shrink={shrink} is negative", fix="use 1.0 for empirical Bayes, None to switch it off")
