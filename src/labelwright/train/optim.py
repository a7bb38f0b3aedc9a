"""Learning-rate schedules, and one optimizer step, plain or sharpness-aware."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from labelwright.train import fsdp
from labelwright.train.processes import is_share
from labelwright.train.settings import TrainSettings


def lr_at(settings: TrainSettings, epoch_frac: float) -> float:
    """Learning rate of the head (or of everything, without layer-wise decay) at a moment of training.

    Args:
      settings: epochs, schedule, warm-up.
      epoch_frac: epochs done so far, with the fraction of the one under way; 0 <= epoch_frac <= epochs.

    Example:
      >>> step = TrainSettings(epochs=10, lr=1.0, schedule="step", warmup_epochs=0.0)
      >>> [round(lr_at(step, e), 3) for e in (0, 7.9, 8, 9)]
      [1.0, 1.0, 0.1, 0.01]
    """
    warmup_epochs = min(settings.warmup_epochs, 0.1 * settings.epochs)
    if epoch_frac < warmup_epochs:
        # Half a thousandth of the peak at the very first step: a step of size 0 would waste the batch.
        return settings.lr * max(epoch_frac / warmup_epochs, 5e-4)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        # The tolerance keeps 0.8 * 10 epochs at epoch 8 whatever the rounding of the product.
        passed = sum(epoch_frac >= frac * settings.epochs - 1e-9 for frac in settings.step_at_frac)
        return settings.lr * float(0.1**passed)
    done = (epoch_frac - warmup_epochs) / max(settings.epochs - warmup_epochs, 1e-9)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def sam_radius_at(settings: TrainSettings, epoch_frac: float) -> float:
    """Radius of sharpness-aware minimisation at a moment of training (two phases); 0 = plain step."""
    is_early = epoch_frac < settings.sam_late_from_frac * settings.epochs
    return settings.sam_radius if is_early or settings.sam_radius_late is None else settings.sam_radius_late


def build_optimizer(nets: Iterable[nn.Module], settings: TrainSettings) -> torch.optim.Optimizer:
    """One optimizer over the trainable parameters of all networks; ``scale`` of a group is its rate over the head's."""
    groups = [
        {**group, "scale": group["lr"]}
        for net in nets
        for group in param_groups(net, lr=1.0, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)
    ]
    if not groups:  # nothing learns (zero-shot): an optimizer that never steps
        groups = [{"params": [torch.zeros(0, requires_grad=True)], "lr": 1.0, "weight_decay": 0.0, "scale": 1.0}]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    else:
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    set_lr(optimizer, settings.lr)  # a group's own rate, still a share of 1, would otherwise win
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


