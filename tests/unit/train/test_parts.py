"""A batch in parts: the values, gradients and statistics of the whole, in the memory of a part."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from labelwright.encoders import backbones
from labelwright.train.parts import in_parts, set_parts


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a loss that contrasts the rows of the batch with one another."""
    z = net(x)
    net.zero_grad()
    (z @ z.T).logsumexp(1).sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("n_parts", [2, 3, 9])
def test_in_parts__gradients_of_the_whole_batch(n_parts: int) -> None:
    net = backbones.build("resnet32", 3, seed=0).double().eval()  # batch norms apart, rows do not meet
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = gradients(net, x)
    set_parts(net, n_parts)
    parts = gradients(net, x)
    assert parts.keys() == whole.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-9, atol=1e-9)


def test_in_parts__keeps_the_activations_of_one_part_at_a_time() -> None:
    sizes: list[int] = []

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1).repeat(1, 5).tanh()

    layer, x = Layer(), torch.randn(8, 1, 2, 2, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = in_parts(layer, layer, x, n_parts=4)
    assert sizes == [2] * 4
    assert sum(kept) == x.numel()  # what goes in, not the five times as many that tanh keeps
    out.sum().backward()
    assert sizes == [2] * 8  # each part once more
    with torch.no_grad():
        in_parts(layer, layer, x, n_parts=4)
    assert sizes[8:] == [8]


def test_in_parts__running_statistics_are_counted_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    once = copy.deepcopy(net)
    x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    in_parts(net, net, x, n_parts=2).sum().backward()
    for part in x.chunk(2):
        once(part)
    assert torch.equal(net[1].running_mean, once[1].running_mean)
    assert torch.equal(net[1].num_batches_tracked, torch.tensor(2))
