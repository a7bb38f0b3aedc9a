"""Contrastive losses: the views of one image attract each other, other images repel; labels may say which do neither.

Features come in with unit norm, so that products are cosines. Half precision is computed in float32, under autocast
too: at a temperature of 0.07 the rounding of bfloat16 would move a logit by 0.06. The largest tensor has one row per
anchor and one column per contrasted sample. Raises DataError where shapes do not fit, ConfigError where a knob is out
of range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labelwright.errors import ConfigError, DataError
from labelwright.losses._reduce import (
    Reduce,
    at_least_float32,
    blank_rows,
    check_rows,
    check_temperature,
    kept_rows,
    reduce_loss,
)

Rule = Literal["cautious", "high_confidence", "supervised", "unsupervised"]


def init_queue(size: int, n_features: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """An empty first-in first-out memory of keys, for `noisy_contrastive`.

    Args:
      size: Q >= 1, keys kept.
      n_features: D >= 1.
      device: where its tensors live; None = CPU.

    Returns: "keys" [Q, D] float32, "labels" [Q] int64 (-1 = empty slot), "is_reliable" [Q] bool and "place" [] int64,
      the slot that is filled next.

    Example:
      >>> init_queue(2, 3)["labels"].tolist()
      [-1, -1]
    """
    for name, value in (("size", size), ("n_features", n_features)):
        if value < 1:
            raise ConfigError(f"{name}={value} leaves no room for a key", fix=f"use a {name} of 1 or more")
    return {
        "keys": torch.zeros(size, n_features, device=device),
        "labels": torch.full((size,), -1, device=device),
        "is_reliable": torch.zeros(size, dtype=torch.bool, device=device),
        "place": torch.zeros((), dtype=torch.int64, device=device),
    }


def push_queue(queue: Mapping[str, Tensor], keys: Tensor, labels: Tensor, is_reliable: Tensor) -> dict[str, Tensor]:
    """Put keys into the queue over its oldest ones; of more keys than it holds, the last stay.

    Args:
      queue: as from `init_queue`; stays as it was.
      keys: [B, D] float, unit norm; no gradient is kept.
      labels: [B] int pseudolabels; -1 marks a key that takes a slot but is never contrasted with.
      is_reliable: [B] bool.

    Example: three keys into two slots.
      >>> keys, labels = torch.eye(3)[:, :2], torch.tensor([5, 6, 7])
      >>> queue = push_queue(init_queue(2, 2), keys, labels, labels > 5)
      >>> queue["labels"].tolist(), queue["place"].item()
      ([7, 6], 1)
    """
    size, n_features = queue["keys"].shape
    check_rows(keys, "features", labels=labels, is_reliable=is_reliable)
    if keys.shape[1] != n_features:
        raise DataError(f"keys {list(keys.shape)} for a queue of {n_features} features", fix="make the queue that wide")
    n_pushed = len(keys)
    n_kept = min(n_pushed, size)
    order = torch.arange(n_pushed - n_kept, n_pushed, device=queue["keys"].device)
    slots = (queue["place"] + order) % size
    new = {"keys": keys.detach(), "labels": labels, "is_reliable": is_reliable}
    filled = {
        name: queue[name].index_copy(0, slots, value[n_pushed - n_kept :].to(queue[name].dtype))
        for name, value in new.items()
    }
    return filled | {"place": (queue["place"] + n_pushed) % size}


def noisy_contrastive(
    query: Tensor,
    key: Tensor,
    *,
    labels: Tensor,
    is_reliable: Tensor,
    queue: Mapping[str, Tensor] | None = None,
    n_classes: int | None = None,
    rule: Rule = "cautious",
    temperature: float = 0.07,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Contrastive loss with pseudolabels of which only some are trusted.

    Each query is an anchor, contrasted with all queries but itself, all keys and the queue:
    -(1 / |P|) sum_{p in P} log(exp(q . z_p / T) / sum_{z in A} exp(q . z / T)). Its own key is always in P and in A.

    ===================  =====================================  ==================================================
    rule                 also attracts (in P)                   left out of the denominator (not in A)
    ===================  =====================================  ==================================================
    ``cautious``         same label, both reliable              same label, either unreliable
    ``high_confidence``  same label, both reliable              none
    ``supervised``       same label                             none
    ``unsupervised``     none                                   all queries and the keys of others: the queue repels
    ===================  =====================================  ==================================================

    Args:
      query: [B, D] float, unit norm; gradients flow through it as anchor and as contrast.
      key: [B, D] float, unit norm, another view of each row from the momentum network (detach it).
      labels: [B] int pseudolabels, -1 = unknown: the same as no other.
      is_reliable: [B] bool, whether the pseudolabel is trusted.
      queue: as from `init_queue`; empty slots take no part. None = no queue.
      n_classes: above every label, here and in the queue; None reads it off them, for which the host waits.
      rule: see above; "unsupervised" needs a queue.
      temperature: > 0, divides the cosines.
      weights: [B] float >= 0, of the anchors; see losses/_reduce.py.
      where: [B] bool; a row with False is not there at all, neither as anchor nor as contrast, whatever it holds.
      reduce: see losses/_reduce.py.

    Returns: scalar in nats, or [B] if reduce="none".

    Source: Wang et al. 2025 (arXiv 2506.03229), Sec. 4.5; supervised: Khosla et al. 2020 (arXiv 2004.11362), Eq. (2);
    unsupervised: He et al. 2020 (arXiv 1911.05722), Eq. (1).

    Example: two images of one pseudolabel, the second not trusted. Being cautious, the pair neither attracts nor
    repels, and each anchor has but its own key; trusting all, the loss is log(e + 2) - (1 + 0 + 0) / 3.
      >>> z, labels, is_reliable = torch.eye(2), torch.tensor([3, 3]), torch.tensor([True, False])
      >>> loss = noisy_contrastive(z, z, labels=labels, is_reliable=is_reliable, temperature=1.0)
      >>> trusting = noisy_contrastive(
      ...     z, z, labels=labels, is_reliable=is_reliable, rule="supervised", temperature=1.0
      ... )
      >>> round(loss.item(), 4), round(trusting.item(), 4)
      (0.0, 1.2181)
    """
    _check_pair(query, key, temperature, labels=labels, is_reliable=is_reliable, weights=weights, where=where)
    if rule not in get_args(Rule):
        raise ConfigError(f"rule={rule!r} is unknown", fix=f"use one of {', '.join(get_args(Rule))}")
    if queue is not None and queue["keys"].shape[1] != query.shape[1]:
        raise DataError(
            f"query {list(query.shape)} for a queue of {queue['keys'].shape[1]} features",
            fix="make the queue as wide as the projections",
        )
    if rule == "unsupervised" and queue is None:
        raise ConfigError(
            "rule='unsupervised' contrasts with the queue, and there is none", fix="pass a queue, or use nt_xent"
        )
    n_rows, labels = len(query), labels.long()  # as an index, uint8 would be a mask
    query, key = blank_rows(where, at_least_float32(query)), blank_rows(where, at_least_float32(key))
    is_there = torch.ones_like(is_reliable) if where is None else where
    labels = labels.masked_fill(~is_there, -1)
    sims = _sims(query, torch.cat([query, key]), temperature)  # [B, 2B]
    if rule == "unsupervised":
        is_positive, is_out = torch.zeros_like(sims, dtype=torch.bool), torch.ones_like(sims, dtype=torch.bool)
    else:
        is_positive, is_ignored = (pairs.repeat(1, 2) for pairs in _pairs(rule, labels, is_reliable))
        is_out = is_ignored | ~is_there.repeat(2)
    for mask, is_set in ((is_out, True), (is_positive, False)):
        mask.diagonal().fill_(is_set)  # the anchor itself
        mask.diagonal(n_rows).fill_(not is_set)  # its own key
    log_total = sims.masked_fill(is_out, -torch.inf).logsumexp(dim=1)
    sum_positive, n_positive = sims.masked_fill(~is_positive, 0).sum(dim=1), is_positive.sum(dim=1)

    if queue is not None:
        keys, codes, has_key = queue["keys"].to(query.dtype), queue["labels"].int(), queue["labels"] >= 0
        n_classes = n_classes or max(int(torch.cat([labels, queue["labels"]]).max()) + 1, 1)
        sum_keys, n_keys = _attracting(
            rule, labels, is_reliable, keys, queue["labels"], queue["is_reliable"], n_classes=n_classes
        )
        log_queue = _AgainstQueue.apply(  # type: ignore[no-untyped-call]
            query / temperature, keys, has_key, _ignored(rule, labels, is_reliable, codes, queue["is_reliable"])
        )
        log_total = torch.logaddexp(log_total, log_queue)
        sum_positive = sum_positive + (query * sum_keys).sum(dim=1) / temperature
        n_positive = n_positive + n_keys
    return reduce_loss(log_total - sum_positive / n_positive, where=where, weights=weights, reduce=reduce)


