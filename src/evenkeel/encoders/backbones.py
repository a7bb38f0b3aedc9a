"""Image classifiers: one of our own small networks or any vision model of transformers, with a head on top.

``build`` makes one, ``classifier_config`` and ``from_config`` let a saved one be rebuilt without the network or the
original weights, ``param_groups`` gives the optimizer its groups, ``image_stats`` says what pixels a model expects.
transformers is imported where it is used: our own networks start without its seconds of import time.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evenkeel.encoders.resnets import preact_resnet18, resnet18, resnet32
from evenkeel.errors import ConfigError, OfflineError

OWN = {"resnet32": resnet32, "resnet18": resnet18, "preact_resnet18": preact_resnet18}
"""Names of the networks of encoders.resnets; they start from random weights."""

Head = Literal["linear", "cosine"]


@dataclass(frozen=True)
class ImageStats:
    """The pixels a network expects.

    Attributes:
      size_px: height and width.
      mean: per channel, of pixels in 0 to 1; to be subtracted.
      std: per channel; to be divided by afterwards.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class CosineHead(nn.Module):
    """Linear head without bias on unit feats and unit weights: logits are cosines, -1 to 1.

    The loss multiplies them (LDAM's ``scale``); computed in float32 even under autocast, since a scale of 30 would
    turn bfloat16's rounding into errors of 0.1.

    Source: Cao et al. 2019 (arXiv 1906.07413), section 3.2 (normalised last layer).

    Example:
      >>> head = CosineHead(2, 1)
      >>> _ = torch.nn.init.constant_(head.weight, 5.0)
      >>> [round(v, 4) for v in head(torch.tensor([[3.0, 3.0], [1.0, 0.0]])).flatten().tolist()]
      [1.0, 0.7071]
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_outputs, n_features))

    def forward(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to cosines [B, C] float32."""
        with torch.autocast(feats.device.type, enabled=False):
            return F.linear(F.normalize(feats.float(), dim=1), F.normalize(self.weight.float(), dim=1))


