"""A pretrained encoder as a run uses it: its features of the images and of the class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.data.prepare import Source
from labelwright.data.views import ViewSettings
from labelwright.encoders import backbones, descriptor, efficientnet
from labelwright.encoders.clip import TwoTower, identity_of, load_two_tower
from labelwright.encoders.pretrained import ImageStats, image_stats, load_config
from labelwright.encoders.saved import saved_backbone
from labelwright.encoders.store import build_store
from labelwright.encoders.templates import class_text_feats, templates_named
from labelwright.train.processes import autocast_dtype
from labelwright.train.progress import counter
from labelwright.types import Concepts


@dataclass(frozen=True)
class Encoder:
    """A frozen pretrained model."""

    name: str  # hub id or folder, as asked for
    vision: nn.Module  # x [B, 3, H, W] -> feats [B, D], any length
    identity: str  # hash of weights and configuration
    n_features: int  # D
    stats: ImageStats  # the pixels it expects
    precision: str  # "bf16" or "fp32"
    tower: TwoTower | None  # the whole two-tower model; None for a vision model, which has no text side

    def encode(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of normalised pixels [B, 3, H, W]."""
        dtype = torch.bfloat16 if self.precision == "bf16" else None
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            feats = self.vision(x)
        return F.normalize(feats.float(), dim=1)


def is_two_tower(name: str) -> bool:
    """Whether a model, by hub id or folder, has an image and a text side.

    Raises: ConfigError, OfflineError: as encoders.pretrained.load_config.

    Example:
      >>> is_two_tower("labelwright/digits-clip")
      True
    """
    if name in (descriptor.NAME, efficientnet.NAME) or saved_backbone(name) is not None:  # runs keep the image side
        return False
    config = load_config(name)
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def load_encoder(name: str, *, device: torch.device, precision: str) -> Encoder:
    """Load a frozen encoder: a two-tower model with its words, or the image side of any vision model.

    Raises: ConfigError, OfflineError: see encoders.clip.load_two_tower and encoders.pretrained.load_vision_model.

    Example:
      >>> encoder = load_encoder("labelwright/digits-clip", device=torch.device("cpu"), precision="fp32")
      >>> encoder.n_features, encoder.tower is not None
      (64, True)
    """
    if is_two_tower(name):
        tower = load_two_tower(name, device=device, precision=precision)
        return Encoder(name, tower.vision, tower.identity, tower.n_features, tower.stats, tower.precision, tower)
    vision = backbones.load_pretrained(name).to(device).eval().requires_grad_(False)
    stats = image_stats(name)
    with torch.no_grad():
        n_features = int(vision(torch.zeros(1, 3, stats.size_px, stats.size_px, device=device)).shape[1])
    used = "bf16" if autocast_dtype(device, precision) is not None else "fp32"
    return Encoder(name, vision, identity_of(vision), n_features, stats, used, None)


def embed(
    source: Source, encoder: Encoder, view: ViewSettings, *, n_views: int, device: torch.device, shared: bool = False
) -> Source:
    """The source with stored features: every image once, and in ``n_views`` weak and strong views; kept in the cache.

    Args:
      source: images with pixels.   encoder: frozen.   view: how pixels are augmented and normalised.
      n_views: V, 0 or more; 0 = the un-augmented view alone.   device: where to compute.
      shared: whether every process is here, to encode its share.
    """
    views = source.pixel_views(view)
    with counter(f"embedding with {encoder.name}", views.n_rows) as progress:
        store = build_store(
            views,
            encoder.encode,
            identity=f"{encoder.identity} {encoder.precision}",
            images_digest=source.table.images_digest,
            n_views=n_views,
            seed=0,
            n_features=encoder.n_features,
            device=device,
            progress=progress,
            shared=shared,
        )
    return replace(source, stored=store, rows=torch.arange(len(source.table)), pixel_rows=source.in_pixels)


def concepts_of(
    tower: TwoTower,
    class_names: Sequence[str],
    *,
    templates: str,
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> Concepts:
    """What the text tower says of class names, and of descriptions of how the classes look.

    Args:
      templates: a name, file or template, see encoders.templates.templates_named.
      descriptions: class -> texts, for any of the classes.

    Raises: ConfigError for templates that cannot be.

    Example:
      >>> tower = load_two_tower("labelwright/digits-clip", device=torch.device("cpu"))
      >>> concepts_of(tower, ["one", "two"], templates="one", descriptions={"one": ["a straight stick"]}).descriptions
      (('a straight stick',), ())
    """
    prompts = templates_named(templates)
    texts = tuple(tuple((descriptions or {}).get(name, ())) for name in class_names)
    every = [text for some in texts for text in some]
    feats = class_text_feats(tower.text_feats, every, prompts).cpu() if every else torch.zeros(0, tower.n_features)
    return Concepts(
        feats=class_text_feats(tower.text_feats, class_names, prompts).cpu(),
        logit_scale=tower.logit_scale,
        descriptions=texts,
        description_feats=tuple(feats.split([len(some) for some in texts])),  # type: ignore[no-untyped-call]
    )
