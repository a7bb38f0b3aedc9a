"""Networks for a recipe: a head on a frozen encoder or stored features, or a backbone that learns from pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labelwright.encoders import backbones
from labelwright.encoders.embed import Encoder
from labelwright.encoders.lora import LoraTowers
from labelwright.encoders.prompts import PromptedTowers
from labelwright.encoders.resnets import OWN
from labelwright.encoders.saved import network_of
from labelwright.encoders.templates import fill
from labelwright.encoders.towers import EmbeddedTowers, FrozenTowers, Towers
from labelwright.errors import ConfigError
from labelwright.train.seeds import derive_seed
from labelwright.types import Concepts, Head


@dataclass
class EncoderNets:
    """A `types.BuildNet` for runs with a frozen encoder, or on embeddings that came without one."""

    n_features: int  # D
    concepts: Concepts | None  # what there is of texts
    encoder: Encoder | None  # None for the user's own embeddings
    is_stored: bool  # views are features already; False = pixels through the encoder in the loop
    class_names: tuple[str, ...]  # what tuned towers read, put into the template
    template: str
    seed: int  # of new weights
    scales: Tensor | None = None  # [D], what columns of the user's own embeddings were divided by; None: by nothing
    is_frozen: bool = True  # the encoder never learns under a head
    is_pretrained: bool = True  # the features come from somewhere

    def __call__(self, n_outputs: int, *, head: Head = "linear", hidden: int = 256) -> nn.Module:
        """A head on the features; with pixels, on the frozen encoder."""
        backbone: nn.Module = backbones.Stored()
        name, size_px = "stored", 0
        if not self.is_stored:
            assert self.encoder is not None
            backbone, name = backbones.UnitBackbone(self.encoder.vision), network_of(self.encoder.name)
            size_px = self.encoder.stats.size_px
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.seed += 1  # two networks of one recipe start from different weights
            return backbones.Classifier(
                backbone,
                name=name,
                n_features=self.n_features,
                n_outputs=n_outputs,
                head=head,
                hidden=hidden,
                image_size_px=size_px,
                freeze=() if self.is_stored else ("backbone.*",),
            )

    def towers(self, tune: str = "none") -> Towers:
        """See types.BuildNet.towers."""
        if self.concepts is None:
            raise ConfigError(
                "there are no text features of the classes",
                fix="use a model with a text side, or embeddings with class_embeddings",
            )
        if self.is_stored:
            if tune != "none":
                raise ConfigError(
                    f"tune={tune} trains the encoder, and stored embeddings leave it out", fix="add --views pixels"
                )
            return EmbeddedTowers(self.concepts.feats, logit_scale=self.concepts.logit_scale)
        assert self.encoder is not None
        assert self.encoder.tower is not None
        tower = self.encoder.tower
        if tune == "none":
            return FrozenTowers(tower, self.concepts.feats)
        if tune == "lora":
            return LoraTowers(tower, [fill(self.template, name) for name in self.class_names], seed=self.seed)
        kind: Any = tune
        return PromptedTowers(tower, self.class_names, kind=kind, seed=self.seed)

    def deployable(self, net: backbones.Classifier | backbones.Ensemble) -> backbones.Classifier | backbones.Ensemble:
        """The classifier with the encoder in front, so that it takes pixels, or of embeddings as they were given."""
        if self.scales is not None:
            return net.with_backbone(backbones.Stored(self.scales), name="stored", image_size_px=0)
        if self.encoder is None or not isinstance(net.backbone, backbones.Stored):
            return net
        return net.with_backbone(
            backbones.UnitBackbone(self.encoder.vision),
            name=network_of(self.encoder.name),
            image_size_px=self.encoder.stats.size_px,
        )


@dataclass
class OwnNets:
    """A `types.BuildNet` of networks that see pixels."""

    model: str  # as for encoders.backbones.build
    size_px: int  # side of the images
    pretrained: bool  # start a transformers model from its weights
    freeze: tuple[str, ...]  # patterns of parameter names
    seed: int  # of new weights
    n_built: int = 0  # networks made so far

    @property
    def is_frozen(self) -> bool:
        """Whether nothing but the head learns."""
        return "backbone.*" in self.freeze

    @property
    def is_pretrained(self) -> bool:
        """Whether the backbone comes with weights: from a checkpoint, or from `labelwright pretrain`."""
        return self.model not in OWN and self.pretrained

    def __call__(self, n_outputs: int, *, head: Head = "linear", hidden: int = 256) -> nn.Module:
        """See types.BuildNet."""
        self.n_built += 1  # two networks of one recipe start from different weights
        net = backbones.build(
            self.model,
            n_outputs,
            pretrained=self.pretrained,
            head=head,
            hidden=hidden,
            image_size_px=self.size_px,
            freeze=self.freeze,
            seed=derive_seed(self.seed, "net", self.n_built),
        )
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise ConfigError(f"--freeze {' '.join(self.freeze)} leaves nothing to train", fix="leave head.* free")
        return net

    def towers(self, tune: str = "none") -> Any:
        """Refused: these networks have no text side."""
        raise ConfigError(
            f"{self.model} has no text side", fix="name a vision-language model: CLIP, SigLIP, ... with --model"
        )
