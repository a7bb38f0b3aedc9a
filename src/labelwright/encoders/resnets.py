"""Residual networks for small images, written from the papers: ResNet-32, ResNet-18 and pre-activation ResNet-18.

Each takes [B, 3, H, W] (any H, W from 8 up; meant for 32) and returns feats [B, D] with D = ``n_features``. Quick on
a CPU: 3x3 convolutions without bias, in-place ReLU and sums, and shortcuts that keep channels-last tensors so.

Source: He et al. 2015 (arXiv 1512.03385), section 4.2 (ResNet-32) and table 1 (ResNet-18, here with the 3x3 stem
without pooling usual for 32 px); He et al. 2016 (arXiv 1603.05027), figure 1b (pre-activation); initial weights:
He et al. 2015 (arXiv 1502.01852), Eq. (10).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """Basic blocks in stages, with batch norm and ReLU after each convolution (the original form).

    Attributes:
      n_features: D, channels of the last stage.

    Example:
      >>> import torch
      >>> net = OWN["resnet32"]()
      >>> net.n_features, tuple(net(torch.zeros(2, 3, 32, 32)).shape)
      (64, (2, 64))
    """

    def __init__(self, *, widths: tuple[int, ...], depth: int, use_projection: bool) -> None:
        """Lay out the stages.

        Args:
          widths: channels of each stage; every stage but the first halves height and width.
          depth: blocks per stage.
          use_projection: True: shortcuts that change shape are 1x1 convolutions (option B of the paper); False:
            every second pixel with zeros for the new channels, no parameters (option A).
        """
        super().__init__()
        self.stem = _conv3x3(3, widths[0])
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = _stages(partial(_Block, use_projection=use_projection), widths, depth)
        self.n_features = widths[-1]
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        x = F.relu_(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


class PreActResNet(nn.Module):
    """Basic blocks with batch norm and ReLU before each convolution, and once more before the mean.

    Attributes:
      n_features: D, channels of the last stage.

    Example:
      >>> import torch
      >>> net = OWN["preact_resnet18"]()
      >>> net.n_features, tuple(net(torch.zeros(2, 3, 16, 16)).shape)
      (512, (2, 512))
    """

    def __init__(self, *, widths: tuple[int, ...], depth: int) -> None:
        """Lay out the stages: ``widths`` channels each, ``depth`` blocks each; all but the first halve the size."""
        super().__init__()
        self.stem = _conv3x3(3, widths[0])
        self.stages = _stages(_PreActBlock, widths, depth)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.n_features = widths[-1]
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return F.relu_(self.norm(x)).mean((2, 3))


def _stages(block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], depth: int) -> nn.ModuleList:
    """``depth`` blocks of each width; the first one of every stage but the first halves height and width."""
    stages = nn.ModuleList()
    for i, width in enumerate(widths):
        first = block(widths[max(i - 1, 0)], width, 2 if i > 0 else 1)
        stages.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1))))
    return stages


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, use_projection: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(n_in, n_out, stride)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = _conv3x3(n_out, n_out)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.stride = stride
        self.n_new = n_out - n_in
        changes = stride > 1 or n_in != n_out
        self.shortcut: nn.Module | None = None
        if changes and use_projection:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu_(self.norm1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.n_new > 0:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.n_new // 2, self.n_new - self.n_new // 2))
        return F.relu_(y.add_(x))  # batch norm's backward needs its input only, so its output may be overwritten


class _PreActBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in)
        self.conv1 = _conv3x3(n_in, n_out, stride)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.conv2 = _conv3x3(n_out, n_out)
        changes = stride > 1 or n_in != n_out
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu_(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)  # a block that changes shape shares the activated input (figure 1b, first unit)
        y = self.conv2(F.relu_(self.norm2(self.conv1(y))))
        y += x
        return y


def _conv3x3(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def own_network(size_px: int) -> str:
    """The network here that suits images of a size.

    Example:
      >>> own_network(32), own_network(64)
      ('resnet32', 'resnet18')
    """
    return "resnet32" if size_px <= 40 else "resnet18"


OWN: dict[str, Callable[[], ResNet | PreActResNet]] = {
    # of the CIFAR experiments: parameter-free shortcuts
    "resnet32": partial(ResNet, widths=(16, 32, 64), depth=5, use_projection=False),
    # for small images: 1x1 shortcuts, 3x3 stem
    "resnet18": partial(ResNet, widths=(64, 128, 256, 512), depth=2, use_projection=True),
    # the network of most work on noisy and candidate labels
    "preact_resnet18": partial(PreActResNet, widths=(64, 128, 256, 512), depth=2),
}
"""The networks here by name; they start from random weights."""
