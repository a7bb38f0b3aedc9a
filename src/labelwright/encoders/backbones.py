"""Image classifiers: one of our own small networks or any vision model of transformers, with a head on top.

``build`` makes one, ``classifier_config`` and ``from_config`` let a saved one be rebuilt without the network or the
original weights, ``param_groups`` gives the optimizer its groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from labelwright.encoders import descriptor, efficientnet
from labelwright.encoders.heads import (
    CacheHead,
    CentredHead,
    CosineHead,
    KernelHead,
    LiftedHead,
    MlpHead,
    ProjectedHead,
    TextHead,
)
from labelwright.encoders.pretrained import (
    from_transformers_config,
    load_config,
    load_vision_model,
    parse_transformers_config,
)
from labelwright.encoders.residual import ResidualAdapter
from labelwright.encoders.resnets import OWN
from labelwright.encoders.saved import SavedBackbone, saved_backbone
from labelwright.errors import ConfigError
from labelwright.train.parts import in_parts
from labelwright.types import Head

_HEADS: dict[type[nn.Module], Head | Literal["text", "cache"]] = {
    nn.Linear: "linear",
    CentredHead: "centred",
    CosineHead: "cosine",
    KernelHead: "kernel",
    LiftedHead: "lifted",
    MlpHead: "mlp",
    ProjectedHead: "projected",
    TextHead: "text",
    CacheHead: "cache",
}


class Stored(nn.Module):
    """The backbone of embeddings: what comes in is the feature already, or becomes it once its columns are divided.

    Args:
      scales: [D] float > 0, what columns are divided by; None: they stay as they are.
    """

    def __init__(self, scales: Tensor | None = None) -> None:
        super().__init__()
        self.scales: Tensor | None
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Feats [B, D]."""
        return x if self.scales is None else x / self.scales


class UnitBackbone(nn.Module):
    """A `VisionModel` or encoders.prompts.PromptedVision whose feats come out with unit norm, as a store holds them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to unit feats [B, D] float32."""
        return F.normalize(self.inner(x).float(), dim=1)


