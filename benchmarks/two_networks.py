"""Two networks in one pass against one after the other: what Co-Reg would gain by stacking its two.

    python benchmarks/two_networks.py [--rounds 50]

Heads on stored features (128 numbers, batch 512) are stacked with torch.func; of networks that see pixels the part that
costs, 3x3 convolutions of ResNet-32's first and last stage (batch 128), is made one with a group per network. Timed are
forward and backward in the precision that Co-Reg picks, by turns, in CPU seconds; medians. Both are checked to give
the same gradients.
Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from labelwright.encoders.backbones import Classifier, Stored
from labelwright.encoders.projection import ProjectedNet
from labelwright.train.processes import autocast_dtype

CPU = torch.device("cpu")
DTYPE = autocast_dtype(CPU, "auto")
Step = Callable[[], Tensor]  # a loss, summed over both networks


class Both(nn.Module):
    """Logits and projections by ``forward``, which is what torch.func calls."""

    def __init__(self) -> None:
        super().__init__()
        head = Classifier(Stored(), name="stored", n_features=128, n_outputs=10, head="mlp", image_size_px=0, freeze=())
        self.net = ProjectedNet(head, n_dims=128)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.both(x)


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """Some loss of outputs [..., B, D]: the mean square of each, summed over the networks."""
    return sum((out.float().square().mean((-1, -2)).sum() for out in outputs), torch.zeros(()))


def heads() -> tuple[Step, Step, Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """Two heads apart, and stacked; and the gradients of either."""
    nets, x = [Both(), Both()], torch.randn(512, 128)
    weights, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    names, shell = list(weights), copy.deepcopy(nets[0]).to("meta")

    def call(w: Any, b: Any, x: Tensor) -> Any:
        return functional_call(shell, (w, b), (x,))

    def apart() -> Tensor:
        return sum((loss_of(net(x)) for net in nets), torch.zeros(()))

    def together() -> Tensor:
        return loss_of(vmap(call, in_dims=(0, 0, None))(weights, buffers, x))

    def of_apart() -> list[Tensor]:
        return [torch.stack([net.get_parameter(name).grad for net in nets]) for name in names]  # type: ignore[misc]

    def of_together() -> list[Tensor]:
        return [weights[name].grad for name in names]  # type: ignore[misc]

    return apart, together, of_apart, of_together


def convolutions(
    n_channels: int, size_px: int
) -> tuple[Step, Step, Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
    """Two convolutions apart, and as one of two groups; and the gradients of either."""
    options: dict[str, Any] = {"padding": 1, "bias": False}
    pair = [nn.Conv2d(n_channels, n_channels, 3, **options) for _ in range(2)]
    grouped = nn.Conv2d(2 * n_channels, 2 * n_channels, 3, groups=2, **options)
    with torch.no_grad():
        grouped.weight.copy_(torch.cat([conv.weight for conv in pair]))
    x = torch.randn(128, n_channels, size_px, size_px).to(memory_format=torch.channels_last)
    twice = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)
    for conv in (*pair, grouped):
        conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def apart() -> Tensor:
        return sum((conv(x).float().square().sum() for conv in pair), torch.zeros(()))

    def together() -> Tensor:
        return grouped(twice).float().square().sum()

    def of_apart() -> list[Tensor]:
        return [torch.cat([conv.weight.grad for conv in pair])]  # type: ignore[list-item]

    def of_together() -> list[Tensor]:
        return [grouped.weight.grad]  # type: ignore[list-item]

    return apart, together, of_apart, of_together


def seconds_of(steps: Sequence[Step], n_rounds: int) -> list[float]:
    """Median CPU seconds of forward and backward of each, which take turns."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(n_rounds + 2):
        for step, own in zip(steps, taken, strict=True):
            began = time.process_time()
            with torch.autocast("cpu", dtype=DTYPE, enabled=DTYPE is not None):
                loss = step()
            loss.backward()
            own.append(time.process_time() - began)
    return [statistics.median(own[2:]) for own in taken]


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    n_rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    for title, (apart, together, of_apart, of_together) in {
        "heads on 128 features, batch 512": heads(),
        "convolution, 16 channels, 32 px, batch 128": convolutions(16, 32),
        "convolution, 64 channels, 8 px, batch 128": convolutions(64, 8),
    }.items():
        apart().backward()
        together().backward()
        for mine, theirs in zip(of_apart(), of_together(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        one, two = seconds_of((together, apart), n_rounds)
        print(f"{title}: one pass {1e3 * one:.2f} ms, apart {1e3 * two:.2f} ms, ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