class VisionModel(nn.Module):
    """A vision model of transformers, or the image tower of a two-tower one, as x -> feats.

    feats are the model's own image embedding: the projected one where it has a projection (CLIP), else its pooled
    output, else the class token. ViT's tanh pooler is dropped, as its authors do for fine-tuning and as checkpoints
    made for classification lack its weights.

    Attributes:
      config: transformers' configuration of the whole checkpoint.
    """

    def __init__(self, model: nn.Module, projection: nn.Module | None, config: Any) -> None:
        super().__init__()
        if isinstance(getattr(getattr(model, "pooler", None), "dense", None), nn.Linear):
            model.pooler = None  # type: ignore[assignment]
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token"):  # serves masked pretraining only; would never get a gradient
                parameter.requires_grad_(False)
        self.model = model
        self.projection = projection
        self.config = config
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]; position encodings are interpolated to other image sizes."""
        out = self.model(pixel_values=x, interpolate_pos_encoding=True) if self._interpolates else self.model(x)
        feats: Tensor | None = getattr(out, "pooler_output", None)
        if feats is None:
            hidden = out.last_hidden_state
            feats = hidden[:, 0] if hidden.dim() == 3 else hidden.mean((2, 3))
        feats = feats.flatten(1)  # ResNet pools to [B, D, 1, 1]
        return feats if self.projection is None else self.projection(feats)


class Classifier(nn.Module):
    """Backbone and head. Parameters are named ``backbone.*`` and ``head.*``.

    Attributes:
      name: what the backbone was asked for as.
      n_features: D.
      n_outputs: C.
      freeze: the glob patterns that were frozen; batch norms wholly frozen by them stay in eval mode.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        n_features: int,
        n_outputs: int,
        head: Head,
        image_size_px: int,
        freeze: Sequence[str],
    ) -> None:
        super().__init__()
        if head not in ("linear", "cosine"):
            raise ConfigError(f"unknown head: {head!r}", fix="use 'linear' or 'cosine'")
        self.backbone = backbone
        self.head = nn.Linear(n_features, n_outputs) if head == "linear" else CosineHead(n_features, n_outputs)
        self.name = name
        self.n_features = n_features
        self.n_outputs = n_outputs
        self.head_kind: Head = head
        self.image_size_px = image_size_px
        self.freeze = tuple(freeze)
        frozen = _freeze(self, self.freeze)
        self._frozen_norms = [
            module_name
            for module_name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and {f"{module_name}.{p}" for p, _ in module.named_parameters()} <= frozen
            and module.affine
        ]
        self.train()

    def features(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to feats [B, D]."""
        feats: Tensor = self.backbone(x)
        return feats

    def head_logits(self, feats: Tensor) -> Tensor:
        """Map feats [B, D] to logits [B, C]."""
        logits: Tensor = self.head(feats)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, H, W] to logits [B, C]."""
        return self.head_logits(self.features(x))

    def train(self, mode: bool = True) -> Classifier:
        """Switch to training (or eval) mode, batch norms that are frozen excepted."""
        super().train(mode)
        for name in self._frozen_norms:
            self.get_submodule(name).eval()
        return self


def build(
    name: str,
    n_outputs: int,
    *,
    pretrained: bool = True,
    head: Head = "linear",
    image_size_px: int = 32,
    freeze: Sequence[str] = (),
    seed: int,
) -> Classifier:
    """Make a classifier.

    Args:
      name: one of OWN, a folder with a transformers checkpoint, or the id of one on the Hugging Face hub (fetched
        unless cached): ViT, DINOv2, ConvNeXt, ResNet, Swin, ...; of CLIP and SigLIP the image tower is taken.
      n_outputs: C, >= 1.
      pretrained: False starts a transformers model from random weights; the networks in OWN always do.
      head: "linear", or "cosine" (unit feats, unit weights, no bias: what LDAM needs).
      image_size_px: height and width of the images it will be given.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: nn.Module
        if name in OWN:
            backbone = OWN[name]()
        else:
            backbone = _load(name) if pretrained else _from_transformers_config(_load_config(name))
        return Classifier(
            backbone,
            name=name,
            n_features=_n_features(backbone, image_size_px, name),
            n_outputs=n_outputs,
            head=head,
            image_size_px=image_size_px,
            freeze=freeze,
        )


def classifier_config(net: Classifier) -> dict[str, Any]:
    """Everything but the weights, ready for JSON: what ``from_config`` needs to rebuild the network offline.

    Example:
      >>> classifier_config(build("resnet32", 10, seed=0))["n_features"]
      64
    """
    backbone = net.backbone
    return {
        "name": net.name,
        "n_outputs": net.n_outputs,
        "n_features": net.n_features,
        "head": net.head_kind,
        "image_size_px": net.image_size_px,
        "freeze": list(net.freeze),
        "transformers": json.loads(backbone.config.to_json_string(use_diff=False))
        if isinstance(backbone, VisionModel)
        else None,
    }


def from_config(config: Mapping[str, Any]) -> Classifier:
    """Rebuild a network from ``classifier_config``, with random weights: give it the saved ones by load_state_dict.

    Nothing is fetched, and neither hub id nor folder of the original checkpoint has to exist any more.

    Args:
      config: as made by ``classifier_config``.

    Raises:
      ConfigError: a key is missing, or transformers here does not know the model type.

    Example:
      >>> net = build("resnet32", 10, seed=1)
      >>> again = from_config(classifier_config(net))
      >>> again.load_state_dict(net.state_dict())
      <All keys matched successfully>
    """
    wanted = ("name", "n_outputs", "n_features", "head", "image_size_px", "freeze", "transformers")
    missing = [key for key in wanted if key not in config]
    if missing:
        raise ConfigError(f"model config lacks {', '.join(missing)}", fix="save it with classifier_config(net)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone: nn.Module
        if config["transformers"] is None:
            if config["name"] not in OWN:
                raise ConfigError(
                    f"unknown network in model config: {config['name']!r}", fix=f"one of {', '.join(OWN)}"
                )
            backbone = OWN[config["name"]]()
        else:
            backbone = _from_transformers_config(_parse_transformers_config(config["transformers"]))
        return Classifier(
            backbone,
            name=config["name"],
            n_features=config["n_features"],
            n_outputs=config["n_outputs"],
            head=config["head"],
            image_size_px=config["image_size_px"],
            freeze=config["freeze"],
        )


def image_stats(name: str) -> ImageStats:
    """What pixels a network expects: from the checkpoint's image processor, or ours for our own networks.

    Args:
      name: as for ``build``.

    Returns: size in px, mean and std per channel. The networks in OWN, trained from scratch, get 32 px and 0.5, 0.25.

    Raises: ConfigError, OfflineError: as ``build``, or the checkpoint does not say (no preprocessor_config.json).

    Example:
      >>> image_stats("resnet32")
      ImageStats(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    """
    if name in OWN:
        return ImageStats(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    from transformers import AutoImageProcessor

    _load_config(name)  # says what is wrong with the name itself
    with _quiet():
        try:
            processor = AutoImageProcessor.from_pretrained(_local(name))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{name} does not say what pixels it expects",
                fix="put its preprocessor_config.json beside config.json, or give image size, mean and std yourself",
            ) from error
    size = _edge(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else None
    size = size or _edge(getattr(processor, "size", None))
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if size is None or mean is None or std is None:
        raise ConfigError(
            f"the image processor of {name} gives no size, image_mean or image_std",
            fix="add them to its preprocessor_config.json",
        )
    (r, g, b), (dr, dg, db) = map(float, mean), map(float, std)
    return ImageStats(size, (r, g, b), (dr, dg, db))


def param_groups(
    net: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    decay_norms: bool = True,
) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that require a gradient.

    With ``layer_decay`` the head, and whatever comes after the last block, gets ``lr``; each block below it
    ``layer_decay`` times the rate of the one above, down to the patch embedding or stem.

    Args:
      net: a Classifier; of another network every parameter in no block counts as head unless it precedes the blocks.
      lr: > 0.
      weight_decay: >= 0.
      layer_decay: 0 to 1, or None: one rate for all.
      decay_norms: False leaves biases and normalisation (all parameters of one dimension) without weight decay.

    Returns: groups of ``params``, ``lr``, ``weight_decay`` and ``name``, in order of depth.

    Raises: ConfigError: layer_decay outside (0, 1].

    Source: Bao et al. 2021 (arXiv 2106.08254), appendix (layer-wise decay of fine-tuning).

    Example:
      >>> net = build("resnet32", 10, seed=0)  # stem, 15 blocks, head
      >>> rates = [group["lr"] for group in param_groups(net, lr=1.0, weight_decay=0.0, layer_decay=0.5)]
      >>> rates[0] == 0.5**16, rates[-2:]
      (True, [0.5, 1.0])
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay is {layer_decay}", fix="give a number above 0 and at most 1")
    names = [name for name, _ in net.named_parameters()]
    depth, n_blocks = _depths(names)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decay_norms or parameter.dim() > 1
        layer = depth[name] if layer_decay is not None else n_blocks + 1
        rate = lr * (1.0 if layer_decay is None else layer_decay ** (n_blocks + 1 - layer))
        label = "all" if layer_decay is None else "head" if layer > n_blocks else f"block{layer}" if layer else "stem"
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": label if decays else f"{label}, no decay",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _depths(names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Depth of each parameter: 0 before the blocks, 1 to n in them, n + 1 after them and in the head."""
    # A block is "layers.3" (ViT), or a stage and its block: "stages.1.layers.0", "layers.1.blocks.0", "stages.1.0".
    pattern = re.compile(r"(?:^|\.)(?:stages?|layers?|blocks?)\.(\d+)(?:\.(?:layers?|blocks?))?(?:\.(\d+))?(?:\.|$)")
    found = {name: pattern.search(name) for name in names if not name.startswith("head.")}
    key = {name: (int(m[1]), int(m[2] or 0)) for name, m in found.items() if m is not None}
    blocks = sorted(set(key.values()))
    number = {block: i + 1 for i, block in enumerate(blocks)}
    depth, in_blocks = {}, False
    for name in names:
        in_blocks = in_blocks or name in key
        depth[name] = number[key[name]] if name in key else len(blocks) + 1 if in_blocks or not key else 0
    return depth, len(blocks)


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
            fix="use the size the model was trained at (image_stats says it)",
        ) from error


def _load(name: str) -> VisionModel:
    """Pretrained vision model in float32; fails if the checkpoint lacks weights that features depend on."""
    from transformers import AutoModel

    config = _load_config(name)
    with _quiet(), _explained(name):
        model, info = AutoModel.from_pretrained(
            _local(name), config=config, dtype=torch.float32, output_loading_info=True
        )
    vision = _image_tower(model, config, name)
    used = {f"vision_model.{n}" for n, _ in vision.model.named_parameters()} if model is not vision.model else set()
    used |= {n for n, _ in vision.model.named_parameters()} | {"visual_projection.weight"}
    missing = sorted(n for n in set(info["missing_keys"]) & used if not n.endswith("mask_token"))
    if missing:
        raise ConfigError(
            f"the checkpoint {name} lacks {len(missing)} weights, among them {missing[0]}",
            fix="use a checkpoint of this architecture, or pretrained=False to start from random weights",
        )
    return vision


def _image_tower(model: Any, config: Any, name: str) -> VisionModel:
    """The model itself, or of a two-tower model its image side."""
    if getattr(model, "vision_model", None) is not None:
        return VisionModel(model.vision_model, getattr(model, "visual_projection", None), config)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise ConfigError(f"{name} is a {config.model_type} model, which takes no images", fix="name a vision model")
    return VisionModel(model, None, config)


def _from_transformers_config(config: Any) -> VisionModel:
    """Vision model with random weights, float32; of a two-tower model only the image side is ever allocated."""
    from transformers import AutoModel

    with _quiet():
        try:
            if not hasattr(config, "vision_config"):
                return _image_tower(AutoModel.from_config(config, dtype=torch.float32), config, config.model_type)
            with torch.device("meta"):
                plan = _image_tower(AutoModel.from_config(config), config, config.model_type)
        except ValueError as error:
            raise ConfigError(f"{config.model_type} is not a model with features", fix="name a vision model") from error
        tower_class: Any = type(plan.model)
        tower = tower_class._from_config(config.vision_config, dtype=torch.float32)
        projection = plan.projection
        if isinstance(projection, nn.Linear):
            has_bias = projection.bias is not None
            projection = nn.Linear(projection.in_features, projection.out_features, bias=has_bias)
        return VisionModel(tower, projection, config)


def _load_config(name: str) -> Any:
    """transformers configuration of a folder or hub id, with what is wrong said in one line."""
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    if not folder.is_dir():
        is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        if is_path:
            raise ConfigError(f"no such model folder: {name}", fix="check the path")
        if "/" not in name:
            close = difflib.get_close_matches(name, OWN, n=3, cutoff=0.4) or list(OWN)
            raise ConfigError(
                f"unknown model: {name!r}",
                fix=f"did you mean {' or '.join(close)}? Otherwise give a hub id (owner/name) or a model folder",
            )
    elif not (folder / "config.json").is_file():
        raise ConfigError(f"no config.json in model folder {name}", fix="give a folder written by save_pretrained")
    with _quiet(), _explained(name):
        return AutoConfig.from_pretrained(_local(name))


def _parse_transformers_config(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    with _quiet():
        try:
            return AutoConfig.for_model(**config)
        except ValueError as error:
            raise ConfigError(
                f"transformers here does not know the model type {config.get('model_type')!r}",
                fix="upgrade transformers",
            ) from error


def _local(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises on a bad name or missing network into one line and a fix."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except (OSError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RepositoryNotFoundError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, GatedRepoError):
            raise ConfigError(
                f"{name} is gated", fix="accept its terms on the hub, then log in (hf auth login)"
            ) from error
        if cause is not None:
            raise ConfigError(f"no model {name} on the Hugging Face hub", fix="check the id (owner/name)") from error
        if Path(name).expanduser().is_dir() or isinstance(error, ValueError):
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"cannot load the model {name}: {first}", fix="check the files in that folder") from error
        raise OfflineError(
            f"{name} is not on this machine and the Hugging Face hub cannot be reached",
            fix=f"where there is a network run: hf download {name}; or pass a local model folder",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading reports and bars: what matters in them is raised as an error here."""
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def _edge(size: Any) -> int | None:
    """Pixels of one side from transformers' size: a number, or height or shortest_edge of a mapping or object."""
    if size is None or isinstance(size, int):
        return size
    for key in ("height", "shortest_edge"):
        value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
        if value:
            return int(value)
    return None