class Classifier(nn.Module):
    """Backbone and head. Parameters are named ``backbone.*`` and ``head.*``.

    Attributes:
      name: what the backbone was asked for as.   n_outputs: C.
      n_features: D, of the features and of what the last layer sees.
      n_parts: in how many the backbone sees a batch that a gradient is kept of, see train.parts.
      freeze: the glob patterns that were frozen; batch norms wholly frozen by them stay in eval mode, and all of a
        network that ``keeps_statistics``: those of its pretraining, which few images in small batches would spoil.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        n_features: int,
        n_outputs: int,
        head: Head | nn.Module,
        image_size_px: int,
        freeze: Sequence[str],
        hidden: int = 256,
        keeps_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(head, nn.Module):
            self.head = head
        elif head == "linear":
            self.head = nn.Linear(n_features, n_outputs)
        elif head == "centred":
            self.head = CentredHead(n_features, n_outputs)
        elif head == "cosine":
            self.head = CosineHead(n_features, n_outputs)
        elif head == "mlp":
            self.head = MlpHead(n_features, n_outputs, hidden=hidden)
        elif head in ("projected", "lifted"):
            self.head = (ProjectedHead if head == "projected" else LiftedHead)(n_features, n_outputs, n_dims=hidden)
        elif head == "kernel":
            self.head = KernelHead(n_features, n_outputs, n_images=hidden)
        else:
            raise ConfigError(f"unknown head: {head!r}", fix=f"use {', '.join(map(repr, get_args(Head)))}")
        self.name = name
        self.n_features = n_features
        self.n_outputs = n_outputs
        self.head_kind = _HEADS[type(self.head)]
        self.image_size_px = image_size_px
        self.n_parts = 1
        self.freeze = tuple(freeze)
        frozen = _freeze(self, self.freeze)
        self._frozen_norms = [
            module_name
            for module_name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and (keeps_statistics or {f"{module_name}.{p}" for p, _ in module.named_parameters()} <= frozen)
            and (keeps_statistics or module.affine)
        ]
        self.train()

    def features(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        return in_parts(self, self.backbone, x, n_parts=self.n_parts)

    def head_logits(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C]."""
        logits: Tensor = self.head(feats)
        return logits

    def penultimate(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to what the last layer sees [B, D]: feats, through the trunk of an "mlp" head."""
        feats = self.features(x)
        return self.head.trunk(feats) if isinstance(self.head, MlpHead) else feats

    def from_penultimate(self, h: Tensor) -> Tensor:
        """Map what `penultimate` gives [B, D] to logits [B, C]."""
        logits: Tensor = self.head.linear(h) if isinstance(self.head, MlpHead) else self.head(h)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, C]."""
        return self.head_logits(self.features(x))

    def exported(self) -> Classifier:
        """The classifier that a saved model holds: this one."""
        return self

    def with_backbone(self, backbone: nn.Module, *, name: str, image_size_px: int) -> Classifier:
        """This head on another backbone that gives the same features; the head is shared."""
        return Classifier(
            backbone,
            name=name,
            n_features=self.n_features,
            n_outputs=self.n_outputs,
            head=self.head,
            image_size_px=image_size_px,
            freeze=(),
        )

    def train(self, mode: bool = True) -> Classifier:
        """Switch to training (or eval) mode, batch norms that are frozen excepted."""
        super().train(mode)
        for name in self._frozen_norms:
            self.get_submodule(name).eval()
        return self


class Ensemble(nn.Module):
    """Classifiers of one architecture, the ``members``, whose logits are summed.

    Example:
      >>> nets = [build("resnet32", 10, seed=seed) for seed in (0, 1)]
      >>> x = torch.randn(2, 3, 32, 32)
      >>> bool((Ensemble(nets)(x) == nets[0](x) + nets[1](x)).all())
      True
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, C]."""
        logits = [member(x) for member in self.members]
        total: Tensor = sum(logits[1:], logits[0])
        return total

    @property
    def first(self) -> Classifier:
        """The first member."""
        member: Any = self.members[0]
        return cast(Classifier, member)

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the first member."""
        return self.first.backbone

    def with_backbone(self, backbone: nn.Module, *, name: str, image_size_px: int) -> Ensemble:
        """These heads on another backbone, see `Classifier.with_backbone`."""
        members: Any = self.members
        return Ensemble([m.with_backbone(backbone, name=name, image_size_px=image_size_px) for m in members])


def build(
    name: str,
    n_outputs: int,
    *,
    pretrained: bool = True,
    head: Head = "linear",
    hidden: int = 256,
    image_size_px: int = 32,
    freeze: Sequence[str] = (),
    seed: int,
) -> Classifier:
    """Make a classifier.

    Args:
      name: one of OWN, descriptor, efficientnet_lite0, a run of labelwright (the backbone that it left), a folder with
        a transformers checkpoint, or the id of one on the Hugging Face hub (fetched unless cached): ViT, DINOv2,
        ConvNeXt, ResNet, Swin, ...; of CLIP and SigLIP the image tower is taken.
      n_outputs: C, >= 1.
      pretrained: False starts a transformers model from random weights; the networks in OWN always do.
      head: "linear", "centred" (linear on features centred and of unit scale), "cosine" (unit feats, unit weights, no
        bias: what LDAM needs), "mlp" (a residual layer, then linear: something to learn where the backbone is frozen),
        "projected" (linear on unit projections), "lifted" (the same, their length kept) or "kernel" (linear on the
        nearness to some images).
      hidden: width of that residual layer, of the projections, or number of those images, >= 1.
      image_size_px: side of the images that it sees.
      freeze: glob patterns over parameter names, as in ``("backbone.*",)`` or ``("*.layer.[0-8].*",)``.
      seed: of the random weights; the global random state is left as it was.

    Raises:
      ConfigError: unknown name, folder, head or freeze pattern; not a vision model; weights missing.
      OfflineError: a hub id that is neither cached nor within reach.

    Example:
      >>> net = build("resnet32", 10, freeze=("backbone.stem.*",), seed=0)
      >>> tuple(net(torch.zeros(2, 3, 32, 32)).shape), net.backbone.stem.weight.requires_grad
      ((2, 10), False)
    """
    if n_outputs < 1:
        raise ConfigError(f"n_outputs is {n_outputs}", fix="a classifier needs at least one class")
    saved = None if name in OWN else saved_backbone(name)
    if saved is not None and not pretrained:
        raise ConfigError(
            f"random weights leave nothing of {name}",
            fix=f"leave --no-pretrained out, or name the network: {saved.network}",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: nn.Module
        if name in OWN:
            backbone = OWN[name]()
        elif pretrained or name == descriptor.NAME:
            backbone = load_pretrained(name)
        elif name == efficientnet.NAME:
            backbone = efficientnet.EfficientNetLite()
        else:
            backbone = from_transformers_config(load_config(name))
        return Classifier(
            backbone,
            name=name if saved is None else saved.network,
            n_features=_n_features(backbone, image_size_px, name),
            n_outputs=n_outputs,
            head=head,
            hidden=hidden,
            image_size_px=image_size_px,
            freeze=freeze,
            keeps_statistics=pretrained and name not in OWN and saved is None,
        )


def classifier_config(net: Classifier | Ensemble) -> dict[str, Any]:
    """Everything but the weights, ready for JSON: what ``from_config`` needs to rebuild the network offline.

    Example:
      >>> classifier_config(build("resnet32", 10, seed=0))["n_features"]
      64
    """
    if isinstance(net, Ensemble):
        return {**classifier_config(net.first), "n_summed": len(net.members)}
    backbone = net.backbone
    is_unit = isinstance(backbone, UnitBackbone)
    inner = backbone.inner if isinstance(backbone, UnitBackbone) else backbone
    prompts = getattr(inner, "prompt_config", None)
    transformers: Any = getattr(inner, "config", None)
    visual = net.head.visual if isinstance(net.head, TextHead) else None
    return {
        "name": net.name,
        "n_outputs": net.n_outputs,
        "n_features": net.n_features,
        "head": net.head_kind,
        "image_size_px": net.image_size_px,
        "freeze": list(net.freeze),
        "transformers": None if transformers is None else json.loads(transformers.to_json_string(use_diff=False)),
        "unit_feats": is_unit,
        "visual_prompts": prompts,
        "mlp_hidden": net.head.to_hidden.out_features if isinstance(net.head, MlpHead) else None,
        "n_dims": len(net.head.projection) if isinstance(net.head, ProjectedHead) else None,
        "n_images": len(net.head.images) if isinstance(net.head, KernelHead) else None,
        "has_scales": isinstance(backbone, Stored) and backbone.scales is not None,
        "n_cached": len(net.head.keys) if isinstance(net.head, CacheHead) else None,
        "adapter": None if visual is None else {"n_hidden": visual.down.out_features, "weight": visual.weight},
    }


def from_config(config: Mapping[str, Any]) -> Classifier | Ensemble:
    """Rebuild a network from ``classifier_config``, with random weights: give it the saved ones by load_state_dict.

    Nothing is fetched, and neither hub id nor folder of the original checkpoint has to exist any more.

    Raises: ConfigError: a key is missing, or transformers here does not know the model type.

    Example:
      >>> net = build("resnet32", 10, seed=1)
      >>> again = from_config(classifier_config(net))
      >>> again.load_state_dict(net.state_dict())
      <All keys matched successfully>
    """
    if "n_summed" in config:
        own = {key: value for key, value in config.items() if key != "n_summed"}
        members: list[Any] = [from_config(own) for _ in range(config["n_summed"])]
        return Ensemble(members)
    wanted = ("name", "n_outputs", "n_features", "head", "image_size_px", "freeze", "transformers")
    missing = [key for key in wanted if key not in config]
    if missing:
        raise ConfigError(f"model config lacks {', '.join(missing)}", fix="save it with classifier_config(net)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone: nn.Module
        if config["name"] == "stored":
            backbone = Stored(torch.ones(config["n_features"]) if config.get("has_scales") else None)
        elif config["transformers"] is None:
            known: dict[str, Callable[[], nn.Module]] = {
                **OWN,
                descriptor.NAME: descriptor.Descriptor,
                efficientnet.NAME: efficientnet.EfficientNetLite,
            }
            if config["name"] not in known:
                raise ConfigError(
                    f"unknown network in model config: {config['name']!r}", fix=f"one of {', '.join(known)}"
                )
            backbone = known[config["name"]]()
        else:
            backbone = from_transformers_config(parse_transformers_config(config["transformers"]))
            if config.get("visual_prompts"):
                from labelwright.encoders.prompts import rebuild_prompted_vision  # which needs the encoders

                backbone = rebuild_prompted_vision(backbone, config["visual_prompts"])
        if config.get("unit_feats"):
            backbone = UnitBackbone(backbone)
        n_features, n_outputs = config["n_features"], config["n_outputs"]
        head = config["head"]
        if head == "text":
            adapter = config.get("adapter")
            visual = ResidualAdapter(n_features, **adapter) if adapter else None
            head = TextHead(torch.zeros(n_outputs, n_features), torch.zeros(n_outputs), visual=visual)
        elif head == "cache":
            cached = torch.zeros(config["n_cached"], dtype=torch.int64)
            head = CacheHead(torch.zeros(n_outputs, n_features), cached)
        return Classifier(
            backbone,
            name=config["name"],
            n_features=n_features,
            n_outputs=n_outputs,
            head=head,
            hidden=config.get("mlp_hidden") or config.get("n_dims") or config.get("n_images") or 0,
            image_size_px=config["image_size_px"],
            freeze=config["freeze"],
        )


def load_pretrained(name: str) -> nn.Module:
    """A backbone with weights, by the names that `build` takes, but for those in OWN.

    Raises: ConfigError, OfflineError: see `build`.
    """
    if name == descriptor.NAME:
        return descriptor.Descriptor()
    if name == efficientnet.NAME:
        return efficientnet.load_pretrained()
    saved = saved_backbone(name)
    return load_vision_model(name) if saved is None else load_saved(saved)


def load_saved(saved: SavedBackbone) -> nn.Module:
    """A backbone with the weights that a run of labelwright left, all of them free to learn.

    Its feats are those before any normalisation to unit norm, as of a backbone that is new.

    Raises: ConfigError: the weights are missing, broken or of another network.
    """
    net = from_config(saved.classifier)
    try:
        net.load_state_dict(load_file(str(saved.folder / "model.safetensors")))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"cannot load the model in {saved.folder}: {first}", fix="name the run that wrote it"
        ) from error
    return net.backbone.inner if isinstance(net.backbone, UnitBackbone) else net.backbone


def _freeze(net: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Turn the gradient off for parameters matching a pattern; their names."""
    names = [name for name, _ in net.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        hit = {name for name in names if fnmatchcase(name, pattern)}
        if not hit:
            top = dict.fromkeys(".".join(name.split(".")[: 3 if ".model." in name else 2]) for name in names)
            raise ConfigError(
                f"freeze pattern {pattern!r} matches no parameter",
                fix=f"patterns match whole names, as in 'backbone.*'; names begin with {', '.join(top)}",
            )
        frozen |= hit
    for name, parameter in net.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen


def _n_features(backbone: nn.Module, image_size_px: int, name: str) -> int:
    """D, by giving the backbone one black image."""
    backbone.eval()
    try:
        with torch.no_grad():
            return int(backbone(torch.zeros(1, 3, image_size_px, image_size_px)).shape[1])
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot take images of {image_size_px} px: {str(error).splitlines()[0]}",
            fix="leave --size out, or give a size that the model can take",
        ) from error
