"""Which layers of a classifier learn."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn


def freeze_below(net: nn.Module, layers: Literal["head", "last_stage"]) -> set[str]:
    """Leave only the head of a Classifier to learn, or the backbone's last stage as well: the names that are frozen.

    A stage is the outermost numbered group of a backbone: of a ResNet its last resolution, of a ViT its last block.
    What comes after the last stage learns too; a backbone without stages counts as one.

    Example:
      >>> from labelwright.encoders.backbones import build
      >>> net = build("resnet18", 10, seed=0)
      >>> frozen = freeze_below(net, "last_stage")
      >>> "backbone.stages.2.0.conv1.weight" in frozen, "backbone.stages.3.0.conv1.weight" in frozen
      (True, False)
    """
    names = [name for name, _ in net.named_parameters() if name.startswith("backbone.")]
    frozen = set(names)
    if layers == "last_stage":
        pattern = re.compile(r"\.(?:stages?|layers?|blocks?)\.(\d+)(?:\.|$)")
        number = {name: int(found[1]) for name in names if (found := pattern.search(name))}
        last = max(number.values(), default=0)
        first = next((i for i, name in enumerate(names) if number.get(name) == last), 0)
        frozen = set(names[:first]) | {name for name in number if number[name] < last}
    for name, parameter in net.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen
