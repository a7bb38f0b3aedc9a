"""The losses of one network of Co-Reg on a batch, lines 8 to 11 of methods/coreg.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labelwright.encoders.projection import ProjectedNet
from labelwright.losses.classification import soft_cross_entropy
from labelwright.losses.contrastive import Rule, noisy_contrastive, push_queue
from labelwright.losses.mixup import mixup
from labelwright.losses.prototypes import prototype_loss, update_prototypes
from labelwright.losses.soft_targets import squared_error_of_probs
from labelwright.train.processes import gather_queries, gather_rows, sum_gradients

PROTOTYPE_DECAY = 0.999  # share of the old prototype kept by one image
PROTOTYPE_TEMPERATURE = 0.3  # divides the cosines with the prototypes
CONTRASTIVE_TEMPERATURE = 0.07  # divides the cosines between images


@dataclass(frozen=True)
class Learned:
    """What a network learns on in a step."""

    views: tuple[Tensor, ...]  # [B, ...] each, of the images of P, then of those of U
    targets: Tensor  # [B, C] float, rows sum to 1
    is_reliable: Tensor  # [B] bool, whether an image is of P


def classification_losses(
    net: ProjectedNet,
    learned: Learned,
    *,
    mixup_alpha: float,
    draws: torch.Generator,
    unlabelled_weight: float,
    is_projected: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Line 8: cross-entropy on P and squared error on U, on mixed views.

    Args:
      net: answers, and projects.
      learned: see `Learned`; every process has equally many images of P.
      mixup_alpha: Beta(alpha, alpha), 0 = no mixing.
      draws: partners and share of the mixing.
      unlabelled_weight: lambda_u now, 0 or more.
      is_projected: whether lines 9 to 11 follow and need projections of views that are not mixed.

    Returns: loss_p and loss_u, weighted; and what `representation_losses` goes on with.
    """
    views, on_p = learned.views, learned.is_reliable.repeat(len(learned.views))
    repeated, n = learned.targets.repeat(len(views), 1), len(views[0])
    mixed = mixup(torch.cat(views), repeated, alpha=mixup_alpha, generator=draws, at_least_half=True)
    wants_plain = is_projected and mixed.lam < 1  # in the same pass
    logits, z = net.both(torch.cat([mixed.x, views[0]]) if wants_plain else mixed.x)
    query, logits, z = z[-n:] if wants_plain else z[:n], logits[: len(on_p)], z[: len(on_p)]
    losses = {
        "loss_p": soft_cross_entropy(logits, mixed.targets, where=on_p),
        "loss_u": unlabelled_weight * squared_error_of_probs(logits, mixed.targets, where=~on_p),
    }
    return losses, {"z": z, "query": query, "permutation": mixed.permutation, "lam": mixed.lam}


def representation_losses(
    learned: Learned,
    passed: dict[str, Any],
    key: ProjectedNet | None,
    *,
    prototypes: Tensor,
    queue: dict[str, Tensor] | None,
    rule: Rule,
    weights: tuple[float, float],
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor] | None]:
    """Lines 9 to 11: prototypes and the noisy contrastive loss.

    Args:
      learned, passed: of `classification_losses`.
      key, queue: momentum network and its keys; None where the contrastive loss has no weight.
      prototypes: [C, D] of both networks.
      rule: see losses.contrastive.
      weights: of line 10 and of line 11, 0 = left out.

    Returns: the weighted losses, the new prototypes and the new queue.
    """
    losses, on_p = {}, learned.is_reliable.repeat(len(learned.views))
    labels, is_trusted = gather_rows(learned.targets.argmax(1)), gather_rows(learned.is_reliable)
    seen = gather_rows(passed["query"].detach())
    prototypes = update_prototypes(prototypes, seen, labels, decay=PROTOTYPE_DECAY, where=is_trusted)  # 9
    if weights[0] > 0:
        near = [
            prototype_loss(
                passed["z"],
                prototypes,
                learned.targets.repeat(len(learned.views), 1),
                is_reliable=on_p,
                permutation=passed["permutation"],
                lam=passed["lam"],
                temperature=PROTOTYPE_TEMPERATURE,
                weights=rows.float(),  # no `where`: it would blank partners' targets
            )
            for rows in (on_p, ~on_p)
        ]
        losses["loss_prototypes"] = weights[0] * (near[0] + near[1])  # 10
    if key is not None and queue is not None:
        with torch.no_grad():
            keys = gather_rows(key.both(learned.views[-1])[1])
        apart = noisy_contrastive(
            gather_queries(passed["query"]),
            keys,
            labels=labels,
            is_reliable=is_trusted,
            queue=queue,
            n_classes=len(prototypes),
            rule=rule,
            temperature=CONTRASTIVE_TEMPERATURE,
        )
        losses["loss_contrastive"] = weights[1] * sum_gradients(apart)  # 11
        queue = push_queue(queue, keys, labels, is_trusted)
    return losses, prototypes, queue
