"""Oracle: parameter counts and shapes worked out from the papers; layouts and gradients by looking."""

import pytest
import torch
from torch import nn

from labelwright.encoders.resnets import OWN

resnet32, resnet18, preact_resnet18 = (OWN[name] for name in ("resnet32", "resnet18", "preact_resnet18"))


def conv(n_in, n_out, k=3):
    return n_in * n_out * k * k


def blocks(widths, depth, projection_cost, norms):
    """Parameters of all blocks: two 3x3 convolutions, their norms, and the shortcut where the shape changes."""
    total, n_in = 0, widths[0]
    for i, width in enumerate(widths):
        for j in range(depth):
            first = n_in if j == 0 else width
            total += conv(first, width) + conv(width, width) + norms(first, width)
            total += projection_cost(first, width) if i > 0 and j == 0 else 0
        n_in = width
    return total


WIDE = (64, 128, 256, 512)
COUNTS = {
    resnet32: conv(3, 16) + 32 + blocks((16, 32, 64), 5, lambda i, o: 0, lambda i, o: 4 * o),
    resnet18: conv(3, 64) + 128 + blocks(WIDE, 2, lambda i, o: conv(i, o, 1) + 2 * o, lambda i, o: 4 * o),
    preact_resnet18: conv(3, 64) + 2 * 512 + blocks(WIDE, 2, lambda i, o: conv(i, o, 1), lambda i, o: 2 * i + 2 * o),
}


@pytest.mark.parametrize("make", COUNTS)
def test_resnets__parameters_and_shapes(make):
    net = make()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[make]
    sizes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    feats = net(torch.randn(2, 3, 32, 32))
    assert feats.shape == (2, net.n_features)
    widths = (16, 32, 64) if make is resnet32 else WIDE
    assert sizes == [(w, 32 >> i, 32 >> i) for i, w in enumerate(widths)]


def test_resnet32__is_the_papers():
    net = resnet32()
    assert 0.455e6 < sum(p.numel() for p in net.parameters()) + 64 * 10 + 10 < 0.465e6  # table 6: 0.46M
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) + 1 == 32  # and the linear layer


def test_resnet32__shortcut_takes_every_second_pixel_and_pads_channels():
    block = resnet32().stages[1][0].eval()
    nn.init.zeros_(block.norm2.weight)  # silences the residual branch
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().max() == 0
    assert y[:, 24:].abs().max() == 0


@pytest.mark.parametrize("make", [resnet32, preact_resnet18])
def test_resnets__stay_channels_last_under_autocast_and_give_every_parameter_a_gradient(make):
    net = make().to(memory_format=torch.channels_last)
    layouts = []
    for stage in net.stages:
        for block in stage:
            block.register_forward_hook(
                lambda _m, _i, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    with torch.autocast("cpu", torch.bfloat16):
        feats = net(torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last))
    feats.float().square().sum().backward()
    assert layouts
    assert all(layouts)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_resnet32__initial_weights_keep_the_scale():
    torch.manual_seed(0)
    weight = resnet32().stages[2][1].conv1.weight  # 64 to 64 channels: 36864 draws
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
