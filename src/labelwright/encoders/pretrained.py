"""Checkpoints of transformers, from a folder or the Hugging Face hub, as backbones and for what pixels they expect.

transformers is imported where it is used: our own networks start without its seconds of import time. A hub out of
reach is noticed at the first question; what is cached is then used, and nothing else asked for.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from labelwright.encoders import descriptor, efficientnet
from labelwright.encoders.resnets import OWN
from labelwright.encoders.saved import network_of, saved_backbone
from labelwright.errors import ConfigError, OfflineError
from labelwright.parsing import json_of

EMBEDDED = Path(__file__).parents[1] / "assets"  # a folder per model: "labelwright/NAME" is assets/NAME
HUB_TIMEOUT_S = 3.0  # until the hub counts as out of reach; HF_HUB_ETAG_TIMEOUT overrides it, for slow networks


@dataclass(frozen=True)
class ImageStats:
    """The pixels a network expects."""

    size_px: int  # height and width
    mean: tuple[float, float, float]  # per channel, of pixels in 0 to 1; to be subtracted
    std: tuple[float, float, float]  # per channel; to be divided by afterwards


class VisionModel(nn.Module):
    """A vision model of transformers, or the image tower of a two-tower one, as x -> feats.

    feats are the model's own image embedding: the projected one where it has a projection (CLIP), else its pooled
    output, else the class token. ViT's tanh pooler is dropped, as its authors do for fine-tuning and as checkpoints
    made for classification lack its weights.

    Attributes:
      config: transformers' configuration of the whole checkpoint.
      block_kinds: names of the classes of its blocks, the parts that FSDP takes together, see train.fsdp.
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
        parts = [getattr(module, "_no_split_modules", None) or () for module in model.modules()]
        self.block_kinds = frozenset(kind for kinds in parts for kind in kinds)
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


def is_from_transformers(name: str) -> bool:
    """Whether a network, named as for ``backbones.build``, is a `VisionModel`.

    Example:
      >>> is_from_transformers("resnet32"), is_from_transformers("labelwright/digits-clip")
      (False, True)
    """
    return network_of(name) not in ("none", "auto", *OWN, descriptor.NAME, efficientnet.NAME)