def _pairs(rule: Rule, labels: Tensor, is_reliable: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows attract an anchor by their label, and which it leaves out by it: [B, B] bool both."""
    # One comparison of small integers each: these masks are as large as the products. -2 and -3 equal nothing.
    own, others = labels.masked_fill(labels < 0, -2).int(), labels.int()
    is_same = own[:, None] == others
    if rule == "supervised":
        return is_same, torch.zeros_like(is_same)
    is_positive = own.masked_fill(~is_reliable, -2)[:, None] == others.masked_fill(~is_reliable, -3)
    return is_positive, is_same ^ is_positive if rule == "cautious" else torch.zeros_like(is_same)


def _attracting(
    rule: Rule,
    own: Tensor,
    own_reliable: Tensor,
    keys: Tensor,
    others: Tensor,
    reliable: Tensor,
    *,
    n_classes: int,
) -> tuple[Tensor, Tensor]:
    """Sum of the keys [Q, D] that attract each anchor, [B, D], and their number [B]: by class, not by pair."""
    if rule == "unsupervised":
        return torch.zeros_like(keys[:1]).expand(len(own), -1), torch.zeros_like(own)
    attracts, is_drawn = others >= 0, own >= 0
    if rule != "supervised":
        attracts, is_drawn = attracts & reliable, is_drawn & own_reliable
    weight, at = attracts.to(keys.dtype), others.clamp(min=0)
    sums = keys.new_zeros(n_classes, keys.shape[1]).index_add_(0, at, keys * weight[:, None])
    counts = torch.zeros(n_classes, dtype=own.dtype, device=own.device).index_add_(0, at, attracts.to(own.dtype))
    mine = own.clamp(min=0)
    return sums[mine] * is_drawn[:, None], counts[mine] * is_drawn


def _ignored(rule: Rule, own: Tensor, own_reliable: Tensor, others: Tensor, reliable: Tensor) -> Tensor | None:
    """Which keys [Q] an anchor [B] leaves out by their label, [B, Q] bool; None if none."""
    if rule != "cautious":
        return None
    own = own.masked_fill(own < 0, -2).int()
    doubtful = others.masked_fill(reliable, -3)  # of a trusted anchor: the keys of its label that are not trusted
    # One comparison per pair: the mask is as large as the products.
    is_ignored = torch.empty(len(own), len(others), dtype=torch.bool, device=own.device)
    is_ignored[own_reliable] = own[own_reliable, None] == doubtful
    is_ignored[~own_reliable] = own[~own_reliable, None] == others
    return is_ignored


class _AgainstQueue(torch.autograd.Function):
    """Log-sum-exp [B] of the products of anchors with stored keys.

    The anchors alone have a gradient. Written out because autograd would keep three tensors of one number per pair,
    and make one of them for keys that learn nothing.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, is_there: Tensor, is_ignored: Tensor | None) -> Tensor:
        barred = torch.zeros_like(keys[:, 0]).masked_fill_(~is_there, -torch.inf)
        with torch.autocast(anchors.device.type, enabled=False):
            sims = torch.addmm(barred, anchors, keys.T)  # [B, Q]
        if is_ignored is not None:
            sims.masked_fill_(is_ignored, -torch.inf)
        top = sims.amax(dim=1).clamp(min=torch.finfo(sims.dtype).min)  # -inf, nothing there, would give NaN
        shares = sims.sub_(top[:, None]).exp_()
        total = shares.sum(dim=1)
        ctx.save_for_backward(keys, shares, total)
        return top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log: Tensor) -> tuple[Tensor, None, None, None]:
        keys, shares, total = ctx.saved_tensors
        scale = of_log / total.clamp(min=torch.finfo(total.dtype).tiny)
        return (shares @ keys) * scale[:, None], None, None, None


