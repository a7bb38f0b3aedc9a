"""How fast a network learns here: three steps of it, on a copy, before a run says how long it will take."""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from labelwright.train.processes import autocast_dtype
from labelwright.types import ViewSource

N_STEPS = 3
CPU_BATCH = 32  # images of a step measured on a CPU, which is no faster on more


def images_per_second(
    net: nn.Module,
    views: ViewSource,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    n_steps: int = N_STEPS,
    n_warm_up: int = 1,
) -> float:
    """Images that pass through a network forward and back in a second, their views made, on this machine.

    The median of a few steps after those that warm up. The network and the random state are left as they were.

    Args:
      net: a classifier, at least one parameter free to learn.   views: of the images that it would learn from.
      batch_size: images per step; on a CPU no more than `CPU_BATCH` are taken.   device, precision: of the run.
      n_steps: measured, >= 1.   n_warm_up: steps before them, which take longer, >= 0.

    Example:
      >>> from labelwright.data.cache import PixelCache
      >>> from labelwright.data.views import PixelViews, ViewSettings
      >>> import numpy as np
      >>> views = PixelViews(PixelCache(np.zeros((4, 8, 8, 3), dtype=np.uint8)), ViewSettings())
      >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
      >>> images_per_second(net, views, batch_size=4, device=torch.device("cpu"), precision="fp32") > 0
      True
    """
    net = copy.deepcopy(net).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    size = min(batch_size, CPU_BATCH if device.type == "cpu" else batch_size)
    rows = torch.arange(size) % views.n_rows
    dtype = autocast_dtype(device, precision)
    params = [p for p in net.parameters() if p.requires_grad]
    seconds = []
    with torch.random.fork_rng(devices=[]):
        for step in range(n_warm_up + n_steps):
            began = time.perf_counter()
            x = views.batch(rows, "weak", seed=step, device=device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(net(x).float(), torch.zeros(size, dtype=torch.int64, device=device))
            grads = torch.autograd.grad(loss, params, allow_unused=True)
            with torch.no_grad():  # a step by hand: torch's optimizers take seconds to load
                for param, grad in zip(params, grads, strict=True):
                    if grad is not None:
                        param.sub_(grad, alpha=1e-6)
            float(loss.detach())  # waits for an accelerator
            seconds.append(time.perf_counter() - began)
    return size / max(statistics.median(seconds[n_warm_up:]), 1e-6)