def image_stats(name: str) -> ImageStats:
    """What pixels a network, named as for ``backbones.build``, expects: from the checkpoint's image processor.

    The networks in OWN, trained from scratch, get 32 px, mean 0.5 and std 0.25, and descriptor 64 px; a run of
    labelwright and efficientnet_lite0 say what they were trained on.

    Raises: ConfigError, OfflineError: as ``backbones.build``, or the checkpoint does not say (no
      preprocessor_config.json).

    Example:
      >>> image_stats("resnet32")
      ImageStats(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    """
    if name in OWN:
        return ImageStats(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    if name == descriptor.NAME:
        return ImageStats(descriptor.SIZE_PX, (descriptor.MEAN,) * 3, (descriptor.STD,) * 3)
    if name == efficientnet.NAME:
        return ImageStats(efficientnet.SIZE_PX, (efficientnet.MEAN,) * 3, (efficientnet.STD,) * 3)
    saved = saved_backbone(name)
    if saved is not None:
        return ImageStats(saved.size_px, saved.mean, saved.std)
    load_config(name)  # says what is wrong with the model itself
    processor = _written(Path(resolve_name(name))) or _processor(name)
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


def _written(folder: Path) -> SimpleNamespace | None:
    """What the JSON file of an image processor says, if it says everything: no processor has to be built for it."""
    try:
        found = json_of((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"do_center_crop", "size", "image_mean", "image_std"}
    return SimpleNamespace(**found) if isinstance(found, dict) and wanted <= found.keys() else None


def _processor(name: str) -> Any:
    """The image processor itself, which knows what is not written.

    Raises: ConfigError if there is none.
    """
    # not from transformers itself, which up to 5.17 asks for torchvision first
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    with quiet():
        try:
            return AutoImageProcessor.from_pretrained(**located(name))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{name} does not say what pixels it expects",
                fix="put its preprocessor_config.json beside config.json, or take random weights: --no-pretrained",
            ) from error


def load_vision_model(name: str) -> VisionModel:
    """Pretrained vision model in float32; fails if the checkpoint lacks weights that features depend on.

    Args:
      name: a folder written by save_pretrained, or a hub id (owner/name).

    Raises: ConfigError, OfflineError: as ``backbones.build``.

    Example:
      >>> import tempfile, transformers
      >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
      >>> folder = tempfile.mkdtemp()
      >>> transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)
      >>> tuple(load_vision_model(folder)(torch.zeros(2, 3, 8, 8)).shape)
      (2, 8)
    """
    config = load_config(name)
    model, absent = load_model(name, config)
    vision = image_tower(model, config, name)
    used = {f"vision_model.{n}" for n, _ in vision.model.named_parameters()} if model is not vision.model else set()
    used |= {n for n, _ in vision.model.named_parameters()} | {"visual_projection.weight"}
    missing = {n for n in absent & used if not n.endswith("mask_token")}
    check_complete(name, missing, fix="use a checkpoint of this architecture, or random weights: --no-pretrained")
    return vision


def load_model(name: str, config: Any, *, kind: Any = None, dtype: torch.dtype = torch.float32) -> tuple[Any, set[str]]:
    """Whole model of a checkpoint, and the names of the weights that the checkpoint lacks (left random).

    Args:
      name, config: as for `load_config`, and what it gave.
      kind: transformers' class that loads it; None = AutoModel.   dtype: of the weights.

    Raises: ConfigError, OfflineError: as `load_config`, or there are no weights.
    """
    from transformers import AutoModel

    where = located(name)
    with quiet(), explained(name):
        model, info = (kind or AutoModel).from_pretrained(
            **where,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            adapter_kwargs={"local_files_only": where["local_files_only"]},  # or peft's look-up would ask the hub again
        )
    return model, set(info["missing_keys"])


def check_complete(name: str, absent: Collection[str], *, fix: str) -> None:
    """Refuse a checkpoint that lacks weights; raises ConfigError with their number and the first of them."""
    if absent:
        raise ConfigError(f"the checkpoint {name} lacks {len(absent)} weights, among them {min(absent)}", fix=fix)


def image_tower(model: Any, config: Any, name: str) -> VisionModel:
    """The model itself, or of a two-tower model its image side, of which ViT's pooler is dropped in place.

    Raises: ConfigError: it takes no images.
    """
    if getattr(model, "vision_model", None) is not None:
        return VisionModel(model.vision_model, getattr(model, "visual_projection", None), config)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise ConfigError(f"{name} is a {config.model_type} model, which takes no images", fix="name a vision model")
    return VisionModel(model, None, config)


def from_transformers_config(config: Any) -> VisionModel:
    """Vision model with random weights, float32; of a two-tower model only the image side is ever allocated.

    Raises: ConfigError: transformers' ``config`` describes no model with features, or none that takes images.

    Example:
      >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
      >>> config = parse_transformers_config({"model_type": "vit", "image_size": 8, "patch_size": 4, **sizes})
      >>> tuple(from_transformers_config(config)(torch.zeros(2, 3, 8, 8)).shape)
      (2, 8)
    """
    from transformers import AutoModel

    with quiet():
        try:
            if not hasattr(config, "vision_config"):
                return image_tower(AutoModel.from_config(config, dtype=torch.float32), config, config.model_type)
            with torch.device("meta"):
                plan = image_tower(AutoModel.from_config(config), config, config.model_type)
        except ValueError as error:
            raise ConfigError(f"{config.model_type} is not a model with features", fix="name a vision model") from error
        tower_class: Any = type(plan.model)
        tower = tower_class._from_config(config.vision_config, dtype=torch.float32)
        projection = plan.projection
        if isinstance(projection, nn.Linear):
            has_bias = projection.bias is not None
            projection = nn.Linear(projection.in_features, projection.out_features, bias=has_bias)
        return VisionModel(tower, projection, config)


def load_config(name: str) -> Any:
    """transformers configuration of a folder or hub id, with what is wrong reported in one line.

    Raises:
      ConfigError: no such folder, an id that is not on the hub, or a name of neither form.
      OfflineError: a hub id that is neither cached nor within reach.

    Example:
      >>> load_config("./nowhere")
      Traceback (most recent call last):
      labelwright.errors.ConfigError: no such model folder: ./nowhere
        fix: check the path
    """
    from transformers import AutoConfig

    with quiet(), explained(name):
        config = AutoConfig.from_pretrained(**located(name))
    for part in (config, *(getattr(config, each, None) for each in config.sub_configs)):
        if part is not None:
            part.dtype = torch.float32  # else loading changes the default type of all threads for a while
    return config


def parse_transformers_config(config: Mapping[str, Any]) -> Any:
    """transformers configuration out of its own dict form.

    Raises: ConfigError: transformers here does not know the model type.

    Example:
      >>> parse_transformers_config({"model_type": "vit", "hidden_size": 16}).hidden_size
      16
    """
    from transformers import AutoConfig

    with quiet():
        try:
            return AutoConfig.for_model(**config)
        except ValueError as error:
            raise ConfigError(
                f"transformers here does not know the model type {config.get('model_type')!r}",
                fix="upgrade transformers",
            ) from error


OFTEN_MEANT = ("openai/clip-vit-base-patch32", "google/siglip-base-patch16-224", "facebook/dinov2-small")
"""Hub ids whose last word people type alone."""


def located(name: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`: where a model is, and whether only files on this machine can be used.

    Raises: ConfigError: no such folder, or a name that is neither a folder nor a hub id.
    """
    folder = Path(resolve_name(name))
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"no such model folder: {name}", fix="check the path")
        if "/" not in name:
            close = [known for known in OFTEN_MEANT if name.lower().split("-")[0] in known.lower()]
            close = close or difflib.get_close_matches(
                name, (*OWN, descriptor.NAME, efficientnet.NAME), n=3, cutoff=0.5
            )
            close = close or list(OWN)
            raise ConfigError(
                f"unknown model: {name!r}",
                fix=f"did you mean {' or '.join(close)}? Otherwise give a hub id (owner/name) or a model folder",
            )
    elif not (folder / "config.json").is_file():
        raise ConfigError(f"no config.json in model folder {name}", fix="give a folder written by save_pretrained")
    local_only = not folder.is_dir() and _is_out_of_reach(name)
    return {"pretrained_model_name_or_path": resolve_name(name), "local_files_only": local_only}


@cache
def _is_out_of_reach(hub_id: str) -> bool:
    """Whether the hub cannot be asked for a model; found out once in a process.

    One question without retries: left to itself each file would be asked for over 26 s.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    timeout_s = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_TIMEOUT_S)
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=timeout_s)
    except (HfHubHTTPError, ValueError):
        return False  # an answer, if no good one, or a malformed id: loading says which
    except Exception:  # of httpx or httpx2, as the version of huggingface_hub has it
        return True
    return False


def resolve_name(name: str) -> str:
    """What transformers is to load: the path of a folder, or the hub id as it is.

    No hub is asked about "labelwright/...", a model inside this package.

    Raises: ConfigError: no model of that name is there.

    Example:
      >>> resolve_name("openai/clip-vit-base-patch32")
      'openai/clip-vit-base-patch32'
    """
    if name.startswith("labelwright/"):
        folder = EMBEDDED / name.removeprefix("labelwright/")
        if not (folder / "config.json").is_file():
            names = sorted(f"labelwright/{path.parent.name}" for path in EMBEDDED.glob("*/config.json"))
            raise ConfigError(
                f"no model {name} inside this package",
                fix=f"there is {', '.join(names) or 'none'}; otherwise give a hub id (owner/name) or a model folder",
            )
        return str(folder)
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


@contextmanager
def explained(name: str) -> Iterator[None]:
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
        if Path(resolve_name(name)).is_dir() or isinstance(error, ValueError):
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"cannot load the model {name}: {first}", fix="check the files in that folder") from error
        raise OfflineError(
            f"{name} is not on this machine and the Hugging Face hub cannot be reached",
            fix=f"where there is a network run: hf download {name}; or pass a local model folder",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
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
