"""A vision-language classifier: image features against class features, with what alignment and adapters add."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.backbones import Classifier, Stored, UnitBackbone
from labelwright.encoders.heads import TextHead
from labelwright.encoders.lora import LoraTowers
from labelwright.encoders.prompts import PromptedTowers
from labelwright.encoders.residual import ResidualAdapter
from labelwright.encoders.towers import FrozenTowers, Towers
from labelwright.train.parts import in_parts


class AlignedNet(nn.Module):
    """logits = logit_scale * a(z) . t + a(z) . w + b: adapted image features a(z), class features t, a linear term.

    t are the towers' class features, moved by ``offset`` and put through the text adapter. ``offset``, ``w`` and ``b``
    are buffers: found by alignment (labels.concepts, labels.gaussians), zero at first.

    Args:
      towers: image and class features.   visual, textual: adapters of image and of class features, or None.

    Example:
      >>> from labelwright.encoders.towers import EmbeddedTowers
      >>> net = AlignedNet(EmbeddedTowers(torch.eye(2), logit_scale=10.0))
      >>> net(torch.tensor([[3.0, 4.0]])).tolist()
      [[6.0, 8.0]]
    """

    def __init__(
        self, towers: Towers, *, visual: ResidualAdapter | None = None, textual: ResidualAdapter | None = None
    ) -> None:
        super().__init__()
        self.towers = towers
        self.visual = visual
        self.textual = textual
        self.n_parts = 1  # in how many the towers see a batch, see train.parts
        shape = tuple(towers.text_feats().shape)
        self.offset: Tensor
        self.linear_weight: Tensor
        self.linear_bias: Tensor
        self.register_buffer("offset", torch.zeros(shape))
        self.register_buffer("linear_weight", torch.zeros(shape))
        self.register_buffer("linear_bias", torch.zeros(shape[0]))

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of views, before any adapter."""
        return in_parts(self, self.towers.features, x, n_parts=self.n_parts)

    def adapted(self, z: Tensor) -> Tensor:
        """Unit features [B, D] after the visual adapter."""
        return z if self.visual is None else self.visual(z)

    def class_feats(self) -> Tensor:
        """Unit features [C, D] float32 of the classes: towers, offset, text adapter."""
        with torch.autocast(self.offset.device.type, enabled=False):
            t = F.normalize(self.towers.text_feats().float() + self.offset, dim=1)
        return t if self.textual is None else self.textual(t)

    def logits(self, z: Tensor, class_feats: Tensor) -> Tensor:
        """Logits [B, C] float32 of image features [B, D] against class features [C, D]."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            weight = self.towers.logit_scale * class_feats.float() + self.linear_weight
            return F.linear(z, weight, self.linear_bias)

    @torch.no_grad()
    def put_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Make the logits z . weight + bias, the class features among them: [C, D] and [C] float."""
        self.linear_weight.copy_(weight - self.towers.logit_scale * self.class_feats())
        self.linear_bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] float32 of views."""
        return self.logits(self.adapted(self.features(x)), self.class_feats())

    @torch.no_grad()
    def exported(self) -> Classifier:
        """The same answers as a plain classifier that needs no text tower: what a saved model holds."""
        class_feats = self.class_feats()
        weight = self.towers.logit_scale * class_feats.float() + self.linear_weight
        visual = copy.deepcopy(self.visual).cpu() if self.visual is not None else None
        head = TextHead(weight.cpu(), self.linear_bias.cpu(), visual=visual)
        backbone: nn.Module = Stored()
        name = "stored"
        towers = self.towers
        if isinstance(towers, FrozenTowers):
            backbone, name = UnitBackbone(towers.tower.vision), towers.tower.name
        elif isinstance(towers, PromptedTowers):
            backbone, name = UnitBackbone(towers.export()), towers.tower.name
        elif isinstance(towers, LoraTowers):
            backbone, name = UnitBackbone(towers.merged().vision), towers.tower.name
        return Classifier(
            backbone,
            name=name,
            n_features=int(class_feats.shape[1]),
            n_outputs=int(class_feats.shape[0]),
            head=head,
            image_size_px=0 if isinstance(backbone, Stored) else towers.tower.stats.size_px,  # type: ignore[attr-defined]
            freeze=(),
        )