@contextmanager
def perturbed(params: list[Tensor], *, radius: float) -> Iterator[None]:
    """Parameters moved uphill by ``radius`` along their gradient, and put back exactly afterwards.

    Args:
      params: tensors with gradients (those without are left alone).
      radius: Euclidean length of the move over all parameters together, > 0.

    Source: Foret 2021 (arXiv 2010.01412), Eq. (2).

    Example: at w = 3 with gradient 2, radius 0.5 moves w to 3.5 and back.
      >>> w = torch.tensor([3.0], requires_grad=True); w.grad = torch.tensor([2.0])
      >>> with perturbed([w], radius=0.5): print(w.item())
      3.5
      >>> w.item()
      3.0
    """
    moved = [fsdp.own(p.detach()) for p in params if p.grad is not None]
    saved = [p.clone() for p in moved]
    grads = [p.grad for p in params if p.grad is not None]
    if any(map(is_share, grads)):
        norm = fsdp.norm(grads)
    else:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    with torch.no_grad():
        for p, grad in zip(moved, grads, strict=True):
            p.add_(fsdp.own(grad) * (radius / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(moved, saved, strict=True):
                p.copy_(value)


NewNorms = list[tuple[nn.modules.batchnorm._BatchNorm, float]]
"""Layers, and the momentum of each as it was made."""


def new_norms(nets: Iterable[nn.Module]) -> NewNorms:
    """The batch-norm layers that have seen no batch yet: their running statistics say nothing.

    Pretrained ones may come with statistics and no count of batches.
    """
    norms = (m for net in nets for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    is_new = ((m, m.momentum) for m in norms if m.running_mean is not None and not bool(m.running_mean.any()))
    return [(m, float(momentum)) for m, momentum in is_new if momentum]


def hurry(norms: NewNorms, n_steps: int) -> None:
    """Let new batch-norm layers forget what they began with in so many steps: 1% of it is left at most.

    At the usual momentum of 0.1 that takes 44 steps; after 7 of them half of what a network normalises by at test time
    is still zeros and ones, and it gives every image the same class.

    Args: norms: see `new_norms`.   n_steps: of the whole training, >= 1.

    Example:
      >>> norm = nn.BatchNorm2d(3)
      >>> hurry([(norm, 0.1)], 7); round(norm.momentum, 2)
      0.48
      >>> hurry([(norm, 0.1)], 1000); round(norm.momentum, 2)
      0.1
    """
    for norm, momentum in norms:
        norm.momentum = max(momentum, 1 - 0.01 ** (1 / n_steps))


@contextmanager
def running_stats_frozen(nets: Iterable[nn.Module]) -> Iterator[None]:
    """Batch-norm layers normalise by the batch but leave their running statistics alone.

    The second forward of a sharpness-aware step sees perturbed weights; its statistics are not the network's.
    """
    norms = [m for net in nets for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    buffers = [(n, n.clone()) for m in norms if (n := m.num_batches_tracked) is not None]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for buffer, value in buffers:
            buffer.copy_(value)


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    nets: Mapping[str, nn.Module],
    loss_of: Callable[[], Tensor],
    *,
    radius: float,
    max_grad_norm: float,
    reduce_grads: Callable[[list[Tensor]], None],
) -> Tensor:
    """Descend once along the gradient of ``loss_of``, sharpness-aware when ``radius`` > 0.

    Args:
      optimizer: over the parameters of ``nets``, the networks that ``loss_of`` runs.
      loss_of: computes the scalar loss of the current batches; called twice when ``radius`` > 0.
      radius: see `perturbed`; 0 = one plain step.
      max_grad_norm: clip the global norm to this; 0 = never.
      reduce_grads: averages gradients over processes, in place.

    Returns: the loss at the unperturbed parameters, scalar, detached.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    reduce_grads(params)
    if radius > 0:
        with perturbed(params, radius=radius), running_stats_frozen(nets.values()):
            optimizer.zero_grad(set_to_none=True)
            loss_of().backward()  # type: ignore[no-untyped-call]
            reduce_grads(params)
    if max_grad_norm > 0:
        _clip(params, max_grad_norm)
    optimizer.step()
    return loss.detach()


def _clip(params: list[Tensor], most: float) -> None:
    grads = [p.grad for p in params if p.grad is not None]
    if not any(map(is_share, grads)):
        torch.nn.utils.clip_grad_norm_(params, most)
        return
    share = (most / (fsdp.norm(grads) + 1e-6)).clamp(max=1.0)
    for grad in grads:
        fsdp.own(grad).mul_(share)


def param_groups(net: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that require a gradient.

    The head, and whatever comes after the last block, gets ``lr``; each block below it ``layer_decay`` times the rate
    of the one above, down to the patch embedding or stem.

    Args:
      net: a Classifier; of another network every parameter in no block counts as head unless it precedes the blocks.
      lr: > 0.
      weight_decay: >= 0.
      layer_decay: above 0, at most 1 = one rate for all.

    Returns: groups of ``params``, ``lr``, ``weight_decay`` and ``name``, in order of depth.

    Source: Bao et al. 2021 (arXiv 2106.08254), appendix (layer-wise decay of fine-tuning).

    Example:
      >>> blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
      >>> net = nn.ModuleDict({"stem": nn.Linear(2, 2), "layers": blocks, "head": nn.Linear(2, 2)})
      >>> rates = [group["lr"] for group in param_groups(net, lr=1.0, weight_decay=0.0, layer_decay=0.5)]
      >>> rates
      [0.125, 0.25, 0.5, 1.0]
    """
    depth, n_blocks = _depths([name for name, _ in net.named_parameters()])
    groups: dict[int, dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = depth[name]
        rate = lr * layer_decay ** (n_blocks + 1 - layer)
        label = "head" if layer > n_blocks else f"block{layer}" if layer else "stem"
        group = groups.setdefault(layer, {"params": [], "lr": rate, "weight_decay": weight_decay, "name": label})
        group["params"].append(parameter)
    return [groups[layer] for layer in sorted(groups)]


def _depths(names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Depth of each parameter: 0 before the blocks, 1 to n in them, n + 1 after them and in the head."""
    # A block is "layers.3" (ViT), or a stage and its block: "stages.1.layers.0", "layers.1.blocks.0", "stages.1.0".
    pattern = re.compile(r"(?:^|\.)(?:stages?|layers?|blocks?)\.(\d+)(?:\.(?:layers?|blocks?))?(?:\.(\d+))?(?:\.|$)")
    found = {name: pattern.search(name) for name in names if not name.startswith("head.")}
    key = {name: (int(m[1]), int(m[2] or 0)) for name, m in found.items() if m is not None}
    blocks = sorted(set(key.values()))
    number = {block: i + 1 for i, block in enumerate(blocks)}
    depth, in_blocks = {}, False
    for name in names:
        in_blocks = in_blocks or name in key
        depth[name] = number[key[name]] if name in key else len(blocks) + 1 if in_blocks or not key else 0
    return depth, len(blocks)