def nt_xent(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Two-view contrastive loss of SimCLR: find a row's other view among all rows of both views but itself.

    Args:
      a: [B, D] float, unit norm.
      b: [B, D] float, unit norm, another view of each row.
      temperature: > 0, divides the cosines.
      weights: [B] float >= 0; see losses/_reduce.py.
      where: [B] bool; a row with False is no anchor, but stays in the denominators of the others: it must be finite.
      reduce: see losses/_reduce.py.

    Returns: scalar in nats, or [B] if reduce="none": the mean of a row's two directions.

    Source: Chen et al. 2020 (arXiv 2002.05709), Eq. (1).

    Example: each row has cosine 1 with its other view and 0 with two others: log(e + 2) - 1.
      >>> round(nt_xent(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
      0.5514
    """
    _check_pair(a, b, temperature, weights=weights, where=where)
    n_rows = len(a)
    both = at_least_float32(torch.cat([a, b]))  # [2B, D]
    kept = torch.ones_like(both[:n_rows, 0], dtype=torch.bool) if where is None else where
    anchors = kept.repeat(2).nonzero().flatten()  # [A]: only what counts is computed
    sims = _sims(both[anchors], both, temperature)
    at = torch.arange(len(anchors), device=both.device)
    other_view = sims[at, (anchors + n_rows) % (2 * n_rows)]
    itself = torch.zeros_like(sims, dtype=torch.bool)
    itself[at, anchors] = True
    each = sims.masked_fill(itself, -torch.inf).logsumexp(dim=1) - other_view
    loss = torch.zeros_like(both[:, 0]).index_put((anchors,), each)
    return reduce_loss(loss.view(2, n_rows).mean(dim=0), where=where, weights=weights, reduce=reduce)


def pseudolabel_contrastive(
    feats: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    reduce: Reduce = "mean",
) -> Tensor:
    """Pseudolabel contrastive clustering: rows of one label attract each other as a group, all others repel.

    -log(mean_{p in P} exp(z . z_p / T) / sum_{others} exp(z . z' / T)), P the other rows of the same label: one
    positive that is near makes up for one that is far, unlike in the supervised contrastive loss (mean of logs).

    Args:
      feats: [B, D] float, unit norm; LPS takes normalised logits, both views of each image.
      labels: [B] int (pseudo)labels; a row with -1 is left out.
      temperature: > 0, divides the cosines.
      weights: [B] float >= 0, of the anchors; see losses/_reduce.py.
      where: [B] bool; a row with False is not there at all, neither as anchor nor as contrast, whatever it holds.
      reduce: see losses/_reduce.py.

    Returns: scalar in nats, or [B] if reduce="none". An anchor that is alone with its label does not count.

    Source: arXiv 2309.11930, Eq. (7).

    Example: each row has cosine 1 with the one positive and 0 with two others: log(e + 2) - 1.
      >>> z, labels = torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])
      >>> round(pseudolabel_contrastive(z, labels, temperature=1.0).item(), 4)
      0.5514
    """
    check_rows(feats, "features", labels=labels, weights=weights, where=where)
    check_temperature(temperature)
    kept = kept_rows(labels, where).nonzero().flatten()  # [A]: only what counts is computed
    rows, own = at_least_float32(feats[kept]), labels[kept]
    sims = _sims(rows, rows, temperature)  # [A, A]
    itself = torch.eye(len(rows), dtype=torch.bool, device=feats.device)
    is_negative = (own[:, None] != own) | itself
    n_positive = (~is_negative).sum(dim=1)
    # A finite floor: rows without a positive would have the gradient of -inf - -inf.
    floor = torch.finfo(sims.dtype).min / 2
    attracted = sims.masked_fill(is_negative, floor).logsumexp(dim=1) - n_positive.clamp(min=1).log()
    each = sims.masked_fill(itself, floor).logsumexp(dim=1) - attracted
    counts = torch.zeros_like(labels, dtype=torch.bool).index_fill(0, kept[n_positive > 0], True)
    loss = torch.zeros_like(labels, dtype=each.dtype).index_put((kept,), each)
    return reduce_loss(blank_rows(counts, loss), where=counts, weights=weights, reduce=reduce)


def _sims(anchors: Tensor, contrast: Tensor, temperature: float) -> Tensor:
    """Cosines over temperature [anchors, contrast], in the precision that comes in, which autocast would lower."""
    with torch.autocast(anchors.device.type, enabled=False):
        return (anchors / temperature) @ contrast.T


def _check_pair(query: Tensor, key: Tensor, temperature: float, **per_row: Tensor | None) -> None:
    check_rows(query, "features", **per_row)
    if key.shape != query.shape:
        raise DataError(
            f"the two views have shapes {list(query.shape)} and {list(key.shape)}",
            fix="pass two views of the same rows",
        )
    check_temperature(temperature)
