"""A linear classifier on the unit features of a vision-language model, with logits on the scale of its text side."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from labelwright.encoders.aligned import AlignedNet
from labelwright.encoders.backbones import Classifier, TextHead
from labelwright.encoders.towers import Towers


class Probe(nn.Module):
    """logits = logit_scale * z . w + b: weights as large as class features serve models of any logit scale.

    Both start at zero; nothing else learns. The same learning rate therefore suits a small CLIP (logit scale 16) and
    a large one (100), whose features differ from one another far less.

    Args:
      towers: image features, see encoders.towers; of their class features only the shape is used.

    Example:
      >>> from labelwright.encoders.towers import EmbeddedTowers
      >>> net = Probe(EmbeddedTowers(torch.eye(2), logit_scale=10.0))
      >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
      >>> net(torch.tensor([[3.0, 4.0]])).tolist()
      [[6.0, 0.0]]
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        n_classes, n_features = towers.text_feats().shape
        self.weight = nn.Parameter(torch.zeros(n_classes, n_features))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def features(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of views, without gradients: the encoder stays as it is."""
        with torch.no_grad():
            return self.towers.features(x)

    def head_logits(self, feats: Tensor) -> Tensor:
        """Logits [B, C] float32 of unit features [B, D]."""
        with torch.autocast(feats.device.type, enabled=False):
            return self.towers.logit_scale * feats.float() @ self.weight.T + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] float32 of views."""
        return self.head_logits(self.features(x))

    @torch.no_grad()
    def exported(self) -> Classifier:
        """The same answers as a plain classifier that needs no text tower: what a saved model holds."""
        classifier = AlignedNet(self.towers).exported()
        classifier.head = copy.deepcopy(TextHead(self.towers.logit_scale * self.weight, self.bias)).cpu()
        return classifier
