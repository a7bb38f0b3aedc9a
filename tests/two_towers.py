"""Two-tower models of random weights, small enough to be run layer by layer in a test."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from labelwright.encoders.clip import TwoTower
from labelwright.encoders.pretrained import ImageStats

SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>"]
WORDS = [*SPECIAL, "a", "an", "photo", "of", "the", "two", "cat", "dog", "dogs", "owl", "big", "red", "with", "spots"]
LENGTH = 14
WIDTH = 32
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TEXT = {**SIZES, **IDS, "hidden_size": 24, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH}
VISION = {**SIZES, "hidden_size": WIDTH, "image_size": 16, "patch_size": 8}


def tokenizer(*, has_bos: bool) -> Any:
    """A token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    form = "<bos> $A <eos>" if has_bos else "$A <eos>"
    words.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<bos>", 2), ("<eos>", 3)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    names |= {"bos_token": "<bos>"} if has_bos else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def two_tower(family: str, *, seed: int = 0) -> TwoTower:
    """A model of a family in float64, with weights large enough that every part of it tells in the features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if family == "clip":
            config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
            model = transformers.CLIPModel(config)
        elif family == "siglip":
            text = {**TEXT, "projection_size": WIDTH}
            model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
        else:
            config = transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=10)
            model = transformers.ChineseCLIPModel(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    stats = ImageStats(16, (0.5,) * 3, (0.5,) * 3)
    return TwoTower(model, tokenizer(has_bos=family != "siglip"), name=family, stats=stats, precision="fp32").double()


def pixels(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
