"""Two-tower models of transformers (CLIP, SigLIP and their kin): images and texts in one space, frozen.

Whatever AutoModel gives that has get_image_features, get_text_features and a scale goes through one path; what sets a
family apart is read off its configuration: how texts are padded, how long they may be, where the scale is kept.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelwright.encoders.pretrained import (
    ImageStats,
    check_complete,
    explained,
    image_stats,
    image_tower,
    load_config,
    load_model,
    located,
    quiet,
)
from labelwright.errors import ConfigError, OfflineError
from labelwright.train.processes import autocast_dtype

TEXT_BATCH = 256  # texts per forward pass of the text tower
PROBE_TOLERANCE = 1e-3  # float32 on a GPU may multiply in TF32
UNHASHED = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")  # say nothing about the features

logger = logging.getLogger(__name__)


class TwoTower(nn.Module):
    """An image tower and a text tower into one space [D]; always in eval mode, no parameter ever gets a gradient.

    Attributes:
      model, config, tokenizer: of transformers; the scale stays in the model's own parameter too.
      vision: the image side; x [B, 3, H, W] normalised pixels -> projected feats [B, D], not of unit norm.
      name: what it was asked for as.   stats: the pixels it expects.   n_features: D.
      logit_scale: what cosines are multiplied by to become logits (already exponentiated).
      max_tokens: what a text is cut to, special tokens included.
      precision: "bf16" or "fp32", of image forward passes; texts are always float32.
      identity: 32 hex digits of the weights and the configuration, wherever the model lies; precision not included.

    Raises: ConfigError: its image side takes no plain pixels, its sides do not share a space, unknown precision.

    Example: the small model inside the package.
      >>> tower = load_two_tower("labelwright/digits-clip", device=torch.device("cpu"))
      >>> tuple(tower.image_feats(torch.zeros(5, 3, 16, 16)).shape), tuple(tower.text_feats(["one", "two"]).shape)
      ((5, 64), (2, 64))
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, stats: ImageStats, precision: str = "auto") -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.config: Any = model.config
        self.vision = image_tower(model, self.config, name)
        self.name = name
        self.stats = stats
        self.identity = identity_of(model)
        self.logit_scale = _logit_scale(model)
        self.max_tokens = _max_tokens(model, tokenizer)
        self.precision = "fp32" if autocast_dtype(self.device, precision) is None else "bf16"
        # SigLIP pools at the last position, padding or not, and saw every text padded, unmasked and in lower case.
        self.is_siglip = self.config.model_type.startswith("siglip")
        self._has_warned = False
        tokenizer.padding_side = "right"
        self.requires_grad_(False)
        self.train(False)
        self.n_features = _check_towers(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> TwoTower:
        """Stay in eval mode whatever is asked: part of a larger network, it is frozen all the same."""
        super().train(False)
        return self

    @torch.no_grad()
    def image_feats(self, x: Tensor) -> Tensor:
        """Unit features [B, D] float32 of pixels x [B, 3, H, W], normalised by ``stats``, on the model's device."""
        dtype = autocast_dtype(x.device, self.precision)
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            feats = self.vision(x)
        return F.normalize(feats.float(), dim=1)

    @torch.no_grad()
    def text_feats(self, texts: Sequence[str]) -> Tensor:
        """Unit features [T, D] float32 of T texts; one longer than the model takes is cut, and the first one logged.

        Raises: ConfigError: a text is empty.
        """
        texts = [text.lower() for text in texts] if self.is_siglip else list(texts)
        if not all(text.strip() for text in texts):
            raise ConfigError("one of the texts to embed is empty", fix="give every class a name or a description")
        self._warn_of_cuts(texts)
        out = torch.empty(len(texts), self.n_features, device=self.device)
        for start in range(0, len(texts), TEXT_BATCH):
            inputs = self.tokenize(texts[start : start + TEXT_BATCH])
            out[start : start + TEXT_BATCH] = F.normalize(self._raw_text_feats(inputs), dim=1)
        return out

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Of T texts "input_ids", and "attention_mask" where the model is used to one: [T, L] int64, on its device.

        A long text is cut before its end token.
        """
        encoded = self.tokenizer(
            [text.lower() for text in texts] if self.is_siglip else list(texts),
            padding="max_length" if self.is_siglip else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        wanted = ("input_ids",) if self.is_siglip else ("input_ids", "attention_mask")
        return {key: encoded[key].to(self.device) for key in wanted if key in encoded}

    def _raw_text_feats(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return pooled(self.model.get_text_features(**inputs)).float()

    def _warn_of_cuts(self, texts: list[str]) -> None:
        if self._has_warned or not texts:
            return
        with quiet():  # of transformers' own words about lengths
            lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
        cut = [row for row, length in enumerate(lengths) if length > self.max_tokens]
        if cut:
            self._has_warned = True
            logger.warning(
                "%s reads %d tokens: %d of %d texts are cut, the first one is %r (%d tokens)",
                *(self.name, self.max_tokens, len(cut), len(texts), texts[cut[0]], lengths[cut[0]]),
            )


def load_two_tower(name: str, *, device: torch.device, precision: str = "auto") -> TwoTower:
    """Load a two-tower model, frozen.

    Args:
      name: a folder written by save_pretrained (model, tokenizer and image processor), a hub id (owner/name), or the
        name of a model inside this package (labelwright/...).
      device: where to put it.   precision: "auto", "bf16" or "fp32", of image forward passes.

    Raises:
      ConfigError: no such model; it has only one side; its weights, tokenizer or image processor are missing or do not
        belong together.
      OfflineError: a hub id that is neither cached nor within reach.

    Example:
      >>> load_two_tower("./nowhere", device=torch.device("cpu"))
      Traceback (most recent call last):
      labelwright.errors.ConfigError: no such model folder: ./nowhere
        fix: check the path
    """
    autocast_dtype(device, precision)  # a wrong setting is reported before anything is fetched
    config = load_config(name)
    _check_has_two_sides(config, name)
    stats = image_stats(name)
    tokenizer = _load_tokenizer(name)
    model, absent = load_model(name, config)
    absent = {key for key in absent if key != "logit_bias" and not key.endswith(("mask_token", "position_ids"))}
    check_complete(name, absent, fix="use a checkpoint that holds both the image and the text side")
    return TwoTower(model.to(device), tokenizer, name=name, stats=stats, precision=precision)


def _check_has_two_sides(config: Any, name: str) -> None:
    """From an empty shell of the model, before any weights are fetched."""
    from transformers import AutoModel

    fix = "name a model of images and texts such as openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"
    with quiet(), torch.device("meta"):
        try:
            shell = AutoModel.from_config(config)
        except ValueError as error:
            raise ConfigError(f"{name} ({config.model_type}) is not a model that gives features", fix=fix) from error
    if not hasattr(shell, "get_text_features"):
        raise ConfigError(f"{name} ({config.model_type}) has no text side that shares a space with images", fix=fix)
    if not hasattr(shell, "get_image_features"):
        raise ConfigError(f"{name} ({config.model_type}) has no image side", fix=fix)
    if not hasattr(shell, "logit_scale") and not hasattr(shell, "temperature"):
        raise ConfigError(f"{name} ({config.model_type}) was not trained to match texts to images", fix=fix)
    if "spatial_shapes" in inspect.signature(shell.get_image_features).parameters:
        raise ConfigError(
            f"{name} ({config.model_type}) takes images cut into patches of any number, not pixels of one size",
            fix="use a checkpoint of one image size, such as google/siglip2-base-patch16-224",
        )


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    def no_words(detail: str) -> ConfigError:
        return ConfigError(
            f"{name} has no usable tokenizer: {detail}",
            fix="put its tokenizer files (tokenizer.json, tokenizer_config.json) beside config.json; "
            "one that comes as a sentencepiece file alone needs: pip install sentencepiece",
        )

    where = located(name)
    try:
        with quiet(), explained(name):
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ConfigError, OfflineError) as error:
        if where["local_files_only"]:
            raise
        raise no_words(error.message.removeprefix(f"cannot load the model {name}: ")) from error
    except ImportError as error:
        raise no_words(str(error).strip().splitlines()[0]) from error
    # Without files transformers makes some tokenizers anew, with special tokens and no words.
    if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) < 2:
        raise no_words("there are no words in its vocabulary")
    if tokenizer.pad_token is None:
        raise no_words("it has no padding token")
    return tokenizer


def _check_towers(tower: TwoTower) -> int:
    """D, after a look at one image and one text: both sides in one space, ``vision`` what the model itself computes."""
    size = tower.stats.size_px
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(tower.device)
    text = {"input_ids": torch.ones(1, tower.max_tokens, dtype=torch.long, device=tower.device)}
    if not tower.is_siglip:
        text["attention_mask"] = torch.ones_like(text["input_ids"])
    with torch.no_grad():
        feats = tower.vision(pixels)
        try:
            # the image size that the processor gives need not be the one of the position encodings
            takes = inspect.signature(tower.model.get_image_features).parameters
            resized = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
            own = pooled(tower.model.get_image_features(pixel_values=pixels, **resized))
        except (TypeError, ValueError, AttributeError):
            own = None
        n_text = tower._raw_text_feats(text).shape[1]
    if own is None or own.shape != feats.shape or not torch.allclose(own, feats, PROBE_TOLERANCE, PROBE_TOLERANCE):
        raise ConfigError(
            f"the image side of {tower.name} ({tower.config.model_type}) is built in a way that is not known here",
            fix="use a model of the CLIP or SigLIP family",
        )
    n_image = int(feats.shape[1])
    if n_text != n_image:
        raise ConfigError(
            f"images of {tower.name} have {n_image} features and its texts {n_text}: no common space",
            fix="use a checkpoint with both projections",
        )
    return n_image


def pooled(out: Any) -> Tensor:
    """Features out of what get_*_features returns: a tensor, or since transformers 5 an output that holds them."""
    feats: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return feats


def _logit_scale(model: Any) -> float:
    """The exponential of the learned scale; ALIGN keeps its inverse, a temperature. A bias is one for all."""
    if hasattr(model, "logit_scale"):
        return float(model.logit_scale.detach().exp())
    return 1.0 / float(model.temperature.detach())


def _max_tokens(model: Any, tokenizer: Any) -> int:
    """The longest text that the position encodings hold; RoBERTa's begin after the padding index."""
    positions = int(model.config.text_config.max_position_embeddings)
    for name, module in model.text_model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            positions -= module.padding_idx + 1
    return min(positions, int(tokenizer.model_max_length))


def identity_of(model: Any) -> str:
    """32 hex digits of a model's weights and configuration, wherever it lies; our own networks have but weights."""
    digest = blake2b(digest_size=16)
    config = getattr(model, "config", None)
    facts = type(model).__name__ if config is None else _without_origin(config.to_diff_dict())
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_origin(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _without_origin(value) for key, value in config.items() if key not in UNHASHED}
    return config
